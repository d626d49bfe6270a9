/* Hexadecimal text as the protocol writes it. */
#include "machine/gdb_session.h"

#include <string.h>

const char gdb_digits[] = "0123456789abcdef";

int gdb_digit_value(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    if (c >= 'a' && c <= 'f') {
        return c - 'a' + 10;
    }
    if (c >= 'A' && c <= 'F') {
        return c - 'A' + 10;
    }
    return -1;
}

bool gdb_take_hex(const char **text, uint64_t *ret_value)
{
    const char *p = *text;
    uint64_t value = 0;

    while (gdb_digit_value(*p) >= 0 && p - *text < 16) {
        value = value << 4 | (uint64_t)gdb_digit_value(*p);
        p++;
    }
    if (p == *text || gdb_digit_value(*p) >= 0) {
        return false;
    }
    *text = p;
    *ret_value = value;
    return true;
}

bool gdb_take_char(const char **text, char c)
{
    if (**text != c) {
        return false;
    }
    (*text)++;
    return true;
}

bool gdb_take_bytes(const char **text, uint8_t *out, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        const int high = gdb_digit_value((*text)[0]);
        const int low = high < 0 ? -1 : gdb_digit_value((*text)[1]);
        if (low < 0) {
            return false;
        }
        out[i] = (uint8_t)(high << 4 | low);
        *text += 2;
    }
    return true;
}

char *gdb_put_bytes(char *out, const uint8_t *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        *out++ = gdb_digits[bytes[i] >> 4];
        *out++ = gdb_digits[bytes[i] & 15];
    }
    *out = '\0';
    return out;
}

const char *gdb_after(const char *text, const char *prefix)
{
    const size_t len = strlen(prefix);

    return strncmp(text, prefix, len) == 0 ? text + len : NULL;
}
