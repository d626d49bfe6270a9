/* Network cards: whose they are, and which address each has. */
#include "compute/compute_int.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#define LOCAL_BIT 0x02u /* of an address's first byte: nobody's who makes cards */
#define GROUP_BIT 0x01u

/* Who has an address, on the whole platform. */
static void mac_key(const char *mac, char key[STORE_MAX_KEY_BYTES + 1])
{
    (void)snprintf(key, STORE_MAX_KEY_BYTES + 1, "/v1/mac/%s", mac);
}

/* One that is taken already is found out by the commit, which is tried again. */
static int make_mac(struct object *nic, struct fault *fault)
{
    uint8_t mac[MAC_BYTES];
    char text[MAC_TEXT_BYTES];

    if (getrandom(mac, sizeof(mac), 0) != (ssize_t)sizeof(mac)) {
        return fault_set(fault, FAULT_INTERNAL, NULL, "no random numbers for an address");
    }
    mac[0] = (uint8_t)((mac[0] & ~GROUP_BIT) | LOCAL_BIT);
    mac_format(mac, text);
    object_set_text(nic, "mac", text);
    return 0;
}

static int check_mac(struct compute *compute, const char *mac, struct fault *fault)
{
    char key[STORE_MAX_KEY_BYTES + 1];
    struct store_record record = {0};
    uint8_t bytes[MAC_BYTES];
    struct err err;
    int rc;

    if (!mac_parse(mac, bytes) || strpbrk(mac, "ABCDEF") != NULL) {
        return fault_set(fault, FAULT_INVALID, "mac",
                         "\"mac\" takes the address of one card in lower case, such as "
                         "52:54:00:ab:cd:ef; the second digit is even");
    }
    mac_key(mac, key);
    rc = store_get(compute->config.store, key, &record, &err);
    if (rc == -ENOENT) {
        return 0;
    }
    if (rc < 0) {
        return fault_set_err(fault, rc, &err);
    }
    store_record_done(&record);
    return fault_set(fault, FAULT_CONFLICT, "mac", "another NIC of this platform has this address");
}

int nic_prepare(struct change *change, struct object *nic, struct fault *fault)
{
    char key[STORE_MAX_KEY_BYTES + 1];
    int rc = json_object_get(nic->json, "mac") == NULL
                 ? make_mac(nic, fault)
                 : check_mac(change->compute, object_text(nic, "mac"), fault);

    rc = rc < 0 ? rc : network_check(change->compute, object_text(nic, "network"), fault);
    rc = rc < 0 ? rc : admit_one(change->compute, nic, fault);
    if (rc < 0) {
        return rc;
    }
    mac_key(object_text(nic, "mac"), key);
    change_write(change, key, json_string(nic->id), true);
    object_set_text(nic, "state", "available");
    return 0;
}

void nic_remove(struct change *change, const struct object *nic)
{
    char key[STORE_MAX_KEY_BYTES + 1];

    mac_key(object_text(nic, "mac"), key);
    change_erase(change, key);
    change_remove(change, nic);
    change_drop_name(change, KIND_NIC, nic->project, object_text(nic, "name"));
}

/* A new one for an instance for which none was named: made with it, and gone with it. */
static int make_own(struct change *change, struct object *instance, const char *wanted,
                    struct fault *fault)
{
    struct object nic = {0};
    json_t *fields = NULL, *given = json_pack("{s:s*}", "network", wanted);
    int rc = kind_parse_create(kind_spec(KIND_NIC), given, &fields, fault);

    json_decref(given);
    rc = rc < 0 ? rc : object_new(KIND_NIC, instance->project, fields, &nic, fault);
    rc = rc < 0 ? rc : nic_prepare(change, &nic, fault);
    if (rc == 0) {
        object_set_text(&nic, "name", nic.id);
        object_set_text(&nic, "instance", instance->id);
        object_set_text(&nic, "state", "in-use");
        object_set_flag(&nic, "own", true);
        object_set_text(instance, "nic", nic.id);
        object_set_text(instance, "network", object_text(&nic, "network"));
        change_put(change, &nic);
        change_take_name(change, &nic);
    }
    object_done(&nic);
    return rc;
}

