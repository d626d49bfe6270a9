/*
 * Control groups: on made-up hosts, directories that look like those of the
 * kernel; and on this one, where it lets us.
 */
#include "base/io.h"
#include "base/path.h"
#include "cgroup/cgroup.h"

#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define ID "i-1"
#define USUAL                             \
    {                                     \
        .cpu_weight = CGROUP_USUAL_WEIGHT \
    }

struct host {
    char root[PATH_MAX];
    char mountinfo[PATH_MAX + 32], self[PATH_MAX + 32];
};

static void put(const struct host *host, const char *path, const char *text)
{
    char full[PATH_MAX + 200];
    struct err err;
    char *slash;
    int fd;

    (void)snprintf(full, sizeof(full), "%s/%s", host->root, path);
    slash = strrchr(full, '/');
    *slash = '\0';
    assert_int_equal(path_make_dirs(full, &err), 0);
    *slash = '/';
    fd = open(full, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(io_write_full(fd, text, strlen(text)), 0);
    (void)close(fd);
}

/* A plain file keeps what is behind a shorter text: each value is read up to its newline or NUL. */
static void assert_file(const struct host *host, const char *path, const char *text)
{
    char full[PATH_MAX + 200];
    CLEANUP_FREE void *data = NULL;
    size_t len = 0;

    (void)snprintf(full, sizeof(full), "%s/%s", host->root, path);
    assert_int_equal(io_read_file(full, 4096, &data, &len), 0);
    assert_string_equal(data, text);
}

/* mounts: lines of mountinfo with %s for the root's path. */
static void host_make(struct host *host, const char *mounts, const char *self)
{
    char text[4096];

    (void)snprintf(host->root, sizeof(host->root), "/tmp/cgroup-test-XXXXXX");
    assert_non_null(mkdtemp(host->root));
    (void)snprintf(host->mountinfo, sizeof(host->mountinfo), "%s/mountinfo", host->root);
    (void)snprintf(host->self, sizeof(host->self), "%s/self", host->root);
    text[0] = '\0';
    for (const char *at = mounts; *at != '\0'; at++) {
        size_t used = strlen(text);

        (void)snprintf(text + used, sizeof(text) - used, "%.*s", *at == '@' ? PATH_MAX : 1,
                       *at == '@' ? host->root : at);
    }
    put(host, "mountinfo", text);
    put(host, "self", self);
}

static struct cgroup *host_open(const struct host *host, const char *parent)
{
    const struct cgroup_config config = {
        .name = "corbel-x", .parent = parent, .mountinfo = host->mountinfo, .self = host->self};
    struct cgroup *cgroup = NULL;
    struct err err;

    assert_int_equal(cgroup_open(&config, &err, &cgroup), 0);
    return cgroup;
}

static void host_done(const struct host *host, struct cgroup *cgroup)
{
    struct err err;

    cgroup_close(cgroup);
    assert_int_equal(path_remove(host->root, &err), 0);
}

static const char v2_mount[] = "30 23 0:26 / @/fs rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";

static void v2_files(const struct host *host, const char *dir, const char *handed_down)
{
    char path[400];

    (void)snprintf(path, sizeof(path), "%s/cgroup.controllers", dir);
    put(host, path, "cpuset cpu io memory pids\n");
    (void)snprintf(path, sizeof(path), "%s/cgroup.subtree_control", dir);
    put(host, path, handed_down);
}

static void v2_member(const struct host *host, const char *dir)
{
    static const char *const files[] = {"cpu.weight", "cpu.max", "cpuset.cpus", "memory.max"};

    for (size_t i = 0; i < ARRAY_LEN(files); i++) {
        char path[400];

        (void)snprintf(path, sizeof(path), "%s/%s", dir, files[i]);
        put(host, path, "");
    }
}

static void test_version_2_sets_all_in_one_group(void **state)
{
    struct cgroup_limits limits = {
        .cpu_weight = 200, .cpu_cap = 150, .memory_bytes = 1 << 30, .cpus = "0-1"};
    struct cgroup *cgroup;
    struct host host;
    struct err err;
    char paths[CGROUP_PATHS_BYTES], expected[PATH_MAX + 64];

    (void)state;
    host_make(&host, v2_mount, "0::/system/corbeld\n");
    v2_files(&host, "fs", "cpuset cpu memory");
    v2_files(&host, "fs/corbel-x", "cpuset cpu memory");
    v2_member(&host, "fs/corbel-x/" ID);
    cgroup = host_open(&host, NULL);
    for (unsigned i = 0; i < CGROUP_CONTROL_COUNT; i++) {
        assert_null(cgroup_lack(cgroup, i));
        assert_string_equal(cgroup_means(cgroup, i), "cgroup v2");
    }
    assert_int_equal(cgroup_set(cgroup, ID, &limits, &err), 0);
    assert_file(&host, "fs/corbel-x/" ID "/cpu.weight", "200");
    assert_file(&host, "fs/corbel-x/" ID "/cpu.max", "150000 100000");
    assert_file(&host, "fs/corbel-x/" ID "/cpuset.cpus", "0-1");
    assert_file(&host, "fs/corbel-x/" ID "/memory.max", "1073741824");
    cgroup_paths(cgroup, ID, &limits, paths);
    (void)snprintf(expected, sizeof(expected), "%s/fs/corbel-x/" ID "\n", host.root);
    assert_string_equal(paths, expected);

    v2_member(&host, "fs/corbel-x/" ID);
    limits = (struct cgroup_limits)USUAL;
    assert_int_equal(cgroup_set(cgroup, ID, &limits, &err), 0);
    assert_file(&host, "fs/corbel-x/" ID "/cpu.weight", "100");
    assert_file(&host, "fs/corbel-x/" ID "/cpu.max", "max 100000");
    assert_file(&host, "fs/corbel-x/" ID "/memory.max", "max");
    host_done(&host, cgroup);
}

static void test_version_2_hands_controllers_down(void **state)
{
    struct cgroup *cgroup;
    struct host host;

    (void)state;
    host_make(&host, v2_mount, "0::/user/app/shell\n");
    v2_files(&host, "fs", "cpu");
    v2_files(&host, "fs/corbel-x", "");
    cgroup = host_open(&host, NULL);
    /* A plain file keeps the last controller written; the kernel adds each. */
    assert_file(&host, "fs/corbel-x/cgroup.subtree_control", "+memory");
    host_done(&host, cgroup);
}

/* Which of the groups above a process is its user's: only that one is changed. */
static void test_version_2_uses_the_highest_group_that_is_ours(void **state)
{
    struct cgroup_limits limits = USUAL;
    struct cgroup *cgroup;
    struct host host;
    char paths[CGROUP_PATHS_BYTES];

    (void)state;
    host_make(&host, v2_mount, "0::/user/app/shell\n");
    put(&host, "fs/cgroup.controllers", "cpuset cpu memory");
    v2_files(&host, "fs/user", "cpuset cpu memory");
    v2_files(&host, "fs/user/app", "cpuset cpu memory");
    v2_files(&host, "fs/user/corbel-x", "cpuset cpu memory");
    cgroup = host_open(&host, NULL);
    cgroup_paths(cgroup, ID, &limits, paths);
    assert_non_null(strstr(paths, "/fs/user/corbel-x/" ID "\n"));
    host_done(&host, cgroup);
}

static void test_a_controller_that_is_not_handed_down_is_lacking(void **state)
{
    struct cgroup *cgroup;
    struct host host;

    (void)state;
    host_make(&host, v2_mount, "0::/\n");
    v2_files(&host, "fs", "");
    put(&host, "fs/cgroup.controllers", "memory pids\n");
    v2_files(&host, "fs/corbel-x", "memory");
    cgroup = host_open(&host, NULL);
    assert_null(cgroup_lack(cgroup, CGROUP_MEMORY));
    assert_non_null(strstr(cgroup_lack(cgroup, CGROUP_CPU), "\"cpu\" is not handed down"));
    assert_string_equal(cgroup_means(cgroup, CGROUP_CPU), "none");
    assert_string_equal(cgroup_means(cgroup, CGROUP_CPUSET), "affinity");
    host_done(&host, cgroup);
}

static const char v1_mounts[] =
    "31 25 0:27 / @/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "32 25 0:28 / @/cpuset rw,relatime - cgroup cpuset rw,cpuset\n"
    "33 25 0:29 /box @/memory rw,relatime - cgroup cgroup rw,memory\n"
    "34 25 0:30 / @/unified rw,relatime - cgroup2 cgroup2 rw\n";
static const char v1_self[] = "4:cpu,cpuacct:/\n3:cpuset:/part\n2:memory:/box/inner\n0::/\n";

static void v1_files(const struct host *host)
{
    v2_files(host, "unified", "");
    put(host, "unified/cgroup.controllers", "hugetlb\n");
    put(host, "memory/inner/tasks", "");
    put(host, "cpuset/part/cpuset.cpus", "0-3\n");
    put(host, "cpuset/part/cpuset.mems", "0\n");
    put(host, "cpuset/part/corbel-x/cpuset.cpus", "");
    put(host, "cpuset/part/corbel-x/cpuset.mems", "");
    put(host, "cpuset/part/corbel-x/" ID "/cpuset.cpus", "");
    put(host, "cpuset/part/corbel-x/" ID "/cpuset.mems", "");
    put(host, "cpu/corbel-x/" ID "/cpu.shares", "");
    put(host, "cpu/corbel-x/" ID "/cpu.cfs_period_us", "");
    put(host, "cpu/corbel-x/" ID "/cpu.cfs_quota_us", "");
    put(host, "memory/inner/corbel-x/" ID "/memory.limit_in_bytes", "");
}

static void test_version_1_sets_each_in_its_hierarchy(void **state)
{
    const struct cgroup_limits limits = {
        .cpu_weight = 50, .cpu_cap = 50, .memory_bytes = 4096, .cpus = "2"};
    struct cgroup *cgroup;
    struct host host;
    struct err err;

    (void)state;
    host_make(&host, v1_mounts, v1_self);
    v1_files(&host);
    cgroup = host_open(&host, NULL);
    assert_string_equal(cgroup_means(cgroup, CGROUP_CPU), "cgroup v1");
    assert_string_equal(cgroup_means(cgroup, CGROUP_MEMORY), "cgroup v1");
    assert_int_equal(cgroup_set(cgroup, ID, &limits, &err), 0);
    assert_file(&host, "cpu/corbel-x/" ID "/cpu.shares", "512");
    assert_file(&host, "cpu/corbel-x/" ID "/cpu.cfs_period_us", "100000");
    assert_file(&host, "cpu/corbel-x/" ID "/cpu.cfs_quota_us", "50000");
    assert_file(&host, "memory/inner/corbel-x/" ID "/memory.limit_in_bytes", "4096");
    assert_file(&host, "cpuset/part/corbel-x/cpuset.cpus", "0-3");
    assert_file(&host, "cpuset/part/corbel-x/" ID "/cpuset.mems", "0");
    assert_file(&host, "cpuset/part/corbel-x/" ID "/cpuset.cpus", "2-3"); /* over "0-3" */
    host_done(&host, cgroup);
}

static void test_version_1_makes_only_what_is_needed(void **state)
{
    const struct cgroup_limits limits = USUAL;
    struct cgroup *cgroup;
    struct host host;
    char paths[CGROUP_PATHS_BYTES];

    (void)state;
    host_make(&host, v1_mounts, v1_self);
    v1_files(&host);
    cgroup = host_open(&host, NULL);
    cgroup_paths(cgroup, ID, &limits, paths);
    assert_non_null(strstr(paths, "/cpu/corbel-x/" ID "\n"));
    assert_null(strstr(paths, "memory"));
    assert_null(strstr(paths, "cpuset"));
    host_done(&host, cgroup);
}

static void test_a_host_without_groups_lacks_all_and_says_so(void **state)
{
    const struct cgroup_limits limits = {.cpu_weight = 100, .cpus = "0"};
    struct cgroup *cgroup;
    struct host host;
    struct err err;
    cpu_set_t set;
    pid_t child;

    (void)state;
    host_make(&host, "22 1 0:20 / /proc rw - proc proc rw\n", "0::/\n");
    cgroup = host_open(&host, NULL);
    assert_string_equal(cgroup_lack(cgroup, CGROUP_CPU), "no control groups are mounted");
    assert_int_equal(cgroup_set(cgroup, ID, &limits, &err), 0);
    child = fork();
    if (child == 0) {
        (void)pause();
        _exit(0);
    }
    assert_int_equal(cgroup_enter(cgroup, ID, &limits, child, &err), 0);
    assert_int_equal(sched_getaffinity(child, sizeof(set), &set), 0);
    assert_true(CPU_COUNT(&set) == 1 && CPU_ISSET(0, &set));
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, NULL, 0), child);
    assert_int_equal(cgroup_enter(cgroup, ID, &limits, child, &err), -ESRCH);
    assert_int_equal(cgroup_remove(cgroup, ID, "", &err), 0);
    host_done(&host, cgroup);
}

