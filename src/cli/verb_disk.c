/* corbel image info, check, compare, map, resize, snapshot: what disks in files are. */
#include "block/block_int.h"
#include "block/image.h"
#include "block/qcow2.h"
#include "cli/cli.h"
#include "cli/disk_state.h"
#include "cli/disk_word.h"
#include "cli/size.h"
#include "storage/disk.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static int print_json(json_t *object)
{
    (void)json_dumpf(object, stdout, JSON_INDENT(2));
    (void)putchar('\n');
    json_decref(object);
    return 0;
}

static json_t *describe_info(const char *path, const struct block_image_info *info,
                             enum successor_state state, const struct successor *next)
{
    json_t *object = json_pack(
        "{s:o, s:s, s:I, s:I, s:I}", "file", disk_json_text(path), "format",
        block_format_name(info->format), "size_bytes", (json_int_t)info->size_bytes, "file_bytes",
        (json_int_t)info->file_bytes, "allocated_bytes", (json_int_t)info->allocated_bytes);
    json_t *more;

    (void)json_object_set_new(object, "state", json_string(disk_state_name(state)));
    if (state == SUCCESSOR_CONTINUED) {
        (void)json_object_set_new(object, "continued_in", disk_json_text(next->path));
        (void)json_object_set_new(object, "continued_format",
                                  json_string(block_format_name(next->format)));
    }
    if (info->format != BLOCK_FORMAT_QCOW2) {
        return object;
    }
    more = json_pack("{s:i, s:I, s:I, s:b, s:b, s:b, s:b, s:s, s:i, s:i}", "version",
                     (int)info->version, "cluster_bytes", (json_int_t)info->cluster_bytes,
                     "refcount_bits", (json_int_t)info->refcount_bits, "extended_l2",
                     info->extended_l2, "lazy_refcounts", info->lazy_refcounts, "dirty",
                     info->is_dirty, "corrupt", info->is_corrupt, "compression",
                     info->compression == BLOCK_COMPRESSION_ZSTD ? "zstd" : "zlib", "snapshots",
                     (int)info->snapshots, "bitmaps", (int)info->bitmaps);
    if (info->backing_path[0] != '\0') {
        (void)json_object_set_new(more, "backing", disk_json_text(info->backing_path));
        (void)json_object_set_new(more, "backing_format",
                                  info->has_backing_format
                                      ? json_string(block_format_name(info->backing_format))
                                      : json_null());
    }
    (void)json_object_update_new(object, more);
    return object;
}

static void print_info(const char *path, const struct block_image_info *info)
{
    char size[SIZE_TEXT_BYTES];
    char allocated[SIZE_TEXT_BYTES];

    printf("file:       %s\nformat:     %s\nlength:     %s (%llu bytes)\non disk:    %s\n", path,
           block_format_name(info->format), size_format(info->size_bytes, size),
           (unsigned long long)info->size_bytes, size_format(info->allocated_bytes, allocated));
    if (info->format != BLOCK_FORMAT_QCOW2) {
        return;
    }
    printf("version:    %u\nclusters:   %s%s, %s\n", info->version,
           size_format(info->cluster_bytes, size), info->extended_l2 ? ", extended" : "",
           info->compression == BLOCK_COMPRESSION_ZSTD ? "zstd" : "zlib");
    printf("snapshots:  %u\n", info->snapshots);
    if (info->backing_path[0] != '\0') {
        disk_print_text(stdout, "stands on:  ", info->backing_path);
    }
    if (info->is_corrupt) {
        puts("damaged:    yes; corbel image check tells more");
    }
}

int verb_image_info(const struct cli *cli, const void *values, const struct args *args,
                    struct err *err)
{
    const struct disk_options *options = values;
    const struct disk_ref ref = {
        .path = args->words[0],
        .format = options->format,
        .read_only = true,
        .no_backing = true,
        .for_repair = true,
    };
    struct block_image *image = NULL;
    struct block_image_info info;
    struct successor next;
    enum successor_state state = successor_state_of(args->words[0], &next);
    int rc = disk_open(&ref, err, &image);

    (void)cli;
    if (rc < 0) {
        return rc;
    }
    rc = block_image_info(image, &info);
    block_image_close(image);
    if (rc < 0) {
        return err_set_errno(err, rc, "%s cannot be looked at", args->words[0]);
    }
    if (options->json) {
        return print_json(describe_info(args->words[0], &info, state, &next));
    }
    print_info(args->words[0], &info);
    disk_print_state(state, &next);
    return 0;
}

