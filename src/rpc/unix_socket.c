#include "rpc/unix_socket.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>

int unix_socket_connect(const char *dir, const char *name, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    CLEANUP_CLOSE int fd = -1;
    int n = snprintf(address.sun_path, sizeof(address.sun_path), "%s/%s", dir, name);

    if (n < 0 || (size_t)n >= sizeof(address.sun_path)) {
        return err_set(err, -ENAMETOOLONG,
                       "%s/%s is too long for a socket; set XDG_RUNTIME_DIR to a shorter one", dir,
                       name);
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof(address)) != 0) {
        return err_set_errno(err, -errno, "%s cannot be connected to", address.sun_path);
    }
    return steal_fd(&fd);
}
