/* corbel pool and corbel pool-volume. */
#include "base/io.h"
#include "block/block_int.h"
#include "cli/cli.h"
#include "cli/disk_state.h"
#include "cli/image.h"
#include "cli/paths.h"
#include "cli/size.h"
#include "storage/disk.h"
#include "storage/pool.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define POOL_JSON_MAX_BYTES 65536
#define DEFAULT_POOL "default"

/* A pool's configuration and the texts it points to. */
struct pool_entry {
    char name[POOL_NAME_BYTES];
    char kind[16];
    char path[PATH_MAX];
    struct pool_config config;
};

static int print_json(json_t *object)
{
    (void)json_dumpf(object, stdout, JSON_INDENT(2));
    (void)putchar('\n');
    json_decref(object);
    return 0;
}

static int load_entry(const struct cli *cli, const char *name, struct pool_entry *entry,
                      struct err *err)
{
    CLEANUP_FREE void *data = NULL;
    char file[PATH_MAX];
    json_t *object;
    size_t len;
    int rc = path_format(file, err, "%s/%s.json", cli->pools, name);

    rc = rc < 0 ? rc : io_read_file(file, POOL_JSON_MAX_BYTES, &data, &len);
    if (rc == -ENOENT && strcmp(name, DEFAULT_POOL) == 0) {
        (void)snprintf(entry->kind, sizeof(entry->kind), "dir");
        return path_format(entry->path, err, "%s/../volumes", cli->pools);
    }
    if (rc == -ENOENT) {
        return err_set(err, rc, "there is no pool \"%s\"; corbel pool list shows them", name);
    }
    if (rc < 0) {
        return err_set_errno(err, rc, "%s cannot be read", file);
    }
    object = json_loadb(data, len, 0, NULL);
    (void)snprintf(entry->kind, sizeof(entry->kind), "%s",
                   json_string_value(json_object_get(object, "kind")) != NULL
                       ? json_string_value(json_object_get(object, "kind"))
                       : "");
    rc = json_string_value(json_object_get(object, "path")) != NULL
             ? path_format(entry->path, err, "%s",
                           json_string_value(json_object_get(object, "path")))
             : err_set(err, -EBADMSG, "%s is damaged", file);
    entry->config.capacity_bytes =
        (uint64_t)json_integer_value(json_object_get(object, "capacity_bytes"));
    entry->config.threshold_percent =
        (unsigned)json_integer_value(json_object_get(object, "threshold_percent"));
    json_decref(object);
    return rc;
}

static int open_pool(const struct cli *cli, const char *name, bool for_change,
                     struct pool_entry *entry, struct err *err, struct pool **ret_pool)
{
    int rc;

    memset(entry, 0, sizeof(*entry));
    name = name != NULL ? name : DEFAULT_POOL;
    rc = path_check_name(name, err);
    rc = rc < 0 ? rc : path_make_dirs(cli->pools, err);
    rc = rc < 0 ? rc : load_entry(cli, name, entry, err);
    if (rc < 0) {
        return rc;
    }
    (void)snprintf(entry->name, sizeof(entry->name), "%s", name);
    entry->config.name = entry->name;
    entry->config.kind = entry->kind;
    entry->config.path = entry->path;
    return pool_open(&entry->config, for_change, err, ret_pool);
}

/* A directory by its whole path, which is made; or a server, which has to answer. */
static int find_place(const char *name, const char *word, char *out, struct err *err)
{
    const struct pool_config config = {.name = name, .kind = pool_kind_of(word), .path = word};
    struct pool *pool = NULL;
    int rc;

    if (strcmp(config.kind, "dir") == 0) {
        rc = path_make_dirs(word, err);
        return rc == 0 && realpath(word, out) == NULL
                   ? err_set_errno(err, -errno, "%s cannot be found", word)
                   : rc;
    }
    rc = path_format(out, err, "%s", word);
    rc = rc < 0 ? rc : pool_open(&config, false, err, &pool);
    pool_close(pool);
    return rc;
}

int verb_pool_create(const struct cli *cli, const void *values, const struct args *args,
                     struct err *err)
{
    const struct pool_options *options = values;
    const char *name = args->words[0];
    char file[PATH_MAX];
    char path[PATH_MAX];
    uint64_t capacity = 0;
    CLEANUP_FREE char *text = NULL;
    CLEANUP_CLOSE int fd = -1;
    json_t *object;
    int rc = path_check_name(name, err);

