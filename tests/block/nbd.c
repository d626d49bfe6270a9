/*
 * Disks on NBD servers that others wrote (qemu-nbd, nbdkit): contents against
 * a model, servers that ask for long blocks, are killed, fall silent, come
 * back, or talk nonsense.
 *
 * usage: nbd [--seed N]
 */
#include "scratch.h"

#include "base/io.h"
#include "base/thread.h"
#include "base/wire.h"
#include "block/block_core.h"
#include "block/nbd.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

#define DISK_BYTES (8u << 20)
#define SECTOR 512u
#define PARALLEL 64u
#define ADDRESS_BYTES 512u

static uint64_t seed = 1;
static pid_t server;

/* ---- servers ---- */

static void address_of(const char *socket, char *out)
{
    (void)snprintf(out, ADDRESS_BYTES, "nbd+unix:///disk?socket=%s", scratch_path(socket));
}

/* nbdkit may come to writing it only after the command has returned. */
static void read_pid(void)
{
    server = 0;
    while (server <= 0) {
        struct pollfd event = {.fd = -1};
        void *text = NULL;
        size_t len;

        if (io_read_file(scratch_path("pid"), 64, &text, &len) == 0 && strchr(text, '\n') != NULL) {
            server = (pid_t)strtol(text, NULL, 10);
        }
        free(text);
        (void)poll(&event, 1, server > 0 ? 0 : 1);
    }
    (void)unlink(scratch_path("pid"));
}

/* Both can be connected to when they have written their process id. */
static void start_qemu(const char *socket, const char *more)
{
    char path[ADDRESS_BYTES];

    (void)snprintf(path, sizeof(path), "%s", scratch_path(socket));
    (void)unlink(path);
    (void)run_command(1u,
                      "qemu-nbd --fork --persistent -e 8 -f raw -x disk -k %s --pid-file=%s %s %s",
                      path, scratch_path("pid"), more, scratch_path("disk.raw"));
    read_pid();
}

static void start_nbdkit(const char *socket, const char *words)
{
    char path[ADDRESS_BYTES];

    (void)snprintf(path, sizeof(path), "%s", scratch_path(socket));
    (void)unlink(path);
    (void)run_command(1u, "nbdkit -U %s -P %s -e disk %s", path, scratch_path("pid"), words);
    read_pid();
}

static void end_server(int how)
{
    struct pollfd gone = {.fd = (int)syscall(SYS_pidfd_open, server, 0), .events = POLLIN};

    if (gone.fd < 0 || kill(server, how) != 0 || poll(&gone, 1, -1) < 0) {
        fail("the server cannot be ended: %s", strerror(errno));
    }
    (void)close(gone.fd);
}

static void make_disk(void)
{
    const char *path = scratch_path("disk.raw");
    CLEANUP_CLOSE int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    if (fd < 0 || ftruncate(fd, DISK_BYTES) != 0) {
        fail("%s cannot be made", path);
    }
}

/* ---- requests ---- */

struct slot {
    struct block_request request;
    struct iovec iov[5];
    uint8_t *buf;
    bool is_busy;
};

static struct {
    struct block *block;
    struct slot slots[PARALLEL];
    unsigned errors;
    unsigned done;
    atomic_int stopped;
    uint8_t *model;
} t;

static struct block *open_block(const char *address, bool read_only, enum block_on_error on_error)
{
    struct block_config config = {.path = address,
                                  .fd = -1,
                                  .format = BLOCK_FORMAT_RAW,
                                  .read_only = read_only,
                                  .on_error = on_error};
    struct block *block = NULL;
    struct err err = {0};

    if (block_create(&config, &err, &block) < 0) {
        fail("%s", err.text);
    }
    return block;
}

static void on_done(struct block_request *request, int result)
{
    struct slot *slot = container_of(request, struct slot, request);

    if (result == 0 && request->op == BLOCK_READ &&
        memcmp(slot->buf, t.model + request->offset, request->len) != 0) {
        fail("a read at %llu brings something else", (unsigned long long)request->offset);
    }
    t.errors += result < 0;
    t.done++;
    slot->is_busy = false;
}

