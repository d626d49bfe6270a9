/*
 * The reconciler of instances: one look at what is wanted and what is there,
 * one thing done about it, and another look.
 *
 * What it does is fit to be done again: a daemon that was ended at any point
 * goes on here with what it finds. What it has found out is noted (in the
 * store) before what it knows it from goes.
 */
#include "base/clock.h"
#include "compute/agent.h"
#include "compute/credits.h"
#include "compute/limits.h"
#include "compute/seed.h"

#include "base/log.h"
#include "base/path.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <time.h>

#define MAX_ROUNDS 50
#define UNSURE_NS 20000000ull   /* a monitor that is just beginning, or just gone */
#define MOMENT_NS 1000000000ull /* what ends by itself has ended by then; again each so long */
#define FORCE_S 10              /* how long a monitor may take to end at once */
#define STEADY_S 60             /* who ran that long is not failing again and again */
#define RESTART_MAX_S 60u

static const char *const step_names[STEP_COUNT] = {
    [STEP_MAKE_DIRECTORY] = "make-directory",
    [STEP_LINK_IMAGE] = "link-image",
    [STEP_CREATE_DISK] = "create-disk",
    [STEP_PUBLISH_DIRECTORY] = "publish-directory",
    [STEP_NOTE_STOPPED] = "note-stopped",
    [STEP_NOTE_STARTING] = "note-starting",
    [STEP_MAKE_RUNTIME] = "make-runtime",
    [STEP_WRITE_SEED] = "write-seed",
    [STEP_WRITE_CONFIG] = "write-config",
    [STEP_MAKE_CGROUP] = "make-cgroup",
    [STEP_LAUNCH] = "launch",
    [STEP_RECORD_MONITOR] = "record-monitor",
    [STEP_ENTER_CGROUP] = "enter-cgroup",
    [STEP_AWAIT_READY] = "await-ready",
    [STEP_NOTE_RUNNING] = "note-running",
    [STEP_APPLY_LIMITS] = "apply-limits",
    [STEP_NOTE_LIMITS] = "note-limits",
    [STEP_OPEN_FORWARDS] = "open-forwards",
    [STEP_NOTE_FORWARDS] = "note-forwards",
    [STEP_PAUSE] = "pause",
    [STEP_NOTE_PAUSED] = "note-paused",
    [STEP_RESUME] = "resume",
    [STEP_NOTE_RESUMED] = "note-resumed",
    [STEP_NOTE_STOPPING] = "note-stopping",
    [STEP_ASK_END] = "ask-end",
    [STEP_PULL_PLUG] = "pull-plug",
    [STEP_KILL] = "kill",
    [STEP_NOTE_ENDED] = "note-ended",
    [STEP_REMOVE_CGROUP] = "remove-cgroup",
    [STEP_CLEAR_RUNTIME] = "clear-runtime",
    [STEP_REMOVE_DIRECTORY] = "remove-directory",
    [STEP_FORGET] = "forget",
    [STEP_CREATE_VOLUME] = "create-volume",
    [STEP_RESIZE_VOLUME] = "resize-volume",
    [STEP_NOTE_VOLUME] = "note-volume",
    [STEP_DELETE_VOLUME] = "delete-volume",
    [STEP_FORGET_VOLUME] = "forget-volume",
    [STEP_DROP_VOLUME] = "drop-volume",
    [STEP_SWITCH_DISK] = "switch-disk",
    [STEP_LINK_SNAPSHOT] = "link-snapshot",
    [STEP_PUBLISH_SNAPSHOT] = "publish-snapshot",
    [STEP_RESERVE_LAYER] = "reserve-layer",
    [STEP_SWITCH_VOLUME] = "switch-volume",
    [STEP_SNAPSHOT_VOLUME] = "snapshot-volume",
    [STEP_NOTE_SNAPSHOT] = "note-snapshot",
    [STEP_RESTORE_DISK] = "restore-disk",
    [STEP_RESTORE_VOLUME] = "restore-volume",
    [STEP_NOTE_RESTORED] = "note-restored",
    [STEP_TIDY_DISK] = "tidy-disk",
    [STEP_NOTE_TIDY] = "note-tidy",
    [STEP_RESIZE] = "resize",
    [STEP_PLUG_VOLUME] = "plug-volume",
    [STEP_UNPLUG_VOLUME] = "unplug-volume",
    [STEP_NOTE_RESIZED] = "note-resized",
    [STEP_DELETE_SNAPSHOT] = "delete-snapshot",
    [STEP_RELINK_SNAPSHOTS] = "relink-snapshots",
    [STEP_FORGET_SNAPSHOT] = "forget-snapshot",
};

