/*
 * Included before everything else in files that are built for general registers
 * only: the C library's copies use vector registers, which are the guest's.
 */
#ifndef CORBEL_ENGINE_LIGHT_LIBC_H
#define CORBEL_ENGINE_LIGHT_LIBC_H

#include <stddef.h>
#include <string.h>

static inline void *light_memcpy(void *dst, const void *src, size_t count)
{
    void *to = dst;

    __asm__ volatile("rep movsb" : "+D"(to), "+S"(src), "+c"(count) : : "memory");
    return dst;
}

static inline void *light_memset(void *dst, int byte, size_t count)
{
    void *to = dst;

    __asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(byte) : "memory");
    return dst;
}

static inline int light_memcmp(const void *a, const void *b, size_t count)
{
    const unsigned char *p = a;
    const unsigned char *q = b;

    for (; count > 0; count--, p++, q++) {
        if (*p != *q) {
            return *p - *q;
        }
    }
    return 0;
}

/* Constant sizes are a few moves, which the compiler knows best. */
#define memcpy(dst, src, count)                                                       \
    (__builtin_constant_p(count) && (count) <= 32 ? __builtin_memcpy(dst, src, count) \
                                                  : light_memcpy(dst, src, count))
#define memset(dst, byte, count)                                                       \
    (__builtin_constant_p(count) && (count) <= 64 ? __builtin_memset(dst, byte, count) \
                                                  : light_memset(dst, byte, count))
#define memcmp(a, b, count) light_memcmp(a, b, count)

#endif
