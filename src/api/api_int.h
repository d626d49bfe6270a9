#ifndef CORBEL_API_API_INT_H
#define CORBEL_API_API_INT_H

#include "api/api.h"
#include "base/loop.h"
#include "base/thread.h"

#include <stdatomic.h>

enum { API_PARAMETERS_MAX = 8, API_ID_BYTES = 64 };

/* What somebody may do at most; each includes those before it. */
enum role {
    ROLE_NONE,   /* sign in, read the description of the interface */
    ROLE_VIEWER, /* look at the objects of a project */
    ROLE_MEMBER, /* make, change, use and delete them */
    ROLE_ADMIN   /* all projects, users, types, images */
};

struct identity {
    enum role role;
    char actor[96];   /* "uid:1000", "user:ann", "token:..." */
    char user[64];    /* whose rights these are, also by a token; empty: nobody's who signs in */
    char project[64]; /* the only one it may touch; empty: all */
    char session[64]; /* of a user who signed in; empty: none */
    char role_name[64];
    /* Of a user's and of a token's role, where they are none of the built-in ones: all must allow
     * what is done. The identity's own, see identity_done(). */
    json_t *policies[2];
    unsigned policy_count;
};

struct api_call;
typedef int (*api_handler)(struct api *api, struct api_call *call, json_t **ret_answer,
                           struct fault *fault);

enum api_body {
    API_BODY_NONE,
    API_BODY_CREATE, /* the kind's fields for creation */
    API_BODY_CHANGE, /* ... for changes */
    API_BODY_FIELDS, /* fields */
    API_BODY_ROLE,   /* a policy document, which its handler looks at */
    API_BODY_BYTES,  /* anything, as it is */
    API_BODY_ACTION  /* the fields of the action that the path names */
};

/* One operation. Dispatcher, OpenAPI document and audit log know it from here only. */
struct api_operation {
    const char *id; /* "instance.create" */
    const char *method;
    const char *path; /* "/v1/instances/{id}" */
    enum role role;
    enum kind kind; /* of the objects that it is about; KIND_COUNT: none */
    enum api_body body;
    const struct field *fields;
    unsigned field_count;
    const char *query; /* names of the query parameters: "limit cursor"; with "*" fields too */
    int status;        /* when it is done; 202 takes its place where an operation goes on */
    api_handler handle;
    const char *summary;
};

struct api_call {
    struct http_exchange *exchange;
    const struct http_request *request;
    const struct api_operation *operation;
    struct identity identity;
    char id[API_ID_BYTES];     /* {id} of the path; empty when there is none */
    char action[API_ID_BYTES]; /* {action} or {pid} of the path */
    char request_id[24];
    json_t *body; /* an object, or NULL */
    struct compute_call compute;
    uint64_t looked_at;     /* the revision that the object must still be at; 0: any */
    const char *set_cookie; /* for the answer; NULL: none */
    char cookie[256];
    const char *location;  /* where a browser goes on; NULL: nowhere */
    char *text;            /* an answer that is no JSON, malloc'd; NULL: none */
    const char *text_type; /* of it */
    bool is_streaming;     /* the exchange has been given to api/streams */
};

struct api {
    struct api_config config;
    struct mutex mutex; /* queue, limits, streams' list */
    pthread_cond_t is_work;
    pthread_t *threads;
    unsigned thread_count;
    struct job *first, *last;
    unsigned queued;
    bool is_ending;
    struct rate_limits *limits;
    struct audit *audit;
    struct streams *streams;
    atomic_uint accounts_turn; /* another after each change of a user, token or session */
    atomic_uint next_request;
    atomic_uint waiting;          /* calls that wait for an operation */
    _Atomic uint64_t answered[6]; /* calls, by the hundreds of their status */
};

/* operations.c */
const struct api_operation *api_operations(unsigned *ret_count);
/* The operation for a method and path; its path's parameters go into call. *ret_is_path: another
 * method of the path exists. */
const struct api_operation *operation_find(const char *method, const char *path,
                                           struct api_call *call, bool *ret_is_path);

/* answer.c */
int answer_status(enum fault_code code);
void answer_send(struct api_call *call, int status, const json_t *answer);
void answer_text(struct api_call *call, int status, const char *text);
void answer_fault(struct api_call *call, int status, const struct fault *fault);

/* auth.c: 0, and an identity to be given to identity_done(); or the status of the refusal with the
 * fault filled in, and nothing to be given back. */
int auth_identify(struct api *api, const struct http_exchange *exchange, bool is_socket,
                  struct identity *ret_identity, struct fault *fault);
int auth_permit(const struct identity *identity, const struct api_operation *operation,
                struct fault *fault);
