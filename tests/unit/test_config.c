#include "vmm/config.h"

#include "test.h"

#include <errno.h>
#include <string.h>

static int setup(void **state)
{
    struct vmm_config *config = calloc(1, sizeof(*config));

    if (config == NULL) {
        return -1;
    }
    vmm_config_init(config);
    *state = config;
    return 0;
}

static int teardown(void **state)
{
    vmm_config_done(*state);
    free(*state);
    return 0;
}

/* Parses one flag with its value (or NULL), as the command line would give it. */
static int parse(struct vmm_config *config, const char *flag, const char *value, struct err *err)
{
    char *argv[] = {(char *)(uintptr_t) "corbel-vmm", (char *)(uintptr_t)flag,
                    (char *)(uintptr_t)value, NULL};
    enum vmm_action action = VMM_ACTION_HELP;
    int rc;

    memset(err, 0, sizeof(*err));
    rc = vmm_config_parse_args(config, value != NULL ? 3 : 2, argv, err, &action);
    assert_true(rc < 0 || action == VMM_ACTION_RUN);
    return rc;
}

static int parse_json(struct vmm_config *config, const char *text, struct err *err)
{
    memset(err, 0, sizeof(*err));
    return vmm_config_parse_json(config, "vm.json", text, strlen(text), err);
}

static void test_flags_good_values_taken(void **state)
{
    struct vmm_config *config = *state;
    struct machine_config *machine = &config->machine;
    struct err err;

    assert_int_equal(parse(config, "--engine", "kvm", &err), 0);
    assert_int_equal(machine->engine, MACHINE_ENGINE_KVM);
    assert_int_equal(parse(config, "--engine=reference", NULL, &err), 0);
    assert_int_equal(machine->engine, MACHINE_ENGINE_SOFT);
    assert_true(machine->engine_reference);
    assert_int_equal(parse(config, "--engine", "soft", &err), 0);
    assert_false(machine->engine_reference);
    assert_int_equal(machine->engine_native, ACCEL_NATIVE_WHERE_IT_PAYS);
    assert_int_equal(parse(config, "--engine", "soft,native=off", &err), 0);
    assert_int_equal(machine->engine, MACHINE_ENGINE_SOFT);
    assert_int_equal(machine->engine_native, ACCEL_NATIVE_NEVER);
    assert_int_equal(parse(config, "--engine", "soft,native=always", &err), 0);
    assert_int_equal(machine->engine_native, ACCEL_NATIVE_ALWAYS);
    assert_int_equal(parse(config, "--engine", "soft", &err), 0);
    assert_int_equal(parse(config, "--cpus", "4", &err), 0);
    assert_int_equal(machine->cpus, 4);
    assert_int_equal(parse(config, "--memory", "2G", &err), 0);
    assert_true(machine->memory_bytes == 2ull << 30);
    assert_int_equal(parse(config, "--cmdline", "a=b --c", &err), 0);
    assert_string_equal(machine->cmdline, "a=b --c");
    assert_int_equal(parse(config, "--gdb", "1234", &err), 0);
    assert_string_equal(machine->gdb_listen, "127.0.0.1:1234");
    assert_int_equal(parse(config, "--gdb", "unix:/tmp/g", &err), 0);
    assert_string_equal(machine->gdb_listen, "unix:/tmp/g");
    assert_int_equal(parse(config, "--vsock", "3,/tmp/v", &err), 0);
    assert_true(machine->has_vsock && machine->vsock_guest_cid == 3);
    assert_string_equal(machine->vsock_socket_path, "/tmp/v");
    assert_int_equal(parse(config, "--serial", "socket:/tmp/s", &err), 0);
    assert_int_equal(config->serial, VMM_SERIAL_SOCKET);
    assert_string_equal(config->serial_path, "/tmp/s");
    assert_int_equal(parse(config, "--on-crash", "pause", &err), 0);
    assert_true(config->stay_after_crash);
    assert_int_equal(machine->on_crash, MACHINE_POLICY_STOP);
    assert_int_equal(parse(config, "--on-reset", "exit", &err), 0);
    assert_int_equal(machine->on_reset, MACHINE_POLICY_STOP);
}

