#include "vmm/disk_option.h"

#include "base/log.h"
#include "block/image.h"
#include "machine/machine.h"
#include "vmm/parse.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define SERIAL_BYTES 20u

struct option {
    const char *name;
    const char *mend; /* what to give */
    bool (*set)(struct machine_disk *disk, const char *value);
};

static bool set_id(struct machine_disk *disk, const char *value)
{
    disk->id = value;
    return *value != '\0' && strlen(value) < MACHINE_DISK_ID_BYTES;
}

static bool set_serial(struct machine_disk *disk, const char *value)
{
    disk->serial = value;
    return *value != '\0' && strlen(value) <= SERIAL_BYTES;
}

static bool set_format(struct machine_disk *disk, const char *value)
{
    return block_format_parse(value, &disk->format) == 0;
}

static bool set_backing_dir(struct machine_disk *disk, const char *value)
{
    disk->backing_dir = value;
    return *value != '\0';
}

static bool set_cache(struct machine_disk *disk, const char *value)
{
    disk->is_direct = strcmp(value, "none") == 0;
    return disk->is_direct || strcmp(value, "writeback") == 0;
}

static bool set_aio(struct machine_disk *disk, const char *value)
{
    for (enum io_backend i = IO_BACKEND_AUTO; i <= IO_BACKEND_THREADS; i++) {
        if (strcmp(value, io_backend_name(i)) == 0) {
            disk->aio = i;
            return true;
        }
    }
    return false;
}

static bool set_on_error(struct machine_disk *disk, const char *value)
{
    disk->pause_on_error = strcmp(value, "pause") == 0;
    return disk->pause_on_error || strcmp(value, "report") == 0;
}

static bool set_small(const char *value, uint64_t max, unsigned *ret_number)
{
    uint64_t number = 0;

    if (!parse_number(value, 1, max, &number)) {
        return false;
    }
    *ret_number = (unsigned)number;
    return true;
}

static bool set_queues(struct machine_disk *disk, const char *value)
{
    return set_small(value, MACHINE_MAX_DISK_QUEUES, &disk->queues);
}

static bool set_io_threads(struct machine_disk *disk, const char *value)
{
    return set_small(value, BLOCK_MAX_LANES, &disk->io_threads);
}

static bool set_rate(const char *value, uint64_t *ret_rate)
{
    return parse_size(value, ret_rate) && *ret_rate <= LIMIT_MAX_RATE;
}

static bool set_bps(struct machine_disk *disk, const char *value)
{
    return set_rate(value, &disk->limits.bytes_per_second);
}

static bool set_bps_burst(struct machine_disk *disk, const char *value)
{
    return set_rate(value, &disk->limits.burst_bytes);
}

static bool set_iops(struct machine_disk *disk, const char *value)
{
    return set_rate(value, &disk->limits.ops_per_second);
}

static bool set_iops_burst(struct machine_disk *disk, const char *value)
{
    return set_rate(value, &disk->limits.burst_ops);
}

static const struct option options[] = {
    {"id", "a name of 1 to 31 characters", set_id},
    {"serial", "1 to 20 characters", set_serial},
    {"format", "raw or qcow2", set_format},
    {"backing-dir", "the directory that holds backing images", set_backing_dir},
    {"cache", "writeback, or none to bypass the host's cache", set_cache},
    {"aio", "auto, io_uring or threads", set_aio},
    {"on-error", "report or pause", set_on_error},
    {"queues", "1 to 8", set_queues},
    {"io-threads", "1 to 8", set_io_threads},
    {"bps", "bytes per second, such as 50M", set_bps},
    {"bps-burst", "bytes, such as 100M", set_bps_burst},
    {"iops", "operations per second", set_iops},
    {"iops-burst", "a number of operations", set_iops_burst},
};

/* The option that text ("name=value") sets, and where its value begins. */
static const struct option *find_option(const char *text, const char **ret_value)
{
    for (unsigned i = 0; i < ARRAY_LEN(options); i++) {
        size_t len = strlen(options[i].name);

        if (strncmp(text, options[i].name, len) == 0 && text[len] == '=') {
            *ret_value = text + len + 1;
            return &options[i];
        }
    }
    return NULL;
}

int disk_option_parse(char *text, const char *place, struct err *err, struct machine_disk *ret_disk)
{
    struct machine_disk disk = {.fd = -1};
    char shown[200];
    char *comma;

    /* From the end: the first piece that is no option belongs to the file's name. */
    while ((comma = strrchr(text, ',')) != NULL) {
        const char *value = NULL;
        const struct option *option = find_option(comma + 1, &value);

        if (option == NULL && strcmp(comma + 1, "ro") != 0) {
            break;
        }
        if (option == NULL) {
            disk.read_only = true;
        } else if (!option->set(&disk, value)) {
            return err_set(err, -EINVAL, "%s: %s=\"%s\" does not fit; give %s", place, option->name,
                           log_escape(shown, sizeof(shown), value, strlen(value)), option->mend);
        }
        *comma = '\0';
    }
    if (*text == '\0') {
        return err_set(err, -EINVAL,
                       "%s: the name of a disk image is missing; give one, and ,ro after it to "
                       "only read it",
                       place);
    }
    disk.path = text;
    *ret_disk = disk;
    return 0;
}
