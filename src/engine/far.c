/*
 * Transfers that load CS: far JMP, CALL and RET, through call gates too
 * (SDM 2A CALL, JMP; 2B RET; 3A 5.8). Task gates and TSS selectors raise #GP:
 * there is no hardware task switch.
 */
#include "base/wire.h"
#include "engine/interp.h"

#include "base/log.h"

#include <string.h>

#define TYPE_CODE 0x8u
#define TYPE_CONFORMING 0x4u

#define SYS_CALL_GATE16 4u
#define SYS_CALL_GATE32 12u

static int raise_selector(struct engine_vcpu *v, enum x86_vector vector, uint16_t selector,
                          unsigned ext)
{
    return engine_raise_error(v, vector, (selector & 0xfffcu) | ext);
}

static bool is_code(const struct segment_descriptor *desc)
{
    return (desc->seg.access_rights & X86_AR_S) != 0 && (desc->type & TYPE_CODE) != 0;
}

static bool is_conforming(const struct segment_descriptor *desc)
{
    return (desc->type & TYPE_CONFORMING) != 0;
}

static bool is_64_bit(const struct engine_vcpu *v, const struct x86_segment *cs)
{
    return interp_is_long(v) && (cs->access_rights & X86_AR_L) != 0;
}

int far_check_rip(struct engine_vcpu *v, const struct x86_segment *cs, uint64_t rip, unsigned ext)
{
    bool ok = is_64_bit(v, cs) ? mmu_is_canonical(v, rip) : rip <= cs->limit;

    return ok ? 0 : engine_raise_error(v, X86_VEC_GP, ext);
}

/* L and D together are reserved in IA-32e mode; then presence. */
static int check_code_common(struct engine_vcpu *v, const struct segment_descriptor *desc,
                             unsigned ext)
{
    uint32_t ar = desc->seg.access_rights;

    if (interp_is_long(v) && (ar & (X86_AR_L | X86_AR_DB)) == (X86_AR_L | X86_AR_DB)) {
        return raise_selector(v, X86_VEC_GP, desc->seg.selector, ext);
    }
    if ((ar & X86_AR_P) == 0) {
        return raise_selector(v, X86_VEC_NP, desc->seg.selector, ext);
    }
    return 0;
}

/* JMP and CALL straight to a code segment. */
static int check_direct(struct engine_vcpu *v, const struct segment_descriptor *desc)
{
    unsigned cpl = vcpu_state_cpl(&v->st);
    unsigned rpl = desc->seg.selector & 3u;
    bool allowed = is_conforming(desc) ? desc->dpl <= cpl : rpl <= cpl && desc->dpl == cpl;

    if (!allowed) {
        return raise_selector(v, X86_VEC_GP, desc->seg.selector, 0);
    }
    return check_code_common(v, desc, 0);
}

int far_check_gate_code(struct engine_vcpu *v, uint16_t selector, unsigned ext, bool may_raise,
                        struct segment_descriptor *ret_desc, unsigned *ret_cpl)
{
    unsigned cpl = vcpu_state_cpl(&v->st);
    int r;

    if ((selector & 0xfffcu) == 0) {
        return engine_raise_error(v, X86_VEC_GP, ext);
    }
    r = segment_read(v, selector, X86_VEC_GP, ext, ret_desc);
    if (r != 0) {
        return r;
    }
    if (!is_code(ret_desc) || ret_desc->dpl > cpl ||
        (!may_raise && !is_conforming(ret_desc) && ret_desc->dpl != cpl) ||
        (interp_is_long(v) && !is_64_bit(v, &ret_desc->seg))) {
        return raise_selector(v, X86_VEC_GP, selector, ext);
    }
    *ret_cpl = is_conforming(ret_desc) ? cpl : ret_desc->dpl;
    return check_code_common(v, ret_desc, ext);
}

int far_inner_stack(struct engine_vcpu *v, unsigned cpl, unsigned ist, unsigned ext,
                    struct interp_stack *ret_stack, struct segment_descriptor *ret_ss)
{
    uint16_t selector = 0;
    uint64_t sp = 0;
    int r = segment_tss_stack(v, cpl, ist, ext, &selector, &sp);

