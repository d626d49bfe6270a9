/*
 * What translated code reaches through the host's GS base, beside the CPU state
 * and the TLBs: spill slots, the jump caches and the words in which a unit says
 * why it left. Embedded in struct engine_vcpu; owned by the vCPU thread.
 *
 * Guest registers live in the host's registers of the same number. A register
 * that a unit borrows has its guest value in spill[number] meanwhile.
 */
#ifndef CORBEL_ENGINE_TRANSLATE_HOT_H
#define CORBEL_ENGINE_TRANSLATE_HOT_H

#include "engine/mmu.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Two for the kernel (enum mmu_mode without user), and one for each context's user mode. */
#define JUMP_CACHE_TABLES (2u + MMU_CONTEXTS)
#define JUMP_PAGE_BITS 131072u

/* The kernel has one for as long as it runs, a process its own and often a short life. */
#define JUMP_CACHE_KERNEL_SETS 32768u
#define JUMP_CACHE_SETS 8192u
#define JUMP_CACHE_ENTRIES (JUMP_CACHE_KERNEL_SETS + (JUMP_CACHE_TABLES - 1) * JUMP_CACHE_SETS)

static inline uint32_t jump_cache_sets(unsigned table)
{
    return table == 0 ? JUMP_CACHE_KERNEL_SETS : JUMP_CACHE_SETS;
}

/*
 * The set for an address: translated code computes the same, without touching the flags. The low
 * bits are mixed, too, for functions begin at multiples of 16.
 */
static inline uint32_t jump_cache_set(unsigned table, uint64_t rip)
{
    return ((uint32_t)rip + ((uint32_t)(rip >> 8) & 0xffff)) & (jump_cache_sets(table) - 1);
}

/* Table of an MMU mode; for MMU_USER the first of them. */
static inline unsigned jump_cache_table(unsigned mode)
{
    return mode == MMU_KERNEL ? 0 : mode == MMU_KERNEL_AC ? 1 : 2;
}

/* What an empty entry holds: an address, negated, that is never looked up in that set. */
static inline uint64_t jump_cache_empty(uint32_t set)
{
    return set == 0 ? UINT64_MAX : 0; /* 0 belongs to set 0, 1 to another */
}

struct jump_entry {
    uint64_t minus_rip;
    uint64_t page;      /* of rip */
    uint64_t host;      /* the indirect entry of a unit */
    uint64_t host_slot; /* the same with the flags in their slot */
};

/* Most of it is never touched, so it has a mapping of its own. */
struct jump_cache {
    struct jump_entry entries[JUMP_CACHE_ENTRIES]; /* table by table */
    /* Which sets were filled, so that a flush touches only those. */
    uint16_t used[JUMP_CACHE_ENTRIES];
};

static inline uint32_t jump_cache_start(unsigned table)
{
    return table == 0 ? 0 : JUMP_CACHE_KERNEL_SETS + (table - 1) * JUMP_CACHE_SETS;
}

/*
 * Units found lately, by the host address of their guest code and their mode:
 * cheaper than the tables of the code cache. Other threads may clear entries.
 */
#define FOUND_SETS 16384u

#define FOUND_FLAGS_DEAD 1u /* beside an offset, which is even */

struct found_entry {
    uint64_t key; /* 0: empty */
    uint32_t entry;
    uint32_t indirect; /* with FOUND_FLAGS_DEAD */
};

static inline uint64_t found_key(uintptr_t guest, unsigned mode)
{
    return (uint64_t)guest | (uint64_t)mode << 56;
}

static inline uint32_t found_set(uint64_t key)
{
    return (uint32_t)(key * 0x9e3779b97f4a7c15ull >> 40) & (FOUND_SETS - 1);
}

/*
 * Where sites look first: offsets in their TLB table, by the site's number. Any value
 * will do, since the entry's tag decides, so nobody ever has to forget one. A site that
 * is wrong often is seen by samples, one in so many misses (mem_access.c).
 */
