/*
 * What the tests of the control plane share: a daemon in a child, calls that
 * must not fail, and looks at what the host has of it. Whatever is not as it
 * should be ends the process, with a line that says what.
 */
#ifndef CORBEL_TESTS_PLATFORM_H
#define CORBEL_TESTS_PLATFORM_H

#include "compute/compute.h"
#include "store/store.h"

#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#define CHECK(condition, ...)                                                     \
    do {                                                                          \
        if (!(condition)) {                                                       \
            (void)fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            (void)fprintf(stderr, __VA_ARGS__);                                   \
            (void)fputc('\n', stderr);                                            \
            _exit(1);                                                             \
        }                                                                         \
    } while (0)

#define RIG_MAX_STEPS 128

/* How often each step, by its place in compute_steps(), was begun and done. */
struct seen {
    atomic_uint begun[RIG_MAX_STEPS], done[RIG_MAX_STEPS];
};

struct daemon {
    struct store *store;
    struct compute *compute;
    const char *kill_step; /* NULL: none by name */
    bool kill_when_done;
    unsigned kill_at;      /* the how-manieth of that name, from 0 on */
    atomic_int steps_left; /* killed when it reaches 0 */
    struct seen *seen;     /* NULL, or where what it does is counted, in memory shared with it */
};

extern const struct compute_call rig_call;

/* Daemons have all of theirs in `dir`, and the image "tiny", of the kernel and initrd that are in
 * `image`. */
void rig_open(const char *with_vmm, const char *image, const char *dir);
/* Machines' control groups are made in `group`, and seen in the directories given. */
void rig_use_groups(const char *group, const char *group_dirs);
/* Neither a state nor a machine. */
void rig_start_anew(void);
/* In a child: its status, or -1 for one that was killed. */
int rig_run_child(void (*fn)(struct daemon *daemon, void *opaque), struct daemon *daemon,
                  void *opaque);

/* Calls, and the work that they begin; token NULL: none. */
void rig_create(struct daemon *daemon, enum kind kind, const char *token, const char *text);
void rig_act(struct daemon *daemon, const char *action, const char *token, const char *id,
             const char *text);
void rig_change(struct daemon *daemon, enum kind kind, const char *token, const char *id,
                const char *text);
void rig_delete(struct daemon *daemon, enum kind kind, const char *token, const char *id);
void rig_restore(struct daemon *daemon, const char *token, const char *id);
/* Waits for the answer's operation, and checks that it did not fail. Takes the answer. */
void rig_finish(struct daemon *daemon, json_t *answer);
/* Waits until no operation is under way any more. */
void rig_settle(struct daemon *daemon);
/* Those whose field (if not NULL) has the value. The caller's. */
json_t *rig_list(struct daemon *daemon, enum kind kind, const char *field, const char *value);
const char *rig_text(const json_t *object, const char *field); /* "" for none */

/* What the records say, and what the host has: one monitor for each that runs, no more. */
void rig_check_truth(struct daemon *daemon);
/* Each snapshot there is has what it needs, and nothing else is there. */
void rig_check_snapshots(struct daemon *daemon);
void rig_check_empty(struct daemon *daemon);
unsigned rig_count_fds(void);

/* ---- the tests ---- */

/* Every time that a step comes, killed before it and after it; of all these every every-th, from the
 * first on. Of one step only, unless that is NULL. */
void test_steps(unsigned every, unsigned first, const char *only);
void test_random(unsigned operations, unsigned seed);
void test_cycles(unsigned cycles);
void test_parallel(unsigned count);

#endif
