/*
 * A file of an ext2, ext3 or ext4 file system, read without mounting it: in a
 * jail, since all of it is a stranger's. The journal is not replayed and
 * checksums are not verified: what a clean shutdown or a build tool left is read
 * as it is. Layout: the kernel's Documentation/filesystems/ext4.
 */
#include "base/io.h"
#include "base/wire.h"
#include "storage/import_jailed.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define SUPER_AT 1024u
#define SUPER_BYTES 1024u
#define SUPER_MAGIC 0xef53u
#define FIRST_INODE_BYTES 128u
#define ROOT_INODE 2u
#define MAX_BLOCK_BYTES (64u << 10)
#define MAX_DIRECTORY_BYTES (64ull << 20)
#define MAX_FILE_BYTES (1ull << 30)
#define MAX_EXTENT_DEPTH 5u
#define EXTENT_MAGIC 0xf30au
#define EXTENT_BYTES 12u /* header, index and extent alike */
#define LONGEST_EXTENT 32768u
#define DIRECT_BLOCKS 12u

/* Incompatible features: those beside these say that the layout is another. */
#define HAS_64BIT 0x80u
#define KNOWN_FEATURES                                                                           \
    (0x2u /* types in directories */ | 0x4u /* journal to replay */ | 0x40u /* extents */ |      \
     HAS_64BIT | 0x100u /* multiple mounts */ | 0x200u /* flexible groups */ |                   \
     0x400u /* attributes in inodes */ | 0x2000u /* checksum seed */ | 0x4000u /* large dir */ | \
     0x8000u /* data in inodes */ | 0x10000u /* encryption */ | 0x20000u /* case folding */)

#define INODE_COMPRESSED 0x4u
#define INODE_ENCRYPTED 0x800u
#define INODE_EXTENTS 0x80000u
#define INODE_INLINE 0x10000000u
#define MODE_TYPE 0xf000u
#define MODE_DIRECTORY 0x4000u
#define MODE_FILE 0x8000u

struct ext {
    int disk;
    uint64_t offset;
    uint32_t block_bytes, inode_bytes, group_bytes; /* of one descriptor */
    uint32_t inode_count, inodes_per_group, first_block;
    uint64_t block_count;
    unsigned char
        block[MAX_BLOCK_BYTES]; /* of a map; another is read only when this is done with */
};

struct inode {
    unsigned char map[60];
    uint64_t bytes;
    uint32_t flags;
    uint16_t mode;
};

/* A run of blocks that follow each other on the disk; at 0: a hole. */
struct run {
    uint64_t at, count;
};

static int damaged(struct err *err)
{
    (void)err_set(err, -EBADMSG, "its file system is damaged");
    return -EBADMSG;
}

static int read_at(const struct ext *ext, uint64_t at, void *buf, size_t len, struct err *err)
{
    ssize_t n = io_pread_full(ext->disk, buf, len, ext->offset + at);

    return n == (ssize_t)len ? 0 : damaged(err);
}

static int read_block(const struct ext *ext, uint64_t block, void *buf, struct err *err)
{
    return block != 0 && block < ext->block_count
               ? read_at(ext, block * ext->block_bytes, buf, ext->block_bytes, err)
               : damaged(err);
}

static int open_ext(struct ext *ext, struct err *err)
{
    unsigned char super[SUPER_BYTES];
    uint32_t shift, features;
    int rc = read_at(ext, SUPER_AT, super, sizeof(super), err);

    if (rc < 0) {
        return rc;
    }
    shift = load_le32(super + 0x18);
    features = load_le32(super + 0x4c) == 0 ? 0 : load_le32(super + 0x60);
    if (load_le16(super + 0x38) != SUPER_MAGIC || shift > 6) {
        return damaged(err);
    }
    if ((features & ~KNOWN_FEATURES) != 0) {
        return err_set(err, -ENOTSUP, "its file system has features that are not known here");
    }
    ext->block_bytes = 1024u << shift;
    ext->inode_count = load_le32(super);
    ext->inodes_per_group = load_le32(super + 0x28);
    ext->first_block = load_le32(super + 0x14);
    ext->inode_bytes = load_le32(super + 0x4c) == 0 ? FIRST_INODE_BYTES : load_le16(super + 0x58);
    ext->group_bytes = (features & HAS_64BIT) != 0 ? load_le16(super + 0xfe) : 32;
    ext->block_count = load_le32(super + 0x4);
    ext->block_count |= (features & HAS_64BIT) != 0 ? (uint64_t)load_le32(super + 0x150) << 32 : 0;
    if (ext->inodes_per_group == 0 || ext->inode_bytes < FIRST_INODE_BYTES ||
        ext->inode_bytes > ext->block_bytes || ext->group_bytes < 32 ||
        ext->group_bytes > ext->block_bytes ||
        ext->block_count > (uint64_t)(INT64_MAX - MAX_BLOCK_BYTES) / MAX_BLOCK_BYTES ||
        ext->offset > (uint64_t)INT64_MAX / 2 || ext->first_block > 1) {
        return damaged(err);
    }
    return 0;
}

