/*
 * A VMDK disk in several files: a text that describes it, and extents beside
 * it. VMware Virtual Disk Format 1.1.
 *
 * The text may only name files that are called as it is, up to a dash, and lie
 * beside it. Text and extents are parsed in a jail; the files are opened by
 * this side in between.
 */
#include "base/io.h"
#include "base/wire.h"
#include "storage/import_jailed.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SECTOR_BYTES 512u
#define MAX_TEXT_BYTES (256u << 10)
#define MAX_SECTORS (UINT64_MAX / SECTOR_BYTES / 2)
#define HEADER_BYTES 512u
#define TABLE_ENTRIES 512u
#define MIN_GRAIN_SECTORS 8u
#define MAX_GRAIN_SECTORS 2048u
#define FLAG_COMPRESSED (1u << 16)

/* ---- the text; in the jail ---- */

static int take_kind(const char *word, struct import_extent *extent)
{
    if (strcmp(word, "FLAT") == 0 || strcmp(word, "VMFS") == 0) {
        extent->kind = EXTENT_FLAT;
    } else if (strcmp(word, "SPARSE") == 0) {
        extent->kind = EXTENT_SPARSE;
    } else if (strcmp(word, "ZERO") == 0) {
        extent->kind = EXTENT_ZERO;
    } else {
        return -EOPNOTSUPP;
    }
    return 0;
}

static void take_word(const char **line, char *out, size_t size)
{
    size_t len;

    *line += strspn(*line, " \t");
    len = strcspn(*line, " \t");
    (void)snprintf(out, size, "%.*s", (int)(len < size ? len : size - 1), *line);
    *line += len;
}

/* Digits alone. */
static int take_number(const char **line, uint64_t *ret_value)
{
    char *end = NULL;
    unsigned long long value;

    *line += strspn(*line, " \t");
    errno = 0;
    value = **line >= '0' && **line <= '9' ? strtoull(*line, &end, 10) : 0;
    if (end == NULL || errno != 0 || value > MAX_SECTORS) {
        return -EBADMSG;
    }
    *line = end;
    *ret_value = value;
    return 0;
}

/* Between quotes. */
static int take_name(const char **line, char *out)
{
    size_t len;

    *line += strspn(*line, " \t");
    len = **line == '"' ? strcspn(*line + 1, "\"") : 0;
    if (len == 0 || len >= IMPORT_VMDK_NAME_BYTES || (*line)[len + 1] != '"') {
        return -EBADMSG;
    }
    memcpy(out, *line + 1, len);
    out[len] = '\0';
    *line += len + 2;
    return 0;
}

/* ACCESS SECTORS KIND "NAME" OFFSET; 0 for a line that is none. */
static int parse_extent(const char *line, struct import_extent *extent, struct err *err)
{
    char access[16];
    char kind[16];

    take_word(&line, access, sizeof(access));
    if (strcmp(access, "RW") != 0 && strcmp(access, "RDONLY") != 0) {
        return strcmp(access, "NOACCESS") == 0
                   ? err_set(err, -EOPNOTSUPP, "a part of the VMDK disk may not be read")
                   : 0;
    }
    if (take_number(&line, &extent->sectors) < 0 || extent->sectors == 0) {
        return err_set(err, -EBADMSG, "the VMDK file's list of parts is damaged");
    }
    take_word(&line, kind, sizeof(kind));
    if (take_kind(kind, extent) < 0) {
        return err_set(err, -EOPNOTSUPP,
                       "the VMDK disk has parts of a kind that is not read here; convert it to a "
                       "monolithic sparse or stream-optimized one first");
    }
    if (extent->kind != EXTENT_ZERO && take_name(&line, extent->name) < 0) {
        return err_set(err, -EBADMSG, "the VMDK file's list of parts is damaged");
    }
    line += strspn(line, " \t");
    if (*line != '\0' && take_number(&line, &extent->file_sector) < 0) {
        return err_set(err, -EBADMSG, "the VMDK file's list of parts is damaged");
    }
    return 1;
}

/* The parentCID of a disk that stands on none. */
#define NO_PARENT 0xffffffffu

