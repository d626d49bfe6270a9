/*
 * What is mapped in a space: the guest's tables, read 512 entries at a time.
 * SDM 3A chapter 4.
 */
#include "engine/native_int.h"

#define PTE_G 0x100ull
#define LEVEL_TOP 4u
#define LEVEL_LEAF 1u

/* Pages around one that faults, a power of two; and where faults follow each other. */
#define BLOCK_PAGES 16u
#define BLOCK_PAGES_NEXT 64u
/* So few are made present at once, too. */
#define POPULATE_PAGES 16u
/* When less of so many pages is as it was, it is another address space. */
#define CHECK_MIN_PAGES 16u

/* What the tables above it say of 2 MiB of addresses, as for a user. */
struct leaf {
    const uint64_t *table; /* NULL: one page holds all of it, and entry maps it */
    uint64_t entry;
    uint64_t address; /* guest-physical, of the 2 MiB, without a table */
    bool is_giant;
    bool writable;
    bool executable;
};

static bool is_sound(const struct engine_vcpu *v, uint64_t entry)
{
    return (entry & (PTE_P | PTE_US | PTE_A)) == (PTE_P | PTE_US | PTE_A) &&
           (entry & v->paging_reserved) == 0 &&
           ((entry & PTE_NX) == 0 || (v->st.efer & X86_EFER_NXE) != 0);
}

/* False: nothing there is a user's. */
static bool leaf_find(const struct engine_vcpu *v, uint64_t va, struct leaf *ret_leaf)
{
    uint64_t table = v->st.cr3 & PTE_ADDRESS;

    *ret_leaf = (struct leaf){.writable = true, .executable = true};
    for (unsigned level = LEVEL_TOP; level > LEVEL_LEAF; level--) {
        unsigned shift = 12 + 9 * (level - 1);
        const uint64_t *entries = (const uint64_t *)(const void *)mmu_ram_host(v->vm, table);
        uint64_t entry;

        if (entries == NULL) {
            return false;
        }
        entry = __atomic_load_n(&entries[(va >> shift) & 0x1ff], __ATOMIC_RELAXED);
        if (!is_sound(v, entry) || (level == LEVEL_TOP && (entry & PTE_PS) != 0)) {
            return false;
        }
        ret_leaf->writable = ret_leaf->writable && (entry & PTE_RW) != 0;
        ret_leaf->executable = ret_leaf->executable && (entry & PTE_NX) == 0;
        if ((entry & PTE_PS) != 0) {
            uint64_t mask = (1ull << shift) - 1;

            ret_leaf->entry = entry;
            ret_leaf->is_giant = shift > REGION_SHIFT;
            ret_leaf->address = (entry & PTE_ADDRESS & ~mask) | (va & mask & ~(REGION_BYTES - 1));
            return (entry & PTE_ADDRESS & mask & ~0x1000ull) == 0; /* but PAT, all reserved */
        }
        table = entry & PTE_ADDRESS;
    }
    ret_leaf->table = (const uint64_t *)(const void *)mmu_ram_host(v->vm, table);
    return ret_leaf->table != NULL;
}

static uint64_t leaf_entry(const struct leaf *leaf, unsigned i)
{
    return leaf->table == NULL ? leaf->entry : __atomic_load_n(&leaf->table[i], __ATOMIC_RELAXED);
}

/* The page of RAM at that address; MAPPED_NONE: it is none. */
static uint32_t ram_page(const struct native_user *user, uint64_t pa)
{
    const uint8_t *host = mmu_ram_host(user->vm, pa);

    return host == NULL ? MAPPED_NONE : (uint32_t)((uint64_t)(host - user->ram) / PAGE_BYTES);
}

