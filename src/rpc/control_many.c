#include "rpc/control_many.h"

#include "base/clock.h"
#include "rpc/unix_socket.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BATCH 64u /* connections at a time */
#define ANSWER_MAX_BYTES (256u << 10)
#define FIRST_BYTES 16384u

struct talk {
    struct control_question *question;
    char *text;
    size_t used, size;
};

static void talk_end(struct talk *talk, struct pollfd *pfd)
{
    if (pfd->fd >= 0) {
        (void)close(pfd->fd);
        pfd->fd = -1;
    }
    free(talk->text);
    talk->text = NULL;
}

/* A line takes less than a socket holds, so that neither connecting nor sending waits. */
static void talk_begin(struct talk *talk, struct pollfd *pfd, const char *line)
{
    struct err err;

    pfd->fd = unix_socket_connect(talk->question->dir, "control.sock", &err);
    pfd->events = POLLIN;
    talk->text = pfd->fd >= 0 ? malloc(FIRST_BYTES) : NULL;
    talk->size = FIRST_BYTES;
    if (talk->text == NULL ||
        send(pfd->fd, line, strlen(line), MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)strlen(line)) {
        talk_end(talk, pfd);
    }
}

/* Makes room for more; false: it is too long, or there is no memory. */
static bool talk_grow(struct talk *talk)
{
    char *larger;

    if (talk->used < talk->size) {
        return true;
    }
    larger = talk->size < ANSWER_MAX_BYTES ? realloc(talk->text, talk->size * 2) : NULL;
    if (larger == NULL) {
        return false;
    }
    talk->text = larger;
    talk->size *= 2;
    return true;
}

static void talk_read(struct talk *talk, struct pollfd *pfd)
{
    ssize_t n = talk_grow(talk)
                    ? recv(pfd->fd, talk->text + talk->used, talk->size - talk->used, MSG_DONTWAIT)
                    : 0;

    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
    }
    if (n > 0) {
        talk->used += (size_t)n;
        if (talk->text[talk->used - 1] != '\n') {
            return;
        }
        talk->question->answer = json_loadb(talk->text, talk->used, 0, NULL);
        if (!json_is_true(json_object_get(talk->question->answer, "ok"))) {
            json_decref(talk->question->answer);
            talk->question->answer = NULL;
        }
    }
    talk_end(talk, pfd);
}

static void ask_batch(struct control_question *questions, unsigned count, const char *line,
                      uint64_t deadline_ns)
{
    struct talk talks[BATCH];
    struct pollfd pfds[BATCH];
    unsigned open = 0;

    for (unsigned i = 0; i < count; i++) {
        talks[i] = (struct talk){.question = &questions[i]};
        talk_begin(&talks[i], &pfds[i], line);
        open += pfds[i].fd >= 0;
    }
    while (open > 0) {
        uint64_t now_ns = clock_monotonic_ns();
        int wait_ms = now_ns < deadline_ns ? (int)((deadline_ns - now_ns) / NS_PER_MS) + 1 : 0;
        int rc = poll(pfds, count, wait_ms);

        if (rc == 0 || (rc < 0 && errno != EINTR)) {
            break;
        }
        open = 0;
        for (unsigned i = 0; i < count; i++) {
            if (rc > 0 && talks[i].text != NULL && pfds[i].revents != 0) {
                talk_read(&talks[i], &pfds[i]);
            }
            open += pfds[i].fd >= 0;
        }
    }
    for (unsigned i = 0; i < count; i++) {
        talk_end(&talks[i], &pfds[i]);
    }
}

void control_ask_many(struct control_question *questions, unsigned count, const char *line,
                      unsigned timeout_ms)
{
    uint64_t deadline_ns = clock_monotonic_ns() + timeout_ms * NS_PER_MS;

    for (unsigned i = 0; i < count; i++) {
        questions[i].answer = NULL;
    }
    for (unsigned done = 0; done < count; done += BATCH) {
        ask_batch(questions + done, count - done < BATCH ? count - done : BATCH, line, deadline_ns);
    }
}