/* The text of a member of a record; "" where there is none. */
const char *text_of(const json_t *object, const char *name);
const char *role_name(enum role role);
/* "viewer", "member", "admin"; ROLE_NONE for anything else. */
enum role role_find(const char *name);
int auth_random_text(char *text, size_t bytes) MUST_CHECK; /* bytes: with the NUL */
/* The record at prefix + ID whose secret is in "ID_SECRET", new; NULL when there is none. */
json_t *auth_check_secret(struct api *api, const char *prefix, const char *token);
int auth_hash(const char *secret, char *ret_hex, size_t size) MUST_CHECK;
#define AUTH_ROLE_PREFIX "/auth/role/"
#define AUTH_USER_PREFIX "/auth/user/"
#define AUTH_KEY_PREFIX "/auth/key/"
#define AUTH_SESSION_PREFIX "/auth/session/"
#define AUTH_LINK_PREFIX "/auth/link/"
/* Members of a user's record, random. What is made for the user keeps a copy as its "stamp", so that
 * it is not good for another user of that name, nor a session after another password. */
#define AUTH_STAMP_OF_TOKENS "token_stamp"
#define AUTH_STAMP_OF_SESSIONS "session_stamp"
#define AUTH_COOKIE "corbel_session"

enum { ADMIN_KEY_BYTES = 128 };

/* The record of a user who is role admin and bound to no project, as it was found. */
struct admin {
    char key[ADMIN_KEY_BYTES];
    uint64_t revision;
};

/* policy.c: what a policy is asked. */
struct policy_question {
    const char *action;    /* "instance.change", "instance.act.start" */
    const char *operation; /* of the table: "instance.act" */
    const char *kind;      /* "instance"; of what is no object the action's first word */
    const char *id;        /* NULL: none yet */
    const json_t *tags;    /* NULL: none */
    enum { POLICY_THIS, POLICY_SOME, POLICY_ALL } of; /* the object, at least one, each there is */
};

/* Whether each of its policies allows it; true without any. */
bool policy_allows(const struct identity *identity, const struct policy_question *asked);
/* The least of viewer and member whose operations contain all that it allows. */
enum role policy_level(const json_t *policy);
int policy_check(const json_t *statements, struct fault *fault) MUST_CHECK;
json_t *policy_built_in(enum role role);
json_t *policy_schema(void); /* of the statements of a body */

/* permit.c: with the object in hand. 0, or the status of the refusal. A name in call->id becomes
 * the object's id. */
int permit_call(struct api *api, struct api_call *call, struct fault *fault) MUST_CHECK;
bool permit_listed(struct api *api, const struct identity *identity, enum kind kind,
                   const json_t *object);
bool permit_told(struct api *api, const struct identity *identity, const json_t *change);
/* Whether a console of an instance, or (id NULL) an event stream, may go on. */
bool permit_stream(struct api *api, const struct identity *identity, const char *id);

/* roles.c */
/* The level of a role by name, its policy put to the identity's; ROLE_NONE: there is none. */
enum role roles_take(struct api *api, const char *name, struct identity *identity);
bool roles_exists(struct api *api, const char *name);
void identity_done(struct identity *identity);
int roles_list(struct api *, struct api_call *, json_t **, struct fault *);
int roles_get(struct api *, struct api_call *, json_t **, struct fault *);
int roles_create(struct api *, struct api_call *, json_t **, struct fault *);
int roles_change(struct api *, struct api_call *, json_t **, struct fault *);
int roles_delete(struct api *, struct api_call *, json_t **, struct fault *);
json_t *roles_schema(bool has_name); /* of a body */

/* admins.c: who signs in and can administer the host */
bool admins_is_one(const json_t *user);
/* One who is not of that name. -ENOENT: there is none, and the fault is as it was. */
int admins_find_another(struct api *api, const char *name, struct admin *ret_admin,
                        struct fault *fault) MUST_CHECK;

/* users.c, tokens.c, sessions.c: who calls; accounts.h has what they share */
extern const struct field account_user_fields[4], account_user_changes[3], account_key_fields[4],
    account_session_fields[3], account_link_fields[1];
int accounts_list_users(struct api *, struct api_call *, json_t **, struct fault *);
int accounts_create_user(struct api *, struct api_call *, json_t **, struct fault *);
int accounts_change_user(struct api *, struct api_call *, json_t **, struct fault *);
int accounts_delete_user(struct api *, struct api_call *, json_t **, struct fault *);
int accounts_list_keys(struct api *, struct api_call *, json_t **, struct fault *);
int accounts_create_key(struct api *, struct api_call *, json_t **, struct fault *);
int accounts_delete_key(struct api *, struct api_call *, json_t **, struct fault *);
int accounts_sign_in(struct api *, struct api_call *, json_t **, struct fault *);
int accounts_make_link(struct api *, struct api_call *, json_t **, struct fault *);
int accounts_follow_link(struct api *, struct api_call *, json_t **, struct fault *);
int accounts_sign_out(struct api *, struct api_call *, json_t **, struct fault *);
int accounts_who(struct api *, struct api_call *, json_t **, struct fault *);

