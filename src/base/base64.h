/* Base64 (RFC 4648 §4), without line breaks. Any thread. */
#ifndef CORBEL_BASE_BASE64_H
#define CORBEL_BASE_BASE64_H

#include "base/compiler.h"

#include <stddef.h>

/* Room for len bytes encoded, with the NUL. */
#define BASE64_BYTES(len) (((len) + 2) / 3 * 4 + 1)

/* A new string, the caller's; NULL without memory. */
char *base64_encode(const void *data, size_t len);

/*
 * Decodes a whole text of len bytes into new memory, the caller's, with a NUL
 * after it. -EINVAL when it is no Base64 (blanks, missing padding, bits that
 * are not zero at its end), -ENOMEM.
 */
int base64_decode(const char *text, size_t len, void **ret_data, size_t *ret_len) MUST_CHECK;

#endif