#define ACCESS_HINTS 8192u
#define HINT_SAMPLE 64u
#define SAMPLED_SITES 64u

/* A site whose hint was wrong when one was looked at, or whose window failed. */
struct site_sample {
    uint32_t site; /* offset of its code */
    uint32_t count;
    uint64_t at; /* host TSC */
};

/*
 * What the interpreter does for translated code with the vector registers live
 * (helper_table.c), by kind, for the counters; HELPER_NONE: it does not.
 */
enum translate_helper {
    HELPER_NONE,
    HELPER_SYSCALL, /* and SYSRET */
    HELPER_IRET,    /* and INT */
    HELPER_STRING,
    HELPER_FLAGS,
    HELPER_SEGMENT,
    HELPER_CONTROL, /* control registers, INVLPG */
    HELPER_OTHER,
    HELPER_COUNT
};

/* How translated code came back to run(): enum translate_leave, in its order. */
#define LEAVE_KINDS 7u

/* Vector operands of a gather, while C does it. */
struct gather_operands {
    uint8_t result[32];
    uint8_t mask[32];
    uint8_t index[32];
};

struct translate_hot {
    uint64_t spill[16];
    /* Arithmetic flags as LAHF and SETO leave them: AH, and OF in AL. */
    uint64_t flags;
    uint64_t page; /* guest-virtual page of the running unit */
    uint64_t host_rsp;
    uint64_t va;            /* of the access that missed */
    uint64_t target;        /* of an indirect branch */
    uint64_t flags_in_slot; /* while it is on its way: they are not in the host's */
    uint64_t scratch;       /* for a moment within one sequence */
    uint64_t resume;        /* where translated code goes on */
    void *self;             /* the struct engine_vcpu, for calls into C */
    uint64_t check_return;  /* where a check by thunk goes on */
    int32_t check_budget;   /* checks by thunk until the next sample; below 0: it is due */
    uint32_t site;          /* SITE_*: which access missed */
    uint32_t site_size;     /* its bytes */
    int32_t offset;         /* target of a direct branch, from the start of the page */
    uint32_t exit;          /* index of the struct unit_exit that was taken */
    uint32_t leave;         /* enum translate_leave */
    uint32_t host_mxcsr;
    uint64_t (*fn_access)(void *vcpu);
    uint64_t (*fn_exit)(void *vcpu);
    bool single;   /* the next unit is to check each access by itself */
    bool odd;      /* st.rip is where something broke in, not where a branch or an end leads */
    bool stepping; /* the kick handler single-steps to an instruction boundary */
    _Atomic bool in_code;
    uint8_t jump_mode;   /* UNIT_MODE_* beside the MMU mode that the jump cache is for */
    uint64_t generation; /* of the code cache that the jump cache is for */
    uint64_t stat_jumps; /* looked up in C */
    uint64_t stat_helpers[HELPER_COUNT]; /* instructions done by the interpreter without leaving */
    uint64_t stat_leaves[LEAVE_KINDS];   /* to run() */
    uint64_t stat_faults;                /* page faults delivered without leaving */
    uint64_t stat_accesses;              /* that missed */
    uint64_t stat_ranges;                /* that had to be checked one by one */
    struct gather_operands gather;
    uint64_t kept[4];     /* registers that a thunk borrows */
    uint32_t hint_budget; /* misses of hints until one is looked at */
    uint64_t hint_clock;  /* host TSC when one was */
    struct site_sample samples[SAMPLED_SITES];
    uint32_t hint[ACCESS_HINTS];
    struct found_entry found[FOUND_SETS];
    struct jump_cache *jump;
    struct jump_entry *jump_table[MMU_MODE_COUNT]; /* by MMU mode, in the current context */
    uint32_t jump_count[JUMP_CACHE_TABLES];
    uint64_t jump_pages[JUMP_PAGE_BITS / 64]; /* pages, hashed, that may have entries */
    bool jump_local[JUMP_CACHE_TABLES];       /* holds one of a page that is not global */
    bool jump_global; /* any user mode's table ever had one of a page that is */
};

#endif