static void test_switch_on_and_off(void **state)
{
    struct vmm_config *config = *state;
    struct err err;

    assert_true(config->machine.has_rng);
    assert_int_equal(parse(config, "--no-rng", NULL, &err), 0);
    assert_false(config->machine.has_rng);
    assert_int_equal(parse(config, "--rng", NULL, &err), 0);
    assert_true(config->machine.has_rng);
    assert_int_equal(parse(config, "--rng=yes", NULL, &err), -EINVAL);
    assert_int_equal(parse(config, "--no-cpus", "3", &err), -EINVAL);
}

static void test_disks_repeat_and_read_only_suffix_is_cut(void **state)
{
    struct vmm_config *config = *state;
    struct machine_config *machine = &config->machine;
    struct err err;

    assert_int_equal(parse(config, "--disk", "a.raw", &err), 0);
    assert_int_equal(parse(config, "--disk", "b,c.raw,ro", &err), 0);
    assert_int_equal(machine->disk_count, 2);
    assert_string_equal(machine->disks[0].path, "a.raw");
    assert_false(machine->disks[0].read_only);
    assert_int_equal(machine->disks[0].fd, -1);
    assert_string_equal(machine->disks[1].path, "b,c.raw");
    assert_true(machine->disks[1].read_only);
    assert_int_equal(parse(config, "--disk", ",ro", &err), -EINVAL);
    for (unsigned i = 2; i < MACHINE_MAX_DISKS; i++) {
        assert_int_equal(parse(config, "--disk", "x", &err), 0);
    }
    assert_int_equal(parse(config, "--disk", "one-too-many", &err), -EINVAL);
    assert_int_equal(machine->disk_count, MACHINE_MAX_DISKS);
}

static void test_net_forwards_taken_in_order(void **state)
{
    struct vmm_config *config = *state;
    struct machine_net *net = &config->machine.net;
    struct err err;

    assert_int_equal(parse(config, "--net", "user,forward=2222:22,forward=8080:80", &err), 0);
    assert_true(net->is_present);
    assert_int_equal(net->forward_count, 2);
    assert_int_equal(net->forwards[1].host_port, 8080);
    assert_int_equal(net->forwards[1].guest_port, 80);
    assert_int_equal(net->forwards[1].host_address, 0x7f000001);
    assert_int_equal(parse(config, "--net", "user,forward=0:22,forward=0:80", &err), 0);
    assert_int_equal(net->forward_count, 2);
    assert_int_equal(net->forwards[1].host_port, 0);
    assert_int_equal(parse(config, "--net", "user", &err), 0);
    assert_int_equal(net->forward_count, 0);
    assert_int_equal(parse(config, "--net", "none", &err), 0);
    assert_false(net->is_present);
}

static void test_net_has_the_address_given(void **state)
{
    static const uint8_t given[] = {0x52, 0x54, 0x00, 0xab, 0xCD, 0x0f}, none[6] = {0};
    struct vmm_config *config = *state;
    struct machine_net *net = &config->machine.net;
    struct err err;

    assert_int_equal(parse(config, "--net", "user,forward=0:22,mac=52:54:00:ab:CD:0f,pps=9", &err),
                     0);
    assert_memory_equal(net->mac, given, sizeof(given));
    assert_int_equal(net->forward_count, 1);
    assert_int_equal(net->limits.ops_per_second, 9);
    assert_int_equal(parse(config, "--net", "user", &err), 0);
    assert_memory_equal(net->mac, none, sizeof(none));
}

