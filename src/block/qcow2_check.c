/* Is every refcount what the references say, and do the flags agree? And mending. */
#include "base/log.h"
#include "base/wire.h"
#include "block/qcow2_int.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define MAX_REPAIRS 3u

struct check {
    struct qcow2 *q;
    struct qcow2_walk walk;
    struct qcow2_snapshot *snapshots;
    uint64_t snapshots_bytes;
    uint64_t leaks;
};

static void check_cluster(struct check *c, uint64_t cluster)
{
    struct qcow2 *q = c->q;
    uint64_t is = 0;
    uint64_t should = qcow2_refs_get(c->walk.refs, cluster);
    int r;

    mutex_lock(&q->lock);
    r = qcow2_refcount_get_locked(q, cluster, &is);
    mutex_unlock(&q->lock);
    if (r < 0) {
        c->walk.errors++;
        qcow2_walk_report(&c->walk, "cannot read the refcount of cluster %" PRIu64, cluster);
    } else if (is > should) {
        c->leaks++;
        qcow2_walk_report(
            &c->walk, "cluster %" PRIu64 " is leaked: refcount %" PRIu64 ", references %" PRIu64,
            cluster, is, should);
    } else if (is < should) {
        c->walk.corruptions++;
        qcow2_walk_report(&c->walk,
                          "cluster %" PRIu64 " has refcount %" PRIu64 " but %" PRIu64 " references",
                          cluster, is, should);
    }
}

static void check_refcounts(struct check *c)
{
    struct qcow2 *q = c->q;
    uint64_t per_block = 1ull << q->refblock_bits;
    uint64_t file_clusters = c->walk.file_end >> q->cluster_bits;
    uint64_t end = qcow2_refs_end(c->walk.refs);

    for (uint64_t i = 0; i < q->reftable_entries || i * per_block < end; i++) {
        uint64_t first = i * per_block;
        bool has_block = i < q->reftable_entries && q->reftable[i] != 0;

        if (has_block && first > file_clusters) {
            /* Numbers for clusters that the file does not have can only be leaks. */
            c->leaks++;
            qcow2_walk_report(&c->walk, "a refcount block describes nothing of the file");
            continue;
        }
        if (!has_block && first >= end) {
            continue;
        }
        for (uint64_t j = first; j < first + per_block; j++) {
            check_cluster(c, j);
        }
    }
}

static void check_flag(struct check *c, uint64_t entry, const char *what)
{
    uint64_t offset = entry & QCOW2_OFFSET_MASK;
    uint64_t count = 0;
    int r;

    if (offset == 0 || offset >= c->walk.file_end) {
        return;
    }
    mutex_lock(&c->q->lock);
    r = qcow2_refcount_get_locked(c->q, offset >> c->q->cluster_bits, &count);
    mutex_unlock(&c->q->lock);
    if (r == 0 && (count == 1) != ((entry & QCOW2_COPIED) != 0)) {
        c->walk.corruptions++;
        qcow2_walk_report(&c->walk,
                          "%s at 0x%" PRIx64 " has refcount %" PRIu64 " and the wrong flag", what,
                          offset, count);
    }
}

static int check_flags(struct check *c)
{
    struct qcow2 *q = c->q;
    CLEANUP_FREE uint8_t *raw = malloc(q->cluster_bytes);

    if (!raw) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < q->header.l1_size; i++) {
        uint64_t offset = q->l1[i] & QCOW2_OFFSET_MASK;

        if (offset == 0 || (offset & (q->cluster_bytes - 1)) || offset >= c->walk.file_end) {
            continue;
        }
        check_flag(c, q->l1[i], "an L2 table");
        if (block_file_pread(q->image.file, raw, q->cluster_bytes, offset) < 0) {
            continue; /* counted in the walk */
        }
        for (uint32_t j = 0; j < q->cluster_bytes; j += q->l2_entry_bytes) {
            uint64_t entry = load_be64(raw + j);

            if (!(entry & QCOW2_COMPRESSED)) {
                check_flag(c, entry, "a data cluster");
            }
        }
    }
    return 0;
}

static int check_once(struct check *c)
{
    struct qcow2 *q = c->q;
    struct qcow2_roots roots = {
        .l1_offset = q->header.l1_offset,
        .l1 = q->l1,
        .l1_size = q->header.l1_size,
        .snapshots_offset = q->header.snapshots_offset,
        .snapshots_bytes = c->snapshots_bytes,
        .snapshots = c->snapshots,
        .snapshot_count = q->header.snapshot_count,
    };
    uint64_t clusters = 0, bytes = 0;
    int r = qcow2_walk_bounds(q, &clusters, &bytes);

    if (r < 0) {
        return r;
    }
    c->walk.file_end = clusters << q->cluster_bits;
    c->walk.refs = qcow2_refs_create(clusters, bytes);
    r = c->walk.refs ? qcow2_walk_all(q, &roots, &c->walk) : -ENOMEM;
    if (r == 0) {
        check_refcounts(c);
        r = check_flags(c);
    }
    qcow2_refs_destroy(c->walk.refs);
    c->walk.refs = NULL;
    return r;
}

