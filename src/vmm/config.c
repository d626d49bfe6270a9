#include "vmm/config.h"

#include "vmm/config_fields.h"

#include <errno.h>
#include <jansson.h>
#include <string.h>

static const struct vmm_field *find_field(const char *name, size_t len)
{
    for (unsigned i = 0; i < vmm_field_count; i++) {
        if (strlen(vmm_fields[i].name) == len && strncmp(vmm_fields[i].name, name, len) == 0) {
            return &vmm_fields[i];
        }
    }
    return NULL;
}

void vmm_config_init(struct vmm_config *config)
{
    *config = (struct vmm_config){
        .serial = VMM_SERIAL_STDIO, .ready_fd = -1, .log_level = LOG_LEVEL_INFO};
    machine_config_init(&config->machine);
    config->machine.has_rng = true;
    config->machine.has_balloon = true;
}

void vmm_config_done(struct vmm_config *config)
{
    for (unsigned i = 0; i < config->string_count; i++) {
        free(config->strings[i]);
    }
    config->string_count = 0;
}

static int set_value(struct vmm_config *config, const struct vmm_field *field, const char *place,
                     const char *value, struct err *err)
{
    struct vmm_setting setting = {.config = config, .place = place, .value = value, .err = err};

    return field->set(&setting);
}

/* One flag. Returns how many words after it were used up, or a negative errno. */
static int parse_flag(struct vmm_config *config, const char *word, const char *next,
                      struct err *err)
{
    const char *name = word + 2;
    const char *value = strchr(name, '=');
    size_t len = value != NULL ? (size_t)(value - name) : strlen(name);
    const struct vmm_field *field = find_field(name, len);
    char place[40], shown[200];
    bool is_no = false;
    int rc;

    if (field == NULL && strncmp(name, "no-", 3) == 0) {
        field = find_field(name + 3, len - 3);
        is_no = true;
        if (field != NULL && field->value != NULL) {
            field = NULL;
        }
    }
    if (field == NULL) {
        return err_set(err, -EINVAL, "there is no flag \"%s\"; corbel-vmm --help lists them all",
                       log_escape(shown, sizeof(shown), word, strlen(word)));
    }
    (void)snprintf(place, sizeof(place), "--%.*s", (int)len, name);
    if (field->value == NULL) {
        if (value != NULL) {
            return err_set(err, -EINVAL, "%s takes no value; leave out \"%s\"", place,
                           log_escape(shown, sizeof(shown), value, strlen(value)));
        }
        return set_value(config, field, place, is_no ? "no" : "yes", err);
    }
    if (value == NULL && next == NULL) {
        return err_set(err, -EINVAL, "%s has no value; give %s after it", place, field->value);
    }
    rc = set_value(config, field, place, value != NULL ? value + 1 : next, err);
    return rc < 0 ? rc : value == NULL;
}

int vmm_config_parse_args(struct vmm_config *config, int argc, char *const argv[], struct err *err,
                          enum vmm_action *ret_action)
{
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        char shown[200];
        int used;

        if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
            *ret_action = VMM_ACTION_HELP;
            return 0;
        }
        if (strcmp(word, "--version") == 0) {
            *ret_action = VMM_ACTION_VERSION;
            return 0;
        }
        if (strncmp(word, "--", 2) != 0) {
            return err_set(err, -EINVAL,
                           "\"%s\" is not a flag; every setting is a flag such as --kernel FILE",
                           log_escape(shown, sizeof(shown), word, strlen(word)));
        }
        used = parse_flag(config, word, argv[i + 1], err);
        if (used < 0) {
            return used;
        }
        i += used;
    }
    *ret_action = VMM_ACTION_RUN;
    return 0;
}

