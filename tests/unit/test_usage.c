#include "compute_rig.h"

#include <stdio.h>
#include <stdlib.h>

#define HOUR_S 3600
#define T0 (500000ull * HOUR_S + 3500) /* 100 seconds before an hour ends */
#define UP0 1000

struct fixture {
    struct compute_rig rig;
    struct compute_usage *usage;
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    compute_rig_init(&f->rig);
    assert_int_equal(compute_usage_open(f->rig.compute, &f->usage), 0);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    compute_usage_close(f->usage);
    compute_rig_done(&f->rig);
    free(f);
    return 0;
}

static void put(struct fixture *f, const char *kind, const char *project, const char *id,
                const char *fields)
{
    char key[128], value[400];
    struct err err;

    (void)snprintf(key, sizeof(key), "/v1/%s/%s/%s", kind, project, id);
    (void)snprintf(value, sizeof(value), "{\"id\": \"%s\", \"project\": \"%s\", %s}", id, project,
                   fields);
    assert_int_equal(store_put(f->rig.store, key, value, NULL, &err), 0);
}

/* Two CPUs, 1 GiB, a disk of 10 GiB. */
static void put_machine(struct fixture *f, unsigned long long since_s)
{
    char fields[200];

    (void)snprintf(fields, sizeof(fields),
                   "\"name\": \"m\", \"state\": \"running\", \"cpus\": 2, \"memory_mib\": 1024, "
                   "\"disk_gib\": 10, \"created\": %llu, \"started\": %llu",
                   since_s, since_s);
    put(f, "instance", "p-1", "i-1", fields);
}

static void drop_machine(struct fixture *f)
{
    struct store_record record;
    struct err err;

    assert_int_equal(store_get(f->rig.store, "/v1/instance/p-1/i-1", &record, &err), 0);
    assert_int_equal(store_swap(f->rig.store, record.key, record.revision, NULL, NULL, &err), 0);
    store_record_done(&record);
}

static void count_at(struct fixture *f, unsigned long long now_s, unsigned long long up_s,
                     const char *boot, long network)
{
    const struct compute_usage_clock clock = {.now_s = now_s, .up_s = up_s, .boot = boot};
    json_t *answers = network < 0 ? json_object() : json_pack("{s:I}", "i-1", (json_int_t)network);
    struct fault fault;

    assert_int_equal(compute_usage_count(f->usage, answers, &clock, &fault), 0);
    json_decref(answers);
}

/* The time goes on by so much for both clocks. */
static void count_after(struct fixture *f, unsigned long long s, long network)
{
    count_at(f, T0 + s, UP0 + s, "one", network);
}

/* As after a crash: what is not in the store is not known. */
static void begin_anew(struct fixture *f, struct compute_usage **ret_old)
{
    *ret_old = f->usage;
    assert_int_equal(compute_usage_open(f->rig.compute, &f->usage), 0);
}

static json_t *read_by(struct fixture *f, enum compute_usage_by by, unsigned long long since_s,
                       unsigned long long until_s)
{
    const struct compute_usage_query query = {.since_s = since_s, .until_s = until_s, .by = by};
    const struct compute_call call = {.actor = "test"};
    json_t *answer = NULL;
    struct fault fault;

    assert_int_equal(compute_usage_read(f->usage, &call, &query, &answer, &fault), 0);
    return answer;
}

static double number(const json_t *answer, size_t index, const char *name)
{
    return json_number_value(
        json_object_get(json_array_get(json_object_get(answer, "items"), index), name));
}

static size_t count_of(const json_t *answer)
{
    return json_array_size(json_object_get(answer, "items"));
}

static void assert_seconds(double hours, double seconds)
{
    assert_true(hours * HOUR_S > seconds - 1e-6 && hours * HOUR_S < seconds + 1e-6);
}

/* All that there is, in seconds of a CPU. */
static double cpu_seconds(struct fixture *f)
{
    json_t *answer = read_by(f, USAGE_BY_PROJECT, T0 - 300ull * 86400, T0 + 90ull * 86400);
    double hours = count_of(answer) > 0 ? number(answer, 0, "vcpu_hours") : 0;

    json_decref(answer);
    return hours * HOUR_S;
}

static void test_usage_is_summed_up_in_its_hour(void **state)
{
    struct fixture *f = *state;
    json_t *answer;

    put_machine(f, T0 - 86400);
    count_after(f, 0, 5000);
    count_after(f, 90, 5600);
    count_after(f, 130, 6000);
    answer = read_by(f, USAGE_BY_HOUR, T0, T0 + HOUR_S);
    assert_int_equal(count_of(answer), 2);
    assert_seconds(number(answer, 0, "vcpu_hours"), 2 * 100);
    assert_seconds(number(answer, 0, "memory_gib_hours"), 100);
    assert_seconds(number(answer, 0, "storage_gib_hours"), 10 * 100);
    assert_int_equal((int)number(answer, 0, "time"), (int)(T0 - 3500));
    assert_seconds(number(answer, 1, "vcpu_hours"), 2 * 30);
    assert_int_equal((int)number(answer, 1, "time"), (int)(T0 + 100));
    assert_int_equal((int)(number(answer, 0, "network_bytes") + number(answer, 1, "network_bytes")),
                     1000);
    json_decref(answer);
    answer = read_by(f, USAGE_BY_DAY, T0, T0 + HOUR_S);
    assert_int_equal(count_of(answer), 1);
    assert_seconds(number(answer, 0, "vcpu_hours"), 2 * 130);
    json_decref(answer);
}

