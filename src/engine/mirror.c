/* The mirror of the guest kernel's half; see mirror.h. SDM 3A chapter 4 for flushes. */
#include "engine/mirror.h"

#include "engine/engine_int.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define PAGE_BYTES ((uint64_t)GMEM_PAGE_BYTES)
#define REGION_SHIFT 21
#define REGION_BYTES (1ull << REGION_SHIFT)
#define SLOTS 256u /* top-level entries of the kernel's half */
#define SLOT_SHIFT 39
#define PTE_P 0x001ull
#define PTE_A 0x020ull
#define PTE_ADDRESS 0x000ffffffffff000ull

/* Pages each way that are looked at around a page of 4 KiB. */
#define RUN_PAGES 16u
/* A run this short is populated at once. */
#define POPULATE_PAGES 8u

/*
 * Linux allows a process 65530 mappings. A record is one at most, and each page
 * of code in it may cut it into two more.
 */
#define RECORDS 16384u
#define CUTS_MAX 16384u
#define BUCKETS 8192u

/* So often may the kernel's half change under one vCPU before this is given up. */
#define CHANGES_MAX 4096u

struct mirror_record {
    uint64_t va;
    uint64_t offset; /* in RAM */
    uint32_t pages;  /* 0: free */
    uint32_t next_region;
    uint32_t next_chunk;
    uint32_t next_local;
    uint32_t prev_local;
    bool writable;
    bool global;
    bool huge; /* piece of a page above 2 MiB */
};

struct mirror_counts {
    uint64_t maps;     /* mappings made */
    uint64_t upgrades; /* made writable later, or mapped by two at once */
    uint64_t drops;    /* mappings dropped because the guest's tables changed */
    uint64_t checks;   /* mappings that a flush looked at */
    uint64_t evicted;  /* mappings dropped for room */
    uint64_t protects; /* pages made read-only because code was made from them */
    uint64_t refused;  /* faults that were not for the mirror */
    uint64_t mappings; /* now */
};

struct mirror {
    struct engine_vm *vm;
    int ram_fd;
    uint8_t *ram;          /* offset 0 */
    _Atomic uint32_t lock; /* held for tables and system calls; waiters yield */
    _Atomic bool refused;
    _Atomic uint32_t locals; /* records that are not global */
    uint32_t free;           /* list by next_region */
    uint32_t first_local;
    uint32_t huge_count;
    uint32_t cuts;
    uint32_t changes;
    uint32_t hand; /* of eviction */
    uint32_t top;  /* no record in use lies at or above it */
    uint64_t slot_value[SLOTS];
    uint32_t slot_records[SLOTS];
    uint64_t slot_used[SLOTS / 64];
    struct mirror_counts stats;
    uint32_t regions[BUCKETS];             /* by 2 MiB of guest addresses */
    uint32_t chunks[BUCKETS];              /* by 2 MiB of RAM */
    struct mirror_record records[RECORDS]; /* 0 is none */
};

