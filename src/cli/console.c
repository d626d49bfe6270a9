#include "cli/console.h"

#include "base/clock.h"
#include "base/io.h"
#include "base/loop.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#define ESCAPE_KEY 0x1d /* Ctrl-] */

int console_open(const struct cli *cli, struct client *client, const json_t *instance,
                 struct client_stream **ret_stream, struct err *err)
{
    char path[API_PATH_BYTES];
    int rc = api_path(cli, path, "instances", api_text(instance, "id"), "console", err);

    return rc < 0 ? rc : client_stream_open(client, path, ret_stream, err);
}

/* Passes what the user typed to the guest: 1 when the escape key was among it. */
static int pass_input(struct client_stream *stream, int *in_fd)
{
    char buf[512];
    ssize_t n = read(*in_fd, buf, sizeof(buf));
    char *escape;
    int rc;

    if (n <= 0) {
        if (n == 0 || errno != EINTR) {
            *in_fd = -1; /* no more input; poll ignores it from here on */
        }
        return 0;
    }
    escape = isatty(*in_fd) ? memchr(buf, ESCAPE_KEY, (size_t)n) : NULL;
    rc = client_stream_write(stream, buf, escape != NULL ? (size_t)(escape - buf) : (size_t)n);
    if (rc < 0) {
        return rc;
    }
    return escape != NULL ? 1 : 0;
}

/* Copies guest output until there is none: 1 at its end. */
static int pass_output(struct client_stream *stream)
{
    for (;;) {
        char buf[4096];
        ssize_t n = client_stream_read(stream, buf, sizeof(buf));
        int rc;

        if (n <= 0) {
            return n == 0 ? 1 : n == -EAGAIN ? 0 : (int)n;
        }
        rc = io_write_full(STDOUT_FILENO, buf, (size_t)n);
        if (rc < 0) {
            return rc;
        }
    }
}

static int join_console(struct client_stream *stream, enum console_end *ret_end)
{
    int in_fd = STDIN_FILENO;

    for (;;) {
        struct pollfd fds[2] = {{.fd = client_stream_fd(stream), .events = POLLIN},
                                {.fd = in_fd, .events = POLLIN}};
        int rc = pass_output(stream);

        if (rc != 0) {
            *ret_end = CONSOLE_END_CLOSED;
            return rc < 0 ? rc : 0;
        }
        rc = poll(fds, 2, -1);
        if (rc < 0 && errno != EINTR) {
            return -errno;
        }
        if (rc > 0 && fds[1].revents != 0) {
            rc = pass_input(stream, &in_fd);
            if (rc == 1) {
                *ret_end = CONSOLE_END_DETACHED;
                return 0;
            }
            /* The machine ended while we wrote; the next read of its output says so. */
        }
    }
}

int console_attach(struct client_stream *stream, enum console_end *ret_end, struct err *err)
{
    struct termios saved;
    bool is_terminal = isatty(STDIN_FILENO) && tcgetattr(STDIN_FILENO, &saved) == 0;
    int rc;

    if (is_terminal) {
        struct termios raw = saved;

        cfmakeraw(&raw);
        (void)tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
    }
    rc = join_console(stream, ret_end);
    if (is_terminal) {
        (void)tcsetattr(STDIN_FILENO, TCSADRAIN, &saved);
        (void)fputc('\n', stderr);
    }
    return rc < 0 ? err_set_errno(err, rc, "the console was lost") : 0;
}

/* Looks for text in a stream that arrives in pieces: `tail` keeps what may be its beginning. */
struct matcher {
    const char *text;
    char tail[64];
    size_t tail_len;
};

static bool matcher_feed(struct matcher *m, const char *data, size_t len)
{
    size_t text_len = strlen(m->text);
    char window[sizeof(m->tail) + 1024];

    memcpy(window, m->tail, m->tail_len);
    memcpy(window + m->tail_len, data, len);
    len += m->tail_len;
    if (memmem(window, len, m->text, text_len) != NULL) {
        return true;
    }
    m->tail_len = len < text_len - 1 ? len : text_len - 1;
    memcpy(m->tail, window + len - m->tail_len, m->tail_len);
    return false;
}

int console_wait_text(struct client_stream *stream, const char *text, unsigned seconds,
                      struct err *err)
{
    struct matcher m = {.text = text};
    uint64_t deadline = seconds != 0 ? clock_monotonic_ns() + seconds * NS_PER_S : UINT64_MAX;

    if (text[0] == '\0' || strlen(text) > sizeof(m.tail)) {
        return err_set(err, -EINVAL, "the text to wait for must have 1 to %zu bytes",
                       sizeof(m.tail));
    }
    for (;;) {
        struct pollfd pfd = {.fd = client_stream_fd(stream), .events = POLLIN};
        char buf[1024];
        ssize_t n = client_stream_read(stream, buf, sizeof(buf));
        int rc;

        if (n == -EAGAIN) {
            if (clock_monotonic_ns() >= deadline) {
                return err_set(err, -ETIMEDOUT,
                               "\"%s\" did not appear on the console in %u seconds", text, seconds);
            }
            (void)poll(&pfd, 1, 1000);
            continue;
        }
        if (n <= 0) {
            return err_set(err, -EPIPE, "the console ended before \"%s\" appeared", text);
        }
        rc = io_write_full(STDOUT_FILENO, buf, (size_t)n);
        if (rc < 0) {
            return err_set_errno(err, rc, "the console's output cannot be shown");
        }
        if (matcher_feed(&m, buf, (size_t)n)) {
            return 0;
        }
    }
}
