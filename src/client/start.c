/*
 * Starting the user's own daemon: a process in a session of its own, with its
 * words in a log. It says that it is ready as it would to a service manager
 * (sd_notify(3)), by a socket that is open only until then.
 */
#include "client/client_int.h"

#include "base/path.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/pidfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#define READY_MS 60000
#define CONSOLE_PORT 8480 /* of the web console, where it is free */
#define CONSOLE_BACKLOG 512
#define PID_DIGITS 10
#define FIRST_INHERITED 3 /* SD_LISTEN_FDS_START */

bool start_is_listening(const char *path)
{
    struct sockaddr_un address;
    CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    return fd >= 0 && path_to_unix(path, &address) == 0 &&
           connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0;
}

/*
 * A socket for the web console, listening on the usual port of 127.0.0.1 or on
 * another that is free. The daemon inherits it: a port that is only looked for
 * could be another daemon's a moment later.
 */
static int listen_console(void)
{
    for (unsigned port = CONSOLE_PORT;; port = 0) {
        const struct sockaddr_in address = {.sin_family = AF_INET,
                                            .sin_port = htons((uint16_t)port),
                                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        CLEANUP_CLOSE int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        int on = 1;

        (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        if (fd >= 0 && bind(fd, (const struct sockaddr *)&address, sizeof(address)) == 0 &&
            listen(fd, CONSOLE_BACKLOG) == 0) {
            return steal_fd(&fd);
        }
        if (port == 0) {
            return -1; /* it has no console then; the command line needs none */
        }
    }
}

/* An abstract socket with a name that nobody guesses. */
static int open_notify(char name[64], struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    unsigned long long random[2];
    CLEANUP_CLOSE int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random)) {
        return err_set_errno(err, -errno, "a socket cannot be made");
    }
    (void)snprintf(name, 64, "@corbel-%016llx%016llx", random[0], random[1]);
    memcpy(address.sun_path, name, strlen(name));
    address.sun_path[0] = '\0';
    if (bind(fd, (const struct sockaddr *)&address,
             (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name))) != 0) {
        return err_set_errno(err, -errno, "a socket cannot be named");
    }
    return steal_fd(&fd);
}

struct launch {
    char program[PATH_MAX], log[PATH_MAX], notify[64];
    char notify_variable[96];
    char pid_variable[sizeof("LISTEN_PID=") + PID_DIGITS];
    int log_fd, console_fd; /* -1: none */
};

/* dup2() of a descriptor onto itself would leave it close-on-exec. */
static bool inherit_at(int fd, int place)
{
    return fd == place ? fcntl(fd, F_SETFD, 0) == 0 : dup2(fd, place) == place;
}

/* Its own pid says that the inherited socket is meant for it (sd_listen_fds(3)). */
static void name_self(struct launch *launch)
{
    char *end = launch->pid_variable + strlen("LISTEN_PID=") + PID_DIGITS;

    for (pid_t rest = getpid(), i = 0; i < PID_DIGITS; i++, rest /= 10) {
        *--end = (char)('0' + rest % 10);
    }
}

/* Only what is allowed after fork(). */
static NORETURN void become_daemon(struct launch *launch, char *const *environment)
{
    const char *const argv[] = {"corbeld", NULL};
    int null = open("/dev/null", O_RDWR);
    sigset_t none;

    name_self(launch);
    (void)setsid();
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    if (null >= 0 && inherit_at(null, 0) && inherit_at(launch->log_fd, 1) &&
        inherit_at(launch->log_fd, 2) &&
        (launch->console_fd < 0 || inherit_at(launch->console_fd, FIRST_INHERITED))) {
        (void)execve(launch->program, (char *const *)(uintptr_t)argv, environment);
    }
    _exit(127);
}

/* This process's environment and the variables of the launch; the strings stay theirs. */
static char **extend_environment(struct launch *launch)
{
    static char one_socket[] = "LISTEN_FDS=1";
    size_t count = 0;
    char **longer;

    while (environ[count] != NULL) {
        count++;
    }
    longer = calloc(count + 4, sizeof(*longer));
    if (longer != NULL) {
        memcpy(longer, environ, count * sizeof(*longer));
        longer[count++] = launch->notify_variable;
        if (launch->console_fd >= 0) {
            longer[count++] = one_socket;
            longer[count++] = launch->pid_variable;
        }
    }
    return longer;
}

