#include "compute/fault.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

static const struct {
    int code; /* negative errno */
    const char *name;
} codes[] = {
    [FAULT_NONE] = {0, "none"},
    [FAULT_INVALID] = {-EINVAL, "invalid"},
    [FAULT_UNKNOWN] = {-EINVAL, "unknown-field"},
    [FAULT_NOT_FOUND] = {-ENOENT, "not-found"},
    [FAULT_EXISTS] = {-EEXIST, "exists"},
    [FAULT_CONFLICT] = {-EBUSY, "conflict"},
    [FAULT_STALE] = {-ESTALE, "stale"},
    [FAULT_TOKEN] = {-EALREADY, "token-reused"},
    [FAULT_QUOTA] = {-EDQUOT, "quota"},
    [FAULT_CAPACITY] = {-ENOSPC, "capacity"},
    [FAULT_UNAVAILABLE] = {-EAGAIN, "unavailable"},
    [FAULT_INTERNAL] = {-EIO, "internal"},
};

const char *fault_code_name(enum fault_code code)
{
    return (unsigned)code < ARRAY_LEN(codes) ? codes[code].name : "internal";
}

#undef fault_set /* what an analyzer is told of it is not what it is */
int fault_set(struct fault *fault, enum fault_code code, const char *field, const char *fmt, ...)
{
    va_list ap;

    if (fault == NULL) {
        return codes[code].code;
    }
    fault->code = code;
    (void)snprintf(fault->field, sizeof(fault->field), "%s", field != NULL ? field : "");
    va_start(ap, fmt);
    (void)vsnprintf(fault->text, sizeof(fault->text), fmt, ap);
    va_end(ap);
    return codes[code].code;
}

int fault_set_err(struct fault *fault, int rc, const struct err *err)
{
    enum fault_code code = FAULT_INTERNAL;

    for (unsigned i = FAULT_INVALID; i < ARRAY_LEN(codes); i++) {
        if (i != FAULT_UNKNOWN && codes[i].code == rc) {
            code = (enum fault_code)i;
            break;
        }
    }
    (void)fault_set(fault, code, NULL, "%s", err->text);
    return rc;
}
