/*
 * Between the files of compute. The contract is compute.h.
 *
 * Threads: calls come on any thread; "compute/N" are the workers, one of which
 * at a time looks after one object; "compute/loop" hears of processes that end
 * and of time that is up. Calls that change something are one at a time (lock
 * `calls`); what workers change meanwhile is found out by compare-and-swap.
 */
#ifndef CORBEL_COMPUTE_COMPUTE_INT_H
#define CORBEL_COMPUTE_COMPUTE_INT_H

#include "base/loop.h"
#include "base/mac.h"
#include "base/thread.h"
#include "cgroup/cgroup.h"
#include "compute/kinds.h"
#include "compute/network.h"
#include "storage/guest_image.h"
#include "store/store.h"

#include <limits.h>
#include <stdatomic.h>

struct pool;

#define ID_BYTES 48 /* of any id, with its NUL */
#define MAX_WORKERS 32
#define TASK_BUCKETS 256u
#define GLOBAL_PROJECT "-" /* in the keys of what belongs to no project */

/* How long commands to a monitor may take. */
#define CONTROL_TIMEOUT_MS 5000

/* The steps of all work, in the order of their names' table (reconcile.c). */
enum step {
    STEP_MAKE_DIRECTORY,
    STEP_LINK_IMAGE,
    STEP_CREATE_DISK,
    STEP_PUBLISH_DIRECTORY,
    STEP_NOTE_STOPPED,
    STEP_NOTE_STARTING,
    STEP_MAKE_RUNTIME,
    STEP_WRITE_SEED,
    STEP_WRITE_CONFIG,
    STEP_MAKE_CGROUP,
    STEP_LAUNCH,
    STEP_RECORD_MONITOR,
    STEP_ENTER_CGROUP,
    STEP_AWAIT_READY,
    STEP_NOTE_RUNNING,
    STEP_APPLY_LIMITS,
    STEP_NOTE_LIMITS,
    STEP_OPEN_FORWARDS,
    STEP_NOTE_FORWARDS,
    STEP_PAUSE,
    STEP_NOTE_PAUSED,
    STEP_RESUME,
    STEP_NOTE_RESUMED,
    STEP_NOTE_STOPPING,
    STEP_ASK_END,
    STEP_PULL_PLUG,
    STEP_KILL,
    STEP_NOTE_ENDED,
    STEP_REMOVE_CGROUP,
    STEP_CLEAR_RUNTIME,
    STEP_REMOVE_DIRECTORY,
    STEP_FORGET,
    STEP_CREATE_VOLUME,
    STEP_RESIZE_VOLUME,
    STEP_NOTE_VOLUME,
    STEP_DELETE_VOLUME,
    STEP_FORGET_VOLUME,
    STEP_DROP_VOLUME,
    STEP_SWITCH_DISK,
    STEP_LINK_SNAPSHOT,
    STEP_PUBLISH_SNAPSHOT,
    STEP_RESERVE_LAYER,
    STEP_SWITCH_VOLUME,
    STEP_SNAPSHOT_VOLUME,
    STEP_NOTE_SNAPSHOT,
    STEP_RESTORE_DISK,
    STEP_RESTORE_VOLUME,
    STEP_NOTE_RESTORED,
    STEP_TIDY_DISK,
    STEP_NOTE_TIDY,
    STEP_RESIZE,
    STEP_PLUG_VOLUME,
    STEP_UNPLUG_VOLUME,
    STEP_NOTE_RESIZED,
    STEP_DELETE_SNAPSHOT,
    STEP_RELINK_SNAPSHOTS,
    STEP_FORGET_SNAPSHOT,
    STEP_COUNT
};

struct limits; /* compute/limits.h */

/* What a worker may have to look after; kept as long as there is something in memory to keep. */
struct task {
    struct task *next;       /* in its bucket */
    struct task *next_ready; /* in the queue */
    struct compute *compute;
    enum kind kind;
    char project[ID_BYTES];
    char id[ID_BYTES];
    bool is_busy;   /* a worker has it */
    bool is_queued; /* or it waits for one, */
    bool is_dirty;  /* or, while it is busy, has to be looked at again */
    unsigned failures;
    struct loop_timer *timer; /* looks again later; the loop's thread */
    uint64_t due_ns;          /* 0: not armed; under lock */