static int take_line(struct import_vmdk *v, const char *line, struct err *err)
{
    struct import_extent extent = {.fd = -1};
    int rc;

    if (strncmp(line, "parentCID=", 10) == 0 && strtoul(line + 10, NULL, 16) != NO_PARENT) {
        return err_set(err, -EPERM, "the VMDK disk stands on another, as a snapshot does");
    }
    if (strncmp(line, "parentFileNameHint", 18) == 0) {
        return err_set(err, -EPERM, "the VMDK disk names a disk that it stands on");
    }
    rc = parse_extent(line, &extent, err);
    if (rc <= 0) {
        return rc;
    }
    if (v->count == IMPORT_VMDK_MAX_EXTENTS || extent.sectors > MAX_SECTORS - v->sectors) {
        return err_set(err, -EFBIG, "the VMDK disk has more than %u parts",
                       IMPORT_VMDK_MAX_EXTENTS);
    }
    extent.first = v->sectors;
    v->sectors += extent.sectors;
    v->extents[v->count++] = extent;
    return 0;
}

int import_vmdk_read_text(void *opaque, struct err *err)
{
    struct import_vmdk *v = opaque;
    CLEANUP_FREE char *text = calloc(1, v->text.len + 1);
    char *save = NULL;
    int rc = 0;

    if (text == NULL || io_pread_full(v->text.fd, text, v->text.len, 0) != (ssize_t)v->text.len) {
        return err_set(err, -EIO, "the VMDK file cannot be read");
    }
    for (char *line = strtok_r(text, "\r\n", &save); rc == 0 && line != NULL;
         line = strtok_r(NULL, "\r\n", &save)) {
        rc = take_line(v, line, err);
    }
    return rc == 0 && v->count == 0 ? err_set(err, -EBADMSG, "the VMDK file names no parts") : rc;
}

/* ---- the extents; in the jail ---- */

struct sparse {
    const struct import_extent *extent;
    uint64_t capacity, grain; /* sectors */
    uint64_t directory;       /* sector */
    uint64_t directory_entries;
};

static int read_at(int fd, void *buf, size_t len, uint64_t sector)
{
    ssize_t n = sector <= MAX_SECTORS ? io_pread_full(fd, buf, len, sector * SECTOR_BYTES) : -EIO;

    return n == (ssize_t)len ? 0 : n < 0 ? (int)n : -EBADMSG;
}

static int open_sparse(const struct import_extent *extent, struct sparse *ret_sparse,
                       struct err *err)
{
    unsigned char header[HEADER_BYTES];
    struct sparse s = {.extent = extent};
    uint64_t table;

    if (read_at(extent->fd, header, sizeof(header), 0) < 0 || memcmp(header, "KDMV", 4) != 0) {
        return err_set(err, -EBADMSG, "a part of the VMDK disk is none");
    }
    s.capacity = load_le64(header + 12);
    s.grain = load_le64(header + 20);
    s.directory = load_le64(header + 56);
    if ((load_le32(header + 8) & FLAG_COMPRESSED) != 0 || load_le16(header + 77) != 0) {
        return err_set(err, -EOPNOTSUPP, "a part of the VMDK disk is compressed");
    }
    if (s.grain < MIN_GRAIN_SECTORS || s.grain > MAX_GRAIN_SECTORS ||
        (s.grain & (s.grain - 1)) != 0 || load_le32(header + 44) != TABLE_ENTRIES ||
        s.capacity > extent->sectors) {
        return err_set(err, -EBADMSG, "the header of a part of the VMDK disk is damaged");
    }
    table = s.grain * TABLE_ENTRIES;
    s.directory_entries = (s.capacity + table - 1) / table;
    *ret_sparse = s;
    return 0;
}

/* The grains of one table; entry 0 is none, and 1 one of zeroes: both read as zero. */
static int copy_table(const struct sparse *s, int out, uint64_t table_sector, uint64_t first,
                      char *buf)
{
    unsigned char table[TABLE_ENTRIES * 4];
    int rc = read_at(s->extent->fd, table, sizeof(table), table_sector);

    for (unsigned i = 0; rc == 0 && i < TABLE_ENTRIES; i++) {
        uint64_t at = first + i * s->grain;
        uint32_t grain = load_le32(table + (size_t)4 * i);
        uint64_t sectors;

        if (at >= s->capacity || grain <= 1) {
            continue;
        }
        sectors = s->capacity - at < s->grain ? s->capacity - at : s->grain;
        rc = read_at(s->extent->fd, buf, sectors * SECTOR_BYTES, grain);
        if (rc == 0) {
            rc = import_write_sparse(out, buf, sectors * SECTOR_BYTES,
                                     (s->extent->first + at) * SECTOR_BYTES);
        }
    }
    return rc;
}

