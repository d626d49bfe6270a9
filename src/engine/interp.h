/*
 * What the files of the interpreter share: operands, memory, stack, segments.
 *
 * A handler executes one decoded instruction. It changes the state only when
 * nothing can go wrong any more, so that a fault or a device access leaves the
 * instruction to be started again. It returns 0, ENGINE_FAULT or ENGINE_EXIT;
 * v->next_rip is where execution goes on and may be changed by it. Everything
 * runs on the vCPU's thread.
 */
#ifndef CORBEL_ENGINE_INTERP_H
#define CORBEL_ENGINE_INTERP_H

#include "engine/engine_int.h"

typedef int (*interp_fn)(struct engine_vcpu *v, const struct insn *in);

/* 64-bit mode: IA-32e mode with CS.L. */
static inline bool interp_is_64(const struct engine_vcpu *v)
{
    return (v->st.efer & X86_EFER_LMA) != 0 && (v->st.seg[X86_CS].access_rights & X86_AR_L) != 0;
}

static inline bool interp_is_long(const struct engine_vcpu *v)
{
    return (v->st.efer & X86_EFER_LMA) != 0;
}

static inline bool interp_is_protected(const struct engine_vcpu *v)
{
    return (v->st.cr0 & X86_CR0_PE) != 0;
}

static inline bool interp_is_vm86(const struct engine_vcpu *v)
{
    return (v->st.rflags & X86_FLAG_VM) != 0;
}

static inline unsigned interp_iopl(const struct engine_vcpu *v)
{
    return (unsigned)(v->st.rflags >> 12) & 3;
}

static inline uint64_t interp_mask(unsigned bytes)
{
    return bytes >= 8 ? ~0ull : (1ull << (8 * bytes)) - 1;
}

static inline uint64_t interp_sign_extend(uint64_t value, unsigned bytes)
{
    unsigned shift = 64 - 8 * bytes;

    return (uint64_t)((int64_t)(value << shift) >> shift);
}

/* A general register as an operand of 1, 2, 4 or 8 bytes; a 4-byte write clears the upper half. */
uint64_t interp_reg(const struct engine_vcpu *v, const struct insn *in, unsigned reg,
                    unsigned bytes);
void interp_set_reg(struct engine_vcpu *v, const struct insn *in, unsigned reg, unsigned bytes,
                    uint64_t value);

/* The mode of accesses that the processor makes on its own: tables and TSS. */
enum mmu_mode interp_system_mode(const struct engine_vcpu *v);

/* The effective address of the memory operand, cut to the address size. */
uint64_t interp_ea(const struct engine_vcpu *v, const struct insn *in);

/* Segment base, limit, rights and canonical form: 0, or #GP(0)/#SS(0)/#AC(0). */
int interp_linear(struct engine_vcpu *v, unsigned seg, uint64_t ea, unsigned len,
                  enum mmu_access access, uint64_t *ret_va) MUST_CHECK;

/* Through a segment, with the rights of the current level. At most 4096 bytes. */
int interp_read(struct engine_vcpu *v, unsigned seg, uint64_t ea, void *buf, unsigned len)
    MUST_CHECK;
int interp_write(struct engine_vcpu *v, unsigned seg, uint64_t ea, const void *buf, unsigned len)
    MUST_CHECK;
/* The same for an integer of 1 to 8 bytes, zero-extended. */
int interp_load(struct engine_vcpu *v, unsigned seg, uint64_t ea, unsigned bytes,
                uint64_t *ret_value) MUST_CHECK;
int interp_store(struct engine_vcpu *v, unsigned seg, uint64_t ea, unsigned bytes, uint64_t value)
    MUST_CHECK;

/* The r/m operand, register or memory. */
int interp_load_rm(struct engine_vcpu *v, const struct insn *in, unsigned bytes,
                   uint64_t *ret_value) MUST_CHECK;
int interp_store_rm(struct engine_vcpu *v, const struct insn *in, unsigned bytes, uint64_t value)
    MUST_CHECK;

/*
 * A stack in motion: pushes and pops go against a copy of RSP, which becomes
 * the register with interp_stack_commit().
 */
