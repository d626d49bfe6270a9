#include "vmm/console.h"

#include "base/io.h"
#include "base/log.h"
#include "vmm/config.h"
#include "vmm/listen.h"
#include "vmm/terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>

#define PUMP_BYTES 512
#define ESCAPE 0x01 /* Ctrl-A */

struct vmm_console {
    struct loop *loop;
    vmm_quit_fn quit;
    void *opaque;
    struct machine_chardev chardev;
    bool is_started; /* the machine owns chardev's descriptors */

    struct vmm_listener listener;
    const char *made_file; /* created by us, so removed when no machine starts */
    const char *made_log;  /* the same */

    /* From standard input to the machine. */
    int pipe_fd; /* -1: no input, or all of it is done */
    bool is_terminal;
    bool is_escaped; /* Ctrl-A came, its command has not yet */
    struct loop_fd *stdin_handler;
    struct loop_fd *pipe_handler;
    size_t used;
    char buffer[PUMP_BYTES];
};

static void pump_continue(struct vmm_console *console);

static void close_fd(int *fd)
{
    if (*fd >= 0) {
        (void)close(*fd);
        *fd = -1;
    }
}

static void pump_end(struct vmm_console *console)
{
    loop_remove_fd(console->stdin_handler);
    loop_remove_fd(console->pipe_handler);
    console->stdin_handler = console->pipe_handler = NULL;
    close_fd(&console->pipe_fd);
}

static void show_help(void)
{
    static const char help[] = "\r\nCtrl-A x  end the virtual machine at once\r\n"
                               "Ctrl-A a  send Ctrl-A\r\n"
                               "Ctrl-A h  this help\r\n";

    if (io_write_full(STDERR_FILENO, help, sizeof(help) - 1) < 0) {
        log_debug("nowhere to show help");
    }
}

/* Takes the commands out of what was typed; returns how many bytes are left for the guest. */
static size_t filter_commands(struct vmm_console *console, char *text, size_t len)
{
    size_t kept = 0;

    for (size_t i = 0; i < len; i++) {
        char c = text[i];

        if (!console->is_escaped) {
            if (c == ESCAPE) {
                console->is_escaped = true;
            } else {
                text[kept++] = c;
            }
            continue;
        }
        console->is_escaped = false;
        if (c == 'x') {
            console->quit(console->opaque);
        } else if (c == 'h') {
            show_help();
        } else if (c == 'a' || c == ESCAPE) {
            text[kept++] = ESCAPE;
        }
    }
    return kept;
}

/* One read from standard input. False at its end. */
static bool pump_read(struct vmm_console *console)
{
    ssize_t n = read(STDIN_FILENO, console->buffer, sizeof(console->buffer));

    if (n < 0 && (errno == EINTR || errno == EAGAIN)) {
        return true;
    }
    if (n <= 0) {
        return false;
    }
    console->used = (size_t)n;
    if (console->is_terminal) {
        console->used = filter_commands(console, console->buffer, console->used);
    }
    return true;
}

/* Passes on what was read. False when the machine hears no more. */
static bool pump_write(struct vmm_console *console)
{
    ssize_t n = write(console->pipe_fd, console->buffer, console->used);

    if (n < 0) {
        return errno == EAGAIN || errno == EINTR;
    }
    console->used -= (size_t)n;
    memmove(console->buffer, console->buffer + n, console->used);
    return true;
}

static void on_stdin(void *opaque, uint32_t events)
{
    struct vmm_console *console = opaque;

    (void)events;
    if (!pump_read(console) || (console->used > 0 && !pump_write(console))) {
        pump_end(console);
        return;
    }
    pump_continue(console);
}

static void on_pipe(void *opaque, uint32_t events)
{
    struct vmm_console *console = opaque;
    bool is_alive = (events & EPOLLERR) == 0;

    if (is_alive && console->used == 0) {
        is_alive = pump_read(console); /* a file: never blocks, and epoll cannot watch it */
    }
    if (is_alive && console->used > 0) {
        is_alive = pump_write(console);
    }
    if (!is_alive) {
        pump_end(console);
        return;
    }
    pump_continue(console);
}

/* Waits for input when there is nothing to pass on, else for room in the pipe. */
static void pump_continue(struct vmm_console *console)
{
    bool wants_room = console->used > 0;
    int rc = 0;

    if (!wants_room && console->stdin_handler == NULL) {
        rc = loop_add_fd(console->loop, STDIN_FILENO, EPOLLIN, on_stdin, console,
                         &console->stdin_handler);
        if (rc == -EPERM) {
            wants_room = true;
            rc = 0;
        }
    }
    if (wants_room && console->stdin_handler != NULL) {
        loop_remove_fd(console->stdin_handler);
        console->stdin_handler = NULL;
    }
    if (wants_room && console->pipe_handler == NULL) {
        rc = loop_add_fd(console->loop, console->pipe_fd, EPOLLOUT, on_pipe, console,
                         &console->pipe_handler);
    } else if (!wants_room && console->pipe_handler != NULL) {
        loop_remove_fd(console->pipe_handler);
        console->pipe_handler = NULL;
    }
    if (rc < 0) {
        pump_end(console);
    }
}

