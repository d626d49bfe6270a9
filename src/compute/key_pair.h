/* Key pairs of ssh: what a public one is, and new ones. Any thread. */
#ifndef CORBEL_COMPUTE_KEY_PAIR_H
#define CORBEL_COMPUTE_KEY_PAIR_H

#include "base/compiler.h"

#include <stddef.h>

#define KEY_PAIR_FINGERPRINT_BYTES 64

/*
 * Whether a line is a public key as in authorized_keys, without options:
 * algorithm, Base64 that says the same algorithm, and perhaps a comment.
 * -EINVAL; else its fingerprint ("SHA256:...").
 */
int key_pair_check(const char *line, char ret_fingerprint[KEY_PAIR_FINGERPRINT_BYTES]) MUST_CHECK;

/*
 * A new Ed25519 pair: the public line, and the private key in OpenSSH's form
 * (PROTOCOL.key), without a passphrase. Both are the caller's. -ENOMEM, -EIO.
 */
int key_pair_create(const char *comment, char **ret_public, char **ret_private) MUST_CHECK;

/* Frees a private key, and leaves nothing of it in memory. */
void key_pair_forget(char *private_key); /* accepts NULL */

#endif
