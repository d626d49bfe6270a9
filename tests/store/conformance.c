/*
 * What store/store.h promises, held against an implementation's ops table.
 *
 * Each case runs on a store of its own. An implementation is a row of
 * `subjects`: how to open, and open again, a store in a directory.
 *
 * usage: conformance        (TAP)
 */
#include "base/io.h"
#include "base/loop.h"
#include "base/thread.h"
#include "store/store_sqlite.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define THREADS 8
#define SWAPS 60
#define KILLS 12
#define WAIT_MS 20000

struct subject {
    const char *name;
    int (*open)(const char *dir, uint64_t keep_changes, struct err *err, struct store **ret_store);
};

static int open_sqlite(const char *dir, uint64_t keep_changes, struct err *err,
                       struct store **ret_store)
{
    char path[PATH_MAX];
    struct store_sqlite_config config = {.path = path, .keep_changes = keep_changes};

    (void)snprintf(path, sizeof(path), "%s/state.db", dir);
    return store_sqlite_open(&config, err, ret_store);
}

static const struct subject subjects[] = {{"sqlite", open_sqlite}};
static const struct subject *subject = &subjects[0];

struct rig {
    char dir[64];
    struct store *store;
    struct err err;
};

static void reopen(struct rig *rig)
{
    store_close(rig->store);
    rig->store = NULL;
    assert_int_equal(subject->open(rig->dir, 0, &rig->err, &rig->store), 0);
}

static int setup(void **state)
{
    struct rig *rig = calloc(1, sizeof(*rig));

    if (rig == NULL) {
        return -1;
    }
    /* Nothing here cuts the power, so that memory will do for a disk, and syncs cost nothing. */
    (void)snprintf(rig->dir, sizeof(rig->dir), "%s/corbel-store-XXXXXX",
                   access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    if (mkdtemp(rig->dir) == NULL || subject->open(rig->dir, 0, &rig->err, &rig->store) < 0) {
        return -1;
    }
    *state = rig;
    return 0;
}

static int teardown(void **state)
{
    static const char *const files[] = {"state.db",      "state.db-wal",  "state.db-shm",
                                        "state.db.lock", "state.db.seal", "state.db.copy"};
    struct rig *rig = *state;
    char path[PATH_MAX];

    store_close(rig->store);
    for (size_t i = 0; i < ARRAY_LEN(files); i++) {
        (void)snprintf(path, sizeof(path), "%s/%s", rig->dir, files[i]);
        (void)unlink(path);
    }
    if (rmdir(rig->dir) != 0) {
        return -1; /* the store left something that it does not say */
    }
    free(rig);
    return 0;
}

static uint64_t put(struct rig *rig, const char *key, const char *value)
{
    uint64_t revision = 0;

    assert_int_equal(store_put(rig->store, key, value, &revision, &rig->err), 0);
    return revision;
}

static void assert_record(struct rig *rig, const char *key, const char *value, uint64_t revision)
{
    struct store_record record = {0};

    assert_int_equal(store_get(rig->store, key, &record, &rig->err), 0);
    assert_string_equal(record.value, value);
    if (revision != 0) {
        assert_int_equal(record.revision, revision);
    }
    store_record_done(&record);
}

static void assert_absent(struct rig *rig, const char *key)
{
    struct store_record record = {0};

    assert_int_equal(store_get(rig->store, key, &record, &rig->err), -ENOENT);
}

static void test_put_then_get_gives_the_record(void **state)
{
    struct rig *rig = *state;
    struct store_record record = {0};
    uint64_t first = put(rig, "/a/1", "one");
    uint64_t second = put(rig, "/a/1", "two");

    assert_int_equal(first, 1);
    assert_int_equal(second, 2);
    assert_int_equal(store_get(rig->store, "/a/1", &record, &rig->err), 0);
    assert_string_equal(record.key, "/a/1");
    assert_string_equal(record.value, "two");
    assert_int_equal(record.revision, second);
    assert_int_equal(record.created, first);
    assert_int_equal(record.lease, 0);
    store_record_done(&record);
    assert_absent(rig, "/a/2");
}

static void test_bad_keys_values_and_commits_are_refused(void **state)
{
    struct rig *rig = *state;
    static const char *const keys[] = {"", "/", "a", "/a b", "/a\n", "/\x80", "/a\x7f"};
    struct store_write twice[] = {{.key = "/a", .value = "1"}, {.key = "/a", .value = NULL}};
    struct store_commit commit = {.writes = twice, .write_count = 2};
    char *big = malloc(STORE_MAX_VALUE_BYTES + 2);
    char long_key[STORE_MAX_KEY_BYTES + 2];
    uint64_t revision = 0;

    for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
        assert_int_equal(store_put(rig->store, keys[i], "x", NULL, &rig->err), -EINVAL);
    }
    memset(long_key, 'k', sizeof(long_key));
    long_key[0] = '/';
    long_key[sizeof(long_key) - 1] = '\0';
    assert_int_equal(store_put(rig->store, long_key, "x", NULL, &rig->err), -EINVAL);
    long_key[STORE_MAX_KEY_BYTES] = '\0';
    assert_int_equal(store_put(rig->store, long_key, "x", NULL, &rig->err), 0);
    assert_non_null(big);
    memset(big, 'v', STORE_MAX_VALUE_BYTES + 1);
    big[STORE_MAX_VALUE_BYTES + 1] = '\0';
    assert_int_equal(store_put(rig->store, "/a", big, NULL, &rig->err), -EINVAL);
    big[STORE_MAX_VALUE_BYTES] = '\0';
    assert_int_equal(store_put(rig->store, "/a", big, NULL, &rig->err), 0);
    assert_record(rig, "/a", big, 0);
    free(big);
    assert_int_equal(store_commit(rig->store, &commit, NULL, &rig->err), -EINVAL);
    commit.write_count = STORE_MAX_OPS + 1;
    assert_int_equal(store_commit(rig->store, &commit, NULL, &rig->err), -EINVAL);
    assert_int_equal(store_revision(rig->store, &revision, &rig->err), 0);
    assert_int_equal(revision, 2);
}

