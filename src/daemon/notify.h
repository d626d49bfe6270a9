/*
 * What a service manager gives and is told, without its library: listening
 * sockets (LISTEN_FDS) and messages (NOTIFY_SOCKET), as sd_listen_fds(3) and
 * sd_notify(3) describe them. Without a service manager nothing happens.
 */
#ifndef CORBEL_DAEMON_NOTIFY_H
#define CORBEL_DAEMON_NOTIFY_H

#include "base/compiler.h"

/* Sockets that the manager listens on, close-on-exec from here on: at most max; how many. */
unsigned notify_take_sockets(int *ret_fds, unsigned max);

/* Tells the manager: "READY=1", "STOPPING=1". */
void notify_send(const char *message);

#endif
