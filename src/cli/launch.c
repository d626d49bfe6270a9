#include "cli/launch.h"
#include "rpc/control_client.h"
#include "rpc/monitor.h"

#include "cli/console.h"
#include "cli/paths.h"

#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SSH_GUEST_PORT 22

/* The monitor's command line; `text` holds what is formatted for it. */
struct command {
    const char *argv[64];
    size_t count;
    char text[8][PATH_MAX + 64];
    size_t texts;
    char cpus[16];
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
    rc = rc < 0 ? rc : add_pair(c, "--ready-fd", MONITOR_READY_FD_TEXT);
    for (unsigned i = 0; rc == 0 && i < options->vmm_args.count; i++) {
        rc = add_word(c, options->vmm_args.items[i]);
    }
    return rc;
}

/* The port that the monitor chose for the first forward, which is that of ssh. */
static int learn_ssh_port(struct instance *instance, struct err *err)
{
    json_t *answer = NULL;
    int rc = control_ask(instance->runtime, instance->name, "{\"command\":\"status\"}\n", 0,
                         &answer, err);
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

/* Starts the monitor and waits until it listens. */
static int start_and_wait(const struct cli *cli, const struct run_options *options,
                          struct instance *instance, struct err *err)
{
    struct command command = {.count = 0};
    char log[PATH_MAX];
    struct monitor_start start = {
        .name = instance->name, .argv = command.argv, .log = log, .lock_fd = -1};
    struct monitor monitor;
    int rc = path_format(log, err, "%s/vmm.log", instance->runtime);

    (void)snprintf(command.cpus, sizeof(command.cpus), "%u", instance->cpus);
    if (rc == 0 && make_command(&command, cli, options, instance) < 0) {
        rc = err_set(err, -E2BIG, "the monitor's command line is too long");
    }
    if (rc == 0) {
        rc = monitor_start(&start, &monitor, err);
    }
    if (rc == 0) {
        instance->pid = monitor.pid;
        instance->start_ticks = monitor.start_ticks;
        rc = monitor_await_ready(&monitor, &start, err);
    }
    return rc;
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
    return monitor_wait(instance->pid);
}
