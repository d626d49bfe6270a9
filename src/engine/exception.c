/*
 * Delivery of exceptions and interrupts (SDM 3A 6.10-6.15), INT n and IRET.
 * Task gates raise #GP: there is no hardware task switch.
 */
#include "engine/interp.h"

#include "base/log.h"

#include <string.h>

#define EXT 1u /* error-code bit: the event came from outside the program */
#define IDT 2u /* error-code bit: the index is of the IDT */

#define GATE_TASK 0x5u
#define GATE_INT16 0x6u
#define GATE_TRAP16 0x7u
#define GATE_INT32 0xeu
#define GATE_TRAP32 0xfu

enum source {
    SOURCE_EXTERNAL,  /* interrupt or NMI */
    SOURCE_EXCEPTION, /* found by the processor */
    SOURCE_INT1,      /* ICEBP: no privilege check, but the return address is the next one */
    SOURCE_SOFTWARE   /* INT n, INT3, INTO */
};

struct event {
    uint8_t vector;
    enum source source;
    bool has_error;
    uint32_t error;
    uint64_t return_rip;
    uint64_t flags; /* as pushed */
};

struct idt_gate {
    unsigned type;
    unsigned dpl;
    bool present;
    uint16_t selector;
    uint64_t offset;
    unsigned ist;
};

int engine_raise(struct engine_vcpu *v, enum x86_vector vector)
{
    v->fault = (struct engine_fault){.vector = (uint8_t)vector};
    return ENGINE_FAULT;
}

int engine_raise_error(struct engine_vcpu *v, enum x86_vector vector, uint32_t error)
{
    v->fault = (struct engine_fault){.vector = (uint8_t)vector, .has_error = true, .error = error};
    return ENGINE_FAULT;
}

static uint32_t ext_bit(const struct event *event)
{
    return event->source == SOURCE_SOFTWARE ? 0 : EXT;
}

static int raise_gate(struct engine_vcpu *v, enum x86_vector vector, const struct event *event)
{
    return engine_raise_error(v, vector, event->vector * 8u + IDT + ext_bit(event));
}

/* Real mode: four bytes per vector (SDM 3B 20.1.4). */
static int deliver_real(struct engine_vcpu *v, const struct event *event)
{
    struct interp_stack stack;
    uint32_t vector = 0;
    int r = 0;

    if (event->vector * 4u + 3 > v->st.idtr.limit) {
        return engine_raise_error(v, X86_VEC_GP, event->vector * 8u + IDT + ext_bit(event));
    }
    r = mmu_read(v, v->st.idtr.base + event->vector * 4u, &vector, 4, interp_system_mode(v));
    interp_stack_init(v, &stack);
    if (r == 0) {
        r = interp_push(v, &stack, 2, event->flags);
    }
    if (r == 0) {
        r = interp_push(v, &stack, 2, v->st.seg[X86_CS].selector);
    }
    if (r == 0) {
        r = interp_push(v, &stack, 2, event->return_rip);
    }
    if (r != 0) {
        return r;
    }
    interp_stack_commit(v, &stack);
    v->st.rflags &= ~(uint64_t)(X86_FLAG_IF | X86_FLAG_TF | X86_FLAG_AC | X86_FLAG_RF);
    segment_load_real(v, X86_CS, (uint16_t)(vector >> 16));
    v->next_rip = vector & 0xffff;
    return 0;
}

static int read_gate(struct engine_vcpu *v, const struct event *event, struct idt_gate *gate)
{
    unsigned bytes = interp_is_long(v) ? 16 : 8;
    uint64_t raw[2] = {0};
    int r;

    if (event->vector * bytes + bytes - 1 > v->st.idtr.limit) {
        return raise_gate(v, X86_VEC_GP, event);
    }
    r = mmu_read(v, v->st.idtr.base + event->vector * bytes, raw, bytes, interp_system_mode(v));
    if (r != 0) {
        return r;
    }
    gate->type = (unsigned)(raw[0] >> 40) & 0x1f; /* with S, which must be clear */
    gate->dpl = (unsigned)(raw[0] >> 45) & 3;
    gate->present = ((raw[0] >> 47) & 1) != 0;
    gate->selector = (uint16_t)(raw[0] >> 16);
    gate->offset = (raw[0] & 0xffff) | ((raw[0] >> 32) & 0xffff0000u) | (raw[1] << 32);
    gate->ist = interp_is_long(v) ? (unsigned)(raw[0] >> 32) & 7 : 0;
    if (gate->type == GATE_INT16 || gate->type == GATE_TRAP16) {
        gate->offset &= 0xffff;
    }
    return 0;
}

