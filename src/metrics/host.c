/* What the host's kernel counts, from /proc and /sys. */
#include "base/clock.h"
#include "base/io.h"
#include "metrics/metrics_int.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#define SECTOR_BYTES 512u /* of /sys/block/NAME/stat, whatever the device's */
#define KIB 1024u

static void read_cpus(FILE *file, struct host_counters *host)
{
    uint64_t user = 0, nice = 0, system = 0, idle = 0, wait = 0, irq = 0, soft = 0, steal = 0;

    if (fscanf(file, // NOLINT(cert-err34-c): the kernel's numbers fit
               "cpu %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64
               " %" SCNu64 " %" SCNu64,
               &user, &nice, &system, &idle, &wait, &irq, &soft, &steal) >= 4) {
        host->busy_ticks = user + nice + system + irq + soft;
        host->steal_ticks = steal;
        host->idle_ticks = idle + wait;
    }
}

static void read_memory(FILE *file, struct host_counters *host)
{
    char line[128];
    uint64_t kib;

    while (fgets(line, sizeof(line), file) != NULL) {
        if (sscanf(line, "MemTotal: %" SCNu64, &kib) == 1) { // NOLINT(cert-err34-c)
            host->memory_bytes = kib * KIB;
        } else if (sscanf(line, "MemAvailable: %" SCNu64, &kib) == 1) { // NOLINT(cert-err34-c)
            host->available_bytes = kib * KIB;
            return;
        }
    }
}

static void read_load(FILE *file, struct host_counters *host)
{
    if (fscanf(file, "%lf", &host->load) != 1) { // NOLINT(cert-err34-c)
        host->load = 0;
    }
}

/* utime, stime, start time and sizes: proc(5), counted behind the name. */
static void read_self(FILE *file, struct host_counters *host)
{
    char text[1024];
    size_t n = fread(text, 1, sizeof(text) - 1, file);
    unsigned long long fields[24] = {0};
    char *at;

    text[n] = '\0';
    at = strrchr(text, ')');
    for (unsigned field = 3; at != NULL && field < 25; field++) {
        at = strchr(at + 1, ' ');
        fields[field - 3 < 24 ? field - 3 : 23] = at != NULL ? strtoull(at + 1, NULL, 10) : 0;
    }
    host->own_cpu_ns = (fields[14 - 3] + fields[15 - 3]) * (1000000000ull / host->ticks_per_s);
    host->own_start_s = fields[22 - 3] / host->ticks_per_s;
    host->own_virtual_bytes = fields[23 - 3];
    host->own_resident_bytes = fields[24 - 3] * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void read_with(const char *path, void (*fn)(FILE *file, struct host_counters *host),
                      struct host_counters *host)
{
    FILE *file = fopen(path, "re");

    if (file != NULL) {
        fn(file, host);
        (void)fclose(file); /* only read from */
    }
}

static uint64_t read_sys_number(const char *dir, const char *name, const char *leaf)
{
    char path[300], text[32];
    CLEANUP_CLOSE int fd = -1;
    ssize_t n;

    (void)snprintf(path, sizeof(path), "%s/%.200s/%s", dir, name, leaf);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    n = fd >= 0 ? io_read_full(fd, text, sizeof(text) - 1) : -1;
    if (n <= 0) {
        return 0;
    }
    text[n] = '\0';
    return strtoull(text, NULL, 10);
}

static void add_disk(const char *name, struct host_counters *host)
{
    char path[300];
    FILE *file;
    uint64_t read_sectors = 0, written_sectors = 0;

    (void)snprintf(path, sizeof(path), "/sys/block/%.200s/stat", name);
    file = fopen(path, "re");
    if (file == NULL) {
        return;
    }
    if (fscanf(file, // NOLINT(cert-err34-c)
               "%*s %*s %" SCNu64 " %*s %*s %*s %" SCNu64, &read_sectors, &written_sectors) == 2) {
        host->disk_read_bytes += read_sectors * SECTOR_BYTES;
        host->disk_written_bytes += written_sectors * SECTOR_BYTES;
    }
    (void)fclose(file); /* only read from */
}

static void add_interface(const char *name, struct host_counters *host)
{
    host->net_rx_bytes += read_sys_number("/sys/class/net", name, "statistics/rx_bytes");
    host->net_tx_bytes += read_sys_number("/sys/class/net", name, "statistics/tx_bytes");
}

/* Calls fn for what has a device behind it: a bridge's bytes would count twice. */
static void each_device(const char *dir, void (*fn)(const char *name, struct host_counters *host),
                        struct host_counters *host)
{
    DIR *list = opendir(dir);
    const struct dirent *entry;
    char path[300];

    while (list != NULL && (entry = readdir(list)) != NULL) { // NOLINT(concurrency-mt-unsafe)
        (void)snprintf(path, sizeof(path), "%s/%.200s/device", dir, entry->d_name);
        if (entry->d_name[0] != '.' && access(path, F_OK) == 0) {
            fn(entry->d_name, host);
        }
    }
    if (list != NULL) {
        (void)closedir(list);
    }
}

static unsigned count_fds(void)
{
    DIR *list = opendir("/proc/self/fd");
    unsigned count = 0;

    while (list != NULL && readdir(list) != NULL) { // NOLINT(concurrency-mt-unsafe)
        count++;
    }
    if (list != NULL) {
        (void)closedir(list);
    }
    return count > 3 ? count - 3 : 0; /* ".", ".." and the listing itself */
}

/* The wall clock's time at which the host was started. */
static uint64_t boot_time_s(void)
{
    struct timespec wall, boot;

    if (clock_gettime(CLOCK_REALTIME, &wall) != 0 || clock_gettime(CLOCK_BOOTTIME, &boot) != 0) {
        return 0;
    }
    return (uint64_t)(wall.tv_sec - boot.tv_sec);
}

void host_count(const char *state_dir, struct host_counters *ret_counters)
{
    struct host_counters host = {.at_ns = clock_monotonic_ns(),
                                 .cpus = (unsigned)sysconf(_SC_NPROCESSORS_ONLN),
                                 .ticks_per_s = (uint64_t)sysconf(_SC_CLK_TCK)};
    struct statvfs space;
    struct rlimit limit;

    read_with("/proc/stat", read_cpus, &host);
    read_with("/proc/meminfo", read_memory, &host);
    read_with("/proc/loadavg", read_load, &host);
    read_with("/proc/self/stat", read_self, &host);
    host.own_start_s += boot_time_s();
    each_device("/sys/block", add_disk, &host);
    each_device("/sys/class/net", add_interface, &host);
    if (statvfs(state_dir, &space) == 0) {
        host.space_bytes = (uint64_t)space.f_blocks * space.f_frsize;
        host.free_bytes = (uint64_t)space.f_bavail * space.f_frsize;
    }
    host.own_fds = count_fds();
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        host.own_max_fds = limit.rlim_cur < UINT_MAX ? (unsigned)limit.rlim_cur : UINT_MAX;
    }
    *ret_counters = host;
}