static void report_finding(void *opaque, const char *text)
{
    const bool *is_quiet = opaque;

    if (!*is_quiet) {
        disk_print_text(stdout, "", text);
    }
}

static int print_check(const struct block_check_result *r, bool as_json)
{
    if (as_json) {
        (void)print_json(json_pack(
            "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "corruptions", (json_int_t)r->corruptions,
            "leaks", (json_int_t)r->leaks, "errors", (json_int_t)r->errors, "corruptions_fixed",
            (json_int_t)r->corruptions_fixed, "leaks_fixed", (json_int_t)r->leaks_fixed,
            "total_clusters", (json_int_t)r->total_clusters, "allocated_clusters",
            (json_int_t)r->allocated_clusters, "image_end_bytes", (json_int_t)r->image_end_bytes));
    } else if (r->corruptions + r->leaks + r->errors + r->corruptions_fixed + r->leaks_fixed == 0) {
        puts("no fault found");
    } else {
        printf("%llu damaged (%llu mended), %llu leaked (%llu mended), %llu unreadable\n",
               (unsigned long long)(r->corruptions + r->corruptions_fixed),
               (unsigned long long)r->corruptions_fixed,
               (unsigned long long)(r->leaks + r->leaks_fixed), (unsigned long long)r->leaks_fixed,
               (unsigned long long)r->errors);
    }
    return r->corruptions + r->errors > 0 ? CLI_EXIT_DIFFERS : r->leaks > 0 ? CLI_EXIT_LEAKS : 0;
}

int verb_image_check(const struct cli *cli, const void *values, const struct args *args,
                     struct err *err)
{
    const struct disk_options *options = values;
    enum block_repair repair = BLOCK_REPAIR_NONE;
    struct block_check_result result = {.leaks = 0};
    struct block_image *image = NULL;
    bool is_quiet = options->json;
    struct disk_ref ref = {
        .path = args->words[0], .format = options->format, .no_backing = true, .for_repair = true};
    int rc;

    (void)cli;
    if (options->repair != NULL) {
        if (strcmp(options->repair, "leaks") == 0) {
            repair = BLOCK_REPAIR_LEAKS;
        } else if (strcmp(options->repair, "all") == 0) {
            repair = BLOCK_REPAIR_ALL;
        } else {
            return err_set(err, -EINVAL, "--repair takes leaks or all");
        }
    }
    ref.read_only = repair == BLOCK_REPAIR_NONE;
    disk_warn_when_stale(args->words[0]);
    rc = disk_open(&ref, err, &image);
    if (rc < 0) {
        return rc;
    }
    rc = block_image_check(image, repair, report_finding, &is_quiet, &result, err);
    block_image_close(image);
    return rc < 0 ? rc : print_check(&result, options->json);
}

int verb_image_compare(const struct cli *cli, const void *values, const struct args *args,
                       struct err *err)
{
    const struct disk_options *options = values;
    struct disk_options other = *options;
    struct block_image *a = NULL;
    struct block_image *b = NULL;
    uint64_t offset = UINT64_MAX;
    time_t last = 0;
    int rc = disk_word_open(options, args->words[0], true, err, &a);

    (void)cli;
    other.format = options->other_format;
    if (rc == 0) {
        rc = disk_word_open(&other, args->words[1], true, err, &b);
    }
    if (rc == 0) {
        rc = disk_compare(a, b, disk_choose_progress(), &last, &offset, err);
        disk_end_progress(last);
    }
    block_image_close(a);
    block_image_close(b);
    if (rc < 0) {
        return rc;
    }
    if (offset != UINT64_MAX) {
        printf("the disks differ at byte %llu\n", (unsigned long long)offset);
        return CLI_EXIT_DIFFERS;
    }
    puts("the disks are the same");
    return 0;
}

static int print_extent(void *opaque, const struct disk_extent *e)
{
    json_t *rows = opaque;
    json_t *row;

    if (rows == NULL) {
        printf("%16llu %16llu  %-12s %5u", (unsigned long long)e->start, (unsigned long long)e->len,
               e->is_compressed  ? "compressed"
               : e->is_data      ? "data"
               : e->is_allocated ? "zero"
                                 : "unallocated",
               e->depth);
        if (e->has_host_offset) {
            printf(" %16llu", (unsigned long long)e->host_offset);
        }
        (void)putchar('\n');
        return 0;
    }
    row = json_pack("{s:I, s:I, s:i, s:b, s:b, s:b, s:b}", "start", (json_int_t)e->start, "length",
                    (json_int_t)e->len, "depth", (int)e->depth, "present", e->is_allocated, "zero",
                    !e->is_data, "data", e->is_data, "compressed", e->is_compressed);
    if (e->has_host_offset) {
        (void)json_object_set_new(row, "offset", json_integer((json_int_t)e->host_offset));
    }
    return json_array_append_new(rows, row) == 0 ? 0 : -ENOMEM;
}

