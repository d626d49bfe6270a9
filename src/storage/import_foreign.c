/*
 * Formats of other products, read by qemu-img in a jail. What could make it
 * look at a second file is looked for before it runs.
 */
#include "base/io.h"
#include "base/wire.h"
#include "storage/import_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define QEMU_IMG "/usr/bin/qemu-img"
#define REPORT_BYTES (64u << 10)
#define OPTIONS_BYTES 256u
#define SECTOR_BYTES 512u
#define EXPORT_SECONDS 86400u /* of a disk of the user's own */

static const char *const drivers[] = {
    [IMPORT_RAW] = "raw",   [IMPORT_QCOW2] = "qcow2", [IMPORT_VMDK] = "vmdk", [IMPORT_VHD] = "vpc",
    [IMPORT_VHDX] = "vhdx", [IMPORT_VDI] = "vdi",     [IMPORT_OVA] = NULL,
};

static int read_header(const struct import_part *in, unsigned char *header, size_t len,
                       struct err *err)
{
    ssize_t n = io_pread_full(in->fd, header, len, in->offset);

    if (n < 0) {
        return err_set_errno(err, (int)n, "the image cannot be read");
    }
    return (size_t)n == len && len <= in->len
               ? 0
               : err_set(err, -EBADMSG, "the image is too short to be one");
}

/* Only the form that is complete in one file: its header says how long the disk is. */
static int check_vmdk(const struct import_part *in, struct err *err)
{
    unsigned char header[SECTOR_BYTES];
    int rc = read_header(in, header, sizeof(header), err);

    if (rc < 0) {
        return rc;
    }
    if (memcmp(header, "# Disk Descriptor", 10) == 0) {
        return err_set(err, -EPERM,
                       "the VMDK file only describes other files; import a "
                       "monolithic sparse or stream-optimized one");
    }
    if (memcmp(header, "KDMV", 4) != 0) {
        return err_set(err, -EBADMSG, "this is no VMDK image");
    }
    if (load_le64(header + 12) == 0) {
        return err_set(err, -EPERM, "the VMDK file names other files");
    }
    return 0;
}

/* The source as qemu-img's options say it: driver, place in the file, and nothing to guess. */
static int describe_source(const struct import_part *in, enum import_format format, char *out)
{
    uint64_t len = (in->len + SECTOR_BYTES - 1) / SECTOR_BYTES * SECTOR_BYTES;
    int n;

    if (in->offset == 0) {
        n = snprintf(out, OPTIONS_BYTES,
                     "driver=%s,file.driver=file,file.filename=/proc/self/fd/%d", drivers[format],
                     in->fd);
    } else {
        n = snprintf(out, OPTIONS_BYTES,
                     "driver=%s,file.driver=raw,file.offset=%llu,file.size=%llu,"
                     "file.file.driver=file,file.file.filename=/proc/self/fd/%d",
                     drivers[format], (unsigned long long)in->offset, (unsigned long long)len,
                     in->fd);
    }
    return n > 0 && n < (int)OPTIONS_BYTES ? 0 : -ENAMETOOLONG;
}

/* What qemu-img says of the image: its length, once nothing speaks against it. */
static int judge_report(const char *report, uint64_t max_bytes, uint64_t *ret_size, struct err *err)
{
    json_t *object = json_loads(report, 0, NULL);
    json_int_t size = json_integer_value(json_object_get(object, "virtual-size"));
    bool has_backing = json_object_get(object, "backing-filename") != NULL ||
                       json_object_get(object, "full-backing-filename") != NULL;
    bool is_encrypted = json_is_true(json_object_get(object, "encrypted"));

    json_decref(object);
    if (has_backing) {
        return err_set(err, -EPERM, "the image names a backing file");
    }
    if (is_encrypted) {
        return err_set(err, -EPERM, "the image is encrypted");
    }
    if (size <= 0) {
        return err_set(err, -EBADMSG, "the image says nothing of its disk's length");
    }
    if ((uint64_t)size > max_bytes) {
        return err_set(err, -EFBIG, "the disk has %lld bytes and may have %llu (--max-size)",
                       (long long)size, (unsigned long long)max_bytes);
    }
    *ret_size = (uint64_t)size;
    return 0;
}

static int inspect(const struct import_part *in, const char *source,
                   const struct jail_limits *limits, uint64_t max_bytes, uint64_t *ret_size,
                   struct err *err)
{
    const char *const argv[] = {QEMU_IMG,       "info", "-U", "--output=json",
                                "--image-opts", source, NULL};
    const struct jail_path paths[] = {{.fd = in->fd, .may_write = false}};
    CLEANUP_FREE char *report = malloc(REPORT_BYTES);
    int rc;

    if (report == NULL) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    rc = jail_exec(limits, paths, 1, argv, report, REPORT_BYTES, err);
    return rc < 0 ? rc : judge_report(report, max_bytes, ret_size, err);
}

