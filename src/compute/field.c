#include "compute/field.h"

#include "base/log.h"
#include "base/path.h"

#include <stdio.h>
#include <string.h>

#define MAX_TAG_BYTES 256
#define MAX_ID_BYTES 64
#define MAX_PORT 65535
#define KNOWN_BYTES 300

const struct kind_spec *kind_find(const char *name)
{
    for (int i = 0; i < KIND_COUNT; i++) {
        const struct kind_spec *spec = kind_spec((enum kind)i);

        if (strcmp(spec->name, name) == 0 || strcmp(spec->plural, name) == 0) {
            return spec;
        }
    }
    return NULL;
}

const struct field *kind_field(const struct kind_spec *spec, const char *name)
{
    for (unsigned i = 0; i < spec->field_count; i++) {
        if (strcmp(spec->fields[i].name, name) == 0) {
            return &spec->fields[i];
        }
    }
    return NULL;
}

static int refuse(const struct field *field, struct fault *fault, const char *mend)
{
    return fault_set(fault, FAULT_INVALID, field->name, "\"%s\" takes %s", field->name, mend);
}

/* Printable text: no control bytes; newlines and tabs only where they are allowed. */
static bool text_is_clean(const char *text, size_t len, bool has_lines)
{
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];

        if ((c < ' ' || c == 0x7f) && !(has_lines && (c == '\n' || c == '\t'))) {
            return false;
        }
    }
    return true;
}

static int check_text(const struct field *field, const json_t *value, struct fault *fault)
{
    size_t len = json_string_length(value);
    char mend[96];

    if (json_is_string(value) && len >= (size_t)field->min && len <= (size_t)field->max &&
        text_is_clean(json_string_value(value), len, field->type == FIELD_LINES)) {
        return 0;
    }
    (void)snprintf(mend, sizeof(mend), "a string of %lld to %lld bytes without control characters",
                   (long long)field->min, (long long)field->max);
    return refuse(field, fault, mend);
}

static int check_name(const struct field *field, const json_t *value, struct fault *fault)
{
    struct err ignored;

    return json_is_string(value) && path_check_name(json_string_value(value), &ignored) == 0
               ? 0
               : refuse(field, fault,
                        "up to 40 letters, digits, '.', '_' and '-', a letter or digit first");
}

/* Whether it is one of the words. */
static bool is_choice(const char *choices, const char *word)
{
    size_t len = strlen(word);

    for (const char *at = choices; len > 0 && (at = strstr(at, word)) != NULL; at += len) {
        if ((at == choices || at[-1] == ' ') && (at[len] == ' ' || at[len] == '\0')) {
            return strchr(word, ' ') == NULL;
        }
    }
    return false;
}

static int check_choice(const struct field *field, const json_t *value, struct fault *fault)
{
    char mend[160];

    if (json_is_string(value) && is_choice(field->choices, json_string_value(value))) {
        return 0;
    }
    (void)snprintf(mend, sizeof(mend), "one of the words: %s", field->choices);
    return refuse(field, fault, mend);
}

static int check_number(const struct field *field, const json_t *value, struct fault *fault)
{
    char mend[96];

    if (json_is_integer(value) && json_integer_value(value) >= field->min &&
        json_integer_value(value) <= field->max) {
        return 0;
    }
    (void)snprintf(mend, sizeof(mend), "a whole number from %lld to %lld", (long long)field->min,
                   (long long)field->max);
    return refuse(field, fault, mend);
}

static int check_ids(const struct field *field, const json_t *value, struct fault *fault)
{
    char mend[96];
    bool is_good = json_is_array(value) && json_array_size(value) <= (size_t)field->max;
    struct err ignored;

    for (size_t i = 0; is_good && i < json_array_size(value); i++) {
        const char *id = json_string_value(json_array_get(value, i));

        is_good = id != NULL && path_check_name(id, &ignored) == 0;
        for (size_t j = 0; is_good && j < i; j++) {
            is_good = strcmp(id, json_string_value(json_array_get(value, j))) != 0;
        }
    }
    if (is_good) {
        return 0;
    }
    (void)snprintf(mend, sizeof(mend), "an array of at most %lld ids or names, each once",
                   (long long)field->max);
    return refuse(field, fault, mend);
}

static int check_words(const struct field *field, const json_t *value, struct fault *fault)
{
    char mend[96];
    bool is_good = json_is_array(value) && json_array_size(value) >= (size_t)field->min &&
                   json_array_size(value) <= (size_t)field->max;

    for (size_t i = 0; is_good && i < json_array_size(value); i++) {
        is_good = json_is_string(json_array_get(value, i));
    }
    if (is_good) {
        return 0;
    }
    (void)snprintf(mend, sizeof(mend), "an array of %lld to %lld strings", (long long)field->min,
                   (long long)field->max);
    return refuse(field, fault, mend);
}