/* What a TLB may hold of page i, without a thought for code in it. */
static uint32_t leaf_page(const struct engine_vcpu *v, const struct leaf *leaf, unsigned i)
{
    uint64_t entry = leaf_entry(leaf, i);
    uint64_t address = leaf->table == NULL ? leaf->address + i * PAGE_BYTES : entry & PTE_ADDRESS;
    uint32_t page;

    /* One that is global would outlive the address space. */
    if (!is_sound(v, entry) || ((entry & PTE_G) != 0 && (v->st.cr4 & X86_CR4_PGE) != 0)) {
        return MAPPED_NONE;
    }
    page = ram_page(v->vm->native_user, address);
    if (page == MAPPED_NONE) {
        return page;
    }
    return page << MAPPED_SHIFT |
           (leaf->writable && (entry & (PTE_RW | PTE_D)) == (PTE_RW | PTE_D) ? MAPPED_WRITE : 0u) |
           (leaf->executable && (entry & PTE_NX) == 0 ? MAPPED_EXEC : 0u);
}

/* The bytes behind a page, where an instruction may go on. */
static const uint8_t *next_page(struct engine_vcpu *v, uint64_t va)
{
    gpa_t at;

    return mmu_peek(v, va + PAGE_BYTES, &at) == 0 ? mmu_ram_host(v->vm, at.v) : NULL;
}

/* old: what is mapped there, so that each page is looked at once. */
static bool is_flagged(struct engine_vcpu *v, uint64_t va, uint32_t page, uint32_t old)
{
    struct native_user *user = v->vm->native_user;
    const uint8_t *host = user->ram + (uint64_t)(page >> MAPPED_SHIFT) * PAGE_BYTES;

    if (old != MAPPED_NONE && (old ^ page) >> MAPPED_SHIFT == 0 &&
        (old & (MAPPED_EXEC | MAPPED_FLAGGED)) != 0) {
        return (old & MAPPED_FLAGGED) != 0;
    }
    if (!native_scan_page(
            host, host[PAGE_MASK] == 0x0f || host[PAGE_MASK - 1] == 0x0f ? next_page(v, va) : NULL,
            !user->native->cpuid_faults, user->host_has_more_state)) {
        return false;
    }
    native_count(&user->counts.flagged, 1);
    return true;
}

/* Enters page i of the region when that gives more than there is, and has it mapped. */
static int map_page(struct engine_vcpu *v, struct native_space *space, struct native_region *r,
                    const struct leaf *leaf, unsigned i, bool is_missed, struct native_batch *batch)
{
    struct native_user *user = v->vm->native_user;
    const uint64_t va = r->va + i * PAGE_BYTES;
    uint32_t page = leaf_page(v, leaf, i);
    const uint32_t old = native_region_has(r, i) ? r->page[i] : MAPPED_NONE;

    if (page == MAPPED_NONE || !native_is_mappable(va)) {
        return 0;
    }
    if ((page & MAPPED_WRITE) != 0 && native_page_is_code(user, page >> MAPPED_SHIFT)) {
        page &= ~MAPPED_WRITE;
    }
    if ((page & MAPPED_EXEC) != 0 && is_flagged(v, va, page, old)) {
        page |= MAPPED_FLAGGED;
        if ((page & MAPPED_WRITE) != 0 || !native_vdso_has(user, page >> MAPPED_SHIFT)) {
            page &= ~MAPPED_EXEC;
        }
    }
    if (page == old && !is_missed) {
        return 0;
    }
    native_count(&user->counts.maps, 1);
    return native_batch_add(user, space, batch, va, native_page_set(user, space, r, i, page));
}

static int map_block(struct engine_vcpu *v, struct native_space *space, struct native_region *r,
                     const struct leaf *leaf, uint64_t va, struct native_batch *batch)
{
    const unsigned at = (unsigned)(va >> GMEM_PAGE_SHIFT) % REGION_PAGES;
    const uint64_t block = va / PAGE_BYTES / BLOCK_PAGES;
    unsigned first = at & ~(BLOCK_PAGES - 1);
    unsigned end = first + BLOCK_PAGES;
    int rc = 0;

    if (block == space->last_block + 1 || space->is_new) {
        end = first + BLOCK_PAGES_NEXT;
    }
    if (leaf->table == NULL) {
        first = 0;
        end = REGION_PAGES;
    }
    for (unsigned i = first; rc == 0 && i < end && i < REGION_PAGES; i++) {
        rc = map_page(v, space, r, leaf, i, i == at, batch);
    }
    space->last_block = (va / PAGE_BYTES + (end - at - 1)) / BLOCK_PAGES;
    return rc;
}

