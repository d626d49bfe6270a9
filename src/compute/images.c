/* Images: directories that `corbel image` makes; there is no record of them. */
#include "compute/compute_int.h"

#include "base/path.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int images_find(struct compute *compute, const char *name, struct image *ret_image,
                struct fault *fault)
{
    char dir[PATH_MAX];
    struct err err;
    int rc = path_check_name(name, &err);

    if (rc == 0) {
        rc = path_format(dir, &err, "%s/%s", compute->images_dir, name);
    }
    if (rc < 0) {
        return fault_set(fault, FAULT_INVALID, "image", "%s", err.text);
    }
    if (!path_exists(dir)) {
        return fault_set(fault, FAULT_NOT_FOUND, "image",
                         "there is no image \"%s\"; build it: corbel image build %s", name, name);
    }
    rc = image_load(dir, ret_image, &err);
    return rc < 0 ? fault_set(fault, FAULT_INTERNAL, "image", "%s", err.text) : 0;
}

static double change_time(const char *dir)
{
    struct stat st;

    return stat(dir, &st) == 0 ? (double)st.st_ctim.tv_sec : 0;
}

static int64_t disk_bytes(const struct image *image)
{
    char path[PATH_MAX];
    struct err ignored;
    struct stat st;

    return image->has_disk && path_format(path, &ignored, "%s/disk.raw", image->dir) == 0 &&
                   stat(path, &st) == 0
               ? st.st_size
               : 0;
}

static json_t *describe(const char *name, const struct image *image)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:i, s:I, s:b, s:f, s:i}", "id", name, "name", name,
                     "family", image->kind, "kernel", image->kernel, "user", image->user,
                     "memory_mib", (int)image->memory_mib, "disk_bytes",
                     (json_int_t)disk_bytes(image), "power_button", image->has_power_button,
                     "created", change_time(image->dir), "revision", 0);
}

int images_get(struct compute *compute, const char *name, json_t **ret_object, struct fault *fault)
{
    struct image image;
    int rc = images_find(compute, name, &image, fault);

    if (rc < 0) {
        return rc;
    }
    *ret_object = describe(name, &image);
    return *ret_object != NULL ? 0
                               : fault_set(fault, FAULT_INTERNAL, NULL,
                                           "the description of \"%s\" is no UTF-8", name);
}

static int is_visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

int images_list(struct compute *compute, json_t **ret_items, struct fault *fault)
{
    struct dirent **entries = NULL;
    json_t *items = json_array();
    int n = scandir(compute->images_dir, &entries, is_visible, alphasort);

    if (n < 0 && errno != ENOENT) {
        json_decref(items);
        return fault_set(fault, FAULT_INTERNAL, NULL, "%s cannot be read", compute->images_dir);
    }
    for (int i = 0; i < n; i++) {
        json_t *object = NULL;

        /* One that is damaged, or just goes, is not there. */
        if (images_get(compute, entries[i]->d_name, &object, NULL) == 0) {
            (void)json_array_append_new(items, object);
        }
        free(entries[i]);
    }
    free(entries);
    *ret_items = items;
    return 0;
}
