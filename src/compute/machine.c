/*
 * vm/ID: what does not last of an instance: sockets, log, and who its monitor is.
 *
 *   lock       held by the monitor as long as it lives; by the daemon while it starts one
 *   run.json   the monitor's process and which start of the instance it belongs to
 *   vmm.json   its configuration
 *   limits.json, cgroups  what it may use now, and directories of control groups to be removed
 *   vmm.log, control.sock, console.sock
 *   vmm.log of the last that ended is kept in machines/ID, beside its serial.log
 *   end.json   how the machine ended, written by the monitor when it can
 */
#include "compute/limits.h"
#include "compute/seed.h"

#include "base/bundle.h"
#include "base/io.h"
#include "base/log.h"
#include "base/path.h"
#include "base/process.h"
#include "rpc/control_client.h"
#include "rpc/monitor.h"
#include "storage/pool.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/pidfd.h>
#include <sys/wait.h>

#define SSH_GUEST_PORT 22
#define MEMORY_MAX_TIMES 4
#define MAX_JSON_BYTES (64u << 10)
#define MAX_DISKS 10
#define DISK_TEXT_BYTES (2 * PATH_MAX + 256)

int machine_path(const struct compute *compute, const char *id, char out[PATH_MAX], struct err *err)
{
    return path_format(out, err, "%s/vm/%s", compute->runtime_dir, id);
}

json_t *machine_read_json(const char *dir, const char *name)
{
    char path[PATH_MAX];
    struct err ignored;
    CLEANUP_FREE void *data = NULL;
    size_t len = 0;

    if (path_format(path, &ignored, "%s/%s", dir, name) < 0 ||
        io_read_file(path, MAX_JSON_BYTES, &data, &len) < 0) {
        return NULL;
    }
    return json_loadb(data, len, 0, NULL);
}

/* Whole or not at all. Takes the object over. */
int machine_write_json(const char *dir, const char *name, json_t *object, struct err *err)
{
    char path[PATH_MAX], making[PATH_MAX];
    int rc = path_format(path, err, "%s/%s", dir, name);

    rc = rc < 0 ? rc : path_format(making, err, "%s/.%s", dir, name);
    if (rc == 0 && (object == NULL || json_dump_file(object, making, JSON_COMPACT) != 0 ||
                    rename(making, path) != 0)) {
        rc = err_set_errno(err, errno != 0 ? -errno : -EIO, "%s cannot be written", path);
    }
    json_decref(object);
    return rc;
}

/* Tries for the lock: 1 and the descriptor when nobody has it, 0 when somebody has. */
static int try_lock(const char *dir, bool may_create, int *ret_fd, struct err *err)
{
    char path[PATH_MAX];
    CLEANUP_CLOSE int fd = -1;
    int rc = path_format(path, err, "%s/lock", dir);

    if (rc < 0) {
        return rc;
    }
    fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | (may_create ? O_CREAT : 0), 0600);
    if (fd < 0) {
        *ret_fd = -1;
        return errno == ENOENT ? 1 : err_set_errno(err, -errno, "%s cannot be opened", path);
    }
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        return errno == EWOULDBLOCK ? 0 : err_set_errno(err, -errno, "%s cannot be locked", path);
    }
    *ret_fd = steal_fd(&fd);
    return 1;
}

/* Takes the process that run.json names for this task's monitor. 0: it is none that lives. */
static int adopt(struct task *task, const char *dir, struct err *err)
{
    json_t *run = machine_read_json(dir, "run.json");
    pid_t pid = (pid_t)json_integer_value(json_object_get(run, "pid"));
    uint64_t ticks = (uint64_t)json_integer_value(json_object_get(run, "start_ticks"));
    int fd = process_open(pid, ticks);
    int rc;

    json_decref(run);
    if (fd < 0) {
        return 0;
    }
    task->pid_fd = fd;
    task->pid = pid;
    task->start_ticks = ticks;
    task->is_child = false;
    rc = task_watch_end(task);
    if (rc < 0) {
        (void)close(steal_fd(&task->pid_fd));
        return err_set_errno(err, rc, "the monitor of %s cannot be watched", task->id);
    }
    log_info("%s runs, as process %d", task->id, pid);
    return 1;
}

