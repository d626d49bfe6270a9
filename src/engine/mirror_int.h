/* What the files of the mirror share: its tables, under its lock. See mirror.h. */
#ifndef CORBEL_ENGINE_MIRROR_INT_H
#define CORBEL_ENGINE_MIRROR_INT_H

#include "engine/engine_int.h"
#include "engine/mirror.h"

#define PAGE_BYTES ((uint64_t)GMEM_PAGE_BYTES)
#define REGION_SHIFT 21
#define REGION_BYTES (1ull << REGION_SHIFT)
#define SLOTS 256u /* top-level entries of the kernel's half */
#define SLOT_SHIFT 39
#define PTE_P 0x001ull
#define PTE_A 0x020ull
#define PTE_ADDRESS 0x000ffffffffff000ull

/* Pages each way that are looked at around a page of 4 KiB. */
#define RUN_PAGES 16u
/* A run this short is populated at once. */
#define POPULATE_PAGES 8u

/*
 * Linux allows a process 65530 mappings. A record is one at most, and each page
 * of code in it may cut it into two more.
 */
#define RECORDS 16384u
#define CUTS_MAX 16384u
#define BUCKETS 8192u

/* So often may the kernel's half change under one vCPU before this is given up. */
#define CHANGES_MAX 4096u

struct mirror_record {
    uint64_t va;
    uint64_t offset; /* in RAM */
    uint32_t pages;  /* 0: free */
    uint32_t next_region;
    uint32_t next_chunk;
    uint32_t next_local;
    uint32_t prev_local;
    bool writable;
    bool global;
    bool is_piece; /* of a page of the guest's that is larger */
};

struct mirror_counts {
    uint64_t maps;     /* mappings made */
    uint64_t upgrades; /* made writable later, or mapped by two at once */
    uint64_t drops;    /* mappings dropped because the guest's tables changed */
    uint64_t checks;   /* mappings that a flush looked at */
    uint64_t evicted;  /* mappings dropped for room */
    uint64_t protects; /* pages made read-only because code was made from them */
    uint64_t refused;  /* faults that were not for the mirror */
    uint64_t mappings; /* now */
};

struct mirror {
    struct engine_vm *vm;
    int ram_fd;
    uint8_t *ram;          /* offset 0 */
    _Atomic uint32_t lock; /* held for tables and system calls; waiters yield */
    _Atomic bool refused;
    _Atomic uint32_t locals; /* records that are not global */
    uint32_t free;           /* list by next_region */
    uint32_t first_local;
    uint32_t piece_count;
    uint32_t cuts;
    uint32_t changes;
    uint32_t hand; /* of eviction */
    uint32_t top;  /* no record in use lies at or above it */
    uint64_t slot_value[SLOTS];
    uint32_t slot_records[SLOTS];
    uint64_t slot_used[SLOTS / 64];
    struct mirror_counts stats;
    uint32_t regions[BUCKETS];             /* by 2 MiB of guest addresses */
    uint32_t chunks[BUCKETS];              /* by 2 MiB of RAM */
    struct mirror_record records[RECORDS]; /* 0 is none */
};

static inline unsigned mirror_bucket(uint64_t address)
{
    return (unsigned)((address >> REGION_SHIFT) * 0x9e3779b97f4a7c15ull >> 40) & (BUCKETS - 1);
}

static inline unsigned mirror_slot(uint64_t va)
{
    return (unsigned)(va >> SLOT_SHIFT) & (SLOTS - 1);
}

/* mirror_table.c: records and the host's mappings. */
void mirror_lock(struct mirror *mirror);
void mirror_unlock(struct mirror *mirror);
/* The record that holds va, 0: none. */
uint32_t mirror_find(const struct mirror *mirror, uint64_t va);
/* A free record, making room when there is none; 0: none. It is linked or untaken. */
uint32_t mirror_record_take(struct mirror *mirror);
void mirror_record_untake(struct mirror *mirror, uint32_t i);
void mirror_record_link(struct mirror *mirror, uint32_t i);
/* Unmaps and frees. */
void mirror_record_drop(struct mirror *mirror, uint32_t i);
void mirror_record_drop_all(struct mirror *mirror);
/* fixed: MAP_FIXED over what is the record's already, else MAP_FIXED_NOREPLACE. */
bool mirror_host_map(struct mirror *mirror, const struct mirror_record *r, unsigned fixed);
bool mirror_host_protect(uint64_t va, uint64_t bytes, bool writable);
/* Of the page at offset in RAM; those of a record follow each other. NULL: no RAM. */
_Atomic uint8_t *mirror_flags(const struct mirror *mirror, uint64_t offset);
/* Without records a slot may hold anything. */
void mirror_slot_end(struct mirror *mirror, unsigned slot);

/* mirror_flush.c: what the guest's tables say now. */
/* Before something is mapped in the slot: false when vCPUs differ about it. */
bool mirror_slot_begin(const struct engine_vcpu *v, struct mirror *mirror, unsigned slot);
/* The record may stay as it is when page is what the tables say of va. */
bool mirror_is_current(const struct mirror *mirror, const struct mirror_record *r, uint64_t va,
                       const struct mmu_page *page);

#endif
