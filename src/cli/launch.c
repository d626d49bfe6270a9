#include "cli/launch.h"

#include "base/io.h"
#include "cli/console.h"
#include "cli/control_client.h"
#include "cli/paths.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SSH_GUEST_PORT 22
#define START_MAX_MS 120000 /* a monitor that does not listen by then never will */

/* The monitor's command line; `text` holds what is formatted for it. */
struct command {
    const char *argv[64];
    size_t count;
    char text[8][PATH_MAX + 64];
    size_t texts;
    char cpus[16];
    char ready_fd[16];
};

static int add_word(struct command *c, const char *word)
{
    if (c->count + 1 >= ARRAY_LEN(c->argv)) {
        return -E2BIG;
    }
    c->argv[c->count++] = word;
    return 0;
}

/* Adds "option value", the value made of directory, "/" and name. */
static int add_file(struct command *c, const char *option, const char *prefix, const char *dir,
                    const char *name)
{
    char *text;
    int n;

    if (c->texts == ARRAY_LEN(c->text)) {
        return -E2BIG;
    }
    text = c->text[c->texts++];
    n = snprintf(text, sizeof(c->text[0]), "%s%s/%s", prefix, dir, name);
    if (n < 0 || (size_t)n >= sizeof(c->text[0])) {
        return -ENAMETOOLONG;
    }
    if (add_word(c, option) < 0) {
        return -E2BIG;
    }
    return add_word(c, text);
}

/* "--net user,forward=0:22,forward=...": the monitor chooses a port for ssh */
static int add_net(struct command *c, const struct run_options *options,
                   const struct instance *instance)
{
    size_t size = sizeof(c->text[0]);
    size_t len;
    char *text;
    int n;

    if (c->texts == ARRAY_LEN(c->text)) {
        return -E2BIG;
    }
    text = c->text[c->texts++];
    n = snprintf(text, size, "user");
    if (instance->image.user[0] != '\0') {
        n = snprintf(text, size, "user,forward=0:%u", SSH_GUEST_PORT);
    }
    len = (size_t)n;
    for (unsigned i = 0; i < options->forwards.count; i++) {
        n = snprintf(text + len, size - len, ",forward=%s", options->forwards.items[i]);
        if (n < 0 || (size_t)n >= size - len) {
            return -E2BIG;
        }
        len += (size_t)n;
    }
    return add_word(c, "--net") < 0 ? -E2BIG : add_word(c, text);
}

/* One `option value` pair of the monitor's command line. */
static int add_pair(struct command *c, const char *option, const char *value)
{
    return add_word(c, option) < 0 ? -E2BIG : add_word(c, value);
}

static int make_command(struct command *c, const struct cli *cli, const struct run_options *options,
                        const struct instance *instance)
{
    const struct image *image = &instance->image;
    int rc = add_word(c, cli->vmm);

    rc = rc < 0 ? rc : add_pair(c, "--engine", instance->engine);
    rc = rc < 0 ? rc : add_pair(c, "--cpus", c->cpus);
    rc = rc < 0 ? rc : add_pair(c, "--memory", instance->memory);
    rc = rc < 0 ? rc : add_file(c, "--kernel", "", instance->dir, "vmlinuz");
    rc = rc < 0 ? rc : add_file(c, "--initrd", "", instance->dir, "initrd");
    rc = rc < 0 ? rc
                : add_pair(c, "--cmdline",
                           options->cmdline != NULL ? options->cmdline : image->cmdline);
    if (rc == 0 && image->has_disk) {
        rc = add_file(c, "--disk", "", instance->dir, "disk.raw");
    }
    rc = rc < 0 ? rc : add_net(c, options, instance);
    rc = rc < 0 ? rc : add_file(c, "--serial", "socket:", instance->runtime, "console.sock");
    rc = rc < 0 ? rc : add_file(c, "--control", "", instance->runtime, "control.sock");
    rc = rc < 0 ? rc : add_pair(c, "--ready-fd", c->ready_fd);
    for (unsigned i = 0; rc == 0 && i < options->vmm_args.count; i++) {
        rc = add_word(c, options->vmm_args.items[i]);
    }
    return rc;
}

NORETURN static void exec_monitor(const struct command *command, int log_fd, int ready_fd)
{
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

    if (setsid() < 0 || null < 0 || dup2(null, STDIN_FILENO) < 0 ||
        dup2(log_fd, STDOUT_FILENO) < 0 || dup2(log_fd, STDERR_FILENO) < 0 ||
        fcntl(ready_fd, F_SETFD, 0) < 0) {
        _exit(126);
    }
    execv(command->argv[0], (char *const *)(uintptr_t)command->argv);
    _exit(127);
}

/* The monitor's last line of log becomes the error. */
static int report_failure(const struct instance *instance, int status, struct err *err)
{
    char path[PATH_MAX];
    CLEANUP_FREE void *data = NULL;
    size_t len = 0;
    char *line;

    if (path_format(path, err, "%s/vmm.log", instance->runtime) < 0 ||
        io_read_file(path, 1u << 20, &data, &len) < 0) {
        len = 0;
    }
    while (len > 0 && ((char *)data)[len - 1] == '\n') {
        len--;
    }
    if (len == 0) {
        return err_set(err, -EIO, "the monitor of \"%s\" ended at once with status %d",
                       instance->name, status);
    }
    line = memrchr(data, '\n', len);
    line = line != NULL ? line + 1 : data;
    return err_set(err, -EIO, "%.*s", (int)((char *)data + len - line), line);
}

