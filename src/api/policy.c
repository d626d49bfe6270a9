/*
 * Policy documents: who may do what with which objects.
 *
 * {"statements": [{"effect": "allow", "actions": ["instance.*"],
 * "resources": ["instance"], "conditions": {"tag.env": "dev"}}]}. A statement
 * that denies wins over all that allow, and what none allows is refused.
 */
#include "api/api_int.h"

#include <stdio.h>
#include <string.h>

enum {
    STATEMENTS_MAX = 50,
    WORDS_MAX = 50,
    CONDITIONS_MAX = 20,
    WORD_BYTES = 128,
    TAG_VALUE_BYTES = 256
};

/* How far a statement is about what is asked; PERHAPS: of some objects. */
enum fit { NO, PERHAPS, YES };

static bool fits_pattern(const char *pattern, const char *text)
{
    size_t len = strlen(pattern);
    return len > 0 && pattern[len - 1] == '*' ? strncmp(pattern, text, len - 1) == 0
                                              : strcmp(pattern, text) == 0;
}

static bool fits_action(const json_t *statement, const struct policy_question *asked)
{
    size_t i;
    json_t *word;
    json_array_foreach(json_object_get(statement, "actions"), i, word)
    {
        const char *pattern = json_string_value(word);
        if (pattern != NULL &&
            (fits_pattern(pattern, asked->action) || fits_pattern(pattern, asked->operation))) {
            return true;
        }
    }
    return false;
}

static enum fit fit_resource(const json_t *statement, const struct policy_question *asked)
{
    size_t i;
    json_t *word;
    enum fit best = NO;
    json_array_foreach(json_object_get(statement, "resources"), i, word)
    {
        const char *name = json_string_value(word);
        if (name == NULL) {
            continue;
        }
        if (strcmp(name, "*") == 0 || strcmp(name, asked->kind) == 0 ||
            (asked->id != NULL && strcmp(name, asked->id) == 0)) {
            return YES;
        }
        if (asked->of != POLICY_THIS && kind_find(name) == NULL && kind_find(asked->kind) != NULL) {
            best = PERHAPS; /* an id, which may be one of those that are asked about */
        }
    }
    return best;
}

static enum fit fit_conditions(const json_t *statement, const struct policy_question *asked)
{
    json_t *conditions = json_object_get(statement, "conditions");
    const char *name;
    json_t *wanted;
    if (json_object_size(conditions) == 0) {
        return YES;
    }
    if (asked->of != POLICY_THIS) {
        return kind_find(asked->kind) != NULL ? PERHAPS : NO; /* the host, say, has no tags */
    }
    json_object_foreach(conditions, name, wanted)
    {
        const json_t *value = json_object_get(asked->tags, name + strlen("tag."));
        if (value == NULL || json_equal(value, wanted) == 0) {
            return NO;
        }
    }
    return YES;
}

static bool allows(const json_t *policy, const struct policy_question *asked)
{
    bool is_allowed = false;
    size_t i;
    json_t *statement;
    json_array_foreach(json_object_get(policy, "statements"), i, statement)
    {
        if (!fits_action(statement, asked)) {
            continue;
        }
        enum fit resource = fit_resource(statement, asked);
        enum fit conditions = fit_conditions(statement, asked);
        enum fit fit = resource < conditions ? resource : conditions;
        bool is_deny = strcmp(text_of(statement, "effect"), "allow") != 0;
        /* In doubt it is refused, but where it is enough that some object may be. */
        if (is_deny && (fit == YES || (fit == PERHAPS && asked->of == POLICY_ALL))) {
            return false;
        }
        is_allowed = is_allowed ||
                     (!is_deny && (fit == YES || (fit == PERHAPS && asked->of == POLICY_SOME)));
    }
    return is_allowed;
}

bool policy_allows(const struct identity *identity, const struct policy_question *asked)
{
    for (unsigned i = 0; i < identity->policy_count; i++) {
        if (!allows(identity->policies[i], asked)) {
            return false;
        }
    }
    return true;
}

