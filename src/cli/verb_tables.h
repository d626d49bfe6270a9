/* The tables of verbs, between the files that have them. */
#ifndef CORBEL_CLI_VERB_TABLES_H
#define CORBEL_CLI_VERB_TABLES_H

#include "cli/cli.h"

extern const struct verb verbs_of_daemon[], verbs_of_files[];

/* ---- verbs that ask the daemon ---- */

/* The options of all of them: each verb's table names those that it takes. */
struct api_options {
    bool json, force, all, follow, no_wait, console;
    unsigned cpus, wait_s, lines, interval_s, weight;
    const char *type, *memory, *disk, *name, *engine, *restart, *cmdline;
    const char *role, *of_project, *expires, *password_file, *listen, *image;
    const char *max_instances, *max_cpus, *max_memory, *max_volumes;
    struct option_list filters, tags, forwards, volumes, keys;
    const char *user_data, *host_name, *description;
    bool detach, wait_ready, ephemeral, fresh, memory_state, is_once;
};

#define API_VERB(name) \
    int name(const struct cli *, const void *, const struct args *, struct err *) MUST_CHECK

/* verb_object.c: args->data is a struct collection */
API_VERB(verb_object_list);
API_VERB(verb_object_show);
API_VERB(verb_object_create);
API_VERB(verb_object_delete);
API_VERB(verb_quota_set);
API_VERB(verb_operation_wait);
API_VERB(verb_operation_cancel);

/* verb_instance.c */
API_VERB(verb_show);
API_VERB(verb_act); /* args->data is the action's name */
API_VERB(verb_resize);
API_VERB(verb_delete);

/* verb_daemon.c */
API_VERB(verb_daemon_start);
API_VERB(verb_daemon_stop);
API_VERB(verb_daemon_status);

#undef API_VERB

#endif
