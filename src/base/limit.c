#include "base/limit.h"

#include "base/clock.h"

#include <errno.h>

static void bucket_set(struct limit_bucket *bucket, uint64_t rate, uint64_t burst, uint64_t now_ns)
{
    if (burst == 0) {
        burst = rate / 10 > 0 ? rate / 10 : 1;
    }
    *bucket = (struct limit_bucket){
        .rate = rate, .burst = burst, .tokens = (int64_t)burst, .last_ns = now_ns};
}

static void bucket_fill(struct limit_bucket *bucket, uint64_t now_ns)
{
    unsigned __int128 units;
    uint64_t added;

    if (now_ns <= bucket->last_ns) {
        return;
    }
    units = (unsigned __int128)(now_ns - bucket->last_ns) * bucket->rate + bucket->remainder;
    bucket->last_ns = now_ns;
    bucket->remainder = (uint64_t)(units % NS_PER_S);
    units /= NS_PER_S;
    added = units > LIMIT_MAX_RATE * 2 ? LIMIT_MAX_RATE * 2 : (uint64_t)units;
    bucket->tokens += (int64_t)added;
    if (bucket->tokens >= (int64_t)bucket->burst) {
        bucket->tokens = (int64_t)bucket->burst;
        bucket->remainder = 0;
    }
}

/* When there is something in the bucket: 0 for now. */
static uint64_t bucket_when(const struct limit_bucket *bucket, uint64_t now_ns)
{
    unsigned __int128 missing;

    if (bucket->rate == 0 || bucket->tokens > 0) {
        return 0;
    }
    missing = (unsigned __int128)(1 - bucket->tokens) * NS_PER_S - bucket->remainder;
    return now_ns + (uint64_t)((missing + bucket->rate - 1) / bucket->rate);
}

int limit_set(struct limit *limit, const struct limit_config *config, uint64_t now_ns)
{
    if (config->bytes_per_second > LIMIT_MAX_RATE || config->burst_bytes > LIMIT_MAX_RATE ||
        config->ops_per_second > LIMIT_MAX_RATE || config->burst_ops > LIMIT_MAX_RATE) {
        return -EINVAL;
    }
    limit->config = *config;
    bucket_set(&limit->bytes, config->bytes_per_second, config->burst_bytes, now_ns);
    bucket_set(&limit->ops, config->ops_per_second, config->burst_ops, now_ns);
    return 0;
}

bool limit_is_set(const struct limit *limit)
{
    return limit->config.bytes_per_second > 0 || limit->config.ops_per_second > 0;
}

uint64_t limit_when(struct limit *limit, uint64_t now_ns)
{
    uint64_t when, when_ops;

    bucket_fill(&limit->bytes, now_ns);
    bucket_fill(&limit->ops, now_ns);
    when = bucket_when(&limit->bytes, now_ns);
    when_ops = bucket_when(&limit->ops, now_ns);
    return when > when_ops ? when : when_ops;
}

static void take(struct limit *limit, uint64_t bytes)
{
    if (limit->bytes.rate > 0) {
        limit->bytes.tokens -= (int64_t)(bytes < LIMIT_MAX_RATE ? bytes : LIMIT_MAX_RATE);
    }
    if (limit->ops.rate > 0) {
        limit->ops.tokens--;
    }
}

void limit_charge(struct limit *limit, uint64_t bytes, uint64_t now_ns)
{
    bucket_fill(&limit->bytes, now_ns);
    bucket_fill(&limit->ops, now_ns);
    take(limit, bytes);
}

uint64_t limit_take(struct limit *limit, uint64_t bytes, uint64_t now_ns)
{
    uint64_t when;
    uint64_t when_ops;

    bucket_fill(&limit->bytes, now_ns);
    bucket_fill(&limit->ops, now_ns);
    when = bytes > 0 ? bucket_when(&limit->bytes, now_ns) : 0;
    when_ops = bucket_when(&limit->ops, now_ns);
    if (when != 0 || when_ops != 0) {
        return when > when_ops ? when : when_ops;
    }
    take(limit, bytes);
    return 0;
}