static void test_net_leads_where_it_says(void **state)
{
    struct vmm_config *config = *state;
    struct machine_net *net = &config->machine.net;
    struct err err;

    assert_int_equal(
        parse(config, "--net", "bridge,bridge=br-0.1_a,guard,mac=52:54:00:00:00:01,bps=5K", &err),
        0);
    assert_int_equal(config->net.kind, VMM_NET_BRIDGE);
    assert_string_equal(config->net.device, "br-0.1_a");
    assert_true(net->is_present && net->is_guarded && !net->is_tap);
    assert_int_equal(net->limits.bytes_per_second, 5120);
    assert_int_equal(parse(config, "--net", "tap,pps=7,ifname=abcdefghijklmno", &err), 0);
    assert_int_equal(config->net.kind, VMM_NET_TAP);
    assert_string_equal(config->net.device, "abcdefghijklmno");
    assert_int_equal(config->net.fd, -1);
    assert_false(net->is_guarded);
    assert_int_equal(net->limits.bytes_per_second, 0);
    assert_int_equal(net->limits.ops_per_second, 7);
    assert_int_equal(parse(config, "--net", "tap,fd=11", &err), 0);
    assert_int_equal(config->net.fd, 11);
    assert_string_equal(config->net.device, "");
    assert_int_equal(parse(config, "--net", "none", &err), 0);
    assert_int_equal(config->net.kind, VMM_NET_NONE);
    assert_false(net->is_present);
}

static void test_wrong_values_refused_naming_flag_value_and_mend(void **state)
{
    static const struct {
        const char *flag, *value, *mend;
    } wrong[] = {
        {"--engine", "fast", "auto, kvm, soft or reference"},
        {"--cpus", "0", "from 1 to 16"},
        {"--cpus", "17", "from 1 to 16"},
        {"--cpus", "-1", "from 1 to 16"},
        {"--cpus", "2 ", "from 1 to 16"},
        {"--cpus", "18446744073709551617", "from 1 to 16"},
        {"--cpus", "", "from 1 to 16"},
        {"--memory", "512", "such as 512M"},
        {"--memory", "512MB", "such as 512M"},
        {"--memory", "15M", "such as 512M"},
        {"--memory", "1025K", "such as 512M"},
        {"--memory", "99999999999T", "such as 512M"},
        {"--memory", "0x20000000", "such as 512M"},
        {"--kernel", "", "name of a file"},
        {"--net", "tun", "user"},
        {"--net", "tap", "tap,ifname=NAME or tap,fd=N"},
        {"--net", "tap,guard", "tap,ifname=NAME or tap,fd=N"},
        {"--net", "tap,ifname=", "1 to 15 letters"},
        {"--net", "tap,ifname=abcdefghijklmnop", "1 to 15 letters"},
        {"--net", "tap,ifname=a/b", "1 to 15 letters"},
        {"--net", "tap,ifname=tap%d", "1 to 15 letters"},
        {"--net", "tap,ifname=..", "1 to 15 letters"},
        {"--net", "tap,ifname=a,ifname=b", "one network device"},
        {"--net", "tap,ifname=a,fd=9", "one descriptor"},
        {"--net", "tap,fd=9,ifname=a", "one network device"},
        {"--net", "tap,fd=2", "3 or more"},
        {"--net", "tap,fd=-1", "3 or more"},
        {"--net", "tap,fd=2147483648", "3 or more"},
        {"--net", "tap,fd=9,guard=yes", "without a value"},
        {"--net", "tap,fd=9,forward=0:22", "tap,fd=N"},
        {"--net", "tap,bridge=br0", "tap,ifname=NAME"},
        {"--net", "bridge", "bridge,bridge=NAME"},
        {"--net", "bridge,bridge", "bridge,bridge=NAME"},
        {"--net", "bridge,bridge=br 0", "1 to 15 letters"},
        {"--net", "bridge,ifname=br0", "bridge,bridge=NAME"},
        {"--net", "bridge,bridge=br0,forward=0:22", "bridge,bridge=NAME"},
        {"--net", "bridge,bridge=br0,", "bridge,bridge=NAME"},
        {"--net", "user,guard", "forward="},
        {"--net", "user,forward=22", "HOSTPORT:GUESTPORT"},
        {"--net", "user,forward=22:0", "up to 65535"},
        {"--net", "user,forward=65536:22", "up to 65535"},
        {"--net", "user,forward=2222:22,forward=2222:23", "host port once"},
        {"--net", "user,mtu=9000", "forward="},
        {"--net", "user,mac=52:54:00:ab:cd", "one card"},
        {"--net", "user,mac=52:54:00:ab:cd:ef:01", "one card"},
        {"--net", "user,mac=52:54:00:ab:cd:eg", "one card"},
        {"--net", "user,mac=52:54:00:ab:cd:+1", "one card"},
        {"--net", "user,mac=52-54-00-ab-cd-ef", "one card"},
        {"--net", "user,mac=53:54:00:ab:cd:ef", "one card"},
        {"--net", "user,mac=00:00:00:00:00:00", "one card"},
        {"--net", "user,mac=", "one card"},
        {"--net", "none,forward=2222:22", "without anything after it"},
        {"--serial", "pty", "file:FILE"},
        {"--serial", "file:", "name of a file"},
        {"--gdb", "0", "1 to 65535"},
        {"--gdb", "unix:", "unix:FILE"},
        {"--vsock", "2,/tmp/v", "from 3"},
        {"--vsock", "3", "CID,FILE"},
        {"--vsock", "3,", "CID,FILE"},
        {"--vsock", "4294967295,/tmp/v", "4294967294"},
        {"--on-reset", "pause", "restart or exit"},
        {"--on-crash", "ignore", "exit, restart or pause"},
        {"--log-level", "loud", "debug"},
    };
    struct vmm_config *config = *state;
    struct err err;

    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        assert_int_equal(parse(config, wrong[i].flag, wrong[i].value, &err), -EINVAL);
        assert_non_null(strstr(err.text, wrong[i].flag));
        assert_non_null(strstr(err.text, wrong[i].value));
        assert_non_null(strstr(err.text, wrong[i].mend));
        assert_null(strchr(err.text, '\n'));
    }
}

