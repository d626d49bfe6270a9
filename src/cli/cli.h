/*
 * The `corbel` command: what its verbs share.
 *
 * A verb is one row of the table in verbs.c: its name, its options as data
 * and the function that runs it. Help, usage errors and parsing come from the
 * table. One thread throughout.
 *
 * Exit status: 0 done; 1 it failed; 2 the command line is wrong; 3 no such
 * image, instance or other object; 4 refused: it is already there or running, not
 * allowed, or over a quota; 5 something that it needs is missing (`corbel doctor`
 * names it), or no daemon can be reached; 6 disks differ, or one is
 * damaged; 7 space of an image is lost, and nothing else. `ssh` and `exec` pass on the
 * status of the remote command.
 */
#ifndef CORBEL_CLI_CLI_H
#define CORBEL_CLI_CLI_H

#include "base/bundle.h"
#include "base/error.h"
#include "cli/options.h"

#include <limits.h>
#include <stdbool.h>

enum cli_exit {
    CLI_EXIT_OK = 0,
    CLI_EXIT_FAILED = 1,
    CLI_EXIT_USAGE = 2,
    CLI_EXIT_NOT_FOUND = 3,
    CLI_EXIT_REFUSED = 4,
    CLI_EXIT_MISSING = 5,
    CLI_EXIT_DIFFERS = 6,
    CLI_EXIT_LEAKS = 7
};

/* Directories and programs, found once at the start. Nothing is created. */
struct cli {
    char images[PATH_MAX];   /* $XDG_DATA_HOME/corbel/images */
    char cache[PATH_MAX];    /* $XDG_CACHE_HOME/corbel */
    char pools[PATH_MAX];    /* $XDG_DATA_HOME/corbel/pools */
    char config[PATH_MAX];   /* $XDG_CONFIG_HOME/corbel */
    char runtime[PATH_MAX];  /* $XDG_RUNTIME_DIR/corbel, or /tmp/corbel-UID */
    char vmm[PATH_MAX];      /* $CORBEL_VMM, or corbel-vmm beside this program; empty when absent */
    char daemon[PATH_MAX];   /* corbeld beside this program; may be absent */
    char builders[PATH_MAX]; /* the image builders' directory; empty when absent */
    const struct bundle *bundle; /* what the single file has inside: its programs are itself, its
                                    builders are there; NULL otherwise */

    /* Options before the verb, else the environment; empty: not given. */
    const char *host;    /* --host, $CORBEL_HOST */
    const char *project; /* --project, $CORBEL_PROJECT */
    const char *token;   /* $CORBEL_TOKEN: words of a command line are seen by others */
    bool never_start;    /* a daemon */
};

/*
 * Runs one verb: 0, a positive exit status to pass on, or a negative errno
 * with the sentence in err. values points to the verb's options.
 */
typedef int (*verb_fn)(const struct cli *cli, const void *values, const struct args *args,
                       struct err *err);

struct verb {
    const char *group; /* "image" for `corbel image list`; NULL for most */
    const char *name;
    const char *arguments; /* as help shows them: "[NAME] [-- COMMAND...]" */
    const char *summary;
    const struct option_spec *options; /* ends with a NULL name; NULL for none */
    unsigned min_args;
    unsigned max_args;
    bool takes_rest; /* whether words after "--" are allowed */
    verb_fn run;
    const void *data; /* for run: args->data */
};

/* The index-th verb of all, in the order of help; NULL after the last. */
const struct verb *verb_at(size_t index);
/* The one that argv names, or NULL; *ret_words is how many words its name took. */
const struct verb *verb_find(char **argv, int *ret_words);

/* The size that every verb's options fit in. */
#define VERB_VALUES_SIZE 1024

/* The whole program: returns its exit status. */
int cli_main(int argc, char **argv, const struct bundle *bundle);

int verb_image_build(const struct cli *cli, const void *values, const struct args *args,
                     struct err *err) MUST_CHECK;
int verb_image_list(const struct cli *cli, const void *values, const struct args *args,
                    struct err *err) MUST_CHECK;
int verb_image_show(const struct cli *cli, const void *values, const struct args *args,
                    struct err *err) MUST_CHECK;
int verb_image_remove(const struct cli *cli, const void *values, const struct args *args,
                      struct err *err) MUST_CHECK;
int verb_image_fetch(const struct cli *cli, const void *values, const struct args *args,
                     struct err *err) MUST_CHECK;
