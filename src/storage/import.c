#include "storage/import.h"

#include "base/io.h"
#include "storage/import_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define COPY_BYTES (256u << 10)
#define GRAIN_BYTES 4096u /* a run of zeroes this long becomes a hole */
#define SECTOR_BYTES 512u
/* A jail's time: so much, and more for each so many bytes of source. */
#define BASE_SECONDS 10u
#define SOURCE_BYTES_PER_SECOND (4u << 20)

static const struct {
    const char *name;
    const char *suffixes[3];
} formats[] = {
    [IMPORT_RAW] = {"raw", {".raw", ".img"}}, [IMPORT_QCOW2] = {"qcow2", {".qcow2"}},
    [IMPORT_VMDK] = {"vmdk", {".vmdk"}},      [IMPORT_VHD] = {"vhd", {".vhd", ".vpc"}},
    [IMPORT_VHDX] = {"vhdx", {".vhdx"}},      [IMPORT_VDI] = {"vdi", {".vdi"}},
    [IMPORT_OVA] = {"ova", {".ova"}},
};

static const char *const compressions[] = {
    [COMPRESSION_NONE] = "none",
    [COMPRESSION_GZIP] = "gz",
    [COMPRESSION_XZ] = "xz",
    [COMPRESSION_ZSTD] = "zst",
};

int import_format_parse(const char *name, enum import_format *ret_format)
{
    for (size_t i = 0; i < ARRAY_LEN(formats); i++) {
        if (strcmp(formats[i].name, name) == 0) {
            *ret_format = (enum import_format)i;
            return 0;
        }
    }
    return -EINVAL;
}

int import_compression_parse(const char *name, enum import_compression *ret_compression)
{
    for (size_t i = 0; i < ARRAY_LEN(compressions); i++) {
        if (strcmp(compressions[i], name) == 0) {
            *ret_compression = (enum import_compression)i;
            return 0;
        }
    }
    return -EINVAL;
}

const char *import_format_name(enum import_format format)
{
    return formats[format].name;
}

static bool ends_with(const char *text, size_t len, const char *suffix)
{
    size_t suffix_len = strlen(suffix);

    return len > suffix_len && strncasecmp(text + len - suffix_len, suffix, suffix_len) == 0;
}

int import_parse_name(const char *path, enum import_format *ret_format,
                      enum import_compression *ret_compression)
{
    static const char *const packed[] = {[COMPRESSION_NONE] = "",
                                         [COMPRESSION_GZIP] = ".gz",
                                         [COMPRESSION_XZ] = ".xz",
                                         [COMPRESSION_ZSTD] = ".zst"};
    enum import_compression compression = COMPRESSION_NONE;
    size_t len = strlen(path);

    for (size_t i = 1; i < ARRAY_LEN(packed); i++) {
        if (ends_with(path, len, packed[i])) {
            compression = (enum import_compression)i;
            len -= strlen(packed[i]);
            break;
        }
    }
    for (size_t i = 0; i < ARRAY_LEN(formats); i++) {
        for (size_t s = 0; s < ARRAY_LEN(formats[i].suffixes); s++) {
            if (formats[i].suffixes[s] != NULL && ends_with(path, len, formats[i].suffixes[s])) {
                *ret_format = (enum import_format)i;
                *ret_compression = compression;
                return 0;
            }
        }
    }
    return -EINVAL;
}

void import_limits(uint64_t source_bytes, uint64_t max_bytes, struct jail_limits *ret_limits)
{
    uint64_t seconds = BASE_SECONDS + source_bytes / SOURCE_BYTES_PER_SECOND;

    *ret_limits = (struct jail_limits){
        .file_bytes = max_bytes,
        .cpu_seconds = seconds < UINT32_MAX / 8 ? (unsigned)seconds : UINT32_MAX / 8,
    };
    /* Disks may be slow and the host busy: the clock on the wall allows more than the processor's. */
    ret_limits->wall_seconds = ret_limits->cpu_seconds * 4;
}

static bool is_zero(const char *data, size_t len)
{
    return len == 0 || (data[0] == 0 && memcmp(data, data + 1, len - 1) == 0);
}

/* Writes the runs of grains that are not zero. */
int import_write_sparse(int out, const char *data, size_t len, uint64_t offset)
{
    size_t start = 0;

    while (start < len) {
        size_t grain = len - start < GRAIN_BYTES ? len - start : GRAIN_BYTES;
        size_t end = start;
        int rc;

        if (is_zero(data + start, grain)) {
            start += grain;
            continue;
        }
        while (end < len) {
            grain = len - end < GRAIN_BYTES ? len - end : GRAIN_BYTES;
            if (is_zero(data + end, grain)) {
                break;
            }
            end += grain;
        }
        rc = io_pwrite_full(out, data + start, end - start, offset + start);
        if (rc < 0) {
            return rc;
        }
        start = end;
    }
    return 0;
}

int import_copy_part(const struct import_part *in, int out, uint64_t offset)
{
    char *buf = malloc(COPY_BYTES);
    uint64_t done = 0;
    int rc = buf != NULL ? 0 : -ENOMEM;

    while (rc == 0 && done < in->len) {
        size_t want = in->len - done < COPY_BYTES ? (size_t)(in->len - done) : COPY_BYTES;
        off_t data = lseek(in->fd, (off_t)(in->offset + done), SEEK_DATA);
        ssize_t n;

        if (data < 0 && errno == ENXIO) {
            break; /* nothing but a hole is left */
        }
        if (data > 0 && (uint64_t)data > in->offset + done) {
            uint64_t next = ((uint64_t)data - in->offset) / GRAIN_BYTES * GRAIN_BYTES;

            /* The part need not begin where a grain of its file does. */
            if (next > done) {
                done = next;
                continue;
            }
        }
        n = io_pread_full(in->fd, buf, want, in->offset + done);
        rc = n < 0 ? (int)n : (size_t)n != want ? -EIO : 0;
        if (rc == 0) {
            rc = import_write_sparse(out, buf, want, offset + done);
        }
        done += want;
    }
    free(buf);
    return rc;
}

