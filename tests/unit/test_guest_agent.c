/* The client of the guest agent against agents that do what they like, and what it is made of. */
#include "rpc/guest_agent.h"

#include "base/base64.h"
#include "base/io.h"
#include "test.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SHORT_MS 300u
#define LONG_MS 20000u

/* One agent: waits for lines, and says what it is made for. */
struct fake {
    char dir[64];
    int listen_fd;
    pthread_t thread;
    bool is_deaf;       /* to the greeting, too */
    const char *before; /* the greeting's answer */
    const char *answer; /* to the next line; NULL: says ID, and the pid's number */
    size_t flood_bytes; /* in place of an answer: so many 'x', as it can */
    bool has_line_ends; /* in the flood */
    bool closes;
    char asked[65536]; /* the line that was asked after the greeting */
};

static bool read_request(int fd, char *line, size_t size)
{
    size_t used = 0;

    while (used + 1 < size && read(fd, line + used, 1) == 1) {
        if (line[used] == '\n') {
            line[used] = '\0';
            return true;
        }
        used++;
    }
    return false;
}

static void say(int fd, const char *text, size_t len)
{
    while (len > 0) {
        ssize_t n = send(fd, text, len, MSG_NOSIGNAL);

        if (n <= 0) {
            return; /* the caller has had enough */
        }
        text += n;
        len -= (size_t)n;
    }
}

static void say_text(int fd, const char *text)
{
    say(fd, text, strlen(text));
}

static void flood(const struct fake *fake, int fd)
{
    char bytes[4096];

    memset(bytes, 'x', sizeof(bytes));
    if (fake->has_line_ends) {
        bytes[100] = bytes[3000] = '\n';
    }
    for (size_t done = 0; done < fake->flood_bytes; done += sizeof(bytes)) {
        if (send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL) <= 0) {
            return;
        }
    }
}

static void greet(const struct fake *fake, int fd, const char *line)
{
    const char *id = strstr(line, "\"id\":");
    char text[128];

    if (fake->before != NULL) {
        say_text(fd, fake->before);
    }
    if (id != NULL) {
        (void)snprintf(text, sizeof(text), "\xff{\"return\": %lld}\n", atoll(id + 5));
        say_text(fd, text);
    }
}

static void *serve(void *opaque)
{
    struct fake *fake = opaque;
    static char line[65536];
    int fd = accept(fake->listen_fd, NULL, NULL);

    if (fd < 0) {
        return NULL;
    }
    if (!fake->is_deaf && read_request(fd, line, sizeof(line))) {
        greet(fake, fd, line);
        if (read_request(fd, fake->asked, sizeof(fake->asked))) {
            const char *id = strstr(fake->asked, "\"id\":");
            char text[128];

            if (fake->flood_bytes > 0) {
                flood(fake, fd);
            } else if (fake->answer != NULL) {
                say_text(fd, fake->answer);
            } else if (!fake->closes) {
                (void)snprintf(text, sizeof(text), "{\"id\": %lld, \"return\": {\"pid\": 7}}\n",
                               id != NULL ? atoll(id + 5) : 0);
                say_text(fd, text);
            }
        }
    } else if (fake->is_deaf && fake->flood_bytes > 0) {
        flood(fake, fd);
    }
    if (!fake->closes) {
        while (read(fd, line, sizeof(line)) > 0) { /* until the caller goes */
        }
    }
    (void)close(fd);
    return NULL;
}

static void start(struct fake *fake)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};

    (void)snprintf(fake->dir, sizeof(fake->dir), "/tmp/corbel-agent-XXXXXX");
    assert_non_null(mkdtemp(fake->dir));
    (void)snprintf(name.sun_path, sizeof(name.sun_path), "%s/agent.sock", fake->dir);
    fake->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fake->listen_fd >= 0);
    assert_int_equal(bind(fake->listen_fd, (struct sockaddr *)&name, sizeof(name)), 0);
    assert_int_equal(listen(fake->listen_fd, 1), 0);
    assert_int_equal(pthread_create(&fake->thread, NULL, serve, fake), 0);
}

static void stop(struct fake *fake)
{
    char path[96];

    assert_int_equal(pthread_join(fake->thread, NULL), 0);
    (void)close(fake->listen_fd);
    (void)snprintf(path, sizeof(path), "%s/agent.sock", fake->dir);
    (void)unlink(path);
    (void)rmdir(fake->dir);
}

/* Opens and asks once: what came of it. */
static int ask(struct fake *fake, unsigned timeout_ms, json_t **ret_value, struct err *err)
{
    struct guest_agent *agent = NULL;
    int rc;

    start(fake);
    rc = guest_agent_open(fake->dir, timeout_ms, &agent, err);
    if (rc == 0) {
        rc = guest_agent_call(agent, "guest-exec", json_pack("{s:s}", "path", "x"), timeout_ms,
                              ret_value, err);
    }
    guest_agent_close(agent);
    stop(fake);
    return rc;
}

static void test_answer_of_the_same_id_is_returned(void **state)
{
    struct fake fake = {0};
    json_t *value = NULL;
    struct err err;

    (void)state;
    assert_int_equal(ask(&fake, LONG_MS, &value, &err), 0);
    assert_int_equal(json_integer_value(json_object_get(value, "pid")), 7);
    assert_non_null(strstr(fake.asked, "\"execute\":\"guest-exec\""));
    json_decref(value);
}

