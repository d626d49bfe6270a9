/*
 * What callers of the control plane send: the input is a line that names a kind, the text of an
 * object to create, a NUL, and that of changes to it.
 */
#include "fuzz_import.h"

#include "compute/field.h"

#include <stdio.h>

/* What is refused is refused in a sentence, and what is not has no reason. */
static void expect_said(int rc, const struct fault *fault)
{
    fuzz_expect(rc <= 0 && (rc != 0) == (fault->text[0] != '\0'));
    fuzz_expect((rc != 0) == (fault->code != FAULT_NONE) && fault->code != FAULT_INTERNAL);
}

/* The text to the mark or the end, as JSON; *at and *left go on behind it. */
static json_t *take(const uint8_t **at, size_t *left, char mark, char *ret_text, size_t size)
{
    const uint8_t *end = *left > 0 ? memchr(*at, mark, *left) : NULL;
    size_t len = end != NULL ? (size_t)(end - *at) : *left;
    json_t *value = json_loadb((const char *)*at, len, JSON_REJECT_DUPLICATES, NULL);

    (void)snprintf(ret_text, size, "%.*s", (int)(len < size ? len : 0), (const char *)*at);
    *at += len + (end != NULL);
    *left -= len + (end != NULL);
    return value;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    char name[32];
    json_t *none = take(&data, &len, '\n', name, sizeof(name));
    const struct kind_spec *found = kind_find(name);
    const struct kind_spec *spec = found != NULL ? found : kind_spec(KIND_INSTANCE);
    json_t *wanted = take(&data, &len, '\0', name, sizeof(name));
    json_t *changes = take(&data, &len, '\0', name, sizeof(name));
    struct fault fault = {.code = FAULT_NONE};
    json_t *object = NULL, *answer;
    bool needs_stop;
    int rc = kind_parse_create(spec, wanted, &object, &fault);

    expect_said(rc, &fault);
    fuzz_expect((rc == 0) == (object != NULL));
    object = object != NULL ? object : json_object();
    if (changes != NULL) {
        fault = (struct fault){.code = FAULT_NONE};
        rc = kind_parse_change(spec, object, changes, &needs_stop, &fault);
        expect_said(rc, &fault);
    }
    fuzz_expect(kind_check_record(spec, wanted, &fault) <= 0); /* as if the store had it so */
    answer = kind_answer(spec, object);
    fuzz_expect(answer != NULL);
    json_decref(answer);
    json_decref(object);
    json_decref(none);
    json_decref(wanted);
    json_decref(changes);
    return 0;
}
