/*
 * The code between C and translated code, made once per VM at the start of its
 * code cache: entering, leaving, and the calls from units into C.
 *
 * A unit reaches C by a jump, never a call, for RSP is the guest's. The thunk
 * stores the sixteen registers in st.gpr, takes the stack that run() left and
 * calls; the answer is the RX address where translated code goes on, or 0 to
 * leave run(). When the vCPU was kicked meanwhile the thunk leaves anyway, for
 * the reason that C put into hot.leave. Vector state stays in the registers across such calls, so what
 * they call is compiled for general registers only.
 */
#ifndef CORBEL_ENGINE_THUNK_H
#define CORBEL_ENGINE_THUNK_H

#include "engine/code_cache.h"
#include "engine/engine_int.h"

#include <stddef.h>

/* Offsets that translated code uses. */
#define GS_GPR(r) ((uint32_t)(offsetof(struct engine_vcpu, st.gpr) + 8u * (r)))
#define GS_SPILL(r) ((uint32_t)(offsetof(struct engine_vcpu, hot.spill) + 8u * (r)))
#define GS_HOT(field) ((uint32_t)offsetof(struct engine_vcpu, hot.field))
#define GS_ST(field) ((uint32_t)offsetof(struct engine_vcpu, st.field))

/* Why translated code came back to run(). */
enum translate_leave {
    LEAVE_LOOKUP,     /* no unit for st.rip */
    LEAVE_CHAIN,      /* exit hot.exit wants its target: find or make it, and link */
    LEAVE_INTERP,     /* the interpreter does the instruction at st.rip */
    LEAVE_ACCESS,     /* the same, but registers are as the site of an access left them */
    LEAVE_EXIT,       /* *v->exit was filled */
    LEAVE_KICK,       /* kicked, or something waits; state is complete */
    LEAVE_KICK_ACCESS /* kicked; registers as with LEAVE_ACCESS */
};

/* To index: where the entry for the address lies in its table; clobbers flags. */
void thunk_emit_tlb_index(struct emit *e, unsigned index, unsigned address);

/*
 * What the dispatch thunks do, in a unit: where it runs often, its own branch is
 * predicted better than one that many share. UNIT_STANDARD_BORROWED and RCX are
 * borrowed. To the target in RCX; or to an offset from the start of the page.
 */
void thunk_emit_jump(const struct translator *translator, struct emit *e, unsigned mode,
                     unsigned in_slot);
void thunk_emit_jump_by(const struct translator *translator, struct emit *e, unsigned mode,
                        unsigned in_slot, int32_t offset);

void thunk_emit_all(struct translator *translator);

/* At that offset the state is complete but for the vectors, and hot.leave says why it may leave. */
bool thunk_is_resuming(const struct translator *translator, uint32_t code);
/* At that offset C is called next, whatever happens; the thunk looks at the kick flag then. */
bool thunk_leads_to_c(const struct translator *translator, uint32_t code);
/*
 * At that offset a thunk is on the way to hot.target: R10, R11 and RCX are borrowed, and
 * hot.flags_in_slot says where the flags are.
 */
bool thunk_is_on_the_way(const struct translator *translator, uint32_t code);

/*
 * The thunk (RW) that checks the address in one register, clobbering it and the
 * flags, and puts the addend into the other, which held where it goes on: the RX
 * address, of which thunk_has_low_code() says that it has 32 bits. NULL: no
 * thunk is made for this size, or any more. is_range: a few bytes more are asked for
 * when that size has none; ret_size is what is asked for.
 */
const uint8_t *thunk_compact(struct translator *translator, unsigned address, unsigned addend,
                             bool is_write, bool is_range, unsigned size, unsigned *ret_size);
bool thunk_has_low_code(const struct translator *translator);

/* Calls the enter thunk: goes to hot.resume with st's registers, back when the guest left. */
void thunk_enter(struct engine_vcpu *v);

#endif
