/*
 * The parts of the qcow2 format among themselves.
 *
 * One lock guards all metadata of an image; guest data moves outside of it.
 * Metadata changes in memory first and reaches the file in qcow2_flush(), in
 * the order of docs/qcow2-write-order.md. A cluster that nothing refers to any
 * more keeps its refcount until that is durable and no request from before is
 * in flight: until then it cannot be reused.
 *
 * _locked functions may read and write metadata under the lock, never wait for
 * other requests.
 */
#ifndef CORBEL_BLOCK_QCOW2_INT_H
#define CORBEL_BLOCK_QCOW2_INT_H

#include "base/thread.h"
#include "block/block_int.h"
#include "block/file.h"
#include "block/qcow2.h"

#define QCOW2_MAGIC 0x514649fbu
#define QCOW2_V2_HEADER_BYTES 72u
#define QCOW2_V3_HEADER_BYTES 104u
#define QCOW2_MAX_L1_BYTES (16u << 20)
#define QCOW2_MAX_REFTABLE_BYTES (8u << 20)
#define QCOW2_MAX_SNAPSHOT_TABLE_BYTES (16u << 20)
#define QCOW2_CACHE_BYTES (8u << 20)
#define QCOW2_MAX_EXTENSION_BYTES 65536u

/* Incompatible, compatible, autoclear features. */
#define QCOW2_INCOMPAT_DIRTY (1ull << 0)
#define QCOW2_INCOMPAT_CORRUPT (1ull << 1)
#define QCOW2_INCOMPAT_DATA_FILE (1ull << 2)
#define QCOW2_INCOMPAT_COMPRESSION (1ull << 3)
#define QCOW2_INCOMPAT_EXTL2 (1ull << 4)
#define QCOW2_INCOMPAT_KNOWN                                                      \
    (QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT | QCOW2_INCOMPAT_COMPRESSION | \
     QCOW2_INCOMPAT_EXTL2)
#define QCOW2_COMPAT_LAZY_REFCOUNTS (1ull << 0)
#define QCOW2_AUTOCLEAR_BITMAPS (1ull << 0)

#define QCOW2_COPIED (1ull << 63)
#define QCOW2_COMPRESSED (1ull << 62)
#define QCOW2_ZERO (1ull << 0)
#define QCOW2_OFFSET_MASK 0x00fffffffffffe00ull
#define QCOW2_SUBCLUSTERS 32u

struct qcow2_header {
    uint32_t version;
    uint64_t backing_offset; /* of its name, 0 when there is none */
    uint32_t cluster_bits;
    uint64_t size;
    uint64_t l1_offset;
    uint32_t l1_size;
    uint64_t reftable_offset;
    uint32_t reftable_clusters;
    uint32_t snapshot_count;
    uint64_t snapshots_offset;
    uint64_t incompatible, compatible, autoclear;
    uint32_t refcount_order;
    uint8_t compression;
    uint64_t bitmap_directory_offset, bitmap_directory_bytes;
    uint32_t bitmap_count;
    char backing_path[1024];
    char backing_format[16]; /* empty: not said */
    uint8_t *extensions;     /* those not understood, as in the file, without an end mark */
    uint32_t extensions_len;
};

/* A table of the file in memory: an L2 table or a refcount block, in file order of bytes. */
struct qcow2_table {
    uint64_t offset; /* 0: the slot is free */
    uint64_t dirty;  /* one bit per chunk */
    bool in_flush;   /* what is being written is not in the file yet: do not evict */
    bool was_used;   /* since the clock's hand passed */
    uint32_t next;   /* in the hash chain, index + 1 */
    uint8_t *data;
};

struct qcow2_cache {
    struct qcow2_table *tables;
    uint32_t *buckets; /* index + 1 */
    uint32_t count, bucket_count, hand;
    uint32_t table_bytes, chunk_bytes;
};

struct qcow2_range {
    uint64_t offset;
    uint64_t clusters;
};

struct qcow2_ranges {
    struct qcow2_range *items;
    size_t count, capacity;
};

/* Guest clusters whose mapping a request is about to change; on its stack. */
struct qcow2_claim {
    uint64_t first, last;
    struct qcow2_claim *next;
};

struct qcow2_bitmap {
    char *name;
    uint32_t granularity_bits;
    uint8_t type, flags_auto;
    bool is_inconsistent, is_changed, was_stored;
    uint64_t table_offset;
    uint32_t table_entries;
    uint64_t bits;  /* count */
    uint8_t *data;  /* NULL when inconsistent */
    uint8_t *extra; /* unknown extra data, kept */
    uint32_t extra_len;
};

