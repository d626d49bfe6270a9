/* The verbs that ask the daemon, and their options. */
#include "cli/cli.h"
#include "cli/verb_object.h"
#include "cli/verb_tables.h"

#define API(field) offsetof(struct api_options, field)
#define JSON_SPEC                                         \
    {                                                     \
        "--json", NULL, "as JSON", OPTION_FLAG, API(json) \
    }
#define TAG_SPEC                                                                          \
    {                                                                                     \
        "--tag", "NAME=VALUE", "a word to find it by; repeatable", OPTION_LIST, API(tags) \
    }
#define ALL_SPEC                                                             \
    {                                                                        \
        "--all", NULL, "all instances of the project", OPTION_FLAG, API(all) \
    }
#define LIMIT_SPECS                                                                              \
    {"--instances", "N", "how many instances; none: no limit", OPTION_TEXT, API(max_instances)}, \
        {"--cpus", "N", "virtual CPUs of them all", OPTION_TEXT, API(max_cpus)},                 \
        {"--memory", "SIZE", "memory of them all", OPTION_TEXT, API(max_memory)},                \
        {"--volumes", "SIZE", "size of all volumes", OPTION_TEXT, API(max_volumes)},             \
        {"--snapshots", "N", "how many snapshots", OPTION_TEXT, API(max_snapshots)},             \
        {"--nics", "N", "how many network cards, instances' own ones too", OPTION_TEXT,          \
         API(max_nics)},                                                                         \
        {"--alarms", "N", "how many alarms", OPTION_TEXT, API(max_alarms)},                      \
        {"--hooks", "N", "how many webhooks of events", OPTION_TEXT, API(max_hooks)},            \
    {                                                                                            \
        "--keys", "N", "how many key pairs", OPTION_TEXT, API(max_keys)                          \
    }
#define SHARE_SPECS                                                                             \
    {"--cpu-weight", "N", "share of busy CPUs, 1 to 10000 (100)", OPTION_TEXT,                  \
     API(limits.cpu_weight)},                                                                   \
        {"--cpu-cap", "PERCENT", "of its CPUs' time, never more; none: no cap", OPTION_TEXT,    \
         API(limits.cpu_cap)},                                                                  \
        {"--cpu-baseline", "PERCENT", "of its CPUs' time, earned as credits; none: no credits", \
         OPTION_TEXT, API(limits.cpu_baseline)},                                                \
        {"--cpu-reserved", "PERCENT", "of one CPU, whoever else is busy", OPTION_TEXT,          \
         API(limits.cpu_reserved)},                                                             \
        {"--memory-limit", "SIZE", "for its whole process; none: no limit", OPTION_TEXT,        \
         API(limits.memory_limit)},                                                             \
        {"--disk-bps", "N", "bytes per second of its disk: 10M ...; none: any", OPTION_TEXT,    \
         API(limits.disk_bps)},                                                                 \
        {"--disk-iops", "N", "operations per second of its disk; none: any", OPTION_TEXT,       \
         API(limits.disk_iops)},                                                                \
        {"--net-bps", "N", "bytes per second of its network, each way; none: any", OPTION_TEXT, \
         API(limits.net_bps)},                                                                  \
    {                                                                                           \
        "--net-pps", "N", "frames per second of its network, each way; none: any", OPTION_TEXT, \
            API(limits.net_pps)                                                                 \
    }
#define INSTANCE_LIMIT_SPECS                                                            \
    {"--max-cpus", "N", "virtual CPUs that it may get while it runs", OPTION_TEXT,      \
     API(limits.max_cpus)},                                                             \
        {"--max-memory", "SIZE", "memory that it may get while it runs", OPTION_TEXT,   \
         API(limits.max_memory)},                                                       \
        SHARE_SPECS,                                                                    \
        {"--pinned-cpus", "LIST", "the host's CPUs that it runs on: 0-3,8; none: any",  \
         OPTION_TEXT, API(limits.pinned_cpus)},                                         \
    {                                                                                   \
        "--balloon", "SIZE", "memory that its guest is asked to give back; none: none", \
            OPTION_TEXT, API(limits.balloon)                                            \
    }
#define VOLUME_LIMIT_SPECS                                                                \
    {"--bps", "N", "bytes per second: 10M ...; none: any", OPTION_TEXT, API(limits.bps)}, \
    {                                                                                     \
        "--iops", "N", "operations per second; none: any", OPTION_TEXT, API(limits.iops)  \
    }
