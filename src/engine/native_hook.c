/*
 * What a flush of a vCPU's TLB means for the spaces: it is only noted here, since
 * the guest's vector registers may be live. Compiled for general registers only.
 */
#include "engine/native_int.h"

#define SAMPLE_EACH 16u
#define SAMPLE_MAX_MS 2u

static struct native_space *space_of(struct native_user *user, uint64_t cr3)
{
    for (unsigned i = 0; i < user->native->space_count; i++) {
        if (atomic_load_explicit(&user->spaces[i].key, memory_order_relaxed) == native_key(cr3)) {
            return &user->spaces[i];
        }
    }
    return NULL;
}

void native_user_begin_window(struct engine_vcpu *v)
{
    v->native.entries = 0;
    v->native.ways_out = 0;
    v->native.detours = 0;
    v->native.inside = 0;
    v->native.cost = 0;
    v->native.user_cycles = 0;
    v->native.is_sampled = false;
    v->native.since = __builtin_ia32_rdtsc();
}

/* The first stays of a window are measured all, then one of sixteen. */
void native_user_note_user(struct engine_vcpu *v)
{
    struct native_vcpu *native = &v->native;

    if (!native->is_sampled &&
        (native->entries < SAMPLE_EACH || native->entries % SAMPLE_EACH == 0)) {
        native->weight = native->entries < SAMPLE_EACH ? 1 : SAMPLE_EACH;
        native->is_sampled = true;
        native->user_since = __builtin_ia32_rdtsc();
    }
}

/* A host that took its CPU away meanwhile makes no stay longer than this. */
void native_user_note_sample(struct engine_vcpu *v, uint64_t now)
{
    const uint64_t most = v->vm->native_user->cycles_per_ms * SAMPLE_MAX_MS;
    uint64_t took = now - v->native.user_since;

    v->native.user_cycles += (took < most ? took : most) * v->native.weight;
    v->native.is_sampled = false;
}

void native_user_note_kernel(struct engine_vcpu *v)
{
    if (v->vm->native_user == NULL) {
        return;
    }
    v->native.entries++;
    if (v->native.is_sampled) {
        native_user_note_sample(v, __builtin_ia32_rdtsc());
    }
}

void native_user_on_flush(struct engine_vcpu *v, enum mmu_flush what, uint64_t va)
{
    const struct native *native = v->vm->native_user->native;
    struct native_space *space;

    if (what != MMU_FLUSH_PAGE || (int64_t)va >= 0) {
        native->ops->confirm(native->opaque, v->base.index);
    }
    /* Either we see a space that was begun just now, or whoever did sees the guest's change of
     * its tables. */
    atomic_thread_fence(memory_order_seq_cst);
    space = space_of(v->vm->native_user, v->st.cr3);
    if (what == MMU_FLUSH_PAGE) {
        if (space != NULL && atomic_load(&space->has_giants)) {
            atomic_store(&space->stale, true);
        } else if (space != NULL && (int64_t)va >= 0) {
            unsigned bit = native_dirty_bit(va);

            (void)atomic_fetch_or(&space->dirty[bit / 64], 1ull << (bit % 64));
        }
        return;
    }
    if (space != NULL && what != MMU_FLUSH_SWITCH) {
        atomic_store(&space->stale, true);
    }
    v->native.wanted =
        (space != NULL && atomic_load(&space->promoted)) || v->vm->native_user->is_always;
    v->native.is_paused = false;
    if (v->native.cr3 != v->st.cr3) {
        v->native.cr3 = v->st.cr3;
        native_user_begin_window(v);
    }
}
