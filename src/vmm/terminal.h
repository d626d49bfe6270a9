/*
 * Raw mode for the controlling terminal, undone whatever ends the process.
 *
 * One terminal per process: the saved settings are the one piece of state that
 * a signal handler must be able to reach. Main thread.
 */
#ifndef CORBEL_VMM_TERMINAL_H
#define CORBEL_VMM_TERMINAL_H

#include "base/compiler.h"

/* Saves the settings of terminal fd and makes it raw. 0, or a negative errno. */
int vmm_terminal_raw(int fd) MUST_CHECK;

/* Makes it raw again, after the process was stopped and continued. */
void vmm_terminal_again(void);

/* Restores what vmm_terminal_raw() saved; no effect without it. Async-signal-safe. */
void vmm_terminal_restore(void);

#endif