/* The last line of the log: what it said before it ended. */
static void read_last_words(const char *path, char *out, size_t size)
{
    char tail[1024] = "";
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    off_t end = fd >= 0 ? lseek(fd, 0, SEEK_END) : 0;
    off_t from = end > (off_t)sizeof(tail) - 1 ? end - (off_t)sizeof(tail) + 1 : 0;
    ssize_t n = fd >= 0 ? pread(fd, tail, sizeof(tail) - 1, from) : 0;
    char *line;

    while (n > 0 && (tail[n - 1] == '\n' || tail[n - 1] == ' ')) {
        n--;
    }
    tail[n > 0 ? n : 0] = '\0';
    line = strrchr(tail, '\n');
    (void)snprintf(out, size, "%s", line != NULL ? line + 1 : tail);
}

static int await_ready(const struct launch *launch, pid_t pid, int notify_fd, struct err *err)
{
    CLEANUP_CLOSE int process = pidfd_open(pid, 0);
    struct pollfd fds[] = {{.fd = notify_fd, .events = POLLIN}, {.fd = process, .events = POLLIN}};
    char message[64] = "", words[300];

    while (poll(fds, ARRAY_LEN(fds), READY_MS) < 0 && errno == EINTR) {
    }
    if (fds[0].revents != 0 && recv(notify_fd, message, sizeof(message) - 1, 0) > 0 &&
        strncmp(message, "READY=1", 7) == 0) {
        return 1;
    }
    if (fds[1].revents == 0) {
        (void)kill(pid, SIGTERM);
    }
    (void)waitpid(pid, NULL, 0);
    read_last_words(launch->log, words, sizeof(words));
    return err_set(err, -ENOTCONN, "the daemon could not be started: %s",
                   words[0] != '\0' ? words : launch->log);
}

static int start(struct launch *launch, struct err *err)
{
    CLEANUP_CLOSE int notify_fd = open_notify(launch->notify, err);
    CLEANUP_CLOSE int console_fd = listen_console();
    char **environment;
    pid_t pid;

    if (notify_fd < 0) {
        return notify_fd;
    }
    launch->console_fd = console_fd;
    (void)snprintf(launch->notify_variable, sizeof(launch->notify_variable), "NOTIFY_SOCKET=%s",
                   launch->notify);
    (void)snprintf(launch->pid_variable, sizeof(launch->pid_variable), "LISTEN_PID=%0*d",
                   PID_DIGITS, 0);
    environment = extend_environment(launch);
    if (environment == NULL) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    pid = fork();
    if (pid == 0) {
        become_daemon(launch, environment);
    }
    free(environment);
    if (pid < 0) {
        return err_set_errno(err, -errno, "the daemon could not be started");
    }
    return await_ready(launch, pid, notify_fd, err);
}

/* Only one starts it; the others find it there. */
static int lock_start(const char *socket_path, int *ret_fd, struct err *err)
{
    char path[PATH_MAX];
    char *slash;
    int rc = path_format(path, err, "%s", socket_path);
    CLEANUP_CLOSE int fd = -1;

    slash = strrchr(path, '/');
    if (rc == 0 && slash != NULL) {
        *slash = '\0';
        rc = path_make_private(path, err);
    }
    rc = rc < 0 ? rc : path_format(path, err, "%s.lock", socket_path);
    if (rc < 0) {
        return rc;
    }
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 || flock(fd, LOCK_EX) != 0) {
        return err_set_errno(err, -errno, "%s cannot be locked", path);
    }
    *ret_fd = steal_fd(&fd);
    return 0;
}

static int open_log(struct launch *launch, struct err *err)
{
    char dir[PATH_MAX];
    int rc = path_find_home(dir, "XDG_DATA_HOME", ".local/share", "/daemon", err);

    rc = rc < 0 ? rc : path_make_dirs(dir, err);
    rc = rc < 0 ? rc : path_format(launch->log, err, "%s/corbeld.log", dir);
    if (rc < 0) {
        return rc;
    }
    launch->log_fd =
        open(launch->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    return launch->log_fd < 0 ? err_set_errno(err, -errno, "%s cannot be written", launch->log) : 0;
}

int start_daemon(const char *socket_path, const char *program, struct err *err)
{
    struct launch launch = {.log_fd = -1};
    CLEANUP_CLOSE int lock = -1;
    int rc = program != NULL ? path_format(launch.program, err, "%s", program)
                             : path_find_beside(launch.program, "corbeld", err);

    if (rc == 0 && access(launch.program, X_OK) != 0) {
        rc = err_set(err, -ENXIO, "corbeld is not beside this program; build it: make");
    }
    rc = rc < 0 ? rc : lock_start(socket_path, &lock, err);
    if (rc < 0 || start_is_listening(socket_path)) {
        return rc;
    }
    rc = open_log(&launch, err);
    rc = rc < 0 ? rc : start(&launch, err);
    if (launch.log_fd >= 0) {
        (void)close(launch.log_fd);
    }
    return rc;
}
