/*
 * The page walk and the software TLB: everything that translated code reaches
 * with the guest's vector registers live. Compiled with -mgeneral-regs-only and
 * calling nothing outside this file but the flush hook; a test disassembles it.
 *
 * SDM 3A chapter 4.
 */
#include "engine/mmu.h"

#include "engine/engine_int.h"
#include "engine/mirror.h"
#include "engine/native_user.h"

#include <errno.h>

#define PTE_P 0x001ull
#define PTE_RW 0x002ull
#define PTE_US 0x004ull
#define PTE_A 0x020ull
#define PTE_D 0x040ull
#define PTE_PS 0x080ull
#define PTE_G 0x100ull
#define PTE_NX 0x8000000000000000ull
#define PTE_ADDRESS 0x000ffffffffff000ull

#define FETCH_USER 1ull
#define FETCH_VALID 2ull

enum walk_result { WALK_OK, WALK_NOT_PRESENT, WALK_RESERVED };

struct walk_entry {
    uint8_t *host; /* NULL when the table is not in RAM */
    uint64_t value;
};

struct walk {
    struct walk_entry entry[4]; /* from the top; the last one maps the page */
    unsigned count;
    unsigned entry_bytes; /* 4 or 8 */
    uint64_t address;     /* of the page's first byte */
    uint64_t page_bytes;
    bool user;
    bool writable;
    bool no_execute;
};

static bool paging_on(const struct engine_vcpu *v)
{
    return (v->st.cr0 & X86_CR0_PG) != 0;
}

bool mmu_is_canonical(const struct engine_vcpu *v, uint64_t va)
{
    return (v->st.efer & X86_EFER_LMA) == 0 || (uint64_t)((int64_t)(va << 16) >> 16) == va;
}

enum mmu_mode mmu_current_mode(const struct engine_vcpu *v)
{
    if (vcpu_state_cpl(&v->st) == 3) {
        return MMU_USER;
    }
    if ((v->st.cr4 & X86_CR4_SMAP) == 0 || (v->st.rflags & X86_FLAG_AC) != 0) {
        return MMU_KERNEL_AC;
    }
    return MMU_KERNEL;
}

static const struct engine_ram *ram_find(const struct engine_vm *vm, uint64_t pa)
{
    for (unsigned i = 0; i < vm->ram_count; i++) {
        if (pa - vm->ram[i].gpa < vm->ram[i].size_bytes) {
            return &vm->ram[i];
        }
    }
    return NULL;
}

static uint8_t *ram_host(const struct engine_vm *vm, uint64_t pa)
{
    const struct engine_ram *ram = ram_find(vm, pa);

    return ram == NULL ? NULL : ram->host + (pa - ram->gpa);
}

static _Atomic uint8_t *ram_flags(const struct engine_vm *vm, uint64_t pa)
{
    const struct engine_ram *ram = ram_find(vm, pa);

    return ram == NULL ? NULL : ram->flags + ((pa - ram->gpa) >> GMEM_PAGE_SHIFT);
}

static void ram_mark_dirty(const struct engine_vm *vm, uint64_t pa)
{
    if (atomic_load_explicit(&vm->dirty_logging, memory_order_relaxed)) {
        _Atomic uint8_t *flags = ram_flags(vm, pa);

        if (flags != NULL) {
            (void)atomic_fetch_or(flags, GMEM_PAGE_DIRTY);
        }
    }
}

/* A table outside RAM reads as all-ones, as an empty bus does. */
static uint64_t entry_load(struct engine_vcpu *v, struct walk *w, uint64_t pa)
{
    struct walk_entry *e = &w->entry[w->count++];

    e->host = ram_host(v->vm, pa);
    if (e->host == NULL) {
        e->value = ~0ull;
    } else if (w->entry_bytes == 8) {
        e->value = __atomic_load_n((uint64_t *)(void *)e->host, __ATOMIC_RELAXED);
    } else {
        e->value = __atomic_load_n((uint32_t *)(void *)e->host, __ATOMIC_RELAXED);
    }
    return e->value;
}

