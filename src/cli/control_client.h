/* One request to a running instance's monitor (docs/control.md). */
#ifndef CORBEL_CLI_CONTROL_CLIENT_H
#define CORBEL_CLI_CONTROL_CLIENT_H

#include "base/error.h"
#include "cli/instance.h"

#include <jansson.h>

/*
 * Sends one line and waits for its answer, which the caller releases. NULL
 * when the monitor ended before it answered. -EIO when it refused, with its
 * reason in err, or what connecting and writing gave.
 */
int control_ask(const struct instance *instance, const char *line, json_t **ret_answer,
                struct err *err) MUST_CHECK;

#endif
