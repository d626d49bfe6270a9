/* What is said between an NBD server and one client: doc/proto.md of the NBD project. */
#include "block/nbd_server.h"

#include "base/wire.h"
#include "block/block_int.h"

#include <errno.h>
#include <string.h>

#define MAGIC_OPTION 0x49484156454f5054ull /* "IHAVEOPT" */
#define MAGIC_OPTION_REPLY 0x3e889045565a9ull
#define MAGIC_REQUEST 0x25609513u
#define MAGIC_SIMPLE 0x67446698u
#define MAGIC_STRUCTURED 0x668e33efu

#define GREETING_FIXED 1u
#define GREETING_NO_ZEROES 2u

#define CONTEXT "base:allocation"
#define CONTEXT_ID 1u

#define MAX_OPTIONS 64u /* of one greeting */
#define MAX_OPTION_BYTES 8192u
#define MAX_QUERIES 64u
#define BUFFER_BYTES (1u << 20)
#define MIN_BLOCK 512u
#define PREFERRED_BLOCK 65536u
#define MAX_BYTES \
    (32u << 20) /* of a read or write; what clients expect of a server that is silent */
#define MAX_EXTENTS 512u
#define EXPORT_ZEROES 124u

enum option {
    OPTION_EXPORT_NAME = 1,
    OPTION_ABORT = 2,
    OPTION_LIST = 3,
    OPTION_INFO = 6,
    OPTION_GO = 7,
    OPTION_STRUCTURED = 8,
    OPTION_LIST_CONTEXT = 9,
    OPTION_SET_CONTEXT = 10
};

enum option_reply {
    REPLY_ACK = 1,
    REPLY_SERVER = 2,
    REPLY_INFO = 3,
    REPLY_CONTEXT = 4,
    REPLY_UNSUPPORTED = (int)(0x80000000u + 1u),
    REPLY_INVALID = (int)(0x80000000u + 3u),
    REPLY_UNKNOWN = (int)(0x80000000u + 6u)
};

enum info { INFO_EXPORT = 0, INFO_NAME = 1, INFO_BLOCK_SIZE = 3 };

enum export_flag {
    EXPORT_HAS_FLAGS = 1,
    EXPORT_READ_ONLY = 2,
    EXPORT_FLUSH = 4,
    EXPORT_FUA = 8,
    EXPORT_TRIM = 32,
    EXPORT_ZEROES_COMMAND = 64,
    EXPORT_DF = 128,
    EXPORT_MULTI_CONN = 256
};

enum command {
    COMMAND_READ,
    COMMAND_WRITE,
    COMMAND_DISCONNECT,
    COMMAND_FLUSH,
    COMMAND_TRIM,
    COMMAND_CACHE,
    COMMAND_ZEROES,
    COMMAND_STATUS
};

enum command_flag { FLAG_FUA = 1, FLAG_NO_HOLE = 2, FLAG_DF = 4, FLAG_ONE = 8 };

enum chunk {
    CHUNK_NONE = 0,
    CHUNK_DATA = 1,
    CHUNK_HOLE = 2,
    CHUNK_STATUS = 5,
    CHUNK_ERROR = 0x8001
};

#define CHUNK_DONE 1u
#define STATE_HOLE 1u
#define STATE_ZERO 2u

struct session {
    const struct nbd_served *served;
    struct nbd_client *client;
    uint8_t *buf; /* BUFFER_BYTES */
    uint64_t size_bytes;
    bool no_zeroes, is_structured, has_context;
};

struct request {
    uint16_t flags, command;
    uint64_t cookie, offset;
    uint32_t len;
};

static int tell(struct session *s, const void *data, size_t len)
{
    return s->client->send(s->client, data, len);
}

static int hear(struct session *s, void *data, size_t len)
{
    return s->client->receive(s->client, data, len);
}

/* ---- the greeting ---- */