static void test_list_gives_pages_in_order_of_one_revision(void **state)
{
    struct rig *rig = *state;
    struct store_page page;
    char after[16] = "";

    for (int i = 9; i >= 0; i--) {
        char key[16];

        (void)snprintf(key, sizeof(key), "/l/%d", i);
        (void)put(rig, key, "x");
    }
    (void)put(rig, "/l", "not below the prefix");
    (void)put(rig, "/l0", "nor this");
    for (int start = 0; start < 10; start += 4) {
        int expected = start + 4 <= 10 ? 4 : 10 - start;

        assert_int_equal(
            store_list(rig->store, "/l/", after[0] != '\0' ? after : NULL, 4, &page, &rig->err), 0);
        assert_int_equal(page.count, expected);
        assert_int_equal(page.has_more, start + 4 < 10);
        assert_int_equal(page.revision, 12);
        for (int i = 0; i < expected; i++) {
            assert_int_equal(page.records[i].key[3], '0' + start + i);
        }
        (void)snprintf(after, sizeof(after), "%s", page.records[page.count - 1].key);
        store_page_done(&page);
    }
    assert_int_equal(store_list(rig->store, "/none/", NULL, 4, &page, &rig->err), 0);
    assert_int_equal(page.count, 0);
    store_page_done(&page);
    assert_int_equal(store_list(rig->store, "/", NULL, 1000, &page, &rig->err), 0);
    assert_int_equal(page.count, 12);
    store_page_done(&page);
}

static void test_swap_holds_only_at_its_revision(void **state)
{
    struct rig *rig = *state;
    uint64_t revision = 0;

    assert_int_equal(store_swap(rig->store, "/s", 0, "a", &revision, &rig->err), 0);
    assert_int_equal(store_swap(rig->store, "/s", 0, "b", NULL, &rig->err), -ESTALE);
    assert_int_equal(store_swap(rig->store, "/s", revision, "c", &revision, &rig->err), 0);
    assert_int_equal(store_swap(rig->store, "/s", revision - 1, "d", NULL, &rig->err), -ESTALE);
    assert_record(rig, "/s", "c", revision);
    assert_int_equal(store_swap(rig->store, "/s", revision, NULL, NULL, &rig->err), 0);
    assert_absent(rig, "/s");
    /* A record that was deleted and made again is another one. */
    assert_int_equal(store_swap(rig->store, "/s", revision, "e", NULL, &rig->err), -ESTALE);
    assert_int_equal(store_swap(rig->store, "/s", 0, "f", NULL, &rig->err), 0);
}