static void test_what_was_said_to_others_is_passed_over(void **state)
{
    struct fake fake = {.before =
                            "{\"return\": {\"half\": \"an ans\n\xff{\"return\": 12}\n\xff nonsense"
                            "\n\xff\xff[[[[\n{\"return\": {}}\n"};
    json_t *value = NULL;
    struct err err;

    (void)state;
    assert_int_equal(ask(&fake, LONG_MS, &value, &err), 0);
    assert_int_equal(json_integer_value(json_object_get(value, "pid")), 7);
    json_decref(value);
}

static void expect_refusal(const char *answer, int code, const char *words)
{
    struct fake fake = {.answer = answer};
    json_t *value = NULL;
    struct err err = {.code = 0};

    assert_int_equal(ask(&fake, code == -ETIMEDOUT ? SHORT_MS : LONG_MS, &value, &err), code);
    assert_null(value);
    assert_non_null(strstr(err.text, words));
}

static void test_nonsense_is_refused(void **state)
{
    static const char *const nonsense[] = {
        "\n",
        "hello\n",
        "{}\n",
        "[1, 2]\n",
        "{\"return\": \xc3\x28}\n",
        "{\"return\": \"\xff\"}\n",
        "{\"return\": 1e999}\n",
        "{\"return\": 99999999999999999999999999}\n",
        "{\"return\": 1, \"return\": 2}\n",
        "{\"return\": \"\\u0000\"}\n",
        "{\"error\": \"text\"}\n",
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(nonsense); i++) {
        expect_refusal(nonsense[i], -EPROTO, "protocol");
    }
}

static void test_answers_with_other_ids_are_no_answers(void **state)
{
    (void)state;
    expect_refusal("{\"return\": 1, \"id\": 1}\n{\"return\": 2, \"id\": \"x\"}\n"
                   "{\"return\": 3, \"id\": -1}\n",
                   -ETIMEDOUT, "does not answer");
}

static void test_refusal_of_the_agent_is_shown_without_control_characters(void **state)
{
    (void)state;
    expect_refusal("{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\\u001b[2J such\"}}\n",
                   -EREMOTEIO, "no?[2J such");
}

static void test_agents_that_never_answer_are_left(void **state)
{
    struct fake deaf = {.is_deaf = true};
    struct fake gone = {.closes = true};
    json_t *value = NULL;
    struct err err;

    (void)state;
    assert_int_equal(ask(&deaf, SHORT_MS, &value, &err), -ETIMEDOUT);
    assert_int_equal(ask(&gone, LONG_MS, &value, &err), -EPIPE);
}

static void test_endless_output_ends_the_call(void **state)
{
    struct fake one_line = {.flood_bytes = 64u << 20};
    struct fake greeting = {.is_deaf = true, .flood_bytes = 256u << 20, .has_line_ends = true};
    json_t *value = NULL;
    struct err err;

    (void)state;
    assert_int_equal(ask(&one_line, LONG_MS, &value, &err), -EMSGSIZE);
    assert_int_equal(ask(&greeting, LONG_MS, &value, &err), -EPROTO);
}

static void test_deep_and_wide_answers_are_not_parsed(void **state)
{
    enum { LEVELS = 1000, VALUES = 100000 };
    char *deep = malloc(LEVELS + 32);
    char *wide = malloc(2 * VALUES + 32);
    size_t at = 0;

    (void)state;
    assert_true(deep != NULL && wide != NULL);
    (void)snprintf(deep, LEVELS + 32, "{\"return\": %0*d\n", LEVELS, 0);
    memset(deep + 11, '[', LEVELS);
    expect_refusal(deep, -EMSGSIZE, "too many values");
    at += (size_t)sprintf(wide, "{\"return\": [");
    for (unsigned i = 0; i < VALUES; i++) {
        wide[at++] = '1';
        wide[at++] = ',';
    }
    (void)sprintf(wide + at, "1]}\n");
    expect_refusal(wide, -EMSGSIZE, "too many values");
    free(deep);
    free(wide);
}

static void test_base64_is_exact(void **state)
{
    static const char *const bad[] = {"a",    "ab",    "abc",  "ab=c", "a===",     "====",
                                      "ab c", "YQ=\n", "YR==", "YWJ=", "YQ==YQ==", "Y\x80Jj"};
    uint8_t bytes[300];
    void *data;
    size_t len;

    (void)state;
    for (size_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] = (uint8_t)(i * 7 + (i >> 8));
    }
    for (size_t n = 0; n < sizeof(bytes); n++) {
        char *text = base64_encode(bytes, n);

        assert_non_null(text);
        assert_int_equal(strlen(text) + 1, BASE64_BYTES(n));
        assert_int_equal(base64_decode(text, strlen(text), &data, &len), 0);
        assert_int_equal(len, n);
        assert_memory_equal(data, bytes, n);
        free(data);
        free(text);
    }
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        assert_int_equal(base64_decode(bad[i], strlen(bad[i]), &data, &len), -EINVAL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answer_of_the_same_id_is_returned),
        cmocka_unit_test(test_what_was_said_to_others_is_passed_over),
        cmocka_unit_test(test_nonsense_is_refused),
        cmocka_unit_test(test_answers_with_other_ids_are_no_answers),
        cmocka_unit_test(test_refusal_of_the_agent_is_shown_without_control_characters),
        cmocka_unit_test(test_agents_that_never_answer_are_left),
        cmocka_unit_test(test_endless_output_ends_the_call),
        cmocka_unit_test(test_deep_and_wide_answers_are_not_parsed),
        cmocka_unit_test(test_base64_is_exact),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