static bool has_monitor_ended(const struct task *task)
{
    struct pollfd pfd = {.fd = task->pid_fd, .events = POLLIN};

    return poll(&pfd, 1, 0) > 0;
}

int machine_observe(struct task *task, enum machine_presence *ret_presence, int *ret_lock_fd,
                    struct err *err)
{
    char dir[PATH_MAX];
    int rc = machine_path(task->compute, task->id, dir, err);

    *ret_lock_fd = -1;
    if (rc < 0) {
        return rc;
    }
    if (task->pid_fd >= 0) {
        if (!has_monitor_ended(task)) {
            *ret_presence = MACHINE_PRESENT;
            return 0;
        }
        task->last_status = task_forget_monitor(task);
    }
    rc = try_lock(dir, false, ret_lock_fd, err);
    if (rc < 0) {
        return rc;
    }
    if (rc == 1) {
        *ret_presence = MACHINE_ABSENT;
        return 0;
    }
    rc = adopt(task, dir, err);
    *ret_presence = rc == 1 ? MACHINE_PRESENT : MACHINE_UNSURE;
    return rc < 0 ? rc : 0;
}

void machine_read_end(struct task *task, const struct object *instance, int status,
                      struct machine_end *ret_end)
{
    char dir[PATH_MAX], log[PATH_MAX];
    struct err ignored;
    json_t *run, *end;
    const char *how;

    *ret_end = (struct machine_end){.was_launched = false};
    if (machine_path(task->compute, task->id, dir, &ignored) < 0 ||
        path_format(log, &ignored, "%s/vmm.log", dir) < 0) {
        return;
    }
    run = machine_read_json(dir, "run.json");
    end = machine_read_json(dir, "end.json");
    how = json_string_value(json_object_get(end, "end"));
    ret_end->was_launched = json_integer_value(json_object_get(run, "generation")) ==
                                object_number(instance, "generation") &&
                            run != NULL;
    ret_end->is_orderly = how != NULL && json_integer_value(json_object_get(end, "status")) == 0;
    if (ret_end->is_orderly) {
        (void)snprintf(ret_end->words, sizeof(ret_end->words), "ended: %s", how);
    } else if (how != NULL) {
        monitor_last_words(log, ret_end->words, sizeof(ret_end->words));
    } else if (status > 128) {
        (void)snprintf(ret_end->words, sizeof(ret_end->words), "its monitor was ended by signal %d",
                       status - 128);
    } else {
        (void)snprintf(ret_end->words, sizeof(ret_end->words), "its monitor has gone");
    }
    json_decref(run);
    json_decref(end);
}

int machine_ask(struct task *task, json_t *request, json_t **ret_answer, struct err *err)
{
    char dir[PATH_MAX], line[1024];
    json_t *answer = NULL;
    int rc = machine_path(task->compute, task->id, dir, err);
    size_t n = json_dumpb(request, line, sizeof(line) - 2, JSON_COMPACT);

    json_decref(request);
    if (n == 0 || n > sizeof(line) - 2) {
        return err_set(err, -E2BIG, "a command to the monitor is too long");
    }
    memcpy(line + n, "\n", 2);
    rc = rc < 0 ? rc : control_ask(dir, task->id, line, CONTROL_TIMEOUT_MS, &answer, err);
    if (rc == 0 && answer == NULL) {
        rc = err_set(err, -EPIPE, "the monitor has ended");
    }
    if (rc == 0 && ret_answer != NULL) {
        *ret_answer = answer;
    } else {
        json_decref(answer);
    }
    return rc;
}

int machine_command(struct task *task, const char *command, json_t **ret_answer, struct err *err)
{
    return machine_ask(task, json_pack("{s:s}", "command", command), ret_answer, err);
}

/* A start under way. */
struct launch {
    struct task *task;
    const struct object *instance;
    struct limits limits;
    struct nic_card card;
    char dir[PATH_MAX];
};

/* ---- configuration ---- */

struct config {
    struct task *task;
    const struct object *instance;
    const struct image *image;
    const struct limits *limits;
    const struct nic_card *card;
    char dir[PATH_MAX], runtime[PATH_MAX];
    json_t *json;
};

