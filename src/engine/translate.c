/*
 * Running translated code: find or make the unit, enter, act on why it left.
 *
 * in_code says that a vCPU may be between an inlined check and its access, or
 * may hold pointers to units. Who wants it out (a page becomes code; the cache
 * is dropped) kicks it and waits until in_code falls or sync_epoch moves. He
 * holds the engine lock meanwhile, so in code nobody may wait for that: a write
 * to code is noted (late_start) and the vCPU kicked out to drop the units.
 */
#include "engine/translate.h"

#include "engine/mirror.h"
#include "engine/translate_int.h"

#include <asm/prctl.h>
#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#define PAGE_MASK ((uint64_t)GMEM_PAGE_BYTES - 1)
#define HWCAP2_FSGSBASE 2u
#define TIMED_UNITS 16u /* of so many, one */
/* With less than this translated there is nothing to gain by dropping it. */
#define TRIM_MIN_BYTES (2u << 20)

/* The vCPU of this thread: writes to code are told of by their address alone. */
static _Thread_local struct engine_vcpu *own_vcpu;

int translate_vm_init(struct engine_vm *vm, uint64_t size_bytes, struct err *err)
{
    int r = code_cache_create(vm, size_bytes == 0 ? CODE_CACHE_DEFAULT_BYTES : size_bytes, err,
                              &vm->translator);

    if (r != 0) {
        return r;
    }
    vm->translator->xlate = calloc(1, sizeof(*vm->translator->xlate));
    vm->translator->trace = calloc(1, sizeof(*vm->translator->trace));
    if (vm->translator->xlate == NULL || vm->translator->trace == NULL) {
        translate_vm_done(vm);
        return err_set(err, -ENOMEM, "no memory for the translator");
    }
    return 0;
}

void translate_vm_done(struct engine_vm *vm)
{
    if (vm->translator != NULL) {
        free(vm->translator->xlate);
        free(vm->translator->trace);
    }
    code_cache_destroy(vm->translator);
    vm->translator = NULL;
}

