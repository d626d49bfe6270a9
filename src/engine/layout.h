/*
 * The address space of the executor, the process that runs guest code for the
 * software engine (executor/). Everything it has lies between LAYOUT_START and
 * LAYOUT_END; the rest of the lower half of the address space is empty (no
 * stack, no vdso, no shared library), so that a guest kernel's half can be
 * mirrored there:
 *
 *   host address = guest address + LAYOUT_FOLD   (modulo 2^64)
 *
 * maps guest 0xffff800000001000 and above to [0, 2^47 - 4096), NULL and the rest
 * of the low half's first page to the one page that Linux never maps, and every
 * other address to one that is not canonical or not the process's. What lies
 * below LAYOUT_END is the guest's up to 0xffff880000001000: Linux's guard hole.
 *
 * engine/ may also run inside another process (tests, lock step); nothing here
 * holds there, and layout_is_low() says so.
 */
#ifndef CORBEL_ENGINE_LAYOUT_H
#define CORBEL_ENGINE_LAYOUT_H

#include <stdbool.h>
#include <stdint.h>

#define LAYOUT_START 0x10000ull /* Linux maps nothing below it (mmap_min_addr) */

/* Text, data and heap: a static program at its usual address; Linux begins its brk up to 1 GiB
 * behind it. The vCPUs are on the heap, so below 2 GiB. */
#define LAYOUT_PROGRAM 0x400000ull
#define LAYOUT_PROGRAM_END 0x60000000ull

/* Stack of the first thread, then one of each vCPU. */
#define LAYOUT_STACKS 0x60000000ull
#define LAYOUT_STACKS_END 0x70000000ull

/* The pages shared with the monitor (executor/protocol.h). */
#define LAYOUT_SHARED 0x70000000ull
#define LAYOUT_SHARED_END 0x80000000ull

/* Every mapping without a wish for an address, from below: code cache, its tables, signal stacks. */
#define LAYOUT_PLACED 0x80000000ull
#define LAYOUT_PLACED_END 0x10000000000ull

/* Guest RAM in the order of its memfd, then its page flags. */
#define LAYOUT_RAM 0x10000000000ull
#define LAYOUT_RAM_END 0x60000000000ull

#define LAYOUT_END 0x80000000000ull /* 8 TiB */

/* WRGSBASE takes it: a canonical address, the last page of the lower half. */
#define LAYOUT_FOLD 0x00007ffffffff000ull
#define LAYOUT_WINDOW_END 0x00007ffffffff000ull /* the host's TASK_SIZE: nothing maps above */

/* True in a process that keeps to this map: RAM is where it says. */
static inline bool layout_is_low(const void *ram)
{
    return (uintptr_t)ram == LAYOUT_RAM;
}

#endif
