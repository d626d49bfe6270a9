/* What an image says of the image below it. */
#include "block/file.h"
#include "block/image.h"
#include "block/qcow2.h"
#include "block/qcow2_int.h"

#include <errno.h>
#include <string.h>

static void set_names(struct qcow2_header *header, const char *path, enum block_format format)
{
    memset(header->backing_path, 0, sizeof(header->backing_path));
    memset(header->backing_format, 0, sizeof(header->backing_format));
    if (path) {
        const char *name = block_format_name(format);

        memcpy(header->backing_path, path, strlen(path));
        memcpy(header->backing_format, name, strlen(name));
    }
}

int qcow2_set_backing(struct block_image *image, const char *path, enum block_format format,
                      struct err *err)
{
    struct qcow2 *q = container_of(image, struct qcow2, image);
    struct qcow2_header *header;
    int r;

    if (image->format != BLOCK_FORMAT_QCOW2 || image->is_read_only) {
        return err_set(err, -ENOTSUP, "this image cannot be given another backing image");
    }
    if (path && (path[0] == 0 || strlen(path) >= sizeof(header->backing_path))) {
        return err_set(err, -ENAMETOOLONG, "the name of a backing image has 1 to 1023 bytes");
    }
    header = malloc(sizeof(*header));
    if (!header) {
        return err_set(err, -ENOMEM, "no memory for an image");
    }
    r = qcow2_flush(q); /* the contents that do not need the old one any more come first */
    mutex_lock(&q->lock);
    *header = q->header;
    set_names(header, path, format);
    if (r == 0) {
        r = qcow2_header_write(image->file, header);
    }
    if (r == 0) {
        r = image->file->ops->flush(image->file);
    }
    if (r == 0) {
        set_names(&q->header, path, format);
    }
    mutex_unlock(&q->lock);
    free(header);
    return r < 0 ? err_set_errno(err, r, "cannot write what the image says of its backing image")
                 : 0;
}