static void test_unknown_and_incomplete_flags_refused(void **state)
{
    struct vmm_config *config = *state;
    struct err err;

    assert_int_equal(parse(config, "--cpu", "2", &err), -EINVAL);
    assert_non_null(strstr(err.text, "\"--cpu\""));
    assert_int_equal(parse(config, "kernel", NULL, &err), -EINVAL);
    assert_non_null(strstr(err.text, "\"kernel\""));
    assert_int_equal(parse(config, "--cpus", NULL, &err), -EINVAL);
    assert_non_null(strstr(err.text, "--cpus has no value"));
    assert_int_equal(parse(config, "--\x1b[31m", NULL, &err), -EINVAL);
    assert_null(strchr(err.text, '\x1b'));
    assert_int_equal(parse(config, "--no-", NULL, &err), -EINVAL);
    assert_int_equal(parse(config, "--", NULL, &err), -EINVAL);
}

static void test_json_says_the_same_as_flags(void **state)
{
    struct vmm_config *config = *state;
    struct machine_config *machine = &config->machine;
    struct err err;

    assert_int_equal(parse_json(config,
                                "{\"cpus\": 3, \"memory\": \"64M\", \"rng\": false,"
                                " \"disk\": [\"a\", \"b,ro\"], \"net\": \"user\","
                                " \"engine\": \"soft\", \"engine-check\": true, \"gdb\": 99}",
                                &err),
                     0);
    assert_int_equal(machine->cpus, 3);
    assert_true(machine->memory_bytes == 64 << 20);
    assert_false(machine->has_rng);
    assert_int_equal(machine->disk_count, 2);
    assert_true(machine->disks[1].read_only);
    assert_true(machine->net.is_present && machine->engine_check);
    assert_string_equal(machine->gdb_listen, "127.0.0.1:99");
    assert_int_equal(parse_json(config, "{\"memory\": 67108864, \"disk\": \"c\"}", &err), 0);
    assert_int_equal(machine->disk_count, 3);
}