static int decode_status(int status)
{
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* Until the monitor says that its sockets listen; without a word it has failed. */
static int await_ready(const struct instance *instance, int ready_fd, struct err *err)
{
    struct pollfd pfd = {.fd = ready_fd, .events = POLLIN};
    char line[8];
    int status = 0;
    int rc;

    do {
        rc = poll(&pfd, 1, START_MAX_MS);
    } while (rc < 0 && errno == EINTR);
    if (rc > 0 && io_read_full(ready_fd, line, sizeof(line)) > 0) {
        return 0;
    }
    if (rc <= 0) {
        (void)kill(instance->pid, SIGKILL);
    }
    (void)waitpid(instance->pid, &status, 0);
    return rc > 0
               ? report_failure(instance, decode_status(status), err)
               : err_set(err, -ETIMEDOUT, "the monitor of \"%s\" does not start", instance->name);
}

/* The port that the monitor chose for the first forward, which is that of ssh. */
static int learn_ssh_port(struct instance *instance, struct err *err)
{
    json_t *answer = NULL;
    int rc = control_ask(instance, "{\"command\":\"status\"}\n", &answer, err);
    const json_t *forward;

    if (rc < 0) {
        return rc;
    }
    forward = json_array_get(json_object_get(answer, "forwards"), 0);
    instance->ssh_port = (unsigned)json_integer_value(json_object_get(forward, "host_port"));
    json_decref(answer);
    return instance->ssh_port != 0
               ? 0
               : err_set(err, -EIO, "the monitor of \"%s\" names no port for ssh", instance->name);
}

static int start_monitor(const struct command *command, struct instance *instance, int ready_fd,
                         struct err *err)
{
    char path[PATH_MAX];
    CLEANUP_CLOSE int log_fd = -1;
    int rc = path_format(path, err, "%s/vmm.log", instance->runtime);

    if (rc < 0) {
        return rc;
    }
    log_fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (log_fd < 0) {
        return err_set_errno(err, -errno, "%s cannot be written", path);
    }
    instance->pid = fork();
    if (instance->pid == 0) {
        exec_monitor(command, log_fd, ready_fd);
    }
    if (instance->pid < 0) {
        return err_set_errno(err, -errno, "the monitor cannot be started");
    }
    instance->start_ticks = instance_process_start(instance->pid);
    return 0;
}

/* Starts the monitor and waits until it listens. */
static int start_and_wait(const struct cli *cli, const struct run_options *options,
                          struct instance *instance, struct err *err)
{
    struct command command = {.count = 0};
    CLEANUP_CLOSE int read_fd = -1;
    CLEANUP_CLOSE int write_fd = -1;
    int fds[2];
    int rc;

    if (pipe2(fds, O_CLOEXEC) != 0) {
        return err_set_errno(err, -errno, "the monitor cannot be started");
    }
    read_fd = fds[0];
    write_fd = fds[1];
    (void)snprintf(command.cpus, sizeof(command.cpus), "%u", instance->cpus);
    (void)snprintf(command.ready_fd, sizeof(command.ready_fd), "%d", write_fd);
    if (make_command(&command, cli, options, instance) < 0) {
        return err_set(err, -E2BIG, "the monitor's command line is too long");
    }
    rc = start_monitor(&command, instance, write_fd, err);
    /* Now the monitor alone has it: its end is the pipe's end. */
    (void)close(steal_fd(&write_fd));
    return rc < 0 ? rc : await_ready(instance, read_fd, err);
}

int launch_monitor(const struct cli *cli, const struct run_options *options,
                   struct instance *instance, int *ret_console_fd, struct err *err)
{
    CLEANUP_CLOSE int console = -1;
    int rc;

    if (cli->vmm[0] == '\0') {
        return err_set(err, -ENXIO, "corbel-vmm is not beside this program; build it: make");
    }
    rc = path_make_private(cli->runtime, err);
    /* Sockets of a monitor that was killed. */
    if (rc == 0) {
        rc = path_remove(instance->runtime, err);
    }
    if (rc == 0) {
        rc = path_make_dirs(instance->runtime, err);
    }
    if (rc == 0) {
        rc = start_and_wait(cli, options, instance, err);
    }
    if (rc < 0) {
        return rc;
    }
    console = console_connect(instance, err);
    rc = console < 0 ? console : 0;
    if (rc == 0 && instance->image.user[0] != '\0') {
        rc = learn_ssh_port(instance, err);
    }
    if (rc == 0) {
        instance->is_running = true;
        rc = instance_save(instance, err);
    }
    if (rc < 0) {
        (void)kill(instance->pid, SIGKILL);
        (void)waitpid(instance->pid, NULL, 0);
        return rc;
    }
    *ret_console_fd = steal_fd(&console);
    return 0;
}

int launch_wait(const struct instance *instance)
{
    int status = 0;

    while (waitpid(instance->pid, &status, 0) < 0) {
        if (errno != EINTR) {
            return 1;
        }
    }
    return decode_status(status);
}
