/*
 * Guest-virtual to guest-physical to host: page walk, software TLB, code pages.
 *
 * The software TLB is a direct-mapped table per access mode and direction. The
 * translator inlines the lookup, so its layout is part of this contract:
 *
 *   index  = mmu_tlb_index(va), or any other: the tag says whether it is right
 *   hit    = va ^ tag[index] <= 4096 - size      (unsigned; page-crossing misses)
 *   host   = va + addend[index]
 *
 * Only pages that need no thought are ever entered: RAM, permission checked for
 * that mode and direction, A (and D for writes) set, for writes no code made
 * from the page (GMEM_PAGE_CODE clear) and no dirty logging pending. Everything
 * else misses and takes the slow path. An empty entry has MMU_TLB_EMPTY as tag. Translated code
 * that matches it faults on the host, which sees to the guest's #GP; C has to look.
 *
 * Other threads may clear entries of any vCPU (mmu_protect_code_page); the
 * owner alone fills. SDM 3A chapter 4.
 */
#ifndef CORBEL_ENGINE_MMU_H
#define CORBEL_ENGINE_MMU_H

#include "base/compiler.h"
#include "mem/gmem.h"

#include <stdbool.h>
#include <stdint.h>

struct engine_vcpu;
struct engine_vm;

#define MMU_TLB_SETS 1024u
#define CACHE_LINE_BYTES 64u

static inline bool crosses_line(uint64_t va, unsigned bytes)
{
    return (va & (CACHE_LINE_BYTES - 1)) + bytes > CACHE_LINE_BYTES;
}

/* Higher bits are mixed in: arrays some MiB apart are often walked together. */
static inline unsigned mmu_tlb_index(uint64_t va)
{
    uint32_t low = (uint32_t)va;

    return (low ^ (low >> 10)) >> 12 & (MMU_TLB_SETS - 1);
}

/*
 * Not canonical, and so is every address that matches it after the addend of any
 * page was added, since those lie between canonical addresses.
 */
#define MMU_TLB_EMPTY (1ull << 63)

/* Whose permissions apply (SDM 3A 4.6). */
enum mmu_mode {
    MMU_KERNEL,    /* CPL < 3; user pages fault when SMAP is on and AC is clear */
    MMU_USER,      /* CPL 3 */
    MMU_KERNEL_AC, /* CPL < 3 with SMAP off, or on with AC set: user pages allowed */
    MMU_MODE_COUNT
};

enum mmu_access { MMU_READ, MMU_WRITE, MMU_FETCH };

struct mmu_tlb_entry {
    uint64_t tag;
    uint64_t addend;
};

struct mmu_tlb {
    struct mmu_tlb_entry read[MMU_TLB_SETS];
    struct mmu_tlb_entry write[MMU_TLB_SETS];
};

/* Which sets of a struct mmu_tlb were filled, so that a flush touches only those.
 * A bit may be set without an entry (another thread cleared it), never the reverse. */
#define MMU_TLB_WORDS (MMU_TLB_SETS / 64u)
struct mmu_tlb_index {
    uint64_t used[2][MMU_TLB_WORDS];       /* [0] read, [1] write */
    uint64_t non_global[2][MMU_TLB_WORDS]; /* of the used ones: dropped by MOV to CR3 */
    uint64_t large[2][MMU_TLB_WORDS];      /* piece of a page above 4 KiB: see mmu_flush_page */
};

/* Instruction fetch has its own small table of code pages. */
#define MMU_FETCH_SETS 64u
struct mmu_fetch_entry {
    uint64_t tag;  /* page of va; bit 0: user; bit 1: valid */
    uint8_t *host; /* start of the page */
    bool global;   /* survives mmu_flush_non_global() */
    bool large;    /* of a page above 4 KiB */
};

/*
 * What a flush drops, for engine_vcpu.flush_hook. MMU_FLUSH_SWITCH and _NEW: the
 * context is another now, one that was left earlier or one of which nothing is known.
 */
enum mmu_flush {
    MMU_FLUSH_ALL,
    MMU_FLUSH_NON_GLOBAL,
    MMU_FLUSH_PAGE,
    MMU_FLUSH_SWITCH,
    MMU_FLUSH_NEW
};

/* Address spaces that are remembered by PCID (mmu_context.c); Linux has six per CPU. */
#define MMU_CONTEXTS 6u
#define MMU_CONTEXT_ENTRIES 512u
#define MMU_LARGE_BYTES (2u << 20) /* any size above 4 KiB */

struct mmu_saved_entry {
    uint64_t tag;
    uint64_t addend;
    uint8_t mode;
    bool is_write;
    bool large;
};

struct mmu_context {
    uint64_t cr3;
    uint64_t left_at; /* counts switches */
    unsigned count;
    bool is_valid; /* while it is not the current one */
    struct mmu_saved_entry entries[MMU_CONTEXT_ENTRIES];
};

/* What a walk found. */
struct mmu_page {
    uint64_t gpa;        /* of the byte asked for */
    uint64_t page_bytes; /* 4 KiB, 2 MiB, 1 GiB */
    uint8_t *host;       /* of the byte asked for, NULL when it is not RAM (MMIO) */
    bool global;
    bool user;
    bool writable; /* for this mode */
    bool dirty;
};

/*
 * Internal results, beside 0: ENGINE_FAULT: v->fault holds the exception to
 * deliver, nothing was changed. ENGINE_EXIT: v->exit was filled (an MMIO or
 * other exit); the instruction is to be started again when it was answered.
 */
#define ENGINE_FAULT 1
#define ENGINE_EXIT 2