const char *step_name(enum step step)
{
    return step_names[step];
}

const char *const *compute_steps(unsigned *ret_count)
{
    *ret_count = STEP_COUNT;
    return step_names;
}

int commit_step(struct task *task, struct change *change, enum step step)
{
    struct fault fault = {.code = FAULT_NONE};
    int rc = task_step(task, step, false);

    if (rc < 0) {
        change_drop(change);
        return rc;
    }
    rc = change_commit(change, &fault);
    if (rc == -ESTALE) {
        return LOOK_AGAIN;
    }
    if (rc < 0) {
        log_error("%s: %s: %s", task->id, step_name(step), fault.text);
        return rc;
    }
    rc = task_step(task, step, true);
    return rc < 0 ? rc : LOOK_AGAIN;
}

int log_failure(const struct task *task, int rc, const struct err *err)
{
    if (rc != -EINTR) {
        log_error("%s: %s", task->id, err->text);
    }
    return rc;
}

/* One that was made for a single run goes with its end. */
static void drop_ephemeral(struct object *instance)
{
    if (object_flag(instance, "ephemeral") &&
        (object_is(instance, "state", "stopped") || object_is(instance, "state", "failed"))) {
        object_set_text(instance, "state", "deleting");
    }
}

/* What the end of a machine has left is not gone yet: that is a matter of moments. */
static int clear_later(struct task *task, int rc, const struct err *err)
{
    if (rc != -EBUSY) {
        return log_failure(task, rc, err);
    }
    task_again(task, clock_monotonic_ns() + UNSURE_NS);
    return SETTLED;
}

/* It could not be started, and is not tried again by itself. */
static int note_failed(struct task *task, struct object *instance, int rc, const struct err *err)
{
    struct fault fault = {.code = FAULT_INTERNAL};
    struct change change;
    struct err ignored;

    if (rc == -EINTR) {
        return rc;
    }
    (void)fault_set_err(&fault, rc, err);
    log_error("%s: %s", task->id, err->text);
    object_set_text(instance, "state", "failed");
    object_set_text(instance, "desired", "stopped");
    object_set_text(instance, "reason", err->text);
    drop_ephemeral(instance);
    change_begin(&change, task->compute);
    change_event(&change, instance, "error", "instance.failed", NULL, "%s", err->text);
    change_end_operation(&change, instance, &fault);
    change_put(&change, instance);
    rc = commit_step(task, &change, STEP_NOTE_ENDED);
    if (rc == LOOK_AGAIN && machine_clear(task, &ignored) < 0) {
        log_warn("%s: %s, ignoring", task->id, ignored.text);
    }
    return rc;
}

/* Its operation, if any, has reached what it wanted. */
static int note_settled(struct task *task, struct object *instance, enum step step)
{
    struct change change;

    if (object_text(instance, "operation")[0] == '\0') {
        return SETTLED;
    }
    change_begin(&change, task->compute);
    change_end_operation(&change, instance, NULL);
    change_put(&change, instance);
    return commit_step(task, &change, step);
}

/* ---- starting ---- */

static int note_state(struct task *task, struct object *instance, const char *state, enum step step,
                      const char *action, const char *text)
{
    struct change change;

    object_set_text(instance, "state", state);
    change_begin(&change, task->compute);
    change_event(&change, instance, "info", action, NULL, "instance \"%s\" %s",
                 object_text(instance, "name"), text);
    change_end_operation(&change, instance, NULL);
    change_put(&change, instance);
    return commit_step(task, &change, step);
}

