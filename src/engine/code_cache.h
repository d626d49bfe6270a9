/*
 * The code cache: translated units, found by the host address of their guest
 * code (one host address per guest-physical byte) and by page for invalidation.
 *
 * One per VM. The memory is a memfd mapped twice: units run from the RX
 * mapping and are written through the RW one. Nothing is freed singly: a unit
 * that dies stays where it is, unreachable, until the cache is full and
 * everything is dropped while no vCPU is in translated code. So a pointer to a
 * unit stays good as long as the vCPU that holds it is in code or holds the
 * engine lock.
 *
 * Changes need the engine lock; code_cache_find() needs none.
 */
#ifndef CORBEL_ENGINE_CODE_CACHE_H
#define CORBEL_ENGINE_CODE_CACHE_H

#include "base/compiler.h"
#include "base/error.h"
#include "engine/emit.h"
#include "mem/gmem.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct engine_vm;
struct engine_vcpu;
struct trace;
struct unit;
struct xlate;

#define CODE_CACHE_MIN_BYTES (1u << 20)
#define CODE_CACHE_MAX_BYTES (512u << 20)
#define CODE_CACHE_DEFAULT_BYTES (28u << 20)

#define UNIT_INSNS_MAX 64u
#define UNIT_MARKS_MAX (4 * UNIT_INSNS_MAX)
#define UNIT_MARK_BYTES_MAX 8u
#define UNIT_EXITS_MAX 72u
#define UNIT_ACCESSES_MAX (2 * UNIT_INSNS_MAX)
/* Room that must be free before a unit is begun; far above what one can need. */
#define UNIT_CODE_MAX 65536u

/*
 * What a unit was made for, beside its address. Bits 1:0 enum mmu_mode; CPL
 * follows from it. The others say which instructions it may run.
 */
#define UNIT_MODE_MMU 0x03u
#define UNIT_MODE_REST 0xf8u
#define UNIT_MODE_SINGLE \
    0x04u                   /* each access is checked by itself: the way out when a range is not */
#define UNIT_MODE_SSE 0x08u /* x87, MMX and SSE */
#define UNIT_MODE_AVX 0x10u
#define UNIT_MODE_TSC 0x20u /* RDTSC is allowed */
#define UNIT_MODE_SMAP 0x40u
#define UNIT_MODE_FSGSBASE 0x80u

/* Offset in the arena; 0: none. */
typedef uint32_t unit_ref;

enum unit_flags_home { FLAGS_HOST, FLAGS_SLOT, FLAGS_DEAD };

/*
 * A mark: where an instruction of a unit begins, or the guest's state lies
 * elsewhere from here on. Kept as a few bytes each (code_cache_find.c).
 */
struct unit_insn {
    uint16_t code;    /* offset from the start of the unit's code */
    uint16_t offset;  /* of the guest instruction in its page */
    uint16_t spilled; /* registers whose value is in a spill slot */
    uint8_t flags;    /* enum unit_flags_home */
    bool is_boundary; /* the first entry of its instruction */
    bool is_clean;    /* and borrowed registers hold nothing that is still needed */
};

enum unit_exit_kind {
    EXIT_CHAIN,  /* to target_offset in the same page; can be linked */
    EXIT_LOOKUP, /* to target_offset (may lie outside the page) */
    EXIT_INTERP, /* the interpreter does the instruction at target_offset */
    EXIT_HELPER  /* helper does it */
};

/* Linking costs more than a few lookups, and most code runs once or twice. */
#define EXIT_LINK_AFTER 2u

/* Made for each branch, and most are never taken: so it is small. */
struct unit_exit {
    unit_ref unit;
    uint32_t next_incoming; /* index of the next exit that is linked to the same unit; 0: none */
    uint32_t bridge;        /* code between the branch and targets that borrow other registers;
                               0: none yet */
    int32_t target_offset;  /* from the start of the page; EXIT_HELPER: of the instruction itself */
    /* Offsets from the start of the unit's code; the registers of body_spilled are borrowed there. */
    uint16_t branch; /* rel32 that is linked: of the branch that takes this exit, or behind it */
    uint16_t stub;   /* the code that leaves: where it leads while not linked */
    uint8_t kind_and_helper; /* enum unit_exit_kind, enum translate_helper << EXIT_HELPER_SHIFT */
    uint8_t mode;            /* for the target */
    uint8_t taken;           /* times it was taken unlinked, up to EXIT_LINK_AFTER */
    uint8_t state;           /* EXIT_LINKED, EXIT_UNLINKABLE; written with the engine lock held */
};

