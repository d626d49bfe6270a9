#include "base/base64.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

char *base64_encode(const void *data, size_t len)
{
    const uint8_t *in = data;
    char *text = malloc(BASE64_BYTES(len));
    char *out = text;

    if (text == NULL) {
        return NULL;
    }
    for (size_t i = 0; i < len; i += 3) {
        uint32_t bits = (uint32_t)in[i] << 16;

        bits |= i + 1 < len ? (uint32_t)in[i + 1] << 8 : 0;
        bits |= i + 2 < len ? in[i + 2] : 0u;
        *out++ = alphabet[bits >> 18];
        *out++ = alphabet[bits >> 12 & 63];
        *out++ = i + 1 < len ? alphabet[bits >> 6 & 63] : '=';
        *out++ = i + 2 < len ? alphabet[bits & 63] : '=';
    }
    *out = '\0';
    return text;
}

/* 0 to 63, or -1. */
static int value_of(char c)
{
    if (c >= 'A' && c <= 'Z') {
        return c - 'A';
    }
    if (c >= 'a' && c <= 'z') {
        return c - 'a' + 26;
    }
    if (c >= '0' && c <= '9') {
        return c - '0' + 52;
    }
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

int base64_decode(const char *text, size_t len, void **ret_data, size_t *ret_len)
{
    size_t padding =
        len > 0 && text[len - 1] == '=' ? (len > 1 && text[len - 2] == '=' ? 2 : 1) : 0;
    size_t digits = len - padding;
    uint8_t *data, *out;
    uint32_t bits = 0;

    if (len % 4 != 0) {
        return -EINVAL;
    }
    data = out = malloc(len / 4 * 3 + 1);
    if (data == NULL) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < digits; i++) {
        int value = value_of(text[i]);

        if (value < 0) {
            free(data);
            return -EINVAL;
        }
        bits = bits << 6 | (uint32_t)value;
        /* After the first of four digits no byte is whole yet; after each other one is. */
        if (i % 4 != 0) {
            *out++ = (uint8_t)(bits >> (6 - 2 * (i % 4)));
        }
    }
    /* What the last digit says beyond the last byte. */
    if (padding > 0 && (bits & (padding == 1 ? 3u : 15u)) != 0) {
        free(data);
        return -EINVAL;
    }
    *out = 0;
    *ret_data = data;
    *ret_len = (size_t)(out - data);
    return 0;
}
