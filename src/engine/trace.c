/* Decoding ahead and looking back; see trace.h. */
#include "engine/trace.h"

#include "engine/mmu.h"
#include "engine/translate_int.h"

#include <errno.h>
#include <string.h>

#define LINE_SHIFT 6
#define NO_TARGET (-1)

/* May the instruction run in this mode at all without a look at CR0, CR4, XCR0? */
static bool fpu_allowed(const struct insn *insn, unsigned mode)
{
    if ((insn->flags & (INSN_X87 | INSN_MMX)) != 0 && (mode & UNIT_MODE_SSE) == 0) {
        return false;
    }
    if ((insn->flags & INSN_SSE) != 0 && (mode & UNIT_MODE_SSE) == 0) {
        return false;
    }
    return (insn->flags & INSN_AVX) == 0 || (mode & UNIT_MODE_AVX) != 0;
}

/* The operand can be addressed by emit_ea(). */
static bool operand_simple(const struct insn *insn)
{
    if (insn->disp != (int32_t)insn->disp || insn->addrsize_bytes < 4) {
        return false;
    }
    if (insn->base == INSN_REG_RIP) {
        return insn->addrsize_bytes == 8 && insn->disp < INT32_MAX - 8192 &&
               insn->disp > INT32_MIN + 8192;
    }
    return true;
}

static bool operand_plain(const struct insn *insn, unsigned bytes)
{
    return insn->mem_bytes == bytes && operand_simple(insn);
}

static enum trace_role role_copy(const struct insn *insn, unsigned mode)
{
    if (!fpu_allowed(insn, mode)) {
        return TRACE_INTERP;
    }
    if (insn->mem_bytes != 0 && (!operand_simple(insn) || insn->mem_bytes > 64)) {
        return TRACE_INTERP;
    }
    return TRACE_INLINE;
}

static enum trace_role role_push_pop(const struct insn *insn)
{
    if (insn->opsize_bytes != 8) {
        return TRACE_INTERP;
    }
    if (insn->mem_bytes != 0) {
        return insn->op == INSN_OP_PUSH && operand_plain(insn, 8) ? TRACE_INLINE : TRACE_INTERP;
    }
    return TRACE_INLINE;
}

static enum trace_role role_indirect(const struct insn *insn)
{
    if (insn->opsize_bytes != 8) {
        return TRACE_INTERP;
    }
    return insn->mem_bytes == 0 || operand_plain(insn, 8) ? TRACE_END : TRACE_INTERP;
}

/* Operands that are legal, and addresses without segment or cut. */
static bool role_gather(const struct insn *insn, unsigned mode)
{
    unsigned index = (insn->bytes[insn->sib_off] >> 3 & 7u) | ((insn->rex & 2u) != 0 ? 8u : 0u);

    return (mode & UNIT_MODE_AVX) != 0 && insn->addrsize_bytes == 8 && insn->seg != X86_FS &&
           insn->seg != X86_GS && insn->reg != insn->vex_vvvv && insn->reg != index &&
           insn->vex_vvvv != index && insn->disp == (int32_t)insn->disp;
}

/* Instructions of the system that are emitted inline, C functions, or neither. */
static enum trace_role role_system(const struct insn *insn, unsigned mode)
{
    bool kernel = (mode & UNIT_MODE_MMU) != MMU_USER;
    bool is_inline;