#define EXIT_KIND 3u
#define EXIT_HELPER_SHIFT 2
#define EXIT_LINKED 1u
#define EXIT_UNLINKABLE 2u /* its target crosses pages: what follows depends on the address space */

static inline enum unit_exit_kind exit_kind(const struct unit_exit *exit)
{
    return (enum unit_exit_kind)(exit->kind_and_helper & EXIT_KIND);
}

/*
 * A check of guest memory that a thunk does (thunk.c), in units of which it is
 * not known that they run often. Two bytes behind the jump to it describe the
 * access: its size; ACCESS_WRITE, _ORDERED, _RANGE and the register for the
 * addend. It goes on behind them.
 */
#define COMPACT_DATA_BYTES 2u
#define COMPACT_REG_SHIFT 4
#define COMPACT_SITE UINT32_MAX /* in hot.site: hot.check_return is behind the data */
/* Thunks are made when a unit first needs them, for two registers, read or write, and a size. */
#define COMPACT_SLOTS 512u
#define COMPACT_SLOT_BYTES 128u
#define COMPACT_SIZES 11u
/* Each time after so many such checks the unit is noted; the second time it runs often. */
#define COMPACT_CHECKS_PER_SAMPLE 1021

/* An inlined check of guest memory, for when it misses. */
struct unit_access {
    uint32_t code; /* offset of the check, to try again */
    uint16_t size; /* bytes that were asked for */
    uint8_t mode;  /* enum mmu_mode */
    uint8_t flags; /* ACCESS_* */
};

#define ACCESS_WRITE 1u
#define ACCESS_ORDERED 4u /* other faults may come before the page fault: the interpreter knows */
#define ACCESS_LOCKED 16u /* across a cache line the interpreter does it */
#define ACCESS_RANGE 2u   /* for more than the instruction in hand: it cannot fault for that */

/* C is always to look: the hint alone is not what failed. */
#define ACCESS_NO_HINT (ACCESS_LOCKED | ACCESS_GATHER)
#define ACCESS_GATHER 8u /* size is GATHER_*: elements at many addresses, by C each time */
#define GATHER_QUADWORDS 1u
#define GATHER_INDEX_QUADWORDS 2u
#define GATHER_SCALE_SHIFT 2 /* 1, 2, 4, 8 as 0 to 3 */
#define GATHER_YMM 16u

/*
 * The marks follow, and before them for some units 8 bytes: the host address of
 * the second page, or the unit that an alias leads into. An alias has no code
 * of its own but the way there: its body is in that unit, and dies with it.
 */
struct unit {
    uintptr_t guest;    /* host address of the first guest byte */
    unit_ref next;      /* hash chain */
    unit_ref page_next; /* of the same guest page */
    uint32_t code;      /* offset in the cache */
    uint32_t body;      /* offset in the cache; registers of body_spilled are in their slots */
    uint32_t incoming;  /* index of an exit that is linked to it; 0: none */
    uint16_t code_bytes;
    uint16_t mark_bytes;
    uint16_t body_spilled;
    uint8_t indirect; /* offset from code, for jump caches only: UNIT_STANDARD_BORROWED is */
    uint8_t mode;
    _Atomic bool dead;
    uint8_t trace_count : 7; /* guest instructions */
    uint8_t flags_dead : 1;  /* nothing reads the arithmetic flags that it begins with */
    uint8_t
        first_line;    /* 64-byte lines of the first page that it was made from; UNIT_ALIAS, _ODD */
    uint8_t last_line; /* with UNIT_CROSSES, UNIT_SAMPLED */
};

#define UNIT_ALIAS 0x80u
#define UNIT_ODD 0x40u /* begins where something broke in: no trace ends because of it */

#define UNIT_CROSSES 0x80u
#define UNIT_SAMPLED 0x40u /* written with the engine lock held */
#define UNIT_LINE 0x3fu
/* R10 and R11: what user code borrows most, and what is borrowed from one unit to the next when
 * a jump cache leads there. */
#define UNIT_STANDARD_BORROWED 0x0c00u
#define UNIT_INDIRECT_BYTES 5u
#define UNIT_BORROW_BYTES 18u /* to take these two or to give them back */

/* A guest page with units. */
struct code_page {
    struct code_page *next;
    uintptr_t host;
    gpa_t gpa;
    uint64_t lines; /* of all living units */
    unit_ref units;
    struct code_page_ref *crossing; /* units whose last instruction ends here */
    uint32_t slow_writes;           /* since the last invalidation */
};

