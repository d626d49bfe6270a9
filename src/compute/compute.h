/*
 * Compute: instances and what they are made of, as objects that are wanted,
 * and the reconciler that makes it so.
 *
 * A call writes what is wanted into the store and answers; workers then do
 * it, step by step, and every step can be repeated, so that whatever ends the
 * process is just an earlier point of the same work. Machines are processes
 * of their own and go on without this one; compute_open() finds them again.
 *
 * Objects are JSON (jansson), described by the tables of compute/field.h. An
 * object that takes part in work has an operation: an object of its kind with
 * "state" ("pending", "running", "done", "failed", "cancelled"), "progress" (0
 * to 100), "step", and "error" when it failed.
 *
 * Threads: every function may be called from any thread, several at a time. A
 * call waits for the store at most (a synced write: milliseconds), except
 * where "waits" is said: such a call does not belong on an event loop. JSON
 * that is passed in is only read; JSON that comes back is the caller's own
 * and shared with nobody.
 */
#ifndef CORBEL_COMPUTE_COMPUTE_H
#define CORBEL_COMPUTE_COMPUTE_H

#include "compute/fault.h"
#include "compute/field.h"

struct store;
struct compute;
struct compute_watch;

#define COMPUTE_DEFAULT_PROJECT "default" /* made by compute_open() */
#define COMPUTE_MAX_PAGE 1000u

struct compute_config {
    struct store *store;   /* outlives it */
    const char *state_dir; /* machines/ID and volumes stand here */
    const char
        *runtime_dir; /* sockets of running machines: vm/ID; short: a socket's name has 107 bytes */
    const char *images_dir;     /* an image is a directory in it, as `corbel image` makes them */
    const char *vmm;            /* the corbel-vmm program */
    unsigned workers;           /* 0: 8 */
    const char *cgroup;         /* parent of machines' control groups; "": none; NULL: found */
    const char *const *bridges; /* of the host, that instances may use; outlive it */
    unsigned bridge_count;

    /* What admission may give away; 0: what the host has (cpus, memory), times the ratio in percent. */
    unsigned cpus, memory_mib;
    unsigned cpu_ratio, memory_ratio; /* 0: 400 and 100 */

    /* For tests: called on the worker that is about to begin (and has just done) a named step. */
    void (*on_step)(void *opaque, const char *step, bool is_done);
    void *opaque;
};

/* Reads all objects, adopts the machines that run, and begins to reconcile. */
int compute_open(const struct compute_config *config, struct err *err, struct compute **ret_compute)
    MUST_CHECK;

/*
 * While there is a file of this name in state_dir, what no record knows of is
 * left alone instead of being removed: the records are older than the rest.
 */
#define COMPUTE_RESTORED_MARK "restored"

/* Ends the workers between two steps; machines run on. Accepts NULL. */
void compute_close(struct compute *compute);

/* Who asks, and how. Strings need to live as long as the call. */
struct compute_call {
    const char *project; /* whose objects: its id or name. NULL: those of all, not for creation */
    const char *actor;   /* for operations and events: "uid:1000", "key:ci"; NULL: "local" */
    const char *token;   /* makes a repeated request answer as the first; NULL: none */
    bool is_dry_run;     /* check everything, change nothing; the answer has no operation */
    bool keeps_to_types; /* gives no instance more of the host than its type does */
};

/*
 * Creation. The answer is {"KIND": {...}, "operation": {...}}, without
 * "operation" for a kind that needs no work (type, key, project). A repeated
 * call with the same token and wants answers the same object and its
 * operation as they are now.
 */
int compute_create(struct compute *compute, const struct compute_call *call, enum kind kind,
                   const json_t *wanted, json_t **ret_answer, struct fault *fault) MUST_CHECK;

/* One object by id, or by name within the project (without one: if only one has that name). "revision" in it is for compute_change(). */
int compute_get(struct compute *compute, const struct compute_call *call, enum kind kind,
                const char *id, json_t **ret_object, struct fault *fault) MUST_CHECK;

struct compute_list {
    const json_t
        *filter;    /* object of strings: {"state": "running", "tag.env": "prod"}; may be NULL */
    unsigned limit; /* 0: 100 */
    const char *cursor; /* "next" of the page before; NULL: from the start */
};

/*
 * A page: {"items": [...], "revision": N}, and "next" when there are more.
 * Ordered by id, and so by age. "revision" is where a watch goes on.
 */
int compute_list(struct compute *compute, const struct compute_call *call, enum kind kind,
                 const struct compute_list *list, json_t **ret_page, struct fault *fault)
    MUST_CHECK;

