#include "vmm/net_option.h"

#include "base/mac.h"
#include "vmm/config.h"
#include "vmm/config_fields.h"
#include "vmm/parse.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define LOOPBACK 0x7f000001u
#define FIRST_FREE_FD 3 /* after the standard ones */

/* Kinds of network that have an option. */
#define OF_USER (1u << VMM_NET_USER)
#define OF_BRIDGE (1u << VMM_NET_BRIDGE)
#define OF_TAP (1u << VMM_NET_TAP)
#define OF_ALL (OF_USER | OF_BRIDGE | OF_TAP)

/* "HOSTPORT:GUESTPORT" */
static int set_forward(const struct vmm_setting *setting, char *ports)
{
    struct machine_net *net = &setting->config->machine.net;
    char *guest = parse_split(ports, ':');
    uint64_t host_port, guest_port;

    if (guest == NULL || !parse_number(ports, 0, UINT16_MAX, &host_port) ||
        !parse_number(guest, 1, UINT16_MAX, &guest_port)) {
        return vmm_setting_refuse(
            setting,
            "forward=HOSTPORT:GUESTPORT with ports up to 65535; HOSTPORT 0 takes a free one");
    }
    if (net->forward_count == MACHINE_MAX_FORWARDS) {
        return err_set(setting->err, -EINVAL, "%s: more than %d forwards; leave some out",
                       setting->place, MACHINE_MAX_FORWARDS);
    }
    for (unsigned i = 0; i < net->forward_count; i++) {
        if (host_port != 0 && net->forwards[i].host_port == host_port) {
            return vmm_setting_refuse(setting, "each host port once");
        }
    }
    net->forwards[net->forward_count++] = (struct machine_forward){
        .host_address = LOOPBACK,
        .host_port = (uint16_t)host_port,
        .guest_port = (uint16_t)guest_port,
    };
    return 0;
}

static int set_rate(const struct vmm_setting *setting, const char *value, uint64_t *rate)
{
    return parse_size(value, rate) && *rate <= LIMIT_MAX_RATE
               ? 0
               : vmm_setting_refuse(setting, "bps= with bytes and pps= with frames per second, "
                                             "such as bps=50M; 0 is no limit");
}

static int set_bps(const struct vmm_setting *setting, char *value)
{
    return set_rate(setting, value, &setting->config->machine.net.limits.bytes_per_second);
}

static int set_bps_burst(const struct vmm_setting *setting, char *value)
{
    return set_rate(setting, value, &setting->config->machine.net.limits.burst_bytes);
}

static int set_pps(const struct vmm_setting *setting, char *value)
{
    return set_rate(setting, value, &setting->config->machine.net.limits.ops_per_second);
}

static int set_pps_burst(const struct vmm_setting *setting, char *value)
{
    return set_rate(setting, value, &setting->config->machine.net.limits.burst_ops);
}

static int set_mac(const struct vmm_setting *setting, char *value)
{
    return mac_parse(value, setting->config->machine.net.mac)
               ? 0
               : vmm_setting_refuse(setting, "mac= with the address of one card, such as "
                                             "mac=52:54:00:ab:cd:ef; the second digit is even");
}

static int set_device(const struct vmm_setting *setting, char *value)
{
    struct vmm_net *net = &setting->config->net;

    if (net->device[0] != '\0' || net->fd >= 0 || !hostnet_is_name(value)) {
        return vmm_setting_refuse(setting, "the name of one network device: " HOSTNET_NAME_RULE);
    }
    (void)snprintf(net->device, sizeof(net->device), "%s", value);
    return 0;
}

static int set_fd(const struct vmm_setting *setting, char *value)
{
    struct vmm_net *net = &setting->config->net;
    uint64_t fd;

    if (net->device[0] != '\0' || net->fd >= 0 ||
        !parse_number(value, FIRST_FREE_FD, INT32_MAX, &fd)) {
        return vmm_setting_refuse(setting, "ifname=NAME, or fd= with one descriptor, 3 or more");
    }
    net->fd = (int)fd;
    return 0;
}

static int set_guard(const struct vmm_setting *setting, char *value)
{
    if (value != NULL) {
        return vmm_setting_refuse(setting, "guard without a value");
    }
    setting->config->machine.net.is_guarded = true;
    return 0;
}

struct net_option {
    const char *key;
    unsigned kinds;
    bool is_word; /* has no value */
    int (*set)(const struct vmm_setting *setting, char *value);
};

static const struct net_option options[] = {
    {.key = "forward", .kinds = OF_USER, .set = set_forward},
    {.key = "bridge", .kinds = OF_BRIDGE, .set = set_device},
    {.key = "ifname", .kinds = OF_TAP, .set = set_device},
    {.key = "fd", .kinds = OF_TAP, .set = set_fd},
    {.key = "guard", .kinds = OF_BRIDGE | OF_TAP, .is_word = true, .set = set_guard},
    {.key = "mac", .kinds = OF_ALL, .set = set_mac},
    {.key = "bps", .kinds = OF_ALL, .set = set_bps},
    {.key = "bps-burst", .kinds = OF_ALL, .set = set_bps_burst},
    {.key = "pps", .kinds = OF_ALL, .set = set_pps},
    {.key = "pps-burst", .kinds = OF_ALL, .set = set_pps_burst},
};

static const struct {
    const char *name;
    const char *mend;
} kinds[] = {
    [VMM_NET_NONE] = {"none", "none without anything after it"},
    [VMM_NET_USER] = {"user", "user,forward=HOSTPORT:GUESTPORT, forward= as often as needed; mac=, "
                              "bps= and pps= too"},
    [VMM_NET_BRIDGE] = {"bridge", "bridge,bridge=NAME, and guard, mac=, bps= or pps= after it"},
    [VMM_NET_TAP] = {"tap", "tap,ifname=NAME or tap,fd=N, and guard, mac=, bps= or pps= after it"},
};

/* "KEY=VALUE" or "WORD" */
static int set_option(const struct vmm_setting *setting, enum vmm_net_kind kind, char *part)
{
    char *value = parse_split(part, '=');

    for (size_t i = 0; i < ARRAY_LEN(options); i++) {
        const struct net_option *option = &options[i];

        if (strcmp(part, option->key) == 0 && (option->kinds & 1u << kind) != 0 &&
            (value != NULL || option->is_word)) {
            return option->set(setting, value);
        }
    }
    return vmm_setting_refuse(setting, kinds[kind].mend);
}

int net_option_parse(char *text, const struct vmm_setting *setting)
{
    struct vmm_config *config = setting->config;
    char *next = parse_split(text, ',');
    enum vmm_net_kind kind = VMM_NET_NONE;

    while (kind < ARRAY_LEN(kinds) && strcmp(text, kinds[kind].name) != 0) {
        kind++;
    }
    if (kind == ARRAY_LEN(kinds)) {
        return vmm_setting_refuse(setting, "user, or user,forward=HOSTPORT:GUESTPORT, or "
                                           "bridge,bridge=NAME, or tap,ifname=NAME, or none");
    }
    config->machine.net = (struct machine_net){.is_present = kind != VMM_NET_NONE};
    config->net = (struct vmm_net){.kind = kind, .fd = -1};
    while (next != NULL) {
        char *part = next;
        int rc;

        next = parse_split(part, ',');
        rc = set_option(setting, kind, part);
        if (rc < 0) {
            return rc;
        }
    }
    return kind > VMM_NET_USER && config->net.device[0] == '\0' && config->net.fd < 0
               ? vmm_setting_refuse(setting, kinds[kind].mend)
               : 0;
}