/* What is kept to pack and unpack with. */
struct qcow2_packer;
struct qcow2_packers {
    struct mutex lock; /* LEAF */
    struct qcow2_packer *idle;
};

/* Mistakes on purpose, by which the tests of crashes prove that they see such. */
enum qcow2_planted_bug { QCOW2_BUG_NONE, QCOW2_BUG_MAP_FIRST, QCOW2_BUG_REUSE_EARLY };

struct qcow2 {
    struct block_image image;
    struct qcow2_header header; /* under lock once open */
    uint32_t cluster_bytes, cluster_bits;
    uint32_t l2_bits;        /* entries of an L2 table */
    uint32_t l2_entry_bytes; /* 8, or 16 with subclusters */
    uint32_t refblock_bits;  /* entries of a refcount block */
    uint32_t unit_bits;      /* of a subcluster, or a cluster without such */
    uint64_t refcount_max;
    bool is_device;
    enum qcow2_planted_bug planted_bug;
    struct qcow2_packers packers;

    struct mutex lock; /* guards all below */
    pthread_cond_t cond;
    uint64_t *l1;       /* host order */
    uint8_t *l1_dirty;  /* a flag per sector of the table */
    uint64_t *reftable; /* host order */
    uint8_t *reftable_dirty;
    uint32_t reftable_entries;
    struct qcow2_cache l2, refblocks;
    uint64_t *filter;    /* may tell that a cluster holds an L2 table or refcount block */
    uint64_t free_hint;  /* no cluster below it is free */
    uint64_t packed_end; /* where the next compressed cluster may go; 0: in a new one */
    uint64_t high_water; /* bytes; no cluster at or above was ever used */
    bool is_poisoned;    /* a flush failed: nothing written since the last is certain */
    bool is_corrupt;

    unsigned
        active[2]; /* requests in flight, by the epoch they began in; atomic, grows under lock */
    unsigned epoch;
    unsigned active_flushes;
    unsigned exclusive_waiting;
    bool is_exclusive;
    struct qcow2_claim *claims;

    /* Clusters without a reference: in memory; in the file; no request knows them. */
    struct qcow2_ranges freed, freed_durable, freed_grace;
    bool is_grace;
    unsigned grace_epoch;

    bool is_flushing;
    bool has_dirty_metadata; /* L1, L2 or refcounts changed since the last flush began */
    uint64_t flush_started, flush_done;
    int flush_result;

    struct qcow2_bitmap *bitmaps;
    uint32_t bitmap_count;
    uint32_t bitmaps_enabled;
};

static inline struct qcow2 *to_qcow2(struct block_image *image)
{
    return container_of(image, struct qcow2, image);
}

static inline uint64_t qcow2_size(const struct qcow2 *q)
{
    return __atomic_load_n(&q->image.size_bytes, __ATOMIC_ACQUIRE);
}

static inline uint64_t qcow2_clusters_of(const struct qcow2 *q, uint64_t bytes)
{
    return (bytes >> q->cluster_bits) + ((bytes & (q->cluster_bytes - 1)) != 0);
}

/* NULL when image has another format, with err set. */
struct qcow2 *qcow2_of(struct block_image *image, bool for_write, struct err *err);

/* qcow2_header.c */
int qcow2_header_read(struct block_file *file, const char *path, struct qcow2_header *ret_header,
                      struct err *err) MUST_CHECK;
void qcow2_header_done(struct qcow2_header *header);
/* The whole first cluster, built new; its first sector last. Not durable yet. */
int qcow2_header_write(struct block_file *file, const struct qcow2_header *header);
/* Entries that the active L1 table needs for a disk of size bytes. */
uint64_t qcow2_header_l1_needed(const struct qcow2_header *header, uint64_t size);

/* qcow2_cache.c: under the lock */
int qcow2_cache_init(struct qcow2_cache *cache, uint32_t table_bytes) MUST_CHECK;
void qcow2_cache_done(struct qcow2_cache *cache);
/* A table that is in memory, or NULL. */
struct qcow2_table *qcow2_cache_find(struct qcow2_cache *cache, uint64_t offset);
/* A slot for a table that is not in memory, its data undefined; -EBUSY when all are dirty. */
int qcow2_cache_take(struct qcow2_cache *cache, uint64_t offset, struct qcow2_table **ret_table)
    MUST_CHECK;
