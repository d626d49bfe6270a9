/*
 * Errors for people.
 *
 * Fallible functions return 0 or a negative errno; where a person will read
 * the result, the text travels beside the code in a struct err that the
 * caller owns. The text is one sentence that names the thing and, where there
 * is one, the mend. No heap, any thread.
 */
#ifndef CORBEL_BASE_ERROR_H
#define CORBEL_BASE_ERROR_H

#include "base/compiler.h"

struct err {
    int code;       /* negative errno, 0 when unset */
    char text[400]; /* NUL-terminated, no trailing newline */
};

/*
 * Formats the text, stores the code (a negative errno) and returns it, so that
 * `return err_set(err, -ENOENT, "...")` reads well. err may be NULL.
 */
int err_set(struct err *err, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* As err_set, and appends ": " and strerror(-code). */
int err_set_errno(struct err *err, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

#ifdef __clang_analyzer__
#define err_set(...) KNOWN_NEGATIVE(err_set(__VA_ARGS__))
#define err_set_errno(...) KNOWN_NEGATIVE(err_set_errno(__VA_ARGS__))
#endif

#endif
