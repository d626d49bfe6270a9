/* Tables of the file in memory: a hash over slots, a clock for eviction. */
#include "block/qcow2_int.h"

#include <errno.h>
#include <string.h>

#define MIN_TABLES 4u
#define MAX_CHUNKS 64u
#define SECTOR_BYTES 512u

int qcow2_cache_init(struct qcow2_cache *cache, uint32_t table_bytes)
{
    uint32_t count = QCOW2_CACHE_BYTES / table_bytes;

    cache->count = count < MIN_TABLES ? MIN_TABLES : count;
    cache->bucket_count = 1;
    while (cache->bucket_count < cache->count) {
        cache->bucket_count *= 2;
    }
    cache->table_bytes = table_bytes;
    cache->chunk_bytes = table_bytes / MAX_CHUNKS;
    if (cache->chunk_bytes < SECTOR_BYTES) {
        cache->chunk_bytes = SECTOR_BYTES;
    }
    cache->tables = calloc(cache->count, sizeof(*cache->tables));
    cache->buckets = calloc(cache->bucket_count, sizeof(*cache->buckets));
    return cache->tables && cache->buckets ? 0 : -ENOMEM;
}

void qcow2_cache_done(struct qcow2_cache *cache)
{
    for (uint32_t i = 0; cache->tables && i < cache->count; i++) {
        free(cache->tables[i].data);
    }
    free(cache->tables);
    free(cache->buckets);
    *cache = (struct qcow2_cache){0};
}

static uint32_t *bucket_of(struct qcow2_cache *cache, uint64_t offset)
{
    uint64_t hash = (offset >> 9) * 0x9e3779b97f4a7c15ull;

    return &cache->buckets[(hash >> 32) & (cache->bucket_count - 1)];
}

struct qcow2_table *qcow2_cache_find(struct qcow2_cache *cache, uint64_t offset)
{
    uint32_t i = *bucket_of(cache, offset);

    while (i != 0) {
        struct qcow2_table *table = &cache->tables[i - 1];

        if (table->offset == offset) {
            table->was_used = true;
            return table;
        }
        i = table->next;
    }
    return NULL;
}

static void link_table(struct qcow2_cache *cache, struct qcow2_table *table, uint64_t offset)
{
    uint32_t *bucket = bucket_of(cache, offset);

    table->offset = offset;
    table->next = *bucket;
    *bucket = (uint32_t)(table - cache->tables) + 1;
}

static void unlink_table(struct qcow2_cache *cache, struct qcow2_table *table)
{
    uint32_t *link = bucket_of(cache, table->offset);
    uint32_t self = (uint32_t)(table - cache->tables) + 1;

    while (*link != self) {
        link = &cache->tables[*link - 1].next;
    }
    *link = table->next;
    table->offset = 0;
}

int qcow2_cache_take(struct qcow2_cache *cache, uint64_t offset, struct qcow2_table **ret_table)
{
    for (uint32_t tries = 0; tries < 2 * cache->count; tries++) {
        struct qcow2_table *table = &cache->tables[cache->hand];

        cache->hand = (cache->hand + 1) % cache->count;
        if (table->offset != 0 && (table->dirty != 0 || table->in_flush)) {
            continue;
        }
        if (table->offset != 0 && table->was_used) {
            table->was_used = false;
            continue;
        }
        if (!table->data) {
            table->data = malloc(cache->table_bytes);
            if (!table->data) {
                return -ENOMEM;
            }
        }
        if (table->offset != 0) {
            unlink_table(cache, table);
        }
        link_table(cache, table, offset);
        table->was_used = true;
        *ret_table = table;
        return 0;
    }
    return -EBUSY;
}

void qcow2_cache_move(struct qcow2_cache *cache, struct qcow2_table *table, uint64_t new_offset)
{
    unlink_table(cache, table);
    link_table(cache, table, new_offset);
}

void qcow2_cache_drop(struct qcow2_cache *cache, struct qcow2_table *table)
{
    table->dirty = 0;
    unlink_table(cache, table);
}

void qcow2_cache_drop_all(struct qcow2_cache *cache)
{
    for (uint32_t i = 0; i < cache->count; i++) {
        if (cache->tables[i].offset != 0) {
            qcow2_cache_drop(cache, &cache->tables[i]);
        }
    }
}

void qcow2_cache_dirty(struct qcow2_cache *cache, struct qcow2_table *table, uint32_t byte,
                       uint32_t len)
{
    uint32_t first = byte / cache->chunk_bytes;
    uint32_t last = (byte + len - 1) / cache->chunk_bytes;

    for (uint32_t i = first; i <= last; i++) {
        table->dirty |= 1ull << i;
    }
}