int verb_image_import(const struct cli *cli, const void *values, const struct args *args,
                      struct err *err) MUST_CHECK;
int verb_image_export(const struct cli *cli, const void *values, const struct args *args,
                      struct err *err) MUST_CHECK;
int verb_image_catalogue(const struct cli *cli, const void *values, const struct args *args,
                         struct err *err) MUST_CHECK;
int verb_image_prune(const struct cli *cli, const void *values, const struct args *args,
                     struct err *err) MUST_CHECK;
int verb_image_create(const struct cli *cli, const void *values, const struct args *args,
                      struct err *err) MUST_CHECK;
int verb_image_clone(const struct cli *cli, const void *values, const struct args *args,
                     struct err *err) MUST_CHECK;
int verb_image_info(const struct cli *cli, const void *values, const struct args *args,
                    struct err *err) MUST_CHECK;
int verb_image_check(const struct cli *cli, const void *values, const struct args *args,
                     struct err *err) MUST_CHECK;
int verb_image_compare(const struct cli *cli, const void *values, const struct args *args,
                       struct err *err) MUST_CHECK;
int verb_image_convert(const struct cli *cli, const void *values, const struct args *args,
                       struct err *err) MUST_CHECK;
int verb_image_map(const struct cli *cli, const void *values, const struct args *args,
                   struct err *err) MUST_CHECK;
int verb_image_resize(const struct cli *cli, const void *values, const struct args *args,
                      struct err *err) MUST_CHECK;
int verb_image_snapshot(const struct cli *cli, const void *values, const struct args *args,
                        struct err *err) MUST_CHECK;
int verb_nbd_serve(const struct cli *cli, const void *values, const struct args *args,
                   struct err *err) MUST_CHECK;
int verb_pool_create(const struct cli *cli, const void *values, const struct args *args,
                     struct err *err) MUST_CHECK;
int verb_pool_list(const struct cli *cli, const void *values, const struct args *args,
                   struct err *err) MUST_CHECK;
int verb_pool_remove(const struct cli *cli, const void *values, const struct args *args,
                     struct err *err) MUST_CHECK;
int verb_volume_create(const struct cli *cli, const void *values, const struct args *args,
                       struct err *err) MUST_CHECK;
int verb_volume_list(const struct cli *cli, const void *values, const struct args *args,
                     struct err *err) MUST_CHECK;
int verb_volume_show(const struct cli *cli, const void *values, const struct args *args,
                     struct err *err) MUST_CHECK;
int verb_volume_resize(const struct cli *cli, const void *values, const struct args *args,
                       struct err *err) MUST_CHECK;
int verb_volume_clone(const struct cli *cli, const void *values, const struct args *args,
                      struct err *err) MUST_CHECK;
int verb_volume_snapshot(const struct cli *cli, const void *values, const struct args *args,
                         struct err *err) MUST_CHECK;
int verb_volume_copy_to(const struct cli *cli, const void *values, const struct args *args,
                        struct err *err) MUST_CHECK;
int verb_volume_copy_from(const struct cli *cli, const void *values, const struct args *args,
                          struct err *err) MUST_CHECK;
int verb_volume_delete(const struct cli *cli, const void *values, const struct args *args,
                       struct err *err) MUST_CHECK;
int verb_doctor(const struct cli *cli, const void *values, const struct args *args, struct err *err)
    MUST_CHECK;

/* The options of each verb, as the table fills them in. */
struct build_options {
    const char *name;
    const char *size;
    const char *packages;
    const char *mode;
    bool no_cache;
};

struct get_options {
    const char *name;
    const char *checksum;
    const char *format;
    const char *compression;
    const char *max_size;
    bool insecure_no_checksum;
    bool replace;
};

struct disk_options {
    const char *format, *other_format;
    const char *backing, *backing_format, *backing_dir;
    const char *cluster_size, *compression, *preallocation, *repair;
    unsigned refcount_bits;
    bool extended_l2, lazy_refcounts;
    bool compress, replace, shrink, json;
};

struct nbd_serve_options {
    const char *format, *backing_dir, *socket, *name;
    bool read_only;
};

struct pool_options {
    const char *capacity;
    unsigned threshold;
};

struct volume_options {
    const char *pool, *snapshot, *image, *format;
    bool shrink, json, replace;
};

struct prune_options {
    unsigned days;
};

struct list_options {
    bool json;
};

#endif
