/*
 * User mode where KVM has no hardware behind it.
 *
 * Such a KVM emulates the kernel's code and runs user code natively, and gets
 * the way between them wrong: SYSCALL arrives at the kernel with the user's CPL,
 * flags and rights, and CPUID, RDTSC and XCR0 are the host's. So the stepper
 * runs user mode and every instruction that crosses into it or out of it, and
 * KVM the kernel between them.
 *
 * KVM does not say when it leaves the kernel, so breakpoints do ("gates"): one
 * on the page-fault handler, since the first thing that a program does is to
 * fault, and one on each instruction that was seen to return to user mode. To see
 * them, the stepper also runs the kernel after a user-mode fault that KVM
 * delivered, and after the first entries of each kind.
 */
#include "kvm/kvm_int.h"

#include <errno.h>
#include <string.h>

#define IDT_GATE_BYTES 16u
#define IDT_GATE_PRESENT (1ull << 47)
/* Entries of each kind after which the stepper runs the kernel to see how it returns. */
#define LEARN_ENTRIES 8u
/* The longest such run: a kernel that goes to sleep does not return soon. */
#define LEARN_INSNS 4000000u
/* A page fault's frame (SDM 3A 6.14.2), in words of the stack. */
#define FRAME_RIP 1u
#define FRAME_CS 2u
#define FRAME_RSP 4u
#define FRAME_SS 5u
/* What SYSRET takes from R11 (SDM 2B). */
#define FLAGS_OF_USER 0x3c7fd7ull

static int read_word(struct kvm_cpu *cpu, uint64_t va, uint64_t *ret_value)
{
    struct kvm_translation translation = {.linear_address = va};

    const int rc = kvm_ioctl(cpu->fd, KVM_TRANSLATE, &translation);
    if (rc < 0 || translation.valid == 0) {
        return rc < 0 ? rc : -EFAULT;
    }
    return gmem_load_le64(cpu->vm->gmem, gpa(translation.physical_address), ret_value);
}

/* Where the guest's page-fault handler begins; 0: it has none in long mode (yet). */
static uint64_t fault_handler(struct kvm_cpu *cpu)
{
    const uint32_t offset = X86_VEC_PF * IDT_GATE_BYTES;
    struct kvm_sregs sregs;
    uint64_t low = 0;
    uint64_t high = 0;

    if (kvm_ioctl(cpu->fd, KVM_GET_SREGS, &sregs) < 0 || (sregs.efer & X86_EFER_LMA) == 0 ||
        sregs.idt.limit < offset + IDT_GATE_BYTES - 1 ||
        read_word(cpu, sregs.idt.base + offset, &low) < 0 ||
        read_word(cpu, sregs.idt.base + offset + 8, &high) < 0 || (low & IDT_GATE_PRESENT) == 0) {
        return 0;
    }
    return (low & 0xffff) | ((low >> 32) & 0xffff0000u) | (high << 32);
}

int kvm_user_watch(struct kvm_cpu *cpu)
{
    const uint64_t handler = fault_handler(cpu);

    if (handler == cpu->user.fault_handler) {
        return 0;
    }
    cpu->user.fault_handler = handler;
    return kvm_debug_apply(cpu);
}

bool kvm_user_is_gate(const struct kvm_cpu *cpu, uint64_t rip)
{
    const struct kvm_user *user = &cpu->user;

    for (unsigned i = 0; i < user->exit_count; i++) {
        if (user->exits[i] == rip) {
            return true;
        }
    }
    return user->fault_handler != 0 && user->fault_handler == rip;
}

static void learn_exit(struct kvm_cpu *cpu, uint64_t rip)
{
    struct kvm_user *user = &cpu->user;

    if (kvm_user_is_gate(cpu, rip)) {
        return;
    }
    if (user->exit_count < KVM_USER_EXITS) {
        user->exits[user->exit_count++] = rip;
    } else {
        user->exits[user->next_exit] = rip;
        user->next_exit = (user->next_exit + 1) % KVM_USER_EXITS;
    }
    (void)kvm_debug_apply(cpu); /* without it, KVM returns by itself and is caught at a fault */
}

void kvm_user_state_set(struct kvm_cpu *cpu, const struct vcpu_state *state)
{
    if (!cpu->vm->emulated) {
        return;
    }
    if ((state->cr0 & X86_CR0_PG) == 0) {
        memset(&cpu->user, 0, sizeof(cpu->user)); /* another kernel may come */
        (void)kvm_debug_apply(cpu);
    }
    cpu->user.active = vcpu_state_cpl(state) == 3;
}

/* The next thing to do is to deliver an interrupt that waits, if the guest takes it. */
static void take_interrupt(struct kvm_cpu *cpu)
{
    const struct vcpu_intr_ops *intr = cpu->env.intr;
    struct vcpu_state *state = cpu->step_state;
    struct x86_events *events = &state->events;

    if (intr == NULL || (state->rflags & X86_FLAG_IF) == 0 || events->exception_pending ||
        events->interrupt_pending || events->sti_shadow || events->mov_ss_shadow ||
        !intr->pending(cpu->env.opaque)) {
        return;
    }
    const int vector = intr->acknowledge(cpu->env.opaque);
    if (vector >= 0) {
        events->interrupt_pending = true;
        events->interrupt_vector = (uint8_t)vector;
    }
}

