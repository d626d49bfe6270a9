/*
 * Process contexts: what the software TLB knew of an address space, kept under
 * its PCID while another one is current, so that MOV to CR3 with bit 63 set has
 * what it asks for. Compiled for general registers only, like mmu.c.
 *
 * The live tables hold entries of the current context and global ones. A
 * switch takes the others out into a list, and puts those of the next context
 * in. Nobody else reads the lists: a page that becomes code meanwhile is seen by
 * its mark when its write entry comes back. SDM 3A 4.10.1, 4.10.4.
 */
#include "engine/engine_int.h"

#define PCID_MASK 0xfffull

static unsigned pcid_of(uint64_t cr3)
{
    return (unsigned)(cr3 & PCID_MASK);
}

static struct mmu_tlb_entry *entry_at(struct engine_vcpu *v, unsigned mode, unsigned is_write,
                                      unsigned set)
{
    return is_write != 0 ? &v->tlb[mode].write[set] : &v->tlb[mode].read[set];
}

/* Appends the entries of one table that are not global. */
static void save_table(struct engine_vcpu *v, struct mmu_context *c, unsigned mode,
                       unsigned is_write)
{
    const struct mmu_tlb_index *index = &v->tlb_index[mode];

    for (unsigned word = 0; word < MMU_TLB_WORDS; word++) {
        uint64_t bits = index->non_global[is_write][word];

        for (; bits != 0 && c->count < MMU_CONTEXT_ENTRIES; bits &= bits - 1) {
            unsigned set = word * 64 + (unsigned)__builtin_ctzll(bits);
            const struct mmu_tlb_entry *entry = entry_at(v, mode, is_write, set);
            struct mmu_saved_entry *saved = &c->entries[c->count];

            saved->tag = __atomic_load_n(&entry->tag, __ATOMIC_RELAXED);
            if (saved->tag == MMU_TLB_EMPTY) {
                continue;
            }
            saved->addend = entry->addend;
            saved->mode = (uint8_t)mode;
            saved->is_write = is_write != 0;
            saved->large = (index->large[is_write][word] & (bits & -bits)) != 0;
            c->count++;
        }
    }
}

static void save(struct engine_vcpu *v, struct mmu_context *c)
{
    c->count = 0;
    for (unsigned mode = 0; mode < MMU_MODE_COUNT; mode++) {
        save_table(v, c, mode, 0);
        save_table(v, c, mode, 1);
    }
}

static void restore(struct engine_vcpu *v, const struct mmu_context *c)
{
    for (unsigned i = 0; i < c->count; i++) {
        const struct mmu_saved_entry *saved = &c->entries[i];
        struct mmu_page page = {.host = (uint8_t *)(uintptr_t)(saved->tag + saved->addend),
                                .page_bytes = saved->large ? MMU_LARGE_BYTES : GMEM_PAGE_BYTES};

        mmu_tlb_enter(v, saved->tag, saved->is_write, (enum mmu_mode)saved->mode, &page);
    }
}

/* The context of that PCID, or of none the one that was left longest ago. */
static unsigned choose(const struct engine_vcpu *v, unsigned pcid, bool *ret_known)
{
    unsigned oldest = v->context == 0 ? 1 : 0;

    *ret_known = false;
    for (unsigned i = 0; i < MMU_CONTEXTS; i++) {
        const struct mmu_context *c = &v->contexts[i];

        if (i == v->context) {
            continue;
        }
        if (c->is_valid && pcid_of(c->cr3) == pcid) {
            *ret_known = true;
            return i;
        }
        if (!c->is_valid ||
            (v->contexts[oldest].is_valid && c->left_at < v->contexts[oldest].left_at)) {
            oldest = i;
        }
    }
    return oldest;
}

void mmu_switch_context(struct engine_vcpu *v, uint64_t cr3, bool keep)
{
    struct mmu_context *current = &v->contexts[v->context];
    unsigned next;
    bool is_known;

    if (pcid_of(cr3) == pcid_of(v->st.cr3)) {
        /* What another table of the same PCID left may stay, but need not. */
        v->st.cr3 = cr3;
        mmu_flush_non_global(v);
        return;
    }
    save(v, current);
    current->cr3 = v->st.cr3;
    current->is_valid = true;
    current->left_at = ++v->context_clock;
    next = choose(v, pcid_of(cr3), &is_known);
    mmu_leave_context(v);
    v->st.cr3 = cr3;
    v->context = next;
    if (!is_known || !keep || v->contexts[next].cr3 != cr3) {
        v->contexts[next].count = 0;
        mmu_context_changed(v, true);
    } else {
        restore(v, &v->contexts[next]);
        mmu_context_changed(v, false);
    }
}

void mmu_forget_context(struct engine_vcpu *v, unsigned pcid)
{
    for (unsigned i = 0; i < MMU_CONTEXTS; i++) {
        if (i != v->context && pcid_of(v->contexts[i].cr3) == pcid) {
            v->contexts[i].is_valid = false;
        }
    }
}

void mmu_forget_contexts(struct engine_vcpu *v)
{
    for (unsigned i = 0; i < MMU_CONTEXTS; i++) {
        if (i != v->context) {
            v->contexts[i].is_valid = false;
        }
    }
}
