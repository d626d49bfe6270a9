/* Who may open a store, and when: of one that another process had. */
#include "base/io.h"
#include "store/store_sqlite.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/wait.h>

struct rig {
    char dir[32];
    char path[64];
    struct err err;
};

static int setup(void **state)
{
    struct rig *rig = test_calloc(1, sizeof(*rig));

    (void)snprintf(rig->dir, sizeof(rig->dir), "/tmp/corbel-lock-XXXXXX");
    assert_non_null(mkdtemp(rig->dir));
    (void)snprintf(rig->path, sizeof(rig->path), "%s/db", rig->dir);
    *state = rig;
    return 0;
}

static int teardown(void **state)
{
    static const char *const parts[] = {"", ".lock", ".seal", "-wal", "-shm"};
    struct rig *rig = *state;

    for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
        char path[96];

        (void)snprintf(path, sizeof(path), "%s%s", rig->path, parts[i]);
        (void)unlink(path);
    }
    assert_int_equal(rmdir(rig->dir), 0);
    test_free(rig);
    return 0;
}

static int open_store(struct rig *rig, struct store **ret_store)
{
    const struct store_sqlite_config config = {.path = rig->path};

    return store_sqlite_open(&config, &rig->err, ret_store);
}

/* Has all that its parent had, and ends when somebody opens the lock's file. */
NORETURN static void be_child(const struct rig *rig, int told)
{
    char event[sizeof(struct inotify_event) + 256], lock[96];
    int fd = inotify_init1(IN_CLOEXEC);

    (void)snprintf(lock, sizeof(lock), "%s.lock", rig->path);
    if (fd < 0 || inotify_add_watch(fd, lock, IN_OPEN) < 0 || write(told, "c", 1) != 1 ||
        read(fd, event, sizeof(event)) <= 0) {
        _exit(1);
    }
    _exit(0);
}

/* Opens the store, has a child, and waits for its end. */
NORETURN static void be_daemon(struct rig *rig, int told)
{
    struct store *store = NULL;

    if (open_store(rig, &store) != 0) {
        _exit(1);
    }
    if (fork() == 0) {
        be_child(rig, told);
    }
    (void)pause();
    _exit(1);
}

/* A daemon that has the store, and a child which has it too. */
static pid_t start_daemon(struct rig *rig)
{
    int told[2];
    char byte;
    pid_t pid;

    assert_int_equal(pipe2(told, O_CLOEXEC), 0);
    pid = fork();
    if (pid == 0) {
        be_daemon(rig, told[1]);
    }
    assert_int_equal(read(told[0], &byte, 1), 1);
    (void)close(told[0]);
    (void)close(told[1]);
    return pid;
}

static void kill_daemon(pid_t pid)
{
    int status;

    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, &status, 0), pid);
}

/* A child that the killed daemon was about to make a monitor of has its lock for a moment longer. */
static void test_killed_daemons_child_is_waited_for(void **state)
{
    struct rig *rig = *state;
    struct store *store = NULL;

    kill_daemon(start_daemon(rig));
    if (open_store(rig, &store) != 0) {
        fail_msg("%s", rig->err.text);
    }
    store_close(store);
}

static void test_daemon_that_lives_is_not(void **state)
{
    struct rig *rig = *state;
    struct store *store = NULL;
    pid_t pid = start_daemon(rig);

    assert_int_equal(open_store(rig, &store), -EBUSY);
    assert_non_null(strstr(rig->err.text, "another process"));
    kill_daemon(pid);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_killed_daemons_child_is_waited_for, setup, teardown),
        cmocka_unit_test_setup_teardown(test_daemon_that_lives_is_not, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
