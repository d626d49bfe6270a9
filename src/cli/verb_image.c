/* corbel image build, list, show, remove. */
#include "cli/cli.h"
#include "cli/image.h"
#include "cli/paths.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int verb_image_build(const struct cli *cli, const void *values, const struct args *args,
                     struct err *err)
{
    return image_build(cli, args->words[0], values, err);
}

/* Bytes that the file takes on the host's disk, which for a sparse disk is not its length. */
static json_int_t host_bytes(const char *dir, const char *name)
{
    char path[PATH_MAX];
    struct err ignored;
    struct stat st;

    if (path_format(path, &ignored, "%s/%s", dir, name) < 0 || stat(path, &st) != 0) {
        return 0;
    }
    return (json_int_t)st.st_blocks * 512;
}

static json_t *describe(const char *name, const struct image *image)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:i, s:b, s:I, s:s}", "name", name, "kind", image->kind,
                     "kernel", image->kernel, "cmdline", image->cmdline, "memory_mib",
                     (int)image->memory_mib, "has_disk", image->has_disk, "host_bytes",
                     host_bytes(image->dir, "disk.raw") + host_bytes(image->dir, "vmlinuz") +
                         host_bytes(image->dir, "initrd"),
                     "dir", image->dir);
}

static int is_visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static void print_image_row(const json_t *row)
{
    printf("%-20s %-14s %6lld MiB  %s\n", json_string_value(json_object_get(row, "name")),
           json_string_value(json_object_get(row, "kind")),
           (long long)json_integer_value(json_object_get(row, "host_bytes")) >> 20,
           json_string_value(json_object_get(row, "kernel")));
}

static int print_images(const json_t *rows, bool as_json)
{
    size_t i;
    json_t *row;

    if (as_json) {
        (void)json_dumpf(rows, stdout, JSON_INDENT(2));
        (void)putchar('\n');
        return 0;
    }
    if (json_array_size(rows) == 0) {
        puts("no images; build one: corbel image build debian");
        return 0;
    }
    printf("%-20s %-14s %10s  %s\n", "NAME", "KIND", "ON DISK", "KERNEL");
    json_array_foreach(rows, i, row)
    {
        print_image_row(row);
    }
    return 0;
}

int verb_image_list(const struct cli *cli, const void *values, const struct args *args,
                    struct err *err)
{
    const struct list_options *options = values;
    struct dirent **entries = NULL;
    int n = scandir(cli->images, &entries, is_visible, alphasort);
    json_t *rows = json_array();

    (void)args;
    (void)err;
    for (int i = 0; i < n; i++) {
        struct image image;
        struct err why = {0};

        if (image_find(cli, entries[i]->d_name, &image, &why) == 0) {
            (void)json_array_append_new(rows, describe(entries[i]->d_name, &image));
        } else {
            (void)fprintf(stderr, "corbel: %s, ignoring\n", why.text);
        }
        free(entries[i]);
    }
    free(entries);
    n = print_images(rows, options->json);
    json_decref(rows);
    return n;
}

int verb_image_show(const struct cli *cli, const void *values, const struct args *args,
                    struct err *err)
{
    const struct list_options *options = values;
    struct image image;
    json_t *row;
    int rc = image_find(cli, args->words[0], &image, err);

    if (rc < 0) {
        return rc;
    }
    row = describe(args->words[0], &image);
    if (options->json) {
        (void)json_dumpf(row, stdout, JSON_INDENT(2));
        (void)putchar('\n');
    } else {
        printf("kind:     %s\nkernel:   %s\ncmdline:  %s\nmemory:   %u MiB\nfiles:    %s\n",
               image.kind, image.kernel, image.cmdline, image.memory_mib, image.dir);
        if (image.user[0] != '\0') {
            printf("ssh:      user %s, key %s/ssh_key\n", image.user, image.dir);
            printf("console:  user %s, password in %s/console_password\n", image.user, image.dir);
        }
    }
    json_decref(row);
    return 0;
}

int verb_image_remove(const struct cli *cli, const void *values, const struct args *args,
                      struct err *err)
{
    char dir[PATH_MAX];
    char doomed[PATH_MAX];
    int rc = path_check_name(args->words[0], err);

    (void)values;
    if (rc == 0) {
        rc = path_format(dir, err, "%s/%s", cli->images, args->words[0]);
    }
    if (rc == 0) {
        rc = path_format(doomed, err, "%s/.%s.removed.%d", cli->images, args->words[0], getpid());
    }
    if (rc < 0) {
        return rc;
    }
    /* Renamed first: nobody sees half an image. */
    if (rename(dir, doomed) != 0) {
        if (errno == ENOENT) {
            return err_set(err, -ENOENT, "there is no image \"%s\"; corbel image list shows them",
                           args->words[0]);
        }
        return err_set_errno(err, -errno, "%s cannot be removed", dir);
    }
    return path_remove(doomed, err);
}