static int reply_option(struct session *s, uint32_t option, enum option_reply type,
                        const void *data, uint32_t len)
{
    uint8_t header[20];
    int r;

    store_be64(header, MAGIC_OPTION_REPLY);
    store_be32(header + 8, option);
    store_be32(header + 12, (uint32_t)type);
    store_be32(header + 16, len);
    r = tell(s, header, sizeof(header));
    return r == 0 && len > 0 ? tell(s, data, len) : r;
}

/* A name of the only export; none means it too. */
static bool is_our_name(const struct session *s, const uint8_t *name, uint32_t len)
{
    return len == 0 || (len == strlen(s->served->name) && memcmp(name, s->served->name, len) == 0);
}

static uint16_t export_flags(const struct session *s)
{
    unsigned flags = EXPORT_HAS_FLAGS | EXPORT_FLUSH | EXPORT_FUA | EXPORT_MULTI_CONN |
                     (s->is_structured ? EXPORT_DF : 0);

    flags |= s->served->read_only ? EXPORT_READ_ONLY : EXPORT_TRIM | EXPORT_ZEROES_COMMAND;
    return (uint16_t)flags;
}

static int export_by_name(struct session *s, const uint8_t *name, uint32_t len)
{
    uint8_t answer[10 + EXPORT_ZEROES] = {0};

    if (!is_our_name(s, name, len)) {
        return -ENOENT; /* this old way to ask knows no other refusal than to hang up */
    }
    store_be64(answer, s->size_bytes);
    store_be16(answer + 8, export_flags(s));
    return tell(s, answer, s->no_zeroes ? 10 : sizeof(answer));
}

static int list_exports(struct session *s, uint32_t len)
{
    uint8_t data[4 + NBD_SERVER_MAX_NAME];
    uint32_t name_len = (uint32_t)strlen(s->served->name);
    int r;

    if (len != 0) {
        return reply_option(s, OPTION_LIST, REPLY_INVALID, NULL, 0);
    }
    store_be32(data, name_len);
    memcpy(data + 4, s->served->name, name_len);
    r = reply_option(s, OPTION_LIST, REPLY_SERVER, data, 4 + name_len);
    return r == 0 ? reply_option(s, OPTION_LIST, REPLY_ACK, NULL, 0) : r;
}

static int tell_info(struct session *s, uint32_t option, bool wants_name)
{
    uint8_t data[2 + NBD_SERVER_MAX_NAME];
    size_t name_len = strlen(s->served->name);
    int r;

    store_be16(data, INFO_EXPORT);
    store_be64(data + 2, s->size_bytes);
    store_be16(data + 10, export_flags(s));
    r = reply_option(s, option, REPLY_INFO, data, 12);
    store_be16(data, INFO_BLOCK_SIZE);
    store_be32(data + 2, MIN_BLOCK);
    store_be32(data + 6, PREFERRED_BLOCK);
    store_be32(data + 10, MAX_BYTES);
    r = r == 0 ? reply_option(s, option, REPLY_INFO, data, 14) : r;
    if (r == 0 && wants_name) {
        store_be16(data, INFO_NAME);
        memcpy(data + 2, s->served->name, name_len);
        r = reply_option(s, option, REPLY_INFO, data, 2 + (uint32_t)name_len);
    }
    return r == 0 ? reply_option(s, option, REPLY_ACK, NULL, 0) : r;
}

/* 1 when the greeting is over, 0 when it goes on. */
static int describe_export(struct session *s, uint32_t option, const uint8_t *data, uint32_t len)
{
    uint32_t name_len = len >= 6 ? load_be32(data) : 0;
    bool wants_name = false;
    uint32_t count;
    int r;

    if (len < 6 || name_len > len - 6) {
        return reply_option(s, option, REPLY_INVALID, NULL, 0);
    }
    count = load_be16(data + 4 + name_len);
    if (len - 6 - name_len != count * 2) {
        return reply_option(s, option, REPLY_INVALID, NULL, 0);
    }
    if (!is_our_name(s, data + 4, name_len)) {
        return reply_option(s, option, REPLY_UNKNOWN, NULL, 0);
    }
    for (uint32_t i = 0; i < count; i++) {
        wants_name |= load_be16(data + 6 + name_len + 2 * i) == INFO_NAME;
    }
    r = tell_info(s, option, wants_name);
    return r < 0 ? r : option == OPTION_GO;
}

