/* Which interface is mounted where, and where this process may make groups. */
#include "cgroup/cgroup_int.h"

#include "base/io.h"
#include "base/path.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_FILE_BYTES (256u << 10)
#define MAX_MOUNTS 32

struct mount {
    const struct cgroup_ops *ops;
    const char *root, *point, *options;
};

struct search {
    const struct cgroup_config *config;
    char *mountinfo, *self; /* texts */
    struct mount mounts[MAX_MOUNTS];
    unsigned mount_count;
};

/* A whole file of /proc, whose length nobody knows before; NULL: unreadable. */
static char *read_all(const char *path)
{
    CLEANUP_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    char *text = fd >= 0 ? malloc(MAX_FILE_BYTES) : NULL;
    ssize_t n = text != NULL ? io_read_full(fd, text, MAX_FILE_BYTES - 1) : -1;

    if (n < 0) {
        free(text);
        return NULL;
    }
    text[n] = '\0';
    return text;
}

/* proc(5): "36 35 98:0 /root /mount/point options [...] - type source options". Cuts the line up. */
static void parse_mount(struct search *search, char *line)
{
    char *save = NULL;
    char *dash = strstr(line, " - ");
    char *words[6] = {NULL};
    const char *type, *options;

    if (dash == NULL || search->mount_count == MAX_MOUNTS) {
        return;
    }
    *dash = '\0';
    for (size_t i = 0; i < ARRAY_LEN(words); i++) {
        words[i] = strtok_r(i == 0 ? line : NULL, " ", &save);
    }
    type = strtok_r(dash + 3, " ", &save);
    (void)strtok_r(NULL, " ", &save); /* the source: any word */
    options = strtok_r(NULL, " ", &save);
    if (words[4] == NULL || type == NULL || options == NULL ||
        (strcmp(type, "cgroup") != 0 && strcmp(type, "cgroup2") != 0)) {
        return;
    }
    search->mounts[search->mount_count++] =
        (struct mount){.ops = type[6] == '2' ? &cgroup_v2_ops : &cgroup_v1_ops,
                       .root = words[3],
                       .point = words[4],
                       .options = options};
}

static void parse_mounts(struct search *search)
{
    char *save = NULL;

    for (char *line = strtok_r(search->mountinfo, "\n", &save); line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        parse_mount(search, line);
    }
}

/* The group that this process is in, from "N:controllers:/path"; version 2 has no controllers. */
static int own_group(const struct search *search, const struct mount *mount, const char *control,
                     char out[PATH_MAX])
{
    const char *line = search->self;

    while (*line != '\0') {
        size_t len = strcspn(line, "\n");
        const char *list = memchr(line, ':', len);
        const char *path =
            list != NULL ? memchr(list + 1, ':', len - (size_t)(list + 1 - line)) : NULL;
        char controls[256];

        if (path != NULL) {
            (void)snprintf(controls, sizeof(controls), "%.*s", (int)(path - list - 1), list + 1);
            if (mount->ops == &cgroup_v2_ops ? controls[0] == '\0'
                                             : cgroup_has_word(controls, control)) {
                return path_format(out, NULL, "%.*s", (int)(len - (size_t)(path + 1 - line)),
                                   path + 1);
            }
        }
        line += len;
        line += *line == '\n';
    }
    return -ENOENT;
}

/* The directory of a group, where the mount shows it. */
static int group_dir(const struct mount *mount, const char *group, char out[PATH_MAX],
                     struct err *err)
{
    size_t len = strcmp(mount->root, "/") == 0 ? 0 : strlen(mount->root);

    if (strstr(group, "..") != NULL || strncmp(group, mount->root, len) != 0 ||
        (group[len] != '/' && group[len] != '\0')) {
        return err_set(err, -ENOENT, "its own control group, %.200s, is not to be seen", group);
    }
    group += len;
    return path_format(out, err, "%s%s", mount->point, strcmp(group, "/") == 0 ? "" : group);
}

static bool may_hand_down(const char *dir)
{
    char path[PATH_MAX];

    return access(dir, W_OK) == 0 &&
           path_format(path, NULL, "%s/cgroup.subtree_control", dir) == 0 &&
           access(path, W_OK) == 0;
}

/*
 * Version 2: groups are made in one that has no processes of its own. That is
 * the highest above this process that it may change: what its service manager,
 * or the host, gave it.
 */
