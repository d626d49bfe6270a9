#include "compute/seed.h"

#include "base/base64.h"
#include "storage/seed.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What an instance begins with where its user data does not say otherwise. */
static const char vendor_data[] =
    "#cloud-config\n"
    "# The key that was asked for opens root's account too, and nobody has a password.\n"
    "disable_root: false\n"
    "ssh_pwauth: false\n"
    "manage_etc_hosts: localhost\n";

static void data_key(const struct object *instance, char key[STORE_MAX_KEY_BYTES + 1])
{
    (void)snprintf(key, STORE_MAX_KEY_BYTES + 1, "/v1/userdata/%s/%s", instance->project,
                   instance->id);
}

/* ---- what a call says ---- */

static int take_user_data(struct change *change, struct object *instance, struct fault *fault)
{
    const json_t *text = json_object_get(instance->json, "user_data");
    const json_t *coded = json_object_get(instance->json, "user_data_base64");
    char key[STORE_MAX_KEY_BYTES + 1];
    json_t *record = NULL;
    void *data = NULL;
    size_t len = 0;

    if (text != NULL && coded != NULL) {
        return fault_set(fault, FAULT_INVALID, "user_data",
                         "give one of user_data and user_data_base64");
    }
    if (text != NULL) {
        char *made = base64_encode(json_string_value(text), json_string_length(text));

        record = made != NULL ? json_string(made) : NULL;
        free(made);
    } else if (coded != NULL) {
        if (base64_decode(json_string_value(coded), json_string_length(coded), &data, &len) < 0 ||
            len > SEED_MAX_USER_DATA) {
            free(data);
            return fault_set(fault, FAULT_INVALID, "user_data_base64",
                             "\"user_data_base64\" takes Base64 of at most %u bytes",
                             SEED_MAX_USER_DATA);
        }
        free(data);
        record = json_string(json_string_value(coded));
    } else {
        return 0;
    }
    data_key(instance, key);
    change_write(change, key, record, true);
    object_clear(instance, "user_data");
    object_clear(instance, "user_data_base64");
    object_set_flag(instance, "has_user_data", true);
    return 0;
}

/* The instance keeps the key's text: the key may go, and the name be another's later. */
static int take_key(struct change *change, struct object *instance, struct fault *fault)
{
    struct object key = {0};
    int rc;

    if (object_text(instance, "key")[0] == '\0') {
        return 0;
    }
    rc = object_find(change->compute, KIND_KEY, instance->project, object_text(instance, "key"),
                     &key, fault);
    if (rc < 0) {
        if (rc == -ENOENT && fault != NULL) {
            (void)snprintf(fault->field, sizeof(fault->field), "key");
        }
        return rc;
    }
    object_set_text(instance, "key", object_text(&key, "name"));
    object_set_text(instance, "public_key", object_text(&key, "public_key"));
    object_done(&key);
    return 0;
}

int seed_prepare(struct change *change, struct object *instance, struct fault *fault)
{
    int rc = take_user_data(change, instance, fault);

    return rc < 0 ? rc : take_key(change, instance, fault);
}

void seed_forget(struct change *change, const struct object *instance)
{
    char key[STORE_MAX_KEY_BYTES + 1];

    if (object_flag(instance, "has_user_data")) {
        data_key(instance, key);
        change_erase(change, key);
    }
}

/* ---- the volume ---- */

bool seed_is_wanted(const struct object *instance)
{
    return object_flag(instance, "has_user_data") || object_text(instance, "public_key")[0] != '\0';
}

void seed_host_name(const struct object *instance, char out[ID_BYTES])
{
    size_t len;

    (void)snprintf(out, ID_BYTES, "%s", object_text(instance, "name"));
    for (char *c = out; *c != '\0'; c++) {
        *c = isalnum((unsigned char)*c) != 0 || *c == '.' ? *c : '-';
    }
    len = strlen(out);
    while (len > 0 && (out[len - 1] == '-' || out[len - 1] == '.')) {
        out[--len] = '\0';
    }
    if (len == 0) {
        (void)snprintf(out, ID_BYTES, "%s", instance->id);
    }
}

/* An instance is the same as long as its id is: what cloud-init does once, it does once. */
static char *make_meta_data(const struct object *instance)
{
    const char *key = object_text(instance, "public_key");
    char host_name[ID_BYTES], *text;
    json_t *keys = json_array();
    json_t *meta;

    seed_host_name(instance, host_name);
    if (key[0] != '\0') {
        (void)json_array_append_new(keys, json_string(key));
    }
    /* JSON is YAML. */
    meta = json_pack("{s:s, s:s, s:o}", "instance-id", instance->id, "local-hostname", host_name,
                     "public-keys", keys);
    text = json_dumps(meta, JSON_INDENT(2) | JSON_ENSURE_ASCII);
    json_decref(meta);
    return text;
}

static int load_user_data(struct compute *compute, const struct object *instance, void **ret_data,
                          size_t *ret_len, struct err *err)
{
    char key[STORE_MAX_KEY_BYTES + 1];
    struct store_record record = {0};
    json_t *coded;
    int rc;

    if (!object_flag(instance, "has_user_data")) {
        return 0;
    }
    data_key(instance, key);
    rc = store_get(compute->config.store, key, &record, err);
    if (rc < 0) {
        return rc;
    }
    coded = json_loads(record.value, JSON_DECODE_ANY, NULL);
    rc = json_is_string(coded)
             ? base64_decode(json_string_value(coded), json_string_length(coded), ret_data, ret_len)
             : -EINVAL;
    json_decref(coded);
    store_record_done(&record);
    return rc < 0 ? err_set(err, rc, "the record %s is damaged", key) : 0;
}

int seed_make(struct compute *compute, const struct object *instance, const char *dir,
              struct err *err)
{
    CLEANUP_FREE char *meta_data = make_meta_data(instance);
    CLEANUP_FREE void *user_data = NULL;
    size_t user_len = 0;
    int rc = meta_data != NULL ? load_user_data(compute, instance, &user_data, &user_len, err)
                               : err_set(err, -ENOMEM, "out of memory");

    if (rc < 0) {
        return rc;
    }
    /* No network-config: then the first card asks for its address, whatever it is called. */
    const struct seed_file files[] = {
        {"meta-data", meta_data, strlen(meta_data)},
        {"user-data", user_data, user_len},
        {"vendor-data", vendor_data, sizeof(vendor_data) - 1},
    };
    return seed_write(dir, SEED_FILE, "CIDATA", files, ARRAY_LEN(files), err);
}
