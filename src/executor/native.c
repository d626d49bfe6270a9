/* Spaces: how they are made, and how what is mapped in them is changed. See native.h. */
#include "executor/native_int.h"

#include <asm/prctl.h>
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define HWCAP2_FSGSBASE 2u
#define START_MS 5000
#define COPY_BYTES 4096u

static struct spaces *process_spaces; /* of this process; set once, before its second thread */

/* ---- mappings ---- */

/* Until it answers or ends: the host may kill it alone, when memory is short there. */
static bool take_answer(const struct space *space, int timeout_ms, uint64_t *ret_answer)
{
    struct pollfd fds[2] = {{.fd = space->bell, .events = POLLIN},
                            {.fd = space->mapper_pidfd, .events = POLLIN}};
    int r;

    do {
        r = poll(fds, ARRAY_LEN(fds), timeout_ms);
    } while (r < 0 && errno == EINTR);
    return r > 0 && (fds[0].revents & POLLIN) != 0 &&
           read(space->bell, ret_answer, sizeof(*ret_answer)) == sizeof(*ret_answer);
}

static int space_command(struct spaces *spaces, unsigned n, unsigned count)
{
    struct space *space = &spaces->space[n];
    uint64_t answer = 0;

    if (atomic_load(&space->lost)) {
        native_space_end(spaces, n); /* another may be at it still */
        return -EIO;
    }
    native_turn_place_mapper(space);
    space->mapper->count = count;
    atomic_fetch_add(&space->mapper->go, 1);
    (void)native_futex(&space->mapper->go, FUTEX_WAKE, 1, NULL);
    if (!take_answer(space, -1, &answer)) {
        native_space_end(spaces, n);
        return -EIO;
    }
    return answer == 1 ? 0 : -ENOMEM;
}

static bool is_ours(const struct native_change *change)
{
    return change->va < NATIVE_LOWEST || change->va >= NATIVE_END ||
           change->bytes > NATIVE_END - change->va ||
           (change->va < NATIVE_OWN_END && change->va + change->bytes > NATIVE_OWN);
}

/* All that is not ours goes; how many items that takes. */
static unsigned put_clear(struct native_item items[NATIVE_CLEAR_ITEMS])
{
    items[0] = (struct native_item){.va = NATIVE_LOWEST, .bytes = NATIVE_OWN - NATIVE_LOWEST};
    items[1] = (struct native_item){.va = NATIVE_OWN_END, .bytes = NATIVE_END - NATIVE_OWN_END};
    return NATIVE_CLEAR_ITEMS;
}

int native_change_prepare(struct space *space, const struct native_change *changes, unsigned count,
                          unsigned *ret_items)
{
    unsigned items = space->owes_clear ? put_clear(space->mapper->items) : 0;

    if (count > NATIVE_MAX_CHANGES) {
        return -EINVAL;
    }
    *ret_items = items + count;
    for (unsigned i = 0; i < count; i++) {
        const struct native_change *c = &changes[i];

        if (is_ours(c)) {
            return -EINVAL;
        }
        space->mapper->items[items + i] = (struct native_item){
            .va = c->va,
            .bytes = c->bytes,
            .prot = c->prot,
            .flags = MAP_SHARED | MAP_FIXED | (c->populate ? MAP_POPULATE : 0),
            .offset = c->offset,
            .fd = c->is_copy ? NATIVE_COPY_FD : NATIVE_RAM_FD,
        };
    }
    return 0;
}

int native_change(void *opaque, unsigned n, const struct native_change *changes, unsigned count)
{
    struct spaces *spaces = opaque;
    struct space *space = &spaces->space[n];
    unsigned items = 0;
    int r = native_change_prepare(space, changes, count, &items);

    if (r == 0 && items != 0) {
        r = space_command(spaces, n, items);
        space->owes_clear = space->owes_clear && r != 0;
    }
    return r;
}

static int native_clear(void *opaque, unsigned n)
{
    struct spaces *spaces = opaque;
    struct space *space = &spaces->space[n];

    if (spaces->vcpu_count == 1) {
        space->owes_clear = true;
        native_confirm(spaces, 0);
        return atomic_load(&space->lost) ? -EIO : 0; /* before anything runs there again */
    }
    /* Others run there meanwhile, who owe nothing. */
    return space_command(spaces, n, put_clear(space->mapper->items)) == 0 ? 0 : -EIO;
}

static bool native_is_lost(void *opaque, unsigned n)
{
    struct spaces *spaces = opaque;

    return atomic_load(&spaces->space[n].lost);
}

