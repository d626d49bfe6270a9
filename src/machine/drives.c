/* The machine's disks: images with a virtio device in front of them. */
#include "base/io.h"
#include "base/log.h"
#include "base/loop.h"
#include "block/block.h"
#include "block/image.h"
#include "block/successor.h"
#include "machine/machine_internal.h"
#include "virtio/virtio_devices.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct machine_drive {
    struct machine *machine;
    char id[MACHINE_DISK_ID_BYTES];
    char path[sizeof(((struct machine_disk_info *)0)->path)];
    char serial[21];
    enum block_format format;
    unsigned queues;
    atomic_bool is_leaving;
    bool is_direct;
    struct block_job *job; /* running, or the last one */
    bool is_job_seen;      /* its end, that is */
    /* Where the disk goes on when the job is done. */
    char job_file[sizeof(((struct machine_disk_info *)0)->path)];
    enum block_format job_format;
    struct block *block;
    struct virtio_dev *dev;
};

/* ---- the table; the lock is held once the machine has started ---- */

static struct machine_drive *find_drive(struct machine *machine, const char *id)
{
    for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++) {
        if (machine->drives[i] != NULL && strcmp(machine->drives[i]->id, id) == 0) {
            return machine->drives[i];
        }
    }
    return NULL;
}

static int no_such(const char *id, struct err *err)
{
    return err_set(err, -ENOENT, "there is no disk \"%.*s\"; \"disks\" lists them",
                   MACHINE_DISK_ID_BYTES, id);
}

/* ---- one drive ---- */

/* A request failed on the host, and waits: the guest must not see it. On a disk's thread. */
static void on_stopped(void *opaque, int error)
{
    struct machine_drive *drive = opaque;
    struct err reason = {0};

    (void)err_set_errno(&reason, error, "disk '%s' ('%s') failed; mend that, then resume",
                        drive->id, drive->path);
    log_warn("the machine pauses: %s", reason.text);
    machine_request_pause(drive->machine, &reason);
}

static int drive_set_names(struct machine_drive *drive, const struct machine_disk *disk,
                           unsigned index, struct err *err)
{
    int len = disk->id != NULL ? snprintf(drive->id, sizeof(drive->id), "%s", disk->id)
                               : snprintf(drive->id, sizeof(drive->id), "disk%u", index);

    if (len <= 0 || (size_t)len >= sizeof(drive->id)) {
        return err_set(err, -EINVAL, "disk '%s': a name has 1 to %d characters", disk->path,
                       MACHINE_DISK_ID_BYTES - 1);
    }
    len = snprintf(drive->path, sizeof(drive->path), "%s", disk->path);
    if (len <= 0 || (size_t)len >= sizeof(drive->path)) {
        return err_set(err, -ENAMETOOLONG, "the name of a disk's file is too long");
    }
    if (disk->serial != NULL) {
        (void)snprintf(drive->serial, sizeof(drive->serial), "%s", disk->serial);
    }
    return 0;
}

static void drive_destroy(struct machine_drive *drive)
{
    if (drive == NULL) {
        return;
    }
    block_job_destroy(drive->job);
    virtio_dev_destroy(drive->dev);
    block_destroy(drive->block);
    free(drive);
}

static int drive_open(struct machine_drive *drive, const struct machine_disk *disk, struct err *err)
{
    const struct block_config config = {
        .format = disk->format,
        .path = disk->path,
        .fd = disk->fd,
        .read_only = disk->read_only,
        .direct = disk->is_direct,
        .must_be_current = !disk->read_only,
        .backing_dir = disk->backing_dir,
        .lanes = disk->io_threads,
        .aio = disk->aio,
        .on_error = disk->pause_on_error ? BLOCK_ON_ERROR_HOLD : BLOCK_ON_ERROR_REPORT,
    };
    int rc = block_create(&config, err, &drive->block);

    if (rc != 0) {
        return rc;
    }
    block_set_stopped(drive->block, on_stopped, drive);
    rc = block_set_limits(drive->block, &disk->limits);
    return rc == 0 ? 0 : err_set(err, rc, "disk '%s': a limit is out of bounds", disk->path);
}

static int drive_create(struct machine *machine, const struct machine_disk *disk, unsigned index,
                        struct err *err, struct machine_drive **ret_drive)
{
    struct machine_drive *drive = calloc(1, sizeof(*drive));
    int rc;

