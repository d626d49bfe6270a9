/* Spaces by address space, and the tables of what is mapped in each; see native_int.h. */
#include "engine/native_int.h"

#include "base/log.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#define WRITER_TWICE_SHIFT 16u

static_assert(NATIVE_MAX_SPACES <= WRITER_TWICE_SHIFT, "each space has a bit of a page's writers");

unsigned native_space_index(const struct native_user *user, const struct native_space *space)
{
    return (unsigned)(space - user->spaces);
}

struct native_space *native_space_find(struct native_user *user, uint64_t cr3)
{
    for (unsigned i = 0; i < user->native->space_count; i++) {
        if (atomic_load(&user->spaces[i].key) == native_key(cr3)) {
            return &user->spaces[i];
        }
    }
    return NULL;
}

/* ---- tables ---- */

static unsigned bucket_of(uint64_t va)
{
    return (unsigned)((va >> REGION_SHIFT) * 0x9e3779b97f4a7c15ull >> 40) & (REGION_BUCKETS - 1);
}

struct native_region *native_region_find(const struct native_space *space, uint64_t va)
{
    uint32_t i = space->buckets[bucket_of(va)];

    while (i != 0 && space->regions[i].va != (va & ~(REGION_BYTES - 1))) {
        i = space->regions[i].next;
    }
    return i == 0 ? NULL : &space->regions[i];
}

struct native_region *native_region_get(struct native_space *space, uint64_t va)
{
    struct native_region *r = native_region_find(space, va);
    uint32_t i = space->free;

    if (r != NULL) {
        return r;
    }
    if (i != 0) {
        space->free = space->regions[i].next;
    } else if (space->top < REGIONS_MAX) {
        i = space->top++;
    } else {
        return NULL;
    }
    r = &space->regions[i];
    r->va = va & ~(REGION_BYTES - 1);
    r->count = 0;
    r->next = space->buckets[bucket_of(va)];
    space->buckets[bucket_of(va)] = i;
    for (unsigned word = 0; word < REGION_WORDS; word++) {
        r->present[word] = 0;
    }
    return r;
}

/* Pages i - 1 and i are one mapping. */
static uint32_t joins(const struct native_region *r, unsigned i)
{
    return i > 0 && i < REGION_PAGES && native_region_has(r, i - 1) && native_region_has(r, i) &&
                   r->page[i] == r->page[i - 1] + (1u << MAPPED_SHIFT)
               ? 1
               : 0;
}

static uint32_t pieces_around(const struct native_region *r, unsigned i)
{
    return (native_region_has(r, i) ? 1u : 0u) + 2u - joins(r, i) - joins(r, i + 1);
}

static void add_writer(struct native_user *user, unsigned index, uint64_t page)
{
    uint32_t bit = 1u << index;

    if ((atomic_fetch_or(&user->writers[page], bit) & bit) != 0) {
        (void)atomic_fetch_or(&user->writers[page], bit << WRITER_TWICE_SHIFT);
    }
}

static void remove_writer(struct native_user *user, unsigned index, uint64_t page)
{
    uint32_t bit = 1u << index;

    if ((atomic_load(&user->writers[page]) & bit << WRITER_TWICE_SHIFT) == 0) {
        (void)atomic_fetch_and(&user->writers[page], ~bit);
    }
}

bool native_page_is_code(const struct native_user *user, uint64_t page)
{
    const uint8_t *host = user->ram + page * PAGE_BYTES;

    for (unsigned i = 0; i < user->vm->ram_count; i++) {
        const struct engine_ram *ram = &user->vm->ram[i];
        uint64_t offset = (uint64_t)(host - ram->host);

        if (offset < ram->size_bytes) {
            return (atomic_load(&ram->flags[offset >> GMEM_PAGE_SHIFT]) & GMEM_PAGE_CODE) != 0;
        }
    }
    return true;
}

uint32_t native_page_set(struct native_user *user, struct native_space *space,
                         struct native_region *r, unsigned i, uint32_t page)
{
    const unsigned index = native_space_index(user, space);
    const bool had = native_region_has(r, i);
    const uint32_t old = had ? r->page[i] : 0;
    uint32_t pieces = pieces_around(r, i);

    if ((old & MAPPED_WRITE) != 0) {
        remove_writer(user, index, old >> MAPPED_SHIFT);
    }
    if (page == MAPPED_NONE) {
        r->present[i / 64] &= ~(1ull << (i % 64));
        r->count -= had ? 1 : 0;
        space->pages -= had ? 1 : 0;
        space->pieces += pieces_around(r, i) - pieces;
        return page;
    }
    if ((page & MAPPED_WRITE) != 0) {
        /* Told first: who marks the page as code looks here then, or we see the mark. */
        add_writer(user, index, page >> MAPPED_SHIFT);
        if (native_page_is_code(user, page >> MAPPED_SHIFT)) {
            page &= ~MAPPED_WRITE;
            remove_writer(user, index, page >> MAPPED_SHIFT);
        }
    }
    r->page[i] = page;
    r->present[i / 64] |= 1ull << (i % 64);
    r->count += had ? 0 : 1;
    space->pages += had ? 0 : 1;
    space->pieces += pieces_around(r, i) - pieces;
    return page;
}

