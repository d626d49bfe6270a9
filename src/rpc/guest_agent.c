#include "rpc/guest_agent.h"

#include "base/clock.h"
#include "base/io.h"
#include "rpc/unix_socket.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#define FIRST_BYTES 4096u
#define MAX_DEPTH 24u
#define MAX_VALUES 20000u
#define SHOWN_BYTES 320
/* What may stand before the answer to a greeting: all that an agent keeps of a program's output. */
#define MAX_STALE_BYTES (64u << 20)
/* Before a line, it has the agent forget half a request of an earlier caller. */
#define RESYNC 0xffu

struct guest_agent {
    int fd;
    uint64_t deadline_ns;
    int64_t next_id;
    char *buffer;
    size_t capacity, used;
    size_t taken; /* of used, from its start: returned by read_line() already */
};

/* Waits until the descriptor is ready, or the time is up. */
static int await(const struct guest_agent *agent, short events, struct err *err)
{
    for (;;) {
        uint64_t now = clock_monotonic_ns();
        struct pollfd pfd = {.fd = agent->fd, .events = events};
        int left_ms = now < agent->deadline_ns
                          ? (int)((agent->deadline_ns - now + NS_PER_MS - 1) / NS_PER_MS)
                          : 0;
        int rc = poll(&pfd, 1, left_ms);

        if (rc > 0) {
            return 0;
        }
        if (rc == 0) {
            return err_set(err, -ETIMEDOUT, "the guest's agent does not answer");
        }
        if (errno != EINTR) {
            return err_set_errno(err, -errno, "the guest's agent cannot be waited for");
        }
    }
}

static int send_all(struct guest_agent *agent, const char *data, size_t len, struct err *err)
{
    while (len > 0) {
        ssize_t n = send(agent->fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            int rc = await(agent, POLLOUT, err);

            if (rc < 0) {
                return rc;
            }
            continue;
        }
        if (n <= 0) {
            return err_set(err, -EPIPE, "the monitor does not take what the agent is to be asked");
        }
        data += n;
        len -= (size_t)n;
    }
    return 0;
}

static int grow(struct guest_agent *agent, struct err *err)
{
    size_t capacity = agent->capacity > 0 ? 2 * agent->capacity : FIRST_BYTES;
    char *bigger;

    if (agent->taken > 0) {
        memmove(agent->buffer, agent->buffer + agent->taken, agent->used - agent->taken);
        agent->used -= agent->taken;
        agent->taken = 0;
    }
    if (agent->used < agent->capacity) {
        return 0;
    }
    if (agent->capacity >= GUEST_AGENT_MAX_ANSWER) {
        return err_set(err, -EMSGSIZE, "the guest's agent answers with more than %u bytes",
                       GUEST_AGENT_MAX_ANSWER);
    }
    capacity = capacity < GUEST_AGENT_MAX_ANSWER ? capacity : GUEST_AGENT_MAX_ANSWER;
    bigger = realloc(agent->buffer, capacity);
    if (bigger == NULL) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    agent->buffer = bigger;
    agent->capacity = capacity;
    return 0;
}

/* Waits for bytes and puts them behind those that are there. */
static int receive(struct guest_agent *agent, struct err *err)
{
    int rc = agent->taken > 0 || agent->used == agent->capacity ? grow(agent, err) : 0;
    ssize_t n;

    rc = rc < 0 ? rc : await(agent, POLLIN, err);
    if (rc < 0) {
        return rc;
    }
    n = recv(agent->fd, agent->buffer + agent->used, agent->capacity - agent->used, MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
        return err_set(err, -EPIPE, "the monitor has ended");
    }
    agent->used += n > 0 ? (size_t)n : 0;
    return 0;
}

/* The next line without its newline, valid until the next call. */
static int read_line(struct guest_agent *agent, const char **ret_line, size_t *ret_len,
                     struct err *err)
{
    size_t seen = agent->taken;

