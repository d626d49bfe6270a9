/*
 * The settings of corbeld: flags, and what they are where none is given. One
 * table; help comes from it. One thread.
 */
#ifndef CORBEL_DAEMON_OPTIONS_H
#define CORBEL_DAEMON_OPTIONS_H

#include "base/error.h"
#include "base/log.h"

#include <limits.h>
#include <stdbool.h>

#define OPTIONS_MAX_LISTEN 8
#define OPTIONS_MAX_BRIDGES 16

struct daemon_options {
    bool is_system; /* /var/lib and /run in place of the user's directories */
    char state[PATH_MAX], runtime[PATH_MAX], images[PATH_MAX], socket[PATH_MAX], vmm[PATH_MAX];
    const char *listen[OPTIONS_MAX_LISTEN]; /* ADDRESS:PORT */
    unsigned listen_count;
    const char *bridges[OPTIONS_MAX_BRIDGES]; /* that instances may use */
    unsigned bridge_count;
    const char *certificate, *key, *cgroup;
    bool has_private_hooks;
    bool has_local_hooks;
    const char *restore; /* a copy of the records to put back; NULL: serve */
    unsigned backup_interval_s, keep_backups, keep_events, keep_days; /* 0: the preset */
    unsigned cpus, memory_mib, cpu_ratio, memory_ratio, workers, history_step_s;
    enum log_level log_level;
    bool wants_help, wants_version;
};

/* monitor as in daemon_main(). */
int options_read(struct daemon_options *options, char **argv, const char *monitor, struct err *err)
    MUST_CHECK;
void options_print_help(void);

/* "127.0.0.1:8480", "[::1]:8480": the address without brackets into out. */
int options_split_address(const char *text, char out[64], unsigned *ret_port, struct err *err)
    MUST_CHECK;

#endif