void qcow2_cache_move(struct qcow2_cache *cache, struct qcow2_table *table, uint64_t new_offset);
void qcow2_cache_drop(struct qcow2_cache *cache, struct qcow2_table *table);
void qcow2_cache_drop_all(struct qcow2_cache *cache);
void qcow2_cache_dirty(struct qcow2_cache *cache, struct qcow2_table *table, uint32_t byte,
                       uint32_t len);

/* qcow2_refcount.c */
uint64_t qcow2_refcount_load(const void *block, uint64_t index, uint32_t order);
void qcow2_refcount_store(void *block, uint64_t index, uint32_t order, uint64_t value);
int qcow2_refcount_get_locked(struct qcow2 *q, uint64_t cluster, uint64_t *ret_count) MUST_CHECK;
/* Makes the refcount block when there is none. -ERANGE when the width does not hold it. */
int qcow2_refcount_change_locked(struct qcow2 *q, uint64_t cluster, int64_t delta);
/* Makes sure that a refcount block covers cluster; may take clusters from there on for itself. */
int qcow2_refcount_cover_locked(struct qcow2 *q, uint64_t cluster) MUST_CHECK;

/* qcow2_alloc.c */
/* Up to want clusters in a row, refcount 1; *ret_is_fresh: they read as zero. */
int qcow2_alloc_locked(struct qcow2 *q, uint64_t want, uint64_t *ret_offset, uint64_t *ret_got,
                       bool *ret_is_fresh) MUST_CHECK;
int qcow2_alloc_exact_locked(struct qcow2 *q, uint64_t clusters, uint64_t *ret_offset) MUST_CHECK;
/* Never referred to by the file: free at once. */
void qcow2_unalloc_locked(struct qcow2 *q, uint64_t offset, uint64_t clusters);
/* No longer referred to in memory: free when that is durable. */
void qcow2_free_locked(struct qcow2 *q, uint64_t offset, uint64_t clusters);
void qcow2_ranges_add(struct qcow2_ranges *ranges, uint64_t offset, uint64_t clusters,
                      uint32_t cluster_bits);
void qcow2_ranges_move(struct qcow2_ranges *to, struct qcow2_ranges *from, uint32_t cluster_bits);
/* Gives back what nothing can know any more; by the one flush that runs. Takes the lock. */
void qcow2_release_freed(struct qcow2 *q);
/* Whether bytes of the file hold metadata, as far as memory tells. */
bool qcow2_is_metadata_locked(const struct qcow2 *q, uint64_t offset, uint64_t len);
void qcow2_filter_add(struct qcow2 *q, uint64_t offset);
/* Marks the image, refuses all further changes, returns -EIO. */
int qcow2_set_corrupt_locked(struct qcow2 *q, const char *what, uint64_t where);
#ifdef __clang_analyzer__
#define qcow2_set_corrupt_locked(...) KNOWN_NEGATIVE(qcow2_set_corrupt_locked(__VA_ARGS__))
#endif

/* qcow2_l2.c */
enum qcow2_kind {
    QCOW2_UNALLOCATED, /* host may be set with subclusters */
    QCOW2_NORMAL,
    QCOW2_ZEROES, /* host may be set */
    QCOW2_PACKED  /* compressed */
};

struct qcow2_piece {
    enum qcow2_kind kind;
    uint64_t len;   /* from the offset asked for */
    uint64_t host;  /* of that offset; of the cluster's entry when packed; 0 when none */
    bool is_copied; /* the place is this image's alone */
};

/* The L2 table of a guest offset: NULL in *ret_table when there is none. */
int qcow2_l2_get_locked(struct qcow2 *q, uint64_t offset, struct qcow2_table **ret_table)
    MUST_CHECK;
/* The same, made or copied so that it may be changed. -EBUSY: flush, then again. */
int qcow2_l2_get_writable_locked(struct qcow2 *q, uint64_t offset, struct qcow2_table **ret_table)
    MUST_CHECK;
uint64_t qcow2_l2_entry(const struct qcow2 *q, const struct qcow2_table *table, uint64_t offset,
                        uint64_t *ret_bits);
void qcow2_l2_set_entry(struct qcow2 *q, struct qcow2_table *table, uint64_t offset, uint64_t entry,
                        uint64_t bits);