struct code_page_ref {
    struct code_page_ref *next;
    struct unit *unit;
};

/*
 * Ways on by the jump cache, by where the flags are: the host's or their slot. R10 and R11 are
 * borrowed, and RCX, which holds the target; RCX alone. To a page offset in R10, of which
 * R11 has the page part: both are borrowed. To the one in hot.offset: nothing is.
 */
struct thunk_dispatch {
    const uint8_t *target[2];
    const uint8_t *target_in_rcx[2];
    const uint8_t *offset[2];
    const uint8_t *offset_in_slot[2];
};
#define THUNK_DISPATCH_COPIES 16u
#define THUNK_DISPATCHES (THUNK_DISPATCH_COPIES * 3 * 2 * 3) /* modes, flags, ways in */
#define THUNK_WAYS_TO_C 4u

/* Offsets of instructions in the cache: from the first up to before the last. */
struct thunk_range {
    uint32_t from;
    uint32_t to;
};

/* Registers, in the order in which units borrow them, that have lookups of their own. */
#define THUNK_LOOKUP_REGS 8u

/* What is known of addresses of guest code: a bit for each in each of these. */
enum code_cache_filter {
    FILTER_HEADS,   /* units begin there */
    FILTER_INSIDE,  /* units can be entered there that begin elsewhere */
    FILTER_CHECKED, /* instructions that use the software TLB nevertheless */
    FILTER_ROAMING, /* instructions that go from page to page */
    FILTER_NARROW,  /* instructions whose windows a page end cuts in two */
    FILTER_HOT,     /* units begin there that run often; outlives the units */
    FILTER_COUNT
};

struct translator {
    struct engine_vm *vm;
    struct emit_vcpu vcpu_at; /* how units reach the vCPU that runs them */
    uint8_t *rx;
    uint8_t *rw;
    uint32_t size_bytes;
    uint32_t used_bytes;     /* of code */
    uint32_t released_bytes; /* of the RW mapping, from its start */
    uint32_t thunk_bytes;    /* at the start; survive a flush */
    uint8_t *arena;          /* units and their tables; dropped together */
    size_t arena_bytes;
    size_t arena_used;
    _Atomic(unit_ref) *units; /* hash */
    struct code_page **pages;
    unit_ref *by_code; /* in order of code address */
    unsigned unit_count;
    struct unit_exit *exits; /* by index, as translated code names them; 0 is none */
    unsigned exit_count;
    struct unit_access *accesses;
    unsigned access_count;
    bool is_mirrored; /* kernel code reaches memory by the mirror (mirror.h) */
    uint64_t *filters[FILTER_COUNT];
    unsigned hot_count;
    struct trace *trace; /* work space of translate.c */
    struct xlate *xlate;

    /* Entry points of the thunks (thunk.c), RX. */
    const uint8_t *enter;
    const uint8_t *leave;
    const uint8_t *access[16]; /* an access that missed; its address is in that register */
    const uint8_t *exit_host;  /* an exit with the flags in the host's */
    const uint8_t *exit_slot;  /* ... in their slot, or dead */
    /* A miss by that index: its address in the first register, the site's number in the second. */
    const uint8_t *access_site[16][16];
    /* Checks by thunk: the slot of each, from 1; 0: not made. By registers for address and addend,
     * whether it is a write, and the size. */
    uint16_t compact_slot[16][16][2][COMPACT_SIZES];
    unsigned compact_count;
    uint32_t compact_slots;       /* offset of the first */
    const uint8_t *jump_miss[2];  /* an indirect branch that is not in the jump cache */
    const uint8_t *restore_flags; /* a target that wants its flags in the host's */
    const uint8_t *dead;          /* where the indirect entry of a dead unit leads */
    struct thunk_dispatch dispatch[THUNK_DISPATCH_COPIES][3]; /* by MMU mode */
    /*
     * The same exits for units that borrow two registers (or one, named twice), which are given
     * back; the lower of them holds the number of the exit. By whether the flags are in their slot.
     */
    const uint8_t *exit_borrowed[16][16][2];
    /* Ways to a page offset that the lower register holds, in user mode: offsets in the cache. The
     * registers by their rank in the order in which units borrow them. */
    uint32_t lookup_borrowed[THUNK_DISPATCH_COPIES][THUNK_LOOKUP_REGS][THUNK_LOOKUP_REGS][2];
    uint32_t calls[4]; /* offsets of the thunks' calls into C */
    unsigned call_count;
    struct thunk_range resume;                /* takes all from st and goes to hot.resume */
    struct thunk_range to_c[THUNK_WAYS_TO_C]; /* where all ways lead to such a call */
    unsigned to_c_count;
    /* Within a dispatch: hot.target and hot.flags_in_slot say where, R10, R11 and RCX are borrowed. */
    struct thunk_range on_the_way[THUNK_DISPATCHES];
    unsigned on_the_way_count;
    uint32_t ret; /* offset of the return to run() */

