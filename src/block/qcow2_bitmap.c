/* Persistent dirty bitmaps. */
#include "block/qcow2_int.h"

#include <errno.h>

int qcow2_bitmaps_load(struct qcow2 *q, struct err *err)
{
    if (q->header.bitmap_count > 0 && !q->image.is_read_only) {
        return err_set(err, -ENOTSUP, "an image with dirty bitmaps can only be read");
    }
    return 0;
}

int qcow2_bitmaps_store(struct qcow2 *q)
{
    (void)q;
    return 0;
}

int qcow2_bitmaps_resize(struct qcow2 *q)
{
    (void)q;
    return 0;
}

void qcow2_bitmaps_done(struct qcow2 *q)
{
    (void)q;
}

void qcow2_bitmaps_mark_locked(struct qcow2 *q, uint64_t offset, uint64_t len)
{
    (void)q;
    (void)offset;
    (void)len;
}
