#include "http/http.h"

#include "base/path.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { BACKLOG = 512 };

static int bind_tcp(const struct addrinfo *info)
{
    int fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return -errno;
    }
    int on = 1;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, info->ai_addr, info->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0) {
        int error = -errno;
        (void)close(fd);
        return error;
    }
    return fd;
}

int http_listen_tcp(const char *address, unsigned port, struct err *err)
{
    struct addrinfo hints = {
        .ai_family = AF_UNSPEC,
        .ai_socktype = SOCK_STREAM,
        .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE,
    };
    char service[12];
    (void)snprintf(service, sizeof(service), "%u", port);
    struct addrinfo *info = NULL;
    if (port > UINT16_MAX || getaddrinfo(address, service, &hints, &info) != 0) {
        return err_set(err, -EINVAL,
                       "'%s' port %u is no address to listen on; give one like "
                       "127.0.0.1:7480 or [::1]:7480",
                       address, port);
    }
    int fd = bind_tcp(info);
    freeaddrinfo(info);
    if (fd == -EADDRINUSE) {
        return err_set(err, fd, "port %u of %s is in use by another program; choose another port",
                       port, address);
    }
    return fd < 0 ? err_set_errno(err, fd, "cannot listen on %s port %u", address, port) : fd;
}

static bool is_somebody_listening(const struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool is_listening =
        fd >= 0 && connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0;
    if (fd >= 0) {
        (void)close(fd);
    }
    return is_listening;
}

int http_listen_unix(const char *path, mode_t mode, struct err *err)
{
    struct sockaddr_un address;
    if (path_to_unix(path, &address) < 0) {
        return err_set(err, -ENAMETOOLONG, "the socket's path %s is longer than %zu bytes", path,
                       sizeof(address.sun_path) - 1);
    }
    if (is_somebody_listening(&address)) {
        return err_set(err, -EADDRINUSE, "another program already listens on %s", path);
    }
    (void)unlink(path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return err_set_errno(err, -errno, "cannot make a socket");
    }
    /* The mode must hold from the first moment on: nobody can connect before listen(). */
    if (bind(fd, (const struct sockaddr *)&address, sizeof(address)) != 0 ||
        chmod(path, mode) != 0 || listen(fd, BACKLOG) != 0) {
        int error = err_set_errno(err, -errno, "cannot listen on %s", path);
        (void)close(fd);
        return error;
    }
    return fd;
}
