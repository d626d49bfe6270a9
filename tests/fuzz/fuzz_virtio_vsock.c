/* virtio-vsock with a listener on the host and programs that come and go. */
#include "base/wire.h"
#include "fuzz_virtio.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#define CID 3u
#define PORT 7u
#define MAX_PEERS 8u
#define RX_AREA (TEST_DATA + 0x40000)

struct host {
    char path[64];
    char listen_path[80];
    int listener;
    int peers[MAX_PEERS];
    unsigned peer_count;
};

static struct sockaddr_un address(const char *path)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};

    memcpy(name.sun_path, path, strlen(path) + 1);
    return name;
}

static void add_peer(struct host *host, int fd)
{
    if (fd >= 0 && host->peer_count < MAX_PEERS) {
        host->peers[host->peer_count++] = fd;
    } else if (fd >= 0) {
        close(fd);
    }
}

static void call_guest(struct host *host, struct fuzz_input *input)
{
    struct sockaddr_un name = address(host->path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    char command[64];
    int len = snprintf(command, sizeof(command), "CONNECT %u\nabc", fuzz_u8(input));

    if (connect(fd, (struct sockaddr *)&name, sizeof(name)) == 0) {
        (void)!send(fd, command, (size_t)len, MSG_NOSIGNAL);
    }
    add_peer(host, fd);
}

static void host_step(struct fuzz *fuzz, struct fuzz_input *input)
{
    struct host *host = fuzz->opaque;
    uint8_t op = fuzz_u8(input);
    uint8_t bytes[8192] = {0};

    add_peer(host, accept4(host->listener, NULL, NULL, SOCK_NONBLOCK));
    if (op % 4 == 0) {
        call_guest(host, input);
    } else if (host->peer_count > 0) {
        int fd = host->peers[(op >> 4) % host->peer_count];

        if (op % 4 == 1) {
            (void)!send(fd, bytes, fuzz_u8(input) * 32u, MSG_NOSIGNAL);
        } else if (op % 4 == 2) {
            (void)!recv(fd, bytes, sizeof(bytes), 0);
        } else {
            (void)shutdown(fd, op & 8 ? SHUT_RDWR : SHUT_WR);
        }
    }
}

/* A packet with right addresses, and a buffer for its answer. */
static void request(struct fuzz *fuzz, struct fuzz_input *input)
{
    uint8_t header[44] = {0};
    uint8_t kind = fuzz_u8(input);
    uint32_t len = kind & 0x80 ? fuzz_u16(input) : 0;
    const struct test_seg out[] = {{TEST_DATA, 44, false}, {TEST_DATA + 0x1000, len, false}};
    const struct test_seg in = {RX_AREA + kind * 4096u, 4096, true};

    store_le64(header, CID);
    store_le64(header + 8, 2);
    store_le32(header + 16, fuzz_u8(input));
    store_le32(header + 20, kind & 0x40 ? 1u << 30 | fuzz_u8(input) : PORT);
    store_le32(header + 24, len);
    store_le16(header + 28, 1);
    store_le16(header + 30, kind % 8);
    store_le32(header + 32, kind >> 4);
    store_le32(header + 36, fuzz_u16(input) * 16u);
    store_le32(header + 40, fuzz_u8(input));
    test_write(&fuzz->machine, TEST_DATA, header, sizeof(header));
    test_make_available(&fuzz->driver, 0, test_chain(&fuzz->driver, 0, &in, 1));
    test_make_available(&fuzz->driver, 1, test_chain(&fuzz->driver, 1, out, len > 0 ? 2 : 1));
    test_kick(&fuzz->driver, 1);
    fuzz_pump(fuzz);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct fuzz_input input = {data, len};
    struct host host = {0};
    struct fuzz fuzz = {.request = request, .host = host_step, .opaque = &host};
    struct sockaddr_un name;

    snprintf(host.path, sizeof(host.path), "/tmp/corbel-fuzz-vsock-%d", getpid());
    snprintf(host.listen_path, sizeof(host.listen_path), "%s_%u", host.path, PORT);
    name = address(host.listen_path);
    unlink(host.path);
    unlink(host.listen_path);
    host.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    test_machine_init(&fuzz.machine);
    if (bind(host.listener, (struct sockaddr *)&name, sizeof(name)) != 0 ||
        listen(host.listener, 8) != 0 ||
        virtio_vsock_create(&fuzz.machine.env, CID, host.path, NULL, &fuzz.dev) != 0) {
        abort();
    }
    fuzz.loop = fuzz.machine.loop;
    fuzz_run(&fuzz, &input);
    virtio_dev_destroy(fuzz.dev);
    test_machine_done(&fuzz.machine);
    for (unsigned i = 0; i < host.peer_count; i++) {
        close(host.peers[i]);
    }
    close(host.listener);
    unlink(host.listen_path);
    return 0;
}
