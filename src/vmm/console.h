/*
 * The process's end of the serial console: terminal, file or socket.
 *
 * A terminal is put into raw mode by vmm_console_start() and restored on every
 * way out of the process but SIGKILL. Ctrl-A begins a command there: x ends the
 * process, h shows help, a sends Ctrl-A itself. Input goes through a pipe, so
 * that the terminal's own descriptor keeps its blocking mode. Main thread.
 */
#ifndef CORBEL_VMM_CONSOLE_H
#define CORBEL_VMM_CONSOLE_H

#include "base/compiler.h"
#include "base/error.h"
#include "base/loop.h"
#include "machine/machine.h"

struct vmm_config;
struct vmm_console;

typedef void (*vmm_quit_fn)(void *opaque);

/* Opens what the configuration says. On failure a negative errno, a sentence, and no files. */
int vmm_console_create(const struct vmm_config *config, struct loop *loop, vmm_quit_fn quit,
                       void *opaque, struct err *err, struct vmm_console **ret_console) MUST_CHECK;

/* Restores the terminal, removes the socket, and a file that no machine ever wrote. Accepts NULL. */
void vmm_console_destroy(struct vmm_console *console);

/* What the machine gets; its descriptors stay the console's until vmm_console_start(), or for
 * ever with keep_fds. */
const struct machine_chardev *vmm_console_chardev(const struct vmm_console *console);

/* The machine was created and owns the descriptors now: raw mode, and input flows. 0, or -errno. */
int vmm_console_start(struct vmm_console *console) MUST_CHECK;

#endif