    if (r != 0) {
        return r;
    }
    memset(ret_stack, 0, sizeof(*ret_stack));
    memset(ret_ss, 0, sizeof(*ret_ss));
    ret_stack->sp = sp;
    ret_stack->error = ext;
    ret_stack->mode = interp_system_mode(v);
    ret_stack->mask = ~0ull;
    if (interp_is_long(v)) {
        return mmu_is_canonical(v, sp) ? 0 : engine_raise_error(v, X86_VEC_SS, ext);
    }
    if ((selector & 0xfffcu) == 0) {
        return engine_raise_error(v, X86_VEC_TS, ext);
    }
    r = segment_check_stack(v, selector, cpl, X86_VEC_TS, ext, ret_ss);
    if (r == 0) {
        r = segment_mark_accessed(v, ret_ss);
    }
    ret_stack->big = (ret_ss->seg.access_rights & X86_AR_DB) != 0;
    ret_stack->mask = ret_stack->big ? 0xffffffffu : 0xffffu;
    ret_stack->base = ret_ss->seg.base;
    ret_stack->limit = ret_ss->seg.limit;
    ret_stack->checked = true;
    ret_stack->expand_down = (ret_ss->type & 0xc) == 0x4;
    ret_stack->error = (selector & 0xfffcu) | ext;
    return r;
}

void far_commit_inner_stack(struct engine_vcpu *v, unsigned cpl, const struct interp_stack *stack,
                            const struct segment_descriptor *ss)
{
    if (interp_is_long(v)) {
        segment_set_null_ss(v, cpl);
    } else {
        v->st.seg[X86_SS] = ss->seg;
    }
    interp_stack_commit(v, stack);
}

static int read_target(struct engine_vcpu *v, const struct insn *in, uint16_t *ret_selector,
                       uint64_t *ret_offset)
{
    unsigned bytes = in->opsize_bytes;
    uint64_t selector = 0;
    uint64_t ea;
    int r;

    if (in->op == INSN_OP_JMP_FAR || in->op == INSN_OP_CALL_FAR) {
        const uint8_t *imm = &in->bytes[in->imm_off];

        *ret_offset = bytes == 2 ? load_le16(imm) : load_le32(imm);
        *ret_selector = load_le16(imm + bytes);
        return 0;
    }
    ea = interp_ea(v, in);
    r = interp_load(v, in->seg, ea, bytes, ret_offset);
    if (r == 0) {
        r = interp_load(v, in->seg, (ea + bytes) & interp_mask(in->addrsize_bytes), 2, &selector);
    }
    *ret_selector = (uint16_t)selector;
    return r;
}

static bool is_call_gate(const struct engine_vcpu *v, const struct segment_descriptor *desc)
{
    return (desc->seg.access_rights & X86_AR_S) == 0 &&
           (desc->type == SYS_CALL_GATE32 || (desc->type == SYS_CALL_GATE16 && !interp_is_long(v)));
}

/* The gate itself: its DPL against CPL and RPL, and presence. */
static int check_gate(struct engine_vcpu *v, const struct segment_descriptor *gate)
{
    uint16_t selector = gate->seg.selector;

    if (!is_call_gate(v, gate)) {
        log_guest("far transfer through selector 0x%x: no task switch in hardware, raising #GP",
                  (unsigned)selector);
        return raise_selector(v, X86_VEC_GP, selector, 0);
    }
    if (gate->dpl < vcpu_state_cpl(&v->st) || gate->dpl < (selector & 3u)) {
        return raise_selector(v, X86_VEC_GP, selector, 0);
    }
    if ((gate->seg.access_rights & X86_AR_P) == 0) {
        return raise_selector(v, X86_VEC_NP, selector, 0);
    }
    return 0;
}

