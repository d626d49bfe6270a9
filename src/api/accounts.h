#ifndef CORBEL_API_ACCOUNTS_H
#define CORBEL_API_ACCOUNTS_H

/*
 * What users, tokens and sessions have in common: JSON records in the store below the prefixes of
 * api_int.h, which only this floor knows. Any thread; the store is asked each time. What is loaded is
 * the caller's. Failures are told in fault; a change of a record, or its end, makes the streams look
 * at their callers again.
 */
#include "api/api_int.h"

enum { ACCOUNTS_ID_BYTES = 13, ACCOUNTS_SECRET_BYTES = 53 };

/* The fields "role" and "project" of users and tokens. */
#define ACCOUNTS_ROLE(access, preset)                                                            \
    {                                                                                            \
        "role", FIELD_NAME, access, 1, 63, NULL, preset, "viewer, member, admin, or a role made" \
    }
#define ACCOUNTS_PROJECT                                                                         \
    {                                                                                            \
        "project", FIELD_NAME, FIELD_AT_CREATE, 1, 63, NULL, NULL, "the only project; none: all" \
    }

int accounts_load(struct api *api, const char *prefix, const char *id, json_t **ret_object,
                  uint64_t *ret_revision, struct fault *fault) MUST_CHECK;
/* revision: as for store_swap(); object NULL deletes. */
int accounts_save(struct api *api, const char *prefix, const char *id, uint64_t revision,
                  const json_t *object, struct fault *fault) MUST_CHECK;
/* ... if the other (NULL: none) is still as it was found. */
int accounts_save_beside(struct api *api, const char *prefix, const char *id, uint64_t revision,
                         const json_t *object, const struct admin *other, struct fault *fault)
    MUST_CHECK;
/* A new record that lives on a lease, so that it goes by itself. */
int accounts_save_for(struct api *api, const char *prefix, const char *id, unsigned seconds,
                      const json_t *object, struct fault *fault) MUST_CHECK;

/* Called with each record below a prefix; the object is its own. Other than 0 ends it, as the result
 * of accounts_each(). A record may be changed from it. */
typedef int (*accounts_visit)(void *opaque, const struct store_record *record,
                              const json_t *object);
int accounts_each(struct api *api, const char *prefix, accounts_visit visit, void *opaque,
                  struct fault *fault) MUST_CHECK;

/* What a record shows of itself: all but its secrets. A new object. */
json_t *accounts_shown(const json_t *record);
/* ... as an answer. */
int accounts_answer(const json_t *record, json_t **ret_answer);
/* ... of all below a prefix, as an answer. only: whose tokens alone; NULL: all there is. */
int accounts_list(struct api *api, const char *prefix, const struct identity *only, json_t **ret,
                  struct fault *fault) MUST_CHECK;

/* A new random id and secret; the hash goes into record, the secret is told once. */
int accounts_make_secret(json_t *record, char *ret_id, char *ret_secret, size_t secret_bytes,
                         struct fault *fault) MUST_CHECK;

/* users.c: whether there is the role that a body names */
int accounts_check_role(struct api *api, const json_t *body, struct fault *fault) MUST_CHECK;
/* ... the random stamps of a new user */
int accounts_set_stamps(json_t *user, struct fault *fault) MUST_CHECK;
/* ... with which the user's sessions of before end */
int accounts_end_sessions(json_t *user, struct fault *fault) MUST_CHECK;
/* ... whether the password is that of the user (NULL: nobody, which takes as long). */
bool accounts_is_password(const json_t *user, const char *password);

/* sessions.c: a session for the user, in the answer's cookie */
int accounts_begin_session(struct api *api, struct api_call *call, const json_t *user,
                           struct fault *fault) MUST_CHECK;

/* tokens.c: whether a token is the caller's to see and to revoke: a token's is itself alone */
bool accounts_owns_token(const struct identity *identity, const json_t *key);

#endif