static void set_text(struct config *config, const char *key, const char *text)
{
    (void)json_object_set_new(config->json, key, json_string(text));
}

/* "PREFIXDIR/NAME" as the value of a key. */
static int set_path(struct config *config, const char *key, const char *prefix, const char *dir,
                    const char *name, struct err *err)
{
    char path[PATH_MAX];
    int rc = path_format(path, err, "%s%s/%s", prefix, dir, name);

    if (rc == 0) {
        set_text(config, key, path);
    }
    return rc;
}

bool machine_has_ssh(const struct object *instance, const struct image *image)
{
    return image->user[0] != '\0' || object_text(instance, "public_key")[0] != '\0';
}

int machine_volume_text(struct compute *compute, const struct limits *limits, const char *id,
                        char **ret_text, struct err *err)
{
    char path[PATH_MAX], more[80];
    int rc = volume_path(compute, id, path, err);

    limits_disk_text(limits, id, more, sizeof(more));
    if (rc == 0 &&
        asprintf(ret_text, "%s,format=qcow2,backing-dir=%s/volumes,id=%.*s,serial=%.20s%s", path,
                 compute->state_dir, MACHINE_DISK_NAME_BYTES, id, id, more) < 0) {
        *ret_text = NULL;
        rc = err_set(err, -ENOMEM, "out of memory");
    }
    return rc;
}

static int set_disks(struct config *config, struct err *err)
{
    const json_t *volumes = json_object_get(config->instance->json, "volumes");
    CLEANUP_FREE char *text = malloc(DISK_TEXT_BYTES);
    char path[PATH_MAX], limits[80];
    json_t *disks = json_array();
    int rc = 0;

    (void)json_object_set_new(config->json, "disk", disks);
    if (text == NULL) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    rc = path_format(path, err, "%s/%s", config->dir, directory_head(config->instance));
    if (rc == 0 && path_exists(path)) {
        limits_disk_text(config->limits, "root", limits, sizeof(limits));
        (void)snprintf(text, DISK_TEXT_BYTES, "%s,format=qcow2,backing-dir=%s,id=root%s", path,
                       config->dir, limits);
        (void)json_array_append_new(disks, json_string(text));
    }
    for (size_t i = 0; rc == 0 && i < json_array_size(volumes) && i < MAX_DISKS; i++) {
        const char *id = json_string_value(json_array_get(volumes, i));

        CLEANUP_FREE char *volume = NULL;

        rc = machine_volume_text(config->task->compute, config->limits, id, &volume, err);
        (void)json_array_append_new(disks, json_string(volume != NULL ? volume : ""));
    }
    rc = rc < 0 ? rc : path_format(path, err, "%s/" SEED_FILE, config->dir);
    if (rc == 0 && seed_is_wanted(config->instance)) {
        (void)snprintf(text, DISK_TEXT_BYTES, "%s,ro,format=raw,id=seed,serial=seed", path);
        (void)json_array_append_new(disks, json_string(text));
    }
    return rc;
}

/* Ports that lead to it, in the user-mode network: at most 16 of some 20 bytes each. */
static void add_forwards(const struct config *config, char *text, size_t size)
{
    const json_t *forwards = json_object_get(config->instance->json, "forwards");
    size_t used = strlen(text);

    if (machine_has_ssh(config->instance, config->image)) {
        used += (size_t)snprintf(text + used, size - used, ",forward=0:%d", SSH_GUEST_PORT);
    }
    for (size_t i = 0; i < json_array_size(forwards) && used < size; i++) {
        const json_t *forward = json_array_get(forwards, i);

        used +=
            (size_t)snprintf(text + used, size - used, ",forward=%lld:%lld",
                             (long long)json_integer_value(json_object_get(forward, "host_port")),
                             (long long)json_integer_value(json_object_get(forward, "guest_port")));
    }
}

