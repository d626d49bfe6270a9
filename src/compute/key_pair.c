#include "compute/key_pair.h"

#include "base/base64.h"
#include "base/wire.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALGORITHM "ssh-ed25519"
#define RAW_BYTES 32u
#define BLOB_MAX 1024u
#define COMMENT_MAX 64u
#define LINE_CHARS 70u

/* RFC 4251 §5: length and bytes. */
static size_t put_string(unsigned char *to, const void *data, size_t len)
{
    store_be32(to, (uint32_t)len);
    if (len > 0) {
        memcpy(to + 4, data, len);
    }
    return 4 + len;
}

static int fingerprint(const void *blob, size_t len, char out[KEY_PAIR_FINGERPRINT_BYTES])
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned digest_len = 0;
    char *text;

    if (EVP_Digest(blob, len, digest, &digest_len, EVP_sha256(), NULL) != 1) {
        return -EIO;
    }
    text = base64_encode(digest, digest_len);
    if (text == NULL) {
        return -ENOMEM;
    }
    (void)snprintf(out, KEY_PAIR_FINGERPRINT_BYTES, "SHA256:%.*s", (int)strcspn(text, "="), text);
    free(text);
    return 0;
}

int key_pair_check(const char *line, char ret_fingerprint[KEY_PAIR_FINGERPRINT_BYTES])
{
    static const char *const algorithms[] = {
        ALGORITHM,
        "ssh-rsa",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    };
    size_t name_len = strcspn(line, " ");
    size_t body_len = line[name_len] == ' ' ? strcspn(line + name_len + 1, " ") : 0;
    unsigned char *blob;
    void *data = NULL;
    size_t len = 0;
    bool is_good = false;
    int rc;

    if (body_len == 0 || base64_decode(line + name_len + 1, body_len, &data, &len) < 0) {
        return -EINVAL;
    }
    blob = data;
    for (size_t i = 0; i < ARRAY_LEN(algorithms); i++) {
        is_good |= strlen(algorithms[i]) == name_len && len > 4 + name_len + 4 &&
                   load_be32(blob) == name_len && memcmp(blob + 4, algorithms[i], name_len) == 0 &&
                   memcmp(line, algorithms[i], name_len) == 0;
    }
    rc = is_good ? fingerprint(blob, len, ret_fingerprint) : -EINVAL;
    free(data);
    return rc;
}

/* The bytes of a private key's file before they become text; how many. */
static size_t make_private(const unsigned char pk[RAW_BYTES], const unsigned char sk[RAW_BYTES],
                           uint32_t check, const char *comment, unsigned char out[BLOB_MAX])
{
    static const char magic[] = "openssh-key-v1";
    unsigned char public_blob[128], both[2 * RAW_BYTES];
    size_t public_len = put_string(public_blob, ALGORITHM, strlen(ALGORITHM));
    size_t at = sizeof(magic), section;

    public_len += put_string(public_blob + public_len, pk, RAW_BYTES);
    memcpy(both, sk, RAW_BYTES);
    memcpy(both + RAW_BYTES, pk, RAW_BYTES);
    memcpy(out, magic, sizeof(magic)); /* with its NUL */
    at += put_string(out + at, "none", 4);
    at += put_string(out + at, "none", 4);
    at += put_string(out + at, NULL, 0);
    store_be32(out + at, 1);
    at += 4;
    at += put_string(out + at, public_blob, public_len);
    section = at + 4; /* its length stands before it */
    at = section;
    store_be32(out + at, check);
    store_be32(out + at + 4, check);
    at += 8;
    memcpy(out + at, public_blob, public_len);
    at += public_len;
    at += put_string(out + at, both, sizeof(both));
    at += put_string(out + at, comment, strlen(comment));
    for (unsigned char pad = 1; (at - section) % 8 != 0; pad++) {
        out[at++] = pad;
    }
    store_be32(out + section - 4, (uint32_t)(at - section));
    OPENSSL_cleanse(both, sizeof(both));
    return at;
}

static char *armour(const unsigned char *data, size_t len)
{
    static const char head[] = "-----BEGIN OPENSSH PRIVATE KEY-----\n";
    static const char tail[] = "-----END OPENSSH PRIVATE KEY-----\n";
    char *coded = base64_encode(data, len);
    size_t coded_len = coded != NULL ? strlen(coded) : 0;
    char *text = malloc(sizeof(head) + sizeof(tail) + coded_len + coded_len / LINE_CHARS + 2);
    size_t at = sizeof(head) - 1;

    if (coded == NULL || text == NULL) {
        free(text);
        key_pair_forget(coded);
        return NULL;
    }
    memcpy(text, head, at);
    for (size_t i = 0; i < coded_len; i += LINE_CHARS) {
        size_t n = coded_len - i < LINE_CHARS ? coded_len - i : LINE_CHARS;

        memcpy(text + at, coded + i, n);
        at += n;
        text[at++] = '\n';
    }
    memcpy(text + at, tail, sizeof(tail)); /* with its NUL */
    key_pair_forget(coded);
    return text;
}

int key_pair_create(const char *comment, char **ret_public, char **ret_private)
{
    EVP_PKEY *key = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    unsigned char pk[RAW_BYTES], sk[RAW_BYTES], blob[BLOB_MAX], public_blob[128], check[4];
    size_t pk_len = sizeof(pk), sk_len = sizeof(sk), len;
    char cut[COMMENT_MAX + 1], *coded;
    int rc = -EIO;

    (void)snprintf(cut, sizeof(cut), "%s", comment);
    if (key != NULL && EVP_PKEY_get_raw_public_key(key, pk, &pk_len) == 1 &&
        EVP_PKEY_get_raw_private_key(key, sk, &sk_len) == 1 && pk_len == RAW_BYTES &&
        sk_len == RAW_BYTES && RAND_bytes(check, sizeof(check)) == 1) {
        len = put_string(public_blob, ALGORITHM, strlen(ALGORITHM));
        len += put_string(public_blob + len, pk, RAW_BYTES);
        coded = base64_encode(public_blob, len);
        len = make_private(pk, sk, load_be32(check), cut, blob);
        *ret_private = armour(blob, len);
        rc = coded == NULL || *ret_private == NULL ||
                     asprintf(ret_public, ALGORITHM " %s %s", coded, cut) < 0
                 ? -ENOMEM
                 : 0;
        if (rc < 0) {
            key_pair_forget(*ret_private);
        }
        free(coded);
    }
    OPENSSL_cleanse(sk, sizeof(sk));
    OPENSSL_cleanse(blob, sizeof(blob));
    EVP_PKEY_free(key);
    return rc;
}

void key_pair_forget(char *private_key)
{
    if (private_key != NULL) {
        OPENSSL_cleanse(private_key, strlen(private_key));
        free(private_key);
    }
}
