/*
 * Starting the monitor of an instance.
 */
#ifndef CORBEL_CLI_LAUNCH_H
#define CORBEL_CLI_LAUNCH_H

#include "base/error.h"
#include "cli/cli.h"
#include "cli/instance.h"

/*
 * Starts corbel-vmm in a session of its own, its messages going to
 * runtime/vmm.log, and connects to its console. On success the instance's
 * running half is filled in and saved. When the monitor ends at once, its own
 * last words are the error.
 */
int launch_monitor(const struct cli *cli, const struct run_options *options,
                   struct instance *instance, int *ret_console_fd, struct err *err) MUST_CHECK;

/* Waits for the monitor to end: its exit status (128 + N for signal N). Only after a launch. */
int launch_wait(const struct instance *instance);

#endif