static void forget_writers(struct native_user *user, unsigned index, const struct native_region *r)
{
    const uint32_t bits = 1u << index | 1u << (index + WRITER_TWICE_SHIFT);

    for (unsigned i = 0; i < REGION_PAGES; i++) {
        if (native_region_has(r, i) && (r->page[i] & MAPPED_WRITE) != 0) {
            (void)atomic_fetch_and(&user->writers[r->page[i] >> MAPPED_SHIFT], ~bits);
        }
    }
}

/* Nobody is to find it again. */
static void lose(struct native_space *space, unsigned index)
{
    if (!space->is_lost) {
        log_warn(
            "space %u, where user code ran, has ended: its program broke it, or the host is short "
            "of memory; what ran there goes on in another, or more slowly",
            index);
    }
    space->is_lost = true;
    atomic_store(&space->promoted, false);
    atomic_store(&space->key, 0);
}

void native_space_clear(struct native_user *user, struct native_space *space)
{
    const unsigned index = native_space_index(user, space);

    if (user->native->ops->clear(user->native->opaque, index) != 0) {
        lose(space, index);
    }
    native_count(&user->counts.clears, 1);
    for (unsigned bucket = 0; bucket < REGION_BUCKETS; bucket++) {
        for (uint32_t i = space->buckets[bucket]; i != 0; i = space->regions[i].next) {
            forget_writers(user, index, &space->regions[i]);
        }
        space->buckets[bucket] = 0;
    }
    space->top = 1;
    space->free = 0;
    space->pages = 0;
    space->pieces = 0;
    space->is_new = true;
    atomic_store(&space->has_giants, false);
}

/* ---- changes ---- */

int native_batch_flush(struct native_user *user, struct native_space *space,
                       struct native_batch *batch)
{
    int r = 0;

    if (batch->count != 0) {
        r = user->native->ops->change(user->native->opaque, native_space_index(user, space),
                                      batch->changes, batch->count);
        batch->count = 0;
    }
    if (r != 0) {
        native_space_clear(user, space);
    }
    return r;
}

static uint32_t prot_of(uint32_t page)
{
    return page == MAPPED_NONE
               ? 0u
               : (uint32_t)PROT_READ | ((page & MAPPED_WRITE) != 0 ? (uint32_t)PROT_WRITE : 0u) |
                     ((page & MAPPED_EXEC) != 0 ? (uint32_t)PROT_EXEC : 0u);
}

int native_batch_add(struct native_user *user, struct native_space *space,
                     struct native_batch *batch, uint64_t va, uint32_t page)
{
    struct native_change *last = batch->count == 0 ? NULL : &batch->changes[batch->count - 1];
    const bool is_copy = page != MAPPED_NONE &&
                         (page & (MAPPED_EXEC | MAPPED_FLAGGED)) == (MAPPED_EXEC | MAPPED_FLAGGED);
    uint64_t offset = page == MAPPED_NONE ? 0
                      : is_copy           ? native_vdso_offset(user, page >> MAPPED_SHIFT)
                                          : (uint64_t)(page >> MAPPED_SHIFT) * PAGE_BYTES;
    int r = 0;

    if (last != NULL && last->va + last->bytes == va && last->prot == prot_of(page) && !is_copy &&
        !last->is_copy && (page == MAPPED_NONE || last->offset + last->bytes == offset)) {
        last->bytes += PAGE_BYTES;
        return 0;
    }
    if (batch->count == NATIVE_MAX_CHANGES) {
        r = native_batch_flush(user, space, batch);
    }
    if (r != 0) {
        return r;
    }
    native_count(&user->counts.changes, 1);
    batch->changes[batch->count++] = (struct native_change){
        .va = va, .bytes = PAGE_BYTES, .offset = offset, .prot = prot_of(page), .is_copy = is_copy};
    return 0;
}

/* ---- whose ---- */

/* Free, or left alone for longest. */
static struct native_space *choose(struct native_user *user)
{
    struct native_space *best = NULL;

    for (unsigned i = 0; i < user->native->space_count; i++) {
        struct native_space *space = &user->spaces[i];

        if (space->is_lost || space->users != 0) {
            continue;
        }
        if (atomic_load(&space->key) == 0) {
            return space;
        }
        if (best == NULL || space->used_at < best->used_at) {
            best = space;
        }
    }
    return best;
}

struct native_space *native_space_take(struct native_user *user, uint64_t cr3)
{
    struct native_space *space = native_space_find(user, cr3);

    if (space != NULL) {
        return space;
    }
    space = choose(user);
    if (space == NULL) {
        return NULL;
    }
    mutex_lock(&space->lock);
    atomic_store(&space->key, 0);
    if (!space->is_new) {
        native_space_clear(user, space);
    }
    atomic_store(&space->promoted, false);
    atomic_store(&space->stale, false);
    space->not_before = 0;
    space->demotions = 0;
    /* Whoever flushes from now on finds it; nothing was walked before. */
    atomic_store(&space->key, space->is_lost ? 0 : native_key(cr3));
    mutex_unlock(&space->lock);
    return space->is_lost ? NULL : space;
}
