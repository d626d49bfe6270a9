/*
 * When user code runs natively. It costs a hand-over for each way in and out and
 * mappings for what it touches, and gains what translated code takes longer; what
 * both take is measured as it goes, since hosts differ.
 */
#include "engine/native_int.h"

/* User code is looked at so often, in fractions of a millisecond. */
#define LOOKS_PER_MS 2u
/* Promoted when it has run for so long, which is about what its mappings will cost... */
#define PROMOTE_AFTER_NS 1000000u
/* ... and its stays in user mode are so many hand-overs long. */
#define PROMOTE_HAND_OVERS 5u
/* Translated code takes so many quarters longer, with what is translated for it. */
#define GAIN_QUARTERS 16u
/* Natively run stays are judged by so many. */
#define DEMOTE_SAMPLE 64u
/* So many times are mappings what is to be won back later. */
#define INVEST_CHANGES 256u
#define DEMOTE_MS 4u /* for so long the first time, then twice that, ... */
#define DEMOTE_DOUBLINGS 6u
/* Before any was measured. No host does it in less, and what is longer was somebody else's. */
#define HAND_OVER_NS 8000u
#define HAND_OVER_MIN_NS 2000u
#define HAND_OVER_MAX_NS 30000u

static uint64_t cycles_of_ns(const struct native_user *user, uint64_t ns)
{
    return user->cycles_per_ms * ns / 1000000u;
}

void native_policy_init(struct native_user *user)
{
    user->hand_over = cycles_of_ns(user, HAND_OVER_NS);
}

/* ---- from translated to native ---- */

static void promote(struct engine_vcpu *v, uint64_t now)
{
    struct native_user *user = v->vm->native_user;
    struct native_space *space;

    mutex_lock(&user->lock);
    space = native_space_find(user, v->st.cr3);
    if (space == NULL || now >= space->not_before) {
        space = native_space_take(user, v->st.cr3);
    } else {
        space = NULL;
    }
    if (space != NULL) {
        space->used_at = now;
        if (!atomic_exchange(&space->promoted, true)) {
            v->native.invested = 0;
            native_count(&user->counts.promotions, 1);
        }
        v->native.wanted = true;
        v->native.is_paused = false;
    }
    mutex_unlock(&user->lock);
}

static bool is_worth_it(const struct engine_vcpu *v)
{
    const struct native_user *user = v->vm->native_user;
    const uint64_t hand_over = atomic_load_explicit(&user->hand_over, memory_order_relaxed);

    return v->native.user_cycles >= cycles_of_ns(user, PROMOTE_AFTER_NS) &&
           v->native.user_cycles >= v->native.entries * hand_over * PROMOTE_HAND_OVERS;
}

/* Looks at a window in which code was translated; false: it goes on. */
static bool look(struct engine_vcpu *v)
{
    struct native_user *user = v->vm->native_user;
    uint64_t now = __builtin_ia32_rdtsc();

    if (!user->is_always && now - v->native.since < user->cycles_per_ms / LOOKS_PER_MS) {
        return false;
    }
    if (v->native.is_sampled) {
        native_user_note_sample(v, now);
    }
    if (v->native.is_paused || user->is_always || is_worth_it(v)) {
        promote(v, now);
    } else if (v->native.user_cycles < cycles_of_ns(user, PROMOTE_AFTER_NS)) {
        user->native->ops->rest(user->native->opaque, v->base.index);
        native_user_note_user(v);
        return false; /* too little is known yet */
    }
    if (!v->native.wanted) {
        user->native->ops->rest(user->native->opaque, v->base.index);
    }
    native_user_begin_window(v);
    native_user_note_user(v);
    return true;
}

bool native_policy_wants(struct engine_vcpu *v)
{
    struct native_user *user = v->vm->native_user;

    if (user->is_always) {
        const struct native_space *space = native_space_find(user, v->st.cr3);

        v->native.wanted = space != NULL && atomic_load(&space->promoted);
    }
    if ((!v->native.wanted || v->native.is_paused) && !look(v)) {
        return false;
    }
    return v->native.wanted && !v->native.is_paused;
}

/* ---- and back ---- */

void native_policy_demote(struct native_user *user, struct native_space *space, bool waits)
{
    native_count(&user->counts.demotions, 1);
    mutex_lock(&user->lock);
    atomic_store(&space->promoted, false);
    space->not_before = 0;
    if (waits) {
        space->not_before =
            __builtin_ia32_rdtsc() + (user->cycles_per_ms * DEMOTE_MS << space->demotions);
        space->demotions += space->demotions < DEMOTE_DOUBLINGS ? 1 : 0;
    }
    mutex_unlock(&user->lock);
}

/* Goes down quickly and up slowly: what makes it longer is mostly that the host was busy. */
static void learn_hand_over(struct native_user *user, uint64_t sample)
{
    uint64_t old = atomic_load_explicit(&user->hand_over, memory_order_relaxed);
    uint64_t least = cycles_of_ns(user, HAND_OVER_MIN_NS);
    uint64_t most = cycles_of_ns(user, HAND_OVER_MAX_NS);

    sample = sample < least ? least : sample > most ? most : sample;
    atomic_store_explicit(&user->hand_over,
                          sample < old ? old - (old - sample) / 8 : old + (sample - old) / 128,
                          memory_order_relaxed);
}

void native_policy_note_run(struct engine_vcpu *v, uint64_t took, uint64_t inside, bool had_changes)
{
    struct native_user *user = v->vm->native_user;
    const uint64_t most = cycles_of_ns(user, HAND_OVER_MAX_NS);
    uint64_t cost;

    inside = inside < took ? inside : took;
    cost = took - inside;
    if (!had_changes) {
        learn_hand_over(user, cost);
    } else if (v->native.invested < INVEST_CHANGES) {
        uint64_t hand_over = atomic_load_explicit(&user->hand_over, memory_order_relaxed);

        v->native.invested++;
        cost = cost < hand_over ? cost : hand_over;
    }
    v->native.inside += inside;
    v->native.cost += cost < most ? cost : most;
    v->native.ways_out++;
}

void native_policy_note_mapping(struct engine_vcpu *v)
{
    uint64_t hand_over = atomic_load_explicit(&v->vm->native_user->hand_over, memory_order_relaxed);

    v->native.cost -= v->native.cost < hand_over ? v->native.cost : hand_over;
}

void native_policy_judge(struct engine_vcpu *v, struct native_space *space)
{
    struct native_user *user = v->vm->native_user;

    if (v->native.ways_out < DEMOTE_SAMPLE || user->is_always) {
        return;
    }
    if (v->native.cost * 4 > v->native.inside * GAIN_QUARTERS ||
        v->native.detours > DEMOTE_SAMPLE / 2) {
        native_policy_demote(user, space, true);
        v->native.wanted = false;
    } else if (space->demotions > 0) {
        space->demotions--;
    }
    native_user_begin_window(v);
}
