/* Lengths as people write and read them: "512", "64K", "10G". Powers of 1024. */
#ifndef CORBEL_CLI_SIZE_H
#define CORBEL_CLI_SIZE_H

#include "base/error.h"

#include <stdint.h>

#define SIZE_TEXT_BYTES 24u

/* Bytes; a suffix K, M, G, T or P, with or without "iB" or "B". -EINVAL, naming what. */
int size_parse(const char *what, const char *text, uint64_t *ret_bytes, struct err *err) MUST_CHECK;

/* "4.0 GiB" into out[SIZE_TEXT_BYTES], which it returns. */
const char *size_format(uint64_t bytes, char *out);

#endif
