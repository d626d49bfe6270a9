#include "cgroup/cgroup_int.h"

#include "base/io.h"
#include "base/path.h"
#include "base/process.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_DESCENDANTS 256
#define ENTER_ROUNDS 20

int cgroup_write(const char *dir, const char *file, const char *text, struct err *err)
{
    char path[PATH_MAX];
    CLEANUP_CLOSE int fd = -1;
    int rc = path_format(path, err, "%s/%s", dir, file);

    if (rc < 0) {
        return rc;
    }
    fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) {
        return err_set_errno(err, -errno, "%s cannot be opened", path);
    }
    rc = io_write_full(fd, text, strlen(text));
    return rc < 0 ? err_set_errno(err, rc, "%s does not take \"%.100s\"", path, text) : 0;
}

int cgroup_read(const char *dir, const char *file, char *out, size_t out_size, struct err *err)
{
    char path[PATH_MAX];
    CLEANUP_CLOSE int fd = -1;
    ssize_t n;
    int rc = path_format(path, err, "%s/%s", dir, file);

    if (rc < 0) {
        return rc;
    }
    fd = open(path, O_RDONLY | O_CLOEXEC);
    n = fd < 0 ? -errno : io_read_full(fd, out, out_size - 1);
    if (n < 0) {
        return err_set_errno(err, (int)n, "%s cannot be read", path);
    }
    n -= n > 0 && out[n - 1] == '\n';
    out[n] = '\0';
    return 0;
}

int cgroup_mkdir(const char *dir, struct err *err)
{
    return mkdir(dir, 0755) == 0 || errno == EEXIST
               ? 0
               : err_set_errno(err, -errno, "the control group %s cannot be made", dir);
}

bool cgroup_has_word(const char *list, const char *word)
{
    size_t len = strlen(word);

    while (*list != '\0') {
        size_t n = strcspn(list, " ,\n");

        if (n == len && strncmp(list, word, len) == 0) {
            return true;
        }
        list += n;
        list += *list != '\0';
    }
    return false;
}

int cgroup_open(const struct cgroup_config *config, struct err *err, struct cgroup **ret_cgroup)
{
    struct cgroup *cgroup = calloc(1, sizeof(*cgroup));
    int rc =
        cgroup == NULL ? err_set(err, -ENOMEM, "out of memory") : cgroup_find(cgroup, config, err);

    if (rc < 0) {
        free(cgroup);
        return rc;
    }
    *ret_cgroup = cgroup;
    return 0;
}

void cgroup_close(struct cgroup *cgroup)
{
    for (unsigned i = 0; cgroup != NULL && i < cgroup->hierarchy_count; i++) {
        (void)rmdir(cgroup->hierarchies[i].dir); /* refused while somebody is in it */
    }
    free(cgroup);
}

const char *cgroup_lack(const struct cgroup *cgroup, enum cgroup_control control)
{
    return cgroup->of[control] >= 0 ? NULL : cgroup->lacks[control];
}

const char *cgroup_means(const struct cgroup *cgroup, enum cgroup_control control)
{
    return cgroup->of[control] >= 0   ? cgroup->hierarchies[cgroup->of[control]].ops->name
           : control == CGROUP_CPUSET ? "affinity"
                                      : "none";
}

/* Whether these limits say anything about a control. */
static bool is_limited(const struct cgroup_limits *limits, enum cgroup_control control)
{
    switch (control) {
    case CGROUP_CPUSET:
        return limits->cpus[0] != '\0';
    case CGROUP_MEMORY:
        return limits->memory_bytes != 0;
    case CGROUP_CPU:
    case CGROUP_CONTROL_COUNT:
        break;
    }
    return true;
}

/* Whether a member with these limits is in that hierarchy. */
static bool is_in(const struct cgroup *cgroup, unsigned index, const struct cgroup_limits *limits)
{
    for (unsigned i = 0; i < CGROUP_CONTROL_COUNT; i++) {
        if (cgroup->of[i] == (int)index &&
            (cgroup->hierarchies[index].ops->makes_all || is_limited(limits, i))) {
            return true;
        }
    }
    return false;
}

static int member_path(const struct cgroup *cgroup, unsigned index, const char *id,
                       char out[PATH_MAX], struct err *err)
{
    return path_format(out, err, "%s/%s", cgroup->hierarchies[index].dir, id);
}

void cgroup_paths(const struct cgroup *cgroup, const char *id, const struct cgroup_limits *limits,
                  char out[CGROUP_PATHS_BYTES])
{
    size_t used = 0;

    out[0] = '\0';
    for (unsigned i = 0; i < cgroup->hierarchy_count; i++) {
        int n = is_in(cgroup, i, limits) ? snprintf(out + used, CGROUP_PATHS_BYTES - used,
                                                    "%s/%s\n", cgroup->hierarchies[i].dir, id)
                                         : 0;

        if (n < 0 || used + (size_t)n >= CGROUP_PATHS_BYTES) {
            out[used] = '\0';
            return;
        }
        used += (size_t)n;
    }
}

