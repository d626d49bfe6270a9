#include "compute_rig.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DAY_S 86400

struct fixture {
    struct compute_rig rig;
    char project[64]; /* id */
    json_t *hook;
    struct fault fault;
};

static json_t *create(struct fixture *f, const char *more)
{
    const struct compute_call call = {.project = "default", .actor = "test"};
    json_t *wanted = json_loads(more, 0, NULL), *answer = NULL;

    assert_int_equal(compute_create(f->rig.compute, &call, KIND_HOOK, wanted, &answer, &f->fault),
                     0);
    json_decref(wanted);
    return answer;
}

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    json_t *answer;

    compute_rig_init(&f->rig);
    answer = create(f, "{\"name\": \"h\", \"webhook\": \"http://example.org/\"}");
    f->hook = json_incref(json_object_get(answer, "hook"));
    json_decref(answer);
    (void)snprintf(f->project, sizeof(f->project), "%s",
                   json_string_value(json_object_get(f->hook, "project")));
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    json_decref(f->hook);
    compute_rig_done(&f->rig);
    free(f);
    return 0;
}

/* An event that happened so long ago (or will), with the id that it had got then. */
static void put_event(struct fixture *f, double age_s, const char *action, const char *level)
{
    struct timespec now;
    char key[200], value[300], id[64];
    double at_s;
    struct err err;

    (void)clock_gettime(CLOCK_REALTIME, &now);
    at_s = (double)now.tv_sec + (double)now.tv_nsec / 1e9 - age_s;
    (void)snprintf(id, sizeof(id), "ev-%011llx000000", (unsigned long long)(at_s * 1e3));
    (void)snprintf(key, sizeof(key), "/v1/event/%s/%s", f->project, id);
    (void)snprintf(value, sizeof(value),
                   "{\"id\": \"%s\", \"action\": \"%s\", \"level\": \"%s\", \"created\": %.3f}", id,
                   action, level, at_s);
    assert_int_equal(store_put(f->rig.store, key, value, NULL, &err), 0);
}

/* As if the hook had been told of all that happened before then. */
static void set_after(struct fixture *f, double age_s)
{
    char id[64], key[200];
    struct store_record record;
    struct err err;
    json_t *json;
    char *text;

    (void)snprintf(id, sizeof(id), "ev-%011llx000000",
                   (unsigned long long)(((double)time(NULL) - age_s) * 1e3));
    (void)snprintf(key, sizeof(key), "/v1/hook/%s/%s", f->project,
                   json_string_value(json_object_get(f->hook, "id")));
    assert_int_equal(store_get(f->rig.store, key, &record, &err), 0);
    json = json_loads(record.value, 0, NULL);
    (void)json_object_set_new(json, "after", json_string(id));
    text = json_dumps(json, 0);
    assert_int_equal(store_put(f->rig.store, key, text, NULL, &err), 0);
    free(text);
    json_decref(json);
    store_record_done(&record);
}

/* The action of the next event, which ret_event is; NULL: none. */
static json_t *next_event(struct fixture *f)
{
    json_t *letter = NULL, *event;
    int rc = compute_hook_next(f->rig.compute, f->hook, &letter, &f->fault);

    assert_true(rc == 0 || rc == 1);
    event = json_incref(json_object_get(letter, "event"));
    json_decref(letter);
    return event;
}

static void assert_next(struct fixture *f, const char *action)
{
    json_t *event = next_event(f);
    const char *got = json_string_value(json_object_get(event, "action"));

    assert_string_equal(got != NULL ? got : "nothing", action);
    json_decref(event);
}

static int note(struct fixture *f, int result, const char *complaint)
{
    json_t *event = next_event(f);
    const struct compute_delivery delivery = {
        .event = event, .result = result, .status = 500, .took_ms = 3, .complaint = complaint};
    int rc = compute_hook_note(f->rig.compute, f->hook, &delivery, &f->fault);

    assert_non_null(event);
    json_decref(event);
    return rc;
}

/* The hook as it is answered. */
static json_t *shown(struct fixture *f)
{
    const struct compute_call call = {.project = "default", .actor = "test"};
    json_t *answer = NULL;

    assert_int_equal(compute_get(f->rig.compute, &call, KIND_HOOK, "h", &answer, &f->fault), 0);
    return answer;
}

static json_int_t number(const json_t *object, const char *name)
{
    return json_integer_value(json_object_get(object, name));
}

static void assert_text(const json_t *object, const char *name, const char *text)
{
    const char *got = json_string_value(json_object_get(object, name));

    assert_string_equal(got != NULL ? got : "(none)", text);
}