    if (rc == 0 && options->capacity != NULL) {
        rc = size_parse("--capacity", options->capacity, &capacity, err);
    }
    if (rc == 0 && options->threshold > 100) {
        rc = err_set(err, -EINVAL, "--threshold takes a percentage");
    }
    rc = rc < 0 ? rc : path_make_dirs(cli->pools, err);
    rc = rc < 0 ? rc : path_format(file, err, "%s/%s.json", cli->pools, name);
    rc = rc < 0 ? rc : find_place(name, args->words[1], path, err);
    if (rc < 0) {
        return rc;
    }
    object = json_pack("{s:s, s:s, s:I, s:i}", "kind", pool_kind_of(path), "path", path,
                       "capacity_bytes", (json_int_t)capacity, "threshold_percent",
                       (int)options->threshold);
    text = json_dumps(object, JSON_INDENT(2));
    json_decref(object);
    fd = open(file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) {
        return errno == EEXIST ? err_set(err, -EEXIST, "there is a pool \"%s\" already", name)
                               : err_set_errno(err, -errno, "%s cannot be written", file);
    }
    rc = text != NULL ? io_write_full(fd, text, strlen(text)) : -ENOMEM;
    if (rc < 0) {
        (void)unlink(file);
        return err_set_errno(err, rc, "%s cannot be written", file);
    }
    return 0;
}

/* The name stays a pool's own: volumes are not touched. */
int verb_pool_remove(const struct cli *cli, const void *values, const struct args *args,
                     struct err *err)
{
    struct pool_entry entry = {.config = {.capacity_bytes = 0}};
    struct pool *pool = NULL;
    struct pool_volume *list = NULL;
    char file[PATH_MAX];
    unsigned count = 0;
    int rc = path_check_name(args->words[0], err);

    (void)values;
    rc = rc < 0 ? rc : load_entry(cli, args->words[0], &entry, err);
    if (rc == 0 &&
        strcmp(entry.kind, "nbd") != 0) { /* a server keeps its volumes, and may be gone */
        rc = open_pool(cli, args->words[0], true, &entry, err, &pool);
        rc = rc < 0 ? rc : pool_list(pool, &list, &count, err);
        free(list);
    }
    if (rc == 0 && count > 0) {
        rc = err_set(err, -EBUSY, "the pool \"%s\" holds %u volume%s; delete them first",
                     args->words[0], count, count == 1 ? "" : "s");
    }
    rc = rc < 0 ? rc : path_format(file, err, "%s/%s.json", cli->pools, args->words[0]);
    if (rc == 0 && unlink(file) != 0 && errno != ENOENT) {
        rc = err_set_errno(err, -errno, "%s cannot be removed", file);
    }
    pool_close(pool);
    return rc;
}

static json_t *describe_pool(const struct pool_entry *entry, const struct pool_space *s)
{
    return json_pack(
        "{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:i, s:b}", "name", entry->name, "kind", entry->kind,
        "path", entry->path, "capacity_bytes", (json_int_t)s->capacity_bytes, "allocated_bytes",
        (json_int_t)s->allocated_bytes, "provisioned_bytes", (json_int_t)s->provisioned_bytes,
        "free_bytes", (json_int_t)s->free_bytes, "threshold_percent", (int)s->threshold_percent,
        "over_threshold", s->is_over_threshold);
}

static void print_pool(const struct pool_entry *entry, const struct pool_space *s)
{
    char capacity[SIZE_TEXT_BYTES];
    char allocated[SIZE_TEXT_BYTES];
    char provisioned[SIZE_TEXT_BYTES];
    char left[SIZE_TEXT_BYTES];

    printf("%-16s %-5s %10s %10s %10s %10s  %s%s\n", entry->name, entry->kind,
           size_format(s->capacity_bytes, capacity), size_format(s->allocated_bytes, allocated),
           size_format(s->provisioned_bytes, provisioned), size_format(s->free_bytes, left),
           entry->path, s->is_over_threshold ? "  (nearly full)" : "");
}

static int show_pool(const struct cli *cli, const char *name, json_t *rows, struct err *err)
{
    struct pool_entry entry;
    struct pool_space space;
    struct pool *pool = NULL;
    int rc = open_pool(cli, name, false, &entry, err, &pool);

    rc = rc < 0 ? rc : pool_space(pool, &space, err);
    pool_close(pool);
    if (rc < 0 && strcmp(entry.kind, "nbd") == 0) { /* a server that is away hides no other pool */
        (void)fprintf(stderr, "corbel: the pool \"%s\" is away: %s\n", name, err->text);
        *err = (struct err){0};
        return 0;
    }
    if (rc == 0 && rows != NULL) {
        (void)json_array_append_new(rows, describe_pool(&entry, &space));
    } else if (rc == 0) {
        print_pool(&entry, &space);
    }
    return rc;
}