/* The directory is there: it rests, or begins to run. */
static int finish_creation(struct task *task, struct object *instance)
{
    struct object operation = {0};
    struct change change;

    if (object_is(instance, "desired", "stopped")) {
        return note_state(task, instance, "stopped", STEP_NOTE_STOPPED, "instance.created",
                          "is there");
    }
    object_set_text(instance, "state", "starting");
    change_begin(&change, task->compute);
    if (object_load(task->compute, KIND_OPERATION, instance->project,
                    object_text(instance, "operation"), &operation, NULL) == 0) {
        object_set_text(&operation, "state", "running");
        object_set_text(&operation, "step", "starting");
        object_set_number(&operation, "progress", 50);
        change_put(&change, &operation);
        object_done(&operation);
    }
    change_put(&change, instance);
    return commit_step(task, &change, STEP_NOTE_STARTING);
}

static int create(struct task *task, struct object *instance)
{
    struct err err = {.code = 0};
    int rc = directory_make(task, instance, &err);

    return rc < 0 ? note_failed(task, instance, rc, &err) : finish_creation(task, instance);
}

static int note_running(struct task *task, struct object *instance)
{
    struct err err = {.code = 0};
    int rc = machine_learn(task, instance, &err);

    if (rc < 0) {
        if (rc == -EPIPE || rc == -ECONNREFUSED || rc == -ENOENT || rc == -ECONNRESET) {
            task_again(task, clock_monotonic_ns() + UNSURE_NS); /* it is just ending */
            return SETTLED;
        }
        return log_failure(task, rc, &err);
    }
    object_set_time(instance, "started");
    object_clear(instance, "reason");
    object_clear(instance, "restart_needed");
    rc = note_state(task, instance, "running", STEP_NOTE_RUNNING, "instance.started", "runs");
    if (rc == LOOK_AGAIN) {
        limits_rebalance(task->compute);
    }
    return rc;
}

/* Something of it is in the way: what its last end has left is gone in a moment; of anything else it
 * says what, and is tried on until that has gone or somebody stops it. */
static int start_later(struct task *task, struct object *instance, const struct err *err)
{
    uint64_t now = clock_monotonic_ns();
    struct change change;

    if (task->in_way_ns == 0) {
        task->in_way_ns = now;
    }
    if (now - task->in_way_ns < MOMENT_NS) {
        task_again(task, now + UNSURE_NS);
        return SETTLED;
    }
    task_again(task, now + MOMENT_NS);
    if (object_is(instance, "reason", err->text)) {
        return SETTLED;
    }
    log_warn("%s: %s; trying again", task->id, err->text);
    object_set_text(instance, "reason", err->text);
    change_begin(&change, task->compute);
    change_event(&change, instance, "warning", "instance.waiting", NULL,
                 "instance \"%s\" cannot start yet: %s", object_text(instance, "name"), err->text);
    change_put(&change, instance);
    return commit_step(task, &change, STEP_NOTE_STARTING) == -EINTR ? -EINTR : SETTLED;
}

static int start(struct task *task, struct object *instance)
{
    struct err err = {.code = 0};
    int rc;

    if (task->not_before_ns > clock_monotonic_ns()) {
        task_again(task, task->not_before_ns);
        return SETTLED;
    }
    rc = directory_make(task, instance, &err);
    rc = rc < 0 ? rc : machine_launch(task, instance, &err);
    if (rc == -EBUSY) {
        return start_later(task, instance, &err);
    }
    task->in_way_ns = 0;
    return rc < 0 ? note_failed(task, instance, rc, &err) : LOOK_AGAIN;
}

/* ---- ending ---- */

static bool heeds_power_button(const struct task *task)
{
    char dir[PATH_MAX];
    struct image image;
    struct err ignored;

    return directory_path(task->compute, task->id, dir, &ignored) == 0 &&
           image_load(dir, &image, &ignored) == 0 && image.has_power_button;
}

