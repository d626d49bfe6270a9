#include "compute/credits.h"

#include "test.h"

/* Two CPUs of 10 percent each: 200 ms of credits a second. */
static const struct credits_terms terms = {.cpus = 2, .baseline_percent = 10};

#define S 1000ll
#define MINUTE (60 * S)
#define HOUR (60 * MINUTE)
#define DAY (24 * HOUR)
#define T0 (1700000000 * S)
#define START (600 * S / 5)

static struct credits begin(void)
{
    struct credits credits = {.step_ms = 10 * S};

    assert_true(credits_count(&credits, &terms, T0, T0, 0));
    assert_int_equal(credits.balance_ms, START);
    assert_false(credits.is_held);
    return credits;
}

static void test_count_idle_earns_and_keeps_a_day(void **state)
{
    struct credits credits = begin();

    (void)state;
    assert_false(credits_count(&credits, &terms, T0, T0 + 10 * S, 0)); /* not each count is noted */
    assert_true(credits_count(&credits, &terms, T0, T0 + MINUTE, 0));
    assert_int_equal(credits.balance_ms, START + 12 * S);
    assert_true(credits_count(&credits, &terms, T0, T0 + 30 * DAY, 0));
    assert_int_equal(credits.balance_ms, DAY / 5);
}

static void test_count_burst_is_held_until_it_has_used_less(void **state)
{
    struct credits credits = begin();
    int64_t now = T0, cpu = 0;

    (void)state;
    while (!credits.is_held) {
        now += 10 * S;
        cpu += 20 * S;
        assert_true(credits_count(&credits, &terms, T0, now, cpu));
        assert_in_range(now, T0, T0 + 10 * MINUTE);
    }
    /* 120 s of credits are gone at 1.8 s a second: the step in which that was is the last. */
    assert_int_equal(now, T0 + 70 * S);
    for (unsigned i = 0; i < 100; i++) { /* at its baseline it gets nowhere */
        now += 10 * S;
        cpu += 2 * S;
        (void)credits_count(&credits, &terms, T0, now, cpu);
        assert_true(credits.is_held);
    }
    while (credits.is_held) { /* idle: the debt first, then a burst of a minute at most */
        now += 10 * S;
        (void)credits_count(&credits, &terms, T0, now, cpu);
        assert_in_range(now, T0, T0 + HOUR);
    }
    assert_in_range(credits.balance_ms, 18 * S, 110 * S);
}

static void test_count_after_long_without_daemon_counts_all(void **state)
{
    struct credits credits = begin();

    (void)state;
    /* Three days at half of its baseline: no debt. */
    assert_true(credits_count(&credits, &terms, T0, T0 + 3 * DAY, 3 * DAY / 10));
    assert_int_equal(credits.balance_ms, DAY / 5);
    assert_false(credits.is_held);
    /* One at twice of it: all gone, and as much owed. */
    assert_true(credits_count(&credits, &terms, T0, T0 + 4 * DAY, 3 * DAY / 10 + 2 * DAY / 5));
    assert_int_equal(credits.balance_ms, 0);
    assert_true(credits.is_held);
}

static void test_end_uncounted_time_is_no_gift(void **state)
{
    struct credits credits = begin();
    int64_t now = T0, started = T0;
    unsigned runs = 0;

    (void)state;
    /* Busy for less than a step, off and on again. */
    while (!credits.is_held) {
        now += 9 * S;
        credits_end(&credits, &terms, started, now);
        now += S;
        started = now;
        runs++;
        assert_in_range(runs, 1, 10);
    }
    assert_int_equal(runs, 8);
    assert_true(credits.balance_ms <= 0);
}

static void test_end_off_earns_nothing(void **state)
{
    struct credits credits = begin();
    int64_t balance;

    (void)state;
    assert_true(credits_count(&credits, &terms, T0, T0 + HOUR, 0));
    credits_end(&credits, &terms, T0,
                T0 + HOUR + 30 * S); /* a step, not all that was not counted */
    balance = START + HOUR / 5 - 18 * S;
    assert_int_equal(credits.balance_ms, balance);
    assert_true(credits_count(&credits, &terms, T0 + DAY, T0 + DAY + MINUTE, 10 * S));
    assert_int_equal(credits.balance_ms, balance + 12 * S - 10 * S);
}

static void test_count_clock_set_back_earns_nothing(void **state)
{
    struct credits credits = begin();

    (void)state;
    assert_true(credits_count(&credits, &terms, T0, T0 - HOUR, 5 * S));
    assert_int_equal(credits.balance_ms, START - 5 * S);
    assert_int_equal(credits.at_ms, T0 - HOUR);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_count_idle_earns_and_keeps_a_day),
        cmocka_unit_test(test_count_burst_is_held_until_it_has_used_less),
        cmocka_unit_test(test_count_after_long_without_daemon_counts_all),
        cmocka_unit_test(test_end_uncounted_time_is_no_gift),
        cmocka_unit_test(test_end_off_earns_nothing),
        cmocka_unit_test(test_count_clock_set_back_earns_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
