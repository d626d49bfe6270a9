/*
 * Where network cards lead: the user-mode network of their own monitor, or a
 * bridge of the host that the administrator lets instances use.
 *
 * The tap of a machine on a bridge is made here, in the moment before its
 * monitor starts, and has no life of its own: it goes with the last process
 * that has it open. So whatever ends between two steps leaves none, and a
 * machine keeps its own while there is no daemon.
 */
#include "compute/compute_int.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define BRIDGE "bridge:"
#define NAME_PREFIX "cb"
#define NAME_ID_BYTES 13 /* with the prefix as much as a device's name takes */

static const char *bridge_of(const char *network)
{
    return network_is_user(network) ? NULL : network + strlen(BRIDGE);
}

bool network_is_user(const char *network)
{
    return strncmp(network, BRIDGE, strlen(BRIDGE)) != 0;
}

static bool is_allowed(const struct compute *compute, const char *bridge)
{
    for (unsigned i = 0; i < compute->config.bridge_count; i++) {
        if (strcmp(compute->config.bridges[i], bridge) == 0) {
            return true;
        }
    }
    return false;
}

/* What there is to choose from, for a sentence; dots for what it has no room for. */
static void name_choices(const struct compute *compute, char *out, size_t size)
{
    static const char more[] = " ...";
    size_t used = (size_t)snprintf(out, size, "user");

    for (unsigned i = 0; i < compute->config.bridge_count; i++) {
        const char *bridge = compute->config.bridges[i];

        if (used + strlen(", " BRIDGE) + strlen(bridge) + sizeof(more) > size) {
            (void)snprintf(out + used, size - used, "%s", more);
            return;
        }
        used += (size_t)snprintf(out + used, size - used, ", " BRIDGE "%s", bridge);
    }
}

static int check_allowed(const struct compute *compute, const char *bridge, struct err *err)
{
    char choices[200];

    if (is_allowed(compute, bridge)) {
        return 0;
    }
    name_choices(compute, choices, sizeof(choices));
    return err_set(err, -EINVAL,
                   "instances may not use the bridge \"%s\" of this host; there is %s, and an "
                   "administrator allows another one with corbeld --bridge NAME",
                   bridge, choices);
}

/* Whether the daemon could put a machine there now. */
static int check_ready(const char *bridge, struct err *err)
{
    int rc = hostnet_check_privilege(err);

    return rc < 0 ? rc : hostnet_check_bridge(bridge, err);
}

int network_check(const struct compute *compute, const char *network, struct fault *fault)
{
    const char *bridge = bridge_of(network);
    struct err err;
    int rc;

    if (strcmp(network, "user") == 0) {
        return 0;
    }
    if (bridge == NULL || !hostnet_is_name(bridge)) {
        return fault_set(fault, FAULT_INVALID, "network",
                         "\"network\" takes user, or " BRIDGE "NAME with a bridge of the host");
    }
    rc = check_allowed(compute, bridge, &err);
    rc = rc < 0 ? rc : check_ready(bridge, &err);
    return rc < 0 ? fault_set(fault, FAULT_INVALID, "network", "%s", err.text) : 0;
}

int network_check_forwards(const struct object *instance, struct fault *fault)
{
    return network_is_user(object_text(instance, "network")) ||
                   json_array_size(json_object_get(instance->json, "forwards")) == 0
               ? 0
               : fault_set(fault, FAULT_INVALID, "forwards",
                           "ports are forwarded in the user-mode network only; on a bridge the "
                           "instance is reached at an address of its own");
}

int network_open(const struct compute *compute, const char *id, const char *network,
                 struct hostnet_tap *ret_tap, struct err *err)
{
    const char *bridge = bridge_of(network);
    size_t len = strlen(id);
    char name[HOSTNET_NAME_BYTES];
    int rc;

    if (bridge == NULL) {
        ret_tap->fd = -1;
        return 0;
    }
    /* An id's end is what no other has; its beginning says what it is. */
    (void)snprintf(name, sizeof(name), NAME_PREFIX "%s",
                   len > NAME_ID_BYTES ? id + len - NAME_ID_BYTES : id);
    rc = check_allowed(compute, bridge, err);
    return rc < 0 ? rc : hostnet_make_tap(bridge, name, err, ret_tap);
}

json_t *network_bridges(const struct compute *compute)
{
    json_t *list = json_array();

    for (unsigned i = 0; i < compute->config.bridge_count; i++) {
        const char *name = compute->config.bridges[i];
        struct err err;
        int rc = check_ready(name, &err);

        (void)json_array_append_new(list, json_pack("{s:s, s:b, s:s*}", "name", name, "ready",
                                                    rc == 0, "reason", rc < 0 ? err.text : NULL));
    }
    return list;
}
