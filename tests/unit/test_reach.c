#include "metrics/reach.h"

#include "test.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <string.h>

static enum metrics_reach reach_of_text(const char *text)
{
    struct sockaddr_in ip4 = {.sin_family = AF_INET};
    struct sockaddr_in6 ip6 = {.sin6_family = AF_INET6};

    if (inet_pton(AF_INET, text, &ip4.sin_addr) == 1) {
        return reach_of((const struct sockaddr *)&ip4);
    }
    assert_int_equal(inet_pton(AF_INET6, text, &ip6.sin6_addr), 1);
    return reach_of((const struct sockaddr *)&ip6);
}

static void assert_all(enum metrics_reach reach, const char *const *texts)
{
    for (; *texts != NULL; texts++) {
        if (reach_of_text(*texts) != reach) {
            fail_msg("%s is %d, not %d", *texts, (int)reach_of_text(*texts), (int)reach);
        }
    }
}

static void test_the_host_and_its_link_are_local(void **state)
{
    static const char *const texts[] = {"127.0.0.1",
                                        "127.255.255.255",
                                        "0.0.0.0",
                                        "0.1.2.3",
                                        "169.254.169.254",
                                        "224.0.0.1",
                                        "255.255.255.255",
                                        "240.0.0.1",
                                        "100.100.100.200",
                                        "192.0.0.192",
                                        "::",
                                        "::1",
                                        "fe80::1",
                                        "febf::1",
                                        "ff02::1",
                                        "fd00:ec2::254",
                                        "::ffff:127.0.0.1",
                                        "::ffff:169.254.169.254",
                                        "::127.0.0.1",
                                        "64:ff9b::7f00:1",
                                        "64:ff9b::169.254.169.254",
                                        "2002:7f00:1::",
                                        "2002:a9fe:a9fe::1",
                                        NULL};

    (void)state;
    assert_all(REACH_LOCAL, texts);
}

static void test_networks_that_are_nobody_elses_are_private(void **state)
{
    static const char *const texts[] = {"10.255.254.253",
                                        "172.16.0.9",
                                        "172.31.255.9",
                                        "192.168.77.9",
                                        "100.64.0.9",
                                        "100.127.255.9",
                                        "198.18.0.9",
                                        "198.19.255.9",
                                        "192.0.0.9",
                                        "fc00::9",
                                        "fdff:ffff::9",
                                        "fec0::9",
                                        "2001::9",
                                        "64:ff9b:1::9",
                                        "::ffff:10.255.254.253",
                                        "2002:c0a8:4d09::",
                                        "64:ff9b::192.168.77.9",
                                        NULL};

    (void)state;
    assert_all(REACH_PRIVATE, texts);
}

static void test_others_are_public(void **state)
{
    static const char *const texts[] = {
        "1.1.1.1",     "9.255.255.255",  "11.0.0.0",         "100.63.255.255",  "100.128.0.0",
        "126.0.0.1",   "128.0.0.1",      "169.253.255.255",  "169.255.0.0",     "172.15.255.255",
        "172.32.0.0",  "192.167.0.1",    "192.169.0.1",      "198.17.255.255",  "198.20.0.0",
        "223.255.0.1", "192.0.1.0",      "2606:4700::1111",  "2001:4860::8888", "fbff::1",
        "fe00::1",     "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1", NULL};

    (void)state;
    assert_all(REACH_PUBLIC, texts);
}

static void test_an_address_of_the_hosts_own_is_local(void **state)
{
    struct ifaddrs *all = NULL;

    (void)state;
    assert_int_equal(getifaddrs(&all), 0);
    for (const struct ifaddrs *at = all; at != NULL; at = at->ifa_next) {
        if (at->ifa_addr != NULL &&
            (at->ifa_addr->sa_family == AF_INET || at->ifa_addr->sa_family == AF_INET6)) {
            assert_int_equal(reach_of(at->ifa_addr), REACH_LOCAL);
        }
    }
    freeifaddrs(all);
}

static void test_what_is_nearer_than_allowed_is_refused_with_the_option(void **state)
{
    struct sockaddr_in private = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x0afffefd)};
    struct sockaddr_in local = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000001)};
    struct sockaddr_in public = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x01010101)};
    const struct sockaddr other = {.sa_family = AF_UNIX};

    (void)state;
#define REFUSAL(allowed, address) reach_refusal(allowed, (const struct sockaddr *)&(address))
    assert_non_null(strstr(REFUSAL(REACH_PUBLIC, private), "--private-webhooks"));
    assert_non_null(strstr(REFUSAL(REACH_PUBLIC, local), "--local-webhooks"));
    assert_non_null(strstr(REFUSAL(REACH_PRIVATE, local), "--local-webhooks"));
    assert_non_null(REFUSAL(REACH_PRIVATE, other));
    assert_null(REFUSAL(REACH_PUBLIC, public));
    assert_null(REFUSAL(REACH_PRIVATE, private));
    assert_null(REFUSAL(REACH_LOCAL, local));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_host_and_its_link_are_local),
        cmocka_unit_test(test_networks_that_are_nobody_elses_are_private),
        cmocka_unit_test(test_others_are_public),
        cmocka_unit_test(test_an_address_of_the_hosts_own_is_local),
        cmocka_unit_test(test_what_is_nearer_than_allowed_is_refused_with_the_option),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
