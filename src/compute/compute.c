/* Life of compute: the queue of objects to look after, its workers and its loop. */
#include "compute/limits.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/path.h"
#include "base/process.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <time.h>

#define DEFAULT_WORKERS 8
#define RETRY_MAX_S 60u

static unsigned bucket_of(const char *id)
{
    unsigned sum = 0;

    while (*id != '\0') {
        sum = sum * 31 + (unsigned char)*id++;
    }
    return sum % TASK_BUCKETS;
}

static struct task *find_task(struct compute *compute, const char *id)
{
    struct task *task = compute->tasks[bucket_of(id)];

    while (task != NULL && strcmp(task->id, id) != 0) {
        task = task->next;
    }
    return task;
}

static struct task *add_task(struct compute *compute, enum kind kind, const char *project,
                             const char *id)
{
    struct task *task = calloc(1, sizeof(*task));
    struct task **bucket = &compute->tasks[bucket_of(id)];

    if (task == NULL) {
        return NULL;
    }
    task->compute = compute;
    task->kind = kind;
    task->pid_fd = -1;
    task->guest_fd = -1;
    task->last_status = -1;
    (void)snprintf(task->project, sizeof(task->project), "%s", project);
    (void)snprintf(task->id, sizeof(task->id), "%s", id);
    task->next = *bucket;
    *bucket = task;
    return task;
}

/* Under the lock. */
static void make_ready(struct compute *compute, struct task *task)
{
    if (task->is_busy) {
        task->is_dirty = true;
        return;
    }
    if (task->is_queued) {
        return;
    }
    task->is_queued = true;
    task->next_ready = NULL;
    if (compute->ready_last != NULL) {
        compute->ready_last->next_ready = task;
    } else {
        compute->ready_first = task;
    }
    compute->ready_last = task;
    (void)pthread_cond_signal(&compute->work_ready); /* cannot fail */
}

/* The loop's thread: a task's time is up, or has changed. */
static void on_due(void *opaque)
{
    struct task *task = opaque;
    struct compute *compute = task->compute;

    mutex_lock(&compute->lock);
    task->due_ns = 0;
    make_ready(compute, task);
    mutex_unlock(&compute->lock);
}

/* The loop's thread: arms the timers of tasks that asked for it. */
static void arm_timers(void *opaque)
{
    struct compute *compute = opaque;

    mutex_lock(&compute->lock);
    for (unsigned i = 0; i < TASK_BUCKETS; i++) {
        for (struct task *task = compute->tasks[i]; task != NULL; task = task->next) {
            if (task->due_ns == 0) {
                continue;
            }
            if (task->timer == NULL &&
                loop_add_timer(compute->loop, on_due, task, &task->timer) < 0) {
                make_ready(compute, task); /* sooner is better than never */
                continue;
            }
            loop_arm_timer(task->timer, task->due_ns);
        }
    }
    mutex_unlock(&compute->lock);
}

/* Under the lock. */
static void queue_locked(struct compute *compute, struct task *task, uint64_t due_ns)
{
    if (due_ns <= clock_monotonic_ns()) {
        make_ready(compute, task);
    } else if (task->due_ns == 0 || due_ns < task->due_ns) {
        task->due_ns = due_ns;
        if (loop_defer(compute->loop, arm_timers, compute) < 0) {
            make_ready(compute, task);
        }
    }
}

void compute_queue(struct compute *compute, enum kind kind, const char *project, const char *id,
                   uint64_t due_ns)
{
    struct task *task;

    mutex_lock(&compute->lock);
    task = find_task(compute, id);
    if (task == NULL) {
        task = add_task(compute, kind, project, id);
    }
    if (task != NULL) {
        queue_locked(compute, task, due_ns);
    } else {
        log_error("no memory to look after %s; it waits for the next start", id);
    }
    mutex_unlock(&compute->lock);
}

void task_again(struct task *task, uint64_t due_ns)
{
    mutex_lock(&task->compute->lock);
    queue_locked(task->compute, task, due_ns);
    mutex_unlock(&task->compute->lock);
}

