#include "mem/gmem.h"

#include "base/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>

#define GMEM_SIZE_STEP (1ull << 20)
#define GMEM_SIZE_MAX (1ull << 46) /* half of a process's address space */

struct gmem {
    int fd;
    uint8_t *base;
    uint64_t size_bytes; /* with what is pluggable */
    uint64_t pluggable_bytes;
    _Atomic uint8_t *flags; /* one byte per page, in memfd order */
    unsigned region_count;
    struct gmem_region regions[GMEM_MAX_REGIONS];
    atomic_bool dirty_logging;
    gmem_code_fn code_fn;
    void *code_opaque;
};

static void gmem_lay_out(struct gmem *gmem)
{
    uint64_t fixed = gmem->size_bytes - gmem->pluggable_bytes;
    uint64_t low = fixed < GMEM_HOLE_START ? fixed : GMEM_HOLE_START;
    uint64_t end = GMEM_HOLE_END + (fixed - low);

    gmem->regions[0] = (struct gmem_region){.gpa = 0, .size_bytes = low, .host = gmem->base};
    gmem->region_count = 1;
    if (fixed > low) {
        gmem->regions[1] = (struct gmem_region){
            .gpa = GMEM_HOLE_END,
            .size_bytes = fixed - low,
            .fd_offset = low,
            .host = gmem->base + low,
        };
        gmem->region_count = 2;
    }
    if (gmem->pluggable_bytes != 0) {
        gmem->regions[gmem->region_count] = (struct gmem_region){
            .gpa = (end + GMEM_PLUGGABLE_ALIGN) & ~(GMEM_PLUGGABLE_ALIGN - 1), /* never adjacent */
            .size_bytes = gmem->pluggable_bytes,
            .fd_offset = fixed,
            .host = gmem->base + fixed,
        };
        gmem->region_count++;
    }
}

/* Memory is only reserved, so a size the host can never back is refused here, not by the OOM killer. */
int gmem_check_host(uint64_t size_bytes, struct err *err)
{
    struct sysinfo host;
    uint64_t total;

    if (sysinfo(&host) < 0) {
        return 0; /* unknown: the mapping will tell */
    }
    total = ((uint64_t)host.totalram + host.totalswap) * host.mem_unit;
    if (size_bytes > total) {
        return err_set(err, -ENOMEM,
                       "the guest's memory of %llu MiB is more than this host has (%llu MiB with "
                       "swap); ask for less",
                       (unsigned long long)(size_bytes >> 20), (unsigned long long)(total >> 20));
    }
    return 0;
}

/* The page flags lie on the memfd behind the RAM, so that another process can share both. */
static uint64_t gmem_flag_bytes(uint64_t size_bytes)
{
    uint64_t pages = size_bytes >> GMEM_PAGE_SHIFT;

    return (pages + GMEM_PAGE_BYTES - 1) & ~(uint64_t)(GMEM_PAGE_BYTES - 1);
}

static int gmem_map(struct gmem *gmem, void *address, struct err *err)
{
    uint64_t flag_bytes = gmem_flag_bytes(gmem->size_bytes);
    int fixed = address == NULL ? 0 : MAP_FIXED_NOREPLACE;
    void *map;

    map = mmap(address, gmem->size_bytes, PROT_READ | PROT_WRITE,
               MAP_SHARED | MAP_NORESERVE | fixed, gmem->fd, 0);
    if (map == MAP_FAILED) {
        return err_set_errno(err, -ENOMEM, "cannot map guest memory of %llu MiB",
                             (unsigned long long)(gmem->size_bytes >> 20));
    }
    gmem->base = map;
    /* Advice only: huge pages where the host allows them, and no guest memory in core files. */
    (void)madvise(map, gmem->size_bytes, MADV_HUGEPAGE);
    (void)madvise(map, gmem->size_bytes, MADV_DONTDUMP);

    map = mmap(address == NULL ? NULL : (uint8_t *)address + gmem->size_bytes, flag_bytes,
               PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | fixed, gmem->fd,
               (off_t)gmem->size_bytes);
    if (map == MAP_FAILED) {
        return err_set_errno(err, -ENOMEM, "cannot map the page flags of guest memory");
    }
    gmem->flags = map;
    return 0;
}

/* Its size is fixed from here on, so that nobody who shares it can take pages from under us. */
static int gmem_make_file(uint64_t size_bytes)
{
    int fd = memfd_create("guest-memory", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd >= 0 && (ftruncate(fd, (off_t)(size_bytes + gmem_flag_bytes(size_bytes))) != 0 ||
                    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)) {
        int rc = -errno;

        (void)close(fd);
        return rc;
    }
    return fd >= 0 ? fd : -errno;
}

