/*
 * A machine's serial console: a stream socket that the monitor listens on.
 */
#ifndef CORBEL_CLI_CONSOLE_H
#define CORBEL_CLI_CONSOLE_H

#include "base/error.h"
#include "cli/instance.h"

/* Why console_attach() returned. */
enum console_end {
    CONSOLE_END_CLOSED,  /* the machine ended */
    CONSOLE_END_DETACHED /* the user typed the escape key, Ctrl-] */
};

/* Connects: a descriptor, or -ECONNREFUSED or -ENOENT when nobody listens. */
int console_connect(const struct instance *instance, struct err *err) MUST_CHECK;

/*
 * Joins the terminal and the console until one ends; the terminal is raw
 * meanwhile and as before afterwards. Without a terminal, output is copied to
 * standard output and standard input is passed on until its end.
 */
int console_attach(int fd, enum console_end *ret_end, struct err *err) MUST_CHECK;

/*
 * Copies output until `text` has appeared: 0, -EPIPE when the machine ended
 * first, -ETIMEDOUT after seconds (0: no limit).
 */
int console_wait_text(int fd, const char *text, unsigned seconds, struct err *err) MUST_CHECK;

#endif