static int open_stdio(struct vmm_console *console, struct err *err)
{
    struct machine_chardev *chardev = &console->chardev;
    int ends[2];

    chardev->kind = MACHINE_CHARDEV_FDS;
    chardev->keep_fds = true; /* standard output is shared: the machine opens it anew */
    chardev->out_fd = STDOUT_FILENO;
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0) {
        return err_set_errno(err, -errno, "--serial: cannot make a pipe");
    }
    chardev->in_fd = ends[0];
    console->pipe_fd = ends[1];
    console->is_terminal = isatty(STDIN_FILENO) == 1;
    return 0;
}

static int open_file(struct vmm_console *console, const char *path, struct err *err)
{
    const int flags = O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY;
    int fd = open(path, flags | O_EXCL, 0600);

    if (fd >= 0) {
        console->made_file = path;
    } else if (errno == EEXIST) {
        fd = open(path, flags, 0600);
    }
    if (fd < 0) {
        return err_set_errno(err, -errno, "--serial: cannot write \"%s\"", path);
    }
    console->chardev.kind = MACHINE_CHARDEV_FDS;
    console->chardev.out_fd = fd;
    return 0;
}

static int open_socket(struct vmm_console *console, const char *path, struct err *err)
{
    int rc = vmm_listener_open(&console->listener, "--serial", path, err);

    if (rc == 0) {
        console->chardev.kind = MACHINE_CHARDEV_LISTEN;
        console->chardev.listen_fd = steal_fd(&console->listener.fd);
    }
    return rc;
}

static int open_backend(struct vmm_console *console, const struct vmm_config *config,
                        struct err *err)
{
    switch (config->serial) {
    case VMM_SERIAL_STDIO:
        return open_stdio(console, err);
    case VMM_SERIAL_FILE:
        return open_file(console, config->serial_path, err);
    case VMM_SERIAL_SOCKET:
        return open_socket(console, config->serial_path, err);
    case VMM_SERIAL_NONE:
        break;
    }
    return 0;
}

/* Behind what an earlier machine left there. */
static int open_log(struct vmm_console *console, const char *path, struct err *err)
{
    struct machine_chardev *chardev = &console->chardev;
    struct stat st;
    const int flags = O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NOFOLLOW | O_NONBLOCK;
    int fd = open(path, flags | O_EXCL, 0600);

    if (fd >= 0) {
        console->made_log = path;
    } else if (errno == EEXIST) {
        fd = open(path, flags, 0600);
    }
    if (fd < 0) {
        return err_set_errno(err, -errno, "--serial-log: cannot write \"%s\"", path);
    }
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        (void)close(fd);
        return err_set(err, -EINVAL, "--serial-log: \"%s\" is no file; give a regular one", path);
    }
    chardev->is_logged = true;
    chardev->log_fd = fd;
    return 0;
}

int vmm_console_create(const struct vmm_config *config, struct loop *loop, vmm_quit_fn quit,
                       void *opaque, struct err *err, struct vmm_console **ret_console)
{
    struct vmm_console *console = calloc(1, sizeof(*console));
    int rc;

    if (console == NULL) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    *console = (struct vmm_console){
        .loop = loop,
        .quit = quit,
        .opaque = opaque,
        .chardev = {.kind = MACHINE_CHARDEV_NONE, .in_fd = -1, .out_fd = -1, .listen_fd = -1},
        .listener = VMM_LISTENER_NONE,
        .pipe_fd = -1,
    };
    rc = open_backend(console, config, err);
    if (rc == 0 && config->serial_log_path != NULL) {
        rc = open_log(console, config->serial_log_path, err);
    }
    if (rc < 0) {
        vmm_console_destroy(console);
        return rc;
    }
    *ret_console = console;
    return 0;
}

void vmm_console_destroy(struct vmm_console *console)
{
    if (console == NULL) {
        return;
    }
    vmm_terminal_restore();
    pump_end(console);
    if (console->chardev.is_logged) {
        close_fd(&console->chardev.log_fd);
    }
    if (console->made_log != NULL && !console->is_started) {
        (void)unlink(console->made_log);
    }
    if (console->chardev.keep_fds) {
        close_fd(&console->chardev.in_fd); /* the pipe's end; standard output stays open */
    } else if (!console->is_started) {
        close_fd(&console->chardev.in_fd);
        close_fd(&console->chardev.out_fd);
        close_fd(&console->chardev.listen_fd);
        if (console->made_file != NULL) {
            (void)unlink(console->made_file); /* an empty file is all that can be left */
        }
    }
    vmm_listener_close(&console->listener);
    free(console);
}

const struct machine_chardev *vmm_console_chardev(const struct vmm_console *console)
{
    return &console->chardev;
}

int vmm_console_start(struct vmm_console *console)
{
    int rc = 0;

    console->is_started = true;
    if (console->is_terminal) {
        rc = vmm_terminal_raw(STDIN_FILENO);
    }
    if (rc == 0 && console->pipe_fd >= 0) {
        pump_continue(console);
    }
    return rc;
}
