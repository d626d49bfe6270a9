/* corbel list and remove. */
#include "cli/cli.h"
#include "cli/instance.h"
#include "cli/paths.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

static int is_visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static json_t *describe(const struct instance *i)
{
    json_t *row =
        json_pack("{s:s, s:s, s:s, s:s}", "name", i->name, "state",
                  i->is_running ? "running" : "stopped", "image", i->image.kind, "dir", i->dir);

    if (row != NULL && i->is_running) {
        (void)json_object_set_new(row, "pid", json_integer(i->pid));
        (void)json_object_set_new(row, "cpus", json_integer(i->cpus));
        (void)json_object_set_new(row, "memory", json_string(i->memory));
        (void)json_object_set_new(row, "engine", json_string(i->engine));
        (void)json_object_set_new(row, "ssh_port", json_integer(i->ssh_port));
        (void)json_object_set_new(row, "runtime", json_string(i->runtime));
    }
    return row;
}

static void print_row(const struct instance *i)
{
    char ssh[16] = "-";

    if (!i->is_running) {
        printf("%-20s %-8s %-12s\n", i->name, "stopped", i->image.kind);
        return;
    }
    if (i->ssh_port != 0) {
        (void)snprintf(ssh, sizeof(ssh), "%u", i->ssh_port);
    }
    printf("%-20s %-8s %-12s %8d %4u %8s %-6s %s\n", i->name, "running", i->image.kind, i->pid,
           i->cpus, i->memory, i->engine, ssh);
}

int verb_list(const struct cli *cli, const void *values, const struct args *args, struct err *err)
{
    const struct list_options *options = values;
    struct dirent **entries = NULL;
    json_t *rows = json_array();
    int n;

    (void)args;
    (void)err;
    instance_sweep(cli);
    n = scandir(cli->instances, &entries, is_visible, alphasort);
    if (!options->json) {
        printf("%-20s %-8s %-12s %8s %4s %8s %-6s %s\n", "NAME", "STATE", "IMAGE", "PID", "CPUS",
               "MEMORY", "ENGINE", "SSH PORT");
    }
    for (int i = 0; i < n; i++) {
        struct instance instance;
        struct err why = {0};

        if (instance_find(cli, entries[i]->d_name, &instance, &why) < 0) {
            (void)fprintf(stderr, "corbel: %s, ignoring\n", why.text);
        } else if (options->json) {
            (void)json_array_append_new(rows, describe(&instance));
        } else {
            print_row(&instance);
        }
        free(entries[i]);
    }
    free(entries);
    if (options->json) {
        (void)json_dumpf(rows, stdout, JSON_INDENT(2));
        (void)putchar('\n');
    }
    json_decref(rows);
    return 0;
}

int verb_remove(const struct cli *cli, const void *values, const struct args *args, struct err *err)
{
    struct instance instance;
    CLEANUP_CLOSE int lock = -1;
    int rc = instance_lock(cli, args->words[0], &lock, err);

    (void)values;
    if (rc == 0) {
        rc = instance_find(cli, args->words[0], &instance, err);
    }
    if (rc == 0 && instance.is_running) {
        rc = err_set(err, -EBUSY, "\"%s\" runs; stop it first: corbel stop %s", instance.name,
                     instance.name);
    }
    return rc < 0 ? rc : instance_remove(&instance, err);
}
