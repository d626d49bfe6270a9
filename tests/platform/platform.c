/*
 * The control plane against real machines, with its process killed at every
 * turn.
 *
 * A "daemon" is a child that opens store and compute, makes calls, and is
 * ended by SIGKILL at a step that was chosen. The next one goes on with what it
 * finds; then everything that was acknowledged has to be there, once, and after
 * deletion nothing may be left.
 *
 * usage: platform --vmm FILE --image DIR [--steps EVERY] [--ops N] [--cycles N]
 *                 [--parallel N] [--seed N] [--cgroup GROUP --cgroup-dirs DIR,DIR...]
 *
 * DIR is an image of `corbel image`; its kernel and initrd are used. GROUP is a
 * control group that machines' groups may be made in, and is seen in the
 * directories given; the first of them is that of CPU time.
 */
#include "base/io.h"
#include "base/log.h"
#include "base/path.h"
#include "base/process.h"
#include "base/thread.h"
#include "compute/compute.h"
#include "store/store_sqlite.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define WAIT_MS 120000
#define MAX_INSTANCES 8 /* at a time, of random work */
#define MAX_PARALLEL 64

#define CHECK(condition, ...)                                                     \
    do {                                                                          \
        if (!(condition)) {                                                       \
            (void)fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            (void)fprintf(stderr, __VA_ARGS__);                                   \
            (void)fputc('\n', stderr);                                            \
            _exit(1);                                                             \
        }                                                                         \
    } while (0)

static char root[64], state_dir[128], runtime_dir[128], images_dir[128];
static const char *vmm, *cgroup = "", *cgroup_dirs = "";

/* ---- a daemon ---- */

struct daemon {
    struct store *store;
    struct compute *compute;
    const char *kill_step; /* NULL: none by name */
    bool kill_when_done;
    atomic_int steps_left; /* killed when it reaches 0 */
};

static const struct compute_call call_plain = {.project = COMPUTE_DEFAULT_PROJECT, .actor = "test"};

