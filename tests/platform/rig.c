#include "base/io.h"
#include "base/log.h"
#include "base/path.h"
#include "base/process.h"
#include "platform.h"
#include "store/store_sqlite.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define WAIT_MS 120000

static char state_dir[128], runtime_dir[128], images_dir[128];
static const char *vmm, *cgroup = "", *cgroup_dirs = "";

/* ---- a daemon ---- */

const struct compute_call rig_call = {.project = COMPUTE_DEFAULT_PROJECT, .actor = "test"};

/* Which step it is, and how many of them have come before. */
static unsigned count_step(struct daemon *daemon, const char *name, bool is_done)
{
    unsigned count, index = 0;
    const char *const *steps = compute_steps(&count);

    while (index < count && strcmp(steps[index], name) != 0) {
        index++;
    }
    CHECK(index < count && index < RIG_MAX_STEPS, "\"%s\" is no step that is known", name);
    return atomic_fetch_add(is_done ? &daemon->seen->done[index] : &daemon->seen->begun[index], 1);
}

static void on_step(void *opaque, const char *step, bool is_done)
{
    struct daemon *daemon = opaque;
    unsigned before = daemon->seen != NULL ? count_step(daemon, step, is_done) : 0;

    if ((daemon->kill_step != NULL && strcmp(daemon->kill_step, step) == 0 &&
         daemon->kill_when_done == is_done && daemon->kill_at == before) ||
        atomic_fetch_sub(&daemon->steps_left, 1) == 1) {
        (void)kill(getpid(), SIGKILL);
    }
}

static void daemon_open(struct daemon *daemon)
{
    char db[PATH_MAX];
    const struct store_sqlite_config store = {.path = db};
    struct compute_config config = {
        .state_dir = state_dir,
        .runtime_dir = runtime_dir,
        .images_dir = images_dir,
        .vmm = vmm,
        .cpu_ratio = 100000,
        .cgroup = cgroup,
        .on_step = on_step,
        .opaque = daemon,
    };
    struct err err;
    int rc;

    (void)snprintf(db, sizeof(db), "%s/state.db", state_dir);
    rc = store_sqlite_open(&store, &err, &daemon->store);
    CHECK(rc == 0, "%s", err.text);
    config.store = daemon->store;
    rc = compute_open(&config, &err, &daemon->compute);
    CHECK(rc == 0, "%s", err.text);
}

static void daemon_close(struct daemon *daemon)
{
    compute_close(daemon->compute);
    store_close(daemon->store);
}

/* ---- calls ---- */

static const char *id_of(const json_t *answer, const char *kind)
{
    return json_string_value(json_object_get(json_object_get(answer, kind), "id"));
}

/* Waits for the answer's operation, and checks that it did not fail. */
void rig_finish(struct daemon *daemon, json_t *answer)
{
    const char *id = id_of(answer, "operation");
    json_t *operation = NULL;
    struct fault fault;

    if (id != NULL) {
        int rc = compute_wait(daemon->compute, &rig_call, id, WAIT_MS, &operation, &fault);
        const char *state;

        CHECK(rc == 0, "%s", fault.text);
        state = json_string_value(json_object_get(operation, "state"));
        CHECK(strcmp(state, "done") == 0 || strcmp(state, "cancelled") == 0, "%s: %s %s",
              json_string_value(json_object_get(operation, "action")), state,
              json_string_value(json_object_get(operation, "error")));
        json_decref(operation);
    }
    json_decref(answer);
}

void rig_create(struct daemon *daemon, enum kind kind, const char *token, const char *text)
{
    struct compute_call call = rig_call;
    json_t *wanted = json_loads(text, 0, NULL), *answer = NULL;
    struct fault fault;
    int rc;

    call.token = token;
    rc = compute_create(daemon->compute, &call, kind, wanted, &answer, &fault);
    CHECK(rc == 0, "%s: %s", text, fault.text);
    json_decref(wanted);
    rig_finish(daemon, answer);
}

void rig_act(struct daemon *daemon, const char *action, const char *token, const char *id,
             const char *text)
{
    struct compute_call call = rig_call;
    json_t *parameters = text != NULL ? json_loads(text, 0, NULL) : NULL, *answer = NULL;
    struct fault fault;
    int rc;

    call.token = token;
    rc = compute_act(daemon->compute, &call, action, id, parameters, &answer, &fault);
    CHECK(rc == 0, "%s %s: %s", action, id, fault.text);
    json_decref(parameters);
    rig_finish(daemon, answer);
}

void rig_change(struct daemon *daemon, enum kind kind, const char *token, const char *id,
                const char *text)
{
    struct compute_call call = rig_call;
    json_t *changes = json_loads(text, 0, NULL), *answer = NULL;
    struct fault fault;
    int rc;

    call.token = token;
    rc = compute_change(daemon->compute, &call, kind, id, changes, 0, &answer, &fault);
    CHECK(rc == 0, "%s %s: %s", id, text, fault.text);
    json_decref(changes);
    rig_finish(daemon, answer);
}