static const struct native_ops native_ops = {
    .run = native_run,
    .kick = native_kick,
    .change = native_change,
    .clear = native_clear,
    .is_lost = native_is_lost,
    .rest = native_turn_rest,
    .confirm = native_confirm,
};

/* ---- making them ---- */

/* The mapper has mapped nothing yet: its first command takes away all it has of the executor. */
static void space_empty(struct native_mapper *mapper)
{
    mapper->count = put_clear(mapper->items);
    mapper->done = 1;
    mapper->failed = 1ull << 32;
    atomic_store(&mapper->go, 1);
}

/* Begins to make a space; its process, or -1. */
static pid_t space_begin(struct spaces *spaces, unsigned n, struct native_plan *plan)
{
    struct space *space = &spaces->space[n];
    pid_t pid;

    space->blocks = plan->blocks;
    space->mapper = (struct native_mapper *)(void *)(plan->blocks + NATIVE_PAGE_AT);
    space->pids = spaces->pids + (size_t)n * spaces->vcpu_count;
    space->pidfds = spaces->pidfds + (size_t)n * spaces->vcpu_count;
    space->bell = eventfd(0, EFD_CLOEXEC);
    space->tally = spaces->vcpu_count == 1 ? eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) : -1;
    if (space->bell < 0 || (space->tally < 0 && spaces->vcpu_count == 1)) {
        return -1;
    }
    space_empty(space->mapper);
    plan->bell = space->bell;
    plan->tally = space->tally;
    pid = fork();
    if (pid == 0) {
        native_space_main(plan);
    }
    space->mapper_pid = pid;
    return pid;
}

/* Waits until it is empty but for our own; false: it could not be made. */
static bool space_is_empty(struct space *space)
{
    uint64_t answer = 0;

    space->mapper_pidfd = (int)syscall(SYS_pidfd_open, space->mapper_pid, 0);
    return space->mapper_pidfd >= 0 && take_answer(space, START_MS, &answer) && answer == 1;
}

/* What C has left on the signal stack of a runner that is in the stub by now, the key among it. */
static bool wipe_stack(struct native_runner *r)
{
    return madvise((uint8_t *)r - NATIVE_PAGE_AT + NATIVE_STACK_AT,
                   NATIVE_BLOCK_BYTES - NATIVE_STACK_AT, MADV_REMOVE) == 0;
}

static bool space_finish(struct spaces *spaces, unsigned n)
{
    struct space *space = &spaces->space[n];

    if (!space_is_empty(space)) {
        return false;
    }
    for (unsigned i = 0; i < spaces->vcpu_count; i++) {
        space->pids[i] = native_runner_at(space->blocks, i)->pid;
        space->pidfds[i] = (int)syscall(SYS_pidfd_open, space->pids[i], 0);
        if (space->pidfds[i] < 0 || !wipe_stack(native_runner_at(space->blocks, i))) {
            return false;
        }
    }
    return true;
}

/* They get ready beside each other. Those behind one that fails are not kept. */
static void make_spaces(struct spaces *spaces, unsigned wanted, uint8_t *pages, int pages_fd,
                        int copies_fd)
{
    size_t bytes = (size_t)(spaces->vcpu_count + 1) * NATIVE_BLOCK_BYTES;
    pid_t made[NATIVE_MAX_SPACES];
    unsigned count = 0;
    bool ok = true;

    for (; ok && count < wanted; count++) {
        struct native_plan plan = {.pages_fd = pages_fd,
                                   .copies_fd = copies_fd,
                                   .offset = count * bytes,
                                   .blocks = pages + count * bytes,
                                   .runners = spaces->vcpu_count,
                                   .parent = getpid()};

        memcpy(plan.key, spaces->space[count].key, sizeof(plan.key));
        made[count] = space_begin(spaces, count, &plan);
        ok = made[count] > 0;
    }
    for (unsigned n = 0; n < count && made[n] > 0; n++) {
        if (spaces->native.space_count == n && space_finish(spaces, n)) {
            spaces->native.space_count++;
        } else {
            (void)kill(made[n], SIGKILL);
        }
    }
}

/* XGETBV; the builtin wants -mxsave. */
static uint32_t host_xcr0(void)
{
    uint32_t low;
    uint32_t high;

    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static bool host_is_able(struct spaces *spaces)
{
    if ((getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE) == 0 ||
        sched_getaffinity(0, sizeof(spaces->allowed), &spaces->allowed) != 0) {
        return false;
    }
    spaces->native.cpuid_faults = syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1) == 0;
    spaces->xmask = host_xcr0() & 7u;
    return true;
}