/* The loop's thread: the monitor has ended. */
static void on_end(void *opaque, uint32_t events)
{
    struct task *task = opaque;
    struct compute *compute = task->compute;

    (void)events;
    loop_remove_fd(task->end_handler); /* it stays readable */
    mutex_lock(&compute->lock);
    task->end_handler = NULL;
    task->has_ended = true;
    make_ready(compute, task);
    mutex_unlock(&compute->lock);
}

/* The loop's thread; the worker that asked for it waits. */
struct watch_call {
    struct task *task;
    bool is_done;
    int rc;
};

static void start_watching(void *opaque)
{
    struct watch_call *call = opaque;
    struct task *task = call->task;
    struct compute *compute = task->compute;
    int rc = loop_add_fd(compute->loop, task->pid_fd, EPOLLIN, on_end, task, &task->end_handler);

    mutex_lock(&compute->lock);
    call->rc = rc;
    call->is_done = true;
    (void)pthread_cond_broadcast(&compute->committed); /* cannot fail */
    mutex_unlock(&compute->lock);
}

static void start_watching_guest(void *opaque)
{
    struct watch_call *call = opaque;
    struct compute *compute = call->task->compute;
    int rc = guest_start_watch(call->task);

    mutex_lock(&compute->lock);
    call->rc = rc;
    call->is_done = true;
    (void)pthread_cond_broadcast(&compute->committed); /* cannot fail */
    mutex_unlock(&compute->lock);
}

static void stop_watching(void *opaque)
{
    struct watch_call *call = opaque;
    struct task *task = call->task;
    struct compute *compute = task->compute;

    guest_unwatch(task);
    mutex_lock(&compute->lock);
    if (task->end_handler != NULL) {
        loop_remove_fd(task->end_handler);
        task->end_handler = NULL;
    }
    call->is_done = true;
    (void)pthread_cond_broadcast(&compute->committed); /* cannot fail */
    mutex_unlock(&compute->lock);
}

static int call_loop(struct task *task, loop_fn fn)
{
    struct compute *compute = task->compute;
    struct watch_call call = {.task = task};
    int rc = loop_defer(compute->loop, fn, &call);

    if (rc < 0) {
        return rc;
    }
    mutex_lock(&compute->lock);
    while (!call.is_done) {
        (void)pthread_cond_wait(&compute->committed, &compute->lock.raw); /* cannot fail */
    }
    mutex_unlock(&compute->lock);
    return call.rc;
}

int task_watch_end(struct task *task)
{
    mutex_lock(&task->compute->lock);
    task->has_ended = false;
    mutex_unlock(&task->compute->lock);
    return call_loop(task, start_watching);
}

int task_watch_guest(struct task *task)
{
    int rc = guest_connect(task);

    return rc < 0 ? rc : call_loop(task, start_watching_guest);
}

int task_forget_monitor(struct task *task)
{
    int status = -1;
    int raw = 0;

    if (task->pid_fd < 0) {
        return -1;
    }
    if (call_loop(task, stop_watching) < 0) {
        log_error("no memory to let go of the monitor of %s", task->id);
    }
    if (task->is_child && waitpid(task->pid, &raw, 0) == task->pid) {
        status = WIFSIGNALED(raw) ? 128 + WTERMSIG(raw) : WEXITSTATUS(raw);
    }
    (void)close(steal_fd(&task->pid_fd));
    task->is_child = task->was_asked_end = task->was_plug_pulled = false;
    task->was_agent_asked = task->is_agent_at_it = false;
    task->end_deadline_ns = 0;
    mutex_lock(&task->compute->lock);
    task->has_ended = false;
    mutex_unlock(&task->compute->lock);
    return status;
}

int task_step(struct task *task, enum step step, bool is_done)
{
    struct compute *compute = task->compute;
    bool is_closing;

    if (compute->config.on_step != NULL) {
        compute->config.on_step(compute->config.opaque, step_name(step), is_done);
    }
    mutex_lock(&compute->lock);
    is_closing = compute->is_closing;
    mutex_unlock(&compute->lock);
    return is_closing && !is_done ? -EINTR : 0;
}

/* 1 s, 2 s, 4 s ... a minute at most. */
static uint64_t retry_time(unsigned failures)
{
    unsigned wait_s = failures < 6 ? 1u << failures : RETRY_MAX_S;

    return clock_monotonic_ns() + wait_s * NS_PER_S;
}

