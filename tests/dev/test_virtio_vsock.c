/* virtio-vsock with real unix sockets on the host's side. */
#include "base/wire.h"
#include "test.h"
#include "virtio_driver.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#define SLOT 1
#define RX 0
#define TX 1
#define CID 7u
#define RX_BUFFERS 32u
#define RX_BUFFER_BYTES 4096u
#define RX_AREA TEST_DATA
#define TX_AREA (TEST_DATA + 0x200000)
#define HEADER 44u
#define CREDIT 65536u

enum { REQUEST = 1, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST };

struct fixture {
    struct test_machine machine;
    struct virtio_dev *dev;
    struct test_driver driver;
    char dir[64];
    char path[96];
    uint64_t rx_at[128];
    /* the last packet received */
    uint32_t src_port, dst_port, len, flags, buf_alloc, fwd_cnt;
    uint16_t op;
    uint8_t data[RX_BUFFER_BYTES];
    /* as the guest's end of the only connection */
    uint32_t guest_port, host_port;
    uint32_t received;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct err err = {0};

    assert_non_null(f);
    snprintf(f->dir, sizeof(f->dir), "/tmp/corbel-test-vsock-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    snprintf(f->path, sizeof(f->path), "%s/v", f->dir);
    test_machine_init(&f->machine);
    assert_int_equal(virtio_vsock_create(&f->machine.env, CID, f->path, &err, &f->dev), 0);
    test_machine_start_loop(&f->machine);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    test_machine_stop_loop(&f->machine);
    virtio_dev_destroy(f->dev);
    test_machine_done(&f->machine);
    assert_int_not_equal(access(f->path, F_OK), 0); /* nothing is left behind */
    assert_int_equal(rmdir(f->dir), 0);
    free(f);
    return 0;
}

static void post_rx(struct fixture *f, uint64_t address)
{
    const struct test_seg seg = {address, RX_BUFFER_BYTES, true};
    uint16_t head = test_chain(&f->driver, RX, &seg, 1);

    f->rx_at[head] = address;
    test_make_available(&f->driver, RX, head);
    test_kick(&f->driver, RX);
}

static void start(struct fixture *f, unsigned buffers)
{
    test_driver_start(&f->machine, SLOT, F_EVENT_IDX, &f->driver);
    for (unsigned i = 0; i < buffers; i++) {
        post_rx(f, RX_AREA + (uint64_t)i * RX_BUFFER_BYTES);
    }
}

static void receive(struct fixture *f)
{
    uint8_t header[HEADER];
    uint16_t head;
    uint32_t len = test_wait_used(&f->driver, RX, &head);

    assert_in_range(len, HEADER, RX_BUFFER_BYTES);
    test_read(&f->machine, f->rx_at[head], header, HEADER);
    assert_int_equal(load_le64(header), 2);
    assert_int_equal(load_le64(header + 8), CID);
    assert_int_equal(load_le16(header + 28), 1);
    f->src_port = load_le32(header + 16);
    f->dst_port = load_le32(header + 20);
    f->len = load_le32(header + 24);
    f->op = load_le16(header + 30);
    f->flags = load_le32(header + 32);
    f->buf_alloc = load_le32(header + 36);
    f->fwd_cnt = load_le32(header + 40);
    assert_int_equal(len, HEADER + f->len);
    test_read(&f->machine, f->rx_at[head] + HEADER, f->data, f->len);
    post_rx(f, f->rx_at[head]);
}

static void fill_header(uint8_t header[HEADER], uint16_t op, uint32_t guest_port,
                        uint32_t host_port, uint32_t len)
{
    memset(header, 0, HEADER);
    store_le64(header, CID);
    store_le64(header + 8, 2);
    store_le32(header + 16, guest_port);
    store_le32(header + 20, host_port);
    store_le32(header + 24, len);
    store_le16(header + 28, 1);
    store_le16(header + 30, op);
    store_le32(header + 36, CREDIT);
}

static void send_raw(struct fixture *f, const uint8_t header[HEADER], const void *data,
                     uint32_t len)
{
    const struct test_seg segs[] = {{TX_AREA, HEADER, false}, {TX_AREA + HEADER, len, false}};

    test_write(&f->machine, TX_AREA, header, HEADER);
    if (len > 0) {
        test_write(&f->machine, TX_AREA + HEADER, data, len);
    }
    (void)test_transfer(&f->driver, TX, segs, len > 0 ? 2 : 1);
}

static void send_packet(struct fixture *f, uint16_t op, uint32_t flags, const void *data,
                        uint32_t len)
{
    uint8_t header[HEADER];

    fill_header(header, op, f->guest_port, f->host_port, len);
    store_le32(header + 32, flags);
    store_le32(header + 40, f->received);
    send_raw(f, header, data, len);
}

static int host_socket(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    return fd;
}

static struct sockaddr_un address(const char *path)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};

    assert_true(strlen(path) < sizeof(name.sun_path));
    memcpy(name.sun_path, path, strlen(path) + 1);
    return name;
}