int import_foreign(const struct import_part *in, enum import_format format, uint64_t max_bytes,
                   int out, struct err *err)
{
    char source[OPTIONS_BYTES];
    char target[64];
    char ignored[256];
    const struct jail_path paths[] = {{.fd = in->fd, .may_write = false},
                                      {.fd = out, .may_write = true}};
    const char *const argv[] = {QEMU_IMG, "convert", "-U", "-n", "--target-is-zero",
                                "-O",     "raw",     "-S", "4k", "--image-opts",
                                source,   target,    NULL};
    struct jail_limits limits;
    uint64_t size = 0;
    int rc = format == IMPORT_VMDK ? check_vmdk(in, err) : 0;

    if (rc < 0) {
        return rc;
    }
    import_limits(in->len, max_bytes, &limits);
    (void)snprintf(target, sizeof(target), "/proc/self/fd/%d", out);
    if (describe_source(in, format, source) < 0) {
        return err_set(err, -ENAMETOOLONG, "the source cannot be described");
    }
    rc = inspect(in, source, &limits, max_bytes, &size, err);
    if (rc == 0 && ftruncate(out, (off_t)size) != 0) {
        rc = err_set_errno(err, -errno, "the disk cannot be made %llu bytes long",
                           (unsigned long long)size);
    }
    limits.file_bytes = size;
    return rc < 0
               ? rc
               : jail_exec(&limits, paths, ARRAY_LEN(paths), argv, ignored, sizeof(ignored), err);
}

/* The directory where the target is being made; the program may write there and nowhere else. */
static int convert_into(int in, int dir, const struct export_request *request, const char *making,
                        struct err *err)
{
    const struct jail_path paths[] = {{.fd = in, .may_write = false},
                                      {.fd = dir, .may_write = true}};
    char source[OPTIONS_BYTES];
    char target[PATH_MAX];
    char ignored[256];
    const char *const argv[] = {QEMU_IMG,
                                "convert",
                                "-U",
                                "-S",
                                "4k",
                                "-O",
                                drivers[request->format],
                                "-o",
                                request->format == IMPORT_VMDK  ? "subformat=streamOptimized"
                                : request->format == IMPORT_VHD ? "subformat=dynamic,force_size=on"
                                                                : "size=0",
                                "--image-opts",
                                source,
                                target,
                                NULL};
    const char *plain[ARRAY_LEN(argv)];
    unsigned n = 0;
    struct jail_limits limits = {.file_bytes = UINT64_MAX >> 1,
                                 .cpu_seconds = EXPORT_SECONDS,
                                 .wall_seconds = EXPORT_SECONDS};

    /* Only some formats have an option that matters here. */
    for (unsigned i = 0; i < ARRAY_LEN(argv); i++) {
        if (strcmp(argv[i] != NULL ? argv[i] : "", "-o") == 0 && request->format != IMPORT_VMDK &&
            request->format != IMPORT_VHD) {
            i++;
            continue;
        }
        plain[n++] = argv[i];
    }
    (void)snprintf(source, sizeof(source),
                   "driver=%s,file.driver=file,file.filename=/proc/self/fd/%d",
                   request->source_format, in);
    (void)snprintf(target, sizeof(target), "/proc/self/fd/%d/%s", dir, making);
    return jail_exec(&limits, paths, ARRAY_LEN(paths), plain, ignored, sizeof(ignored), err);
}

/* Into a directory of its own beside the target, from where the finished file is moved. */
static int export_into(int in, const struct export_request *request, char *making_dir,
                       struct err *err)
{
    const char *slash = strrchr(request->target, '/');
    const char *name = slash != NULL ? slash + 1 : request->target;
    CLEANUP_CLOSE int dir = open(making_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CLEANUP_CLOSE int file = -1;
    int rc;

    if (dir < 0) {
        return err_set_errno(err, -errno, "%s cannot be opened", making_dir);
    }
    rc = convert_into(in, dir, request, name, err);
    if (rc < 0) {
        (void)unlinkat(dir, name, 0);
        return rc;
    }
    file = openat(dir, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (file < 0 || fsync(file) != 0 ||
        renameat2(dir, name, AT_FDCWD, request->target, RENAME_NOREPLACE) != 0) {
        rc = err_set_errno(err, -errno, "%s cannot be made", request->target);
        (void)unlinkat(dir, name, 0);
    }
    return rc;
}

int import_export_disk(const struct export_request *request, struct err *err)
{
    char making_dir[PATH_MAX];
    CLEANUP_CLOSE int in = open(request->path, O_RDONLY | O_CLOEXEC);
    int n;
    int rc;

    if (in < 0) {
        return err_set_errno(err, -errno, "%s cannot be read", request->path);
    }
    if (request->format == IMPORT_OVA) {
        return export_ova(request, err);
    }
    n = snprintf(making_dir, sizeof(making_dir), "%s.making-XXXXXX", request->target);
    if (n < 0 || n >= (int)sizeof(making_dir)) {
        return err_set(err, -ENAMETOOLONG, "%s is too long a name", request->target);
    }
    if (access(request->target, F_OK) == 0) {
        return err_set(err, -EEXIST, "%s is there already", request->target);
    }
    if (mkdtemp(making_dir) == NULL) {
        return err_set_errno(err, -errno, "nothing can be made beside %s", request->target);
    }
    rc = export_into(in, request, making_dir, err);
    (void)rmdir(making_dir);
    return rc;
}
