/* What is asked of the agent in a running instance. The agent is the guest's: nothing it says is trusted. */
#include "compute/agent.h"

#include "base/base64.h"
#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NS_PER_MS 1000000ull
#define FIRST_PAUSE_MS 10u
#define LONGEST_PAUSE_MS 400u
#define PIECE_BYTES (192u << 10) /* of a file in one request; a multiple of 3 */
#define MAX_INTERFACES 64u
#define MAX_ADDRESSES 16u

/* ---- one caller at a time ---- */

static bool is_taken(const struct compute *compute, const char *id)
{
    const struct agent *other = compute->agents;

    while (other != NULL && strcmp(other->id, id) != 0) {
        other = other->next;
    }
    return other != NULL;
}

static int take_turn(struct compute *compute, struct agent *agent, unsigned timeout_ms)
{
    uint64_t end_ns = clock_monotonic_ns() + timeout_ms * NS_PER_MS;
    const struct timespec end = {.tv_sec = (time_t)(end_ns / 1000000000u),
                                 .tv_nsec = (long)(end_ns % 1000000000u)};
    int rc = 0;

    mutex_lock(&compute->lock);
    while (rc == 0 && !compute->is_closing && is_taken(compute, agent->id)) {
        rc = -pthread_cond_timedwait(&compute->committed, &compute->lock.raw, &end);
    }
    rc = is_taken(compute, agent->id) ? -ETIMEDOUT : 0;
    if (rc == 0) {
        agent->next = compute->agents;
        compute->agents = agent;
    }
    mutex_unlock(&compute->lock);
    return rc;
}

static void give_turn(struct compute *compute, struct agent *agent)
{
    struct agent **at = &compute->agents;

    mutex_lock(&compute->lock);
    while (*at != NULL && *at != agent) {
        at = &(*at)->next;
    }
    if (*at != NULL) {
        *at = agent->next;
    }
    (void)pthread_cond_broadcast(&compute->committed); /* cannot fail */
    mutex_unlock(&compute->lock);
}

int agent_open(struct compute *compute, const char *id, unsigned timeout_ms,
               struct agent *ret_agent, struct err *err)
{
    char dir[PATH_MAX];
    int rc = machine_path(compute, id, dir, err);

    *ret_agent = (struct agent){.compute = compute};
    if (rc < 0) {
        return rc;
    }
    (void)snprintf(ret_agent->id, sizeof(ret_agent->id), "%s", id);
    if (take_turn(compute, ret_agent, timeout_ms) < 0) {
        return err_set(err, -EBUSY, "the guest's agent is busy with another call");
    }
    rc = guest_agent_open(dir, timeout_ms, &ret_agent->client, err);
    if (rc < 0) {
        give_turn(compute, ret_agent);
    }
    return rc;
}

void agent_close(struct agent *agent)
{
    guest_agent_close(agent->client);
    give_turn(agent->compute, agent);
}

/* ---- calls ---- */

/* What went wrong with the agent, as a fault of the call. */
static int fail(int rc, const struct err *err, struct fault *fault)
{
    enum fault_code code = FAULT_UNAVAILABLE;

    if (rc == -EREMOTEIO) {
        code = strstr(err->text, "No such file or directory") != NULL ? FAULT_NOT_FOUND
                                                                      : FAULT_INVALID;
    } else if (rc == -ENOMEM) {
        code = FAULT_INTERNAL;
    }
    return fault_set(fault, code, NULL, "%s", err->text);
}

/* Finds the instance, and its agent if there is one. */
static int begin(struct compute *compute, const struct compute_call *call, const char *id,
                 struct agent *ret_agent, struct fault *fault)
{
    struct object instance = {0};
    bool is_running, has_agent;
    char found[ID_BYTES];
    struct err err = {.code = 0};
    int rc = object_find(compute, KIND_INSTANCE, call->project, id, &instance, fault);

    if (rc < 0) {
        return rc;
    }
    memcpy(found, instance.id, sizeof(found));
    is_running = object_is(&instance, "state", "running");
    has_agent = is_running && guest_has_agent(compute, found);
    if (!has_agent) {
        rc = is_running
                 ? fault_set(fault, FAULT_CONFLICT, "agent",
                             "no agent runs in the instance \"%s\" (yet)",
                             object_text(&instance, "name"))
                 : fault_set(fault, FAULT_CONFLICT, "state", "the instance \"%s\" is %s",
                             object_text(&instance, "name"), object_text(&instance, "state"));
    }
    object_done(&instance);
    if (rc < 0) {
        return rc;
    }
    rc = agent_open(compute, found, AGENT_TIMEOUT_MS, ret_agent, &err);
    return rc < 0 ? fail(rc, &err, fault) : 0;
}

