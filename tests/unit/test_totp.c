#include "api/totp.h"

#include "test.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Base32 of the secret of RFC 6238 appendix B and RFC 4226 appendix D: "12345678901234567890". */
#define RFC_SECRET "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
#define NOW 1234567890u /* 005924 by appendix B, of whose eight digits these are the last six */

static json_t *make_user(void)
{
    return json_pack("{s:s, s:s, s:b}", "name", "ann", "totp", RFC_SECRET, "second_factor", 1);
}

static int check(json_t *user, const char *code, uint64_t now_s)
{
    unsigned wait_s;

    return totp_check(user, code, now_s, &wait_s);
}

static void test_codes_are_those_of_the_rfc(void **state)
{
    static const struct {
        uint64_t time_s;
        const char *code;
    } codes[] = {{59, "287082"},         {1111111109, "081804"}, {1111111111, "050471"},
                 {1234567890, "005924"}, {2000000000, "279037"}, {20000000000, "353130"}};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(codes); i++) {
        json_t *user = make_user();

        assert_int_equal(check(user, codes[i].code, codes[i].time_s), 1);
        json_decref(user);
    }
}

static void test_a_code_is_good_for_a_step_around_and_once(void **state)
{
    static const struct {
        int shift_s, result;
    } shifts[] = {{-60, 0}, {-30, 1}, {0, 1}, {30, 1}, {60, 0}};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(shifts); i++) {
        json_t *user = make_user();
        uint64_t now_s = (uint64_t)((int64_t)NOW + shifts[i].shift_s);

        assert_int_equal(check(user, "005924", now_s), shifts[i].result);
        assert_int_equal(check(user, "005924", now_s), 0);
        json_decref(user);
    }
}

static void test_a_code_before_the_last_one_is_refused(void **state)
{
    json_t *user = make_user();

    (void)state;
    assert_int_equal(check(user, "050471", 1111111111), 1); /* of the step after that of 081804 */
    assert_int_equal(check(user, "081804", 1111111111), 0);
    json_decref(user);
}

static void test_codes_are_read_as_people_type_them(void **state)
{
    static const char *const wrong[] = {"",        " ",      "05924",  "0059240",
                                        "00592",   "+05924", "5924",   "005925",
                                        "00 59 2", "٠٠٥٩٢٤", "0x5924", "-005924-1"};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        json_t *user = make_user();

        assert_int_equal(check(user, wrong[i], NOW), 0);
        json_decref(user);
    }
    json_t *user = make_user();
    assert_int_equal(check(user, "005 924", NOW), 1);
    json_decref(user);
}

static void test_wrong_codes_make_each_next_one_wait_longer(void **state)
{
    static const unsigned waits_s[] = {60, 120, 240, 480, 960, 960};
    json_t *user = make_user();
    uint64_t now_s = 1000000000;
    unsigned wait_s = 0;

    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(totp_check(user, "000000", now_s, &wait_s), 0);
    }
    for (size_t i = 0; i < ARRAY_LEN(waits_s); i++) {
        assert_int_equal(totp_check(user, "000000", now_s, &wait_s), 0);
        assert_int_equal(totp_check(user, "000000", now_s, &wait_s), -EAGAIN);
        assert_int_equal(wait_s, waits_s[i]);
        now_s += waits_s[i] - 1;
        assert_int_equal(totp_check(user, "000000", now_s, &wait_s), -EAGAIN);
        assert_int_equal(wait_s, 1);
        now_s++;
    }
    assert_int_equal(check(user, "005924", NOW), 1); /* years later; and then all is forgotten */
    assert_int_equal(check(user, "000000", NOW), 0);
    assert_int_equal(check(user, "000000", NOW), 0);
    json_decref(user);
}

static void test_a_pending_secret_is_none_until_it_is_confirmed(void **state)
{
    json_t *user = json_pack("{s:s}", "name", "ann"), *codes = NULL;
    char secret[TOTP_SECRET_BYTES];

    (void)state;
    assert_int_equal(totp_confirm(user, "005924", NOW, &codes), 0);
    assert_int_equal(totp_begin(user, secret), 0);
    assert_int_equal(strlen(secret), TOTP_SECRET_BYTES - 1);
    assert_false(totp_is_on(user));
    (void)json_object_set_new(user, "totp_pending", json_string(RFC_SECRET));
    assert_int_equal(totp_confirm(user, "005925", NOW, &codes), 0);
    assert_false(totp_is_on(user));
    assert_int_equal(totp_confirm(user, "005924", NOW, &codes), 1);
    assert_true(totp_is_on(user));
    assert_int_equal(check(user, "005924", NOW), 0); /* it has been used, to confirm */
    assert_int_equal(totp_recovery_left(user), 8);
    json_decref(codes);
    totp_end(user);
    assert_false(totp_is_on(user));
    assert_int_equal(json_object_size(user), 1); /* nothing is left but the name */
    json_decref(user);
}

static void test_a_recovery_code_stands_in_once(void **state)
{
    json_t *user = json_pack("{s:s, s:s}", "name", "ann", "totp_pending", RFC_SECRET);
    json_t *codes = NULL;
    char typed[40], *record;

    (void)state;
    assert_int_equal(totp_confirm(user, "005924", NOW, &codes), 1);
    record = json_dumps(user, JSON_COMPACT);
    for (size_t i = 0; i < json_array_size(codes); i++) {
        const char *code = json_string_value(json_array_get(codes, i));

        assert_null(strstr(record, code)); /* only its hash is kept */
        (void)snprintf(typed, sizeof(typed), "%.4s-%s", code, code + 4);
        typed[0] = (char)(typed[0] >= 'A' ? typed[0] | ' ' : typed[0]);
        assert_int_equal(check(user, typed, NOW), 1);
        assert_int_equal(check(user, code, NOW), 0);
        assert_int_equal(totp_recovery_left(user), 7 - i);
    }
    free(record);
    json_decref(codes);
    json_decref(user);
}

static void test_nothing_secret_is_shown(void **state)
{
    json_t *user = json_pack("{s:s, s:s}", "name", "ann", "totp_pending", RFC_SECRET);
    json_t *codes = NULL;

    (void)state;
    assert_int_equal(totp_confirm(user, "005924", NOW, &codes), 1);
    assert_int_equal(check(user, "000000", NOW), 0);
    totp_hide(user);
    assert_int_equal(json_object_size(user), 2);
    assert_true(json_is_true(json_object_get(user, "second_factor")));
    json_decref(codes);
    json_decref(user);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_codes_are_those_of_the_rfc),
        cmocka_unit_test(test_a_code_is_good_for_a_step_around_and_once),
        cmocka_unit_test(test_a_code_before_the_last_one_is_refused),
        cmocka_unit_test(test_codes_are_read_as_people_type_them),
        cmocka_unit_test(test_wrong_codes_make_each_next_one_wait_longer),
        cmocka_unit_test(test_a_pending_secret_is_none_until_it_is_confirmed),
        cmocka_unit_test(test_a_recovery_code_stands_in_once),
        cmocka_unit_test(test_nothing_secret_is_shown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