int import_copy_sparse(const struct import_part *in, int out, struct err *err)
{
    int rc = import_copy_part(in, out, 0);

    if (rc == 0 && ftruncate(out, (off_t)in->len) != 0) {
        rc = -errno;
    }
    return rc < 0 ? err_set_errno(err, rc, "the disk cannot be copied") : 0;
}

static int check_digest(const struct import_request *request, int fd, struct err *err)
{
    char wanted[DIGEST_TEXT_BYTES];
    char got_text[DIGEST_TEXT_BYTES];
    struct digest got;
    int rc;

    if (request->digest == NULL) {
        return 0;
    }
    rc = digest_of_fd(fd, 0, UINT64_MAX, request->digest->kind, &got);
    if (rc < 0) {
        return err_set_errno(err, rc, "%s cannot be read", request->path);
    }
    if (!digest_equal(&got, request->digest)) {
        return err_set(err, -EBADMSG, "%s is not what its checksum says: expected %s, got %s",
                       request->path, digest_format(request->digest, wanted),
                       digest_format(&got, got_text));
    }
    return 0;
}

/* Unpacks into a file without a name beside the target, when there is something to unpack. */
static int unpack(const struct import_request *request, struct import_part *part, int *ret_unpacked,
                  struct err *err)
{
    char dir[PATH_MAX];
    char *slash;
    CLEANUP_CLOSE int out = -1;
    struct stat st;
    int rc;

    if (request->compression == COMPRESSION_NONE) {
        return 0;
    }
    (void)snprintf(dir, sizeof(dir), "%s", request->target);
    slash = strrchr(dir, '/');
    if (slash != NULL) {
        slash[slash == dir] = '\0';
    }
    out = open(slash != NULL ? dir : ".", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
    if (out < 0) {
        return err_set_errno(err, -errno, "nothing can be written to %s", dir);
    }
    rc = import_decompress(part, request->compression, request->max_bytes, out, err);
    if (rc == 0 && fstat(out, &st) != 0) {
        rc = err_set_errno(err, -errno, "the unpacked disk cannot be read");
    }
    if (rc == 0) {
        *part = (struct import_part){.fd = out, .len = (uint64_t)st.st_size};
        *ret_unpacked = steal_fd(&out);
    }
    return rc;
}

static int convert(const struct import_request *request, struct import_part *part, int out,
                   struct err *err)
{
    enum import_format format = request->format;
    int rc;

    if (format == IMPORT_OVA) {
        rc = import_find_in_ova(part->fd, part->len, part, err);
        if (rc < 0) {
            return rc;
        }
        format = IMPORT_VMDK;
    }
    if (format == IMPORT_QCOW2) {
        return import_qcow2(part, request->max_bytes, out, err);
    }
    if (format == IMPORT_VMDK && request->format == IMPORT_VMDK &&
        request->compression == COMPRESSION_NONE && import_is_vmdk_text(part)) {
        return import_vmdk_parts(part, request->path, request->max_bytes, out, err);
    }
    if (format != IMPORT_RAW) {
        return import_foreign(part, format, request->max_bytes, out, err);
    }
    if (part->len > request->max_bytes) {
        return err_set(err, -EFBIG, "the disk has %llu bytes and may have %llu (--max-size)",
                       (unsigned long long)part->len, (unsigned long long)request->max_bytes);
    }
    return import_copy_sparse(part, out, err);
}

/* A disk has whole sectors; and it is durable before anyone is told of it. */
static int finish(int out, struct err *err)
{
    struct stat st;
    uint64_t left;

    if (fstat(out, &st) != 0) {
        return err_set_errno(err, -errno, "the disk cannot be looked at");
    }
    left = (uint64_t)st.st_size % SECTOR_BYTES;
    if (st.st_size == 0) {
        return err_set(err, -EBADMSG, "the disk is empty");
    }
    if ((left != 0 && ftruncate(out, st.st_size + (off_t)(SECTOR_BYTES - left)) != 0) ||
        fsync(out) != 0) {
        return err_set_errno(err, -errno, "the disk cannot be written");
    }
    return 0;
}

int import_disk(const struct import_request *request, struct err *err)
{
    struct import_part part = {.fd = -1};
    struct stat st;
    CLEANUP_CLOSE int in = open(request->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    CLEANUP_CLOSE int out = -1;
    CLEANUP_CLOSE int unpacked = -1;
    int rc;

    if (in < 0 || fstat(in, &st) != 0) {
        return err_set_errno(err, -errno, "%s cannot be read", request->path);
    }
    if (!S_ISREG(st.st_mode)) {
        return err_set(err, -EINVAL, "%s is no regular file", request->path);
    }
    part = (struct import_part){.fd = in, .len = (uint64_t)st.st_size};
    rc = check_digest(request, in, err);
    if (rc < 0) {
        return rc;
    }
    out = open(request->target, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (out < 0) {
        return err_set_errno(err, -errno, "%s cannot be made", request->target);
    }
    rc = unpack(request, &part, &unpacked, err);
    if (rc == 0) {
        rc = convert(request, &part, out, err);
    }
    if (rc == 0) {
        rc = finish(out, err);
    }
    if (rc < 0) {
        (void)unlink(request->target);
    }
    return rc;
}