/* Sets what it is in already, and makes what these limits need. */
static int set_one(const struct cgroup *cgroup, unsigned index, const char *id,
                   const struct cgroup_limits *limits, struct err *err)
{
    const struct hierarchy *hierarchy = &cgroup->hierarchies[index];
    char dir[PATH_MAX];
    int rc = member_path(cgroup, index, id, dir, err);

    if (rc < 0 || (!is_in(cgroup, index, limits) && !path_exists(dir))) {
        return rc;
    }
    rc = cgroup_mkdir(hierarchy->dir, err);
    rc = rc < 0 ? rc : cgroup_mkdir(dir, err);
    rc = rc < 0 ? rc : hierarchy->ops->prime(hierarchy, dir, err);
    for (unsigned i = 0; rc == 0 && i < CGROUP_CONTROL_COUNT; i++) {
        if (cgroup->of[i] == (int)index) {
            rc = hierarchy->ops->set[i](dir, limits, err);
        }
    }
    return rc;
}

int cgroup_set(const struct cgroup *cgroup, const char *id, const struct cgroup_limits *limits,
               struct err *err)
{
    int rc = 0;

    for (unsigned i = 0; rc == 0 && i < cgroup->hierarchy_count; i++) {
        rc = set_one(cgroup, i, id, limits, err);
    }
    return rc;
}

/* ---- entering ---- */

static int enter_one(const struct cgroup *cgroup, const char *id,
                     const struct cgroup_limits *limits, pid_t pid, struct err *err)
{
    char text[16], dir[PATH_MAX];
    int rc = 0;

    (void)snprintf(text, sizeof(text), "%d", pid);
    for (unsigned i = 0; rc == 0 && i < cgroup->hierarchy_count; i++) {
        rc = member_path(cgroup, i, id, dir, err);
        if (rc == 0 && path_exists(dir)) {
            rc = cgroup_write(dir, "cgroup.procs", text, err);
        }
    }
    return rc == 0 && cgroup->of[CGROUP_CPUSET] < 0 ? cgroup_set_affinity(pid, limits->cpus, err)
                                                    : rc;
}

int cgroup_enter(const struct cgroup *cgroup, const char *id, const struct cgroup_limits *limits,
                 pid_t pid, struct err *err)
{
    pid_t pids[MAX_DESCENDANTS + 1] = {pid};
    unsigned entered = 0, count = 1;

    /* Children of one that is in it are in it: only those from before are to be found. */
    for (unsigned round = 0; round < ENTER_ROUNDS && entered < count; round++) {
        for (; entered < count; entered++) {
            int rc = enter_one(cgroup, id, limits, pids[entered], err);

            if (rc < 0 && (rc != -ESRCH || entered == 0)) {
                return rc;
            }
        }
        count = 1 + process_descendants(pid, pids + 1, MAX_DESCENDANTS);
    }
    return 0;
}

/* ---- leaving ---- */

static int remove_dir(const struct cgroup_ops *ops, const char *dir, struct err *err)
{
    if (rmdir(dir) == 0 || errno == ENOENT) {
        return 0;
    }
    if (errno == EBUSY) {
        ops->kill(dir);
        if (rmdir(dir) == 0 || errno == ENOENT) {
            return 0;
        }
    }
    return err_set_errno(err, -errno, "the control group %s cannot be removed", dir);
}

/* One of an earlier life: only where the kernel has groups, and only the member's. */
static int remove_path(const char *dir, const char *id, struct err *err)
{
    char file[PATH_MAX];
    const char *leaf = strrchr(dir, '/');
    int rc = path_format(file, err, "%s/cgroup.kill", dir);

    if (leaf == NULL || strcmp(leaf + 1, id) != 0) {
        return 0;
    }
    return rc < 0 ? rc : remove_dir(path_exists(file) ? &cgroup_v2_ops : &cgroup_v1_ops, dir, err);
}

int cgroup_remove(const struct cgroup *cgroup, const char *id, const char *paths, struct err *err)
{
    char dir[PATH_MAX];
    int rc = 0;

    for (unsigned i = 0; rc == 0 && i < cgroup->hierarchy_count; i++) {
        rc = member_path(cgroup, i, id, dir, err);
        rc = rc < 0 ? rc : remove_dir(cgroup->hierarchies[i].ops, dir, err);
    }
    while (rc == 0 && paths != NULL && *paths != '\0') {
        size_t n = strcspn(paths, "\n");

        rc = path_format(dir, err, "%.*s", (int)n, paths);
        rc = rc < 0 ? rc : remove_path(dir, id, err);
        paths += n;
        paths += *paths == '\n';
    }
    return rc;
}

void cgroup_each(const struct cgroup *cgroup, void (*fn)(void *opaque, const char *id),
                 void *opaque)
{
    for (unsigned i = 0; i < cgroup->hierarchy_count; i++) {
        DIR *dir = opendir(cgroup->hierarchies[i].dir);
        const struct dirent *entry;

        while (dir != NULL && (entry = readdir(dir)) != NULL) {
            if (entry->d_type == DT_DIR && entry->d_name[0] != '.') {
                fn(opaque, entry->d_name);
            }
        }
        if (dir != NULL) {
            (void)closedir(dir);
        }
    }
}
