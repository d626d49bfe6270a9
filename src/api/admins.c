/* Those who sign in and can administer the host: one has to remain. */
#include "api/api_int.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

bool admins_is_one(const json_t *user)
{
    return role_find(text_of(user, "role")) == ROLE_ADMIN && text_of(user, "project")[0] == 0;
}

/* Whether the record is another's, who is one. */
static bool is_another(const struct store_record *record, const char *key)
{
    json_t *user = strcmp(record->key, key) != 0 ? json_loads(record->value, 0, NULL) : NULL;
    bool is_one = admins_is_one(user);
    json_decref(user);
    return is_one;
}

int admins_find_another(struct api *api, const char *name, struct admin *ret_admin,
                        struct fault *fault)
{
    char key[ADMIN_KEY_BYTES];
    struct admin last = {0};
    struct store_page page;
    struct err err = {0};
    bool is_found = false, has_more;
    (void)snprintf(key, sizeof(key), AUTH_USER_PREFIX "%s", name);
    do {
        int error = store_list(api->config.store, AUTH_USER_PREFIX,
                               last.key[0] != 0 ? last.key : NULL, STORE_MAX_PAGE, &page, &err);
        if (error != 0) {
            return fault_set_err(fault, error, &err);
        }
        for (unsigned i = 0; i < page.count && !is_found; i++) {
            const struct store_record *record = &page.records[i];
            is_found = is_another(record, key);
            last.revision = record->revision;
            (void)snprintf(last.key, sizeof(last.key), "%s", record->key);
        }
        has_more = page.has_more && page.count > 0;
        store_page_done(&page);
    } while (!is_found && has_more);
    *ret_admin = last;
    return is_found ? 0 : -ENOENT;
}
