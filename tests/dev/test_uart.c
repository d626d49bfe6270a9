/* The serial port on a real bus with pipes and sockets behind it. */
#include "base/loop.h"
#include "base/thread.h"
#include "bus/bus.h"
#include "dev/chardev.h"
#include "dev/console_log.h"
#include "dev/dev.h"
#include "irq_recorder.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BASE 0x3f8u
#define GSI 4u

enum { DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR };

struct fixture {
    struct loop *loop;
    pthread_t thread;
    bool has_thread;
    struct bus *bus;
    struct irq_recorder irq;
    struct chardev *chardev;
    struct uart_16550 *uart;
    int in, out; /* the other ends: bytes to the guest, bytes from it */
};

static void *loop_main(void *opaque)
{
    assert_int_equal(loop_run(opaque), 0);
    return NULL;
}

static void build(struct fixture *f, const struct chardev_config *config)
{
    struct dev_env env = {0};

    recorder_init(&f->irq);
    assert_int_equal(loop_create(&f->loop), 0);
    assert_int_equal(bus_create(&f->bus), 0);
    assert_int_equal(chardev_create(f->loop, config, &f->chardev), 0);
    env = (struct dev_env){.bus = f->bus, .loop = f->loop, .irq = f->irq.router};
    assert_int_equal(uart_16550_create(&env, BASE, GSI, f->chardev, &f->uart), 0);
}

static void run(struct fixture *f)
{
    assert_int_equal(thread_start(&f->thread, "io/0", loop_main, f->loop), 0);
    f->has_thread = true;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    int to_guest[2], from_guest[2];

    assert_non_null(f);
    assert_int_equal(pipe2(to_guest, O_CLOEXEC), 0);
    assert_int_equal(pipe2(from_guest, O_CLOEXEC), 0);
    f->in = to_guest[1];
    f->out = from_guest[0];
    build(f,
          &(struct chardev_config){.in_fd = to_guest[0], .out_fd = from_guest[1], .listen_fd = -1});
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    if (f->has_thread) {
        loop_stop(f->loop);
        pthread_join(f->thread, NULL);
    }
    uart_16550_destroy(f->uart);
    chardev_destroy(f->chardev);
    bus_destroy(f->bus);
    loop_destroy(f->loop);
    if (f->in >= 0) {
        close(f->in);
    }
    if (f->out >= 0) {
        close(f->out);
    }
    free(f);
    return 0;
}

static uint8_t in8(struct fixture *f, unsigned reg)
{
    return (uint8_t)bus_read(f->bus, BUS_PIO, BASE + reg, 1);
}

static void out8(struct fixture *f, unsigned reg, uint8_t value)
{
    bus_write(f->bus, BUS_PIO, BASE + reg, 1, value);
}

static void read_exactly(int fd, char *buf, size_t len)
{
    size_t done = 0;

    while (done < len) {
        ssize_t n = read(fd, buf + done, len - done);

        assert_true(n > 0);
        done += (size_t)n;
    }
}

static void test_output_arrives_in_order(void **state)
{
    struct fixture *f = *state;
    char got[1001] = {0};

    run(f);
    for (unsigned i = 0; i < 1000; i++) {
        while ((in8(f, LSR) & 0x20) == 0) {
        }
        out8(f, DATA, (uint8_t)('a' + i % 26));
    }
    read_exactly(f->out, got, 1000);
    for (unsigned i = 0; i < 1000; i++) {
        assert_int_equal(got[i], 'a' + i % 26);
    }
}

static void test_input_fills_the_fifo_and_no_more(void **state)
{
    struct fixture *f = *state;
    char text[64], got[65] = {0};

    for (unsigned i = 0; i < sizeof(text); i++) {
        text[i] = (char)('0' + i);
    }
    out8(f, IIR, 0x01); /* FIFOs on */
    out8(f, IER, 0x01);
    out8(f, MCR, 0x08);
    run(f);
    assert_int_equal(write(f->in, text, sizeof(text)), sizeof(text));
    for (unsigned i = 0; i < sizeof(text); i++) {
        while ((in8(f, LSR) & 1) == 0) {
        }
        got[i] = (char)in8(f, DATA);
    }
    assert_memory_equal(got, text, sizeof(text));
    assert_int_equal(in8(f, LSR) & 0x03, 0); /* nothing more, nothing overrun */
    assert_int_not_equal(f->irq.rises[GSI], 0);
}

