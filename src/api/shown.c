/* What of an answer only some see: those who may change it, or are bound to no project. */
#include "api/api_int.h"

#include <stdio.h>
#include <string.h>

/* The scheme and the host of "https://user:password@host:port/path" into out; false: there is no
 * telling where the host ends. */
static bool shorten(const char *url, char *out, size_t size)
{
    const char *host = strstr(url, "://");
    if (host == NULL) {
        return false;
    }
    host += 3;
    int scheme_len = (int)(host - url);
    size_t len = strcspn(host, "/?#\\");
    for (size_t i = 0; i < len; i++) {
        if (host[i] == '@') { /* what is before it is a user's name and password */
            len -= i + 1;
            host += i + 1;
            i = (size_t)-1;
        }
    }
    if (len == 0 || strspn(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                 ".-_:[]") < len) {
        return false;
    }
    int written = snprintf(out, size, "%.*s%.*s/…", scheme_len, url, (int)len, host);
    return written > 0 && (size_t)written < size;
}

bool shown_is_kept(const struct identity *who, enum kind kind, const char *field)
{
    return (who->role < ROLE_MEMBER || who->policy_count > 0) &&
           (kind == KIND_ALARM || kind == KIND_HOOK) && strcmp(field, "webhook") == 0;
}

void shown_refusal(const struct identity *identity, struct fault *fault)
{
    char field[sizeof(fault->field)];
    if (fault->code == FAULT_CAPACITY && fault->field[0] != 0 && identity->project[0] != 0) {
        memcpy(field, fault->field, sizeof(field));
        (void)fault_set(fault, FAULT_CAPACITY, field,
                        "the host has no room for this now; ask for less, or wait until it has");
    }
}

void shown_shorten(const struct identity *who, enum kind kind, json_t *object)
{
    char text[512];
    const char *url = json_string_value(json_object_get(object, "webhook"));
    if (url == NULL || !shown_is_kept(who, kind, "webhook")) {
        return;
    }
    if (shorten(url, text, sizeof(text))) {
        (void)json_object_set_new(object, "webhook", json_string(text));
    } else {
        (void)json_object_del(object, "webhook");
    }
}
