#include "memfile.h"

#include "scratch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAX_BYTES (256ull << 20)

static struct memfile *to_memfile(struct block_file *file)
{
    return container_of(file, struct memfile, file);
}

static void reserve(struct memfile *m, uint64_t size)
{
    uint64_t capacity = m->capacity ? m->capacity : 1 << 20;

    if (size <= m->capacity) {
        return;
    }
    if (size > MAX_BYTES) {
        fail("an image of %llu bytes", (unsigned long long)size);
    }
    while (capacity < size) {
        capacity *= 2;
    }
    m->data = realloc(m->data, capacity);
    if (!m->data) {
        fail("no memory");
    }
    memset(m->data + m->capacity, 0, capacity - m->capacity);
    m->capacity = capacity;
}

static void set_size(struct memfile *m, uint64_t size)
{
    reserve(m, size);
    if (size < m->size) {
        memset(m->data + size, 0, m->size - size);
    }
    m->size = size;
}

/* Whether this call is one that fails. */
static bool is_failing(struct memfile *m, bool is_read)
{
    if (is_read && !m->fails_reads) {
        return false;
    }
    m->calls++;
    return m->fail_at != 0 && (m->fails_once ? m->calls == m->fail_at : m->calls >= m->fail_at);
}

static void add_log(struct memfile *m, enum log_kind kind, uint64_t offset, uint64_t len)
{
    struct log_entry *entry;

    if (!m->is_logging) {
        return;
    }
    if (m->log_count == m->log_capacity) {
        m->log_capacity = m->log_capacity ? m->log_capacity * 2 : 1024;
        m->log = realloc(m->log, m->log_capacity * sizeof(*m->log));
        if (!m->log) {
            fail("no memory");
        }
    }
    entry = &m->log[m->log_count++];
    *entry = (struct log_entry){kind, offset, len, NULL};
    if (kind == LOG_WRITE) {
        entry->data = malloc(len + 1);
        memcpy(entry->data, m->data + offset, len);
    }
}

static int mem_preadv(struct block_file *file, struct iovec *iov, unsigned count, uint64_t offset)
{
    struct memfile *m = to_memfile(file);

    if (is_failing(m, true)) {
        return m->failure;
    }
    for (unsigned i = 0; i < count; i++) {
        uint64_t inside = offset < m->size ? m->size - offset : 0;

        inside = inside < iov[i].iov_len ? inside : iov[i].iov_len;
        if (inside < iov[i].iov_len && !file->zeroes_past_end) {
            return -EIO;
        }
        if (inside > 0) {
            memcpy(iov[i].iov_base, m->data + offset, inside);
        }
        memset((uint8_t *)iov[i].iov_base + inside, 0, iov[i].iov_len - inside);
        offset += iov[i].iov_len;
    }
    return 0;
}

static int mem_pwritev(struct block_file *file, struct iovec *iov, unsigned count, uint64_t offset)
{
    struct memfile *m = to_memfile(file);
    bool fails = is_failing(m, false);
    uint64_t len = 0, begin = offset;

    for (unsigned i = 0; i < count; i++) {
        len += iov[i].iov_len;
    }
    if (fails && !m->fails_short) {
        return m->failure;
    }
    if (fails) {
        len = len / 1024 * 512;
    }
    if (offset > MAX_BYTES || len > MAX_BYTES - offset) {
        return -ENOSPC;
    }
    if (m->size < offset + len) {
        set_size(m, offset + len);
    }
    for (unsigned i = 0; i < count && offset < begin + len; i++) {
        uint64_t some = begin + len - offset;

        some = some < iov[i].iov_len ? some : iov[i].iov_len;
        memcpy(m->data + offset, iov[i].iov_base, some);
        offset += some;
    }
    if (len > 0) {
        add_log(m, LOG_WRITE, begin, len);
    }
    return fails ? m->failure : 0;
}

static int zero_range(struct memfile *m, uint64_t offset, uint64_t len)
{
    uint64_t end = len < m->size && offset < m->size - len ? offset + len : m->size;

    if (is_failing(m, false)) {
        return m->failure;
    }
    if (offset < end) {
        memset(m->data + offset, 0, end - offset);
        add_log(m, LOG_ZERO, offset, end - offset);
    }
    return 0;
}

static int mem_write_zeroes(struct block_file *file, uint64_t offset, uint64_t len, bool may_unmap)
{
    struct memfile *m = to_memfile(file);

    if (offset > MAX_BYTES || len > MAX_BYTES - offset) {
        return -ENOSPC;
    }
    if (!may_unmap && m->size < offset + len) {
        set_size(m, offset + len);
    }
    return zero_range(m, offset, len);
}

static int mem_discard(struct block_file *file, uint64_t offset, uint64_t len)
{
    return zero_range(to_memfile(file), offset, len);
}

static int mem_truncate(struct block_file *file, uint64_t size_bytes)
{
    struct memfile *m = to_memfile(file);

    if (is_failing(m, false)) {
        return m->failure;
    }
    if (size_bytes > MAX_BYTES) {
        return -EFBIG;
    }
    set_size(m, size_bytes);
    add_log(m, LOG_TRUNCATE, size_bytes, 0);
    return 0;
}

static int mem_allocate(struct block_file *file, uint64_t offset, uint64_t len)
{
    struct memfile *m = to_memfile(file);

    if (offset > MAX_BYTES || len > MAX_BYTES - offset) {
        return -ENOSPC;
    }
    if (m->size < offset + len) {
        set_size(m, offset + len);
    }
    return 0;
}

static int mem_flush(struct block_file *file)
{
    struct memfile *m = to_memfile(file);

    if (is_failing(m, false)) {
        return m->failure;
    }
    if (!m->ignores_flush) {
        add_log(m, LOG_FLUSH, 0, 0);
    }
    return 0;
}

static int mem_get_size(struct block_file *file, uint64_t *ret_size_bytes)
{
    *ret_size_bytes = to_memfile(file)->size;
    return 0;
}

static void mem_close(struct block_file *file)
{
    (void)file; /* the test looks at it once more */
}

static const struct block_file_ops mem_ops = {
    .preadv = mem_preadv,
    .pwritev = mem_pwritev,
    .write_zeroes = mem_write_zeroes,
    .discard = mem_discard,
    .truncate = mem_truncate,
    .allocate = mem_allocate,
    .flush = mem_flush,
    .get_size = mem_get_size,
    .close = mem_close,
};

void memfile_init(struct memfile *m)
{
    *m = (struct memfile){.file = {.ops = &mem_ops, .fd = -1, .alignment = 1}};
}

void memfile_done(struct memfile *m)
{
    for (size_t i = 0; i < m->log_count; i++) {
        free(m->log[i].data);
    }
    free(m->log);
    free(m->data);
    memfile_init(m);
}

void memfile_set(struct memfile *m, const uint8_t *data, uint64_t size)
{
    set_size(m, size);
    if (size > 0) {
        memcpy(m->data, data, size);
    }
}

void memfile_apply(struct memfile *m, const struct log_entry *entry, uint64_t begin, uint64_t end)
{
    if (entry->kind == LOG_TRUNCATE) {
        set_size(m, entry->offset);
        return;
    }
    if (entry->kind == LOG_FLUSH) {
        return;
    }
    if (m->size < end) {
        set_size(m, end);
    }
    if (entry->kind == LOG_WRITE) {
        memcpy(m->data + begin, entry->data + (begin - entry->offset), end - begin);
    } else {
        memset(m->data + begin, 0, end - begin);
    }
}
