/*
 * A hostile NBD client: the input is all that it sends, from its greeting on.
 * The image is a small one in memory, which must not change its length.
 */
#include "memfile.h"

#include "block/block_int.h"
#include "block/nbd_server.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DISK_BYTES (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

struct memory_client {
    struct nbd_client client;
    const uint8_t *data;
    size_t left;
    uint64_t answered;
};

static int receive(struct nbd_client *client, void *buf, size_t len)
{
    struct memory_client *m = container_of(client, struct memory_client, client);

    if (len > m->left) {
        return -ECONNRESET;
    }
    memcpy(buf, m->data, len);
    m->data += len;
    m->left -= len;
    return 0;
}

/* Looks at every byte, so that a sanitizer sees one that should not go out. */
static int answer(struct nbd_client *client, const void *buf, size_t len)
{
    struct memory_client *m = container_of(client, struct memory_client, client);
    const uint8_t *bytes = buf;

    for (size_t i = 0; i < len; i += 64) {
        m->answered += 1 + (bytes[i] == 0xff);
    }
    return m->answered > (1u << 22) ? -EPIPE : 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct memory_client m = {
        .client = {.receive = receive, .send = answer}, .data = data, .left = len};
    struct memfile file;
    struct block_image *image = NULL;

    memfile_init(&file);
    if (file.file.ops->truncate(&file.file, DISK_BYTES) == 0 &&
        raw_open(&file.file, "memory", false, NULL, &image) == 0) {
        const struct nbd_served served = {
            .image = image, .name = "disk", .read_only = len > 0 && data[len - 1] == 'r'};

        nbd_server_talk(&served, &m.client);
        if (image->size_bytes != DISK_BYTES) {
            abort();
        }
        block_image_close(image);
    }
    memfile_done(&file);
    return 0;
}
