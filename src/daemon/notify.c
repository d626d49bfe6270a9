#include "daemon/notify.h"

#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#define FIRST_FD 3 /* SD_LISTEN_FDS_START */

/* Before any thread starts. */
static long take_number(const char *name)
{
    const char *text = getenv(name); // NOLINT(concurrency-mt-unsafe)
    char *end = NULL;
    long number = text != NULL ? strtol(text, &end, 10) : 0;

    return end != NULL && *end == '\0' ? number : 0;
}

unsigned notify_take_sockets(int *ret_fds, unsigned max)
{
    long count = take_number("LISTEN_FDS");
    unsigned taken = 0;

    if (take_number("LISTEN_PID") != getpid()) {
        count = 0; /* they are meant for another process */
    }
    for (long i = 0; i < count; i++) {
        int fd = FIRST_FD + (int)i;

        if (taken < max && fcntl(fd, F_SETFD, FD_CLOEXEC) == 0 &&
            fcntl(fd, F_SETFL, O_NONBLOCK) == 0) {
            ret_fds[taken++] = fd;
        }
    }
    (void)unsetenv("LISTEN_FDS"); // NOLINT(concurrency-mt-unsafe)
    (void)unsetenv("LISTEN_PID"); // NOLINT(concurrency-mt-unsafe)
    return taken;
}

void notify_send(const char *message)
{
    const char *path = getenv("NOTIFY_SOCKET"); // NOLINT(concurrency-mt-unsafe)
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    CLEANUP_CLOSE int fd = -1;
    size_t len = path != NULL ? strlen(path) : 0;

    if (len < 2 || len >= sizeof(address.sun_path) || (path[0] != '/' && path[0] != '@')) {
        return;
    }
    memcpy(address.sun_path, path, len);
    if (path[0] == '@') {
        address.sun_path[0] = '\0'; /* the abstract name space */
    }
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        (void)sendto(fd, message, strlen(message), MSG_NOSIGNAL, (const struct sockaddr *)&address,
                     (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len)); /* best effort */
    }
}
