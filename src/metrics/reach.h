/*
 * Which addresses webhooks may lead to. Their owners are tenants: what they
 * name is called by this host, from within its network.
 *
 * Threads: any.
 */
#ifndef CORBEL_METRICS_REACH_H
#define CORBEL_METRICS_REACH_H

#include "metrics/metrics.h"

#include <stdbool.h>
#include <sys/socket.h>

/* How near an address is: REACH_PUBLIC is the furthest. */
enum metrics_reach reach_of(const struct sockaddr *address);
/* NULL when it may be called, or why not. */
const char *reach_refusal(enum metrics_reach allowed, const struct sockaddr *address);

#endif
