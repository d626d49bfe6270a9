/*
 * The pages by which the executor speaks with the threads of a space (see
 * engine/native.h), and what native_stub.S needs to know of them. One memfd for
 * all; a space maps its own part of it in blocks, from NATIVE_OWN on: the
 * mapper's, then one of each vCPU's runner. A block:
 *
 *   0       the stub, readable and executable
 *   4096    page: struct native_mapper (read-only in the space) or struct native_runner
 *   8192    a runner's signal stack, to the block's end
 *
 * Whatever stands in a runner's block is the guest user's: fetched once, checked.
 */
#ifndef CORBEL_EXECUTOR_NATIVE_PAGE_H
#define CORBEL_EXECUTOR_NATIVE_PAGE_H

#define NATIVE_BLOCK_BYTES 0x10000
#define NATIVE_PAGE_AT 0x1000
#define NATIVE_STACK_AT 0x2000
#define NATIVE_SIGNAL 38 /* makes a runner leave; equals HOSTSIG_KICK */

/* native_runner.word, a futex */
#define NATIVE_WORD_DEAD 0 /* the kernel writes it when the thread ends */
#define NATIVE_WORD_GO 1
#define NATIVE_WORD_STOPPED 2
#define NATIVE_WORD_MAPPING 3 /* it makes the changes in the mapper's page, then goes on */
#define NATIVE_WORD_FAILED 4  /* ... and could not: still stopped */
#define NATIVE_WORD_ABORTED 5 /* ... and was kicked, at whichever of them: still stopped */

/* native_mapper.may */
#define NATIVE_MAY_NOT 0
#define NATIVE_MAY_RUN 1       /* and sleeps when it has stopped */
#define NATIVE_MAY_SPIN 2      /* then, too; before, it adds one to its tally */
#define NATIVE_SPIN_TSC 300000 /* for so long */

/* Offsets into struct native_runner. */
#define NATIVE_R_WORD 0
#define NATIVE_R_KICKED 4
#define NATIVE_R_ABORTED 8
#define NATIVE_R_WAITING 12
#define NATIVE_R_CONTEXT 16
#define NATIVE_R_FS 24
#define NATIVE_R_GS 32
#define NATIVE_R_SELECTORS 40 /* FS, GS, DS, ES: 8 bytes each */
#define NATIVE_R_XMASK 72
#define NATIVE_R_RIP 80
#define NATIVE_R_FLAGS 88 /* a stack of one word */
#define NATIVE_R_GPR 96
#define NATIVE_R_BEGIN 224 /* host TSC when the guest's code went on, and when it left */
#define NATIVE_R_END 232
#define NATIVE_R_SLEEPS 240
#define NATIVE_R_XSAVE 256
#define NATIVE_R_KEY 1088

/* Offsets into struct native_mapper. */
#define NATIVE_M_GO 0
#define NATIVE_M_COUNT 4
#define NATIVE_M_DONE 8
#define NATIVE_M_FAILED 16
#define NATIVE_M_ITEMS 64
#define NATIVE_M_ITEM_BYTES 48
#define NATIVE_M_MAY 3232

/* struct native_mapper in the space. */
#define NATIVE_MAPPER_AT 0x700000001000

/* native_mapper.may in the space: words by block, from their addresses. */
#define NATIVE_MAY_AT 0x700000001ca0
#define NATIVE_BLOCKS_MASK 0xfff0000
#define NATIVE_MAY_SHIFT 14

/* The mapper's descriptors; and the only runner's, which has its tally in place of the bell. */
#define NATIVE_RAM_FD 0
#define NATIVE_BELL_FD 1
#define NATIVE_TALLY_FD 1
#define NATIVE_COPY_FD 2

#ifndef __ASSEMBLER__
#include "cpu/vcpu.h"
#include "engine/native.h"

#include <stdatomic.h>
#include <stdint.h>

/* x87, SSE and AVX: all that a guest has, in the standard format (SDM 1 13.4). */
#define NATIVE_XSAVE_BYTES 832u

struct native_runner {
    _Atomic uint32_t word;
    _Atomic uint32_t kicked;  /* do not begin */
    _Atomic uint32_t aborted; /* it did not begin: registers are as they were given */
    _Atomic uint32_t waiting; /* the executor's thread sleeps, or is about to: wake it */
    uint64_t context;         /* where the frame's struct ucontext is in the space */
    uint64_t fs_base;
    uint64_t gs_base;
    uint64_t selectors[4];
    uint32_t xmask;
    uint64_t rip;
    uint64_t flags;
    uint64_t gpr[X86_GPR_COUNT];
    uint64_t begin;
    uint64_t end;
    _Atomic uint32_t sleeps; /* it does not spin, or is about to stop it: wake it */
    uint8_t xsave[NATIVE_XSAVE_BYTES] ALIGNED(64);
    uint64_t key[3]; /* with an order to map: see native_stub.S */
    int32_t pid;     /* read before any guest code runs */
};

