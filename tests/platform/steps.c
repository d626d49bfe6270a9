/* The daemon killed before and after each of its steps. */
#include "platform.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

/* Work that passes every step. Each call has a token, so that all of it may be done again. */
static void scenario(struct daemon *daemon)
{
    static const char stop[] = "{\"timeout_s\": 20}";
    json_t *instances;

    rig_create(daemon, KIND_VOLUME, "t1", "{\"name\": \"data\", \"size_gib\": 1}");
    rig_create(
        daemon, KIND_INSTANCE, "t2",
        "{\"name\": \"vm\", \"image\": \"tiny\", \"type\": \"micro\", \"engine\": \"soft\","
        " \"memory_mib\": 128, \"max_cpus\": 2, \"volumes\": [\"data\"], \"user_data\": \"#!/bin/sh\"}");
    rig_create(
        daemon, KIND_INSTANCE, "t3",
        "{\"name\": \"off\", \"image\": \"tiny\", \"type\": \"micro\", \"desired\": \"stopped\"}");
    rig_change(daemon, KIND_INSTANCE, "t14", "vm",
               "{\"cpu_weight\": 50, \"cpu_cap_percent\": 90, \"pinned_cpus\": \"0\"}");
    rig_change(daemon, KIND_INSTANCE, "t15", "vm",
               "{\"forwards\": [{\"host_port\": 0, \"guest_port\": 80}]}");
    rig_act(daemon, "pause", "t4", "vm", NULL);
    rig_create(daemon, KIND_SNAPSHOT, "s1", "{\"name\": \"live\", \"instance\": \"vm\"}");
    rig_create(daemon, KIND_SNAPSHOT, "s2", "{\"name\": \"live-data\", \"volume\": \"data\"}");
    rig_act(daemon, "resume", "t5", "vm", NULL);
    rig_change(daemon, KIND_INSTANCE, "r1", "vm", "{\"cpus\": 2, \"volumes\": []}");
    rig_change(daemon, KIND_INSTANCE, "r2", "vm", "{\"memory_mib\": 160, \"volumes\": [\"data\"]}");
    rig_act(daemon, "restart", "t6", "vm", stop);
    rig_act(daemon, "stop", "t7", "vm", stop);
    rig_create(daemon, KIND_SNAPSHOT, "s3", "{\"name\": \"off\", \"instance\": \"vm\"}");
    rig_restore(daemon, "s4", "live");
    rig_restore(daemon, "s5", "live-data");
    rig_create(daemon, KIND_INSTANCE, "s6",
               "{\"name\": \"copy\", \"snapshot\": \"live\", \"type\": \"micro\","
               " \"desired\": \"stopped\"}");
    rig_create(daemon, KIND_VOLUME, "s7", "{\"name\": \"copied\", \"snapshot\": \"live-data\"}");
    rig_create(daemon, KIND_SNAPSHOT, "s8", "{\"name\": \"rest\", \"volume\": \"copied\"}");
    rig_delete(daemon, KIND_SNAPSHOT, "s9", "off");
    rig_delete(daemon, KIND_VOLUME, "s10", "copied");
    rig_change(daemon, KIND_INSTANCE, "t8", "vm", "{\"volumes\": []}");
    rig_change(daemon, KIND_VOLUME, "t9", "data", "{\"size_gib\": 2}");
    rig_act(daemon, "start", "t10", "vm", NULL);
    instances = rig_list(daemon, KIND_INSTANCE, "name", "vm");
    CHECK(json_array_size(instances) <= 1, "there are two of one token");
    if (json_array_size(instances) == 1) {
        pid_t pid = (pid_t)json_integer_value(json_object_get(json_array_get(instances, 0), "pid"));

        rig_check_truth(daemon);
        rig_check_snapshots(daemon);
        /* One that does not answer is killed by its number. */
        if (pid > 0 && strcmp(rig_text(json_array_get(instances, 0), "state"), "running") == 0) {
            (void)kill(pid, SIGSTOP);
        }
    }
    json_decref(instances);
    rig_delete(daemon, KIND_SNAPSHOT, "s11", "live");
    rig_delete(daemon, KIND_SNAPSHOT, "s12", "live-data");
    rig_delete(daemon, KIND_SNAPSHOT, "s13", "rest");
    rig_delete(daemon, KIND_INSTANCE, "s14", "copy");
    rig_delete(daemon, KIND_INSTANCE, "t11", "vm");
    rig_delete(daemon, KIND_INSTANCE, "t12", "off");
    rig_delete(daemon, KIND_VOLUME, "t13", "data");
}

static void run_scenario(struct daemon *daemon, void *opaque)
{
    (void)opaque;
    scenario(daemon);
}

static void run_scenario_again(struct daemon *daemon, void *opaque)
{
    (void)opaque;
    rig_settle(daemon);
    rig_check_truth(daemon);
    scenario(daemon);
    rig_check_empty(daemon);
}

/* Every step, killed before it and after it; every-th of all these. */
void test_steps(unsigned every, unsigned first)
{
    unsigned count, tried = 0, number = 0;
    const char *const *steps = compute_steps(&count);

    for (unsigned i = 0; i < 2 * count; i++) {
        struct daemon killed = {.kill_step = steps[i / 2], .kill_when_done = i % 2 == 1};
        struct daemon next = {.store = NULL};
        int status;

        if ((i + first) % every != 0) {
            continue;
        }
        rig_start_anew();
        status = rig_run_child(run_scenario, &killed, NULL);
        CHECK(status == -1, "no step \"%s\" was reached (status %d)", steps[i / 2], status);
        status = rig_run_child(run_scenario_again, &next, NULL);
        CHECK(status == 0, "after a kill %s \"%s\"", i % 2 == 1 ? "after" : "before", steps[i / 2]);
        printf("ok %u - killed %s %s\n", ++number, i % 2 == 1 ? "after" : "before", steps[i / 2]);
        (void)fflush(stdout);
        tried++;
    }
    printf("1..%u\n", tried);
}