static int is_pool_file(const struct dirent *entry)
{
    size_t len = strlen(entry->d_name);

    return entry->d_name[0] != '.' && len > 5 && strcmp(entry->d_name + len - 5, ".json") == 0 &&
           strcmp(entry->d_name, DEFAULT_POOL ".json") != 0;
}

int verb_pool_list(const struct cli *cli, const void *values, const struct args *args,
                   struct err *err)
{
    const struct list_options *options = values;
    json_t *rows = options->json ? json_array() : NULL;
    struct dirent **entries = NULL;
    int rc;
    int n;

    (void)args;
    if (!options->json) {
        printf("%-16s %-5s %10s %10s %10s %10s  %s\n", "NAME", "KIND", "CAPACITY", "ALLOCATED",
               "PROMISED", "FREE", "PATH");
    }
    rc = show_pool(cli, DEFAULT_POOL, rows, err);
    n = scandir(cli->pools, &entries, is_pool_file, alphasort);
    for (int i = 0; i < n; i++) {
        entries[i]->d_name[strlen(entries[i]->d_name) - 5] = '\0';
        rc = rc < 0 ? rc : show_pool(cli, entries[i]->d_name, rows, err);
        free(entries[i]);
    }
    free(entries);
    if (rc < 0 || rows == NULL) {
        json_decref(rows);
        return rc;
    }
    return print_json(rows);
}

static json_t *describe_volume(const struct pool_volume *v)
{
    json_t *object =
        json_pack("{s:o, s:I, s:I, s:s, s:o, s:s, s:i, s:s, s:b}", "name", disk_json_text(v->name),
                  "size_bytes", (json_int_t)v->size_bytes, "allocated_bytes",
                  (json_int_t)v->allocated_bytes, "format", block_format_name(v->format), "path",
                  disk_json_text(v->path), "parent", v->parent, "snapshots", (int)v->snapshots,
                  "state", disk_state_name(v->state), "read_only", v->is_read_only);

    if (v->state == SUCCESSOR_CONTINUED) {
        (void)json_object_set_new(object, "continued_in", disk_json_text(v->next.path));
    }
    return object;
}

/* After a change: says so when the pool gets full. */
static void warn_when_full(struct pool *pool, const struct pool_entry *entry)
{
    struct pool_space space;
    struct err ignored;
    char left[SIZE_TEXT_BYTES];

    if (pool_space(pool, &space, &ignored) == 0 && space.is_over_threshold) {
        (void)fprintf(stderr, "corbel: the pool \"%s\" is nearly full: %s left\n", entry->name,
                      size_format(space.free_bytes, left));
    }
}

/* A copy of an image's disk, perhaps longer. */
static int create_from_image(const struct cli *cli, const char *image_name, const char *name,
                             uint64_t size, struct pool *pool, struct err *err)
{
    char path[PATH_MAX];
    const struct disk_ref ref = {.path = path, .format = "raw", .read_only = true};
    struct block_image *from = NULL;
    struct image image;
    struct block_image_info info;
    int rc = image_find(cli, image_name, &image, err);

    if (rc == 0 && !image.has_disk) {
        rc = err_set(err, -EINVAL, "the image \"%s\" has no disk", image_name);
    }
    rc = rc < 0 ? rc : path_format(path, err, "%s/disk.raw", image.dir);
    rc = rc < 0 ? rc : disk_open(&ref, err, &from);
    rc = rc < 0 ? rc : block_image_info(from, &info);
    if (rc == 0 && size != 0 && size < info.size_bytes) {
        rc = err_set(err, -EINVAL, "the image's disk has %llu bytes and does not fit",
                     (unsigned long long)info.size_bytes);
    }
    if (rc == 0) {
        rc = pool_create_copy(pool, name, size != 0 ? size : info.size_bytes, from, err);
    }
    block_image_close(from);
    return rc;
}

int verb_volume_create(const struct cli *cli, const void *values, const struct args *args,
                       struct err *err)
{
    const struct volume_options *options = values;
    struct pool_entry entry;
    struct pool *pool = NULL;
    uint64_t size = 0;
    int rc = path_check_name(args->words[0], err);

    if (rc == 0 && args->count > 1) {
        rc = size_parse("the length", args->words[1], &size, err);
    }
    if (rc == 0 && size == 0 && options->image == NULL) {
        rc = err_set(err, -EINVAL, "say how long the volume is to be, such as 10G");
    }
    rc = rc < 0 ? rc : open_pool(cli, options->pool, true, &entry, err, &pool);
    if (rc == 0) {
        rc = options->image != NULL
                 ? create_from_image(cli, options->image, args->words[0], size, pool, err)
                 : pool_create_volume(pool, args->words[0], size, err);
        warn_when_full(pool, &entry);
    }
    pool_close(pool);
    return rc;
}

