/*
 * Compiler attributes and the few macros that every folder uses.
 *
 * Nothing here allocates, locks or knows of virtual machines.
 */
#ifndef CORBEL_BASE_COMPILER_H
#define CORBEL_BASE_COMPILER_H

#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#define MUST_CHECK __attribute__((warn_unused_result))
#define PACKED __attribute__((packed))
#define ALIGNED(n) __attribute__((aligned(n)))
#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))
#define NORETURN __attribute__((noreturn))
#define MAYBE_UNUSED __attribute__((unused))
#define NOINLINE __attribute__((noinline))

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define container_of(ptr, type, member)                         \
    __extension__({                                             \
        char *member_ptr_ = (char *)(ptr);                      \
        (type *)(void *)(member_ptr_ - offsetof(type, member)); \
    })

#ifdef __clang__
#define REQUIRES(lock) __attribute__((requires_capability(lock)))
#else
#define REQUIRES(lock)
#endif

/*
 * The value of a call that returns a negative errno whatever comes: for clang's analyzer, which does
 * not look into another file's functions and would follow what cannot be.
 */
#define KNOWN_NEGATIVE(call)             \
    __extension__({                      \
        int negative_ = (call);          \
        __builtin_assume(negative_ < 0); \
        negative_;                       \
    })

/* Frees or closes a local when it leaves its scope; steal_* hands it over. */
#define CLEANUP_FREE __attribute__((cleanup(cleanup_free_)))
#define CLEANUP_CLOSE __attribute__((cleanup(cleanup_close_)))

static inline void cleanup_free_(void *ptr_to_ptr)
{
    free(*(void **)ptr_to_ptr);
}

static inline void cleanup_close_(int *fd)
{
    if (*fd >= 0) {
        (void)close(*fd);
    }
}

/* Returns the pointer and leaves NULL behind, so that a cleanup frees nothing. */
#define steal_ptr(ptr)                     \
    __extension__({                        \
        __typeof__(ptr) stolen_ptr_ = ptr; \
        (ptr) = NULL;                      \
        stolen_ptr_;                       \
    })

/* Returns the descriptor and leaves -1 behind. */
static inline int steal_fd(int *fd)
{
    int stolen = *fd;

    *fd = -1;
    return stolen;
}

#endif