    /* The running monitor, of the worker that has the task; pid_fd -1: none is known. */
    int pid_fd;
    pid_t pid;
    uint64_t start_ticks;
    bool is_child;          /* ours to wait for */
    int last_status;        /* of the one before, where it is known; else -1 */
    unsigned crashes;       /* in a row */
    uint64_t not_before_ns; /* it is not started again earlier */
    uint64_t in_way_ns;     /* since when something is in the way of its start; 0: nothing */
    bool was_asked_end, was_plug_pulled;
    bool was_agent_asked, is_agent_at_it; /* the guest's agent shall end it */
    uint64_t end_deadline_ns;             /* of what was asked last */
    uint64_t resize_deadline_ns;          /* the guest has until then to follow; 0: nothing to */
    uint64_t resize_ask_ns;               /* then it is asked again */
    uint64_t end_by_ns;                   /* then the plug is pulled */
    struct loop_fd *end_handler;          /* the loop's thread */
    bool has_ended;                       /* its pid_fd became readable; under lock */

    /* guest.c */
    _Atomic int guest_fd;          /* its monitor tells of its guest; -1: not yet */
    struct loop_fd *guest_handler; /* the loop's thread */
    bool is_guest_changed;         /* under lock */
    unsigned guest_notes;
    uint64_t guest_not_before_ns; /* it is not listened to earlier */
};

struct agent;

struct compute {
    struct compute_config config;
    char state_dir[PATH_MAX], runtime_dir[PATH_MAX], images_dir[PATH_MAX], vmm[PATH_MAX];
    struct cgroup *group;
    int64_t life;                  /* another for each start of the daemon */
    _Atomic bool has_reservations; /* somebody reserves CPU time, or did */
    struct mutex calls;            /* one change by a call at a time */

    struct mutex lock; /* everything below */
    pthread_cond_t work_ready, committed;
    uint64_t commits;     /* by this process: what compute_wait() waits for */
    struct agent *agents; /* agent.c: whose turn it is */
    struct task *tasks[TASK_BUCKETS];
    struct task *ready_first, *ready_last;
    bool is_closing;
    pthread_t workers[MAX_WORKERS];
    unsigned worker_count;

    struct loop *loop;
    pthread_t loop_thread;
    bool has_loop_thread;
};

/* ---- object.c: records ---- */

struct object {
    enum kind kind;
    char project[ID_BYTES];
    char id[ID_BYTES];
    json_t *json; /* with the secrets; owned */
    uint64_t revision;
};

void object_done(struct object *object);
/* A new one with a new id, and json taken over. */
int object_new(enum kind kind, const char *project, json_t *json, struct object *ret_object,
               struct fault *fault) MUST_CHECK;
int object_load(struct compute *compute, enum kind kind, const char *project, const char *id,
                struct object *ret_object, struct fault *fault) MUST_CHECK;
/* By id or name, as a call names it; in all projects when project is NULL. */
int object_find(struct compute *compute, enum kind kind, const char *project, const char *id,
                struct object *ret_object, struct fault *fault) MUST_CHECK;
/* The project's id, from its id or name. */
int object_find_project(struct compute *compute, const char *name, char ret_id[ID_BYTES],
                        struct fault *fault) MUST_CHECK;
/* Calls fn for every object of a kind, in one project or (NULL) in all; fn's error ends it. */
int object_each(struct compute *compute, enum kind kind, const char *project,
                int (*fn)(void *opaque, struct object *object), void *opaque, struct fault *fault)
    MUST_CHECK;
/* What is answered: fields, and the revision. */
json_t *object_answer(const struct object *object);

