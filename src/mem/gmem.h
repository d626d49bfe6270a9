/*
 * Guest physical memory (RAM) on one memfd.
 *
 * RAM below GMEM_HOLE_START sits at guest physical 0; what does not fit there
 * continues at 4 GiB. Behind a gap may follow pluggable RAM, which is for the
 * guest only when a device says so (virtio/virtio_mem.c). On the memfd and in this process's address space it is
 * one contiguous piece: host address = gmem base + offset of the region + (gpa
 * - region start).
 *
 * Any thread may use the accessors at any time: guest RAM is shared with
 * running vCPUs, so a caller copies once, checks the copy and never looks
 * back. Host pointers leave this folder only through gmem_host() (the CPU
 * engines) and gmem_pin() (iovecs that go straight to the kernel).
 *
 * Writes by devices mark pages dirty (when logging) and, where a page is
 * marked GMEM_PAGE_CODE, call the code listener, so that a translator drops
 * what it made from that page.
 */
#ifndef CORBEL_MEM_GMEM_H
#define CORBEL_MEM_GMEM_H

#include "base/compiler.h"
#include "base/error.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#define GMEM_PAGE_BYTES 4096u
#define GMEM_PAGE_SHIFT 12
#define GMEM_HOLE_START 0xc0000000ull /* 3 GiB: PCI window, APICs and ROM above it */
#define GMEM_HOLE_END 0x100000000ull
#define GMEM_MAX_REGIONS 3
#define GMEM_PLUGGABLE_ALIGN 0x80000000ull /* the largest block that Linux plugs */

/* A guest physical address; not an integer, so that it is not mixed up. */
typedef struct {
    uint64_t v;
} gpa_t;

static inline gpa_t gpa(uint64_t address)
{
    return (gpa_t){address};
}

struct gmem;

struct gmem_region {
    uint64_t gpa;        /* first guest physical address, page-aligned */
    uint64_t size_bytes; /* page-aligned */
    uint64_t fd_offset;  /* where it begins on the memfd */
    uint8_t *host;       /* where it is mapped here */
};

/* Bits of the per-page flag byte (atomic). */
#define GMEM_PAGE_CODE 0x01u  /* a translator holds code made from this page */
#define GMEM_PAGE_DIRTY 0x02u /* written since the dirty log was last fetched */

enum gmem_dir {
    GMEM_DEVICE_READS, /* device reads guest memory (guest -> disk) */
    GMEM_DEVICE_WRITES /* device writes guest memory (disk -> guest) */
};

/* Called after a device wrote [gpa, gpa + len), at least one page of it marked as code. */
typedef void (*gmem_code_fn)(void *opaque, gpa_t gpa, uint64_t len);

/*
 * size_bytes: a multiple of 1 MiB, at least 1 MiB. Nothing is touched, so cost
 * is address space only. -EINVAL for the size, -ENOMEM when the host refuses.
 */
int gmem_create(uint64_t size_bytes, struct err *err, struct gmem **ret_gmem) MUST_CHECK;
/* -ENOMEM when the host has less memory than that, with swap. */
int gmem_check_host(uint64_t size_bytes, struct err *err) MUST_CHECK;
/* With pluggable RAM beside it: a multiple of 1 MiB, or 0. */
int gmem_create_pluggable(uint64_t size_bytes, uint64_t pluggable_bytes, struct err *err,
                          struct gmem **ret_gmem) MUST_CHECK;
/*
 * The same memory in another process, which got gmem_fd() and the sizes: RAM at
 * address and its page flags behind it. Takes fd, also when it fails. -ENOMEM
 * when something is mapped there already. Code listeners and dirty logging are
 * each process's own; the page flags are shared, hints that no one's safety
 * depends on.
 */
int gmem_attach(int fd, uint64_t size_bytes, uint64_t pluggable_bytes, void *address,
                struct err *err, struct gmem **ret_gmem) MUST_CHECK;
