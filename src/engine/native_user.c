/* Life cycle, marks of code and statistics of native user code; see native_user.h. */
#include "engine/native_int.h"

#include <stdlib.h>

#define CPUID_XSAVE 0xdu
#define DEFAULT_TSC_HZ 1000000000u

static bool host_has_more_state(void)
{
    uint32_t eax;
    uint32_t edx;

    __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    return (eax & ~(uint32_t)(X86_XCR0_X87 | X86_XCR0_SSE | X86_XCR0_AVX)) != 0 || edx != 0;
}

static int create_spaces(struct native_user *user)
{
    for (unsigned i = 0; i < user->native->space_count; i++) {
        struct native_space *space = &user->spaces[i];

        mutex_init(&space->lock, LOCK_RANK_SPACE);
        space->top = 1;
        space->is_new = true;
        space->regions = calloc(REGIONS_MAX, sizeof(*space->regions));
        if (space->regions == NULL) {
            return -1;
        }
    }
    return 0;
}

struct native_user *native_user_create(struct engine_vm *vm, const struct native *native,
                                       enum accel_native when)
{
    struct native_user *user = calloc(1, sizeof(*user));
    uint64_t bytes = 0;

    if (user == NULL) {
        return NULL;
    }
    for (unsigned i = 0; i < vm->ram_count; i++) {
        bytes += vm->ram[i].size_bytes;
    }
    user->vm = vm;
    user->native = native;
    user->is_always = when == ACCEL_NATIVE_ALWAYS;
    user->ram = vm->ram[0].host;
    user->ram_pages = bytes / PAGE_BYTES;
    user->cycles_per_ms = (cpuid_tsc_hz() == 0 ? DEFAULT_TSC_HZ : cpuid_tsc_hz()) / 1000;
    native_policy_init(user);
    user->host_has_more_state = host_has_more_state();
    mutex_init(&user->lock, LOCK_RANK_ENGINE);
    mutex_init(&user->copy_lock, LOCK_RANK_LEAF);
    user->writers = user->ram_pages >= MAPPED_PAGES_MAX
                        ? NULL
                        : calloc(user->ram_pages, sizeof(*user->writers));
    if (user->writers == NULL || create_spaces(user) != 0) {
        native_user_destroy(user);
        return NULL;
    }
    return user;
}

void native_user_destroy(struct native_user *user)
{
    if (user == NULL) {
        return;
    }
    for (unsigned i = 0; i < user->native->space_count; i++) {
        free(user->spaces[i].regions);
    }
    free((void *)(uintptr_t)user->writers);
    free(user);
}

/* Takes the right to write to the page out of all of the space that has it. */
static void protect_in_space(struct native_user *user, struct native_space *space, uint64_t page)
{
    struct native_batch batch = {.count = 0};
    int rc = 0;

    for (unsigned bucket = 0; rc == 0 && bucket < REGION_BUCKETS; bucket++) {
        for (uint32_t at = space->buckets[bucket]; rc == 0 && at != 0;
             at = space->regions[at].next) {
            struct native_region *r = &space->regions[at];

            for (unsigned i = 0; rc == 0 && i < REGION_PAGES; i++) {
                if (native_region_has(r, i) && (r->page[i] & MAPPED_WRITE) != 0 &&
                    r->page[i] >> MAPPED_SHIFT == page) {
                    rc = native_batch_add(
                        user, space, &batch, r->va + i * PAGE_BYTES,
                        native_page_set(user, space, r, i, r->page[i] & ~MAPPED_WRITE));
                }
            }
        }
    }
    if (rc == 0) {
        (void)!native_batch_flush(user, space, &batch); /* cleared, when that failed */
    }
    (void)atomic_fetch_and(&user->writers[page], ~(0x10001u << native_space_index(user, space)));
}

void native_user_protect(struct native_user *user, const uint8_t *host_page)
{
    uint64_t page = (uint64_t)(host_page - user->ram) / PAGE_BYTES;
    uint32_t writers;

    atomic_thread_fence(memory_order_seq_cst);
    writers = atomic_load(&user->writers[page]) & 0xffff;
    for (; writers != 0; writers &= writers - 1) {
        struct native_space *space = &user->spaces[__builtin_ctz(writers)];

        native_count(&user->counts.protects, 1);
        mutex_lock(&space->lock);
        protect_in_space(user, space, page);
        mutex_unlock(&space->lock);
    }
}

unsigned native_user_stats(const struct native_user *user, struct accel_stat *ret_stats,
                           unsigned max)
{
    const struct native_counts *c = &user->counts;
    const struct {
        const char *name;
        const _Atomic uint64_t *value;
    } stats[] = {
        {"native_runs", &c->runs},           {"native_system_calls", &c->syscalls},
        {"native_faults", &c->faults},       {"native_page_faults", &c->raised},
        {"native_others", &c->others},       {"native_kicks", &c->kicks},
        {"native_traps", &c->traps},         {"native_lost", &c->lost},
        {"native_detours", &c->detours},     {"native_pauses", &c->pauses},
        {"native_maps", &c->maps},           {"native_changes", &c->changes},
        {"native_checks", &c->checks},       {"native_drops", &c->drops},
        {"native_clears", &c->clears},       {"native_flagged_pages", &c->flagged},
        {"native_protects", &c->protects},   {"native_promotions", &c->promotions},
        {"native_demotions", &c->demotions}, {"native_cycles", &c->cycles},
    };

    for (unsigned i = 0; i < ARRAY_LEN(stats) && i < max; i++) {
        ret_stats[i] = (struct accel_stat){
            stats[i].name, atomic_load_explicit(stats[i].value, memory_order_relaxed)};
    }
    return ARRAY_LEN(stats);
}
