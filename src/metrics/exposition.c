/*
 * metrics_expose(): the text format of Prometheus, version 0.0.4.
 *
 * Series of an instance have the labels id, name and project (a name). There
 * is no label "instance": Prometheus gives that one itself, to what it scrapes.
 */
#include "base/latency.h"
#include "metrics/metrics_int.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define NS_PER_S 1e9
#define BYTES_PER_MIB 1048576.0
#define MAX_SOURCES 4

struct exposure {
    FILE *out;
    const struct machine_samples *samples;
    json_t *projects; /* names by id */
};

/* A family that is made of counters of machines, in the table's unit. */
struct family {
    const char *name, *type, *help;
    bool is_ns; /* told in seconds */
    struct {
        const char *counter, *label;
    } sources[MAX_SOURCES];
};

static const struct family families[] = {
    {"corbel_instance_uptime_seconds",
     "gauge",
     "Time since the machine was started.",
     true,
     {{"uptime_ns", NULL}}},
    {"corbel_instance_resets_total", "counter", "Resets since then.", false, {{"resets", NULL}}},
    {"corbel_instance_memory_configured_bytes",
     "gauge",
     "Memory that the guest has.",
     false,
     {{"memory.configured_bytes", NULL}}},
    {"corbel_instance_memory_resident_bytes",
     "gauge",
     "Memory of the host that the guest's takes now.",
     false,
     {{"memory.resident_bytes", NULL}}},
    {"corbel_instance_balloon_bytes",
     "gauge",
     "Memory that the guest has given up to its balloon.",
     false,
     {{"balloon.actual_bytes", NULL}}},
    {"corbel_instance_guest_memory_bytes",
     "gauge",
     "Memory as the guest itself sees it.",
     false,
     {{"guest.total_bytes", "kind=\"total\""},
      {"guest.free_bytes", "kind=\"free\""},
      {"guest.available_bytes", "kind=\"available\""},
      {"guest.cache_bytes", "kind=\"cache\""}}},
    {"corbel_instance_guest_swap_bytes_total",
     "counter",
     "What the guest swapped.",
     false,
     {{"guest.swapped_in_bytes", "direction=\"in\""},
      {"guest.swapped_out_bytes", "direction=\"out\""}}},
    {"corbel_instance_guest_page_faults_total",
     "counter",
     "Page faults inside the guest.",
     false,
     {{"guest.major_faults", "kind=\"major\""}, {"guest.minor_faults", "kind=\"minor\""}}},
    {"corbel_instance_disk_bytes_total",
     "counter",
     "Bytes read from and written to all disks.",
     false,
     {{"disk.read_bytes", "operation=\"read\""}, {"disk.written_bytes", "operation=\"write\""}}},
    {"corbel_instance_disk_operations_total",
     "counter",
     "Requests to all disks.",
     false,
     {{"disk.reads", "operation=\"read\""},
      {"disk.writes", "operation=\"write\""},
      {"disk.flushes", "operation=\"flush\""}}},
    {"corbel_instance_disk_errors_total",
     "counter",
     "Requests that failed.",
     false,
     {{"disk.errors", NULL}}},
    {"corbel_instance_disk_throttled_total",
     "counter",
     "Requests that waited for a limit.",
     false,
     {{"disk.throttled", NULL}}},
    {"corbel_instance_network_bytes_total",
     "counter",
     "Bytes through the network card.",
     false,
     {{"net.rx_bytes", "direction=\"receive\""}, {"net.tx_bytes", "direction=\"transmit\""}}},
    {"corbel_instance_network_packets_total",
     "counter",
     "Packets through the network card.",
     false,
     {{"net.rx_frames", "direction=\"receive\""}, {"net.tx_frames", "direction=\"transmit\""}}},
    {"corbel_instance_network_dropped_total",
     "counter",
     "Packets that were lost.",
     false,
     {{"net.rx_dropped", "direction=\"receive\""}, {"net.tx_dropped", "direction=\"transmit\""}}},
    {"corbel_instance_serial_bytes_total",
     "counter",
     "Bytes through the serial console.",
     false,
     {{"serial.in_bytes", "direction=\"receive\""},
      {"serial.out_bytes", "direction=\"transmit\""}}},
    {"corbel_instance_exits_total",
     "counter",
     "Exits from guest code to the monitor.",
     false,
     {{"vcpu.pio", "kind=\"pio\""},
      {"vcpu.mmio", "kind=\"mmio\""},
      {"vcpu.msr", "kind=\"msr\""},
      {"vcpu.other", "kind=\"other\""}}},
};

