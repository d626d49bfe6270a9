#include "hostnet/hostnet.h"

#include "base/io.h"
#include "base/log.h"
#include "base/mac.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/ethtool.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#define TUN_PATH "/dev/net/tun"
#define USUAL_MTU 1500
#define MIN_MTU 68 /* RFC 791 */
#define ANY_NAME "corbel%d"

static_assert(HOSTNET_NAME_BYTES == IFNAMSIZ, "the kernel's names");

bool hostnet_is_name(const char *text)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                  "_.-";
    size_t len = strlen(text);

    return len > 0 && len < HOSTNET_NAME_BYTES && strspn(text, allowed) == len && text[0] != '.';
}

/* A request about the device of that name, which fits. */
static struct ifreq request(const char *name)
{
    struct ifreq ifr = {.ifr_flags = 0};

    (void)snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
    return ifr;
}

static int open_socket(struct err *err)
{
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0); /* any kind will do for its requests */

    return fd < 0 ? err_set_errno(err, -errno, "cannot ask for network devices") : fd;
}

static int open_tun(struct err *err)
{
    int fd = open(TUN_PATH, O_RDWR | O_CLOEXEC | O_NONBLOCK);

    if (fd >= 0) {
        return fd;
    }
    if (errno == ENOENT || errno == ENODEV || errno == ENXIO) {
        return err_set(err, -ENOENT,
                       "there is no " TUN_PATH " for taps; load it with 'modprobe tun', or give "
                       "the container that device");
    }
    return err_set_errno(err, -errno, "cannot open " TUN_PATH);
}

/* Whether the device is of that kind: 0, -EINVAL when it is of another, -ENODEV. */
static int check_driver(int sock, const char *name, const char *driver)
{
    struct ethtool_drvinfo info = {.cmd = ETHTOOL_GDRVINFO};
    struct ifreq ifr = request(name);

    ifr.ifr_data = (void *)&info;
    if (ioctl(sock, SIOCETHTOOL, &ifr) != 0 && errno == ENODEV) {
        return -ENODEV;
    }
    return strcmp(info.driver, driver) == 0 ? 0 : -EINVAL;
}

static int check_bridge(int sock, const char *bridge, struct err *err)
{
    int rc = check_driver(sock, bridge, "bridge");

    if (rc == -ENODEV) {
        return err_set(err, -ENODEV,
                       "there is no bridge \"%s\"; make it with 'ip link add %s type bridge' and "
                       "'ip link set %s up'",
                       bridge, bridge, bridge);
    }
    return rc == 0 ? 0
                   : err_set(err, -EINVAL,
                             "\"%s\" is a network device, but no bridge; 'ip link show type "
                             "bridge' lists those that are",
                             bridge);
}

int hostnet_check_bridge(const char *bridge, struct err *err)
{
    CLEANUP_CLOSE int sock = open_socket(err);

    return sock < 0 ? sock : check_bridge(sock, bridge, err);
}

static uint16_t get_mtu(int sock, const char *name)
{
    struct ifreq ifr = request(name);

    if (ioctl(sock, SIOCGIFMTU, &ifr) != 0 || ifr.ifr_mtu < MIN_MTU) {
        return USUAL_MTU;
    }
    return ifr.ifr_mtu < UINT16_MAX ? (uint16_t)ifr.ifr_mtu : UINT16_MAX;
}

/* A bridge without an address of its own takes the lowest of its ports': ours shall not be that. */
static int set_high_address(int sock, const char *name)
{
    struct ifreq ifr = request(name);
    uint8_t *mac = (uint8_t *)ifr.ifr_hwaddr.sa_data;

    ifr.ifr_hwaddr.sa_family = ARPHRD_ETHER;
    if (getrandom(mac, MAC_BYTES, 0) != MAC_BYTES) {
        return -EIO;
    }
    mac[0] = 0xfe; /* of one card, local */
    return ioctl(sock, SIOCSIFHWADDR, &ifr) != 0 ? -errno : 0;
}

static int switch_on(int sock, const char *name)
{
    struct ifreq ifr = request(name);

    if (ioctl(sock, SIOCGIFFLAGS, &ifr) != 0) {
        return -errno;
    }
    if ((ifr.ifr_flags & IFF_UP) != 0) {
        return 0;
    }
    ifr.ifr_flags = (short)(ifr.ifr_flags | IFF_UP);
    return ioctl(sock, SIOCSIFFLAGS, &ifr) != 0 ? -errno : 0;
}

/* The host has no address there and says nothing to the guest by itself; where it cannot be told so,
 * the guest hears what neighbours on a wire hear. */
static void keep_silent(const char *name)
{
    char path[64];
    CLEANUP_CLOSE int fd = -1;

    (void)snprintf(path, sizeof(path), "/proc/sys/net/ipv6/conf/%s/disable_ipv6", name);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || io_write_full(fd, "1", 1) < 0) {
        log_debug("IPv6 stays on at \"%s\"", name);
    }
}

