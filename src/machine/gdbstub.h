/*
 * A debugger for a machine: GDB's remote serial protocol (GDB manual, appendix
 * E) on a loopback TCP port or a unix socket.
 *
 * Threads of the debugger are vCPUs: thread N+1 is CPU N. Registers, memory by
 * guest-virtual address, instruction breakpoints, single steps, interrupt,
 * detach and kill. One peer at a time; it has all power over the guest and is
 * bounded in what it costs the host.
 *
 * The stub has a thread of its own, "gdb/0". The machine owns the stub; create
 * and destroy are for the thread that creates and destroys the machine.
 */
#ifndef CORBEL_MACHINE_GDBSTUB_H
#define CORBEL_MACHINE_GDBSTUB_H

#include "base/compiler.h"
#include "base/error.h"

struct gdbstub;
struct machine;

/*
 * Listens on "HOST:PORT" (numeric IPv4) or "unix:PATH". -EINVAL for another
 * text, -EADDRINUSE and the like with a sentence in err.
 */
int gdbstub_create(struct machine *machine, const char *listen_at, struct err *err,
                   struct gdbstub **ret_stub) MUST_CHECK;

/* Before the machine's vCPUs are destroyed; accepts NULL. */
void gdbstub_destroy(struct gdbstub *stub);

/* The machine was paused, went on or ended. Any thread, under any lock below LOCK_RANK_LEAF. */
void gdbstub_state_changed(struct gdbstub *stub);

#endif