/* That take away all that is mapped. */
#define NATIVE_CLEAR_ITEMS 2u

struct native_item {
    uint64_t va;
    uint64_t bytes;
    uint64_t prot; /* 0: unmap */
    uint64_t flags;
    uint64_t offset;
    uint64_t fd;
};

struct native_mapper {
    _Atomic uint32_t go; /* a futex: counts commands */
    uint32_t count;
    uint64_t done;   /* what it writes to its eventfd */
    uint64_t failed; /* ... when one was refused; the rest was not tried */
    struct native_item items[NATIVE_CLEAR_ITEMS + NATIVE_MAX_CHANGES] ALIGNED(64);
    _Atomic uint32_t may[65]; /* by block: NATIVE_MAY_* of its runner */
};

/* The stub, one page at most; offsets of its entries. */
extern const uint8_t native_stub_start[];
extern const uint8_t native_stub_fault[];   /* handler of faults and system calls */
extern const uint8_t native_stub_kick[];    /* handler of NATIVE_SIGNAL */
extern const uint8_t native_stub_begin[];   /* a new runner jumps here */
extern const uint8_t native_stub_one[];     /* what it adds to its tally: 8 bytes */
extern const uint8_t native_stub_counted[]; /* behind the system call that does */
extern const uint8_t native_stub_mapped[];  /* behind the one by which it maps */
extern const uint8_t native_stub_woken[];   /* behind the stub's FUTEX_WAKE */
extern const uint8_t native_stub_slept[];   /* ... and its FUTEX_WAIT */
extern const uint8_t native_stub_map[];     /* the mapper jumps here */
extern const uint8_t native_stub_end[];

_Static_assert(offsetof(struct native_runner, word) == NATIVE_R_WORD &&
                   offsetof(struct native_runner, kicked) == NATIVE_R_KICKED &&
                   offsetof(struct native_runner, aborted) == NATIVE_R_ABORTED &&
                   offsetof(struct native_runner, waiting) == NATIVE_R_WAITING &&
                   offsetof(struct native_runner, context) == NATIVE_R_CONTEXT &&
                   offsetof(struct native_runner, fs_base) == NATIVE_R_FS &&
                   offsetof(struct native_runner, gs_base) == NATIVE_R_GS &&
                   offsetof(struct native_runner, selectors) == NATIVE_R_SELECTORS &&
                   offsetof(struct native_runner, xmask) == NATIVE_R_XMASK &&
                   offsetof(struct native_runner, rip) == NATIVE_R_RIP &&
                   offsetof(struct native_runner, flags) == NATIVE_R_FLAGS &&
                   offsetof(struct native_runner, gpr) == NATIVE_R_GPR &&
                   offsetof(struct native_runner, begin) == NATIVE_R_BEGIN &&
                   offsetof(struct native_runner, end) == NATIVE_R_END &&
                   offsetof(struct native_runner, sleeps) == NATIVE_R_SLEEPS &&
                   offsetof(struct native_runner, xsave) == NATIVE_R_XSAVE &&
                   offsetof(struct native_runner, key) == NATIVE_R_KEY,
               "as native_stub.S has it");
_Static_assert(sizeof(struct native_runner) <= 4096 && sizeof(struct native_mapper) <= 4096 &&
                   offsetof(struct native_mapper, go) == NATIVE_M_GO &&
                   offsetof(struct native_mapper, count) == NATIVE_M_COUNT &&
                   offsetof(struct native_mapper, done) == NATIVE_M_DONE &&
                   offsetof(struct native_mapper, failed) == NATIVE_M_FAILED &&
                   offsetof(struct native_mapper, items) == NATIVE_M_ITEMS &&
                   sizeof(struct native_item) == NATIVE_M_ITEM_BYTES &&
                   offsetof(struct native_mapper, may) == NATIVE_M_MAY &&
                   NATIVE_MAPPER_AT == NATIVE_OWN + NATIVE_PAGE_AT &&
                   NATIVE_MAY_AT == NATIVE_OWN + NATIVE_PAGE_AT + NATIVE_M_MAY &&
                   NATIVE_BLOCK_BYTES >> NATIVE_MAY_SHIFT == sizeof(uint32_t),
               "as native_stub.S has it");
#endif

#endif
