#include "base/clock.h"
#include "base/error.h"
#include "base/io.h"
#include "base/latency.h"
#include "base/log.h"
#include "base/path.h"
#include "base/process.h"
#include "base/thread.h"

#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static void test_path_to_unix_takes_what_fits_with_its_end(void **state)
{
    struct sockaddr_un address;
    char text[sizeof(address.sun_path) + 1];

    (void)state;
    memset(text, 'x', sizeof(text));
    text[sizeof(address.sun_path)] = '\0';
    assert_int_equal(path_to_unix(text, &address), -ENAMETOOLONG);
    text[sizeof(address.sun_path) - 1] = '\0';
    assert_int_equal(path_to_unix(text, &address), 0);
    assert_int_equal(address.sun_family, AF_UNIX);
    assert_string_equal(address.sun_path, text);
}

static void test_err_set_returns_code_and_cuts_long_text(void **state)
{
    struct err err = {0};
    char text[600];

    (void)state;
    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    assert_int_equal(err_set(&err, -EINVAL, "%s", text), -EINVAL);
    assert_int_equal(err.code, -EINVAL);
    assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
    assert_int_equal(err_set_errno(&err, -ENOENT, "cannot open \"%s\"", "x"), -ENOENT);
    assert_string_equal(err.text, "cannot open \"x\": No such file or directory");
    assert_int_equal(err_set_errno(&err, -EIO, "%s", text), -EIO);
    assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
    assert_int_equal(err_set(NULL, -EIO, "nobody asks"), -EIO);
}

static void test_log_escape_shows_control_bytes_and_never_overruns(void **state)
{
    char out[12];

    (void)state;
    assert_string_equal(log_escape(out, sizeof(out), "a\n\x1b\\", 4), "a\\x0a\\x1b");
    assert_string_equal(log_escape(out, sizeof(out), "abcdefghijklmnop", 16), "abcdefghijk");
    assert_string_equal(log_escape(out, 1, "abc", 3), "");
}

/* Runs fn with stderr on a file and returns what it wrote there. */
static void capture_stderr(void (*fn)(void), char *out, size_t out_size)
{
    int saved = dup(STDERR_FILENO);
    int fd = io_memfd("stderr", 0);
    ssize_t len;

    assert_true(saved >= 0 && fd >= 0);
    assert_true(dup2(fd, STDERR_FILENO) >= 0);
    fn();
    assert_true(dup2(saved, STDERR_FILENO) >= 0);
    len = io_pread_full(fd, out, out_size - 1, 0);
    assert_true(len >= 0);
    out[len] = '\0';
    (void)close(fd);
    (void)close(saved);
}