/*
 * At the first instruction of the page-fault handler, with user mode's frame on the stack: KVM ran
 * user mode. A SYSCALL that it got wrong faults when it fetches the kernel's first instruction
 * with the user's rights: state becomes the one before the SYSCALL. False: no such frame.
 */
static bool caught_user(struct kvm_cpu *cpu)
{
    struct vcpu_state *state = cpu->step_state;
    const uint64_t frame = state->gpr[X86_RSP];
    uint64_t rip = 0;
    uint64_t cs = 0;
    uint64_t rsp = 0;
    uint64_t ss = 0;

    if (state->rip != cpu->user.fault_handler || read_word(cpu, frame + 8 * FRAME_RIP, &rip) < 0 ||
        read_word(cpu, frame + 8 * FRAME_CS, &cs) < 0 ||
        read_word(cpu, frame + 8 * FRAME_RSP, &rsp) < 0 ||
        read_word(cpu, frame + 8 * FRAME_SS, &ss) < 0 || (cs & 3) != 3) {
        return false;
    }
    if (rip == state->lstar && state->cr2 == rip) {
        state->rip = state->gpr[X86_RCX] - 2;
        state->rflags = (state->gpr[X86_R11] & FLAGS_OF_USER) | X86_FLAG_FIXED1;
        state->gpr[X86_RSP] = rsp;
        state->seg[X86_CS] = (struct x86_segment){
            .limit = 0xffffffffu,
            .access_rights =
                0xb | X86_AR_S | (3u << X86_AR_DPL_SHIFT) | X86_AR_P | X86_AR_L | X86_AR_G,
            .selector = (uint16_t)cs,
        };
        state->seg[X86_SS] = (struct x86_segment){
            .limit = 0xffffffffu,
            .access_rights =
                0x3 | X86_AR_S | (3u << X86_AR_DPL_SHIFT) | X86_AR_P | X86_AR_DB | X86_AR_G,
            .selector = (uint16_t)ss,
        };
    }
    memset(cpu->user.entries, 0, sizeof(cpu->user.entries));
    return true;
}

static void step_until(struct kvm_cpu *cpu, enum accel_step_until until, uint64_t insns)
{
    cpu->step.until = until;
    cpu->step.max = cpu->step.done + insns;
    cpu->step.stop = &cpu->run->immediate_exit;
}

void kvm_user_begin(struct kvm_cpu *cpu)
{
    if (!cpu->vm->emulated) {
        return;
    }
    const bool caught = caught_user(cpu);
    if (vcpu_state_cpl(cpu->step_state) == 3) {
        take_interrupt(cpu);
        step_until(cpu, ACCEL_STEP_LEAVE_USER, UINT64_MAX);
    } else if (caught) {
        step_until(cpu, ACCEL_STEP_ENTER_USER, LEARN_INSNS);
    }
    if (kvm_debugged(cpu)) {
        cpu->step.max = 1;
    }
}

/* User mode has entered the kernel. Does the stepper go on, to see how it returns? */
static bool wants_exit(struct kvm_cpu *cpu)
{
    const struct vcpu_state *state = cpu->step_state;
    const unsigned kind = state->rip == state->lstar          ? 1
                          : state->rip == state->sysenter_eip ? 2
                                                              : 0;

    if (cpu->user.entries[kind] >= LEARN_ENTRIES) {
        return false;
    }
    cpu->user.entries[kind]++;
    return true;
}

bool kvm_user_next(struct kvm_cpu *cpu)
{
    const struct accel_step *step = &cpu->step;
    const bool is_user = vcpu_state_cpl(cpu->step_state) == 3;

    if (!cpu->vm->emulated || kvm_debugged(cpu) ||
        __atomic_load_n(&cpu->run->immediate_exit, __ATOMIC_RELAXED) != 0) {
        return false;
    }
    if (is_user) {
        if (step->until == ACCEL_STEP_LEAVE_USER) {
            return false;
        }
        learn_exit(cpu, step->last_rip);
        take_interrupt(cpu); /* one that the kernel took none of came with a kick that is over */
        step_until(cpu, ACCEL_STEP_LEAVE_USER, UINT64_MAX - step->done);
        return true;
    }
    if (step->until != ACCEL_STEP_LEAVE_USER) {
        return false;
    }
    if (wants_exit(cpu)) {
        step_until(cpu, ACCEL_STEP_ENTER_USER, LEARN_INSNS);
        return true;
    }
    if (cpu->step_state->rip == cpu->user.fault_handler) {
        step_until(cpu, ACCEL_STEP_MAX, 1); /* past the gate: this entry was not KVM's */
        return true;
    }
    return false;
}

bool kvm_user_run(struct kvm_cpu *cpu, struct vmexit *exit)
{
    if (__atomic_exchange_n(&cpu->run->immediate_exit, 0, __ATOMIC_SEQ_CST) != 0) {
        exit->reason = VMEXIT_INTR;
        return true;
    }
    return kvm_step(cpu, exit) != 0;
}
