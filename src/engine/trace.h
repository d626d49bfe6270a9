/*
 * A trace: the guest instructions that become one unit.
 *
 * It begins at one instruction, follows fall-through and direct jumps within
 * the page, and ends at the first transfer it cannot follow, where another
 * unit (of translator) begins, the first
 * instruction that is not translated inline, or a limit. It also says which
 * arithmetic flags are live before each instruction and where each register is
 * used next. Plain data; the caller owns it.
 */
#ifndef CORBEL_ENGINE_TRACE_H
#define CORBEL_ENGINE_TRACE_H

#include "cpu/x86.h"
#include "engine/code_cache.h"
#include "engine/decode.h"

#define TRACE_NO_USE 0xffu
/* Conditional branches in a trace: what is behind more of them is seldom reached. */
#define TRACE_BRANCHES_MAX 3u

/* What translating an instruction means for the trace. */
enum trace_role {
    TRACE_INLINE, /* goes on behind it */
    TRACE_BRANCH, /* Jcc and the like: a side exit, goes on behind it */
    TRACE_FOLLOW, /* a jump to the next instruction of the trace: nothing to do */
    TRACE_END,    /* transfers control by translated code */
    TRACE_HELPER, /* a C function does it, then control goes on behind it or elsewhere */
    TRACE_INTERP  /* left to the interpreter */
};

struct trace_insn {
    struct insn insn;
    uint16_t offset; /* in the page */
    uint16_t live;   /* arithmetic flags that matter before it */
    uint8_t role;
    uint8_t mode;                    /* unit mode in force */
    uint8_t next_use[X86_GPR_COUNT]; /* index of the next instruction that names it */
};

struct trace {
    struct trace_insn insns[UNIT_INSNS_MAX];
    unsigned count;
    uint64_t lines;      /* of the page, that it read */
    uint8_t mode;        /* in force behind the last instruction */
    bool crosses;        /* the only instruction ends in the next page */
    bool falls;          /* control goes on at end_offset */
    uint32_t end_offset; /* page offset behind the trace; may be 4096 or a little more */
};

/*
 * Builds the trace that begins at offset of the page at host address page;
 * next_page: the following guest-virtual page, or NULL when it is not known.
 * Returns 0, or -EAGAIN: the first instruction crosses and next_page is NULL.
 */
int trace_build(const struct translator *translator, const uint8_t *page, uint32_t offset,
                const uint8_t *next_page, unsigned mode, struct trace *ret_trace) MUST_CHECK;

#endif