static int check_tags(const struct field *field, const json_t *value, struct fault *fault)
{
    void *at;

    if (!json_is_object(value) || json_object_size(value) > (size_t)field->max) {
        return refuse(field, fault, "an object of at most 50 strings");
    }
    for (at = json_object_iter((json_t *)(uintptr_t)value); at != NULL;
         at = json_object_iter_next((json_t *)(uintptr_t)value, at)) {
        const char *name = json_object_iter_key(at);
        const json_t *tag = json_object_iter_value(at);
        char place[96], shown[64];

        if (*name != '\0' && strlen(name) <= 64 && text_is_clean(name, strlen(name), false) &&
            json_is_string(tag) && json_string_length(tag) <= MAX_TAG_BYTES &&
            text_is_clean(json_string_value(tag), json_string_length(tag), false)) {
            continue;
        }
        (void)snprintf(place, sizeof(place), "%s.%s", field->name,
                       log_escape(shown, sizeof(shown), name, strlen(name)));
        return fault_set(fault, FAULT_INVALID, place,
                         "a tag has a name of 1 to 64 bytes and a string of at most %d",
                         MAX_TAG_BYTES);
    }
    return 0;
}

static bool is_port(const json_t *value, json_int_t min)
{
    return json_is_integer(value) && json_integer_value(value) >= min &&
           json_integer_value(value) <= MAX_PORT;
}

static int check_forwards(const struct field *field, const json_t *value, struct fault *fault)
{
    bool is_good = json_is_array(value) && json_array_size(value) <= (size_t)field->max;

    for (size_t i = 0; is_good && i < json_array_size(value); i++) {
        const json_t *forward = json_array_get(value, i);
        const json_t *host = json_object_get(forward, "host_port");

        is_good = json_is_object(forward) && json_object_size(forward) == 2 && is_port(host, 0) &&
                  is_port(json_object_get(forward, "guest_port"), 1);
        for (size_t j = 0; is_good && j < i; j++) {
            const json_t *other = json_object_get(json_array_get(value, j), "host_port");

            is_good = json_integer_value(host) == 0 || !json_equal(host, other);
        }
    }
    return is_good ? 0
                   : refuse(field, fault,
                            "an array of {\"host_port\": 0 to 65535, \"guest_port\": 1 to 65535}, "
                            "each host port once");
}

static int check_value(const struct field *field, const json_t *value, struct fault *fault)
{
    switch (field->type) {
    case FIELD_TEXT:
    case FIELD_LINES:
        return check_text(field, value, fault);
    case FIELD_NAME:
    case FIELD_ID:
        return check_name(field, value, fault);
    case FIELD_CHOICE:
        return check_choice(field, value, fault);
    case FIELD_NUMBER:
        return check_number(field, value, fault);
    case FIELD_FLAG:
        return json_is_boolean(value) ? 0 : refuse(field, fault, "true or false");
    case FIELD_TIME:
        return json_is_number(value) ? 0 : refuse(field, fault, "seconds since 1970");
    case FIELD_IDS:
        return check_ids(field, value, fault);
    case FIELD_WORDS:
        return check_words(field, value, fault);
    case FIELD_TAGS:
        return check_tags(field, value, fault);
    case FIELD_FORWARDS:
        return check_forwards(field, value, fault);
    case FIELD_RECORDS:
        return json_is_array(value) && json_array_size(value) <= (size_t)field->max
                   ? 0
                   : refuse(field, fault, "an array of objects");
    }
    return fault_set(fault, FAULT_INTERNAL, field->name, "the field has no type");
}

/* What there is, for the sentence about what there is not. */
static void list_known(const struct kind_spec *spec, unsigned access, char known[KNOWN_BYTES])
{
    size_t used = 0;

    (void)snprintf(known, KNOWN_BYTES, "nothing");
    for (unsigned i = 0; i < spec->field_count && used < KNOWN_BYTES; i++) {
        if ((spec->fields[i].access & access) != 0) {
            used += (size_t)snprintf(known + used, KNOWN_BYTES - used, "%s%s",
                                     used == 0 ? "" : ", ", spec->fields[i].name);
        }
    }
}

/* The field that a caller may give in this way. */
static int find_given(const struct kind_spec *spec, const char *name, unsigned access,
                      const struct field **ret_field, struct fault *fault)
{
    const struct field *field = kind_field(spec, name);

    if (field == NULL || (field->access == FIELD_SECRET)) {
        char known[KNOWN_BYTES], shown[64];

        list_known(spec, access, known);
        (void)log_escape(shown, sizeof(shown), name, strlen(name));
        return fault_set(fault, FAULT_UNKNOWN, shown,
                         "there is no \"%s\" to give here; there is %s", shown, known);
    }
    if ((field->access & access) == 0) {
        return fault_set(fault, FAULT_INVALID, name,
                         access == FIELD_AT_CREATE ? "\"%s\" is the platform's to say"
                                                   : "\"%s\" cannot be changed",
                         name);
    }
    *ret_field = field;
    return 0;
}