#define NETWORK_SPEC                                                                       \
    {                                                                                      \
        "--network", "NETWORK", "where it leads: user, or bridge:NAME of the host (user)", \
            OPTION_TEXT, API(network)                                                      \
    }
#define ROLE_SPECS                                                                       \
    {"--role", "ROLE", "viewer, member, admin, or a role made", OPTION_TEXT, API(role)}, \
    {                                                                                    \
        "--project", "PROJECT", "the only project (all)", OPTION_TEXT, API(of_project)   \
    }

static const struct option_spec json_specs[] = {JSON_SPEC, {.name = NULL}};
static const struct option_spec filter_specs[] = {
    JSON_SPEC,
    {"--filter", "FIELD=VALUE", "state=running, tag.env=prod ...; repeatable", OPTION_LIST,
     API(filters)},
    {.name = NULL},
};
static const struct option_spec all_specs[] = {ALL_SPEC, {.name = NULL}};
static const struct option_spec delete_specs[] = {
    ALL_SPEC,
    {"--force", NULL, "also those that run", OPTION_FLAG, API(force)},
    {.name = NULL},
};
static const struct option_spec restart_specs[] = {
    ALL_SPEC,
    {"--force", NULL, "pull the plug instead of pressing the power button", OPTION_FLAG,
     API(force)},
    {"--wait", "SECONDS", "how long the guest may take, before the plug is pulled (90)",
     OPTION_NUMBER, API(wait_s)},
    {.name = NULL},
};
static const struct option_spec run_specs[] = {
    {"--name", "NAME", "name of the instance (the image's name)", OPTION_TEXT, API(name)},
    {"--type", "TYPE", "how much it has of everything (small)", OPTION_TEXT, API(type)},
    {"--cpus", "N", "virtual CPUs, instead of the type's", OPTION_NUMBER, API(cpus)},
    {"--memory", "SIZE", "512M, 2G ..., instead of the type's", OPTION_TEXT, API(memory)},
    {"--disk", "SIZE", "its disk, instead of the type's", OPTION_TEXT, API(disk)},
    {"--volume", "NAME", "a volume as one more disk; repeatable", OPTION_LIST, API(volumes)},
    {"--nic", "NAME", "its network card (one of its own)", OPTION_TEXT, API(nic)},
    NETWORK_SPEC,
    INSTANCE_LIMIT_SPECS,
    {"--engine", "ENGINE", "auto, kvm or soft (auto)", OPTION_TEXT, API(engine)},
    {"--forward", "H:G", "host port H reaches guest port G; repeatable", OPTION_LIST,
     API(forwards)},
    {"--cmdline", "TEXT", "kernel command line instead of the image's", OPTION_TEXT, API(cmdline)},
    {"--restart", "WHEN", "never, on-failure or always, when it ended (on-failure)", OPTION_TEXT,
     API(restart)},
    {"--key", "NAME", "a kept key that opens it by ssh (cloud-init)", OPTION_TEXT, API(key)},
    {"--user-data", "FILE", "for cloud-init in the guest", OPTION_TEXT, API(user_data)},
    TAG_SPEC,
    {"--detach", NULL, "return when the machine has started", OPTION_FLAG, API(detach)},
    {"--wait", NULL, "show the console until the guest is ready", OPTION_FLAG, API(wait_ready)},
    {"--ephemeral", NULL, "remove the new instance and its disk when it ends", OPTION_FLAG,
     API(ephemeral)},
    {"--fresh", NULL, "discard the disk of an earlier run", OPTION_FLAG, API(fresh)},
    {.name = NULL},
};
static const struct option_spec ssh_specs[] = {
    {"--wait", "SECONDS", "how long the guest may take to answer (120)", OPTION_NUMBER,
     API(wait_s)},
    {.name = NULL},
};
static const struct option_spec exec_specs[] = {
    {"--input", "FILE", "what it reads; - is standard input (nothing)", OPTION_TEXT, API(input)},
    {.name = NULL},
};
static const struct option_spec snapshot_specs[] = {
    {"--instance", "NAME", "of this instance's disk", OPTION_TEXT, API(instance)},
    {"--volume", "NAME", "of this volume", OPTION_TEXT, API(volume)},
    TAG_SPEC,
    JSON_SPEC,
    {.name = NULL},
};
static const struct option_spec top_specs[] = {
    {"--interval", "SECONDS", "between two looks (2)", OPTION_NUMBER, API(interval_s)},
    {"--count", "N", "how often; without a terminal once (until q)", OPTION_NUMBER, API(count)},
    JSON_SPEC,
    {.name = NULL},
};
static const struct option_spec usage_specs[] = {
    {"--since", "TIME", "how long ago it begins: 12h, 7d ... (30d)", OPTION_TEXT, API(usage.since)},
    {"--until", "TIME", "how long ago it ends (now)", OPTION_TEXT, API(usage.until)},
    {"--by", "WHAT", "project, instance (volumes and snapshots, too), day or hour (project)",
     OPTION_TEXT, API(usage.by)},
    {"--csv", NULL, "as CSV", OPTION_FLAG, API(usage.csv)},
    JSON_SPEC,
    {.name = NULL},
};
static const struct option_spec event_specs[] = {
    JSON_SPEC,
    {"--filter", "FIELD=VALUE", "target=ID, level=error ...; repeatable", OPTION_LIST,
     API(filters)},
    {"--follow", NULL, "go on with what happens, until interrupted", OPTION_FLAG, API(follow)},
    {.name = NULL},
};
static const struct option_spec resize_specs[] = {
    {"--cpus", "N", "virtual CPUs", OPTION_NUMBER, API(cpus)},
    {"--memory", "SIZE", "512M, 2G ...", OPTION_TEXT, API(memory)},
    {"--type", "TYPE", "what a type has", OPTION_TEXT, API(type)},
    INSTANCE_LIMIT_SPECS,
    {.name = NULL},
};
static const struct option_spec type_specs[] = {
    {"--cpus", "N", "virtual CPUs", OPTION_NUMBER, API(cpus)},
    {"--memory", "SIZE", "512M, 2G ...", OPTION_TEXT, API(memory)},
    {"--disk", "SIZE", "its own disk (the image's)", OPTION_TEXT, API(disk)},
    SHARE_SPECS,
    TAG_SPEC,
    JSON_SPEC,
    {.name = NULL},
};
static const struct option_spec nic_specs[] = {
    {"--mac", "ADDRESS", "52:54:00:ab:cd:ef ... (one by chance)", OPTION_TEXT, API(mac)},
    NETWORK_SPEC,
    TAG_SPEC,
    JSON_SPEC,
    {.name = NULL},
};
static const struct option_spec key_specs[] = {TAG_SPEC, JSON_SPEC, {.name = NULL}};
static const struct option_spec volume_specs[] = {
    VOLUME_LIMIT_SPECS, TAG_SPEC, JSON_SPEC, {.name = NULL}};