/* Absent is fine: it was deleted by one that was killed then. */
void rig_delete(struct daemon *daemon, enum kind kind, const char *token, const char *id)
{
    struct compute_call call = rig_call;
    json_t *answer = NULL;
    struct fault fault;
    int rc;

    call.token = token;
    rc = compute_delete(daemon->compute, &call, kind, id, &answer, &fault);
    CHECK(rc == 0, "delete %s: %s", id, fault.text);
    rig_finish(daemon, answer);
}

void rig_restore(struct daemon *daemon, const char *token, const char *id)
{
    struct compute_call call = rig_call;
    json_t *answer = NULL;
    struct fault fault;
    int rc;

    call.token = token;
    rc = compute_restore(daemon->compute, &call, id, &answer, &fault);
    CHECK(rc == 0, "restore %s: %s", id, fault.text);
    rig_finish(daemon, answer);
}

json_t *rig_list(struct daemon *daemon, enum kind kind, const char *field, const char *value)
{
    json_t *filter = field != NULL ? json_pack("{s:s}", field, value) : NULL, *page = NULL, *items;
    const struct compute_list what = {.filter = filter, .limit = COMPUTE_MAX_PAGE};
    struct fault fault;
    int rc = compute_list(daemon->compute, &rig_call, kind, &what, &page, &fault);

    CHECK(rc == 0, "%s", fault.text);
    items = json_incref(json_object_get(page, "items"));
    json_decref(page);
    json_decref(filter);
    return items;
}

const char *rig_text(const json_t *object, const char *field)
{
    const char *text = json_string_value(json_object_get(object, field));

    return text != NULL ? text : "";
}

/* Waits until no operation is under way any more. */
void rig_settle(struct daemon *daemon)
{
    static const char *const states[] = {"pending", "running"};

    for (size_t i = 0; i < ARRAY_LEN(states); i++) {
        json_t *operations = rig_list(daemon, KIND_OPERATION, "state", states[i]);

        for (size_t j = 0; j < json_array_size(operations); j++) {
            json_t *answer = json_pack("{s:O}", "operation", json_array_get(operations, j));

            rig_finish(daemon, answer);
        }
        json_decref(operations);
    }
}

/* ---- what is there ---- */

/* Monitors of this test: processes whose command line names its runtime directory. */
static unsigned count_monitors(void)
{
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    unsigned count = 0;

    CHECK(proc != NULL, "%s", strerror(errno));
    while ((entry = readdir(proc)) != NULL) {
        char path[300], text[4096];
        ssize_t n;
        CLEANUP_CLOSE int fd = -1;
        long pid = strtol(entry->d_name, NULL, 10);

        (void)snprintf(path, sizeof(path), "/proc/%s/cmdline", entry->d_name);
        fd = pid > 0 && pid != getpid() ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        n = fd >= 0 ? io_read_full(fd, text, sizeof(text) - 1) : 0;
        if (n > 0 && process_start_ticks((pid_t)pid) != 0 &&
            memmem(text, (size_t)n, runtime_dir, strlen(runtime_dir)) != NULL) {
            count++;
        }
    }
    (void)closedir(proc);
    return count;
}

static unsigned count_entries(const char *dir, const char *sub)
{
    char path[PATH_MAX + 16];
    struct dirent *entry;
    unsigned count = 0;
    DIR *opened;

    (void)snprintf(path, sizeof(path), "%s/%s", dir, sub);
    opened = opendir(path);
    CHECK(opened != NULL, "%s: %s", path, strerror(errno));
    while ((entry = readdir(opened)) != NULL) {
        count += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    }
    (void)closedir(opened);
    return count;
}

/*
 * What does not last of a machine is cleared away after it is recorded that the machine is off: an
 * operation's end does not tell yet that it is gone. Whoever waits in vain is ended by the time-out.
 */
static void wait_for_entries(const char *dir, const char *sub, unsigned wanted)
{
    char path[PATH_MAX + 16], events[4096];
    CLEANUP_CLOSE int fd = inotify_init1(IN_CLOEXEC);

    (void)snprintf(path, sizeof(path), "%s/%s", dir, sub);
    CHECK(fd >= 0 && inotify_add_watch(fd, path, IN_CREATE | IN_DELETE | IN_MOVE) >= 0, "%s: %s",
          path, strerror(errno));
    while (count_entries(dir, sub) != wanted) {
        CHECK(read(fd, events, sizeof(events)) > 0 || errno == EINTR, "%s", strerror(errno));
    }
}

