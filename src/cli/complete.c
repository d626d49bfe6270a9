/*
 * Completion in shells: `corbel complete WORD...` prints what the last word,
 * which may be empty, can become; the shells' scripts only pass that on. It
 * follows from the tables of verbs; names come from the daemon, if one runs.
 */
#include "cli/complete.h"
#include "cli/api.h"
#include "cli/verb_tables.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* As the interface has them, of alarms. */
#define ALARM_METRICS                                                                  \
    "cpu_percent steal_percent memory_resident_bytes memory_used_bytes "               \
    "disk_read_bytes_per_s disk_written_bytes_per_s disk_reads_per_s "                 \
    "disk_writes_per_s disk_latency_us net_received_bytes_per_s net_sent_bytes_per_s " \
    "net_received_packets_per_s net_sent_packets_per_s exits_per_s exit_latency_us"

struct completion {
    const struct cli *cli;
    const char *prefix; /* what is typed of the last word */
};

static void offer(const struct completion *c, const char *word)
{
    if (strncmp(word, c->prefix, strlen(c->prefix)) == 0) {
        puts(word);
    }
}

/* "auto kvm soft" */
static void offer_each(const struct completion *c, const char *words)
{
    char list[512];
    char *save = NULL;

    (void)snprintf(list, sizeof(list), "%s", words);
    for (char *word = strtok_r(list, " ", &save); word != NULL; word = strtok_r(NULL, " ", &save)) {
        offer(c, word);
    }
}

/* The names of the daemon's objects; none without a daemon. */
static void offer_names(const struct completion *c, const char *words)
{
    struct cli quiet = *c->cli;
    struct client *client = NULL;
    json_t *items = NULL, *item;
    struct err ignored;
    size_t i;

    quiet.never_start = true;
    if (api_open(&quiet, &client, &ignored) < 0) {
        return;
    }
    if (api_list(&quiet, client, words, NULL, &items, &ignored) == 0) {
        json_array_foreach(items, i, item)
        {
            offer(c, strcmp(words, "tokens") == 0 || strcmp(words, "operations") == 0
                         ? api_text(item, "id")
                         : api_name(item));
        }
    }
    json_decref(items);
    client_close(client);
}

/* The user-mode network, and the bridges that the daemon's host has for instances. */
static void offer_networks(const struct completion *c)
{
    struct cli quiet = *c->cli;
    struct client *client = NULL;
    json_t *host = NULL, *bridge;
    struct err ignored;
    size_t i;

    offer(c, "user");
    quiet.never_start = true;
    if (api_open(&quiet, &client, &ignored) < 0) {
        return;
    }
    if (client_call(client, "GET", "/v1/host", NULL, &host, &ignored) == 0) {
        json_array_foreach(json_object_get(host, "bridges"), i, bridge)
        {
            char word[64];

            (void)snprintf(word, sizeof(word), "bridge:%s", api_text(bridge, "name"));
            offer(c, word);
        }
    }
    json_decref(host);
    client_close(client);
}

/* What the value of an option may be, by what help calls it; nothing: the shell offers files. */
static void offer_value(const struct completion *c, const struct option_spec *option)
{
    static const struct {
        const char *option, *words, *names;
    } values[] = {
        {"--engine", "auto kvm soft", NULL},
        {"--role", "viewer member admin", NULL},
        {"--restart", "never on-failure always", NULL},
        {"--comparison", "above below", NULL},
        {"--action", "none stop reboot", NULL},
        {"--metric", ALARM_METRICS, NULL},
        {"--level", "info warning error", NULL},
        {"--by", "project instance day hour", NULL},
        {"--type", NULL, "types"},
        {"--project", NULL, "projects"},
        {"--volume", NULL, "volumes"},
        {"--instance", NULL, "instances"},
        {"--key", NULL, "keys"},
        {"--nic", NULL, "nics"},
        {"--snapshot", NULL, "snapshots"},
    };

    if (strcmp(option->name, "--network") == 0) {
        offer_networks(c);
    }
    for (size_t i = 0; i < ARRAY_LEN(values); i++) {
        if (strcmp(values[i].option, option->name) != 0) {
            continue;
        }
        if (values[i].words != NULL) {
            offer_each(c, values[i].words);
        } else {
            offer_names(c, values[i].names);
        }
    }
}