/* Its own card leads where it wants, another one where that leads. wanted: NULL for anywhere. */
static int lead(struct change *change, struct object *nic, struct object *instance,
                const char *wanted, struct fault *fault)
{
    bool is_there = wanted == NULL || object_is(nic, "network", wanted);
    int rc = 0;

    if (!is_there && !object_flag(nic, "own")) {
        return fault_set(fault, FAULT_CONFLICT, "network",
                         "the NIC \"%s\" leads to %s; give another NIC, or none and the network",
                         object_text(nic, "name"), object_text(nic, "network"));
    }
    if (!is_there) {
        rc = network_check(change->compute, wanted, fault);
        object_set_text(nic, "network", wanted);
        change_put(change, nic);
    }
    object_set_text(instance, "network", object_text(nic, "network"));
    return rc;
}

/* The one that it names: there, and nobody else's. Its id takes its name's place. */
static int take(struct change *change, struct object *instance, const char *wanted,
                struct fault *fault)
{
    struct object nic = {0};
    int rc = object_find(change->compute, KIND_NIC, instance->project, object_text(instance, "nic"),
                         &nic, fault);

    if (rc < 0) {
        return call_name_field(rc, "nic", fault);
    }
    if (object_is(&nic, "instance", instance->id)) {
        object_set_text(instance, "nic", nic.id);
        rc = lead(change, &nic, instance, wanted, fault);
    } else if (!object_is(&nic, "state", "available")) {
        rc = fault_set(fault, FAULT_CONFLICT, "nic", "the NIC \"%s\" is %s",
                       object_text(&nic, "name"), object_text(&nic, "state"));
    } else {
        object_set_text(&nic, "instance", instance->id);
        object_set_text(&nic, "state", "in-use");
        object_set_text(instance, "nic", nic.id);
        rc = lead(change, &nic, instance, wanted, fault);
        change_put(change, &nic);
    }
    object_done(&nic);
    return rc;
}

int nic_release(struct change *change, const struct object *instance, const char *id,
                struct fault *fault)
{
    struct object nic = {0};
    int rc = id[0] != '\0'
                 ? object_load(change->compute, KIND_NIC, instance->project, id, &nic, fault)
                 : -ENOENT;

    if (rc < 0) {
        return rc == -ENOENT ? 0 : rc; /* it is from before there were any */
    }
    if (!object_is(&nic, "instance", instance->id)) {
        rc = 0; /* another's, who is not to lose it */
    } else if (object_flag(&nic, "own")) {
        nic_remove(change, &nic);
    } else {
        object_clear(&nic, "instance");
        object_set_text(&nic, "state", "available");
        change_put(change, &nic);
    }
    object_done(&nic);
    return rc;
}

/* The one of its own that it had before, if it had one. */
static int take_own(struct change *change, struct object *instance, const char *old,
                    const char *wanted, struct fault *fault)
{
    struct object nic = {0};
    int rc = old != NULL
                 ? object_load(change->compute, KIND_NIC, instance->project, old, &nic, NULL)
                 : -ENOENT;

    if (rc == 0 && object_flag(&nic, "own")) {
        object_set_text(instance, "nic", old);
        rc = lead(change, &nic, instance, wanted, fault);
    } else {
        rc = make_own(change, instance, wanted, fault);
    }
    object_done(&nic);
    return rc;
}

int nic_attach(struct change *change, struct object *instance, const json_t *given,
               const json_t *before, struct fault *fault)
{
    const char *old = json_string_value(json_object_get(before, "nic"));
    const json_t *network = json_object_get(given, "network");
    const char *wanted = json_is_null(network) ? "user" : json_string_value(network);
    int rc = json_object_get(instance->json, "nic") != NULL
                 ? take(change, instance, wanted, fault)
                 : take_own(change, instance, old, wanted, fault);

    rc = rc < 0 ? rc : network_check_forwards(instance, fault);
    return rc < 0 || old == NULL || object_is(instance, "nic", old)
               ? rc
               : nic_release(change, instance, old, fault);
}

int nic_card(struct compute *compute, const struct object *instance, struct nic_card *ret_card,
             struct err *err)
{
    const char *id = object_text(instance, "nic");
    struct object nic = {0};
    struct fault fault = {.code = FAULT_NONE};
    int rc;

    *ret_card = (struct nic_card){.network = "user"};
    if (id[0] == '\0') {
        return 0;
    }
    rc = object_load(compute, KIND_NIC, instance->project, id, &nic, &fault);
    if (rc < 0) {
        return err_set(err, rc, "%s", fault.text);
    }
    (void)snprintf(ret_card->mac, sizeof(ret_card->mac), "%s", object_text(&nic, "mac"));
    (void)snprintf(ret_card->network, sizeof(ret_card->network), "%s",
                   object_text(&nic, "network"));
    object_done(&nic);
    return 0;
}
