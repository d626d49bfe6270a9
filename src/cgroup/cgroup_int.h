/* Between the files of cgroup. The contract is cgroup.h. */
#ifndef CORBEL_CGROUP_CGROUP_INT_H
#define CORBEL_CGROUP_CGROUP_INT_H

#include "cgroup/cgroup.h"

#include <limits.h>

#define MAX_HIERARCHIES CGROUP_CONTROL_COUNT

/* Where a process goes that was in the parent of our own group. */
#define CGROUP_ASIDE "daemon"

struct hierarchy;

/* One of the kernel's interfaces. */
struct cgroup_ops {
    const char *name;
    const char *controls[CGROUP_CONTROL_COUNT]; /* the kernel's names; NULL: it has none such */
    bool makes_all; /* a member has all controls from the beginning; else those it needs */
    /* Looks whether our own group can have members with that control, and readies it. */
    int (*prepare)(const struct hierarchy *hierarchy, const char *control, struct err *err);
    /* What a new member needs before a process can enter it. */
    int (*prime)(const struct hierarchy *hierarchy, const char *dir, struct err *err);
    int (*set[CGROUP_CONTROL_COUNT])(const char *dir, const struct cgroup_limits *limits,
                                     struct err *err);
    /* Ends all processes in it. */
    void (*kill)(const char *dir);
};

extern const struct cgroup_ops cgroup_v1_ops, cgroup_v2_ops;

struct hierarchy {
    const struct cgroup_ops *ops;
    char parent[PATH_MAX]; /* directory that our own group is in */
    char dir[PATH_MAX];    /* our own group */
    bool may_move;         /* the parent is this process's, which may leave it */
};

struct cgroup {
    struct hierarchy hierarchies[MAX_HIERARCHIES];
    unsigned hierarchy_count;
    int of[CGROUP_CONTROL_COUNT]; /* index of hierarchy; -1: lacks */
    char lacks[CGROUP_CONTROL_COUNT][sizeof(((struct err *)0)->text)];
};

/* cgroup_find.c: fills in all of a zeroed struct. */
int cgroup_find(struct cgroup *cgroup, const struct cgroup_config *config, struct err *err)
    MUST_CHECK;

/* cgroup.c: one control file. */
int cgroup_write(const char *dir, const char *file, const char *text, struct err *err) MUST_CHECK;
/* Without the newline at its end. */
int cgroup_read(const char *dir, const char *file, char *out, size_t out_size, struct err *err)
    MUST_CHECK;
int cgroup_mkdir(const char *dir, struct err *err) MUST_CHECK;
/* Whether a space- or comma-separated list has a word. */
bool cgroup_has_word(const char *list, const char *word);

/* cgroup_none.c: the affinity of all threads of one process. */
int cgroup_set_affinity(pid_t pid, const char *cpus, struct err *err) MUST_CHECK;

#endif