static int check_gate(struct engine_vcpu *v, const struct event *event, const struct idt_gate *gate)
{
    bool known = gate->type == GATE_INT32 || gate->type == GATE_TRAP32 ||
                 (!interp_is_long(v) && (gate->type == GATE_INT16 || gate->type == GATE_TRAP16));

    if (gate->type == GATE_TASK && !interp_is_long(v)) {
        log_guest("vector %u goes through a task gate: no task switch in hardware, raising #GP",
                  (unsigned)event->vector);
    }
    if (!known || (event->source == SOURCE_SOFTWARE && gate->dpl < vcpu_state_cpl(&v->st))) {
        return raise_gate(v, X86_VEC_GP, event);
    }
    return gate->present ? 0 : raise_gate(v, X86_VEC_NP, event);
}

static int push_vm86_segments(struct engine_vcpu *v, struct interp_stack *stack, unsigned bytes)
{
    static const uint8_t segs[] = {X86_GS, X86_FS, X86_DS, X86_ES};
    int r = 0;

    for (unsigned i = 0; i < ARRAY_LEN(segs) && r == 0; i++) {
        r = interp_push(v, stack, bytes, v->st.seg[segs[i]].selector);
    }
    return r;
}

/* SS:RSP where the frame has them, then flags, CS:RIP and the error code. */
static int push_frame(struct engine_vcpu *v, const struct event *event, bool with_stack,
                      unsigned bytes, struct interp_stack *stack)
{
    int r = 0;

    if (with_stack) {
        if (interp_is_vm86(v)) {
            r = push_vm86_segments(v, stack, bytes);
        }
        if (r == 0) {
            r = interp_push(v, stack, bytes, v->st.seg[X86_SS].selector);
        }
        if (r == 0) {
            r = interp_push(v, stack, bytes, v->st.gpr[X86_RSP]);
        }
    }
    if (r == 0) {
        r = interp_push(v, stack, bytes, event->flags);
    }
    if (r == 0) {
        r = interp_push(v, stack, bytes, v->st.seg[X86_CS].selector);
    }
    if (r == 0) {
        r = interp_push(v, stack, bytes, event->return_rip);
    }
    if (r == 0 && event->has_error) {
        r = interp_push(v, stack, bytes, event->error);
    }
    return r;
}

/* The stack of the handler: of an inner level, an IST entry, or the current one. */
static int choose_stack(struct engine_vcpu *v, const struct event *event,
                        const struct idt_gate *gate, unsigned cpl, struct interp_stack *stack,
                        struct segment_descriptor *ss)
{
    int r = 0;

    if (cpl != vcpu_state_cpl(&v->st) || gate->ist != 0) {
        r = far_inner_stack(v, cpl, gate->ist, ext_bit(event), stack, ss);
    } else if (interp_is_long(v)) {
        memset(stack, 0, sizeof(*stack));
        stack->sp = v->st.gpr[X86_RSP];
        stack->mask = ~0ull;
        stack->mode = mmu_current_mode(v);
        stack->error = ext_bit(event);
    } else {
        interp_stack_init(v, stack);
        stack->error = ext_bit(event);
    }
    if (interp_is_long(v)) {
        stack->sp &= ~0xfull;
    }
    return r;
}

