#include "daemon/options.h"

#include "base/path.h"
#include "hostnet/hostnet.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum option_kind {
    OPTION_FLAG,
    OPTION_PATH,
    OPTION_TEXT,
    OPTION_NUMBER,
    OPTION_LISTEN,
    OPTION_BRIDGE,
    OPTION_LEVEL
};

static const struct option {
    const char *name, *value, *help;
    enum option_kind kind;
    size_t offset;
} options_table[] = {
    {"--system", NULL, "keep everything in /var/lib/corbel and /run/corbel", OPTION_FLAG,
     offsetof(struct daemon_options, is_system)},
    {"--state", "DIR", "records, machines and volumes ($XDG_DATA_HOME/corbel/daemon)", OPTION_PATH,
     offsetof(struct daemon_options, state)},
    {"--runtime", "DIR", "sockets of running machines ($XDG_RUNTIME_DIR/corbeld)", OPTION_PATH,
     offsetof(struct daemon_options, runtime)},
    {"--images", "DIR", "images, as `corbel image` makes them ($XDG_DATA_HOME/corbel/images)",
     OPTION_PATH, offsetof(struct daemon_options, images)},
    {"--socket", "FILE", "listen here for local use (RUNTIME/api.sock)", OPTION_PATH,
     offsetof(struct daemon_options, socket)},
    {"--vmm", "FILE", "the monitor (corbel-vmm beside this program, or $CORBEL_VMM)", OPTION_PATH,
     offsetof(struct daemon_options, vmm)},
    {"--listen", "ADDRESS:PORT", "listen here, too; may be repeated", OPTION_LISTEN, 0},
    {"--tls-certificate", "FILE", "PEM; connections to --listen are TLS's then", OPTION_TEXT,
     offsetof(struct daemon_options, certificate)},
    {"--tls-key", "FILE", "PEM; the certificate's key", OPTION_TEXT,
     offsetof(struct daemon_options, key)},
    {"--cpus", "N", "CPUs to give away (all)", OPTION_NUMBER,
     offsetof(struct daemon_options, cpus)},
    {"--memory", "MIB", "memory to give away (all)", OPTION_NUMBER,
     offsetof(struct daemon_options, memory_mib)},
    {"--cpu-ratio", "PERCENT", "virtual CPUs per hundred CPUs (400)", OPTION_NUMBER,
     offsetof(struct daemon_options, cpu_ratio)},
    {"--memory-ratio", "PERCENT", "guests' memory per hundred of memory (100)", OPTION_NUMBER,
     offsetof(struct daemon_options, memory_ratio)},
    {"--cgroup", "GROUP|none", "make machines' control groups in this one (found)", OPTION_TEXT,
     offsetof(struct daemon_options, cgroup)},
    {"--bridge", "NAME", "instances may use this bridge of the host; may be repeated",
     OPTION_BRIDGE, 0},
    {"--workers", "N", "how much is done at a time (8)", OPTION_NUMBER,
     offsetof(struct daemon_options, workers)},
    {"--history-step", "SECONDS", "between two lines of history, at most 60 (10)", OPTION_NUMBER,
     offsetof(struct daemon_options, history_step_s)},
    {"--private-webhooks", NULL, "webhooks may lead to private networks", OPTION_FLAG,
     offsetof(struct daemon_options, has_private_hooks)},
    {"--local-webhooks", NULL, "... and to this host and its link", OPTION_FLAG,
     offsetof(struct daemon_options, has_local_hooks)},
    {"--backup-interval", "SECONDS", "between two copies of the records (3600)", OPTION_NUMBER,
     offsetof(struct daemon_options, backup_interval_s)},
    {"--keep-backups", "N", "how many copies (24)", OPTION_NUMBER,
     offsetof(struct daemon_options, keep_backups)},
    {"--keep-events", "N", "of each project, the newest (10000)", OPTION_NUMBER,
     offsetof(struct daemon_options, keep_events)},
    {"--keep-days", "N", "events, and operations that have ended (30)", OPTION_NUMBER,
     offsetof(struct daemon_options, keep_days)},
    {"--restore", "FILE", "put this copy of the records back, and end", OPTION_TEXT,
     offsetof(struct daemon_options, restore)},
    {"--log-level", "error|warning|info|debug", "which messages to show on stderr (info)",
     OPTION_LEVEL, 0},
    {"--version", NULL, "show the version", OPTION_FLAG,
     offsetof(struct daemon_options, wants_version)},
    {"--help", NULL, "show this help", OPTION_FLAG, offsetof(struct daemon_options, wants_help)},
};

