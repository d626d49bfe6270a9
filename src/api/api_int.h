#ifndef CORBEL_API_API_INT_H
#define CORBEL_API_API_INT_H

#include "api/api.h"
#include "base/loop.h"
#include "base/thread.h"

#include <stdatomic.h>

enum { API_PARAMETERS_MAX = 8, API_ID_BYTES = 64 };

/* What somebody may do; each includes those before it. */
enum role {
    ROLE_NONE,   /* sign in, read the description of the interface */
    ROLE_VIEWER, /* look at the objects of a project */
    ROLE_MEMBER, /* make, change, use and delete them */
    ROLE_ADMIN   /* all projects, users, types, images */
};

struct identity {
    enum role role;
    char actor[96];   /* "uid:1000", "user:ann", "key:k-..." */
    char project[64]; /* the only one it may touch; empty: all */
    char session[64]; /* of a user who signed in; empty: none */
};

struct api_call;
typedef int (*api_handler)(struct api *api, struct api_call *call, json_t **ret_answer,
                           struct fault *fault);

enum api_body {
    API_BODY_NONE,
    API_BODY_CREATE, /* the kind's fields for creation */
    API_BODY_CHANGE, /* ... for changes */
    API_BODY_FIELDS, /* fields */
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
    const char *set_cookie; /* for the answer; NULL: none */
    char cookie[256];
    const char *location; /* where a browser goes on; NULL: nowhere */
    char *text;           /* an answer that is no JSON, malloc'd; NULL: none */
    bool is_streaming;    /* the exchange has been given to api/streams */
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

/* auth.c: fills call->identity. 0, or the status of the refusal with the fault filled in. */
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

/* admins.c: who signs in and can administer the host */
bool admins_is_one(const json_t *user);
/* One who is not of that name. -ENOENT: there is none, and the fault is as it was. */
int admins_find_another(struct api *api, const char *name, struct admin *ret_admin,
                        struct fault *fault) MUST_CHECK;

/* accounts.c: users, API keys, sessions */
extern const struct field account_user_fields[4], account_user_changes[3], account_key_fields[4],
    account_session_fields[2], account_link_fields[1];
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

/* shown.c: the address of an alarm's webhook may hold a secret; who may only look gets its scheme and
 * host, and cannot find alarms by it. The object is changed in place. */
bool shown_is_kept(enum role role, enum kind kind, const char *field);
void shown_shorten(enum role role, enum kind kind, json_t *object);
/* To a caller who is bound to a project, admission's refusal (it has a field) tells no sums of all. */
void shown_refusal(const struct identity *identity, struct fault *fault);

/* metrics.c: counters and history */
int metrics_text(struct api *, struct api_call *, json_t **, struct fault *);
int metrics_of_instance(struct api *, struct api_call *, json_t **, struct fault *);
int metrics_of_host(struct api *, struct api_call *, json_t **, struct fault *);

/* limits.c: whether one more call by this name is within its rate. Any thread. */
int limits_create(unsigned calls_per_s, struct rate_limits **ret_limits) MUST_CHECK;
void limits_destroy(struct rate_limits *limits);
bool limits_take(struct rate_limits *limits, const char *name);

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