static int host_listen(struct fixture *f, uint32_t port, char path[128])
{
    struct sockaddr_un name;
    int fd = host_socket();

    snprintf(path, 128, "%s_%u", f->path, port);
    name = address(path);
    assert_int_equal(bind(fd, (struct sockaddr *)&name, sizeof(name)), 0);
    assert_int_equal(listen(fd, 4), 0);
    return fd;
}

/* The guest connects to host port 1234: both ends. */
static int connect_from_guest(struct fixture *f)
{
    char path[128];
    int listener = host_listen(f, 1234, path);
    int peer;

    f->guest_port = 5000;
    f->host_port = 1234;
    send_packet(f, REQUEST, 0, NULL, 0);
    receive(f);
    assert_int_equal(f->op, RESPONSE);
    assert_int_equal(f->src_port, 1234);
    assert_int_equal(f->dst_port, 5000);
    assert_true(f->buf_alloc >= 4096);
    peer = accept(listener, NULL, NULL);
    assert_true(peer >= 0);
    close(listener);
    unlink(path);
    return peer;
}

/* A host program connects to guest port 80: both ends. */
static int connect_from_host(struct fixture *f, const char *command)
{
    struct sockaddr_un name = address(f->path);
    int fd = host_socket();

    assert_int_equal(connect(fd, (struct sockaddr *)&name, sizeof(name)), 0);
    assert_int_equal(send(fd, command, strlen(command), 0), strlen(command));
    return fd;
}

static int accept_in_guest(struct fixture *f)
{
    int fd = connect_from_host(f, "CONNECT 80\nearly");
    char expect[32];
    char line[32] = {0};

    receive(f);
    assert_int_equal(f->op, REQUEST);
    assert_int_equal(f->dst_port, 80);
    f->guest_port = 80;
    f->host_port = f->src_port;
    send_packet(f, RESPONSE, 0, NULL, 0);
    snprintf(expect, sizeof(expect), "OK %u\n", f->host_port);
    assert_int_equal(recv(fd, line, strlen(expect), MSG_WAITALL), strlen(expect));
    assert_string_equal(line, expect);
    receive(f); /* what came right behind the command belongs to the guest */
    assert_int_equal(f->op, RW);
    assert_int_equal(f->len, 5);
    assert_memory_equal(f->data, "early", 5);
    f->received += 5;
    return fd;
}

static void assert_end_of_file(int fd)
{
    char byte;

    assert_int_equal(recv(fd, &byte, 1, 0), 0);
}

static void test_device_tells_its_address(void **state)
{
    struct fixture *f = *state;

    start(f, 0);
    assert_int_equal(test_config_read(&f->machine, SLOT, 2, 2), 0x1053);
    assert_int_equal(test_mmio_read(&f->machine, f->driver.device, 4), CID);
}

