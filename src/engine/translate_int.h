/*
 * What the files of the translator share: the unit under construction and the
 * functions that emit its parts. Engine lock held throughout; see translate.c.
 */
#ifndef CORBEL_ENGINE_TRANSLATE_INT_H
#define CORBEL_ENGINE_TRANSLATE_INT_H

#include "engine/code_cache.h"
#include "engine/emit.h"
#include "engine/engine_int.h"
#include "engine/thunk.h"
#include "engine/trace.h"

enum translate_helper translate_helper_for(const struct insn *insn, unsigned mode);

/* Registers by mask. */
#define REG_BIT(r) (1u << (r))

/* How a guest-virtual address is computed. */
enum ea_kind {
    EA_REG,    /* base + disp */
    EA_SLOT,   /* gs:[slot] + disp, + gs:[slot2] when that is not 0 */
    EA_COMPLEX /* base + index * scale + disp, then + gs:[slot] when slot is not 0 */
};

struct ea {
    uint8_t kind;
    uint8_t base; /* EMIT_NO_REG: none */
    uint8_t index;
    uint8_t scale;
    bool is_32bit;
    int32_t disp;
    uint32_t slot;
    uint32_t slot2;
};

/* One access of the instruction in hand. */
struct access {
    struct ea ea;
    uint16_t size;
    bool is_write;
    bool low_only; /* the instruction names AH CH DH BH: no REX, so registers below 8 */
    bool
        allow_written; /* registers that the instruction overwrites at its end may hold the address */
    bool alone;        /* no later access profits from its check */
    bool checked;      /* by the software TLB whatever the mode */
    bool is_locked;    /* across a cache line it goes to the interpreter */
    uint16_t forbidden; /* registers that hold something of the instruction */
};

/*
 * A checked range of guest memory: later accesses relative to the same unchanged
 * register or slot, within it, need no check. reg holds the addend (slot: the
 * addend plus the slot's value); it is borrowed.
 */
struct window {
    bool is_valid;
    bool is_write;
    uint8_t mode;
    uint8_t reg;
    uint8_t base; /* EMIT_NO_REG: relative to slot */
    uint32_t slot;
    uint32_t slot2;
    const struct trace_insn *last; /* that has use for it */
    int64_t low;                   /* displacements from low up to high */
    int64_t high;
};

#define WINDOW_COUNT 2u

/* A register that holds the content of a slot, for operands in the mirror; it is borrowed. */
struct held_slot {
    uint32_t slot; /* 0: none */
    uint8_t reg;
};

#define HELD_SLOTS 2u

/* Out-of-line code of an access: computes the address again and asks C. */
struct cold_access {
    uint8_t *branch; /* rel32 to here */
    uint8_t *split;  /* another one, of a locked access across a cache line; NULL: none */
    struct ea ea;
    uint8_t scratch;  /* for the address */
    uint8_t scratch2; /* for the site */
    uint32_t site;    /* index of its struct unit_access */
};

/* Out-of-line code of an exit. */
struct cold_exit {
    struct unit_exit *exit;
    uint8_t *branch; /* rel32 to here */
    uint16_t spilled;
    uint8_t flags;
};

struct xlate {
    struct translator *t;
    struct emit e;
    const struct trace *trace;
    const struct trace_insn *ti; /* in hand */
    struct unit *unit;
    uint16_t spilled;      /* registers whose guest value is in a slot */
    uint8_t flags;         /* enum unit_flags_home */
    bool failed;           /* something could not be encoded: the unit ends here */
    bool is_compact;       /* memory is checked by thunks */
    uint16_t narrow_bases; /* registers whose accesses share no checks any more */
    bool is_holding;       /* one of these two may hold something */
    struct window windows[WINDOW_COUNT];
    struct held_slot held[HELD_SLOTS];
    unsigned mark_count;
    struct unit_insn marks[UNIT_MARKS_MAX];
    unsigned lookup_count;
    struct unit_exit lookups[UNIT_EXITS_MAX];
    unsigned cold_access_count;
    unsigned cold_exit_count;
    struct cold_access cold_access[UNIT_ACCESSES_MAX];
    struct cold_exit cold_exit[UNIT_EXITS_MAX];
};

/*
 * Where the host finds the operand after an address check. Whole words, so that it is returned in
 * memory: packed into registers it would be read back right after it was written in pieces.
 */
struct host_operand {
    uint32_t base;  /* EMIT_NO_REG: none, in the mirror only */
    uint32_t index; /* EMIT_NO_REG: none */
    int32_t disp;
    uint32_t scale;
    bool is_in_mirror; /* relative to the host's GS base, and may fault */
};

/* xlate_regs.c: which registers hold what. */
void xlate_reload(struct xlate *x, unsigned reg_mask); /* those of them that are spilled */
void xlate_spill(struct xlate *x, unsigned reg_mask);  /* those of them that are not */
/* Frees a register for scratch use; not one in forbidden. */
unsigned xlate_scratch(struct xlate *x, unsigned forbidden, bool low_only, bool allow_written);
/* Registers in the order in which units borrow them; EMIT_NO_REG behind the last. */
unsigned xlate_scratch_order(unsigned index);
unsigned xlate_scratch_rank(unsigned reg); /* where it stands there */
/* Before host flags are clobbered: saves them if they matter (live mask not 0). */
void xlate_flags_release(struct xlate *x, unsigned live);
/* Before the guest's flags are read or partly written: brings them back. */
void xlate_flags_restore(struct xlate *x);
/* Notes where the guest's state is from here on, within the instruction in hand. */
void xlate_mark(struct xlate *x);