/* Into the bridge before it is on: the host itself is never at its other end. */
static int join(int sock, const char *bridge, const char *name)
{
    struct ifreq tap = request(name), ifr = request(bridge);
    int rc = set_high_address(sock, name);

    if (rc < 0) {
        return rc;
    }
    tap.ifr_mtu = get_mtu(sock, bridge);
    if (ioctl(sock, SIOCSIFMTU, &tap) != 0 || ioctl(sock, SIOCGIFINDEX, &tap) != 0) {
        return -errno;
    }
    keep_silent(name);
    ifr.ifr_ifindex = tap.ifr_ifindex;
    return ioctl(sock, SIOCBRADDIF, &ifr) != 0 ? -errno : switch_on(sock, name);
}

/* A tap may be that of a process that is just ending; any other device stays. */
static int refuse_name(int sock, const char *name, struct err *err)
{
    int code = check_driver(sock, name, "tun") == -EINVAL ? -EEXIST : -EBUSY;

    return err_set(err, code,
                   "a network device \"%s\" is there already; %s removed with 'ip link del %s'",
                   name,
                   code == -EEXIST ? "it is no tap, and is to be"
                                   : "another process has it open, or it is to be",
                   name);
}

static int refuse_making(int code, int sock, const char *bridge, const char *name, struct err *err)
{
    if (code == -EPERM) {
        return err_set(err, code,
                       "the bridge \"%s\" needs CAP_NET_ADMIN, which this process has not; or have "
                       "an administrator make a tap, 'ip tuntap add dev tap0 mode tap user NAME' "
                       "and 'ip link set tap0 master %s up', and use that by its name",
                       bridge, bridge);
    }
    if (code == -EBUSY || code == -EEXIST) {
        return refuse_name(sock, name, err);
    }
    return err_set_errno(err, code, "cannot make the tap \"%s\"", name);
}

int hostnet_make_tap(const char *bridge, const char *name, struct err *err,
                     struct hostnet_tap *ret_tap)
{
    struct ifreq ifr = request(name != NULL ? name : ANY_NAME);
    CLEANUP_CLOSE int sock = open_socket(err);
    CLEANUP_CLOSE int fd = -1;
    int rc = sock < 0 ? sock : check_bridge(sock, bridge, err);

    if (rc < 0) {
        return rc;
    }
    fd = open_tun(err);
    if (fd < 0) {
        return fd;
    }
    ifr.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_TUN_EXCL);
    if (ioctl(fd, TUNSETIFF, &ifr) != 0) {
        return refuse_making(-errno, sock, bridge, ifr.ifr_name, err);
    }
    rc = join(sock, bridge, ifr.ifr_name);
    if (rc < 0) {
        return rc == -EPERM ? refuse_making(rc, sock, bridge, ifr.ifr_name, err)
                            : err_set_errno(err, rc, "cannot put the tap \"%s\" into \"%s\"",
                                            ifr.ifr_name, bridge);
    }
    *ret_tap = (struct hostnet_tap){.mtu = get_mtu(sock, ifr.ifr_name)};
    memcpy(ret_tap->name, ifr.ifr_name, sizeof(ret_tap->name));
    ret_tap->fd = steal_fd(&fd);
    return 0;
}

static int refuse_opening(int code, const char *name, struct err *err)
{
    if (code == -EPERM) {
        return err_set(err, code,
                       "the tap \"%s\" is not this user's; make it with 'ip tuntap add dev %s mode "
                       "tap user NAME'",
                       name, name);
    }
    if (code == -EBUSY) {
        return err_set(err, code, "the tap \"%s\" is in use by another process; take another one",
                       name);
    }
    if (code == -EINVAL) {
        return err_set(err, code,
                       "\"%s\" is a network device, but no tap with one queue; make one with 'ip "
                       "tuntap add dev NAME mode tap user USER'",
                       name);
    }
    return err_set_errno(err, code, "cannot open the tap \"%s\"", name);
}

int hostnet_open_tap(const char *name, struct err *err, struct hostnet_tap *ret_tap)
{
    struct ifreq ifr = request(name);
    CLEANUP_CLOSE int sock = open_socket(err);
    CLEANUP_CLOSE int fd = -1;

    if (sock < 0) {
        return sock;
    }
    fd = open_tun(err);
    if (fd < 0) {
        return fd;
    }
    /* Who has the privilege would make one that ends with this process. */
    if (ioctl(sock, SIOCGIFINDEX, &ifr) != 0) {
        return err_set(err, -ENODEV,
                       "there is no tap \"%s\"; make it with 'ip tuntap add dev %s mode tap user "
                       "NAME' and 'ip link set %s up'",
                       name, name, name);
    }
    ifr = request(name);
    ifr.ifr_flags = IFF_TAP | IFF_NO_PI;
    if (ioctl(fd, TUNSETIFF, &ifr) != 0) {
        return refuse_opening(-errno, name, err);
    }
    if (ioctl(fd, TUNSETOFFLOAD, 0) != 0) {
        return err_set_errno(err, -errno, "cannot set up the tap \"%s\"", name);
    }
    if (switch_on(sock, name) < 0) {
        log_warn("the tap \"%s\" is down, ignoring; no frame passes before 'ip link set %s up'",
                 name, name);
    }
    *ret_tap = (struct hostnet_tap){.mtu = get_mtu(sock, name)};
    memcpy(ret_tap->name, ifr.ifr_name, sizeof(ret_tap->name));
    ret_tap->fd = steal_fd(&fd);
    return 0;
}

