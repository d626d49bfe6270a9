/* Programs in a running instance, started and watched by its agent. */
#include "compute/agent.h"

#include "base/base64.h"
#include "base/clock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FIRST_PAUSE_MS 10u
#define LONGEST_PAUSE_MS 400u

/* What a program wrote: as text where it is some, else in Base64. */
static int add_output(json_t *answer, const char *name, const json_t *status, const char *key,
                      const char *truncated_key)
{
    const json_t *given = json_object_get(status, key);
    char key_name[32];
    void *data = NULL;
    size_t len = 0;
    json_t *text;

    if (given != NULL &&
        (!json_is_string(given) ||
         base64_decode(json_string_value(given), json_string_length(given), &data, &len) < 0)) {
        return -EPROTO;
    }
    text = memchr(data != NULL ? data : "", 0, len) == NULL
               ? json_stringn(data != NULL ? data : "", len)
               : NULL;
    if (text != NULL) {
        (void)json_object_set_new(answer, name, text);
    } else {
        (void)snprintf(key_name, sizeof(key_name), "%s_base64", name);
        (void)json_object_set(answer, key_name, json_object_get(status, key));
    }
    free(data);
    if (json_is_true(json_object_get(status, truncated_key))) {
        (void)snprintf(key_name, sizeof(key_name), "%s_truncated", name);
        (void)json_object_set_new(answer, key_name, json_true());
    }
    return 0;
}

static int exec_answer(int64_t pid, const json_t *status, json_t **ret_answer, struct fault *fault)
{
    const json_t *exit_code = json_object_get(status, "exitcode");
    const json_t *signal = json_object_get(status, "signal");
    bool has_exited = json_is_true(json_object_get(status, "exited"));
    json_t *answer =
        json_pack("{s:I, s:s}", "pid", (json_int_t)pid, "state", has_exited ? "exited" : "running");
    int rc = 0;

    if (has_exited) {
        if (json_is_integer(exit_code)) {
            (void)json_object_set_new(answer, "exit_code",
                                      json_integer(json_integer_value(exit_code)));
        }
        if (json_is_integer(signal)) {
            (void)json_object_set_new(answer, "signal", json_integer(json_integer_value(signal)));
        }
        rc = add_output(answer, "stdout", status, "out-data", "out-truncated");
        rc = rc < 0 ? rc : add_output(answer, "stderr", status, "err-data", "err-truncated");
    }
    if (rc < 0) {
        json_decref(answer);
        return agent_refuse_nonsense("guest-exec-status", fault);
    }
    *ret_answer = json_pack("{s:o}", "exec", answer);
    return 0;
}

/* One look at a program; 1 when it has ended. */
static int look_at_exec(struct compute *compute, const struct compute_call *call, const char *id,
                        int64_t pid, json_t **ret_answer, struct fault *fault)
{
    json_t *status = NULL, *answer = NULL;
    struct agent agent = {.client = NULL};
    bool has_exited;
    int rc = agent_begin(compute, call, id, &agent, fault);

    if (rc < 0) {
        return rc;
    }
    rc = agent_ask(&agent, "guest-exec-status", json_pack("{s:I}", "pid", (json_int_t)pid), &status,
                   fault);
    agent_close(&agent);
    if (rc == -EINVAL) {
        (void)fault_set(fault, FAULT_NOT_FOUND, "pid",
                        "no program %lld was started here, or its end was told already",
                        (long long)pid);
        rc = -ENOENT;
    }
    rc = rc < 0 ? rc : exec_answer(pid, status, &answer, fault);
    has_exited = json_is_true(json_object_get(status, "exited"));
    json_decref(status);
    if (rc < 0) {
        return rc;
    }
    json_decref(*ret_answer);
    *ret_answer = answer;
    return has_exited;
}

/* Whether compute is about to end; waits that long unless it does. */
static bool wait_or_close(struct compute *compute, unsigned pause_ms)
{
    uint64_t end_ns = clock_monotonic_ns() + pause_ms * NS_PER_MS;
    const struct timespec end = {.tv_sec = (time_t)(end_ns / 1000000000u),
                                 .tv_nsec = (long)(end_ns % 1000000000u)};
    bool is_closing;
    int rc = 0;

    mutex_lock(&compute->lock);
    while (rc == 0 && !compute->is_closing) {
        rc = pthread_cond_timedwait(&compute->committed, &compute->lock.raw, &end);
    }
    is_closing = compute->is_closing;
    mutex_unlock(&compute->lock);
    return is_closing;
}

