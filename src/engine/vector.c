/*
 * Vector instructions with masked or many memory operands: element by element,
 * since what the mask leaves out must not fault.
 */
#include "engine/interp.h"

#include "base/wire.h"

#include <string.h>

#define OFF_FSW 2u
#define OFF_FTW 4u
#define FSW_ES 0x80u
#define OFF_ST 32u
#define OFF_XMM 160u
#define OFF_YMM_HIGH 576u
#define YMM_BYTES 32u

static void read_vector(const struct engine_vcpu *v, unsigned reg, uint8_t out[YMM_BYTES])
{
    memcpy(out, &v->st.xsave[OFF_XMM + 16 * reg], 16);
    memcpy(out + 16, &v->st.xsave[OFF_YMM_HIGH + 16 * reg], 16);
}

static void write_vector(struct engine_vcpu *v, unsigned reg, const uint8_t data[YMM_BYTES])
{
    memcpy(&v->st.xsave[OFF_XMM + 16 * reg], data, 16);
    memcpy(&v->st.xsave[OFF_YMM_HIGH + 16 * reg], data + 16, 16);
    fpu_mark_in_use(&v->st, X86_XCR0_SSE | X86_XCR0_AVX);
}

static bool mask_bit(const uint8_t *mask, unsigned element, unsigned bytes)
{
    return (mask[element * bytes + bytes - 1] & 0x80) != 0;
}

/* MMX registers are the x87's by physical number; the image is by distance from TOP. */
static void enter_mmx(struct engine_vcpu *v)
{
    uint8_t copy[128];
    unsigned top = (load_le16(&v->st.xsave[OFF_FSW]) >> 11) & 7;

    memcpy(copy, &v->st.xsave[OFF_ST], sizeof(copy));
    for (unsigned i = 0; i < 8; i++) {
        memcpy(&v->st.xsave[OFF_ST + 16 * i], &copy[16 * ((i - top) & 7)], 16);
    }
    store_le16(&v->st.xsave[OFF_FSW], load_le16(&v->st.xsave[OFF_FSW]) & 0xc7ff);
    v->st.xsave[OFF_FTW] = 0xff;
    fpu_mark_in_use(&v->st, X86_XCR0_X87);
}

/* The bytes that the mask names, checked as a whole before the first is written. */
static int masked_store(struct engine_vcpu *v, unsigned seg, uint64_t ea, uint64_t ea_mask,
                        const uint8_t *data, const uint8_t *mask, unsigned count, unsigned bytes)
{
    struct mmu_page page;
    uint64_t va = 0;
    int r = 0;

    for (unsigned i = 0; i < count && r == 0; i++) {
        if (mask_bit(mask, i, bytes)) {
            r = interp_linear(v, seg, (ea + i * bytes) & ea_mask, bytes, MMU_WRITE, &va);
            if (r == 0) {
                r = mmu_fill(v, va, MMU_WRITE, mmu_current_mode(v), &page);
            }
        }
    }
    for (unsigned i = 0; i < count && r == 0; i++) {
        if (mask_bit(mask, i, bytes)) {
            r = interp_write(v, seg, (ea + i * bytes) & ea_mask, data + i * bytes, bytes);
        }
    }
    return r;
}

int vector_op_maskmov(struct engine_vcpu *v, const struct insn *in)
{
    bool is_mmx = (in->flags & INSN_MMX) != 0;
    uint64_t ea_mask = interp_mask(in->addrsize_bytes);
    uint8_t data[YMM_BYTES];
    uint8_t mask[YMM_BYTES];
    int r = interp_check_fpu(v, in);

    if (r != 0) {
        return r;
    }
    fpu_normalize(&v->st);
    if (is_mmx && (load_le16(&v->st.xsave[OFF_FSW]) & FSW_ES) != 0) {
        return engine_raise(v, X86_VEC_MF);
    }
    if (is_mmx) {
        unsigned top = (load_le16(&v->st.xsave[OFF_FSW]) >> 11) & 7;

        memcpy(data, &v->st.xsave[OFF_ST + 16 * ((in->reg - top) & 7)], 8);
        memcpy(mask, &v->st.xsave[OFF_ST + 16 * ((in->rm - top) & 7)], 8);
    } else {
        read_vector(v, in->reg & 15, data);
        read_vector(v, in->rm & 15, mask);
    }
    r = masked_store(v, in->seg, v->st.gpr[X86_RDI] & ea_mask, ea_mask, data, mask, is_mmx ? 8 : 16,
                     1);
    if (r == 0 && is_mmx) {
        enter_mmx(v);
    }
    return r;
}