int hostnet_check_tap(int fd, struct err *err, struct hostnet_tap *ret_tap)
{
    const unsigned kind = IFF_TUN | IFF_TAP | IFF_VNET_HDR; /* IFF_NO_PI is not told */
    struct ifreq ifr = {.ifr_flags = 0};
    CLEANUP_CLOSE int sock = open_socket(err);

    if (sock < 0) {
        return sock;
    }
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) != 0 || io_set_nonblock(fd) < 0) {
        return err_set(err, -EBADF,
                       "descriptor %d is not open; the process that starts this one has to open "
                       "it and let it be inherited",
                       fd);
    }
    if (ioctl(fd, TUNGETIFF, &ifr) != 0 || ((unsigned short)ifr.ifr_flags & kind) != IFF_TAP) {
        return err_set(err, -EINVAL,
                       "descriptor %d is no tap without headers; open " TUN_PATH " and use "
                       "TUNSETIFF with IFF_TAP | IFF_NO_PI",
                       fd);
    }
    if (ioctl(fd, TUNSETOFFLOAD, 0) != 0) {
        return err_set_errno(err, -errno, "cannot set up the tap of descriptor %d", fd);
    }
    *ret_tap = (struct hostnet_tap){.fd = fd, .mtu = get_mtu(sock, ifr.ifr_name)};
    memcpy(ret_tap->name, ifr.ifr_name, sizeof(ret_tap->name));
    return 0;
}

/* ---- privilege ---- */

#define CAP_WORDS _LINUX_CAPABILITY_U32S_3

static struct __user_cap_header_struct own_header(void)
{
    return (struct __user_cap_header_struct){.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
}

int hostnet_check_privilege(struct err *err)
{
    struct __user_cap_header_struct header = own_header();
    struct __user_cap_data_struct data[CAP_WORDS] = {{0}};
    CLEANUP_CLOSE int fd = -1;

    if (syscall(SYS_capget, &header, data) != 0) {
        return err_set_errno(err, -errno, "cannot read the capabilities of this process");
    }
    if ((data[CAP_TO_INDEX(CAP_NET_ADMIN)].effective & CAP_TO_MASK(CAP_NET_ADMIN)) == 0) {
        return err_set(err, -EPERM,
                       "a bridge needs CAP_NET_ADMIN, which this process has not; give it to the "
                       "service with AmbientCapabilities=CAP_NET_ADMIN");
    }
    fd = open_tun(err);
    return fd < 0 ? fd : 0;
}

int hostnet_drop_privilege(void)
{
    struct __user_cap_header_struct header = own_header();
    struct __user_cap_data_struct data[CAP_WORDS] = {{0}};
    struct __user_cap_data_struct *word = &data[CAP_TO_INDEX(CAP_NET_ADMIN)];
    const uint32_t mask = CAP_TO_MASK(CAP_NET_ADMIN);

    /* Needs CAP_SETPCAP; who has not that is no root, who would get the others back from it. */
    (void)prctl(PR_CAPBSET_DROP, CAP_NET_ADMIN, 0, 0, 0);
    if (syscall(SYS_capget, &header, data) != 0) {
        return -errno;
    }
    if (((word->effective | word->permitted | word->inheritable) & mask) == 0) {
        return 0;
    }
    word->effective &= ~mask;
    word->permitted &= ~mask;
    word->inheritable &= ~mask; /* and with it from the ambient ones */
    return syscall(SYS_capset, &header, data) != 0 ? -errno : 0;
}

int hostnet_keep_privilege(void)
{
    struct __user_cap_header_struct header = own_header();
    struct __user_cap_data_struct data[CAP_WORDS] = {{0}};

    if (syscall(SYS_capget, &header, data) != 0) {
        return -errno;
    }
    if ((data[CAP_TO_INDEX(CAP_NET_ADMIN)].inheritable & CAP_TO_MASK(CAP_NET_ADMIN)) == 0) {
        return 0;
    }
    data[CAP_TO_INDEX(CAP_NET_ADMIN)].inheritable &= ~CAP_TO_MASK(CAP_NET_ADMIN); /* ambient too */
    return syscall(SYS_capset, &header, data) != 0 ? -errno : 0;
}
