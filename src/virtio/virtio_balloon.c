/*
 * Memory balloon (virtio 1.2 §5.5): inflate and deflate, statistics, free page
 * hinting and free page reporting. All three ways end in gmem_discard(), which
 * makes the pages read as zero: what a guest says wrongly hurts only itself.
 */
#include "base/log.h"
#include "base/wire.h"
#include "virtio/virtio.h"

#include <errno.h>

#define QUEUE_SIZE 128u
#define CHAIN_MAX 64u
#define PROCESS_BUDGET 16u

enum queue { INFLATE_QUEUE, DEFLATE_QUEUE, STATS_QUEUE, HINT_QUEUE, REPORT_QUEUE, QUEUE_COUNT };

/* §5.5.3 */
#define F_STATS_VQ (1ull << 1)
#define F_DEFLATE_ON_OOM (1ull << 2)
#define F_FREE_PAGE_HINT (1ull << 3)
#define F_REPORTING (1ull << 5)

/* §5.5.4 */
#define CONFIG_NUM_PAGES 0u
#define CONFIG_ACTUAL 4u
#define CONFIG_HINT_CMD 8u
#define CONFIG_LEN 12u

/* §5.5.6.5: a hint command below FIRST means stop and done. */
#define HINT_CMD_STOP 0u
#define HINT_CMD_DONE 1u
#define HINT_CMD_FIRST 2u

/* §5.5.6.3 */
#define STAT_BYTES 10u
#define STAT_MAX 16u
enum stat_tag {
    STAT_SWAP_IN,
    STAT_SWAP_OUT,
    STAT_MAJOR_FAULTS,
    STAT_MINOR_FAULTS,
    STAT_FREE,
    STAT_TOTAL,
    STAT_AVAILABLE,
    STAT_CACHES
};

#define PFN_BYTES 4u
#define PFN_BATCH 256u
#define PFN_MAX_BATCHES 64u

struct virtio_balloon {
    struct virtio_dev dev;
    virtio_balloon_fn on_actual;
    void *opaque;
    struct virtio_balloon_stats stats; /* all but target and actual */
    bool has_stats_buffer;             /* the driver's, returned to ask for new numbers */
    uint16_t stats_head;
    uint32_t hint_cmd; /* the command under way; HINT_CMD_DONE: none */
    uint32_t last_hint_cmd;
    bool is_hinting; /* the driver answers the command under way */
};

static struct virtio_balloon *to_balloon(struct virtio_dev *dev)
{
    return container_of(dev, struct virtio_balloon, dev);
}

static uint64_t actual_bytes(const struct virtio_dev *dev)
{
    return (uint64_t)load_le32(dev->config + CONFIG_ACTUAL) << GMEM_PAGE_SHIFT;
}

static void discard(struct virtio_balloon *balloon, uint64_t address, uint64_t len)
{
    if (len == 0) {
        return;
    }
    if (gmem_discard(balloon->dev.gmem, gpa(address), len) != 0) {
        log_guest("virtio-balloon: pages at 0x%llx are no memory, ignoring",
                  (unsigned long long)address);
        return;
    }
    balloon->stats.discarded_bytes += len;
}

/* Pages usually come in runs, upward or downward: one discard per run. */
static void discard_pfns(struct virtio_balloon *balloon, const uint8_t *raw, uint32_t count)
{
    uint64_t low = 0;
    uint64_t high = 0; /* the run is [low, high) */

    for (uint32_t i = 0; i < count; i++) {
        uint64_t pfn = load_le32(raw + (size_t)i * PFN_BYTES);

        if (low != high && pfn == high) {
            high++;
        } else if (low != high && pfn + 1 == low) {
            low--;
        } else {
            discard(balloon, low << GMEM_PAGE_SHIFT, (high - low) << GMEM_PAGE_SHIFT);
            low = pfn;
            high = pfn + 1;
        }
    }
    discard(balloon, low << GMEM_PAGE_SHIFT, (high - low) << GMEM_PAGE_SHIFT);
}

static void inflate(struct virtio_balloon *balloon, const struct virtq_chain *chain)
{
    uint8_t raw[PFN_BATCH * PFN_BYTES];
    uint32_t total = chain->out_bytes / PFN_BYTES;
    uint32_t done = 0;

    for (unsigned i = 0; i < PFN_MAX_BATCHES && done < total; i++) {
        uint32_t count = total - done < PFN_BATCH ? total - done : PFN_BATCH;

        if (virtq_chain_read(balloon->dev.gmem, chain, done * PFN_BYTES, raw, count * PFN_BYTES) !=
            0) {
            virtio_dev_break(&balloon->dev, "page list outside memory");
            return;
        }
        discard_pfns(balloon, raw, count);
        done += count;
    }
}