/* On a bridge it sends as nobody else: others there are not its owner's. */
static void set_net(struct config *config)
{
    const struct nic_card *card = config->card;
    bool is_user = network_is_user(card->network);
    char text[1024];
    size_t used = (size_t)snprintf(text, sizeof(text), "%s%s%s",
                                   is_user ? "user" : "tap,guard,fd=" MONITOR_TAP_FD_TEXT,
                                   card->mac[0] != '\0' ? ",mac=" : "", card->mac);

    limits_net_text(config->limits, text + used, sizeof(text) - used);
    if (is_user) {
        add_forwards(config, text, sizeof(text));
    }
    set_text(config, "net", text);
}

/* The image's with the instance's name, which systemd takes as the host's: data for cloud-init would
 * cost each boot seconds, for nothing else. */
static void set_cmdline(struct config *config)
{
    const char *own = object_text(config->instance, "cmdline");
    char text[sizeof(config->image->cmdline) + ID_BYTES + 32], host_name[ID_BYTES];

    seed_host_name(config->instance, host_name);
    (void)snprintf(text, sizeof(text), "%s systemd.hostname=%s", config->image->cmdline, host_name);
    set_text(config, "cmdline", own[0] != '\0' ? own : text);
}

/* What it has at first, and may have while it runs: of memory, which costs nothing until it is used,
 * more than was said. */
static void set_sizes(struct config *config)
{
    const struct object *instance = config->instance;
    int64_t cpus = object_number(instance, "cpus"), cpus_max = object_number(instance, "max_cpus");
    int64_t memory = object_number(instance, "memory_mib");
    int64_t memory_max = object_number(instance, "max_memory_mib");
    char text[64];

    memory_max = memory_max != 0 ? memory_max : MEMORY_MAX_TIMES * memory;
    memory_max = memory_max < KIND_MAX_MEMORY_MIB ? memory_max : KIND_MAX_MEMORY_MIB;
    (void)snprintf(text, sizeof(text), "%lld,max=%lld", (long long)cpus,
                   (long long)(cpus_max > cpus ? cpus_max : cpus));
    set_text(config, "cpus", text);
    (void)snprintf(text, sizeof(text), "%lldM,max=%lldM", (long long)memory,
                   (long long)(memory_max > memory ? memory_max : memory));
    set_text(config, "memory", text);
}

static int make_config(struct config *config, struct err *err)
{
    const struct object *instance = config->instance;
    char initrd[PATH_MAX];
    int rc = set_path(config, "kernel", "", config->dir, "vmlinuz", err);

    set_sizes(config);
    set_text(config, "engine", object_text(instance, "engine"));
    set_cmdline(config);
    rc = rc < 0 ? rc : path_format(initrd, err, "%s/initrd", config->dir);
    if (rc == 0 && path_exists(initrd)) {
        set_text(config, "initrd", initrd);
    }
    if (config->limits->vcpu_cap != 0) {
        (void)json_object_set_new(config->json, "cpu-cap", json_integer(config->limits->vcpu_cap));
    }
    if (config->limits->cpu_spare) {
        (void)json_object_set_new(config->json, "cpu-spare", json_true());
    }
    rc = rc < 0 ? rc : set_disks(config, err);
    set_net(config);
    rc = rc < 0 ? rc : set_path(config, "serial", "socket:", config->runtime, "console.sock", err);
    rc = rc < 0 ? rc : set_path(config, "serial-log", "", config->dir, MACHINE_SERIAL_LOG, err);
    rc = rc < 0 ? rc : set_path(config, "control", "", config->runtime, "control.sock", err);
    rc = rc < 0 ? rc : set_path(config, "agent", "", config->runtime, "agent.sock", err);
    return rc < 0 ? rc : set_path(config, "end-file", "", config->runtime, "end.json", err);
}

static int write_config(const struct launch *launch, struct err *err)
{
    struct task *task = launch->task;
    struct image image;
    struct config config = {.task = task,
                            .instance = launch->instance,
                            .image = &image,
                            .limits = &launch->limits,
                            .card = &launch->card};
    int rc = directory_path(task->compute, task->id, config.dir, err);

    rc = rc < 0 ? rc : machine_path(task->compute, task->id, config.runtime, err);
    rc = rc < 0 ? rc : image_load(config.dir, &image, err);
    if (rc < 0) {
        return rc;
    }
    config.json = json_object();
    rc = make_config(&config, err);
    if (rc < 0) {
        json_decref(config.json);
        return rc;
    }
    return machine_write_json(config.runtime, "vmm.json", config.json, err);
}

