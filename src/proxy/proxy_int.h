/*
 * What the files of proxy/ share. struct proxy_vm and struct proxy_vcpu are the
 * monitor's alone; `shared` and `page` are the executor's too, and hostile.
 */
#ifndef CORBEL_PROXY_PROXY_INT_H
#define CORBEL_PROXY_PROXY_INT_H

#include "base/thread.h"
#include "executor/protocol.h"
#include "proxy/proxy.h"

#include <sched.h>
#include <stdbool.h>

/* The process and who watches it. */
struct proxy_process {
    pid_t pid; /* 0: none; reaped by process_stop() only, so that signals go nowhere else */
    int pid_fd;
    int life_fd; /* its end of file is our end */
    int quit_fd;
    pthread_t watcher;
    bool has_watcher;
    int look_every_ms;
    _Atomic bool dead;      /* nothing it holds will change any more */
    _Atomic bool is_wrong;  /* we ended it for what it answered */
    _Atomic bool is_silent; /* ... or for not answering */
};

/* One bell pair as this side uses it. */
struct proxy_call {
    struct executor_bell *asked;
    struct executor_bell *answered;
    uint32_t count;          /* of calls */
    _Atomic uint32_t asks;   /* the call that waits for its answer, 0: none */
    _Atomic uint32_t is_due; /* the call whose answer is due soon: no run, or a kicked one */
};

struct proxy_vcpu {
    struct accel_vcpu base; /* first */
    struct executor_vcpu *page;
    const struct vcpu_env *env;
    struct proxy_call call;
    pid_t thread;              /* as told before it ran guest code */
    enum vmexit_reason answer; /* what the caller's struct vmexit answers */
    bool can_take;             /* so the last exit says */
    cpu_set_t allowed;         /* host CPUs of this thread when it began */
    int cpu;                   /* host CPU that this thread and the executor's keep to; -1: none */
    uint64_t moved_tsc;        /* when that was decided */
    uint64_t exit_tsc;         /* of its last exit */
};

struct proxy_vm {
    const struct accel_ops *ops; /* accel_vm is opaque: this is ours */
    struct gmem *gmem;
    struct executor_shared *shared;
    size_t shared_bytes;
    int shared_fd;
    unsigned vcpu_count;
    struct lapic_set *apics; /* a view of the executor's; NULL: the machine has them */
    void (*died)(void *opaque, const struct err *why); /* NULL: nobody asks */
    void *opaque;
    struct proxy_process process;
    struct mutex service_lock; /* LOCK_RANK_ENGINE: one service at a time */
    struct proxy_call service;
    uint32_t log_seen; /* under service_lock */
    unsigned stat_count;
    char stat_names[EXECUTOR_MAX_STATS][EXECUTOR_NAME_BYTES];
    _Atomic uint64_t invalidations;
    _Atomic(struct proxy_vcpu *) vcpus[EXECUTOR_MAX_VCPUS];
};

/* process.c. Starts the executor and waits until it is attached. */
int process_start(struct proxy_vm *vm, const struct proxy_image *image, struct err *err) MUST_CHECK;
/* Ends and reaps it. Accepts one that never began. */
void process_stop(struct proxy_vm *vm);
/* It broke the contract: ends it. */
void process_condemn(struct proxy_vm *vm);
/* Why it is dead, as text; returns -EOWNERDEAD. */
int process_explain(const struct proxy_vm *vm, struct err *err);
/* Asks and waits for the answer: 0 or -EOWNERDEAD. */
int process_call(struct proxy_vm *vm, struct proxy_call *call, bool is_due) MUST_CHECK;
/* The answer of the call under way, if there is one, is due soon. Any thread. */
void process_hurry(struct proxy_call *call);

/* message.c. The executor's local APICs, to send messages to. */
int message_create(struct proxy_vm *vm) MUST_CHECK;
/* Makes the executor's thread look around. Any thread, async-signal-safe. */
void message_wake(const struct proxy_vm *vm, const struct proxy_vcpu *v);

/* fetch.c. Copies what the executor wrote, once, and makes it sound. */
int fetch_exit(const struct executor_vcpu *page, struct vmexit *ret_exit, bool *ret_can_take)
    MUST_CHECK; /* -EPROTO: it is nothing that an engine says */
/* Registers of a local APIC are whatever they are: who loads them makes them sound. */
void fetch_apic(const struct executor_vcpu *page, struct lapic_state *ret_state);
void fetch_state(const struct executor_vcpu *page, struct vcpu_state *ret_state);
/* A result code: 0 or a negative errno, whatever it was. */
int fetch_result(const struct executor_vcpu *page);
uint64_t fetch_u64(const uint64_t *word);
uint32_t fetch_u32(const uint32_t *word);
/* Text without its ends: escaped, always with a NUL. */
void fetch_text(const char *from, size_t from_bytes, char *out, size_t out_bytes);

#endif
