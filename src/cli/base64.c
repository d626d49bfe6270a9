#include "cli/base64.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>

static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

int base64_decode(const char *text, void **ret_data, size_t *ret_len)
{
    size_t len = strlen(text), out = 0;
    uint32_t bits = 0;
    CLEANUP_FREE unsigned char *data = malloc(len / 4 * 3 + 1);

    if (data == NULL || len % 4 != 0) {
        return data == NULL ? -ENOMEM : -EINVAL;
    }
    for (size_t i = 0; i < len; i++) {
        const char *letter = text[i] != '=' ? strchr(letters, text[i]) : letters;

        if (letter == NULL || (text[i] == '=' && i + 2 < len)) {
            return -EINVAL;
        }
        bits = bits << 6 | (uint32_t)(letter - letters);
        if (i % 4 == 3) {
            data[out++] = (unsigned char)(bits >> 16);
            data[out++] = (unsigned char)(bits >> 8);
            data[out++] = (unsigned char)bits;
        }
    }
    out -= len > 0 ? (text[len - 1] == '=') + (text[len - 2] == '=') : 0;
    *ret_data = steal_ptr(data);
    *ret_len = out;
    return 0;
}

char *base64_encode(const void *data, size_t len)
{
    const unsigned char *bytes = data;
    char *text = malloc((len + 2) / 3 * 4 + 1);
    char *at = text;

    for (size_t i = 0; text != NULL && i < len; i += 3) {
        uint32_t group = (uint32_t)bytes[i] << 16 |
                         (i + 1 < len ? (uint32_t)bytes[i + 1] << 8 : 0) |
                         (i + 2 < len ? bytes[i + 2] : 0);

        for (unsigned k = 0; k < 4; k++) {
            *at++ = i + k <= len ? letters[group >> (18 - 6 * k) & 63] : '=';
        }
    }
    if (text != NULL) {
        *at = '\0';
    }
    return text;
}
