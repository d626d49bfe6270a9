/*
 * corbel doctor: what this host has and lacks, each lack with the command that
 * mends it. The checks are a table; required ones decide the exit status.
 */
#include "base/io.h"
#include "cgroup/cgroup.h"
#include "cli/cli.h"
#include "cli/paths.h"
#include "client/client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <netinet/in.h>
#include <pwd.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define WANTED_FREE_BYTES (3ull << 30) /* the Debian image, its packages and one instance */

struct check {
    const char *name;
    const char *purpose;
    const char *mend; /* the exact command */
    bool is_required;
    bool (*is_fine)(const struct cli *cli, const char *argument);
    const char *argument;
};

/* Looks through PATH and the system directories, which a user's PATH may lack. */
static bool has_program(const struct cli *cli, const char *name)
{
    const char *path = getenv("PATH"); // NOLINT(concurrency-mt-unsafe)
    char list[4096];
    char *save = NULL;

    (void)cli;
    (void)snprintf(list, sizeof(list), "%s:/usr/sbin:/sbin", path != NULL ? path : "/usr/bin:/bin");
    for (char *dir = strtok_r(list, ":", &save); dir != NULL; dir = strtok_r(NULL, ":", &save)) {
        char candidate[PATH_MAX];
        struct err ignored;

        if (path_format(candidate, &ignored, "%s/%s", dir, name) == 0 &&
            access(candidate, X_OK) == 0) {
            return true;
        }
    }
    return false;
}

static bool has_file(const struct cli *cli, const char *path)
{
    (void)cli;
    return access(path, R_OK) == 0;
}

static bool has_monitor(const struct cli *cli, const char *argument)
{
    (void)argument;
    return cli->vmm[0] != '\0';
}

static bool has_builders(const struct cli *cli, const char *argument)
{
    (void)argument;
    return cli->builders[0] != '\0' || cli->bundle != NULL;
}

static bool has_kvm(const struct cli *cli, const char *argument)
{
    (void)cli;
    (void)argument;
    return access("/dev/kvm", R_OK | W_OK) == 0;
}

static bool has_user_namespaces(void)
{
    pid_t child = fork();
    int status = 1;

    if (child == 0) {
        _exit(unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0 ? 0 : 1);
    }
    return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}

/* Present, whoever may use it: without the hardware there is nothing to mend. */
static bool has_kvm_device(const struct cli *cli, const char *argument)
{
    (void)cli;
    (void)argument;
    return access("/dev/kvm", F_OK) == 0;
}

static bool can_use_kvm(const struct cli *cli, const char *argument)
{
    return !has_kvm_device(cli, argument) || has_kvm(cli, argument);
}

/* The daemon that verbs would talk to answers; where none runs, one can be started. */
static bool can_reach_daemon(const struct cli *cli, const char *argument)
{
    const struct client_config config = {.host = cli->host, .token = cli->token};
    struct client *client = NULL;
    struct err err;
    int rc = client_open(&config, &client, &err);

    (void)argument;
    rc = rc < 0 ? rc : client_call(client, "GET", "/v1/session", NULL, NULL, &err);
    client_close(client);
    return rc == 0 || (cli->host[0] == '\0' && rc == -ENOTCONN && access(cli->daemon, X_OK) == 0);
}

/* The daemon that runs puts machines on a bridge of its host, where its administrator allows one. */
static bool has_bridge(const struct cli *cli, const char *argument)
{
    const struct client_config config = {.host = cli->host, .token = cli->token};
    struct client *client = NULL;
    json_t *host = NULL;
    const json_t *bridges;
    struct err ignored;
    bool is_fine = false;

    (void)argument;
    if (client_open(&config, &client, &ignored) == 0 &&
        client_call(client, "GET", "/v1/host", NULL, &host, &ignored) == 0) {
        bridges = json_object_get(host, "bridges");
        for (size_t i = 0; i < json_array_size(bridges); i++) {
            is_fine |= json_is_true(json_object_get(json_array_get(bridges, i), "ready"));
        }
    }
    json_decref(host);
    client_close(client);
    return is_fine;
}

/* The loop's asynchronous reads and writes; a filter of a container's may forbid them. */
static bool has_io_uring(const struct cli *cli, const char *argument)
{
    char parameters[120] = {0};
    long fd = syscall(SYS_io_uring_setup, 1, parameters);

    (void)cli;
    (void)argument;
    if (fd >= 0) {
        (void)close((int)fd);
    }
    return fd >= 0;
}

