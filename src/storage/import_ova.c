/*
 * An OVA file: a tar archive with a description (.ovf), often a manifest of
 * checksums (.mf), and disks. Nothing is unpacked: the disk is read where it
 * lies. POSIX 1003.1 ustar headers; DSP0243 for the manifest.
 */
#include "base/io.h"
#include "storage/import_jailed.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define BLOCK_BYTES 512u
#define MAX_MANIFEST_BYTES (64u << 10)

/* Octal digits, ended by a blank or NUL; another way of writing numbers is for longer files than
 * archives of machines hold. */
static int parse_octal(const unsigned char *field, size_t len, uint64_t *ret_value)
{
    uint64_t value = 0;
    size_t digits = 0;

    while (digits < len && field[digits] >= '0' && field[digits] <= '7') {
        if (value >> 60 != 0) {
            return -EBADMSG;
        }
        value = value << 3 | (uint64_t)(field[digits] - '0');
        digits++;
    }
    if (digits == 0 || (digits < len && field[digits] != ' ' && field[digits] != '\0')) {
        return -EBADMSG;
    }
    *ret_value = value;
    return 0;
}

/* The sum of the header's bytes, with blanks in the place of the sum itself. */
static bool is_sum_right(const unsigned char *header)
{
    uint64_t said = 0;
    uint64_t sum = 0;

    for (unsigned i = 0; i < BLOCK_BYTES; i++) {
        sum += i >= 148 && i < 156 ? ' ' : header[i];
    }
    return parse_octal(header + 148, 8, &said) == 0 && said == sum;
}

/* A name is one of a plain file, in no directory. */
static int take_name(const unsigned char *header, struct import_ova_entry *entry, struct err *err)
{
    memcpy(entry->name, header, 100);
    entry->name[100] = '\0';
    if (entry->name[0] == '\0' || entry->name[0] == '.' || strchr(entry->name, '/') != NULL ||
        header[345] != '\0') {
        return err_set(err, -EPERM, "the archive holds a name that is no plain file's");
    }
    return 0;
}

static int take_entry(struct import_ova *s, const unsigned char *header, uint64_t offset,
                      struct err *err)
{
    struct import_ova_entry *entry = &s->entries[s->count];
    uint64_t len;

    if (!is_sum_right(header) || parse_octal(header + 124, 12, &len) < 0) {
        return err_set(err, -EBADMSG, "the archive is damaged, or no OVA");
    }
    if (header[156] != '0' && header[156] != '\0') {
        return err_set(err, -EPERM, "the archive holds something that is no plain file");
    }
    if (len > s->len || offset > s->len - len) {
        return err_set(err, -EBADMSG, "the archive is cut off");
    }
    if (s->count + 1 == IMPORT_OVA_MAX_ENTRIES) {
        return err_set(err, -EFBIG, "the archive holds more than %u files",
                       IMPORT_OVA_MAX_ENTRIES - 1);
    }
    entry->offset = offset;
    entry->len = len;
    s->count++;
    return take_name(header, entry, err);
}

static int list_entries(struct import_ova *s, struct err *err)
{
    static const unsigned char end[BLOCK_BYTES];
    unsigned char header[BLOCK_BYTES];
    uint64_t offset = 0;

    while (offset + BLOCK_BYTES <= s->len) {
        ssize_t n = io_pread_full(s->fd, header, sizeof(header), offset);
        int rc;

        if (n != (ssize_t)sizeof(header)) {
            return err_set(err, -EIO, "the archive cannot be read");
        }
        if (memcmp(header, end, sizeof(end)) == 0) {
            return 0;
        }
        offset += BLOCK_BYTES;
        rc = take_entry(s, header, offset, err);
        if (rc < 0) {
            return rc;
        }
        offset += (s->entries[s->count - 1].len + BLOCK_BYTES - 1) / BLOCK_BYTES * BLOCK_BYTES;
    }
    return err_set(err, -EBADMSG, "the archive is cut off");
}

static bool has_suffix(const char *name, const char *suffix)
{
    size_t len = strlen(name);

    return len > strlen(suffix) && strcasecmp(name + len - strlen(suffix), suffix) == 0;
}

/* The only entry with the suffix: -ENOENT for none, -EINVAL for several. */
static int find_only(const struct import_ova *s, const char *suffix,
                     const struct import_ova_entry **ret_entry)
{
    const struct import_ova_entry *found = NULL;

    for (unsigned i = 0; i < s->count; i++) {
        if (has_suffix(s->entries[i].name, suffix)) {
            if (found != NULL) {
                return -EINVAL;
            }
            found = &s->entries[i];
        }
    }
    if (found == NULL) {
        return -ENOENT;
    }
    *ret_entry = found;
    return 0;
}

