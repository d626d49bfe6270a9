/*
 * The software engine as the monitor sees it: an accelerator whose guest code
 * runs in a process of its own, the executor (executor/protocol.h), which is
 * taken to be the guest's own.
 *
 * What that process answers is fetched once and checked. When it dies or
 * answers what makes no sense, run() returns VMEXIT_ERROR with the code
 * -EOWNERDEAD, all else fails with it, and nothing waits for it any more. An
 * executor that does not answer within some seconds what it must is killed.
 */
#ifndef CORBEL_PROXY_PROXY_H
#define CORBEL_PROXY_PROXY_H

#include "cpu/vcpu.h"

#include <sys/types.h>

/* Not for reference_only and check: those are engine_accel_ops'. */
extern const struct accel_ops proxy_accel_ops;

/* A program file in memory that is started as the executor; for tests. Outlives the call. */
struct proxy_image {
    const void *data;
    size_t bytes;
    int patience_ms; /* an answer that is due is waited for so long, at most twice; 0: 30 s */
};

/* As proxy_accel_ops.vm_create, with another executor. NULL: our own. */
int proxy_vm_create(const struct accel_vm_config *config, const struct proxy_image *image,
                    struct err *err, struct accel_vm **ret_vm) MUST_CHECK;

/* The process id of the executor; it is ours to wait for until vm_destroy(). */
pid_t proxy_vm_pid(const struct accel_vm *vm);

#endif
