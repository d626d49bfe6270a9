/*
 * The virtual disk and the network. Only when the runner names them, because they are written to:
 * BENCH_DISK is a disk without contents, BENCH_PORT the runner's server.
 */
#include "bench.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHUNK (256u << 10)
#define DISK_BYTES (32u << 20)

static bool has_disk(void)
{
    return getenv("BENCH_DISK") != NULL;
}

static int open_disk(int flags, char **ret_buf)
{
    const char *disk = getenv("BENCH_DISK");
    int fd = open(disk, flags | O_DIRECT | O_CLOEXEC);

    if (fd < 0 || posix_memalign((void **)ret_buf, 4096, CHUNK) != 0) {
        bench_fail(disk);
    }
    memset(*ret_buf, 0x5a, CHUNK);
    return fd;
}

static uint64_t run_disk_write(void)
{
    char *buf;
    int fd = open_disk(O_WRONLY, &buf);

    for (off_t at = 0; at < (off_t)DISK_BYTES; at += CHUNK) {
        if (pwrite(fd, buf, CHUNK, at) != (ssize_t)CHUNK) {
            bench_fail("write");
        }
    }
    free(buf);
    (void)close(fd);
    return 0;
}

static uint64_t run_disk_read(void)
{
    char *buf;
    int fd = open_disk(O_RDONLY, &buf);

    for (off_t at = 0; at < (off_t)DISK_BYTES; at += CHUNK) {
        if (pread(fd, buf, CHUNK, at) != (ssize_t)CHUNK) {
            bench_fail("read");
        }
    }
    free(buf);
    (void)close(fd);
    return 0;
}

static uint64_t run_disk_random(void)
{
    uint64_t state = BENCH_SEED;
    char *buf;
    int fd = open_disk(O_RDONLY, &buf);

    for (int i = 0; i < 2000; i++) {
        off_t at = (off_t)(bench_random(&state) % (DISK_BYTES / 4096)) * 4096;

        if (pread(fd, buf, 4096, at) != 4096) {
            bench_fail("read");
        }
    }
    free(buf);
    (void)close(fd);
    return 0;
}

/* The runner's server: its port comes as BENCH_PORT, its address is the host's in a user network. */
static bool has_server(void)
{
    return getenv("BENCH_PORT") != NULL;
}

static int connect_server(char direction)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    address.sin_port = htons((uint16_t)strtoul(getenv("BENCH_PORT"), NULL, 10));
    (void)inet_pton(AF_INET, "10.0.2.2", &address.sin_addr);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof(address)) != 0 ||
        write(fd, &direction, 1) != 1) {
        bench_fail("connect");
    }
    return fd;
}

/* The server sends 16 MiB and closes. */
static uint64_t run_net_receive(void)
{
    static char buf[65536];
    int fd = connect_server('r');
    uint64_t total = 0;
    ssize_t n;

    while ((n = read(fd, buf, sizeof(buf))) > 0) {
        total += (uint64_t)n;
    }
    (void)close(fd);
    return total;
}

/* We send 16 MiB; the server answers when it has them all. */
static uint64_t run_net_send(void)
{
    static char buf[65536];
    int fd = connect_server('s');

    for (size_t total = 0; total < 16u << 20; total += sizeof(buf)) {
        for (size_t at = 0; at < sizeof(buf);) {
            ssize_t n = write(fd, buf + at, sizeof(buf) - at);

            if (n <= 0) {
                bench_fail("send");
            }
            at += (size_t)n;
        }
    }
    (void)shutdown(fd, SHUT_WR);
    if (read(fd, buf, 1) != 1) {
        bench_fail("the answer");
    }
    (void)close(fd);
    return 0;
}

const struct bench io_benches[] = {
    {"io", "disk-write", run_disk_write, has_disk, false},
    {"io", "disk-read", run_disk_read, has_disk, false},
    {"io", "disk-random", run_disk_random, has_disk, false},
    {"io", "net-receive", run_net_receive, has_server, false},
    {"io", "net-send", run_net_send, has_server, false},
    {.name = NULL},
};