    switch (insn->op) {
    case INSN_OP_CLI:
    case INSN_OP_STI:
    case INSN_OP_SWAPGS:
        is_inline = kernel;
        break;
    case INSN_OP_STAC:
    case INSN_OP_CLAC:
        is_inline = kernel && (mode & UNIT_MODE_SMAP) != 0;
        break;
    case INSN_OP_MOV_FROM_CR:
        is_inline = kernel && insn->reg != 1 && insn->reg <= 4;
        break;
    case INSN_OP_RDTSC:
    case INSN_OP_RDTSCP:
        is_inline = (mode & UNIT_MODE_TSC) != 0;
        break;
    case INSN_OP_RDFSBASE:
        is_inline = (mode & UNIT_MODE_FSGSBASE) != 0;
        break;
    case INSN_OP_PUSHF:
        is_inline = insn->opsize_bytes == 8;
        break;
    case INSN_OP_MOV_FROM_SEG:
        is_inline = insn->mem_bytes == 0 && insn->opsize_bytes >= 4 && insn->reg_seg <= X86_GS;
        break;
    case INSN_OP_BIT_MEM:
        /* A 32-bit address is cut after the bit offset is added: rare, so not here. */
        is_inline = operand_simple(insn) && insn->opsize_bytes >= 4 && insn->addrsize_bytes == 8;
        break;
    case INSN_OP_GATHER:
        is_inline = role_gather(insn, mode);
        break;
    case INSN_OP_XSAVE:
    case INSN_OP_XRSTOR:
        is_inline = operand_simple(insn) && (mode & UNIT_MODE_AVX) != 0;
        break;
    default:
        is_inline = false;
        break;
    }
    if (is_inline) {
        return TRACE_INLINE;
    }
    return translate_helper_for(insn, mode) != HELPER_NONE ? TRACE_HELPER : TRACE_INTERP;
}

static enum trace_role role_of(const struct insn *insn, unsigned mode)
{
    switch (insn->op) {
    case INSN_OP_COPY:
        return role_copy(insn, mode);
    case INSN_OP_NOP:
        return TRACE_INLINE;
    case INSN_OP_LEA:
        return operand_simple(insn) && (insn->base != INSN_REG_RIP || insn->opsize_bytes >= 4)
                   ? TRACE_INLINE
                   : TRACE_INTERP;
    case INSN_OP_PUSH:
    case INSN_OP_POP:
        return role_push_pop(insn);
    case INSN_OP_LEAVE:
        return insn->opsize_bytes == 8 ? TRACE_INLINE : TRACE_INTERP;
    case INSN_OP_JCC:
    case INSN_OP_JCXZ:
    case INSN_OP_LOOP:
        return TRACE_BRANCH;
    case INSN_OP_JMP:
    case INSN_OP_CALL:
        return TRACE_END;
    case INSN_OP_RET:
        return insn->opsize_bytes == 8 ? TRACE_END : TRACE_INTERP;
    case INSN_OP_JMP_IND:
    case INSN_OP_CALL_IND:
        return role_indirect(insn);
    default:
        return role_system(insn, mode);
    }
}

/*
 * REP MOVS and REP STOS of the kernel's half: the host's own on the mirror, the most frequent ones
 * of a kernel by far. Lock step counts what the interpreter does of them.
 */
static bool is_string_inline(const struct translator *t, const struct insn *insn, unsigned mode,
                             uintptr_t guest)
{
    return (insn->op == INSN_OP_MOVS || insn->op == INSN_OP_STOS) &&
           (insn->flags & INSN_REP) != 0 && insn->addrsize_bytes == 8 && insn->seg != X86_FS &&
           insn->seg != X86_GS && mem_is_direct(t, mode) && !t->vm->check &&
           !code_cache_is_checked(t, guest);
}

/* The in-page target of a direct jump, or NO_TARGET. */
static int64_t target_in_page(const struct trace_insn *ti)
{
    int64_t target = (int64_t)ti->offset + ti->insn.len + (int64_t)ti->insn.imm;

    return target >= 0 && target < (int64_t)GMEM_PAGE_BYTES ? target : NO_TARGET;
}

static bool visited(const struct trace *trace, uint32_t offset)
{
    for (unsigned i = 0; i < trace->count; i++) {
        if (trace->insns[i].offset == offset) {
            return true;
        }
    }
    return false;
}

/* The last bytes of the page, and of the next one where that is known. */
static int decode_at_end(const uint8_t *page, uint32_t offset, const uint8_t *next_page,
                         struct insn *ret_insn, bool *ret_crosses)
{
    uint8_t bytes[INSN_MAX_BYTES];
    unsigned here = GMEM_PAGE_BYTES - offset;
    int r;