static int kill_monitor(struct task *task)
{
    int rc = task_step(task, STEP_KILL, false);

    if (rc < 0) {
        return rc;
    }
    if (pidfd_send_signal(task->pid_fd, SIGKILL, NULL, 0) != 0 && errno != ESRCH) {
        log_error("%s: process %d cannot be ended: %s", task->id, task->pid,
                  strerrordesc_np(errno));
    }
    return task_step(task, STEP_KILL, true);
}

/* Pulls the plug; a monitor that does not listen is ended by the host. */
static int pull_plug(struct task *task)
{
    struct err err;
    int rc = task_step(task, STEP_PULL_PLUG, false);

    if (rc < 0) {
        return rc;
    }
    task->was_plug_pulled = true;
    rc = machine_command(task, "stop", NULL, &err);
    /* A monitor that is just ending does not answer, and need not. */
    rc = rc < 0 ? kill_monitor(task) : 0;
    return rc < 0 ? rc : task_step(task, STEP_PULL_PLUG, true);
}

/* Asks the guest to end: its agent first, then by the power button, where it heeds one. */
static int ask_end(struct task *task)
{
    struct err err;
    int rc = task_step(task, STEP_ASK_END, false);

    if (rc < 0) {
        return rc;
    }
    task->is_agent_at_it =
        !task->was_agent_asked && agent_shutdown(task->compute, task->id, &err) == 0;
    task->was_agent_asked = true;
    if (!task->is_agent_at_it && machine_command(task, "powerdown", NULL, &err) < 0) {
        rc = pull_plug(task);
    }
    return rc < 0 ? rc : task_step(task, STEP_ASK_END, true);
}

static int note_stopping(struct task *task, struct object *instance)
{
    struct change change;

    if (object_is(instance, "state", "stopping") || object_is(instance, "state", "deleting")) {
        return SETTLED;
    }
    object_set_text(instance, "state", "stopping");
    change_begin(&change, task->compute);
    change_put(&change, instance);
    return commit_step(task, &change, STEP_NOTE_STOPPING);
}

/* Until when what was asked last may take: half of the time for an agent, which may fail. */
static uint64_t end_time(const struct task *task, uint64_t now)
{
    if (task->was_plug_pulled) {
        return now + FORCE_S * NS_PER_S;
    }
    return task->is_agent_at_it ? now + (task->end_by_ns - now) / 2 : task->end_by_ns;
}

/* Ends the machine, as gently as is wanted; the loop tells of the end. */
static int end_machine(struct task *task, struct object *instance)
{
    int64_t timeout_s = object_number(instance, "timeout_s");
    bool is_forced = object_is(instance, "state", "deleting") || object_flag(instance, "force") ||
                     object_is(instance, "state", "paused") ||
                     !(heeds_power_button(task) || object_is(instance, "agent", "connected"));
    uint64_t now = clock_monotonic_ns();
    int rc = note_stopping(task, instance);

    if (rc != SETTLED) {
        return rc;
    }
    if (!task->was_asked_end || (is_forced && !task->was_plug_pulled)) {
        task->was_asked_end = true;
        task->end_by_ns = now + (uint64_t)(timeout_s > 0 ? timeout_s : 90) * NS_PER_S;
        rc = is_forced ? pull_plug(task) : ask_end(task);
        task->end_deadline_ns = now + end_time(task, now);
    } else if (now >= task->end_deadline_ns) {
        if (task->was_plug_pulled) {
            rc = kill_monitor(task);
        } else {
            rc = task->is_agent_at_it ? ask_end(task) : pull_plug(task);
        }
        task->end_deadline_ns = now + end_time(task, now);
    }
    if (rc == 0) {
        task_again(task, task->end_deadline_ns);
    }
    return rc;
}