static int ask(struct agent *agent, const char *command, json_t *arguments, json_t **ret_value,
               struct fault *fault)
{
    struct err err = {.code = 0};
    int rc = guest_agent_call(agent->client, command, arguments, AGENT_TIMEOUT_MS, ret_value, &err);

    return rc < 0 ? fail(rc, &err, fault) : 0;
}

static int refuse_nonsense(const char *command, struct fault *fault)
{
    return fault_set(fault, FAULT_UNAVAILABLE, NULL, "the guest's agent answers nonsense to %s",
                     command);
}

int agent_version(struct agent *agent, char *out, size_t size, struct err *err)
{
    json_t *info = NULL;
    const char *version;
    int rc = guest_agent_call(agent->client, "guest-info", NULL, AGENT_TIMEOUT_MS, &info, err);

    if (rc < 0) {
        return rc;
    }
    version = json_string_value(json_object_get(info, "version"));
    (void)log_escape(out, size, version != NULL ? version : "",
                     version != NULL ? strnlen(version, 32) : 0);
    json_decref(info);
    return 0;
}

/* ---- what it knows ---- */

/* A copy of what the guest says under a name: texts that are short, and nothing else. */
static void copy_text(json_t *to, const char *name, const json_t *from, const char *key)
{
    const char *text = json_string_value(json_object_get(from, key));

    if (text != NULL && strlen(text) <= 200) {
        (void)json_object_set_new(to, name, json_string(text));
    }
}

static json_t *interface_answer(const json_t *interface)
{
    const json_t *given = json_object_get(interface, "ip-addresses");
    json_t *addresses = json_array();
    json_t *answer = json_object();

    copy_text(answer, "name", interface, "name");
    copy_text(answer, "mac", interface, "hardware-address");
    for (size_t i = 0; i < json_array_size(given) && i < MAX_ADDRESSES; i++) {
        const json_t *entry = json_array_get(given, i);
        const json_t *prefix = json_object_get(entry, "prefix");
        json_t *address = json_object();

        copy_text(address, "address", entry, "ip-address");
        copy_text(address, "family", entry, "ip-address-type");
        if (json_is_integer(prefix)) {
            (void)json_object_set_new(address, "prefix", json_integer(json_integer_value(prefix)));
        }
        (void)json_array_append_new(addresses, address);
    }
    (void)json_object_set_new(answer, "addresses", addresses);
    return answer;
}

static int add_interfaces(struct agent *agent, json_t *answer, struct fault *fault)
{
    json_t *interfaces = json_array();
    json_t *given = NULL;
    int rc = ask(agent, "guest-network-get-interfaces", NULL, &given, fault);

    for (size_t i = 0; rc == 0 && i < json_array_size(given) && i < MAX_INTERFACES; i++) {
        (void)json_array_append_new(interfaces, interface_answer(json_array_get(given, i)));
    }
    json_decref(given);
    (void)json_object_set_new(answer, "interfaces", interfaces);
    return rc;
}

int compute_agent(struct compute *compute, const struct compute_call *call, const char *id,
                  json_t **ret_answer, struct fault *fault)
{
    struct agent agent = {.client = NULL};
    struct err err = {.code = 0};
    char version[64] = "";
    json_t *info = NULL, *answer;
    struct fault ignored;
    int rc = begin(compute, call, id, &agent, fault);

    if (rc < 0) {
        return rc;
    }
    answer = json_object();
    rc = agent_version(&agent, version, sizeof(version), &err);
    rc = rc < 0 ? fail(rc, &err, fault) : add_interfaces(&agent, answer, fault);
    (void)json_object_set_new(answer, "version", json_string(version));
    /* Not every agent knows these; what it does not say is left out. */
    if (rc == 0 && ask(&agent, "guest-get-osinfo", NULL, &info, &ignored) == 0) {
        copy_text(answer, "system", info, "pretty-name");
        copy_text(answer, "kernel", info, "kernel-release");
        json_decref(info);
        info = NULL;
    }
    if (rc == 0 && ask(&agent, "guest-get-host-name", NULL, &info, &ignored) == 0) {
        copy_text(answer, "host_name", info, "host-name");
        json_decref(info);
    }
    agent_close(&agent);
    if (rc < 0) {
        json_decref(answer);
        return rc;
    }
    *ret_answer = json_pack("{s:o}", "agent", answer);
    return 0;
}

