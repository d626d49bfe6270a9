/* Connections to the unix sockets in an instance's runtime directory. */
#ifndef CORBEL_RPC_UNIX_SOCKET_H
#define CORBEL_RPC_UNIX_SOCKET_H

#include "base/error.h"

/* Connects to DIR/NAME: a close-on-exec descriptor, or a negative errno. */
int unix_socket_connect(const char *dir, const char *name, struct err *err) MUST_CHECK;

#endif