/* What does not hold any more once it does not run. */
static void clear_running(struct object *instance)
{
    static const char *const fields[] = {
        "pid",       "engine_used",    "ssh_port",      "ports",           "force",
        "timeout_s", "agent",          "agent_version", "address",         "unenforced",
        "cpus_now",  "memory_now_mib", "live_cpus",     "live_memory_mib", "restart_needed"};

    for (size_t i = 0; i < ARRAY_LEN(fields); i++) {
        object_clear(instance, fields[i]);
    }
}

/* When it may be started again: at once, then later and later. */
static void plan_restart(struct task *task, const struct object *instance)
{
    struct timespec now;
    double started = json_real_value(json_object_get(instance->json, "started"));
    unsigned wait_s;

    (void)clock_gettime(CLOCK_REALTIME, &now); /* cannot fail */
    if ((double)now.tv_sec - started > STEADY_S) {
        task->crashes = 0;
    }
    wait_s = task->crashes == 0 ? 0 : task->crashes < 6 ? 1u << task->crashes : RESTART_MAX_S;
    task->crashes++;
    task->not_before_ns = clock_monotonic_ns() + wait_s * NS_PER_S;
}

static void start_again(struct object *instance)
{
    object_set_text(instance, "state", "starting");
    object_set_number(instance, "generation", object_number(instance, "generation") + 1);
}

/* It ended by itself: what its policy says. */
static void note_own_end(struct task *task, struct change *change, struct object *instance,
                         const struct machine_end *end)
{
    bool is_always = object_is(instance, "restart", "always");
    struct fault fault = {.code = FAULT_INTERNAL};

    object_set_text(instance, "reason", end->words);
    if (is_always || (!end->is_orderly && object_is(instance, "restart", "on-failure"))) {
        object_set_number(instance, "restarts", object_number(instance, "restarts") + 1);
        change_event(change, instance, "warning", "instance.restarted", NULL,
                     "instance \"%s\" %s; it is started again", object_text(instance, "name"),
                     end->words);
        plan_restart(task, instance);
        start_again(instance);
        return;
    }
    object_set_text(instance, "desired", "stopped");
    object_set_text(instance, "state", end->is_orderly ? "stopped" : "failed");
    change_event(change, instance, end->is_orderly ? "info" : "error",
                 end->is_orderly ? "instance.ended" : "instance.failed", NULL, "instance \"%s\" %s",
                 object_text(instance, "name"), end->words);
    (void)snprintf(fault.text, sizeof(fault.text), "%s", end->words);
    change_end_operation(change, instance, end->is_orderly ? NULL : &fault);
}

static int note_end(struct task *task, struct object *instance, const struct machine_end *end)
{
    struct change change;
    int rc;

    if (end->was_launched) {
        credits_note_end(instance);
    }
    clear_running(instance);
    forwards_take(instance);
    object_clear(instance, "reason");
    change_begin(&change, task->compute);
    if (object_is(instance, "desired", "stopped")) {
        object_set_text(instance, "state", "stopped");
        change_event(&change, instance, "info", "instance.stopped", NULL, "instance \"%s\" is off",
                     object_text(instance, "name"));
        change_end_operation(&change, instance, NULL);
    } else if (object_flag(instance, "restarting")) {
        start_again(instance);
    } else {
        note_own_end(task, &change, instance, end);
    }
    object_clear(instance, "restarting");
    object_clear(instance, "paused");
    drop_ephemeral(instance);
    change_put(&change, instance);
    rc = commit_step(task, &change, STEP_NOTE_ENDED);
    if (rc == LOOK_AGAIN) {
        task->last_status = -1;
        task->in_way_ns = 0;
        limits_rebalance(task->compute);
    }
    return rc;
}

/* ---- deleting ---- */

struct release {
    struct change *change;
    const char *id;
};

static int release_volume(void *opaque, struct object *volume)
{
    struct release *release = opaque;

    if (object_is(volume, "instance", release->id)) {
        object_clear(volume, "instance");
        object_set_text(volume, "state", "available");
        change_put(release->change, volume);
    }
    return 0;
}

