#include "cli/size.h"

#include "base/wire.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char units[] = "KMGTP";

int size_parse(const char *what, const char *text, uint64_t *ret_bytes, struct err *err)
{
    char *end;
    unsigned long long number;
    uint64_t factor = 1;
    const char *unit;

    errno = 0;
    number = strtoull(text, &end, 10);
    if (errno != 0 || end == text || text[0] < '0' || text[0] > '9') {
        return err_set(err, -EINVAL, "%s takes a length such as 10G, not \"%.40s\"", what, text);
    }
    unit = *end != '\0' ? strchr(units, *end & ~0x20) : NULL;
    if (unit != NULL) {
        factor = 1ull << (10 * (unit - units + 1));
        end++;
        end += strcmp(end, "iB") == 0 ? 2 : strcmp(end, "B") == 0 ? 1 : 0;
    }
    if (*end != '\0' || !ck_mul_u64(number, factor, ret_bytes) || *ret_bytes > INT64_MAX) {
        return err_set(err, -EINVAL, "%s takes a length such as 10G, not \"%.40s\"", what, text);
    }
    return 0;
}

const char *size_format(uint64_t bytes, char *out)
{
    unsigned unit = 0;
    uint64_t tenths;

    if (bytes < 1024) {
        (void)snprintf(out, SIZE_TEXT_BYTES, "%u B", (unsigned)bytes);
        return out;
    }
    while (unit + 1 < sizeof(units) - 1 && bytes >> (10 * (unit + 2)) != 0) {
        unit++;
    }
    tenths = (bytes >> (10 * unit)) * 10 / 1024;
    (void)snprintf(out, SIZE_TEXT_BYTES, "%llu.%llu %ciB", (unsigned long long)(tenths / 10),
                   (unsigned long long)(tenths % 10), units[unit]);
    return out;
}