/* Nothing in memory is worth keeping: no monitor, nothing to do later. Under the lock. */
static void drop_if_idle(struct compute *compute, struct task *task)
{
    struct task **at = &compute->tasks[bucket_of(task->id)];

    if (task->is_queued || task->pid_fd >= 0 || task->due_ns != 0 || task->timer != NULL) {
        return;
    }
    while (*at != task) {
        at = &(*at)->next;
    }
    *at = task->next;
    free(task);
}

/* The loop's thread: timers of tasks that need none any more go, and the tasks with them. */
static void sweep_tasks(void *opaque)
{
    struct compute *compute = opaque;

    mutex_lock(&compute->lock);
    for (unsigned i = 0; i < TASK_BUCKETS; i++) {
        struct task *next;

        for (struct task *task = compute->tasks[i]; task != NULL; task = next) {
            next = task->next;
            if (task->timer != NULL && !task->is_busy && !task->is_queued && task->pid_fd < 0 &&
                task->due_ns == 0) {
                loop_remove_timer(task->timer);
                task->timer = NULL;
                drop_if_idle(compute, task);
            }
        }
    }
    mutex_unlock(&compute->lock);
}

static void work_on(struct compute *compute, struct task *task)
{
    int rc = task->kind == KIND_VOLUME     ? reconcile_volume(task)
             : task->kind == KIND_SNAPSHOT ? reconcile_snapshot(task)
                                           : reconcile_instance(task);

    mutex_lock(&compute->lock);
    task->is_busy = false;
    if (rc < 0 && rc != -EINTR) {
        queue_locked(compute, task, retry_time(task->failures++));
    } else {
        task->failures = 0;
    }
    if (task->is_dirty) {
        task->is_dirty = false;
        make_ready(compute, task);
    }
    if (task->timer != NULL && task->due_ns == 0 && task->pid_fd < 0 && !task->is_queued) {
        if (loop_defer(compute->loop, sweep_tasks, compute) < 0) {
            log_warn("no memory to tidy up, ignoring");
        }
    }
    drop_if_idle(compute, task);
    mutex_unlock(&compute->lock);
}

static struct task *take_task(struct compute *compute)
{
    struct task *task;

    mutex_lock(&compute->lock);
    while (compute->ready_first == NULL && !compute->is_closing) {
        (void)pthread_cond_wait(&compute->work_ready, &compute->lock.raw); /* cannot fail */
    }
    task = compute->is_closing ? NULL : compute->ready_first;
    if (task != NULL) {
        compute->ready_first = task->next_ready;
        if (compute->ready_first == NULL) {
            compute->ready_last = NULL;
        }
        task->is_queued = false;
        task->is_busy = true;
    }
    mutex_unlock(&compute->lock);
    return task;
}

static void *worker_main(void *opaque)
{
    struct compute *compute = opaque;
    struct task *task;

    while ((task = take_task(compute)) != NULL) {
        work_on(compute, task);
    }
    return NULL;
}

static void *loop_main(void *opaque)
{
    struct compute *compute = opaque;
    int rc = loop_run(compute->loop);

    if (rc < 0) {
        log_error("the loop of compute failed: %s", strerrordesc_np(-rc));
    }
    return NULL;
}

static int queue_object(void *opaque, struct object *object)
{
    struct compute *compute = opaque;

    if (object->kind == KIND_INSTANCE && object_number(object, "cpu_reserved_percent") != 0) {
        atomic_store(&compute->has_reservations, true);
    }
    compute_queue(opaque, object->kind, object->project, object->id, 0);
    return 0;
}

static int start_threads(struct compute *compute, struct err *err)
{
    unsigned count = compute->config.workers != 0 ? compute->config.workers : DEFAULT_WORKERS;
    int rc = thread_start(&compute->loop_thread, "compute/loop", loop_main, compute);

    compute->has_loop_thread = rc == 0;
    for (unsigned i = 0; rc == 0 && i < count && i < MAX_WORKERS; i++) {
        char name[16];

        (void)snprintf(name, sizeof(name), "compute/%u", i % 100);
        rc = thread_start(&compute->workers[i], name, worker_main, compute);
        compute->worker_count += rc == 0;
    }
    return rc < 0 ? err_set_errno(err, rc, "threads cannot be started") : 0;
}

