/*
 * An instance's serial console: a stream of bytes through the daemon.
 */
#ifndef CORBEL_CLI_CONSOLE_H
#define CORBEL_CLI_CONSOLE_H

#include "cli/api.h"

/* Why console_attach() returned. */
enum console_end {
    CONSOLE_END_CLOSED,  /* the machine ended, or the daemon */
    CONSOLE_END_DETACHED /* the user typed the escape key, Ctrl-] */
};

/* Connects; errors as of api_get(). */
int console_open(const struct cli *cli, struct client *client, const json_t *instance,
                 struct client_stream **ret_stream, struct err *err) MUST_CHECK;

/*
 * Joins the terminal and the console until one ends; the terminal is raw
 * meanwhile and as before afterwards. Without a terminal, output is copied to
 * standard output and standard input is passed on until its end.
 */
int console_attach(struct client_stream *stream, enum console_end *ret_end, struct err *err)
    MUST_CHECK;

/*
 * Copies output until `text` has appeared: 0, -EPIPE when the console ended
 * first, -ETIMEDOUT after seconds (0: no limit).
 */
int console_wait_text(struct client_stream *stream, const char *text, unsigned seconds,
                      struct err *err) MUST_CHECK;

#endif
