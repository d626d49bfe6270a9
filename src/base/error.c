#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* What an analyzer is told of them is not what they are. */
#undef err_set
#undef err_set_errno

int err_set(struct err *err, int code, const char *fmt, ...)
{
    va_list args;

    if (err == NULL) {
        return code;
    }
    err->code = code;
    va_start(args, fmt);
    (void)vsnprintf(err->text, sizeof(err->text), fmt, args); /* cut where it does not fit */
    va_end(args);
    return code;
}

int err_set_errno(struct err *err, int code, const char *fmt, ...)
{
    va_list args;
    size_t used;

    if (err == NULL) {
        return code;
    }
    err->code = code;
    va_start(args, fmt);
    (void)vsnprintf(err->text, sizeof(err->text), fmt, args);
    va_end(args);
    used = strlen(err->text);
    /* strerrordesc_np, unlike strerror, needs no buffer and is safe in threads. */
    const char *what = strerrordesc_np(-code);
    (void)snprintf(err->text + used, sizeof(err->text) - used, ": %s",
                   what != NULL ? what : "unknown error");
    return code;
}
