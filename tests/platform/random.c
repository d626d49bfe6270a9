/* Random work, with the daemon killed at random steps of it. */
#include "base/io.h"
#include "platform.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#define MAX_INSTANCES 8 /* at a time */

struct model {
    unsigned seed;
    unsigned done, wanted; /* operations */
    char names[MAX_INSTANCES][16];
    bool is_there[MAX_INSTANCES];
    unsigned next_name, next_token;
    int report_fd;
};

/* What a child was acknowledged: the parent's model follows. */
struct report {
    int slot;
    bool is_there;
    char name[16];
};

static unsigned pick(struct model *model, unsigned n)
{
    model->seed = model->seed * 1103515245u + 12345u;
    return (model->seed >> 16) % n;
}

static void tell(const struct model *model, int slot)
{
    struct report report = {.slot = slot, .is_there = slot >= 0 && model->is_there[slot]};

    if (slot >= 0) {
        memcpy(report.name, model->names[slot], sizeof(report.name));
    }
    CHECK(io_write_full(model->report_fd, &report, sizeof(report)) == 0, "the parent is gone");
}

/* Refusals for its state are as good an answer as any. */
static bool try_act(struct daemon *daemon, struct model *model, const char *name)
{
    static const char *const actions[] = {"start", "stop", "restart", "pause", "resume"};
    const char *action = actions[pick(model, ARRAY_LEN(actions))];
    json_t *parameters = strcmp(action, "stop") == 0 || strcmp(action, "restart") == 0
                             ? json_pack("{s:b}", "force", 1)
                             : NULL;
    json_t *answer = NULL;
    struct fault fault;
    int rc = compute_act(daemon->compute, &rig_call, action, name, parameters, &answer, &fault);

    json_decref(parameters);
    CHECK(rc == 0 || rc == -EBUSY, "%s %s: %s", action, name, fault.text);
    if (rc == 0 && pick(model, 3) == 0) {
        rig_finish(daemon, answer);
    } else {
        json_decref(answer);
    }
    return rc == 0;
}

static void try_create(struct daemon *daemon, struct model *model, int slot)
{
    json_t *answer = NULL, *wanted;
    struct fault fault;
    int rc;

    (void)snprintf(model->names[slot], sizeof(model->names[slot]), "r%u", ++model->next_name);
    wanted = json_pack("{s:s, s:s, s:s, s:s, s:i, s:s}", "name", model->names[slot], "image",
                       "tiny", "type", "micro", "engine", "soft", "memory_mib", 128, "desired",
                       pick(model, 4) == 0 ? "stopped" : "running");
    rc = compute_create(daemon->compute, &rig_call, KIND_INSTANCE, wanted, &answer, &fault);
    CHECK(rc == 0, "%s: %s", model->names[slot], fault.text);
    model->is_there[slot] = true;
    json_decref(wanted);
    json_decref(answer);
}

static void try_delete(struct daemon *daemon, struct model *model, int slot)
{
    json_t *answer = NULL;
    struct fault fault;
    int rc = compute_delete(daemon->compute, &rig_call, KIND_INSTANCE, model->names[slot], &answer,
                            &fault);

    CHECK(rc == 0, "delete %s: %s", model->names[slot], fault.text);
    model->is_there[slot] = false;
    json_decref(answer);
}

/* What was acknowledged is there, and nothing else, but for the call that was under way. */
static void check_model(struct daemon *daemon, struct model *model)
{
    json_t *instances = rig_list(daemon, KIND_INSTANCE, NULL, NULL);
    unsigned unknown = 0, missing = 0;

    for (size_t i = 0; i < json_array_size(instances); i++) {
        const char *name = rig_text(json_array_get(instances, i), "name");
        int slot = -1;

        for (int j = 0; j < MAX_INSTANCES; j++) {
            slot = model->is_there[j] && strcmp(model->names[j], name) == 0 ? j : slot;
        }
        if (slot < 0) {
            unknown++; /* created, and killed before it was told */
            rig_delete(daemon, KIND_INSTANCE, NULL, name);
        }
    }
    for (int j = 0; j < MAX_INSTANCES; j++) {
        json_t *found =
            model->is_there[j] ? rig_list(daemon, KIND_INSTANCE, "name", model->names[j]) : NULL;

        if (model->is_there[j] && json_array_size(found) == 0) {
            missing++; /* deleted, and killed before it was told */
            model->is_there[j] = false;
            tell(model, j);
        }
        CHECK(json_array_size(found) <= 1, "there are two of %s", model->names[j]);
        json_decref(found);
    }
    CHECK(unknown + missing <= 1, "%u that nobody wants, %u that are lost", unknown, missing);
    json_decref(instances);
}

static void run_random(struct daemon *daemon, void *opaque)
{
    struct model *model = opaque;

    rig_settle(daemon);
    check_model(daemon, model);
    rig_check_truth(daemon);
    while (model->done < model->wanted) {
        int slot = (int)pick(model, MAX_INSTANCES);

        if (!model->is_there[slot]) {
            try_create(daemon, model, slot);
        } else if (pick(model, 5) == 0) {
            try_delete(daemon, model, slot);
        } else if (!try_act(daemon, model, model->names[slot])) {
            continue;
        }
        model->done++;
        tell(model, slot);
    }
    rig_settle(daemon);
    rig_check_truth(daemon);
}

static void run_clean(struct daemon *daemon, void *opaque)
{
    struct model *model = opaque;

    rig_settle(daemon);
    check_model(daemon, model);
    for (int i = 0; i < MAX_INSTANCES; i++) {
        if (model->is_there[i]) {
            try_delete(daemon, model, i);
        }
    }
    rig_settle(daemon);
    rig_check_empty(daemon);
}

static void follow(struct model *model, int fd)
{
    struct report report;

    while (io_read_full(fd, &report, sizeof(report)) == (ssize_t)sizeof(report)) {
        unsigned number = (unsigned)strtoul(report.name + 1, NULL, 10);

        model->is_there[report.slot] = report.is_there;
        memcpy(model->names[report.slot], report.name, sizeof(report.name));
        model->next_name = number > model->next_name ? number : model->next_name;
        model->done++;
    }
}

/* One daemon's turn at random work, or at cleaning up. */
static int run_turn(struct model *model, struct daemon *daemon,
                    void (*fn)(struct daemon *daemon, void *opaque))
{
    int fds[2], status;

    CHECK(pipe2(fds, O_CLOEXEC) == 0, "%s", strerror(errno));
    CHECK(fcntl(fds[1], F_SETPIPE_SZ, 1 << 20) > 0, "%s", strerror(errno));
    model->report_fd = fds[1];
    status = rig_run_child(fn, daemon, model);
    (void)close(fds[1]);
    follow(model, fds[0]);
    (void)close(fds[0]);
    return status;
}

void test_random(unsigned operations, unsigned seed)
{
    struct model model = {.seed = seed, .wanted = operations};
    unsigned kills = 0;

    printf("# seed %u\n", seed);
    rig_start_anew();
    while (model.done < operations) {
        struct daemon daemon = {.store = NULL};
        int status;

        atomic_store(&daemon.steps_left, (int)pick(&model, 160) + 4);
        status = run_turn(&model, &daemon, run_random);
        CHECK(status == 0 || status == -1, "status %d after %u operations", status, model.done);
        kills += status == -1;
        model.next_name++; /* one that was not told has this name, perhaps */
    }
    struct daemon last = {.store = NULL};
    CHECK(run_turn(&model, &last, run_clean) == 0, "cleaning up");
    printf("ok 1 - %u random operations, %u kills\n1..1\n", model.done, kills);
}