static void test_json_mistakes_name_file_and_key(void **state)
{
    static const struct {
        const char *text, *expect;
    } wrong[] = {
        {"{", "line 1"},
        {"{\n\"cpus\": 1,\n}", "line 3"},
        {"", "not JSON"},
        {"[]", "one JSON object"},
        {"{\"cpus\": 99}", "\"cpus\": \"99\" does not fit"},
        {"{\"cpus\": 1.5}", "takes a string"},
        {"{\"cpus\": null}", "takes a string"},
        {"{\"cpus\": [1]}", "takes a string"},
        {"{\"cpus\": 1, \"cpus\": 2}", "duplicate"},
        {"{\"rng\": \"no\"}", "true or false"},
        {"{\"colour\": 1}", "no setting \"colour\""},
        {"{\"config\": \"other.json\"}", "no setting \"config\""},
        {"{\"disk\": [[\"a\"]]}", "array of them"},
        {"{\"kernel\": \"a\\u0000b\"}", "line 1"},
    };
    struct vmm_config *config = *state;
    struct err err;

    for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
        assert_int_equal(parse_json(config, wrong[i].text, &err), -EINVAL);
        assert_non_null(strstr(err.text, "vm.json: "));
        assert_non_null(strstr(err.text, wrong[i].expect));
    }
}

static void test_many_strings_refused_not_lost(void **state)
{
    struct vmm_config *config = *state;
    struct err err;
    int rc = 0;
    unsigned taken = 0;

    while (rc == 0 && taken <= VMM_CONFIG_MAX_STRINGS) {
        rc = parse(config, "--cmdline", "x", &err);
        taken += rc == 0;
    }
    assert_int_equal(rc, -EINVAL);
    assert_int_equal(taken, VMM_CONFIG_MAX_STRINGS);
}

static void test_check_needs_a_kernel_and_sane_pairs(void **state)
{
    struct vmm_config *config = *state;
    struct err err = {0};

    assert_int_equal(vmm_config_check(config, &err), -EINVAL);
    assert_non_null(strstr(err.text, "--kernel is missing"));
    assert_int_equal(parse(config, "--kernel", "k", &err), 0);
    assert_int_equal(vmm_config_check(config, &err), 0);
    assert_int_equal(parse(config, "--gdb-wait", NULL, &err), 0);
    assert_int_equal(vmm_config_check(config, &err), -EINVAL);
    assert_int_equal(parse(config, "--gdb", "1234", &err), 0);
    assert_int_equal(vmm_config_check(config, &err), 0);
    assert_int_equal(parse(config, "--engine-check", NULL, &err), 0);
    assert_int_equal(vmm_config_check(config, &err), 0);
    assert_int_equal(parse(config, "--engine", "kvm", &err), 0);
    assert_int_equal(vmm_config_check(config, &err), -EINVAL);
}

#define CONFIG_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CONFIG_TEST(test_flags_good_values_taken),
        CONFIG_TEST(test_switch_on_and_off),
        CONFIG_TEST(test_disks_repeat_and_read_only_suffix_is_cut),
        CONFIG_TEST(test_net_forwards_taken_in_order),
        CONFIG_TEST(test_net_has_the_address_given),
        CONFIG_TEST(test_net_leads_where_it_says),
        CONFIG_TEST(test_wrong_values_refused_naming_flag_value_and_mend),
        CONFIG_TEST(test_unknown_and_incomplete_flags_refused),
        CONFIG_TEST(test_json_says_the_same_as_flags),
        CONFIG_TEST(test_json_mistakes_name_file_and_key),
        CONFIG_TEST(test_many_strings_refused_not_lost),
        CONFIG_TEST(test_check_needs_a_kernel_and_sane_pairs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