/* A vector of up to five parts, all of whole sectors or not at all. */
static void set_vector(struct slot *slot, struct rng *rng, uint64_t len)
{
    uint64_t at = 0;
    unsigned count = 0;

    while (at < len) {
        uint64_t some = count == 4 ? len - at : 1 + rng_below(rng, len - at);

        slot->iov[count++] = (struct iovec){.iov_base = slot->buf + at, .iov_len = some};
        at += some;
    }
    slot->request.iov = slot->iov;
    slot->request.iov_count = count;
}

static void submit(struct slot *slot, enum block_op op, uint64_t offset, uint64_t len,
                   struct rng *rng)
{
    slot->request = (struct block_request){.op = op,
                                           .offset = offset,
                                           .len = len,
                                           .may_unmap = rng_below(rng, 2) == 0,
                                           .done = on_done};
    if (op == BLOCK_READ || op == BLOCK_WRITE) {
        set_vector(slot, rng, len);
    }
    slot->is_busy = true;
    block_submit(t.block, 0, &slot->request);
}

/* Slot i works on its own part of the disk, so that nothing overlaps. */
static void submit_random(unsigned i, struct rng *rng)
{
    uint64_t part = DISK_BYTES / PARALLEL;
    uint64_t first = rng_below(rng, part / SECTOR);
    uint64_t offset = i * part + first * SECTOR;
    uint64_t len = (1 + rng_below(rng, part / SECTOR - first)) * SECTOR;
    uint64_t what = rng_below(rng, 16);
    struct slot *slot = &t.slots[i];

    if (what == 0) {
        submit(slot, BLOCK_FLUSH, 0, 0, rng);
    } else if (what < 3) {
        memset(t.model + offset, 0, len);
        submit(slot, BLOCK_WRITE_ZEROES, offset, len, rng);
    } else if (what < 9) {
        for (uint64_t b = 0; b < len; b++) {
            slot->buf[b] = (uint8_t)(rng_next(rng) >> 40);
        }
        memcpy(t.model + offset, slot->buf, len);
        submit(slot, BLOCK_WRITE, offset, len, rng);
    } else {
        submit(slot, BLOCK_READ, offset, len, rng);
    }
}

static void run_random(struct rng *rng, unsigned rounds)
{
    for (unsigned r = 0; r < rounds; r++) {
        for (unsigned i = 0; i < PARALLEL; i++) {
            submit_random(i, rng);
        }
        block_drain(t.block);
    }
}

static void expect_file(const char *when)
{
    void *data = NULL;
    size_t len = 0;

    if (io_read_file(scratch_path("disk.raw"), DISK_BYTES, &data, &len) < 0 || len != DISK_BYTES ||
        memcmp(data, t.model, len) != 0) {
        fail("%s: the server's file is not what was written", when);
    }
    free(data);
}

static void begin(void)
{
    make_disk();
    memset(t.model, 0, DISK_BYTES);
    t.errors = 0;
    t.done = 0;
}

static int flush(void)
{
    return block_image_simple(t.block->image, BLOCK_FLUSH, 0, 0, false);
}

/* ---- what is tested ---- */

static void contents_match(const char *name)
{
    struct rng rng = {.state = seed};
    char address[ADDRESS_BYTES];

    address_of("a.sock", address);
    t.block = open_block(address, false, BLOCK_ON_ERROR_REPORT);
    run_random(&rng, 40);
    if (t.errors != 0 || t.done != 40 * PARALLEL) {
        fail("%s: %u of %u requests failed", name, t.errors, t.done);
    }
    if (flush() != 0) {
        fail("%s: the flush fails", name);
    }
    block_destroy(t.block);
    end_server(SIGTERM);
    expect_file(name);
    printf("ok %s\n", name);
}

static void plain_server(void)
{
    begin();
    start_qemu("a.sock", "--discard=unmap --cache=writeback");
    contents_match("qemu-nbd");
}

