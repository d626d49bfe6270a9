/* Files of a running instance, read and written by its agent. */
#include "compute/agent.h"

#include "base/base64.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PIECE_BYTES (192u << 10) /* of a file in one request; a multiple of 3 */

static int open_file(struct agent *agent, const char *path, const char *mode, uint64_t offset,
                     json_int_t *ret_handle, struct fault *fault)
{
    json_t *handle = NULL;
    int rc = agent_ask(agent, "guest-file-open",
                       json_pack("{s:s, s:s}", "path", path, "mode", mode), &handle, fault);

    if (rc < 0) {
        return rc;
    }
    rc = json_is_integer(handle) ? 0 : agent_refuse_nonsense("guest-file-open", fault);
    *ret_handle = json_integer_value(handle);
    json_decref(handle);
    if (rc == 0 && offset > 0) {
        rc = agent_ask(agent, "guest-file-seek",
                       json_pack("{s:I, s:I, s:s}", "handle", *ret_handle, "offset",
                                 (json_int_t)offset, "whence", "set"),
                       NULL, fault);
    }
    return rc;
}

static int close_file(struct agent *agent, json_int_t handle, int rc, struct fault *fault)
{
    struct fault ignored;
    int closed = agent_ask(agent, "guest-file-close", json_pack("{s:I}", "handle", handle), NULL,
                           rc == 0 ? fault : &ignored);

    return rc < 0 ? rc : closed;
}

/* At most `want` bytes to `to`. */
static int read_piece(struct agent *agent, json_int_t handle, char *to, size_t want,
                      size_t *ret_len, bool *ret_is_end, struct fault *fault)
{
    json_t *piece = NULL;
    const json_t *coded;
    void *data = NULL;
    size_t len = 0;
    int rc = agent_ask(agent, "guest-file-read",
                       json_pack("{s:I, s:I}", "handle", handle, "count", (json_int_t)want), &piece,
                       fault);

    if (rc < 0) {
        return rc;
    }
    coded = json_object_get(piece, "buf-b64");
    if (!json_is_string(coded) ||
        base64_decode(json_string_value(coded), json_string_length(coded), &data, &len) < 0 ||
        len > want) {
        rc = agent_refuse_nonsense("guest-file-read", fault);
    } else {
        memcpy(to, data, len);
        *ret_len = len;
        *ret_is_end = len == 0 || json_is_true(json_object_get(piece, "eof"));
    }
    free(data);
    json_decref(piece);
    return rc;
}

int compute_file_read(struct compute *compute, const struct compute_call *call, const char *id,
                      const struct compute_file *file, void **ret_data, size_t *ret_len,
                      bool *ret_is_end, struct fault *fault)
{
    char *data = malloc(file->len > 0 ? file->len : 1);
    bool is_end = false;
    size_t done = 0;
    struct agent agent = {.client = NULL};
    json_int_t handle = 0;
    int rc = data != NULL ? agent_begin(compute, call, id, &agent, fault)
                          : fault_set(fault, FAULT_INTERNAL, NULL, "out of memory");

    if (rc < 0) {
        free(data);
        return rc;
    }
    rc = open_file(&agent, file->path, "r", file->offset, &handle, fault);
    if (rc == 0) {
        while (rc == 0 && !is_end && done < file->len) {
            size_t want = file->len - done < PIECE_BYTES ? file->len - done : PIECE_BYTES;
            size_t len = 0;

            rc = read_piece(&agent, handle, data + done, want, &len, &is_end, fault);
            done += len;
        }
        rc = close_file(&agent, handle, rc, fault);
    }
    agent_close(&agent);
    if (rc < 0) {
        free(data);
        return rc;
    }
    *ret_data = data;
    *ret_len = done;
    *ret_is_end = is_end;
    return 0;
}

static int write_piece(struct agent *agent, json_int_t handle, const char *data, size_t len,
                       struct fault *fault)
{
    json_t *written = NULL;
    char *coded = base64_encode(data, len);
    int rc = coded != NULL ? agent_ask(agent, "guest-file-write",
                                       json_pack("{s:I, s:s}", "handle", handle, "buf-b64", coded),
                                       &written, fault)
                           : fault_set(fault, FAULT_INTERNAL, NULL, "out of memory");

    free(coded);
    if (rc == 0 && json_integer_value(json_object_get(written, "count")) != (json_int_t)len) {
        rc = fault_set(fault, FAULT_CONFLICT, NULL, "the guest took only a part of the file");
    }
    json_decref(written);
    return rc;
}

/* From its start a file is written anew; further on, into what is there. */
int compute_file_write(struct compute *compute, const struct compute_call *call, const char *id,
                       const struct compute_file *file, const void *data, struct fault *fault)
{
    json_int_t handle = 0;
    struct agent agent = {.client = NULL};
    int rc = agent_begin(compute, call, id, &agent, fault);

    if (rc < 0) {
        return rc;
    }
    rc =
        open_file(&agent, file->path, file->offset == 0 ? "w" : "r+", file->offset, &handle, fault);
    if (rc == 0) {
        for (size_t done = 0; rc == 0 && done < file->len;) {
            size_t len = file->len - done < PIECE_BYTES ? file->len - done : PIECE_BYTES;

            rc = write_piece(&agent, handle, (const char *)data + done, len, fault);
            done += len;
        }
        rc = close_file(&agent, handle, rc, fault);
    }
    agent_close(&agent);
    return rc;
}