const char *object_text(const struct object *object, const char *field); /* "" when absent */
int64_t object_number(const struct object *object, const char *field);
bool object_flag(const struct object *object, const char *field);
bool object_is(const struct object *object, const char *field, const char *text);
void object_set_text(struct object *object, const char *field, const char *text);
void object_set_number(struct object *object, const char *field, int64_t number);
void object_set_flag(struct object *object, const char *field, bool flag);
void object_set_time(struct object *object, const char *field);
void object_clear(struct object *object, const char *field);

/* Makes the key of a record. */
void object_key(char out[STORE_MAX_KEY_BYTES + 1], enum kind kind, const char *project,
                const char *id);
void object_make_id(const char *prefix, char out[ID_BYTES]);
/* From "/v1/KIND/PROJECT/ID"; false for another key. */
bool object_parse_key(const char *key, enum kind *ret_kind, char project[ID_BYTES],
                      char id[ID_BYTES]);

/* ---- change.c: one commit ---- */

#define CHANGE_MAX 48u

struct change {
    struct compute *compute;
    struct store_guard guards[CHANGE_MAX];
    struct store_write writes[CHANGE_MAX];
    unsigned guard_count, write_count;
    char *owned[4 * CHANGE_MAX];
    unsigned owned_count;
    bool has_failed;
};

void change_begin(struct change *change, struct compute *compute);
/* Writes the object, if it is still at its revision (0: if it is new). */
void change_put(struct change *change, const struct object *object);
void change_remove(struct change *change, const struct object *object);
/* A name's record: only if nobody has it; and away with it. */
void change_take_name(struct change *change, const struct object *object);
void change_drop_name(struct change *change, enum kind kind, const char *project, const char *name);
/* Any other record, without a guard or, when is_new, if there is none. */
void change_write(struct change *change, const char *key, json_t *value, bool is_new);
/* Away with a record, whatever it is. */
void change_erase(struct change *change, const char *key);
/* An event about the object. */
void change_event(struct change *change, const struct object *object, const char *level,
                  const char *action, const char *actor, const char *fmt, ...) PRINTF_LIKE(6, 7);
/* Ends the object's operation, if it has one, and takes it from the object. error NULL: done;
 * with FAULT_NONE: cancelled. */
void change_end_operation(struct change *change, struct object *object, const struct fault *error);
/* The same for an instance of which a part of what it is to have is done, if nothing is left. */
void change_end_part(struct change *change, struct object *instance, const struct fault *error);
/* -ESTALE (FAULT_STALE) when something else was faster. Always ends the change. */
int change_commit(struct change *change, struct fault *fault) MUST_CHECK;
void change_drop(struct change *change); /* without committing */

/* ---- compute.c ---- */

/* Has a worker look at the object, now or at that time (CLOCK_MONOTONIC; 0: now). */
void compute_queue(struct compute *compute, enum kind kind, const char *project, const char *id,
                   uint64_t due_ns);
void task_again(struct task *task, uint64_t due_ns); /* by the worker that has it */
/* Hears of the end of the process behind task->pid_fd. */
int task_watch_end(struct task *task) MUST_CHECK;
/* Forgets the monitor: it has ended. Reaps it when it was a child: its status, or -1. */
int task_forget_monitor(struct task *task);
/* Hears of what changes in the guest: guest_connect(), then guest_start_watch() on the loop. */
int task_watch_guest(struct task *task) MUST_CHECK;
/* Between steps: -EINTR when the process is about to end; tells tests of it. */
int task_step(struct task *task, enum step step, bool is_done) MUST_CHECK;

/* ---- images.c ---- */

int images_find(struct compute *compute, const char *name, struct image *ret_image,
                struct fault *fault) MUST_CHECK;
int images_get(struct compute *compute, const char *name, json_t **ret_object, struct fault *fault)
    MUST_CHECK;
int images_list(struct compute *compute, json_t **ret_items, struct fault *fault) MUST_CHECK;

/* ---- admission.c ---- */

/* Whether the instance may be there (is_new) and run; and the volume or snapshot, with
 * more_gib of it. */
int admit_instance(struct compute *compute, const struct object *instance, bool is_new,
                   struct fault *fault) MUST_CHECK;
