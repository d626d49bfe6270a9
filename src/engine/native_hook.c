/*
 * What a flush of a vCPU's TLB means for the spaces: it is only noted here, since
 * the guest's vector registers may be live. Compiled for general registers only.
 */
#include "engine/native_int.h"

static struct native_space *space_of(struct native_user *user, uint64_t cr3)
{
    for (unsigned i = 0; i < user->native->space_count; i++) {
        if (atomic_load_explicit(&user->spaces[i].key, memory_order_relaxed) == native_key(cr3)) {
            return &user->spaces[i];
        }
    }
    return NULL;
}

static void begin_window(struct engine_vcpu *v)
{
    v->native.entries = 0;
    v->native.ways_out = 0;
    v->native.detours = 0;
    v->native.took = 0;
    v->native.since = __builtin_ia32_rdtsc();
}

void native_user_on_flush(struct engine_vcpu *v, enum mmu_flush what, uint64_t va)
{
    struct native_space *space;

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
        begin_window(v);
    }
}