static void test_events_come_in_order_and_each_until_it_is_settled(void **state)
{
    struct fixture *f = *state;
    json_t *hook, *first;

    set_after(f, 100);
    put_event(f, 50, "key.create", "info");
    put_event(f, 40, "key.delete", "info");
    assert_next(f, "key.create");
    assert_int_equal(note(f, DELIVERY_FAILED, "it is not there"), 0);
    assert_int_equal(note(f, DELIVERY_FAILED, "it is not there"), 0);
    assert_next(f, "key.create");
    hook = shown(f);
    first = json_array_get(json_object_get(hook, "deliveries"), 0);
    assert_int_equal(json_array_size(json_object_get(hook, "deliveries")), 1);
    assert_int_equal(number(first, "tries"), 2);
    assert_text(first, "state", "failing");
    assert_text(first, "error", "it is not there");
    assert_text(hook, "state", "failing");
    json_decref(hook);
    assert_int_equal(note(f, DELIVERY_TOLD, NULL), 1);
    assert_next(f, "key.delete");
    assert_int_equal(note(f, DELIVERY_REFUSED, "it says no"), 1);
    assert_next(f, "nothing");
    hook = shown(f);
    assert_int_equal(number(hook, "told"), 1);
    assert_int_equal(number(hook, "lost"), 1);
    first = json_array_get(json_object_get(hook, "deliveries"), 1);
    assert_int_equal(number(first, "tries"), 3);
    assert_text(first, "state", "told");
    assert_null(json_object_get(first, "error"));
    json_decref(hook);
}

static void test_an_event_of_yesterday_is_given_up(void **state)
{
    struct fixture *f = *state;
    json_t *hook;

    set_after(f, 2 * DAY_S);
    put_event(f, DAY_S + 60, "key.create", "info");
    put_event(f, DAY_S - 60, "key.delete", "info");
    assert_int_equal(note(f, DELIVERY_FAILED, "it is not there"), 1);
    assert_int_equal(note(f, DELIVERY_FAILED, "it is not there"), 0);
    hook = shown(f);
    assert_int_equal(number(hook, "lost"), 1);
    json_decref(hook);
}

static void test_only_what_it_is_for_is_told(void **state)
{
    struct fixture *f = *state;
    const struct compute_call call = {.project = "default", .actor = "test"};
    json_t *changes = json_pack("{s:s, s:s}", "action", "key.", "level", "warning"), *answer = NULL;

    assert_int_equal(
        compute_change(f->rig.compute, &call, KIND_HOOK, "h", changes, 0, &answer, &f->fault), 0);
    json_decref(answer);
    json_decref(changes);
    set_after(f, 100);
    put_event(f, 50, "key.create", "info");
    put_event(f, 45, "instance.failed", "error");
    put_event(f, 40, "key.broken", "error");
    assert_next(f, "key.broken");
}

static void test_what_came_after_the_clock_was_set_back_is_told(void **state)
{
    struct fixture *f = *state;

    set_after(f, -3600); /* an hour ahead */
    put_event(f, 5, "key.create", "info");
    assert_next(f, "key.create");
    assert_int_equal(note(f, DELIVERY_TOLD, NULL), 1);
    assert_next(f, "nothing");
}

static void test_the_last_deliveries_are_kept(void **state)
{
    struct fixture *f = *state;
    json_t *hook;

    set_after(f, 100);
    for (unsigned i = 0; i < 14; i++) {
        put_event(f, 60 - i, "key.create", "info");
        assert_int_equal(note(f, DELIVERY_TOLD, NULL), 1);
    }
    hook = shown(f);
    assert_int_equal(number(hook, "told"), 14);
    assert_int_equal(json_array_size(json_object_get(hook, "deliveries")), 10);
    json_decref(hook);
}

static void test_the_secret_is_told_when_it_is_made_and_never_again(void **state)
{
    struct fixture *f = *state;
    const char *secret = json_string_value(json_object_get(f->hook, "secret"));
    json_t *hook = shown(f), *letter = NULL, *answer;

    assert_int_equal(strlen(secret), 64);
    assert_null(json_object_get(hook, "secret"));
    set_after(f, 100);
    put_event(f, 50, "key.create", "info");
    assert_int_equal(compute_hook_next(f->rig.compute, f->hook, &letter, &f->fault), 1);
    assert_text(letter, "secret", secret);
    json_decref(letter);
    json_decref(hook);
    answer = create(f, "{\"name\": \"own\", \"webhook\": \"http://example.org/\", "
                       "\"secret\": \"sixteen letters!\"}");
    assert_null(json_object_get(json_object_get(answer, "hook"), "secret"));
    json_decref(answer);
}

static void test_a_hook_that_is_gone_is_told_nothing(void **state)
{
    struct fixture *f = *state;
    const struct compute_call call = {.project = "default", .actor = "test"};
    json_t *answer = NULL, *letter = NULL, *event;
    struct compute_delivery delivery = {.result = DELIVERY_TOLD};

    set_after(f, 100);
    put_event(f, 50, "key.create", "info");
    event = next_event(f);
    delivery.event = event;
    assert_int_equal(compute_delete(f->rig.compute, &call, KIND_HOOK, "h", &answer, &f->fault), 0);
    assert_int_equal(compute_hook_next(f->rig.compute, f->hook, &letter, &f->fault), -ENOENT);
    assert_int_equal(compute_hook_note(f->rig.compute, f->hook, &delivery, &f->fault), -ENOENT);
    json_decref(event);
    json_decref(answer);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_events_come_in_order_and_each_until_it_is_settled),
        TEST(test_an_event_of_yesterday_is_given_up),
        TEST(test_only_what_it_is_for_is_told),
        TEST(test_what_came_after_the_clock_was_set_back_is_told),
        TEST(test_the_last_deliveries_are_kept),
        TEST(test_the_secret_is_told_when_it_is_made_and_never_again),
        TEST(test_a_hook_that_is_gone_is_told_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