/* Describes the longest piece of one kind, in one place, from offset; len is not 0. */
int qcow2_l2_piece_locked(struct qcow2 *q, const struct qcow2_table *table, uint64_t offset,
                          uint64_t len, struct qcow2_piece *ret_piece) MUST_CHECK;
/* Lets go what an entry refers to. */
void qcow2_l2_free_entry_locked(struct qcow2 *q, uint64_t entry);
/* Bytes of the file that a compressed entry names. */
void qcow2_l2_packed(const struct qcow2 *q, uint64_t entry, uint64_t *ret_offset,
                     uint64_t *ret_len);

/* qcow2_flush.c */
/* Data and metadata durable, in order; takes the lock. */
int qcow2_flush(struct qcow2 *q) MUST_CHECK;
int qcow2_file_flush(struct qcow2 *q) MUST_CHECK; /* poisons the image when it fails */

/* qcow2_io.c: requests within the image, the gate held */
int qcow2_read(struct qcow2 *q, struct iovec *iov, unsigned count, uint64_t offset, uint64_t len)
    MUST_CHECK;
int qcow2_write(struct qcow2 *q, struct iovec *iov, unsigned count, uint64_t offset, uint64_t len)
    MUST_CHECK;
int qcow2_read_piece(struct qcow2 *q, const struct qcow2_piece *piece, struct iovec *iov,
                     unsigned count, uint64_t offset) MUST_CHECK;
int qcow2_read_buf(struct qcow2 *q, void *buf, uint64_t offset, uint64_t len) MUST_CHECK;
void qcow2_claim_locked(struct qcow2 *q, struct qcow2_claim *claim, uint64_t offset, uint64_t len);
void qcow2_unclaim_locked(struct qcow2 *q, struct qcow2_claim *claim);
/* Cuts up to len bytes off the front of a vector into out; the count of its parts. */
unsigned qcow2_iov_take(struct iovec **iov, unsigned *count, uint64_t len, struct iovec *out);

/* qcow2_discard.c */
int qcow2_write_zeroes(struct qcow2 *q, uint64_t offset, uint64_t len, bool may_unmap) MUST_CHECK;
int qcow2_discard(struct qcow2 *q, uint64_t offset, uint64_t len) MUST_CHECK;

/* qcow2.c: who may run beside whom */
unsigned qcow2_enter(struct qcow2 *q); /* waits while an exclusive caller works; the epoch */
void qcow2_leave(struct qcow2 *q, unsigned epoch);
void qcow2_exclusive_begin(struct qcow2 *q);
void qcow2_exclusive_end(struct qcow2 *q);
int qcow2_may_write_locked(const struct qcow2 *q) MUST_CHECK; /* -EIO when poisoned or corrupt */

/* qcow2_compress.c */
int qcow2_unpack(struct qcow2 *q, uint64_t entry, void *cluster) MUST_CHECK;

/* qcow2_pack.c: what packs and unpacks, one cluster at a time; a packer is its taker's alone */
void qcow2_packers_init(struct qcow2_packers *packers);
void qcow2_packers_done(struct qcow2_packers *packers); /* all have been given back */
struct qcow2_packer *qcow2_packer_take(struct qcow2_packers *packers); /* NULL: no memory */
void qcow2_packer_give(struct qcow2_packers *packers, struct qcow2_packer *packer);
/* Memory of at least so many bytes, until the packer is given back. NULL when there is none. */
uint8_t *qcow2_packer_buf(struct qcow2_packer *packer, size_t bytes);
/* -EIO when it is no cluster. */
int qcow2_packer_unpack(struct qcow2_packer *packer, uint8_t compression, const void *packed,
                        size_t len, void *cluster, uint32_t cluster_bytes) MUST_CHECK;
/* packed has room for a cluster. -E2BIG when it would save less than a sector, or next to nothing. */
int qcow2_packer_pack(struct qcow2_packer *packer, uint8_t compression, const void *cluster,
                      uint32_t cluster_bytes, void *packed, size_t *ret_len) MUST_CHECK;

/* qcow2_walk.c: counts every reference of the file */
struct qcow2_refs;
struct qcow2_snapshot;

struct qcow2_roots {
    uint64_t l1_offset; /* 0: has no place yet */
    const uint64_t *l1; /* in memory, host order */
    uint32_t l1_size;
    uint64_t snapshots_offset, snapshots_bytes;
    const struct qcow2_snapshot *snapshots;
    uint32_t snapshot_count;
    bool skip_refcounts; /* leave the refcount table and blocks out */
};