/* Whether a query asks for the only context; a namespace alone does when they are listed. */
static bool is_our_context(const uint8_t *query, uint32_t len, bool is_list)
{
    return (len == strlen(CONTEXT) && memcmp(query, CONTEXT, len) == 0) ||
           (is_list && len == 5 && memcmp(query, "base:", 5) == 0);
}

/* What the queries ask for: 1 the context, 0 nothing we have, -EINVAL when they are no queries. */
static int parse_queries(const struct session *s, const uint8_t *data, uint32_t len, bool is_list)
{
    uint32_t name_len = len >= 8 ? load_be32(data) : 0;
    uint32_t count, at;
    bool found;

    if (len < 8 || name_len > len - 8) {
        return -EINVAL;
    }
    at = 4 + name_len;
    count = load_be32(data + at);
    at += 4;
    found = is_list && count == 0;
    if (count > MAX_QUERIES || !is_our_name(s, data + 4, name_len)) {
        return count > MAX_QUERIES ? -EINVAL : -ENOENT;
    }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t query_len;

        if (len - at < 4 || load_be32(data + at) > len - at - 4) {
            return -EINVAL;
        }
        query_len = load_be32(data + at);
        found |= is_our_context(data + at + 4, query_len, is_list);
        at += 4 + query_len;
    }
    return at == len ? found : -EINVAL;
}

static int choose_context(struct session *s, uint32_t option, const uint8_t *data, uint32_t len)
{
    uint8_t answer[4 + sizeof(CONTEXT) - 1];
    bool is_list = option == OPTION_LIST_CONTEXT;
    int found = s->is_structured ? parse_queries(s, data, len, is_list) : -EINVAL;
    int r = 0;

    if (found < 0) {
        return reply_option(s, option, found == -ENOENT ? REPLY_UNKNOWN : REPLY_INVALID, NULL, 0);
    }
    if (!is_list) {
        s->has_context = found > 0;
    }
    if (found > 0) {
        store_be32(answer, CONTEXT_ID);
        memcpy(answer + 4, CONTEXT, sizeof(CONTEXT) - 1);
        r = reply_option(s, option, REPLY_CONTEXT, answer, sizeof(answer));
    }
    return r == 0 ? reply_option(s, option, REPLY_ACK, NULL, 0) : r;
}

/* 1 when the greeting is over, 0 when it goes on, a negative errno when the client has to go. */
static int handle_option(struct session *s, uint32_t option, const uint8_t *data, uint32_t len)
{
    int r;

    switch (option) {
    case OPTION_EXPORT_NAME:
        r = export_by_name(s, data, len);
        return r < 0 ? r : 1;
    case OPTION_ABORT:
        (void)!reply_option(s, option, REPLY_ACK, NULL, 0); /* it may be gone already */
        return -ECONNABORTED;
    case OPTION_LIST:
        return list_exports(s, len);
    case OPTION_INFO:
    case OPTION_GO:
        return describe_export(s, option, data, len);
    case OPTION_STRUCTURED:
        s->is_structured |= len == 0;
        return reply_option(s, option, len == 0 ? REPLY_ACK : REPLY_INVALID, NULL, 0);
    case OPTION_LIST_CONTEXT:
    case OPTION_SET_CONTEXT:
        return choose_context(s, option, data, len);
    default:
        return reply_option(s, option, REPLY_UNSUPPORTED, NULL, 0);
    }
}