static int set_level(struct daemon_options *options, const char *value, struct err *err)
{
    static const char *const names[] = {[LOG_LEVEL_ERROR] = "error",
                                        [LOG_LEVEL_WARN] = "warning",
                                        [LOG_LEVEL_INFO] = "info",
                                        [LOG_LEVEL_DEBUG] = "debug"};

    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        if (strcmp(names[i], value) == 0) {
            options->log_level = (enum log_level)i;
            return 0;
        }
    }
    return err_set(err, -EINVAL,
                   "--log-level: \"%.40s\" is none; give error, warning, info or debug", value);
}

static int set_number(unsigned *number, const struct option *option, const char *value,
                      struct err *err)
{
    char *end = NULL;
    unsigned long parsed = strtoul(value, &end, 10);

    if (value[0] < '0' || value[0] > '9' || *end != '\0' || parsed == 0 || parsed > INT_MAX) {
        return err_set(err, -EINVAL, "%s: \"%.40s\" does not fit; give a whole number above 0",
                       option->name, value);
    }
    *number = (unsigned)parsed;
    return 0;
}

static int add_listen(struct daemon_options *options, const char *value, struct err *err)
{
    char address[64];
    unsigned port;
    int rc = options_split_address(value, address, &port, err);

    if (rc == 0 && options->listen_count == OPTIONS_MAX_LISTEN) {
        rc = err_set(err, -EINVAL, "--listen: at most %d of them", OPTIONS_MAX_LISTEN);
    }
    if (rc == 0) {
        options->listen[options->listen_count++] = value;
    }
    return rc;
}

static int add_bridge(struct daemon_options *options, const char *value, struct err *err)
{
    if (!hostnet_is_name(value)) {
        return err_set(err, -EINVAL, "--bridge: \"%.40s\" is no name of a bridge: %s", value,
                       HOSTNET_NAME_RULE);
    }
    for (unsigned i = 0; i < options->bridge_count; i++) {
        if (strcmp(options->bridges[i], value) == 0) {
            return 0;
        }
    }
    if (options->bridge_count == OPTIONS_MAX_BRIDGES) {
        return err_set(err, -EINVAL, "--bridge: at most %d of them", OPTIONS_MAX_BRIDGES);
    }
    options->bridges[options->bridge_count++] = value;
    return 0;
}

static int set_option(struct daemon_options *options, const struct option *option,
                      const char *value, struct err *err)
{
    char *field = (char *)options + option->offset;

    switch (option->kind) {
    case OPTION_FLAG:
        *(bool *)field = true;
        return 0;
    case OPTION_PATH:
        return path_format(field, err, "%s", value);
    case OPTION_TEXT:
        *(const char **)(void *)field = value;
        return 0;
    case OPTION_NUMBER:
        return set_number((unsigned *)(void *)field, option, value, err);
    case OPTION_LISTEN:
        return add_listen(options, value, err);
    case OPTION_BRIDGE:
        return add_bridge(options, value, err);
    case OPTION_LEVEL:
        return set_level(options, value, err);
    }
    return -EINVAL;
}

/* "--name value" or "--name=value": how many words it took. */
static int read_option(struct daemon_options *options, char **argv, struct err *err)
{
    size_t len = strcspn(argv[0], "=");

    for (size_t i = 0; i < ARRAY_LEN(options_table); i++) {
        const struct option *option = &options_table[i];
        const char *value = argv[0][len] == '=' ? argv[0] + len + 1 : NULL;
        int rc;

        if (strlen(option->name) != len || strncmp(option->name, argv[0], len) != 0) {
            continue;
        }
        if (option->kind == OPTION_FLAG) {
            rc = value != NULL ? err_set(err, -EINVAL, "%s takes no value", option->name)
                               : set_option(options, option, NULL, err);
            return rc < 0 ? rc : 1;
        }
        if (value == NULL && argv[1] == NULL) {
            return err_set(err, -EINVAL, "%s needs a value: %s", option->name, option->value);
        }
        rc = set_option(options, option, value != NULL ? value : argv[1], err);
        return rc < 0 ? rc : value != NULL ? 1 : 2;
    }
    return err_set(err, -EINVAL, "there is no flag \"%.60s\"; corbeld --help lists them", argv[0]);
}

