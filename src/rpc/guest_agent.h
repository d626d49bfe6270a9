/*
 * A client of the agent in a guest (the QEMU guest agent's protocol: JSON, a
 * line each way), by the socket agent.sock of its monitor.
 *
 * The guest is hostile: its answers are bounded in length, depth and number of
 * values before they are parsed, whatever is asked has a time by which the
 * answer must be there, and what it says is data, never trusted. There is one
 * agent in a guest, and it takes one caller at a time: a second one waits for
 * the first, and for its time to be up.
 *
 * One thread at a time for one client; it waits.
 */
#ifndef CORBEL_RPC_GUEST_AGENT_H
#define CORBEL_RPC_GUEST_AGENT_H

#include "base/error.h"

#include <jansson.h>

#define GUEST_AGENT_MAX_ANSWER (6u << 20)

struct guest_agent;

/*
 * Connects to the socket in dir and waits until the agent answers to this
 * caller: what it had still to say to others is passed over. -ETIMEDOUT when
 * it does not answer, or what connecting gave.
 */
int guest_agent_open(const char *dir, unsigned timeout_ms, struct guest_agent **ret_agent,
                     struct err *err) MUST_CHECK;
void guest_agent_close(struct guest_agent *agent); /* accepts NULL */

/*
 * Asks, and waits for the answer. arguments is taken over; NULL: none.
 * ret_value: what was returned, the caller's; NULL: of no interest. -EREMOTEIO
 * when the agent refused, with its reason in err; -ETIMEDOUT, -EMSGSIZE (more
 * than the limits), -EPROTO (no JSON of this protocol), -EPIPE: the connection
 * is of no use any more.
 */
int guest_agent_call(struct guest_agent *agent, const char *command, json_t *arguments,
                     unsigned timeout_ms, json_t **ret_value, struct err *err) MUST_CHECK;

/* Asks for what has no answer when it succeeds: 0 when it was sent. */
int guest_agent_tell(struct guest_agent *agent, const char *command, json_t *arguments,
                     unsigned timeout_ms, struct err *err) MUST_CHECK;

#endif