static int gmem_check_size(uint64_t size_bytes, uint64_t pluggable_bytes, struct err *err)
{
    if (pluggable_bytes % GMEM_SIZE_STEP != 0 || pluggable_bytes > GMEM_SIZE_MAX) {
        return err_set(err, -EINVAL, "%llu bytes of memory to be plugged are not whole MiB",
                       (unsigned long long)pluggable_bytes);
    }
    if (size_bytes < GMEM_SIZE_STEP || size_bytes % GMEM_SIZE_STEP != 0 ||
        size_bytes > GMEM_SIZE_MAX - pluggable_bytes) {
        return err_set(err, -EINVAL,
                       "the guest's memory of %llu bytes is not a multiple of 1 MiB from 1 MiB on",
                       (unsigned long long)size_bytes);
    }
    return 0;
}

/* Takes fd, also when it fails. */
static int gmem_open(int fd, uint64_t fixed_bytes, uint64_t pluggable_bytes, void *address,
                     struct err *err, struct gmem **ret_gmem)
{
    struct gmem *gmem = calloc(1, sizeof(*gmem));
    int rc;

    if (gmem == NULL) {
        (void)close(fd);
        return err_set(err, -ENOMEM, "out of memory");
    }
    gmem->fd = fd;
    gmem->size_bytes = fixed_bytes + pluggable_bytes;
    gmem->pluggable_bytes = pluggable_bytes;
    rc = gmem_map(gmem, address, err);
    if (rc < 0) {
        gmem_destroy(gmem);
        return rc;
    }
    gmem_lay_out(gmem);
    *ret_gmem = gmem;
    return 0;
}

int gmem_create(uint64_t size_bytes, struct err *err, struct gmem **ret_gmem)
{
    return gmem_create_pluggable(size_bytes, 0, err, ret_gmem);
}

/* What is pluggable may be more than the host has: whoever plugs it sees to that. */
int gmem_create_pluggable(uint64_t size_bytes, uint64_t pluggable_bytes, struct err *err,
                          struct gmem **ret_gmem)
{
    int rc = gmem_check_size(size_bytes, pluggable_bytes, err);
    int fd;

    if (rc == 0) {
        rc = gmem_check_host(size_bytes, err);
    }
    if (rc < 0) {
        return rc;
    }
    fd = gmem_make_file(size_bytes + pluggable_bytes);
    if (fd < 0) {
        return err_set_errno(err, fd, "cannot create guest memory of %llu MiB",
                             (unsigned long long)(size_bytes >> 20));
    }
    return gmem_open(fd, size_bytes, pluggable_bytes, NULL, err, ret_gmem);
}

int gmem_attach(int fd, uint64_t size_bytes, uint64_t pluggable_bytes, void *address,
                struct err *err, struct gmem **ret_gmem)
{
    int rc = gmem_check_size(size_bytes, pluggable_bytes, err);

    if (rc < 0) {
        (void)close(fd);
        return rc;
    }
    return gmem_open(fd, size_bytes, pluggable_bytes, address, err, ret_gmem);
}

void gmem_destroy(struct gmem *gmem)
{
    if (gmem == NULL) {
        return;
    }
    if (gmem->flags != NULL) {
        (void)munmap((void *)(uintptr_t)gmem->flags, gmem_flag_bytes(gmem->size_bytes));
    }
    if (gmem->base != NULL) {
        (void)munmap(gmem->base, gmem->size_bytes);
    }
    if (gmem->fd >= 0) {
        (void)close(gmem->fd);
    }
    free(gmem);
}

uint64_t gmem_size_bytes(const struct gmem *gmem)
{
    return gmem->size_bytes;
}

uint64_t gmem_fixed_bytes(const struct gmem *gmem)
{
    return gmem->size_bytes - gmem->pluggable_bytes;
}

const struct gmem_region *gmem_pluggable(const struct gmem *gmem)
{
    return gmem->pluggable_bytes == 0 ? NULL : &gmem->regions[gmem->region_count - 1];
}

int gmem_fd(const struct gmem *gmem)
{
    return gmem->fd;
}

unsigned gmem_region_count(const struct gmem *gmem)
{
    return gmem->region_count;
}

const struct gmem_region *gmem_region(const struct gmem *gmem, unsigned index)
{
    return index < gmem->region_count ? &gmem->regions[index] : NULL;
}

/*
 * The host address of the range, or NULL. Regions are never adjacent, so a
 * range that is RAM throughout lies in one of them. No sum here can wrap.
 */