static void on_step(void *opaque, const char *step, bool is_done)
{
    struct daemon *daemon = opaque;

    if ((daemon->kill_step != NULL && strcmp(daemon->kill_step, step) == 0 &&
         daemon->kill_when_done == is_done) ||
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
static void finish(struct daemon *daemon, json_t *answer)
{
    const char *id = id_of(answer, "operation");
    json_t *operation = NULL;
    struct fault fault;

    if (id != NULL) {
        int rc = compute_wait(daemon->compute, &call_plain, id, WAIT_MS, &operation, &fault);
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

static void create(struct daemon *daemon, enum kind kind, const char *token, const char *text)
{
    struct compute_call call = call_plain;
    json_t *wanted = json_loads(text, 0, NULL), *answer = NULL;
    struct fault fault;
    int rc;

    call.token = token;
    rc = compute_create(daemon->compute, &call, kind, wanted, &answer, &fault);
    CHECK(rc == 0, "%s: %s", text, fault.text);
    json_decref(wanted);
    finish(daemon, answer);
}

static void act(struct daemon *daemon, const char *action, const char *token, const char *id,
                const char *text)
{
    struct compute_call call = call_plain;
    json_t *parameters = text != NULL ? json_loads(text, 0, NULL) : NULL, *answer = NULL;
    struct fault fault;
    int rc;

    call.token = token;
    rc = compute_act(daemon->compute, &call, action, id, parameters, &answer, &fault);
    CHECK(rc == 0, "%s %s: %s", action, id, fault.text);
    json_decref(parameters);
    finish(daemon, answer);
}

static void change(struct daemon *daemon, enum kind kind, const char *token, const char *id,
                   const char *text)
{
    struct compute_call call = call_plain;
    json_t *changes = json_loads(text, 0, NULL), *answer = NULL;
    struct fault fault;
    int rc;

    call.token = token;
    rc = compute_change(daemon->compute, &call, kind, id, changes, 0, &answer, &fault);
    CHECK(rc == 0, "%s %s: %s", id, text, fault.text);
    json_decref(changes);
    finish(daemon, answer);
}

/* Absent is fine: it was deleted by one that was killed then. */
static void delete (struct daemon *daemon, enum kind kind, const char *token, const char *id)
{
    struct compute_call call = call_plain;
    json_t *answer = NULL;
    struct fault fault;
    int rc;

    call.token = token;
    rc = compute_delete(daemon->compute, &call, kind, id, &answer, &fault);
    CHECK(rc == 0, "delete %s: %s", id, fault.text);
    finish(daemon, answer);
}

static void restore(struct daemon *daemon, const char *token, const char *id)
{
    struct compute_call call = call_plain;
    json_t *answer = NULL;
    struct fault fault;
    int rc;

    call.token = token;
    rc = compute_restore(daemon->compute, &call, id, &answer, &fault);
    CHECK(rc == 0, "restore %s: %s", id, fault.text);
    finish(daemon, answer);
}

static json_t *list(struct daemon *daemon, enum kind kind, const char *field, const char *value)
{
    json_t *filter = field != NULL ? json_pack("{s:s}", field, value) : NULL, *page = NULL, *items;
    const struct compute_list what = {.filter = filter, .limit = COMPUTE_MAX_PAGE};
    struct fault fault;
    int rc = compute_list(daemon->compute, &call_plain, kind, &what, &page, &fault);

    CHECK(rc == 0, "%s", fault.text);
    items = json_incref(json_object_get(page, "items"));
    json_decref(page);
    json_decref(filter);
    return items;
}

static const char *text_of(const json_t *object, const char *field)
{
    const char *text = json_string_value(json_object_get(object, field));

    return text != NULL ? text : "";
}

/* Waits until no operation is under way any more. */
static void settle(struct daemon *daemon)
{
    static const char *const states[] = {"pending", "running"};

    for (size_t i = 0; i < ARRAY_LEN(states); i++) {
        json_t *operations = list(daemon, KIND_OPERATION, "state", states[i]);

        for (size_t j = 0; j < json_array_size(operations); j++) {
            json_t *answer = json_pack("{s:O}", "operation", json_array_get(operations, j));

            finish(daemon, answer);
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
    while (count_entries(dir, sub) != wanted) {
        (void)usleep(10000);
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

static unsigned count_fds(void)
{
    return count_entries("/proc/self", "fd");
}

/* What the records say, and what the host has: one monitor for each that runs, no more. */
static void check_truth(struct daemon *daemon)
{
    json_t *instances = list(daemon, KIND_INSTANCE, NULL, NULL);
    unsigned running = 0;

    for (size_t i = 0; i < json_array_size(instances); i++) {
        const json_t *instance = json_array_get(instances, i);
        const char *state = text_of(instance, "state");
        bool is_on = strcmp(state, "running") == 0 || strcmp(state, "paused") == 0;
        char path[PATH_MAX + 80];

        CHECK(is_on || strcmp(state, "stopped") == 0, "%s is %s: %s", text_of(instance, "name"),
              state, text_of(instance, "reason"));
        running += is_on;
        (void)snprintf(path, sizeof(path), "%s/machines/%s/disk.raw", state_dir,
                       text_of(instance, "id"));
        CHECK(access(path, F_OK) == 0, "%s", path);
        if (is_on) {
            pid_t pid = (pid_t)json_integer_value(json_object_get(instance, "pid"));

            CHECK(process_start_ticks(pid) != 0, "process %d of %s", pid,
                  text_of(instance, "name"));
        }
    }
    CHECK(count_monitors() == running, "%u monitors for %u instances that run", count_monitors(),
          running);
    CHECK(count_entries(state_dir, "machines") == json_array_size(instances), "%u directories",
          count_entries(state_dir, "machines"));
    wait_for_entries(runtime_dir, "vm", running);
    check_groups(running); /* they go before the directories there */
    json_decref(instances);
}

/* Each snapshot there is has what it needs, and nothing else is there. */
static void check_snapshots(struct daemon *daemon)
{
    json_t *snapshots = list(daemon, KIND_SNAPSHOT, NULL, NULL);
    unsigned of_instances = 0;

    for (size_t i = 0; i < json_array_size(snapshots); i++) {
        const json_t *snapshot = json_array_get(snapshots, i);
        const char *parent = text_of(snapshot, "parent");

        CHECK(strcmp(text_of(snapshot, "state"), "available") == 0, "%s is %s: %s",
              text_of(snapshot, "name"), text_of(snapshot, "state"), text_of(snapshot, "reason"));
        of_instances += text_of(snapshot, "instance")[0] != '\0';
        if (parent[0] != '\0') {
            json_t *found = list(daemon, KIND_SNAPSHOT, "id", parent);

            CHECK(json_array_size(found) == 1, "%s has no parent", text_of(snapshot, "name"));
            json_decref(found);
        }
    }
    CHECK(count_entries(state_dir, "snapshots") == of_instances, "%u directories of %u snapshots",
          count_entries(state_dir, "snapshots"), of_instances);
    json_decref(snapshots);
}

static void check_nothing_is_left(struct daemon *daemon)
{
    json_t *instances = list(daemon, KIND_INSTANCE, NULL, NULL);
    json_t *volumes = list(daemon, KIND_VOLUME, NULL, NULL);
    json_t *snapshots = list(daemon, KIND_SNAPSHOT, NULL, NULL);

    CHECK(json_array_size(instances) + json_array_size(volumes) + json_array_size(snapshots) == 0,
          "records are left");
    check_truth(daemon);
    check_snapshots(daemon);
    CHECK(count_entries(state_dir, "volumes") <= 3,
          "%u files in the pool", /* record, lock, reserve */
          count_entries(state_dir, "volumes"));
    json_decref(instances);
    json_decref(volumes);
    json_decref(snapshots);
}

/* ---- a kill at each step ---- */

/* Work that passes every step. Each call has a token, so that all of it may be done again. */
static void scenario(struct daemon *daemon)
{
    static const char stop[] = "{\"timeout_s\": 20}";
    json_t *instances;

    create(daemon, KIND_VOLUME, "t1", "{\"name\": \"data\", \"size_gib\": 1}");
    create(
        daemon, KIND_INSTANCE, "t2",
        "{\"name\": \"vm\", \"image\": \"tiny\", \"type\": \"micro\", \"engine\": \"soft\","
        " \"memory_mib\": 128, \"max_cpus\": 2, \"volumes\": [\"data\"], \"user_data\": \"#!/bin/sh\"}");
    create(
        daemon, KIND_INSTANCE, "t3",
        "{\"name\": \"off\", \"image\": \"tiny\", \"type\": \"micro\", \"desired\": \"stopped\"}");
    change(daemon, KIND_INSTANCE, "t14", "vm",
           "{\"cpu_weight\": 50, \"cpu_cap_percent\": 90, \"pinned_cpus\": \"0\"}");
    change(daemon, KIND_INSTANCE, "t15", "vm",
           "{\"forwards\": [{\"host_port\": 0, \"guest_port\": 80}]}");
    act(daemon, "pause", "t4", "vm", NULL);
    create(daemon, KIND_SNAPSHOT, "s1", "{\"name\": \"live\", \"instance\": \"vm\"}");
    create(daemon, KIND_SNAPSHOT, "s2", "{\"name\": \"live-data\", \"volume\": \"data\"}");
    act(daemon, "resume", "t5", "vm", NULL);
    change(daemon, KIND_INSTANCE, "r1", "vm", "{\"cpus\": 2, \"volumes\": []}");
    change(daemon, KIND_INSTANCE, "r2", "vm", "{\"memory_mib\": 160, \"volumes\": [\"data\"]}");
    act(daemon, "restart", "t6", "vm", stop);
    act(daemon, "stop", "t7", "vm", stop);
    create(daemon, KIND_SNAPSHOT, "s3", "{\"name\": \"off\", \"instance\": \"vm\"}");
    restore(daemon, "s4", "live");
    restore(daemon, "s5", "live-data");
    create(daemon, KIND_INSTANCE, "s6",
           "{\"name\": \"copy\", \"snapshot\": \"live\", \"type\": \"micro\","
           " \"desired\": \"stopped\"}");
    create(daemon, KIND_VOLUME, "s7", "{\"name\": \"copied\", \"snapshot\": \"live-data\"}");
    create(daemon, KIND_SNAPSHOT, "s8", "{\"name\": \"rest\", \"volume\": \"copied\"}");
    delete (daemon, KIND_SNAPSHOT, "s9", "off");
    delete (daemon, KIND_VOLUME, "s10", "copied");
    change(daemon, KIND_INSTANCE, "t8", "vm", "{\"volumes\": []}");
    change(daemon, KIND_VOLUME, "t9", "data", "{\"size_gib\": 2}");
    act(daemon, "start", "t10", "vm", NULL);
    instances = list(daemon, KIND_INSTANCE, "name", "vm");
    CHECK(json_array_size(instances) <= 1, "there are two of one token");
    if (json_array_size(instances) == 1) {
        pid_t pid = (pid_t)json_integer_value(json_object_get(json_array_get(instances, 0), "pid"));

        check_truth(daemon);
        check_snapshots(daemon);
        /* One that does not answer is killed by its number. */
        if (pid > 0 && strcmp(text_of(json_array_get(instances, 0), "state"), "running") == 0) {
            (void)kill(pid, SIGSTOP);
        }
    }
    json_decref(instances);
    delete (daemon, KIND_SNAPSHOT, "s11", "live");
    delete (daemon, KIND_SNAPSHOT, "s12", "live-data");
    delete (daemon, KIND_SNAPSHOT, "s13", "rest");
    delete (daemon, KIND_INSTANCE, "s14", "copy");
    delete (daemon, KIND_INSTANCE, "t11", "vm");
    delete (daemon, KIND_INSTANCE, "t12", "off");
    delete (daemon, KIND_VOLUME, "t13", "data");
}

/* In a child: its status, or -1 for one that was killed. */
static int run_child(void (*fn)(struct daemon *daemon, void *opaque), struct daemon *daemon,
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

static void run_scenario(struct daemon *daemon, void *opaque)
{
    (void)opaque;
    scenario(daemon);
}

static void run_scenario_again(struct daemon *daemon, void *opaque)
{
    (void)opaque;
    settle(daemon);
    check_truth(daemon);
    scenario(daemon);
    check_nothing_is_left(daemon);
}

static void start_anew(void)
{
    char path[PATH_MAX];
    struct err err;

    CHECK(path_remove(state_dir, &err) == 0, "%s", err.text);
    CHECK(path_remove(runtime_dir, &err) == 0, "%s", err.text);
    (void)snprintf(path, sizeof(path), "%s", state_dir);
    CHECK(path_make_dirs(path, &err) == 0, "%s", err.text);
}

/* Every step, killed before it and after it; every-th of all these. */
static void test_steps(unsigned every, unsigned first)
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
        start_anew();
        status = run_child(run_scenario, &killed, NULL);
        CHECK(status == -1, "no step \"%s\" was reached (status %d)", steps[i / 2], status);
        status = run_child(run_scenario_again, &next, NULL);
        CHECK(status == 0, "after a kill %s \"%s\"", i % 2 == 1 ? "after" : "before", steps[i / 2]);
        printf("ok %u - killed %s %s\n", ++number, i % 2 == 1 ? "after" : "before", steps[i / 2]);
        (void)fflush(stdout);
        tried++;
    }
    printf("1..%u\n", tried);
}

/* ---- random work ---- */

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
    int rc = compute_act(daemon->compute, &call_plain, action, name, parameters, &answer, &fault);

    json_decref(parameters);
    CHECK(rc == 0 || rc == -EBUSY, "%s %s: %s", action, name, fault.text);
    if (rc == 0 && pick(model, 3) == 0) {
        finish(daemon, answer);
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
    rc = compute_create(daemon->compute, &call_plain, KIND_INSTANCE, wanted, &answer, &fault);
    CHECK(rc == 0, "%s: %s", model->names[slot], fault.text);
    model->is_there[slot] = true;
    json_decref(wanted);
    json_decref(answer);
}

static void try_delete(struct daemon *daemon, struct model *model, int slot)
{
    json_t *answer = NULL;
    struct fault fault;
    int rc = compute_delete(daemon->compute, &call_plain, KIND_INSTANCE, model->names[slot],
                            &answer, &fault);

    CHECK(rc == 0, "delete %s: %s", model->names[slot], fault.text);
    model->is_there[slot] = false;
    json_decref(answer);
}

/* What was acknowledged is there, and nothing else, but for the call that was under way. */
static void check_model(struct daemon *daemon, struct model *model)
{
    json_t *instances = list(daemon, KIND_INSTANCE, NULL, NULL);
    unsigned unknown = 0, missing = 0;

    for (size_t i = 0; i < json_array_size(instances); i++) {
        const char *name = text_of(json_array_get(instances, i), "name");
        int slot = -1;

        for (int j = 0; j < MAX_INSTANCES; j++) {
            slot = model->is_there[j] && strcmp(model->names[j], name) == 0 ? j : slot;
        }
        if (slot < 0) {
            unknown++; /* created, and killed before it was told */
            delete (daemon, KIND_INSTANCE, NULL, name);
        }
    }
    for (int j = 0; j < MAX_INSTANCES; j++) {
        json_t *found =
            model->is_there[j] ? list(daemon, KIND_INSTANCE, "name", model->names[j]) : NULL;

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

    settle(daemon);
    check_model(daemon, model);
    check_truth(daemon);
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
    settle(daemon);
    check_truth(daemon);
}

static void run_clean(struct daemon *daemon, void *opaque)
{
    struct model *model = opaque;

    settle(daemon);
    check_model(daemon, model);
    for (int i = 0; i < MAX_INSTANCES; i++) {
        if (model->is_there[i]) {
            try_delete(daemon, model, i);
        }
    }
    settle(daemon);
    check_nothing_is_left(daemon);
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
    status = run_child(fn, daemon, model);
    (void)close(fds[1]);
    follow(model, fds[0]);
    (void)close(fds[0]);
    return status;
}

static void test_random(unsigned operations, unsigned seed)
{
    struct model model = {.seed = seed, .wanted = operations};
    unsigned kills = 0;

    printf("# seed %u\n", seed);
    start_anew();
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

/* ---- many of one kind ---- */

static void run_cycles(struct daemon *daemon, void *opaque)
{
    unsigned cycles = *(unsigned *)opaque, fds = 0;

    for (unsigned i = 0; i < cycles; i++) {
        if (i == 1) {
            fds = count_fds(); /* what the first has opened for good is open */
        }
        create(daemon, KIND_INSTANCE, NULL,
               "{\"name\": \"vm\", \"image\": \"tiny\", \"type\": \"micro\", \"engine\": \"soft\","
               " \"memory_mib\": 128}");
        delete (daemon, KIND_INSTANCE, NULL, "vm");
    }
    /* What watched the last machine is closed a moment after it is gone. */
    for (unsigned i = 0; cycles > 1 && i < 1000 && count_fds() > fds; i++) {
        (void)usleep(10000);
    }
    CHECK(cycles < 2 || count_fds() <= fds, "%u descriptors, %u in the beginning", count_fds(),
          fds);
    check_nothing_is_left(daemon);
}

static void test_cycles(unsigned cycles)
{
    struct daemon daemon = {.store = NULL};

    start_anew();
    CHECK(run_child(run_cycles, &daemon, &cycles) == 0, "%u cycles", cycles);
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
    create(creator->daemon, KIND_INSTANCE, NULL, text);
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
    check_truth(daemon);
    for (unsigned i = 0; i < count; i++) {
        char name[16];

        (void)snprintf(name, sizeof(name), "p%u", i);
        delete (daemon, KIND_INSTANCE, NULL, name);
    }
    check_nothing_is_left(daemon);
}

static void test_parallel(unsigned count)
{
    struct daemon daemon = {.store = NULL};

    CHECK(count <= MAX_PARALLEL, "at most %d", MAX_PARALLEL);
    start_anew();
    CHECK(run_child(run_parallel, &daemon, &count) == 0, "%u at a time", count);
    printf("ok 1 - %u created at a time\n1..1\n", count);
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

static unsigned number_of(const char *text)
{
    return (unsigned)strtoul(text, NULL, 10);
}

int main(int argc, char **argv)
{
    const char *image = NULL;
    unsigned every = 0, first = 0, operations = 0, cycles = 0, parallel = 0, seed = 1;
    struct err err;

    for (int i = 1; i + 1 < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];

        vmm = strcmp(name, "--vmm") == 0 ? value : vmm;
        cgroup = strcmp(name, "--cgroup") == 0 ? value : cgroup;
        cgroup_dirs = strcmp(name, "--cgroup-dirs") == 0 ? value : cgroup_dirs;
        image = strcmp(name, "--image") == 0 ? value : image;
        every = strcmp(name, "--steps") == 0 ? number_of(value) : every;
        first = strcmp(name, "--first") == 0 ? number_of(value) : first;
        operations = strcmp(name, "--ops") == 0 ? number_of(value) : operations;
        cycles = strcmp(name, "--cycles") == 0 ? number_of(value) : cycles;
        parallel = strcmp(name, "--parallel") == 0 ? number_of(value) : parallel;
        seed = strcmp(name, "--seed") == 0 ? number_of(value) : seed;
    }
    CHECK(vmm != NULL && image != NULL, "usage: platform --vmm FILE --image DIR ...");
    log_set_program("platform");
    log_set_level(LOG_LEVEL_ERROR);
    (void)signal(SIGPIPE, SIG_IGN);
    (void)snprintf(root, sizeof(root), "%s/cplat-XXXXXX",
                   access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    CHECK(mkdtemp(root) != NULL, "%s", strerror(errno));
    (void)snprintf(state_dir, sizeof(state_dir), "%s/state", root);
    (void)snprintf(runtime_dir, sizeof(runtime_dir), "%s/run", root);
    (void)snprintf(images_dir, sizeof(images_dir), "%s/images", root);
    make_image(image);
    if (every != 0) {
        test_steps(every, first);
    }
    if (operations != 0) {
        test_random(operations, seed);
    }
    if (cycles != 0) {
        test_cycles(cycles);
    }
    if (parallel != 0) {
        test_parallel(parallel);
    }
    CHECK(path_remove(root, &err) == 0, "%s", err.text);
    return 0;
}