/*
 * Changes fields. revision: only if the object is still at it; 0: whatever it
 * is. The answer is as that of creation; a change that needs no work has no
 * operation.
 */
int compute_change(struct compute *compute, const struct compute_call *call, enum kind kind,
                   const char *id, const json_t *changes, uint64_t revision, json_t **ret_answer,
                   struct fault *fault) MUST_CHECK;

/* Deletes; a running instance is ended first. The answer is as that of creation. */
int compute_delete(struct compute *compute, const struct compute_call *call, enum kind kind,
                   const char *id, json_t **ret_answer, struct fault *fault) MUST_CHECK;

/* What can be done to an instance, beyond creating and deleting. */
struct compute_action {
    const char *name;           /* "start", "stop", "restart", "pause", "resume", ... */
    const struct field *fields; /* what its parameters may be */
    unsigned field_count;
    const char *help;
};

const struct compute_action *compute_actions(unsigned *ret_count);

/* Does one by name; parameters may be NULL. The answer is as that of creation. */
int compute_act(struct compute *compute, const struct compute_call *call, const char *action,
                const char *id, const json_t *parameters, json_t **ret_answer, struct fault *fault)
    MUST_CHECK;

/* Puts the disk of a stopped instance, or a volume that no machine runs with, back to a snapshot
 * of it. The answer is as that of creation. */
int compute_restore(struct compute *compute, const struct compute_call *call, const char *id,
                    json_t **ret_answer, struct fault *fault) MUST_CHECK;

/* Asks an operation to end where it can; -EBUSY when it has ended. The answer is the operation. */
int compute_cancel(struct compute *compute, const struct compute_call *call, const char *id,
                   json_t **ret_operation, struct fault *fault) MUST_CHECK;

/* Waits until an operation has ended, or for that long; the answer is the operation as it is then. */
int compute_wait(struct compute *compute, const struct compute_call *call, const char *id,
                 unsigned timeout_ms, json_t **ret_operation, struct fault *fault) MUST_CHECK;

/*
 * Asks the monitor of a running instance; waits for it, a second at most.
 * -EBUSY when the instance does not run.
 */
int compute_statistics(struct compute *compute, const struct compute_call *call, const char *id,
                       json_t **ret_statistics, struct fault *fault) MUST_CHECK;

/*
 * Every instance that has a monitor, of a project (its id or name) or all: as
 * it is answered, and the directory of its monitor's sockets. An error of fn
 * ends it. fn must not call compute.
 */
int compute_each_machine(struct compute *compute, const char *project,
                         int (*fn)(void *opaque, const json_t *instance, const char *dir),
                         void *opaque, struct fault *fault) MUST_CHECK;

/* Where what belongs to an instance is kept; gone when it is deleted. -ENOENT when there is none
 * yet. out[PATH_MAX]. */
int compute_instance_directory(const struct compute *compute, const char *id, char *out) MUST_CHECK;

/*
 * Alarms. Who evaluates them says which instances went into alarm or out of
 * it; what follows from that is written down with the change ("owed") and done
 * by him, who may be ended at any time: done twice it is done once, by a token.
 */

/* Calls fn for every alarm: as it is answered, with "owed", its list of debts. */
int compute_each_alarm(struct compute *compute, int (*fn)(void *opaque, const json_t *alarm),
                       void *opaque, struct fault *fault) MUST_CHECK;

/* An instance whose state changed. */
struct compute_turn {
    const char *instance, *name; /* its id and name */
    bool is_alarm;
    double value; /* of the metric, when has_value */
    bool has_value;
};

/*
 * Notes transitions of an alarm that is still at that revision, and state, what
 * it is now as a whole. -ESTALE otherwise: evaluate again.
 */
int compute_alarm_settle(struct compute *compute, const json_t *alarm, const char *state,
                         const struct compute_turn *turns, unsigned count, struct fault *fault)
    MUST_CHECK;
#define COMPUTE_MAX_TURNS 16u /* at a time */

/* A debt, taken apart. */
struct compute_debt {
    enum { DEBT_ACTION, DEBT_HOOK_ALARM, DEBT_HOOK_OK } kind;
    char instance[64];
    char token[100]; /* names it, the same each time it is tried */
};

/* False for one that cannot be understood. */
bool compute_alarm_debt(const json_t *alarm, const char *owed, struct compute_debt *ret_debt);

/* Does the action of an alarm; errors as those of compute_act(). */
int compute_alarm_act(struct compute *compute, const json_t *alarm, const struct compute_debt *debt,
                      struct fault *fault) MUST_CHECK;

/* The debt is paid; with an event when complaint is not NULL. -ENOENT: the alarm is gone. */
int compute_alarm_paid(struct compute *compute, const json_t *alarm, const char *owed,
                       const char *complaint, struct fault *fault) MUST_CHECK;