void gmem_destroy(struct gmem *gmem); /* accepts NULL */

/* All RAM; without what is pluggable. */
uint64_t gmem_size_bytes(const struct gmem *gmem);
uint64_t gmem_fixed_bytes(const struct gmem *gmem);
/* The pluggable RAM, which is the last of the regions; NULL when there is none. */
const struct gmem_region *gmem_pluggable(const struct gmem *gmem);
/* The memfd, owned by gmem: RAM, and behind it a flag byte for each page. Its size is sealed. */
int gmem_fd(const struct gmem *gmem);
unsigned gmem_region_count(const struct gmem *gmem);
const struct gmem_region *gmem_region(const struct gmem *gmem, unsigned index);

/* Copies; -EFAULT (and nothing copied) when any byte lies outside RAM. */
int gmem_read(struct gmem *gmem, gpa_t gpa, void *buf, size_t len) MUST_CHECK;
int gmem_write(struct gmem *gmem, gpa_t gpa, const void *buf, size_t len) MUST_CHECK;
int gmem_fill(struct gmem *gmem, gpa_t gpa, uint8_t byte, size_t len) MUST_CHECK;

/* Single-copy atomic, naturally aligned little-endian loads and stores. -EFAULT
 * outside RAM or misaligned. load is acquire, store is release. */
int gmem_load_le16(struct gmem *gmem, gpa_t gpa, uint16_t *ret_value) MUST_CHECK;
int gmem_load_le32(struct gmem *gmem, gpa_t gpa, uint32_t *ret_value) MUST_CHECK;
int gmem_load_le64(struct gmem *gmem, gpa_t gpa, uint64_t *ret_value) MUST_CHECK;
int gmem_store_le16(struct gmem *gmem, gpa_t gpa, uint16_t value) MUST_CHECK;
int gmem_store_le32(struct gmem *gmem, gpa_t gpa, uint32_t value) MUST_CHECK;
int gmem_store_le64(struct gmem *gmem, gpa_t gpa, uint64_t value) MUST_CHECK;

/*
 * Describes [gpa, gpa + len) as at most max iovecs for kernel I/O only. Returns
 * their number, -EFAULT outside RAM, -E2BIG when max is too small. After the
 * I/O the caller calls gmem_unpin() with the same range and the bytes written.
 */
int gmem_pin(struct gmem *gmem, gpa_t gpa, size_t len, enum gmem_dir dir, struct iovec *iov,
             unsigned max) MUST_CHECK;
void gmem_unpin(struct gmem *gmem, gpa_t gpa, size_t len, enum gmem_dir dir);

/*
 * The host address of [gpa, gpa + len), or NULL when it is not wholly inside
 * one RAM region. Only for kvm/ and engine/ (checked by a test).
 */
uint8_t *gmem_host(const struct gmem *gmem, gpa_t gpa, size_t len);

/* The flag byte of the page that holds gpa, which must be RAM. Only for kvm/ and engine/. */
_Atomic uint8_t *gmem_page_flags(const struct gmem *gmem, gpa_t gpa);

/* At most one listener; set before vCPUs run. */
void gmem_set_code_listener(struct gmem *gmem, gmem_code_fn fn, void *opaque);

/* Dirty log of device (and engine) writes. */
void gmem_dirty_log_start(struct gmem *gmem);
void gmem_dirty_log_stop(struct gmem *gmem);
bool gmem_dirty_logging(const struct gmem *gmem);
/* Sets bit i of bitmap (size_bytes / 4096 bits, in memfd order) for each dirty page, and clears the log. */
void gmem_dirty_log_fetch(struct gmem *gmem, uint64_t *bitmap);

/* Gives pages back to the host (balloon, free-page reporting): they read as
 * zero afterwards. Rounds inward to whole pages. -EFAULT outside RAM. */
int gmem_discard(struct gmem *gmem, gpa_t gpa, uint64_t len) MUST_CHECK;

#endif
