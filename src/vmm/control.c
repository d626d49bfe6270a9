#include "vmm/control.h"

#include "vmm/control_disk.h"
#include "vmm/control_statistics.h"

#include <errno.h>
#include <jansson.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define LOOPBACK 0x7f000001u
#define IN_CREATED (1u << MACHINE_CREATED)
#define IN_RUNNING (1u << MACHINE_RUNNING)
#define IN_PAUSED (1u << MACHINE_PAUSED)
#define IN_ENDED (1u << MACHINE_ENDED)
#define IN_ANY (IN_CREATED | IN_RUNNING | IN_PAUSED | IN_ENDED)

struct client {
    struct control *control; /* NULL: the slot is free */
    struct loop_fd *handler;
    int fd;
    bool is_watching;
    size_t used;
    char line[CONTROL_MAX_LINE_BYTES];
};

struct control {
    struct control_env env;
    int listen_fd;
    struct loop_fd *handler;
    unsigned told_changes; /* what the watching clients know */
    uint64_t told_balloon_bytes;
    unsigned told_disk_changes;
    bool told_agent;
    uint32_t told_address;
    unsigned told_size_changes;
    struct client clients[CONTROL_MAX_CLIENTS];
};

/* A command at work: its client, what was asked, and the answer being made. */
struct call {
    struct client *client;
    const json_t *request;
    json_t *answer;
    struct err err; /* says more than the command's own sentence when code is set */
};

struct command {
    const char *name;
    unsigned states; /* where it is legal */
    int (*run)(struct call *call);
    const char *failure; /* the sentence when run() returns an error */
};

static struct machine *call_machine(const struct call *call)
{
    return call->client->control->env.machine;
}

static void add_status(json_t *object, struct machine *machine)
{
    struct machine_status status;

    machine_status(machine, &status);
    (void)json_object_set_new(object, "state", json_string(machine_state_name(status.state)));
    if (status.state == MACHINE_ENDED) {
        (void)json_object_set_new(object, "end", json_string(machine_end_name(status.end)));
    }
    if (status.error.code != 0) {
        (void)json_object_set_new(object, "reason", json_string(status.error.text));
    } else if (status.pause_reason.code != 0) {
        (void)json_object_set_new(object, "reason", json_string(status.pause_reason.text));
    }
    (void)json_object_set_new(object, "resets", json_integer(status.resets));
    (void)json_object_set_new(object, "engine", json_string(status.engine));
    (void)json_object_set_new(object, "engine_reason", json_string(status.engine_reason));
}

/* What it has now, was asked to have, and may have. */
static void add_size(json_t *object, struct machine *machine)
{
    struct machine_status status;

    machine_status(machine, &status);
    (void)json_object_set_new(object, "cpus", json_integer(status.cpus));
    (void)json_object_set_new(object, "cpus_wanted", json_integer(status.cpus_wanted));
    (void)json_object_set_new(object, "cpus_max", json_integer(status.cpus_max));
    (void)json_object_set_new(object, "cpus_refused", json_boolean(status.cpus_refused));
    (void)json_object_set_new(object, "memory_bytes",
                              json_integer((json_int_t)status.memory_bytes));
    (void)json_object_set_new(object, "memory_wanted_bytes",
                              json_integer((json_int_t)status.memory_wanted_bytes));
    (void)json_object_set_new(object, "memory_max_bytes",
                              json_integer((json_int_t)status.memory_max_bytes));
}

static void add_forwards(json_t *object, struct machine *machine)
{
    const struct machine_forward *list;
    unsigned count = machine_forwards(machine, &list);
    json_t *forwards = json_array();

    for (unsigned i = 0; i < count; i++) {
        (void)json_array_append_new(forwards, json_pack("{s:i, s:i}", "host_port",
                                                        (int)machine_forward_port(machine, i),
                                                        "guest_port", (int)list[i].guest_port));
    }
    (void)json_object_set_new(object, "forwards", forwards);
}

