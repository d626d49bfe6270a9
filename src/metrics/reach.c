#include "metrics/reach.h"

#include <ifaddrs.h>
#include <netinet/in.h>
#include <string.h>

struct range {
    uint8_t bytes[16];
    unsigned bits;
    enum metrics_reach reach;
};

/* RFC 6890 and those where clouds tell their machines' secrets. Others are public. */
static const struct range ranges4[] = {
    {{0}, 8, REACH_LOCAL},
    {{127}, 8, REACH_LOCAL},
    {{169, 254}, 16, REACH_LOCAL},
    {{100, 100, 100, 200}, 32, REACH_LOCAL},
    {{192, 0, 0, 192}, 32, REACH_LOCAL},
    {{224}, 3, REACH_LOCAL}, /* groups, reserved, broadcast */
    {{10}, 8, REACH_PRIVATE},
    {{100, 64}, 10, REACH_PRIVATE},
    {{172, 16}, 12, REACH_PRIVATE},
    {{192, 0, 0}, 24, REACH_PRIVATE},
    {{192, 168}, 16, REACH_PRIVATE},
    {{198, 18}, 15, REACH_PRIVATE},
};

static const struct range ranges6[] = {
    {{0xfe, 0x80}, 10, REACH_LOCAL},
    {{0xff}, 8, REACH_LOCAL},
    {{0xfd, 0, 0x0e, 0xc2, [14] = 2, [15] = 0x54}, 128, REACH_LOCAL},
    {{0xfc}, 7, REACH_PRIVATE},
    {{0xfe, 0xc0}, 10, REACH_PRIVATE},
    {{0x20, 1, 0, 0}, 32, REACH_PRIVATE}, /* tunnels: where they end is not seen */
    {{0, 0x64, 0xff, 0x9b, 0, 1}, 48, REACH_PRIVATE},
};

/* Where an address of IPv4 stands in one of IPv6. */
static const struct {
    struct range range;
    unsigned at;
} embedded[] = {
    {{{[10] = 0xff, [11] = 0xff}, 96, REACH_PUBLIC}, 12}, /* mapped */
    {{{0}, 96, REACH_PUBLIC}, 12},                        /* compatible; ::, ::1 */
    {{{0, 0x64, 0xff, 0x9b}, 96, REACH_PUBLIC}, 12},      /* translated, RFC 6052 */
    {{{0x20, 2}, 16, REACH_PUBLIC}, 2},                   /* 6to4 */
};

static bool is_in(const uint8_t *ip, const struct range *range)
{
    unsigned whole = range->bits / 8, rest = range->bits % 8;

    return memcmp(ip, range->bytes, whole) == 0 &&
           (rest == 0 || (ip[whole] ^ range->bytes[whole]) >> (8 - rest) == 0);
}

static enum metrics_reach reach_of_ip(const uint8_t *ip, const struct range *ranges, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (is_in(ip, &ranges[i])) {
            return ranges[i].reach;
        }
    }
    return REACH_PUBLIC;
}

/* The address of IPv4 within one of IPv6; NULL: none. */
static const uint8_t *find_ip4(const uint8_t *ip)
{
    for (size_t i = 0; i < ARRAY_LEN(embedded); i++) {
        if (is_in(ip, &embedded[i].range)) {
            return ip + embedded[i].at;
        }
    }
    return NULL;
}

static const uint8_t *ip_of(const struct sockaddr *address, size_t *ret_len)
{
    if (address != NULL && address->sa_family == AF_INET) {
        *ret_len = 4;
        return (const uint8_t *)&((const struct sockaddr_in *)(const void *)address)->sin_addr;
    }
    if (address != NULL && address->sa_family == AF_INET6) {
        *ret_len = 16;
        return ((const struct sockaddr_in6 *)(const void *)address)->sin6_addr.s6_addr;
    }
    return NULL;
}

/* Behind an address of its own is this host, whatever the address is. */
static bool is_own(const uint8_t *ip, size_t len)
{
    struct ifaddrs *all = NULL;
    bool is_found = false;

    if (getifaddrs(&all) != 0) {
        return true; /* not known: as if it were */
    }
    for (const struct ifaddrs *at = all; at != NULL && !is_found; at = at->ifa_next) {
        size_t other_len = 0;
        const uint8_t *other = ip_of(at->ifa_addr, &other_len);

        is_found = other != NULL && other_len == len && memcmp(ip, other, len) == 0;
    }
    freeifaddrs(all);
    return is_found;
}

enum metrics_reach reach_of(const struct sockaddr *address)
{
    size_t len = 0;
    const uint8_t *ip = ip_of(address, &len);
    const uint8_t *ip4 = len == 16 ? find_ip4(ip) : ip;

    if (ip == NULL || is_own(ip, len) || (ip4 != NULL && is_own(ip4, 4))) {
        return REACH_LOCAL;
    }
    return ip4 != NULL ? reach_of_ip(ip4, ranges4, ARRAY_LEN(ranges4))
                       : reach_of_ip(ip, ranges6, ARRAY_LEN(ranges6));
}

const char *reach_refusal(enum metrics_reach allowed, const struct sockaddr *address)
{
    enum metrics_reach reach = allowed == REACH_LOCAL ? REACH_PUBLIC : reach_of(address);

    if (reach <= allowed) {
        return NULL;
    }
    return reach == REACH_LOCAL
               ? "its address is this host's own or its link's, and corbeld was started "
                 "without --local-webhooks"
               : "its address is of a private network, and corbeld was started without "
                 "--private-webhooks";
}
