/*
 * What a running guest shows of itself: whether its agent is there, and its
 * address. The monitor tells when one of these changes; a guest that changes
 * them all the time is listened to once a minute.
 */
#include "compute/agent.h"

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "rpc/control_client.h"
#include "rpc/unix_socket.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define EAGER_NOTES 10u /* of one start, a second apart; then they are a minute apart */
#define CONTROL_LINE_TIMEOUT_MS 2000u

/* The loop's thread: whatever the monitor says, the guest is to be looked at. */
static void on_guest(void *opaque, uint32_t events)
{
    struct task *task = opaque;
    struct compute *compute = task->compute;
    char ignored[4096];
    ssize_t n;

    (void)events; /* recv tells about hang-ups too */
    do {
        n = recv(task->guest_fd, ignored, sizeof(ignored), MSG_DONTWAIT);
    } while (n == (ssize_t)sizeof(ignored));
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
        guest_unwatch(task);
        return;
    }
    mutex_lock(&compute->lock);
    task->is_guest_changed = true;
    mutex_unlock(&compute->lock);
    task_again(task, 0);
}

int guest_start_watch(struct task *task)
{
    return task->guest_fd >= 0 ? loop_add_fd(task->compute->loop, task->guest_fd, EPOLLIN, on_guest,
                                             task, &task->guest_handler)
                               : 0;
}

void guest_unwatch(struct task *task)
{
    loop_remove_fd(task->guest_handler);
    task->guest_handler = NULL;
    if (task->guest_fd >= 0) {
        (void)close(task->guest_fd);
        task->guest_fd = -1;
    }
}

int guest_connect(struct task *task)
{
    static const char line[] = "{\"command\":\"watch\"}\n";
    char dir[PATH_MAX];
    struct err ignored;
    CLEANUP_CLOSE int fd = -1;
    int rc = machine_path(task->compute, task->id, dir, &ignored);

    fd = rc < 0 ? -1 : unix_socket_connect(dir, "control.sock", &ignored);
    rc = fd < 0 ? fd : io_set_nonblock(fd);
    rc = rc < 0 ? rc : io_write_full(fd, line, sizeof(line) - 1);
    if (rc == 0) {
        task->guest_fd = steal_fd(&fd);
        task->guest_notes = 0;
        task->guest_not_before_ns = 0;
    }
    return rc;
}

/* The monitor's "agent" and "address", copied. */
static int ask_monitor(const struct compute *compute, const char *id, bool *ret_has_agent,
                       char address[16], struct err *err)
{
    char dir[PATH_MAX];
    json_t *answer = NULL;
    const char *text;
    int rc = machine_path(compute, id, dir, err);

    rc = rc < 0 ? rc
                : control_ask(dir, id, "{\"command\":\"status\"}\n", CONTROL_LINE_TIMEOUT_MS,
                              &answer, err);
    if (rc < 0) {
        return rc;
    }
    text = json_string_value(json_object_get(answer, "address"));
    *ret_has_agent = json_is_true(json_object_get(answer, "agent"));
    (void)stpncpy(address, text != NULL ? text : "", 15);
    address[15] = '\0';
    json_decref(answer);
    return 0;
}

bool guest_has_agent(const struct compute *compute, const char *id)
{
    char address[16];
    bool has_agent = false;
    struct err ignored;

    return ask_monitor(compute, id, &has_agent, address, &ignored) == 0 && has_agent;
}

/* A program that has the port open need not be an agent that answers. */
static const char *agent_state(struct task *task, char version[64])
{
    struct agent agent = {.client = NULL};
    struct err err;
    int rc = agent_open(task->compute, task->id, AGENT_SHUTDOWN_TIMEOUT_MS, &agent, &err);

    if (rc == -EBUSY) {
        return "connected"; /* somebody talks to it */
    }
    if (rc < 0) {
        return "silent";
    }
    rc = agent_version(&agent, version, 64, &err);
    agent_close(&agent);
    return rc < 0 ? "silent" : "connected";
}

/* Puts what is new into the record; whether anything was. */
static bool take_news(struct task *task, struct object *instance, struct change *change,
                      bool has_agent, const char *address)
{
    bool had_agent = object_is(instance, "agent", "connected");
    char version[64] = "";
    bool is_new = false;

    if (has_agent != had_agent || object_text(instance, "agent")[0] == '\0') {
        const char *state = has_agent ? agent_state(task, version) : "absent";

        is_new = !object_is(instance, "agent", state);
        object_set_text(instance, "agent", state);
        object_clear(instance, "agent_version");
        if (version[0] != '\0') {
            object_set_text(instance, "agent_version", version);
        }
        if (is_new && object_is(instance, "agent", "connected")) {
            change_event(change, instance, "info", "instance.agent", NULL,
                         "the agent in instance \"%s\" answers", object_text(instance, "name"));
        }
    }
    if (address[0] != '\0' && !object_is(instance, "address", address)) {
        is_new = true;
        object_set_text(instance, "address", address);
        change_event(change, instance, "info", "instance.address", NULL,
                     "instance \"%s\" has the address %s", object_text(instance, "name"), address);
    }
    return is_new;
}

static bool take_changed(struct task *task)
{
    bool is_changed;

    mutex_lock(&task->compute->lock);
    is_changed = task->is_guest_changed;
    task->is_guest_changed = false;
    mutex_unlock(&task->compute->lock);
    return is_changed;
}

/* There is more to hear than was heard. */
static void look_again_at(struct task *task, uint64_t due_ns)
{
    mutex_lock(&task->compute->lock);
    task->is_guest_changed = true;
    mutex_unlock(&task->compute->lock);
    task->guest_not_before_ns = due_ns;
    task_again(task, due_ns);
}

int guest_look(struct task *task, struct object *instance)
{
    uint64_t now = clock_monotonic_ns();
    struct fault fault = {.code = FAULT_NONE};
    char address[16] = "";
    bool has_agent = false;
    struct change change;
    struct err err = {.code = 0};
    int rc;

    if (task->guest_fd < 0) {
        if (task_watch_guest(task) < 0) {
            return 0; /* it is just ending */
        }
    } else if (now < task->guest_not_before_ns) {
        task_again(task, task->guest_not_before_ns);
        return 0;
    } else if (!take_changed(task)) {
        return 0;
    }
    task->guest_notes++;
    task->guest_not_before_ns = now + (task->guest_notes < EAGER_NOTES ? 1 : 60) * NS_PER_S;
    if (ask_monitor(task->compute, task->id, &has_agent, address, &err) < 0) {
        look_again_at(task, task->guest_not_before_ns); /* a busy host; or it is just ending */
        return 0;
    }
    change_begin(&change, task->compute);
    if (!take_news(task, instance, &change, has_agent, address)) {
        change_drop(&change);
        return 0;
    }
    change_put(&change, instance);
    rc = change_commit(&change, &fault);
    if (rc == -ESTALE) { /* somebody changed it meanwhile: once more */
        look_again_at(task, 0);
        return 0;
    }
    if (rc < 0) {
        log_error("%s: %s", task->id, fault.text);
    }
    return rc;
}
