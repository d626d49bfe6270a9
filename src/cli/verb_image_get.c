/* corbel image fetch, import, export, catalogue, prune. */
#include "cli/cli.h"
#include "cli/image.h"
#include "cli/paths.h"
#include "cli/size.h"
#include "storage/catalogue.h"
#include "storage/fetch.h"
#include "storage/import.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_MAX_BYTES (256ull << 30)
#define DISK_MEMORY_MIB 1024
#define SECONDS_PER_DAY 86400

/* What an image is made of. */
struct disk_job {
    struct import_request import;
    const char *source; /* for people: a path or a URL */
};

static int write_description(const char *dir, const struct disk_job *job,
                             const struct import_kernel *kernel, struct err *err)
{
    char path[PATH_MAX];
    json_t *object;
    int rc = path_format(path, err, "%s/image.json", dir);

    if (rc < 0) {
        return rc;
    }
    object =
        json_pack("{s:s, s:s, s:s, s:i}", "kind", "disk", "source", job->source, "source_format",
                  import_format_name(job->import.format), "memory_mib", DISK_MEMORY_MIB);
    if (kernel != NULL) {
        (void)json_object_update_new(object, json_pack("{s:s, s:s, s:s, s:b}", "kernel",
                                                       kernel->name, "cmdline", kernel->cmdline,
                                                       "ready", "login:", "power_button", true));
    }
    rc = object != NULL && json_dump_file(object, path, JSON_INDENT(2)) == 0
             ? 0
             : err_set(err, -EIO, "%s cannot be written", path);
    json_decref(object);
    return rc;
}

static int fill_by_import(void *opaque, const char *dir, struct err *err)
{
    const struct disk_job *job = opaque;
    struct import_request import = job->import;
    struct import_kernel kernel = {.name = ""};
    struct err why = {0};
    char target[PATH_MAX];
    bool has_kernel;
    int rc = path_format(target, err, "%s/disk.raw", dir);

    import.target = target;
    if (rc == 0) {
        rc = import_disk(&import, err);
    }
    if (rc < 0) {
        return rc;
    }
    has_kernel = import_find_kernel(target, dir, &kernel, &why) == 0;
    if (!has_kernel) {
        (void)fprintf(stderr,
                      "corbel: no kernel was found on the disk, so corbel run cannot start "
                      "it: %s\n",
                      why.text);
    }
    return write_description(dir, job, has_kernel ? &kernel : NULL, err);
}

/* "debian-12" from "/tmp/debian-12.qcow2.xz". */
static int default_name(const char *path, char *out, size_t out_size, struct err *err)
{
    const char *slash = strrchr(path, '/');
    const char *base = slash != NULL ? slash + 1 : path;
    size_t len = strcspn(base, "?#");
    enum import_format format;
    enum import_compression compression;

    if (len == 0 || len >= out_size) {
        return err_set(err, -EINVAL, "say what the image is to be called: --name NAME");
    }
    memcpy(out, base, len);
    out[len] = '\0';
    while (import_parse_name(out, &format, &compression) == 0) {
        *strrchr(out, '.') = '\0';
    }
    return 0;
}

/* Format and compression: what was said, or what the name says. The content is not asked. */
static int choose_format(const struct get_options *options, const char *path,
                         struct import_request *import, struct err *err)
{
    char plain[PATH_MAX];
    bool is_clear;

    if (path_format(plain, err, "%.*s", (int)strcspn(path, "?#"), path) < 0) {
        return -EINVAL;
    }
    is_clear = import_parse_name(plain, &import->format, &import->compression) == 0;
    if (options->format != NULL && import_format_parse(options->format, &import->format) < 0) {
        return err_set(err, -EINVAL, "--format takes raw, qcow2, vmdk, vhd, vhdx, vdi or ova");
    }
    if (options->compression != NULL &&
        import_compression_parse(options->compression, &import->compression) < 0) {
        return err_set(err, -EINVAL, "--compression takes none, gz, xz or zst");
    }
    if (!is_clear && options->format == NULL) {
        return err_set(err, -EINVAL,
                       "the name of \"%.200s\" does not tell its format; say --format", path);
    }
    return 0;
}