/* ---- launch ---- */

/* Who the monitor is, before it is one: a daemon that returns finds it by this. Then its group. */
static int record_monitor(void *opaque, pid_t pid, uint64_t start_ticks, struct err *err)
{
    struct launch *launch = opaque;
    int rc = task_step(launch->task, STEP_RECORD_MONITOR, false);

    rc = rc < 0 ? rc
                : machine_write_json(
                      launch->dir, "run.json",
                      json_pack("{s:i, s:I, s:I}", "pid", (int)pid, "start_ticks",
                                (json_int_t)start_ticks, "generation",
                                (json_int_t)object_number(launch->instance, "generation")),
                      err);
    rc = rc < 0 ? rc : task_step(launch->task, STEP_RECORD_MONITOR, true);
    return rc < 0 ? rc : limits_enter(launch->task, &launch->limits, pid, err);
}

/* An empty directory, locked. */
static int make_runtime(const char *dir, int *ret_lock_fd, struct err *err)
{
    int rc = path_remove(dir, err);

    rc = rc < 0 ? rc : path_make_dirs(dir, err);
    rc = rc < 0 ? rc : try_lock(dir, true, ret_lock_fd, err);
    return rc == 0 ? err_set(err, -EBUSY, "%s is locked by another process", dir)
                   : (rc < 0 ? rc : 0);
}

static int start_monitor(struct launch *launch, int lock_fd, int tap_fd, struct err *err)
{
    struct task *task = launch->task;
    char config[PATH_MAX], log[PATH_MAX];
    const char *const argv[] = {bundle_argument(task->compute->vmm, "corbel-vmm"),
                                "--config",
                                config,
                                "--ready-fd",
                                MONITOR_READY_FD_TEXT,
                                NULL};
    struct monitor_start start = {.name = object_text(launch->instance, "name"),
                                  .program = task->compute->vmm,
                                  .argv = argv,
                                  .log = log,
                                  .lock_fd = lock_fd,
                                  .tap_fd = tap_fd,
                                  .record = record_monitor,
                                  .opaque = launch};
    struct monitor monitor;
    int rc = path_format(config, err, "%s/vmm.json", launch->dir);

    rc = rc < 0 ? rc : path_format(log, err, "%s/vmm.log", launch->dir);
    rc = rc < 0 ? rc : task_step(task, STEP_LAUNCH, false);
    rc = rc < 0 ? rc : monitor_start(&start, &monitor, err);
    if (rc < 0) {
        return rc;
    }
    rc = task_step(task, STEP_LAUNCH, true);
    rc = rc < 0 ? rc : task_step(task, STEP_AWAIT_READY, false);
    rc = rc < 0 ? rc : monitor_await_ready(&monitor, &start, err);
    rc = rc < 0 ? rc : task_step(task, STEP_AWAIT_READY, true);
    if (rc < 0) {
        return rc;
    }
    task->pid = monitor.pid;
    task->start_ticks = monitor.start_ticks;
    task->is_child = true;
    task->pid_fd =
        pidfd_open(monitor.pid, 0); /* a child that nobody waited for: its number stays */
    if (task->pid_fd < 0) {
        rc = -errno;
        (void)kill(monitor.pid, SIGKILL);
        (void)monitor_wait(monitor.pid);
        return err_set_errno(err, rc, "the monitor cannot be watched");
    }
    rc = task_watch_end(task);
    if (rc < 0) {
        (void)kill(monitor.pid, SIGKILL);
        (void)task_forget_monitor(task);
        return err_set_errno(err, rc, "the monitor cannot be watched");
    }
    return 0;
}

/* Anew at each start: the name may have changed. */
static int write_seed(struct task *task, const struct object *instance, struct err *err)
{
    char dir[PATH_MAX];
    int rc;

    if (!seed_is_wanted(instance)) {
        return 0;
    }
    rc = directory_path(task->compute, task->id, dir, err);
    rc = rc < 0 ? rc : task_step(task, STEP_WRITE_SEED, false);
    rc = rc < 0 ? rc : seed_make(task->compute, instance, dir, err);
    return rc < 0 ? rc : task_step(task, STEP_WRITE_SEED, true);
}