struct qcow2_walk {
    struct qcow2_refs *refs;
    uint64_t corruptions, errors;
    uint64_t allocated, packed, fragmented, data_end;
    block_check_report_fn report;
    void *opaque;
    uint64_t file_end;  /* no reference may go beyond */
    uint64_t next_host; /* where the next cluster would lie without fragmentation */
};

struct qcow2_refs *qcow2_refs_create(uint64_t max_clusters, uint64_t max_bytes);
void qcow2_refs_destroy(struct qcow2_refs *refs);
uint32_t qcow2_refs_get(const struct qcow2_refs *refs, uint64_t cluster);
int qcow2_refs_add(struct qcow2_refs *refs, uint64_t cluster, uint32_t count) MUST_CHECK;
void qcow2_refs_drop(struct qcow2_refs *refs, uint64_t cluster); /* one less */
uint64_t qcow2_refs_end(const struct qcow2_refs *refs); /* one past the last counted cluster */
int qcow2_walk_all(struct qcow2 *q, const struct qcow2_roots *roots, struct qcow2_walk *walk)
    MUST_CHECK;
/* The bound of a refs array for this file. */
int qcow2_walk_bounds(struct qcow2 *q, uint64_t *ret_clusters, uint64_t *ret_bytes) MUST_CHECK;
void qcow2_walk_report(struct qcow2_walk *walk, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* qcow2_rebuild.c: one step from one consistent state of the file to another */
/*
 * Makes header, with l1 as the active L1 table and these snapshots, what the
 * file holds. The L1 table, the L2 tables whose flags have to change, and all
 * refcounts get new places; the header names them in one sector. Everything
 * was flushed before; nobody else runs. l1 is the image's when it succeeds;
 * nothing has changed when it fails. Repair: trusts no refcount, drops entries
 * that make no sense.
 */
int qcow2_rebuild(struct qcow2 *q, const struct qcow2_header *new_header, uint64_t *l1,
                  const struct qcow2_snapshot *snapshots, uint64_t snapshots_bytes, bool is_repair,
                  struct err *err) MUST_CHECK;

/* qcow2_snapshot.c */
struct qcow2_snapshot {
    uint64_t l1_offset;
    uint32_t l1_size;
    char *id, *name;
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_ns, vm_state_bytes, size_bytes;
    uint8_t *extra; /* beyond what is known, kept */
    uint32_t extra_len;
};
/* *ret_bytes: the length of the table in the file. */
int qcow2_snapshots_read(struct qcow2 *q, struct qcow2_snapshot **ret_snapshots,
                         uint64_t *ret_bytes, struct err *err) MUST_CHECK;
void qcow2_snapshots_free(struct qcow2_snapshot *snapshots, uint32_t count);
/* Reads an L1 table of the file into host order; the caller frees it. */
int qcow2_l1_read(struct qcow2 *q, uint64_t offset, uint32_t entries, uint64_t **ret_l1) MUST_CHECK;

/* qcow2_check.c */
int qcow2_check(struct qcow2 *q, enum block_repair repair, block_check_report_fn report,
                void *opaque, struct block_check_result *ret_result, struct err *err) MUST_CHECK;
int qcow2_repair_on_open(struct qcow2 *q, struct err *err) MUST_CHECK;

/* qcow2_create.c */
/* What qcow2_create_image() would refuse before it writes anything. */
int qcow2_check_create(const struct block_create_options *options, uint64_t size_bytes,
                       struct err *err) MUST_CHECK;
int qcow2_create_image(const struct block_create_options *options, uint64_t size_bytes,
                       struct block_file *file, struct err *err) MUST_CHECK;

/* qcow2_resize.c */
int qcow2_resize(struct block_image *image, uint64_t size_bytes, struct err *err) MUST_CHECK;
int qcow2_preallocate(struct qcow2 *q, uint64_t offset, uint64_t len, enum block_prealloc mode)
    MUST_CHECK;

/* qcow2_bitmap.c */
int qcow2_bitmaps_load(struct qcow2 *q, struct err *err) MUST_CHECK;
int qcow2_bitmaps_store(struct qcow2 *q) MUST_CHECK;
int qcow2_bitmaps_resize(struct qcow2 *q) MUST_CHECK; /* to the new size of the disk */
void qcow2_bitmaps_done(struct qcow2 *q);
void qcow2_bitmaps_mark_locked(struct qcow2 *q, uint64_t offset, uint64_t len);

#endif