/* "forwards": [{"host_port", "guest_port"}]: these and no others. */
static int run_forwards(struct call *call)
{
    const json_t *wanted = json_object_get(call->request, "forwards");
    struct machine_forward list[MACHINE_MAX_FORWARDS];
    size_t count = json_array_size(wanted);
    int rc;

    if (!json_is_array(wanted) || count > MACHINE_MAX_FORWARDS) {
        return -EINVAL;
    }
    for (size_t i = 0; i < count; i++) {
        const json_t *host = json_object_get(json_array_get(wanted, i), "host_port");
        const json_t *guest = json_object_get(json_array_get(wanted, i), "guest_port");

        if (!json_is_integer(host) || !json_is_integer(guest) || json_integer_value(host) < 0 ||
            json_integer_value(host) > UINT16_MAX || json_integer_value(guest) < 1 ||
            json_integer_value(guest) > UINT16_MAX) {
            return -EINVAL;
        }
        list[i] = (struct machine_forward){.host_address = LOOPBACK,
                                           .host_port = (uint16_t)json_integer_value(host),
                                           .guest_port = (uint16_t)json_integer_value(guest)};
    }
    rc = machine_set_forwards(call_machine(call), list, (unsigned)count, &call->err);
    if (rc == 0) {
        add_forwards(call->answer, call_machine(call));
    }
    return rc;
}

/* What the guest shows of itself. */
static void add_guest(json_t *object, const struct machine_status *status)
{
    char text[16];

    (void)json_object_set_new(object, "agent", json_boolean(status->is_agent_there));
    if (status->guest_address != 0) {
        uint32_t a = status->guest_address;

        (void)snprintf(text, sizeof(text), "%u.%u.%u.%u", a >> 24, a >> 16 & 255, a >> 8 & 255,
                       a & 255);
        (void)json_object_set_new(object, "address", json_string(text));
    }
}

static int run_status(struct call *call)
{
    struct machine_status status;

    machine_status(call_machine(call), &status);
    add_guest(call->answer, &status);
    add_status(call->answer, call_machine(call));
    add_size(call->answer, call_machine(call));
    (void)json_object_set_new(call->answer, "pid", json_integer(getpid()));
    add_forwards(call->answer, call_machine(call));
    return 0;
}

static int run_statistics(struct call *call)
{
    return control_statistics(call_machine(call), call->request, call->answer);
}

static int run_watch(struct call *call)
{
    call->client->is_watching = true;
    add_status(call->answer, call_machine(call));
    return 0;
}

static int run_pause(struct call *call)
{
    return machine_pause(call_machine(call));
}

static int run_resume(struct call *call)
{
    return machine_resume(call_machine(call));
}

static int run_powerdown(struct call *call)
{
    return machine_powerdown(call_machine(call));
}

static int run_reset(struct call *call)
{
    return machine_reset(call_machine(call));
}

static int run_stop(struct call *call)
{
    machine_stop(call_machine(call));
    return 0;
}

static int run_quit(struct call *call)
{
    const struct control_env *env = &call->client->control->env;

    env->quit(env->opaque);
    return 0;
}

static int run_balloon(struct call *call)
{
    const json_t *bytes = json_object_get(call->request, "bytes");

    if (!json_is_integer(bytes) || json_integer_value(bytes) < 0) {
        return -EINVAL;
    }
    return machine_set_balloon(call_machine(call), (uint64_t)json_integer_value(bytes));
}

static int run_cpus(struct call *call)
{
    const json_t *count = json_object_get(call->request, "count");
    json_int_t value = json_integer_value(count); /* 0 when it is no number */
    int rc =
        machine_set_cpus(call_machine(call),
                         value < 1 || value > MACHINE_MAX_CPUS ? 0 : (unsigned)value, &call->err);

    if (rc == 0) {
        add_size(call->answer, call_machine(call));
    }
    return rc;
}

static int run_memory(struct call *call)
{
    json_int_t value = json_integer_value(json_object_get(call->request, "bytes"));
    int rc = machine_set_memory(call_machine(call), value < 0 ? 0 : (uint64_t)value, &call->err);

    if (rc == 0) {
        add_size(call->answer, call_machine(call));
    }
    return rc;
}

static int get_rate(const struct call *call, const char *key, uint64_t *ret_rate)
{
    const json_t *rate = json_object_get(call->request, key);

    *ret_rate = (uint64_t)json_integer_value(rate);
    return rate == NULL || (json_is_integer(rate) && json_integer_value(rate) >= 0) ? 0 : -EINVAL;
}

