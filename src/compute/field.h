/*
 * Kinds of objects, described once as data.
 *
 * A kind is a table of fields. Parser, validator, answer and the schema of
 * the API come from it; nobody else knows which fields there are.
 */
#ifndef CORBEL_COMPUTE_FIELD_H
#define CORBEL_COMPUTE_FIELD_H

#include "compute/fault.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

enum field_type {
    FIELD_TEXT,     /* a string of min to max bytes of valid UTF-8, no control bytes */
    FIELD_LINES,    /* as FIELD_TEXT, and may hold newlines and tabs */
    FIELD_NAME,     /* a name that people give: see path_check_name() */
    FIELD_ID,       /* an id or name of another object */
    FIELD_CHOICE,   /* one of choices */
    FIELD_NUMBER,   /* an integer from min to max */
    FIELD_FLAG,     /* true or false */
    FIELD_TIME,     /* seconds since 1970, with a fraction */
    FIELD_IDS,      /* an array of at most max ids or names, each once */
    FIELD_WORDS,    /* an array of min to max strings */
    FIELD_TAGS,     /* an object of at most max strings */
    FIELD_FORWARDS, /* an array of at most max {"host_port": N, "guest_port": N} */
    FIELD_RECORDS   /* an array of at most max objects; never given */
};

enum field_access {
    FIELD_AT_CREATE = 1u << 0, /* may be given at creation */
    FIELD_NEEDED = 1u << 1,    /* has to be */
    FIELD_CHANGES = 1u << 2,   /* may be changed later */
    FIELD_STOPPED = 1u << 3,   /* ... only while the instance is stopped */
    FIELD_SECRET = 1u << 4     /* kept, and never answered */
};

struct field {
    const char *name;
    enum field_type type;
    unsigned access; /* of enum field_access; 0: the platform's to set, and only answered */
    int64_t min, max;
    const char *choices; /* "never on-failure always" */
    const char *preset;  /* JSON text of the value when none is given; NULL: absent */
    const char *help;
};

enum kind {
    KIND_INSTANCE,
    KIND_TYPE,
    KIND_IMAGE,
    KIND_VOLUME,
    KIND_SNAPSHOT,
    KIND_NIC,
    KIND_KEY,
    KIND_ALARM,
    KIND_HOOK,
    KIND_PROJECT,
    KIND_OPERATION,
    KIND_EVENT,
    KIND_COUNT
};

struct kind_spec {
    enum kind kind;
    const char *name;   /* "instance" */
    const char *plural; /* "instances" */
    const char *prefix; /* of ids: "i-" */
    bool is_global;     /* belongs to no project: types, images, projects */
    const struct field *fields;
    unsigned field_count;
};

const struct kind_spec *kind_spec(enum kind kind);
/* By name or plural; NULL when there is none. */
const struct kind_spec *kind_find(const char *name);
const struct field *kind_field(const struct kind_spec *spec, const char *name);

/*
 * Checks what a caller wants to create and makes the record's fields from it:
 * presets filled in. *ret_object is new, the caller's.
 */
int kind_parse_create(const struct kind_spec *spec, const json_t *wanted, json_t **ret_object,
                      struct fault *fault) MUST_CHECK;

/*
 * Checks changes and puts them into object; null takes a field away (back to
 * its preset, where there is one). *ret_needs_stop tells whether one of them
 * is only possible while stopped.
 */
int kind_parse_change(const struct kind_spec *spec, json_t *object, const json_t *changes,
                      bool *ret_needs_stop, struct fault *fault) MUST_CHECK;

/* Checks a whole record as it was read from the store. */
int kind_check_record(const struct kind_spec *spec, const json_t *object, struct fault *fault)
    MUST_CHECK;

/* A copy without secrets and without what is no field of the kind: what is answered. */
json_t *kind_answer(const struct kind_spec *spec, const json_t *object);

#endif