/* What is not given: the host's directories, or the user's. */
static int fill_paths(struct daemon_options *options, const char *monitor, struct err *err)
{
    const struct {
        char *path;
        const char *system, *variable, *fallback, *leaf;
    } paths[] = {
        {options->state, "/var/lib/corbel", "XDG_DATA_HOME", ".local/share", "/daemon"},
        {options->images, "/var/lib/corbel/images", "XDG_DATA_HOME", ".local/share", "/images"},
    };
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < ARRAY_LEN(paths); i++) {
        if (paths[i].path[0] != '\0') {
            continue;
        }
        rc = options->is_system ? path_format(paths[i].path, err, "%s", paths[i].system)
                                : path_find_home(paths[i].path, paths[i].variable,
                                                 paths[i].fallback, paths[i].leaf, err);
    }
    if (rc == 0 && options->runtime[0] == '\0') {
        rc = options->is_system ? path_format(options->runtime, err, "/run/corbel")
                                : path_find_runtime(options->runtime, "corbeld", err);
    }
    if (rc == 0 && options->socket[0] == '\0') {
        rc = path_format(options->socket, err, "%s/api.sock", options->runtime);
    }
    if (rc == 0 && options->vmm[0] == '\0') {
        const char *vmm = getenv("CORBEL_VMM"); // NOLINT(concurrency-mt-unsafe)

        vmm = vmm != NULL ? vmm : monitor;
        rc = vmm != NULL ? path_format(options->vmm, err, "%s", vmm)
                         : path_find_beside(options->vmm, "corbel-vmm", err);
    }
    return rc;
}

/* Paths go to monitors, which start elsewhere. */
static int check_absolute(const struct daemon_options *options, struct err *err)
{
    const char *const paths[] = {options->state, options->runtime, options->images, options->socket,
                                 options->vmm};

    for (size_t i = 0; i < ARRAY_LEN(paths); i++) {
        if (paths[i][0] != '/') {
            return err_set(err, -EINVAL, "\"%.200s\" is no absolute path; begin it with /",
                           paths[i]);
        }
    }
    return 0;
}

int options_read(struct daemon_options *options, char **argv, const char *monitor, struct err *err)
{
    int rc;

    *options = (struct daemon_options){.log_level = LOG_LEVEL_INFO};
    while (*argv != NULL) {
        int used = read_option(options, argv, err);

        if (used < 0) {
            return used;
        }
        argv += used;
    }
    if (options->wants_help || options->wants_version) {
        return 0;
    }
    if ((options->certificate != NULL) != (options->key != NULL)) {
        return err_set(err, -EINVAL, "--tls-certificate and --tls-key go together");
    }
    rc = fill_paths(options, monitor, err);
    return rc < 0 ? rc : check_absolute(options, err);
}

int options_split_address(const char *text, char out[64], unsigned *ret_port, struct err *err)
{
    const char *colon = strrchr(text, ':');
    const char *end = colon;
    unsigned long port = 0;
    char *rest = NULL;

    if (colon != NULL && text[0] == '[' && colon > text && colon[-1] == ']') {
        text++;
        end = colon - 1;
    }
    if (colon != NULL && colon[1] >= '0' && colon[1] <= '9') {
        port = strtoul(colon + 1, &rest, 10);
    }
    if (rest == NULL || *rest != '\0' || port > 65535 || end == text || end - text > 63) {
        return err_set(err, -EINVAL, "--listen: give ADDRESS:PORT, such as 127.0.0.1:8480");
    }
    memcpy(out, text, (size_t)(end - text));
    out[end - text] = '\0';
    *ret_port = (unsigned)port;
    return 0;
}

void options_print_help(void)
{
    (void)fputs("usage: corbeld [FLAG]...\n"
                "Keeps this host's instances, and serves their interface.\n\n",
                stdout);
    for (size_t i = 0; i < ARRAY_LEN(options_table); i++) {
        const struct option *option = &options_table[i];

        printf("  %s%s%s\n        %s\n", option->name, option->value != NULL ? " " : "",
               option->value != NULL ? option->value : "", option->help);
    }
}