/* Machines' groups in one of the directories where there may be some. */
static unsigned count_groups(const char *dir)
{
    char path[PATH_MAX + 300];
    const struct dirent *entry;
    unsigned count = 0;
    DIR *opened = opendir(dir);

    CHECK(opened != NULL, "%s: %s", dir, strerror(errno));
    while ((entry = readdir(opened)) != NULL) {
        const struct dirent *member;
        DIR *own;

        (void)snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
        own = strncmp(entry->d_name, "corbel-", 7) == 0 ? opendir(path) : NULL;
        while (own != NULL && (member = readdir(own)) != NULL) {
            count += strncmp(member->d_name, "i-", 2) == 0;
        }
        if (own != NULL) {
            (void)closedir(own);
        }
    }
    (void)closedir(opened);
    return count;
}

/* One group of CPU time for each that runs; others where a limit needs one. */
static void check_groups(unsigned running)
{
    char dirs[1024];
    char *save = NULL;
    unsigned index = 0;

    (void)snprintf(dirs, sizeof(dirs), "%s", cgroup_dirs);
    for (char *dir = strtok_r(dirs, ",", &save); dir != NULL; dir = strtok_r(NULL, ",", &save)) {
        unsigned count = count_groups(dir);

        CHECK(index++ == 0 ? count == running : count <= running,
              "%u control groups in %s for %u machines", count, dir, running);
    }
}

unsigned rig_count_fds(void)
{
    return count_entries("/proc/self", "fd");
}

/* Each instance has a network card, and each that somebody has is that instance's; one that was made
 * with an instance is nobody else's. */
static void check_nics(struct daemon *daemon, size_t instances)
{
    json_t *nics = rig_list(daemon, KIND_NIC, NULL, NULL);
    size_t used = 0;

    for (size_t i = 0; i < json_array_size(nics); i++) {
        const json_t *nic = json_array_get(nics, i);
        const char *owner = rig_text(nic, "instance");
        bool is_used = strcmp(rig_text(nic, "state"), "in-use") == 0;
        json_t *found = rig_list(daemon, KIND_INSTANCE, "nic", rig_text(nic, "id"));

        CHECK(is_used == (owner[0] != '\0') && json_array_size(found) == is_used,
              "%s is %s and %s's", rig_text(nic, "name"), rig_text(nic, "state"), owner);
        CHECK(!is_used || strcmp(rig_text(json_array_get(found, 0), "id"), owner) == 0,
              "%s is another's than %s's", rig_text(nic, "name"), owner);
        CHECK(is_used || !json_is_true(json_object_get(nic, "own")), "%s has lost its instance",
              rig_text(nic, "name"));
        used += is_used;
        json_decref(found);
    }
    CHECK(used == instances, "%zu network cards for %zu instances", used, instances);
    json_decref(nics);
}

static void check_state(const json_t *object, bool is_good)
{
    CHECK(is_good, "%s is %s: %s", rig_text(object, "name"), rig_text(object, "state"),
          rig_text(object, "reason"));
}

/* What the records say, and what the host has: one monitor for each that runs, no more. */
void rig_check_truth(struct daemon *daemon)
{
    json_t *instances = rig_list(daemon, KIND_INSTANCE, NULL, NULL);
    unsigned running = 0;

    for (size_t i = 0; i < json_array_size(instances); i++) {
        const json_t *instance = json_array_get(instances, i);
        const char *state = rig_text(instance, "state");
        bool is_on = strcmp(state, "running") == 0 || strcmp(state, "paused") == 0;
        char path[PATH_MAX + 80];

        check_state(instance, is_on || strcmp(state, "stopped") == 0);
        running += is_on;
        (void)snprintf(path, sizeof(path), "%s/machines/%s/disk.raw", state_dir,
                       rig_text(instance, "id"));
        CHECK(access(path, F_OK) == 0, "%s", path);
        if (is_on) {
            pid_t pid = (pid_t)json_integer_value(json_object_get(instance, "pid"));

            CHECK(process_start_ticks(pid) != 0, "process %d of %s", pid,
                  rig_text(instance, "name"));
        }
    }
    check_nics(daemon, json_array_size(instances));
    CHECK(count_monitors() == running, "%u monitors for %u instances that run", count_monitors(),
          running);
    CHECK(count_entries(state_dir, "machines") == json_array_size(instances), "%u directories",
          count_entries(state_dir, "machines"));
    wait_for_entries(runtime_dir, "vm", running);
    check_groups(running); /* they go before the directories there */
    json_decref(instances);
}