int verb_volume_list(const struct cli *cli, const void *values, const struct args *args,
                     struct err *err)
{
    const struct volume_options *options = values;
    struct pool_entry entry;
    struct pool *pool = NULL;
    CLEANUP_FREE struct pool_volume *list = NULL;
    unsigned count = 0;
    json_t *rows = json_array();
    int rc = open_pool(cli, options->pool, false, &entry, err, &pool);

    (void)args;
    rc = rc < 0 ? rc : pool_list(pool, &list, &count, err);
    pool_close(pool);
    if (rc == 0 && !options->json) {
        printf("%-24s %10s %10s %9s  %s\n", "NAME", "LENGTH", "OWN", "SNAPSHOTS", "SINCE");
    }
    for (unsigned i = 0; rc == 0 && i < count; i++) {
        char size[SIZE_TEXT_BYTES];
        char own[SIZE_TEXT_BYTES];

        (void)json_array_append_new(rows, describe_volume(&list[i]));
        if (!options->json) {
            printf("%-24s %10s %10s %9u  %s%s\n", list[i].name,
                   size_format(list[i].size_bytes, size), size_format(list[i].allocated_bytes, own),
                   list[i].snapshots, list[i].parent,
                   list[i].state == SUCCESSOR_UNFINISHED  ? "  (unfinished copy)"
                   : list[i].state == SUCCESSOR_CONTINUED ? "  (stale)"
                                                          : "");
        }
    }
    if (rc < 0 || !options->json) {
        json_decref(rows);
        return rc;
    }
    return print_json(rows);
}

int verb_volume_show(const struct cli *cli, const void *values, const struct args *args,
                     struct err *err)
{
    const struct volume_options *options = values;
    struct pool_entry entry;
    struct pool *pool = NULL;
    struct pool_volume volume;
    char size[SIZE_TEXT_BYTES];
    char own[SIZE_TEXT_BYTES];
    int rc = open_pool(cli, options->pool, false, &entry, err, &pool);

    rc = rc < 0 ? rc : pool_find(pool, args->words[0], &volume, err);
    pool_close(pool);
    if (rc < 0) {
        return rc;
    }
    if (options->json) {
        return print_json(describe_volume(&volume));
    }
    printf("length:     %s\nown:        %s\nsnapshots:  %u\nfile:       %s (%s%s)\n",
           size_format(volume.size_bytes, size), size_format(volume.allocated_bytes, own),
           volume.snapshots, volume.path, block_format_name(volume.format),
           volume.is_read_only ? ", only to be read" : "");
    disk_print_state(volume.state, &volume.next);
    return 0;
}

int verb_volume_resize(const struct cli *cli, const void *values, const struct args *args,
                       struct err *err)
{
    const struct volume_options *options = values;
    const char *word = args->words[1];
    struct pool_entry entry;
    struct pool *pool = NULL;
    struct pool_volume volume;
    uint64_t size;
    int rc = size_parse("the length", word + (word[0] == '+'), &size, err);

    rc = rc < 0 ? rc : open_pool(cli, options->pool, true, &entry, err, &pool);
    rc = rc < 0 ? rc : pool_find(pool, args->words[0], &volume, err);
    if (rc == 0 && word[0] == '+' && __builtin_add_overflow(size, volume.size_bytes, &size)) {
        rc = err_set(err, -EINVAL, "the volume would be too long");
    }
    rc = rc < 0 ? rc : pool_resize_volume(pool, args->words[0], size, options->shrink, err);
    pool_close(pool);
    return rc;
}

int verb_volume_clone(const struct cli *cli, const void *values, const struct args *args,
                      struct err *err)
{
    const struct volume_options *options = values;
    struct pool_entry entry;
    struct pool *pool = NULL;
    int rc = path_check_name(args->words[1], err);

    rc = rc < 0 ? rc : open_pool(cli, options->pool, true, &entry, err, &pool);
    if (rc == 0) {
        rc = pool_clone_volume(pool, args->words[0], options->snapshot, args->words[1], err);
        warn_when_full(pool, &entry);
    }
    pool_close(pool);
    return rc;
}

int verb_volume_copy_to(const struct cli *cli, const void *values, const struct args *args,
                        struct err *err)
{
    const struct volume_options *options = values;
    struct disk_options convert = {.other_format = options->format, .replace = options->replace};
    struct args words = {.count = 2};
    struct pool_entry entry;
    struct pool *pool = NULL;
    struct pool_volume volume;
    int rc = open_pool(cli, options->pool, false, &entry, err, &pool);