    if (drive == NULL) {
        return err_set(err, -ENOMEM, "no memory for a disk");
    }
    drive->machine = machine;
    drive->format = disk->format;
    drive->is_direct = disk->is_direct;
    drive->queues = disk->queues == 0 ? 1 : disk->queues;
    rc = drive_set_names(drive, disk, index, err);
    if (rc == 0 && find_drive(machine, drive->id) != NULL) {
        rc = err_set(err, -EEXIST, "there is a disk \"%s\" already; give another id", drive->id);
    }
    if (rc == 0) {
        rc = drive_open(drive, disk, err);
    }
    if (rc != 0) {
        drive_destroy(drive);
        return rc;
    }
    *ret_drive = drive;
    return 0;
}

static int drive_plug(struct machine_drive *drive, struct err *err)
{
    struct machine *machine = drive->machine;
    const struct virtio_env env = {
        .host = machine->pci, .gmem = machine->gmem, .loop = machine->loop};
    const struct virtio_blk_config config = {
        .block = drive->block,
        .serial = drive->serial[0] != '\0' ? drive->serial : NULL,
        .queues = drive->queues,
    };
    int rc = virtio_blk_create(&env, &config, &drive->dev);

    return rc == 0 ? 0 : err_set_errno(err, rc, "cannot make the virtual disk");
}

/* ---- jobs ---- */

static bool has_running_job(const struct machine_drive *drive)
{
    struct block_job_info info = {.state = BLOCK_JOB_DONE};

    if (drive->job != NULL) {
        block_job_info(drive->job, &info);
    }
    return info.state == BLOCK_JOB_RUNNING || info.state == BLOCK_JOB_PAUSED;
}

/* A job that is done may have given the disk another file. */
static void drive_see_job(struct machine_drive *drive)
{
    struct block_job_info info;

    if (drive->job == NULL || drive->is_job_seen) {
        return;
    }
    block_job_info(drive->job, &info);
    drive->is_job_seen = info.state > BLOCK_JOB_PAUSED;
    if (info.state == BLOCK_JOB_DONE && drive->job_file[0] != '\0') {
        memcpy(drive->path, drive->job_file, sizeof(drive->path));
        drive->format = drive->job_format;
    }
}

static void drive_end_job(struct machine_drive *drive)
{
    drive_see_job(drive);
    block_job_destroy(drive->job);
    drive->job = NULL;
    drive->is_job_seen = false;
    drive->job_file[0] = '\0';
}

/* ---- all of them ---- */

int drives_create(struct machine *machine, struct err *err)
{
    for (unsigned i = 0; i < machine->config.disk_count; i++) {
        int rc = drive_create(machine, &machine->config.disks[i], i, err, &machine->drives[i]);

        if (rc == 0) {
            rc = drive_plug(machine->drives[i], err);
        }
        if (rc != 0) {
            return rc;
        }
    }
    return 0;
}

int drives_start(struct machine *machine, struct err *err)
{
    int rc = 0;

    for (unsigned i = 0; rc == 0 && i < MACHINE_MAX_DISKS; i++) {
        if (machine->drives[i] != NULL) {
            rc = block_start(machine->drives[i]->block, err);
        }
    }
    return rc;
}

void drives_stop(struct machine *machine)
{
    for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++) {
        if (machine->drives[i] != NULL) {
            drive_end_job(machine->drives[i]);
            block_stop(machine->drives[i]->block);
        }
    }
}

void drives_destroy(struct machine *machine)
{
    for (unsigned i = MACHINE_MAX_DISKS; i-- > 0;) {
        drive_destroy(machine->drives[i]);
        machine->drives[i] = NULL;
    }
}

static void on_ejected(void *opaque, uint32_t slots);

/* What was to leave leaves with the reset, as soon as that is over. */
void drives_reset(struct machine *machine)
{
    for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++) {
        struct machine_drive *drive = machine->drives[i];

        if (drive == NULL) {
            continue;
        }
        virtio_dev_reset(drive->dev);
        if (atomic_load(&drive->is_leaving)) {
            on_ejected(machine, 1u << virtio_dev_slot(drive->dev));
        }
    }
}