static int forget(struct task *task, struct object *instance)
{
    struct release release = {.id = instance->id};
    struct fault fault = {.code = FAULT_NONE};
    struct change change;
    int rc;

    change_begin(&change, task->compute);
    release.change = &change;
    rc = object_each(task->compute, KIND_VOLUME, instance->project, release_volume, &release,
                     &fault);
    rc = rc < 0 ? rc : nic_release(&change, instance, object_text(instance, "nic"), &fault);
    if (rc < 0) {
        change_drop(&change);
        log_error("%s: %s", task->id, fault.text);
        return rc;
    }
    change_event(&change, instance, "info", "instance.deleted", NULL, "instance \"%s\" is gone",
                 object_text(instance, "name"));
    change_end_operation(&change, instance, NULL);
    seed_forget(&change, instance);
    change_drop_name(&change, KIND_INSTANCE, instance->project, object_text(instance, "name"));
    change_remove(&change, instance);
    return commit_step(task, &change, STEP_FORGET);
}

static int delete_instance(struct task *task, struct object *instance)
{
    char dir[PATH_MAX], making[PATH_MAX];
    struct err err = {.code = 0};
    int rc = machine_clear(task, &err);

    if (rc == -EBUSY) {
        return clear_later(task, rc, &err);
    }
    rc = rc < 0 ? rc : directory_path(task->compute, task->id, dir, &err);
    rc = rc < 0 ? rc
                : path_format(making, &err, "%s/machines/.%s.making", task->compute->state_dir,
                              task->id);
    rc = rc < 0 ? rc : task_step(task, STEP_REMOVE_DIRECTORY, false);
    rc = rc < 0 ? rc : path_remove(making, &err);
    rc = rc < 0 ? rc : path_remove(dir, &err);
    rc = rc < 0 ? rc : task_step(task, STEP_REMOVE_DIRECTORY, true);
    return rc < 0 ? log_failure(task, rc, &err) : forget(task, instance);
}

/* ---- the look ---- */

/* What it may use has changed while it runs. */
static int apply_limits(struct task *task, struct object *instance)
{
    struct fault fault = {.code = FAULT_NONE};
    struct err err = {.code = 0};
    struct change change;
    int rc = limits_apply(task, instance, &err);

    if (rc < 0 && (rc == -EINTR || limits_hold(task, instance) == false)) {
        return log_failure(task, rc, &err);
    }
    limits_note(task->compute, instance);
    change_begin(&change, task->compute);
    if (rc < 0) {
        (void)fault_set_err(&fault, rc, &err);
        log_warn("%s: %s", task->id, err.text);
        change_event(&change, instance, "warning", "instance.limits", NULL, "%s", err.text);
    }
    if (rc < 0 || !forwards_wait(instance)) {
        change_end_part(&change, instance, rc < 0 ? &fault : NULL);
    }
    change_put(&change, instance);
    rc = commit_step(task, &change, STEP_NOTE_LIMITS);
    if (rc == LOOK_AGAIN) {
        limits_rebalance(task->compute);
    }
    return rc;
}

/* Its forwards have changed while it runs. */
static int apply_forwards(struct task *task, struct object *instance)
{
    struct fault fault = {.code = FAULT_NONE};
    struct err err = {.code = 0};
    struct change change;
    int rc = forwards_apply(task, instance, &err);

    if (rc < 0 && rc != -EIO) {
        return log_failure(task, rc, &err);
    }
    change_begin(&change, task->compute);
    if (rc < 0) {
        (void)fault_set_err(&fault, rc, &err);
        change_event(&change, instance, "warning", "instance.forwards", NULL, "%s", err.text);
    }
    change_end_part(&change, instance, rc < 0 ? &fault : NULL);
    change_put(&change, instance);
    return commit_step(task, &change, STEP_NOTE_FORWARDS);
}