/* factor.c: a second factor */
extern const struct field factor_code_fields[1], factor_password_fields[1];
int factor_begin(struct api *, struct api_call *, json_t **, struct fault *);
int factor_confirm(struct api *, struct api_call *, json_t **, struct fault *);
int factor_remove(struct api *, struct api_call *, json_t **, struct fault *);
int factor_reset(struct api *, struct api_call *, json_t **, struct fault *);
/* Whether the code is good for the user, whose record is saved. FAULT_INVALID with field "code". */
int factor_pass(struct api *api, json_t *user, uint64_t revision, const char *code,
                struct fault *fault) MUST_CHECK;

/* guests.c: what is asked of an instance's agent */
int guests_agent(struct api *, struct api_call *, json_t **, struct fault *);
int guests_exec(struct api *, struct api_call *, json_t **, struct fault *);
int guests_exec_status(struct api *, struct api_call *, json_t **, struct fault *);
int guests_read(struct api *, struct api_call *, json_t **, struct fault *);
int guests_write(struct api *, struct api_call *, json_t **, struct fault *);
int guests_password(struct api *, struct api_call *, json_t **, struct fault *);

/* objects.c: an unsigned query parameter, or preset when it is absent */
int query_number(const struct api_call *call, const char *name, uint64_t max, uint64_t preset,
                 uint64_t *ret_value, struct fault *fault);
/* ... and the handlers of kinds, actions, operations, the host */
int objects_list(struct api *, struct api_call *, json_t **, struct fault *);
int objects_get(struct api *, struct api_call *, json_t **, struct fault *);
int objects_create(struct api *, struct api_call *, json_t **, struct fault *);
int objects_change(struct api *, struct api_call *, json_t **, struct fault *);
int objects_delete(struct api *, struct api_call *, json_t **, struct fault *);
int objects_restore(struct api *, struct api_call *, json_t **, struct fault *);
int objects_act(struct api *, struct api_call *, json_t **, struct fault *);
int objects_statistics(struct api *, struct api_call *, json_t **, struct fault *);
int objects_access(struct api *, struct api_call *, json_t **, struct fault *);
int objects_log(struct api *, struct api_call *, json_t **, struct fault *);
int objects_wait(struct api *, struct api_call *, json_t **, struct fault *);
int objects_cancel(struct api *, struct api_call *, json_t **, struct fault *);
int objects_host(struct api *, struct api_call *, json_t **, struct fault *);
int objects_describe(struct api *, struct api_call *, json_t **, struct fault *);
int objects_version(struct api *, struct api_call *, json_t **, struct fault *);

/* shown.c: the address of an alarm's webhook may hold a secret; who may only look, or
 * has a role of one's own, gets its scheme and host, and cannot find alarms by it. The object is changed in place. */
bool shown_is_kept(const struct identity *who, enum kind kind, const char *field);
void shown_shorten(const struct identity *who, enum kind kind, json_t *object);
/* To a caller who is bound to a project, admission's refusal (it has a field) tells no sums of all. */
void shown_refusal(const struct identity *identity, struct fault *fault);

/* metrics.c: counters and history */
int metrics_text(struct api *, struct api_call *, json_t **, struct fault *);
int metrics_of_instance(struct api *, struct api_call *, json_t **, struct fault *);
int metrics_of_host(struct api *, struct api_call *, json_t **, struct fault *);

/* usage.c: what projects use */
int usage_report(struct api *, struct api_call *, json_t **, struct fault *);

/* limits.c: whether so many more calls by this name are within its rate: all of them, or none is
 * counted. Any thread. */
int limits_create(unsigned calls_per_s, struct rate_limits **ret_limits) MUST_CHECK;
void limits_destroy(struct rate_limits *limits);
bool limits_take(struct rate_limits *limits, const char *name, unsigned calls);

/* audit.c: one line a call. Any thread. */
int audit_open(const char *path, struct audit **ret_audit, struct err *err) MUST_CHECK;
void audit_close(struct audit *audit);
void audit_write(struct audit *audit, const struct api_call *call, int status, const char *code);

/* streams.c: event streams and consoles, on a thread of their own */
int streams_create(struct api *api, struct streams **ret_streams) MUST_CHECK;
void streams_destroy(struct streams *streams);
/* Sends the changes that a watch tells; the exchange and the watch are the streams' from then on. */
int streams_watch(struct api *api, struct api_call *call, json_t **ret_answer, struct fault *fault);
/* Carries bytes between a socket and a descriptor, which is the streams' from then on. */
int streams_console(struct streams *streams, const struct api_call *call, int fd);
void streams_console_input(struct streams *streams, struct http_exchange *exchange,
                           const void *data, size_t len);
void streams_gone(struct streams *streams, struct http_exchange *exchange);
/* Accounts have changed: ends those whose callers may not see what they tell any more. */
void streams_recheck(struct streams *streams);

#endif