static inline uint8_t *gmem_find(const struct gmem *gmem, uint64_t address, uint64_t len)
{
    const struct gmem_region *region = &gmem->regions[gmem->region_count - 1];
    uint64_t offset;

    while (address < region->gpa) { /* the first begins at 0 */
        region--;
    }
    offset = address - region->gpa;
    if (unlikely(offset > region->size_bytes || len > region->size_bytes - offset)) {
        return NULL;
    }
    return region->host + offset;
}

/* Marks the pages of a range just written, and tells the listener where code was made from one. */
static void gmem_note_write(struct gmem *gmem, uint64_t address, const uint8_t *host, uint64_t len)
{
    bool logging = atomic_load_explicit(&gmem->dirty_logging, memory_order_relaxed);
    bool is_code = false;
    uint64_t first, last;

    if (len == 0 || (gmem->code_fn == NULL && !logging)) {
        return;
    }
    /* Pairs with the translator, which marks a page and then reads its code: either it reads
     * the new bytes, or its mark is seen here. */
    atomic_thread_fence(memory_order_seq_cst);
    first = (uint64_t)(host - gmem->base) >> GMEM_PAGE_SHIFT;
    last = ((uint64_t)(host - gmem->base) + len - 1) >> GMEM_PAGE_SHIFT;
    for (uint64_t page = first; page <= last; page++) {
        uint8_t flags = atomic_load_explicit(&gmem->flags[page], memory_order_relaxed);

        is_code |= (flags & GMEM_PAGE_CODE) != 0;
        if (logging && (flags & GMEM_PAGE_DIRTY) == 0) {
            atomic_fetch_or_explicit(&gmem->flags[page], GMEM_PAGE_DIRTY, memory_order_relaxed);
        }
    }
    if (is_code && gmem->code_fn != NULL) {
        gmem->code_fn(gmem->code_opaque, gpa(address), len);
    }
}

int gmem_read(struct gmem *gmem, gpa_t gpa, void *buf, size_t len)
{
    const uint8_t *host = gmem_find(gmem, gpa.v, len);

    if (unlikely(host == NULL)) {
        return -EFAULT;
    }
    memcpy(buf, host, len);
    return 0;
}

int gmem_write(struct gmem *gmem, gpa_t gpa, const void *buf, size_t len)
{
    uint8_t *host = gmem_find(gmem, gpa.v, len);

    if (unlikely(host == NULL)) {
        return -EFAULT;
    }
    memcpy(host, buf, len);
    gmem_note_write(gmem, gpa.v, host, len);
    return 0;
}

int gmem_fill(struct gmem *gmem, gpa_t gpa, uint8_t byte, size_t len)
{
    uint8_t *host = gmem_find(gmem, gpa.v, len);

    if (unlikely(host == NULL)) {
        return -EFAULT;
    }
    memset(host, byte, len);
    gmem_note_write(gmem, gpa.v, host, len);
    return 0;
}

static inline void *gmem_find_aligned(const struct gmem *gmem, uint64_t address, unsigned len)
{
    return (address & (len - 1)) != 0 ? NULL : gmem_find(gmem, address, len);
}

int gmem_load_le16(struct gmem *gmem, gpa_t gpa, uint16_t *ret_value)
{
    const uint16_t *host = gmem_find_aligned(gmem, gpa.v, sizeof(*host));

    if (unlikely(host == NULL)) {
        return -EFAULT;
    }
    *ret_value = le16toh(__atomic_load_n(host, __ATOMIC_ACQUIRE));
    return 0;
}

int gmem_load_le32(struct gmem *gmem, gpa_t gpa, uint32_t *ret_value)
{
    const uint32_t *host = gmem_find_aligned(gmem, gpa.v, sizeof(*host));

    if (unlikely(host == NULL)) {
        return -EFAULT;
    }
    *ret_value = le32toh(__atomic_load_n(host, __ATOMIC_ACQUIRE));
    return 0;
}

int gmem_load_le64(struct gmem *gmem, gpa_t gpa, uint64_t *ret_value)
{
    const uint64_t *host = gmem_find_aligned(gmem, gpa.v, sizeof(*host));

    if (unlikely(host == NULL)) {
        return -EFAULT;
    }
    *ret_value = le64toh(__atomic_load_n(host, __ATOMIC_ACQUIRE));
    return 0;
}

int gmem_store_le16(struct gmem *gmem, gpa_t gpa, uint16_t value)
{
    uint16_t *host = gmem_find_aligned(gmem, gpa.v, sizeof(*host));

    if (unlikely(host == NULL)) {
        return -EFAULT;
    }
    __atomic_store_n(host, htole16(value), __ATOMIC_RELEASE);
    gmem_note_write(gmem, gpa.v, (const uint8_t *)host, sizeof(*host));
    return 0;
}