static void note_stat(struct virtio_balloon_stats *stats, uint16_t tag, uint64_t value)
{
    uint64_t *const places[] = {
        [STAT_SWAP_IN] = &stats->guest_swapped_in_bytes,
        [STAT_SWAP_OUT] = &stats->guest_swapped_out_bytes,
        [STAT_MAJOR_FAULTS] = &stats->guest_major_faults,
        [STAT_MINOR_FAULTS] = &stats->guest_minor_faults,
        [STAT_FREE] = &stats->guest_free_bytes,
        [STAT_TOTAL] = &stats->guest_total_bytes,
        [STAT_AVAILABLE] = &stats->guest_available_bytes,
        [STAT_CACHES] = &stats->guest_cache_bytes,
    };

    if (tag < ARRAY_LEN(places)) {
        *places[tag] = value;
    }
}

static void read_stats(struct virtio_balloon *balloon, const struct virtq_chain *chain)
{
    uint8_t raw[STAT_BYTES];
    uint32_t count = chain->out_bytes / STAT_BYTES;

    for (uint32_t i = 0; i < count && i < STAT_MAX; i++) {
        uint64_t value;

        if (virtq_chain_read(balloon->dev.gmem, chain, i * STAT_BYTES, raw, sizeof(raw)) != 0) {
            virtio_dev_break(&balloon->dev, "statistics outside memory");
            return;
        }
        value = load_le64(raw + 2);
        note_stat(&balloon->stats, load_le16(raw), value);
        balloon->stats.has_guest_stats = true;
    }
}

static void return_stats_buffer(struct virtio_balloon *balloon)
{
    if (balloon->has_stats_buffer) {
        balloon->has_stats_buffer = false;
        virtio_dev_push(&balloon->dev, STATS_QUEUE, balloon->stats_head, 0);
        virtio_dev_publish(&balloon->dev, STATS_QUEUE);
    }
}

static void set_hint_cmd(struct virtio_balloon *balloon, uint32_t cmd)
{
    balloon->hint_cmd = cmd;
    balloon->is_hinting = false;
    store_le32(balloon->dev.config + CONFIG_HINT_CMD, cmd);
    virtio_dev_config_changed(&balloon->dev);
}

static void discard_segments(struct virtio_balloon *balloon, const struct virtq_chain *chain)
{
    for (uint16_t i = 0; i < chain->in_count; i++) {
        const struct virtq_seg *seg = &chain->segs[chain->out_count + i];

        discard(balloon, seg->gpa, seg->len);
    }
}

/* A command id opens or closes a series of free pages. */
static void take_hint(struct virtio_balloon *balloon, const struct virtq_chain *chain)
{
    uint8_t raw[4];
    uint32_t cmd;

    if (chain->out_bytes >= sizeof(raw)) {
        if (virtq_chain_read(balloon->dev.gmem, chain, 0, raw, sizeof(raw)) != 0) {
            virtio_dev_break(&balloon->dev, "hint outside memory");
            return;
        }
        cmd = load_le32(raw);
        if (cmd == balloon->hint_cmd && cmd >= HINT_CMD_FIRST) {
            balloon->is_hinting = true;
        } else if (cmd == HINT_CMD_STOP && balloon->is_hinting) {
            set_hint_cmd(balloon, HINT_CMD_DONE); /* the guest may use them again */
        }
    }
    if (balloon->is_hinting) {
        discard_segments(balloon, chain);
    }
}

static void take_chain(struct virtio_balloon *balloon, unsigned index,
                       const struct virtq_chain *chain)
{
    switch (index) {
    case INFLATE_QUEUE:
        inflate(balloon, chain);
        break;
    case HINT_QUEUE:
        take_hint(balloon, chain);
        break;
    case REPORT_QUEUE:
        discard_segments(balloon, chain);
        break;
    default:
        break; /* deflated pages come back by being touched */
    }
    virtio_dev_push(&balloon->dev, index, chain->head, 0);
}

static enum virtio_progress balloon_process(struct virtio_dev *dev, unsigned index)
{
    struct virtio_balloon *balloon = to_balloon(dev);
    struct virtq_seg segs[CHAIN_MAX];
    struct virtq_chain chain = {.segs = segs, .max = CHAIN_MAX};
    enum virtio_progress progress = VIRTIO_AGAIN;

    for (unsigned i = 0; i < PROCESS_BUDGET; i++) {
        if (!virtio_dev_pop(dev, index, &chain)) {
            progress = VIRTIO_DONE;
            break;
        }
        if (index == STATS_QUEUE) {
            return_stats_buffer(balloon);
            read_stats(balloon, &chain);
            balloon->stats_head = chain.head;
            balloon->has_stats_buffer = true;
        } else {
            take_chain(balloon, index, &chain);
        }
    }
    virtio_dev_publish(dev, index);
    return progress;
}

