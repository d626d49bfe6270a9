#include "storage/json_text.h"

#include <errno.h>
#include <string.h>

int json_text_copy(const json_t *object, const char *key, char *out, size_t out_size)
{
    const json_t *member = json_object_get(object, key);

    out[0] = '\0';
    if (member == NULL) {
        return 0;
    }
    if (!json_is_string(member) || json_string_length(member) >= out_size) {
        return -EINVAL;
    }
    memcpy(out, json_string_value(member), json_string_length(member) + 1);
    return 0;
}