    for (;;) {
        char *end =
            agent->used > seen ? memchr(agent->buffer + seen, '\n', agent->used - seen) : NULL;
        int rc;

        if (end != NULL) {
            *ret_line = agent->buffer + agent->taken;
            *ret_len = (size_t)(end - *ret_line);
            agent->taken += *ret_len + 1;
            return 0;
        }
        seen = agent->used - agent->taken; /* receive() moves what is left to the start */
        rc = receive(agent, err);
        if (rc < 0) {
            return rc;
        }
    }
}

/*
 * Whether parsing the text costs no more than its length promises: a parser
 * makes an object of each value, and calls itself for each level.
 */
static bool is_modest(const char *text, size_t len)
{
    unsigned depth = 0, values = 0;
    bool is_string = false;

    for (size_t i = 0; i < len; i++) {
        char c = text[i];

        if (is_string) {
            i += c == '\\';
            is_string = c != '"';
        } else if (c == '"') {
            is_string = true;
        } else if (c == '[' || c == '{') {
            depth++;
            values++;
        } else if (c == ']' || c == '}') {
            depth -= depth > 0;
        } else if (c == ',' || c == ':') {
            values++;
        }
        if (depth > MAX_DEPTH || values > MAX_VALUES) {
            return false;
        }
    }
    return true;
}

/* Valid UTF-8, cut between two characters, without what moves a terminal's cursor. */
static void copy_words(char out[SHOWN_BYTES], const char *text)
{
    size_t len = strlen(text);

    if (len >= SHOWN_BYTES) {
        len = SHOWN_BYTES - 1;
        while (len > 0 && ((unsigned char)text[len] & 0xc0) == 0x80) {
            len--;
        }
    }
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];

        out[i] = c < ' ' || c == 0x7f ? '?' : (char)c;
    }
    out[len] = '\0';
}

/* One line as an object, with the answer to the request of that id; 0 when it is another's. */
static int parse_answer(const char *line, size_t len, int64_t id, json_t **ret_value,
                        struct err *err)
{
    json_t *answer, *value, *error, *given;
    int rc = 1;

    if (!is_modest(line, len)) {
        return err_set(err, -EMSGSIZE, "the guest's agent answers with too many values");
    }
    answer = json_loadb(line, len, JSON_REJECT_DUPLICATES, NULL);
    value = json_object_get(answer, "return");
    error = json_object_get(answer, "error");
    given = json_object_get(answer, "id");
    if (given != NULL && (!json_is_integer(given) || json_integer_value(given) != id)) {
        rc = 0;
    } else if (value != NULL) {
        *ret_value = json_incref(value);
    } else if (json_is_object(error)) {
        const char *why = json_string_value(json_object_get(error, "desc"));
        char shown[SHOWN_BYTES];

        copy_words(shown, why != NULL ? why : "refused");
        rc = err_set(err, -EREMOTEIO, "the guest's agent: %s", shown);
    } else {
        rc = err_set(err, -EPROTO, "the guest's agent does not answer in its protocol");
    }
    json_decref(answer);
    return rc;
}

static int send_request(struct guest_agent *agent, const char *command, json_t *arguments,
                        int64_t id, bool is_first, struct err *err)
{
    json_t *request = json_pack("{s:s}", "execute", command);
    char *text;
    int rc;

    if (arguments != NULL) {
        (void)json_object_set_new(request, "arguments", arguments);
    }
    if (!is_first) {
        (void)json_object_set_new(request, "id", json_integer(id));
    }
    text = json_dumps(request, JSON_COMPACT);
    json_decref(request);
    if (text == NULL) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    rc = is_first ? send_all(agent, (const char[]){(char)RESYNC}, 1, err) : 0;
    rc = rc < 0 ? rc : send_all(agent, text, strlen(text), err);
    rc = rc < 0 ? rc : send_all(agent, "\n", 1, err);
    free(text);
    return rc;
}