static int deliver_protected(struct engine_vcpu *v, const struct event *event)
{
    struct idt_gate gate = {0};
    struct segment_descriptor code = {0};
    struct segment_descriptor ss = {0};
    struct interp_stack stack;
    unsigned old_cpl = vcpu_state_cpl(&v->st);
    unsigned cpl = 0;
    int r = read_gate(v, event, &gate);

    if (r == 0) {
        r = check_gate(v, event, &gate);
    }
    if (r == 0) {
        r = far_check_gate_code(v, gate.selector, ext_bit(event), true, &code, &cpl);
    }
    if (r == 0 && interp_is_vm86(v) && cpl != 0) {
        r = engine_raise_error(v, X86_VEC_GP, (gate.selector & 0xfffcu) | ext_bit(event));
    }
    if (r == 0) {
        r = choose_stack(v, event, &gate, cpl, &stack, &ss);
    }
    if (r == 0) {
        r = far_check_rip(v, &code.seg, gate.offset, ext_bit(event));
    }

    unsigned bytes = interp_is_long(v) ? 8 : gate.type < 8 ? 2 : 4;

    if (r == 0) {
        r = push_frame(v, event, cpl != old_cpl || interp_is_long(v), bytes, &stack);
    }
    if (r == 0) {
        r = segment_mark_accessed(v, &code);
    }
    if (r != 0) {
        return r;
    }
    if (interp_is_vm86(v)) {
        static const uint8_t segs[] = {X86_GS, X86_FS, X86_DS, X86_ES};

        v->st.rflags &= ~(uint64_t)X86_FLAG_VM;
        for (unsigned i = 0; i < ARRAY_LEN(segs); i++) {
            memset(&v->st.seg[segs[i]], 0, sizeof(v->st.seg[0]));
            v->st.seg[segs[i]].access_rights = X86_AR_UNUSABLE;
        }
    }
    if (cpl != old_cpl) {
        far_commit_inner_stack(v, cpl, &stack, &ss);
    } else {
        interp_stack_commit(v, &stack);
    }
    v->st.rflags &= ~(uint64_t)(X86_FLAG_TF | X86_FLAG_NT | X86_FLAG_RF | X86_FLAG_VM);
    if ((gate.type & 1) == 0) {
        v->st.rflags &= ~(uint64_t)X86_FLAG_IF;
    }
    segment_set_cs(v, &code, cpl);
    v->next_rip = gate.offset;
    return 0;
}

/* One attempt. ENGINE_FAULT: v->fault is what delivery itself raised. */
static int deliver_once(struct engine_vcpu *v, struct event *event)
{
    int r;

    v->stat_exceptions++;
    if (!interp_is_protected(v)) {
        event->has_error = false;
        r = deliver_real(v, event);
    } else {
        r = deliver_protected(v, event);
    }
    if (r == 0) {
        v->st.events.sti_shadow = false;
        v->st.events.mov_ss_shadow = false;
    }
    return r;
}

/* SDM 3A table 6-5. */
static bool is_contributory(uint8_t vector)
{
    return vector == X86_VEC_DE || (vector >= X86_VEC_TS && vector <= X86_VEC_GP);
}

static bool makes_double_fault(uint8_t first, uint8_t second)
{
    if (first == X86_VEC_PF) {
        return second == X86_VEC_PF || is_contributory(second);
    }
    return is_contributory(first) && is_contributory(second);
}

static int shutdown_vcpu(struct engine_vcpu *v)
{
    log_guest("vCPU %u: triple fault at rip 0x%llx", v->base.index, (unsigned long long)v->st.rip);
    memset(&v->st.events, 0, sizeof(v->st.events));
    v->exit->reason = VMEXIT_SHUTDOWN;
    return ENGINE_EXIT;
}

/* The flags as a frame holds them: faults resume their instruction (SDM 3B 17.3.1.1). */
static uint64_t frame_flags(const struct engine_vcpu *v, const struct engine_fault *fault)
{
    bool is_trap = fault->vector == X86_VEC_DB || fault->vector == X86_VEC_BP ||
                   fault->vector == X86_VEC_OF || fault->vector == X86_VEC_DF ||
                   fault->vector == X86_VEC_MC;

    return is_trap ? v->st.rflags : v->st.rflags | X86_FLAG_RF;
}

static void remember(struct engine_vcpu *v, const struct engine_fault *fault)
{
    v->st.events.exception_pending = true;
    v->st.events.exception_vector = fault->vector;
    v->st.events.exception_has_error = fault->has_error;
    v->st.events.exception_error = fault->error;
}

static void note_origin(struct engine_vcpu *v)
{
    if (vcpu_state_cpl(&v->st) == 3) {
        native_user_note_kernel(v);
    }
}