static const struct family vcpu_families[] = {
    {"corbel_instance_vcpu_guest_seconds_total",
     "counter",
     "CPU time of the thread that runs the guest's code.",
     true,
     {{"guest_ns", NULL}}},
    {"corbel_instance_vcpu_seconds_total",
     "counter",
     "CPU time, with what answering its exits took.",
     true,
     {{"run_ns", NULL}}},
    {"corbel_instance_vcpu_steal_seconds_total",
     "counter",
     "Time for which it could have run, and the host ran something else.",
     true,
     {{"steal_ns", NULL}}},
};

static void begin_family(FILE *out, const char *name, const char *type, const char *help)
{
    (void)fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* A label's value: names have no such characters now, but a broken line would cost all others. */
static void put_label(FILE *out, const char *name, const char *value)
{
    (void)fprintf(out, "%s=\"", name);
    for (; value != NULL && *value != '\0'; value++) {
        if (*value == '\\' || *value == '"') {
            (void)fputc('\\', out);
        }
        (void)fputc(*value == '\n' ? ' ' : *value, out);
    }
    (void)fputc('"', out);
}

/* NAME{id=...,name=...,project=..., without what closes it. */
static void begin_line(const struct exposure *exposure, const char *name,
                       const struct machine_sample *sample)
{
    FILE *out = exposure->out;
    const char *project = json_string_value(json_object_get(sample->instance, "project"));
    const char *known =
        project != NULL ? json_string_value(json_object_get(exposure->projects, project)) : NULL;

    (void)fprintf(out, "%s{", name);
    put_label(out, "id", json_string_value(json_object_get(sample->instance, "id")));
    (void)fputc(',', out);
    put_label(out, "name", json_string_value(json_object_get(sample->instance, "name")));
    (void)fputc(',', out);
    put_label(out, "project", known != NULL ? known : project);
}

static void end_line(FILE *out, json_int_t value, bool is_ns)
{
    if (is_ns) {
        (void)fprintf(out, "} %.9f\n", (double)value / NS_PER_S);
    } else {
        (void)fprintf(out, "} %" JSON_INTEGER_FORMAT "\n", value);
    }
}

static void expose_counters(const struct exposure *exposure, const struct family *family,
                            const struct machine_sample *sample, const json_t *counters,
                            const char *more)
{
    for (unsigned i = 0; i < MAX_SOURCES && family->sources[i].counter != NULL; i++) {
        const json_t *value = json_object_get(counters, family->sources[i].counter);

        if (value == NULL) {
            continue; /* it has no such device, or its guest does not tell */
        }
        begin_line(exposure, family->name, sample);
        if (more != NULL) {
            (void)fprintf(exposure->out, ",%s", more);
        }
        if (family->sources[i].label != NULL) {
            (void)fprintf(exposure->out, ",%s", family->sources[i].label);
        }
        end_line(exposure->out, json_integer_value(value), family->is_ns);
    }
}

static void expose_families(const struct exposure *exposure)
{
    for (size_t i = 0; i < ARRAY_LEN(families); i++) {
        begin_family(exposure->out, families[i].name, families[i].type, families[i].help);
        for (unsigned k = 0; k < exposure->samples->count; k++) {
            const struct machine_sample *sample = &exposure->samples->items[k];

            expose_counters(exposure, &families[i], sample,
                            json_object_get(sample->answer, "statistics"), NULL);
        }
    }
}

static void expose_vcpus(const struct exposure *exposure)
{
    for (size_t i = 0; i < ARRAY_LEN(vcpu_families); i++) {
        const struct family *family = &vcpu_families[i];

        begin_family(exposure->out, family->name, family->type, family->help);
        for (unsigned k = 0; k < exposure->samples->count; k++) {
            const struct machine_sample *sample = &exposure->samples->items[k];
            const json_t *cpus = json_object_get(sample->answer, "vcpus");

            for (size_t cpu = 0; cpu < json_array_size(cpus); cpu++) {
                const json_t *counters = json_array_get(cpus, cpu);
                char label[48];

                (void)snprintf(label, sizeof(label), "vcpu=\"%" JSON_INTEGER_FORMAT "\"",
                               json_integer_value(json_object_get(counters, "index")));
                expose_counters(exposure, family, sample, counters, label);
            }
        }
    }
}

static void expose_histogram(const struct exposure *exposure, const char *name, const char *label,
                             const struct machine_sample *sample, const json_t *latency)
{
    const json_t *counts = json_object_get(latency, "counts");
    char full[96];
    json_int_t total = 0;

    for (size_t class = 0; class < json_array_size(counts); class ++) {
        bool is_last = class + 1 == json_array_size(counts);

        total += json_integer_value(json_array_get(counts, class));
        (void)snprintf(full, sizeof(full), "%s_bucket", name);
        begin_line(exposure, full, sample);
        if (is_last) {
            (void)fprintf(exposure->out, ",%s,le=\"+Inf\"", label);
        } else {
            (void)fprintf(exposure->out, ",%s,le=\"%.9g\"", label,
                          (double)latency_bound_ns((unsigned)class) / NS_PER_S);
        }
        end_line(exposure->out, total, false);
    }
    (void)snprintf(full, sizeof(full), "%s_sum", name);
    begin_line(exposure, full, sample);
    (void)fprintf(exposure->out, ",%s", label);
    end_line(exposure->out, json_integer_value(json_object_get(latency, "sum_ns")), true);
    (void)snprintf(full, sizeof(full), "%s_count", name);
    begin_line(exposure, full, sample);
    (void)fprintf(exposure->out, ",%s", label);
    end_line(exposure->out, total, false);
}

static void expose_latencies(const struct exposure *exposure, const char *group, const char *name,
                             const char *label, const char *help)
{
    size_t len = strlen(group);

    begin_family(exposure->out, name, "histogram", help);
    for (unsigned i = 0; i < exposure->samples->count; i++) {
        const struct machine_sample *sample = &exposure->samples->items[i];
        json_t *latencies = json_object_get(sample->answer, "latencies");
        const char *key;
        json_t *latency;

        json_object_foreach(latencies, key, latency)
        {
            char text[64];

            if (strncmp(key, group, len) == 0 && key[len] == '.' &&
                json_array_size(json_object_get(latency, "counts")) == LATENCY_CLASSES) {
                (void)snprintf(text, sizeof(text), "%s=\"%.32s\"", label, key + len + 1);
                expose_histogram(exposure, name, text, sample, latency);
            }
        }
    }
}

static void expose_up(const struct exposure *exposure)
{
    begin_family(exposure->out, "corbel_instance_up", "gauge",
                 "1 for a machine whose monitor answered.");
    for (unsigned i = 0; i < exposure->samples->count; i++) {
        const struct machine_sample *sample = &exposure->samples->items[i];
        const char *engine = json_string_value(json_object_get(sample->instance, "engine_used"));

        begin_line(exposure, "corbel_instance_up", sample);
        (void)fputc(',', exposure->out);
        put_label(exposure->out, "engine", engine);
        end_line(exposure->out, sample->answer != NULL, false);
    }
}

static void expose_credits(const struct exposure *exposure)
{
    begin_family(exposure->out, "corbel_instance_cpu_credits_seconds", "gauge",
                 "CPU time that it may use above its baseline.");
    for (unsigned i = 0; i < exposure->samples->count; i++) {
        const struct machine_sample *sample = &exposure->samples->items[i];
        const json_t *credits = json_object_get(sample->instance, "cpu_credits");

        if (credits != NULL) {
            begin_line(exposure, "corbel_instance_cpu_credits_seconds", sample);
            end_line(exposure->out, (uint64_t)json_integer_value(credits), false);
        }
    }
}

/* ---- host and daemon ---- */

static void put(FILE *out, const char *name, const char *type, const char *help, double value)
{
    begin_family(out, name, type, help);
    (void)fprintf(out, "%s %.17g\n", name, value);
}

static void expose_host(FILE *out, const struct host_counters *host)
{
    const double ticks = (double)host->ticks_per_s;

    put(out, "corbel_host_cpus", "gauge", "CPUs of the host.", host->cpus);
    begin_family(out, "corbel_host_cpu_seconds_total", "counter", "CPU time of the host.");
    (void)fprintf(out, "corbel_host_cpu_seconds_total{mode=\"busy\"} %.2f\n",
                  (double)host->busy_ticks / ticks);
    (void)fprintf(out, "corbel_host_cpu_seconds_total{mode=\"steal\"} %.2f\n",
                  (double)host->steal_ticks / ticks);
    (void)fprintf(out, "corbel_host_cpu_seconds_total{mode=\"idle\"} %.2f\n",
                  (double)host->idle_ticks / ticks);
    put(out, "corbel_host_load1", "gauge", "Processes that run or wait, over a minute.",
        host->load);
    put(out, "corbel_host_memory_bytes", "gauge", "Memory of the host.",
        (double)host->memory_bytes);
    put(out, "corbel_host_memory_available_bytes", "gauge", "Memory that processes can have.",
        (double)host->available_bytes);
    put(out, "corbel_host_disk_read_bytes_total", "counter", "Read from all disks.",
        (double)host->disk_read_bytes);
    put(out, "corbel_host_disk_written_bytes_total", "counter", "Written to all disks.",
        (double)host->disk_written_bytes);
    put(out, "corbel_host_network_receive_bytes_total", "counter", "By all network cards.",
        (double)host->net_rx_bytes);
    put(out, "corbel_host_network_transmit_bytes_total", "counter", "By all network cards.",
        (double)host->net_tx_bytes);
    put(out, "corbel_host_state_size_bytes", "gauge", "The file system that holds the state.",
        (double)host->space_bytes);
    put(out, "corbel_host_state_free_bytes", "gauge", "What is free there.",
        (double)host->free_bytes);
}

static double member(const json_t *object, const char *name, const char *part)
{
    return json_number_value(json_object_get(json_object_get(object, name), part));
}

static void expose_capacity(FILE *out, struct compute *compute)
{
    json_t *host = NULL;
    struct fault fault;

    if (compute_host(compute, NULL, &host, &fault) < 0) {
        return; /* the rest is worth having */
    }
    put(out, "corbel_host_allocatable_cpus", "gauge", "Virtual CPUs that can be given away.",
        member(host, "cpus", "total"));
    put(out, "corbel_host_allocated_cpus", "gauge", "Virtual CPUs of running instances.",
        member(host, "cpus", "used"));
    put(out, "corbel_host_allocatable_memory_bytes", "gauge", "Memory that can be given away.",
        member(host, "memory_mib", "total") * BYTES_PER_MIB);
    put(out, "corbel_host_allocated_memory_bytes", "gauge", "Memory of running instances.",
        member(host, "memory_mib", "used") * BYTES_PER_MIB);
    put(out, "corbel_instances", "gauge", "Instances that there are.",
        member(host, "instances", "total"));
    put(out, "corbel_instances_running", "gauge", "Instances that run.",
        member(host, "instances", "running"));
    json_decref(host);
}

/* By the names that every exporter gives them. */
static void expose_process(FILE *out, const struct host_counters *host)
{
    begin_family(out, "corbel_build_info", "gauge", "1, with the daemon's version.");
    (void)fputs("corbel_build_info{version=\"" CORBEL_VERSION "\"} 1\n", out);
    put(out, "process_cpu_seconds_total", "counter", "CPU time of the daemon.",
        (double)host->own_cpu_ns / NS_PER_S);
    put(out, "process_resident_memory_bytes", "gauge", "Resident memory of the daemon.",
        (double)host->own_resident_bytes);
    put(out, "process_virtual_memory_bytes", "gauge", "Virtual memory of the daemon.",
        (double)host->own_virtual_bytes);
    put(out, "process_start_time_seconds", "gauge", "When the daemon was started, since 1970.",
        (double)host->own_start_s);
    put(out, "process_open_fds", "gauge", "Descriptors that the daemon has open.", host->own_fds);
    put(out, "process_max_fds", "gauge", "Descriptors that it may have open.", host->own_max_fds);
}

static int list_projects(struct compute *compute, json_t **ret_names, struct fault *fault)
{
    const struct compute_call call = {.actor = "metrics"};
    const struct compute_list list = {.limit = COMPUTE_MAX_PAGE};
    json_t *page = NULL;
    json_t *names;
    size_t i;
    json_t *item;
    int rc = compute_list(compute, &call, KIND_PROJECT, &list, &page, fault);

    if (rc < 0) {
        return rc;
    }
    names = json_object();
    json_array_foreach(json_object_get(page, "items"), i, item)
    {
        (void)json_object_set(names, json_string_value(json_object_get(item, "id")),
                              json_object_get(item, "name"));
    }
    json_decref(page);
    *ret_names = names;
    return 0;
}

static void expose_all(struct metrics *metrics, const struct exposure *exposure, bool with_host)
{
    expose_up(exposure);
    expose_credits(exposure);
    expose_vcpus(exposure);
    expose_families(exposure);
    expose_latencies(exposure, "disk", "corbel_instance_disk_latency_seconds", "operation",
                     "What requests to disks took.");
    expose_latencies(exposure, "exit", "corbel_instance_exit_latency_seconds", "kind",
                     "What answering exits took.");
    if (with_host) {
        struct host_counters host;

        host_count(metrics->state_dir, &host);
        expose_host(exposure->out, &host);
        expose_capacity(exposure->out, metrics->config.compute);
        expose_process(exposure->out, &host);
    }
}

int metrics_expose(struct metrics *metrics, const char *project, char **ret_text,
                   struct fault *fault)
{
    struct machine_samples samples = {.items = NULL};
    struct exposure exposure = {.samples = &samples};
    char *text = NULL;
    size_t size = 0;
    int rc = list_projects(metrics->config.compute, &exposure.projects, fault);

    if (rc == 0) {
        mutex_lock(&metrics->scrapes);
        rc = machines_ask(metrics->config.compute, project, &samples, fault);
        mutex_unlock(&metrics->scrapes);
    }
    exposure.out = rc == 0 ? open_memstream(&text, &size) : NULL;
    if (exposure.out != NULL) {
        expose_all(metrics, &exposure, project == NULL);
        if (fclose(exposure.out) != 0) {
            free(text);
            text = NULL;
        }
    }
    if (rc == 0 && text == NULL) {
        rc = fault_set(fault, FAULT_INTERNAL, NULL, "out of memory");
    }
    machines_done(&samples);
    json_decref(exposure.projects);
    if (rc == 0) {
        *ret_text = text;
    }
    return rc;
}