/*
 * What projects use: sums of each hour in the store, which outlive instances,
 * volumes and this process. One thread counts; anyone reads.
 */
struct compute_usage;
int compute_usage_open(struct compute *compute, struct compute_usage **ret_usage) MUST_CHECK;
void compute_usage_close(struct compute_usage *usage); /* accepts NULL */
struct compute_usage_clock {
    uint64_t now_s;   /* since 1970 */
    uint64_t up_s;    /* since the host began, also while it slept: nobody sets that clock */
    const char *boot; /* the name of this start of the host */
};
/* Counts from the last time until now. answers: {ID: bytes of its network so far} of the machines
 * that answered. Writes about once a minute; the rest is written by a flush or a read. */
int compute_usage_count(struct compute_usage *usage, const json_t *answers,
                        const struct compute_usage_clock *clock, struct fault *fault) MUST_CHECK;
int compute_usage_flush(struct compute_usage *usage, struct fault *fault) MUST_CHECK;

enum compute_usage_by {
    USAGE_BY_PROJECT,
    USAGE_BY_INSTANCE, /* a line for each instance, volume, snapshot */
    USAGE_BY_DAY,      /* of UTC */
    USAGE_BY_HOUR
};

struct compute_usage_query {
    uint64_t since_s, until_s; /* since 1970; rounded to whole hours, outwards */
    enum compute_usage_by by;
};
/*
 * {"since", "until", "items": [{"project", "project_name", "vcpu_hours", "memory_gib_hours",
 * "storage_gib_hours", "network_bytes"}]}, with "id" and "name" of each instance, volume and
 * snapshot too, or the "time" at which each day or hour began. -EINVAL for no time between them, or
 * too much.
 */
int compute_usage_read(struct compute_usage *usage, const struct compute_call *call,
                       const struct compute_usage_query *query, json_t **ret_answer,
                       struct fault *fault) MUST_CHECK;

/* Calls fn for every hook, as it is answered. fn must not call compute. */
int compute_each_hook(struct compute *compute, int (*fn)(void *opaque, const json_t *hook),
                      void *opaque, struct fault *fault) MUST_CHECK;
/* What a hook has to be told next: 1, and {"event", "webhook", "secret"}, the caller's; 0 for
 * nothing. -ENOENT: the hook is gone. */
int compute_hook_next(struct compute *compute, const json_t *hook, json_t **ret_letter,
                      struct fault *fault) MUST_CHECK;

struct compute_delivery {
    const json_t *event;
    enum {
        DELIVERY_TOLD,
        DELIVERY_FAILED, /* to be tried again, until the event is too old */
        DELIVERY_REFUSED /* to be given up */
    } result;
    unsigned status; /* of the answer; 0: there was none */
    unsigned took_ms;
    const char *complaint; /* NULL when it was told */
};
/* Takes note of one try. 1: the next one is of another event; 0: of this one again. */
int compute_hook_note(struct compute *compute, const json_t *hook,
                      const struct compute_delivery *delivery, struct fault *fault) MUST_CHECK;

/*
 * Credits of an instance that has a monitor, which has counted that much time of its CPUs: notes
 * what it has earned and used, and has it held at its baseline or let go. Nothing without a
 * baseline. step_s: between two such calls. -ESTALE when it was just changed: the next time.
 */
int compute_settle_credits(struct compute *compute, const json_t *instance, uint64_t cpu_ns,
                           unsigned step_s, struct fault *fault) MUST_CHECK;

/* What is kept of what has happened; 0: all of it. */
struct compute_keep {
    unsigned events;     /* of each project, the newest */
    unsigned days;       /* events, and operations that have ended */
    unsigned token_days; /* idempotency tokens */
};

/* Deletes the rest, some thousands at most at a time; how many. Waits. */
int compute_prune(struct compute *compute, const struct compute_keep *keep, unsigned *ret_count,
                  struct fault *fault) MUST_CHECK;

/* A stream socket to the serial console of a running instance, the caller's to close. */
int compute_console(struct compute *compute, const struct compute_call *call, const char *id,
                    int *ret_fd, struct fault *fault) MUST_CHECK;

/*
 * The agent in a running instance (docs/guest-agent.md). -EBUSY when the
 * instance does not run, or no agent in it; -EAGAIN when the agent does not
 * answer, or with nonsense; -EINVAL and -ENOENT when it refuses. What it says
 * is the guest's word. All of these wait, seconds where the guest is slow, and
 * for each other: an agent takes one call at a time.
 */