/* Calls fn with each name that an action may have; ends when it says true. */
static bool each_action(bool (*fn)(void *opaque, const char *name, enum role role), void *opaque)
{
    unsigned count, action_count;
    const struct api_operation *operations = api_operations(&count);
    const struct compute_action *actions = compute_actions(&action_count);
    char name[WORD_BYTES];
    for (unsigned i = 0; i < count; i++) {
        if (operations[i].role != ROLE_NONE && fn(opaque, operations[i].id, operations[i].role)) {
            return true;
        }
        for (unsigned a = 0; operations[i].handle == objects_act && a < action_count; a++) {
            (void)snprintf(name, sizeof(name), "%s.%s", operations[i].id, actions[a].name);
            if (fn(opaque, name, operations[i].role)) {
                return true;
            }
        }
    }
    return fn(opaque, "instance.console", ROLE_MEMBER);
}

struct search {
    const char *pattern;
    enum role found; /* the highest that it needs, administrators' apart */
    bool is_known;
};

static bool look(void *opaque, const char *name, enum role role)
{
    struct search *search = opaque;
    if (fits_pattern(search->pattern, name)) {
        search->is_known = true;
        if (role < ROLE_ADMIN && role > search->found) {
            search->found = role;
        }
    }
    return search->found == ROLE_MEMBER; /* none of these needs more */
}

enum role policy_level(const json_t *policy)
{
    struct search search = {.found = ROLE_VIEWER};
    size_t i, w;
    json_t *statement, *word;
    json_array_foreach(json_object_get(policy, "statements"), i, statement)
    {
        if (strcmp(text_of(statement, "effect"), "allow") != 0) {
            continue;
        }
        json_array_foreach(json_object_get(statement, "actions"), w, word)
        {
            search.pattern = json_string_value(word);
            if (search.pattern != NULL && search.found < ROLE_MEMBER) {
                (void)each_action(look, &search);
            }
        }
    }
    return search.found;
}

static int refuse(struct fault *fault, const char *field, const char *text)
{
    return fault_set(fault, FAULT_INVALID, field, "%s", text);
}

static int check_action(const char *word, bool is_allow, struct fault *fault)
{
    struct search search = {.pattern = word};
    const char *star = strchr(word, '*');
    (void)each_action(look, &search);
    if ((star != NULL && star[1] != 0) || !search.is_known) {
        return fault_set(fault, FAULT_INVALID, "actions",
                         "there is no action \"%.60s\"; they are the operations of "
                         "/v1/openapi.json, and * stands at the end only",
                         word);
    }
    if (is_allow && search.found == ROLE_NONE) {
        return fault_set(fault, FAULT_INVALID, "actions",
                         "\"%.60s\" is the role admin's only; no other role can have it", word);
    }
    return 0;
}

/* A plural would be taken for an id that nothing has: a denial would deny nothing. */
static int check_resource(const char *word, struct fault *fault)
{
    const struct kind_spec *spec = kind_find(word);
    if (spec != NULL && strcmp(spec->name, word) != 0) {
        return fault_set(fault, FAULT_INVALID, "resources", "the kind is \"%s\", not \"%s\"",
                         spec->name, word);
    }
    return strchr(word, '*') != NULL && strcmp(word, "*") != 0
               ? refuse(fault, "resources", "a resource is a kind, an id, or \"*\"")
               : 0;
}

static int check_words(const json_t *statement, const char *name, struct fault *fault)
{
    json_t *words = json_object_get(statement, name), *word;
    bool is_allow = strcmp(text_of(statement, "effect"), "allow") == 0;
    size_t i;
    if (!json_is_array(words) || json_array_size(words) == 0 ||
        json_array_size(words) > WORDS_MAX) {
        return fault_set(fault, FAULT_INVALID, name, "%s must be an array of 1 to %d strings", name,
                         WORDS_MAX);
    }
    json_array_foreach(words, i, word)
    {
        size_t len = json_string_length(word);
        if (!json_is_string(word) || len == 0 || len >= WORD_BYTES) {
            return fault_set(fault, FAULT_INVALID, name, "%s must be an array of strings", name);
        }
        const char *text = json_string_value(word);
        int error = 0;
        if (strcmp(name, "actions") == 0) {
            error = check_action(text, is_allow, fault);
        } else {
            error = check_resource(text, fault);
        }
        if (error != 0) {
            return error;
        }
    }
    return 0;
}

