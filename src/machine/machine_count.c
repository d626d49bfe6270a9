/* What a machine has done so far: its vCPUs, its devices, its engine. */
#include "base/clock.h"
#include "base/process.h"
#include "dev/chardev.h"
#include "machine/machine_internal.h"
#include "netdev/netdev.h"
#include "virtio/virtio_devices.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A guest that took less than this share of the time since it was asked is left asleep. */
#define BUSY_SHARE 50u
#define MAX_SPACES 64u
#define STAT_BLOCK_BYTES 512u /* of st_blocks */

static void count_add(struct machine_counters *counters, const char *name, uint64_t value)
{
    if (counters->count < ARRAY_LEN(counters->stats)) {
        counters->stats[counters->count] = (struct accel_stat){.name = name, .value = value};
        counters->count++;
    }
}

const char *machine_exit_kind_name(enum machine_exit_kind kind)
{
    static const char *const names[MACHINE_EXIT_KINDS] = {"pio", "mmio", "msr", "other"};

    return names[kind];
}

/* ---- vCPUs ---- */

static uint64_t load(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

static void cpu_times(const struct vcpu_stats *stats, struct machine_cpu_stats *cpu)
{
    struct thread_times own = {0};
    struct thread_times guest = {0};
    pid_t pid = atomic_load(&stats->guest_pid);

    if (process_thread_times(getpid(), atomic_load(&stats->tid), &own) < 0) {
        return; /* not created yet, ended, or a host that does not count: all stay 0 */
    }
    cpu->guest_ns = cpu->run_ns = own.run_ns;
    cpu->steal_ns = own.wait_ns;
    if (pid != 0 && process_thread_times(pid, atomic_load(&stats->guest_tid), &guest) == 0) {
        cpu->guest_ns = guest.run_ns;
        cpu->run_ns += guest.run_ns;
        cpu->steal_ns += guest.wait_ns;
    }
}

/*
 * User code may run in spaces: processes below the executor, each with one
 * for each vCPU, in order.
 */
static void add_spaces(struct machine *machine, struct machine_counters *counters)
{
    pid_t executor = atomic_load(&machine->vcpus[0].stats.guest_pid);
    pid_t spaces[MAX_SPACES], runners[MACHINE_MAX_CPUS];
    struct thread_times now[MACHINE_MAX_CPUS] = {{0}};
    unsigned count = executor != 0 ? process_children(executor, spaces, ARRAY_LEN(spaces)) : 0;

    for (unsigned i = 0; i < count; i++) {
        unsigned found = process_children(spaces[i], runners, ARRAY_LEN(runners));

        for (unsigned cpu = 0; cpu < found; cpu++) {
            struct thread_times times = {0};

            if (process_thread_times(runners[cpu], runners[cpu], &times) == 0) {
                now[cpu].run_ns += times.run_ns;
                now[cpu].wait_ns += times.wait_ns;
            }
        }
    }
    for (unsigned cpu = 0; cpu < counters->cpu_count; cpu++) {
        struct machine_spent *spent = &machine->spent[cpu];

        if (now[cpu].run_ns < spent->last.run_ns || now[cpu].wait_ns < spent->last.wait_ns) {
            spent->before.run_ns += spent->last.run_ns;
            spent->before.wait_ns += spent->last.wait_ns;
        }
        spent->last = now[cpu];
        counters->cpus[cpu].guest_ns += spent->before.run_ns + now[cpu].run_ns;
        counters->cpus[cpu].run_ns += spent->before.run_ns + now[cpu].run_ns;
        counters->cpus[cpu].steal_ns += spent->before.wait_ns + now[cpu].wait_ns;
    }
}

static void count_cpu(const struct vcpu_stats *stats, struct machine_counters *counters,
                      struct machine_cpu_stats *cpu)
{
    cpu_times(stats, cpu);
    cpu->halts = load(&stats->halts);
    cpu->halted_ns = load(&stats->halted_ns);
    for (unsigned kind = 0; kind < MACHINE_EXIT_KINDS; kind++) {
        struct latency_sum exits = {0};

        latency_collect(&stats->exits[kind], &exits);
        latency_merge(&exits, &counters->exits[kind]);
        cpu->exits[kind] = latency_total(&exits);
    }
}

static void count_cpus(struct machine *machine, struct machine_counters *counters)
{
    uint32_t present = atomic_load(&machine->cpus_present);
    struct machine_cpu_stats sum = {0};

    counters->cpu_count = machine->config.cpus_max;
    for (unsigned i = 0; i < counters->cpu_count; i++) {
        counters->cpus[i].is_present = (present & 1u << i) != 0;
        count_cpu(&machine->vcpus[i].stats, counters, &counters->cpus[i]);
    }
    add_spaces(machine, counters);
    for (unsigned i = 0; i < counters->cpu_count; i++) {
        const struct machine_cpu_stats *cpu = &counters->cpus[i];

        sum.guest_ns += cpu->guest_ns;
        sum.run_ns += cpu->run_ns;
        sum.steal_ns += cpu->steal_ns;
        sum.halted_ns += cpu->halted_ns;
        sum.halts += cpu->halts;
    }
    count_add(counters, "vcpu.count", (unsigned)__builtin_popcount(present));
    count_add(counters, "vcpu.guest_ns", sum.guest_ns);
    count_add(counters, "vcpu.run_ns", sum.run_ns);
    count_add(counters, "vcpu.steal_ns", sum.steal_ns);
    count_add(counters, "vcpu.halted_ns", sum.halted_ns);
    count_add(counters, "vcpu.halts", sum.halts);
}

static void count_exits(struct machine_counters *counters)
{
    static const struct {
        const char *count, *ns;
    } names[MACHINE_EXIT_KINDS] = {{"vcpu.pio", "vcpu.pio_ns"},
                                   {"vcpu.mmio", "vcpu.mmio_ns"},
                                   {"vcpu.msr", "vcpu.msr_ns"},
                                   {"vcpu.other", "vcpu.other_ns"}};

    for (unsigned kind = 0; kind < MACHINE_EXIT_KINDS; kind++) {
        count_add(counters, names[kind].count, latency_total(&counters->exits[kind]));
        count_add(counters, names[kind].ns, counters->exits[kind].sum_ns);
    }
}

/* ---- memory ---- */

/* What the guest has touched and not given back: its pages on the memfd, with their flags. */
static void count_memory(const struct machine *machine, struct machine_counters *counters)
{
    struct stat st;
    uint64_t all = gmem_size_bytes(machine->gmem);
    uint64_t size = gmem_fixed_bytes(machine->gmem) + atomic_load(&machine->memory_plugged);
    uint64_t resident = 0;

    if (fstat(gmem_fd(machine->gmem), &st) == 0) {
        resident = (uint64_t)st.st_blocks * STAT_BLOCK_BYTES;
    }
    count_add(counters, "memory.configured_bytes", size);
    /* Of memory that is not plugged as well, should the guest use it against the rules. */
    count_add(counters, "memory.resident_bytes", resident < all ? resident : all);
}

static void count_balloon(struct machine *machine, struct machine_counters *counters)
{
    struct virtio_balloon_stats balloon;

    virtio_balloon_stats(machine->balloon, &balloon);
    count_add(counters, "balloon.target_bytes", balloon.target_bytes);
    count_add(counters, "balloon.actual_bytes", balloon.actual_bytes);
    count_add(counters, "balloon.discarded_bytes", balloon.discarded_bytes);
    if (balloon.has_guest_stats) {
        count_add(counters, "guest.total_bytes", balloon.guest_total_bytes);
        count_add(counters, "guest.free_bytes", balloon.guest_free_bytes);
        count_add(counters, "guest.available_bytes", balloon.guest_available_bytes);
        count_add(counters, "guest.cache_bytes", balloon.guest_cache_bytes);
        count_add(counters, "guest.swapped_in_bytes", balloon.guest_swapped_in_bytes);
        count_add(counters, "guest.swapped_out_bytes", balloon.guest_swapped_out_bytes);
        count_add(counters, "guest.major_faults", balloon.guest_major_faults);
        count_add(counters, "guest.minor_faults", balloon.guest_minor_faults);
    }
}

static void ask_busy_guest(struct machine *machine, const struct machine_counters *counters)
{
    uint64_t now_ns = clock_monotonic_ns();
    uint64_t run_ns = 0;

    for (unsigned i = 0; i < counters->cpu_count; i++) {
        run_ns += counters->cpus[i].guest_ns;
    }
    if (machine->asked_ns == 0 ||
        run_ns - machine->asked_run_ns >= (now_ns - machine->asked_ns) / BUSY_SHARE) {
        machine->asked_ns = now_ns;
        machine->asked_run_ns = run_ns;
        virtio_balloon_ask(machine->balloon);
    }
}

/* ---- devices ---- */

static void count_disks(struct machine *machine, struct machine_counters *counters)
{
    struct block_stats sum;

    counters->has_disk = drives_stats(machine, &sum) > 0;
    if (!counters->has_disk) {
        return;
    }
    memcpy(counters->disk, sum.latencies, sizeof(counters->disk));
    count_add(counters, "disk.reads", sum.requests[BLOCK_READ]);
    count_add(counters, "disk.writes", sum.requests[BLOCK_WRITE]);
    count_add(counters, "disk.flushes", sum.requests[BLOCK_FLUSH]);
    count_add(counters, "disk.read_bytes", sum.read_bytes);
    count_add(counters, "disk.written_bytes", sum.written_bytes);
    count_add(counters, "disk.read_ns", sum.latencies[BLOCK_READ].sum_ns);
    count_add(counters, "disk.write_ns", sum.latencies[BLOCK_WRITE].sum_ns);
    count_add(counters, "disk.flush_ns", sum.latencies[BLOCK_FLUSH].sum_ns);
    count_add(counters, "disk.errors", sum.errors);
    count_add(counters, "disk.throttled", sum.throttled);
}

static void count_io(struct machine *machine, struct machine_counters *counters)
{
    struct chardev_stats serial;
    struct netdev_stats net;

    chardev_stats(machine->serial, &serial);
    count_add(counters, "serial.in_bytes", serial.in_bytes);
    count_add(counters, "serial.out_bytes", serial.out_bytes);
    count_add(counters, "serial.dropped_bytes", serial.dropped_bytes);
    count_disks(machine, counters);
    if (machine->netdev != NULL) {
        netdev_stats(machine->netdev, &net);
        count_add(counters, "net.tx_frames", net.tx_frames);
        count_add(counters, "net.tx_bytes", net.tx_bytes);
        count_add(counters, "net.rx_frames", net.rx_frames);
        count_add(counters, "net.rx_bytes", net.rx_bytes);
        count_add(counters, "net.tx_dropped", net.tx_dropped);
        count_add(counters, "net.tx_throttled", net.tx_throttled);
        count_add(counters, "net.rx_throttled", net.rx_throttled);
        count_add(counters, "net.rx_dropped", net.rx_dropped);
    }
}

void machine_count(struct machine *machine, bool with_engine, struct machine_counters *ret_counters)
{
    struct machine_status status;
    unsigned rest;

    *ret_counters = (struct machine_counters){.count = 0};
    machine_status(machine, &status);
    count_add(ret_counters, "uptime_ns",
              machine->started_ns != 0 ? clock_monotonic_ns() - machine->started_ns : 0);
    count_add(ret_counters, "resets", status.resets);
    count_cpus(machine, ret_counters);
    count_add(ret_counters, "vcpu.rests", load(&machine->rests));
    count_exits(ret_counters);
    count_memory(machine, ret_counters);
    if (machine->balloon != NULL) {
        count_balloon(machine, ret_counters);
        if (status.state == MACHINE_RUNNING) {
            ask_busy_guest(machine, ret_counters);
        }
    }
    count_io(machine, ret_counters);
    rest = ARRAY_LEN(ret_counters->stats) - ret_counters->count;
    if (with_engine && machine->accel->stats != NULL) {
        unsigned n =
            machine->accel->stats(machine->vm, ret_counters->stats + ret_counters->count, rest);

        ret_counters->count += n < rest ? n : rest;
    }
}
