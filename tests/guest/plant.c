/*
 * A translator that makes mistakes when a guest asks for them: linked around
 * xlate_unit() in the executor of corbel-vmm-planted, to show that lock step sees
 * them. See planted.h.
 */
#include "planted.h"

#include "engine/translate_int.h"

struct unit *__real_xlate_unit(struct translator *t, const struct trace *trace, uintptr_t guest,
                               uintptr_t guest_next, unsigned mode);
struct unit *__wrap_xlate_unit(struct translator *t, const struct trace *trace, uintptr_t guest,
                               uintptr_t guest_next, unsigned mode);

/* The copy that is translated says something else than the guest's memory. */
static void plant(struct insn *insn)
{
    if (insn->imm_bytes != 4) {
        return;
    }
    if ((uint32_t)insn->imm == PLANT_VALUE) {
        insn->bytes[insn->imm_off] ^= 1;
        insn->imm ^= 1;
    } else if ((uint32_t)insn->imm == PLANT_PLACE) {
        insn->disp += 8;
    }
}

struct unit *__wrap_xlate_unit(struct translator *t, const struct trace *trace, uintptr_t guest,
                               uintptr_t guest_next, unsigned mode)
{
    for (unsigned i = 0; i < t->trace->count; i++) {
        plant(&t->trace->insns[i].insn);
    }
    return __real_xlate_unit(t, trace, guest, guest_next, mode);
}