int gmem_store_le32(struct gmem *gmem, gpa_t gpa, uint32_t value)
{
    uint32_t *host = gmem_find_aligned(gmem, gpa.v, sizeof(*host));

    if (unlikely(host == NULL)) {
        return -EFAULT;
    }
    __atomic_store_n(host, htole32(value), __ATOMIC_RELEASE);
    gmem_note_write(gmem, gpa.v, (const uint8_t *)host, sizeof(*host));
    return 0;
}

int gmem_store_le64(struct gmem *gmem, gpa_t gpa, uint64_t value)
{
    uint64_t *host = gmem_find_aligned(gmem, gpa.v, sizeof(*host));

    if (unlikely(host == NULL)) {
        return -EFAULT;
    }
    __atomic_store_n(host, htole64(value), __ATOMIC_RELEASE);
    gmem_note_write(gmem, gpa.v, (const uint8_t *)host, sizeof(*host));
    return 0;
}

int gmem_pin(struct gmem *gmem, gpa_t gpa, size_t len, enum gmem_dir dir, struct iovec *iov,
             unsigned max)
{
    uint8_t *host = gmem_find(gmem, gpa.v, len);

    (void)dir; /* the mapping is writable and resident on demand either way */
    if (unlikely(host == NULL)) {
        return -EFAULT;
    }
    if (len == 0) {
        return 0;
    }
    if (max == 0) {
        return -E2BIG;
    }
    iov[0] = (struct iovec){.iov_base = host, .iov_len = len};
    return 1;
}

void gmem_unpin(struct gmem *gmem, gpa_t gpa, size_t len, enum gmem_dir dir)
{
    const uint8_t *host = gmem_find(gmem, gpa.v, len);

    if (host != NULL && dir == GMEM_DEVICE_WRITES) {
        gmem_note_write(gmem, gpa.v, host, len);
    }
}

uint8_t *gmem_host(const struct gmem *gmem, gpa_t gpa, size_t len)
{
    return gmem_find(gmem, gpa.v, len);
}

_Atomic uint8_t *gmem_page_flags(const struct gmem *gmem, gpa_t gpa)
{
    const uint8_t *host = gmem_find(gmem, gpa.v, 1);

    return host == NULL ? NULL : &gmem->flags[(uint64_t)(host - gmem->base) >> GMEM_PAGE_SHIFT];
}

void gmem_set_code_listener(struct gmem *gmem, gmem_code_fn fn, void *opaque)
{
    gmem->code_opaque = opaque;
    gmem->code_fn = fn;
}

/* Clears the dirty marks, and sets the pages' bits where there is a bitmap. */
static void gmem_take_dirty(struct gmem *gmem, uint64_t *bitmap)
{
    uint64_t pages = gmem->size_bytes >> GMEM_PAGE_SHIFT;

    for (uint64_t page = 0; page < pages; page++) {
        if ((atomic_load_explicit(&gmem->flags[page], memory_order_relaxed) & GMEM_PAGE_DIRTY) ==
            0) {
            continue; /* reads leave flag pages unallocated where nothing was ever written */
        }
        atomic_fetch_and(&gmem->flags[page], (uint8_t)~GMEM_PAGE_DIRTY);
        if (bitmap != NULL) {
            bitmap[page / 64] |= 1ull << (page % 64);
        }
    }
}

void gmem_dirty_log_start(struct gmem *gmem)
{
    gmem_take_dirty(gmem, NULL);
    atomic_store(&gmem->dirty_logging, true);
}

void gmem_dirty_log_stop(struct gmem *gmem)
{
    atomic_store(&gmem->dirty_logging, false);
}

bool gmem_dirty_logging(const struct gmem *gmem)
{
    return atomic_load_explicit(&gmem->dirty_logging, memory_order_relaxed);
}

void gmem_dirty_log_fetch(struct gmem *gmem, uint64_t *bitmap)
{
    gmem_take_dirty(gmem, bitmap);
}

int gmem_discard(struct gmem *gmem, gpa_t gpa, uint64_t len)
{
    uint8_t *host = gmem_find(gmem, gpa.v, len);
    uint64_t offset, start, end;

    if (host == NULL) {
        return -EFAULT;
    }
    offset = (uint64_t)(host - gmem->base);
    start = (offset + GMEM_PAGE_BYTES - 1) & ~(uint64_t)(GMEM_PAGE_BYTES - 1);
    end = (offset + len) & ~(uint64_t)(GMEM_PAGE_BYTES - 1);
    if (start >= end) {
        return 0;
    }
    if (fallocate(gmem->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)start,
                  (off_t)(end - start)) < 0) {
        return -errno;
    }
    gmem_note_write(gmem, gpa.v + (start - offset), gmem->base + start, end - start);
    return 0;
}