    memcpy(bytes, page + offset, here);
    r = insn_decode(bytes, here, INSN_MODE_64, ret_insn);
    if (r == -ENODATA) {
        *ret_crosses = true;
        if (next_page != NULL) {
            memcpy(bytes + here, next_page, INSN_MAX_BYTES - here);
            r = insn_decode(bytes, INSN_MAX_BYTES, INSN_MODE_64, ret_insn);
        }
    }
    return r;
}

/* Guest bytes are fetched once, into the instruction. */
static int decode_at(const uint8_t *page, uint32_t offset, const uint8_t *next_page,
                     struct insn *ret_insn, bool *ret_crosses)
{
    *ret_crosses = false;
    if (offset <= GMEM_PAGE_BYTES - INSN_MAX_BYTES) {
        return insn_decode(page + offset, INSN_MAX_BYTES, INSN_MODE_64, ret_insn);
    }
    return decode_at_end(page, offset, next_page, ret_insn, ret_crosses);
}

static void add_lines(struct trace *trace, uint32_t offset, uint32_t len)
{
    uint32_t last = offset + len - 1;

    trace->lines |= 1ull << (offset >> LINE_SHIFT);
    if (last < GMEM_PAGE_BYTES) {
        trace->lines |= 1ull << (last >> LINE_SHIFT);
    }
}

/* An instruction that does not decode within 15 bytes: the interpreter raises #GP. */
static void add_undecodable(struct trace *trace, uint32_t offset)
{
    struct trace_insn *ti = &trace->insns[trace->count++];

    memset(ti, 0, sizeof(*ti));
    ti->insn.op = INSN_OP_UD;
    ti->insn.len = 1;
    ti->offset = (uint16_t)offset;
    ti->role = TRACE_INTERP;
    ti->mode = trace->mode;
    add_lines(trace, offset, 1);
}

/* Adds the instruction at *offset, which was decoded into its place; returns false when the trace ends behind it. */
static bool add_insn(const struct translator *t, const uint8_t *page, struct trace *trace,
                     uint32_t *offset)
{
    struct trace_insn *ti = &trace->insns[trace->count];
    const struct insn *insn = &ti->insn;

    ti->offset = (uint16_t)*offset;
    ti->mode = trace->mode;
    ti->role = is_string_inline(t, insn, trace->mode, (uintptr_t)page + *offset)
                   ? TRACE_INLINE
                   : (uint8_t)role_of(insn, trace->mode);
    add_lines(trace, *offset, insn->len);
    trace->count++;
    if (insn->op == INSN_OP_STAC && ti->role == TRACE_INLINE) {
        trace->mode = (uint8_t)((trace->mode & ~UNIT_MODE_MMU) | MMU_KERNEL_AC);
    } else if (insn->op == INSN_OP_CLAC && ti->role == TRACE_INLINE) {
        trace->mode = (uint8_t)((trace->mode & ~UNIT_MODE_MMU) | MMU_KERNEL);
    }
    *offset += insn->len;
    trace->end_offset = *offset;
    if (ti->role == TRACE_END && insn->op == INSN_OP_JMP) {
        int64_t target = target_in_page(ti);

        if (target != NO_TARGET && !visited(trace, (uint32_t)target) &&
            trace->count < UNIT_INSNS_MAX) {
            ti->role = TRACE_FOLLOW;
            *offset = (uint32_t)target;
            trace->end_offset = *offset;
            return true;
        }
    }
    return ti->role == TRACE_INLINE || ti->role == TRACE_BRANCH;
}

