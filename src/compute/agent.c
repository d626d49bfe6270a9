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
    mutex_lock(&compute->lock);
    for (struct agent **at = &compute->agents; *at != NULL; at = &(*at)->next) {
        if (*at == agent) {
            *at = agent->next;
            break;
        }
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
int agent_begin(struct compute *compute, const struct compute_call *call, const char *id,
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

int agent_ask(struct agent *agent, const char *command, json_t *arguments, json_t **ret_value,
              struct fault *fault)
{
    struct err err = {.code = 0};
    int rc = guest_agent_call(agent->client, command, arguments, AGENT_TIMEOUT_MS, ret_value, &err);

    return rc < 0 ? fail(rc, &err, fault) : 0;
}

int agent_refuse_nonsense(const char *command, struct fault *fault)
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
    int rc = agent_ask(agent, "guest-network-get-interfaces", NULL, &given, fault);

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
    int rc = agent_begin(compute, call, id, &agent, fault);

    if (rc < 0) {
        return rc;
    }
    answer = json_object();
    rc = agent_version(&agent, version, sizeof(version), &err);
    rc = rc < 0 ? fail(rc, &err, fault) : add_interfaces(&agent, answer, fault);
    (void)json_object_set_new(answer, "version", json_string(version));
    /* Not every agent knows these; what it does not say is left out. */
    if (rc == 0 && agent_ask(&agent, "guest-get-osinfo", NULL, &info, &ignored) == 0) {
        copy_text(answer, "system", info, "pretty-name");
        copy_text(answer, "kernel", info, "kernel-release");
        json_decref(info);
        info = NULL;
    }
    if (rc == 0 && agent_ask(&agent, "guest-get-host-name", NULL, &info, &ignored) == 0) {
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
    rc = agent_begin(compute, call, id, &agent, fault);
    if (rc == 0) {
        password = json_object_get(given, "password");
        coded = base64_encode(json_string_value(password), json_string_length(password));
        rc =
            coded != NULL
                ? agent_ask(&agent, "guest-set-user-password",
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
    int rc = agent_begin(compute, call, id, &agent, fault);

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
    int rc;

    if (!guest_has_agent(compute, id)) {
        return err_set(err, -ENOENT, "no agent runs in the guest");
    }
    rc = agent_open(compute, id, AGENT_SHUTDOWN_TIMEOUT_MS, &agent, err);
    if (rc < 0) {
        return rc;
    }
    rc = guest_agent_tell(agent.client, "guest-shutdown", json_pack("{s:s}", "mode", "powerdown"),
                          AGENT_SHUTDOWN_TIMEOUT_MS, err);
    agent_close(&agent);
    return rc;
}
