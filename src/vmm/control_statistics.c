#include "vmm/control_statistics.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static void set_number(json_t *object, const char *key, uint64_t value)
{
    (void)json_object_set_new(object, key, json_integer((json_int_t)value));
}

static json_t *cpu_object(const struct machine_cpu_stats *cpu, unsigned index)
{
    json_t *object = json_object();
    json_t *exits = json_object();

    set_number(object, "index", index);
    set_number(object, "guest_ns", cpu->guest_ns);
    set_number(object, "run_ns", cpu->run_ns);
    set_number(object, "steal_ns", cpu->steal_ns);
    set_number(object, "halted_ns", cpu->halted_ns);
    set_number(object, "halts", cpu->halts);
    for (unsigned kind = 0; kind < MACHINE_EXIT_KINDS; kind++) {
        set_number(exits, machine_exit_kind_name((enum machine_exit_kind)kind), cpu->exits[kind]);
    }
    (void)json_object_set_new(object, "exits", exits);
    return object;
}

static void add_latency(json_t *latencies, const char *group, const char *name,
                        const struct latency_sum *sum)
{
    json_t *object = json_object();
    json_t *counts = json_array();
    char key[32];

    set_number(object, "sum_ns", sum->sum_ns);
    for (unsigned i = 0; i < LATENCY_CLASSES; i++) {
        (void)json_array_append_new(counts, json_integer((json_int_t)sum->counts[i]));
    }
    (void)json_object_set_new(object, "counts", counts);
    (void)snprintf(key, sizeof(key), "%s.%s", group, name);
    (void)json_object_set_new(latencies, key, object);
}

static json_t *latencies_object(const struct machine_counters *counters)
{
    static const char *const ops[] = {
        [BLOCK_READ] = "read", [BLOCK_WRITE] = "write", [BLOCK_FLUSH] = "flush"};
    json_t *object = json_object();

    for (unsigned kind = 0; kind < MACHINE_EXIT_KINDS; kind++) {
        add_latency(object, "exit", machine_exit_kind_name((enum machine_exit_kind)kind),
                    &counters->exits[kind]);
    }
    for (unsigned op = 0; counters->has_disk && op < ARRAY_LEN(ops); op++) {
        if (ops[op] != NULL) {
            add_latency(object, "disk", ops[op], &counters->disk[op]);
        }
    }
    return object;
}

int control_statistics(struct machine *machine, const json_t *request, json_t *answer)
{
    struct machine_counters *counters = malloc(sizeof(*counters));
    json_t *statistics = json_object();
    json_t *cpus = json_array();

    if (counters == NULL) {
        json_decref(statistics);
        json_decref(cpus);
        return -ENOMEM;
    }
    machine_count(machine, !json_is_false(json_object_get(request, "engine")), counters);
    for (unsigned i = 0; i < counters->count; i++) {
        set_number(statistics, counters->stats[i].name, counters->stats[i].value);
    }
    for (unsigned i = 0; i < counters->cpu_count; i++) {
        if (counters->cpus[i].is_present) {
            (void)json_array_append_new(cpus, cpu_object(&counters->cpus[i], i));
        }
    }
    (void)json_object_set_new(answer, "statistics", statistics);
    (void)json_object_set_new(answer, "vcpus", cpus);
    (void)json_object_set_new(answer, "latencies", latencies_object(counters));
    free(counters);
    return 0;
}