static void test_commit_is_whole_or_nothing(void **state)
{
    struct rig *rig = *state;
    uint64_t one = put(rig, "/c/1", "old");
    struct store_guard guards[] = {{"/c/1", one}, {"/c/2", 0}};
    struct store_write writes[] = {{"/c/1", NULL, 0}, {"/c/2", "new", 0}, {"/c/3", "new", 0}};
    struct store_commit commit = {
        .guards = guards, .guard_count = 2, .writes = writes, .write_count = 3};
    uint64_t revision = 0;

    guards[1].revision = 7;
    assert_int_equal(store_commit(rig->store, &commit, &revision, &rig->err), -ESTALE);
    assert_record(rig, "/c/1", "old", one);
    assert_absent(rig, "/c/3");
    guards[1].revision = 0;
    assert_int_equal(store_commit(rig->store, &commit, &revision, &rig->err), 0);
    assert_int_equal(revision, one + 1);
    assert_absent(rig, "/c/1");
    assert_record(rig, "/c/2", "new", revision);
    assert_record(rig, "/c/3", "new", revision);
    /* A write that fails takes the others with it: there is no such lease. */
    writes[0] = (struct store_write){"/c/4", "x", 0};
    writes[1].lease = 999;
    commit.guard_count = 0;
    assert_int_equal(store_commit(rig->store, &commit, NULL, &rig->err), -ENOENT);
    assert_absent(rig, "/c/4");
    /* Guards alone, and deletions of nothing, leave the revision. */
    guards[0] = (struct store_guard){"/c/2", revision};
    commit = (struct store_commit){.guards = guards, .guard_count = 1};
    assert_int_equal(store_commit(rig->store, &commit, &revision, &rig->err), 0);
    assert_int_equal(revision, one + 1);
}

static void test_everything_is_there_after_reopening(void **state)
{
    struct rig *rig = *state;
    uint64_t revision = 0;

    (void)put(rig, "/r/1", "one");
    revision = put(rig, "/r/2", "two");
    reopen(rig);
    assert_record(rig, "/r/1", "one", revision - 1);
    assert_record(rig, "/r/2", "two", revision);
    assert_int_equal(put(rig, "/r/3", "three"), revision + 1);
}

/* Takes what a watch has, waiting for it when it has nothing. */
static struct store_page take(struct rig *rig, struct store_watch *watch, unsigned max)
{
    struct store_page page;

    for (;;) {
        struct pollfd pfd = {.fd = store_watch_fd(rig->store, watch), .events = POLLIN};

        assert_int_equal(poll(&pfd, 1, WAIT_MS), 1);
        assert_int_equal(store_watch_next(rig->store, watch, max, &page, &rig->err), 0);
        if (page.count > 0) {
            return page;
        }
        store_page_done(&page);
    }
}

static void test_watch_tells_every_change_in_order(void **state)
{
    struct rig *rig = *state;
    struct store_watch *watch = NULL;
    struct store_write writes[] = {{"/w/1", NULL, 0}, {"/w/2", "b", 0}, {"/x/1", "c", 0}};
    struct store_commit commit = {.writes = writes, .write_count = 3};
    struct store_page page;
    uint64_t first = put(rig, "/w/1", "a");

    assert_int_equal(store_watch_open(rig->store, "/w/", 0, &watch, &rig->err), 0);
    assert_int_equal(store_commit(rig->store, &commit, NULL, &rig->err), 0);
    (void)put(rig, "/w/2", "d");
    page = take(rig, watch, 2); /* the commit of two is not torn apart */
    assert_int_equal(page.count, 3);
    assert_string_equal(page.records[0].key, "/w/1");
    assert_string_equal(page.records[0].value, "a");
    assert_int_equal(page.records[0].revision, first);
    assert_string_equal(page.records[1].key, "/w/1");
    assert_null(page.records[1].value);
    assert_int_equal(page.records[1].revision, first + 1);
    assert_string_equal(page.records[2].key, "/w/2");
    assert_int_equal(page.records[2].revision, first + 1);
    assert_int_equal(page.revision, first + 1);
    store_page_done(&page);
    page = take(rig, watch, 2);
    assert_int_equal(page.count, 1);
    assert_string_equal(page.records[0].value, "d");
    assert_int_equal(page.revision, first + 2);
    store_page_done(&page);
    assert_int_equal(store_watch_next(rig->store, watch, 2, &page, &rig->err), 0);
    assert_int_equal(page.count, 0);
    store_page_done(&page);
    store_watch_close(rig->store, watch);
    /* From the middle, as one does who was away. */
    assert_int_equal(store_watch_open(rig->store, "/", first + 1, &watch, &rig->err), 0);
    page = take(rig, watch, 10);
    assert_int_equal(page.count, 1);
    store_page_done(&page);
    store_watch_close(rig->store, watch);
}

