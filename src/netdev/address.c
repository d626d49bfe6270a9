/* Which IPv4 address the guest has, from what it says and hears by ARP (RFC 826) and DHCP (RFC 2131). */
#include "base/clock.h"
#include "base/wire.h"
#include "netdev/netdev_int.h"

#include <string.h>

#define ETHERTYPE 12u
#define ETHERTYPE_IPV4 0x0800u
#define ETHERTYPE_ARP 0x0806u

/* Offsets in a frame. */
#define ARP_PROTOCOL 16u
#define ARP_SENDER_MAC 22u
#define ARP_SENDER_IP 28u
#define ARP_END 42u

#define IP_VERSION 14u
#define IP_PROTOCOL 23u
#define UDP_SOURCE 34u /* after an IP header without options, as DHCP's are */
#define UDP_DESTINATION 36u
#define DHCP_XID 46u
#define DHCP_YOUR_IP 58u
#define DHCP_MAGIC 278u
#define DHCP_OPTIONS 282u
#define DHCP_MAGIC_VALUE 0x63825363u
#define DHCP_SERVER_PORT 67u
#define DHCP_CLIENT_PORT 68u

/* RFC 2132 */
#define OPTION_PAD 0u
#define OPTION_MESSAGE_TYPE 53u
#define OPTION_END 255u
#define DHCP_REQUEST 3u
#define DHCP_ACK 5u

/* The address is another when it was not said for so long while others were. */
#define ADDRESS_ALIVE_NS (5 * 60 * NS_PER_S)

/* An address of a host: not this network (a probe's 0.0.0.0), loopback, multicast or broadcast. */
static bool is_unicast(uint32_t address)
{
    uint32_t first = address >> 24;

    return first != 0 && first != 127 && first < 224;
}

static void set_address(struct netdev *netdev, uint32_t address)
{
    netdev->others_since_ns = 0;
    if (is_unicast(address) && address != netdev_guest_address(netdev)) {
        atomic_store_explicit(&netdev->guest_address, address, memory_order_relaxed);
        if (netdev->address_fn != NULL) {
            netdev->address_fn(netdev->address_opaque);
        }
    }
}

/*
 * A card may have several addresses and says each of them now and then. One that is talked with is
 * said about once a minute: neighbours are asked for anew.
 */
void netdev_note_address(struct netdev *netdev, uint32_t address, uint64_t now_ns)
{
    uint32_t current = netdev_guest_address(netdev);

    if (!is_unicast(address)) {
        return;
    }
    if (current == 0 || current == address ||
        (netdev->others_since_ns != 0 && now_ns - netdev->others_since_ns > ADDRESS_ALIVE_NS)) {
        set_address(netdev, address);
    } else if (netdev->others_since_ns == 0) {
        netdev->others_since_ns = now_ns;
    }
}

/* The type of the DHCP message in a frame; 0 when it holds none from and to these ports. */
static unsigned dhcp_type(const uint8_t *frame, size_t len, unsigned from, unsigned to)
{
    if (len <= DHCP_OPTIONS || load_be16(frame + ETHERTYPE) != ETHERTYPE_IPV4 ||
        frame[IP_VERSION] != 0x45 || frame[IP_PROTOCOL] != 17 ||
        load_be16(frame + UDP_SOURCE) != from || load_be16(frame + UDP_DESTINATION) != to ||
        load_be32(frame + DHCP_MAGIC) != DHCP_MAGIC_VALUE) {
        return 0;
    }
    for (size_t at = DHCP_OPTIONS; at + 2 < len && frame[at] != OPTION_END;) {
        if (frame[at] == OPTION_MESSAGE_TYPE) {
            return frame[at + 2];
        }
        at += frame[at] == OPTION_PAD ? 1 : 2u + frame[at + 1];
    }
    return 0;
}

/* Before a machine talks by IPv4 it asks by ARP, and says who asks. */
void netdev_note_sent(struct netdev *netdev, const uint8_t *frame, size_t len)
{
    if (len >= ARP_END && load_be16(frame + ETHERTYPE) == ETHERTYPE_ARP) {
        if (load_be16(frame + ARP_PROTOCOL) == ETHERTYPE_IPV4 &&
            memcmp(frame + 6, frame + ARP_SENDER_MAC, 6) == 0) {
            netdev_note_address(netdev, load_be32(frame + ARP_SENDER_IP), clock_monotonic_ns());
        }
    } else if (dhcp_type(frame, len, DHCP_CLIENT_PORT, DHCP_SERVER_PORT) == DHCP_REQUEST) {
        netdev->dhcp_xid = load_be32(frame + DHCP_XID);
    }
}

/* The answer to its own request gives it an address; others' answers do not. */
void netdev_note_delivered(struct netdev *netdev, const uint8_t *frame, size_t len)
{
    if (netdev->dhcp_xid != 0 &&
        dhcp_type(frame, len, DHCP_SERVER_PORT, DHCP_CLIENT_PORT) == DHCP_ACK &&
        load_be32(frame + DHCP_XID) == netdev->dhcp_xid) {
        netdev->dhcp_xid = 0;
        set_address(netdev, load_be32(frame + DHCP_YOUR_IP));
    }
}

uint32_t netdev_guest_address(const struct netdev *netdev)
{
    return atomic_load_explicit(&netdev->guest_address, memory_order_relaxed);
}

void netdev_watch_address(struct netdev *netdev, void (*fn)(void *opaque), void *opaque)
{
    netdev->address_fn = fn;
    netdev->address_opaque = opaque;
}