/* What is there from the beginning: a project, and types. Types that were deleted stay so. */
static int make_defaults(struct compute *compute, struct fault *fault)
{
    static const struct {
        const char *name;
        int cpus, memory_mib, disk_gib;
    } types[] = {
        {"micro", 1, 256, 0},       {"small", 1, 1024, 4},    {"medium", 2, 2048, 8},
        {"large", 4, 4096, 16},     {"xlarge", 4, 16384, 32}, {"2xlarge", 8, 16384, 32},
        {"4xlarge", 16, 32768, 64},
    };
    struct store_record record = {0};
    struct object project = {0};
    struct change change;
    struct err err;
    int rc = store_get(compute->config.store, "/v1/defaults", &record, &err);

    store_record_done(&record);
    if (rc != -ENOENT) {
        return rc < 0 ? fault_set_err(fault, rc, &err) : 0;
    }
    change_begin(&change, compute);
    change_write(&change, "/v1/defaults", json_integer(1), true);
    rc = object_new(KIND_PROJECT, NULL,
                    json_pack("{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i}", "name",
                              COMPUTE_DEFAULT_PROJECT, "max_instances", 0, "max_cpus", 0,
                              "max_memory_mib", 0, "max_volume_gib", 0, "max_snapshots", 0,
                              "max_nics", 0, "max_alarms", 0, "max_keys", 0, "max_hooks", 0),
                    &project, fault);
    if (rc == 0) {
        change_put(&change, &project);
        change_take_name(&change, &project);
        object_done(&project);
    }
    for (size_t i = 0; rc == 0 && i < ARRAY_LEN(types); i++) {
        struct object type = {0};

        rc = object_new(KIND_TYPE, NULL,
                        json_pack("{s:s, s:i, s:i, s:i}", "name", types[i].name, "cpus",
                                  types[i].cpus, "memory_mib", types[i].memory_mib, "disk_gib",
                                  types[i].disk_gib),
                        &type, fault);
        if (rc == 0) {
            change_put(&change, &type);
            change_take_name(&change, &type);
            object_done(&type);
        }
    }
    if (rc < 0) {
        change_drop(&change);
        return rc;
    }
    return change_commit(&change, fault);
}

/* Named by where the machines are found again, which no two daemons share. */
static int open_groups(struct compute *compute, struct err *err)
{
    static const char *const controls[] = {
        [CGROUP_CPU] = "CPU time", [CGROUP_CPUSET] = "CPUs", [CGROUP_MEMORY] = "memory"};
    char name[32];
    const struct cgroup_config config = {
        .name = name, .parent = compute->config.cgroup, .may_move = true};
    struct timespec now = {0};
    uint32_t sum = 0x811c9dc5u;
    int rc;

    for (const char *p = compute->runtime_dir; *p != '\0'; p++) {
        sum = (sum ^ (unsigned char)*p) * 0x01000193u;
    }
    (void)snprintf(name, sizeof(name), "corbel-%08x", sum);
    (void)clock_gettime(CLOCK_REALTIME, &now);
    compute->life = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    rc = cgroup_open(&config, err, &compute->group);
    for (unsigned i = 0; rc == 0 && i < CGROUP_CONTROL_COUNT; i++) {
        const char *lack = cgroup_lack(compute->group, i);

        if (lack != NULL) {
            log_info("no control group limits %s: %s", controls[i], lack);
        }
    }
    return rc;
}