static int greet(struct session *s)
{
    uint8_t words[18] = "NBDMAGICIHAVEOPT";
    uint8_t header[16];
    uint32_t flags;
    int r;

    store_be16(words + 16, GREETING_FIXED | GREETING_NO_ZEROES);
    r = tell(s, words, sizeof(words));
    r = r == 0 ? hear(s, header, 4) : r;
    if (r < 0) {
        return r;
    }
    flags = load_be32(header);
    if ((flags & ~(GREETING_FIXED | GREETING_NO_ZEROES)) != 0) {
        return -EPROTO;
    }
    s->no_zeroes = flags & GREETING_NO_ZEROES;
    for (unsigned i = 0; i < MAX_OPTIONS; i++) {
        uint32_t len;

        r = hear(s, header, sizeof(header));
        if (r < 0) {
            return r;
        }
        len = load_be32(header + 12);
        if (load_be64(header) != MAGIC_OPTION || len > MAX_OPTION_BYTES) {
            return -EPROTO;
        }
        r = len > 0 ? hear(s, s->buf, len) : 0;
        r = r == 0 ? handle_option(s, load_be32(header + 8), s->buf, len) : r;
        if (r != 0) {
            return r < 0 ? r : 0;
        }
    }
    return -EPROTO;
}

/* ---- requests ---- */

static uint32_t wire_error(int r)
{
    switch (r) {
    case 0:
        return 0;
    case -EPERM:
    case -EROFS:
        return 1;
    case -ENOMEM:
        return 12;
    case -EINVAL:
        return 22;
    case -ENOSPC:
    case -EFBIG:
        return 28;
    case -EOVERFLOW:
        return 75;
    case -ENOTSUP:
        return 95;
    default:
        return 5;
    }
}

static int reply_simple(struct session *s, const struct request *request, int result)
{
    uint8_t header[16];

    store_be32(header, MAGIC_SIMPLE);
    store_be32(header + 4, wire_error(result));
    store_be64(header + 8, request->cookie);
    return tell(s, header, sizeof(header));
}

static int begin_chunk(struct session *s, const struct request *request, enum chunk type,
                       bool is_last, uint32_t len)
{
    uint8_t header[20];

    store_be32(header, MAGIC_STRUCTURED);
    store_be16(header + 4, is_last ? CHUNK_DONE : 0);
    store_be16(header + 6, (uint16_t)type);
    store_be64(header + 8, request->cookie);
    store_be32(header + 16, len);
    return tell(s, header, sizeof(header));
}

static int reply_error_chunk(struct session *s, const struct request *request, int result)
{
    uint8_t data[6] = {0};
    int r = begin_chunk(s, request, CHUNK_ERROR, true, sizeof(data));

    store_be32(data, wire_error(result)); /* and no words about it */
    return r == 0 ? tell(s, data, sizeof(data)) : r;
}

static int reply_failure(struct session *s, const struct request *request, int result)
{
    bool needs_chunk = request->command == COMMAND_READ || request->command == COMMAND_STATUS;

    return needs_chunk && s->is_structured ? reply_error_chunk(s, request, result)
                                           : reply_simple(s, request, result);
}

/* What lies at an offset, at most len; an answer that cannot be is an error. */
static int look_up(struct session *s, uint64_t offset, uint64_t len, bool *ret_zero,
                   uint64_t *ret_len)
{
    struct block_image *image = s->served->image;
    struct block_extent extent = {.len = 0};
    int r = image->ops->lookup(image, offset, len, &extent);

    if (r == 0 && (extent.len == 0 || extent.len > len)) {
        r = -EIO;
    }
    *ret_zero = extent.kind == BLOCK_EXTENT_ZERO || extent.kind == BLOCK_EXTENT_UNALLOCATED;
    *ret_len = extent.len;
    return r;
}

static int send_data_chunk(struct session *s, const struct request *request, uint64_t offset,
                           uint32_t len, bool is_last)
{
    uint8_t where[8];
    int r = begin_chunk(s, request, CHUNK_DATA, is_last, 8 + len);

    store_be64(where, offset);
    r = r == 0 ? tell(s, where, sizeof(where)) : r;
    return r == 0 ? tell(s, s->buf, len) : r;
}