/* Walks the tables, sets A/D bits, checks permissions: 0 or ENGINE_FAULT (#PF, cr2 in v->fault). */
int mmu_translate(struct engine_vcpu *v, uint64_t va, enum mmu_access access, enum mmu_mode mode,
                  struct mmu_page *ret_page) MUST_CHECK;

/*
 * What mmu_translate() would say of a read by the kernel, changing nothing: false
 * when it would fault or set a bit. ret_page->writable: a write would do neither.
 */
bool mmu_probe(struct engine_vcpu *v, uint64_t va, struct mmu_page *ret_page);

/* Where RAM at that guest-physical address lies here, NULL: it is none. */
uint8_t *mmu_ram_host(const struct engine_vm *vm, uint64_t pa);

/* As a debugger sees it: no A/D bits, no permissions, no fault. -EFAULT when unmapped. */
int mmu_peek(struct engine_vcpu *v, uint64_t va, gpa_t *ret_gpa) MUST_CHECK;

/*
 * Linear-address accesses of any size and alignment up to 4096 bytes, also
 * across pages, RAM or MMIO. All pages of a write are checked before the first
 * byte is written. 0, ENGINE_FAULT or ENGINE_EXIT.
 */
int mmu_read(struct engine_vcpu *v, uint64_t va, void *buf, unsigned len, enum mmu_mode mode)
    MUST_CHECK;
int mmu_write(struct engine_vcpu *v, uint64_t va, const void *buf, unsigned len, enum mmu_mode mode)
    MUST_CHECK;

/*
 * For read-modify-write on RAM within one page: the host address to work on
 * directly (atomics included), or NULL in *ret_host when it must go through a
 * copy (MMIO or page-crossing). mmu_rmw_end() follows after the write.
 */
int mmu_rmw_begin(struct engine_vcpu *v, uint64_t va, unsigned len, enum mmu_mode mode,
                  uint8_t **ret_host) MUST_CHECK;
/* After the bytes at host were written: drops what was translated from them. */
void mmu_rmw_end(struct engine_vcpu *v, const uint8_t *host, unsigned len);

/* The host address of [va, va + len) for reading when it is RAM within one page, else NULL. */
int mmu_read_begin(struct engine_vcpu *v, uint64_t va, unsigned len, enum mmu_mode mode,
                   const uint8_t **ret_host) MUST_CHECK;

/* The host address of the code byte at va when its page is RAM and executable,
 * NULL in *ret_host when it is not RAM; ENGINE_FAULT. Cached per page. */
int mmu_fetch_host(struct engine_vcpu *v, uint64_t va, const uint8_t **ret_host) MUST_CHECK;

/* After mmu_fetch_host(v, va): is that translation kept by mmu_flush_non_global()? */
bool mmu_fetch_is_global(const struct engine_vcpu *v, uint64_t va);

/* Instruction bytes at va, at most 15 and at most to where fetching faults:
 * count in *ret_len (at least 1), or ENGINE_FAULT for the first byte. */
int mmu_fetch(struct engine_vcpu *v, uint64_t va, uint8_t *buf, unsigned *ret_len) MUST_CHECK;

/* The slow path of an inlined lookup: translates, fills the TLB when the page
 * allows it. 0 (ret_page->host NULL: MMIO) or ENGINE_FAULT. */
int mmu_fill(struct engine_vcpu *v, uint64_t va, enum mmu_access access, enum mmu_mode mode,
             struct mmu_page *ret_page) MUST_CHECK;

/* The mode that data accesses of the current CPL, CR4.SMAP and RFLAGS.AC use. */
enum mmu_mode mmu_current_mode(const struct engine_vcpu *v);

/* Flushes as architecture asks (SDM 3A 4.10.4); each also drops this vCPU's jump cache. */
void mmu_flush_all(struct engine_vcpu *v);               /* CR0, CR4, EFER changes */
void mmu_flush_non_global(struct engine_vcpu *v);        /* MOV to CR3 */
void mmu_flush_page(struct engine_vcpu *v, uint64_t va); /* INVLPG */

/*
 * MOV to CR3 with CR4.PCIDE: sets st.cr3, and keeps what is known of the PCID
 * that it leaves; keep: and what was known of that which it names.
 */
void mmu_switch_context(struct engine_vcpu *v, uint64_t cr3, bool keep);
void mmu_forget_context(struct engine_vcpu *v, unsigned pcid); /* unless it is current */
void mmu_forget_contexts(struct engine_vcpu *v);               /* but the current one */

/* For mmu_context.c: enters a page (host, page_bytes, global of it count) if it still may be. */
void mmu_tlb_enter(struct engine_vcpu *v, uint64_t va, bool is_write, enum mmu_mode mode,
                   const struct mmu_page *page);
void mmu_leave_context(struct engine_vcpu *v); /* drops what is not global */
void mmu_context_changed(struct engine_vcpu *v, bool is_new);

/* Empties every entry of a new vCPU. */
void mmu_init(struct engine_vcpu *v);

/* Drops what lets a vCPU write without looking (dirty logging begins, log fetched). Owner thread. */
void mmu_flush_writes(struct engine_vcpu *v);

/* True when va is canonical or the CPU is not in IA-32e mode. */
bool mmu_is_canonical(const struct engine_vcpu *v, uint64_t va);

/*
 * Marks the page as holding translated code and removes it from the write TLBs
 * of every vCPU. Returns the other vCPUs (bit i: index i) that had it there, or had it
 * when they began the unit that they run: they
 * may still be in the middle of a store that passed the inlined check earlier,
 * until translate_sync_vcpu() has waited for them. Caller holds the engine lock.
 */
uint64_t mmu_protect_code_page(struct engine_vcpu *v, gpa_t page);

#endif