int verb_image_map(const struct cli *cli, const void *values, const struct args *args,
                   struct err *err)
{
    const struct disk_options *options = values;
    struct block_image *image = NULL;
    json_t *rows = NULL;
    int rc = disk_word_open(options, args->words[0], true, err, &image);

    (void)cli;
    if (rc < 0) {
        return rc;
    }
    if (options->json) {
        rows = json_array();
    } else {
        printf("%16s %16s  %-12s %5s %16s\n", "START", "LENGTH", "KIND", "DEPTH", "IN FILE AT");
    }
    rc = disk_map(image, print_extent, rows, err);
    block_image_close(image);
    if (rc < 0) {
        json_decref(rows);
        return rc;
    }
    return rows != NULL ? print_json(rows) : 0;
}

int verb_image_resize(const struct cli *cli, const void *values, const struct args *args,
                      struct err *err)
{
    const struct disk_options *options = values;
    const char *word = args->words[1];
    enum block_prealloc prealloc = BLOCK_PREALLOC_OFF;
    struct block_image *image = NULL;
    uint64_t size;
    int rc = size_parse("the length", word + (word[0] == '+'), &size, err);

    (void)cli;
    if (rc == 0) {
        rc = disk_parse_prealloc(options->preallocation, &prealloc, err);
    }
    if (rc == 0) {
        rc = disk_word_open(options, args->words[0], false, err, &image);
    }
    if (rc < 0 || image == NULL) {
        return rc;
    }
    if (word[0] == '+' && __builtin_add_overflow(size, image->size_bytes, &size)) {
        rc = err_set(err, -EINVAL, "the disk would be too long");
    }
    if (rc == 0) {
        rc = block_image_resize(image, size, options->shrink, prealloc, err);
    }
    block_image_close(image);
    return rc;
}

static int list_snapshots(struct block_image *image, bool as_json, struct err *err)
{
    CLEANUP_FREE struct qcow2_snapshot_info *infos = NULL;
    unsigned count = 0;
    json_t *rows = json_array();
    int rc = qcow2_snapshot_list(image, &infos, &count, err);

    for (unsigned i = 0; rc == 0 && i < count; i++) {
        char size[SIZE_TEXT_BYTES];

        (void)json_array_append_new(rows, json_pack("{s:o, s:o, s:I, s:I}", "id",
                                                    disk_json_text(infos[i].id), "name",
                                                    disk_json_text(infos[i].name), "size_bytes",
                                                    (json_int_t)infos[i].size_bytes, "date",
                                                    (json_int_t)infos[i].date_sec));
        if (!as_json) {
            printf("%-6.6s %10s  ", infos[i].id, size_format(infos[i].size_bytes, size));
            disk_print_text(stdout, "", infos[i].name);
        }
    }
    if (rc < 0 || !as_json) {
        json_decref(rows);
        return rc;
    }
    return print_json(rows);
}

int verb_image_snapshot(const struct cli *cli, const void *values, const struct args *args,
                        struct err *err)
{
    const struct disk_options *options = values;
    static const struct {
        const char *word;
        int (*run)(struct block_image *image, const char *name, struct err *err);
    } actions[] = {
        {"create", qcow2_snapshot_create},
        {"apply", qcow2_snapshot_apply},
        {"delete", qcow2_snapshot_delete},
    };
    bool is_list = strcmp(args->words[0], "list") == 0;
    struct block_image *image = NULL;
    int rc;

    (void)cli;
    if (!is_list && args->count < 3) {
        return err_set(err, -EINVAL, "say which snapshot: corbel image snapshot %.20s FILE NAME",
                       args->words[0]);
    }
    rc = disk_word_open(options, args->words[1], is_list, err, &image);
    if (rc < 0) {
        return rc;
    }
    rc = err_set(NULL, -EINVAL, "no such action");
    for (size_t i = 0; i < ARRAY_LEN(actions); i++) {
        if (strcmp(args->words[0], actions[i].word) == 0) {
            rc = actions[i].run(image, args->words[2], err);
        }
    }
    if (is_list) {
        rc = list_snapshots(image, options->json, err);
    } else if (rc == -EINVAL && err->text[0] == '\0') {
        rc = err_set(err, -EINVAL, "a snapshot is created, applied, deleted or listed");
    }
    block_image_close(image);
    return rc;
}
