/* Many of one kind: one after another, and at the same time. */
#include "base/thread.h"
#include "platform.h"

#include <stdio.h>

#define MAX_PARALLEL 64

static void run_cycles(struct daemon *daemon, void *opaque)
{
    unsigned cycles = *(unsigned *)opaque, fds = 0;

    for (unsigned i = 0; i < cycles; i++) {
        if (i == 1) {
            fds = rig_count_fds(); /* what the first has opened for good is open */
        }
        rig_create(
            daemon, KIND_INSTANCE, NULL,
            "{\"name\": \"vm\", \"image\": \"tiny\", \"type\": \"micro\", \"engine\": \"soft\","
            " \"memory_mib\": 128}");
        rig_delete(daemon, KIND_INSTANCE, NULL, "vm");
    }
    /* What watched the last machine is closed a moment after it is gone. */
    for (unsigned i = 0; cycles > 1 && i < 1000 && rig_count_fds() > fds; i++) {
        (void)usleep(10000);
    }
    CHECK(cycles < 2 || rig_count_fds() <= fds, "%u descriptors, %u in the beginning",
          rig_count_fds(), fds);
    rig_check_empty(daemon);
}

void test_cycles(unsigned cycles)
{
    struct daemon daemon = {.store = NULL};

    rig_start_anew();
    CHECK(rig_run_child(run_cycles, &daemon, &cycles) == 0, "%u cycles", cycles);
    printf("ok 1 - %u times created and deleted\n1..1\n", cycles);
}

struct creator {
    struct daemon *daemon;
    pthread_t thread;
    unsigned number;
};

static void *create_one(void *opaque)
{
    struct creator *creator = opaque;
    char text[200];

    (void)snprintf(text, sizeof(text),
                   "{\"name\": \"p%u\", \"image\": \"tiny\", \"type\": \"micro\","
                   " \"engine\": \"soft\", \"memory_mib\": 128}",
                   creator->number);
    rig_create(creator->daemon, KIND_INSTANCE, NULL, text);
    return NULL;
}

static void run_parallel(struct daemon *daemon, void *opaque)
{
    unsigned count = *(unsigned *)opaque;
    struct creator creators[MAX_PARALLEL];

    for (unsigned i = 0; i < count; i++) {
        creators[i] = (struct creator){.daemon = daemon, .number = i};
        CHECK(thread_start(&creators[i].thread, "creator", create_one, &creators[i]) == 0, "%u", i);
    }
    for (unsigned i = 0; i < count; i++) {
        (void)pthread_join(creators[i].thread, NULL);
    }
    rig_check_truth(daemon);
    for (unsigned i = 0; i < count; i++) {
        char name[16];

        (void)snprintf(name, sizeof(name), "p%u", i);
        rig_delete(daemon, KIND_INSTANCE, NULL, name);
    }
    rig_check_empty(daemon);
}

void test_parallel(unsigned count)
{
    struct daemon daemon = {.store = NULL};

    CHECK(count <= MAX_PARALLEL, "at most %d", MAX_PARALLEL);
    rig_start_anew();
    CHECK(rig_run_child(run_parallel, &daemon, &count) == 0, "%u at a time", count);
    printf("ok 1 - %u created at a time\n1..1\n", count);
}