    _Atomic bool stop;           /* vCPUs must stay out of translated code */
    _Atomic uint64_t generation; /* counts flushes */

    uint64_t stat_units;
    uint64_t stat_insns;
    uint64_t stat_code_bytes;
    uint64_t stat_flushes;
    uint64_t stat_invalidated;
    uint64_t stat_checked;
    uint64_t stat_roaming;
    uint64_t stat_hot;
    uint64_t stat_narrow;
    uint64_t stat_aliases;
    uint64_t stat_translate_ns;
};

int code_cache_create(struct engine_vm *vm, uint64_t size_bytes, struct err *err,
                      struct translator **ret_translator) MUST_CHECK;
void code_cache_destroy(struct translator *translator); /* accepts NULL */

#define CODE_CACHE_BUCKETS 65536u

static inline unsigned code_cache_bucket(uintptr_t guest, unsigned mode)
{
    uint64_t key = (uint64_t)guest + ((uint64_t)(mode & UNIT_MODE_MMU) << 40);

    return (unsigned)(key * 0x9e3779b97f4a7c15ull >> 40) & (CODE_CACHE_BUCKETS - 1);
}

static inline uint32_t code_offset(const struct translator *t, const uint8_t *rw)
{
    return (uint32_t)(rw - t->rw);
}

static inline uintptr_t code_rx(const struct translator *t, uint32_t offset)
{
    return (uintptr_t)t->rx + offset;
}

static inline struct unit *unit_get(const struct translator *t, unit_ref ref)
{
    return ref == 0 ? NULL : (struct unit *)(void *)(t->arena + ref);
}

static inline unit_ref unit_ref_of(const struct translator *t, const struct unit *unit)
{
    return (unit_ref)((const uint8_t *)unit - t->arena);
}

static inline bool unit_crosses(const struct unit *unit)
{
    return (unit->last_line & UNIT_CROSSES) != 0;
}

static inline bool unit_is_alias(const struct unit *unit)
{
    return (unit->first_line & UNIT_ALIAS) != 0;
}

/* Where an alias leads, or 0. */
static inline unit_ref unit_alias_of(const struct unit *unit)
{
    return unit_is_alias(unit) ? *(const unit_ref *)(const void *)(unit + 1) : 0;
}

/* Host address of the second page, or 0. */
static inline uintptr_t unit_guest_next(const struct unit *unit)
{
    return unit_crosses(unit) ? *(const uintptr_t *)(const void *)(unit + 1) : 0;
}

/* All registers and flags in place. */
static inline uint32_t unit_entry(const struct unit *unit)
{
    uint32_t indirect = unit->code + unit->indirect;

    return unit->body_spilled == UNIT_STANDARD_BORROWED
               ? indirect - UNIT_BORROW_BYTES
               : indirect + UNIT_INDIRECT_BYTES + UNIT_BORROW_BYTES;
}

/* True when one more unit fits. */
bool code_cache_room(const struct translator *translator);

/* From the arena, zeroed; room was checked. */
void *code_cache_alloc(struct translator *translator, size_t bytes);
/* The same without zeroing: what was written at arena_used stays. */
void *code_cache_alloc_as_is(struct translator *translator, size_t bytes);

/*
 * The living unit for the guest code at host address guest, or NULL. Units with
 * a second page come only when guest_next is it (0: the next page is not known,
 * then none of them). No lock, but then a new one may not be seen yet; general registers only
 * (code_cache_find.c).
 */
struct unit *code_cache_find(const struct translator *translator, uintptr_t guest, unsigned mode,
                             uintptr_t guest_next);

/* Filters with a bit for each address of guest code, hashed: those of a page lie together. */
#define CODE_CACHE_FILTER_BITS (1u << 21)
#define CODE_CACHE_FILTER_BYTES (CODE_CACHE_FILTER_BITS / 8)

