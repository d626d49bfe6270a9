/*
 * Why a call of the control plane was refused, for programs and for people:
 * a code, the field of the request that it is about, and one sentence.
 *
 * Functions return 0 or a negative errno and fill in a struct fault that the
 * caller owns; the errno and the code say the same (fault_code_name). No heap,
 * any thread.
 */
#ifndef CORBEL_COMPUTE_FAULT_H
#define CORBEL_COMPUTE_FAULT_H

#include "base/compiler.h"
#include "base/error.h"

enum fault_code {
    FAULT_NONE,
    FAULT_INVALID,     /* -EINVAL: a value does not fit; field says which */
    FAULT_UNKNOWN,     /* -EINVAL: there is no such field; field names it */
    FAULT_NOT_FOUND,   /* -ENOENT: no such object in this project */
    FAULT_EXISTS,      /* -EEXIST: the name is taken */
    FAULT_CONFLICT,    /* -EBUSY: not in this state, or somebody else uses it */
    FAULT_STALE,       /* -ESTALE: not at that revision any more, or a watch that began too early */
    FAULT_TOKEN,       /* -EALREADY: the idempotency token was used for another request */
    FAULT_QUOTA,       /* -EDQUOT: the project may not have more */
    FAULT_CAPACITY,    /* -ENOSPC: the host has no more */
    FAULT_UNAVAILABLE, /* -EAGAIN: try again: the store or the monitor does not answer */
    FAULT_INTERNAL     /* all else: a defect, or a host that fails */
};

struct fault {
    enum fault_code code;
    char field[96]; /* "cpus", "tags.env"; empty when it is about no field */
    char text[400]; /* one sentence */
};

/* Fills in and returns the code's negative errno. fault may be NULL, field too. */
int fault_set(struct fault *fault, enum fault_code code, const char *field, const char *fmt, ...)
    PRINTF_LIKE(4, 5);
#ifdef __clang_analyzer__
#define fault_set(...) KNOWN_NEGATIVE(fault_set(__VA_ARGS__))
#endif

/* From a lower floor's error: the code that fits the errno, the sentence as it is. Returns rc. */
int fault_set_err(struct fault *fault, int rc, const struct err *err);

/* "invalid", "unknown-field", "not-found", ... : stable, for programs. */
const char *fault_code_name(enum fault_code code);

#endif