/* Whether it has, or shall have, the host's CPUs and memory. */
bool admit_is_running(const struct object *instance);
/* What the host's CPUs have to give, in percent of one. */
int64_t admit_host_percent(const struct compute *compute);
int admit_disk(struct compute *compute, const struct object *object, int64_t more_gib,
               struct fault *fault) MUST_CHECK;
/* Whether its project may have one more: a NIC or an alarm, not kept yet. */
int admit_one(struct compute *compute, const struct object *object, struct fault *fault) MUST_CHECK;

/* ---- call.c: what calls have in common ---- */

/* The operation of a call on an object, put into the change and named in the object. */
json_t *call_operation(struct change *change, const struct compute_call *call,
                       struct object *object, const char *action);
json_t *call_answer(const struct object *object, json_t *operation);
/* Looks a token up: 1 and the answer when it was used for the same, 0 when it is new. */
int call_find_token(struct compute *compute, const struct compute_call *call, const char *project,
                    const char *action, const json_t *wanted, json_t **ret_answer,
                    struct fault *fault) MUST_CHECK;
void call_note_token(struct change *change, const struct compute_call *call, const char *project,
                     const char *action, const json_t *wanted, const struct object *object);
/* Of a caller who keeps to types: refuses limits in the request that are above the type's. */
int call_check_limits(struct compute *compute, const struct compute_call *call,
                      const struct object *instance, const json_t *named, struct fault *fault)
    MUST_CHECK;
/* Checks an instance's wishes against what there is, and fills in what the type says. */
int call_resolve_instance(struct compute *compute, struct object *instance, struct fault *fault)
    MUST_CHECK;
/* Gives and takes volumes so that the instance has those that it names; in the change. */
int call_attach_volumes(struct change *change, struct object *instance, bool keeps_others,
                        struct fault *fault) MUST_CHECK;
/* Takes those that it has and does not name. */
int call_detach_volumes(struct change *change, const struct object *instance, struct fault *fault)
    MUST_CHECK;
#define CALL_TRIES 20 /* against workers that change the same object meanwhile */

/* Says which field of the request names what is not there. Returns rc. */
int call_name_field(int rc, const char *field, struct fault *fault);

/* ---- snapshot.c: calls about snapshots; what they change of others is in the change ---- */

/* Claims what the new snapshot is to be taken of. */
int snapshot_prepare(struct change *change, struct object *snapshot, struct fault *fault)
    MUST_CHECK;
int snapshot_restore(struct change *change, struct object *snapshot, struct fault *fault)
    MUST_CHECK;
int snapshot_delete(struct change *change, struct object *snapshot, struct fault *fault) MUST_CHECK;
/* Fills in what the snapshot says that a new one is to begin as, if it names one. */
int snapshot_base_volume(struct change *change, struct object *volume, struct fault *fault)
    MUST_CHECK;
int snapshot_base_instance(struct change *change, struct object *instance, struct fault *fault)
    MUST_CHECK;
/* Whether an instance or volume is claimed. */
bool snapshot_is_under_way(const struct object *object);

/* ---- directory.c: what lasts of an instance ---- */

int directory_path(const struct compute *compute, const char *id, char out[PATH_MAX],
                   struct err *err) MUST_CHECK;
/* The file that is the instance's own disk, in its directory. */
const char *directory_head(const struct object *instance);
/* Kernel, keys and what describes them, from one directory into another. */
int directory_link(const char *from, const char *to, struct err *err) MUST_CHECK;
/* machines/ID with kernel, keys and disk: whole or not at all. */
int directory_make(struct task *task, const struct object *instance, struct err *err) MUST_CHECK;

/* ---- access.c ---- */

/* What a monitor that has ended said, into the instance's directory, where there is one. */
void log_keep(struct compute *compute, const char *id);

/* ---- machine.c: what does not last ---- */

enum machine_presence { MACHINE_ABSENT, MACHINE_PRESENT, MACHINE_UNSURE };

#define MACHINE_SERIAL_LOG "serial.log" /* in the instance's directory, by its monitors */

