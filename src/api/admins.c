/* Those who sign in and can administer the host: one has to remain. */
#include "api/accounts.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

bool admins_is_one(const json_t *user)
{
    return role_find(text_of(user, "role")) == ROLE_ADMIN && text_of(user, "project")[0] == 0;
}

struct search {
    const char *key; /* whose it must not be */
    struct admin *ret_admin;
};

static int is_another(void *opaque, const struct store_record *record, const json_t *user)
{
    const struct search *search = opaque;
    if (strcmp(record->key, search->key) == 0 || !admins_is_one(user)) {
        return 0;
    }
    search->ret_admin->revision = record->revision;
    (void)snprintf(search->ret_admin->key, sizeof(search->ret_admin->key), "%s", record->key);
    return 1;
}

int admins_find_another(struct api *api, const char *name, struct admin *ret_admin,
                        struct fault *fault)
{
    char key[ADMIN_KEY_BYTES];
    struct search search = {.key = key, .ret_admin = ret_admin};
    (void)snprintf(key, sizeof(key), AUTH_USER_PREFIX "%s", name);
    int rc = accounts_each(api, AUTH_USER_PREFIX, is_another, &search, fault);
    return rc > 0 ? 0 : rc == 0 ? -ENOENT : rc;
}