static void test_interrupt_identification_and_priority(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(in8(f, IIR), 0x01);
    out8(f, MCR, 0x18); /* loopback, so that data comes back */
    out8(f, IER, 0x02); /* transmitter empty: at once */
    assert_int_equal(in8(f, IIR), 0x02);
    assert_int_equal(in8(f, IIR), 0x01); /* reading it took it away */
    out8(f, IER, 0x07);
    out8(f, DATA, 0x55);
    assert_int_equal(in8(f, IIR), 0x04); /* data before transmitter */
    out8(f, DATA, 0x66);                 /* no FIFO: overrun */
    assert_int_equal(in8(f, IIR), 0x06);
    assert_int_equal(in8(f, LSR), 0x63);
    assert_int_equal(in8(f, DATA), 0x55);
    assert_int_equal(in8(f, IIR), 0x02);
    assert_int_equal(in8(f, IIR), 0x01);
}

static void test_trigger_level_and_timeout(void **state)
{
    struct fixture *f = *state;

    out8(f, MCR, 0x18);
    out8(f, IIR, 0x41); /* FIFOs, trigger at 4 */
    out8(f, IER, 0x01);
    for (unsigned i = 0; i < 3; i++) {
        out8(f, DATA, (uint8_t)i);
    }
    assert_int_equal(in8(f, IIR), 0xcc); /* below the trigger: timeout */
    out8(f, DATA, 3);
    assert_int_equal(in8(f, IIR), 0xc4);
    for (unsigned i = 4; i < 20; i++) {
        out8(f, DATA, (uint8_t)i);
    }
    assert_int_equal(in8(f, LSR) & 0x02, 0x02); /* the seventeenth did not fit */
    for (unsigned i = 0; i < 16; i++) {
        assert_int_equal(in8(f, DATA), i);
    }
    assert_int_equal(in8(f, LSR) & 1, 0);
    out8(f, DATA, 1);
    out8(f, IIR, 0x43); /* clear the receiver */
    assert_int_equal(in8(f, LSR) & 1, 0);
}

static void test_line_needs_out2_and_falls_when_served(void **state)
{
    struct fixture *f = *state;

    out8(f, IER, 0x02);
    assert_false(f->irq.level[GSI]);
    out8(f, MCR, 0x08);
    assert_true(f->irq.level[GSI]);
    (void)in8(f, IIR);
    assert_false(f->irq.level[GSI]);
    out8(f, DATA, 'x'); /* sent, and empty again */
    assert_true(f->irq.level[GSI]);
    out8(f, IER, 0);
    assert_false(f->irq.level[GSI]);
}

static void test_modem_lines_loop_back(void **state)
{
    struct fixture *f = *state;

    (void)in8(f, MSR);
    assert_int_equal(in8(f, MSR), 0xb0);
    out8(f, MCR, 0x1a); /* what Linux does to recognize the chip */
    assert_int_equal(in8(f, MSR) & 0xf0, 0x90);
    out8(f, LCR, 0x80);
    out8(f, DATA, 0x12);
    out8(f, IER, 0x34);
    assert_int_equal(in8(f, DATA), 0x12);
    assert_int_equal(in8(f, IER), 0x34);
    out8(f, LCR, 0x03);
    assert_int_equal(in8(f, IER), 0);
    assert_int_equal(bus_read(f->bus, BUS_PIO, BASE + LCR, 2), 0x1a03); /* two registers */
}