static const struct import_ova_entry *find_name(const struct import_ova *s, const char *name,
                                                size_t len)
{
    for (unsigned i = 0; i < s->count; i++) {
        if (strlen(s->entries[i].name) == len && memcmp(s->entries[i].name, name, len) == 0) {
            return &s->entries[i];
        }
    }
    return NULL;
}

/* "SHA256(name)= digits": checks that file, and says which it was. */
static int check_line(const struct import_ova *s, const char *line,
                      const struct import_ova_entry **ret_entry, struct err *err)
{
    const char *open = strchr(line, '(');
    const char *close = open != NULL ? strstr(open, ")=") : NULL;
    const struct import_ova_entry *entry;
    struct digest wanted, got;
    int rc;

    if (close == NULL || digest_parse(close + 2 + strspn(close + 2, " "), &wanted) < 0) {
        return err_set(err, -EBADMSG, "the archive's manifest is damaged");
    }
    entry = find_name(s, open + 1, (size_t)(close - open - 1));
    if (entry == NULL) {
        return err_set(err, -EBADMSG, "the archive's manifest names a file that it does not hold");
    }
    rc = digest_of_fd(s->fd, entry->offset, entry->len, wanted.kind, &got);
    if (rc < 0) {
        return err_set_errno(err, rc, "the archive cannot be read");
    }
    if (!digest_equal(&wanted, &got)) {
        return err_set(err, -EBADMSG, "\"%s\" in the archive is not what its manifest says",
                       entry->name);
    }
    *ret_entry = entry;
    return 0;
}

static int check_manifest(const struct import_ova *s, const struct import_ova_entry *manifest,
                          const struct import_ova_entry *disk, struct err *err)
{
    CLEANUP_FREE char *text = NULL;
    char *save = NULL;
    bool has_disk = false;

    if (manifest->len > MAX_MANIFEST_BYTES) {
        return err_set(err, -EFBIG, "the archive's manifest is too long");
    }
    text = calloc(1, manifest->len + 1);
    if (text == NULL ||
        io_pread_full(s->fd, text, manifest->len, manifest->offset) != (ssize_t)manifest->len) {
        return err_set(err, -EIO, "the archive's manifest cannot be read");
    }
    for (char *line = strtok_r(text, "\r\n", &save); line != NULL;
         line = strtok_r(NULL, "\r\n", &save)) {
        const struct import_ova_entry *entry = NULL;
        int rc = check_line(s, line, &entry, err);

        if (rc < 0) {
            return rc;
        }
        has_disk = has_disk || entry == disk;
    }
    return has_disk ? 0 : err_set(err, -EBADMSG, "the archive's manifest leaves its disk out");
}

int import_search_ova(void *opaque, struct err *err)
{
    struct import_ova *s = opaque;
    const struct import_ova_entry *disk = NULL;
    const struct import_ova_entry *other = NULL;
    int rc = list_entries(s, err);

    if (rc < 0) {
        return rc;
    }
    if (find_only(s, ".ovf", &other) < 0) {
        return err_set(err, -EBADMSG, "the archive holds no description of a machine");
    }
    rc = find_only(s, ".vmdk", &disk);
    if (rc < 0) {
        return err_set(err, -EOPNOTSUPP,
                       "the archive holds %s VMDK disk; import its disks one by one",
                       rc == -ENOENT ? "no plain" : "more than one");
    }
    rc = find_only(s, ".mf", &other);
    if (rc == 0) {
        rc = check_manifest(s, other, disk, err);
    } else {
        rc = rc == -ENOENT ? 0 : err_set(err, -EBADMSG, "the archive holds several manifests");
    }
    s->disk_offset = disk->offset;
    s->disk_len = disk->len;
    return rc;
}

int import_find_in_ova(int fd, uint64_t len, struct import_part *ret_disk, struct err *err)
{
    struct jail_limits limits;
    struct import_ova *shared =
        mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct import_part part = {.fd = fd};
    int rc;

    if (shared == MAP_FAILED) {
        return err_set_errno(err, -errno, "out of memory");
    }
    shared->fd = fd;
    shared->len = len;
    import_limits(len, 0, &limits);
    rc = jail_run(&limits, import_search_ova, shared, err);
    part.offset = shared->disk_offset;
    part.len = shared->disk_len;
    (void)munmap(shared, sizeof(*shared));
    if (rc == 0 && (part.len > len || part.offset > len - part.len || part.offset < BLOCK_BYTES)) {
        rc = err_set(err, -EBADMSG, "the archive's disk lies outside of it");
    }
    if (rc == 0) {
        *ret_disk = part;
    }
    return rc;
}