static int read_far_descriptor(struct engine_vcpu *v, uint16_t selector,
                               struct segment_descriptor *desc)
{
    if ((selector & 0xfffcu) == 0) {
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    return segment_read(v, selector, X86_VEC_GP, 0, desc);
}

int far_jump(struct engine_vcpu *v, const struct insn *in)
{
    struct segment_descriptor desc = {0};
    uint16_t selector = 0;
    uint64_t offset = 0;
    unsigned cpl = vcpu_state_cpl(&v->st);
    int r = read_target(v, in, &selector, &offset);

    if (r != 0) {
        return r;
    }
    if (!interp_is_protected(v) || interp_is_vm86(v)) {
        r = far_check_rip(v, &v->st.seg[X86_CS], offset, 0);
        if (r == 0) {
            segment_load_real(v, X86_CS, selector);
            v->next_rip = offset;
        }
        return r;
    }
    r = read_far_descriptor(v, selector, &desc);
    if (r == 0 && is_code(&desc)) {
        r = check_direct(v, &desc);
    } else if (r == 0) {
        struct segment_descriptor gate = desc;

        r = check_gate(v, &gate);
        offset = gate.gate_offset;
        if (r == 0) {
            r = far_check_gate_code(v, gate.gate_selector, 0, false, &desc, &cpl);
        }
    }
    if (r == 0) {
        r = far_check_rip(v, &desc.seg, offset, 0);
    }
    if (r == 0) {
        r = segment_mark_accessed(v, &desc);
    }
    if (r == 0) {
        segment_set_cs(v, &desc, cpl);
        v->next_rip = offset;
    }
    return r;
}

static int push_return(struct engine_vcpu *v, struct interp_stack *stack, unsigned bytes)
{
    int r = interp_push(v, stack, bytes, v->st.seg[X86_CS].selector);

    return r != 0 ? r : interp_push(v, stack, bytes, v->next_rip);
}

/* Parameters of a gate to an inner level: copied from the old stack, last pushed first. */
static int copy_parameters(struct engine_vcpu *v, struct interp_stack *inner, unsigned bytes,
                           unsigned count)
{
    uint64_t words[32];
    struct interp_stack outer;
    int r = 0;

    interp_stack_init(v, &outer);
    for (unsigned i = 0; i < count && r == 0; i++) {
        r = interp_pop(v, &outer, bytes, &words[i]);
    }
    for (unsigned i = count; i > 0 && r == 0; i--) {
        r = interp_push(v, inner, bytes, words[i - 1]);
    }
    return r;
}

static int call_gate(struct engine_vcpu *v, const struct segment_descriptor *gate)
{
    struct segment_descriptor code = {0};
    struct segment_descriptor ss = {0};
    struct interp_stack stack;
    unsigned cpl = 0;
    unsigned bytes = interp_is_long(v) ? 8 : gate->type == SYS_CALL_GATE16 ? 2 : 4;
    int r = check_gate(v, gate);

    if (r == 0) {
        r = far_check_gate_code(v, gate->gate_selector, 0, true, &code, &cpl);
    }
    if (r == 0) {
        r = far_check_rip(v, &code.seg, gate->gate_offset, 0);
    }
    if (r != 0) {
        return r;
    }

    bool inner = cpl != vcpu_state_cpl(&v->st);

    interp_stack_init(v, &stack);
    if (inner) {
        r = far_inner_stack(v, cpl, 0, 0, &stack, &ss);
        if (r == 0) {
            r = interp_push(v, &stack, bytes, v->st.seg[X86_SS].selector);
        }
        if (r == 0) {
            r = interp_push(v, &stack, bytes, v->st.gpr[X86_RSP]);
        }
        if (r == 0 && bytes != 8) {
            r = copy_parameters(v, &stack, bytes, gate->gate_count);
        }
    } else if (interp_is_long(v)) {
        /* From compatibility mode: the 64-bit target's stack is flat. */
        memset(&stack, 0, sizeof(stack));
        stack.sp = v->st.gpr[X86_RSP];
        stack.mask = ~0ull;
        stack.mode = mmu_current_mode(v);
    }
    if (r == 0) {
        r = push_return(v, &stack, bytes);
    }
    if (r == 0) {
        r = segment_mark_accessed(v, &code);
    }
    if (r != 0) {
        return r;
    }
    if (inner) {
        far_commit_inner_stack(v, cpl, &stack, &ss);
    } else {
        interp_stack_commit(v, &stack);
    }
    segment_set_cs(v, &code, cpl);
    v->next_rip = gate->gate_offset;
    return 0;
}

int far_call(struct engine_vcpu *v, const struct insn *in)
{
    struct segment_descriptor desc = {0};
    struct interp_stack stack;
    uint16_t selector = 0;
    uint64_t offset = 0;
    bool is_real = !interp_is_protected(v) || interp_is_vm86(v);
    int r = read_target(v, in, &selector, &offset);

    if (r == 0 && !is_real) {
        r = read_far_descriptor(v, selector, &desc);
    }
    if (r != 0) {
        return r;
    }
    if (!is_real && !is_code(&desc)) {
        return call_gate(v, &desc);
    }
    if (!is_real) {
        r = check_direct(v, &desc);
    }
    if (r == 0) {
        r = far_check_rip(v, is_real ? &v->st.seg[X86_CS] : &desc.seg, offset, 0);
    }
    interp_stack_init(v, &stack);
    if (r == 0) {
        r = push_return(v, &stack, in->opsize_bytes);
    }
    if (r == 0 && !is_real) {
        r = segment_mark_accessed(v, &desc);
    }
    if (r != 0) {
        return r;
    }
    interp_stack_commit(v, &stack);
    if (is_real) {
        segment_load_real(v, X86_CS, selector);
    } else {
        segment_set_cs(v, &desc, vcpu_state_cpl(&v->st));
    }
    v->next_rip = offset;
    return 0;
}

static int check_return_code(struct engine_vcpu *v, uint16_t cs, struct segment_descriptor *desc)
{
    unsigned rpl = cs & 3u;
    int r;

    if ((cs & 0xfffcu) == 0) {
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    r = segment_read(v, cs, X86_VEC_GP, 0, desc);
    if (r != 0) {
        return r;
    }
    if (!is_code(desc) || rpl < vcpu_state_cpl(&v->st) ||
        (is_conforming(desc) ? desc->dpl > rpl : desc->dpl != rpl)) {
        return raise_selector(v, X86_VEC_GP, cs, 0);
    }
    return check_code_common(v, desc, 0);
}

/* SS of the level returned to: null is allowed only to 64-bit code above level 3. */
static int check_return_stack(struct engine_vcpu *v, uint16_t ss, unsigned cpl,
                              const struct segment_descriptor *code,
                              struct segment_descriptor *desc)
{
    int r;

    if ((ss & 0xfffcu) == 0) {
        if (is_64_bit(v, &code->seg) && cpl != 3 && (ss & 3u) == cpl) {
            return 0;
        }
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    r = segment_check_stack(v, ss, cpl, X86_VEC_GP, 0, desc);
    return r != 0 ? r : segment_mark_accessed(v, desc);
}

static void commit_outer(struct engine_vcpu *v, uint16_t ss, uint64_t sp, unsigned cpl,
                         const struct segment_descriptor *ss_desc, unsigned release)
{
    bool is_64 = interp_is_64(v); /* CS is already the new one */

    if ((ss & 0xfffcu) == 0) {
        segment_set_null_ss(v, cpl);
    } else {
        v->st.seg[X86_SS] = ss_desc->seg;
    }
    sp += release;
    if (is_64) {
        v->st.gpr[X86_RSP] = sp;
    } else if ((v->st.seg[X86_SS].access_rights & X86_AR_DB) != 0) {
        v->st.gpr[X86_RSP] = sp & 0xffffffffu;
    } else {
        v->st.gpr[X86_RSP] = (v->st.gpr[X86_RSP] & ~0xffffull) | (sp & 0xffff);
    }
}

int far_return_protected(struct engine_vcpu *v, struct interp_stack *stack,
                         const struct far_target *target)
{
    struct segment_descriptor code = {0};
    struct segment_descriptor ss_desc = {0};
    unsigned old_cpl = vcpu_state_cpl(&v->st);
    unsigned cpl = target->cs & 3u;
    bool new_stack = target->always_stack || cpl > old_cpl;
    uint64_t sp = 0;
    uint64_t ss = 0;
    int r = check_return_code(v, target->cs, &code);

    stack->sp = (stack->sp & ~stack->mask) | ((stack->sp + target->release) & stack->mask);
    if (r == 0 && new_stack) {
        r = interp_pop(v, stack, target->bytes, &sp);
        if (r == 0) {
            r = interp_pop(v, stack, target->bytes, &ss);
        }
        if (r == 0) {
            r = check_return_stack(v, (uint16_t)ss, cpl, &code, &ss_desc);
        }
    }
    if (r == 0) {
        r = far_check_rip(v, &code.seg, target->rip, 0);
    }
    if (r == 0) {
        r = segment_mark_accessed(v, &code);
    }
    if (r != 0) {
        return r;
    }
    v->st.rflags = (v->st.rflags & ~target->flag_mask) | (target->flags & target->flag_mask);
    segment_set_cs(v, &code, cpl);
    if (new_stack) {
        commit_outer(v, (uint16_t)ss, sp, cpl, &ss_desc, cpl > old_cpl ? target->release : 0);
    } else {
        interp_stack_commit(v, stack);
    }
    if (cpl > old_cpl) {
        segment_drop_privileged(v, cpl);
    }
    v->next_rip = target->rip;
    return 0;
}

int far_return(struct engine_vcpu *v, const struct insn *in)
{
    struct interp_stack stack;
    struct far_target target = {.bytes = in->opsize_bytes};
    uint64_t cs = 0;
    int r;

    target.release = in->imm_bytes != 0 ? load_le16(&in->bytes[in->imm_off]) : 0;
    interp_stack_init(v, &stack);
    r = interp_pop(v, &stack, in->opsize_bytes, &target.rip);
    if (r == 0) {
        r = interp_pop(v, &stack, in->opsize_bytes, &cs);
    }
    if (r != 0) {
        return r;
    }
    target.cs = (uint16_t)cs;
    if (interp_is_protected(v) && !interp_is_vm86(v)) {
        return far_return_protected(v, &stack, &target);
    }
    r = far_check_rip(v, &v->st.seg[X86_CS], target.rip, 0);
    if (r == 0) {
        stack.sp = (stack.sp & ~stack.mask) | ((stack.sp + target.release) & stack.mask);
        interp_stack_commit(v, &stack);
        segment_load_real(v, X86_CS, target.cs);
        v->next_rip = target.rip;
    }
    return r;
}
