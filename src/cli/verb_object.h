/* What the verbs of all kinds of objects have in common: list, show, create, delete. */
#ifndef CORBEL_CLI_VERB_OBJECT_H
#define CORBEL_CLI_VERB_OBJECT_H

#include "cli/api.h"
#include "cli/table.h"
#include "cli/verb_tables.h"

struct collection {
    const char *path; /* "types", as in /v1/types */
    const char *word; /* "type" */
    const struct column *columns;
    /* The body of a creation, from the command line; NULL where nothing is created so. */
    int (*fill)(const struct api_options *options, const struct args *args, json_t *body,
                struct err *err);
};

extern const struct column instance_details[]; /* of each field that is shown as it is not */
extern const struct collection collection_instances, collection_types, collection_keys,
    collection_projects, collection_quotas, collection_users, collection_tokens, collection_events,
    collection_operations, collection_volumes, collection_snapshots, collection_nics,
    collection_alarms, collection_hooks, collection_roles;

/* A size as MiB or GiB, which it must be a multiple of, under a name of the body; text may be NULL. */
int object_set_size(json_t *body, const char *name, const char *option, const char *text,
                    unsigned shift, struct err *err) MUST_CHECK;
/* Those limits that are given; "none" is one of them. -EINVAL, naming the option. */
int object_set_limits(json_t *body, const struct limit_options *options, struct err *err)
    MUST_CHECK;
/* "30d", "12h", "90m", "600s" or "600" as seconds, under a name of the body; text may be NULL. */
int object_set_duration(json_t *body, const char *name, const char *option, const char *text,
                        struct err *err) MUST_CHECK;
void object_put_text(json_t *body, const char *name, const char *text); /* NULL: nothing */

#endif