static void walk_add_rights(struct walk *w, uint64_t entry)
{
    w->user = w->user && (entry & PTE_US) != 0;
    w->writable = w->writable && (entry & PTE_RW) != 0;
    w->no_execute = w->no_execute || (w->entry_bytes == 8 && (entry & PTE_NX) != 0);
}

/* From the table of the given level down: PAE (level 2) and 4-level (level 4) alike. */
static enum walk_result walk_levels(struct engine_vcpu *v, uint64_t va, uint64_t table,
                                    unsigned level, uint64_t reserved, struct walk *w)
{
    if ((v->st.efer & X86_EFER_NXE) == 0) {
        reserved |= PTE_NX;
    }
    for (;; level--) {
        unsigned shift = 12 + 9 * (level - 1);
        uint64_t entry = entry_load(v, w, table + (((va >> shift) & 0x1ff) << 3));
        uint64_t page_bytes = 1ull << shift;

        if ((entry & PTE_P) == 0) {
            return WALK_NOT_PRESENT;
        }
        if ((entry & reserved) != 0 || (level == 4 && (entry & PTE_PS) != 0)) {
            return WALK_RESERVED;
        }
        walk_add_rights(w, entry);
        if (level == 1 || (entry & PTE_PS) != 0) {
            /* Of a large page's address bits only bit 12 (PAT) may be set below its size. */
            if (level > 1 && (entry & PTE_ADDRESS & (page_bytes - 1) & ~0x1000ull) != 0) {
                return WALK_RESERVED;
            }
            w->address = entry & PTE_ADDRESS & ~(page_bytes - 1);
            w->page_bytes = page_bytes;
            return WALK_OK;
        }
        table = entry & PTE_ADDRESS;
    }
}

/* 32-bit paging (SDM 3A 4.3), with 4 MiB pages when CR4.PSE is set. */
static enum walk_result walk_32(struct engine_vcpu *v, uint64_t va, struct walk *w)
{
    uint64_t entry = entry_load(v, w, (v->st.cr3 & 0xfffff000u) + (((va >> 22) & 0x3ff) << 2));

    if ((entry & PTE_P) == 0) {
        return WALK_NOT_PRESENT;
    }
    walk_add_rights(w, entry);
    if ((entry & PTE_PS) != 0 && (v->st.cr4 & X86_CR4_PSE) != 0) {
        if ((entry & (1u << 21)) != 0) {
            return WALK_RESERVED;
        }
        w->address = (entry & 0xffc00000u) | (((entry >> 13) & 0xff) << 32);
        w->page_bytes = 1ull << 22;
        return (w->address & v->paging_reserved) != 0 ? WALK_RESERVED : WALK_OK;
    }
    entry = entry_load(v, w, (entry & 0xfffff000u) + (((va >> 12) & 0x3ff) << 2));
    if ((entry & PTE_P) == 0) {
        return WALK_NOT_PRESENT;
    }
    walk_add_rights(w, entry);
    w->address = entry & 0xfffff000u;
    w->page_bytes = 4096;
    return WALK_OK;
}

/* PAE paging (SDM 3A 4.4): the PDPTE is read at each walk, as it has no A bit and no rights. */
static enum walk_result walk_pae(struct engine_vcpu *v, uint64_t va, struct walk *w)
{
    uint64_t pdpte = entry_load(v, w, (v->st.cr3 & 0xffffffe0u) + (((va >> 30) & 3) << 3));

    w->count = 0;
    if ((pdpte & PTE_P) == 0) {
        return WALK_NOT_PRESENT;
    }
    return walk_levels(v, va, pdpte & PTE_ADDRESS, 2, v->paging_reserved | 0x7ff0000000000000ull,
                       w);
}