static int add_presets(const struct kind_spec *spec, json_t *object, struct fault *fault)
{
    for (unsigned i = 0; i < spec->field_count; i++) {
        const struct field *field = &spec->fields[i];

        if (json_object_get(object, field->name) != NULL) {
            continue;
        }
        if ((field->access & FIELD_NEEDED) != 0) {
            return fault_set(fault, FAULT_INVALID, field->name, "\"%s\" is missing: %s",
                             field->name, field->help);
        }
        if (field->preset != NULL) {
            (void)json_object_set_new(object, field->name,
                                      json_loads(field->preset, JSON_DECODE_ANY, NULL));
        }
    }
    return 0;
}

int kind_parse_create(const struct kind_spec *spec, const json_t *wanted, json_t **ret_object,
                      struct fault *fault)
{
    json_t *given = (json_t *)(uintptr_t)wanted; /* jansson's iterators take no const */
    json_t *object;
    int rc = 0;

    if (wanted != NULL && !json_is_object(wanted)) {
        return fault_set(fault, FAULT_INVALID, NULL, "what is wanted is a JSON object in braces");
    }
    object = json_object();
    for (void *at = json_object_iter(given); rc == 0 && at != NULL;
         at = json_object_iter_next(given, at)) {
        const char *name = json_object_iter_key(at);
        json_t *value = json_object_iter_value(at);
        const struct field *field = NULL;

        rc = find_given(spec, name, FIELD_AT_CREATE, &field, fault);
        if (rc == 0 && !json_is_null(value)) {
            rc = check_value(field, value, fault);
            if (rc == 0 && json_object_set_new(object, name, json_deep_copy(value)) != 0) {
                rc = fault_set(fault, FAULT_INTERNAL, name, "out of memory");
            }
        }
    }
    if (rc == 0) {
        rc = add_presets(spec, object, fault);
    }
    if (rc < 0) {
        json_decref(object);
        return rc;
    }
    *ret_object = object;
    return 0;
}

/* Takes a value away, or back to its preset. */
static int clear_field(const struct field *field, json_t *object, struct fault *fault)
{
    if ((field->access & FIELD_NEEDED) != 0) {
        return fault_set(fault, FAULT_INVALID, field->name, "\"%s\" cannot be taken away",
                         field->name);
    }
    (void)json_object_del(object, field->name); /* absent is fine */
    if (field->preset != NULL) {
        (void)json_object_set_new(object, field->name,
                                  json_loads(field->preset, JSON_DECODE_ANY, NULL));
    }
    return 0;
}

int kind_parse_change(const struct kind_spec *spec, json_t *object, const json_t *changes,
                      bool *ret_needs_stop, struct fault *fault)
{
    json_t *given = (json_t *)(uintptr_t)changes;
    int rc = 0;

    *ret_needs_stop = false;
    if (!json_is_object(changes)) {
        return fault_set(fault, FAULT_INVALID, NULL, "changes are a JSON object in braces");
    }
    for (void *at = json_object_iter(given); rc == 0 && at != NULL;
         at = json_object_iter_next(given, at)) {
        const char *name = json_object_iter_key(at);
        json_t *value = json_object_iter_value(at);
        const struct field *field = NULL;

        rc = find_given(spec, name, FIELD_CHANGES, &field, fault);
        if (rc < 0) {
            break;
        }
        if (json_is_null(value)) {
            rc = clear_field(field, object, fault);
        } else {
            rc = check_value(field, value, fault);
            if (rc == 0 && json_object_set_new(object, name, json_deep_copy(value)) != 0) {
                rc = fault_set(fault, FAULT_INTERNAL, name, "out of memory");
            }
        }
        *ret_needs_stop = *ret_needs_stop || (field->access & FIELD_STOPPED) != 0;
    }
    return rc;
}

int kind_check_record(const struct kind_spec *spec, const json_t *object, struct fault *fault)
{
    json_t *given = (json_t *)(uintptr_t)object;

    if (!json_is_object(object)) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "a record is no object");
    }
    for (void *at = json_object_iter(given); at != NULL; at = json_object_iter_next(given, at)) {
        const struct field *field = kind_field(spec, json_object_iter_key(at));
        int rc = field != NULL ? check_value(field, json_object_iter_value(at), fault) : 0;

        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

json_t *kind_answer(const struct kind_spec *spec, const json_t *object)
{
    json_t *answer = json_object();

    for (unsigned i = 0; i < spec->field_count; i++) {
        const struct field *field = &spec->fields[i];
        json_t *value = json_object_get(object, field->name);

        if (value != NULL && (field->access & FIELD_SECRET) == 0) {
            (void)json_object_set_new(answer, field->name, json_deep_copy(value));
        }
    }
    return answer;
}