static void long_blocks(void)
{
    char words[ADDRESS_BYTES];

    begin();
    (void)snprintf(words, sizeof(words),
                   "--filter=blocksize-policy file %s blocksize-minimum=4k "
                   "blocksize-maximum=64k blocksize-preferred=4k blocksize-error-policy=error",
                   scratch_path("disk.raw"));
    start_nbdkit("a.sock", words);
    contents_match("a server that takes 4 KiB to 64 KiB only");
}

static void poor_server(void)
{
    char words[ADDRESS_BYTES];

    begin();
    (void)snprintf(words, sizeof(words),
                   "--filter=nozero --filter=fua file %s zeromode=none "
                   "fuamode=discard",
                   scratch_path("disk.raw"));
    start_nbdkit("a.sock", words);
    contents_match("a server without zeroes and FUA");
}

static void on_stopped(void *opaque, int error)
{
    (void)opaque;
    atomic_store(&t.stopped, error);
}

/* Everything under way gets its answer, and it goes on when the server is back. */
static void killed_server(void)
{
    struct rng rng = {.state = seed + 1};
    char address[ADDRESS_BYTES];

    begin();
    address_of("k.sock", address);
    start_qemu("k.sock", "");
    t.block = open_block(address, false, BLOCK_ON_ERROR_REPORT);
    run_random(&rng, 2);
    if (flush() != 0 || t.errors != 0) {
        fail("a server that lives fails");
    }
    for (unsigned i = 0; i < PARALLEL; i++) {
        submit(&t.slots[i], BLOCK_READ, i * (DISK_BYTES / PARALLEL), 65536, &rng);
    }
    block_kick(t.block, 0); /* under way */
    end_server(SIGKILL);
    block_drain(t.block); /* some were answered before the end, none stays without an answer */
    t.errors = 0;
    submit(&t.slots[0], BLOCK_READ, 0, SECTOR, &rng);
    block_drain(t.block);
    if (t.errors != 1) {
        fail("a read succeeds without a server");
    }
    start_qemu("k.sock", "");
    do { /* it is asked again once a second at most */
        t.errors = 0;
        submit(&t.slots[0], BLOCK_READ, 0, 65536, &rng);
        block_drain(t.block);
    } while (t.errors != 0);
    if (flush() != 0) {
        fail("a flush fails though nothing was lost");
    }
    memset(t.slots[0].buf, 7, SECTOR);
    memset(t.model, 7, SECTOR);
    submit(&t.slots[0], BLOCK_WRITE, 0, SECTOR, &rng);
    block_drain(t.block);
    end_server(SIGKILL);
    /* A write was acknowledged and not made durable: nobody may believe that it is. */
    if (t.errors != 0 || flush() == 0) {
        fail("a flush succeeds on a server that died");
    }
    start_qemu("k.sock", "");
    if (flush() == 0) {
        fail("a flush forgets what was lost before it");
    }
    block_destroy(t.block);
    end_server(SIGKILL); /* one that has no client yet may miss a politer word */
    puts("ok a killed server");
}

/* By the other policy requests wait, and are carried out by the server that comes back. */
static void held_requests(void)
{
    struct rng rng = {.state = seed + 2};
    char address[ADDRESS_BYTES];

    begin();
    address_of("h.sock", address);
    start_qemu("h.sock", "");
    t.block = open_block(address, false, BLOCK_ON_ERROR_HOLD);
    block_set_stopped(t.block, on_stopped, NULL);
    atomic_store(&t.stopped, 0);
    end_server(SIGKILL);
    memset(t.slots[0].buf, 9, SECTOR);
    memset(t.model, 9, SECTOR);
    submit(&t.slots[0], BLOCK_WRITE, 0, SECTOR, &rng);
    block_kick(t.block, 0);
    while (atomic_load(&t.stopped) == 0) {
        struct pollfd event = {.fd = -1};

        (void)poll(&event, 1, 1);
        block_kick(t.block, 0);
        lane_pump(&t.block->lanes[0]);
    }
    if (t.done != 0 || atomic_load(&t.stopped) != -EIO) {
        fail("the request does not wait");
    }
    start_qemu("h.sock", "");
    while (t.done == 0) {
        struct pollfd event = {.fd = -1};

        block_retry(t.block);
        lane_pump(&t.block->lanes[0]);
        (void)poll(&event, 1, 1);
    }
    if (t.errors != 0 || flush() != 0) {
        fail("a request that waited fails");
    }
    block_destroy(t.block);
    end_server(SIGTERM);
    expect_file("requests that waited");
    puts("ok requests that wait for their server");
}

