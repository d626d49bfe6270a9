#include "vmm/control_disk.h"

#include "block/image.h"
#include "machine/machine.h"
#include "vmm/disk_option.h"

#include <errno.h>
#include <string.h>

static void set_number(json_t *object, const char *key, uint64_t value)
{
    (void)json_object_set_new(object, key, json_integer((json_int_t)value));
}

/* The rates have the names that --disk gives them. */
static json_t *limits_object(const struct limit_config *limits)
{
    json_t *object = json_object();

    set_number(object, "bps", limits->bytes_per_second);
    set_number(object, "bps-burst", limits->burst_bytes);
    set_number(object, "iops", limits->ops_per_second);
    set_number(object, "iops-burst", limits->burst_ops);
    return object;
}

static json_t *job_object(const struct block_job_info *job, const char *file)
{
    json_t *object = json_object();

    (void)json_object_set_new(object, "kind", json_string(block_job_kind_name(job->kind)));
    (void)json_object_set_new(object, "state", json_string(block_job_state_name(job->state)));
    set_number(object, "done_bytes", job->done_bytes);
    set_number(object, "total_bytes", job->total_bytes);
    set_number(object, "speed", job->bytes_per_second);
    set_number(object, "longest_hold_ns", job->longest_hold_ns);
    if (file[0] != '\0') {
        (void)json_object_set_new(object, "file", json_string(file));
        (void)json_object_set_new(object, "noted", json_boolean(job->is_noted));
    }
    if (job->error.code != 0) {
        (void)json_object_set_new(object, "error", json_string(job->error.text));
    }
    return object;
}

static json_t *disk_object(const struct machine_disk_info *disk)
{
    json_t *object = json_object();

    (void)json_object_set_new(object, "id", json_string(disk->id));
    (void)json_object_set_new(object, "file", json_string(disk->path));
    (void)json_object_set_new(object, "format", json_string(block_format_name(disk->format)));
    (void)json_object_set_new(object, "aio", json_string(io_backend_name(disk->aio)));
    (void)json_object_set_new(object, "read_only", json_boolean(disk->read_only));
    (void)json_object_set_new(object, "leaving", json_boolean(disk->is_leaving));
    set_number(object, "size_bytes", disk->size_bytes);
    set_number(object, "queues", disk->queues);
    set_number(object, "io_threads", disk->io_threads);
    (void)json_object_set_new(object, "limits", limits_object(&disk->limits));
    set_number(object, "reads", disk->stats.requests[BLOCK_READ]);
    set_number(object, "writes", disk->stats.requests[BLOCK_WRITE]);
    set_number(object, "flushes", disk->stats.requests[BLOCK_FLUSH]);
    set_number(object, "read_bytes", disk->stats.read_bytes);
    set_number(object, "written_bytes", disk->stats.written_bytes);
    set_number(object, "errors", disk->stats.errors);
    set_number(object, "throttled", disk->stats.throttled);
    if (disk->stopped_error != 0) {
        (void)json_object_set_new(object, "waits_because",
                                  json_string(strerrordesc_np(-disk->stopped_error)));
    }
    if (disk->has_job) {
        (void)json_object_set_new(object, "job", job_object(&disk->job, disk->job_file));
    }
    return object;
}

void control_disks(struct machine *machine, json_t *answer)
{
    struct machine_disk_info *disks = calloc(MACHINE_MAX_DISKS, sizeof(*disks));
    unsigned count = disks != NULL ? machine_disks(machine, disks, MACHINE_MAX_DISKS) : 0;
    json_t *array = json_array();

    for (unsigned i = 0; i < count; i++) {
        (void)json_array_append_new(array, disk_object(&disks[i]));
    }
    free(disks);
    (void)json_object_set_new(answer, "disks", array);
}

static int get_id(const json_t *request, struct err *err, const char **ret_id)
{
    *ret_id = json_string_value(json_object_get(request, "disk"));
    return *ret_id != NULL ? 0 : err_set(err, -EINVAL, "give \"disk\", a disk's id");
}

/* Leaves *value alone when the key is not there. */
static int get_number(const json_t *request, const char *key, struct err *err, uint64_t *value)
{
    const json_t *number = json_object_get(request, key);

    if (number == NULL) {
        return 0;
    }
    if (!json_is_integer(number) || json_integer_value(number) < 0) {
        return err_set(err, -EINVAL, "\"%s\" is no whole number from 0 on", key);
    }
    *value = (uint64_t)json_integer_value(number);
    return 0;
}

int control_disk_limit(struct machine *machine, const json_t *request, struct err *err)
{
    struct limit_config limits = {0};
    const char *id = NULL;
    int rc = get_id(request, err, &id);

    if (rc == 0) {
        rc = get_number(request, "bps", err, &limits.bytes_per_second);
    }
    if (rc == 0) {
        rc = get_number(request, "bps-burst", err, &limits.burst_bytes);
    }
    if (rc == 0) {
        rc = get_number(request, "iops", err, &limits.ops_per_second);
    }
    if (rc == 0) {
        rc = get_number(request, "iops-burst", err, &limits.burst_ops);
    }
    return rc == 0 ? machine_disk_limit(machine, id, &limits, err) : rc;
}

