#include "compute_rig.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define DAY_S 86400

struct fixture {
    struct compute_rig rig;
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    compute_rig_init(&f->rig);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    compute_rig_done(&f->rig);
    free(f);
    return 0;
}

static void put(struct fixture *f, const char *key, const char *id, const char *more, long age_s,
                const char *time_field)
{
    char value[400];
    struct err err;

    (void)snprintf(value, sizeof(value), "{\"id\": \"%s\", \"project\": \"p-1\", \"%s\": %ld%s}",
                   id, time_field, (long)time(NULL) - age_s, more);
    assert_int_equal(store_put(f->rig.store, key, value, NULL, &err), 0);
}

static bool is_there(struct fixture *f, const char *key)
{
    struct store_record record = {0};
    struct err err;
    int rc = store_get(f->rig.store, key, &record, &err);

    store_record_done(&record);
    assert_true(rc == 0 || rc == -ENOENT);
    return rc == 0;
}

static void test_what_is_old_goes_and_what_goes_on_stays(void **state)
{
    struct fixture *f = *state;
    const struct compute_keep keep = {.days = 30, .token_days = 7};
    unsigned count = 0;
    struct fault fault;

    put(f, "/v1/event/p-1/ev-1", "ev-1", "", 31 * DAY_S, "created");
    put(f, "/v1/event/p-1/ev-2", "ev-2", "", 29 * DAY_S, "created");
    put(f, "/v1/operation/p-1/op-1", "op-1", ", \"state\": \"done\"", 31 * DAY_S, "ended");
    put(f, "/v1/operation/p-1/op-2", "op-2", ", \"state\": \"failed\"", 29 * DAY_S, "ended");
    put(f, "/v1/operation/p-1/op-3", "op-3", ", \"state\": \"running\"", 99 * DAY_S, "created");
    put(f, "/v1/token/p-1/old", "x", "", 8 * DAY_S, "created");
    put(f, "/v1/token/p-1/new", "x", "", 6 * DAY_S, "created");
    assert_int_equal(compute_prune(f->rig.compute, &keep, &count, &fault), 0);
    assert_int_equal(count, 3);
    assert_false(is_there(f, "/v1/event/p-1/ev-1"));
    assert_true(is_there(f, "/v1/event/p-1/ev-2"));
    assert_false(is_there(f, "/v1/operation/p-1/op-1"));
    assert_true(is_there(f, "/v1/operation/p-1/op-2"));
    assert_true(is_there(f, "/v1/operation/p-1/op-3"));
    assert_false(is_there(f, "/v1/token/p-1/old"));
    assert_true(is_there(f, "/v1/token/p-1/new"));
    assert_int_equal(compute_prune(f->rig.compute, &keep, &count, &fault), 0);
    assert_int_equal(count, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_what_is_old_goes_and_what_goes_on_stays, set_up,
                                        tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
