/* A new image: header, refcounts of what there is, an empty L1 table. */
#include "base/wire.h"
#include "block/qcow2_int.h"

#include <errno.h>
#include <string.h>

#define DEFAULT_CLUSTER_BITS 16u
#define DEFAULT_REFCOUNT_ORDER 4u

static bool log2_of(uint32_t value, uint32_t *ret_bits)
{
    *ret_bits = (uint32_t)__builtin_ctz(value | 0x80000000u);
    return value != 0 && (value & (value - 1)) == 0;
}

static int fill_header(const struct block_create_options *options, uint64_t size,
                       struct qcow2_header *h, struct err *err)
{
    h->version = options->version ? options->version : 3;
    h->cluster_bits = DEFAULT_CLUSTER_BITS;
    h->refcount_order = DEFAULT_REFCOUNT_ORDER;
    h->size = size;
    if (options->cluster_bytes != 0 && (!log2_of(options->cluster_bytes, &h->cluster_bits) ||
                                        h->cluster_bits < 9 || h->cluster_bits > 21)) {
        return err_set(err, -EINVAL,
                       "the cluster size has to be a power of two from 512 to 2097152");
    }
    if (options->refcount_bits != 0 &&
        (!log2_of(options->refcount_bits, &h->refcount_order) || h->refcount_order > 6)) {
        return err_set(err, -EINVAL, "the refcount width has to be 1, 2, 4, 8, 16, 32 or 64");
    }
    if (h->version != 2 && h->version != 3) {
        return err_set(err, -EINVAL, "the version of qcow2 has to be 2 or 3");
    }
    if (h->version == 2 &&
        (h->refcount_order != DEFAULT_REFCOUNT_ORDER || options->extended_l2 ||
         options->lazy_refcounts || options->compression != BLOCK_COMPRESSION_ZLIB)) {
        return err_set(err, -EINVAL,
                       "version 2 has neither other refcounts than 16 bits nor subclusters, lazy "
                       "refcounts or zstd");
    }
    if (options->extended_l2 && h->cluster_bits < 14) {
        return err_set(err, -EINVAL, "subclusters need a cluster size of at least 16384");
    }
    h->incompatible |= options->extended_l2 ? QCOW2_INCOMPAT_EXTL2 : 0;
    h->compatible |= options->lazy_refcounts ? QCOW2_COMPAT_LAZY_REFCOUNTS : 0;
    if (options->compression == BLOCK_COMPRESSION_ZSTD) {
        h->incompatible |= QCOW2_INCOMPAT_COMPRESSION;
        h->compression = 1;
    }
    if (options->backing_path) {
        const char *format = block_format_name(options->backing_format);

        if (options->backing_path[0] == 0 ||
            strlen(options->backing_path) >= sizeof(h->backing_path)) {
            return err_set(err, -ENAMETOOLONG, "the name of a backing image has 1 to 1023 bytes");
        }
        memcpy(h->backing_path, options->backing_path, strlen(options->backing_path) + 1);
        memcpy(h->backing_format, format, strlen(format) + 1);
    }
    if (qcow2_header_l1_needed(h, size) > QCOW2_MAX_L1_BYTES / 8 || size > 1ull << 61) {
        return err_set(err, -EFBIG, "the disk is too large for this cluster size");
    }
    h->l1_size = (uint32_t)qcow2_header_l1_needed(h, size);
    return 0;
}

struct layout {
    uint64_t table_clusters, blocks, l1_clusters, total;
};

static void plan_layout(const struct qcow2_header *h, struct layout *layout)
{
    uint64_t cluster = 1ull << h->cluster_bits;
    uint64_t per_block = 1ull << (h->cluster_bits + 3 - h->refcount_order);

    layout->l1_clusters = ((uint64_t)h->l1_size * 8 + cluster - 1) / cluster;
    layout->table_clusters = 1;
    layout->blocks = 1;
    for (;;) {
        uint64_t blocks, tables;

        layout->total = 1 + layout->table_clusters + layout->blocks + layout->l1_clusters;
        blocks = (layout->total + per_block - 1) / per_block;
        tables = (blocks * 8 + cluster - 1) / cluster;
        if (blocks <= layout->blocks && tables <= layout->table_clusters) {
            return;
        }
        layout->blocks = blocks;
        layout->table_clusters = tables;
    }
}

static int write_refcounts(struct block_file *file, const struct qcow2_header *h,
                           const struct layout *layout)
{
    uint64_t cluster = 1ull << h->cluster_bits;
    uint64_t per_block = 1ull << (h->cluster_bits + 3 - h->refcount_order);
    uint64_t first_block = 1 + layout->table_clusters;
    CLEANUP_FREE uint8_t *table = calloc(layout->table_clusters, cluster);
    CLEANUP_FREE uint8_t *block = malloc(cluster);
    int r = table && block ? 0 : -ENOMEM;

    for (uint64_t i = 0; r == 0 && i < layout->blocks; i++) {
        store_be64(table + i * 8, (first_block + i) << h->cluster_bits);
        memset(block, 0, cluster);
        for (uint64_t j = 0; j < per_block && i * per_block + j < layout->total; j++) {
            qcow2_refcount_store(block, j, h->refcount_order, 1);
        }
        r = block_file_pwrite(file, block, cluster, (first_block + i) << h->cluster_bits);
    }
    if (r == 0) {
        r = block_file_pwrite(file, table, layout->table_clusters << h->cluster_bits, cluster);
    }
    return r;
}

static int write_image(struct block_file *file, struct qcow2_header *h)
{
    struct layout layout;
    int r;

    plan_layout(h, &layout);
    h->reftable_offset = 1ull << h->cluster_bits;
    h->reftable_clusters = (uint32_t)layout.table_clusters;
    h->l1_offset = (1 + layout.table_clusters + layout.blocks) << h->cluster_bits;
    /* A block device may hold an older image. */
    r = file->is_device ? file->ops->write_zeroes(file, 0, layout.total << h->cluster_bits, false)
                        : file->ops->truncate(file, layout.total << h->cluster_bits);
    if (r == 0) {
        r = write_refcounts(file, h, &layout);
    }
    if (r == 0) {
        r = file->ops->flush(file);
    }
    if (r == 0) { /* last, so that a broken attempt is no image */
        r = qcow2_header_write(file, h);
    }
    if (r == 0) {
        r = file->ops->flush(file);
    }
    return r;
}

int qcow2_check_create(const struct block_create_options *options, uint64_t size_bytes,
                       struct err *err)
{
    struct qcow2_header header = {0};

    return fill_header(options, size_bytes, &header, err);
}

int qcow2_create_image(const struct block_create_options *options, uint64_t size_bytes,
                       struct block_file *file, struct err *err)
{
    struct qcow2_header header = {0};
    int r = fill_header(options, size_bytes, &header, err);

    if (r < 0) {
        return r;
    }
    r = write_image(file, &header);
    return r < 0 ? err_set_errno(err, r, "cannot write image '%s'", options->path) : 0;
}