int translate_vcpu_init(struct engine_vcpu *v, struct err *err)
{
    void *jump = mmap(NULL, sizeof(struct jump_cache), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    int r;

    if (jump == MAP_FAILED) {
        return err_set(err, -ENOMEM, "not enough memory for a virtual CPU");
    }
    v->hot.jump = jump;
    r = translate_signal_init(v);
    if (r != 0) {
        (void)munmap(jump, sizeof(struct jump_cache));
        return err_set_errno(err, r, "cannot set up the signals of a vCPU");
    }
    own_vcpu = v;
    v->hot.self = v;
    v->hot.fn_access = light_access;
    v->hot.fn_exit = light_exit;
    v->flush_hook = light_on_mmu_flush;
    light_init_jump_cache(v);
    return 0;
}

void translate_vcpu_done(struct engine_vcpu *v)
{
    own_vcpu = NULL;
    translate_signal_done(v);
    (void)munmap(v->hot.jump, sizeof(struct jump_cache));
}

/* Drops what was made from the code that this vCPU wrote when it could not wait. */
static void drop_late(struct engine_vcpu *v)
{
    if (unlikely(v->late_end != v->late_start)) {
        translate_invalidate(v->vm, gpa(v->late_start), v->late_end - v->late_start);
        v->late_start = v->late_end = 0;
    }
}

/* The host's GS base is ours to use: the C library has FS. The mirror needs FSGSBASE. */
static void set_gs_base(struct engine_vcpu *v)
{
    if (v->vm->mirror != NULL) {
        __asm__ volatile("wrgsbase %0" : : "r"(LAYOUT_FOLD));
    } else if ((getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE) != 0) {
        __asm__ volatile("wrgsbase %0" : : "r"(v));
    } else {
        (void)syscall(SYS_arch_prctl, ARCH_SET_GS, v);
    }
}

static uint64_t now_ns(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void translate_sync_vcpu(struct engine_vcpu *other)
{
    uint64_t epoch = atomic_load(&other->sync_epoch);

    if (!atomic_load(&other->hot.in_code)) {
        return;
    }
    other->base.ops->kick(&other->base);
    while (atomic_load(&other->hot.in_code) && atomic_load(&other->sync_epoch) == epoch) {
        (void)sched_yield();
    }
}

/* Engine lock held. */
static void drop_everything(struct engine_vcpu *v, void (*drop)(struct translator *translator))
{
    struct translator *t = v->vm->translator;

    atomic_store(&t->stop, true);
    for (unsigned i = 0; i < v->vm->vcpu_count; i++) {
        struct engine_vcpu *other = atomic_load(&v->vm->vcpus[i]);

        while (other != NULL && other != v && atomic_load(&other->hot.in_code)) {
            translate_sync_vcpu(other);
        }
    }
    drop(t);
    /* No vCPU is in code, so none uses its jump cache now; each empties its own. */
    atomic_store(&t->stop, false);
}

bool translate_trim(struct engine_vcpu *v)
{
    struct translator *t = v->vm->translator;
    bool is_worth_it;

    mutex_lock(&v->vm->lock);
    is_worth_it = t->used_bytes - t->thunk_bytes >= TRIM_MIN_BYTES;
    if (is_worth_it) {
        drop_everything(v, code_cache_trim);
    }
    mutex_unlock(&v->vm->lock);
    return is_worth_it;
}

/* The guest is not for the mirror: kernel code, too, is translated with checks. */
static void stop_mirroring(struct engine_vcpu *v)
{
    struct translator *t = v->vm->translator;

    mutex_lock(&v->vm->lock);
    if (t->is_mirrored) {
        t->is_mirrored = false;
        drop_everything(v, code_cache_reset);
        mirror_drop(v->vm->mirror);
    }
    mutex_unlock(&v->vm->lock);
}

static gpa_t gpa_of_host(const struct engine_vm *vm, const uint8_t *host)
{
    for (unsigned i = 0; i < vm->ram_count; i++) {
        if ((uint64_t)(host - vm->ram[i].host) < vm->ram[i].size_bytes) {
            return gpa(vm->ram[i].gpa + (uint64_t)(host - vm->ram[i].host));
        }
    }
    return gpa(0);
}

/* From now on every write to the page is seen; when it returns, no older one is under way. */
static void protect_code(struct engine_vcpu *v, gpa_t page)
{
    uint64_t holders = mmu_protect_code_page(v, page);

    if (v->vm->native_user != NULL) {
        native_user_protect(v->vm->native_user, mmu_ram_host(v->vm, page.v));
    }

    for (; holders != 0; holders &= holders - 1) {
        struct engine_vcpu *other = atomic_load(&v->vm->vcpus[__builtin_ctzll(holders)]);

        if (other != NULL) {
            translate_sync_vcpu(other);
        }
    }
}

/* The instruction at host goes on in the next page; false: there is none to be had. */
static bool build_crossing(struct engine_vcpu *v, const uint8_t *host, unsigned mode,
                           const uint8_t **ret_next)
{
    struct translator *t = v->vm->translator;
    uint32_t offset = (uint32_t)(v->st.rip & PAGE_MASK);
    const uint8_t *next = NULL;

    if (mmu_fetch_host(v, (v->st.rip & ~PAGE_MASK) + GMEM_PAGE_BYTES, &next) != 0 || next == NULL) {
        return false;
    }
    protect_code(v, gpa_of_host(v->vm, next));
    if (trace_build(t, host - offset, offset, next, mode, t->trace) != 0) {
        code_cache_unmark(t, next, gpa_of_host(v->vm, next));
        return false;
    }
    *ret_next = next;
    return true;
}

/* The clock costs as much as some instructions' translation: one unit of a few is timed. */
static uint64_t timed_now(const struct translator *t)
{
    return t->stat_units % TIMED_UNITS == 0 ? now_ns() : 0;
}

/* Makes the unit for st.rip; host is where its first byte is. NULL: it cannot be fetched. */
static struct unit *translate_locked(struct engine_vcpu *v, const uint8_t *host, unsigned mode)
{
    struct translator *t = v->vm->translator;
    uint32_t offset = (uint32_t)(v->st.rip & PAGE_MASK);
    const uint8_t *next = NULL;
    gpa_t start = gpa_of_host(v->vm, host);
    uint64_t begin = timed_now(t);
    struct unit *unit;

    if (!code_cache_room(t)) {
        drop_everything(v, code_cache_reset);
    }
    protect_code(v, start);
    unit = xlate_alias(t, (uintptr_t)host, mode);
    if (unit != NULL) {
        t->stat_aliases++;
    } else {
        if (trace_build(t, host - offset, offset, NULL, mode, t->trace) != 0 &&
            !build_crossing(v, host, mode, &next)) {
            code_cache_unmark(t, host, start);
            return NULL;
        }
        unit = xlate_unit(t, t->trace, (uintptr_t)host, (uintptr_t)next, mode);
        t->stat_insns += t->trace->count;
    }
    unit->first_line |= v->hot.odd ? UNIT_ODD : 0u;
    code_cache_publish(t, unit, start, next == NULL ? gpa(0) : gpa_of_host(v->vm, next));
    t->stat_translate_ns += (timed_now(t) - begin) * TIMED_UNITS;
    t->stat_units++;
    t->stat_code_bytes += unit->code_bytes;
    return unit;
}

static struct unit *find_or_translate_locked(struct engine_vcpu *v, unsigned mode)
{
    const uint8_t *host;
    struct unit *unit = light_find(v, mode);

    if (unit != NULL) {
        return unit;
    }
    if (mmu_fetch_host(v, v->st.rip, &host) != 0 || host == NULL) {
        return NULL;
    }
    return translate_locked(v, host, mode);
}

static struct unit *find_or_translate(struct engine_vcpu *v, unsigned mode)
{
    struct unit *unit = light_find(v, mode);

    if (unit == NULL) {
        mutex_lock(&v->vm->lock);
        unit = find_or_translate_locked(v, mode);
        mutex_unlock(&v->vm->lock);
    }
    return unit;
}

static void link_exit(struct translator *t, struct unit_exit *exit, struct unit *unit)
{
    if (unit_crosses(unit)) {
        code_cache_link_lookup(t, exit);
    } else if (exit->mode == unit->mode &&
               ((unit_get(t, exit->unit)->guest ^ unit->guest) & ~PAGE_MASK) == 0) {
        exit->state &= (uint8_t)~EXIT_UNLINKABLE;
        code_cache_link(t, exit, unit);
    }
}

/* hot.exit asked for its target; both are looked up again under the lock. */
static struct unit *find_and_link(struct engine_vcpu *v, unsigned mode)
{
    struct translator *t = v->vm->translator;
    uint64_t generation = atomic_load(&t->generation);
    struct unit *unit;

    mutex_lock(&v->vm->lock);
    unit = find_or_translate_locked(v, mode);
    if (unit != NULL && v->hot.generation == generation &&
        atomic_load(&t->generation) == generation) {
        link_exit(t, &t->exits[v->hot.exit], unit);
    }
    mutex_unlock(&v->vm->lock);
    return unit;
}

/* An instruction of the unit that was run is to have a check from now on. */
static void drop_refused_unit(struct engine_vcpu *v)
{
    struct translator *t = v->vm->translator;

    mutex_lock(&v->vm->lock);
    if (v->hot.generation == atomic_load(&t->generation)) {
        code_cache_drop_unit(t, v->retranslate);
    }
    mutex_unlock(&v->vm->lock);
    v->retranslate = NULL;
}

/* Runs from the unit's entry until translated code leaves. */
static void enter(struct engine_vcpu *v, const struct unit *unit)
{
    if (v->check == NULL) {
        light_remember(v, unit);
    }
    v->hot.single = false;
    light_take_flags(v);
    v->hot.page = v->st.rip & ~PAGE_MASK;
    v->hot.resume = code_rx(v->vm->translator, unit_entry(unit));
    v->hot.leave = LEAVE_KICK; /* should there be one */
    atomic_store_explicit(&v->evicted_writes, 0, memory_order_release);
    set_gs_base(v);
    thunk_enter(v);
    v->hot.stat_leaves[v->hot.leave]++;
    if (v->hot.leave == LEAVE_ACCESS || v->hot.leave == LEAVE_KICK_ACCESS) {
        light_undo_access(v);
    }
    light_give_flags(v);
    atomic_fetch_add(&v->sync_epoch, 1);
    atomic_store(&v->hot.in_code, false);
    drop_late(v);
    if (v->retranslate != NULL) {
        drop_refused_unit(v);
    }
}

/* Nothing that it knew is there any more, nor is its memory needed: it reads as zeroes from now on. */
static void empty_jump_cache(struct engine_vcpu *v)
{
    light_flush_jump_cache(v);
    (void)madvise(v->hot.jump, sizeof(struct jump_cache), MADV_DONTNEED);
    light_init_jump_cache(v);
}

/* Announces that this vCPU goes into code; waits out a drop of the cache. */
static void begin_code(struct engine_vcpu *v)
{
    struct translator *t = v->vm->translator;

    atomic_store(&v->hot.in_code, true);
    while (atomic_load(&t->stop)) {
        atomic_store(&v->hot.in_code, false);
        mutex_lock(&v->vm->lock); /* whoever drops it holds this */
        mutex_unlock(&v->vm->lock);
        atomic_store(&v->hot.in_code, true);
    }
    if (v->hot.generation != atomic_load(&t->generation)) {
        empty_jump_cache(v);
        memset(v->hot.found, 0, sizeof(v->hot.found));
        v->hot.generation = atomic_load(&t->generation);
    }
}

/* Enters the unit for st.rip; false: none can be made, or it went away again. */
static bool run_unit(struct engine_vcpu *v, unsigned mode, bool link, bool *ret_fetched)
{
    struct translator *t = v->vm->translator;
    uint64_t generation = atomic_load(&t->generation);
    struct unit *unit = link ? find_and_link(v, mode) : find_or_translate(v, mode);

    *ret_fetched = unit != NULL;
    if (unit == NULL) {
        return false;
    }
    begin_code(v);
    if (v->hot.generation != generation || atomic_load(&unit->dead)) {
        atomic_store(&v->hot.in_code, false);
        return false;
    }
    enter(v, unit);
    return true;
}

static int unit_mode(const struct engine_vcpu *v)
{
    int mode = light_unit_mode(v);

    return mode >= 0 && v->hot.single ? mode | (int)UNIT_MODE_SINGLE : mode;
}

enum translate_result translate_run(struct engine_vcpu *v)
{
    bool link = false;

    v->hot.odd = true;

    for (;;) {
        int mode = unit_mode(v);
        bool fetched;

        if (atomic_load(&v->kick) != 0 || (v->vm->native_user != NULL && native_user_is_due(v))) {
            return TRANSLATE_KICKED;
        }
        if (v->vm->translator->is_mirrored && mirror_is_refused(v->vm->mirror)) {
            stop_mirroring(v);
        }
        if (mode < 0) {
            return TRANSLATE_INTERP;
        }
        if (!run_unit(v, (unsigned)mode, link, &fetched)) {
            if (!fetched) {
                return TRANSLATE_INTERP;
            }
            link = false;
            continue;
        }
        link = v->hot.leave == LEAVE_CHAIN;
        v->hot.odd = v->hot.odd || (!link && v->hot.leave != LEAVE_LOOKUP);
        switch ((enum translate_leave)v->hot.leave) {
        case LEAVE_INTERP:
        case LEAVE_ACCESS:
            return TRANSLATE_INTERP;
        case LEAVE_EXIT:
            return TRANSLATE_EXIT;
        case LEAVE_KICK:
        case LEAVE_KICK_ACCESS:
            return TRANSLATE_KICKED;
        default:
            break;
        }
    }
}

unsigned translate_unit_length(struct engine_vcpu *v)
{
    int mode = unit_mode(v);
    const struct unit *unit = mode < 0 ? NULL : find_or_translate(v, (unsigned)mode);

    return unit == NULL ? 0 : unit->trace_count;
}

enum translate_result translate_run_one(struct engine_vcpu *v)
{
    int mode = unit_mode(v);
    bool fetched;

    if (mode < 0 || !run_unit(v, (unsigned)mode, false, &fetched)) {
        return TRANSLATE_INTERP;
    }
    return v->hot.leave == LEAVE_INTERP || v->hot.leave == LEAVE_ACCESS ? TRANSLATE_INTERP
                                                                        : TRANSLATE_KICKED;
}

void translate_sample(struct engine_vcpu *v)
{
    struct translator *t = v->vm->translator;
    struct unit *unit;

    /* Who holds the lock may wait for this vCPU; then it is the next one that is noted. */
    if (!mutex_trylock(&v->vm->lock)) {
        return;
    }
    unit = code_cache_unit_at(t, (uintptr_t)v->hot.check_return - 1);
    if (unit != NULL && !atomic_load(&unit->dead)) {
        if ((unit->last_line & UNIT_SAMPLED) != 0) {
            code_cache_heat_unit(t, unit);
        }
        unit->last_line |= UNIT_SAMPLED;
    }
    mutex_unlock(&v->vm->lock);
}

/* Too much is dropped between two ranges far apart, which one instruction seldom has. */
static void note_late(struct engine_vcpu *v, uint64_t start, uint64_t end)
{
    bool is_first = v->late_end == v->late_start;

    v->late_start = is_first || start < v->late_start ? start : v->late_start;
    v->late_end = is_first || end > v->late_end ? end : v->late_end;
    atomic_store(&v->kick, 1);
}

void translate_note_site(struct engine_vcpu *v, uint32_t code, bool is_range)
{
    struct translator *t = v->vm->translator;
    struct unit *unit = code_cache_unit_at(t, code_rx(t, code));
    uintptr_t guest = (unit->guest & ~(uintptr_t)PAGE_MASK) + unit_insn_at(unit, code).offset;

    if (mutex_trylock(&v->vm->lock)) {
        if (is_range) {
            code_cache_add_narrow(t, guest);
        } else {
            code_cache_add_roaming(t, guest);
        }
        code_cache_drop_unit(t, unit);
        mutex_unlock(&v->vm->lock);
    }
}

void translate_invalidate(struct engine_vm *vm, gpa_t start, uint64_t len)
{
    if (vm->translator == NULL) {
        return;
    }
    if (own_vcpu == NULL || !atomic_load(&own_vcpu->hot.in_code)) {
        mutex_lock(&vm->lock);
    } else if (!mutex_trylock(&vm->lock)) {
        note_late(own_vcpu, start.v, start.v + len);
        return;
    }
    code_cache_invalidate(vm->translator, start, len);
    mutex_unlock(&vm->lock);
}

/* In the order of enum translate_leave and enum translate_helper. */
static const char *const leave_names[] = {
    "leaves.lookup", "leaves.link", "leaves.interpreter",   "leaves.access",
    "leaves.exit",   "leaves.kick", "leaves.kick_in_access"};
static const char *const helper_names[] = {NULL,
                                           "helpers.system_call",
                                           "helpers.interrupt_return",
                                           "helpers.string",
                                           "helpers.flags",
                                           "helpers.segment",
                                           "helpers.control_register",
                                           "helpers.other"};

static_assert(ARRAY_LEN(leave_names) == LEAVE_KINDS && LEAVE_KICK_ACCESS + 1 == LEAVE_KINDS,
              "each way out has its counter");
static_assert(ARRAY_LEN(helper_names) == HELPER_COUNT, "each kind of helper has its counter");

struct stat_sums {
    uint64_t jumps;
    uint64_t accesses;
    uint64_t ranges;
    uint64_t faults;
    uint64_t leaves;
    uint64_t helpers;
    uint64_t leaves_of[LEAVE_KINDS];
    uint64_t helpers_of[HELPER_COUNT];
};

static void sum_up(const struct engine_vm *vm, struct stat_sums *sums)
{
    for (unsigned i = 0; i < vm->vcpu_count; i++) {
        const struct engine_vcpu *v = atomic_load(&vm->vcpus[i]);

        if (v == NULL) {
            continue;
        }
        sums->jumps += v->hot.stat_jumps;
        sums->accesses += v->hot.stat_accesses;
        sums->ranges += v->hot.stat_ranges;
        sums->faults += v->hot.stat_faults;
        for (unsigned kind = 0; kind < LEAVE_KINDS; kind++) {
            sums->leaves_of[kind] += v->hot.stat_leaves[kind];
            sums->leaves += v->hot.stat_leaves[kind];
        }
        for (unsigned kind = 0; kind < HELPER_COUNT; kind++) {
            sums->helpers_of[kind] += v->hot.stat_helpers[kind];
            sums->helpers += v->hot.stat_helpers[kind];
        }
    }
}

static void add_stat(struct accel_stat *stats, unsigned max, unsigned *count, const char *name,
                     uint64_t value)
{
    if (*count < max) {
        stats[*count] = (struct accel_stat){name, value};
    }
    (*count)++;
}

unsigned translate_stats(struct engine_vm *vm, struct accel_stat *ret_stats, unsigned max)
{
    const struct translator *t = vm->translator;
    struct stat_sums sums = {0};
    unsigned count = 0;

    sum_up(vm, &sums);

    const struct accel_stat stats[] = {
        {"translator_units", t->stat_units},
        {"translator_instructions", t->stat_insns},
        {"translator_code_bytes", t->stat_code_bytes},
        {"translator_cache_size", t->size_bytes},
        {"translator_cache_used", t->used_bytes},
        {"translator_table_bytes", t->arena_used},
        {"translator_flushes", t->stat_flushes},
        {"translator_invalidated", t->stat_invalidated},
        {"translator_ns", t->stat_translate_ns},
        {"translator_checked_sites", t->stat_checked},
        {"translator_roaming_sites", t->stat_roaming},
        {"translator_hot_units", t->stat_hot},
        {"translator_narrow_sites", t->stat_narrow},
        {"translator_aliases", t->stat_aliases},
        {"jump_misses", sums.jumps},
        {"access_misses", sums.accesses},
        {"range_misses", sums.ranges},
        {"page_faults", sums.faults},
        {"helper_instructions", sums.helpers},
        {"unit_leaves", sums.leaves},
    };

    for (unsigned i = 0; i < ARRAY_LEN(stats); i++) {
        add_stat(ret_stats, max, &count, stats[i].name, stats[i].value);
    }
    for (unsigned i = 1; i < HELPER_COUNT; i++) {
        add_stat(ret_stats, max, &count, helper_names[i], sums.helpers_of[i]);
    }
    for (unsigned i = 0; i < LEAVE_KINDS; i++) {
        add_stat(ret_stats, max, &count, leave_names[i], sums.leaves_of[i]);
    }
    if (vm->native_user != NULL) {
        count += native_user_stats(vm->native_user, max > count ? ret_stats + count : NULL,
                                   max > count ? max - count : 0);
    }
    if (vm->mirror != NULL) {
        count += mirror_stats(vm->mirror, max > count ? ret_stats + count : NULL,
                              max > count ? max - count : 0);
    }
    return count;
}