static enum walk_result walk(struct engine_vcpu *v, uint64_t va, struct walk *w)
{
    w->count = 0;
    w->user = true;
    w->writable = true;
    w->no_execute = false;
    w->entry_bytes = 8;
    if ((v->st.efer & X86_EFER_LMA) != 0) {
        return walk_levels(v, va, v->st.cr3 & PTE_ADDRESS, 4, v->paging_reserved, w);
    }
    if ((v->st.cr4 & X86_CR4_PAE) != 0) {
        return walk_pae(v, va, w);
    }
    w->entry_bytes = 4;
    return walk_32(v, va, w);
}

/* SDM 3A 4.6.1. */
static bool walk_allows(const struct engine_vcpu *v, const struct walk *w, enum mmu_access access,
                        enum mmu_mode mode)
{
    if (mode == MMU_USER && !w->user) {
        return false;
    }
    if (access == MMU_FETCH) {
        return !w->no_execute && (mode == MMU_USER || !w->user || (v->st.cr4 & X86_CR4_SMEP) == 0);
    }
    if (mode == MMU_KERNEL && w->user && (v->st.cr4 & X86_CR4_SMAP) != 0) {
        return false;
    }
    return access == MMU_READ || w->writable || (mode != MMU_USER && (v->st.cr0 & X86_CR0_WP) == 0);
}