static void test_a_machine_counts_from_its_start_and_stays_counted(void **state)
{
    struct fixture *f = *state;

    count_after(f, 0, -1);
    put_machine(f, T0 + 50);
    count_after(f, 90, 700); /* all of its network, and 40 s */
    assert_seconds(cpu_seconds(f) / HOUR_S, 2 * 40);
    drop_machine(f);
    count_after(f, 200, -1);
    assert_seconds(cpu_seconds(f) / HOUR_S, 2 * 40);
}

static void test_what_was_not_written_is_counted_once(void **state)
{
    struct fixture *f = *state;
    struct compute_usage *old;
    json_t *answer;

    put_machine(f, T0 - 86400);
    count_after(f, 0, 0);
    count_after(f, 61, 100);
    count_after(f, 70, 200); /* not written yet */
    begin_anew(f, &old);
    count_after(f, 80, 300);
    assert_seconds(cpu_seconds(f) / HOUR_S, 2 * 80);
    answer = read_by(f, USAGE_BY_PROJECT, T0, T0 + HOUR_S);
    assert_int_equal((int)number(answer, 0, "network_bytes"), 300);
    json_decref(answer);
    compute_usage_close(old); /* what it had not written counts no more */
}

static void test_a_gap_of_days_is_counted_in_all_its_hours(void **state)
{
    struct fixture *f = *state;
    struct compute_usage *old;
    json_t *answer;

    put_machine(f, T0 - 86400);
    count_after(f, 0, 0);
    count_after(f, 1, 0);
    assert_int_equal(compute_usage_flush(f->usage, &(struct fault){0}), 0);
    begin_anew(f, &old);
    compute_usage_close(old);
    count_after(f, 3 * 86400, 0);
    assert_seconds(cpu_seconds(f) / HOUR_S, 2 * 3 * 86400);
    answer = read_by(f, USAGE_BY_HOUR, T0, T0 + 3ull * 86400);
    assert_int_equal(count_of(answer), 73);
    json_decref(answer);
}

static void test_a_clock_that_is_set_counts_what_has_passed(void **state)
{
    struct fixture *f = *state;

    put_machine(f, T0 - 86400);
    count_after(f, 0, 0);
    count_at(f, T0 + 20ull * 86400, UP0 + 10, "one", 0); /* forward by 20 days */
    assert_seconds(cpu_seconds(f) / HOUR_S, 2 * 10);
    count_at(f, T0 - 2 * 86400, UP0 + 30, "one", 0); /* back, to before it was made */
    assert_seconds(cpu_seconds(f) / HOUR_S, 2 * 30);
    count_at(f, T0 - 2 * 86400 + 100, UP0 + 130, "one", 0);
    assert_seconds(cpu_seconds(f) / HOUR_S, 2 * 130);
    count_at(f, T0 - 2 * 86400 + 700, 5, "two", 0); /* the host began anew */
    assert_seconds(cpu_seconds(f) / HOUR_S, 2 * 730);
}

static void test_more_projects_than_one_commit_takes_are_all_counted(void **state)
{
    enum { PROJECTS = 330 };
    struct fixture *f = *state;
    json_t *answer;

    for (unsigned i = 0; i < PROJECTS; i++) {
        char project[16], id[16], fields[80];

        (void)snprintf(project, sizeof(project), "p-%03u", i);
        (void)snprintf(id, sizeof(id), "v-%03u", i);
        (void)snprintf(fields, sizeof(fields), "\"size_gib\": 1, \"created\": %llu", T0 - 100);
        put(f, "volume", project, id, fields);
    }
    count_after(f, 0, -1);
    count_after(f, 80, -1);
    answer = read_by(f, USAGE_BY_PROJECT, T0, T0 + HOUR_S);
    assert_int_equal(count_of(answer), PROJECTS);
    for (unsigned i = 0; i < PROJECTS; i++) {
        assert_seconds(number(answer, i, "storage_gib_hours"), 80);
    }
    json_decref(answer);
}

static void test_storage_is_that_of_disks_volumes_and_snapshots(void **state)
{
    struct fixture *f = *state;
    json_t *answer;

    put_machine(f, T0 - 86400);
    put(f, "volume", "p-1", "v-1", "\"name\": \"data\", \"size_gib\": 3, \"created\": 1");
    put(f, "snapshot", "p-1", "s-1", "\"name\": \"monday\", \"size_gib\": 4, \"created\": 1");
    count_after(f, 0, 0);
    drop_machine(f);
    count_after(f, 60, -1);
    answer = read_by(f, USAGE_BY_INSTANCE, T0, T0 + HOUR_S);
    assert_int_equal(count_of(answer), 2);
    assert_seconds(number(answer, 0, "storage_gib_hours"), 3 * 60);
    assert_seconds(number(answer, 1, "storage_gib_hours"), 4 * 60);
    json_decref(answer);
}

static void test_hours_that_are_too_old_go(void **state)
{
    struct fixture *f = *state;
    json_t *answer;

    put_machine(f, T0 - 86400);
    count_after(f, 0, 0);
    count_after(f, 60, 0);
    assert_int_equal(compute_usage_flush(f->usage, &(struct fault){0}), 0);
    drop_machine(f);
    count_at(f, T0 + 402ull * 86400, UP0, "two", -1);
    answer = read_by(f, USAGE_BY_PROJECT, T0 - HOUR_S, T0 + HOUR_S);
    assert_int_equal(count_of(answer), 0);
    json_decref(answer);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_usage_is_summed_up_in_its_hour),
        TEST(test_a_machine_counts_from_its_start_and_stays_counted),
        TEST(test_what_was_not_written_is_counted_once),
        TEST(test_a_gap_of_days_is_counted_in_all_its_hours),
        TEST(test_a_clock_that_is_set_counts_what_has_passed),
        TEST(test_more_projects_than_one_commit_takes_are_all_counted),
        TEST(test_storage_is_that_of_disks_volumes_and_snapshots),
        TEST(test_hours_that_are_too_old_go),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
