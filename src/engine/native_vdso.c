/*
 * The vDSO of a Linux guest: user code that reads the clock thousands of times a
 * second, in one page with what tells the host's CPU number. It runs natively from
 * a copy in which that is taken out: RDTSCP where it is padded, as Linux has it to
 * read the clock and not ECX, becomes LFENCE and RDTSC; all others become UD2, so
 * that they end in the interpreter. Who reads the page sees the copy.
 */
#include "engine/native_int.h"

#include <string.h>

#define UD2 0x0b /* behind 0F */
#define SONAME "linux-vdso.so.1"

static const uint8_t elf_magic[] = {0x7f, 'E', 'L', 'F'};
static const uint8_t rdtscp_padded[] = {0x0f, 0x01, 0xf9, 0x66, 0x90};
static const uint8_t lfence_rdtsc[] = {0x0f, 0xae, 0xe8, 0x0f, 0x31};

static bool is_vdso(const uint8_t *page)
{
    return memcmp(page, elf_magic, sizeof(elf_magic)) == 0 &&
           memmem(page, GMEM_PAGE_BYTES, SONAME, sizeof(SONAME)) != NULL;
}

/* at: of 0F. Any instruction of that map becomes UD2 by its second byte. */
static bool take_out(uint8_t *copy, unsigned at)
{
    if (at + sizeof(rdtscp_padded) <= GMEM_PAGE_BYTES &&
        memcmp(copy + at, rdtscp_padded, sizeof(rdtscp_padded)) == 0) {
        memcpy(copy + at, lfence_rdtsc, sizeof(lfence_rdtsc));
    } else if (at + 1 < GMEM_PAGE_BYTES) {
        copy[at + 1] = UD2;
    } else {
        return false;
    }
    return true;
}

/* May one begin here and end in the next page, of which nothing is known when this one is copied? */
static bool goes_on(const uint8_t *page)
{
    return page[GMEM_PAGE_BYTES - 1] == 0x0f || page[GMEM_PAGE_BYTES - 2] == 0x0f;
}

static bool make_copy(const struct native_user *user, const uint8_t *original, uint8_t *copy)
{
    unsigned from = 0;
    int at;

    if (goes_on(original)) {
        return false;
    }
    memcpy(copy, original, GMEM_PAGE_BYTES);
    while ((at = native_scan_next(original, from, NULL, !user->native->cpuid_faults,
                                  user->host_has_more_state)) >= 0) {
        if (!take_out(copy, (unsigned)at)) {
            return false;
        }
        from = (unsigned)at + 1;
    }
    return true;
}

/* The newest copy of the page; -1: there is none. */
static int find(const struct native_user *user, uint32_t page)
{
    for (unsigned i = atomic_load(&user->copy_count); i > 0; i--) {
        if (user->copies[i - 1].page == page) {
            return (int)i - 1;
        }
    }
    return -1;
}

bool native_vdso_has(struct native_user *user, uint32_t page)
{
    const uint8_t *host = user->ram + (uint64_t)page * PAGE_BYTES;
    bool has = false;
    int slot;

    if (user->native->copy_count == 0 || !is_vdso(host)) {
        return false;
    }
    mutex_lock(&user->copy_lock);
    slot = find(user, page);
    if (slot >= 0 && memcmp(user->copies[slot].original, host, GMEM_PAGE_BYTES) == 0) {
        has = true;
    } else if (atomic_load(&user->copy_count) < user->native->copy_count) {
        /* Another space may run the old one: each is made once. */
        struct native_copy *copy = &user->copies[atomic_load(&user->copy_count)];

        memcpy(copy->original, host, GMEM_PAGE_BYTES);
        copy->page = page;
        has = make_copy(user, copy->original,
                        user->native->copies + atomic_load(&user->copy_count) * PAGE_BYTES);
        if (has) {
            atomic_fetch_add(&user->copy_count, 1);
        }
    }
    mutex_unlock(&user->copy_lock);
    return has;
}

uint64_t native_vdso_offset(const struct native_user *user, uint32_t page)
{
    int slot = find(user, page);

    return slot < 0 ? 0 : (uint64_t)slot * PAGE_BYTES;
}