int exception_deliver(struct engine_vcpu *v, const struct engine_fault *fault)
{
    struct engine_fault current = *fault;

    note_origin(v);
    for (;;) {
        if (current.vector == X86_VEC_PF) {
            v->st.cr2 = current.cr2;
        } else if (current.vector == X86_VEC_DB) {
            v->st.dr[6] |= current.dr6;
            v->st.dr[7] &= ~0x2000ull; /* GD */
        }

        struct event event = {
            .vector = current.vector,
            .source = SOURCE_EXCEPTION,
            .has_error = current.has_error,
            .error = current.error,
            .return_rip = v->st.rip,
            .flags = frame_flags(v, &current),
        };
        int r = deliver_once(v, &event);

        if (r == 0) {
            v->st.rip = v->next_rip;
            return 0;
        }
        if (r == ENGINE_EXIT) {
            /* A device holds the stack or a table: delivered again when it has answered. */
            remember(v, &current);
            return r;
        }
        if (current.vector == X86_VEC_DF &&
            (v->fault.vector == X86_VEC_PF || is_contributory(v->fault.vector))) {
            return shutdown_vcpu(v);
        }
        if (makes_double_fault(current.vector, v->fault.vector)) {
            current = (struct engine_fault){.vector = X86_VEC_DF, .has_error = true};
        } else {
            current = v->fault;
        }
    }
}

int interrupt_deliver(struct engine_vcpu *v, uint8_t vector, bool is_soft)
{
    struct event event = {
        .vector = vector,
        .source = is_soft ? SOURCE_SOFTWARE : SOURCE_EXTERNAL,
        .return_rip = is_soft ? v->next_rip : v->st.rip,
        .flags = v->st.rflags,
    };
    int r;

    note_origin(v);
    r = deliver_once(v, &event);
    if (r == 0) {
        v->st.rip = v->next_rip;
    } else if (r == ENGINE_FAULT) {
        struct engine_fault fault = v->fault;

        return exception_deliver(v, &fault);
    } else if (!is_soft) {
        v->st.events.interrupt_pending = true;
        v->st.events.interrupt_vector = vector;
    }
    return r;
}

int exception_op_int(struct engine_vcpu *v, const struct insn *in)
{
    struct event event = {
        .vector = (uint8_t)in->imm,
        .source = SOURCE_SOFTWARE,
        .return_rip = v->next_rip,
        .flags = v->st.rflags,
    };

    switch (in->op) {
    case INSN_OP_INT3:
        event.vector = X86_VEC_BP;
        break;
    case INSN_OP_INTO:
        if ((v->st.rflags & X86_FLAG_OF) == 0) {
            return 0;
        }
        event.vector = X86_VEC_OF;
        break;
    case INSN_OP_INT1:
        event.vector = X86_VEC_DB;
        event.source = SOURCE_INT1;
        break;
    default:
        if (interp_is_vm86(v) && interp_iopl(v) < 3) {
            return engine_raise_error(v, X86_VEC_GP, 0);
        }
        break;
    }
    return deliver_once(v, &event);
}

int exception_op_bound(struct engine_vcpu *v, const struct insn *in)
{
    unsigned bytes = in->opsize_bytes;
    uint64_t ea = interp_ea(v, in);
    uint64_t low = 0;
    uint64_t high = 0;
    int64_t index = (int64_t)interp_sign_extend(v->st.gpr[in->reg & 15], bytes);
    int r = interp_load(v, in->seg, ea, bytes, &low);

    if (r != 0) {
        return r;
    }
    /* The upper bound is read only when the lower one holds. */
    if (index < (int64_t)interp_sign_extend(low, bytes)) {
        return engine_raise(v, X86_VEC_BR);
    }
    r = interp_load(v, in->seg, (ea + bytes) & interp_mask(in->addrsize_bytes), bytes, &high);
    if (r == 0 && index > (int64_t)interp_sign_extend(high, bytes)) {
        r = engine_raise(v, X86_VEC_BR);
    }
    return r;
}