void drives_retry(struct machine *machine)
{
    mutex_lock(&machine->drives_lock);
    for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++) {
        if (machine->drives[i] != NULL && block_stopped_error(machine->drives[i]->block) != 0) {
            block_retry(machine->drives[i]->block);
        }
    }
    mutex_unlock(&machine->drives_lock);
}

unsigned drives_stats(struct machine *machine, struct block_stats *ret_stats)
{
    unsigned count = 0;

    *ret_stats = (struct block_stats){0};
    mutex_lock(&machine->drives_lock);
    for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++) {
        struct block_stats stats;

        if (machine->drives[i] == NULL) {
            continue;
        }
        count++;
        block_stats(machine->drives[i]->block, &stats);
        for (unsigned op = 0; op < ARRAY_LEN(stats.requests); op++) {
            ret_stats->requests[op] += stats.requests[op];
            latency_merge(&stats.latencies[op], &ret_stats->latencies[op]);
        }
        ret_stats->read_bytes += stats.read_bytes;
        ret_stats->written_bytes += stats.written_bytes;
        ret_stats->errors += stats.errors;
        ret_stats->throttled += stats.throttled;
    }
    mutex_unlock(&machine->drives_lock);
    return count;
}

/* ---- coming and going ---- */

static void tell_change(struct machine *machine)
{
    (void)atomic_fetch_add(&machine->disk_changes, 1);
    io_eventfd_signal(machine->event_fd);
}

unsigned machine_disk_changes(struct machine *machine)
{
    return atomic_load(&machine->disk_changes);
}

static int add_locked(struct machine *machine, const struct machine_disk *disk, struct err *err)
{
    struct machine_drive *drive = NULL;
    unsigned index = 0;
    int rc;

    while (index < MACHINE_MAX_DISKS && machine->drives[index] != NULL) {
        index++;
    }
    if (index == MACHINE_MAX_DISKS) {
        return err_set(err, -ENOSPC, "there are %d disks already", MACHINE_MAX_DISKS);
    }
    rc = drive_create(machine, disk, index, err, &drive);
    if (rc != 0) {
        return rc;
    }
    machine_exclusive_begin(machine);
    rc = drive_plug(drive, err);
    if (rc == 0) {
        rc = block_start(drive->block, err);
    }
    if (rc == 0) {
        machine->drives[index] = drive;
    } else {
        block_stop(drive->block);
        drive_destroy(drive);
    }
    machine_exclusive_end(machine);
    if (rc == 0) {
        hotplug_came(machine->hotplug, virtio_dev_slot(drive->dev));
    }
    return rc;
}

int machine_disk_add(struct machine *machine, const struct machine_disk *disk, struct err *err)
{
    int rc;

    mutex_lock(&machine->drives_lock);
    rc = add_locked(machine, disk, err);
    mutex_unlock(&machine->drives_lock);
    if (rc == 0) {
        tell_change(machine);
    }
    return rc;
}

/* Takes the drive at index out of the machine. */
static void remove_locked(struct machine *machine, unsigned index)
{
    struct machine_drive *drive = machine->drives[index];

    drive_end_job(drive);
    machine_exclusive_begin(machine);
    machine->drives[index] = NULL;
    block_stop(drive->block);
    virtio_dev_destroy(drive->dev);
    drive->dev = NULL;
    machine_exclusive_end(machine);
    log_info("disk '%s' is unplugged", drive->id);
    drive_destroy(drive);
    tell_change(machine);
}

/* On io/0, because a vCPU's thread cannot wait until no vCPU runs. */
static void remove_ejected(void *opaque)
{
    struct machine *machine = opaque;
    uint32_t slots;

    mutex_lock(&machine->drives_lock);
    slots = atomic_exchange(&machine->ejected, 0);
    for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++) {
        struct machine_drive *drive = machine->drives[i];

        if (drive != NULL && (slots & 1u << virtio_dev_slot(drive->dev)) != 0 &&
            atomic_load(&drive->is_leaving)) {
            remove_locked(machine, i);
        }
    }
    mutex_unlock(&machine->drives_lock);
}

/* Only what was asked to leave does: the rest of the hardware is not the guest's to remove. */
static void on_ejected(void *opaque, uint32_t slots)
{
    struct machine *machine = opaque;

    (void)atomic_fetch_or(&machine->ejected, slots);
    if (loop_defer(machine->loop, remove_ejected, machine) != 0) {
        log_error("no memory to unplug a disk; ask for it again");
    }
}

