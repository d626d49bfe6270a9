#include "api/totp.h"
#include "api/api_int.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <stdio.h>
#include <string.h>

#define SECRET "totp"
#define PENDING "totp_pending"
#define LAST_STEP "totp_step"
#define RECOVERY "totp_recovery"
#define WRONG "totp_wrong"
#define WRONG_AT "totp_wrong_at"
#define IS_ON "second_factor" /* the one that is shown */

enum {
    KEY_BYTES = 20,
    STEP_S = 30,
    DIGITS = 6,
    SKEW_STEPS = 1,
    RECOVERY_CODES = 8,
    RECOVERY_BYTES = 10,
    CODE_BYTES = 41,
    FREE_TRIES = 5, /* after these one a minute, then one in two, and so on */
    WAIT_S = 60,
    MAX_DOUBLINGS = 4
};

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"; /* RFC 4648 section 6 */

/* len: a multiple of 5. */
static void to_base32(const unsigned char *bytes, size_t len, char *out)
{
    for (size_t bit = 0; bit < len * 8; bit += 5) {
        unsigned two = (unsigned)bytes[bit / 8] << 8 | (bit / 8 + 1 < len ? bytes[bit / 8 + 1] : 0);

        *out++ = alphabet[two >> (11 - bit % 8) & 31];
    }
    *out = '\0';
}

static void from_base32(const char *text, unsigned char bytes[KEY_BYTES])
{
    memset(bytes, 0, KEY_BYTES);
    for (size_t i = 0; text[i] != '\0' && i < KEY_BYTES * 8 / 5; i++) {
        const char *at = strchr(alphabet, text[i]);
        unsigned value = at != NULL ? (unsigned)(at - alphabet) : 0;

        for (unsigned bit = 0; bit < 5; bit++) {
            size_t to = i * 5 + bit;

            bytes[to / 8] |= (unsigned char)((value >> (4 - bit) & 1) << (7 - to % 8));
        }
    }
}

/* RFC 4226 section 5.3. */
static int code_of(const char *secret, uint64_t step, char out[DIGITS + 1])
{
    unsigned char key[KEY_BYTES], counter[8], digest[EVP_MAX_MD_SIZE];
    unsigned len = 0, offset;
    uint32_t number;

    from_base32(secret, key);
    for (unsigned i = 0; i < sizeof(counter); i++) {
        counter[i] = (unsigned char)(step >> (56 - 8 * i));
    }
    if (HMAC(EVP_sha1(), key, sizeof(key), counter, sizeof(counter), digest, &len) == NULL ||
        len != KEY_BYTES) {
        return -EIO;
    }
    offset = digest[len - 1] & 15;
    number = (uint32_t)(digest[offset] & 0x7f) << 24 | (uint32_t)digest[offset + 1] << 16 |
             (uint32_t)digest[offset + 2] << 8 | digest[offset + 3];
    (void)snprintf(out, DIGITS + 1, "%06u", number % 1000000);
    return 0;
}

/* As it was made: people type spaces, hyphens and small letters. */
static void tidy(const char *code, char out[CODE_BYTES])
{
    size_t len = 0;

    for (; *code != '\0' && len + 1 < CODE_BYTES; code++) {
        if (*code != ' ' && *code != '-') {
            out[len++] = *code >= 'a' && *code <= 'z' ? (char)(*code - 'a' + 'A') : *code;
        }
    }
    out[len] = '\0';
}

/* The step of which it is, after the last that was used; 0: of none. */
static uint64_t find_step(const char *secret, const char *code, uint64_t now_s, uint64_t last)
{
    uint64_t now = now_s / STEP_S;

    if (strlen(code) != DIGITS) {
        return 0;
    }
    for (uint64_t step = now - SKEW_STEPS; step <= now + SKEW_STEPS; step++) {
        char right[DIGITS + 1];

        if (step > last && code_of(secret, step, right) == 0 &&
            CRYPTO_memcmp(right, code, DIGITS) == 0) {
            return step;
        }
    }
    return 0;
}

static uint64_t number_in(const json_t *user, const char *name)
{
    return (uint64_t)json_integer_value(json_object_get(user, name));
}

static void set_number(json_t *user, const char *name, uint64_t number)
{
    (void)json_object_set_new(user, name, json_integer((json_int_t)number));
}

bool totp_is_on(const json_t *user)
{
    return text_of(user, SECRET)[0] != '\0';
}