static void test_none_are_used_where_none_are_wanted(void **state)
{
    struct cgroup *cgroup;
    struct host host;

    (void)state;
    host_make(&host, v1_mounts, v1_self);
    v1_files(&host);
    cgroup = host_open(&host, "");
    assert_string_equal(cgroup_lack(cgroup, CGROUP_MEMORY), "control groups are switched off");
    host_done(&host, cgroup);
}

static void test_a_garbled_mountinfo_is_no_more_than_that(void **state)
{
    static const char *const texts[] = {"",
                                        "\n\n",
                                        " - ",
                                        "1 2 3 - cgroup2",
                                        "1 2 3 4 5 6 - cgroup2 x\n",
                                        "a - cgroup b cpu\n",
                                        "1 2 3 / @/nowhere rw - cgroup x cpu,memory,cpuset\n"};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        struct host host;
        struct cgroup *cgroup;

        host_make(&host, texts[i], "::\n:\n1:cpu\n7:cpu:\n");
        cgroup = host_open(&host, NULL);
        assert_non_null(cgroup_lack(cgroup, CGROUP_CPU));
        host_done(&host, cgroup);
    }
}

static void test_lists_of_cpus(void **state)
{
    static const char *const bad[] = {"",     ",",     "1,",  "-1",     "1-",
                                      "2-1",  "a",     "1 2", "0-1024", "99999999999999999999",
                                      "0,,1", "1-2-3", "0x1"};

    (void)state;
    assert_int_equal(cgroup_check_cpus("0"), 0);
    assert_int_equal(cgroup_check_cpus("8,0-3"), 8);
    assert_int_equal(cgroup_check_cpus("1023"), 1023);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        assert_int_equal(cgroup_check_cpus(bad[i]), -EINVAL);
    }
}

