/*
 * String instructions: one element, or with REP a run of elements that lie
 * within one page on each side. A run ends at a page, so interrupts are looked
 * for often enough; RCX, RSI and RDI say where to go on (SDM 2B REP).
 */
#include "engine/interp.h"

#include <string.h>

/* Elements of one run, so that the wait for an interrupt is bounded. */
#define RUN_MAX 4096u

struct string_ctx {
    unsigned bytes; /* of an element */
    unsigned addr_bytes;
    bool rep;
    uint64_t count; /* elements still to do, at least 1 */
    int64_t step;
    enum mmu_mode mode;
};

static uint64_t reg_address(const struct engine_vcpu *v, const struct string_ctx *c, unsigned reg)
{
    return v->st.gpr[reg] & interp_mask(c->addr_bytes);
}

static void advance(struct engine_vcpu *v, const struct insn *in, const struct string_ctx *c,
                    unsigned reg, uint64_t elements)
{
    interp_set_reg(v, in, reg, c->addr_bytes, v->st.gpr[reg] + (uint64_t)c->step * elements);
}

/* Elements from va in the direction of DF that stay within its page. */
static uint64_t run_length(const struct string_ctx *c, uint64_t va)
{
    uint64_t offset = va & (GMEM_PAGE_BYTES - 1);
    unsigned shift = (unsigned)__builtin_ctz(c->bytes);
    uint64_t fit;

    if (offset + c->bytes > GMEM_PAGE_BYTES) {
        return 1;
    }
    fit = c->step > 0 ? (GMEM_PAGE_BYTES - offset) >> shift : (offset >> shift) + 1;
    if (fit > c->count) {
        fit = c->count;
    }
    return fit > RUN_MAX ? RUN_MAX : fit;
}

/* How many elements may be done as one run at ea of seg; checks the segment for them all. */
static int run_linear(struct engine_vcpu *v, const struct string_ctx *c, unsigned seg, uint64_t ea,
                      enum mmu_access access, uint64_t *run, uint64_t *ret_va)
{
    int r = interp_linear(v, seg, ea, c->bytes, access, ret_va);
    uint64_t fit;
    uint64_t last;
    uint64_t unused = 0;

    if (r != 0) {
        return r;
    }
    fit = run_length(c, *ret_va);
    last = ea + (uint64_t)c->step * (fit - 1);
    /* The address must not wrap and all elements must lie in the segment, else one at a time. */
    if (fit > 1 && (last > interp_mask(c->addr_bytes) || (c->step > 0 ? last < ea : last > ea) ||
                    interp_linear(v, seg, last, c->bytes, access, &unused) != 0)) {
        fit = 1;
    }
    if (fit < *run) {
        *run = fit;
    }
    return 0;
}

static void done(struct engine_vcpu *v, const struct insn *in, const struct string_ctx *c,
                 uint64_t elements)
{
    if (!c->rep) {
        return;
    }
    interp_set_reg(v, in, X86_RCX, c->addr_bytes, c->count - elements);
    if (c->count != elements) {
        v->next_rip = v->st.rip; /* more to do */
    }
}