/* Each snapshot there is has what it needs, and nothing else is there. */
void rig_check_snapshots(struct daemon *daemon)
{
    json_t *snapshots = rig_list(daemon, KIND_SNAPSHOT, NULL, NULL);
    unsigned of_instances = 0;

    for (size_t i = 0; i < json_array_size(snapshots); i++) {
        const json_t *snapshot = json_array_get(snapshots, i);
        const char *parent = rig_text(snapshot, "parent");

        check_state(snapshot, strcmp(rig_text(snapshot, "state"), "available") == 0);
        of_instances += rig_text(snapshot, "instance")[0] != '\0';
        if (parent[0] != '\0') {
            json_t *found = rig_list(daemon, KIND_SNAPSHOT, "id", parent);

            CHECK(json_array_size(found) == 1, "%s has no parent", rig_text(snapshot, "name"));
            json_decref(found);
        }
    }
    CHECK(count_entries(state_dir, "snapshots") == of_instances, "%u directories of %u snapshots",
          count_entries(state_dir, "snapshots"), of_instances);
    json_decref(snapshots);
}

void rig_check_empty(struct daemon *daemon)
{
    json_t *instances = rig_list(daemon, KIND_INSTANCE, NULL, NULL);
    json_t *volumes = rig_list(daemon, KIND_VOLUME, NULL, NULL);
    json_t *snapshots = rig_list(daemon, KIND_SNAPSHOT, NULL, NULL);
    json_t *nics = rig_list(daemon, KIND_NIC, NULL, NULL);

    CHECK(json_array_size(instances) + json_array_size(volumes) + json_array_size(snapshots) +
                  json_array_size(nics) ==
              0,
          "records are left");
    rig_check_truth(daemon);
    rig_check_snapshots(daemon);
    CHECK(count_entries(state_dir, "volumes") <= 3,
          "%u files in the pool", /* record, lock, reserve */
          count_entries(state_dir, "volumes"));
    json_decref(instances);
    json_decref(volumes);
    json_decref(snapshots);
    json_decref(nics);
}

/* ---- one after another ---- */

/* In a child: its status, or -1 for one that was killed. */
int rig_run_child(void (*fn)(struct daemon *daemon, void *opaque), struct daemon *daemon,
                  void *opaque)
{
    int status = 0;
    pid_t pid = fork();

    CHECK(pid >= 0, "%s", strerror(errno));
    if (pid == 0) {
        (void)prctl(PR_SET_CHILD_SUBREAPER, 0);
        daemon_open(daemon);
        fn(daemon, opaque);
        daemon_close(daemon);
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid, "%s", strerror(errno));
    if (WIFSIGNALED(status)) {
        CHECK(WTERMSIG(status) == SIGKILL, "signal %d", WTERMSIG(status));
        return -1;
    }
    return WEXITSTATUS(status);
}

void rig_start_anew(void)
{
    char path[PATH_MAX];
    struct err err;

    CHECK(path_remove(state_dir, &err) == 0, "%s", err.text);
    CHECK(path_remove(runtime_dir, &err) == 0, "%s", err.text);
    (void)snprintf(path, sizeof(path), "%s", state_dir);
    CHECK(path_make_dirs(path, &err) == 0, "%s", err.text);
}

/* ---- the whole ---- */

static void link_file(const char *from, const char *name)
{
    char source[PATH_MAX + 64], target[PATH_MAX + 64];

    (void)snprintf(source, sizeof(source), "%s/%s", from, name);
    (void)snprintf(target, sizeof(target), "%s/tiny/%s", images_dir, name);
    CHECK(symlink(source, target) == 0, "%s: %s", target, strerror(errno));
}

/* An image whose guest is said to heed a power button, and does not. */
static void make_image(const char *from)
{
    static const char json[] =
        "{\"kind\": \"tiny\", \"kernel\": \"test\", \"cmdline\": "
        "\"console=ttyS0 quiet\", \"memory_mib\": 128, \"power_button\": true}";
    char path[PATH_MAX + 64];
    struct err err;
    int fd;

    (void)snprintf(path, sizeof(path), "%s/tiny", images_dir);
    CHECK(path_make_dirs(path, &err) == 0, "%s", err.text);
    link_file(from, "vmlinuz");
    link_file(from, "initrd");
    (void)snprintf(path, sizeof(path), "%s/tiny/image.json", images_dir);
    fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && io_write_full(fd, json, sizeof(json) - 1) == 0, "%s", path);
    (void)close(fd);
    (void)snprintf(path, sizeof(path), "%s/tiny/disk.raw", images_dir);
    fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && ftruncate(fd, 8 << 20) == 0, "%s", path);
    (void)close(fd);
}

void rig_open(const char *with_vmm, const char *image, const char *dir)
{
    vmm = with_vmm;
    (void)snprintf(state_dir, sizeof(state_dir), "%s/state", dir);
    (void)snprintf(runtime_dir, sizeof(runtime_dir), "%s/run", dir);
    (void)snprintf(images_dir, sizeof(images_dir), "%s/images", dir);
    make_image(image);
}

void rig_use_groups(const char *group, const char *group_dirs)
{
    cgroup = group;
    cgroup_dirs = group_dirs;
}