static void test_watch_of_forgotten_history_is_stale(void **state)
{
    struct rig *rig = *state;
    struct store_watch *late = NULL, *watch = NULL;
    struct store_page page;
    uint64_t revision = 0;

    store_close(rig->store);
    rig->store = NULL;
    assert_int_equal(subject->open(rig->dir, 100, &rig->err, &rig->store), 0);
    (void)put(rig, "/h", "first");
    assert_int_equal(store_watch_open(rig->store, "/", 1, &late, &rig->err), 0);
    for (int i = 0; i < 600; i++) {
        revision = put(rig, "/h", "again");
    }
    assert_int_equal(store_watch_open(rig->store, "/", 1, &watch, &rig->err), -ESTALE);
    assert_int_equal(store_watch_open(rig->store, "/", revision + 1, &watch, &rig->err), -ESTALE);
    assert_int_equal(store_watch_next(rig->store, late, 10, &page, &rig->err), -ESTALE);
    store_watch_close(rig->store, late);
    assert_int_equal(store_watch_open(rig->store, "/", revision - 50, &watch, &rig->err), 0);
    page = take(rig, watch, 1000);
    assert_int_equal(page.count, 50);
    store_page_done(&page);
    store_watch_close(rig->store, watch);
}

static void test_lease_takes_its_records_along(void **state)
{
    struct rig *rig = *state;
    struct store_watch *watch = NULL;
    struct store_write writes[] = {{"/e/1", "x", 0}, {"/e/2", "x", 0}};
    struct store_commit commit = {.writes = writes, .write_count = 2};
    struct store_page page;
    uint64_t lease = 0, revision = 0, started;
    unsigned ttl = 0;

    started = clock_monotonic_ns();
    assert_int_equal(store_lease_grant(rig->store, 1, &lease, &rig->err), 0);
    writes[0].lease = writes[1].lease = lease;
    assert_int_equal(store_commit(rig->store, &commit, &revision, &rig->err), 0);
    (void)put(rig, "/e/2", "mine again"); /* without the lease */
    assert_int_equal(store_watch_open(rig->store, "/e/", revision + 1, &watch, &rig->err), 0);
    page = take(rig, watch, 10);
    assert_true(clock_monotonic_ns() - started >= 1000000000ull);
    assert_int_equal(page.count, 1);
    assert_string_equal(page.records[0].key, "/e/1");
    assert_null(page.records[0].value);
    store_page_done(&page);
    store_watch_close(rig->store, watch);
    assert_record(rig, "/e/2", "mine again", 0);
    assert_int_equal(store_lease_keep(rig->store, lease, &ttl, &rig->err), -ENOENT);
    assert_int_equal(store_lease_revoke(rig->store, lease, &rig->err), -ENOENT);
}

static void test_lease_is_kept_revoked_and_survives_reopening(void **state)
{
    struct rig *rig = *state;
    struct store_write write = {"/k", "x", 0};
    struct store_commit commit = {.writes = &write, .write_count = 1};
    uint64_t lease = 0;
    unsigned ttl = 0;

    assert_int_equal(store_lease_grant(rig->store, 3600, &lease, &rig->err), 0);
    write.lease = lease;
    assert_int_equal(store_commit(rig->store, &commit, NULL, &rig->err), 0);
    reopen(rig);
    assert_int_equal(store_lease_keep(rig->store, lease, &ttl, &rig->err), 0);
    assert_true(ttl >= 3600);
    assert_record(rig, "/k", "x", 0);
    assert_int_equal(store_lease_revoke(rig->store, lease, &rig->err), 0);
    assert_absent(rig, "/k");
    assert_int_equal(store_commit(rig->store, &commit, NULL, &rig->err), -ENOENT);
    assert_int_equal(store_lease_grant(rig->store, 0, &lease, &rig->err), -EINVAL);
}