static void test_guest_reaches_a_host_socket(void **state)
{
    struct fixture *f = *state;
    char got[6] = {0};
    int peer;

    start(f, RX_BUFFERS);
    peer = connect_from_guest(f);
    send_packet(f, RW, 0, "hello", 5);
    assert_int_equal(recv(peer, got, 5, MSG_WAITALL), 5);
    assert_string_equal(got, "hello");
    assert_int_equal(send(peer, "world", 5, 0), 5);
    receive(f);
    assert_int_equal(f->op, RW);
    assert_memory_equal(f->data, "world", 5);
    send_packet(f, SHUTDOWN, 3, NULL, 0);
    assert_end_of_file(peer);
    receive(f);
    assert_int_equal(f->op, RST);
    close(peer);
}

static void test_host_program_reaches_the_guest(void **state)
{
    struct fixture *f = *state;
    char got[4] = {0};
    int fd;

    start(f, RX_BUFFERS);
    fd = accept_in_guest(f);
    send_packet(f, RW, 0, "yes", 3);
    assert_int_equal(recv(fd, got, 3, MSG_WAITALL), 3);
    assert_string_equal(got, "yes");
    close(fd);
    receive(f);
    assert_int_equal(f->op, SHUTDOWN);
    send_packet(f, RST, 0, NULL, 0);
}

static void test_half_closed_connection_still_carries_data(void **state)
{
    struct fixture *f = *state;
    char got[6] = {0};
    int peer;

    start(f, RX_BUFFERS);
    peer = connect_from_guest(f);
    assert_int_equal(shutdown(peer, SHUT_WR), 0);
    receive(f);
    assert_int_equal(f->op, SHUTDOWN);
    assert_int_equal(f->flags, 2);
    send_packet(f, RW, 0, "after", 5);
    assert_int_equal(recv(peer, got, 5, MSG_WAITALL), 5);
    assert_string_equal(got, "after");
    send_packet(f, SHUTDOWN, 2, NULL, 0);
    assert_end_of_file(peer);
    close(peer);
}

static void test_refused_connections_are_reset(void **state)
{
    struct fixture *f = *state;
    int fd;

    start(f, RX_BUFFERS);
    f->guest_port = 9;
    f->host_port = 4321; /* nobody listens */
    send_packet(f, REQUEST, 0, NULL, 0);
    receive(f);
    assert_int_equal(f->op, RST);
    assert_int_equal(f->src_port, 4321);
    assert_int_equal(f->dst_port, 9);
    send_packet(f, RW, 0, "x", 1); /* no such connection */
    receive(f);
    assert_int_equal(f->op, RST);

    fd = connect_from_host(f, "CONNECT 81\n");
    receive(f);
    f->guest_port = 81;
    f->host_port = f->src_port;
    send_packet(f, RST, 0, NULL, 0);
    assert_end_of_file(fd);
    close(fd);
}

static void test_bad_commands_close_the_socket(void **state)
{
    struct fixture *f = *state;
    static const char *const commands[] = {"CONNECT\n",
                                           "CONNECT \n",
                                           "connect 80\n",
                                           "CONNECT 80x\n",
                                           "CONNECT 4294967296\n",
                                           "CONNECT -1\n",
                                           "0123456789012345678901234567890123456789"};

    start(f, RX_BUFFERS);
    for (unsigned i = 0; i < ARRAY_LEN(commands); i++) {
        int fd = connect_from_host(f, commands[i]);
        char byte;

        /* Unread bytes turn the end of file into a reset; either way it is closed. */
        assert_true(recv(fd, &byte, 1, 0) <= 0);
        close(fd);
    }
    assert_false(test_has_used(&f->driver, RX));
}

