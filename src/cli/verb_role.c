/* corbel role: statements of a role come from a file and are shown as JSON. */
#include "cli/verb_object.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* {"statements": [...]}, or the array alone; "-" is standard input. */
static int read_statements(const char *path, json_t *body, struct err *err)
{
    json_error_t error;
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    json_t *document, *statements;

    if (file == NULL) {
        return err_set_errno(err, errno == ENOENT ? -EINVAL : -errno, "%s cannot be read", path);
    }
    document = json_loadf(file, JSON_REJECT_DUPLICATES, &error);
    if (file != stdin) {
        (void)fclose(file);
    }
    if (document == NULL) {
        return err_set(err, -EINVAL, "%s is no JSON: line %d, column %d: %s", path, error.line,
                       error.column, error.text);
    }
    statements = json_is_array(document) ? document : json_object_get(document, "statements");
    if (statements == NULL) {
        json_decref(document);
        return err_set(err, -EINVAL, "%s has no \"statements\"", path);
    }
    (void)json_object_set(body, "statements", statements);
    json_decref(document);
    return 0;
}

static int fill_role(const struct api_options *options, const struct args *args, json_t *body,
                     struct err *err)
{
    (void)options;
    return read_statements(args->words[1], body, err);
}

static const struct column role_columns[] = {
    {"NAME", "name", CELL_TEXT},
    {"ADDED", "created", CELL_AGE},
    {NULL, NULL, CELL_TEXT},
};

const struct collection collection_roles = {"roles", "role", role_columns, fill_role};

int verb_role_show(const struct cli *cli, const void *values, const struct args *args,
                   struct err *err)
{
    struct client *client = NULL;
    json_t *role = NULL;
    int rc = api_open(cli, &client, err);

    (void)values;
    rc = rc < 0 ? rc : api_get(cli, client, "roles", args->words[0], &role, err);
    client_close(client);
    if (rc == 0) {
        table_print_json(role);
    }
    json_decref(role);
    return rc;
}

int verb_role_set(const struct cli *cli, const void *values, const struct args *args,
                  struct err *err)
{
    json_t *body = json_object();
    int rc = read_statements(args->words[1], body, err);

    (void)values;
    rc = rc < 0 ? rc : api_change(cli, "PATCH", "roles", args->words[0], NULL, body, err);
    json_decref(body);
    return rc;
}
