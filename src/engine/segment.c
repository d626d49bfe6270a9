/*
 * Segment descriptors: reading, checking and loading them (SDM 3A 3.4, 5.5-5.7),
 * and the instructions that do nothing else.
 */
#include "engine/interp.h"

#include <string.h>

#define DESC_ACCESSED 0x01u
#define DESC_BUSY 0x02u
#define TYPE_CODE 0x8u
#define TYPE_CONFORMING 0x4u /* of code */
#define TYPE_WRITABLE 0x2u   /* of data; of code: readable */

#define SYS_TSS16 1u
#define SYS_LDT 2u
#define SYS_TSS32 9u
#define SYS_BUSY_TSS32 11u
#define SYS_CALL_GATE 12u

static int raise_selector(struct engine_vcpu *v, enum x86_vector vector, uint16_t selector,
                          unsigned ext)
{
    return engine_raise_error(v, vector, (selector & 0xfffcu) | ext);
}

static void parse_segment(uint16_t selector, uint64_t raw, struct segment_descriptor *desc)
{
    uint32_t high = (uint32_t)(raw >> 32);
    uint32_t limit = (uint32_t)(raw & 0xffff) | (high & 0xf0000);

    memset(&desc->seg, 0, sizeof(desc->seg));
    desc->seg.selector = selector;
    desc->seg.access_rights = ((high >> 8) & 0xff) | ((high >> 8) & 0xf000);
    desc->seg.limit = (high & (1u << 23)) != 0 ? (limit << 12) | 0xfff : limit;
    desc->seg.base = ((raw >> 16) & 0xffffff) | (high & 0xff000000);
    desc->type = (high >> 8) & 0xf;
    desc->dpl = (high >> 13) & 3;
}

static void parse_gate(uint64_t raw, struct segment_descriptor *desc)
{
    desc->gate_selector = (uint16_t)(raw >> 16);
    desc->gate_offset = (raw & 0xffff) | ((raw >> 32) & 0xffff0000u);
    desc->gate_count = (unsigned)(raw >> 32) & 0x1f;
    if (desc->type < 8) {
        desc->gate_offset &= 0xffff; /* a 16-bit gate */
    }
}

int segment_read(struct engine_vcpu *v, uint16_t selector, enum x86_vector vector, unsigned ext,
                 struct segment_descriptor *ret_desc)
{
    uint64_t base = v->st.gdtr.base;
    uint64_t limit = v->st.gdtr.limit;
    uint64_t raw[2] = {0};
    unsigned offset = selector & 0xfff8u;
    int r;

    if ((selector & 4) != 0) {
        const struct x86_segment *ldt = &v->st.seg[X86_LDTR];

        if ((ldt->access_rights & X86_AR_UNUSABLE) != 0) {
            return raise_selector(v, vector, selector, ext);
        }
        base = ldt->base;
        limit = ldt->limit;
    }
    if (offset + 7u > limit) {
        return raise_selector(v, vector, selector, ext);
    }
    r = mmu_read(v, base + offset, &raw[0], 8, interp_system_mode(v));
    if (r != 0) {
        return r;
    }
    parse_segment(selector, raw[0], ret_desc);
    ret_desc->address = base + offset;
    if ((ret_desc->seg.access_rights & X86_AR_S) == 0) {
        parse_gate(raw[0], ret_desc);
        if (interp_is_long(v)) {
            /* System descriptors are 16 bytes there (SDM 3A 3.5). */
            if (offset + 15u > limit) {
                return raise_selector(v, vector, selector, ext);
            }
            r = mmu_read(v, base + offset + 8, &raw[1], 8, interp_system_mode(v));
            if (r != 0) {
                return r;
            }
            ret_desc->seg.base |= raw[1] << 32;
            ret_desc->gate_offset |= raw[1] << 32;
        }
    }
    return 0;
}

/* Sets bits in the type byte of the descriptor in memory, as one locked operation. */
static int descriptor_set(struct engine_vcpu *v, struct segment_descriptor *desc, uint8_t bits)
{
    uint8_t *host = NULL;
    int r;

    if ((desc->type & bits) == bits) {
        return 0;
    }
    r = mmu_rmw_begin(v, desc->address + 5, 1, interp_system_mode(v), &host);
    if (r != 0) {
        return r;
    }
    if (host != NULL) {
        (void)__atomic_fetch_or(host, bits, __ATOMIC_SEQ_CST);
        mmu_rmw_end(v, host, 1);
    }
    desc->type |= bits;
    desc->seg.access_rights |= bits;
    return 0;
}