struct racer {
    struct rig *rig;
    pthread_t thread;
    unsigned lost; /* swaps that somebody else won */
    int rc;
};

/* Adds 1 to a counter SWAPS times, by compare-and-swap. */
static void *race(void *opaque)
{
    struct racer *racer = opaque;
    struct err err;

    for (unsigned won = 0; won < SWAPS && racer->rc == 0;) {
        struct store_record record = {0};
        char text[32];
        int rc = store_get(racer->rig->store, "/counter", &record, &err);

        (void)snprintf(text, sizeof(text), "%ld", strtol(record.value, NULL, 10) + 1);
        rc = rc == 0 ? store_swap(racer->rig->store, "/counter", record.revision, text, NULL, &err)
                     : rc;
        store_record_done(&record);
        if (rc == 0) {
            won++;
        } else if (rc == -ESTALE) {
            racer->lost++;
        } else {
            racer->rc = rc;
        }
    }
    return NULL;
}

static void test_concurrent_swaps_lose_no_change(void **state)
{
    struct rig *rig = *state;
    struct racer racers[THREADS] = {0};
    char total[16];
    uint64_t revision = 0;

    (void)put(rig, "/counter", "0");
    for (int i = 0; i < THREADS; i++) {
        racers[i].rig = rig;
        assert_int_equal(thread_start(&racers[i].thread, "racer", race, &racers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        (void)pthread_join(racers[i].thread, NULL);
        assert_int_equal(racers[i].rc, 0);
    }
    (void)snprintf(total, sizeof(total), "%d", THREADS * SWAPS);
    assert_record(rig, "/counter", total, 0);
    assert_int_equal(store_revision(rig->store, &revision, &rig->err), 0);
    assert_int_equal(revision, THREADS * SWAPS + 1);
}

/* Writes pairs of records as fast as it can, telling each that was acknowledged. */
NORETURN static void write_until_killed(const char *dir, int fd)
{
    struct store *store = NULL;
    struct err err;
    unsigned n = 0;

    if (subject->open(dir, 0, &err, &store) < 0) {
        _exit(2);
    }
    for (;;) {
        char value[4096];
        struct store_write writes[] = {{"/pair/a", value, 0}, {"/pair/b", value, 0}};
        struct store_commit commit = {.writes = writes, .write_count = 2};

        n++;
        (void)snprintf(value, sizeof(value), "%u %0*d", n, (int)(n % 3000) + 1, 0);
        if (store_commit(store, &commit, NULL, &err) < 0 || write(fd, &n, sizeof(n)) < 0) {
            _exit(3);
        }
    }
}

static void test_kill_during_writes_loses_nothing_acknowledged(void **state)
{
    struct rig *rig = *state;

    for (int round = 0; round < KILLS; round++) {
        struct store_record a = {0}, b = {0};
        unsigned n = 0, last = 0;
        int fds[2];
        int status;
        pid_t pid;

        store_close(rig->store);
        rig->store = NULL;
        assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
        pid = fork();
        if (pid == 0) {
            write_until_killed(rig->dir, fds[1]);
        }
        (void)close(fds[1]);
        /* At another moment each time, but after something was acknowledged. */
        while (last < 1 + 7u * (unsigned)round && read(fds[0], &n, sizeof(n)) == sizeof(n)) {
            last = n;
        }
        assert_int_equal(kill(pid, SIGKILL), 0);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status));
        while (read(fds[0], &n, sizeof(n)) == sizeof(n)) {
            last = n;
        }
        (void)close(fds[0]);
        assert_int_equal(subject->open(rig->dir, 0, &rig->err, &rig->store), 0);
        assert_int_equal(store_get(rig->store, "/pair/a", &a, &rig->err), 0);
        assert_int_equal(store_get(rig->store, "/pair/b", &b, &rig->err), 0);
        assert_string_equal(a.value, b.value);
        assert_true(strtoul(a.value, NULL, 10) >= last);
        store_record_done(&a);
        store_record_done(&b);
    }
}

