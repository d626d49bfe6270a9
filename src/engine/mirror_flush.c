/* What a flush of a vCPU's TLB means for the mirror. SDM 3A chapter 4. */
#include "engine/mirror_int.h"

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
        unsigned slot = mirror_slot(m->records[i].va);

        if (m->records[i].pages != 0 && top_entry(table, slot) != m->slot_value[slot]) {
            mirror_record_drop(m, i);
            m->stats.drops++;
        }
    }
}

/*
 * Before something is mapped in the slot: all vCPUs that use the mirror say the
 * same about it. Who loads CR3 meanwhile stores it first and then looks here.
 */
bool mirror_slot_begin(const struct engine_vcpu *v, struct mirror *m, unsigned slot)
{
    const uint64_t *table = top_table(v);
    uint64_t value;

    if (table == NULL) {
        return false;
    }
    value = top_entry(table, slot);
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
            mirror_slot_end(m, slot);
            return false;
        }
    }
    return true;
}

/* The record stays as it is when the tables say the same. */
bool mirror_is_current(const struct mirror *m, const struct mirror_record *r, uint64_t va,
                       const struct mmu_page *page)
{
    return page->host == m->ram + r->offset + (va - r->va) && page->global == r->global &&
           (!r->writable || (page->writable && page->dirty)) &&
           r->is_piece == (page->page_bytes > r->pages * PAGE_BYTES) &&
           (r->pages * PAGE_BYTES < REGION_BYTES || page->page_bytes >= REGION_BYTES);
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

        if (!mmu_probe(v, va, &page) || !mirror_is_current(m, r, va, &page)) {
            mirror_record_drop(m, i);
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
    uint32_t i = mirror_find(m, va);

    if (i != 0) {
        check(v, m, i);
    }
    for (i = 1; i < m->top && m->piece_count != 0; i++) {
        const struct mirror_record *r = &m->records[i];

        if (r->pages != 0 && r->is_piece && ((r->va ^ va) >> 30) == 0) {
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
    for (unsigned slot = 0; slot <= mirror_slot(mirror_guest(LAYOUT_END)) - 1; slot++) {
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
        atomic_store(&v->mirror_used, false);
        atomic_store(&m->refused, true);
        return;
    }
    /* Told first: whoever begins a slot meanwhile looks at our tables, or we see the slot. */
    atomic_store(&v->mirror_used, true);
    slots = compare_slots(m, table);
    if (slots != SLOTS_AGREE) {
        mirror_lock(m);
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
        mirror_unlock(m);
    }
    v->mirror_off = slots != SLOTS_AGREE;
    atomic_store(&v->mirror_used, !v->mirror_off);
}

/* Other vCPUs run with it until all units are dropped: it holds nothing that could be old. */
static void empty_refused(struct mirror *m)
{
    mirror_lock(m);
    if (m->stats.mappings != 0) {
        mirror_record_drop_all(m);
    }
    mirror_unlock(m);
}

void mirror_on_flush(struct engine_vcpu *v, enum mmu_flush what, uint64_t va)
{
    struct mirror *m = v->vm->mirror;

    if (atomic_load(&m->refused)) {
        empty_refused(m);
        return;
    }
    if ((v->st.efer & X86_EFER_LMA) == 0 || (v->st.cr0 & X86_CR0_PG) == 0) {
        atomic_store(&v->mirror_used, false);
        return;
    }
    if (what == MMU_FLUSH_PAGE) {
        if ((int64_t)va < 0) {
            mirror_lock(m);
            check_page(v, m, va);
            mirror_unlock(m);
        }
        return;
    }
    v->mirror_owes = v->mirror_owes || what == MMU_FLUSH_ALL;
    enter_tables(v, m);
    if (v->mirror_off) {
        return; /* its tables do not tell; it reaches nothing there until they do */
    }
    /*
     * Either we see that somebody maps just now, or what he mapped before, or he saw the guest's
     * change of its tables. So the lock is looked at first.
     */
    atomic_thread_fence(memory_order_seq_cst);
    if (v->mirror_owes || atomic_load(&m->lock) != 0 || atomic_load(&m->locals) != 0) {
        mirror_lock(m);
        if (v->mirror_owes) {
            check_all(v, m);
        } else {
            check_locals(v, m);
        }
        mirror_unlock(m);
        v->mirror_owes = false;
    }
}
