/*
 * The lookups of the code cache that need no lock; also called while the
 * guest's vector registers are live, so compiled for general registers only.
 */
#include "engine/translate_int.h"

struct unit *code_cache_find(const struct translator *t, uintptr_t guest, unsigned mode,
                             uintptr_t guest_next)
{
    struct unit *unit =
        atomic_load_explicit(&t->units[code_cache_bucket(guest, mode)], memory_order_acquire);

    for (; unit != NULL; unit = unit->next) {
        if (unit->guest == guest && unit->mode == mode &&
            (unit->guest_next == 0 || unit->guest_next == guest_next) &&
            !atomic_load_explicit(&unit->dead, memory_order_relaxed)) {
            return unit;
        }
    }
    return NULL;
}

struct unit *code_cache_unit_at(const struct translator *t, uintptr_t rx)
{
    uint32_t code = (uint32_t)(rx - (uintptr_t)t->rx);
    unsigned low = 0;
    unsigned high = __atomic_load_n(&t->unit_count, __ATOMIC_ACQUIRE);

    while (low < high) {
        unsigned middle = low + (high - low) / 2;
        struct unit *unit = t->by_code[middle];

        if (code < unit->code) {
            high = middle;
        } else if (code >= unit->code_end) {
            low = middle + 1;
        } else {
            return unit;
        }
    }
    return NULL;
}

/* The last mark at or before the offset; the first one for what lies before it. */
const struct unit_insn *unit_insn_at(const struct unit *unit, uint32_t code)
{
    uint32_t wanted = code - unit->code;
    unsigned low = 0;
    unsigned high = unit->insn_count;

    while (high - low > 1) {
        unsigned middle = low + (high - low) / 2;

        if (unit->insns[middle].code <= wanted) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return &unit->insns[low];
}

bool unit_insn_is_boundary(const struct unit *unit, uint32_t code,
                           const struct unit_insn **ret_insn)
{
    *ret_insn = unit_insn_at(unit, code);
    return unit->code + (*ret_insn)->code == code && ((*ret_insn)->where & UNIT_INSN_BOUNDARY) != 0;
}