const struct hotplug_ops drives_hotplug_ops = {.ejected = on_ejected};

int machine_disk_remove(struct machine *machine, const char *id, struct err *err)
{
    struct machine_drive *drive;
    int rc = 0;

    mutex_lock(&machine->drives_lock);
    drive = find_drive(machine, id);
    if (drive == NULL) {
        rc = no_such(id, err);
    } else {
        atomic_store(&drive->is_leaving, true);
        hotplug_ask(machine->hotplug, virtio_dev_slot(drive->dev));
    }
    mutex_unlock(&machine->drives_lock);
    return rc;
}

/* ---- commands ---- */

static void drive_info(struct machine_drive *drive, struct machine_disk_info *ret_info)
{
    struct block *block = drive->block;

    drive_see_job(drive);
    *ret_info = (struct machine_disk_info){
        .format = drive->format,
        .read_only = block_is_read_only(block),
        .is_leaving = atomic_load(&drive->is_leaving),
        .size_bytes = block_size_bytes(block),
        .aio = block_backend(block),
        .queues = drive->queues,
        .io_threads = block_lane_count(block),
        .stopped_error = block_stopped_error(block),
    };
    memcpy(ret_info->id, drive->id, sizeof(ret_info->id));
    memcpy(ret_info->path, drive->path, sizeof(ret_info->path));
    block_limits(block, &ret_info->limits);
    block_stats(block, &ret_info->stats);
    ret_info->has_job = drive->job != NULL;
    if (drive->job != NULL) {
        block_job_info(drive->job, &ret_info->job);
        memcpy(ret_info->job_file, drive->job_file, sizeof(ret_info->job_file));
    }
}

unsigned machine_disks(struct machine *machine, struct machine_disk_info *ret_disks, unsigned max)
{
    unsigned count = 0;

    mutex_lock(&machine->drives_lock);
    for (unsigned i = 0; i < MACHINE_MAX_DISKS; i++) {
        if (machine->drives[i] == NULL) {
            continue;
        }
        if (count < max) {
            drive_info(machine->drives[i], &ret_disks[count]);
        }
        count++;
    }
    mutex_unlock(&machine->drives_lock);
    return count;
}

static int check_idle(const struct machine_drive *drive, struct err *err)
{
    return has_running_job(drive)
               ? err_set(err, -EBUSY, "disk '%s' has a job; wait for its end, or cancel it",
                         drive->id)
               : 0;
}

int machine_disk_limit(struct machine *machine, const char *id, const struct limit_config *limits,
                       struct err *err)
{
    struct machine_drive *drive;
    int rc;

    mutex_lock(&machine->drives_lock);
    drive = find_drive(machine, id);
    rc = drive != NULL ? block_set_limits(drive->block, limits) : no_such(id, err);
    mutex_unlock(&machine->drives_lock);
    return drive != NULL && rc != 0 ? err_set(err, rc, "a limit is out of bounds") : rc;
}

int machine_disk_resize(struct machine *machine, const char *id, uint64_t size_bytes,
                        struct err *err)
{
    struct machine_drive *drive;
    int rc;

    mutex_lock(&machine->drives_lock);
    drive = find_drive(machine, id);
    rc = drive != NULL ? check_idle(drive, err) : no_such(id, err);
    if (rc == 0) {
        rc = block_resize(drive->block, size_bytes, err);
    }
    if (rc == 0) {
        virtio_blk_resized(drive->dev);
    }
    mutex_unlock(&machine->drives_lock);
    return rc;
}

/* How path's image names the one before: alone when both lie in one directory, else from the root.
 * Freed by the caller. */
static char *backing_name(const char *path, const char *backing)
{
    const char *end = strrchr(path, '/');
    const char *backing_end = strrchr(backing, '/');
    size_t len = end != NULL ? (size_t)(end - path) : 0;
    size_t backing_len = backing_end != NULL ? (size_t)(backing_end - backing) : 0;

    if (len == backing_len && (end != NULL) == (backing_end != NULL) &&
        memcmp(path, backing, len) == 0) {
        return strdup(backing_end != NULL ? backing_end + 1 : backing);
    }
    return realpath(backing, NULL);
}

