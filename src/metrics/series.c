#include "metrics/metrics_int.h"

#include <math.h>
#include <string.h>

#define NS_PER_US 1e3
#define NS_PER_S 1e9

enum instance_column {
    CPU_PERCENT,
    STEAL_PERCENT,
    MEMORY_RESIDENT,
    MEMORY_USED,
    DISK_READ_BYTES,
    DISK_WRITTEN_BYTES,
    DISK_READS,
    DISK_WRITES,
    DISK_LATENCY,
    NET_RX_BYTES,
    NET_TX_BYTES,
    NET_RX_PACKETS,
    NET_TX_PACKETS,
    EXITS,
    EXIT_LATENCY
};

const struct series instance_series[RING_VALUES] = {
    [CPU_PERCENT] = {"cpu_percent", "of all its virtual CPUs"},
    [STEAL_PERCENT] = {"steal_percent", "time for which its virtual CPUs had to wait for the host"},
    [MEMORY_RESIDENT] = {"memory_resident_bytes", "memory of the host that the guest's takes"},
    [MEMORY_USED] = {"memory_used_bytes", "in use, as the guest says"},
    [DISK_READ_BYTES] = {"disk_read_bytes_per_s", "read from its disks"},
    [DISK_WRITTEN_BYTES] = {"disk_written_bytes_per_s", "written to its disks"},
    [DISK_READS] = {"disk_reads_per_s", "reads of its disks"},
    [DISK_WRITES] = {"disk_writes_per_s", "writes to its disks"},
    [DISK_LATENCY] = {"disk_latency_us", "what a read or write took on average"},
    [NET_RX_BYTES] = {"net_received_bytes_per_s", "to its network card"},
    [NET_TX_BYTES] = {"net_sent_bytes_per_s", "from its network card"},
    [NET_RX_PACKETS] = {"net_received_packets_per_s", "to its network card"},
    [NET_TX_PACKETS] = {"net_sent_packets_per_s", "from its network card"},
    [EXITS] = {"exits_per_s", "exits from guest code to its devices"},
    [EXIT_LATENCY] = {"exit_latency_us", "what answering an exit took on average"},
};

enum host_column {
    HOST_CPU_PERCENT,
    HOST_STEAL_PERCENT,
    HOST_LOAD,
    HOST_MEMORY_USED,
    HOST_SPACE_USED,
    HOST_DISK_READ_BYTES,
    HOST_DISK_WRITTEN_BYTES,
    HOST_NET_RX_BYTES,
    HOST_NET_TX_BYTES,
    HOST_MACHINES,
    HOST_DAEMON_CPU,
    HOST_DAEMON_MEMORY
};

const struct series host_series[RING_VALUES] = {
    [HOST_CPU_PERCENT] = {"cpu_percent", "of all its CPUs"},
    [HOST_STEAL_PERCENT] = {"steal_percent", "time that a hypervisor below took from it"},
    [HOST_LOAD] = {"load", "processes that run or wait, over the last minute"},
    [HOST_MEMORY_USED] = {"memory_used_bytes", "memory that is not available"},
    [HOST_SPACE_USED] = {"space_used_bytes", "of the file system that holds the state"},
    [HOST_DISK_READ_BYTES] = {"disk_read_bytes_per_s", "read from all disks"},
    [HOST_DISK_WRITTEN_BYTES] = {"disk_written_bytes_per_s", "written to all disks"},
    [HOST_NET_RX_BYTES] = {"net_received_bytes_per_s", "by all network cards"},
    [HOST_NET_TX_BYTES] = {"net_sent_bytes_per_s", "by all network cards"},
    [HOST_MACHINES] = {"instances", "with a monitor"},
    [HOST_DAEMON_CPU] = {"daemon_cpu_percent", "of one CPU, by this daemon"},
    [HOST_DAEMON_MEMORY] = {"daemon_memory_bytes", "resident memory of this daemon"},
};

/* A counter that went back belongs to another process or device than before. */
static float rate(uint64_t before, uint64_t now, double seconds)
{
    return now >= before && seconds > 0 ? (float)((double)(now - before) / seconds) : NAN;
}

struct interval {
    const struct machine_sample *earlier, *now;
    double seconds;
};

static uint64_t sum(const struct machine_sample *sample, const char *const names[])
{
    uint64_t total = 0;

    for (unsigned i = 0; names[i] != NULL; i++) {
        total += machine_counter(sample, names[i]);
    }
    return total;
}

static float rate_of(const struct interval *interval, const char *name)
{
    return rate(machine_counter(interval->earlier, name), machine_counter(interval->now, name),
                interval->seconds);
}

/* Microseconds per operation; not known where there was none. */
static float latency_of(const struct interval *interval, const char *const counts[],
                        const char *const times[])
{
    uint64_t count_before = sum(interval->earlier, counts);
    uint64_t count = sum(interval->now, counts);
    uint64_t ns_before = sum(interval->earlier, times);
    uint64_t ns = sum(interval->now, times);

    return count > count_before && ns >= ns_before
               ? (float)((double)(ns - ns_before) / (double)(count - count_before) / NS_PER_US)
               : NAN;
}