static int climb(const struct mount *mount, char dir[PATH_MAX], struct err *err)
{
    char at[PATH_MAX], own[PATH_MAX];
    size_t floor = strlen(mount->point);
    bool is_found = false;
    int rc = path_format(at, err, "%s", dir);

    rc = rc < 0 ? rc : path_format(own, err, "%s", dir);
    while (rc == 0) {
        char *slash;

        if (may_hand_down(at)) {
            rc = path_format(dir, err, "%s", at);
            is_found = true;
        }
        slash = strlen(at) > floor ? strrchr(at, '/') : NULL;
        if (slash == NULL) {
            break;
        }
        *slash = '\0';
    }
    return rc < 0 || is_found ? rc
                              : err_set(err, -EACCES,
                                        "no control group at or above %.200s may be changed by "
                                        "this user",
                                        own);
}

/* Where our own group is to be. */
static int find_parent(const struct search *search, const struct mount *mount, const char *control,
                       struct hierarchy *hierarchy, struct err *err)
{
    char *out = hierarchy->parent;
    char own[PATH_MAX];
    int rc;

    hierarchy->may_move = false;

    if (search->config->parent != NULL) {
        return path_format(out, err, "%s/%s", mount->point,
                           search->config->parent + strspn(search->config->parent, "/"));
    }
    rc = own_group(search, mount, control, own);
    if (rc < 0) {
        return err_set(err, rc, "this process is in no control group of \"%s\"", control);
    }
    rc = group_dir(mount, own, out, err);
    if (rc < 0 || mount->ops != &cgroup_v2_ops) {
        return rc;
    }
    rc = path_format(own, err, "%s", out);
    rc = rc < 0 ? rc : climb(mount, out, err);
    hierarchy->may_move = rc == 0 && search->config->may_move && strcmp(own, out) == 0;
    return rc;
}

/* The mount that has a control: version 1's own, else version 2, which has what is left. */
static const struct mount *find_mount(const struct search *search, enum cgroup_control control)
{
    const struct mount *found = NULL;

    for (unsigned i = 0; i < search->mount_count; i++) {
        const struct mount *mount = &search->mounts[i];

        if (mount->ops == &cgroup_v1_ops &&
            cgroup_has_word(mount->options, mount->ops->controls[control])) {
            return mount;
        }
        if (mount->ops == &cgroup_v2_ops && found == NULL) {
            found = mount;
        }
    }
    return found;
}

/* The hierarchy's place in the list, where several controls share one. */
static unsigned add_hierarchy(struct cgroup *cgroup, const struct hierarchy *hierarchy)
{
    for (unsigned i = 0; i < cgroup->hierarchy_count; i++) {
        if (strcmp(cgroup->hierarchies[i].dir, hierarchy->dir) == 0) {
            return i;
        }
    }
    cgroup->hierarchies[cgroup->hierarchy_count] = *hierarchy;
    return cgroup->hierarchy_count++;
}

static int find_control(struct cgroup *cgroup, const struct search *search,
                        enum cgroup_control control, struct err *err)
{
    const struct mount *mount = find_mount(search, control);
    struct hierarchy hierarchy;
    const char *name;
    int rc;

    if (mount == NULL) {
        return err_set(err, -ENOENT, "no control groups are mounted");
    }
    name = mount->ops->controls[control];
    hierarchy.ops = mount->ops;
    rc = find_parent(search, mount, name, &hierarchy, err);
    rc = rc < 0 ? rc
                : path_format(hierarchy.dir, err, "%s/%s", hierarchy.parent, search->config->name);
    rc = rc < 0 ? rc : hierarchy.ops->prepare(&hierarchy, name, err);
    if (rc == 0) {
        cgroup->of[control] = (int)add_hierarchy(cgroup, &hierarchy);
    }
    return rc;
}

int cgroup_find(struct cgroup *cgroup, const struct cgroup_config *config, struct err *err)
{
    struct search search = {.config = config};
    bool is_wanted = config->parent == NULL || config->parent[0] != '\0';

    search.mountinfo =
        read_all(config->mountinfo != NULL ? config->mountinfo : "/proc/self/mountinfo");
    search.self = read_all(config->self != NULL ? config->self : "/proc/self/cgroup");
    if (search.mountinfo != NULL) {
        parse_mounts(&search);
    }
    for (unsigned i = 0; i < CGROUP_CONTROL_COUNT; i++) {
        struct err why = {.code = 0};

        cgroup->of[i] = -1;
        if (!is_wanted || search.self == NULL) {
            (void)err_set(&why, -ENOENT,
                          is_wanted ? "this kernel has no control groups"
                                    : "control groups are switched off");
        } else if (find_control(cgroup, &search, i, &why) == -ENOMEM) {
            free(search.mountinfo);
            free(search.self);
            return err_set(err, -ENOMEM, "out of memory");
        }
        (void)snprintf(cgroup->lacks[i], sizeof(cgroup->lacks[i]), "%s", why.text);
    }
    free(search.mountinfo);
    free(search.self);
    return 0;
}