/* One value of a key, as the text its flag would take. */
static int set_json_value(struct vmm_config *config, const struct vmm_field *field,
                          const char *place, const json_t *value, struct err *err)
{
    char number[32];

    if (field->value == NULL) {
        if (!json_is_boolean(value)) {
            return err_set(err, -EINVAL, "%s takes true or false", place);
        }
        return set_value(config, field, place, json_is_true(value) ? "yes" : "no", err);
    }
    if (json_is_string(value)) {
        return set_value(config, field, place, json_string_value(value), err);
    }
    if (json_is_integer(value)) {
        (void)snprintf(number, sizeof(number), "%lld", (long long)json_integer_value(value));
        return set_value(config, field, place, number, err);
    }
    return err_set(err, -EINVAL, "%s takes a string such as \"%s\"%s", place, field->value,
                   field->is_repeatable ? ", or an array of them" : "");
}

static int set_json_key(struct vmm_config *config, const char *file, const char *key,
                        const json_t *value, struct err *err)
{
    const struct vmm_field *field = find_field(key, strlen(key));
    char shown[100], place[300];

    (void)log_escape(shown, sizeof(shown), key, strlen(key));
    if (field == NULL || field->is_flag_only) {
        return err_set(err, -EINVAL,
                       "%s: there is no setting \"%s\"; the keys are the flags of corbel-vmm "
                       "--help without their dashes",
                       file, shown);
    }
    (void)snprintf(place, sizeof(place), "%s: \"%s\"", file, shown);
    if (field->is_repeatable && json_is_array(value)) {
        for (size_t i = 0; i < json_array_size(value); i++) {
            int rc = set_json_value(config, field, place, json_array_get(value, i), err);

            if (rc < 0) {
                return rc;
            }
        }
        return 0;
    }
    return set_json_value(config, field, place, value, err);
}

int vmm_config_parse_json(struct vmm_config *config, const char *name, const char *text, size_t len,
                          struct err *err)
{
    json_error_t why;
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &why);
    void *at;
    int rc = 0;

    if (root == NULL) {
        return err_set(err, -EINVAL, "%s: line %d is not JSON: %s", name, why.line, why.text);
    }
    if (!json_is_object(root)) {
        rc = err_set(err, -EINVAL, "%s: the file must hold one JSON object in braces", name);
    }
    for (at = json_object_iter(root); at != NULL && rc == 0; at = json_object_iter_next(root, at)) {
        rc = set_json_key(config, name, json_object_iter_key(at), json_object_iter_value(at), err);
    }
    json_decref(root);
    return rc;
}

int vmm_config_check(const struct vmm_config *config, struct err *err)
{
    const struct machine_config *machine = &config->machine;

    if (machine->kernel == NULL) {
        return err_set(err, -EINVAL, "--kernel is missing; give the kernel to boot after it");
    }
    if (machine->engine_check &&
        (machine->engine == MACHINE_ENGINE_KVM || machine->engine_reference)) {
        return err_set(err, -EINVAL,
                       "--engine-check compares soft with reference; leave out --engine or give "
                       "--engine soft");
    }
    if (machine->gdb_wait && machine->gdb_listen == NULL) {
        return err_set(err, -EINVAL, "--gdb-wait needs a debugger; give --gdb PORT too");
    }
    if (config->control_path != NULL && config->serial == VMM_SERIAL_SOCKET &&
        strcmp(config->control_path, config->serial_path) == 0) {
        return err_set(err, -EINVAL,
                       "--control and --serial both name \"%s\"; give each its own socket",
                       config->control_path);
    }
    return 0;
}

void vmm_config_print_help(FILE *out)
{
    (void)fputs("usage: corbel-vmm --kernel FILE [FLAG]...\n"
                "Runs one virtual machine until the guest powers off.\n\n",
                out);
    for (unsigned i = 0; i < vmm_field_count; i++) {
        const struct vmm_field *field = &vmm_fields[i];

        (void)fprintf(out, "  --%s%s%s%s\n        %s\n", field->is_default_on ? "no-" : "",
                      field->name, field->value != NULL ? " " : "",
                      field->value != NULL ? field->value : "", field->help);
    }
    (void)fputs("  --version\n        show the version\n"
                "  --help\n        show this help\n",
                out);
}