/* Memory that spaces have, too. NULL: there is none, and no descriptor. */
static uint8_t *make_shared(const char *name, size_t bytes, int *ret_fd)
{
    int fd = memfd_create(name, MFD_CLOEXEC);
    uint8_t *memory = MAP_FAILED;

    if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0) {
        memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    if (memory == MAP_FAILED && fd >= 0) {
        (void)close(fd);
    }
    *ret_fd = memory == MAP_FAILED ? -1 : fd;
    return memory == MAP_FAILED ? NULL : memory;
}

static bool make_keys(struct spaces *spaces, unsigned wanted)
{
    const long bytes = sizeof(spaces->space[0].key);
    bool ok = true;

    for (unsigned n = 0; n < wanted; n++) {
        ok = ok && syscall(SYS_getrandom, spaces->space[n].key, bytes, 0) == bytes;
    }
    return ok;
}

/* A key is where mmap() takes an int for the C library: does the kernel look no further? */
static bool is_lower_half_enough(int fd)
{
    const unsigned long upper = 0xa5a5a5a5ul << 32;
    long at = syscall(SYS_mmap, 0, GMEM_PAGE_BYTES, PROT_READ | upper, MAP_SHARED | upper,
                      (unsigned long)fd | upper, 0);

    return at != -1 && munmap((void *)at, GMEM_PAGE_BYTES) == 0;
}

void executor_native_create(unsigned vcpu_count, const _Atomic uint32_t *spares_cpu,
                            const struct native **ret_native)
{
    unsigned wanted = native_spaces_for(vcpu_count);
    size_t bytes = (size_t)(vcpu_count + 1) * NATIVE_BLOCK_BYTES * wanted;
    struct spaces *spaces = calloc(1, sizeof(*spaces));
    CLEANUP_CLOSE int pages_fd = -1;
    CLEANUP_CLOSE int copies_fd = -1;
    uint8_t *pages;

    *ret_native = NULL;
    if (spaces == NULL || !host_is_able(spaces)) {
        free(spaces);
        return;
    }
    spaces->vcpu_count = vcpu_count;
    spaces->spares_cpu = spares_cpu;
    spaces->can_part = CPU_COUNT(&spaces->allowed) > 1;
    for (unsigned i = 0; i < vcpu_count; i++) {
        atomic_store(&spaces->turns[i].space, -1);
        native_turn_init(spaces, &spaces->turns[i]);
    }
    pages = make_shared("corbel-user", bytes, &pages_fd);
    spaces->native.copies = make_shared("corbel-copies", NATIVE_COPIES * COPY_BYTES, &copies_fd);
    if (pages != NULL && spaces->native.copies != NULL && make_keys(spaces, wanted) &&
        (vcpu_count > 1 || is_lower_half_enough(pages_fd))) {
        spaces->native.copy_count = NATIVE_COPIES;
        make_spaces(spaces, wanted, pages, pages_fd, copies_fd);
    }
    spaces->native.ops = &native_ops;
    spaces->native.opaque = spaces;
    process_spaces = spaces;
    *ret_native = &spaces->native;
}

void executor_native_leave(unsigned vcpu)
{
    if (process_spaces != NULL) {
        native_confirm(process_spaces, vcpu);
    }
}

unsigned executor_native_pids(pid_t ret_pids[NATIVE_MAX_THREADS])
{
    unsigned spaces = process_spaces == NULL ? 0 : process_spaces->native.space_count;
    unsigned count = 0;

    for (unsigned n = 0; n < spaces; n++) {
        ret_pids[count++] = process_spaces->space[n].mapper_pid;
        for (unsigned i = 0; i < process_spaces->vcpu_count; i++) {
            ret_pids[count++] = process_spaces->space[n].pids[i];
        }
    }
    return count;
}

unsigned executor_native_eventfds(int ret_fds[NATIVE_MAX_EVENTFDS])
{
    unsigned spaces = process_spaces == NULL ? 0 : process_spaces->native.space_count;
    unsigned count = 0;

    for (unsigned i = 0; i < spaces; i++) {
        ret_fds[count++] = process_spaces->space[i].bell;
        if (process_spaces->space[i].tally >= 0) {
            ret_fds[count++] = process_spaces->space[i].tally;
        }
    }
    return count;
}
