/* The daemon killed before and after each of its steps. */
#include "platform.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

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
    rig_create(daemon, KIND_NIC, "n1", "{\"name\": \"card\"}");
    rig_change(daemon, KIND_INSTANCE, "n2", "vm", "{\"nic\": \"card\"}");
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
    rig_delete(daemon, KIND_NIC, "n3", "card");
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

/* What the whole of the work passes, undisturbed: nothing may be missing. */
static void look_at_steps(struct seen *seen, const char *const *steps, unsigned count)
{
    struct daemon daemon = {.seen = seen};
    unsigned moments = 0;

    CHECK(count <= RIG_MAX_STEPS, "%u steps", count);
    for (unsigned i = 0; i < count; i++) {
        CHECK(steps[i] != NULL, "step %u has no name", i);
    }
    rig_start_anew();
    CHECK(rig_run_child(run_scenario_again, &daemon, NULL) == 0, "without any kill");
    for (unsigned i = 0; i < count; i++) {
        CHECK(seen->begun[i] > 0 && seen->done[i] > 0, "no step \"%s\" comes", steps[i]);
        moments += seen->begun[i] + seen->done[i];
    }
    printf("ok 1 - each of %u steps comes, %u moments in all\n", count, moments);
    (void)fflush(stdout);
}

/*
 * Killed at one moment, and gone on with; false when the moment did not come. The first of its name
 * always does; later ones are not the same in number each time, where work is looked at again.
 */
static bool try_kill(struct daemon *killed, const char *when)
{
    struct daemon next = {.store = NULL};
    int status;

    memset(killed->seen, 0, sizeof(*killed->seen));
    rig_start_anew();
    status = rig_run_child(run_scenario, killed, NULL);
    CHECK(status == -1 || (status == 0 && killed->kill_at > 0),
          "step \"%s\" did not come for the %u. time (status %d)", killed->kill_step,
          killed->kill_at + 1, status);
    if (status == 0) {
        return false;
    }
    status = rig_run_child(run_scenario_again, &next, NULL);
    CHECK(status == 0, "after a kill %s \"%s\" %u", when, killed->kill_step, killed->kill_at + 1);
    return true;
}

void test_steps(unsigned every, unsigned first, const char *only)
{
    struct seen *seen =
        mmap(NULL, 2 * sizeof(*seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    unsigned count, tried = 1, number = 0;
    const char *const *steps = compute_steps(&count);

    CHECK(seen != MAP_FAILED, "%s", strerror(errno));
    look_at_steps(&seen[0], steps, count);
    for (unsigned i = 0; i < 2 * count; i++) {
        bool is_after = i % 2 == 1;
        const char *when = is_after ? "after" : "before";
        unsigned times = is_after ? seen[0].done[i / 2] : seen[0].begun[i / 2];

        times = only == NULL || strcmp(only, steps[i / 2]) == 0 ? times : 0;
        for (unsigned at = 0; at < times; at++) {
            struct daemon killed = {.kill_step = steps[i / 2],
                                    .kill_when_done = is_after,
                                    .kill_at = at,
                                    .seen = &seen[1]};

            if ((number++ + first) % every == 0) {
                const char *skipped = try_kill(&killed, when) ? "" : " # SKIP not this time";

                printf("ok %u - killed %s %s %u%s\n", ++tried, when, steps[i / 2], at + 1, skipped);
                (void)fflush(stdout);
            }
        }
    }
    printf("1..%u\n", tried);
    (void)munmap(seen, 2 * sizeof(*seen));
}