    rc = rc < 0 ? rc : pool_find(pool, args->words[0], &volume, err);
    if (rc == 0) {
        convert.format = block_format_name(volume.format);
        words.words[0] = volume.path;
        words.words[1] = args->words[1];
        rc = verb_image_convert(cli, &convert, &words, err);
    }
    pool_close(pool);
    return rc;
}

int verb_volume_copy_from(const struct cli *cli, const void *values, const struct args *args,
                          struct err *err)
{
    const struct volume_options *options = values;
    const char *name = args->words[0];
    const struct disk_ref ref = {
        .path = args->words[1], .format = options->format, .read_only = true};
    struct block_image *from = NULL;
    struct pool_entry entry;
    struct pool *pool = NULL;
    struct pool_volume volume;
    struct err absent = {0};
    int rc = open_pool(cli, options->pool, true, &entry, err, &pool);

    if (rc == 0) {
        disk_warn_when_stale(args->words[1]);
        rc = disk_open(&ref, err, &from);
    }
    if (rc == 0 && pool_find(pool, name, &volume, &absent) == 0) {
        rc = options->replace
                 ? pool_fill_volume(pool, name, from, err)
                 : err_set(err, -EEXIST,
                           "there is a volume \"%s\" already; --replace replaces what it holds",
                           name);
    } else if (rc == 0) {
        rc = path_check_name(name, err);
        rc = rc < 0 ? rc : pool_create_copy(pool, name, from->size_bytes, from, err);
    }
    block_image_close(from);
    if (rc == 0) {
        warn_when_full(pool, &entry);
    }
    pool_close(pool);
    return rc;
}

int verb_volume_delete(const struct cli *cli, const void *values, const struct args *args,
                       struct err *err)
{
    const struct volume_options *options = values;
    struct pool_entry entry;
    struct pool *pool = NULL;
    int rc = open_pool(cli, options->pool, true, &entry, err, &pool);

    rc = rc < 0 ? rc : pool_delete_volume(pool, args->words[0], err);
    pool_close(pool);
    return rc;
}

static int list_snapshots(struct pool *pool, const char *name, bool as_json, struct err *err)
{
    CLEANUP_FREE struct pool_snapshot *list = NULL;
    unsigned count = 0;
    json_t *rows = json_array();
    int rc = pool_list_snapshots(pool, name, &list, &count, err);

    for (unsigned i = 0; rc == 0 && i < count; i++) {
        char size[SIZE_TEXT_BYTES];

        (void)json_array_append_new(rows, json_pack("{s:s, s:s, s:I, s:I}", "name", list[i].name,
                                                    "parent", list[i].parent, "size_bytes",
                                                    (json_int_t)list[i].size_bytes, "created",
                                                    (json_int_t)list[i].created));
        if (!as_json) {
            printf("%-24s %10s  after %s\n", list[i].name, size_format(list[i].size_bytes, size),
                   list[i].parent[0] != '\0' ? list[i].parent : "nothing");
        }
    }
    if (rc < 0 || !as_json) {
        json_decref(rows);
        return rc;
    }
    return print_json(rows);
}

int verb_volume_snapshot(const struct cli *cli, const void *values, const struct args *args,
                         struct err *err)
{
    static const struct {
        const char *word;
        int (*run)(struct pool *pool, const char *name, const char *snapshot, struct err *err);
    } actions[] = {
        {"create", pool_create_snapshot},
        {"revert", pool_revert},
        {"delete", pool_delete_snapshot},
        {"list", NULL},
    };
    const struct volume_options *options = values;
    struct pool_entry entry;
    struct pool *pool = NULL;
    size_t i = 0;
    int rc;

    while (i < ARRAY_LEN(actions) && strcmp(args->words[0], actions[i].word) != 0) {
        i++;
    }
    if (i == ARRAY_LEN(actions)) {
        return err_set(err, -EINVAL, "a snapshot is created, reverted to, deleted or listed");
    }
    if (actions[i].run != NULL && args->count < 3) {
        return err_set(err, -EINVAL, "say which: corbel pool-volume snapshot %s VOLUME NAME",
                       actions[i].word);
    }
    rc = actions[i].run != NULL ? path_check_name(args->words[2], err) : 0;
    rc = rc < 0 ? rc : open_pool(cli, options->pool, actions[i].run != NULL, &entry, err, &pool);
    if (rc == 0) {
        rc = actions[i].run != NULL ? actions[i].run(pool, args->words[1], args->words[2], err)
                                    : list_snapshots(pool, args->words[1], options->json, err);
    }
    pool_close(pool);
    return rc;
}
