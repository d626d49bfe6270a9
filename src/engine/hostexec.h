/*
 * Running one rewritten instruction on the host CPU with the guest's registers.
 *
 * This is how the interpreter computes everything that is INSN_OP_COPY: GPRs,
 * arithmetic flags and, when the instruction needs it, the x87/SSE/AVX state
 * are loaded from a struct vcpu_state, the copy runs, all is stored back. A
 * fault of the copy (#DE, #GP by alignment, #XM, #MF, #AC, #UD) comes back as
 * data with nothing changed but what the CPU changed before the fault.
 *
 * One struct hostexec belongs to one vCPU thread. Copies are kept in a small
 * direct-mapped cache keyed by the rewritten bytes.
 */
#ifndef CORBEL_ENGINE_HOSTEXEC_H
#define CORBEL_ENGINE_HOSTEXEC_H

#include "base/error.h"
#include "engine/decode.h"

struct hostexec;

struct hostexec_fault {
    uint8_t vector; /* enum x86_vector */
    bool has_error;
    uint32_t error;
};

/* On the thread that will run it; installs the thread's signal stack and handlers (hostsig.h). */
int hostexec_create(struct err *err, struct hostexec **ret_exec) MUST_CHECK;
void hostexec_destroy(struct hostexec *exec); /* accepts NULL */

/*
 * Runs insn (INSN_OP_COPY). mem: the host copy of its memory operand
 * (insn->mem_bytes bytes, readable and writable, with the same address modulo
 * 64 as the guest's so that alignment faults agree), or NULL without one.
 * 0: state (gpr, arithmetic flags, xsave area when FPU state is used) and *mem
 * updated; rip is not touched. -EFAULT: ret_fault filled.
 */
int hostexec_run(struct hostexec *exec, const struct insn *insn, struct vcpu_state *state,
                 void *mem, struct hostexec_fault *ret_fault) MUST_CHECK;

#endif
