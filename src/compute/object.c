/* Objects as records: keys, ids, fields. */
#include "compute/compute_int.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#define PAGE 500u

void object_done(struct object *object)
{
    json_decref(object->json);
    *object = (struct object){0};
}

static double now_s(void)
{
    struct timespec now;

    long ms;

    (void)clock_gettime(CLOCK_REALTIME, &now); /* cannot fail */
    ms = now.tv_nsec / 1000000;
    return (double)now.tv_sec + (double)ms / 1e3;
}

/* Milliseconds and microseconds first, so that ids sort by age; then 14 bits of chance. */
void object_make_id(const char *prefix, char out[ID_BYTES])
{
    struct timespec now;
    uint32_t chance = 0;

    if (getrandom(&chance, sizeof(chance), 0) != (ssize_t)sizeof(chance)) {
        chance = (uint32_t)clock_monotonic_ns(); /* an id that is taken is found out */
    }
    (void)clock_gettime(CLOCK_REALTIME, &now); /* cannot fail */
    (void)snprintf(out, ID_BYTES, "%s%011" PRIx64 "%06" PRIx32, prefix,
                   (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000,
                   (uint32_t)(now.tv_nsec / 1000 % 1000) << 14 | (chance & 0x3fffu));
}

void object_key(char out[STORE_MAX_KEY_BYTES + 1], enum kind kind, const char *project,
                const char *id)
{
    (void)snprintf(out, STORE_MAX_KEY_BYTES + 1, "/v1/%s/%s/%s", kind_spec(kind)->name, project,
                   id);
}

bool object_parse_key(const char *key, enum kind *ret_kind, char project[ID_BYTES],
                      char id[ID_BYTES])
{
    char kind[32];
    const struct kind_spec *spec;

    /* Widths: sizes of the arrays less one. */
    if (sscanf(key, "/v1/%31[^/]/%47[^/]/%47[^/]", kind, project, id) != 3) {
        return false;
    }
    spec = kind_find(kind);
    if (spec == NULL || strcmp(spec->name, kind) != 0) {
        return false;
    }
    *ret_kind = spec->kind;
    return true;
}

int object_new(enum kind kind, const char *project, json_t *json, struct object *ret_object,
               struct fault *fault)
{
    struct object object = {.kind = kind, .json = json};

    if (json == NULL) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "out of memory");
    }
    object_make_id(kind_spec(kind)->prefix, object.id);
    (void)snprintf(object.project, sizeof(object.project), "%s",
                   kind_spec(kind)->is_global ? GLOBAL_PROJECT : project);
    object_set_text(&object, "id", object.id);
    if (!kind_spec(kind)->is_global) {
        object_set_text(&object, "project", project);
    }
    object_set_time(&object, "created");
    *ret_object = object;
    return 0;
}

/* Takes the record over into an object; what does not fit its kind is a defect. */
static int parse_record(enum kind kind, const char *project, const char *id,
                        const struct store_record *record, struct object *ret_object,
                        struct fault *fault)
{
    struct object object = {.kind = kind, .revision = record->revision};
    int rc;

    object.json = json_loads(record->value, JSON_REJECT_DUPLICATES, NULL);
    rc = kind_check_record(kind_spec(kind), object.json, fault);
    if (rc < 0) {
        json_decref(object.json);
        return fault_set(fault, FAULT_INTERNAL, NULL, "the record %s is damaged", record->key);
    }
    (void)snprintf(object.project, sizeof(object.project), "%s", project);
    (void)snprintf(object.id, sizeof(object.id), "%s", id);
    *ret_object = object;
    return 0;
}

static int refuse_absent(enum kind kind, const char *id, struct fault *fault)
{
    return fault_set(fault, FAULT_NOT_FOUND, NULL, "there is no %s \"%.64s\"",
                     kind_spec(kind)->name, id);
}

int object_load(struct compute *compute, enum kind kind, const char *project, const char *id,
                struct object *ret_object, struct fault *fault)
{
    char key[STORE_MAX_KEY_BYTES + 1];
    struct store_record record = {0};
    struct err err;
    int rc;