/* Its tap, if it has one, is the monitor's from here on. */
static int start_on_network(struct launch *launch, int lock_fd, struct err *err)
{
    struct hostnet_tap tap = {.fd = -1};
    int rc = network_open(launch->task->compute, launch->task->id, launch->card.network, &tap, err);

    rc = rc < 0 ? rc : start_monitor(launch, lock_fd, tap.fd, err);
    if (tap.fd >= 0) {
        (void)close(tap.fd); /* nothing to lose */
    }
    return rc;
}

int machine_launch(struct task *task, struct object *instance, struct err *err)
{
    CLEANUP_CLOSE int lock_fd = -1;
    struct launch launch = {.task = task, .instance = instance};
    int rc = machine_path(task->compute, task->id, launch.dir, err);

    rc = rc < 0 ? rc : limits_of(task->compute, instance, &launch.limits, err);
    rc = rc < 0 ? rc : nic_card(task->compute, instance, &launch.card, err);
    rc = rc < 0 ? rc : limits_end(task, launch.dir, err);
    rc = rc < 0 ? rc : task_step(task, STEP_MAKE_RUNTIME, false);
    log_keep(task->compute, task->id);
    rc = rc < 0 ? rc : make_runtime(launch.dir, &lock_fd, err);
    rc = rc < 0 ? rc : task_step(task, STEP_MAKE_RUNTIME, true);
    rc = rc < 0 ? rc : write_seed(task, instance, err);
    rc = rc < 0 ? rc : task_step(task, STEP_WRITE_CONFIG, false);
    rc = rc < 0 ? rc : write_config(&launch, err);
    rc = rc < 0 ? rc : task_step(task, STEP_WRITE_CONFIG, true);
    rc = rc < 0 ? rc : limits_make(task, launch.dir, &launch.limits, err);
    return rc < 0 ? rc : start_on_network(&launch, lock_fd, err);
}

/* The forwards as they were opened; the first is that of ssh where the image has a user. */
void machine_set_ports(struct object *instance, const json_t *forwards, bool has_ssh)
{
    json_t *ports = json_array();

    object_clear(instance, "ssh_port");
    for (size_t i = 0; i < json_array_size(forwards); i++) {
        json_t *forward = json_array_get(forwards, i);

        if (i == 0 && has_ssh) {
            object_set_number(instance, "ssh_port",
                              json_integer_value(json_object_get(forward, "host_port")));
        } else {
            (void)json_array_append(ports, forward);
        }
    }
    (void)json_object_set_new(instance->json, "ports", ports);
}

int machine_learn(struct task *task, struct object *instance, struct err *err)
{
    json_t *answer = NULL;
    struct image image;
    char dir[PATH_MAX];
    const char *engine;
    int rc = machine_command(task, "status", &answer, err);

    rc = rc < 0 ? rc : directory_path(task->compute, task->id, dir, err);
    rc = rc < 0 ? rc : image_load(dir, &image, err);
    if (rc == 0) {
        engine = json_string_value(json_object_get(answer, "engine"));
        object_set_text(instance, "engine_used", engine != NULL ? engine : "");
        object_set_number(instance, "pid", task->pid);
        resize_learn(instance, answer);
        machine_set_ports(instance, json_object_get(answer, "forwards"),
                          machine_has_ssh(instance, &image));
        limits_note(task->compute, instance);
    }
    json_decref(answer);
    return rc;
}

int machine_clear(struct task *task, struct err *err)
{
    char dir[PATH_MAX];
    int rc = machine_path(task->compute, task->id, dir, err);

    if (rc < 0 || !path_exists(dir)) {
        return rc;
    }
    rc = limits_end(task, dir, err);
    rc = rc < 0 ? rc : task_step(task, STEP_CLEAR_RUNTIME, false);
    log_keep(task->compute, task->id);
    rc = rc < 0 ? rc : path_remove(dir, err);
    return rc < 0 ? rc : task_step(task, STEP_CLEAR_RUNTIME, true);
}
