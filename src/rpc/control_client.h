/*
 * One request to a running monitor (docs/control.md). Any thread; waits for the
 * answer.
 */
#ifndef CORBEL_RPC_CONTROL_CLIENT_H
#define CORBEL_RPC_CONTROL_CLIENT_H

#include "base/error.h"

#include <jansson.h>

/*
 * Sends one line to the socket control.sock in dir and waits for its answer,
 * at most for that long (0: as long as it takes); the caller releases it. NULL
 * when the monitor ended before it answered. -EIO when it refused, with its
 * reason in err, -ETIMEDOUT, or what connecting and writing gave. name is for
 * sentences.
 */
int control_ask(const char *dir, const char *name, const char *line, unsigned timeout_ms,
                json_t **ret_answer, struct err *err) MUST_CHECK;

#endif
