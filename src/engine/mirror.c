/* The mirror of the guest kernel's half; see mirror.h. */
#include "engine/mirror_int.h"

#include <sys/mman.h>

static bool is_code(const struct mirror *m, uint64_t offset)
{
    _Atomic uint8_t *flags = mirror_flags(m, offset);

    return flags == NULL || (atomic_load(flags) & GMEM_PAGE_CODE) != 0;
}

/* Does a page at va, as the tables say now, continue r? */
static bool continues(struct engine_vcpu *v, const struct mirror *m, const struct mirror_record *r,
                      uint64_t va, uint64_t offset)
{
    struct mmu_page page;

    return mirror_find(m, va) == 0 && mmu_probe(v, va, &page) && page.host != NULL &&
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
           mirror_flags(m, offset) != NULL &&
           mirror_flags(m, offset + REGION_BYTES - PAGE_BYTES) ==
               mirror_flags(m, offset) + REGION_BYTES / PAGE_BYTES - 1;
}

/* Whatever is still mapped in the 2 MiB of va goes. */
static void drop_region(struct mirror *m, uint64_t va)
{
    uint32_t i = m->regions[mirror_bucket(va)];

    while (i != 0) {
        uint32_t next = m->records[i].next_region;

        if ((m->records[i].va ^ va) < REGION_BYTES) {
            mirror_record_drop(m, i);
        }
        i = next;
    }
}

static bool map(struct engine_vcpu *v, struct mirror *m, uint64_t va, const struct mmu_page *page)
{
    uint32_t i = mirror_record_take(m);
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
    if (is_region(m, va, page)) {
        drop_region(m, va);
        r->offset -= r->va & (REGION_BYTES - 1);
        r->va &= ~(REGION_BYTES - 1);
        r->pages = REGION_BYTES / PAGE_BYTES;
    } else if (page->page_bytes == PAGE_BYTES) {
        grow(v, m, r);
    }
    r->is_piece = page->page_bytes > r->pages * PAGE_BYTES;
    if (!mirror_host_map(m, r, MAP_FIXED_NOREPLACE)) {
        mirror_record_untake(m, i);
        return false;
    }
    m->records[i] = wanted;
    mirror_record_link(m, i);
    m->stats.maps++;
    return true;
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
        mirror_record_drop(m, i);
        return map(v, m, va, page);
    }
    if (is_write && r->writable && mirror_host_protect(page_va, PAGE_BYTES, true)) {
        return true;
    }
    r->writable = r->writable || is_write;
    if (mirror_host_map(m, r, MAP_FIXED)) {
        return true;
    }
    mirror_record_drop(m, i);
    return false;
}

static bool fault_in_slot(struct engine_vcpu *v, struct mirror *m, uint64_t va,
                          const struct mmu_page *page, bool is_write)
{
    uint32_t i = mirror_find(m, va);

    if (i != 0 && !mirror_is_current(m, &m->records[i], va, page)) {
        mirror_record_drop(m, i);
        m->stats.drops++;
        i = 0;
    }
    return i != 0 ? fault_mapped(v, m, i, va, page, is_write) : map(v, m, va, page);
}

static bool fault_locked(struct engine_vcpu *v, struct mirror *m, uint64_t va, bool is_write)
{
    const unsigned slot = mirror_slot(va);
    const bool is_protecting = (v->st.cr0 & X86_CR0_WP) != 0;
    struct mmu_page page;
    bool done;

    /* What a vCPU may write although it is read-only is not for the others. */
    if (atomic_load(&m->refused) || (is_write && !is_protecting) ||
        mmu_translate(v, va, is_write ? MMU_WRITE : MMU_READ, MMU_KERNEL, &page) != 0 ||
        page.host == NULL || atomic_load(&v->vm->dirty_logging) || !mirror_slot_begin(v, m, slot)) {
        return false;
    }
    page.writable = page.writable && is_protecting;
    /* Held, so that no drop on the way ends it: whoever loads CR3 meanwhile has to see it. */
    m->slot_records[slot]++;
    done = fault_in_slot(v, m, va, &page, is_write);
    m->slot_records[slot]--;
    mirror_slot_end(m, slot);
    return done;
}

bool mirror_fault(struct engine_vcpu *v, uint64_t va, bool is_write)
{
    struct mirror *m = v->vm->mirror;
    bool done = false;

    if ((int64_t)va < 0 && mirror_host(va) >= LAYOUT_END && mirror_host(va) < LAYOUT_WINDOW_END &&
        !v->mirror_off) {
        mirror_lock(m);
        done = fault_locked(v, m, va, is_write);
        m->stats.refused += done ? 0 : 1;
        mirror_unlock(m);
    }
    return done;
}

void mirror_protect(struct mirror *m, const uint8_t *host_page)
{
    uint64_t offset = (uint64_t)(host_page - m->ram);

    mirror_lock(m);
    for (uint32_t i = m->chunks[mirror_bucket(offset)]; i != 0;) {
        struct mirror_record *r = &m->records[i];
        uint32_t next = r->next_chunk;

        if (r->writable && offset - r->offset < r->pages * PAGE_BYTES) {
            m->stats.protects++;
            m->cuts++;
            if (!mirror_host_protect(r->va + (offset - r->offset), PAGE_BYTES, false)) {
                mirror_record_drop(m, i);
            }
        }
        i = next;
    }
    mirror_unlock(m);
}

void mirror_drop(struct mirror *m)
{
    mirror_lock(m);
    mirror_record_drop_all(m);
    mirror_unlock(m);
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
        mirror_record_drop_all(m);
        free(m);
    }
}