struct interp_stack {
    uint64_t sp;
    uint64_t mask;  /* of the stack pointer's width */
    uint64_t base;  /* of the stack segment; 0 in 64-bit mode */
    uint32_t limit; /* of the stack segment when checked */
    bool checked;   /* limit applies */
    bool expand_down;
    bool big;
    uint32_t error; /* of #SS when an access does not fit */
    enum mmu_mode mode;
};

void interp_stack_init(const struct engine_vcpu *v, struct interp_stack *ret_stack);
int interp_push(struct engine_vcpu *v, struct interp_stack *stack, unsigned bytes, uint64_t value)
    MUST_CHECK;
int interp_pop(struct engine_vcpu *v, struct interp_stack *stack, unsigned bytes,
               uint64_t *ret_value) MUST_CHECK;
void interp_stack_commit(struct engine_vcpu *v, const struct interp_stack *stack);

/* Sets next_rip after checking it against CS (#GP(0)); target is cut to bytes. */
int interp_branch(struct engine_vcpu *v, uint64_t target, unsigned bytes) MUST_CHECK;

/* The arithmetic flags of rflags replaced. */
static inline void interp_set_arith(struct engine_vcpu *v, uint64_t flags)
{
    v->st.rflags = (v->st.rflags & ~(uint64_t)X86_FLAGS_ARITH) | (flags & X86_FLAGS_ARITH);
}

/* May the current code use this port (SDM 1 19.5.2)? 0 or ENGINE_FAULT. */
int interp_check_port(struct engine_vcpu *v, uint16_t port, unsigned bytes) MUST_CHECK;