static inline unsigned code_cache_filter_bit(uintptr_t guest)
{
    uint64_t page = (uint64_t)(guest >> GMEM_PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> 32;

    return (unsigned)(page << GMEM_PAGE_SHIFT | (guest & (GMEM_PAGE_BYTES - 1))) &
           (CODE_CACHE_FILTER_BITS - 1);
}

static inline bool code_cache_in_filter(const struct translator *t, enum code_cache_filter filter,
                                        uintptr_t guest)
{
    unsigned bit = code_cache_filter_bit(guest);

    return (__atomic_load_n(&t->filters[filter][bit / 64], __ATOMIC_RELAXED) >> (bit % 64) & 1) !=
           0;
}

/* May a unit that is found by others begin at this host address? Never false when one does, for
 * who holds the engine lock. */
static inline bool code_cache_is_head(const struct translator *t, uintptr_t guest)
{
    return code_cache_in_filter(t, FILTER_HEADS, guest);
}

/*
 * Kernel instructions that the mirror served badly, by host address of their
 * guest code: from now on they are translated with a check. Never false for one
 * that was added; others may be hit, too.
 */
static inline bool code_cache_is_checked(const struct translator *t, uintptr_t guest)
{
    return code_cache_in_filter(t, FILTER_CHECKED, guest);
}
void code_cache_add_checked(struct translator *translator, uintptr_t guest);

/* The same for instructions whose hint is wrong too often: they compute where to look. */
static inline bool code_cache_is_roaming(const struct translator *t, uintptr_t guest)
{
    return code_cache_in_filter(t, FILTER_ROAMING, guest);
}
void code_cache_add_roaming(struct translator *translator, uintptr_t guest);

/* Units that run often, by the host address of their guest code: they are worth more room. */
static inline bool code_cache_is_hot(const struct translator *t, uintptr_t guest)
{
    return code_cache_in_filter(t, FILTER_HOT, guest);
}
/* The unit and its aliases run often: they are dropped, to be translated so. Engine lock held. */
void code_cache_heat_unit(struct translator *translator, struct unit *unit);

/* Can a unit be entered at the mark as from a branch of its own? */
static inline bool unit_mark_is_entry(const struct unit *unit, const struct unit_insn *mark)
{
    return mark->is_boundary && mark->is_clean && mark->spilled == unit->body_spilled &&
           mark->flags != FLAGS_SLOT;
}

/* Tells code_cache_find_inside() of such a mark, by its host address. Engine lock held. */
void code_cache_add_inside(struct translator *translator, uintptr_t guest);

/*
 * A unit that begins elsewhere and can be entered at that guest code as from a
 * branch of its own, with the mark there and the instructions before it; or NULL.
 * Engine lock held.
 */
struct unit *code_cache_find_inside(const struct translator *translator, uintptr_t guest,
                                    unsigned mode, struct unit_insn *ret_mark, unsigned *ret_index);

/* The same for instructions whose windows keep failing though their own access would not. */
static inline bool code_cache_is_narrow(const struct translator *t, uintptr_t guest)
{
    return code_cache_in_filter(t, FILTER_NARROW, guest);
}
void code_cache_add_narrow(struct translator *translator, uintptr_t guest);

/* Lines of the page with that host address in which there are living units. Engine lock held. */
uint64_t code_cache_lines(const struct translator *translator, uintptr_t page);

/* A page that was marked for a unit which came to nothing. Engine lock held. */
void code_cache_unmark(struct translator *translator, const uint8_t *host, gpa_t gpa);

/* Drops one unit, to be translated anew. Engine lock held. */
void code_cache_drop_unit(struct translator *translator, struct unit *unit);

/* Makes a finished unit findable; gpa is that of its first byte. */
void code_cache_publish(struct translator *translator, struct unit *unit, gpa_t gpa,
                        gpa_t gpa_next);

/* The unit whose code holds the RX address, or NULL. No lock; for a vCPU in code. */
struct unit *code_cache_unit_at(const struct translator *translator, uintptr_t rx);

/* Makes the exit's branch go to a lookup in the jump cache: its target is one here, another there. */
void code_cache_link_lookup(struct translator *translator, struct unit_exit *exit);

/* Makes the exit's branch go straight to target. */
void code_cache_link(struct translator *translator, struct unit_exit *exit, struct unit *target);

/* Drops the units made from [gpa, gpa + len). Engine lock held. */
void code_cache_invalidate(struct translator *translator, gpa_t start, uint64_t len);

/* Drops everything. Engine lock held, no vCPU in code. */
void code_cache_reset(struct translator *translator);
/* The same, and the host gets back the memory that it took. */
void code_cache_trim(struct translator *translator);

#endif
