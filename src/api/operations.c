/* The one list of what the interface offers. /v1/openapi.json follows from it; docs/api.md introduces it. */
#include "api/api_int.h"

#include <string.h>

#define LIST_QUERY "project limit cursor *"
#define HISTORY_QUERY "project metric since until step"
#define CHANGE_QUERY "project dry_run revision"

/* The operations on one kind of object; `word` is the kind's name, `words` its plural. */
#define READ(KIND, word, words, role)                                                            \
    {word ".list", "GET", "/v1/" words, role, KIND,         API_BODY_NONE,                       \
     NULL,         0,     LIST_QUERY,   200,  objects_list, "Lists " words ", page by page."},   \
    {                                                                                            \
        word ".get", "GET", "/v1/" words "/{id}", role, KIND, API_BODY_NONE, NULL, 0, "project", \
            200, objects_get, "One " word " by id or name."                                      \
    }
#define CREATE(KIND, word, words, role)                                             \
    {                                                                               \
        word ".create", "POST", "/v1/" words, role, KIND, API_BODY_CREATE, NULL, 0, \
            "project dry_run", 201, objects_create, "Makes a new " word "."         \
    }
#define CHANGE(KIND, word, words, role)                                                      \
    {                                                                                        \
        word ".change", "PATCH", "/v1/" words "/{id}", role, KIND, API_BODY_CHANGE, NULL, 0, \
            CHANGE_QUERY, 200, objects_change,                                               \
            "Changes fields; null takes one back to its preset."                             \
    }
#define DELETE(KIND, word, words, role)                                                     \
    {                                                                                       \
        word ".delete", "DELETE", "/v1/" words "/{id}", role, KIND, API_BODY_NONE, NULL, 0, \
            "project dry_run", 200, objects_delete, "Deletes a " word "."                   \
    }
#define OTHER(id, method, path, role, query, status, handle, summary)                              \
    {                                                                                              \
        id, method, path, role, KIND_COUNT, API_BODY_NONE, NULL, 0, query, status, handle, summary \
    }

/* Of an instance, and answered with something else than one. */
#define OTHER_OF(id, method, path, role, body, fields, count, query, handle, summary)           \
    {                                                                                           \
        id, method, path, role, KIND_INSTANCE, body, fields, count, query, 200, handle, summary \
    }

