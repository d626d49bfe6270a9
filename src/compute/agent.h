/*
 * Between the files of compute: the agent in a guest (rpc/guest_agent.h), to
 * one caller at a time. Any thread; it waits.
 */
#ifndef CORBEL_COMPUTE_AGENT_H
#define CORBEL_COMPUTE_AGENT_H

#include "compute/compute_int.h"
#include "rpc/guest_agent.h"

#define AGENT_TIMEOUT_MS 5000u
#define AGENT_SHUTDOWN_TIMEOUT_MS 2000u
#define AGENT_FREEZE_TIMEOUT_MS 20000u

/* A caller whose turn it is. */
struct agent {
    struct compute *compute;
    struct guest_agent *client;
    char id[ID_BYTES];
    struct agent *next; /* under the lock of compute */
};

/* Waits for its turn and for the agent's greeting, each that long. Errors as guest_agent_open(),
 * -EBUSY when the turn did not come. */
int agent_open(struct compute *compute, const char *id, unsigned timeout_ms,
               struct agent *ret_agent, struct err *err) MUST_CHECK;
void agent_close(struct agent *agent);

/* What a call asks: the caller's turn at the agent of an instance, found by name or id; and one
 * command of it. What went wrong is a fault of the call; ret_value NULL for an answer that tells nothing. */
int agent_begin(struct compute *compute, const struct compute_call *call, const char *id,
                struct agent *ret_agent, struct fault *fault) MUST_CHECK;
int agent_ask(struct agent *agent, const char *command, json_t *arguments, json_t **ret_value,
              struct fault *fault) MUST_CHECK;
int agent_refuse_nonsense(const char *command, struct fault *fault) MUST_CHECK;

/* Its version, fit to be shown. */
int agent_version(struct agent *agent, char *out, size_t size, struct err *err) MUST_CHECK;
/* Asks the guest to switch itself off; 0 when it was asked. */
int agent_shutdown(struct compute *compute, const char *id, struct err *err) MUST_CHECK;

#endif