/* ---- this host ---- */

static bool is_in_group(pid_t pid, const char *group)
{
    char path[64], text[8192];
    ssize_t n;
    int fd;

    (void)snprintf(path, sizeof(path), "/proc/%d/cgroup", pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    n = fd >= 0 ? io_read_full(fd, text, sizeof(text) - 1) : 0;
    (void)close(fd);
    text[n > 0 ? n : 0] = '\0';
    return strstr(text, group) != NULL;
}

/* A child with a child, both asleep; the grandchild's number comes from it. */
static pid_t make_family(pid_t *ret_grandchild)
{
    int fds[2];
    pid_t child;

    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    child = fork();
    if (child == 0) {
        pid_t grandchild = fork();

        if (grandchild != 0 && io_write_full(fds[1], &grandchild, sizeof(grandchild)) != 0) {
            _exit(1);
        }
        (void)pause();
        _exit(0);
    }
    assert_int_equal(io_read_full(fds[0], ret_grandchild, sizeof(*ret_grandchild)),
                     sizeof(*ret_grandchild));
    (void)close(fds[0]);
    (void)close(fds[1]);
    return child;
}

static void count_member(void *opaque, const char *id)
{
    *(unsigned *)opaque += strcmp(id, ID) == 0;
}

static void test_this_host_enters_and_leaves(void **state)
{
    const struct cgroup_limits limits = {.cpu_weight = 200, .cpu_cap = 50, .cpus = "0"};
    char name[64], paths[CGROUP_PATHS_BYTES], group[128];
    const struct cgroup_config config = {.name = name};
    struct cgroup *cgroup;
    pid_t child, grandchild = 0;
    unsigned count = 0;
    struct err err;
    int rc;

    (void)state;
    (void)snprintf(name, sizeof(name), "corbel-test-%d", getpid());
    assert_int_equal(cgroup_open(&config, &err, &cgroup), 0);
    if (cgroup_lack(cgroup, CGROUP_CPU) != NULL) {
        print_message("# %s\n", cgroup_lack(cgroup, CGROUP_CPU));
        cgroup_close(cgroup);
        skip();
    }
    rc = cgroup_set(cgroup, ID, &limits, &err);
    assert_int_equal(rc, 0);
    cgroup_paths(cgroup, ID, &limits, paths);
    cgroup_each(cgroup, count_member, &count);
    assert_true(count > 0);
    child = make_family(&grandchild);
    assert_int_equal(cgroup_enter(cgroup, ID, &limits, child, &err), 0);
    (void)snprintf(group, sizeof(group), "/%s/" ID "\n", name);
    assert_true(is_in_group(child, group) && is_in_group(grandchild, group));
    /* Whoever is in it is ended with it. Another one's directories stay, whatever is asked. */
    assert_int_equal(cgroup_remove(cgroup, "i-2", paths, &err), 0);
    assert_true(is_in_group(child, group));
    while ((rc = cgroup_remove(cgroup, ID, paths, &err)) == -EBUSY) {
        (void)sched_yield();
    }
    assert_int_equal(rc, 0);
    assert_int_equal(waitpid(child, &rc, 0), child);
    assert_true(WIFSIGNALED(rc) && WTERMSIG(rc) == SIGKILL);
    assert_int_equal(cgroup_remove(cgroup, ID, paths, &err), 0);
    cgroup_close(cgroup);
    paths[strcspn(paths, "\n")] = '\0';
    *strrchr(paths, '/') = '\0';
    assert_false(path_exists(paths));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_version_2_sets_all_in_one_group),
        cmocka_unit_test(test_version_2_hands_controllers_down),
        cmocka_unit_test(test_version_2_uses_the_highest_group_that_is_ours),
        cmocka_unit_test(test_a_controller_that_is_not_handed_down_is_lacking),
        cmocka_unit_test(test_version_1_sets_each_in_its_hierarchy),
        cmocka_unit_test(test_version_1_makes_only_what_is_needed),
        cmocka_unit_test(test_a_host_without_groups_lacks_all_and_says_so),
        cmocka_unit_test(test_none_are_used_where_none_are_wanted),
        cmocka_unit_test(test_a_garbled_mountinfo_is_no_more_than_that),
        cmocka_unit_test(test_lists_of_cpus),
        cmocka_unit_test(test_this_host_enters_and_leaves),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