/* ---- programs ---- */

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
        return refuse_nonsense("guest-exec-status", fault);
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
    int rc = begin(compute, call, id, &agent, fault);

    if (rc < 0) {
        return rc;
    }
    rc = ask(&agent, "guest-exec-status", json_pack("{s:I}", "pid", (json_int_t)pid), &status,
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
    rc = rc < 0 ? rc : begin(compute, call, id, &agent, fault);
    if (rc < 0) {
        json_decref(arguments);
        return rc;
    }
    rc = ask(&agent, "guest-exec", arguments, &started, fault);
    agent_close(&agent);
    if (rc < 0) {
        return rc;
    }
    pid = json_object_get(started, "pid");
    rc = json_is_integer(pid) ? compute_exec_status(compute, call, id, json_integer_value(pid),
                                                    wait_ms, ret_answer, fault)
                              : refuse_nonsense("guest-exec", fault);
    json_decref(started);
    return rc;
}

/* ---- files ---- */

static int open_file(struct agent *agent, const char *path, const char *mode, uint64_t offset,
                     json_int_t *ret_handle, struct fault *fault)
{
    json_t *handle = NULL;
    int rc = ask(agent, "guest-file-open", json_pack("{s:s, s:s}", "path", path, "mode", mode),
                 &handle, fault);

    if (rc < 0) {
        return rc;
    }
    rc = json_is_integer(handle) ? 0 : refuse_nonsense("guest-file-open", fault);
    *ret_handle = json_integer_value(handle);
    json_decref(handle);
    if (rc == 0 && offset > 0) {
        rc = ask(agent, "guest-file-seek",
                 json_pack("{s:I, s:I, s:s}", "handle", *ret_handle, "offset", (json_int_t)offset,
                           "whence", "set"),
                 NULL, fault);
    }
    return rc;
}

static int close_file(struct agent *agent, json_int_t handle, int rc, struct fault *fault)
{
    struct fault ignored;
    int closed = ask(agent, "guest-file-close", json_pack("{s:I}", "handle", handle), NULL,
                     rc == 0 ? fault : &ignored);

    return rc < 0 ? rc : closed;
}

/* At most `want` bytes to `to`. */
static int read_piece(struct agent *agent, json_int_t handle, char *to, size_t want,
                      size_t *ret_len, bool *ret_is_end, struct fault *fault)
{
    json_t *piece = NULL;
    const json_t *coded;
    void *data = NULL;
    size_t len = 0;
    int rc =
        ask(agent, "guest-file-read",
            json_pack("{s:I, s:I}", "handle", handle, "count", (json_int_t)want), &piece, fault);

    if (rc < 0) {
        return rc;
    }
    coded = json_object_get(piece, "buf-b64");
    if (!json_is_string(coded) ||
        base64_decode(json_string_value(coded), json_string_length(coded), &data, &len) < 0 ||
        len > want) {
        rc = refuse_nonsense("guest-file-read", fault);
    } else {
        memcpy(to, data, len);
        *ret_len = len;
        *ret_is_end = len == 0 || json_is_true(json_object_get(piece, "eof"));
    }
    free(data);
    json_decref(piece);
    return rc;
}

int compute_file_read(struct compute *compute, const struct compute_call *call, const char *id,
                      const struct compute_file *file, void **ret_data, size_t *ret_len,
                      bool *ret_is_end, struct fault *fault)
{
    char *data = malloc(file->len > 0 ? file->len : 1);
    bool is_end = false;
    size_t done = 0;
    struct agent agent = {.client = NULL};
    json_int_t handle = 0;
    int rc = data != NULL ? begin(compute, call, id, &agent, fault)
                          : fault_set(fault, FAULT_INTERNAL, NULL, "out of memory");

    if (rc < 0) {
        free(data);
        return rc;
    }
    rc = open_file(&agent, file->path, "r", file->offset, &handle, fault);
    if (rc == 0) {
        while (rc == 0 && !is_end && done < file->len) {
            size_t want = file->len - done < PIECE_BYTES ? file->len - done : PIECE_BYTES;
            size_t len = 0;

            rc = read_piece(&agent, handle, data + done, want, &len, &is_end, fault);
            done += len;
        }
        rc = close_file(&agent, handle, rc, fault);
    }
    agent_close(&agent);
    if (rc < 0) {
        free(data);
        return rc;
    }
    *ret_data = data;
    *ret_len = done;
    *ret_is_end = is_end;
    return 0;
}

static int write_piece(struct agent *agent, json_int_t handle, const char *data, size_t len,
                       struct fault *fault)
{
    json_t *written = NULL;
    char *coded = base64_encode(data, len);
    int rc = coded != NULL
                 ? ask(agent, "guest-file-write",
                       json_pack("{s:I, s:s}", "handle", handle, "buf-b64", coded), &written, fault)
                 : fault_set(fault, FAULT_INTERNAL, NULL, "out of memory");