static int read_inode(const struct ext *ext, uint32_t number, struct inode *ret_inode,
                      struct err *err)
{
    unsigned char group[64] = {0};
    unsigned char bytes[FIRST_INODE_BYTES];
    uint32_t index = number - 1;
    uint64_t table;
    int rc;

    if (number == 0 || number > ext->inode_count) {
        return damaged(err);
    }
    rc = read_at(ext,
                 (uint64_t)(ext->first_block + 1) * ext->block_bytes +
                     (uint64_t)(index / ext->inodes_per_group) * ext->group_bytes,
                 group, ext->group_bytes < sizeof(group) ? ext->group_bytes : sizeof(group), err);
    if (rc < 0) {
        return rc;
    }
    table = load_le32(group + 0x8);
    table |= ext->group_bytes >= 64 ? (uint64_t)load_le32(group + 0x28) << 32 : 0;
    if (table == 0 || table >= ext->block_count) {
        return damaged(err);
    }
    rc = read_at(ext,
                 table * ext->block_bytes +
                     (uint64_t)(index % ext->inodes_per_group) * ext->inode_bytes,
                 bytes, sizeof(bytes), err);
    if (rc < 0) {
        return rc;
    }
    ret_inode->mode = load_le16(bytes);
    ret_inode->bytes = load_le32(bytes + 0x4);
    if ((ret_inode->mode & MODE_TYPE) == MODE_FILE) {
        ret_inode->bytes |= (uint64_t)load_le32(bytes + 0x6c) << 32;
    }
    ret_inode->flags = load_le32(bytes + 0x20);
    memcpy(ret_inode->map, bytes + 0x28, sizeof(ret_inode->map));
    return 0;
}

/* ---- where a file's blocks are ---- */

/* Of a node's entries, which begin with the block they are for, the last that is not after it. */
static const unsigned char *last_entry(const unsigned char *node, uint32_t block)
{
    const unsigned char *found = NULL;
    unsigned count = load_le16(node + 2);

    for (unsigned i = 1; i <= count; i++) {
        const unsigned char *entry = node + (size_t)i * EXTENT_BYTES;

        if (load_le32(entry) > block) {
            break;
        }
        found = entry;
    }
    return found;
}

static int check_node(const unsigned char *node, size_t bytes, unsigned depth, struct err *err)
{
    return load_le16(node) == EXTENT_MAGIC && load_le16(node + 6) == depth &&
                   (load_le16(node + 2) + 1u) * EXTENT_BYTES <= bytes
               ? 0
               : damaged(err);
}

/* The leaf of the tree that block is in; NULL when it is in a hole. */
static int find_leaf(struct ext *ext, const struct inode *inode, uint32_t block,
                     const unsigned char **ret_leaf, struct err *err)
{
    const unsigned char *node = inode->map;
    unsigned depth = load_le16(node + 6);
    int rc =
        depth <= MAX_EXTENT_DEPTH ? check_node(node, sizeof(inode->map), depth, err) : damaged(err);

    while (rc == 0 && depth > 0) {
        const unsigned char *entry = last_entry(node, block);

        if (entry == NULL) {
            *ret_leaf = NULL;
            return 0;
        }
        rc = read_block(ext, load_le32(entry + 4) | (uint64_t)load_le16(entry + 8) << 32,
                        ext->block, err);
        node = ext->block;
        depth--;
        rc = rc < 0 ? rc : check_node(node, ext->block_bytes, depth, err);
    }
    *ret_leaf = node;
    return rc;
}