static int snapshot_locked(struct machine_drive *drive, const char *path, struct err *err,
                           struct block_snapshot_result *ret_result)
{
    CLEANUP_FREE char *name = NULL;
    int rc = check_idle(drive, err);

    if (rc != 0) {
        return rc;
    }
    if (strlen(path) >= sizeof(drive->path)) {
        return err_set(err, -ENAMETOOLONG, "the name of the snapshot's file is too long");
    }
    drive_see_job(drive);
    name = backing_name(path, drive->path);
    if (name == NULL) {
        return err_set_errno(err, -errno, "cannot name '%s' in the new file", drive->path);
    }
    rc = block_snapshot(drive->block, path, name, drive->is_direct, err, ret_result);
    if (rc == 0) {
        successor_log(drive->path, path, ret_result->is_noted);
        (void)snprintf(drive->path, sizeof(drive->path), "%s", path);
        drive->format = BLOCK_FORMAT_QCOW2;
    }
    return rc;
}

int machine_disk_snapshot(struct machine *machine, const char *id, const char *path,
                          struct err *err, struct block_snapshot_result *ret_result)
{
    struct machine_drive *drive;
    int rc;

    mutex_lock(&machine->drives_lock);
    drive = find_drive(machine, id);
    rc = drive != NULL ? snapshot_locked(drive, path, err, ret_result) : no_such(id, err);
    mutex_unlock(&machine->drives_lock);
    if (rc == 0) {
        tell_change(machine);
    }
    return rc;
}

/* On the job's thread, which the owner of the table may be waiting for. */
static void on_job_ended(void *opaque)
{
    struct machine_drive *drive = opaque;

    tell_change(drive->machine);
}

static int drive_set_job_file(struct machine_drive *drive, const struct block_job_config *config,
                              struct err *err)
{
    int rc = 0;

    drive->job_format = config->target_format;
    if (config->kind == BLOCK_JOB_COMMIT) {
        rc = block_backing(drive->block, drive->job_file, sizeof(drive->job_file),
                           &drive->job_format);
        return rc == 0 ? 0 : err_set_errno(err, rc, "disk '%s' has no image below it", drive->id);
    }
    if (config->kind == BLOCK_JOB_MIRROR) {
        int len = snprintf(drive->job_file, sizeof(drive->job_file), "%s", config->target);

        if (len < 0 || (size_t)len >= sizeof(drive->job_file)) {
            rc = err_set(err, -ENAMETOOLONG, "the name of the mirror's file is too long");
        }
    }
    return rc;
}

static int job_start_locked(struct machine_drive *drive, const struct block_job_config *config,
                            struct err *err)
{
    struct block_job_config own = *config;
    int rc = check_idle(drive, err);

    if (rc != 0) {
        return rc;
    }
    drive_end_job(drive);
    rc = drive_set_job_file(drive, config, err);
    if (rc != 0) {
        return rc;
    }
    own.target_direct = drive->is_direct;
    own.ended = on_job_ended;
    own.opaque = drive;
    return block_job_start(drive->block, &own, err, &drive->job);
}

int machine_disk_job_start(struct machine *machine, const char *id,
                           const struct block_job_config *config, struct err *err)
{
    struct machine_drive *drive;
    int rc;

    mutex_lock(&machine->drives_lock);
    drive = find_drive(machine, id);
    rc = drive != NULL ? job_start_locked(drive, config, err) : no_such(id, err);
    mutex_unlock(&machine->drives_lock);
    return rc;
}

int machine_disk_job(struct machine *machine, const char *id, enum machine_job_action action,
                     uint64_t bytes_per_second, struct err *err)
{
    struct machine_drive *drive;
    int rc = 0;

    mutex_lock(&machine->drives_lock);
    drive = find_drive(machine, id);
    if (drive == NULL) {
        rc = no_such(id, err);
    } else if (drive->job == NULL) {
        rc = err_set(err, -ENOENT, "disk '%s' has no job", drive->id);
    } else if (action == MACHINE_JOB_CANCEL) {
        block_job_cancel(drive->job);
    } else if (action == MACHINE_JOB_SPEED) {
        block_job_set_speed(drive->job, bytes_per_second);
    } else {
        block_job_pause(drive->job, action == MACHINE_JOB_PAUSE);
    }
    mutex_unlock(&machine->drives_lock);
    return rc;
}