/* {"agent": {"version", "system", "kernel", "host_name", "interfaces": [...]}} */
int compute_agent(struct compute *compute, const struct compute_call *call, const char *id,
                  json_t **ret_answer, struct fault *fault) MUST_CHECK;

#define COMPUTE_EXEC_FIELDS 5
#define COMPUTE_EXEC_MAX_WAIT_MS 30000
extern const struct field compute_exec_fields[COMPUTE_EXEC_FIELDS];

/*
 * Starts a program as the agent's user, root. {"exec": {"pid", "state":
 * "running" or "exited", "exit_code" or "signal", "stdout", "stderr"}}; output
 * that is no text comes as "stdout_base64". Waits at most wait_ms for its end.
 */
int compute_exec(struct compute *compute, const struct compute_call *call, const char *id,
                 const json_t *wanted, unsigned wait_ms, json_t **ret_answer, struct fault *fault)
    MUST_CHECK;
/* The same later; the end is told once. */
int compute_exec_status(struct compute *compute, const struct compute_call *call, const char *id,
                        int64_t pid, unsigned wait_ms, json_t **ret_answer, struct fault *fault)
    MUST_CHECK;

/* A piece of a file of the guest. */
struct compute_file {
    const char *path;
    uint64_t offset;
    size_t len; /* at most COMPUTE_FILE_MAX_PIECE */
};
#define COMPUTE_FILE_MAX_PIECE (1u << 20)

/* At most file->len bytes in new memory, the caller's; *ret_is_end: there are no more. */
int compute_file_read(struct compute *compute, const struct compute_call *call, const char *id,
                      const struct compute_file *file, void **ret_data, size_t *ret_len,
                      bool *ret_is_end, struct fault *fault) MUST_CHECK;
/* Writes file->len bytes. At offset 0 the file is made anew, elsewhere it must be there. */
int compute_file_write(struct compute *compute, const struct compute_call *call, const char *id,
                       const struct compute_file *file, const void *data, struct fault *fault)
    MUST_CHECK;

#define COMPUTE_PASSWORD_FIELDS 2
extern const struct field compute_password_fields[COMPUTE_PASSWORD_FIELDS];
int compute_set_password(struct compute *compute, const struct compute_call *call, const char *id,
                         const json_t *wanted, struct fault *fault) MUST_CHECK;

/* Has the guest write its file systems out and hold them still, or go on: for snapshots of disks.
 * *ret_count: of how many file systems. Whoever freezes must thaw. */
int compute_freeze(struct compute *compute, const struct compute_call *call, const char *id,
                   bool is_frozen, int64_t *ret_count, struct fault *fault) MUST_CHECK;

/*
 * How to get in: "user", "ssh_port" (0: none), "ssh_key" and "known_hosts" as ssh reads them,
 * "console_password", and "ready": what the console shows when the guest is up. Reads small files.
 */
int compute_access(struct compute *compute, const struct compute_call *call, const char *id,
                   json_t **ret_access, struct fault *fault) MUST_CHECK;

/* The last of what the monitor of a running instance said ("monitor"; absent when none runs). */
int compute_log(struct compute *compute, const struct compute_call *call, const char *id,
                json_t **ret_log, struct fault *fault) MUST_CHECK;

/* {"cpus": {"total", "used"}, "memory_mib": {...}, "instances": ..., "limits": ..., "bridges": ...}: the host as
 * admission sees it, and by what means each limit is kept. What is used, and the instances, are those of the
 * project (its id or name) or, NULL, of all. */
int compute_host(struct compute *compute, const char *project, json_t **ret_host,
                 struct fault *fault) MUST_CHECK;

/*
 * Changes of objects as they happen, in order, none left out: for server-sent
 * events. revision: everything after it ("revision" of a page); 0: from now.
 * -ESTALE when what happened after it is not kept any more: list again.
 */
int compute_watch_open(struct compute *compute, const struct compute_call *call, uint64_t revision,
                       struct compute_watch **ret_watch, struct fault *fault) MUST_CHECK;

/* Becomes readable when compute_watch_next() has something; the watch's own: only poll it. */
int compute_watch_fd(const struct compute_watch *watch);

/*
 * At most max changes, in an array that is empty when there is nothing new:
 * {"revision": N, "kind": "instance", "id": "i-...", "object": {...}}, with
 * "object" null for one that was deleted. -ESTALE as above. One thread at a
 * time for one watch.
 */
int compute_watch_next(struct compute_watch *watch, unsigned max, json_t **ret_changes,
                       struct fault *fault) MUST_CHECK;
void compute_watch_close(struct compute_watch *watch); /* accepts NULL */

/* The names of the steps that all work is made of, for tests that end the process at each. */
const char *const *compute_steps(unsigned *ret_count);

#endif