static void find_live_flags(struct trace *trace)
{
    uint16_t live = X86_FLAGS_ARITH;

    for (unsigned i = trace->count; i-- > 0;) {
        struct trace_insn *ti = &trace->insns[i];

        if (ti->role != TRACE_INLINE && ti->role != TRACE_FOLLOW) {
            live = X86_FLAGS_ARITH;
        }
        if (ti->role == TRACE_INLINE) {
            live = (uint16_t)((live & ~ti->insn.flags_written) | ti->insn.flags_read);
        }
        ti->live = live;
    }
}

/* A byte of ones for each of eight bits. */
static uint64_t spread(unsigned bits)
{
    uint64_t each = (uint64_t)bits * 0x0101010101010101 & 0x8040201008040201;

    return ((each + 0x7f7f7f7f7f7f7f7f) >> 7 & 0x0101010101010101) * 0xff;
}

/*
 * Eight registers to a word: sixteen bytes written singly and copied at once would be slow. Nor is
 * there a loop over those used, whose number nobody could predict.
 */
static uint64_t set_next_use(uint64_t next, unsigned used, unsigned i)
{
    uint64_t mask = spread(used);

    return (next & ~mask) | (i * 0x0101010101010101 & mask);
}

static void find_next_uses(struct trace *trace)
{
    uint64_t low = UINT64_MAX; /* TRACE_NO_USE */
    uint64_t high = UINT64_MAX;

    for (unsigned i = trace->count; i-- > 0;) {
        struct trace_insn *ti = &trace->insns[i];
        unsigned used = ti->insn.gpr_read | ti->insn.gpr_written;

        memcpy(ti->next_use, &low, sizeof(low));
        memcpy(ti->next_use + sizeof(low), &high, sizeof(high));
        low = set_next_use(low, used & 0xff, i);
        high = set_next_use(high, used >> 8, i);
    }
}

/*
 * Another unit begins here: the trace goes on there rather than do it again. Not
 * when an interrupt made it begin here, which would cut a loop in two for good.
 * lines: where in the page there are units, at least.
 */
static bool is_elsewhere(const struct translator *t, const uint8_t *page, uint32_t offset,
                         unsigned mode, uint64_t lines)
{
    uintptr_t guest = (uintptr_t)page + offset;
    const struct unit *unit;

    if ((lines >> (offset >> LINE_SHIFT) & 1) == 0 || (mode & UNIT_MODE_SINGLE) != 0 ||
        !code_cache_is_head(t, guest)) {
        return false;
    }
    unit = code_cache_find(t, guest, mode, 0);
    return unit != NULL && (unit->first_line & UNIT_ODD) == 0;
}

int trace_build(const struct translator *t, const uint8_t *page, uint32_t offset,
                const uint8_t *next_page, unsigned mode, struct trace *trace)
{
    bool is_hot = code_cache_is_hot(t, (uintptr_t)page + offset);
    uint64_t lines = code_cache_lines(t, (uintptr_t)page);
    bool more = true;
    unsigned branches = 0;

    trace->count = 0;
    trace->lines = 0;
    trace->mode = (uint8_t)mode;
    trace->crosses = false;
    trace->falls = false;
    trace->end_offset = offset;
    while (more && trace->count < UNIT_INSNS_MAX && offset < GMEM_PAGE_BYTES) {
        struct insn *insn = &trace->insns[trace->count].insn;
        bool crosses;
        int r = decode_at(page, offset, trace->count == 0 ? next_page : NULL, insn, &crosses);

        if (trace->count > 0 && (crosses || is_elsewhere(t, page, offset, trace->mode, lines))) {
            break;
        }
        if (r == -ENODATA) {
            return -EAGAIN;
        }
        if (r != 0) {
            add_undecodable(trace, offset);
            more = false;
            break;
        }
        trace->crosses = crosses;
        more = add_insn(t, page, trace, &offset);
        branches += trace->insns[trace->count - 1].role == TRACE_BRANCH ? 1 : 0;
        if (crosses || (branches == TRACE_BRANCHES_MAX && !is_hot)) {
            break;
        }
    }
    trace->falls = more;
    find_live_flags(trace);
    find_next_uses(trace);
    return 0;
}