    free(coded);
    if (rc == 0 && json_integer_value(json_object_get(written, "count")) != (json_int_t)len) {
        rc = fault_set(fault, FAULT_CONFLICT, NULL, "the guest took only a part of the file");
    }
    json_decref(written);
    return rc;
}

/* From its start a file is written anew; further on, into what is there. */
int compute_file_write(struct compute *compute, const struct compute_call *call, const char *id,
                       const struct compute_file *file, const void *data, struct fault *fault)
{
    json_int_t handle = 0;
    struct agent agent = {.client = NULL};
    int rc = begin(compute, call, id, &agent, fault);

    if (rc < 0) {
        return rc;
    }
    rc =
        open_file(&agent, file->path, file->offset == 0 ? "w" : "r+", file->offset, &handle, fault);
    if (rc == 0) {
        for (size_t done = 0; rc == 0 && done < file->len;) {
            size_t len = file->len - done < PIECE_BYTES ? file->len - done : PIECE_BYTES;

            rc = write_piece(&agent, handle, (const char *)data + done, len, fault);
            done += len;
        }
        rc = close_file(&agent, handle, rc, fault);
    }
    agent_close(&agent);
    return rc;
}

/* ---- the system ---- */

const struct field compute_password_fields[COMPUTE_PASSWORD_FIELDS] = {
    {.name = "user",
     .type = FIELD_TEXT,
     .access = FIELD_AT_CREATE | FIELD_NEEDED,
     .min = 1,
     .max = 64,
     .help = "of the guest"},
    {.name = "password",
     .type = FIELD_TEXT,
     .access = FIELD_AT_CREATE | FIELD_NEEDED,
     .min = 1,
     .max = 256,
     .help = "the new one; not kept"},
};

int compute_set_password(struct compute *compute, const struct compute_call *call, const char *id,
                         const json_t *wanted, struct fault *fault)
{
    const struct kind_spec spec = {.name = "password",
                                   .fields = compute_password_fields,
                                   .field_count = COMPUTE_PASSWORD_FIELDS};
    json_t *given = NULL;
    const json_t *password;
    struct agent agent = {.client = NULL};
    char *coded;
    int rc = kind_parse_create(&spec, wanted, &given, fault);

    if (rc < 0) {
        return rc;
    }
    rc = begin(compute, call, id, &agent, fault);
    if (rc == 0) {
        password = json_object_get(given, "password");
        coded = base64_encode(json_string_value(password), json_string_length(password));
        rc = coded != NULL
                 ? ask(&agent, "guest-set-user-password",
                       json_pack("{s:O, s:s, s:b}", "username", json_object_get(given, "user"),
                                 "password", coded, "crypted", 0),
                       NULL, fault)
                 : fault_set(fault, FAULT_INTERNAL, NULL, "out of memory");
        free(coded);
        agent_close(&agent);
    }
    json_decref(given);
    return rc;
}

int compute_freeze(struct compute *compute, const struct compute_call *call, const char *id,
                   bool is_frozen, int64_t *ret_count, struct fault *fault)
{
    struct err err = {.code = 0};
    json_t *count = NULL;
    struct agent agent = {.client = NULL};
    int rc = begin(compute, call, id, &agent, fault);

    if (rc < 0) {
        return rc;
    }
    rc = guest_agent_call(agent.client, is_frozen ? "guest-fsfreeze-freeze" : "guest-fsfreeze-thaw",
                          NULL, AGENT_FREEZE_TIMEOUT_MS, &count, &err);
    rc = rc < 0 ? fail(rc, &err, fault) : 0;
    agent_close(&agent);
    *ret_count = json_integer_value(count);
    json_decref(count);
    return rc;
}

/* A guest that does it says nothing; its end tells. */
int agent_shutdown(struct compute *compute, const char *id, struct err *err)
{
    struct agent agent = {.client = NULL};
    int rc = guest_has_agent(compute, id)
                 ? agent_open(compute, id, AGENT_SHUTDOWN_TIMEOUT_MS, &agent, err)
                 : err_set(err, -ENOENT, "no agent runs in the guest");

    if (rc < 0) {
        return rc;
    }
    rc = guest_agent_tell(agent.client, "guest-shutdown", json_pack("{s:s}", "mode", "powerdown"),
                          AGENT_SHUTDOWN_TIMEOUT_MS, err);
    agent_close(&agent);
    return rc;
}