static void populate_short(struct native_batch *batch)
{
    for (unsigned i = 0; i < batch->count; i++) {
        batch->changes[i].populate =
            batch->changes[i].prot != 0 && batch->changes[i].bytes <= POPULATE_PAGES * PAGE_BYTES;
    }
}

enum native_mapped native_map_fault(struct engine_vcpu *v, struct native_space *space, uint64_t va,
                                    uint32_t error, struct native_batch *batch)
{
    struct native_user *user = v->vm->native_user;
    const unsigned i = (unsigned)(va >> GMEM_PAGE_SHIFT) % REGION_PAGES;
    enum mmu_access access = (error & X86_PF_FETCH) != 0   ? MMU_FETCH
                             : (error & X86_PF_WRITE) != 0 ? MMU_WRITE
                                                           : MMU_READ;
    struct native_region *r;
    struct mmu_page page;
    struct leaf leaf;

    if (mmu_translate(v, va, access, MMU_USER, &page) != 0) {
        return NATIVE_RAISED;
    }
    if (page.host == NULL || !native_is_mappable(va) || !leaf_find(v, va, &leaf) ||
        leaf_page(v, &leaf, i) == MAPPED_NONE) {
        return NATIVE_NOT_RAM;
    }
    if (space->pieces > PIECES_MAX) {
        batch->count = 0;
        native_space_clear(user, space);
    }
    r = native_region_get(space, va);
    if (r == NULL) {
        batch->count = 0;
        native_space_clear(user, space);
        r = native_region_get(space, va);
    }
    if (leaf.is_giant) {
        atomic_store(&space->has_giants, true);
    }
    if (map_block(v, space, r, &leaf, va, batch) != 0) {
        return NATIVE_MAPPED; /* it was cleared: the next fault begins anew */
    }
    space->is_new = false;
    populate_short(batch);
    if (!native_region_has(r, i)) {
        return NATIVE_MAPPED; /* the guest changes its tables meanwhile */
    }
    if (access == MMU_WRITE && (r->page[i] & MAPPED_WRITE) == 0 &&
        native_page_is_code(user, r->page[i] >> MAPPED_SHIFT)) {
        return NATIVE_CODE;
    }
    return access == MMU_FETCH && (r->page[i] & MAPPED_EXEC) == 0 ? NATIVE_FLAGGED : NATIVE_MAPPED;
}

/* ---- after a flush ---- */

struct check {
    uint64_t checked;
    uint64_t dropped;
};

/* A page stays, or is allowed less; more comes when it is missed. */
static uint32_t page_left(uint32_t old, uint32_t now)
{
    if (now == MAPPED_NONE || (old ^ now) >> MAPPED_SHIFT != 0) {
        return MAPPED_NONE;
    }
    return old & (now | ((now & MAPPED_EXEC) != 0 ? MAPPED_FLAGGED : 0u));
}

/* What a flush leaves of page i of the region. */
static uint32_t page_now(const struct engine_vcpu *v, const struct native_region *r,
                         const struct leaf *leaf, bool is_there, unsigned i)
{
    return is_there ? page_left(r->page[i], leaf_page(v, leaf, i)) : MAPPED_NONE;
}

static void count_region(const struct engine_vcpu *v, const struct native_region *r,
                         struct check *check)
{
    struct leaf leaf;
    const bool is_there = leaf_find(v, r->va, &leaf);