int segment_mark_accessed(struct engine_vcpu *v, struct segment_descriptor *desc)
{
    return descriptor_set(v, desc, DESC_ACCESSED);
}

void segment_load_real(struct engine_vcpu *v, unsigned seg, uint16_t selector)
{
    struct x86_segment *s = &v->st.seg[seg];

    s->selector = selector;
    s->base = (uint64_t)selector << 4;
    if (interp_is_vm86(v)) {
        s->limit = 0xffff;
        s->access_rights = X86_AR_P | X86_AR_S | (3u << X86_AR_DPL_SHIFT) | 3;
    } else {
        /* Limit and size of an earlier protected-mode load stay (SDM 3A 9.9.2). */
        s->access_rights = (s->access_rights & (X86_AR_DB | X86_AR_G)) | X86_AR_P | X86_AR_S | 3;
    }
}

static void load_null(struct engine_vcpu *v, unsigned seg, uint16_t selector)
{
    struct x86_segment *s = &v->st.seg[seg];

    memset(s, 0, sizeof(*s));
    s->selector = selector;
    s->access_rights = X86_AR_UNUSABLE;
}

void segment_set_null_ss(struct engine_vcpu *v, unsigned cpl)
{
    load_null(v, X86_SS, (uint16_t)cpl);
    v->st.seg[X86_SS].access_rights |= cpl << X86_AR_DPL_SHIFT;
}

int segment_check_stack(struct engine_vcpu *v, uint16_t selector, unsigned cpl,
                        enum x86_vector vector, unsigned ext, struct segment_descriptor *ret_desc)
{
    uint32_t ar;
    int r = segment_read(v, selector, vector, ext, ret_desc);

    if (r != 0) {
        return r;
    }
    ar = ret_desc->seg.access_rights;
    if ((selector & 3u) != cpl || ret_desc->dpl != cpl ||
        (ar & (X86_AR_S | TYPE_CODE | TYPE_WRITABLE)) != (X86_AR_S | TYPE_WRITABLE)) {
        return raise_selector(v, vector, selector, ext);
    }
    if ((ar & X86_AR_P) == 0) {
        return raise_selector(v, X86_VEC_SS, selector, ext);
    }
    return 0;
}