void virtio_balloon_set_target(struct virtio_dev *dev, uint64_t bytes)
{
    uint64_t limit = gmem_size_bytes(dev->gmem);
    uint64_t pages = (bytes < limit ? bytes : limit) >> GMEM_PAGE_SHIFT;

    virtio_dev_lock(dev);
    store_le32(dev->config + CONFIG_NUM_PAGES, (uint32_t)pages);
    virtio_dev_config_changed(dev);
    virtio_dev_unlock(dev);
}

void virtio_balloon_reclaim(struct virtio_dev *dev)
{
    struct virtio_balloon *balloon = to_balloon(dev);

    virtio_dev_lock(dev);
    if (virtio_dev_has(dev, F_FREE_PAGE_HINT)) {
        balloon->last_hint_cmd =
            balloon->last_hint_cmd < HINT_CMD_FIRST || balloon->last_hint_cmd == UINT32_MAX
                ? HINT_CMD_FIRST
                : balloon->last_hint_cmd + 1;
        set_hint_cmd(balloon, balloon->last_hint_cmd);
    }
    virtio_dev_unlock(dev);
}

void virtio_balloon_stats(struct virtio_dev *dev, struct virtio_balloon_stats *ret_stats)
{
    struct virtio_balloon *balloon = to_balloon(dev);

    virtio_dev_lock(dev);
    *ret_stats = balloon->stats;
    ret_stats->target_bytes = (uint64_t)load_le32(dev->config + CONFIG_NUM_PAGES)
                              << GMEM_PAGE_SHIFT;
    ret_stats->actual_bytes = actual_bytes(dev);
    virtio_dev_unlock(dev);
}

void virtio_balloon_ask(struct virtio_dev *dev)
{
    virtio_dev_lock(dev);
    return_stats_buffer(to_balloon(dev));
    virtio_dev_unlock(dev);
}

/* "actual" is read where it stands, and is not trusted for anything. */
static void balloon_config_written(struct virtio_dev *dev, unsigned offset, unsigned len)
{
    struct virtio_balloon *balloon = to_balloon(dev);

    (void)offset;
    (void)len;
    if (balloon->on_actual != NULL) {
        balloon->on_actual(balloon->opaque, actual_bytes(dev));
    }
}

static void balloon_reset(struct virtio_dev *dev)
{
    struct virtio_balloon *balloon = to_balloon(dev);

    balloon->has_stats_buffer = false;
    balloon->stats.has_guest_stats = false;
    balloon->hint_cmd = HINT_CMD_DONE;
    balloon->is_hinting = false;
    store_le32(dev->config + CONFIG_HINT_CMD, HINT_CMD_DONE);
    store_le32(dev->config + CONFIG_ACTUAL, 0);
    if (balloon->on_actual != NULL) {
        balloon->on_actual(balloon->opaque, 0);
    }
}

static void balloon_destroy(struct virtio_dev *dev)
{
    virtio_dev_done(dev);
    free(to_balloon(dev));
}

static const struct virtio_dev_ops balloon_ops = {
    .name = "virtio-balloon",
    .type = VIRTIO_TYPE_BALLOON,
    .class_code = 0x00,
    .subclass = 0xff,
    .process = balloon_process,
    .config_written = balloon_config_written,
    .reset = balloon_reset,
    .destroy = balloon_destroy,
};

int virtio_balloon_create(const struct virtio_env *env, virtio_balloon_fn on_actual, void *opaque,
                          struct virtio_dev **ret_dev)
{
    struct virtio_balloon *balloon = calloc(1, sizeof(*balloon));
    const struct virtio_dev_config config = {
        .ops = &balloon_ops,
        .host = env->host,
        .gmem = env->gmem,
        .loop = env->loop,
        .features = F_STATS_VQ | F_DEFLATE_ON_OOM | F_FREE_PAGE_HINT | F_REPORTING,
        .config_len = CONFIG_LEN,
        .queue_count = QUEUE_COUNT,
        .queue_sizes = {QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE},
    };
    int r;

    if (!balloon) {
        return -ENOMEM;
    }
    r = virtio_dev_init(&balloon->dev, &config);
    if (r < 0) {
        free(balloon);
        return r;
    }
    balloon->on_actual = on_actual;
    balloon->opaque = opaque;
    for (unsigned i = CONFIG_ACTUAL; i < CONFIG_HINT_CMD; i++) {
        balloon->dev.config_writable[i] = 0xff;
    }
    balloon_reset(&balloon->dev);
    *ret_dev = &balloon->dev;
    return 0;
}
