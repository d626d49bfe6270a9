/*
 * One-time codes as a second factor (RFC 6238 with SHA-1, 30 s, 6 digits) in
 * the record of a user, and recovery codes, of which only hashes are kept.
 *
 * Who calls saves the record after each check, at the revision at which it was
 * read: so each code is good once, and wrong ones are counted one by one.
 *
 * Threads: any.
 */
#ifndef CORBEL_API_TOTP_H
#define CORBEL_API_TOTP_H

#include "base/compiler.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TOTP_SECRET_BYTES 33 /* base32 of 160 bits, with the NUL */

/* Whether signing in asks for a code. */
bool totp_is_on(const json_t *user);
/* A new secret that is none until a code of it has come. -EIO without random bytes. */
int totp_begin(json_t *user, char ret_secret[TOTP_SECRET_BYTES]) MUST_CHECK;
/* 1: the code is the pending secret's, which counts from now on; *ret_codes are the recovery codes,
 * the caller's. 0: it is not. -EIO. */
int totp_confirm(json_t *user, const char *code, uint64_t now_s, json_t **ret_codes) MUST_CHECK;
/* 1: a code or recovery code is good, and used up. 0: it is not. -EAGAIN: too many were wrong, and
 * this one is not looked at for so long. Spaces and hyphens, which apps show, do not count. */
int totp_check(json_t *user, const char *code, uint64_t now_s, unsigned *ret_wait_s) MUST_CHECK;
size_t totp_recovery_left(const json_t *user);
void totp_end(json_t *user);
/* Takes what nobody may see out of a copy of the record. */
void totp_hide(json_t *user);

#endif