/* What IRET of this size may change at the current level (SDM 2A IRET). */
static uint64_t iret_flag_mask(const struct engine_vcpu *v, unsigned bytes)
{
    unsigned cpl = interp_is_protected(v) ? vcpu_state_cpl(&v->st) : 0;
    uint64_t mask = X86_FLAGS_ARITH | X86_FLAG_TF | X86_FLAG_DF | X86_FLAG_NT;

    if (bytes > 2) {
        mask |= X86_FLAG_RF | X86_FLAG_AC | X86_FLAG_ID;
        mask |= cpl == 0 && interp_is_protected(v) ? X86_FLAG_VIF | X86_FLAG_VIP : 0;
    }
    if (cpl == 0) {
        mask |= X86_FLAG_IOPL;
    }
    if (cpl <= interp_iopl(v)) {
        mask |= X86_FLAG_IF;
    }
    return mask;
}

/* Back to virtual-8086 mode: ESP SS ES DS FS GS follow. */
static int iret_to_vm86(struct engine_vcpu *v, struct interp_stack *stack,
                        const struct far_target *target)
{
    static const uint8_t segs[] = {X86_SS, X86_ES, X86_DS, X86_FS, X86_GS};
    uint64_t selector[ARRAY_LEN(segs)] = {0};
    uint64_t sp = 0;
    int r = interp_pop(v, stack, 4, &sp);

    for (unsigned i = 0; i < ARRAY_LEN(segs) && r == 0; i++) {
        r = interp_pop(v, stack, 4, &selector[i]);
    }
    if (r == 0 && target->rip > 0xffff) {
        r = engine_raise_error(v, X86_VEC_GP, 0);
    }
    if (r != 0) {
        return r;
    }
    v->st.rflags = (target->flags & 0x3f7fd5u) | X86_FLAG_FIXED1 | X86_FLAG_VM;
    segment_load_real(v, X86_CS, target->cs);
    for (unsigned i = 0; i < ARRAY_LEN(segs); i++) {
        segment_load_real(v, segs[i], (uint16_t)selector[i]);
    }
    v->st.gpr[X86_RSP] = sp & 0xffffffffu;
    v->next_rip = target->rip;
    return 0;
}

static int iret_real(struct engine_vcpu *v, struct interp_stack *stack,
                     const struct far_target *target)
{
    uint64_t mask = target->flag_mask;
    int r = far_check_rip(v, &v->st.seg[X86_CS], target->rip, 0);

    if (r != 0) {
        return r;
    }
    if (interp_is_vm86(v)) {
        mask &= ~(uint64_t)X86_FLAG_IOPL;
    }
    interp_stack_commit(v, stack);
    segment_load_real(v, X86_CS, target->cs);
    v->st.rflags = (v->st.rflags & ~mask) | (target->flags & mask);
    v->next_rip = target->rip;
    return 0;
}

int exception_op_iret(struct engine_vcpu *v, const struct insn *in)
{
    struct interp_stack stack;
    struct far_target target = {.bytes = in->opsize_bytes};
    uint64_t cs = 0;
    bool is_real = !interp_is_protected(v) || interp_is_vm86(v);
    int r;

    if (!is_real && (v->st.rflags & X86_FLAG_NT) != 0) {
        if (!interp_is_long(v)) {
            log_guest("IRET from a nested task: no task switch in hardware, raising #GP");
        }
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    if (interp_is_vm86(v) && interp_iopl(v) < 3) {
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    interp_stack_init(v, &stack);
    r = interp_pop(v, &stack, in->opsize_bytes, &target.rip);
    if (r == 0) {
        r = interp_pop(v, &stack, in->opsize_bytes, &cs);
    }
    if (r == 0) {
        r = interp_pop(v, &stack, in->opsize_bytes, &target.flags);
    }
    if (r != 0) {
        return r;
    }
    target.cs = (uint16_t)cs;
    target.flag_mask = iret_flag_mask(v, in->opsize_bytes);
    target.always_stack = interp_is_64(v);
    if (is_real) {
        r = iret_real(v, &stack, &target);
    } else if (!interp_is_long(v) && in->opsize_bytes == 4 && vcpu_state_cpl(&v->st) == 0 &&
               (target.flags & X86_FLAG_VM) != 0) {
        r = iret_to_vm86(v, &stack, &target);
    } else {
        r = far_return_protected(v, &stack, &target);
    }
    if (r == 0) {
        v->st.events.nmi_blocked = false;
    }
    return r;
}
