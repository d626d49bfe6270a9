/* The mirror's records and the host's mappings behind them; see mirror_int.h. */
#include "engine/mirror_int.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>

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

void mirror_lock(struct mirror *m)
{
    while (atomic_exchange(&m->lock, 1) != 0) {
        (void)host_call(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
    }
}

void mirror_unlock(struct mirror *m)
{
    atomic_store(&m->lock, 0);
}

bool mirror_host_protect(uint64_t va, uint64_t bytes, bool writable)
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

static bool covers(const struct mirror_record *r, uint64_t va)
{
    return va - r->va < r->pages * PAGE_BYTES;
}

uint32_t mirror_find(const struct mirror *m, uint64_t va)
{
    uint32_t i = m->regions[mirror_bucket(va)];

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
void mirror_slot_end(struct mirror *m, unsigned slot)
{
    if (m->slot_records[slot] == 0) {
        m->slot_used[slot / 64] &= ~(1ull << (slot % 64));
    }
}

static void record_free(struct mirror *m, uint32_t i)
{
    struct mirror_record *r = &m->records[i];
    unsigned slot = mirror_slot(r->va);

    unlink_from(m, &m->regions[mirror_bucket(r->va)], i, false);
    unlink_from(m, &m->chunks[mirror_bucket(r->offset)], i, true);
    if (!r->global) {
        if (r->prev_local != 0) {
            m->records[r->prev_local].next_local = r->next_local;
        } else {
            m->first_local = r->next_local;
        }
        m->records[r->next_local].prev_local = r->prev_local;
        atomic_fetch_sub(&m->locals, 1);
    }
    m->piece_count -= r->is_piece ? 1 : 0;
    m->slot_records[slot]--;
    mirror_slot_end(m, slot);
    m->stats.mappings--;
    r->pages = 0;
    r->next_region = m->free;
    m->free = i;
}

void mirror_record_drop(struct mirror *m, uint32_t i)
{
    host_unmap(m->records[i].va, m->records[i].pages * PAGE_BYTES);
    record_free(m, i);
}

void mirror_record_drop_all(struct mirror *m)
{
    for (uint32_t i = 1; i < m->top; i++) {
        if (m->records[i].pages != 0) {
            mirror_record_drop(m, i);
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
            mirror_record_drop(m, i);
            m->stats.evicted++;
        }
    }
    m->cuts /= 2;
}

void mirror_record_link(struct mirror *m, uint32_t i)
{
    struct mirror_record *r = &m->records[i];
    unsigned slot = mirror_slot(r->va);

    r->next_region = m->regions[mirror_bucket(r->va)];
    m->regions[mirror_bucket(r->va)] = i;
    r->next_chunk = m->chunks[mirror_bucket(r->offset)];
    m->chunks[mirror_bucket(r->offset)] = i;
    if (!r->global) {
        r->prev_local = 0;
        r->next_local = m->first_local;
        m->records[r->next_local].prev_local = i;
        m->first_local = i;
        atomic_fetch_add(&m->locals, 1);
    }
    m->piece_count += r->is_piece ? 1 : 0;
    m->slot_records[slot]++;
    m->slot_used[slot / 64] |= 1ull << (slot % 64);
    m->stats.mappings++;
}

/* Of the page at offset; those of a record follow each other. NULL: no RAM. */
_Atomic uint8_t *mirror_flags(const struct mirror *m, uint64_t offset)
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

/* All of the record but its pages of code becomes writable. */
static bool make_writable(struct mirror *m, const struct mirror_record *r)
{
    const _Atomic uint8_t *flags = mirror_flags(m, r->offset);
    uint32_t start = 0;

    for (uint32_t i = 0; i <= r->pages; i++) {
        if (i < r->pages && (atomic_load(&flags[i]) & GMEM_PAGE_CODE) == 0) {
            continue;
        }
        if (i > start &&
            !mirror_host_protect(r->va + start * PAGE_BYTES, (i - start) * PAGE_BYTES, true)) {
            return false;
        }
        m->cuts += i < r->pages ? 1 : 0;
        start = i + 1;
    }
    return true;
}

static bool has_code(const struct mirror *m, const struct mirror_record *r)
{
    const _Atomic uint8_t *flags = mirror_flags(m, r->offset);

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
bool mirror_host_map(struct mirror *m, const struct mirror_record *r, unsigned fixed)
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
uint32_t mirror_record_take(struct mirror *m)
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

void mirror_record_untake(struct mirror *m, uint32_t i)
{
    m->records[i].pages = 0;
    m->records[i].next_region = m->free;
    m->free = i;
}