static int find_in_extents(struct ext *ext, const struct inode *inode, uint32_t block,
                           struct run *ret_run, struct err *err)
{
    const unsigned char *leaf = NULL;
    const unsigned char *extent;
    int rc = find_leaf(ext, inode, block, &leaf, err);
    uint32_t len, into;

    *ret_run = (struct run){.at = 0, .count = 1};
    extent = rc == 0 && leaf != NULL ? last_entry(leaf, block) : NULL;
    if (extent == NULL) {
        return rc;
    }
    into = block - load_le32(extent);
    len = load_le16(extent + 4);
    if (len > LONGEST_EXTENT) { /* allocated and not written */
        if (into < len - LONGEST_EXTENT) {
            ret_run->count = len - LONGEST_EXTENT - into;
        }
        return 0;
    }
    if (into < len) {
        ret_run->at = (load_le32(extent + 8) | (uint64_t)load_le16(extent + 6) << 32) + into;
        ret_run->count = len - into;
    }
    return 0;
}

/* The twelve first, then by one, two and three tables. */
static int find_in_tables(struct ext *ext, const struct inode *inode, uint32_t block,
                          struct run *ret_run, struct err *err)
{
    uint64_t per_table = ext->block_bytes / 4;
    uint64_t rest = block, covered = 1;
    unsigned level = 0;
    uint64_t at;

    if (rest < DIRECT_BLOCKS) {
        *ret_run = (struct run){.at = load_le32(inode->map + rest * 4), .count = 1};
        return 0;
    }
    rest -= DIRECT_BLOCKS;
    for (covered = per_table, level = 1; level < 3 && rest >= covered; level++) {
        rest -= covered;
        covered *= per_table;
    }
    if (rest >= covered) {
        return damaged(err);
    }
    at = load_le32(inode->map + (size_t)(DIRECT_BLOCKS + level - 1) * 4);
    while (level > 0 && at != 0) {
        int rc = read_block(ext, at, ext->block, err);

        if (rc < 0) {
            return rc;
        }
        covered /= per_table;
        at = load_le32(ext->block + rest / covered * 4);
        rest %= covered;
        level--;
    }
    *ret_run = (struct run){.at = at, .count = 1};
    return 0;
}

static int find_run(struct ext *ext, const struct inode *inode, uint32_t block, struct run *ret_run,
                    struct err *err)
{
    int rc = (inode->flags & INODE_EXTENTS) != 0 ? find_in_extents(ext, inode, block, ret_run, err)
                                                 : find_in_tables(ext, inode, block, ret_run, err);

    if (rc == 0 && ret_run->at != 0 &&
        (ret_run->at >= ext->block_count || ret_run->count > ext->block_count - ret_run->at)) {
        return damaged(err);
    }
    return rc;
}

static int check_inode(const struct inode *inode, unsigned type, uint64_t max_bytes,
                       struct err *err)
{
    if ((inode->mode & MODE_TYPE) != type) {
        return err_set(err, -ENOENT, "it is no %s", type == MODE_FILE ? "file" : "directory");
    }
    if ((inode->flags & (INODE_INLINE | INODE_ENCRYPTED | INODE_COMPRESSED)) != 0) {
        return err_set(err, -ENOTSUP, "it is encrypted, compressed or kept in its inode");
    }
    return inode->bytes <= max_bytes ? 0 : err_set(err, -EFBIG, "it is too large");
}

/* ---- directories ---- */

/* The number of the inode of that name in one block of a directory, or 0. */
static uint32_t search_block(const unsigned char *block, uint32_t bytes, const char *name,
                             size_t len)
{
    uint32_t at = 0;

    while (bytes - at >= 8) {
        const unsigned char *entry = block + at;
        uint32_t record = load_le16(entry + 4);

        if (bytes == MAX_BLOCK_BYTES && (record == 0 || record == 0xffff)) {
            record = MAX_BLOCK_BYTES;
        }
        if (record < 8 || record > bytes - at) {
            return 0;
        }
        if (load_le32(entry) != 0 && entry[6] == len && 8 + len <= record &&
            memcmp(entry + 8, name, len) == 0) {
            return load_le32(entry);
        }
        at += record;
    }
    return 0;
}