static int load_ss(struct engine_vcpu *v, uint16_t selector)
{
    unsigned cpl = vcpu_state_cpl(&v->st);
    struct segment_descriptor desc = {0};
    int r;

    if ((selector & 0xfffcu) == 0) {
        if (interp_is_64(v) && cpl < 3 && (selector & 3u) == cpl) {
            segment_set_null_ss(v, cpl);
            return 0;
        }
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    r = segment_check_stack(v, selector, cpl, X86_VEC_GP, 0, &desc);
    if (r == 0) {
        r = segment_mark_accessed(v, &desc);
    }
    if (r == 0) {
        v->st.seg[X86_SS] = desc.seg;
    }
    return r;
}

int segment_load(struct engine_vcpu *v, unsigned seg, uint16_t selector)
{
    struct segment_descriptor desc = {0};
    unsigned cpl = vcpu_state_cpl(&v->st);
    unsigned rpl = selector & 3u;
    int r;

    if (!interp_is_protected(v) || interp_is_vm86(v)) {
        segment_load_real(v, seg, selector);
        return 0;
    }
    if (seg == X86_SS) {
        return load_ss(v, selector);
    }
    if ((selector & 0xfffcu) == 0) {
        load_null(v, seg, selector);
        return 0;
    }
    r = segment_read(v, selector, X86_VEC_GP, 0, &desc);
    if (r != 0) {
        return r;
    }

    bool is_code = (desc.type & TYPE_CODE) != 0;
    bool is_conforming = is_code && (desc.type & TYPE_CONFORMING) != 0;

    if ((desc.seg.access_rights & X86_AR_S) == 0 || (is_code && (desc.type & TYPE_WRITABLE) == 0) ||
        (!is_conforming && (rpl > desc.dpl || cpl > desc.dpl))) {
        return raise_selector(v, X86_VEC_GP, selector, 0);
    }
    if ((desc.seg.access_rights & X86_AR_P) == 0) {
        return raise_selector(v, X86_VEC_NP, selector, 0);
    }
    r = segment_mark_accessed(v, &desc);
    if (r == 0) {
        v->st.seg[seg] = desc.seg;
    }
    return r;
}

void segment_set_cs(struct engine_vcpu *v, const struct segment_descriptor *desc, unsigned cpl)
{
    v->st.seg[X86_CS] = desc->seg;
    v->st.seg[X86_CS].selector = (uint16_t)((desc->seg.selector & 0xfffcu) | cpl);
}

void segment_drop_privileged(struct engine_vcpu *v, unsigned cpl)
{
    static const uint8_t segs[] = {X86_ES, X86_DS, X86_FS, X86_GS};

    for (unsigned i = 0; i < ARRAY_LEN(segs); i++) {
        const struct x86_segment *s = &v->st.seg[segs[i]];
        unsigned dpl = (s->access_rights >> X86_AR_DPL_SHIFT) & 3;
        bool is_conforming =
            (s->access_rights & (TYPE_CODE | TYPE_CONFORMING)) == (TYPE_CODE | TYPE_CONFORMING);

        if ((s->access_rights & X86_AR_UNUSABLE) == 0 && !is_conforming && dpl < cpl) {
            load_null(v, segs[i], 0);
        }
    }
}

int segment_tss_stack(struct engine_vcpu *v, unsigned cpl, unsigned ist, unsigned ext,
                      uint16_t *ret_ss, uint64_t *ret_sp)
{
    const struct x86_segment *tr = &v->st.seg[X86_TR];
    unsigned bytes = 4;
    unsigned offset = 4 + 8 * cpl;
    uint64_t sp = 0;
    uint64_t ss = cpl;
    int r;

    if (interp_is_long(v)) {
        bytes = 8;
        offset = ist != 0 ? 36 + 8 * (ist - 1) : offset;
    } else if ((tr->access_rights & X86_AR_TYPE) < 8) {
        bytes = 2;
        offset = 2 + 4 * cpl;
    }
    if ((tr->access_rights & X86_AR_UNUSABLE) != 0 ||
        offset + (bytes == 8 ? 8 : bytes + 2) - 1 > tr->limit) {
        return raise_selector(v, X86_VEC_TS, tr->selector, ext);
    }
    r = mmu_read(v, tr->base + offset, &sp, bytes, interp_system_mode(v));
    if (r == 0 && bytes != 8) {
        ss = 0;
        r = mmu_read(v, tr->base + offset + bytes, &ss, 2, interp_system_mode(v));
    }
    if (r == 0) {
        *ret_sp = sp;
        *ret_ss = (uint16_t)ss;
    }
    return r;
}

int segment_op_mov_to(struct engine_vcpu *v, const struct insn *in)
{
    uint64_t selector = 0;
    int r;

    if (in->reg_seg == X86_CS || in->reg_seg > X86_GS) {
        return engine_raise(v, X86_VEC_UD);
    }
    r = interp_load_rm(v, in, 2, &selector);
    if (r == 0) {
        r = segment_load(v, in->reg_seg, (uint16_t)selector);
    }
    if (r == 0 && in->reg_seg == X86_SS) {
        v->st.events.mov_ss_shadow = true;
    }
    return r;
}

int segment_op_mov_from(struct engine_vcpu *v, const struct insn *in)
{
    if (in->reg_seg > X86_GS) {
        return engine_raise(v, X86_VEC_UD);
    }
    return interp_store_rm(v, in, in->rm != INSN_REG_NONE ? in->opsize_bytes : 2,
                           v->st.seg[in->reg_seg].selector);
}

int segment_op_push(struct engine_vcpu *v, const struct insn *in)
{
    struct interp_stack stack;
    int r;

    unsigned bytes = in->opsize_bytes;

    interp_stack_init(v, &stack);
    if (bytes == 4) {
        /* Room for four bytes, of which CPUs write two (SDM 2B PUSH). */
        stack.sp = (stack.sp & ~stack.mask) | ((stack.sp - 2) & stack.mask);
        bytes = 2;
    }
    r = interp_push(v, &stack, bytes, v->st.seg[in->reg_seg].selector);
    if (r == 0) {
        interp_stack_commit(v, &stack);
    }
    return r;
}

int segment_op_pop(struct engine_vcpu *v, const struct insn *in)
{
    struct interp_stack stack;
    uint64_t selector = 0;
    int r;

    interp_stack_init(v, &stack);
    r = interp_pop(v, &stack, in->opsize_bytes, &selector);
    if (r == 0) {
        r = segment_load(v, in->reg_seg, (uint16_t)selector);
    }
    if (r == 0) {
        interp_stack_commit(v, &stack);
        v->st.events.mov_ss_shadow = in->reg_seg == X86_SS;
    }
    return r;
}

int segment_op_load_far(struct engine_vcpu *v, const struct insn *in)
{
    uint64_t ea = interp_ea(v, in);
    uint64_t offset = 0;
    uint64_t selector = 0;
    int r = interp_load(v, in->seg, ea, in->opsize_bytes, &offset);

    if (r == 0) {
        r = interp_load(v, in->seg, (ea + in->opsize_bytes) & interp_mask(in->addrsize_bytes), 2,
                        &selector);
    }
    if (r == 0) {
        r = segment_load(v, in->reg_seg, (uint16_t)selector);
    }
    if (r == 0) {
        interp_set_reg(v, in, in->reg, in->opsize_bytes, offset);
    }
    return r;
}

/* The operand of LLDT and LTR after the checks both share. */
static int system_selector(struct engine_vcpu *v, const struct insn *in, uint16_t *ret_selector)
{
    uint64_t selector = 0;
    int r;

    if (!interp_is_protected(v) || interp_is_vm86(v)) {
        return engine_raise(v, X86_VEC_UD);
    }
    if (vcpu_state_cpl(&v->st) != 0) {
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    r = interp_load_rm(v, in, 2, &selector);
    *ret_selector = (uint16_t)selector;
    return r;
}

static int read_system(struct engine_vcpu *v, uint16_t selector, unsigned type, unsigned other_type,
                       struct segment_descriptor *desc)
{
    int r;

    if ((selector & 4) != 0) {
        return raise_selector(v, X86_VEC_GP, selector, 0);
    }
    r = segment_read(v, selector, X86_VEC_GP, 0, desc);
    if (r != 0) {
        return r;
    }
    if ((desc->seg.access_rights & X86_AR_S) != 0 ||
        (desc->type != type && (interp_is_long(v) || desc->type != other_type)) ||
        !mmu_is_canonical(v, desc->seg.base)) {
        return raise_selector(v, X86_VEC_GP, selector, 0);
    }
    if ((desc->seg.access_rights & X86_AR_P) == 0) {
        return raise_selector(v, X86_VEC_NP, selector, 0);
    }
    return 0;
}

int segment_op_lldt(struct engine_vcpu *v, const struct insn *in)
{
    struct segment_descriptor desc = {0};
    uint16_t selector = 0;
    int r = system_selector(v, in, &selector);

    if (r != 0) {
        return r;
    }
    if ((selector & 0xfffcu) == 0) {
        load_null(v, X86_LDTR, selector);
        return 0;
    }
    r = read_system(v, selector, SYS_LDT, SYS_LDT, &desc);
    if (r == 0) {
        v->st.seg[X86_LDTR] = desc.seg;
    }
    return r;
}

int segment_op_ltr(struct engine_vcpu *v, const struct insn *in)
{
    struct segment_descriptor desc = {0};
    uint16_t selector = 0;
    int r = system_selector(v, in, &selector);

    if (r == 0 && (selector & 0xfffcu) == 0) {
        r = engine_raise_error(v, X86_VEC_GP, 0);
    }
    if (r == 0) {
        r = read_system(v, selector, SYS_TSS32, SYS_TSS16, &desc);
    }
    if (r == 0) {
        r = descriptor_set(v, &desc, DESC_BUSY);
    }
    if (r == 0) {
        v->st.seg[X86_TR] = desc.seg;
    }
    return r;
}

int segment_op_store(struct engine_vcpu *v, const struct insn *in)
{
    unsigned seg = in->op == INSN_OP_STR ? X86_TR : X86_LDTR;

    if (!interp_is_protected(v) || interp_is_vm86(v)) {
        return engine_raise(v, X86_VEC_UD);
    }
    if ((v->st.cr4 & X86_CR4_UMIP) != 0 && vcpu_state_cpl(&v->st) != 0) {
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    return interp_store_rm(v, in, in->rm != INSN_REG_NONE ? in->opsize_bytes : 2,
                           v->st.seg[seg].selector);
}

static void set_zero_flag(struct engine_vcpu *v, bool value)
{
    v->st.rflags = (v->st.rflags & ~(uint64_t)X86_FLAG_ZF) | (value ? X86_FLAG_ZF : 0);
}

/*
 * Reads what the operand of VERR, VERW, LAR and LSL names. *ret_valid is false
 * where a load would raise #GP: these instructions clear ZF instead.
 */
static int probe(struct engine_vcpu *v, const struct insn *in, struct segment_descriptor *desc,
                 bool *ret_valid)
{
    uint64_t selector = 0;
    bool is_conforming;
    int r;

    if (!interp_is_protected(v) || interp_is_vm86(v)) {
        return engine_raise(v, X86_VEC_UD);
    }
    *ret_valid = false;
    r = interp_load_rm(v, in, 2, &selector);
    if (r != 0 || (selector & 0xfffcu) == 0) {
        return r;
    }
    r = segment_read(v, (uint16_t)selector, X86_VEC_GP, 0, desc);
    if (r == ENGINE_FAULT && v->fault.vector == X86_VEC_GP) {
        return 0;
    }
    is_conforming = (desc->seg.access_rights & X86_AR_S) != 0 &&
                    (desc->type & (TYPE_CODE | TYPE_CONFORMING)) == (TYPE_CODE | TYPE_CONFORMING);
    *ret_valid = is_conforming ||
                 (vcpu_state_cpl(&v->st) <= desc->dpl && (unsigned)(selector & 3) <= desc->dpl);
    return r;
}

int segment_op_verify(struct engine_vcpu *v, const struct insn *in)
{
    struct segment_descriptor desc = {0};
    bool valid = false;
    int r = probe(v, in, &desc, &valid);

    if (r != 0) {
        return r;
    }
    if ((desc.seg.access_rights & X86_AR_S) == 0) {
        valid = false;
    } else if (in->op == INSN_OP_VERW) {
        valid = valid && (desc.type & (TYPE_CODE | TYPE_WRITABLE)) == TYPE_WRITABLE;
    } else {
        valid = valid && ((desc.type & TYPE_CODE) == 0 || (desc.type & TYPE_WRITABLE) != 0);
    }
    set_zero_flag(v, valid);
    return 0;
}

static bool system_type_visible(const struct engine_vcpu *v, unsigned type, bool is_lar)
{
    switch (type) {
    case SYS_LDT:
    case SYS_TSS32:
    case SYS_BUSY_TSS32:
        return true;
    case SYS_CALL_GATE:
        return is_lar;
    case 1:
    case 3:
        return !interp_is_long(v);
    case 4:
    case 5:
        return is_lar && !interp_is_long(v);
    default:
        return false;
    }
}

int segment_op_lar_lsl(struct engine_vcpu *v, const struct insn *in)
{
    struct segment_descriptor desc = {0};
    bool is_lar = in->op == INSN_OP_LAR;
    bool valid = false;
    uint64_t value;
    int r = probe(v, in, &desc, &valid);

    if (r != 0) {
        return r;
    }
    if ((desc.seg.access_rights & X86_AR_S) == 0) {
        valid = valid && system_type_visible(v, desc.type, is_lar);
    }
    set_zero_flag(v, valid);
    if (!valid) {
        return 0;
    }
    value = desc.seg.limit;
    if (is_lar) {
        value = ((desc.seg.access_rights & 0xff) << 8) | ((desc.seg.access_rights & 0xf000u) << 8);
    }
    interp_set_reg(v, in, in->reg, in->opsize_bytes, value);
    return 0;
}

int segment_op_arpl(struct engine_vcpu *v, const struct insn *in)
{
    uint64_t selector = 0;
    unsigned rpl = (unsigned)v->st.gpr[in->reg & 15] & 3;
    bool raise_rpl;
    int r;

    if (!interp_is_protected(v) || interp_is_vm86(v)) {
        return engine_raise(v, X86_VEC_UD);
    }
    r = interp_load_rm(v, in, 2, &selector);
    raise_rpl = (selector & 3) < rpl;
    if (r == 0 && raise_rpl) {
        r = interp_store_rm(v, in, 2, (selector & ~3ull) | rpl);
    }
    if (r == 0) {
        set_zero_flag(v, raise_rpl);
    }
    return r;
}

int segment_op_swapgs(struct engine_vcpu *v, const struct insn *in)
{
    uint64_t base = v->st.seg[X86_GS].base;

    (void)in;
    if (vcpu_state_cpl(&v->st) != 0) {
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    v->st.seg[X86_GS].base = v->st.kernel_gs_base;
    v->st.kernel_gs_base = base;
    return 0;
}

int segment_op_fsgsbase(struct engine_vcpu *v, const struct insn *in)
{
    uint64_t value;

    if (!interp_is_64(v) || (v->st.cr4 & X86_CR4_FSGSBASE) == 0) {
        return engine_raise(v, X86_VEC_UD);
    }
    if (in->op == INSN_OP_RDFSBASE) {
        interp_set_reg(v, in, in->rm, in->opsize_bytes, v->st.seg[in->reg_seg].base);
        return 0;
    }
    value = interp_reg(v, in, in->rm, in->opsize_bytes);
    if (!mmu_is_canonical(v, value)) {
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    v->st.seg[in->reg_seg].base = value;
    return 0;
}