static long host_call(long number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
                      uint64_t f)
{
    register uint64_t r10 __asm__("r10") = d;
    register uint64_t r8 __asm__("r8") = e;
    register uint64_t r9 __asm__("r9") = f;
    long r = number;

    __asm__ volatile("syscall"
                     : "+a"(r)
                     : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return r;
}

static void lock(struct mirror *m)
{
    while (atomic_exchange(&m->lock, 1) != 0) {
        (void)host_call(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
    }
}

static void unlock(struct mirror *m)
{
    atomic_store(&m->lock, 0);
}

static bool host_protect(uint64_t va, uint64_t bytes, bool writable)
{
    return host_call(SYS_mprotect, mirror_host(va), bytes,
                     writable ? PROT_READ | PROT_WRITE : PROT_READ, 0, 0, 0) == 0;
}

/*
 * Fails only where it cuts a mapping in two and there may be no more of them.
 * Everything goes then, which cuts nothing; records whose mapping went that way
 * are mapped again when they are missed.
 */
static void host_unmap(uint64_t va, uint64_t bytes)
{
    if (host_call(SYS_munmap, mirror_host(va), bytes, 0, 0, 0, 0) != 0) {
        (void)host_call(SYS_munmap, LAYOUT_END, LAYOUT_WINDOW_END - LAYOUT_END, 0, 0, 0, 0);
    }
}

static unsigned bucket_of(uint64_t address)
{
    return (unsigned)((address >> REGION_SHIFT) * 0x9e3779b97f4a7c15ull >> 40) & (BUCKETS - 1);
}

static unsigned slot_of(uint64_t va)
{
    return (unsigned)(va >> SLOT_SHIFT) & (SLOTS - 1);
}

static bool covers(const struct mirror_record *r, uint64_t va)
{
    return va - r->va < r->pages * PAGE_BYTES;
}

static uint32_t find(const struct mirror *m, uint64_t va)
{
    uint32_t i = m->regions[bucket_of(va)];

    while (i != 0 && !covers(&m->records[i], va)) {
        i = m->records[i].next_region;
    }
    return i;
}

static void unlink_from(struct mirror *m, uint32_t *head, uint32_t i, bool is_chunk)
{
    while (*head != i) {
        head = is_chunk ? &m->records[*head].next_chunk : &m->records[*head].next_region;
    }
    *head = is_chunk ? m->records[i].next_chunk : m->records[i].next_region;
}

/* Without records a slot may hold anything. */
static void slot_end(struct mirror *m, unsigned slot)
{
    if (m->slot_records[slot] == 0) {
        m->slot_used[slot / 64] &= ~(1ull << (slot % 64));
    }
}

static void record_free(struct mirror *m, uint32_t i)
{
    struct mirror_record *r = &m->records[i];
    unsigned slot = slot_of(r->va);

    unlink_from(m, &m->regions[bucket_of(r->va)], i, false);
    unlink_from(m, &m->chunks[bucket_of(r->offset)], i, true);
    if (!r->global) {
        if (r->prev_local != 0) {
            m->records[r->prev_local].next_local = r->next_local;
        } else {
            m->first_local = r->next_local;
        }
        m->records[r->next_local].prev_local = r->prev_local;
        atomic_fetch_sub(&m->locals, 1);
    }
    m->huge_count -= r->huge ? 1 : 0;
    m->slot_records[slot]--;
    slot_end(m, slot);
    m->stats.mappings--;
    r->pages = 0;
    r->next_region = m->free;
    m->free = i;
}

static void drop(struct mirror *m, uint32_t i)
{
    host_unmap(m->records[i].va, m->records[i].pages * PAGE_BYTES);
    record_free(m, i);
}

static void drop_all(struct mirror *m)
{
    for (uint32_t i = 1; i < m->top; i++) {
        if (m->records[i].pages != 0) {
            drop(m, i);
        }
    }
    m->cuts = 0;
}

/* Every other mapping goes, and all marks of what was cut with it. */
static void evict_half(struct mirror *m)
{
    m->hand ^= 1;
    for (uint32_t i = 1; i < m->top; i++) {
        if (m->records[i].pages != 0 && (i & 1) == m->hand) {
            drop(m, i);
            m->stats.evicted++;
        }
    }
    m->cuts /= 2;
}

static void record_link(struct mirror *m, uint32_t i)
{
    struct mirror_record *r = &m->records[i];
    unsigned slot = slot_of(r->va);

    r->next_region = m->regions[bucket_of(r->va)];
    m->regions[bucket_of(r->va)] = i;
    r->next_chunk = m->chunks[bucket_of(r->offset)];
    m->chunks[bucket_of(r->offset)] = i;
    if (!r->global) {
        r->prev_local = 0;
        r->next_local = m->first_local;
        m->records[r->next_local].prev_local = i;
        m->first_local = i;
        atomic_fetch_add(&m->locals, 1);
    }
    m->huge_count += r->huge ? 1 : 0;
    m->slot_records[slot]++;
    m->slot_used[slot / 64] |= 1ull << (slot % 64);
    m->stats.mappings++;
}

/* Of the page at offset; those of a record follow each other. NULL: no RAM. */
static _Atomic uint8_t *flags_of(const struct mirror *m, uint64_t offset)
{
    const uint8_t *host = m->ram + offset;

    for (unsigned i = 0; i < m->vm->ram_count; i++) {
        const struct engine_ram *ram = &m->vm->ram[i];

        if ((uint64_t)(host - ram->host) < ram->size_bytes) {
            return ram->flags + ((uint64_t)(host - ram->host) >> GMEM_PAGE_SHIFT);
        }
    }
    return NULL;
}

static bool is_code(const struct mirror *m, uint64_t offset)
{
    _Atomic uint8_t *flags = flags_of(m, offset);

    return flags == NULL || (atomic_load(flags) & GMEM_PAGE_CODE) != 0;
}

/* All of the record but its pages of code becomes writable. */
static bool make_writable(struct mirror *m, const struct mirror_record *r)
{
    const _Atomic uint8_t *flags = flags_of(m, r->offset);
    uint32_t start = 0;

    for (uint32_t i = 0; i <= r->pages; i++) {
        if (i < r->pages && (atomic_load(&flags[i]) & GMEM_PAGE_CODE) == 0) {
            continue;
        }
        if (i > start &&
            !host_protect(r->va + start * PAGE_BYTES, (i - start) * PAGE_BYTES, true)) {
            return false;
        }
        m->cuts += i < r->pages ? 1 : 0;
        start = i + 1;
    }
    return true;
}

static bool has_code(const struct mirror *m, const struct mirror_record *r)
{
    const _Atomic uint8_t *flags = flags_of(m, r->offset);

    for (uint32_t i = 0; i < r->pages; i++) {
        if ((atomic_load(&flags[i]) & GMEM_PAGE_CODE) != 0) {
            return true;
        }
    }
    return false;
}

/*
 * fixed: MAP_FIXED over what is the record's already, else MAP_FIXED_NOREPLACE.
 * Read-only first where there is code: no store may slip in between.
 */
static bool host_map(struct mirror *m, const struct mirror_record *r, unsigned fixed)
{
    bool at_once = r->writable && !has_code(m, r);
    uint64_t flags = MAP_SHARED | fixed | (r->pages <= POPULATE_PAGES ? MAP_POPULATE : 0u);
    long p;

    for (unsigned attempt = 0; attempt < 2; attempt++) {
        p = host_call(SYS_mmap, mirror_host(r->va), r->pages * PAGE_BYTES,
                      at_once ? PROT_READ | PROT_WRITE : PROT_READ, flags, (uint64_t)m->ram_fd,
                      r->offset);
        if (p != -ENOMEM || fixed == MAP_FIXED) {
            break;
        }
        evict_half(m);
    }
    if ((uint64_t)p != mirror_host(r->va)) {
        return false;
    }
    if (r->writable && !at_once && !make_writable(m, r)) {
        host_unmap(r->va, r->pages * PAGE_BYTES);
        return false;
    }
    return true;
}

/* Takes a free record, making room when there is none. */
static uint32_t record_take(struct mirror *m)
{
    uint32_t i;

    if (m->free == 0 || m->cuts > CUTS_MAX) {
        evict_half(m);
    }
    i = m->free;
    if (i != 0) {
        m->free = m->records[i].next_region;
        m->top = i >= m->top ? i + 1 : m->top;
    }
    return i;
}

/* Does a page at va, as the tables say now, continue r? */
static bool continues(struct engine_vcpu *v, const struct mirror *m, const struct mirror_record *r,
                      uint64_t va, uint64_t offset)
{
    struct mmu_page page;

    return find(m, va) == 0 && mmu_probe(v, va, &page) && page.host != NULL &&
           page.page_bytes == PAGE_BYTES && page.host == m->ram + offset &&
           page.writable == r->writable && page.global == r->global;
}

/* Grows a record of one page over its neighbours that continue it. */
static void grow(struct engine_vcpu *v, struct mirror *m, struct mirror_record *r)
{
    for (unsigned n = 0; n < RUN_PAGES; n++) {
        uint64_t end = r->va + r->pages * PAGE_BYTES;
        uint64_t offset = r->offset + r->pages * PAGE_BYTES;

        if ((end & (REGION_BYTES - 1)) == 0 || (offset & (REGION_BYTES - 1)) == 0 ||
            !continues(v, m, r, end, offset)) {
            break;
        }
        r->pages++;
    }
    for (unsigned n = 0; n < RUN_PAGES; n++) {
        if ((r->va & (REGION_BYTES - 1)) == 0 || (r->offset & (REGION_BYTES - 1)) == 0 ||
            !continues(v, m, r, r->va - PAGE_BYTES, r->offset - PAGE_BYTES)) {
            break;
        }
        r->va -= PAGE_BYTES;
        r->offset -= PAGE_BYTES;
        r->pages++;
    }
}

/* All of the 2 MiB around va is one piece of RAM of one page of the guest's. */
static bool is_region(const struct mirror *m, uint64_t va, const struct mmu_page *page)
{
    uint64_t offset = (uint64_t)(page->host - m->ram) - (va & (REGION_BYTES - 1));

    return page->page_bytes >= REGION_BYTES && (offset & (REGION_BYTES - 1)) == 0 &&
           flags_of(m, offset) != NULL &&
           flags_of(m, offset + REGION_BYTES - PAGE_BYTES) ==
               flags_of(m, offset) + REGION_BYTES / PAGE_BYTES - 1;
}

/* Whatever is still mapped in the 2 MiB of va goes. */
static void drop_region(struct mirror *m, uint64_t va)
{
    uint32_t i = m->regions[bucket_of(va)];

    while (i != 0) {
        uint32_t next = m->records[i].next_region;

        if ((m->records[i].va ^ va) < REGION_BYTES) {
            drop(m, i);
        }
        i = next;
    }
}

static void record_untake(struct mirror *m, uint32_t i)
{
    m->records[i].pages = 0;
    m->records[i].next_region = m->free;
    m->free = i;
}

static bool map(struct engine_vcpu *v, struct mirror *m, uint64_t va, const struct mmu_page *page)
{
    uint32_t i = record_take(m);
    /* The record's own pages stay 0 until it is linked: eviction passes it by. */
    struct mirror_record wanted = {0};
    struct mirror_record *r = &wanted;

    if (i == 0) {
        return false;
    }
    r->va = va & ~(PAGE_BYTES - 1);
    r->offset = (uint64_t)(page->host - m->ram) & ~(PAGE_BYTES - 1);
    r->pages = 1;
    r->writable = page->writable && page->dirty;
    r->global = page->global;
    r->huge = page->page_bytes > REGION_BYTES;
    if (is_region(m, va, page)) {
        drop_region(m, va);
        r->offset -= r->va & (REGION_BYTES - 1);
        r->va &= ~(REGION_BYTES - 1);
        r->pages = REGION_BYTES / PAGE_BYTES;
    } else if (page->page_bytes == PAGE_BYTES) {
        grow(v, m, r);
    }
    if (!host_map(m, r, MAP_FIXED_NOREPLACE)) {
        record_untake(m, i);
        return false;
    }
    m->records[i] = wanted;
    record_link(m, i);
    m->stats.maps++;
    return true;
}

/* The record stays as it is when the tables say the same. */
static bool is_current(const struct mirror *m, const struct mirror_record *r, uint64_t va,
                       const struct mmu_page *page)
{
    return page->host == m->ram + r->offset + (va - r->va) && page->global == r->global &&
           (!r->writable || (page->writable && page->dirty)) &&
           r->huge == (page->page_bytes > REGION_BYTES) &&
           (r->pages * PAGE_BYTES < REGION_BYTES || page->page_bytes >= REGION_BYTES);
}

/* Of one page of the guest's, so that one dirty bit speaks for all of it. */
static bool is_one_page(const struct mirror_record *r)
{
    return r->pages == 1 || r->pages * PAGE_BYTES == REGION_BYTES;
}

/* Faulted although it is mapped: for writing, or by another vCPU just before. */
static bool fault_mapped(struct engine_vcpu *v, struct mirror *m, uint32_t i, uint64_t va,
                         const struct mmu_page *page, bool is_write)
{
    struct mirror_record *r = &m->records[i];
    uint64_t page_va = va & ~(PAGE_BYTES - 1);

    if (is_write && is_code(m, r->offset + (page_va - r->va))) {
        return false;
    }
    m->stats.upgrades++;
    if (is_write && !r->writable && !is_one_page(r)) {
        drop(m, i);
        return map(v, m, va, page);
    }
    if (is_write && r->writable && host_protect(page_va, PAGE_BYTES, true)) {
        return true;
    }
    r->writable = r->writable || is_write;
    if (host_map(m, r, MAP_FIXED)) {
        return true;
    }
    drop(m, i);
    return false;
}

static uint64_t *top_table(const struct engine_vcpu *v)
{
    return (uint64_t *)(void *)mmu_ram_host(v->vm, v->st.cr3 & PTE_ADDRESS);
}

static uint64_t top_entry(const uint64_t *table, unsigned slot)
{
    return __atomic_load_n(&table[SLOTS + slot], __ATOMIC_RELAXED) | PTE_A;
}

static void drop_changed_slots(struct mirror *m, const uint64_t *table)
{
    for (uint32_t i = 1; i < m->top; i++) {
        unsigned slot = slot_of(m->records[i].va);

        if (m->records[i].pages != 0 && top_entry(table, slot) != m->slot_value[slot]) {
            drop(m, i);
            m->stats.drops++;
        }
    }
}

/*
 * Before something is mapped in the slot: all vCPUs that use the mirror say the
 * same about it. Who loads CR3 meanwhile stores it first and then looks here.
 */
static bool slot_begin(const struct engine_vcpu *v, struct mirror *m, unsigned slot,
                       const uint64_t *table)
{
    uint64_t value = top_entry(table, slot);

    if (m->slot_records[slot] != 0) {
        if (m->slot_value[slot] == value) {
            return true;
        }
        drop_changed_slots(m, table);
    }
    __atomic_store_n(&m->slot_value[slot], value, __ATOMIC_RELAXED);
    __atomic_store_n(&m->slot_used[slot / 64], m->slot_used[slot / 64] | 1ull << (slot % 64),
                     __ATOMIC_RELAXED);
    atomic_thread_fence(memory_order_seq_cst);
    for (unsigned i = 0; i < v->vm->vcpu_count; i++) {
        const struct engine_vcpu *other = atomic_load(&v->vm->vcpus[i]);
        const uint64_t *its = other == NULL ? NULL : top_table(other);

        if (other != NULL && other != v && atomic_load(&other->mirror_used) &&
            (its == NULL || top_entry(its, slot) != value)) {
            slot_end(m, slot);
            return false;
        }
    }
    return true;
}

static bool fault_locked(struct engine_vcpu *v, struct mirror *m, uint64_t va, bool is_write)
{
    const uint64_t *table = top_table(v);
    struct mmu_page page;
    uint32_t i;

    if (mmu_translate(v, va, is_write ? MMU_WRITE : MMU_READ, MMU_KERNEL, &page) != 0 ||
        page.host == NULL || table == NULL || atomic_load(&v->vm->dirty_logging)) {
        return false;
    }
    i = find(m, va);
    if (i != 0 && !is_current(m, &m->records[i], va, &page)) {
        drop(m, i);
        m->stats.drops++;
        i = 0;
    }
    if (i != 0) {
        return fault_mapped(v, m, i, va, &page, is_write);
    }
    if (!slot_begin(v, m, slot_of(va), table)) {
        return false;
    }
    if (map(v, m, va, &page)) {
        return true;
    }
    slot_end(m, slot_of(va));
    return false;
}

bool mirror_fault(struct engine_vcpu *v, uint64_t va, bool is_write)
{
    struct mirror *m = v->vm->mirror;
    bool done = false;

    if ((int64_t)va < 0 && mirror_host(va) >= LAYOUT_END && mirror_host(va) < LAYOUT_WINDOW_END &&
        !atomic_load(&m->refused) && !v->mirror_off) {
        lock(m);
        done = fault_locked(v, m, va, is_write);
        m->stats.refused += done ? 0 : 1;
        unlock(m);
    }
    return done;
}

/* Walks the tables for what is mapped; every page of a run has an entry of its own. */
static void check(struct engine_vcpu *v, struct mirror *m, uint32_t i)
{
    struct mirror_record *r = &m->records[i];
    uint64_t step = r->pages * PAGE_BYTES == REGION_BYTES ? REGION_BYTES : PAGE_BYTES;

    m->stats.checks++;
    for (uint64_t at = 0; at < r->pages * PAGE_BYTES; at += step) {
        uint64_t va = r->va + at;
        struct mmu_page page;

        if (!mmu_probe(v, va, &page) || !is_current(m, r, va, &page)) {
            drop(m, i);
            m->stats.drops++;
            return;
        }
    }
}

static void check_locals(struct engine_vcpu *v, struct mirror *m)
{
    uint32_t i = m->first_local;

    while (i != 0) {
        uint32_t next = m->records[i].next_local;

        check(v, m, i);
        i = next;
    }
}

static void check_all(struct engine_vcpu *v, struct mirror *m)
{
    for (uint32_t i = 1; i < m->top; i++) {
        if (m->records[i].pages != 0) {
            check(v, m, i);
        }
    }
}

/* INVLPG of any address in a page drops all of that page (SDM 3A 4.10.4.1). */
static void check_page(struct engine_vcpu *v, struct mirror *m, uint64_t va)
{
    uint32_t i = find(m, va);

    if (i != 0) {
        check(v, m, i);
    }
    for (i = 1; i < m->top && m->huge_count != 0; i++) {
        const struct mirror_record *r = &m->records[i];

        if (r->pages != 0 && r->huge && ((r->va ^ va) >> 30) == 0) {
            check(v, m, i);
        }
    }
}

enum slots_result { SLOTS_AGREE, SLOTS_LACK, SLOTS_DIFFER };

/* Does the table say for the slots in use what it said when they were mapped? */
static enum slots_result compare_slots(const struct mirror *m, const uint64_t *table)
{
    enum slots_result result = SLOTS_AGREE;

    for (unsigned word = 0; word < SLOTS / 64; word++) {
        for (uint64_t bits = __atomic_load_n(&m->slot_used[word], __ATOMIC_RELAXED); bits != 0;
             bits &= bits - 1) {
            unsigned slot = word * 64 + (unsigned)__builtin_ctzll(bits);
            uint64_t value = top_entry(table, slot);

            if (value == __atomic_load_n(&m->slot_value[slot], __ATOMIC_RELAXED)) {
                continue;
            }
            if ((value & PTE_P) != 0) {
                return SLOTS_DIFFER;
            }
            result = SLOTS_LACK;
        }
    }
    return result;
}

/* Slots that hold our own memory are not for the guest. */
static bool uses_our_slots(const uint64_t *table)
{
    for (unsigned slot = 0; slot <= slot_of(mirror_guest(LAYOUT_END)) - 1; slot++) {
        if ((top_entry(table, slot) & PTE_P) != 0) {
            return true;
        }
    }
    return false;
}

static bool others_use(const struct engine_vcpu *v)
{
    for (unsigned i = 0; i < v->vm->vcpu_count; i++) {
        const struct engine_vcpu *other = atomic_load(&v->vm->vcpus[i]);

        if (other != NULL && other != v && atomic_load(&other->mirror_used)) {
            return true;
        }
    }
    return false;
}

/* v has other tables than before. */
static void enter_tables(struct engine_vcpu *v, struct mirror *m)
{
    const uint64_t *table = top_table(v);
    enum slots_result slots;

    if (table == NULL || uses_our_slots(table)) {
        v->mirror_off = true;
        atomic_store(&m->refused, true);
        return;
    }
    slots = compare_slots(m, table);
    if (slots != SLOTS_AGREE) {
        lock(m);
        slots = compare_slots(m, table);
        if (slots != SLOTS_AGREE && !others_use(v)) {
            drop_changed_slots(m, table);
            slots = SLOTS_AGREE;
            if (++m->changes > CHANGES_MAX) {
                atomic_store(&m->refused, true);
            }
        }
        if (slots == SLOTS_DIFFER) {
            atomic_store(&m->refused, true);
        }
        unlock(m);
    }
    v->mirror_off = slots != SLOTS_AGREE;
    atomic_store(&v->mirror_used, !v->mirror_off);
}

void mirror_on_flush(struct engine_vcpu *v, enum mmu_flush what, uint64_t va)
{
    struct mirror *m = v->vm->mirror;

    if (atomic_load(&m->refused)) {
        return;
    }
    if ((v->st.efer & X86_EFER_LMA) == 0 || (v->st.cr0 & X86_CR0_PG) == 0) {
        atomic_store(&v->mirror_used, false);
        return;
    }
    if (what == MMU_FLUSH_PAGE) {
        if ((int64_t)va < 0) {
            lock(m);
            check_page(v, m, va);
            unlock(m);
        }
        return;
    }
    enter_tables(v, m);
    if (v->mirror_off) {
        return;
    }
    /* Either we see that somebody maps just now, or he saw the guest's change of its tables. */
    atomic_thread_fence(memory_order_seq_cst);
    if (what == MMU_FLUSH_ALL || atomic_load(&m->locals) != 0 || atomic_load(&m->lock) != 0) {
        lock(m);
        if (what == MMU_FLUSH_ALL) {
            check_all(v, m);
        } else {
            check_locals(v, m);
        }
        unlock(m);
    }
}

void mirror_protect(struct mirror *m, const uint8_t *host_page)
{
    uint64_t offset = (uint64_t)(host_page - m->ram);

    lock(m);
    for (uint32_t i = m->chunks[bucket_of(offset)]; i != 0;) {
        struct mirror_record *r = &m->records[i];
        uint32_t next = r->next_chunk;

        if (r->writable && offset - r->offset < r->pages * PAGE_BYTES) {
            m->stats.protects++;
            m->cuts++;
            if (!host_protect(r->va + (offset - r->offset), PAGE_BYTES, false)) {
                drop(m, i);
            }
        }
        i = next;
    }
    unlock(m);
}

void mirror_drop(struct mirror *m)
{
    lock(m);
    drop_all(m);
    unlock(m);
}

bool mirror_is_refused(const struct mirror *m)
{
    return atomic_load(&m->refused);
}

unsigned mirror_stats(const struct mirror *m, struct accel_stat *ret_stats, unsigned max)
{
    const struct accel_stat stats[] = {
        {"mirror_maps", m->stats.maps},       {"mirror_upgrades", m->stats.upgrades},
        {"mirror_drops", m->stats.drops},     {"mirror_checks", m->stats.checks},
        {"mirror_evicted", m->stats.evicted}, {"mirror_protects", m->stats.protects},
        {"mirror_refused", m->stats.refused}, {"mirror_mappings", m->stats.mappings},
        {"mirror_slot_changes", m->changes},
    };

    for (unsigned i = 0; i < ARRAY_LEN(stats) && i < max; i++) {
        ret_stats[i] = stats[i];
    }
    return ARRAY_LEN(stats);
}

struct mirror *mirror_create(struct engine_vm *vm, int ram_fd)
{
    struct mirror *m = calloc(1, sizeof(*m));

    if (m == NULL) {
        return NULL;
    }
    m->vm = vm;
    m->ram_fd = ram_fd;
    m->ram = vm->ram[0].host;
    for (uint32_t i = RECORDS - 1; i > 0; i--) {
        m->records[i].next_region = m->free;
        m->free = i;
    }
    return m;
}

void mirror_destroy(struct mirror *m)
{
    if (m != NULL) {
        drop_all(m);
        free(m);
    }
}