static int look_at_running(struct task *task, struct object *instance)
{
    struct err err;
    bool is_paused = object_is(instance, "state", "paused");
    int rc;

    if (object_is(instance, "state", "deleting") || object_is(instance, "desired", "stopped") ||
        object_flag(instance, "restarting")) {
        return end_machine(task, instance);
    }
    if (!object_is(instance, "state", "running") && !is_paused) {
        return note_running(task, instance);
    }
    if (object_flag(instance, "adjusting") && !is_paused) {
        return resize_machine(task, instance);
    }
    if (!limits_hold(task, instance)) {
        return apply_limits(task, instance);
    }
    if (forwards_wait(instance)) {
        return apply_forwards(task, instance);
    }
    if (object_flag(instance, "paused") == is_paused) {
        rc = note_settled(task, instance, STEP_NOTE_RUNNING);
        return rc != SETTLED ? rc : guest_look(task, instance);
    }
    rc = task_step(task, is_paused ? STEP_RESUME : STEP_PAUSE, false);
    rc = rc < 0 ? rc : machine_command(task, is_paused ? "resume" : "pause", NULL, &err);
    /* Done before a daemon ended: to resume what runs is refused, and is fine. */
    rc = rc == -EIO && is_paused ? 0 : rc;
    rc = rc < 0 ? rc : task_step(task, is_paused ? STEP_RESUME : STEP_PAUSE, true);
    if (rc < 0) {
        return log_failure(task, rc, &err);
    }
    return is_paused ? note_state(task, instance, "running", STEP_NOTE_RESUMED, "instance.resumed",
                                  "goes on")
                     : note_state(task, instance, "paused", STEP_NOTE_PAUSED, "instance.paused",
                                  "is paused");
}

static int look_at_absent(struct task *task, struct object *instance)
{
    struct machine_end end;
    struct err err;
    int rc;

    if (object_is(instance, "state", "deleting")) {
        return delete_instance(task, instance);
    }
    if (object_is(instance, "state", "pending")) {
        return create(task, instance);
    }
    if (object_flag(instance, "adjusting")) {
        return resize_forget(task, instance);
    }
    if (object_flag(instance, "merging")) {
        return snapshot_tidy(task, instance);
    }
    machine_read_end(task, instance, task->last_status, &end);
    if (object_is(instance, "state", "starting") && !end.was_launched) {
        return object_is(instance, "desired", "stopped") ? note_end(task, instance, &end)
                                                         : start(task, instance);
    }
    if (!object_is(instance, "state", "stopped") && !object_is(instance, "state", "failed")) {
        return note_end(task, instance, &end);
    }
    rc = machine_clear(task, &err);
    return rc < 0 ? clear_later(task, rc, &err) : note_settled(task, instance, STEP_NOTE_STOPPED);
}

static int look(struct task *task)
{
    enum machine_presence presence = MACHINE_UNSURE;
    CLEANUP_CLOSE int lock_fd = -1;
    struct object instance = {0};
    struct fault fault = {.code = FAULT_NONE};
    struct err err = {.code = 0};
    int rc = object_load(task->compute, KIND_INSTANCE, task->project, task->id, &instance, &fault);

    if (rc < 0) {
        return rc == -ENOENT ? SETTLED : rc;
    }
    rc = machine_observe(task, &presence, &lock_fd, &err);
    if (rc < 0) {
        rc = log_failure(task, rc, &err);
    } else if (presence == MACHINE_UNSURE) {
        task_again(task, clock_monotonic_ns() + UNSURE_NS);
    } else if (snapshot_has_work(&instance)) {
        rc = snapshot_work(task, &instance, presence == MACHINE_PRESENT);
    } else if (presence == MACHINE_PRESENT) {
        rc = look_at_running(task, &instance);
    } else {
        rc = look_at_absent(task, &instance);
    }
    object_done(&instance);
    return rc;
}

int reconcile_instance(struct task *task)
{
    for (unsigned i = 0; i < MAX_ROUNDS; i++) {
        int rc = look(task);

        if (rc != LOOK_AGAIN) {
            return rc;
        }
    }
    log_warn("%s does not come to rest; looking again later, ignoring", task->id);
    return -EAGAIN;
}
