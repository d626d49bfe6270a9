/*
 * Where network cards lead: "user", or "bridge:NAME" with a bridge of the host
 * that the configuration names. Any thread.
 */
#ifndef CORBEL_COMPUTE_NETWORK_H
#define CORBEL_COMPUTE_NETWORK_H

#include "compute/fault.h"
#include "hostnet/hostnet.h"

#include <jansson.h>

struct compute;
struct object;

/* "bridge:" and a device's name */
#define NETWORK_MAX_BYTES (7 + HOSTNET_NAME_BYTES - 1)

/* "" is from before there were others. */
bool network_is_user(const char *network);
/* Whether a card may lead there, and the host is ready for it: a fault of "network" otherwise. */
int network_check(const struct compute *compute, const char *network, struct fault *fault)
    MUST_CHECK;
/* Whether the instance may have its forwards where its card leads. */
int network_check_forwards(const struct object *instance, struct fault *fault) MUST_CHECK;
/* The tap for the machine with that id, the caller's; none (fd -1) for user mode. -EBUSY while one
 * of that name is there yet. */
int network_open(const struct compute *compute, const char *id, const char *network,
                 struct hostnet_tap *ret_tap, struct err *err) MUST_CHECK;
/* [{"name", "ready", "reason"}]: the bridges that instances may use; the reason where it is not. */
json_t *network_bridges(const struct compute *compute);

#endif