static const struct api_operation operations[] = {
    READ(KIND_INSTANCE, "instance", "instances", ROLE_VIEWER),
    CREATE(KIND_INSTANCE, "instance", "instances", ROLE_MEMBER),
    CHANGE(KIND_INSTANCE, "instance", "instances", ROLE_MEMBER),
    DELETE(KIND_INSTANCE, "instance", "instances", ROLE_MEMBER),
    OTHER_OF("instance.agent", "GET", "/v1/instances/{id}/agent", ROLE_VIEWER, API_BODY_NONE, NULL,
             0, "project", guests_agent, "What the guest's agent says of itself and its network."),
    OTHER_OF("instance.exec", "POST", "/v1/instances/{id}/exec", ROLE_MEMBER, API_BODY_FIELDS,
             compute_exec_fields, COMPUTE_EXEC_FIELDS, "project", guests_exec,
             "Runs a program in the guest, as root, by its agent."),
    OTHER_OF("instance.exec.status", "GET", "/v1/instances/{id}/exec/{pid}", ROLE_MEMBER,
             API_BODY_NONE, NULL, 0, "project wait_ms", guests_exec_status,
             "Whether the program has ended, and what it wrote; its end is told once."),
    OTHER_OF("instance.file.read", "GET", "/v1/instances/{id}/files", ROLE_MEMBER, API_BODY_NONE,
             NULL, 0, "project path offset length", guests_read,
             "A piece of a file of the guest, as bytes."),
    OTHER_OF("instance.file.write", "PUT", "/v1/instances/{id}/files", ROLE_MEMBER, API_BODY_BYTES,
             NULL, 0, "project path offset", guests_write,
             "Writes a piece of a file of the guest; offset 0 makes it anew."),
    OTHER_OF("instance.password", "POST", "/v1/instances/{id}/password", ROLE_MEMBER,
             API_BODY_FIELDS, compute_password_fields, COMPUTE_PASSWORD_FIELDS, "project",
             guests_password, "Sets the password of a user of the guest."),
    {"instance.act", "POST", "/v1/instances/{id}/{action}", ROLE_MEMBER, KIND_INSTANCE,
     API_BODY_ACTION, NULL, 0, "project dry_run", 200, objects_act,
     "Starts, stops, restarts ... an instance."},
    {"instance.statistics", "GET", "/v1/instances/{id}/statistics", ROLE_VIEWER, KIND_INSTANCE,
     API_BODY_NONE, NULL, 0, "project", 200, objects_statistics,
     "What a running instance's monitor counts."},
    {"instance.history", "GET", "/v1/instances/{id}/history", ROLE_VIEWER, KIND_INSTANCE,
     API_BODY_NONE, NULL, 0, HISTORY_QUERY, 200, metrics_of_instance,
     "What an instance did over the last day, as series of means."},
    {"instance.access", "GET", "/v1/instances/{id}/access", ROLE_MEMBER, KIND_INSTANCE,
     API_BODY_NONE, NULL, 0, "project", 200, objects_access,
     "How to get in: ssh user, port and key, the console's password."},
    {"instance.log", "GET", "/v1/instances/{id}/log", ROLE_MEMBER, KIND_INSTANCE, API_BODY_NONE,
     NULL, 0, "project", 200, objects_log,
     "The last of what its serial console showed and its monitor said, also of one that has "
     "ended."},
    READ(KIND_TYPE, "type", "types", ROLE_VIEWER),
    CREATE(KIND_TYPE, "type", "types", ROLE_ADMIN),
    DELETE(KIND_TYPE, "type", "types", ROLE_ADMIN),
    READ(KIND_IMAGE, "image", "images", ROLE_VIEWER),
    READ(KIND_VOLUME, "volume", "volumes", ROLE_VIEWER),
    CREATE(KIND_VOLUME, "volume", "volumes", ROLE_MEMBER),
    CHANGE(KIND_VOLUME, "volume", "volumes", ROLE_MEMBER),
    DELETE(KIND_VOLUME, "volume", "volumes", ROLE_MEMBER),
    READ(KIND_SNAPSHOT, "snapshot", "snapshots", ROLE_VIEWER),
    CREATE(KIND_SNAPSHOT, "snapshot", "snapshots", ROLE_MEMBER),
    CHANGE(KIND_SNAPSHOT, "snapshot", "snapshots", ROLE_MEMBER),
    DELETE(KIND_SNAPSHOT, "snapshot", "snapshots", ROLE_MEMBER),
    {"snapshot.restore", "POST", "/v1/snapshots/{id}/restore", ROLE_MEMBER, KIND_SNAPSHOT,
     API_BODY_NONE, NULL, 0, "project dry_run", 200, objects_restore,
     "Puts its volume, or its stopped instance's disk, back to it."},
    READ(KIND_NIC, "nic", "nics", ROLE_VIEWER),
    CREATE(KIND_NIC, "nic", "nics", ROLE_MEMBER),
    CHANGE(KIND_NIC, "nic", "nics", ROLE_MEMBER),
    DELETE(KIND_NIC, "nic", "nics", ROLE_MEMBER),
    READ(KIND_KEY, "key", "keys", ROLE_VIEWER),
    CREATE(KIND_KEY, "key", "keys", ROLE_MEMBER),
    DELETE(KIND_KEY, "key", "keys", ROLE_MEMBER),
    READ(KIND_ALARM, "alarm", "alarms", ROLE_VIEWER),
    CREATE(KIND_ALARM, "alarm", "alarms", ROLE_MEMBER),
    CHANGE(KIND_ALARM, "alarm", "alarms", ROLE_MEMBER),
    DELETE(KIND_ALARM, "alarm", "alarms", ROLE_MEMBER),
    READ(KIND_HOOK, "hook", "hooks", ROLE_VIEWER),
    CREATE(KIND_HOOK, "hook", "hooks", ROLE_MEMBER),
    CHANGE(KIND_HOOK, "hook", "hooks", ROLE_MEMBER),
    DELETE(KIND_HOOK, "hook", "hooks", ROLE_MEMBER),
    READ(KIND_PROJECT, "project", "projects", ROLE_VIEWER),
    CREATE(KIND_PROJECT, "project", "projects", ROLE_ADMIN),
    CHANGE(KIND_PROJECT, "project", "projects", ROLE_ADMIN),
    DELETE(KIND_PROJECT, "project", "projects", ROLE_ADMIN),
    READ(KIND_EVENT, "event", "events", ROLE_VIEWER),
    READ(KIND_OPERATION, "operation", "operations", ROLE_VIEWER),
    OTHER("operation.wait", "GET", "/v1/operations/{id}/wait", ROLE_VIEWER, "project timeout_ms",
          200, objects_wait, "Answers when the operation has ended, or the time (30 s at most)."),
    OTHER("operation.cancel", "POST", "/v1/operations/{id}/cancel", ROLE_MEMBER, "project", 200,
          objects_cancel, "Asks an operation to end where it can."),
    OTHER("watch", "GET", "/v1/watch", ROLE_VIEWER, "project since", 200, streams_watch,
          "Changes of objects as server-sent events, from a revision on."),
    OTHER("host.get", "GET", "/v1/host", ROLE_VIEWER, "", 200, objects_host,
          "What the host has, and what is given away: to all, or of the caller's own project."),
    OTHER("host.history", "GET", "/v1/host/history", ROLE_VIEWER, HISTORY_QUERY, 200,
          metrics_of_host,
          "What the host did over the last day; not for those who are bound to a project."),
    OTHER("usage", "GET", "/v1/usage", ROLE_VIEWER, "project since until by format", 200,
          usage_report, "What projects used: JSON or CSV, by project, instance, day or hour."),
    OTHER("metrics", "GET", "/metrics", ROLE_VIEWER, "project", 200, metrics_text,
          "Counters of instances, host and daemon, as Prometheus reads them."),
    OTHER("user.list", "GET", "/v1/users", ROLE_ADMIN, "", 200, accounts_list_users,
          "Lists users."),
    {"user.create", "POST", "/v1/users", ROLE_ADMIN, KIND_COUNT, API_BODY_FIELDS,
     account_user_fields, 4, "", 201, accounts_create_user, "Makes a user who can sign in."},
    {"user.change", "PATCH", "/v1/users/{id}", ROLE_ADMIN, KIND_COUNT, API_BODY_FIELDS,
     account_user_changes, 3, "", 200, accounts_change_user,
     "Changes a user's password, role or project."},
    OTHER("user.delete", "DELETE", "/v1/users/{id}", ROLE_ADMIN, "", 200, accounts_delete_user,
          "Deletes a user with all sessions and keys."),
    OTHER("role.list", "GET", "/v1/roles", ROLE_ADMIN, "", 200, roles_list,
          "Lists roles, the three that are built in first."),
    OTHER("role.get", "GET", "/v1/roles/{id}", ROLE_ADMIN, "", 200, roles_get,
          "One role by name, with its statements."),
    {"role.create", "POST", "/v1/roles", ROLE_ADMIN, KIND_COUNT, API_BODY_ROLE, NULL, 0, "", 201,
     roles_create, "Makes a role of statements that allow and deny."},
    {"role.change", "PATCH", "/v1/roles/{id}", ROLE_ADMIN, KIND_COUNT, API_BODY_ROLE, NULL, 0, "",
     200, roles_change, "Gives a role other statements."},
    OTHER("role.delete", "DELETE", "/v1/roles/{id}", ROLE_ADMIN, "", 200, roles_delete,
          "Deletes a role that nobody has."),
    OTHER("token.list", "GET", "/v1/tokens", ROLE_VIEWER, "", 200, accounts_list_keys,
          "Lists the caller's API tokens, an administrator's all."),
    {"token.create", "POST", "/v1/tokens", ROLE_VIEWER, KIND_COUNT, API_BODY_FIELDS,
     account_key_fields, 4, "", 201, accounts_create_key,
     "Makes an API token; only this answer shows it."},
    OTHER("token.delete", "DELETE", "/v1/tokens/{id}", ROLE_VIEWER, "", 200, accounts_delete_key,
          "Revokes an API token."),
    {"session.create", "POST", "/v1/session", ROLE_NONE, KIND_COUNT, API_BODY_FIELDS,
     account_session_fields, 3, "", 201, accounts_sign_in,
     "Signs in by name, password and, where the user has one, second factor; sets a cookie."},
    {"session.link", "POST", "/v1/session/link", ROLE_ADMIN, KIND_COUNT, API_BODY_FIELDS,
     account_link_fields, 1, "", 201, accounts_make_link,
     "Makes a link that signs a browser in, once, within ten minutes."},
    OTHER("session.follow", "GET", "/v1/session/link/{id}", ROLE_NONE, "", 303,
          accounts_follow_link, "Signs in by a link; sets a cookie and leads to the console."),
    {"session.totp.begin", "POST", "/v1/session/totp", ROLE_VIEWER, KIND_COUNT, API_BODY_FIELDS,
     factor_password_fields, 1, "", 201, factor_begin,
     "Makes the secret of a second factor, shown this once; a code of it confirms it."},
    {"session.totp.confirm", "POST", "/v1/session/totp/confirm", ROLE_VIEWER, KIND_COUNT,
     API_BODY_FIELDS, factor_code_fields, 1, "", 200, factor_confirm,
     "From now on signing in asks for a code; shows the recovery codes, this once."},
    {"session.totp.remove", "POST", "/v1/session/totp/remove", ROLE_VIEWER, KIND_COUNT,
     API_BODY_FIELDS, factor_code_fields, 1, "", 200, factor_remove,
     "Takes the caller's second factor away, by a code of it."},
    OTHER("user.totp.reset", "DELETE", "/v1/users/{id}/totp", ROLE_ADMIN, "", 200, factor_reset,
          "Takes the second factor of a user away who has lost it."),
    OTHER("session.get", "GET", "/v1/session", ROLE_VIEWER, "", 200, accounts_who,
          "Who the caller is and may do."),
    OTHER("session.delete", "DELETE", "/v1/session", ROLE_VIEWER, "", 200, accounts_sign_out,
          "Signs out."),
    OTHER("openapi", "GET", "/v1/openapi.json", ROLE_NONE, "", 200, objects_describe,
          "This description."),
    OTHER("version", "GET", "/v1/version", ROLE_NONE, "", 200, objects_version,
          "The server's version."),
};