static void fill(float values[RING_VALUES])
{
    for (unsigned i = 0; i < RING_VALUES; i++) {
        values[i] = NAN;
    }
}

static void add_rates(const struct interval *interval, float values[RING_VALUES])
{
    static const struct {
        enum instance_column column;
        const char *name;
    } rates[] = {
        {DISK_READ_BYTES, "disk.read_bytes"}, {DISK_WRITTEN_BYTES, "disk.written_bytes"},
        {DISK_READS, "disk.reads"},           {DISK_WRITES, "disk.writes"},
        {NET_RX_BYTES, "net.rx_bytes"},       {NET_TX_BYTES, "net.tx_bytes"},
        {NET_RX_PACKETS, "net.rx_frames"},    {NET_TX_PACKETS, "net.tx_frames"},
    };
    static const char *const exits[] = {"vcpu.pio", "vcpu.mmio", "vcpu.msr", "vcpu.other", NULL};
    static const char *const exit_ns[] = {"vcpu.pio_ns", "vcpu.mmio_ns", "vcpu.msr_ns",
                                          "vcpu.other_ns", NULL};
    static const char *const requests[] = {"disk.reads", "disk.writes", NULL};
    static const char *const request_ns[] = {"disk.read_ns", "disk.write_ns", NULL};
    uint64_t cpus = machine_counter(interval->now, "vcpu.count");
    double per_percent = (double)(cpus > 0 ? cpus : 1) * NS_PER_S / 100;

    for (unsigned i = 0; i < ARRAY_LEN(rates); i++) {
        values[rates[i].column] = rate_of(interval, rates[i].name);
    }
    values[CPU_PERCENT] = rate_of(interval, "vcpu.run_ns") / (float)per_percent;
    values[STEAL_PERCENT] = rate_of(interval, "vcpu.steal_ns") / (float)per_percent;
    values[EXITS] =
        rate(sum(interval->earlier, exits), sum(interval->now, exits), interval->seconds);
    values[EXIT_LATENCY] = latency_of(interval, exits, exit_ns);
    values[DISK_LATENCY] = latency_of(interval, requests, request_ns);
}

void series_of_instance(const struct machine_sample *earlier, const struct machine_sample *now,
                        float values[RING_VALUES])
{
    uint64_t total = machine_counter(now, "guest.total_bytes");
    uint64_t available = machine_counter(now, "guest.available_bytes");

    fill(values);
    values[MEMORY_RESIDENT] = (float)machine_counter(now, "memory.resident_bytes");
    if (total > 0 && available <= total) {
        values[MEMORY_USED] = (float)(total - available);
    }
    /* Another process counts from 0 again. */
    if (earlier != NULL &&
        machine_counter(now, "uptime_ns") >= machine_counter(earlier, "uptime_ns")) {
        const struct interval interval = {
            .earlier = earlier,
            .now = now,
            /* By the monitor's clock, at which it counted. */
            .seconds = (double)(machine_counter(now, "uptime_ns") -
                                machine_counter(earlier, "uptime_ns")) /
                       NS_PER_S,
        };

        add_rates(&interval, values);
    }
}

void series_of_host(const struct host_counters *earlier, const struct host_counters *now,
                    unsigned machines, float values[RING_VALUES])
{
    double seconds, ticks;

    fill(values);
    values[HOST_LOAD] = (float)now->load;
    values[HOST_MEMORY_USED] = (float)(now->memory_bytes - now->available_bytes);
    values[HOST_SPACE_USED] = (float)(now->space_bytes - now->free_bytes);
    values[HOST_MACHINES] = (float)machines;
    values[HOST_DAEMON_MEMORY] = (float)now->own_resident_bytes;
    if (earlier == NULL) {
        return;
    }
    seconds = (double)(now->at_ns - earlier->at_ns) / NS_PER_S;
    /* Of the ticks themselves: a late reading must not make more than all of them. */
    ticks = (double)(now->busy_ticks - earlier->busy_ticks) +
            (double)(now->steal_ticks - earlier->steal_ticks) +
            (double)(now->idle_ticks - earlier->idle_ticks);
    values[HOST_CPU_PERCENT] = rate(earlier->busy_ticks, now->busy_ticks, ticks / 100);
    values[HOST_STEAL_PERCENT] = rate(earlier->steal_ticks, now->steal_ticks, ticks / 100);
    values[HOST_DISK_READ_BYTES] = rate(earlier->disk_read_bytes, now->disk_read_bytes, seconds);
    values[HOST_DISK_WRITTEN_BYTES] =
        rate(earlier->disk_written_bytes, now->disk_written_bytes, seconds);
    values[HOST_NET_RX_BYTES] = rate(earlier->net_rx_bytes, now->net_rx_bytes, seconds);
    values[HOST_NET_TX_BYTES] = rate(earlier->net_tx_bytes, now->net_tx_bytes, seconds);
    values[HOST_DAEMON_CPU] =
        rate(earlier->own_cpu_ns, now->own_cpu_ns, seconds) / (float)(NS_PER_S / 100);
}