static int send_hole_chunk(struct session *s, const struct request *request, uint64_t offset,
                           uint32_t len, bool is_last)
{
    uint8_t hole[12];
    int r = begin_chunk(s, request, CHUNK_HOLE, is_last, sizeof(hole));

    store_be64(hole, offset);
    store_be32(hole + 8, len);
    return r == 0 ? tell(s, hole, sizeof(hole)) : r;
}

static int read_structured(struct session *s, const struct request *request)
{
    uint64_t offset = request->offset;
    uint64_t left = request->len;
    bool is_whole = request->flags & FLAG_DF;
    int r = 0;

    if (is_whole && left > BUFFER_BYTES) {
        return reply_error_chunk(s, request, -EOVERFLOW);
    }
    while (r == 0 && left > 0) {
        uint64_t some = left;
        bool is_zero = false;
        int failed = is_whole ? 0 : look_up(s, offset, left, &is_zero, &some);

        if (failed == 0 && !is_zero) {
            some = some < BUFFER_BYTES ? some : BUFFER_BYTES;
            failed = block_image_pread(s->served->image, s->buf, some, offset);
        }
        if (failed < 0) {
            return reply_error_chunk(s, request, failed);
        }
        r = is_zero ? send_hole_chunk(s, request, offset, (uint32_t)some, some == left)
                    : send_data_chunk(s, request, offset, (uint32_t)some, some == left);
        offset += some;
        left -= some;
    }
    return r;
}

/* Once it has been said that all is well, only hanging up says otherwise. */
static int read_simple(struct session *s, const struct request *request)
{
    uint64_t done = 0;
    int r = 0;

    while (r == 0 && done < request->len) {
        uint64_t left = request->len - done;
        uint64_t some = left < BUFFER_BYTES ? left : BUFFER_BYTES;

        r = block_image_pread(s->served->image, s->buf, some, request->offset + done);
        if (done == 0) {
            int told = reply_simple(s, request, r);

            if (told < 0 || r < 0) {
                return told;
            }
        }
        r = r == 0 ? tell(s, s->buf, some) : r;
        done += some;
    }
    return r;
}

static int do_read(struct session *s, const struct request *request)
{
    return s->is_structured ? read_structured(s, request) : read_simple(s, request);
}

static int flush(struct session *s)
{
    return block_image_simple(s->served->image, BLOCK_FLUSH, 0, 0, false);
}

static int finish_write(struct session *s, const struct request *request, int result)
{
    if (result == 0 && (request->flags & FLAG_FUA)) {
        result = flush(s);
    }
    return reply_simple(s, request, result);
}

/* Takes all that the client sends, whatever has become of the request. */
static int do_write(struct session *s, const struct request *request, int result)
{
    uint64_t done = 0;

    while (done < request->len) {
        uint64_t left = request->len - done;
        uint64_t some = left < BUFFER_BYTES ? left : BUFFER_BYTES;
        int r = hear(s, s->buf, some);

        if (r < 0) {
            return r;
        }
        if (result == 0) {
            result = block_image_pwrite(s->served->image, s->buf, some, request->offset + done);
        }
        done += some;
    }
    return finish_write(s, request, result);
}

static int do_range(struct session *s, const struct request *request)
{
    bool is_trim = request->command == COMMAND_TRIM;

    return finish_write(s, request,
                        block_image_simple(s->served->image,
                                           is_trim ? BLOCK_DISCARD : BLOCK_WRITE_ZEROES,
                                           request->offset, request->len,
                                           is_trim || (request->flags & FLAG_NO_HOLE) == 0));
}