int vector_op_vmaskmov(struct engine_vcpu *v, const struct insn *in)
{
    bool is_integer = in->opcode == 0x8c || in->opcode == 0x8e;
    bool is_store = in->opcode == 0x2e || in->opcode == 0x2f || in->opcode == 0x8e;
    unsigned bytes = (is_integer ? (in->rex & 8) != 0 : (in->opcode & 1) != 0) ? 8 : 4;
    unsigned count = (in->vex_l ? 32u : 16u) / bytes;
    uint64_t ea_mask = interp_mask(in->addrsize_bytes);
    uint64_t ea = interp_ea(v, in);
    uint8_t data[YMM_BYTES] = {0};
    uint8_t mask[YMM_BYTES];
    int r = interp_check_fpu(v, in);

    if (r != 0) {
        return r;
    }
    fpu_normalize(&v->st);
    read_vector(v, in->vex_vvvv & 15, mask);
    if (is_store) {
        read_vector(v, in->reg & 15, data);
        return masked_store(v, in->seg, ea, ea_mask, data, mask, count, bytes);
    }
    for (unsigned i = 0; i < count && r == 0; i++) {
        if (mask_bit(mask, i, bytes)) {
            r = interp_read(v, in->seg, (ea + i * bytes) & ea_mask, data + i * bytes, bytes);
        }
    }
    if (r == 0) {
        write_vector(v, in->reg & 15, data);
    }
    return r;
}

/*
 * Elements done are committed even when a later one faults or waits for a
 * device: their mask is cleared, so that the instruction goes on behind them
 * (SDM 2C VPGATHERDD).
 */
int vector_op_gather(struct engine_vcpu *v, const struct insn *in)
{
    unsigned index_bytes = (in->opcode & 1) != 0 ? 8 : 4;
    unsigned bytes = (in->rex & 8) != 0 ? 8 : 4;
    unsigned count = (in->vex_l ? 32u : 16u) / (bytes > index_bytes ? bytes : index_bytes);
    unsigned index_reg = ((in->bytes[in->sib_off] >> 3) & 7u) | ((in->rex & 2) != 0 ? 8u : 0u);
    uint8_t result[YMM_BYTES];
    uint8_t mask[YMM_BYTES];
    uint8_t index[YMM_BYTES];
    bool any = false;
    uint64_t base = (uint64_t)in->disp + (in->base != INSN_REG_NONE ? v->st.gpr[in->base & 15] : 0);
    int r = interp_check_fpu(v, in);

    if (r != 0) {
        return r;
    }
    if (in->reg == in->vex_vvvv || in->reg == index_reg || in->vex_vvvv == index_reg) {
        return engine_raise(v, X86_VEC_UD);
    }
    fpu_normalize(&v->st);
    read_vector(v, in->reg & 15, result);
    read_vector(v, in->vex_vvvv & 15, mask);
    read_vector(v, index_reg, index);
    /* The sign of each element becomes its mask before anything is read. */
    for (unsigned i = 0; i < YMM_BYTES / bytes; i++) {
        memset(mask + i * bytes, mask_bit(mask, i, bytes) ? 0xff : 0, bytes);
    }
    for (unsigned i = 0; i < count && r == 0; i++) {
        uint64_t offset = 0;
        uint64_t value = 0;

        if (!mask_bit(mask, i, bytes)) {
            continue;
        }
        memcpy(&offset, index + i * index_bytes, index_bytes);
        offset = interp_sign_extend(offset, index_bytes) * in->scale;
        r = interp_load(v, in->seg, (base + offset) & interp_mask(in->addrsize_bytes), bytes,
                        &value);
        if (r == 0) {
            memcpy(result + i * bytes, &value, bytes);
            memset(mask + i * bytes, 0, bytes);
            interp_io_clear(v);
            any = true;
        }
    }
    if (r == 0) {
        memset(mask, 0, sizeof(mask));
        memset(result + count * bytes, 0, sizeof(result) - count * bytes);
    } else if (!in->vex_l) {
        memset(mask + 16, 0, 16);
        if (any) {
            memset(result + 16, 0, 16);
        }
    }
    write_vector(v, in->reg & 15, result);
    write_vector(v, in->vex_vvvv & 15, mask);
    return r;
}