/* The agent tells nobody that a program has ended: it has to be asked again and again. */
int compute_exec_status(struct compute *compute, const struct compute_call *call, const char *id,
                        int64_t pid, unsigned wait_ms, json_t **ret_answer, struct fault *fault)
{
    uint64_t end_ns = clock_monotonic_ns() + wait_ms * NS_PER_MS;
    unsigned pause_ms = FIRST_PAUSE_MS;

    *ret_answer = NULL;
    for (;;) {
        int rc = look_at_exec(compute, call, id, pid, ret_answer, fault);

        if (rc < 0) {
            json_decref(*ret_answer);
            *ret_answer = NULL;
            return rc;
        }
        if (rc == 1 || clock_monotonic_ns() + pause_ms * NS_PER_MS > end_ns ||
            wait_or_close(compute, pause_ms)) {
            return 0;
        }
        pause_ms = 2 * pause_ms < LONGEST_PAUSE_MS ? 2 * pause_ms : LONGEST_PAUSE_MS;
    }
}

const struct field compute_exec_fields[COMPUTE_EXEC_FIELDS] = {
    {.name = "command",
     .type = FIELD_WORDS,
     .access = FIELD_AT_CREATE | FIELD_NEEDED,
     .min = 1,
     .max = 512,
     .help = "the program, by path or as PATH finds it, and its arguments"},
    {.name = "environment",
     .type = FIELD_WORDS,
     .access = FIELD_AT_CREATE,
     .max = 128,
     .help = "\"NAME=value\" each, in place of the agent's own environment"},
    {.name = "input",
     .type = FIELD_LINES,
     .access = FIELD_AT_CREATE,
     .max = 256 << 10,
     .help = "what it reads from its standard input"},
    {.name = "input_base64",
     .type = FIELD_TEXT,
     .access = FIELD_AT_CREATE,
     .max = 512 << 10,
     .help = "the same in Base64, for what is no text"},
    {.name = "wait_ms",
     .type = FIELD_NUMBER,
     .access = FIELD_AT_CREATE,
     .max = COMPUTE_EXEC_MAX_WAIT_MS,
     .preset = "10000",
     .help = "how long the answer may wait for its end"},
};

/* What guest-exec takes, from what a call says. */
static int exec_arguments(const json_t *wanted, json_t **ret_arguments, struct fault *fault)
{
    const json_t *command = json_object_get(wanted, "command");
    const json_t *text = json_object_get(wanted, "input");
    json_t *coded = json_object_get(wanted, "input_base64");
    json_t *environment = json_object_get(wanted, "environment");
    json_t *arguments, *words;
    char *made = NULL;
    void *data = NULL;
    size_t len = 0;

    if (text != NULL && coded != NULL) {
        return fault_set(fault, FAULT_INVALID, "input", "give one of input and input_base64");
    }
    if (coded != NULL &&
        base64_decode(json_string_value(coded), json_string_length(coded), &data, &len) < 0) {
        return fault_set(fault, FAULT_INVALID, "input_base64", "this is no Base64");
    }
    free(data);
    if (text != NULL) {
        made = base64_encode(json_string_value(text), json_string_length(text));
    }
    words = json_array();
    for (size_t i = 1; i < json_array_size(command); i++) {
        (void)json_array_append(words, json_array_get(command, i));
    }
    arguments = json_pack("{s:O, s:o, s:b}", "path", json_array_get(command, 0), "arg", words,
                          "capture-output", 1);
    if (made != NULL || coded != NULL) {
        (void)json_object_set_new(arguments, "input-data",
                                  made != NULL ? json_string(made) : json_incref(coded));
    }
    if (environment != NULL) {
        (void)json_object_set(arguments, "env", environment);
    }
    free(made);
    *ret_arguments = arguments;
    return 0;
}

int compute_exec(struct compute *compute, const struct compute_call *call, const char *id,
                 const json_t *wanted, unsigned wait_ms, json_t **ret_answer, struct fault *fault)
{
    const struct kind_spec spec = {
        .name = "exec", .fields = compute_exec_fields, .field_count = COMPUTE_EXEC_FIELDS};
    json_t *given = NULL, *arguments = NULL, *started = NULL;
    const json_t *pid;
    struct agent agent = {.client = NULL};
    int rc = kind_parse_create(&spec, wanted, &given, fault);

    rc = rc < 0 ? rc : exec_arguments(given, &arguments, fault);
    json_decref(given);
    rc = rc < 0 ? rc : agent_begin(compute, call, id, &agent, fault);
    if (rc < 0) {
        json_decref(arguments);
        return rc;
    }
    rc = agent_ask(&agent, "guest-exec", arguments, &started, fault);
    agent_close(&agent);
    if (rc < 0) {
        return rc;
    }
    pid = json_object_get(started, "pid");
    rc = json_is_integer(pid) ? compute_exec_status(compute, call, id, json_integer_value(pid),
                                                    wait_ms, ret_answer, fault)
                              : agent_refuse_nonsense("guest-exec", fault);
    json_decref(started);
    return rc;
}
