/*
 * What the verbs that ask the daemon share: its client, paths of its
 * interface, instances by name, waiting, and lists. client/client.h has the
 * errors.
 */
#ifndef CORBEL_CLI_API_H
#define CORBEL_CLI_API_H

#include "cli/cli.h"
#include "client/client.h"

#define API_PATH_BYTES 1024

/* The daemon that this command line is for. Says once when it has started one. */
int api_open(const struct cli *cli, struct client **ret_client, struct err *err) MUST_CHECK;

/*
 * "/v1/WORDS/NAME/REST?project=..." into out[API_PATH_BYTES]; name, which comes from the command
 * line, and rest may be NULL. -EINVAL when name can be none.
 */
int api_path(const struct cli *cli, char *out, const char *words, const char *name,
             const char *rest, struct err *err) MUST_CHECK;
/* Appends "?name=value", or "&". */
int api_query(char *path, const char *name, const char *value, struct err *err) MUST_CHECK;

/* GET of api_path(). */
int api_get(const struct cli *cli, struct client *client, const char *words, const char *name,
            json_t **ret_object, struct err *err) MUST_CHECK;
/* All pages of a list, as one array. query, of "name=value" texts, may be NULL. */
int api_list(const struct cli *cli, struct client *client, const char *words,
             const struct option_list *query, json_t **ret_items, struct err *err) MUST_CHECK;

/*
 * The instance that the first word names, or the only one that runs where there is no word.
 * -EINVAL when several do.
 */
int api_instance(const struct cli *cli, struct client *client, const struct args *args,
                 json_t **ret_instance, struct err *err) MUST_CHECK;
/* As api_instance(), for what needs a running one. */
int api_running_instance(const struct cli *cli, struct client *client, const struct args *args,
                         json_t **ret_instance, struct err *err) MUST_CHECK;

/*
 * One call of the method about api_path(), with a connection of its own, and the wait until what it
 * begins is done. rest and body may be NULL.
 */
int api_change(const struct cli *cli, const char *method, const char *words, const char *name,
               const char *rest, const json_t *body, struct err *err) MUST_CHECK;

/* POST /v1/instances/ID/ACTION, and the wait until it is done. ret_answer may be NULL. */
int api_act(const struct cli *cli, struct client *client, const json_t *instance,
            const char *action, const json_t *parameters, struct err *err) MUST_CHECK;

/* Waits for the operation of an answer and shows how far it is: a bar on a terminal, lines else. */
int api_wait(struct client *client, const char *what, const json_t *answer, struct err *err)
    MUST_CHECK;

/* A member's text, "" where there is none; its number, 0. */
const char *api_text(const json_t *object, const char *name);
json_int_t api_number(const json_t *object, const char *name);
/* What people call it: the name, else the id. */
const char *api_name(const json_t *object);

/* "K=V" words as an object of strings; "" for words without "=". */
int api_pairs(const struct option_list *list, const char *option, json_t **ret_object,
              struct err *err) MUST_CHECK;
/* "HOST:GUEST" or "GUEST" as {"host_port", "guest_port"}. */
int api_forward(const char *text, json_t **ret_forward, struct err *err) MUST_CHECK;

#endif
