/*
 * An instance: a machine of this user, made from an image.
 *
 * instances/NAME/ holds what lasts: its own disk, and links to the image's
 * kernel, initrd, keys and image.json, so that the image may be rebuilt or
 * removed meanwhile. runtime/NAME/ holds what lasts as long as the monitor
 * runs: its sockets and run.json. An instance runs when the process that
 * run.json names is still that process (same start time).
 */
#ifndef CORBEL_CLI_INSTANCE_H
#define CORBEL_CLI_INSTANCE_H

#include "base/error.h"
#include "cli/cli.h"
#include "cli/image.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct instance {
    char name[64];
    char dir[PATH_MAX];     /* what lasts */
    char runtime[PATH_MAX]; /* what does not */
    struct image image;     /* as linked into dir */
    bool is_running;
    /* While it runs: */
    pid_t pid;
    uint64_t start_ticks; /* of the process, from /proc/PID/stat */
    unsigned ssh_port;    /* on 127.0.0.1; 0: none */
    unsigned cpus;
    char memory[16];
    char engine[16];
};

/* -ENOENT when there is no instance of that name, -EINVAL for a bad name. */
int instance_find(const struct cli *cli, const char *name, struct instance *ret_instance,
                  struct err *err) MUST_CHECK;

/* As instance_find; also -ENOENT when it does not run. */
int instance_find_running(const struct cli *cli, const char *name, struct instance *ret_instance,
                          struct err *err) MUST_CHECK;

/* The only running instance; -ENOENT when there is none, -EINVAL when there are several. */
int instance_find_only(const struct cli *cli, struct instance *ret_instance, struct err *err)
    MUST_CHECK;

/* Takes args->words[0] or, without it, the only running instance. */
int instance_find_args(const struct cli *cli, const struct args *args,
                       struct instance *ret_instance, struct err *err) MUST_CHECK;

/* Makes instances/NAME from an image: whole, or not at all. in_place links the image's own disk. */
int instance_make(const struct cli *cli, const char *name, const struct image *image, bool in_place,
                  struct err *err) MUST_CHECK;

/* Writes run.json with pid, ports and settings. */
int instance_save(const struct instance *instance, struct err *err) MUST_CHECK;

/* Removes what lasts and what does not. */
int instance_remove(const struct instance *instance, struct err *err) MUST_CHECK;

/* One holder at a time of the right to start, make or remove NAME; closing ret_fd lets go. */
int instance_lock(const struct cli *cli, const char *name, int *ret_fd, struct err *err) MUST_CHECK;

/* Marks an instance that goes when its machine ends; instance_sweep removes those that ended. */
int instance_mark_ephemeral(const struct instance *instance, struct err *err) MUST_CHECK;
void instance_sweep(const struct cli *cli);

/* True while the process lives. */
bool instance_is_alive(const struct instance *instance);

/* A descriptor that becomes readable when the process ends; -ESRCH when it has ended already. */
int instance_open_process(const struct instance *instance) MUST_CHECK;

/* Waits for the end of the process: whether it came within the time. */
bool instance_wait_end(const struct instance *instance, unsigned seconds);

#endif