static bool has_userns(const struct cli *cli, const char *argument)
{
    (void)cli;
    (void)argument;
    return has_user_namespaces();
}

/* A port of 127.0.0.1 that nobody else has, or that of the daemon that runs. */
static bool has_console_port(const struct cli *cli, const char *argument)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)strtoul(argument, NULL, 10)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CLEANUP_CLOSE int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const struct client_config config = {.host = cli->host};
    struct client *client = NULL;
    struct err ignored;
    int on = 1;

    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (fd >= 0 && bind(fd, (const struct sockaddr *)&address, sizeof(address)) == 0) {
        return true;
    }
    if (client_open(&config, &client, &ignored) < 0) {
        return false;
    }
    client_close(client);
    return true;
}

/* Where this user may make control groups for CPU time and memory. */
static bool has_groups(const struct cli *cli, const char *argument)
{
    const struct cgroup_config config = {.name = "corbel-doctor"};
    struct cgroup *groups = NULL;
    struct err ignored;
    bool is_fine;

    (void)cli;
    (void)argument;
    if (cgroup_open(&config, &ignored, &groups) < 0) {
        return false;
    }
    is_fine = cgroup_lack(groups, CGROUP_CPU) == NULL && cgroup_lack(groups, CGROUP_MEMORY) == NULL;
    cgroup_close(groups);
    return is_fine;
}

/* Memory that is writable through one mapping and executable through another. */
static bool has_exec_memfd(const struct cli *cli, const char *argument)
{
    CLEANUP_CLOSE int fd = memfd_create("corbel-doctor", MFD_CLOEXEC);
    void *p;

    (void)cli;
    (void)argument;
    if (fd < 0 || ftruncate(fd, 4096) != 0) {
        return false;
    }
    p = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        return false;
    }
    (void)munmap(p, 4096);
    return true;
}

/* Whether /etc/subuid gives this user ids for a namespace of its own. */
static bool has_subordinate_ids(void)
{
    CLEANUP_FREE void *data = NULL;
    char entry[80];
    size_t len;
    struct passwd user;
    struct passwd *found = NULL;
    char buf[4096];

    if (getpwuid_r(geteuid(), &user, buf, sizeof(buf), &found) != 0 || found == NULL ||
        io_read_file("/etc/subuid", 1u << 20, &data, &len) < 0) {
        return false;
    }
    (void)snprintf(entry, sizeof(entry), "\n%s:", user.pw_name);
    return (len >= strlen(entry) && strncmp(data, entry + 1, strlen(entry) - 1) == 0) ||
           memmem(data, len, entry, strlen(entry)) != NULL;
}

/* One way is enough: root, user namespaces with mapped ids, or fakechroot. */
static bool can_install(const struct cli *cli, const char *argument)
{
    (void)argument;
    if (geteuid() == 0) {
        return true;
    }
    if (has_program(cli, "newuidmap") && has_subordinate_ids() && has_user_namespaces()) {
        return true;
    }
    return has_program(cli, "fakechroot") && has_program(cli, "fakeroot");
}

/* The nearest directory that is there already tells how much room there is. */
static bool has_room(const struct cli *cli, const char *argument)
{
    char path[PATH_MAX];
    struct statvfs vfs;
    struct err ignored;

    (void)argument;
    if (path_format(path, &ignored, "%s", cli->images) < 0) {
        return false;
    }
    while (statvfs(path, &vfs) != 0) {
        char *slash = strrchr(path, '/');

        if (slash == NULL || slash == path) {
            return false;
        }
        *slash = '\0';
    }
    return (uint64_t)vfs.f_bavail * vfs.f_frsize >= WANTED_FREE_BYTES;
}

static bool can_write_runtime(const struct cli *cli, const char *argument)
{
    struct err ignored;

    (void)argument;
    return path_make_private(cli->runtime, &ignored) == 0;
}

#define APT(package) "sudo apt-get install " package