static int do_status(struct session *s, const struct request *request)
{
    uint64_t offset = request->offset;
    uint64_t left = request->len;
    unsigned max = request->flags & FLAG_ONE ? 1 : MAX_EXTENTS;
    unsigned count = 0;
    int r;

    store_be32(s->buf, CONTEXT_ID);
    while (left > 0 && count < max) {
        bool is_zero;
        uint64_t some;

        r = look_up(s, offset, left, &is_zero, &some);
        if (r < 0) {
            return reply_error_chunk(s, request, r);
        }
        store_be32(s->buf + 4 + 8 * (size_t)count, (uint32_t)some);
        store_be32(s->buf + 8 + 8 * (size_t)count, is_zero ? STATE_HOLE | STATE_ZERO : 0);
        count++;
        offset += some;
        left -= some;
    }
    r = begin_chunk(s, request, CHUNK_STATUS, true, 4 + 8 * count);
    return r == 0 ? tell(s, s->buf, 4 + 8 * (size_t)count) : r;
}

/* What a request may be: 0, or why not. */
static int check(const struct session *s, const struct request *request)
{
    static const uint16_t flags[] = {
        [COMMAND_READ] = FLAG_FUA | FLAG_DF,
        [COMMAND_WRITE] = FLAG_FUA,
        [COMMAND_FLUSH] = FLAG_FUA,
        [COMMAND_TRIM] = FLAG_FUA,
        [COMMAND_ZEROES] = FLAG_FUA | FLAG_NO_HOLE,
        [COMMAND_STATUS] = FLAG_FUA | FLAG_ONE,
    };
    bool is_write = request->command == COMMAND_WRITE || request->command == COMMAND_TRIM ||
                    request->command == COMMAND_ZEROES;

    if (request->command >= ARRAY_LEN(flags) || request->command == COMMAND_CACHE) {
        return -EINVAL;
    }
    if ((request->flags & ~flags[request->command]) != 0 ||
        (request->flags & FLAG_DF && !s->is_structured)) {
        return -EINVAL;
    }
    if (request->command == COMMAND_FLUSH) {
        return request->len == 0 && request->offset == 0 ? 0 : -EINVAL;
    }
    if (is_write && s->served->read_only) {
        return -EPERM;
    }
    if (request->len == 0 || ((request->offset | request->len) & (MIN_BLOCK - 1)) != 0) {
        return -EINVAL;
    }
    if (request->offset > s->size_bytes || request->len > s->size_bytes - request->offset) {
        return is_write ? -ENOSPC : -EINVAL;
    }
    if (request->command == COMMAND_STATUS && !s->has_context) {
        return -EINVAL;
    }
    return request->command == COMMAND_READ && request->len > MAX_BYTES ? -EINVAL : 0;
}

static int carry_out(struct session *s, const struct request *request)
{
    int r = check(s, request);

    if (request->command == COMMAND_WRITE) {
        /* Its data follows whatever was wrong with it. */
        return request->len > MAX_BYTES ? -EPROTO : do_write(s, request, r);
    }
    if (r < 0) {
        return reply_failure(s, request, r);
    }
    switch (request->command) {
    case COMMAND_READ:
        return do_read(s, request);
    case COMMAND_FLUSH:
        return reply_simple(s, request, flush(s));
    case COMMAND_STATUS:
        return do_status(s, request);
    default:
        return do_range(s, request);
    }
}

static void serve_requests(struct session *s)
{
    uint8_t header[28];
    struct request request;

    while (hear(s, header, sizeof(header)) == 0 && load_be32(header) == MAGIC_REQUEST) {
        request = (struct request){.flags = load_be16(header + 4),
                                   .command = load_be16(header + 6),
                                   .cookie = load_be64(header + 8),
                                   .offset = load_be64(header + 16),
                                   .len = load_be32(header + 24)};
        if (request.command == COMMAND_DISCONNECT || carry_out(s, &request) < 0) {
            break;
        }
    }
}

void nbd_server_talk(const struct nbd_served *served, struct nbd_client *client)
{
    struct session s = {
        .served = served,
        .client = client,
        .buf = malloc(BUFFER_BYTES),
        .size_bytes = __atomic_load_n(&served->image->size_bytes, __ATOMIC_ACQUIRE),
    };

    if (s.buf != NULL && greet(&s) == 0) {
        if (client->greeted != NULL) {
            client->greeted(client);
        }
        serve_requests(&s);
    }
    free(s.buf);
}