static void test_bulk_from_host_obeys_credit_and_buffers(void **state)
{
    struct fixture *f = *state;
    uint32_t total = 300000;
    uint8_t *bytes = malloc(total);
    uint32_t sent = 0;
    int peer;

    assert_non_null(bytes);
    for (uint32_t i = 0; i < total; i++) {
        bytes[i] = (uint8_t)(i * 7 + (i >> 9));
    }
    start(f, 4);
    peer = connect_from_guest(f);
    f->received = 0;
    while (f->received < total) {
        ssize_t n = sent < total ? send(peer, bytes + sent, total - sent, MSG_DONTWAIT) : 0;

        sent += n > 0 ? (uint32_t)n : 0;
        receive(f);
        assert_int_equal(f->op, RW);
        assert_memory_equal(f->data, bytes + f->received, f->len);
        f->received += f->len;
        if (f->received % 3 == 0 || f->received % CREDIT > CREDIT / 2) {
            send_packet(f, CREDIT_UPDATE, 0, NULL, 0);
        }
    }
    close(peer);
    free(bytes);
}

static void test_host_is_not_read_without_credit(void **state)
{
    struct fixture *f = *state;
    uint8_t *bytes = calloc(1, 2 * CREDIT);
    int peer;

    assert_non_null(bytes);
    start(f, 64);
    peer = connect_from_guest(f);
    for (uint32_t sent = 0; sent < 2 * CREDIT;) {
        ssize_t n = send(peer, bytes, 2 * CREDIT - sent, MSG_DONTWAIT);

        if (n < 0) {
            break;
        }
        sent += (uint32_t)n;
    }
    f->received = 0;
    while (f->received < CREDIT) {
        receive(f);
        f->received += f->len;
    }
    assert_int_equal(f->received, CREDIT); /* to the byte */
    /* The answer to this comes after anything the device would still send. */
    f->received = 0;
    send_packet(f, CREDIT_REQUEST, 0, NULL, 0);
    receive(f);
    assert_int_equal(f->op, CREDIT_UPDATE);
    close(peer);
    free(bytes);
}

static void test_guest_bytes_wait_for_a_slow_program(void **state)
{
    struct fixture *f = *state;
    uint8_t *bytes = malloc(CREDIT);
    uint8_t *got = malloc(1u << 20);
    uint32_t sent = 0;
    uint32_t told = 0;
    int peer;

    assert_true(bytes && got);
    for (uint32_t i = 0; i < CREDIT; i++) {
        bytes[i] = (uint8_t)(i * 13);
    }
    start(f, RX_BUFFERS);
    peer = connect_from_guest(f);
    /* Fill socket and credit until the device has acknowledged no more than it can hold. */
    while (sent - told + 4096 <= f->buf_alloc && sent < (1u << 20)) {
        send_packet(f, RW, 0, bytes + sent % CREDIT, 4096);
        sent += 4096;
        while (test_has_used(&f->driver, RX)) {
            receive(f);
            assert_int_equal(f->op, CREDIT_UPDATE);
            told = f->fwd_cnt;
        }
    }
    send_packet(f, SHUTDOWN, 3, NULL, 0);
    assert_int_equal(recv(peer, got, sent, MSG_WAITALL), sent);
    for (uint32_t i = 0; i < sent; i++) {
        assert_int_equal(got[i], bytes[i % CREDIT]);
    }
    assert_end_of_file(peer);
    close(peer);
    free(bytes);
    free(got);
}

static void test_overrun_credit_resets_the_connection(void **state)
{
    struct fixture *f = *state;
    uint8_t *bytes = calloc(1, CREDIT);
    int peer;

    assert_non_null(bytes);
    start(f, RX_BUFFERS);
    peer = connect_from_guest(f);
    do { /* never waits for credit */
        send_packet(f, RW, 0, bytes, CREDIT);
        while (test_has_used(&f->driver, RX)) {
            receive(f);
        }
    } while (f->op != RST);
    close(peer);
    free(bytes);
}