static void test_second_opening_is_refused(void **state)
{
    struct rig *rig = *state;
    struct store *other = NULL;

    assert_int_equal(subject->open(rig->dir, 0, &rig->err, &other), -EBUSY);
    assert_null(other);
}

/* A full disk, by the limit on the size of files: the store goes on when there is room again. */
static void test_full_disk_changes_nothing_and_passes(void **state)
{
    struct rig *rig = *state;
    struct rlimit old, small;
    char value[8192];
    uint64_t revision, after = 0;
    int rc = 0;
    int done = 0;

    (void)signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    revision = put(rig, "/full", "before");
    small = old;
    small.rlim_cur = 300000;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    memset(value, 'x', sizeof(value) - 1);
    value[sizeof(value) - 1] = '\0';
    while (rc == 0 && done < 1000) {
        char key[32];

        (void)snprintf(key, sizeof(key), "/full/%d", done);
        rc = store_put(rig->store, key, value, NULL, &rig->err);
        done += rc == 0;
    }
    assert_int_equal(rc, -ENOSPC);
    assert_int_equal(store_revision(rig->store, &after, &rig->err), 0);
    assert_int_equal(after, revision + (uint64_t)done);
    assert_record(rig, "/full", "before", revision);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(put(rig, "/full", "after"), after + 1);
    reopen(rig);
    assert_record(rig, "/full", "after", after + 1);
    for (int i = 0; i < done; i++) {
        char key[32];

        (void)snprintf(key, sizeof(key), "/full/%d", i);
        assert_record(rig, key, value, 0);
    }
}

/* Of the SQLite store alone: what is on the disk is what was written, or is refused. */

static void file_name(const struct rig *rig, const char *suffix, char path[PATH_MAX])
{
    (void)snprintf(path, PATH_MAX, "%s/state.db%s", rig->dir, suffix);
}

/* A store with so many records, closed. */
static void fill_and_close(struct rig *rig)
{
    for (int i = 0; i < 60; i++) {
        char key[32], value[400];

        (void)snprintf(key, sizeof(key), "/full/%d", i);
        (void)snprintf(value, sizeof(value), "%0*d", 300, i);
        (void)put(rig, key, value);
    }
    store_close(rig->store);
    rig->store = NULL;
}

/* Opens a file that was tampered with: refused with a sentence, or nothing is missing. */
static bool open_tampered(struct rig *rig)
{
    int rc = subject->open(rig->dir, 0, &rig->err, &rig->store);

    if (rc < 0) {
        assert_null(rig->store);
        assert_true(strlen(rig->err.text) > 20);
        return false;
    }
    for (int i = 0; i < 60; i++) {
        char key[32], value[400];

        (void)snprintf(key, sizeof(key), "/full/%d", i);
        (void)snprintf(value, sizeof(value), "%0*d", 300, i);
        assert_record(rig, key, value, 0);
    }
    store_close(rig->store);
    rig->store = NULL;
    return true;
}

static void write_whole(const char *path, const void *data, size_t len)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(io_write_full(fd, data, len), 0);
    assert_int_equal(close(fd), 0);
}

static void test_truncated_database_is_refused(void **state)
{
    struct rig *rig = *state;
    char path[PATH_MAX];
    void *data = NULL;
    size_t len = 0;

    fill_and_close(rig);
    file_name(rig, "", path);
    assert_int_equal(io_read_file(path, 1u << 24, &data, &len), 0);
    for (size_t cut = 0; cut < len; cut += 1777) {
        write_whole(path, data, cut);
        assert_false(open_tampered(rig));
    }
    write_whole(path, data, len);
    assert_true(open_tampered(rig));
    free(data);
}

static void test_removed_or_older_database_is_refused(void **state)
{
    struct rig *rig = *state;
    char path[PATH_MAX];
    void *old = NULL;
    size_t old_len = 0;

    (void)put(rig, "/old", "x");
    store_close(rig->store);
    file_name(rig, "", path);
    assert_int_equal(io_read_file(path, 1u << 24, &old, &old_len), 0);
    assert_int_equal(subject->open(rig->dir, 0, &rig->err, &rig->store), 0);
    fill_and_close(rig);
    write_whole(path, old, old_len);
    assert_int_equal(subject->open(rig->dir, 0, &rig->err, &rig->store), -ESTALE);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(subject->open(rig->dir, 0, &rig->err, &rig->store), -EBADMSG);
    assert_int_equal(access(path, F_OK), -1); /* nothing new in its place */
    free(old);
}

