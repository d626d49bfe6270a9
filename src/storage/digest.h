/*
 * Checksums of files: SHA-256 and SHA-512, and SHA-1 where an old manifest
 * knows no better.
 *
 * A digest is written "sha256:HEX"; bare hexadecimal digits name their kind by
 * their number. Any thread; nothing is kept.
 */
#ifndef CORBEL_STORAGE_DIGEST_H
#define CORBEL_STORAGE_DIGEST_H

#include "base/compiler.h"

#include <stdbool.h>
#include <stdint.h>

enum digest_kind { DIGEST_SHA1, DIGEST_SHA256, DIGEST_SHA512 };

#define DIGEST_MAX_BYTES 64u
#define DIGEST_TEXT_BYTES 144u /* "sha512:", 128 digits, NUL */

struct digest {
    enum digest_kind kind;
    unsigned char bytes[DIGEST_MAX_BYTES];
};

/* -EINVAL when the text is no digest of a kind known here. */
int digest_parse(const char *text, struct digest *ret_digest) MUST_CHECK;

/* Into out[DIGEST_TEXT_BYTES], which it returns. */
const char *digest_format(const struct digest *digest, char *out);

bool digest_equal(const struct digest *a, const struct digest *b);

/* Of len bytes from offset of a file; UINT64_MAX: to its end. 0, or what reading failed with. */
int digest_of_fd(int fd, uint64_t offset, uint64_t len, enum digest_kind kind,
                 struct digest *ret_digest) MUST_CHECK;

/* Of a text. */
int digest_of_text(const char *text, enum digest_kind kind, struct digest *ret_digest) MUST_CHECK;

#endif