    object_key(key, kind, project, id);
    rc = store_get(compute->config.store, key, &record, &err);
    if (rc == -ENOENT) {
        return refuse_absent(kind, id, fault);
    }
    if (rc < 0) {
        return fault_set_err(fault, rc, &err);
    }
    rc = parse_record(kind, project, id, &record, ret_object, fault);
    store_record_done(&record);
    return rc;
}

/* The id that has the name in the project. */
static int find_name(struct compute *compute, enum kind kind, const char *project, const char *name,
                     char ret_id[ID_BYTES], struct fault *fault)
{
    char key[STORE_MAX_KEY_BYTES + 1];
    struct store_record record = {0};
    struct err err;
    json_t *id;
    int rc;

    (void)snprintf(key, sizeof(key), "/v1/name/%s/%s/%s", kind_spec(kind)->name, project, name);
    rc = store_get(compute->config.store, key, &record, &err);
    if (rc == -ENOENT) {
        return refuse_absent(kind, name, fault);
    }
    if (rc < 0) {
        return fault_set_err(fault, rc, &err);
    }
    id = json_loads(record.value, JSON_DECODE_ANY, NULL);
    (void)snprintf(ret_id, ID_BYTES, "%s",
                   json_string_value(id) != NULL ? json_string_value(id) : "");
    json_decref(id);
    store_record_done(&record);
    return 0;
}

static bool name_is_safe(const char *name)
{
    size_t len = strlen(name);

    return len > 0 && len < ID_BYTES &&
           strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == len;
}

static int find_in_project(struct compute *compute, enum kind kind, const char *project,
                           const char *id, struct object *ret_object, struct fault *fault)
{
    char found[ID_BYTES];
    int rc = object_load(compute, kind, project, id, ret_object, fault);

    if (rc != -ENOENT) {
        return rc;
    }
    rc = find_name(compute, kind, project, id, found, fault);
    if (rc < 0) {
        return rc;
    }
    rc = object_load(compute, kind, project, found, ret_object, fault);
    return rc == -ENOENT ? refuse_absent(kind, id, fault) : rc;
}

struct search {
    const char *id;
    struct object found;
    unsigned names; /* objects of that name, in different projects */
};

static int match(void *opaque, struct object *object)
{
    struct search *search = opaque;
    bool is_id = strcmp(object->id, search->id) == 0;

    if (!is_id && !object_is(object, "name", search->id)) {
        return 0;
    }
    search->names = is_id ? 1 : search->names + 1;
    object_done(&search->found);
    search->found = *object;
    search->found.json = json_incref(object->json);
    return is_id;
}

static int find_anywhere(struct compute *compute, enum kind kind, const char *id,
                         struct object *ret_object, struct fault *fault)
{
    struct search search = {.id = id};
    int rc = object_each(compute, kind, NULL, match, &search, fault);

    if (rc == 0 && search.names == 0) {
        rc = refuse_absent(kind, id, fault);
    } else if (rc == 0 && search.names > 1) {
        rc = fault_set(fault, FAULT_INVALID, "project",
                       "%u projects have a %s \"%s\"; say which project", search.names,
                       kind_spec(kind)->name, id);
    }
    if (rc < 0) {
        object_done(&search.found);
        return rc;
    }
    *ret_object = search.found;
    return 0;
}

int object_find_project(struct compute *compute, const char *name, char ret_id[ID_BYTES],
                        struct fault *fault)
{
    struct object project = {0};
    int rc = name_is_safe(name)
                 ? find_in_project(compute, KIND_PROJECT, GLOBAL_PROJECT, name, &project, fault)
                 : refuse_absent(KIND_PROJECT, name, fault);

    if (rc < 0) {
        if (rc == -ENOENT && fault != NULL) {
            (void)snprintf(fault->field, sizeof(fault->field), "project");
        }
        return rc;
    }
    memcpy(ret_id, project.id, ID_BYTES);
    object_done(&project);
    return 0;
}

