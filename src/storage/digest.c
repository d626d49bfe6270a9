#include "storage/digest.h"

#include "base/io.h"

#include <errno.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

#define CHUNK_BYTES (1u << 20)

static const struct {
    const char *name;
    unsigned bytes;
} kinds[] = {
    [DIGEST_SHA1] = {"sha1", 20},
    [DIGEST_SHA256] = {"sha256", 32},
    [DIGEST_SHA512] = {"sha512", 64},
};

static const EVP_MD *find_algorithm(enum digest_kind kind)
{
    switch (kind) {
    case DIGEST_SHA1:
        return EVP_sha1();
    case DIGEST_SHA256:
        return EVP_sha256();
    default:
        return EVP_sha512();
    }
}

static int parse_nibble(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    if (c >= 'a' && c <= 'f') {
        return c - 'a' + 10;
    }
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

int digest_parse(const char *text, struct digest *ret_digest)
{
    const char *colon = strchr(text, ':');
    const char *hex = colon != NULL ? colon + 1 : text;
    struct digest digest = {.kind = DIGEST_SHA1};
    size_t digits = strlen(hex);

    for (unsigned i = 0; i < ARRAY_LEN(kinds); i++) {
        if (digits != (size_t)kinds[i].bytes * 2 ||
            (colon != NULL && (strlen(kinds[i].name) != (size_t)(colon - text) ||
                               strncmp(text, kinds[i].name, (size_t)(colon - text)) != 0))) {
            continue;
        }
        digest.kind = (enum digest_kind)i;
        for (unsigned b = 0; b < kinds[i].bytes; b++) {
            int high = parse_nibble(hex[2 * b]);
            int low = parse_nibble(hex[2 * b + 1]);

            if (high < 0 || low < 0) {
                return -EINVAL;
            }
            digest.bytes[b] = (unsigned char)(high << 4 | low);
        }
        *ret_digest = digest;
        return 0;
    }
    return -EINVAL;
}

const char *digest_format(const struct digest *digest, char *out)
{
    int used = snprintf(out, DIGEST_TEXT_BYTES, "%s:", kinds[digest->kind].name);

    for (unsigned i = 0; i < kinds[digest->kind].bytes; i++) {
        used += snprintf(out + used, DIGEST_TEXT_BYTES - (size_t)used, "%02x", digest->bytes[i]);
    }
    return out;
}

bool digest_equal(const struct digest *a, const struct digest *b)
{
    return a->kind == b->kind && memcmp(a->bytes, b->bytes, kinds[a->kind].bytes) == 0;
}

/* Feeds the file to the context, through buf[CHUNK_BYTES]: 0, -ENOMEM or a read error. */
static int feed_file(EVP_MD_CTX *context, unsigned char *buf, int fd, uint64_t offset, uint64_t len)
{
    while (len > 0) {
        size_t want = len < CHUNK_BYTES ? (size_t)len : CHUNK_BYTES;
        ssize_t n = io_pread_full(fd, buf, want, offset);

        if (n < 0) {
            return (int)n;
        }
        if (EVP_DigestUpdate(context, buf, (size_t)n) != 1) {
            return -ENOMEM;
        }
        if ((size_t)n < want) {
            return len == UINT64_MAX || len > want ? 0 : -ENODATA;
        }
        offset += (uint64_t)n;
        len -= len == UINT64_MAX ? 0 : (uint64_t)n;
    }
    return 0;
}

int digest_of_fd(int fd, uint64_t offset, uint64_t len, enum digest_kind kind,
                 struct digest *ret_digest)
{
    struct digest digest = {.kind = kind};
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    unsigned char *buf = malloc(CHUNK_BYTES);
    int rc = -ENOMEM;

    if (buf != NULL && context != NULL &&
        EVP_DigestInit_ex(context, find_algorithm(kind), NULL) == 1) {
        rc = feed_file(context, buf, fd, offset, len);
    }
    if (rc == 0 && EVP_DigestFinal_ex(context, digest.bytes, NULL) != 1) {
        rc = -ENOMEM;
    }
    EVP_MD_CTX_free(context);
    free(buf);
    if (rc == 0) {
        *ret_digest = digest;
    }
    return rc;
}

int digest_of_text(const char *text, enum digest_kind kind, struct digest *ret_digest)
{
    struct digest digest = {.kind = kind};

    if (EVP_Digest(text, strlen(text), digest.bytes, NULL, find_algorithm(kind), NULL) != 1) {
        return -ENOMEM;
    }
    *ret_digest = digest;
    return 0;
}