/* Element by element on host memory: overlap and direction behave as on the CPU. */
static void host_movs(const struct string_ctx *c, uint8_t *dst, const uint8_t *src, uint64_t n)
{
    if (c->step > 0) {
        switch (c->bytes) {
        case 1:
            __asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
            break;
        case 2:
            __asm__ volatile("rep movsw" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
            break;
        case 4:
            __asm__ volatile("rep movsl" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
            break;
        default:
            __asm__ volatile("rep movsq" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
            break;
        }
        return;
    }
    for (; n > 0; n--) {
        uint64_t element = 0;

        memcpy(&element, src, c->bytes);
        memcpy(dst, &element, c->bytes);
        src -= c->bytes;
        dst -= c->bytes;
    }
}

static void host_stos(const struct string_ctx *c, uint8_t *dst, uint64_t value, uint64_t n)
{
    if (c->step > 0) {
        switch (c->bytes) {
        case 1:
            __asm__ volatile("rep stosb" : "+D"(dst), "+c"(n) : "a"(value) : "memory");
            break;
        case 2:
            __asm__ volatile("rep stosw" : "+D"(dst), "+c"(n) : "a"(value) : "memory");
            break;
        case 4:
            __asm__ volatile("rep stosl" : "+D"(dst), "+c"(n) : "a"(value) : "memory");
            break;
        default:
            __asm__ volatile("rep stosq" : "+D"(dst), "+c"(n) : "a"(value) : "memory");
            break;
        }
        return;
    }
    for (; n > 0; n--) {
        memcpy(dst, &value, c->bytes);
        dst -= c->bytes;
    }
}

/* Bytes that a run of n elements reaches below its first one. */
static uint64_t run_back(const struct string_ctx *c, uint64_t n)
{
    return c->step > 0 ? 0 : (n - 1) * c->bytes;
}

/* The host address of the first element of a run to be written at va, within one page. */
static int write_begin(struct engine_vcpu *v, const struct string_ctx *c, uint64_t va, uint64_t run,
                       uint8_t **ret_host)
{
    uint8_t *host = NULL;
    int r = mmu_rmw_begin(v, va - run_back(c, run), (unsigned)(run * c->bytes), c->mode, &host);

    if (r == ENGINE_FAULT && run_back(c, run) != 0) {
        v->fault.cr2 = va; /* the first element's, of a run within one page */
    }
    *ret_host = host == NULL ? NULL : host + run_back(c, run);
    return r;
}

static int op_movs(struct engine_vcpu *v, const struct insn *in, struct string_ctx *c)
{
    uint64_t run = c->count;
    uint64_t src = 0;
    uint64_t dst = 0;
    const uint8_t *from = NULL;
    uint8_t *to = NULL;
    uint64_t value = 0;
    int r = run_linear(v, c, in->seg, reg_address(v, c, X86_RSI), MMU_READ, &run, &src);

    if (r == 0) {
        r = mmu_read_begin(v, src, c->bytes, c->mode, &from);
    }
    if (r == 0 && from == NULL) {
        /* Its faults come before those of the destination. */
        r = mmu_read(v, src, &value, c->bytes, c->mode);
        v->io.cursor = 0;
    }
    if (r == 0) {
        r = run_linear(v, c, X86_ES, reg_address(v, c, X86_RDI), MMU_WRITE, &run, &dst);
    }
    if (r == 0) {
        r = write_begin(v, c, dst, run, &to);
    }
    if (r != 0) {
        return r;
    }
    if (from != NULL && to != NULL && !v->data_breakpoints) {
        host_movs(c, to, from, run);
        mmu_rmw_end(v, to - run_back(c, run), (unsigned)(run * c->bytes));
    } else {
        run = 1;
        r = mmu_read(v, src, &value, c->bytes, c->mode);
        if (r == 0) {
            r = mmu_write(v, dst, &value, c->bytes, c->mode);
        }
    }
    if (r == 0) {
        advance(v, in, c, X86_RSI, run);
        advance(v, in, c, X86_RDI, run);
        done(v, in, c, run);
    }
    return r;
}

static int op_stos(struct engine_vcpu *v, const struct insn *in, struct string_ctx *c)
{
    uint64_t run = c->count;
    uint64_t dst = 0;
    uint8_t *to = NULL;
    int r = run_linear(v, c, X86_ES, reg_address(v, c, X86_RDI), MMU_WRITE, &run, &dst);

    if (r == 0) {
        r = write_begin(v, c, dst, run, &to);
    }
    if (r != 0) {
        return r;
    }
    if (to != NULL && !v->data_breakpoints) {
        host_stos(c, to, v->st.gpr[X86_RAX], run);
        mmu_rmw_end(v, to - run_back(c, run), (unsigned)(run * c->bytes));
    } else {
        run = 1;
        r = mmu_write(v, dst, &v->st.gpr[X86_RAX], c->bytes, c->mode);
    }
    if (r == 0) {
        advance(v, in, c, X86_RDI, run);
        done(v, in, c, run);
    }
    return r;
}

static int op_lods(struct engine_vcpu *v, const struct insn *in, struct string_ctx *c)
{
    uint64_t value = 0;
    int r = interp_load(v, in->seg, reg_address(v, c, X86_RSI), c->bytes, &value);

    if (r == 0) {
        interp_set_reg(v, in, X86_RAX, c->bytes, value);
        advance(v, in, c, X86_RSI, 1);
        done(v, in, c, 1);
    }
    return r;
}

/* The flags of CMP a, b of the given size, from the host. */
static uint64_t compare_flags(uint64_t a, uint64_t b, unsigned bytes)
{
    unsigned shift = 64 - 8 * bytes;
    uint64_t flags;
    uint64_t x = a << shift;
    uint64_t y = b << shift;

    __asm__("cmpq %2, %1\n\tlahf\n\tseto %%al" : "=&a"(flags) : "r"(x), "r"(y) : "cc");
    flags = ((flags >> 8) & 0xff) | ((flags & 1) != 0 ? X86_FLAG_OF : 0);
    if (bytes < 8) {
        /* PF and AF look at the low byte, which the shift has moved. */
        uint8_t low = (uint8_t)(a - b);

        flags &= ~(uint64_t)(X86_FLAG_PF | X86_FLAG_AF);
        flags |= __builtin_parity(low) == 0 ? X86_FLAG_PF : 0;
        flags |= (a & 0xf) < (b & 0xf) ? X86_FLAG_AF : 0;
    }
    return flags;
}

/* CMPS and SCAS: on and on until the condition of REPE/REPNE fails, within RUN_MAX. */
static int op_compare(struct engine_vcpu *v, const struct insn *in, struct string_ctx *c)
{
    bool is_cmps = in->op == INSN_OP_CMPS;
    bool until_equal = (in->flags & INSN_REPNE) != 0;
    uint64_t limit = c->count < 64 ? c->count : 64;
    const uint64_t rflags = v->st.rflags;

    for (uint64_t i = 0; i < limit; i++) {
        uint64_t a = v->st.gpr[X86_RAX];
        uint64_t b = 0;
        int r = interp_load(v, X86_ES, reg_address(v, c, X86_RDI), c->bytes, &b);

        if (r == 0 && is_cmps) {
            r = interp_load(v, in->seg, reg_address(v, c, X86_RSI), c->bytes, &a);
        }
        if (r != 0) {
            v->st.rflags = rflags; /* a fault restores the flags (SDM 2B REP) */
            return r;
        }
        interp_set_arith(v, compare_flags(a, b, c->bytes));
        if (is_cmps) {
            advance(v, in, c, X86_RSI, 1);
        }
        advance(v, in, c, X86_RDI, 1);
        v->io.done = 0;
        v->io.cursor = 0;
        if (!c->rep) {
            return 0;
        }
        c->count--;
        interp_set_reg(v, in, X86_RCX, c->addr_bytes, c->count);
        if (((v->st.rflags & X86_FLAG_ZF) != 0) == until_equal) {
            return 0;
        }
    }
    if (c->count != 0) {
        v->next_rip = v->st.rip;
    }
    return 0;
}

static bool begin(struct engine_vcpu *v, const struct insn *in, struct string_ctx *c)
{
    c->bytes = in->opsize_bytes;
    c->addr_bytes = in->addrsize_bytes;
    c->rep = (in->flags & (INSN_REP | INSN_REPNE)) != 0;
    c->count = c->rep ? v->st.gpr[X86_RCX] & interp_mask(c->addr_bytes) : 1;
    c->step = (v->st.rflags & X86_FLAG_DF) != 0 ? -(int64_t)c->bytes : (int64_t)c->bytes;
    c->mode = mmu_current_mode(v);
    return c->count != 0;
}

/* 32-bit registers are written even when nothing was done: Intel CPUs clear the upper halves of
 * RCX and, for MOVS and STOS, of the addresses. */
static void finish_empty(struct engine_vcpu *v, const struct insn *in, const struct string_ctx *c)
{
    if (c->addr_bytes != 4) {
        return;
    }
    interp_set_reg(v, in, X86_RCX, 4, v->st.gpr[X86_RCX]);
    if (in->op == INSN_OP_MOVS || in->op == INSN_OP_STOS) {
        interp_set_reg(v, in, X86_RDI, 4, v->st.gpr[X86_RDI]);
    }
    if (in->op == INSN_OP_MOVS) {
        interp_set_reg(v, in, X86_RSI, 4, v->st.gpr[X86_RSI]);
    }
}

static int string_ops(struct engine_vcpu *v, const struct insn *in, struct string_ctx *c)
{
    switch (in->op) {
    case INSN_OP_MOVS:
        return op_movs(v, in, c);
    case INSN_OP_STOS:
        return op_stos(v, in, c);
    case INSN_OP_LODS:
        return op_lods(v, in, c);
    default:
        return op_compare(v, in, c);
    }
}

int string_op(struct engine_vcpu *v, const struct insn *in)
{
    struct string_ctx c = {0};
    int r;

    if (!begin(v, in, &c)) {
        finish_empty(v, in, &c);
        return 0;
    }
    r = string_ops(v, in, &c);
    if (r == ENGINE_FAULT && c.rep) {
        finish_empty(v, in, &c);
    }
    return r;
}

static int op_ins(struct engine_vcpu *v, const struct insn *in, const struct string_ctx *c)
{
    uint64_t va = 0;
    uint64_t data = 0;
    struct mmu_page page;
    int r = interp_linear(v, X86_ES, reg_address(v, c, X86_RDI), c->bytes, MMU_WRITE, &va);

    /* The destination is checked first: what a port gave must not get lost. */
    if (r == 0) {
        r = mmu_fill(v, va, MMU_WRITE, c->mode, &page);
    }
    if (r == 0) {
        r = engine_io(v, VMEXIT_PIO, v->st.gpr[X86_RDX] & 0xffff, c->bytes, false, &data);
    }
    if (r == 0) {
        r = mmu_write(v, va, &data, c->bytes, c->mode);
    }
    if (r == 0) {
        advance(v, in, c, X86_RDI, 1);
    }
    return r;
}

static int op_outs(struct engine_vcpu *v, const struct insn *in, const struct string_ctx *c)
{
    uint64_t data = 0;
    int r = interp_load(v, in->seg, reg_address(v, c, X86_RSI), c->bytes, &data);

    if (r == 0) {
        r = engine_io(v, VMEXIT_PIO, v->st.gpr[X86_RDX] & 0xffff, c->bytes, true, &data);
    }
    if (r == 0) {
        advance(v, in, c, X86_RSI, 1);
    }
    return r;
}

int string_op_io(struct engine_vcpu *v, const struct insn *in)
{
    struct string_ctx c = {0};
    bool is_empty = !begin(v, in, &c);
    int r = interp_check_port(v, (uint16_t)v->st.gpr[X86_RDX], c.bytes);

    if (is_empty || r != 0) {
        return r;
    }
    r = in->op == INSN_OP_INS ? op_ins(v, in, &c) : op_outs(v, in, &c);
    if (r == 0) {
        done(v, in, &c, 1);
    }
    return r;
}
