/*
 * Bytes to integers and back, and checked arithmetic for untrusted numbers.
 *
 * le16_t and friends hold a value in wire order and do not convert by
 * themselves; load_* and store_* work on unaligned bytes. ck_* return false on
 * overflow and leave the result untouched. Pure functions, any thread.
 */
#ifndef CORBEL_BASE_WIRE_H
#define CORBEL_BASE_WIRE_H

#include "base/compiler.h"

#include <endian.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    uint16_t raw;
} le16_t;
typedef struct {
    uint32_t raw;
} le32_t;
typedef struct {
    uint64_t raw;
} le64_t;

static inline uint16_t le16_get(le16_t v)
{
    return le16toh(v.raw);
}

static inline uint32_t le32_get(le32_t v)
{
    return le32toh(v.raw);
}

static inline uint64_t le64_get(le64_t v)
{
    return le64toh(v.raw);
}

static inline le16_t le16_make(uint16_t v)
{
    return (le16_t){htole16(v)};
}

static inline le32_t le32_make(uint32_t v)
{
    return (le32_t){htole32(v)};
}

static inline le64_t le64_make(uint64_t v)
{
    return (le64_t){htole64(v)};
}

static inline uint16_t load_le16(const void *p)
{
    uint16_t v;

    memcpy(&v, p, sizeof(v));
    return le16toh(v);
}

static inline uint32_t load_le32(const void *p)
{
    uint32_t v;

    memcpy(&v, p, sizeof(v));
    return le32toh(v);
}

static inline uint64_t load_le64(const void *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof(v));
    return le64toh(v);
}

static inline void store_le16(void *p, uint16_t v)
{
    v = htole16(v);
    memcpy(p, &v, sizeof(v));
}

static inline void store_le32(void *p, uint32_t v)
{
    v = htole32(v);
    memcpy(p, &v, sizeof(v));
}

static inline void store_le64(void *p, uint64_t v)
{
    v = htole64(v);
    memcpy(p, &v, sizeof(v));
}

static inline uint16_t load_be16(const void *p)
{
    uint16_t v;

    memcpy(&v, p, sizeof(v));
    return be16toh(v);
}

static inline uint32_t load_be32(const void *p)
{
    uint32_t v;

    memcpy(&v, p, sizeof(v));
    return be32toh(v);
}

static inline uint64_t load_be64(const void *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof(v));
    return be64toh(v);
}

static inline void store_be16(void *p, uint16_t v)
{
    v = htobe16(v);
    memcpy(p, &v, sizeof(v));
}

static inline void store_be32(void *p, uint32_t v)
{
    v = htobe32(v);
    memcpy(p, &v, sizeof(v));
}

static inline void store_be64(void *p, uint64_t v)
{
    v = htobe64(v);
    memcpy(p, &v, sizeof(v));
}

static inline MUST_CHECK bool ck_add_u64(uint64_t a, uint64_t b, uint64_t *ret_sum)
{
    uint64_t sum;

    if (__builtin_add_overflow(a, b, &sum)) {
        return false;
    }
    *ret_sum = sum;
    return true;
}

static inline MUST_CHECK bool ck_mul_u64(uint64_t a, uint64_t b, uint64_t *ret_product)
{
    uint64_t product;

    if (__builtin_mul_overflow(a, b, &product)) {
        return false;
    }
    *ret_product = product;
    return true;
}

/* Rounds up to a power of two. */
static inline MUST_CHECK bool ck_align_u64(uint64_t v, uint64_t align, uint64_t *ret_aligned)
{
    uint64_t sum;

    if (!ck_add_u64(v, align - 1, &sum)) {
        return false;
    }
    *ret_aligned = sum & ~(align - 1);
    return true;
}

#endif