static int check_statement(const json_t *statement, struct fault *fault)
{
    static const char *const known[] = {"effect", "actions", "resources", "conditions"};
    const char *effect = text_of(statement, "effect");
    const json_t *conditions = json_object_get(statement, "conditions");
    const char *name;
    json_t *value;
    size_t found = 0;
    for (size_t i = 0; i < ARRAY_LEN(known); i++) {
        found += json_object_get(statement, known[i]) != NULL;
    }
    if (!json_is_object(statement) || found != json_object_size(statement)) {
        return refuse(fault, "statements",
                      "a statement has effect, actions, resources and conditions, nothing else");
    }
    if (strcmp(effect, "allow") != 0 && strcmp(effect, "deny") != 0) {
        return refuse(fault, "effect", "effect must be allow or deny");
    }
    if (conditions != NULL &&
        (!json_is_object(conditions) || json_object_size(conditions) > CONDITIONS_MAX)) {
        return fault_set(fault, FAULT_INVALID, "conditions",
                         "conditions must be an object of at most %d", CONDITIONS_MAX);
    }
    json_object_foreach((json_t *)(uintptr_t)conditions, name, value)
    {
        if (strncmp(name, "tag.", 4) != 0 || name[4] == 0 || !json_is_string(value) ||
            json_string_length(value) > TAG_VALUE_BYTES) {
            return refuse(fault, "conditions",
                          "a condition is \"tag.NAME\": \"the value that the tag must have\"");
        }
    }
    int error = check_words(statement, "actions", fault);
    return error != 0 ? error : check_words(statement, "resources", fault);
}

int policy_check(const json_t *statements, struct fault *fault)
{
    size_t i;
    json_t *statement;
    if (!json_is_array(statements) || json_array_size(statements) == 0 ||
        json_array_size(statements) > STATEMENTS_MAX) {
        return fault_set(fault, FAULT_INVALID, "statements",
                         "statements must be an array of 1 to %d objects", STATEMENTS_MAX);
    }
    json_array_foreach(statements, i, statement)
    {
        int error = check_statement(statement, fault);
        if (error != 0) {
            return error;
        }
    }
    return 0;
}

struct collection {
    json_t *names;
    enum role role;
};

static bool collect(void *opaque, const char *name, enum role role)
{
    struct collection *all = opaque;
    if (role <= all->role && strncmp(name, "instance.act.", 13) != 0) {
        (void)json_array_append_new(all->names, json_string(name));
    }
    return false;
}

json_t *policy_built_in(enum role role)
{
    struct collection all = {.names = json_array(), .role = role};
    if (role == ROLE_ADMIN) {
        (void)json_array_append_new(all.names, json_string("*"));
    } else {
        (void)each_action(collect, &all);
    }
    return json_pack("{s:s, s:b, s:[{s:s, s:o, s:[s]}]}", "name", role_name(role), "built_in", 1,
                     "statements", "effect", "allow", "actions", all.names, "resources", "*");
}

/* {"type": "array", "minItems": 1, "maxItems": most, "items": items}; items is taken over. */
static json_t *array_schema(json_t *items, int most)
{
    return json_pack("{s:s, s:i, s:i, s:o}", "type", "array", "minItems", 1, "maxItems", most,
                     "items", items);
}

static json_t *words_schema(void)
{
    return array_schema(
        json_pack("{s:s, s:i, s:i}", "type", "string", "minLength", 1, "maxLength", WORD_BYTES - 1),
        WORDS_MAX);
}

json_t *policy_schema(void)
{
    json_t *conditions = json_pack("{s:s, s:i, s:{s:s, s:i}, s:s}", "type", "object",
                                   "maxProperties", CONDITIONS_MAX, "additionalProperties", "type",
                                   "string", "maxLength", TAG_VALUE_BYTES, "description",
                                   "tag.NAME: the value that the object's tag must have");
    json_t *statement =
        json_pack("{s:s, s:{s:{s:s, s:[ss]}, s:o, s:o, s:o}, s:[sss], s:b}", "type", "object",
                  "properties", "effect", "type", "string", "enum", "allow", "deny", "actions",
                  words_schema(), "resources", words_schema(), "conditions", conditions, "required",
                  "effect", "actions", "resources", "additionalProperties", 0);
    return array_schema(statement, STATEMENTS_MAX);
}