static const struct option_spec volume_resize_specs[] = {VOLUME_LIMIT_SPECS, {.name = NULL}};
static const struct option_spec project_specs[] = {
    LIMIT_SPECS, TAG_SPEC, JSON_SPEC, {.name = NULL}};
static const struct option_spec quota_specs[] = {LIMIT_SPECS, {.name = NULL}};
static const struct option_spec user_specs[] = {
    ROLE_SPECS,
    {"--password-file", "FILE", "its first line is the password (standard input)", OPTION_TEXT,
     API(password_file)},
    JSON_SPEC,
    {.name = NULL},
};
static const struct option_spec token_specs[] = {
    ROLE_SPECS,
    {"--expires", "TIME", "30d, 12h, 90m ... (never)", OPTION_TEXT, API(expires)},
    JSON_SPEC,
    {.name = NULL},
};

static const struct option_spec alarm_specs[] = {
    {"--instance", "NAME", "the instance that it watches", OPTION_TEXT, API(instance)},
    {"--tagged", "NAME=VALUE", "watch each instance that has this tag, instead", OPTION_TEXT,
     API(alarm.tagged)},
    {"--metric", "NAME", "cpu_percent, memory_used_bytes ...: what is counted", OPTION_TEXT,
     API(alarm.metric)},
    {"--threshold", "N", "in the metric's unit; 2G for bytes", OPTION_TEXT, API(alarm.threshold)},
    {"--comparison", "SIDE", "above or below it (above)", OPTION_TEXT, API(alarm.comparison)},
    {"--for", "TIME", "how long it has to be there: 90, 5m ... (60)", OPTION_TEXT,
     API(alarm.for_time)},
    {"--action", "ACTION", "none, stop or reboot: done to the instance, once (none)", OPTION_TEXT,
     API(alarm.action)},
    {"--webhook", "URL", "an address that is told", OPTION_TEXT, API(alarm.webhook)},
    TAG_SPEC,
    JSON_SPEC,
    {.name = NULL},
};

static const struct option_spec hook_specs[] = {
    {"--action", "PREFIX", "of events whose action begins so: instance. ... (all)", OPTION_TEXT,
     API(hook.action)},
    {"--level", "LEVEL", "of events that matter so much: info, warning or error (info)",
     OPTION_TEXT, API(hook.level)},
    TAG_SPEC,
    JSON_SPEC,
    {.name = NULL},
};

