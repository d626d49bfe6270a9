/*
 * What a hostile guest says in its agent's place: the input's first byte is how many bytes come
 * before the answer to the greeting, the others what it has to say to the questions after it.
 */
#include "fuzz_import.h"

#include "base/io.h"
#include "rpc/guest_agent.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>

#define QUESTIONS 3
#define TIMEOUT_MS 10000 /* never reached: the guest ends the connection */

struct guest {
    int listener;
    const uint8_t *data;
    size_t len;
};

static char dir[] = "/tmp/fuzz-agent-XXXXXX";

static void remove_dir(void)
{
    char path[sizeof(dir) + 16];

    (void)snprintf(path, sizeof(path), "%s/agent.sock", dir);
    (void)unlink(path);
    (void)rmdir(dir);
}

static int listen_in_dir(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    fuzz_expect(fd >= 0 && mkdtemp(dir) != NULL);
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s/agent.sock", dir);
    fuzz_expect(bind(fd, (const struct sockaddr *)&address, sizeof(address)) == 0);
    fuzz_expect(listen(fd, 1) == 0 && atexit(remove_dir) == 0);
    return fd;
}

/* The number that the greeting is to be answered with. */
static long long read_greeting(int fd)
{
    char line[256];
    size_t len = 0;
    const char *id;

    while (len < sizeof(line) - 1 && read(fd, line + len, 1) == 1 && line[len] != '\n') {
        len++;
    }
    line[len] = '\0';
    id = strstr(line, "\"id\":");
    fuzz_expect(id != NULL);
    return strtoll(id + 5, NULL, 10);
}

static void *be_guest(void *opaque)
{
    const struct guest *guest = opaque;
    size_t stale = guest->len > 0 ? guest->data[0] : 0;
    const uint8_t *rest = guest->data + (guest->len > 0);
    size_t rest_len = guest->len - (guest->len > 0);
    int fd = accept(guest->listener, NULL, NULL);
    char line[64];
    int len;

    fuzz_expect(fd >= 0);
    len = snprintf(line, sizeof(line), "\xff{\"return\":%lld}\n", read_greeting(fd));
    stale = stale < rest_len ? stale : rest_len;
    /* The other end may be gone: it has heard enough. */
    if (send(fd, rest, stale, MSG_NOSIGNAL) >= 0 &&
        send(fd, line, (size_t)len, MSG_NOSIGNAL) >= 0) {
        (void)send(fd, rest + stale, rest_len - stale, MSG_NOSIGNAL);
    }
    (void)shutdown(fd, SHUT_WR);
    while (read(fd, line, sizeof(line)) > 0) {
    }
    (void)close(fd);
    return NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static int listener = -1;
    struct guest guest = {.data = data, .len = len};
    struct guest_agent *agent = NULL;
    struct err err = {.code = 0};
    pthread_t thread;
    int rc;

    listener = listener < 0 ? listen_in_dir() : listener;
    guest.listener = listener;
    fuzz_expect(pthread_create(&thread, NULL, be_guest, &guest) == 0);
    rc = guest_agent_open(dir, TIMEOUT_MS, &agent, &err);
    fuzz_expect_said(rc, &err);
    for (unsigned i = 0; rc == 0 && i < QUESTIONS; i++) {
        json_t *value = NULL;

        err = (struct err){.code = 0};
        rc = guest_agent_call(agent, "guest-info", NULL, TIMEOUT_MS, &value, &err);
        fuzz_expect_said(rc, &err);
        fuzz_expect((rc == 0) == (value != NULL) && rc != -ETIMEDOUT);
        json_decref(value);
        rc = rc == -EREMOTEIO ? 0 : rc; /* refused: it may be asked other things */
    }
    guest_agent_close(agent);
    (void)pthread_join(thread, NULL);
    return 0;
}