/* Each of the two is told only if the request has something of it. */
static int run_limits(struct call *call)
{
    const json_t *cap = json_object_get(call->request, "cpu-cap");
    bool spares = json_is_true(json_object_get(call->request, "cpu-spare"));
    struct limit_config net = {0};
    bool has_net = false;
    const struct {
        const char *key;
        uint64_t *rate;
    } rows[] = {
        {"net-bps", &net.bytes_per_second},
        {"net-bps-burst", &net.burst_bytes},
        {"net-pps", &net.ops_per_second},
        {"net-pps-burst", &net.burst_ops},
    };
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < ARRAY_LEN(rows); i++) {
        has_net |= json_object_get(call->request, rows[i].key) != NULL;
        rc = get_rate(call, rows[i].key, rows[i].rate);
    }
    if (rc == 0 && cap != NULL) {
        rc =
            json_is_integer(cap) && json_integer_value(cap) >= 0 && json_integer_value(cap) <= 100
                ? machine_set_cpu_cap(call_machine(call), (unsigned)json_integer_value(cap), spares)
                : -EINVAL;
    }
    if (rc == 0 && has_net) {
        rc = machine_net_limit(call_machine(call), &net);
        /* What is not there is within any limit. */
        rc = rc == -ENODEV && !net.bytes_per_second && !net.ops_per_second ? 0 : rc;
    }
    return rc;
}

static int run_disks(struct call *call)
{
    control_disks(call_machine(call), call->answer);
    return 0;
}

static int run_disk_limit(struct call *call)
{
    return control_disk_limit(call_machine(call), call->request, &call->err);
}

static int run_disk_resize(struct call *call)
{
    return control_disk_resize(call_machine(call), call->request, &call->err);
}

static int run_disk_add(struct call *call)
{
    return control_disk_add(call_machine(call), call->request, &call->err);
}

static int run_disk_remove(struct call *call)
{
    return control_disk_remove(call_machine(call), call->request, &call->err);
}

static int run_disk_snapshot(struct call *call)
{
    return control_disk_snapshot(call_machine(call), call->request, call->answer, &call->err);
}

static int run_disk_mirror(struct call *call)
{
    return control_disk_mirror(call_machine(call), call->request, &call->err);
}

static int run_disk_stream(struct call *call)
{
    return control_disk_layers(call_machine(call), call->request, false, &call->err);
}

static int run_disk_commit(struct call *call)
{
    return control_disk_layers(call_machine(call), call->request, true, &call->err);
}

static int run_disk_job(struct call *call)
{
    return control_disk_job(call_machine(call), call->request, &call->err);
}

static const struct command commands[] = {
    {"status", IN_ANY, run_status, ""},
    {"statistics", IN_ANY, run_statistics, ""},
    {"stats", IN_ANY, run_statistics, ""},
    {"watch", IN_ANY, run_watch, ""},
    {"pause", IN_RUNNING | IN_PAUSED, run_pause, "the machine could not be paused"},
    {"resume", IN_PAUSED, run_resume, "the machine could not be resumed"},
    {"powerdown", IN_RUNNING, run_powerdown,
     "the guest does not listen to its power button; \"stop\" ends it at once"},
    {"reset", IN_RUNNING | IN_PAUSED, run_reset, "the machine could not be reset"},
    {"balloon", IN_RUNNING | IN_PAUSED, run_balloon,
     "the balloon was not moved; give \"bytes\", and a machine with a balloon"},
    {"forwards", IN_RUNNING | IN_PAUSED, run_forwards,
     "give \"forwards\", an array of at most 32 pairs of \"host_port\" and \"guest_port\""},
    {"cpus", IN_RUNNING | IN_PAUSED, run_cpus, "there are as many CPUs as before"},
    {"memory", IN_RUNNING | IN_PAUSED, run_memory, "there is as much memory as before"},
    {"limits", IN_ANY, run_limits,
     "the limits were not set; give \"cpu-cap\" from 0 to 100, \"net-bps\", \"net-pps\""},
    {"disks", IN_ANY, run_disks, ""},
    {"disk-add", IN_RUNNING | IN_PAUSED, run_disk_add, "the disk was not added"},
    {"disk-remove", IN_RUNNING | IN_PAUSED, run_disk_remove, "the disk was not removed"},
    {"disk-snapshot", IN_RUNNING | IN_PAUSED, run_disk_snapshot, "there is no snapshot"},
    {"disk-mirror", IN_RUNNING | IN_PAUSED, run_disk_mirror, "the mirror was not begun"},
    {"disk-stream", IN_RUNNING | IN_PAUSED, run_disk_stream, "the stream was not begun"},
    {"disk-commit", IN_RUNNING | IN_PAUSED, run_disk_commit, "the commit was not begun"},
    {"disk-job", IN_RUNNING | IN_PAUSED, run_disk_job, "the job goes on as before"},
    {"disk-limit", IN_ANY, run_disk_limit, "the limit was not set"},
    {"disk-resize", IN_RUNNING | IN_PAUSED, run_disk_resize, "the disk was not resized"},
    {"stop", IN_CREATED | IN_RUNNING | IN_PAUSED, run_stop, ""},
    {"quit", IN_ANY, run_quit, ""},
};