int totp_begin(json_t *user, char ret_secret[TOTP_SECRET_BYTES])
{
    unsigned char key[KEY_BYTES];

    if (RAND_bytes(key, sizeof(key)) != 1) {
        return -EIO;
    }
    to_base32(key, sizeof(key), ret_secret);
    (void)json_object_set_new(user, PENDING, json_string(ret_secret));
    return 0;
}

static int make_recovery(json_t *user, json_t **ret_codes)
{
    json_t *codes = json_array(), *hashes = json_array();

    for (unsigned i = 0; i < RECOVERY_CODES; i++) {
        unsigned char bytes[RECOVERY_BYTES];
        char text[RECOVERY_BYTES * 8 / 5 + 1], hash[65];

        if (RAND_bytes(bytes, sizeof(bytes)) != 1) {
            json_decref(codes);
            json_decref(hashes);
            return -EIO;
        }
        to_base32(bytes, sizeof(bytes), text);
        if (auth_hash(text, hash, sizeof(hash)) != 0) {
            json_decref(codes);
            json_decref(hashes);
            return -EIO;
        }
        (void)json_array_append_new(codes, json_string(text));
        (void)json_array_append_new(hashes, json_string(hash));
    }
    (void)json_object_set_new(user, RECOVERY, hashes);
    *ret_codes = codes;
    return 0;
}

int totp_confirm(json_t *user, const char *code, uint64_t now_s, json_t **ret_codes)
{
    const char *pending = text_of(user, PENDING);
    char tidied[CODE_BYTES];
    uint64_t step;
    int rc;

    tidy(code, tidied);
    step = pending[0] != '\0' ? find_step(pending, tidied, now_s, 0) : 0;
    rc = step != 0 ? make_recovery(user, ret_codes) : 0;
    if (step == 0 || rc < 0) {
        return rc;
    }
    (void)json_object_set(user, SECRET, json_object_get(user, PENDING));
    (void)json_object_del(user, PENDING);
    (void)json_object_set_new(user, IS_ON, json_true());
    set_number(user, LAST_STEP, step);
    return 1;
}

static bool use_recovery(json_t *user, const char *code)
{
    json_t *hashes = json_object_get(user, RECOVERY);
    char hash[65];

    if (auth_hash(code, hash, sizeof(hash)) != 0) {
        return false;
    }
    for (size_t i = 0; i < json_array_size(hashes); i++) {
        const char *kept = json_string_value(json_array_get(hashes, i));

        if (kept != NULL && strlen(kept) == strlen(hash) &&
            CRYPTO_memcmp(kept, hash, strlen(hash)) == 0) {
            return json_array_remove(hashes, i) == 0;
        }
    }
    return false;
}

/* For so long no code is looked at. A clock that was set back does not make it longer. */
static uint64_t wait_of(const json_t *user, uint64_t now_s)
{
    uint64_t wrong = number_in(user, WRONG), at_s = number_in(user, WRONG_AT), wait_s;

    if (wrong < FREE_TRIES || now_s < at_s) {
        return 0;
    }
    wrong -= FREE_TRIES;
    wait_s = (uint64_t)WAIT_S << (wrong < MAX_DOUBLINGS ? wrong : MAX_DOUBLINGS);
    return now_s < at_s + wait_s ? at_s + wait_s - now_s : 0;
}

int totp_check(json_t *user, const char *code, uint64_t now_s, unsigned *ret_wait_s)
{
    uint64_t wait_s = wait_of(user, now_s), step;
    char tidied[CODE_BYTES];

    if (wait_s > 0) {
        *ret_wait_s = (unsigned)wait_s;
        return -EAGAIN;
    }
    tidy(code, tidied);
    step = find_step(text_of(user, SECRET), tidied, now_s, number_in(user, LAST_STEP));
    if (step == 0 && !use_recovery(user, tidied)) {
        set_number(user, WRONG, number_in(user, WRONG) + 1);
        set_number(user, WRONG_AT, now_s);
        return 0;
    }
    if (step != 0) {
        set_number(user, LAST_STEP, step);
    }
    (void)json_object_del(user, WRONG); /* absent is fine, as below */
    (void)json_object_del(user, WRONG_AT);
    return 1;
}

size_t totp_recovery_left(const json_t *user)
{
    return json_array_size(json_object_get(user, RECOVERY));
}

void totp_hide(json_t *user)
{
    static const char *const names[] = {SECRET, PENDING, LAST_STEP, RECOVERY, WRONG, WRONG_AT};

    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        (void)json_object_del(user, names[i]);
    }
}

void totp_end(json_t *user)
{
    totp_hide(user);
    (void)json_object_del(user, IS_ON);
}