static void fill_result(const struct check *c, struct block_check_result *result)
{
    result->corruptions = c->walk.corruptions;
    result->leaks = c->leaks;
    result->errors = c->walk.errors;
    result->total_clusters = qcow2_clusters_of(c->q, qcow2_size(c->q));
    result->allocated_clusters = c->walk.allocated;
    result->compressed_clusters = c->walk.packed;
    result->fragmented_clusters = c->walk.fragmented;
    result->image_end_bytes = c->walk.data_end;
}

/* New tables from what the references say; marks of trouble go. */
static int repair(struct check *c, struct err *err)
{
    struct qcow2 *q = c->q;
    struct qcow2_header header = q->header;
    uint64_t *l1 = calloc((size_t)header.l1_size + 1, sizeof(*l1));
    int r;

    if (!l1) {
        return err_set(err, -ENOMEM, "no memory for the repair");
    }
    if (header.l1_size > 0) {
        memcpy(l1, q->l1, header.l1_size * sizeof(*l1));
    }
    header.incompatible &= ~(QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
    r = qcow2_rebuild(q, &header, l1, c->snapshots, c->snapshots_bytes, true, err);
    if (r < 0) {
        free(l1);
        return r;
    }
    q->is_corrupt = false;
    return 0;
}

/* What is left then takes the place of what was found before. */
static int repair_and_check(struct check *c, struct block_check_result *result, struct err *err)
{
    struct check again = {
        .q = c->q, .snapshots = c->snapshots, .snapshots_bytes = c->snapshots_bytes};
    int r = repair(c, err);

    if (r < 0) {
        return r;
    }
    r = check_once(&again);
    if (r < 0) {
        return err_set_errno(err, r, "cannot check what was repaired");
    }
    result->corruptions_fixed += result->corruptions > again.walk.corruptions
                                     ? result->corruptions - again.walk.corruptions
                                     : 0;
    result->leaks_fixed += result->leaks > again.leaks ? result->leaks - again.leaks : 0;
    result->corruptions = again.walk.corruptions;
    result->leaks = again.leaks;
    result->image_end_bytes = again.walk.data_end;
    return 0;
}

static int check_exclusive(struct qcow2 *q, enum block_repair repair_what,
                           block_check_report_fn report, void *opaque,
                           struct block_check_result *ret_result, struct err *err)
{
    struct check c = {.q = q, .walk = {.report = report, .opaque = opaque}};
    struct block_check_result result = {0};
    bool is_marked = q->header.incompatible & (QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
    int r = qcow2_snapshots_read(q, &c.snapshots, &c.snapshots_bytes, err);

    if (r < 0) {
        return r;
    }
    r = check_once(&c);
    if (r < 0) {
        qcow2_snapshots_free(c.snapshots, q->header.snapshot_count);
        return err_set_errno(err, r, "cannot check the image");
    }
    fill_result(&c, &result);
    if ((repair_what == BLOCK_REPAIR_ALL && (result.corruptions > 0 || is_marked)) ||
        (repair_what != BLOCK_REPAIR_NONE && result.leaks > 0 && result.corruptions == 0) ||
        (repair_what == BLOCK_REPAIR_ALL && result.leaks > 0)) {
        r = repair_and_check(&c, &result, err);
        /* Clusters that are moved away from others leave those with other flags. */
        for (unsigned i = 0;
             r == 0 && i < MAX_REPAIRS && result.corruptions > 0 && repair_what == BLOCK_REPAIR_ALL;
             i++) {
            r = repair_and_check(&c, &result, err);
        }
    }
    qcow2_snapshots_free(c.snapshots, q->header.snapshot_count);
    if (r == 0) {
        *ret_result = result;
    }
    return r;
}

int qcow2_check(struct qcow2 *q, enum block_repair repair_what, block_check_report_fn report,
                void *opaque, struct block_check_result *ret_result, struct err *err)
{
    int r = 0;

    if (repair_what != BLOCK_REPAIR_NONE && q->image.is_read_only) {
        return err_set(err, -EROFS, "an image that is open for reading only cannot be repaired");
    }
    qcow2_exclusive_begin(q);
    if (!q->image.is_read_only && !q->is_corrupt) {
        r = qcow2_flush(q);
        if (r == 0) {
            r = qcow2_flush(q); /* what the first one released */
        }
        if (r < 0) {
            (void)err_set_errno(err, r, "cannot write the image before checking it");
        }
    }
    if (r == 0) {
        r = check_exclusive(q, repair_what, report, opaque, ret_result, err);
    }
    qcow2_exclusive_end(q);
    return r;
}

int qcow2_repair_on_open(struct qcow2 *q, struct err *err)
{
    struct block_check_result result = {0};
    int r = check_exclusive(q, BLOCK_REPAIR_ALL, NULL, NULL, &result, err);

    if (r == 0 && result.corruptions + result.errors > 0) {
        r = err_set(err, -EUCLEAN,
                    "the image was not closed and could not be repaired on its own; use corbel "
                    "image check --repair");
    }
    if (r == 0) {
        log_info("a qcow2 image that was not closed has been repaired");
    }
    return r;
}