static int copy_tables(const struct sparse *s, int out, char *buf)
{
    int rc = s->directory <= MAX_SECTORS ? 0 : -EBADMSG;

    for (uint64_t i = 0; rc == 0 && i < s->directory_entries; i++) {
        unsigned char entry[4];
        ssize_t n =
            io_pread_full(s->extent->fd, entry, sizeof(entry), s->directory * SECTOR_BYTES + 4 * i);

        rc = n == sizeof(entry) ? 0 : -EBADMSG;
        if (rc == 0 && load_le32(entry) != 0) {
            rc = copy_table(s, out, load_le32(entry), i * TABLE_ENTRIES * s->grain, buf);
        }
    }
    return rc;
}

static int copy_sparse(const struct import_extent *extent, int out, struct err *err)
{
    struct sparse s = {.extent = NULL};
    int rc = open_sparse(extent, &s, err);
    char *buf;

    if (rc < 0) {
        return rc;
    }
    buf = malloc(MAX_GRAIN_SECTORS * SECTOR_BYTES);
    rc = buf != NULL ? copy_tables(&s, out, buf) : -ENOMEM;
    free(buf);
    return rc < 0 ? err_set_errno(err, rc, "\"%s\" cannot be read", extent->name) : 0;
}

int import_vmdk_copy_extents(void *opaque, struct err *err)
{
    struct import_vmdk *v = opaque;
    int rc = 0;

    for (unsigned i = 0; rc == 0 && i < v->count; i++) {
        const struct import_extent *extent = &v->extents[i];
        const struct import_part part = {.fd = extent->fd,
                                         .offset = extent->file_sector * SECTOR_BYTES,
                                         .len = extent->sectors * SECTOR_BYTES};

        if (extent->kind == EXTENT_SPARSE) {
            rc = copy_sparse(extent, v->out, err);
        } else if (extent->kind == EXTENT_FLAT) {
            rc = import_copy_part(&part, v->out, extent->first * SECTOR_BYTES);
            rc = rc < 0 ? err_set_errno(err, rc, "\"%s\" cannot be read", extent->name) : 0;
        }
    }
    return rc;
}

/* ---- this side ---- */

/* "disk.vmdk" may have "disk-s001.vmdk" and "disk-flat.vmdk", and nothing else. */
static bool may_name(const char *text_name, const char *name)
{
    size_t stem = strlen(text_name);
    size_t len = strlen(name);

    if (stem > 5 && strcasecmp(text_name + stem - 5, ".vmdk") == 0) {
        stem -= 5;
    }
    return len > stem + 5 && memcmp(name, text_name, stem) == 0 && name[stem] == '-' &&
           strchr(name, '/') == NULL && strcasecmp(name + len - 5, ".vmdk") == 0;
}