/* #UD or #NM for the state that flags (INSN_X87 ...) name; 0 when it may be used. */
int interp_check_fpu(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;

/* Jcc, SETcc, CMOVcc: does condition cond hold in these flags? (SDM 1 appendix B) */
bool interp_condition(uint64_t flags, unsigned cond);

/* interp_fast.c: a handler in C for a frequent form of INSN_OP_COPY, or NULL. */
interp_fn interp_fast_handler(const struct insn *in);

/* interp_copy.c: INSN_OP_COPY. */
int interp_copy(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;

/* segment.c */
struct segment_descriptor {
    struct x86_segment seg; /* selector, base, limit, access rights */
    unsigned type;          /* of a system descriptor; data and code: the type with S */
    unsigned dpl;
    uint16_t gate_selector; /* gates */
    uint64_t gate_offset;
    unsigned gate_count; /* parameters of a call gate */
    uint64_t address;    /* linear, of the descriptor itself */
};

/* Reads the descriptor that selector names: error vector with (selector & ~3) | ext. */
int segment_read(struct engine_vcpu *v, uint16_t selector, enum x86_vector vector, unsigned ext,
                 struct segment_descriptor *ret_desc) MUST_CHECK;
/* Sets the accessed bit in memory when it is clear. */
int segment_mark_accessed(struct engine_vcpu *v, struct segment_descriptor *desc) MUST_CHECK;
/* MOV/POP/Lxx to ES, SS, DS, FS, GS: all checks of the mode. */
int segment_load(struct engine_vcpu *v, unsigned seg, uint16_t selector) MUST_CHECK;
/* A real-mode or virtual-8086 load: base from the selector. */
void segment_load_real(struct engine_vcpu *v, unsigned seg, uint16_t selector);
/* CS with RPL replaced by cpl. */
void segment_set_cs(struct engine_vcpu *v, const struct segment_descriptor *desc, unsigned cpl);
/* SS checks for a stack of level cpl: vector #TS, #SS for not present, #GP on far return. */
int segment_check_stack(struct engine_vcpu *v, uint16_t selector, unsigned cpl,
                        enum x86_vector vector, unsigned ext, struct segment_descriptor *ret_desc)
    MUST_CHECK;
/* SS as a null selector of level cpl, as 64-bit mode has it. */
void segment_set_null_ss(struct engine_vcpu *v, unsigned cpl);
/* What a less privileged level may not keep (SDM 2A RET). */
void segment_drop_privileged(struct engine_vcpu *v, unsigned cpl);
/* The stack of a level out of the TSS: RSP alone in IA-32e mode. */
int segment_tss_stack(struct engine_vcpu *v, unsigned cpl, unsigned ist, unsigned ext,
                      uint16_t *ret_ss, uint64_t *ret_sp) MUST_CHECK;

/*
 * far.c: the end of RET far and IRET in protected mode. stack has just popped
 * rip and cs. release: bytes of parameters. flags replace those of flag_mask.
 */
struct far_target {
    uint16_t cs;
    uint64_t rip;
    unsigned bytes; /* operand size */
    unsigned release;
    bool always_stack; /* IRET in 64-bit mode: SS:RSP are popped at the same level too */
    uint64_t flags;
    uint64_t flag_mask;
};
int far_return_protected(struct engine_vcpu *v, struct interp_stack *stack,
                         const struct far_target *target) MUST_CHECK;
/* The checks of a code segment that a gate leads to; sets *ret_cpl. */
int far_check_gate_code(struct engine_vcpu *v, uint16_t selector, unsigned ext, bool may_raise,
                        struct segment_descriptor *ret_desc, unsigned *ret_cpl) MUST_CHECK;
/* The stack of an inner level, checked, and what SS becomes (null in IA-32e mode). */
int far_inner_stack(struct engine_vcpu *v, unsigned cpl, unsigned ist, unsigned ext,
                    struct interp_stack *ret_stack, struct segment_descriptor *ret_ss) MUST_CHECK;
void far_commit_inner_stack(struct engine_vcpu *v, unsigned cpl, const struct interp_stack *stack,
                            const struct segment_descriptor *ss);
/* rip as execution address of the code segment cs: 0 or #GP(ext). */
int far_check_rip(struct engine_vcpu *v, const struct x86_segment *cs, uint64_t rip, unsigned ext)
    MUST_CHECK;

/* Handlers by file. */
int far_jump(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int far_call(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int far_return(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int segment_op_mov_to(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int segment_op_mov_from(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int segment_op_push(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int segment_op_pop(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int segment_op_load_far(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int segment_op_lldt(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int segment_op_ltr(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int segment_op_store(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;  /* SLDT, STR */
int segment_op_verify(struct engine_vcpu *v, const struct insn *in) MUST_CHECK; /* VERR, VERW */
int segment_op_lar_lsl(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int segment_op_arpl(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int segment_op_swapgs(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int segment_op_fsgsbase(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;

int exception_op_int(struct engine_vcpu *v, const struct insn *in) MUST_CHECK; /* INT* INTO */
int exception_op_bound(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int exception_op_iret(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;

int string_op(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;    /* MOVS ... SCAS */
int string_op_io(struct engine_vcpu *v, const struct insn *in) MUST_CHECK; /* INS, OUTS */

int fast_syscall(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int fast_sysret(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int fast_sysenter(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int fast_sysexit(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;

int sysop_hlt(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int sysop_cli(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int sysop_sti(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int sysop_clts(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int sysop_mov_from_cr(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int sysop_mov_to_cr(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int sysop_mov_from_dr(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int sysop_mov_to_dr(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int sysop_load_table(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int sysop_store_table(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int sysop_lmsw(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int sysop_smsw(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int sysop_invlpg(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int sysop_invpcid(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int sysop_invd(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int sysop_rdtsc(struct engine_vcpu *v, const struct insn *in) MUST_CHECK; /* and RDTSCP */
int sysop_rdpmc(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int sysop_cpuid(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int sysop_xgetbv(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int sysop_xsetbv(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int sysop_smap(struct engine_vcpu *v, const struct insn *in) MUST_CHECK; /* STAC, CLAC */
int sysop_in_out(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
/* DR7 has changed: what the MMU must watch. */
void sysop_debug_changed(struct engine_vcpu *v);

int msr_op_read(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int msr_op_write(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
uint64_t msr_guest_tsc(const struct engine_vcpu *v);

/* fpu.c: fills in the initial values of components that are not in use. */
void fpu_normalize(struct vcpu_state *st);
/* FOP, FIP and FDP to 0: after translated code they are those of our copies. */
void fpu_hide_pointers(struct vcpu_state *st);
void fpu_mark_in_use(struct vcpu_state *st, uint64_t components);
int fpu_op_xsave(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int fpu_op_xrstor(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int fpu_op_fxsave(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int fpu_op_fxrstor(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int fpu_op_fnstenv(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;

int vector_op_maskmov(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int vector_op_vmaskmov(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;
int vector_op_gather(struct engine_vcpu *v, const struct insn *in) MUST_CHECK;

/* interp_basic.c: stack, branches and the rest of the user instructions. */
extern const interp_fn interp_basic_table[INSN_OP_COUNT];

#endif