/* group, name, arguments, summary, options, least and most words, "--", function, data */
#define OBJECTS(word, many, collection)                                                         \
    {word, "list", "", "list " many, filter_specs, 0, 0, false, verb_object_list, collection},  \
    {                                                                                           \
        word, "show", "NAME", "show one", json_specs, 1, 1, false, verb_object_show, collection \
    }
#define DELETE(word, collection)                                                                \
    {                                                                                           \
        word, "delete", "NAME", "delete one", NULL, 1, 1, false, verb_object_delete, collection \
    }

const struct verb verbs_of_daemon[] = {
    {NULL, "run", "[IMAGE]", "start a machine and attach its console", run_specs, 0, 1, false,
     verb_run, NULL},
    {NULL, "list", "", "list instances", filter_specs, 0, 0, false, verb_object_list,
     &collection_instances},
    {NULL, "show", "[NAME]", "show one instance", json_specs, 0, 1, false, verb_show, NULL},
    {NULL, "start", "NAME...", "start instances that are off", all_specs, 0, 8, false, verb_act,
     "start"},
    {NULL, "stop", "[NAME...]", "power instances off", restart_specs, 0, 8, false, verb_act,
     "stop"},
    {NULL, "restart", "[NAME...]", "switch instances off and on again", restart_specs, 0, 8, false,
     verb_act, "restart"},
    {NULL, "pause", "[NAME...]", "stop CPUs and clocks where they are", all_specs, 0, 8, false,
     verb_act, "pause"},
    {NULL, "resume", "[NAME...]", "let paused instances go on", all_specs, 0, 8, false, verb_act,
     "resume"},
    {NULL, "resize", "NAME", "give an instance other CPUs, memory and limits", resize_specs, 1, 1,
     false, verb_resize, NULL},
    {NULL, "delete", "NAME...", "delete instances and their disks", delete_specs, 0, 8, false,
     verb_delete, NULL},
    {NULL, "ssh", "[NAME] [-- COMMAND...]", "log in, or run a command, in a machine", ssh_specs, 0,
     1, true, verb_ssh, NULL},
    {NULL, "console", "[NAME]", "attach to a machine's serial console", NULL, 0, 1, false,
     verb_console, NULL},
    {NULL, "exec", "[NAME] -- COMMAND...", "run a program by the guest's agent", exec_specs, 0, 1,
     true, verb_exec, NULL},
    {NULL, "cp", "FILE NAME:PATH", "copy a file into a guest, or NAME:PATH FILE out of it", NULL, 2,
     2, false, verb_cp, NULL},
    {NULL, "logs", "[NAME]",
     "show what happened to an instance, its monitor's words and its console's last", json_specs, 0,
     1, false, verb_logs, NULL},
    {NULL, "stats", "[NAME]", "show what a machine's monitor counts", json_specs, 0, 1, false,
     verb_stats, NULL},
    {NULL, "top", "", "show what running instances use, again and again", top_specs, 0, 0, false,
     verb_top, NULL},
    {NULL, "usage", "", "show what projects used, by the hour", usage_specs, 0, 0, false,
     verb_usage, NULL},
    {NULL, "events", "", "list what happened", event_specs, 0, 0, false, verb_events,
     &collection_events},
    {"forward", "list", "[NAME]", "list ports that lead into an instance", json_specs, 0, 1, false,
     verb_forward_list, NULL},
    {"forward", "add", "NAME H:G", "let host port H of 127.0.0.1 reach guest port G", NULL, 2, 2,
     false, verb_forward_change, NULL},
    {"forward", "remove", "NAME H", "close host port H", NULL, 2, 2, false, verb_forward_change,
     "remove"},
    OBJECTS("volume", "disks beside an instance's own", &collection_volumes),
    {"volume", "create", "NAME SIZE", "make a volume", volume_specs, 2, 2, false,
     verb_object_create, &collection_volumes},
    {"volume", "resize", "NAME [SIZE]", "let a volume grow, or change its limits",
     volume_resize_specs, 1, 2, false, verb_volume_grow, NULL},
    DELETE("volume", &collection_volumes),
    OBJECTS("snapshot", "snapshots of disks", &collection_snapshots),
    {"snapshot", "create", "NAME", "take a snapshot", snapshot_specs, 1, 1, false,
     verb_object_create, &collection_snapshots},
    {"snapshot", "restore", "NAME", "put a disk back to a snapshot", NULL, 1, 1, false,
     verb_snapshot_restore, NULL},
    DELETE("snapshot", &collection_snapshots),
    OBJECTS("nic", "network cards of instances", &collection_nics),
    {"nic", "create", "NAME", "make a network card", nic_specs, 1, 1, false, verb_object_create,
     &collection_nics},
    DELETE("nic", &collection_nics),
    OBJECTS("type", "sizes of instances", &collection_types),
    {"type", "create", "NAME", "make a type", type_specs, 1, 1, false, verb_object_create,
     &collection_types},
    DELETE("type", &collection_types),
    OBJECTS("key", "public keys for ssh", &collection_keys),
    {"key", "create", "NAME FILE", "keep a public key", key_specs, 2, 2, false, verb_object_create,
     &collection_keys},
    DELETE("key", &collection_keys),
    OBJECTS("project", "projects", &collection_projects),
    {"project", "create", "NAME", "make a project", project_specs, 1, 1, false, verb_object_create,
     &collection_projects},
    DELETE("project", &collection_projects),
    {"quota", "list", "", "list what projects may have", filter_specs, 0, 0, false,
     verb_object_list, &collection_quotas},
    {"quota", "set", "PROJECT", "change what a project may have", quota_specs, 1, 1, false,
     verb_quota_set, NULL},
    {"user", "list", "", "list users", json_specs, 0, 0, false, verb_object_list,
     &collection_users},
    {"user", "create", "NAME", "make a user who can sign in", user_specs, 1, 1, false,
     verb_object_create, &collection_users},
    {"user", "reset", "NAME", "take the second factor of a user away who has lost it", NULL, 1, 1,
     false, verb_user_reset, NULL},
    DELETE("user", &collection_users),
    {"role", "list", "", "list what users and tokens may be", json_specs, 0, 0, false,
     verb_object_list, &collection_roles},
    {"role", "show", "NAME", "show what one allows and denies, as JSON", NULL, 1, 1, false,
     verb_role_show, NULL},
    {"role", "create", "NAME FILE", "make a role of the statements in a JSON file", json_specs, 2,
     2, false, verb_object_create, &collection_roles},
    {"role", "set", "NAME FILE", "give a role other statements", NULL, 2, 2, false, verb_role_set,
     NULL},
    DELETE("role", &collection_roles),
    {"token", "list", "", "list API tokens", json_specs, 0, 0, false, verb_object_list,
     &collection_tokens},
    {"token", "create", "NAME", "make an API token, shown this once", token_specs, 1, 1, false,
     verb_object_create, &collection_tokens},
    {"token", "delete", "ID", "revoke an API token", NULL, 1, 1, false, verb_object_delete,
     &collection_tokens},
    OBJECTS("alarm", "what watches instances", &collection_alarms),
    {"alarm", "create", "NAME", "watch an instance, or all of a tag", alarm_specs, 1, 1, false,
     verb_object_create, &collection_alarms},
    DELETE("alarm", &collection_alarms),
    {"hook", "list", "", "list addresses that are told of events", filter_specs, 0, 0, false,
     verb_object_list, &collection_hooks},
    {"hook", "show", "NAME", "show one, and what became of its last deliveries", json_specs, 1, 1,
     false, verb_hook_show, &collection_hooks},
    {"hook", "create", "NAME URL", "tell an address of events", hook_specs, 2, 2, false,
     verb_object_create, &collection_hooks},
    DELETE("hook", &collection_hooks),
    OBJECTS("operation", "work that is under way, and was", &collection_operations),
    {"operation", "wait", "ID", "wait until it has ended", NULL, 1, 1, false, verb_operation_wait,
     NULL},
    {"operation", "cancel", "ID", "end it where it can", NULL, 1, 1, false, verb_operation_cancel,
     NULL},
    {NULL, "web", "[USER]", "print a link that signs a browser in to the web console", NULL, 0, 1,
     false, verb_web, NULL},
    {NULL, "completion", "SHELL", "print what completes words in bash, zsh or fish", NULL, 1, 1,
     false, verb_completion, NULL},
    {"daemon", "start", "", "start the daemon, unless one runs", NULL, 0, 0, false,
     verb_daemon_start, NULL},
    {"daemon", "stop", "", "end the daemon; machines go on", NULL, 0, 0, false, verb_daemon_stop,
     NULL},
    {"daemon", "status", "", "show the daemon and its host", json_specs, 0, 0, false,
     verb_daemon_status, NULL},
    {.name = NULL},
};