static int open_extent(int dir, const char *text_name, struct import_extent *extent,
                       uint64_t *source_bytes, struct err *err)
{
    struct open_how how = {
        .flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
    };
    struct stat st;

    extent->name[sizeof(extent->name) - 1] = '\0';
    extent->fd = -1;
    if (extent->kind == EXTENT_ZERO) {
        return 0;
    }
    if (!may_name(text_name, extent->name)) {
        return err_set(err, -EPERM,
                       "the VMDK file names other files than those that are called as it is");
    }
    extent->fd = (int)syscall(SYS_openat2, dir, extent->name, &how, sizeof(how));
    if (extent->fd < 0) {
        return err_set_errno(err, -errno, "a part of the VMDK disk, \"%s\", cannot be read",
                             extent->name);
    }
    if (fstat(extent->fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        return err_set(err, -EINVAL, "\"%s\" is no regular file", extent->name);
    }
    if (extent->kind == EXTENT_FLAT &&
        ((uint64_t)st.st_size / SECTOR_BYTES < extent->sectors ||
         (uint64_t)st.st_size / SECTOR_BYTES - extent->sectors < extent->file_sector)) {
        return err_set(err, -EBADMSG, "\"%s\" is cut off", extent->name);
    }
    *source_bytes += (uint64_t)st.st_size;
    return 0;
}

static int open_extents(struct import_vmdk *v, const char *path, uint64_t *source_bytes,
                        struct err *err)
{
    char dir_copy[PATH_MAX];
    char name_copy[PATH_MAX];
    CLEANUP_CLOSE int dir = -1;
    int rc = 0;

    if (snprintf(dir_copy, sizeof(dir_copy), "%s", path) >= (int)sizeof(dir_copy) ||
        snprintf(name_copy, sizeof(name_copy), "%s", path) >= (int)sizeof(name_copy)) {
        return err_set(err, -ENAMETOOLONG, "the path is too long");
    }
    dir = open(dirname(dir_copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0) {
        return err_set_errno(err, -errno, "the directory of %s cannot be opened", path);
    }
    for (unsigned i = 0; rc == 0 && i < v->count && i < IMPORT_VMDK_MAX_EXTENTS; i++) {
        rc = open_extent(dir, basename(name_copy), &v->extents[i], source_bytes, err);
    }
    return rc;
}

static int convert(struct import_vmdk *v, const char *path, uint64_t max_bytes, struct err *err)
{
    uint64_t source_bytes = v->text.len;
    struct jail_limits limits;
    int rc = 0;

    for (unsigned i = 0; i < IMPORT_VMDK_MAX_EXTENTS; i++) {
        v->extents[i].fd = -1;
    }
    if (rc == 0 && (v->count > IMPORT_VMDK_MAX_EXTENTS || v->sectors > max_bytes / SECTOR_BYTES)) {
        rc = err_set(err, -EFBIG, "the disk has %llu bytes and may have %llu (--max-size)",
                     (unsigned long long)v->sectors * SECTOR_BYTES, (unsigned long long)max_bytes);
    }
    rc = rc < 0 ? rc : open_extents(v, path, &source_bytes, err);
    if (rc == 0 && ftruncate(v->out, (off_t)(v->sectors * SECTOR_BYTES)) != 0) {
        rc = err_set_errno(err, -errno, "the disk cannot be made %llu bytes long",
                           (unsigned long long)v->sectors * SECTOR_BYTES);
    }
    if (rc == 0) {
        import_limits(source_bytes, v->sectors * SECTOR_BYTES, &limits);
        rc = jail_run(&limits, import_vmdk_copy_extents, v, err);
    }
    for (unsigned i = 0; i < IMPORT_VMDK_MAX_EXTENTS; i++) {
        if (v->extents[i].fd >= 0) {
            (void)close(v->extents[i].fd);
        }
    }
    return rc;
}

bool import_is_vmdk_text(const struct import_part *in)
{
    static const char begin[] = "# Disk Descriptor";
    char text[sizeof(begin) - 1];

    return in->offset == 0 && in->len <= MAX_TEXT_BYTES &&
           io_pread_full(in->fd, text, sizeof(text), 0) == (ssize_t)sizeof(text) &&
           memcmp(text, begin, sizeof(text)) == 0;
}

int import_vmdk_parts(const struct import_part *in, const char *path, uint64_t max_bytes, int out,
                      struct err *err)
{
    struct import_vmdk *shared =
        mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct jail_limits limits;
    struct import_vmdk *v;
    int rc;

    if (shared == MAP_FAILED) {
        return err_set(err, -ENOMEM, "out of memory");
    }
    shared->text = *in;
    import_limits(in->len, 0, &limits);
    rc = jail_run(&limits, import_vmdk_read_text, shared, err);
    v = malloc(sizeof(*v));
    if (v == NULL) {
        rc = err_set(err, -ENOMEM, "out of memory");
    } else if (rc == 0) {
        /* No child has this one, and it is looked at as what came from anywhere. */
        memcpy(v, shared, sizeof(*v));
        v->text = *in;
        v->out = out;
        rc = convert(v, path, max_bytes, err);
    }
    free(v);
    (void)munmap(shared, sizeof(*shared));
    return rc;
}