/* mem_access.c: the one place that knows how guest memory is reached. */
/* Written in place: copied as a whole right after its parts were written, it would be waited for. */
void ea_of(const struct trace_insn *ti, struct ea *ret_ea);
struct ea ea_reg(unsigned base, int32_t disp);
/* Its address into the register, with that displacement in place of its own. */
void ea_emit(struct xlate *x, const struct ea *ea, int32_t disp, unsigned dst);
/* Makes sure that the access may be done, clobbering host flags (released before). */
struct host_operand mem_access(struct xlate *x, const struct access *access);
/* Right before the instruction with the operand: its prefix, and where the state is when it faults. */
void mem_operand_begin(struct xlate *x, const struct host_operand *op);
/* Units of this mode reach memory by the mirror. */
bool mem_is_direct(const struct translator *t, unsigned mode);
/* Where the vCPU has the software TLB for that. */
uint32_t mem_tlb_offset(unsigned mode, bool is_write);
/* Before an instruction: forgets windows whose register it needs. */
void mem_insn_begin(struct xlate *x);
/* After it: forgets those whose base it changed by no constant. */
void mem_insn_end(struct xlate *x);
unsigned mem_window_regs(const struct xlate *x);
void mem_forget(struct xlate *x); /* all windows */
void mem_emit_cold(struct xlate *x);

/* exits.c */
struct unit_exit *exit_new(struct xlate *x, enum unit_exit_kind kind, int64_t target_offset);
/* A conditional branch (cond as Jcc) that leaves by exit. */
void exit_branch(struct xlate *x, unsigned cond, struct unit_exit *exit);
/* An unconditional end: everything that is behind it is unreachable. */
void exit_end(struct xlate *x, struct unit_exit *exit);
/* The same for a branch that is emitted already. */
void exit_branch_at(struct xlate *x, uint8_t *rel32, struct unit_exit *exit);
/* An end by an indirect branch to hot.target, or to RCX when it is borrowed and holds it. */
void exit_indirect(struct xlate *x, bool in_rcx);
void exit_emit_cold(struct xlate *x);
/* Right after a branch to a page offset, that is in the page or not. */
struct unit_exit *exit_direct(struct xlate *x, int64_t target_offset);

/* xlate_system.c: instructions of the system that need no C. */
void xlate_system(struct xlate *x);

/*
 * xlate.c: a unit for guest code that lies in another unit already, or NULL: it
 * cannot be. Publishes nothing yet.
 */
struct unit *xlate_alias(struct translator *t, uintptr_t guest, unsigned mode);

/* xlate.c: emits the unit for a trace and publishes nothing yet. */
struct unit *xlate_unit(struct translator *t, const struct trace *trace, uintptr_t guest,
                        uintptr_t guest_next, unsigned mode);

/*
 * light.c: reached from the thunks, general registers only. LIGHT_INTERP says
 * that the interpreter is built so, too, and may be called from there (not in
 * sanitizer builds, whose run-time library knows no such limit).
 */
#ifndef LIGHT_INTERP
#define LIGHT_INTERP 1
#endif
/* Arithmetic flags between hot.flags and st.rflags, whose own are 0 while in code. */
void light_give_flags(struct engine_vcpu *v);
void light_take_flags(struct engine_vcpu *v);
/* The registers as they were at the start of the instruction whose access missed. */
void light_undo_access(struct engine_vcpu *v);
uint64_t light_access(void *vcpu);
uint64_t light_exit(void *vcpu);
void light_init_jump_cache(struct engine_vcpu *v);
void light_flush_jump_cache(struct engine_vcpu *v);
void light_on_mmu_flush(struct engine_vcpu *v, enum mmu_flush what, uint64_t va);
/* Mode for code at the current state, or -1 when it is not for the translator. */
int light_unit_mode(const struct engine_vcpu *v);
/* The unit for st.rip, or NULL (none, or no plain fetch). */
struct unit *light_find(struct engine_vcpu *v, unsigned mode);
/* Notes in the jump cache that st.rip is unit. */
void light_remember(struct engine_vcpu *v, const struct unit *unit);

/*
 * The site at code offset `code` goes from page to page, or (is_range) has a page end in its
 * window again and again: its unit is dropped to be translated anew. Not when others hold the
 * lock.
 */
void translate_note_site(struct engine_vcpu *v, uint32_t code, bool is_range);

/* engine_invalidate_code() where vector registers are free. */
void translate_invalidate(struct engine_vm *vm, gpa_t start, uint64_t len);

/* A check by thunk was the last of so many: its unit may be one that runs often. */
void translate_sample(struct engine_vcpu *v);

/* code_cache_find.c: the guest's state at a host address within a unit. */
struct unit_insn unit_insn_at(const struct unit *unit, uint32_t code);
bool unit_insn_is_boundary(const struct unit *unit, uint32_t code, struct unit_insn *ret_insn);
/* Is that a string instruction on the mirror (xlate_system.c)? Then RDI is the host's address, and
 * with it as the guest's this is a boundary within that instruction. */
bool unit_at_string(const uint8_t *code);
/* Where the instruction at that offset of the page begins in the unit, and how many are before it;
 * false: it is not in it. */
bool unit_find_insn(const struct unit *unit, unsigned offset, struct unit_insn *ret_insn,
                    unsigned *ret_index);
/* Marks as they are kept, at most UNIT_MARK_BYTES_MAX each; returns how many bytes. */
unsigned unit_marks_pack(const struct unit *unit, const struct unit_insn *marks, unsigned count,
                         uint8_t *ret_bytes);

/* translate_signal.c */
int translate_signal_init(struct engine_vcpu *v) MUST_CHECK;
void translate_signal_done(struct engine_vcpu *v);

#endif
