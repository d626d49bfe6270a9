/* A policy document: what is taken is then asked about all that there is. */
#include "fuzz_import.h"

#include "api/api_int.h"

/* Without one statement that allows, nothing is allowed. */
static bool has_allow(const json_t *statements)
{
    size_t i;
    json_t *statement;

    json_array_foreach(statements, i, statement)
    {
        const char *effect = json_string_value(json_object_get(statement, "effect"));

        if (effect != NULL && strcmp(effect, "allow") == 0) {
            return true;
        }
    }
    return false;
}

/* Of one object, of some and of all: what holds for all holds for each, what for one for some. */
static void ask(const struct identity *identity, const char *id, bool may)
{
    unsigned count;
    const struct api_operation *operations = api_operations(&count);
    json_t *tags = json_pack("{s:s}", "env", "dev");

    for (unsigned i = 0; i < count; i++) {
        struct policy_question asked = {
            .action = operations[i].id,
            .operation = operations[i].id,
            .kind = operations[i].kind < KIND_COUNT ? kind_spec(operations[i].kind)->name : "host",
            .id = id,
            .tags = tags,
            .of = POLICY_THIS};
        bool this = policy_allows(identity, &asked), some, all;

        asked.of = POLICY_SOME;
        some = policy_allows(identity, &asked);
        asked.of = POLICY_ALL;
        all = policy_allows(identity, &asked);
        fuzz_expect(may || (!this && !some && !all));
        fuzz_expect(!all || some);
        if (operations[i].kind < KIND_COUNT) {
            fuzz_expect((!all || this) && (!this || some));
        }
    }
    json_decref(tags);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    json_t *statements = json_loadb((const char *)data, len, JSON_REJECT_DUPLICATES, NULL);
    struct fault fault = {.code = FAULT_NONE};
    int rc = policy_check(statements, &fault);

    fuzz_expect(rc <= 0 && (rc != 0) == (fault.text[0] != '\0'));
    if (rc == 0) {
        struct identity identity = {.policy_count = 1};

        identity.policies[0] = json_pack("{s:O}", "statements", statements);
        fuzz_expect(policy_level(identity.policies[0]) < ROLE_ADMIN);
        ask(&identity, "i-1", has_allow(statements));
        ask(&identity, NULL, has_allow(statements));
        json_decref(identity.policies[0]);
    }
    json_decref(statements);
    return 0;
}