int machine_path(const struct compute *compute, const char *id, char out[PATH_MAX], struct err *err)
    MUST_CHECK;
/*
 * Whether the instance's monitor lives; one that does and was not known is
 * adopted. *ret_lock_fd is the right to start one while it is MACHINE_ABSENT
 * (-1 when there is no directory), to be closed.
 */
int machine_observe(struct task *task, enum machine_presence *ret_presence, int *ret_lock_fd,
                    struct err *err) MUST_CHECK;
/* How the last one ended. */
struct machine_end {
    bool was_launched; /* in this generation */
    bool is_orderly;   /* switched off, by its guest or by request */
    char words[200];   /* for people */
};
void machine_read_end(struct task *task, const struct object *instance, int status,
                      struct machine_end *ret_end);
/* Starts it. lock_fd as machine_observe() gave it. On success the task has the monitor. */
int machine_launch(struct task *task, struct object *instance, struct err *err) MUST_CHECK;
int machine_command(struct task *task, const char *command, json_t **ret_answer, struct err *err)
    MUST_CHECK;
/* The same for one with arguments; request is taken over. */
int machine_ask(struct task *task, json_t *request, json_t **ret_answer, struct err *err)
    MUST_CHECK;
/* A file of its runtime directory: NULL when there is none; whole or not at all, the object taken over. */
json_t *machine_read_json(const char *dir, const char *name);
int machine_write_json(const char *dir, const char *name, json_t *object, struct err *err)
    MUST_CHECK;
/* Somebody may log in: the image's user, or who has the instance's key. */
bool machine_has_ssh(const struct object *instance, const struct image *image);
/* A volume as --disk takes it, the caller's to free; its id there has so many bytes of its own. */
#define MACHINE_DISK_NAME_BYTES 31
int machine_volume_text(struct compute *compute, const struct limits *limits, const char *id,
                        char **ret_text, struct err *err) MUST_CHECK;
/* State and ports, from the monitor. */
int machine_learn(struct task *task, struct object *instance, struct err *err) MUST_CHECK;
/* -EBUSY while the last processes of its group end. */
int machine_clear(struct task *task, struct err *err) MUST_CHECK;

/* ---- guest.c: what the guest shows of itself ---- */

/* Asks the monitor to tell of changes, from here on by task->guest_fd. */
int guest_connect(struct task *task) MUST_CHECK;
int guest_start_watch(struct task *task) MUST_CHECK; /* the loop's thread, as the next */
void guest_unwatch(struct task *task);
/* Notes what is new of a running instance, if it is time. */
int guest_look(struct task *task, struct object *instance) MUST_CHECK;
/* Whether a program of the guest has the agent's port open. Any thread; waits for the monitor. */
bool guest_has_agent(const struct compute *compute, const char *id);

/* ---- snapshot_work.c ---- */

/* What the instance's worker does first: snapshots of its disks taken or put back. */
bool snapshot_has_work(const struct object *instance);
int snapshot_work(struct task *task, struct object *instance, bool is_running) MUST_CHECK;
/* The same for a volume that no instance has. */
int snapshot_work_volume(struct task *task, struct object *volume) MUST_CHECK;
/* Fewer layers under the disk of an instance that is off. */
int snapshot_tidy(struct task *task, struct object *instance) MUST_CHECK;
int snapshot_path(const struct compute *compute, const char *id, char out[PATH_MAX],
                  struct err *err) MUST_CHECK;

/* ---- nic.c: network cards; what they change of others is in the change ---- */

/* Gives a new one an address that nobody has: the one that is wanted, or one by chance. */
int nic_prepare(struct change *change, struct object *nic, struct fault *fault) MUST_CHECK;
/* Away with it, its name and its address. */
void nic_remove(struct change *change, const struct object *nic);
/* Gives the instance the NIC that it names, or one of its own where it names none, and takes the one
 * that it had before (NULL: it is new). given: what the call says, its "network" too. */
int nic_attach(struct change *change, struct object *instance, const json_t *given,
               const json_t *before, struct fault *fault) MUST_CHECK;