static void client_close(struct client *client)
{
    loop_remove_fd(client->handler);
    (void)close(client->fd);
    client->handler = NULL;
    client->fd = -1;
    client->is_watching = false;
    client->used = 0;
    client->control = NULL;
}

/* Sends one line and frees it. False when the peer does not read, and is gone. */
static bool client_send(struct client *client, json_t *object)
{
    char *text = json_dumps(object, JSON_COMPACT);
    bool sent = false;

    json_decref(object);
    if (text != NULL) {
        size_t len = strlen(text);

        text[len] = '\n'; /* in place of the NUL: the length is known */
        sent = send(client->fd, text, len + 1, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)(len + 1);
        free(text);
    }
    if (!sent) {
        client_close(client);
    }
    return sent;
}

static json_t *make_answer(const json_t *request, const char *error)
{
    json_t *answer = json_object();
    json_t *id = json_object_get(request, "id");

    (void)json_object_set_new(answer, "ok", json_boolean(error == NULL));
    if (id != NULL) {
        (void)json_object_set(answer, "id", id);
    }
    if (error != NULL) {
        (void)json_object_set_new(answer, "error", json_string(error));
    }
    return answer;
}

static bool client_refuse(struct client *client, const json_t *request, const char *error)
{
    return client_send(client, make_answer(request, error));
}

static const struct command *find_command(const char *name)
{
    for (unsigned i = 0; name != NULL && i < ARRAY_LEN(commands); i++) {
        if (strcmp(commands[i].name, name) == 0) {
            return &commands[i];
        }
    }
    return NULL;
}

/* Runs one request. False when the client is gone. */
static bool client_run(struct client *client, const json_t *request)
{
    const char *name = json_string_value(json_object_get(request, "command"));
    const struct command *command = find_command(name);
    struct call call = {.client = client, .request = request};
    struct machine_status status;
    char text[sizeof(call.err.text)];
    int rc;

    if (command == NULL) {
        return client_refuse(
            client, request,
            "there is no such command; give \"command\": \"status\", "
            "\"statistics\", \"watch\", \"pause\", \"resume\", \"powerdown\", "
            "\"reset\", \"balloon\", \"cpus\", \"memory\", \"stop\", \"quit\", or one of those for disks "
            "(\"disks\", \"disk-limit\" ...)");
    }
    machine_status(client->control->env.machine, &status);
    if ((command->states & 1u << status.state) == 0) {
        (void)snprintf(text, sizeof(text), "%s is not possible while the machine is %s",
                       command->name, machine_state_name(status.state));
        return client_refuse(client, request, text);
    }
    call.answer = make_answer(request, NULL);
    rc = command->run(&call);
    if (rc < 0) {
        json_decref(call.answer);
        (void)snprintf(text, sizeof(text), "%s (%s)", command->failure, strerrordesc_np(-rc));
        return client_refuse(client, request, call.err.code != 0 ? call.err.text : text);
    }
    return client_send(client, call.answer);
}

/* Parses and runs one line without its newline. False when the client is gone. */
static bool client_line(struct client *client, const char *line, size_t len)
{
    json_error_t why;
    json_t *request = json_loadb(line, len, JSON_REJECT_DUPLICATES, &why);
    bool is_alive;

    if (!json_is_object(request)) {
        json_decref(request);
        return client_refuse(client, NULL, "the line is not a JSON object");
    }
    is_alive = client_run(client, request);
    json_decref(request);
    return is_alive;
}

