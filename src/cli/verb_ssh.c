/* corbel ssh and console. */
#include "base/io.h"
#include "base/loop.h"
#include "cli/cli.h"
#include "cli/console.h"
#include "cli/instance.h"
#include "cli/paths.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define WAIT_DEFAULT_S 120
#define BANNER_MAX_MS 10000 /* a guest that took the connection greets within this */
#define RETRY_MS 200
#define NS_PER_S 1000000000ull

/*
 * True when a guest's ssh server greets on the port: the forward alone takes
 * any connection. False at the latest when the monitor, process_fd, ends.
 */
static bool ssh_answers(unsigned port, int process_fd)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CLEANUP_CLOSE int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct pollfd fds[] = {{.fd = fd, .events = POLLIN}, {.fd = process_fd, .events = POLLIN}};
    char greeting[4];

    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof(address)) != 0 ||
        poll(fds, ARRAY_LEN(fds), BANNER_MAX_MS) <= 0 || fds[0].revents == 0) {
        return false;
    }
    return io_read_full(fd, greeting, sizeof(greeting)) == (ssize_t)sizeof(greeting) &&
           memcmp(greeting, "SSH-", sizeof(greeting)) == 0;
}

static int wait_for_ssh(const struct instance *instance, unsigned seconds, struct err *err)
{
    CLEANUP_CLOSE int process_fd = instance_open_process(instance);
    struct pollfd ended = {.fd = process_fd, .events = POLLIN};
    uint64_t deadline = clock_monotonic_ns() + seconds * NS_PER_S;
    bool told = false;

    while (!ssh_answers(instance->ssh_port, process_fd)) {
        if (!instance_is_alive(instance)) {
            return err_set(err, -EPIPE, "\"%s\" ended before its ssh server answered",
                           instance->name);
        }
        if (clock_monotonic_ns() >= deadline) {
            return err_set(err, -ETIMEDOUT,
                           "the ssh server of \"%s\" did not answer in %u seconds; "
                           "corbel console %s shows what it does",
                           instance->name, seconds, instance->name);
        }
        if (!told) {
            (void)fprintf(stderr, "waiting for the ssh server of \"%s\"\n", instance->name);
            told = true;
        }
        /* A guest that refused says nothing when it would not any more: it is asked again. */
        (void)poll(&ended, 1, RETRY_MS);
    }
    return 0;
}

/* Becomes ssh; returns only when that fails. */
static int exec_ssh(const struct instance *instance, char **command, struct err *err)
{
    char key[PATH_MAX];
    char known[PATH_MAX + 32];
    char port[16];
    const char *argv[96] = {"ssh",
                            "-i",
                            key,
                            "-o",
                            known,
                            "-o",
                            "StrictHostKeyChecking=yes",
                            "-o",
                            "IdentitiesOnly=yes",
                            "-o",
                            "LogLevel=ERROR",
                            "-p",
                            port,
                            "-l",
                            instance->image.user,
                            "127.0.0.1"};
    size_t argc = 0;
    int rc = path_format(key, err, "%s/ssh_key", instance->dir);

    if (rc < 0) {
        return rc;
    }
    (void)snprintf(known, sizeof(known), "UserKnownHostsFile=%s/known_hosts", instance->dir);
    (void)snprintf(port, sizeof(port), "%u", instance->ssh_port);
    while (argv[argc] != NULL) {
        argc++;
    }
    for (; command != NULL && *command != NULL; command++) {
        if (argc + 1 >= ARRAY_LEN(argv)) {
            return err_set(err, -E2BIG, "the command has too many words");
        }
        argv[argc++] = *command;
    }
    (void)execvp("ssh", (char *const *)(uintptr_t)argv);
    return err_set(err, -ENXIO,
                   "ssh cannot be run; install it: sudo apt-get install "
                   "openssh-client");
}

int verb_ssh(const struct cli *cli, const void *values, const struct args *args, struct err *err)
{
    const struct ssh_options *options = values;
    struct instance instance;
    int rc = instance_find_args(cli, args, &instance, err);

    if (rc < 0) {
        return rc;
    }
    if (instance.ssh_port == 0) {
        return err_set(err, -EINVAL, "\"%s\" has no ssh server; use its console: corbel console %s",
                       instance.name, instance.name);
    }
    rc = wait_for_ssh(&instance, options->wait_s != 0 ? options->wait_s : WAIT_DEFAULT_S, err);
    return rc < 0 ? rc : exec_ssh(&instance, args->rest, err);
}

int verb_console(const struct cli *cli, const void *values, const struct args *args,
                 struct err *err)
{
    struct instance instance;
    enum console_end end;
    CLEANUP_CLOSE int fd = -1;
    int rc = instance_find_args(cli, args, &instance, err);

    (void)values;
    if (rc < 0) {
        return rc;
    }
    fd = console_connect(&instance, err);
    if (fd < 0) {
        return fd;
    }
    (void)fprintf(stderr, "console of \"%s\"; Ctrl-] leaves it\n", instance.name);
    rc = console_attach(fd, &end, err);
    if (rc == 0 && end == CONSOLE_END_CLOSED) {
        (void)fprintf(stderr, "\"%s\" ended\n", instance.name);
    }
    return rc;
}