static int fill_request(const struct get_options *options, const char *path, struct digest *digest,
                        struct import_request *import, struct err *err)
{
    int rc = choose_format(options, path, import, err);

    import->max_bytes = DEFAULT_MAX_BYTES;
    if (rc == 0 && options->max_size != NULL) {
        rc = size_parse("--max-size", options->max_size, &import->max_bytes, err);
    }
    if (rc == 0 && options->checksum != NULL) {
        rc = digest_parse(options->checksum, digest) < 0 || digest->kind == DIGEST_SHA1
                 ? err_set(err, -EINVAL, "--checksum takes sha256:DIGITS or sha512:DIGITS")
                 : 0;
        import->digest = digest;
    }
    return rc;
}

static int make_image(const struct cli *cli, const struct get_options *options,
                      struct disk_job *job, struct err *err)
{
    char name[128];
    const struct image_maker maker = {
        .fill = fill_by_import, .opaque = job, .may_replace = options->replace};
    int rc = 0;

    if (options->name == NULL) {
        rc = default_name(job->source, name, sizeof(name), err);
    }
    return rc < 0 ? rc : image_make(cli, options->name != NULL ? options->name : name, &maker, err);
}

int verb_image_import(const struct cli *cli, const void *values, const struct args *args,
                      struct err *err)
{
    const struct get_options *options = values;
    struct disk_job job = {.source = args->words[0]};
    struct digest digest;
    int rc = fill_request(options, args->words[0], &digest, &job.import, err);

    job.import.path = args->words[0];
    return rc < 0 ? rc : make_image(cli, options, &job, err);
}

/* A line on the terminal that is written over. */
static void show_progress(void *opaque, uint64_t done_bytes, uint64_t total_bytes)
{
    time_t *last = opaque;
    time_t now = time(NULL);
    char done[SIZE_TEXT_BYTES];
    char total[SIZE_TEXT_BYTES];

    if (now == *last && done_bytes != total_bytes) {
        return;
    }
    *last = now;
    if (total_bytes != 0) {
        (void)fprintf(stderr, "\r%s of %s, %u %%  ", size_format(done_bytes, done),
                      size_format(total_bytes, total), (unsigned)(done_bytes * 100 / total_bytes));
    } else {
        (void)fprintf(stderr, "\r%s  ", size_format(done_bytes, done));
    }
}

enum { CATALOGUE_OF_USER, CATALOGUE_OF_PRODUCT, CATALOGUES };

/* The which-th catalogue's entries, new memory; the user's comes first. */
static int load_catalogue(const struct cli *cli, unsigned which,
                          struct catalogue_entry **ret_entries, unsigned *ret_count,
                          struct err *err)
{
    const struct bundle_file *inside = bundle_find(cli->bundle, "builders/catalogue.json");
    char path[PATH_MAX];
    int rc;

    if (which == CATALOGUE_OF_PRODUCT && inside != NULL) {
        return catalogue_parse(inside->data, (size_t)(inside->end - inside->data), inside->name,
                               ret_entries, ret_count, err);
    }
    rc = path_format(path, err, "%s/catalogue.json",
                     which == CATALOGUE_OF_USER ? cli->config : cli->builders);
    return rc < 0 ? rc : catalogue_load(path, ret_entries, ret_count, err);
}

/* The user's entry of that name, or the product's. -ENOENT when there is neither. */
static int find_entry(const struct cli *cli, const char *name, struct catalogue_entry *ret_entry,
                      struct err *err)
{
    int rc = 0;

    for (unsigned which = 0; rc == 0 && which < CATALOGUES; which++) {
        CLEANUP_FREE struct catalogue_entry *entries = NULL;
        unsigned count = 0;

        rc = load_catalogue(cli, which, &entries, &count, err);
        for (unsigned i = 0; rc == 0 && i < count; i++) {
            if (strcmp(entries[i].name, name) == 0) {
                *ret_entry = entries[i];
                return 0;
            }
        }
    }
    return rc < 0 ? rc
                  : err_set(err, -ENOENT,
                            "the catalogue has no image \"%.60s\"; corbel image catalogue lists "
                            "them, and an http:// or https:// address is taken too",
                            name);
}

