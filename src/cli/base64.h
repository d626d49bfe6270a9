/* Base64 (RFC 4648), as programs' output comes when it is no text. */
#ifndef CORBEL_CLI_BASE64_H
#define CORBEL_CLI_BASE64_H

#include "base/compiler.h"

/* Decodes into new memory, the caller's. -EINVAL when it is none. */
int base64_decode(const char *text, void **ret_data, size_t *ret_len) MUST_CHECK;
/* A new string, the caller's; NULL without memory. */
char *base64_encode(const void *data, size_t len);

#endif
