/* How people get into an instance, and what its monitor said. */
#include "compute/compute_int.h"

#include "base/io.h"
#include "base/path.h"
#include "storage/guest_image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define TAIL_BYTES (256u << 10)
#define SMALL_FILE_BYTES 16384u

static void add_file(json_t *answer, const char *name, const char *dir, const char *file)
{
    char path[PATH_MAX];
    struct err ignored;
    CLEANUP_FREE void *data = NULL;
    size_t len = 0;

    if (path_format(path, &ignored, "%s/%s", dir, file) == 0 &&
        io_read_file(path, SMALL_FILE_BYTES, &data, &len) == 0) {
        char *text = data;

        (void)json_object_set_new(answer, name, json_string(text)); /* none when it is no UTF-8 */
    }
}

int compute_access(struct compute *compute, const struct compute_call *call, const char *id,
                   json_t **ret_access, struct fault *fault)
{
    char dir[PATH_MAX];
    struct object instance = {0};
    struct image image;
    struct err err;
    json_t *access;
    int rc = object_find(compute, KIND_INSTANCE, call->project, id, &instance, fault);

    if (rc < 0) {
        return rc;
    }
    rc = directory_path(compute, instance.id, dir, &err);
    rc = rc < 0 ? rc : image_load(dir, &image, &err);
    if (rc < 0) {
        rc = fault_set(fault, FAULT_CONFLICT, "state", "the instance \"%s\" is %s and has no disk",
                       object_text(&instance, "name"), object_text(&instance, "state"));
        object_done(&instance);
        return rc;
    }
    access = json_pack("{s:s, s:s, s:I}", "user", image.user, "ready", image.ready, "ssh_port",
                       (json_int_t)object_number(&instance, "ssh_port"));
    add_file(access, "ssh_key", dir, "ssh_key");
    add_file(access, "known_hosts", dir, "known_hosts");
    add_file(access, "console_password", dir, "console_password");
    object_done(&instance);
    *ret_access = access;
    return access != NULL ? 0 : fault_set(fault, FAULT_INTERNAL, NULL, "not enough memory");
}

/* The last of a text, from the beginning of a line, as UTF-8 whatever is in it. */
static json_t *tail_of(const char *dir, const char *name)
{
    char path[PATH_MAX];
    struct err ignored;
    CLEANUP_CLOSE int fd = -1;
    CLEANUP_FREE char *text = malloc(TAIL_BYTES + 1);
    struct stat st;
    ssize_t len;
    off_t from;
    char *begin;

    if (text == NULL || path_format(path, &ignored, "%s/%s", dir, name) < 0) {
        return NULL;
    }
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        return NULL;
    }
    from = st.st_size > (off_t)TAIL_BYTES ? st.st_size - (off_t)TAIL_BYTES : 0;
    len = io_pread_full(fd, text, TAIL_BYTES, (uint64_t)from);
    text[len > 0 ? len : 0] = '\0';
    begin = from > 0 ? strchr(text, '\n') : NULL;
    begin = begin != NULL ? begin + 1 : text;
    for (char *p = begin; p < text + len; p++) {
        bool is_plain = (*p >= ' ' && *p != 0x7f) || *p == '\n' || *p == '\t' || *p == 0x1b;

        *p = is_plain ? *p : *p == '\r' ? ' ' : '?'; /* bytes above 0x7f are negative */
    }
    return json_string(begin);
}

int compute_log(struct compute *compute, const struct compute_call *call, const char *id,
                json_t **ret_log, struct fault *fault)
{
    char runtime[PATH_MAX];
    struct object instance = {0};
    struct err err;
    int rc = object_find(compute, KIND_INSTANCE, call->project, id, &instance, fault);

    if (rc < 0) {
        return rc;
    }
    rc = machine_path(compute, instance.id, runtime, &err);
    object_done(&instance);
    if (rc < 0) {
        return fault_set_err(fault, rc, &err);
    }
    *ret_log = json_pack("{s:o*}", "monitor", tail_of(runtime, "vmm.log"));
    return *ret_log != NULL ? 0 : fault_set(fault, FAULT_INTERNAL, NULL, "not enough memory");
}