int object_find(struct compute *compute, enum kind kind, const char *project, const char *id,
                struct object *ret_object, struct fault *fault)
{
    char project_id[ID_BYTES] = GLOBAL_PROJECT;
    int rc;

    if (!name_is_safe(id)) {
        return refuse_absent(kind, id, fault);
    }
    if (kind_spec(kind)->is_global) {
        return find_in_project(compute, kind, GLOBAL_PROJECT, id, ret_object, fault);
    }
    if (project != NULL) {
        rc = object_find_project(compute, project, project_id, fault);
        return rc < 0 ? rc : find_in_project(compute, kind, project_id, id, ret_object, fault);
    }
    return find_anywhere(compute, kind, id, ret_object, fault);
}

/* One page's objects; 1 when fn has seen enough. */
static int each_of_page(enum kind kind, const struct store_page *page,
                        int (*fn)(void *opaque, struct object *object), void *opaque,
                        struct fault *fault)
{
    int rc = 0;

    for (unsigned i = 0; rc == 0 && i < page->count; i++) {
        char project[ID_BYTES], id[ID_BYTES];
        struct object object = {0};
        enum kind found;

        if (!object_parse_key(page->records[i].key, &found, project, id)) {
            continue;
        }
        rc = parse_record(kind, project, id, &page->records[i], &object, fault);
        if (rc == 0) {
            rc = fn(opaque, &object);
            object_done(&object);
        }
    }
    return rc;
}

int object_each(struct compute *compute, enum kind kind, const char *project,
                int (*fn)(void *opaque, struct object *object), void *opaque, struct fault *fault)
{
    char prefix[STORE_MAX_KEY_BYTES + 1], after[STORE_MAX_KEY_BYTES + 1] = "";
    struct store_page page;
    struct err err;
    bool has_more = true;
    int rc = 0;

    (void)snprintf(prefix, sizeof(prefix), "/v1/%s/%s%s", kind_spec(kind)->name,
                   project != NULL ? project : "", project != NULL ? "/" : "");
    while (rc == 0 && has_more) {
        rc = store_list(compute->config.store, prefix, after[0] != '\0' ? after : NULL, PAGE, &page,
                        &err);
        if (rc < 0) {
            return fault_set_err(fault, rc, &err);
        }
        rc = each_of_page(kind, &page, fn, opaque, fault);
        has_more = page.has_more;
        if (page.count > 0) {
            (void)snprintf(after, sizeof(after), "%s", page.records[page.count - 1].key);
        }
        store_page_done(&page);
    }
    return rc < 0 ? rc : 0;
}

json_t *object_answer(const struct object *object)
{
    json_t *answer = kind_answer(kind_spec(object->kind), object->json);

    (void)json_object_set_new(answer, "revision", json_integer((json_int_t)object->revision));
    return answer;
}

const char *object_text(const struct object *object, const char *field)
{
    const char *text = json_string_value(json_object_get(object->json, field));

    return text != NULL ? text : "";
}

int64_t object_number(const struct object *object, const char *field)
{
    return json_integer_value(json_object_get(object->json, field));
}

bool object_flag(const struct object *object, const char *field)
{
    return json_is_true(json_object_get(object->json, field));
}

bool object_is(const struct object *object, const char *field, const char *text)
{
    return strcmp(object_text(object, field), text) == 0;
}

void object_set_text(struct object *object, const char *field, const char *text)
{
    json_t *value = json_string(text);

    /* Texts from outside may be no UTF-8, which JSON cannot hold. */
    (void)json_object_set_new(object->json, field,
                              value != NULL ? value : json_string("(unreadable)"));
}

void object_set_number(struct object *object, const char *field, int64_t number)
{
    (void)json_object_set_new(object->json, field, json_integer(number));
}

void object_set_flag(struct object *object, const char *field, bool flag)
{
    (void)json_object_set_new(object->json, field, json_boolean(flag));
}

void object_set_time(struct object *object, const char *field)
{
    (void)json_object_set_new(object->json, field, json_real(now_s()));
}

void object_clear(struct object *object, const char *field)
{
    (void)json_object_del(object->json, field); /* absent is fine */
}