static void test_slow_peer_never_blocks_the_guest(void **state)
{
    struct fixture *f = *state;
    struct chardev_stats stats;
    size_t sent = 0;

    run(f);
    /* Nobody reads: the pipe and the ring fill, then the transmitter stays full. */
    while ((in8(f, LSR) & 0x20) != 0) {
        out8(f, DATA, 'x');
        sent++;
        assert_true(sent < (8u << 20));
    }
    assert_true(sent >= CHARDEV_RING_BYTES);
    /* After a while output is dropped instead. */
    while ((in8(f, LSR) & 0x20) == 0) {
        sched_yield();
    }
    for (unsigned i = 0; i < CHARDEV_RING_BYTES; i++) {
        out8(f, DATA, 'y');
        assert_int_equal(in8(f, LSR) & 0x20, 0x20);
    }
    chardev_stats(f->chardev, &stats);
    assert_int_not_equal(stats.dropped_bytes, 0);
}

static void test_peer_that_goes_away_is_forgotten(void **state)
{
    struct fixture *f = *state;

    run(f);
    close(f->out);
    f->out = -1;
    for (unsigned i = 0; i < 3 * CHARDEV_RING_BYTES; i++) {
        out8(f, DATA, 'x');
    }
    while ((in8(f, LSR) & 0x20) == 0) {
        sched_yield();
    }
    close(f->in);
    f->in = -1;
}

static void test_reset_equals_freshly_created(void **state)
{
    struct fixture *f = *state;
    uint8_t fresh[8];

    for (unsigned i = 0; i < 8; i++) {
        fresh[i] = in8(f, i);
    }
    for (unsigned i = 0; i < 8; i++) {
        out8(f, i, 0x1f);
    }
    out8(f, DATA, 1);
    uart_16550_reset(f->uart);
    for (unsigned i = 0; i < 8; i++) {
        assert_int_equal(in8(f, i), fresh[i]);
    }
    assert_false(f->irq.level[GSI]);
}

