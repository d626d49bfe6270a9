/* The first cluster: read once into checked numbers, written anew as a whole. */
#include "base/wire.h"
#include "block/qcow2_int.h"

#include <errno.h>
#include <string.h>

#define EXT_END 0u
#define EXT_BACKING_FORMAT 0xe2792acau
#define EXT_FEATURE_NAMES 0x6803f857u
#define EXT_BITMAPS 0x23852875u
#define EXT_ENCRYPTION 0x0537be77u
#define EXT_DATA_FILE 0x44415441u
#define HEADER_BYTES 112u
#define SECTOR_BYTES 512u
#define MAX_BITMAP_DIRECTORY_BYTES (1024u * 2048u)

struct feature_name {
    uint8_t type, bit;
    const char *name;
};

/* Only what this header may need to be refused by. */
static const struct feature_name feature_names[] = {
    {0, 0, "dirty bit"},        {0, 1, "corrupt bit"},         {0, 2, "external data file"},
    {0, 3, "compression type"}, {0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"},
    {2, 0, "bitmaps"},
};

static int refuse(struct err *err, const char *path, const char *why)
{
    return err_set(err, -EINVAL, "'%s' is not a usable qcow2 image: %s", path, why);
}

static int parse_numbers(const uint8_t *raw, const char *path, struct qcow2_header *h,
                         uint32_t *ret_header_bytes, struct err *err)
{
    if (load_be32(raw) != QCOW2_MAGIC) {
        return refuse(err, path, "it does not begin with the qcow2 signature");
    }
    h->version = load_be32(raw + 4);
    if (h->version != 2 && h->version != 3) {
        return err_set(err, -ENOTSUP, "'%s': qcow2 version %u is not supported, only 2 and 3", path,
                       h->version);
    }
    h->backing_offset = load_be64(raw + 8);
    h->cluster_bits = load_be32(raw + 20);
    h->size = load_be64(raw + 24);
    if (load_be32(raw + 32) != 0) {
        return err_set(err, -ENOTSUP, "'%s' is encrypted, which is not supported", path);
    }
    h->l1_size = load_be32(raw + 36);
    h->l1_offset = load_be64(raw + 40);
    h->reftable_offset = load_be64(raw + 48);
    h->reftable_clusters = load_be32(raw + 56);
    h->snapshot_count = load_be32(raw + 60);
    h->snapshots_offset = load_be64(raw + 64);
    h->refcount_order = 4;
    *ret_header_bytes = QCOW2_V2_HEADER_BYTES;
    if (h->version == 3) {
        h->incompatible = load_be64(raw + 72);
        h->compatible = load_be64(raw + 80);
        h->autoclear = load_be64(raw + 88);
        h->refcount_order = load_be32(raw + 96);
        *ret_header_bytes = load_be32(raw + 100);
        if (*ret_header_bytes >= QCOW2_V3_HEADER_BYTES + 8) {
            h->compression = raw[104];
        }
    }
    return 0;
}

static int check_features(const struct qcow2_header *h, const char *path, struct err *err)
{
    uint64_t unknown = h->incompatible & ~QCOW2_INCOMPAT_KNOWN;

    if (h->incompatible & QCOW2_INCOMPAT_DATA_FILE) {
        return err_set(err, -ENOTSUP,
                       "'%s' keeps its data in an external file, which is not supported", path);
    }
    if (unknown) {
        return err_set(err, -ENOTSUP, "'%s' needs features that are not supported: bits 0x%llx",
                       path, (unsigned long long)unknown);
    }
    if (h->compression > 1 ||
        (h->compression != 0) != ((h->incompatible & QCOW2_INCOMPAT_COMPRESSION) != 0)) {
        return err_set(err, -ENOTSUP, "'%s': compression type %u is not supported", path,
                       h->compression);
    }
    return 0;
}

static bool is_table(uint64_t offset, uint64_t bytes, uint32_t cluster_bytes, uint64_t file_bytes)
{
    return offset >= cluster_bytes && offset % cluster_bytes == 0 && offset <= file_bytes &&
           bytes <= (1ull << 62) - offset;
}

static int check_numbers(const struct qcow2_header *h, uint32_t header_bytes, uint64_t file_bytes,
                         const char *path, struct err *err)
{
    uint32_t cluster = 1u << h->cluster_bits;
    uint64_t l1_needed;

    if (header_bytes < QCOW2_V2_HEADER_BYTES || header_bytes > cluster || header_bytes % 8 != 0 ||
        (h->version == 3 && header_bytes < QCOW2_V3_HEADER_BYTES)) {
        return refuse(err, path, "its header has an impossible length");
    }
    if (h->refcount_order > 6) {
        return refuse(err, path, "its refcounts are wider than 64 bits");
    }
    if ((h->incompatible & QCOW2_INCOMPAT_EXTL2) && h->cluster_bits < 14) {
        return refuse(err, path, "its clusters are too small for subclusters");
    }
    if (h->size > (1ull << 61) || h->size % BLOCK_SECTOR_BYTES != 0) {
        return refuse(err, path, "its disk has an impossible size");
    }
    l1_needed = qcow2_header_l1_needed(h, h->size);
    if (h->l1_size > QCOW2_MAX_L1_BYTES / 8 || h->l1_size < l1_needed) {
        return refuse(err, path, "its L1 table is too large or too small for the disk");
    }
    if (h->l1_size > 0 && !is_table(h->l1_offset, (uint64_t)h->l1_size * 8, cluster, file_bytes)) {
        return refuse(err, path, "its L1 table lies outside of the file");
    }
    if (h->reftable_clusters == 0 ||
        (uint64_t)h->reftable_clusters << h->cluster_bits > QCOW2_MAX_REFTABLE_BYTES ||
        !is_table(h->reftable_offset, (uint64_t)h->reftable_clusters << h->cluster_bits, cluster,
                  file_bytes)) {
        return refuse(err, path, "its refcount table is missing, too large or outside of the file");
    }
    if (h->snapshot_count > QCOW2_MAX_SNAPSHOTS ||
        (h->snapshot_count > 0 && !is_table(h->snapshots_offset, 0, cluster, file_bytes))) {
        return refuse(err, path, "its snapshot table is too large or outside of the file");
    }
    return 0;
}

static int read_backing_path(const uint8_t *raw, uint64_t raw_len, struct qcow2_header *h,
                             const char *path, struct err *err)
{
    uint32_t len = load_be32(raw + 16);

    if (h->backing_offset == 0) {
        return 0;
    }
    if (len == 0 || len >= sizeof(h->backing_path) || h->backing_offset > raw_len ||
        len > raw_len - h->backing_offset) {
        return refuse(err, path, "the name of its backing image is too long or out of place");
    }
    memcpy(h->backing_path, raw + h->backing_offset, len);
    if (memchr(h->backing_path, 0, len)) {
        return refuse(err, path, "the name of its backing image holds a zero byte");
    }
    return 0;
}

static int parse_bitmaps(const uint8_t *data, uint32_t len, struct qcow2_header *h)
{
    if (!(h->autoclear & QCOW2_AUTOCLEAR_BITMAPS)) {
        return 0; /* written by who did not know of them: gone */
    }
    if (len != 24) {
        return -EINVAL;
    }
    h->bitmap_count = load_be32(data);
    h->bitmap_directory_bytes = load_be64(data + 8);
    h->bitmap_directory_offset = load_be64(data + 16);
    if (h->bitmap_count == 0 || h->bitmap_count > QCOW2_MAX_BITMAPS ||
        h->bitmap_directory_bytes > MAX_BITMAP_DIRECTORY_BYTES ||
        h->bitmap_directory_offset % (1ull << h->cluster_bits) != 0 ||
        h->bitmap_directory_offset == 0 || h->bitmap_directory_offset > (1ull << 62)) {
        return -EINVAL;
    }
    return 0;
}

static int keep_extension(const uint8_t *raw, uint32_t len, struct qcow2_header *h)
{
    uint8_t *grown;

    if (len > QCOW2_MAX_EXTENSION_BYTES - h->extensions_len) {
        return -EFBIG;
    }
    grown = realloc(h->extensions, h->extensions_len + len);
    if (!grown) {
        return -ENOMEM;
    }
    memcpy(grown + h->extensions_len, raw, len);
    h->extensions = grown;
    h->extensions_len += len;
    return 0;
}

static int parse_extension(uint32_t type, const uint8_t *raw, uint32_t len, struct qcow2_header *h,
                           const char *path, struct err *err)
{
    const uint8_t *data = raw + 8;
    int r = 0;

    switch (type) {
    case EXT_BACKING_FORMAT:
        if (len >= sizeof(h->backing_format)) {
            return refuse(err, path, "the format of its backing image has too long a name");
        }
        memcpy(h->backing_format, data, len);
        h->backing_format[len] = 0;
        break;
    case EXT_FEATURE_NAMES:
        break; /* ours is written instead */
    case EXT_BITMAPS:
        r = parse_bitmaps(data, len, h);
        break;
    case EXT_ENCRYPTION:
        return err_set(err, -ENOTSUP, "'%s' is encrypted, which is not supported", path);
    case EXT_DATA_FILE:
        return err_set(err, -ENOTSUP,
                       "'%s' keeps its data in an external file, which is not supported", path);
    default:
        r = keep_extension(raw, (len + 15) & ~7u, h);
        break;
    }
    return r == 0 ? 0 : refuse(err, path, "a header extension is broken");
}

static int parse_extensions(const uint8_t *raw, uint64_t begin, uint64_t end,
                            struct qcow2_header *h, const char *path, struct err *err)
{
    int r = 0;

    while (r == 0 && end >= begin && end - begin >= 8) {
        uint32_t type = load_be32(raw + begin);
        uint64_t len = load_be32(raw + begin + 4);

        if (type == EXT_END) {
            break;
        }
        if (((len + 7) & ~7ull) > end - begin - 8) {
            return refuse(err, path, "a header extension is longer than the header");
        }
        r = parse_extension(type, raw + begin, (uint32_t)len, h, path, err);
        begin += 8 + ((len + 7) & ~7ull);
    }
    return r;
}

static int parse(const uint8_t *raw, uint64_t raw_len, uint64_t file_bytes, const char *path,
                 struct qcow2_header *h, struct err *err)
{
    uint32_t header_bytes = 0;
    uint64_t extensions_end;
    int r = parse_numbers(raw, path, h, &header_bytes, err);

    if (r == 0) {
        r = check_features(h, path, err);
    }
    if (r == 0) {
        r = check_numbers(h, header_bytes, file_bytes, path, err);
    }
    if (r == 0) {
        r = read_backing_path(raw, raw_len, h, path, err);
    }
    if (r == 0) {
        extensions_end = h->backing_offset != 0 ? h->backing_offset : raw_len;
        r = parse_extensions(raw, header_bytes, extensions_end, h, path, err);
    }
    return r;
}

int qcow2_header_read(struct block_file *file, const char *path, struct qcow2_header *ret_header,
                      struct err *err)
{
    struct qcow2_header header = {0};
    CLEANUP_FREE uint8_t *raw = NULL;
    uint8_t start[SECTOR_BYTES];
    uint64_t file_bytes = 0;
    uint32_t bits;
    int r = file->ops->get_size(file, &file_bytes);

    if (r == 0) {
        r = block_file_pread(file, start, sizeof(start), 0);
    }
    if (r < 0) {
        return err_set_errno(err, r, "cannot read the header of '%s'", path);
    }
    if (load_be32(start) != QCOW2_MAGIC) {
        return refuse(err, path, "it does not begin with the qcow2 signature");
    }
    bits = load_be32(start + 20);
    if (bits < 9 || bits > 21) {
        return refuse(err, path, "its clusters are smaller than 512 bytes or larger than 2 MiB");
    }
    raw = malloc(1u << bits);
    if (!raw) {
        return err_set(err, -ENOMEM, "no memory for the header of '%s'", path);
    }
    r = block_file_pread(file, raw, 1u << bits, 0);
    if (r < 0) {
        return err_set_errno(err, r, "cannot read the header of '%s'", path);
    }
    store_be32(raw + 20, bits); /* what was checked is what is used */
    r = parse(raw, 1u << bits, file_bytes, path, &header, err);
    if (r < 0) {
        qcow2_header_done(&header);
        return r;
    }
    *ret_header = header;
    return 0;
}

void qcow2_header_done(struct qcow2_header *header)
{
    free(header->extensions);
    header->extensions = NULL;
}

uint64_t qcow2_header_l1_needed(const struct qcow2_header *header, uint64_t size)
{
    unsigned entry_bits = header->incompatible & QCOW2_INCOMPAT_EXTL2 ? 4 : 3;
    unsigned shift = 2 * header->cluster_bits - entry_bits;

    return (size >> shift) + ((size & ((1ull << shift) - 1)) != 0);
}

static uint32_t put_extension(uint8_t *raw, uint32_t at, uint32_t type, const void *data,
                              uint32_t len)
{
    store_be32(raw + at, type);
    store_be32(raw + at + 4, len);
    if (len > 0) {
        memcpy(raw + at + 8, data, len);
    }
    return at + 8 + ((len + 7) & ~7u);
}

static uint32_t put_extensions(uint8_t *raw, uint32_t at, const struct qcow2_header *h)
{
    uint8_t names[ARRAY_LEN(feature_names) * 48] = {0};
    uint8_t bitmaps[24] = {0};

    if (h->backing_format[0] != 0) {
        at = put_extension(raw, at, EXT_BACKING_FORMAT, h->backing_format,
                           (uint32_t)strlen(h->backing_format));
    }
    if (h->bitmap_count > 0) {
        store_be32(bitmaps, h->bitmap_count);
        store_be64(bitmaps + 8, h->bitmap_directory_bytes);
        store_be64(bitmaps + 16, h->bitmap_directory_offset);
        at = put_extension(raw, at, EXT_BITMAPS, bitmaps, sizeof(bitmaps));
    }
    if (h->extensions_len > 0) {
        memcpy(raw + at, h->extensions, h->extensions_len);
        at += h->extensions_len;
    }
    /* Names for readers that lack a feature; left out where a cluster is too small for them. */
    if (h->version == 3 && h->cluster_bits > 10) {
        for (size_t i = 0; i < ARRAY_LEN(feature_names); i++) {
            names[i * 48] = feature_names[i].type;
            names[i * 48 + 1] = feature_names[i].bit;
            memcpy(names + i * 48 + 2, feature_names[i].name, strlen(feature_names[i].name));
        }
        at = put_extension(raw, at, EXT_FEATURE_NAMES, names, sizeof(names));
    }
    return put_extension(raw, at, EXT_END, NULL, 0);
}

static void put_numbers(uint8_t *raw, const struct qcow2_header *h)
{
    store_be32(raw, QCOW2_MAGIC);
    store_be32(raw + 4, h->version);
    store_be32(raw + 20, h->cluster_bits);
    store_be64(raw + 24, h->size);
    store_be32(raw + 36, h->l1_size);
    store_be64(raw + 40, h->l1_offset);
    store_be64(raw + 48, h->reftable_offset);
    store_be32(raw + 56, h->reftable_clusters);
    store_be32(raw + 60, h->snapshot_count);
    store_be64(raw + 64, h->snapshots_offset);
    if (h->version == 3) {
        store_be64(raw + 72, h->incompatible);
        store_be64(raw + 80, h->compatible);
        store_be64(raw + 88, h->autoclear & QCOW2_AUTOCLEAR_BITMAPS);
        store_be32(raw + 96, h->refcount_order);
        store_be32(raw + 100, HEADER_BYTES);
        raw[104] = h->compression;
    }
}

int qcow2_header_write(struct block_file *file, const struct qcow2_header *h)
{
    uint32_t cluster = 1u << h->cluster_bits;
    CLEANUP_FREE uint8_t *raw = NULL;
    size_t path_len = strlen(h->backing_path);
    uint32_t at = h->version == 3 ? HEADER_BYTES : QCOW2_V2_HEADER_BYTES;
    uint32_t end;
    int r;

    /* Room for the largest extensions; whether they fit the cluster is seen afterwards. */
    raw = calloc(1, (size_t)cluster + QCOW2_MAX_EXTENSION_BYTES + 4096);
    if (!raw) {
        return -ENOMEM;
    }
    put_numbers(raw, h);
    end = put_extensions(raw, at, h);
    if (end > cluster || path_len > cluster - end) {
        return -ENOSPC;
    }
    if (path_len > 0) {
        store_be64(raw + 8, end);
        store_be32(raw + 16, (uint32_t)path_len);
        memcpy(raw + end, h->backing_path, path_len);
        end += (uint32_t)path_len;
    }
    /* Only what is used, and to the end of its sector: other sectors keep what they have. */
    end = (end + SECTOR_BYTES - 1) & ~(SECTOR_BYTES - 1);
    if (end > SECTOR_BYTES) {
        r = block_file_pwrite(file, raw + SECTOR_BYTES, end - SECTOR_BYTES, SECTOR_BYTES);
        if (r < 0) {
            return r;
        }
    }
    return block_file_pwrite(file, raw, SECTOR_BYTES, 0);
}
