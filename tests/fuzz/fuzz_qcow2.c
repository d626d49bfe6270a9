/*
 * A hostile qcow2 image: the input is the file. It is opened for writing, read,
 * written, checked, given a snapshot and repaired; each may fail, none may do
 * harm. The last byte chooses between marks that opening would otherwise stop at.
 */
#include "memfile.h"

#include "block/block_int.h"
#include "block/qcow2.h"

#include <stdlib.h>

#define MAX_READ (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void use(struct block_image *image)
{
    uint8_t *buf = calloc(1, MAX_READ);
    uint64_t size = image->size_bytes;
    uint64_t end = size < MAX_READ ? size : MAX_READ;
    struct block_check_result result;
    struct qcow2_snapshot_info *snapshots = NULL;
    struct qcow2_bitmap_info *bitmaps = NULL;
    struct block_extent extent;
    unsigned count;

    /* Whatever comes of it: that nothing breaks is all that is asked. */
    (void)!block_image_pread(image, buf, end, 0);
    (void)!block_image_pread(image, buf, 512, size - 512);
    (void)!block_image_check(image, BLOCK_REPAIR_NONE, NULL, NULL, &result, NULL);
    (void)!qcow2_snapshot_list(image, &snapshots, &count, NULL);
    (void)!qcow2_bitmap_list(image, &bitmaps, &count, NULL);
    (void)!block_image_pwrite(image, buf, 1024, 0);
    (void)!block_image_pwrite(image, buf, 512, size / 1024 * 512);
    (void)!qcow2_write_compressed(image, buf, 512, 0);
    (void)!image->ops->lookup(image, 0, end, &extent);
    (void)!block_image_simple(image, BLOCK_DISCARD, 0, end / 512 * 512, true);
    (void)!block_image_simple(image, BLOCK_WRITE_ZEROES, 0, 512, false);
    (void)!block_image_simple(image, BLOCK_FLUSH, 0, 0, false);
    if (snapshots && count > 0) {
        (void)!qcow2_snapshot_apply(image, snapshots[0].name, NULL);
    }
    (void)!qcow2_snapshot_create(image, "fuzz", NULL);
    (void)!qcow2_snapshot_delete(image, "fuzz", NULL);
    (void)!block_image_resize(image, size / 1024 * 512 + 512, true, BLOCK_PREALLOC_OFF, NULL);
    (void)!block_image_check(image, BLOCK_REPAIR_ALL, NULL, NULL, &result, NULL);
    free(snapshots);
    free(bitmaps);
    free(buf);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct block_config config = {.format = BLOCK_FORMAT_QCOW2, .path = "fuzz", .fd = -1};
    struct memfile file;
    struct block_image *image = NULL;

    if (len == 0) {
        return 0;
    }
    config.for_repair = data[len - 1] & 1;
    memfile_init(&file);
    memfile_set(&file, data, len);
    if (qcow2_open(&file.file, &config, NULL, NULL, &image) == 0) {
        if (image->size_bytes >= 512) {
            use(image);
        }
        block_image_close(image);
    }
    memfile_done(&file);
    return 0;
}