/* Passes over what stands before the next mark. */
static int skip_to_mark(struct guest_agent *agent, size_t *stale, struct err *err)
{
    for (;;) {
        char *from = agent->buffer + agent->taken;
        size_t len = agent->used - agent->taken;
        char *mark = len > 0 ? memchr(from, RESYNC, len) : NULL;
        int rc;

        *stale += mark != NULL ? (size_t)(mark + 1 - from) : len;
        if (mark != NULL) {
            agent->taken += (size_t)(mark + 1 - from);
            return 0;
        }
        if (*stale > MAX_STALE_BYTES) {
            return err_set(err, -EPROTO, "the guest's agent says much and does not answer");
        }
        agent->taken = agent->used = 0;
        rc = receive(agent, err);
        if (rc < 0) {
            return rc;
        }
    }
}

/* The agent's answer to a greeting follows a byte that its JSON never has; all before is stale. */
static int await_greeting(struct guest_agent *agent, int64_t id, struct err *err)
{
    size_t stale = 0;

    for (;;) {
        json_t *value = NULL;
        struct err ignored;
        const char *line;
        size_t len;
        int rc = skip_to_mark(agent, &stale, err);
        bool is_ours;

        rc = rc < 0 ? rc : read_line(agent, &line, &len, err);
        if (rc < 0) {
            return rc;
        }
        stale += len + 1;
        if (parse_answer(line, len, 0, &value, &ignored) != 1) {
            continue;
        }
        is_ours = json_is_integer(value) && json_integer_value(value) == id;
        json_decref(value);
        if (is_ours) {
            return 0;
        }
    }
}

static void set_deadline(struct guest_agent *agent, unsigned timeout_ms)
{
    agent->deadline_ns = clock_monotonic_ns() + timeout_ms * NS_PER_MS;
}

int guest_agent_open(const char *dir, unsigned timeout_ms, struct guest_agent **ret_agent,
                     struct err *err)
{
    struct guest_agent *agent = calloc(1, sizeof(*agent));
    uint32_t chance = 0;
    int rc;

    if (agent == NULL) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    set_deadline(agent, timeout_ms);
    if (getrandom(&chance, sizeof(chance), 0) != (ssize_t)sizeof(chance)) {
        chance = (uint32_t)clock_monotonic_ns(); /* so that an earlier caller's does not fit */
    }
    agent->next_id = (int64_t)(chance & 0x7fffffff) + 1;
    agent->fd = rc = unix_socket_connect(dir, "agent.sock", err);
    rc = rc < 0 ? rc
                : send_request(agent, "guest-sync-delimited",
                               json_pack("{s:I}", "id", (json_int_t)agent->next_id), 0, true, err);
    rc = rc < 0 ? rc : await_greeting(agent, agent->next_id, err);
    if (rc < 0) {
        guest_agent_close(agent);
        return rc;
    }
    *ret_agent = agent;
    return 0;
}

void guest_agent_close(struct guest_agent *agent)
{
    if (agent == NULL) {
        return;
    }
    if (agent->fd >= 0) {
        (void)close(agent->fd);
    }
    free(agent->buffer);
    free(agent);
}

int guest_agent_tell(struct guest_agent *agent, const char *command, json_t *arguments,
                     unsigned timeout_ms, struct err *err)
{
    set_deadline(agent, timeout_ms);
    return send_request(agent, command, arguments, ++agent->next_id, false, err);
}

int guest_agent_call(struct guest_agent *agent, const char *command, json_t *arguments,
                     unsigned timeout_ms, json_t **ret_value, struct err *err)
{
    json_t *value = NULL;
    int rc = guest_agent_tell(agent, command, arguments, timeout_ms, err);

    while (rc == 0) {
        const char *line;
        size_t len;

        rc = read_line(agent, &line, &len, err);
        rc = rc < 0 ? rc : parse_answer(line, len, agent->next_id, &value, err);
    }
    if (rc < 0) {
        return rc;
    }
    if (ret_value != NULL) {
        *ret_value = value;
    } else {
        json_decref(value);
    }
    return 0;
}
