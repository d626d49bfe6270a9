/* What the files of native_user.h share: spaces and the tables of what is mapped in them. */
#ifndef CORBEL_ENGINE_NATIVE_INT_H
#define CORBEL_ENGINE_NATIVE_INT_H

#include "base/thread.h"
#include "engine/engine_int.h"
#include "engine/native_user.h"

#define PAGE_BYTES ((uint64_t)GMEM_PAGE_BYTES)
#define PAGE_MASK (PAGE_BYTES - 1)
#define REGION_SHIFT 21
#define REGION_BYTES (1ull << REGION_SHIFT)
#define REGION_PAGES 512u
#define REGION_WORDS (REGION_PAGES / 64u)

/* A space holds so much: 1 GiB of addresses that were touched; 2 KiB here for each 2 MiB. */
#define REGIONS_MAX 512u
#define REGION_BUCKETS 512u
/* Linux allows a process 65530 mappings; a space has a few of its own, and changes split some. */
#define PIECES_MAX 60000u

#define PTE_P 0x001ull
#define PTE_RW 0x002ull
#define PTE_US 0x004ull
#define PTE_A 0x020ull
#define PTE_D 0x040ull
#define PTE_PS 0x080ull
#define PTE_NX 0x8000000000000000ull
#define PTE_ADDRESS 0x000ffffffffff000ull

/* A mapped page: its offset in RAM in pages, and what may be done beside reading. */
#define MAPPED_WRITE 1u
#define MAPPED_EXEC 2u
#define MAPPED_FLAGGED 4u /* it may be executed, but not natively; with MAPPED_EXEC, a copy may */
#define MAPPED_SHIFT 3u
#define MAPPED_NONE UINT32_MAX
#define MAPPED_PAGES_MAX (1u << 29)

/* Pages of 2 MiB of guest addresses. */
struct native_region {
    uint64_t va;
    uint32_t next; /* in its bucket, or free; 0: none */
    uint32_t count;
    uint64_t present[REGION_WORDS];
    uint32_t page[REGION_PAGES];
};

/* Regions with INVLPG since they were looked at, hashed to a bit each. */
#define DIRTY_WORDS 8u

/* Without the lock: key, stale, dirty, promoted. */
struct native_space {
    _Atomic uint64_t key; /* top-level table | 1; 0: of no address space */
    _Atomic bool stale;   /* all is to be looked at again */
    _Atomic uint64_t dirty[DIRTY_WORDS];
    _Atomic bool promoted;
    _Atomic bool has_giants; /* of a page above 2 MiB: INVLPG reaches far */
    struct mutex lock;
    bool is_lost;   /* its process is gone */
    bool is_new;    /* nothing was mapped since it was cleared */
    unsigned users; /* vCPUs that run in it */
    uint64_t used_at;
    uint64_t not_before; /* host TSC: demoted until then */
    unsigned demotions;  /* in a row */
    uint32_t pages;
    uint32_t pieces; /* mappings that the host needs for them, at most */
    uint32_t top;    /* regions[] from here on were never used; 0 is none */
    uint32_t free;
    uint64_t last_block; /* where the last fault was */
    uint32_t buckets[REGION_BUCKETS];
    struct native_region *regions;
};

struct native_counts {
    _Atomic uint64_t runs;
    _Atomic uint64_t syscalls;
    _Atomic uint64_t faults; /* that were answered by mapping */
    _Atomic uint64_t raised; /* that are the guest's */
    _Atomic uint64_t others; /* instructions that were interpreted */
    _Atomic uint64_t kicks;
    _Atomic uint64_t traps;
    _Atomic uint64_t lost;
    _Atomic uint64_t detours; /* through flagged pages */
    _Atomic uint64_t pauses;  /* that took longer */
    _Atomic uint64_t maps;    /* pages */
    _Atomic uint64_t changes; /* mappings changed */
    _Atomic uint64_t checks;  /* pages looked at again */
    _Atomic uint64_t drops;   /* pages of which less is allowed now */
    _Atomic uint64_t clears;
    _Atomic uint64_t flagged; /* pages not executable because of what they hold */
    _Atomic uint64_t protects;
    _Atomic uint64_t promotions;
    _Atomic uint64_t demotions;
    _Atomic uint64_t cycles; /* in native code, hand-over and all */
};

/* A page of which native.copies has a form that may run. */
struct native_copy {
    uint32_t page; /* offset in RAM, in pages */
    uint8_t original[GMEM_PAGE_BYTES];
};

struct native_user {
    struct engine_vm *vm;
    const struct native *native;
    uint8_t *ram; /* offset 0 of the memfd */
    uint64_t ram_pages;
    uint64_t cycles_per_ms;
    _Atomic uint64_t hand_over; /* cycles that going in and out takes, about */
    bool is_always;             /* whether it pays or not */
    bool host_has_more_state;   /* XSAVE stores more than the guest's CPUID says */
    /* For each page of RAM, the spaces that may have it writable; above them, those that may
     * have it so twice. */
    _Atomic uint32_t *writers;
    struct mutex lock; /* which space is whose */
    struct native_space spaces[NATIVE_MAX_SPACES];
    struct native_counts counts;
    struct mutex copy_lock; /* who adds one; they stay */
    _Atomic unsigned copy_count;
    struct native_copy copies[NATIVE_COPIES];
};