int control_disk_resize(struct machine *machine, const json_t *request, struct err *err)
{
    uint64_t bytes = 0;
    const char *id = NULL;
    int rc = get_id(request, err, &id);

    if (rc == 0) {
        rc = get_number(request, "bytes", err, &bytes);
    }
    return rc == 0 ? machine_disk_resize(machine, id, bytes, err) : rc;
}

int control_disk_add(struct machine *machine, const json_t *request, struct err *err)
{
    const char *text = json_string_value(json_object_get(request, "disk"));
    CLEANUP_FREE char *copy = text != NULL ? strdup(text) : NULL;
    struct machine_disk disk;
    int rc;

    if (copy == NULL) {
        return err_set(err, -EINVAL, "give \"disk\", what --disk takes");
    }
    rc = disk_option_parse(copy, "\"disk\"", err, &disk);
    return rc == 0 ? machine_disk_add(machine, &disk, err) : rc;
}

int control_disk_remove(struct machine *machine, const json_t *request, struct err *err)
{
    const char *id = NULL;
    int rc = get_id(request, err, &id);

    return rc == 0 ? machine_disk_remove(machine, id, err) : rc;
}

static int get_file(const json_t *request, struct err *err, const char **ret_file)
{
    *ret_file = json_string_value(json_object_get(request, "file"));
    return *ret_file != NULL && **ret_file != '\0'
               ? 0
               : err_set(err, -EINVAL, "give \"file\", the file to make");
}

int control_disk_snapshot(struct machine *machine, const json_t *request, json_t *answer,
                          struct err *err)
{
    const char *id = NULL;
    const char *file = NULL;
    struct block_snapshot_result result = {0};
    int rc = get_id(request, err, &id);

    if (rc == 0) {
        rc = get_file(request, err, &file);
    }
    if (rc == 0) {
        rc = machine_disk_snapshot(machine, id, file, err, &result);
        set_number(answer, "hold_ns", result.hold_ns);
        (void)json_object_set_new(answer, "file", json_string(file));
        (void)json_object_set_new(answer, "format", json_string("qcow2"));
        (void)json_object_set_new(answer, "noted", json_boolean(result.is_noted));
    }
    return rc;
}

int control_disk_mirror(struct machine *machine, const json_t *request, struct err *err)
{
    struct block_job_config config = {.kind = BLOCK_JOB_MIRROR};
    const char *format = json_string_value(json_object_get(request, "format"));
    const json_t *existing = json_object_get(request, "existing");
    const char *id = NULL;
    int rc = get_id(request, err, &id);

    if (rc == 0) {
        rc = get_file(request, err, &config.target);
    }
    if (rc == 0 && format != NULL && block_format_parse(format, &config.target_format) != 0) {
        rc = err_set(err, -EINVAL, "\"format\" is raw or qcow2");
    }
    if (rc == 0 && existing != NULL && !json_is_boolean(existing)) {
        rc = err_set(err, -EINVAL, "\"existing\" is true or false");
    }
    config.into_existing = json_is_true(existing);
    if (rc == 0) {
        rc = get_number(request, "speed", err, &config.bytes_per_second);
    }
    return rc == 0 ? machine_disk_job_start(machine, id, &config, err) : rc;
}

int control_disk_layers(struct machine *machine, const json_t *request, bool is_commit,
                        struct err *err)
{
    struct block_job_config config = {.kind = is_commit ? BLOCK_JOB_COMMIT : BLOCK_JOB_STREAM};
    const char *id = NULL;
    int rc = get_id(request, err, &id);

    if (rc == 0) {
        rc = get_number(request, "speed", err, &config.bytes_per_second);
    }
    return rc == 0 ? machine_disk_job_start(machine, id, &config, err) : rc;
}

int control_disk_job(struct machine *machine, const json_t *request, struct err *err)
{
    static const char *const names[] = {
        [MACHINE_JOB_PAUSE] = "pause",
        [MACHINE_JOB_RESUME] = "resume",
        [MACHINE_JOB_CANCEL] = "cancel",
        [MACHINE_JOB_SPEED] = "speed",
    };
    const char *name = json_string_value(json_object_get(request, "action"));
    const char *id = NULL;
    uint64_t speed = UINT64_MAX;
    int rc = get_id(request, err, &id);

    if (rc == 0) {
        rc = get_number(request, "speed", err, &speed);
    }
    if (rc != 0) {
        return rc;
    }
    for (unsigned i = 0; name != NULL && i < ARRAY_LEN(names); i++) {
        if (strcmp(name, names[i]) == 0) {
            if (i == MACHINE_JOB_SPEED && speed == UINT64_MAX) {
                return err_set(err, -EINVAL, "give \"speed\", bytes per second, or 0 for no limit");
            }
            return machine_disk_job(machine, id, (enum machine_job_action)i, speed, err);
        }
    }
    return err_set(err, -EINVAL, "give \"action\": pause, resume, cancel or speed");
}