/* Hashed directories look like plain ones to who reads all of them. */
static int search_directory(struct ext *ext, const struct inode *directory, const char *name,
                            size_t len, uint32_t *ret_number, struct err *err)
{
    unsigned char block[MAX_BLOCK_BYTES];
    uint64_t blocks = directory->bytes / ext->block_bytes;
    int rc = 0;

    *ret_number = 0;
    for (uint32_t i = 0; rc == 0 && *ret_number == 0 && i < blocks; i++) {
        struct run run = {.at = 0};

        rc = find_run(ext, directory, i, &run, err);
        if (rc == 0 && run.at != 0) {
            rc = read_block(ext, run.at, block, err);
            *ret_number = rc == 0 ? search_block(block, ext->block_bytes, name, len) : 0;
        }
    }
    return rc == 0 && *ret_number == 0 ? err_set(err, -ENOENT, "there is none") : rc;
}

/* Symbolic links are no directories here, so a path cannot lead in circles. */
static int walk(struct ext *ext, const char *path, struct inode *ret_inode, struct err *err)
{
    int rc;

    *ret_inode = (struct inode){.mode = 0};
    rc = read_inode(ext, ROOT_INODE, ret_inode, err);

    while (rc == 0) {
        size_t len;
        uint32_t number;

        path += strspn(path, "/");
        len = strcspn(path, "/");
        if (len == 0) {
            return 0;
        }
        rc = check_inode(ret_inode, MODE_DIRECTORY, MAX_DIRECTORY_BYTES, err);
        rc = rc < 0 ? rc : search_directory(ext, ret_inode, path, len, &number, err);
        rc = rc < 0 ? rc : read_inode(ext, number, ret_inode, err);
        path += len;
    }
    return rc;
}

/* ---- together ---- */

/* To a descriptor, leaving holes, or into memory, which is zero. */
static int copy_piece(const struct ext *ext, const struct import_ext_file *file, uint64_t from,
                      uint64_t to, size_t len, struct err *err)
{
    unsigned char piece[MAX_BLOCK_BYTES];
    int rc;

    if (file->out < 0) {
        return read_at(ext, from, file->text + to, len, err);
    }
    rc = read_at(ext, from, piece, len, err);
    if (rc == 0) {
        rc = io_pwrite_full(file->out, piece, len, to);
        rc = rc < 0 ? err_set_errno(err, rc, "it cannot be written") : 0;
    }
    return rc;
}

static int copy_run(const struct ext *ext, const struct import_ext_file *file,
                    const struct run *run, uint64_t to, uint64_t bytes, struct err *err)
{
    uint64_t from = run->at * ext->block_bytes;
    int rc = 0;

    for (uint64_t done = 0; rc == 0 && run->at != 0 && done < bytes;) {
        size_t len = bytes - done < MAX_BLOCK_BYTES ? (size_t)(bytes - done) : MAX_BLOCK_BYTES;

        rc = copy_piece(ext, file, from + done, to + done, len, err);
        done += len;
    }
    return rc;
}

static int copy_file(struct ext *ext, const struct import_ext_file *file, const struct inode *inode,
                     struct err *err)
{
    int rc = 0;

    for (uint64_t done = 0; rc == 0 && done < inode->bytes;) {
        struct run run = {.at = 0};
        uint64_t bytes = inode->bytes - done;

        rc = find_run(ext, inode, (uint32_t)(done / ext->block_bytes), &run, err);
        if (rc == 0) {
            bytes = run.count * ext->block_bytes < bytes ? run.count * ext->block_bytes : bytes;
            rc = copy_run(ext, file, &run, done, bytes, err);
        }
        done += bytes;
    }
    if (rc == 0 && file->out >= 0 && ftruncate(file->out, (off_t)inode->bytes) != 0) {
        rc = err_set_errno(err, -errno, "it cannot be written");
    }
    return rc;
}

int import_read_ext_file(void *opaque, struct err *err)
{
    const struct import_ext_file *file = opaque;
    struct ext ext = {.disk = file->disk, .offset = file->offset};
    struct inode inode = {.mode = 0};
    int rc = open_ext(&ext, err);

    rc = rc < 0 ? rc : walk(&ext, file->path, &inode, err);
    rc = rc < 0 ? rc
                : check_inode(&inode, MODE_FILE,
                              file->out < 0 ? file->text_bytes - 1 : MAX_FILE_BYTES, err);
    if (rc == 0 && file->out < 0) {
        memset(file->text, 0, file->text_bytes);
    }
    return rc < 0 ? rc : copy_file(&ext, file, &inode, err);
}