static int socket_connect(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    strcpy(address.sun_path, path);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

static void test_socket_serves_one_peer_after_the_other(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char dir[] = "/tmp/corbel-test-uart-XXXXXX";
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    void *teardown_state = f;
    char got[8] = {0};

    (void)state;
    assert_non_null(f);
    assert_non_null(mkdtemp(dir));
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/s", dir);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(listener, 4), 0);
    f->in = f->out = -1;
    build(f, &(struct chardev_config){.in_fd = -1, .out_fd = -1, .listen_fd = listener});
    for (unsigned i = 0; i < CHARDEV_RING_BYTES; i++) { /* nobody there: the latest is kept */
        out8(f, DATA, '.');
    }
    out8(f, DATA, 'A');
    run(f);
    for (unsigned round = 0; round < 2; round++) {
        int peer = socket_connect(address.sun_path);

        if (round == 0) {
            char *old = malloc(CHARDEV_RING_BYTES);

            read_exactly(peer, old, CHARDEV_RING_BYTES);
            assert_int_equal(old[CHARDEV_RING_BYTES - 1], 'A');
            free(old);
        }
        assert_int_equal(write(peer, "in", 2), 2);
        for (unsigned i = 0; i < 2; i++) {
            while ((in8(f, LSR) & 1) == 0) {
            }
            got[i] = (char)in8(f, DATA);
        }
        assert_string_equal(got, "in");
        out8(f, DATA, 'B');
        read_exactly(peer, got, 1);
        assert_int_equal(got[0], 'B');
        close(peer);
    }
    unlink(address.sun_path);
    rmdir(dir);
    teardown(&teardown_state);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

/* One life of a log: what is added is in the file when it ends. */
static void log_once(int fd, const char *text, size_t len)
{
    struct console_log *log = NULL;
    struct loop *loop = NULL;

    assert_int_equal(loop_create(&loop), 0);
    assert_int_equal(console_log_create(loop, fd, &log), 0);
    console_log_add(log, (const uint8_t *)text, len);
    console_log_destroy(log);
    loop_destroy(loop);
}

static void test_log_keeps_the_last_of_all_lives_within_its_bound(void **state)
{
    static char life[60000], file[3 * CONSOLE_LOG_KEEP_BYTES];
    int fd = memfd_create("log", MFD_CLOEXEC);
    unsigned number = 0, first = 0;
    struct stat st;

    (void)state;
    assert_true(fd >= 0);
    for (unsigned i = 0; i < 40; i++) {
        size_t len = 0;

        while (len + 10 < sizeof(life)) {
            len += (size_t)snprintf(life + len, sizeof(life) - len, "%08u\n", number++);
        }
        log_once(fd, life, len);
        assert_int_equal(fstat(fd, &st), 0);
        assert_true(st.st_size <= 2 * CONSOLE_LOG_KEEP_BYTES);
    }
    assert_true(st.st_size >= CONSOLE_LOG_KEEP_BYTES);
    assert_int_equal(pread(fd, file, sizeof(file), 0), st.st_size);
    /* Each line up to the last, from some line on. */
    first = number - (unsigned)(st.st_size / 9);
    for (unsigned i = first; i < number; i++) {
        size_t at = (size_t)st.st_size - 9 * (size_t)(number - i);

        assert_int_equal(strtoul(file + at, NULL, 10), i);
    }
    (void)close(fd);
}

static void test_log_says_what_it_lost(void **state)
{
    static char much[70000], file[80000];
    int fd = memfd_create("log", MFD_CLOEXEC);

    (void)state;
    memset(much, 'x', sizeof(much));
    log_once(fd, much, sizeof(much));
    assert_true(pread(fd, file, sizeof(file) - 1, 0) > 65536);
    assert_int_equal(strspn(file, "x"), 65536);
    assert_string_equal(file + 65536, "\n[4464 bytes came too fast]\n");
    (void)close(fd);
}

static void test_log_has_what_nobody_read(void **state)
{
    static const char text[] = "hello, nobody\n";
    struct fixture *f = calloc(1, sizeof(*f));
    struct console_log *log = NULL;
    int fd = memfd_create("log", MFD_CLOEXEC), pipe_ends[2];
    char seen[64] = "";
    void *opaque = f;

    (void)state;
    assert_non_null(f);
    f->in = f->out = -1;
    build(f, &(struct chardev_config){.in_fd = -1, .out_fd = -1, .listen_fd = -1});
    assert_int_equal(pipe2(pipe_ends, O_CLOEXEC), 0);
    assert_int_equal(console_log_create(f->loop, pipe_ends[0], &log), -EINVAL);
    assert_int_equal(console_log_create(f->loop, fd, &log), 0);
    chardev_set_log(f->chardev, log);
    run(f);
    for (const char *c = text; *c != '\0'; c++) {
        out8(f, DATA, (uint8_t)*c);
    }
    while (pread(fd, seen, sizeof(seen) - 1, 0) != sizeof(text) - 1) {
        (void)sched_yield();
    }
    assert_string_equal(seen, text);
    teardown(&opaque);
    (void)close(fd);
    (void)close(pipe_ends[0]);
    (void)close(pipe_ends[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_output_arrives_in_order),
        TEST(test_input_fills_the_fifo_and_no_more),
        TEST(test_interrupt_identification_and_priority),
        TEST(test_trigger_level_and_timeout),
        TEST(test_line_needs_out2_and_falls_when_served),
        TEST(test_modem_lines_loop_back),
        TEST(test_slow_peer_never_blocks_the_guest),
        TEST(test_peer_that_goes_away_is_forgotten),
        TEST(test_reset_equals_freshly_created),
        cmocka_unit_test(test_socket_serves_one_peer_after_the_other),
        cmocka_unit_test(test_log_keeps_the_last_of_all_lives_within_its_bound),
        cmocka_unit_test(test_log_says_what_it_lost),
        cmocka_unit_test(test_log_has_what_nobody_read),
    };

    (void)signal(SIGPIPE, SIG_IGN); /* as the program's threads block it */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