/* Takes the NIC from the instance, if it has it; one of its own goes. id: "" for none. */
int nic_release(struct change *change, const struct object *instance, const char *id,
                struct fault *fault) MUST_CHECK;
/* The instance's: of one from before there were any, no address in the user-mode network. */
struct nic_card {
    char mac[MAC_TEXT_BYTES];
    char network[NETWORK_MAX_BYTES + 1];
};
int nic_card(struct compute *compute, const struct object *instance, struct nic_card *ret_card,
             struct err *err) MUST_CHECK;

/* ---- alarm.c ---- */

/* Checks an alarm's wishes. Of a new one nothing is known; one that is changed stays raised until
 * it is looked at, so that its end is told, and its beginning not twice. */
int alarm_prepare(struct compute *compute, struct object *alarm, struct fault *fault) MUST_CHECK;
/* Whether it may be an address to tell; "" may. */
int alarm_check_webhook(const char *url, struct fault *fault) MUST_CHECK;

/* ---- hook.c ---- */

/* Checks a hook's wishes; a new one is told what happens from now on. */
int hook_prepare(struct compute *compute, struct object *hook, bool is_new, struct fault *fault)
    MUST_CHECK;

/* From "forwards" of a monitor's answer, "ports" and "ssh_port" of the instance. */
void machine_set_ports(struct object *instance, const json_t *forwards, bool has_ssh);

/* ---- forwards.c ---- */

/* After a change of "forwards", which were `before` (may be NULL): 1 when a running machine is to
 * have them, 0 when its next start is soon enough. */
int forwards_change(struct object *instance, json_t *before);
/* Whether a running machine is to have others than it has. */
bool forwards_wait(const struct object *instance);
/* The machine that they wait for starts, or has ended: they are its own. */
void forwards_take(struct object *instance);
/* Has the monitor open them. -EIO: it refused, and all is as it was. */
int forwards_apply(struct task *task, struct object *instance, struct err *err) MUST_CHECK;

/* ---- resize.c: other sizes and volumes for a machine that runs ---- */

/* Whether they change what the machine has. */
bool resize_is_in(const json_t *changes);
/* Of a call: the instance, changed already from before; whether there is work for its worker. */
int resize_begin(struct change *change, struct object *instance, const json_t *before,
                 bool *ret_has_work, struct fault *fault) MUST_CHECK;
/* Of a worker, while the instance is "adjusting": one look. */
int resize_machine(struct task *task, struct object *instance) MUST_CHECK;
/* ... when its machine has ended: nothing is left to do. */
int resize_forget(struct task *task, struct object *instance) MUST_CHECK;
/* What the machine has and can have, from its monitor's status. */
void resize_learn(struct object *instance, const json_t *status);

/* ---- reconcile.c, volume.c, snapshot_delete.c ---- */

/* What one look found; settled: nothing is left to do. */
enum outcome { LOOK_AGAIN = 1, SETTLED = 0 };

/* Commits within a step. LOOK_AGAIN, also when something else was faster. */
int commit_step(struct task *task, struct change *change, enum step step) MUST_CHECK;
/* Tells of what will be tried again. Returns rc. */
int log_failure(const struct task *task, int rc, const struct err *err);

int reconcile_instance(struct task *task) MUST_CHECK;
int reconcile_volume(struct task *task) MUST_CHECK;
int reconcile_snapshot(struct task *task) MUST_CHECK;
/* Removes what belongs to instances, volumes and snapshots that no record knows of. */
void reconcile_sweep(struct compute *compute);
/* The pool of this host's volumes. */
int volume_open_pool(struct compute *compute, bool for_change, struct pool **ret_pool,
                     struct err *err) MUST_CHECK;
/* Removes what is in the pool of a volume without a record, when no snapshot needs it. */
int volume_drop(struct task *task, const char *id, struct err *err) MUST_CHECK;
int volume_path(struct compute *compute, const char *id, char out[PATH_MAX], struct err *err)
    MUST_CHECK;
const char *step_name(enum step step);

#endif