static void log_one_of_each(void)
{
    char text[3000];

    memset(text, 'y', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    log_warn("shown %d", 1);
    log_info("hidden");
    log_error("%s", text);
}

static void test_log_level_filters_and_long_lines_end_in_newline(void **state)
{
    char out[4096];
    const char *newline;

    (void)state;
    log_set_program("prog");
    capture_stderr(log_one_of_each, out, sizeof(out));
    assert_int_equal(strncmp(out, "prog: warning: shown 1\nprog: error: yyy", 39), 0);
    assert_null(strstr(out, "hidden"));
    newline = strrchr(out, '\n');
    assert_non_null(newline);
    assert_int_equal(newline[1], '\0');
}

static void log_a_flood(void)
{
    for (int i = 0; i < 10000; i++) {
        log_guest("bad descriptor %d", i);
    }
}

static void test_log_guest_flood_is_cut_to_a_burst(void **state)
{
    char *out = malloc(1 << 20);
    unsigned lines = 0;

    (void)state;
    assert_non_null(out);
    capture_stderr(log_a_flood, out, 1 << 20);
    for (const char *p = out; *p != '\0'; p++) {
        lines += *p == '\n';
    }
    /* A burst, and a burst and a notice more for each second the loop may have taken. */
    assert_in_range(lines, 10, 200);
    assert_non_null(strstr(out, "prog: guest: bad descriptor 0\n"));
    free(out);
}

static void test_read_file_whole_too_big_and_directory(void **state)
{
    char path[] = "/tmp/corbel-test-XXXXXX";
    int fd = mkstemp(path);
    void *data = NULL;
    size_t len = 0;

    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(io_write_full(fd, "hello", 5), 0);
    assert_int_equal(io_pwrite_full(fd, "J", 1, 0), 0);
    (void)close(fd);
    assert_int_equal(io_read_file(path, 5, &data, &len), 0);
    assert_int_equal(len, 5);
    assert_string_equal(data, "Jello");
    free(data);
    data = NULL;
    assert_int_equal(io_read_file(path, 4, &data, &len), -EFBIG);
    assert_null(data);
    assert_int_equal(io_read_tail(path, 3, &data, &len), 0);
    assert_int_equal(len, 3);
    assert_string_equal(data, "llo");
    free(data);
    assert_int_equal(io_read_tail(path, 6, &data, &len), 0);
    assert_string_equal(data, "Jello");
    free(data);
    (void)unlink(path);
    assert_int_equal(io_read_tail(path, 3, &data, &len), -ENOENT);
    assert_int_equal(symlink("/etc/passwd", path), 0);
    assert_int_equal(io_read_tail(path, 3, &data, &len), -ELOOP);
    (void)unlink(path);
    assert_int_equal(io_read_file(path, 5, &data, &len), -ENOENT);
    assert_int_equal(io_read_file("/tmp", 5, &data, &len), -EISDIR);
    assert_int_equal(io_read_file("/dev/null", 5, &data, &len), -EINVAL);
}

static void test_eventfd_counts_signals_and_drains(void **state)
{
    int fd = io_eventfd();

    (void)state;
    assert_true(fd >= 0);
    assert_true((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    assert_int_equal(io_eventfd_drain(fd), 0);
    io_eventfd_signal(fd);
    io_eventfd_signal(fd);
    assert_int_equal(io_eventfd_drain(fd), 2);
    assert_int_equal(io_eventfd_drain(fd), 0);
    (void)close(fd);
}

static void *report_thread(void *opaque)
{
    sigset_t mask;

    (void)pthread_getname_np(pthread_self(), opaque, 16);
    (void)pthread_sigmask(SIG_SETMASK, NULL, &mask);
    return sigismember(&mask, SIGTERM) == 1 && sigismember(&mask, SIGSEGV) == 0 ? opaque : NULL;
}

static void test_thread_has_its_name_and_keeps_only_its_own_signals(void **state)
{
    char name[16] = "";
    pthread_t thread;
    void *result = NULL;
    sigset_t mask;

    (void)state;
    assert_int_equal(thread_start(&thread, "vcpu/0", report_thread, name), 0);
    assert_int_equal(pthread_join(thread, &result), 0);
    assert_ptr_equal(result, name);
    assert_string_equal(name, "vcpu/0");
    (void)pthread_sigmask(SIG_SETMASK, NULL, &mask);
    assert_int_equal(sigismember(&mask, SIGTERM), 0); /* the caller's mask is as before */
}

static void test_latency_falls_into_the_class_below_whose_bound_it_is(void **state)
{
    struct latency latency = {0};
    struct latency_sum sum = {0};

    (void)state;
    latency_add(&latency, 0);
    for (unsigned class = 0; class + 1 < LATENCY_CLASSES; class ++) {
        latency_add(&latency, latency_bound_ns(class) - 1);
        latency_add(&latency, latency_bound_ns(class));
    }
    latency_add(&latency, UINT64_MAX / 2);
    latency_collect(&latency, &sum);
    for (unsigned class = 0; class < LATENCY_CLASSES; class ++) {
        assert_int_equal(sum.counts[class], 2);
    }
    assert_int_equal(latency_total(&sum), 2 * LATENCY_CLASSES);
}

static void test_thread_times_grow_with_work(void **state)
{
    struct thread_times before, after;
    int rc = process_thread_times(getpid(), gettid(), &before);

    (void)state;
    if (rc == -ENOTSUP) {
        skip();
    }
    assert_int_equal(rc, 0);
    do {
        assert_int_equal(process_thread_times(getpid(), gettid(), &after), 0);
    } while (after.run_ns == before.run_ns);
    assert_true(after.run_ns > before.run_ns && after.wait_ns >= before.wait_ns);
    assert_int_equal(process_thread_times(getpid(), 0, &after), -ENOENT);
}

#ifdef CORBEL_DEBUG_LOCKS
static void test_mutexes_in_wrong_order_abort(void **state)
{
    int status;
    pid_t child = fork();

    (void)state;
    assert_true(child >= 0);
    if (child == 0) {
        struct mutex bus, device;

        (void)signal(SIGABRT, SIG_DFL);
        (void)close(STDERR_FILENO);
        mutex_init(&bus, LOCK_RANK_BUS);
        mutex_init(&device, LOCK_RANK_DEVICE);
        mutex_lock(&bus);
        mutex_lock(&device);
        mutex_unlock(&bus);
        mutex_unlock(&device);
        mutex_lock(&device);
        mutex_lock(&bus);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_path_to_unix_takes_what_fits_with_its_end),
        cmocka_unit_test(test_err_set_returns_code_and_cuts_long_text),
        cmocka_unit_test(test_log_escape_shows_control_bytes_and_never_overruns),
        cmocka_unit_test(test_log_level_filters_and_long_lines_end_in_newline),
        cmocka_unit_test(test_log_guest_flood_is_cut_to_a_burst),
        cmocka_unit_test(test_read_file_whole_too_big_and_directory),
        cmocka_unit_test(test_eventfd_counts_signals_and_drains),
        cmocka_unit_test(test_thread_has_its_name_and_keeps_only_its_own_signals),
        cmocka_unit_test(test_latency_falls_into_the_class_below_whose_bound_it_is),
        cmocka_unit_test(test_thread_times_grow_with_work),
#ifdef CORBEL_DEBUG_LOCKS
        cmocka_unit_test(test_mutexes_in_wrong_order_abort),
#endif
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
