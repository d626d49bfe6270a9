#include "vmm/network.h"

#include "base/mac.h"
#include "vmm/config.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

/* Two cards on one wire must not have the same: as that of user mode, but for the last three. */
static int make_address(uint8_t mac[MAC_BYTES])
{
    static const uint8_t none[MAC_BYTES] = {0}, first[] = {0x52, 0x54, 0x00};

    if (memcmp(mac, none, MAC_BYTES) != 0) {
        return 0;
    }
    if (getrandom(mac, MAC_BYTES, 0) != MAC_BYTES) {
        return -EIO;
    }
    memcpy(mac, first, sizeof(first));
    return 0;
}

static int open_tap(const struct vmm_net *net, struct err *err, struct hostnet_tap *ret_tap)
{
    if (net->kind == VMM_NET_BRIDGE) {
        return hostnet_make_tap(net->device, NULL, err, ret_tap);
    }
    return net->fd >= 0 ? hostnet_check_tap(net->fd, err, ret_tap)
                        : hostnet_open_tap(net->device, err, ret_tap);
}

int vmm_network_open(struct vmm_config *config, struct err *err)
{
    struct machine_net *net = &config->machine.net;
    struct hostnet_tap tap = {.fd = -1};
    struct err why;
    int rc;

    if (config->net.kind == VMM_NET_BRIDGE || config->net.kind == VMM_NET_TAP) {
        rc = open_tap(&config->net, &why, &tap);
        if (rc < 0) {
            return err_set(err, rc, "--net: %s", why.text);
        }
        net->is_tap = true;
        net->tap_fd = tap.fd;
        net->tap_mtu = tap.mtu;
        rc = make_address(net->mac);
        if (rc < 0) {
            return err_set_errno(err, rc, "--net: no random numbers for an address");
        }
        log_info("the network card is on the host's tap \"%s\"", tap.name);
    }
    rc = hostnet_drop_privilege();
    return rc < 0 ? err_set_errno(err, rc, "CAP_NET_ADMIN cannot be given up") : 0;
}

void vmm_network_close(struct vmm_config *config)
{
    if (config->machine.net.is_tap) {
        (void)close(steal_fd(&config->machine.net.tap_fd)); /* nothing to lose */
        config->machine.net.is_tap = false;
    }
}
