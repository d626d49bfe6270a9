/*
 * The lookups of the code cache that need no lock; also called while the
 * guest's vector registers are live, so compiled for general registers only.
 */
#include "engine/translate_int.h"

struct unit *code_cache_find(const struct translator *t, uintptr_t guest, unsigned mode,
                             uintptr_t guest_next)
{
    struct unit *unit;

    if ((mode & UNIT_MODE_SINGLE) == 0 && !code_cache_is_head(t, guest)) {
        return NULL;
    }
    unit = unit_get(
        t, atomic_load_explicit(&t->units[code_cache_bucket(guest, mode)], memory_order_acquire));
    for (; unit != NULL; unit = unit_get(t, unit->next)) {
        if (unit->guest == guest && unit->mode == mode &&
            (!unit_crosses(unit) || unit_guest_next(unit) == guest_next) &&
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
        struct unit *unit = unit_get(t, t->by_code[middle]);

        if (code < unit->code) {
            high = middle;
        } else if (code - unit->code >= unit->code_bytes) {
            low = middle + 1;
        } else {
            return unit;
        }
    }
    return NULL;
}

/*
 * Marks as bytes: by how much the code is further, MARK_CODE_FAR when a 16-bit
 * difference follows at the end; then by how much the guest instruction is, 0
 * for the same one, with where the flags are, whether it is clean, and whether
 * the borrowed registers change, whose mask follows. MARK_JUMP in place of the flags: the offset of the
 * guest instruction follows, with the flags in its upper bits.
 */
#define MARK_CODE_FAR 0xffu
#define MARK_STEP 0x0fu
#define MARK_FLAGS_SHIFT 4
#define MARK_FLAGS 3u
#define MARK_JUMP 3u
#define MARK_SPILLED 0x40u
#define MARK_CLEAN 0x80u
#define MARK_OFFSET 0x0fffu
#define MARK_OFFSET_FLAGS_SHIFT 12

static uint8_t *put16(uint8_t *p, unsigned value)
{
    *p++ = (uint8_t)value;
    *p++ = (uint8_t)(value >> 8);
    return p;
}

static unsigned get16(const uint8_t **p)
{
    unsigned value = (*p)[0] | (unsigned)(*p)[1] << 8;

    *p += 2;
    return value;
}

static struct unit_insn mark_start(const struct unit *unit)
{
    return (struct unit_insn){.offset = (uint16_t)(unit->guest & (GMEM_PAGE_BYTES - 1)),
                              .spilled = unit->body_spilled,
                              .flags = FLAGS_HOST};
}

unsigned unit_marks_pack(const struct unit *unit, const struct unit_insn *marks, unsigned count,
                         uint8_t *ret_bytes)
{
    struct unit_insn last = mark_start(unit);
    uint8_t *p = ret_bytes;

    for (unsigned i = 0; i < count; i++) {
        const struct unit_insn *mark = &marks[i];
        unsigned code = (unsigned)mark->code - last.code;
        unsigned step = (unsigned)mark->offset - last.offset;
        bool jump = step > MARK_STEP;
        bool spilled = mark->spilled != last.spilled;

        *p++ = (uint8_t)(code < MARK_CODE_FAR ? code : MARK_CODE_FAR);
        *p++ = (uint8_t)((jump ? MARK_JUMP << MARK_FLAGS_SHIFT
                               : step | (unsigned)mark->flags << MARK_FLAGS_SHIFT) |
                         (spilled ? MARK_SPILLED : 0u) | (mark->is_clean ? MARK_CLEAN : 0u));
        if (jump) {
            p = put16(p, mark->offset | (unsigned)mark->flags << MARK_OFFSET_FLAGS_SHIFT);
        }
        if (spilled) {
            p = put16(p, mark->spilled);
        }
        if (code >= MARK_CODE_FAR) {
            p = put16(p, code);
        }
        last = *mark;
    }
    return (unsigned)(p - ret_bytes);
}

/* The mark at *p, which comes after the one in *mark; returns what is behind it. */
static const uint8_t *mark_next(const uint8_t *p, bool is_first, struct unit_insn *mark)
{
    unsigned code = *p++;
    unsigned head = *p++;

    mark->is_boundary = is_first || (head & MARK_STEP) != 0;
    mark->is_clean = (head & MARK_CLEAN) != 0;
    mark->flags = (uint8_t)(head >> MARK_FLAGS_SHIFT & MARK_FLAGS);
    if (mark->flags == MARK_JUMP) {
        unsigned where = get16(&p);

        mark->offset = where & MARK_OFFSET;
        mark->flags = (uint8_t)(where >> MARK_OFFSET_FLAGS_SHIFT);
        mark->is_boundary = true;
    } else {
        mark->offset += (uint16_t)(head & MARK_STEP);
    }
    if ((head & MARK_SPILLED) != 0) {
        mark->spilled = (uint16_t)get16(&p);
    }
    mark->code += (uint16_t)(code == MARK_CODE_FAR ? get16(&p) : code);
    return p;
}

static const uint8_t *unit_marks(const struct unit *unit)
{
    bool has_word = unit_crosses(unit) || unit_is_alias(unit);

    return (const uint8_t *)(unit + 1) + (has_word ? sizeof(uint64_t) : 0u);
}

/* The last mark at or before the offset; the first one for what lies before it. */
struct unit_insn unit_insn_at(const struct unit *unit, uint32_t code)
{
    const uint8_t *p = unit_marks(unit);
    const uint8_t *end = p + unit->mark_bytes;
    struct unit_insn mark = mark_start(unit);
    struct unit_insn next;

    p = mark_next(p, true, &mark);
    for (next = mark; p < end; mark = next) {
        p = mark_next(p, false, &next);
        if (next.code > code - unit->code) {
            break;
        }
    }
    return mark;
}

bool unit_insn_is_boundary(const struct unit *unit, uint32_t code, struct unit_insn *ret_insn)
{
    *ret_insn = unit_insn_at(unit, code);
    return unit->code + ret_insn->code == code && ret_insn->is_boundary;
}

bool unit_at_string(const uint8_t *code)
{
    if (*code++ != 0xf3) {
        return false;
    }
    code += *code == EMIT_SEG_GS ? 1 : 0;
    code += *code == 0x66 || *code == 0x48 ? 1 : 0;
    return *code == 0xa4 || *code == 0xa5 || *code == 0xaa || *code == 0xab;
}

bool unit_find_insn(const struct unit *unit, unsigned offset, struct unit_insn *ret_insn,
                    unsigned *ret_index)
{
    const uint8_t *p = unit_marks(unit);
    const uint8_t *end = p + unit->mark_bytes;
    struct unit_insn mark = mark_start(unit);
    unsigned index = 0;

    for (bool is_first = true; p < end; is_first = false) {
        p = mark_next(p, is_first, &mark);
        if (mark.is_boundary && mark.offset == offset) {
            *ret_insn = mark;
            *ret_index = index;
            return true;
        }
        index += mark.is_boundary ? 1 : 0;
    }
    return false;
}
