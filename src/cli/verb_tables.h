/* The tables of verbs, between the files that have them. */
#ifndef CORBEL_CLI_VERB_TABLES_H
#define CORBEL_CLI_VERB_TABLES_H

#include "cli/cli.h"

extern const struct verb verbs_of_daemon[], verbs_of_files[];

/* ---- verbs that ask the daemon ---- */

/* What an instance may use: as the API's fields, but for sizes (cli/verb_limits.c). */
struct limit_options {
    const char *max_cpus, *max_memory;
    const char *cpu_weight, *cpu_cap, *cpu_baseline, *cpu_reserved, *pinned_cpus;
    const char *memory_limit, *balloon;
    const char *disk_bps, *disk_iops, *net_bps, *net_pps;
    const char *bps, *iops; /* of a volume */
};

struct alarm_options {
    const char *metric, *comparison, *threshold, *for_time, *tagged, *action, *webhook;
};

struct hook_options {
    const char *action, *level;
};

struct usage_options {
    bool csv;
    const char *by;
    const char *since, *until; /* how long ago */
};

/* The options of all of them: each verb's table names those that it takes. */
struct api_options {
    bool json, force, all, detach, wait_ready, ephemeral, fresh, follow;
    unsigned cpus, wait_s, interval_s, count;
    const char *type, *memory, *disk, *name, *engine, *restart, *cmdline;
    const char *input, *instance, *volume, *key, *user_data, *nic, *mac, *network;
    const char *role, *of_project, *expires, *password_file;
    const char *max_instances, *max_cpus, *max_memory, *max_volumes;
    const char *max_snapshots, *max_nics, *max_alarms, *max_keys, *max_hooks;
    struct option_list filters, tags, forwards, volumes;
    struct limit_options limits;
    struct alarm_options alarm;
    struct hook_options hook;
    struct usage_options usage;
};

#define API_VERB(name) \
    int name(const struct cli *, const void *, const struct args *, struct err *) MUST_CHECK

/* verb_object.c: args->data is a struct collection */
API_VERB(verb_object_list);
API_VERB(verb_object_show);
API_VERB(verb_hook_show);
API_VERB(verb_object_create);
API_VERB(verb_object_delete);
API_VERB(verb_snapshot_restore);
API_VERB(verb_user_reset);
API_VERB(verb_volume_grow);
API_VERB(verb_quota_set);
API_VERB(verb_role_show);
API_VERB(verb_role_set);
API_VERB(verb_operation_wait);
API_VERB(verb_operation_cancel);

/* verb_instance.c */
API_VERB(verb_show);
API_VERB(verb_act); /* args->data is the action's name */
API_VERB(verb_resize);
API_VERB(verb_delete);

/* verb_run.c, verb_ssh.c, verb_watch.c */
API_VERB(verb_run);
API_VERB(verb_ssh);
API_VERB(verb_console);
API_VERB(verb_stats);
API_VERB(verb_logs);
API_VERB(verb_events);

/* verb_forward.c, verb_top.c, verb_usage.c, complete.c */
API_VERB(verb_forward_list);
API_VERB(verb_forward_change);
API_VERB(verb_top);
API_VERB(verb_usage);
API_VERB(verb_completion);

/* verb_agent.c */
API_VERB(verb_exec);
API_VERB(verb_cp);

/* verb_daemon.c */
API_VERB(verb_daemon_start);
API_VERB(verb_daemon_stop);
API_VERB(verb_daemon_status);
API_VERB(verb_web);

#undef API_VERB

#endif