static inline void native_count(_Atomic uint64_t *counter, uint64_t more)
{
    atomic_fetch_add_explicit(counter, more, memory_order_relaxed);
}

static inline uint64_t native_key(uint64_t cr3)
{
    return (cr3 & PTE_ADDRESS) | 1;
}

static inline unsigned native_dirty_bit(uint64_t va)
{
    return (unsigned)((va >> REGION_SHIFT) * 0x9e3779b97f4a7c15ull >> 55);
}

static inline bool native_region_has(const struct native_region *r, unsigned i)
{
    return (r->present[i / 64] >> (i % 64) & 1) != 0;
}

/* May the guest have that address in a space? */
static inline bool native_is_mappable(uint64_t va)
{
    return va >= NATIVE_LOWEST && va < NATIVE_END - PAGE_BYTES &&
           va - NATIVE_OWN >= NATIVE_OWN_END - NATIVE_OWN;
}

/* ---- native_space.c ---- */

/* The space of v's address space, held by nobody else; false: it has none any more. */
struct native_space *native_space_find(struct native_user *user, uint64_t cr3);
/* Finds one for it, taking that of another if need be. NULL: all are in use. */
struct native_space *native_space_take(struct native_user *user, uint64_t cr3);
unsigned native_space_index(const struct native_user *user, const struct native_space *space);

/* The rest with the space's lock held. */
struct native_region *native_region_find(const struct native_space *space, uint64_t va);
/* NULL: the space is full. */
struct native_region *native_region_get(struct native_space *space, uint64_t va);
/* Enters a page (MAPPED_NONE: takes it out). Returns what is to be mapped: not writable when it
 * has become code. */
uint32_t native_page_set(struct native_user *user, struct native_space *space,
                         struct native_region *r, unsigned i, uint32_t page);
/* Nothing is mapped: in the tables, and in the space. */
void native_space_clear(struct native_user *user, struct native_space *space);
/* -ENOMEM: the space was cleared. */
int native_batch_add(struct native_user *user, struct native_space *space,
                     struct native_batch *batch, uint64_t va, uint32_t page) MUST_CHECK;
int native_batch_flush(struct native_user *user, struct native_space *space,
                       struct native_batch *batch) MUST_CHECK;
/* Of the page at that offset: is there code of it? */
bool native_page_is_code(const struct native_user *user, uint64_t page);

/* ---- native_map.c ---- */

enum native_mapped {
    NATIVE_MAPPED,  /* try again */
    NATIVE_RAISED,  /* v->fault is the guest's exception */
    NATIVE_NOT_RAM, /* or an address that no space can have: interpret */
    NATIVE_CODE,    /* a write to a page of translated code */
    NATIVE_FLAGGED  /* not to be executed natively */
};

enum native_checked {
    NATIVE_SAME,     /* most is as it was */
    NATIVE_LESSENED, /* much of it may no longer be written, as after a fork */
    NATIVE_ANOTHER   /* it is another address space: nothing is mapped any more */
};

enum native_mapped native_map_fault(struct engine_vcpu *v, struct native_space *space, uint64_t va,
                                    uint32_t error, struct native_batch *batch);
/* What flushes ask for. */
enum native_checked native_map_check(struct engine_vcpu *v, struct native_space *space);

/* ---- native_scan.c ---- */

/* Does the code in the page tell what it should not when it runs on the host? next: bytes of the
 * page behind it, NULL: unknown. */
bool native_scan_page(const uint8_t *page, const uint8_t *next, bool flag_cpuid, bool flag_xsave);

/* Where the next such instruction is, from there on; -1: there is none. */
int native_scan_next(const uint8_t *page, unsigned from, const uint8_t *next, bool flag_cpuid,
                     bool flag_xsave);

/* ---- native_vdso.c ---- */

/* Is there a copy of the flagged page that may run? page: its offset in RAM, in pages. Makes one. */
bool native_vdso_has(struct native_user *user, uint32_t page);
/* Where in native.copies it is. */
uint64_t native_vdso_offset(const struct native_user *user, uint32_t page);

/* ---- native_policy.c ---- */

void native_policy_init(struct native_user *user);
/* Between two instructions of user code; may promote. */
bool native_policy_wants(struct engine_vcpu *v);
/* waits: longer each time. */
void native_policy_demote(struct native_user *user, struct native_space *space, bool waits);
/* A run took so many cycles, of which so many were the guest's (it says). */
void native_policy_note_run(struct engine_vcpu *v, uint64_t took, uint64_t inside,
                            bool had_changes);
/* It ended for a mapping, which is made once: a part of the cost is not counted. */
void native_policy_note_mapping(struct engine_vcpu *v);
/* After some runs: may demote. */
void native_policy_judge(struct engine_vcpu *v, struct native_space *space);

/* native_hook.c: the window in which a vCPU's ways between user code and kernel are counted. */
void native_user_begin_window(struct engine_vcpu *v);
void native_user_note_sample(struct engine_vcpu *v, uint64_t now);

#endif
