/*
 * Programs that need no privilege run twice: as a guest and natively on the
 * host, whose output is what the guest's must be.
 */
#ifndef CORBEL_TESTS_GUEST_USER_LEVEL_H
#define CORBEL_TESTS_GUEST_USER_LEVEL_H

#ifdef HOSTED
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static inline void show(const char *text, uint64_t value)
{
    (void)printf("%s %llx\n", text, (unsigned long long)value);
}

static inline void line(const char *text)
{
    (void)puts(text);
}
#else
#include "guest.h"
void *memcpy(void *to, const void *from, size_t len);
void *memset(void *to, int byte, size_t len);
#endif

/* FNV-1a over the bytes of a value. */
static inline uint64_t mix(uint64_t sum, uint64_t value)
{
    for (unsigned i = 0; i < 8; i++) {
        sum = (sum ^ (value & 0xff)) * 0x100000001b3ull;
        value >>= 8;
    }
    return sum;
}

#define MIX_START 0xcbf29ce484222325ull

#endif