static void on_client(void *opaque, uint32_t events)
{
    struct client *client = opaque;
    ssize_t n = recv(client->fd, client->line + client->used, sizeof(client->line) - client->used,
                     MSG_DONTWAIT);
    char *newline;

    (void)events; /* recv tells about hang-ups too */
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
    }
    if (n <= 0) {
        client_close(client);
        return;
    }
    client->used += (size_t)n;
    while ((newline = memchr(client->line, '\n', client->used)) != NULL) {
        size_t len = (size_t)(newline - client->line);

        if (!client_line(client, client->line, len)) {
            return;
        }
        client->used -= len + 1;
        memmove(client->line, newline + 1, client->used);
    }
    if (client->used == sizeof(client->line) &&
        client_refuse(client, NULL, "the line is too long")) {
        client_close(client);
    }
}

static struct client *find_free_client(struct control *control)
{
    for (unsigned i = 0; i < CONTROL_MAX_CLIENTS; i++) {
        if (control->clients[i].control == NULL) {
            return &control->clients[i];
        }
    }
    return NULL;
}

static void on_connection(void *opaque, uint32_t events)
{
    static const char full[] = "{\"ok\":false,\"error\":\"too many connections\"}\n";
    struct control *control = opaque;
    struct client *client = find_free_client(control);
    CLEANUP_CLOSE int fd = accept4(control->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    (void)events;
    if (fd < 0) {
        return; /* the peer went away again, or no descriptors: others may go on */
    }
    if (client == NULL) {
        (void)send(fd, full, sizeof(full) - 1, MSG_NOSIGNAL); /* best effort */
        return;
    }
    if (loop_add_fd(control->env.loop, fd, EPOLLIN, on_client, client, &client->handler) < 0) {
        return;
    }
    client->control = control;
    client->fd = steal_fd(&fd);
}

int control_create(const struct control_env *env, int listen_fd, struct control **ret_control)
{
    struct control *control = calloc(1, sizeof(*control));
    int rc;

    if (control == NULL) {
        return -ENOMEM;
    }
    control->env = *env;
    control->listen_fd = listen_fd;
    rc = loop_add_fd(env->loop, listen_fd, EPOLLIN, on_connection, control, &control->handler);
    if (rc < 0) {
        free(control);
        return rc;
    }
    *ret_control = control;
    return 0;
}

void control_destroy(struct control *control)
{
    if (control == NULL) {
        return;
    }
    for (unsigned i = 0; i < CONTROL_MAX_CLIENTS; i++) {
        if (control->clients[i].control != NULL) {
            client_close(&control->clients[i]);
        }
    }
    loop_remove_fd(control->handler);
    free(control);
}

/* Sends a copy of the event to each client that watches. */
static void tell_watchers(struct control *control, json_t *event)
{
    for (unsigned i = 0; i < CONTROL_MAX_CLIENTS; i++) {
        struct client *client = &control->clients[i];

        if (client->control != NULL && client->is_watching) {
            (void)client_send(client, json_incref(event));
        }
    }
    json_decref(event);
}

void control_announce(struct control *control)
{
    struct machine_status status;
    unsigned changes;
    json_t *event;

    machine_status(control->env.machine, &status);
    if (status.changes != control->told_changes) {
        control->told_changes = status.changes;
        event = json_object();
        (void)json_object_set_new(event, "event", json_string("state"));
        add_status(event, control->env.machine);
        tell_watchers(control, event);
    }
    if (status.balloon_bytes != control->told_balloon_bytes) {
        control->told_balloon_bytes = status.balloon_bytes;
        event = json_object();
        (void)json_object_set_new(event, "event", json_string("balloon"));
        (void)json_object_set_new(event, "bytes", json_integer((json_int_t)status.balloon_bytes));
        tell_watchers(control, event);
    }
    if (status.is_agent_there != control->told_agent ||
        status.guest_address != control->told_address) {
        control->told_agent = status.is_agent_there;
        control->told_address = status.guest_address;
        event = json_object();
        (void)json_object_set_new(event, "event", json_string("guest"));
        add_guest(event, &status);
        tell_watchers(control, event);
    }
    changes = machine_disk_changes(control->env.machine);
    if (changes != control->told_disk_changes) {
        control->told_disk_changes = changes;
        event = json_object();
        (void)json_object_set_new(event, "event", json_string("disks"));
        control_disks(control->env.machine, event);
        tell_watchers(control, event);
    }
    changes = machine_size_changes(control->env.machine);
    if (changes != control->told_size_changes) {
        control->told_size_changes = changes;
        event = json_object();
        (void)json_object_set_new(event, "event", json_string("size"));
        add_size(event, control->env.machine);
        tell_watchers(control, event);
    }
}