const struct api_operation *api_operations(unsigned *ret_count)
{
    *ret_count = sizeof(operations) / sizeof(operations[0]);
    return operations;
}

/* Takes one piece of a path up to the next '/'; false when it is empty or too long. */
static bool take_piece(const char **path, char *ret_piece)
{
    size_t len = strcspn(*path, "/");
    if (len == 0 || len >= API_ID_BYTES) {
        return false;
    }
    memcpy(ret_piece, *path, len);
    ret_piece[len] = 0;
    *path += len;
    return true;
}

static bool matches(const char *pattern, const char *path, struct api_call *call)
{
    while (*pattern != 0) {
        if (*pattern != '{') {
            if (*pattern++ != *path++) {
                return false;
            }
            continue;
        }
        bool is_id = pattern[1] == 'i';
        if (!take_piece(&path, is_id ? call->id : call->action)) {
            return false;
        }
        pattern = strchr(pattern, '}') + 1;
    }
    return *path == 0;
}

const struct api_operation *operation_find(const char *method, const char *path,
                                           struct api_call *call, bool *ret_is_path)
{
    *ret_is_path = false;
    if (strcmp(method, "HEAD") == 0) {
        method = "GET";
    }
    for (size_t i = 0; i < sizeof(operations) / sizeof(operations[0]); i++) {
        call->id[0] = call->action[0] = 0;
        if (matches(operations[i].path, path, call)) {
            *ret_is_path = true;
            if (strcmp(operations[i].method, method) == 0) {
                return &operations[i];
            }
        }
    }
    return NULL;
}
