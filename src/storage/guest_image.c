#include "storage/guest_image.h"

#include "base/io.h"
#include "base/path.h"
#include "storage/json_text.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#define IMAGE_JSON_MAX_BYTES (64u << 10)

static int fill_image(const json_t *object, struct image *image)
{
    json_int_t memory = json_integer_value(json_object_get(object, "memory_mib"));
    int rc = json_is_object(object) ? 0 : -EINVAL;

    if (rc == 0) {
        rc = json_text_copy(object, "kind", image->kind, sizeof(image->kind));
    }
    if (rc == 0) {
        rc = json_text_copy(object, "kernel", image->kernel, sizeof(image->kernel));
    }
    if (rc == 0) {
        rc = json_text_copy(object, "cmdline", image->cmdline, sizeof(image->cmdline));
    }
    if (rc == 0) {
        rc = json_text_copy(object, "ready", image->ready, sizeof(image->ready));
    }
    if (rc == 0) {
        rc = json_text_copy(object, "user", image->user, sizeof(image->user));
    }
    if (rc == 0 && (memory < 16 || memory > 1 << 20)) {
        rc = -EINVAL;
    }
    image->memory_mib = (unsigned)memory;
    image->has_power_button = json_is_true(json_object_get(object, "power_button"));
    return rc;
}

int image_load(const char *dir, struct image *ret_image, struct err *err)
{
    struct image image;
    char path[PATH_MAX];
    CLEANUP_FREE void *data = NULL;
    size_t len;
    json_t *object;
    int rc = path_format(path, err, "%s/image.json", dir);

    if (rc == 0) {
        rc = path_format(image.dir, err, "%s", dir);
    }
    if (rc < 0) {
        return rc;
    }
    rc = io_read_file(path, IMAGE_JSON_MAX_BYTES, &data, &len);
    if (rc < 0) {
        return err_set_errno(err, rc, "%s cannot be read", path);
    }
    object = json_loadb(data, len, 0, NULL);
    rc = fill_image(object, &image);
    json_decref(object);
    if (rc == 0) {
        rc = path_format(path, err, "%s/disk.raw", dir);
        image.has_disk = rc == 0 && path_exists(path);
    }
    if (rc == 0) {
        rc = path_format(path, err, "%s/vmlinuz", dir);
        image.has_kernel = rc == 0 && path_exists(path);
    }
    if (rc < 0) {
        return err_set(err, -EINVAL, "%s/image.json is damaged; build the image again", dir);
    }
    *ret_image = image;
    return 0;
}