/* A journal cut anywhere: what it lost was acknowledged, so that the seal knows. */
static void test_truncated_journal_is_refused(void **state)
{
    struct rig *rig = *state;
    char path[PATH_MAX];
    char journal[PATH_MAX];
    void *db = NULL, *wal = NULL;
    size_t db_len = 0, wal_len = 0;

    file_name(rig, "", path);
    file_name(rig, "-wal", journal);
    for (int i = 0; i < 20; i++) {
        (void)put(rig, "/j", "journal");
    }
    /* As a power cut leaves it: both files, the journal not yet written back. */
    assert_int_equal(io_read_file(path, 1u << 24, &db, &db_len), 0);
    assert_int_equal(io_read_file(journal, 1u << 24, &wal, &wal_len), 0);
    store_close(rig->store);
    rig->store = NULL;
    for (size_t cut = 0; cut < wal_len; cut += 3001) {
        write_whole(path, db, db_len);
        write_whole(journal, wal, cut);
        assert_true(subject->open(rig->dir, 0, &rig->err, &rig->store) < 0);
    }
    write_whole(path, db, db_len);
    write_whole(journal, wal, wal_len);
    assert_int_equal(subject->open(rig->dir, 0, &rig->err, &rig->store), 0);
    assert_record(rig, "/j", "journal", 20);
    free(db);
    free(wal);
}

static void test_flipped_bytes_are_refused_or_harmless(void **state)
{
    struct rig *rig = *state;
    char path[PATH_MAX];
    unsigned char *data = NULL;
    size_t len = 0;
    unsigned refused = 0;

    fill_and_close(rig);
    file_name(rig, "", path);
    assert_int_equal(io_read_file(path, 1u << 24, (void **)&data, &len), 0);
    for (size_t at = 0; at < len; at += 311) {
        data[at] ^= 0x41;
        write_whole(path, data, len);
        refused += !open_tampered(rig);
        data[at] ^= 0x41;
    }
    assert_true(refused > 100);
    write_whole(path, data, len);
    assert_true(open_tampered(rig));
    free(data);
}

static void test_newer_format_is_refused(void **state)
{
    struct rig *rig = *state;
    char path[PATH_MAX];
    unsigned char *data = NULL;
    size_t len = 0;

    fill_and_close(rig);
    file_name(rig, "", path);
    assert_int_equal(io_read_file(path, 1u << 24, (void **)&data, &len), 0);
    data[63] = 9; /* the file format: "user version", a big-endian number at offset 60 */
    write_whole(path, data, len);
    assert_int_equal(subject->open(rig->dir, 0, &rig->err, &rig->store), -EPROTO);
    free(data);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        CASE(test_put_then_get_gives_the_record),
        CASE(test_bad_keys_values_and_commits_are_refused),
        CASE(test_list_gives_pages_in_order_of_one_revision),
        CASE(test_swap_holds_only_at_its_revision),
        CASE(test_commit_is_whole_or_nothing),
        CASE(test_everything_is_there_after_reopening),
        CASE(test_watch_tells_every_change_in_order),
        CASE(test_watch_of_forgotten_history_is_stale),
        CASE(test_lease_takes_its_records_along),
        CASE(test_lease_is_kept_revoked_and_survives_reopening),
        CASE(test_concurrent_swaps_lose_no_change),
        CASE(test_kill_during_writes_loses_nothing_acknowledged),
        CASE(test_second_opening_is_refused),
        CASE(test_full_disk_changes_nothing_and_passes),
    };
    static const struct CMUnitTest sqlite_tests[] = {
        CASE(test_truncated_database_is_refused), CASE(test_removed_or_older_database_is_refused),
        CASE(test_truncated_journal_is_refused),  CASE(test_flipped_bytes_are_refused_or_harmless),
        CASE(test_newer_format_is_refused),
    };
    int failed = 0;

    for (size_t i = 0; i < ARRAY_LEN(subjects); i++) {
        subject = &subjects[i];
        failed += cmocka_run_group_tests_name(subject->name, tests, NULL, NULL);
    }
    subject = &subjects[0];
    return failed + cmocka_run_group_tests_name("sqlite-files", sqlite_tests, NULL, NULL);
}