static const struct check checks[] = {
    {"corbel-vmm", "runs machines", "make", true, has_monitor, NULL},
    {"runtime directory", "sockets of running machines", "export XDG_RUNTIME_DIR=$(mktemp -d)",
     true, can_write_runtime, NULL},
    {"executable memory", "the software engine's code cache", "sudo sysctl vm.memfd_noexec=0", true,
     has_exec_memfd, NULL},
    {"ssh", "corbel ssh", APT("openssh-client"), true, has_program, "ssh"},
    {"daemon", "keeps machines; verbs start it where it is missing",
     "make; or, with CORBEL_HOST set: corbel --host \"$CORBEL_HOST\" list tells why", true,
     can_reach_daemon, NULL},
    {"/dev/kvm", "hardware speed; the software engine needs it not",
     "sudo modprobe kvm_intel || sudo modprobe kvm_amd", false, has_kvm_device, NULL},
    {"permission for KVM", "hardware speed", "sudo usermod -aG kvm \"$USER\"; then log in anew",
     false, can_use_kvm, NULL},
    {"io_uring", "faster disks; threads do it otherwise", "sudo sysctl kernel.io_uring_disabled=0",
     false, has_io_uring, NULL},
    {"user namespaces", "a second lock around guest code and image readers",
     "sudo sysctl kernel.unprivileged_userns_clone=1", false, has_userns, NULL},
    {"port 8480", "the web console's usual port; another is taken otherwise",
     "ss -ltnp 'sport = :8480' shows who has it", false, has_console_port, "8480"},
    {"bridge", "corbel run --network bridge:NAME; user mode needs none",
     "sudo ip link add br0 type bridge && sudo ip link set br0 up; then corbeld --bridge br0 with "
     "CAP_NET_ADMIN, as corbeld(8) says under BRIDGES",
     false, has_bridge, NULL},
    {"qemu-img", "corbel image import and export of other products' disks", APT("qemu-utils"),
     false, has_program, "qemu-img"},
    {"debugfs", "corbel image build debian", APT("e2fsprogs"), false, has_program, "debugfs"},
    {"control groups", "CPU weights and memory limits; caps and pinning do without",
     "sudo mkdir -p /etc/systemd/system/user@.service.d && printf '[Service]\\nDelegate=cpu cpuset "
     "memory\\n' | sudo tee /etc/systemd/system/user@.service.d/delegate.conf && sudo systemctl "
     "daemon-reload; then log in anew and start corbeld with systemd-run --user",
     false, has_groups, NULL},
    {"image builders", "corbel image build", "make install", false, has_builders, NULL},
    {"apt-get", "corbel image build", "use a Debian or Ubuntu host to build images", false,
     has_program, "apt-get"},
    {"Debian keyring", "verifies packages for images", APT("debian-archive-keyring"), false,
     has_file, "/usr/share/keyrings/debian-archive-keyring.gpg"},
    {"cpio", "corbel image build busybox", APT("cpio"), false, has_program, "cpio"},
    {"mmdebstrap", "corbel image build debian", APT("mmdebstrap"), false, has_program,
     "mmdebstrap"},
    {"sfdisk", "corbel image build debian", APT("fdisk"), false, has_program, "sfdisk"},
    {"mtools", "corbel image build debian", APT("mtools"), false, has_program, "mcopy"},
    {"mke2fs", "corbel image build debian", APT("e2fsprogs"), false, has_program, "mke2fs"},
    {"ssh-keygen", "corbel image build debian", APT("openssh-client"), false, has_program,
     "ssh-keygen"},
    {"unprivileged install", "corbel image build debian without root", APT("fakechroot fakeroot"),
     false, can_install, NULL},
    {"free disk space", "3 GiB for a Debian image and an instance",
     "corbel image list; corbel image remove NAME", false, has_room, NULL},
};

int verb_doctor(const struct cli *cli, const void *values, const struct args *args, struct err *err)
{
    const struct list_options *options = values;
    json_t *rows = json_array();
    unsigned missing = 0;

    (void)args;
    for (size_t i = 0; i < ARRAY_LEN(checks); i++) {
        const struct check *c = &checks[i];
        bool is_fine = c->is_fine(cli, c->argument);

        missing += !is_fine && c->is_required;
        if (options->json) {
            (void)json_array_append_new(rows,
                                        json_pack("{s:s, s:b, s:b, s:s, s:s}", "name", c->name,
                                                  "ok", is_fine, "required", c->is_required,
                                                  "purpose", c->purpose, "mend", c->mend));
            continue;
        }
        printf("%-9s %-22s %s\n",
               is_fine          ? "ok"
               : c->is_required ? "MISSING"
                                : "absent",
               c->name, c->purpose);
        if (!is_fine) {
            printf("%9s %-22s   mend: %s\n", "", "", c->mend);
        }
    }
    if (options->json) {
        (void)json_dumpf(rows, stdout, JSON_INDENT(2));
        (void)putchar('\n');
    }
    json_decref(rows);
    return missing == 0 ? 0
                        : err_set(err, -ENXIO, "%u required thing%s missing, as marked above",
                                  missing, missing == 1 ? " is" : "s are");
}
