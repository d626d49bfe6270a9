#include "vmm/parse.h"

#include "base/wire.h"

/* Reads digits; leaves *text at the first byte that is none. */
static bool parse_digits(const char **text, uint64_t *ret_value)
{
    const char *p = *text;
    uint64_t value = 0;

    if (*p < '0' || *p > '9') {
        return false;
    }
    for (; *p >= '0' && *p <= '9'; p++) {
        if (!ck_mul_u64(value, 10, &value) || !ck_add_u64(value, (uint64_t)(*p - '0'), &value)) {
            return false;
        }
    }
    *text = p;
    *ret_value = value;
    return true;
}

bool parse_number(const char *text, uint64_t min, uint64_t max, uint64_t *ret_value)
{
    uint64_t value;

    if (!parse_digits(&text, &value) || *text != '\0' || value < min || value > max) {
        return false;
    }
    *ret_value = value;
    return true;
}

bool parse_size(const char *text, uint64_t *ret_bytes)
{
    static const char units[] = "KMGT";
    uint64_t bytes;

    if (!parse_digits(&text, &bytes)) {
        return false;
    }
    if (*text != '\0') {
        const char *unit = strchr(units, *text);

        if (unit == NULL || text[1] != '\0' ||
            !ck_mul_u64(bytes, 1ull << (10 * (unit - units + 1)), &bytes)) {
            return false;
        }
    }
    *ret_bytes = bytes;
    return true;
}

char *parse_split(char *text, char separator)
{
    char *end = strchr(text, separator);

    if (end == NULL) {
        return NULL;
    }
    *end = '\0';
    return end + 1;
}