bool image_is_in_catalogue(const struct cli *cli, const char *name)
{
    struct catalogue_entry entry = {.name = ""};
    struct err ignored;

    return find_entry(cli, name, &entry, &ignored) == 0;
}

/* Address, format and checksum of what is to be fetched, from the catalogue or the command line. */
static int choose_source(const struct cli *cli, const struct get_options *options, const char *word,
                         struct catalogue_entry *entry, struct digest *digest,
                         struct import_request *import, struct err *err)
{
    int rc;

    if (strncasecmp(word, "http://", 7) == 0 || strncasecmp(word, "https://", 8) == 0) {
        if (strlen(word) >= sizeof(entry->url)) {
            return err_set(err, -EINVAL, "the address is too long");
        }
        (void)snprintf(entry->url, sizeof(entry->url), "%s", word);
        rc = fill_request(options, word, digest, import, err);
        if (rc == 0 && import->digest == NULL && !options->insecure_no_checksum) {
            rc = err_set(err, -EINVAL,
                         "nothing vouches for what %.200s holds; give --checksum sha256:DIGITS, or "
                         "--insecure-no-checksum to take whatever comes",
                         word);
        }
        return rc;
    }
    rc = find_entry(cli, word, entry, err);
    if (rc == 0) {
        rc = fill_request(options, entry->url, digest, import, err);
    }
    if (rc < 0) {
        return rc;
    }
    import->format = entry->format;
    import->compression = entry->compression;
    if (import->digest == NULL) {
        rc = catalogue_find_digest(entry, digest, err);
        import->digest = digest;
    }
    return rc;
}

int verb_image_fetch(const struct cli *cli, const void *values, const struct args *args,
                     struct err *err)
{
    struct get_options options = *(const struct get_options *)values;
    struct catalogue_entry entry = {.name = ""};
    struct disk_job job = {.source = entry.url};
    struct digest digest;
    char cache[PATH_MAX];
    char path[PATH_MAX];
    time_t last = 0;
    struct fetch_request fetch = {
        .url = entry.url, .cache_dir = cache, .opaque = &last, .progress = NULL};
    int rc = choose_source(cli, &options, args->words[0], &entry, &digest, &job.import, err);

    if (rc == 0) {
        rc = path_format(cache, err, "%s/downloads", cli->cache);
    }
    if (rc == 0) {
        rc = path_make_dirs(cache, err);
    }
    if (rc < 0) {
        return rc;
    }
    fetch.digest = job.import.digest;
    fetch.max_bytes = job.import.max_bytes;
    fetch.progress = isatty(STDERR_FILENO) == 1 ? show_progress : NULL;
    rc = fetch_file(&fetch, path, err);
    if (fetch.progress != NULL && last != 0) {
        (void)fputc('\n', stderr);
    }
    if (rc < 0) {
        return rc;
    }
    job.import.path = path;
    if (options.name == NULL && entry.name[0] != '\0') {
        options.name = entry.name;
    }
    return make_image(cli, &options, &job, err);
}

int verb_image_export(const struct cli *cli, const void *values, const struct args *args,
                      struct err *err)
{
    const struct get_options *options = values;
    struct export_request request = {.source_format = "raw", .target = args->words[1]};
    enum import_compression compression = COMPRESSION_NONE;
    struct image image;
    char path[PATH_MAX];
    int rc = image_find(cli, args->words[0], &image, err);

    if (rc < 0) {
        return rc;
    }
    if (!image.has_disk) {
        return err_set(err, -EINVAL, "the image \"%s\" has no disk", args->words[0]);
    }
    if (options->format != NULL
            ? import_format_parse(options->format, &request.format) < 0
            : import_parse_name(args->words[1], &request.format, &compression) < 0) {
        return err_set(err, -EINVAL, "say --format raw, qcow2, vmdk, vhd, vhdx, vdi or ova");
    }
    if (compression != COMPRESSION_NONE) {
        return err_set(err, -EINVAL, "exported disks are not packed; pack the file afterwards");
    }
    rc = path_format(path, err, "%s/disk.raw", image.dir);
    request.path = path;
    request.name = args->words[0];
    request.memory_mib = (unsigned)image.memory_mib;
    return rc < 0 ? rc : import_export_disk(&request, err);
}