/* A stopped process keeps its connections; only patience ends. */
static void silent_server(void)
{
    char address[ADDRESS_BYTES];
    struct nbd_options options = {.address = address, .patience_ms = 200};
    struct block_file *file = NULL;
    struct err err = {0};
    uint8_t sector[SECTOR] = {1};

    begin();
    address_of("s.sock", address);
    start_qemu("s.sock", "");
    if (nbd_open(&options, &err, &file) < 0) {
        fail("%s", err.text);
    }
    if (kill(server, SIGSTOP) != 0 || block_file_pread(file, sector, SECTOR, 0) != -EIO) {
        fail("a read from a silent server does not fail");
    }
    if (kill(server, SIGCONT) != 0) {
        fail("the server cannot go on");
    }
    while (block_file_pread(file, sector, SECTOR, 0) != 0) { /* asked again once a second */
        struct pollfd event = {.fd = -1};

        (void)poll(&event, 1, 1);
    }
    if (kill(server, SIGSTOP) != 0 || block_file_pwrite(file, sector, SECTOR, 0) != -EIO ||
        kill(server, SIGCONT) != 0) {
        fail("a write to a silent server does not fail");
    }
    /* It may come to that write yet: what is read now may change later. */
    for (unsigned i = 0; i < 3; i++) {
        struct pollfd event = {.fd = -1};

        if (block_file_pread(file, sector, SECTOR, 0) != -EIO) {
            fail("a server that may still write is read from");
        }
        (void)poll(&event, 1, 600);
    }
    block_file_close(file);
    end_server(SIGKILL);
    puts("ok a silent server");
}

static void known_zeroes(void)
{
    char address[ADDRESS_BYTES];
    struct block_image *image;
    struct block_extent extent;
    uint8_t data[4096];

    begin();
    address_of("z.sock", address);
    start_qemu("z.sock", "");
    t.block = open_block(address, false, BLOCK_ON_ERROR_REPORT);
    image = t.block->image;
    memset(data, 5, sizeof(data));
    if (block_image_pwrite(image, data, sizeof(data), 1 << 20) < 0) {
        fail("the write fails");
    }
    if (image->ops->lookup(image, 512, DISK_BYTES - 512, &extent) < 0 ||
        extent.kind != BLOCK_EXTENT_ZERO || extent.len == 0 || extent.len > (1u << 20) - 512) {
        fail("what is zero is not known to be");
    }
    if (image->ops->lookup(image, 1 << 20, 4096, &extent) < 0 || extent.kind != BLOCK_EXTENT_DATA ||
        extent.len != 4096) {
        fail("what has data is said to have none");
    }
    block_destroy(t.block);
    end_server(SIGTERM);
    puts("ok zeroes that the server knows of");
}

static void refused(void)
{
    char address[ADDRESS_BYTES];
    struct block_config config = {.path = address, .fd = -1, .format = BLOCK_FORMAT_RAW};
    static const char *const bad[] = {"nbd+unix:///disk?socket=/nonexistent",
                                      "nbds://127.0.0.1/disk", "nbd://", "nbd+unix:///disk"};
    struct block *block = NULL;
    struct err err = {0};

    begin();
    start_qemu("r.sock", "--read-only");
    address_of("r.sock", address);
    if (block_create(&config, &err, &block) != -EROFS) {
        fail("an export that is read only is opened for writing: %s", err.text);
    }
    t.block = open_block(address, true, BLOCK_ON_ERROR_REPORT);
    block_destroy(t.block);
    (void)snprintf(address, sizeof(address), "nbd+unix:///other?socket=%s", scratch_path("r.sock"));
    if (block_create(&config, &err, &block) >= 0) {
        fail("an export that is not there is opened");
    }
    for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
        (void)snprintf(address, sizeof(address), "%s", bad[i]);
        if (block_create(&config, &err, &block) >= 0 || err.text[0] == '\0') {
            fail("%s is opened", bad[i]);
        }
    }
    end_server(SIGTERM);
    puts("ok what cannot be opened");
}