/* Directories, and what the configuration leaves open. */
static int prepare(struct compute *compute, struct err *err)
{
    const struct compute_config *config = &compute->config;
    char path[PATH_MAX];
    int rc = path_format(compute->state_dir, err, "%s", config->state_dir);

    rc = rc < 0 ? rc : path_format(compute->runtime_dir, err, "%s", config->runtime_dir);
    rc = rc < 0 ? rc : path_format(compute->images_dir, err, "%s", config->images_dir);
    rc = rc < 0 ? rc : path_format(compute->vmm, err, "%s", config->vmm);
    if (rc == 0 && strchr(config->state_dir, ',') != NULL) {
        return err_set(err, -EINVAL, "%s has a comma, which monitors' disks must not have",
                       config->state_dir);
    }
    rc = rc < 0 ? rc : path_format(path, err, "%s/machines", config->state_dir);
    rc = rc < 0 ? rc : path_make_dirs(path, err);
    rc = rc < 0 ? rc : path_format(path, err, "%s/snapshots", config->state_dir);
    rc = rc < 0 ? rc : path_make_dirs(path, err);
    rc = rc < 0 ? rc : path_make_private(config->runtime_dir, err);
    rc = rc < 0 ? rc : path_format(path, err, "%s/vm", config->runtime_dir);
    rc = rc < 0 ? rc : path_make_dirs(path, err);
    rc = rc < 0 ? rc : open_groups(compute, err);
    if (rc == 0) {
        rc = loop_create(&compute->loop);
        rc = rc < 0 ? err_set_errno(err, rc, "an event loop cannot be made") : 0;
    }
    return rc;
}

static struct compute *allocate(const struct compute_config *config)
{
    struct compute *compute = calloc(1, sizeof(*compute));
    pthread_condattr_t attributes;

    if (compute == NULL) {
        return NULL;
    }
    compute->config = *config;
    mutex_init(&compute->calls, LOCK_RANK_COMPUTE_CALL);
    mutex_init(&compute->lock, LOCK_RANK_COMPUTE);
    (void)pthread_condattr_init(&attributes); /* these cannot fail on Linux */
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&compute->committed, &attributes);
    (void)pthread_cond_init(&compute->work_ready, NULL);
    (void)pthread_condattr_destroy(&attributes);
    return compute;
}

int compute_open(const struct compute_config *config, struct err *err, struct compute **ret_compute)
{
    struct compute *compute = allocate(config);
    struct fault fault = {.code = FAULT_NONE};
    int rc;

    if (compute == NULL) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    rc = prepare(compute, err);
    if (rc == 0) {
        rc = make_defaults(compute, &fault);
        rc =
            rc == 0 ? object_each(compute, KIND_INSTANCE, NULL, queue_object, compute, &fault) : rc;
        rc = rc == 0 ? object_each(compute, KIND_VOLUME, NULL, queue_object, compute, &fault) : rc;
        rc =
            rc == 0 ? object_each(compute, KIND_SNAPSHOT, NULL, queue_object, compute, &fault) : rc;
        rc = rc < 0 ? err_set(err, rc, "%s", fault.text) : 0;
    }
    if (rc == 0) {
        reconcile_sweep(compute);
        rc = start_threads(compute, err);
    }
    if (rc < 0) {
        compute_close(compute);
        return rc;
    }
    *ret_compute = compute;
    return 0;
}

static void free_tasks(struct compute *compute)
{
    for (unsigned i = 0; i < TASK_BUCKETS; i++) {
        struct task *next;

        for (struct task *task = compute->tasks[i]; task != NULL; task = next) {
            next = task->next;
            if (task->pid_fd >= 0) {
                (void)close(task->pid_fd);
            }
            if (task->guest_fd >= 0) {
                (void)close(task->guest_fd);
            }
            free(task);
        }
    }
}

void compute_close(struct compute *compute)
{
    if (compute == NULL) {
        return;
    }
    mutex_lock(&compute->lock);
    compute->is_closing = true;
    (void)pthread_cond_broadcast(&compute->work_ready); /* cannot fail */
    (void)pthread_cond_broadcast(&compute->committed);
    mutex_unlock(&compute->lock);
    for (unsigned i = 0; i < compute->worker_count; i++) {
        (void)pthread_join(compute->workers[i], NULL);
    }
    if (compute->has_loop_thread) {
        loop_stop(compute->loop);
        (void)pthread_join(compute->loop_thread, NULL);
    }
    loop_destroy(compute->loop);
    cgroup_close(compute->group);
    free_tasks(compute);
    (void)pthread_cond_destroy(&compute->committed);
    (void)pthread_cond_destroy(&compute->work_ready);
    mutex_done(&compute->calls);
    mutex_done(&compute->lock);
    free(compute);
}