    for (unsigned word = 0; word < REGION_WORDS; word++) {
        for (uint64_t bits = r->present[word]; bits != 0; bits &= bits - 1) {
            unsigned i = word * 64 + (unsigned)__builtin_ctzll(bits);

            check->checked++;
            check->dropped += page_now(v, r, &leaf, is_there, i) == MAPPED_NONE ? 1 : 0;
        }
    }
}

/* Before anything is changed: most of what is mapped is gone from these tables. */
static bool is_another(const struct engine_vcpu *v, const struct native_space *space)
{
    struct check check = {0};

    for (unsigned bucket = 0; bucket < REGION_BUCKETS; bucket++) {
        for (uint32_t i = space->buckets[bucket]; i != 0; i = space->regions[i].next) {
            count_region(v, &space->regions[i], &check);
        }
    }
    return check.checked >= CHECK_MIN_PAGES && check.dropped >= check.checked / 2;
}

static int check_region(struct engine_vcpu *v, struct native_space *space, struct native_region *r,
                        struct native_batch *batch, struct check *check)
{
    struct native_user *user = v->vm->native_user;
    struct leaf leaf;
    const bool is_there = leaf_find(v, r->va, &leaf);
    int rc = 0;

    for (unsigned word = 0; word < REGION_WORDS; word++) {
        for (uint64_t bits = r->present[word]; rc == 0 && bits != 0; bits &= bits - 1) {
            unsigned i = word * 64 + (unsigned)__builtin_ctzll(bits);
            uint32_t now = page_now(v, r, &leaf, is_there, i);

            check->checked++;
            if (now != r->page[i]) {
                check->dropped++;
                rc = native_batch_add(user, space, batch, r->va + i * PAGE_BYTES,
                                      native_page_set(user, space, r, i, now));
            }
        }
    }
    return rc;
}

/* Regions that became empty are free again. */
static void sweep(struct native_space *space, unsigned bucket)
{
    uint32_t *link = &space->buckets[bucket];

    while (*link != 0) {
        struct native_region *r = &space->regions[*link];

        if (r->count == 0) {
            uint32_t i = *link;

            *link = r->next;
            r->next = space->free;
            space->free = i;
        } else {
            link = &r->next;
        }
    }
}

enum native_checked native_map_check(struct engine_vcpu *v, struct native_space *space)
{
    struct native_user *user = v->vm->native_user;
    struct native_batch *batch = &v->native.batch;
    struct check check = {0};
    uint64_t dirty[DIRTY_WORDS];
    bool any = false;
    int rc = 0;
    bool all = atomic_load(&space->stale) && atomic_exchange(&space->stale, false);

    for (unsigned word = 0; word < DIRTY_WORDS; word++) {
        dirty[word] =
            atomic_load(&space->dirty[word]) == 0 ? 0 : atomic_exchange(&space->dirty[word], 0);
        any = any || dirty[word] != 0;
    }
    if (!all && !any) {
        return NATIVE_SAME;
    }
    batch->count = 0;
    if (all && is_another(v, space)) {
        native_space_clear(user, space);
        return NATIVE_ANOTHER;
    }
    for (unsigned bucket = 0; rc == 0 && bucket < REGION_BUCKETS; bucket++) {
        for (uint32_t i = space->buckets[bucket]; rc == 0 && i != 0; i = space->regions[i].next) {
            unsigned bit = native_dirty_bit(space->regions[i].va);

            if (all || (dirty[bit / 64] >> (bit % 64) & 1) != 0) {
                rc = check_region(v, space, &space->regions[i], batch, &check);
            }
        }
        sweep(space, bucket);
    }
    native_count(&user->counts.checks, check.checked);
    native_count(&user->counts.drops, check.dropped);
    if (rc != 0) {
        batch->count = 0; /* the space was cleared */
    } else if (v->vm->vcpu_count > 1) {
        (void)!native_batch_flush(user, space, batch);
    }
    if (!all || check.checked < CHECK_MIN_PAGES || check.dropped < check.checked / 8) {
        return NATIVE_SAME;
    }
    return NATIVE_LESSENED;
}