/* ---- a server of lies ---- */

#define LIES 40u

/* Greetings that begin as they should, cut and bent by a number; until nobody can come any more. */
static void *liar_main(void *opaque)
{
    const int *listener = opaque;
    struct rng rng = {.state = seed + 77};

    for (unsigned kind = 0;; kind++) {
        uint8_t talk[512];
        uint8_t heard[64];
        CLEANUP_CLOSE int fd = accept4(*listener, NULL, NULL, SOCK_CLOEXEC);
        size_t len = 18 + rng_below(&rng, sizeof(talk) - 18);

        if (fd < 0) {
            return NULL;
        }
        for (size_t i = 0; i < sizeof(talk); i++) {
            talk[i] = (uint8_t)(rng_next(&rng) >> 33);
        }
        memcpy(talk, "NBDMAGICIHAVEOPT", 16);
        store_be16(talk + 16, (uint16_t)(kind % 4));
        if (kind % 5 == 0) {
            talk[rng_below(&rng, 16)] ^= 1;
        } else if (kind % 5 == 1) { /* an answer to an option, of a length that is a lie */
            store_be64(talk + 18, 0x3e889045565a9ull);
            store_be32(talk + 26, 8);
            store_be32(talk + 30, 3 + kind % 3);
            store_be32(talk + 34, 0xfffffff0u);
        }
        (void)!send(fd, talk, len, MSG_NOSIGNAL);
        (void)shutdown(fd, SHUT_WR);
        while (read(fd, heard, sizeof(heard)) > 0) {
        }
    }
}

static void lying_server(void)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char address[ADDRESS_BYTES];
    pthread_t thread;

    address_of("l.sock", address);
    (void)snprintf(at.sun_path, sizeof(at.sun_path), "%s", scratch_path("l.sock"));
    if (bind(listener, (const struct sockaddr *)&at, sizeof(at)) != 0 || listen(listener, 1) != 0 ||
        thread_start(&thread, "liar", liar_main, &listener) < 0) {
        fail("no server of lies: %s", strerror(errno));
    }
    for (unsigned i = 0; i < LIES; i++) {
        struct nbd_options options = {.address = address};
        struct block_file *file = NULL;
        struct err err = {0};

        if (nbd_open(&options, &err, &file) == 0) { /* of the old kind, which sends no more */
            uint8_t sector[SECTOR];

            if (block_file_pread(file, sector, SECTOR, 0) >= 0) {
                fail("a liar is believed");
            }
            block_file_close(file);
        } else if (err.text[0] == '\0') {
            fail("a liar is refused without a word");
        }
    }
    (void)shutdown(listener, SHUT_RDWR); /* ends the waiting, too */
    (void)pthread_join(thread, NULL);
    (void)close(listener);
    puts("ok servers that talk nonsense");
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--seed") == 0) {
        seed = strtoull(argv[2], NULL, 10);
    }
    fail_context("seed %llu", (unsigned long long)seed);
    (void)setvbuf(stdout, NULL, _IOLBF, 0); /* what went well is known when something hangs */
    scratch_init();
    t.model = malloc(DISK_BYTES);
    for (unsigned i = 0; i < PARALLEL; i++) {
        t.slots[i].buf = malloc(DISK_BYTES / PARALLEL);
        if (t.model == NULL || t.slots[i].buf == NULL) {
            fail("no memory");
        }
    }
    plain_server();
    long_blocks();
    poor_server();
    killed_server();
    held_requests();
    silent_server();
    known_zeroes();
    refused();
    lying_server();
    for (unsigned i = 0; i < PARALLEL; i++) {
        free(t.slots[i].buf);
    }
    free(t.model);
    return 0;
}