int verb_image_catalogue(const struct cli *cli, const void *values, const struct args *args,
                         struct err *err)
{
    const struct list_options *options = values;
    json_t *rows = json_array();
    int rc = 0;

    (void)args;
    for (unsigned which = 0; rc == 0 && which < CATALOGUES; which++) {
        CLEANUP_FREE struct catalogue_entry *entries = NULL;
        unsigned count = 0;

        rc = load_catalogue(cli, which, &entries, &count, err);
        for (unsigned i = 0; rc == 0 && i < count; i++) {
            (void)json_array_append_new(
                rows, json_pack("{s:s, s:s, s:s, s:s}", "name", entries[i].name, "description",
                                entries[i].description, "url", entries[i].url, "format",
                                import_format_name(entries[i].format)));
            if (!options->json) {
                printf("%-24s %-6s %s\n", entries[i].name, import_format_name(entries[i].format),
                       entries[i].description);
            }
        }
    }
    if (rc == 0 && options->json) {
        (void)json_dumpf(rows, stdout, JSON_INDENT(2));
        (void)putchar('\n');
    }
    json_decref(rows);
    return rc;
}

/* Removes one thing of the cache unless its lock is held or it was used lately. Its bytes, or 0. */
static uint64_t prune_one(const char *dir, const char *name, time_t before)
{
    char path[PATH_MAX];
    char lock_path[PATH_MAX];
    struct err ignored;
    struct stat st;
    size_t stem = strlen(name);
    CLEANUP_CLOSE int lock = -1;

    stem -= stem > 5 && strcmp(name + stem - 5, ".part") == 0 ? 5 : 0;
    stem -= stem > 7 && strcmp(name + stem - 7, ".making") == 0 ? 7 : 0;
    if (path_format(path, &ignored, "%s/%s", dir, name) < 0 || lstat(path, &st) != 0 ||
        st.st_mtime > before ||
        path_format(lock_path, &ignored, "%s/%.*s.lock", dir, (int)stem, name) < 0) {
        return 0;
    }
    lock = open(lock_path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (lock >= 0 && flock(lock, LOCK_EX | LOCK_NB) != 0) {
        return 0;
    }
    if (S_ISDIR(st.st_mode)) {
        char disk[PATH_MAX];

        if (path_format(disk, &ignored, "%s/disk.raw", path) == 0 && lstat(disk, &st) != 0) {
            st.st_blocks = 0;
        }
    }
    path_discard(path);
    return (uint64_t)st.st_blocks * 512;
}

/* Everything in a directory whose name begins with the prefix and is no lock. */
static uint64_t prune_dir(const char *dir, const char *prefix, time_t before)
{
    DIR *stream = opendir(dir);
    const struct dirent *entry;
    uint64_t freed = 0;

    if (stream == NULL) {
        return 0;
    }
    // NOLINTNEXTLINE(concurrency-mt-unsafe): one thread
    while ((entry = readdir(stream)) != NULL) {
        size_t len = strlen(entry->d_name);

        if (entry->d_name[0] != '.' && strncmp(entry->d_name, prefix, strlen(prefix)) == 0 &&
            (len < 5 || strcmp(entry->d_name + len - 5, ".lock") != 0)) {
            freed += prune_one(dir, entry->d_name, before);
        }
    }
    (void)closedir(stream);
    return freed;
}

int verb_image_prune(const struct cli *cli, const void *values, const struct args *args,
                     struct err *err)
{
    const struct prune_options *options = values;
    time_t before = time(NULL) - (time_t)options->days * SECONDS_PER_DAY;
    char downloads[PATH_MAX];
    char text[SIZE_TEXT_BYTES];
    uint64_t freed;
    int rc = path_format(downloads, err, "%s/downloads", cli->cache);

    (void)args;
    if (rc < 0) {
        return rc;
    }
    freed = prune_dir(downloads, "", before);
    freed += prune_dir(cli->cache, "disk-", before);
    freed += prune_dir(cli->cache, "builders-", before); /* of a build that was killed outright */
    printf("%s freed\n", size_format(freed, text));
    return 0;
}
