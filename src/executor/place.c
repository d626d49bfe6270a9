/*
 * Where mappings go. The linker sends every mmap() of the executor's own code
 * here (-Wl,--wrap=mmap64, which is its name with 64-bit offsets), so that what the engine maps without a wish for an
 * address lands below LAYOUT_END instead of at the top of the address space.
 * What is unmapped is not given out again: the engine maps at its start only.
 */
#include "engine/layout.h"
#include "executor/executor.h"

#include <errno.h>
#include <sys/mman.h>

#define PLACE_PAGE 4096u

void *__real_mmap64(void *address, size_t bytes, int prot, int flags, int fd, off_t offset);
void *__wrap_mmap64(void *address, size_t bytes, int prot, int flags, int fd, off_t offset);

static _Atomic uintptr_t place_next = LAYOUT_PLACED;
static _Atomic uintptr_t place_next_stack = LAYOUT_STACKS + (1u << 20); /* behind the first one */

/* Reserves bytes and a page that stays empty behind them; 0: no room. */
static uintptr_t place_take(_Atomic uintptr_t *next, uintptr_t end, size_t bytes)
{
    size_t step = ((bytes + PLACE_PAGE - 1) & ~(size_t)(PLACE_PAGE - 1)) + PLACE_PAGE;
    uintptr_t at = atomic_load(next);

    do {
        if (step < bytes || step > end - at) {
            return 0;
        }
    } while (!atomic_compare_exchange_weak(next, &at, at + step));
    return at;
}

void *__wrap_mmap64(void *address, size_t bytes, int prot, int flags, int fd, off_t offset)
{
    if (address == NULL) {
        uintptr_t at = place_take(&place_next, LAYOUT_PLACED_END, bytes);

        if (at == 0) {
            errno = ENOMEM;
            return MAP_FAILED;
        }
        address = (void *)at;
        flags |= MAP_FIXED_NOREPLACE;
    }
    return __real_mmap64(address, bytes, prot, flags, fd, offset);
}

void *executor_place_stack(size_t bytes)
{
    uintptr_t at = place_take(&place_next_stack, LAYOUT_STACKS_END, bytes);

    return at == 0
               ? MAP_FAILED
               : __real_mmap64((void *)at, bytes, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE,
                               -1, 0);
}