static void test_malformed_packets_harm_nobody(void **state)
{
    struct fixture *f = *state;
    uint8_t header[HEADER];
    struct test_seg seg = {TX_AREA, HEADER - 1, false};

    start(f, RX_BUFFERS);
    fill_header(header, REQUEST, 1, 2, 0);
    store_le64(header, CID + 1);
    send_raw(f, header, NULL, 0);
    store_le64(header, CID);
    store_le64(header + 8, 3);
    send_raw(f, header, NULL, 0);
    assert_false(test_has_used(&f->driver, RX));
    store_le64(header + 8, 2);
    store_le16(header + 28, 9); /* type */
    send_raw(f, header, NULL, 0);
    receive(f);
    assert_int_equal(f->op, RST);
    /* shorter than a header */
    test_make_available(&f->driver, TX, test_chain(&f->driver, TX, &seg, 1));
    test_kick(&f->driver, TX);
    test_driver_wait_broken(&f->driver);
    /* longer than the buffer */
    start(f, RX_BUFFERS);
    fill_header(header, RW, 1, 2, 5000);
    test_write(&f->machine, TX_AREA, header, HEADER);
    seg.len = HEADER;
    test_make_available(&f->driver, TX, test_chain(&f->driver, TX, &seg, 1));
    test_kick(&f->driver, TX);
    test_driver_wait_broken(&f->driver);
    start(f, RX_BUFFERS);
    close(connect_from_guest(f));
}

static void test_reset_ends_all_connections(void **state)
{
    struct fixture *f = *state;
    int peer, fd;

    start(f, RX_BUFFERS);
    peer = connect_from_guest(f);
    fd = accept_in_guest(f);
    test_driver_reset(&f->driver);
    assert_end_of_file(peer);
    assert_end_of_file(fd);
    close(peer);
    close(fd);
    /* without a driver, nobody is let in */
    fd = connect_from_host(f, "CONNECT 80\n");
    assert_end_of_file(fd);
    close(fd);
    f->received = 0;
    start(f, RX_BUFFERS);
    close(accept_in_guest(f));
}

static void test_paths_in_use_and_odd_addresses_are_refused(void **state)
{
    struct fixture *f = *state;
    struct virtio_dev *dev = NULL;
    struct err err = {0};
    char stale[128];
    char longer[200];

    test_machine_stop_loop(&f->machine);
    assert_int_equal(virtio_vsock_create(&f->machine.env, CID, f->path, &err, &dev), -EADDRINUSE);
    assert_non_null(strstr(err.text, f->path));
    assert_int_equal(virtio_vsock_create(&f->machine.env, 2, "/tmp/x", &err, &dev), -EINVAL);
    assert_int_equal(virtio_vsock_create(&f->machine.env, UINT32_MAX, "/tmp/x", &err, &dev),
                     -EINVAL);
    memset(longer, 'x', sizeof(longer));
    longer[sizeof(longer) - 1] = '\0';
    assert_int_equal(virtio_vsock_create(&f->machine.env, CID, longer, &err, &dev), -EINVAL);
    /* what a killed process left behind is replaced */
    close(host_listen(f, 1, stale));
    assert_int_equal(virtio_vsock_create(&f->machine.env, CID, stale, &err, &dev), 0);
    virtio_dev_destroy(dev);
    assert_int_not_equal(access(stale, F_OK), 0);
}

#define VSOCK_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        VSOCK_TEST(test_device_tells_its_address),
        VSOCK_TEST(test_guest_reaches_a_host_socket),
        VSOCK_TEST(test_host_program_reaches_the_guest),
        VSOCK_TEST(test_half_closed_connection_still_carries_data),
        VSOCK_TEST(test_refused_connections_are_reset),
        VSOCK_TEST(test_bad_commands_close_the_socket),
        VSOCK_TEST(test_bulk_from_host_obeys_credit_and_buffers),
        VSOCK_TEST(test_host_is_not_read_without_credit),
        VSOCK_TEST(test_guest_bytes_wait_for_a_slow_program),
        VSOCK_TEST(test_overrun_credit_resets_the_connection),
        VSOCK_TEST(test_malformed_packets_harm_nobody),
        VSOCK_TEST(test_reset_ends_all_connections),
        VSOCK_TEST(test_paths_in_use_and_odd_addresses_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
