/*
 * The control socket: commands for a running machine, as JSON lines.
 *
 * A client writes one JSON object per line, {"command": "pause"}, and gets one
 * line for each: {"ok": true, ...} or {"ok": false, "error": "..."}. A key "id"
 * comes back as it was sent. The commands, and the states of the machine in
 * which each is legal, stand in one table (control.c; docs/control.md).
 *
 * Peers are not trusted with the process: a line longer than
 * CONTROL_MAX_LINE_BYTES, or a peer that does not read its answers, ends that
 * connection and nothing else. All functions on the loop's thread.
 */
#ifndef CORBEL_VMM_CONTROL_H
#define CORBEL_VMM_CONTROL_H

#include "base/compiler.h"
#include "base/loop.h"
#include "machine/machine.h"

#define CONTROL_MAX_LINE_BYTES 4096
#define CONTROL_MAX_CLIENTS 8

struct control;

struct control_env {
    struct loop *loop;
    struct machine *machine;
    void (*quit)(void *opaque); /* asked to end the process */
    void *opaque;
};

/* Serves the listening socket, which stays the caller's. 0, -ENOMEM, or what epoll says. */
int control_create(const struct control_env *env, int listen_fd, struct control **ret_control)
    MUST_CHECK;
void control_destroy(struct control *control); /* accepts NULL */

/* Tells the clients that asked for it (watch) what changed since the last call: the machine's
 * state, the balloon, its disks. */
void control_announce(struct control *control);

#endif