/* A word that is no option. */
static void offer_argument(const struct completion *c, const struct verb *v, unsigned position)
{
    static const struct {
        const char *group, *names;
    } kinds[] = {
        {"image", "images"},       {"volume", "volumes"},
        {"snapshot", "snapshots"}, {"type", "types"},
        {"key", "keys"},           {"project", "projects"},
        {"quota", "projects"},     {"user", "users"},
        {"token", "tokens"},       {"operation", "operations"},
        {"forward", "instances"},  {"alarm", "alarms"},
        {"nic", "nics"},           {"hook", "hooks"},
        {"role", "roles"},
    };
    bool is_new = strcmp(v->name, "create") == 0 || strcmp(v->name, "build") == 0;
    bool is_name = strstr(v->arguments, "NAME") != NULL ||
                   strstr(v->arguments, "PROJECT") != NULL || strstr(v->arguments, "ID") != NULL;

    if (strcmp(v->name, "build") == 0) {
        offer_each(c, "debian debian-bench busybox");
    } else if (strcmp(v->name, "completion") == 0) {
        offer_each(c, "bash zsh fish");
    }
    if (v->group == NULL && strcmp(v->name, "run") == 0) {
        offer_names(c, "images");
    } else if (v->group == NULL && is_name && strcmp(v->name, "cp") != 0) {
        offer_names(c, "instances");
    }
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        if (v->group != NULL && strcmp(v->group, kinds[i].group) == 0 && is_name && !is_new &&
            position == 0) {
            offer_names(c, kinds[i].names);
        }
    }
}

static void offer_verbs(const struct completion *c, const char *group)
{
    const struct verb *v;
    const char *last = "";

    for (size_t i = 0; (v = verb_at(i)) != NULL; i++) {
        if (group != NULL) {
            if (v->group != NULL && strcmp(v->group, group) == 0) {
                offer(c, v->name);
            }
        } else if (v->group == NULL) {
            offer(c, v->name);
        } else if (strcmp(v->group, last) != 0) {
            offer(c, v->group);
            last = v->group;
        }
    }
}

static const struct option_spec *find_option(const struct verb *v, const char *word)
{
    for (const struct option_spec *s = v->options; s != NULL && s->name != NULL; s++) {
        if (strcmp(s->name, word) == 0) {
            return s;
        }
    }
    return NULL;
}

/* words: those after the verb, up to the one that is typed, which is the last. */
static void offer_for_verb(const struct completion *c, const struct verb *v, char **words)
{
    const struct option_spec *awaited = NULL;
    unsigned position = 0;

    for (; words[0] != NULL && words[1] != NULL; words++) {
        if (strcmp(words[0], "--") == 0) {
            return; /* a command's own words */
        }
        if (awaited != NULL) {
            awaited = NULL;
            continue;
        }
        awaited = find_option(v, words[0]);
        awaited = awaited != NULL && awaited->argument != NULL ? awaited : NULL;
        position += words[0][0] != '-';
    }
    if (awaited != NULL) {
        offer_value(c, awaited);
    } else if (c->prefix[0] == '-') {
        for (const struct option_spec *s = v->options; s != NULL && s->name != NULL; s++) {
            offer(c, s->name);
        }
        offer(c, "--help");
    } else {
        offer_argument(c, v, position);
    }
}

static bool is_group(const char *word)
{
    const struct verb *v;

    for (size_t i = 0; (v = verb_at(i)) != NULL; i++) {
        if (v->group != NULL && strcmp(v->group, word) == 0) {
            return true;
        }
    }
    return false;
}

int complete_words(const struct cli *cli, char **words)
{
    struct completion c = {.cli = cli, .prefix = ""};
    const struct verb *v;
    int taken = 0;

    for (size_t i = 0; words[i] != NULL; i++) {
        c.prefix = words[i];
    }
    if (words[0] == NULL || words[1] == NULL) {
        offer_verbs(&c, NULL);
        return 0;
    }
    v = verb_find(words, &taken);
    if (v != NULL && words[taken] != NULL) {
        offer_for_verb(&c, v, words + taken);
    } else if (is_group(words[0]) && words[2] == NULL) {
        offer_verbs(&c, words[0]);
    }
    return 0;
}

int verb_completion(const struct cli *cli, const void *values, const struct args *args,
                    struct err *err)
{
    static const struct {
        const char *shell, *script;
    } scripts[] = {
        {"bash", "_corbel() {\n"
                 "    local IFS=$'\\n'\n"
                 "    COMPREPLY=($(corbel complete \"${COMP_WORDS[@]:1:COMP_CWORD}\" "
                 "2>/dev/null))\n"
                 "}\n"
                 "complete -o default -F _corbel corbel\n"},
        {"zsh", "#compdef corbel\n"
                "_corbel() {\n"
                "    local -a found\n"
                "    found=(\"${(@f)$(corbel complete \"${(@)words[2,CURRENT]}\" 2>/dev/null)}\")\n"
                "    if [[ -n \"$found\" ]]; then compadd -a found; else _files; fi\n"
                "}\n"
                "if [[ \"$funcstack[1]\" == _corbel ]]; then _corbel; else compdef _corbel corbel; "
                "fi\n"},
        {"fish", "complete -c corbel -a '(corbel complete (commandline -opc)[2..-1] "
                 "(commandline -ct) 2>/dev/null)'\n"},
    };

    (void)cli;
    (void)values;
    for (size_t i = 0; i < ARRAY_LEN(scripts); i++) {
        if (strcmp(scripts[i].shell, args->words[0]) == 0) {
            (void)fputs(scripts[i].script, stdout);
            return 0;
        }
    }
    return err_set(err, -EINVAL, "there are completions for bash, zsh and fish, not for \"%.40s\"",
                   args->words[0]);
}