/* Sets bits in one entry: false when it is no longer what the walk read. */
static bool entry_set(struct engine_vcpu *v, const struct walk *w, const struct walk_entry *e,
                      uint64_t bits)
{
    bool done;

    if ((e->value & bits) == bits || e->host == NULL) {
        return true;
    }
    if (w->entry_bytes == 8) {
        uint64_t expected = e->value;

        done = __atomic_compare_exchange_n((uint64_t *)(void *)e->host, &expected, e->value | bits,
                                           false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    } else {
        uint32_t expected = (uint32_t)e->value;

        done = __atomic_compare_exchange_n((uint32_t *)(void *)e->host, &expected,
                                           (uint32_t)(e->value | bits), false, __ATOMIC_SEQ_CST,
                                           __ATOMIC_RELAXED);
    }
    if (done && atomic_load_explicit(&v->vm->dirty_logging, memory_order_relaxed)) {
        for (unsigned i = 0; i < v->vm->ram_count; i++) {
            const struct engine_ram *ram = &v->vm->ram[i];

            if ((uint64_t)(e->host - ram->host) < ram->size_bytes) {
                ram_mark_dirty(v->vm, ram->gpa + (uint64_t)(e->host - ram->host));
            }
        }
    }
    return done;
}

/* Accessed on the way, dirty at the leaf; false when the walk has to start again. */
static bool walk_set_bits(struct engine_vcpu *v, struct walk *w, bool is_write)
{
    for (unsigned i = 0; i < w->count; i++) {
        bool leaf = i + 1 == w->count;

        if (!entry_set(v, w, &w->entry[i], leaf && is_write ? PTE_A | PTE_D : PTE_A)) {
            return false;
        }
    }
    return true;
}

static struct mmu_tlb_entry *tlb_entry(struct engine_vcpu *v, unsigned mode, unsigned is_write,
                                       unsigned set)
{
    struct mmu_tlb *tlb = &v->tlb[mode];

    return is_write != 0 ? &tlb->write[set] : &tlb->read[set];
}

static void tlb_clear(struct engine_vcpu *v, unsigned mode, unsigned is_write, unsigned set)
{
    __atomic_store_n(&tlb_entry(v, mode, is_write, set)->tag, MMU_TLB_EMPTY, __ATOMIC_RELAXED);
}

static void flush_4k(struct engine_vcpu *v, uint64_t va)
{
    uint64_t page_va = va & ~(uint64_t)(GMEM_PAGE_BYTES - 1);
    unsigned set = mmu_tlb_index(va);

    for (unsigned mode = 0; mode < MMU_MODE_COUNT; mode++) {
        for (unsigned is_write = 0; is_write < 2; is_write++) {
            if (tlb_entry(v, mode, is_write, set)->tag == page_va) {
                tlb_clear(v, mode, is_write, set);
            }
        }
    }
}

static int page_fault(struct engine_vcpu *v, uint64_t va, enum mmu_access access,
                      enum mmu_mode mode, uint32_t error)
{
    if (access == MMU_WRITE) {
        error |= X86_PF_WRITE;
    }
    if (mode == MMU_USER) {
        error |= X86_PF_USER;
    }
    if (access == MMU_FETCH &&
        ((v->st.cr4 & X86_CR4_SMEP) != 0 ||
         ((v->st.efer & X86_EFER_NXE) != 0 && (v->st.cr4 & X86_CR4_PAE) != 0))) {
        error |= X86_PF_FETCH;
    }
    v->fault.vector = X86_VEC_PF;
    v->fault.has_error = true;
    v->fault.error = error;
    v->fault.cr2 = va;
    v->fault.dr6 = 0;
    /* The processor drops what it knew of a page when it faults (SDM 3A 4.10.4.1). */
    flush_4k(v, va);
    return ENGINE_FAULT;
}

static int translate_flat(struct engine_vcpu *v, uint64_t va, struct mmu_page *ret_page)
{
    ret_page->gpa = va & 0xffffffffu;
    ret_page->page_bytes = GMEM_PAGE_BYTES;
    ret_page->host = ram_host(v->vm, ret_page->gpa);
    ret_page->global = false;
    ret_page->user = true;
    ret_page->writable = true;
    ret_page->dirty = true;
    return 0;
}

int mmu_translate(struct engine_vcpu *v, uint64_t va, enum mmu_access access, enum mmu_mode mode,
                  struct mmu_page *ret_page)
{
    struct walk w;
    enum walk_result result;

    if (!paging_on(v)) {
        return translate_flat(v, va, ret_page);
    }
    if (!mmu_is_canonical(v, va)) {
        v->fault.vector = X86_VEC_GP;
        v->fault.has_error = true;
        v->fault.error = 0;
        v->fault.cr2 = 0;
        v->fault.dr6 = 0;
        return ENGINE_FAULT;
    }
    if ((v->st.efer & X86_EFER_LMA) == 0) {
        va &= 0xffffffffu;
    }
    do {
        result = walk(v, va, &w);
        if (result != WALK_OK) {
            return page_fault(v, va, access, mode,
                              result == WALK_RESERVED ? X86_PF_PRESENT | X86_PF_RSVD : 0);
        }
        if (!walk_allows(v, &w, access, mode)) {
            return page_fault(v, va, access, mode, X86_PF_PRESENT);
        }
    } while (!walk_set_bits(v, &w, access == MMU_WRITE));

    uint64_t leaf = w.entry[w.count - 1].value;

    ret_page->gpa = w.address | (va & (w.page_bytes - 1));
    ret_page->page_bytes = w.page_bytes;
    ret_page->host = ram_host(v->vm, ret_page->gpa);
    ret_page->global = (leaf & PTE_G) != 0 && (v->st.cr4 & X86_CR4_PGE) != 0;
    ret_page->user = w.user;
    ret_page->writable = walk_allows(v, &w, MMU_WRITE, mode);
    ret_page->dirty = access == MMU_WRITE || (leaf & PTE_D) != 0;
    return 0;
}

bool mmu_probe(struct engine_vcpu *v, uint64_t va, struct mmu_page *ret_page)
{
    struct walk w;
    uint64_t leaf;

    if (!paging_on(v) || !mmu_is_canonical(v, va) || walk(v, va, &w) != WALK_OK ||
        !walk_allows(v, &w, MMU_READ, MMU_KERNEL)) {
        return false;
    }
    for (unsigned i = 0; i < w.count; i++) {
        if ((w.entry[i].value & PTE_A) == 0) {
            return false;
        }
    }
    leaf = w.entry[w.count - 1].value;
    ret_page->gpa = w.address | (va & (w.page_bytes - 1));
    ret_page->page_bytes = w.page_bytes;
    ret_page->host = ram_host(v->vm, ret_page->gpa);
    ret_page->global = (leaf & PTE_G) != 0 && (v->st.cr4 & X86_CR4_PGE) != 0;
    ret_page->user = w.user;
    ret_page->dirty = (leaf & PTE_D) != 0;
    ret_page->writable = ret_page->dirty && walk_allows(v, &w, MMU_WRITE, MMU_KERNEL);
    return true;
}

uint8_t *mmu_ram_host(const struct engine_vm *vm, uint64_t pa)
{
    return ram_host(vm, pa);
}

int mmu_peek(struct engine_vcpu *v, uint64_t va, gpa_t *ret_gpa)
{
    struct walk w;

    if (!paging_on(v)) {
        *ret_gpa = gpa(va & 0xffffffffu);
        return 0;
    }
    if (!mmu_is_canonical(v, va) || walk(v, va, &w) != WALK_OK) {
        return -EFAULT;
    }
    *ret_gpa = gpa(w.address | (va & (w.page_bytes - 1)));
    return 0;
}

/* Pages with a data breakpoint stay out of the TLB: each access is looked at. */
static bool page_is_watched(const struct engine_vcpu *v, uint64_t va)
{
    if (!v->data_breakpoints) {
        return false;
    }
    for (unsigned i = 0; i < 4; i++) {
        if (((v->st.dr[7] >> (2 * i)) & 3) != 0 && ((v->st.dr[i] ^ va) >> 12) == 0) {
            return true;
        }
    }
    return false;
}

/* Only the owner changes them; others read (unmap_writes()). */
static void bit_set(uint64_t *words, unsigned bit, bool value)
{
    uint64_t mask = 1ull << (bit % 64);
    uint64_t word = words[bit / 64];

    __atomic_store_n(&words[bit / 64], value ? word | mask : word & ~mask, __ATOMIC_RELAXED);
}

static uint64_t gib_bit(uint64_t va)
{
    return 1ull << (va >> 30 & 63);
}

static void note_large(struct engine_vcpu *v, uint64_t va, const struct mmu_page *page)
{
    if (page->page_bytes > GMEM_PAGE_BYTES) {
        v->large_gib |= gib_bit(va);
    }
}

static uint64_t evicted_bit(uint64_t host_page)
{
    return 1ull << (host_page * 0x9e3779b97f4a7c15ull >> 58);
}

/* A unit may have checked what an entry says, and store there later. */
static void note_evicted(struct engine_vcpu *v, const struct mmu_tlb_entry *entry)
{
    uint64_t tag = __atomic_load_n(&entry->tag, __ATOMIC_RELAXED);
    uint64_t bits = atomic_load_explicit(&v->evicted_writes, memory_order_relaxed);

    if (tag != MMU_TLB_EMPTY) {
        /* Release: who finds the entry changed finds this, too. */
        atomic_store_explicit(&v->evicted_writes, bits | evicted_bit(tag + entry->addend),
                              memory_order_release);
    }
}

static void tlb_enter(struct engine_vcpu *v, uint64_t va, unsigned is_write, enum mmu_mode mode,
                      const struct mmu_page *page)
{
    uint64_t page_va = va & ~(uint64_t)(GMEM_PAGE_BYTES - 1);
    unsigned set = mmu_tlb_index(va);
    struct mmu_tlb_entry *entry = tlb_entry(v, mode, is_write, set);
    struct mmu_tlb_index *index = &v->tlb_index[mode];

    bit_set(index->used[is_write], set, true);
    bit_set(index->non_global[is_write], set, !page->global);
    bit_set(index->large[is_write], set, page->page_bytes > GMEM_PAGE_BYTES);
    note_large(v, va, page);
    if (is_write != 0) {
        note_evicted(v, entry);
    }
    __atomic_store_n(&entry->addend, (uint64_t)(uintptr_t)page->host - va, __ATOMIC_RELEASE);
    __atomic_store_n(&entry->tag, page_va, __ATOMIC_RELEASE);
}

/* A write entry is only for pages without code; the mark may come while it is entered. */
static void tlb_enter_write(struct engine_vcpu *v, uint64_t va, enum mmu_mode mode,
                            const struct mmu_page *page, uint64_t pa)
{
    _Atomic uint8_t *flags = ram_flags(v->vm, pa);

    if (flags == NULL || (atomic_load(flags) & GMEM_PAGE_CODE) != 0) {
        return;
    }
    ram_mark_dirty(v->vm, pa);
    tlb_enter(v, va, 1, mode, page);
    atomic_thread_fence(memory_order_seq_cst);
    if ((atomic_load(flags) & GMEM_PAGE_CODE) != 0) {
        tlb_clear(v, mode, 1, mmu_tlb_index(va));
    }
}

void mmu_tlb_enter(struct engine_vcpu *v, uint64_t va, bool is_write, enum mmu_mode mode,
                   const struct mmu_page *page)
{
    if (!is_write) {
        tlb_enter(v, va, 0, mode, page);
        return;
    }
    for (unsigned i = 0; i < v->vm->ram_count; i++) {
        const struct engine_ram *ram = &v->vm->ram[i];

        if ((uint64_t)(page->host - ram->host) < ram->size_bytes) {
            tlb_enter_write(v, va, mode, page, ram->gpa + (uint64_t)(page->host - ram->host));
            return;
        }
    }
}

int mmu_fill(struct engine_vcpu *v, uint64_t va, enum mmu_access access, enum mmu_mode mode,
             struct mmu_page *ret_page)
{
    int r = mmu_translate(v, va, access, mode, ret_page);

    if (r != 0 || ret_page->host == NULL || access == MMU_FETCH || page_is_watched(v, va)) {
        return r;
    }
    v->stat_tlb_fills++;
    if (access == MMU_WRITE) {
        tlb_enter_write(v, va, mode, ret_page, ret_page->gpa);
    } else {
        tlb_enter(v, va, 0, mode, ret_page);
    }
    return 0;
}

int mmu_fetch_host(struct engine_vcpu *v, uint64_t va, const uint8_t **ret_host)
{
    bool user = vcpu_state_cpl(&v->st) == 3;
    uint64_t tag = (va & ~(uint64_t)(GMEM_PAGE_BYTES - 1)) | FETCH_VALID | (user ? FETCH_USER : 0);
    struct mmu_fetch_entry *entry = &v->fetch[(va >> 12) & (MMU_FETCH_SETS - 1)];
    struct mmu_page page;

    if (likely(entry->tag == tag)) {
        *ret_host = entry->host + (va & (GMEM_PAGE_BYTES - 1));
        return 0;
    }

    int r = mmu_translate(v, va, MMU_FETCH, user ? MMU_USER : MMU_KERNEL, &page);

    if (r != 0) {
        return r;
    }
    *ret_host = page.host;
    if (page.host != NULL) {
        entry->tag = tag;
        entry->host = page.host - (va & (GMEM_PAGE_BYTES - 1));
        entry->global = page.global;
        entry->large = page.page_bytes > GMEM_PAGE_BYTES;
        note_large(v, va, &page);
    }
    return 0;
}

bool mmu_fetch_is_global(const struct engine_vcpu *v, uint64_t va)
{
    const struct mmu_fetch_entry *entry = &v->fetch[(va >> 12) & (MMU_FETCH_SETS - 1)];

    return entry->global && ((entry->tag ^ va) >> 12) == 0;
}

static void fetch_flush(struct engine_vcpu *v, bool keep_global)
{
    for (unsigned i = 0; i < MMU_FETCH_SETS; i++) {
        if (!keep_global || !v->fetch[i].global) {
            v->fetch[i].tag = 0;
        }
    }
}

/* INVLPG: the page itself, and whatever of a large page may belong to it. */
static void fetch_flush_page(struct engine_vcpu *v, uint64_t va)
{
    struct mmu_fetch_entry *entry = &v->fetch[(va >> 12) & (MMU_FETCH_SETS - 1)];

    if (((entry->tag ^ va) >> 12) == 0) {
        entry->tag = 0;
    }
    if ((v->large_gib & gib_bit(va)) == 0) {
        return;
    }
    for (unsigned i = 0; i < MMU_FETCH_SETS; i++) {
        if (v->fetch[i].large && ((v->fetch[i].tag ^ va) >> 30) == 0) {
            v->fetch[i].tag = 0;
        }
    }
}

static void flush_done(struct engine_vcpu *v, enum mmu_flush what, uint64_t va)
{
    v->stat_tlb_flushes++;
    if (v->vm->mirror != NULL) {
        mirror_on_flush(v, what, va);
    }
    if (v->vm->native_user != NULL) {
        native_user_on_flush(v, what, va);
    }
    if (v->flush_hook != NULL) {
        v->flush_hook(v, what, va);
    }
}

void mmu_init(struct engine_vcpu *v)
{
    for (unsigned mode = 0; mode < MMU_MODE_COUNT; mode++) {
        for (unsigned set = 0; set < MMU_TLB_SETS; set++) {
            tlb_clear(v, mode, 0, set);
            tlb_clear(v, mode, 1, set);
        }
        /* Atomic, so that no compiler makes a call of memset() from the loop. */
        for (unsigned word = 0; word < MMU_TLB_WORDS; word++) {
            for (unsigned w = 0; w < 2; w++) {
                __atomic_store_n(&v->tlb_index[mode].used[w][word], 0, __ATOMIC_RELAXED);
                __atomic_store_n(&v->tlb_index[mode].non_global[w][word], 0, __ATOMIC_RELAXED);
                __atomic_store_n(&v->tlb_index[mode].large[w][word], 0, __ATOMIC_RELAXED);
            }
        }
    }
    fetch_flush(v, false);
}

/* Clears the entries whose bit is set in which (and the bit in used) of one table. */
static void flush_marked(struct engine_vcpu *v, unsigned mode, unsigned is_write, uint64_t *which)
{
    for (unsigned word = 0; word < MMU_TLB_WORDS; word++) {
        const uint64_t marked = which[word];
        uint64_t *used = &v->tlb_index[mode].used[is_write][word];

        if (marked == 0) {
            continue;
        }
        for (uint64_t bits = marked; bits != 0; bits &= bits - 1) {
            tlb_clear(v, mode, is_write, word * 64 + (unsigned)__builtin_ctzll(bits));
        }
        __atomic_store_n(used, *used & ~marked, __ATOMIC_RELEASE);
        v->tlb_index[mode].non_global[is_write][word] &= ~marked;
        v->tlb_index[mode].large[is_write][word] &= ~marked;
    }
}

void mmu_flush_all(struct engine_vcpu *v)
{
    for (unsigned mode = 0; mode < MMU_MODE_COUNT; mode++) {
        flush_marked(v, mode, 0, v->tlb_index[mode].used[0]);
        flush_marked(v, mode, 1, v->tlb_index[mode].used[1]);
    }
    fetch_flush(v, false);
    v->large_gib = 0;
    mmu_forget_contexts(v);
    flush_done(v, MMU_FLUSH_ALL, 0);
}

void mmu_leave_context(struct engine_vcpu *v)
{
    for (unsigned mode = 0; mode < MMU_MODE_COUNT; mode++) {
        flush_marked(v, mode, 0, v->tlb_index[mode].non_global[0]);
        flush_marked(v, mode, 1, v->tlb_index[mode].non_global[1]);
    }
    fetch_flush(v, true);
}

void mmu_context_changed(struct engine_vcpu *v, bool is_new)
{
    flush_done(v, is_new ? MMU_FLUSH_NEW : MMU_FLUSH_SWITCH, 0);
}

void mmu_flush_non_global(struct engine_vcpu *v)
{
    mmu_leave_context(v);
    flush_done(v, MMU_FLUSH_NON_GLOBAL, 0);
}

void mmu_flush_writes(struct engine_vcpu *v)
{
    for (unsigned mode = 0; mode < MMU_MODE_COUNT; mode++) {
        flush_marked(v, mode, 1, v->tlb_index[mode].used[1]);
    }
    if (v->vm->mirror != NULL) {
        mirror_drop(v->vm->mirror);
    }
}

/* Pieces of large pages go together: all within the GiB of va, which holds any page size. */
static void flush_large(struct engine_vcpu *v, unsigned mode, unsigned is_write, uint64_t va)
{
    const uint64_t *large = v->tlb_index[mode].large[is_write];

    for (unsigned word = 0; word < MMU_TLB_WORDS; word++) {
        for (uint64_t bits = large[word]; bits != 0; bits &= bits - 1) {
            unsigned set = word * 64 + (unsigned)__builtin_ctzll(bits);

            if (((tlb_entry(v, mode, is_write, set)->tag ^ va) >> 30) == 0) {
                tlb_clear(v, mode, is_write, set);
            }
        }
    }
}

void mmu_flush_page(struct engine_vcpu *v, uint64_t va)
{
    flush_4k(v, va);
    if ((v->large_gib & gib_bit(va)) != 0) {
        for (unsigned mode = 0; mode < MMU_MODE_COUNT; mode++) {
            flush_large(v, mode, 0, va);
            flush_large(v, mode, 1, va);
        }
    }
    fetch_flush_page(v, va);
    flush_done(v, MMU_FLUSH_PAGE, va);
}

/* Removes an entry when it leads to the host page. */
static bool unmap_write(struct engine_vcpu *v, unsigned mode, unsigned set, uint64_t host_page)
{
    struct mmu_tlb_entry *entry = &v->tlb[mode].write[set];
    uint64_t tag = __atomic_load_n(&entry->tag, __ATOMIC_RELAXED);

    if (tag == MMU_TLB_EMPTY ||
        tag + __atomic_load_n(&entry->addend, __ATOMIC_RELAXED) != host_page) {
        return false;
    }
    tlb_clear(v, mode, 1, set);
    return true;
}

/* Removes from the write tables of one vCPU whatever leads to the host page; true: there was, or
 * may have been when the unit began that it runs. */
static bool unmap_writes(struct engine_vcpu *v, uint64_t host_page)
{
    bool found = false;

    for (unsigned mode = 0; mode < MMU_MODE_COUNT; mode++) {
        for (unsigned word = 0; word < MMU_TLB_WORDS; word++) {
            const uint64_t *used = &v->tlb_index[mode].used[1][word];

            /* The bit is there before the entry. */
            for (uint64_t bits = __atomic_load_n(used, __ATOMIC_RELAXED); bits != 0;
                 bits &= bits - 1) {
                found |=
                    unmap_write(v, mode, word * 64 + (unsigned)__builtin_ctzll(bits), host_page);
            }
        }
    }
    atomic_thread_fence(memory_order_acquire);
    return found || (atomic_load_explicit(&v->evicted_writes, memory_order_relaxed) &
                     evicted_bit(host_page)) != 0;
}

uint64_t mmu_protect_code_page(struct engine_vcpu *v, gpa_t page)
{
    uint64_t pa = page.v & ~(uint64_t)(GMEM_PAGE_BYTES - 1);
    _Atomic uint8_t *flags = ram_flags(v->vm, pa);
    uint64_t holders = 0;

    if (flags == NULL || (atomic_fetch_or(flags, GMEM_PAGE_CODE) & GMEM_PAGE_CODE) != 0) {
        return 0;
    }
    atomic_thread_fence(memory_order_seq_cst);
    for (unsigned i = 0; i < v->vm->vcpu_count; i++) {
        struct engine_vcpu *other = atomic_load(&v->vm->vcpus[i]);

        if (other != NULL && unmap_writes(other, (uint64_t)(uintptr_t)ram_host(v->vm, pa)) &&
            other != v) {
            holders |= 1ull << i;
        }
    }
    atomic_thread_fence(memory_order_seq_cst);
    if (v->vm->mirror != NULL) {
        mirror_protect(v->vm->mirror, ram_host(v->vm, pa));
    }
    return holders;
}
