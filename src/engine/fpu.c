/*
 * Saving and restoring x87, SSE and AVX state from the image in vcpu_state
 * (SDM 1 chapters 8.1.10, 10.5, 13). Instruction and data pointers of the x87
 * read as zero: the host's would be those of our copies.
 */
#include "engine/interp.h"

#include "base/wire.h"

#include <string.h>

#define OFF_FCW 0u
#define OFF_FSW 2u
#define OFF_FTW 4u
#define FSW_ES 0x0080u
#define FSW_B 0x8000u
#define OFF_MXCSR 24u
#define OFF_MXCSR_MASK 28u
#define OFF_ST 32u
#define OFF_XMM 160u
#define OFF_XSTATE_BV 512u
#define OFF_XCOMP_BV 520u
#define XCR0_HIDDEN 0xf8ull /* MPX and AVX-512, behind AVX in a compacted area */
#define OFF_YMM_HIGH 576u

#define LEGACY_BYTES 416u
#define HEADER_END 576u
#define FULL_BYTES 832u

#define FCW_INIT 0x37fu
#define MXCSR_INIT 0x1f80u
#define MXCSR_MASK_DEFAULT 0xffbfu
#define COMPACTED (1ull << 63)

/* Components whose XSTATE_BV bit is clear hold their initial values (SDM 1 13.6). */
void fpu_normalize(struct vcpu_state *st)
{
    uint64_t in_use = load_le64(&st->xsave[OFF_XSTATE_BV]);

    if ((in_use & X86_XCR0_X87) == 0) {
        memset(st->xsave, 0, OFF_MXCSR);
        memset(&st->xsave[OFF_ST], 0, OFF_XMM - OFF_ST);
        store_le16(&st->xsave[OFF_FCW], FCW_INIT);
    }
    if ((in_use & X86_XCR0_SSE) == 0) {
        memset(&st->xsave[OFF_XMM], 0, 256);
    }
    if ((in_use & X86_XCR0_AVX) == 0) {
        memset(&st->xsave[OFF_YMM_HIGH], 0, 256);
    }
}

void fpu_hide_pointers(struct vcpu_state *st)
{
    memset(&st->xsave[6], 0, OFF_MXCSR - 6);
}

void fpu_mark_in_use(struct vcpu_state *st, uint64_t components)
{
    store_le64(&st->xsave[OFF_XSTATE_BV], load_le64(&st->xsave[OFF_XSTATE_BV]) | components);
}

static unsigned vector_bytes(const struct engine_vcpu *v)
{
    return interp_is_64(v) ? 256 : 128;
}

/* The host's, since its CPU computes (SDM 1 11.6.6). */
static uint32_t mxcsr_mask(void)
{
    uint8_t area[512] ALIGNED(16) = {0};
    uint32_t mask;

    __asm__ volatile("fxsave64 %0" : "=m"(area));
    mask = load_le32(&area[OFF_MXCSR_MASK]);
    return mask != 0 ? mask : MXCSR_MASK_DEFAULT;
}

/* The linear address of an area, aligned as it must be. */
static int area_address(struct engine_vcpu *v, const struct insn *in, unsigned bytes,
                        unsigned align, enum mmu_access access, uint64_t *ret_va)
{
    int r = interp_linear(v, in->seg, interp_ea(v, in), bytes, access, ret_va);

    if (r == 0 && (*ret_va & (align - 1)) != 0) {
        r = engine_raise_error(v, X86_VEC_GP, 0);
    }
    return r;
}

static int save_range(struct engine_vcpu *v, uint64_t va, unsigned offset, unsigned bytes)
{
    return mmu_write(v, va + offset, &v->st.xsave[offset], bytes, mmu_current_mode(v));
}

/* All pages of the area are checked before anything is written. */
static int check_writable(struct engine_vcpu *v, uint64_t va, unsigned bytes)
{
    struct mmu_page page;
    int r = mmu_fill(v, va, MMU_WRITE, mmu_current_mode(v), &page);

    return r != 0 ? r : mmu_fill(v, va + bytes - 1, MMU_WRITE, mmu_current_mode(v), &page);
}

static int check_xsave(struct engine_vcpu *v)
{
    if ((v->st.cr4 & X86_CR4_OSXSAVE) == 0) {
        return engine_raise(v, X86_VEC_UD);
    }
    return (v->st.cr0 & X86_CR0_TS) != 0 ? engine_raise(v, X86_VEC_NM) : 0;
}

static uint64_t requested(const struct engine_vcpu *v)
{
    return v->st.xcr0 & ((v->st.gpr[X86_RDX] << 32) | (v->st.gpr[X86_RAX] & 0xffffffffu));
}

/* Writes the components in write, MXCSR when with_mxcsr. */
static int save_components(struct engine_vcpu *v, uint64_t va, uint64_t write, bool with_mxcsr)
{
    int r = 0;

    if ((write & X86_XCR0_X87) != 0) {
        r = save_range(v, va, 0, OFF_MXCSR);
        if (r == 0) {
            r = save_range(v, va, OFF_ST, OFF_XMM - OFF_ST);
        }
    }
    if (r == 0 && with_mxcsr) {
        r = save_range(v, va, OFF_MXCSR, 8);
    }
    if (r == 0 && (write & X86_XCR0_SSE) != 0) {
        r = save_range(v, va, OFF_XMM, vector_bytes(v));
    }
    if (r == 0 && (write & X86_XCR0_AVX) != 0) {
        r = save_range(v, va, OFF_YMM_HIGH, vector_bytes(v));
    }
    return r;
}

int fpu_op_xsave(struct engine_vcpu *v, const struct insn *in)
{
    bool compacts = in->opcode == 0xc7;
    bool optimizes = compacts || ((in->bytes[in->modrm_off] >> 3) & 7) == 6;
    uint64_t mask = requested(v);
    unsigned bytes = (mask & X86_XCR0_AVX) != 0 ? FULL_BYTES : HEADER_END;
    enum mmu_mode mode = mmu_current_mode(v);
    uint64_t header[2] = {0};
    uint64_t in_use;
    uint64_t va = 0;
    int r = check_xsave(v);

    if (r == 0) {
        r = area_address(v, in, bytes, 64, MMU_WRITE, &va);
    }
    if (r == 0) {
        /* Of no component only the header is touched. */
        r = mask != 0 ? check_writable(v, va, bytes)
                      : check_writable(v, va + OFF_XSTATE_BV, HEADER_END - OFF_XSTATE_BV);
    }
    if (r == 0 && !compacts) {
        r = mmu_read(v, va + OFF_XSTATE_BV, &header[0], 8, mode);
    }
    if (r != 0) {
        return r;
    }
    fpu_normalize(&v->st);
    fpu_hide_pointers(&v->st);
    store_le32(&v->st.xsave[OFF_MXCSR_MASK], mxcsr_mask());
    in_use = load_le64(&v->st.xsave[OFF_XSTATE_BV]);
    if (compacts && load_le32(&v->st.xsave[OFF_MXCSR]) != MXCSR_INIT) {
        in_use |= X86_XCR0_SSE;
    }
    r = save_components(v, va, optimizes ? mask & in_use : mask,
                        compacts ? (mask & in_use & X86_XCR0_SSE) != 0
                                 : (mask & (X86_XCR0_SSE | X86_XCR0_AVX)) != 0);
    header[0] = (header[0] & ~mask) | (in_use & mask);
    header[1] = mask | COMPACTED;
    if (r == 0) {
        r = mmu_write(v, va + OFF_XSTATE_BV, header, compacts ? 16 : 8, mode);
    }
    return r;
}

/* What XSAVEC that ran natively may name beside the guest's components; it stores none of it. */
static uint64_t hidden_components(const struct engine_vcpu *v)
{
    return v->vm->native_user != NULL ? XCR0_HIDDEN : 0;
}

/* The rules of the header of XRSTOR (SDM 1 13.8); compaction as CPUID promises. */
static bool header_is_valid(const struct engine_vcpu *v, const uint8_t header[64])
{
    uint64_t state_bv = load_le64(header);
    uint64_t comp_bv = load_le64(header + 8);

    for (unsigned i = 16; i < ((comp_bv & COMPACTED) != 0 ? 64u : 24u); i++) {
        if (header[i] != 0) {
            return false;
        }
    }
    if ((comp_bv & COMPACTED) == 0) {
        return comp_bv == 0 && (state_bv & ~v->st.xcr0) == 0;
    }
    comp_bv &= ~COMPACTED;
    return v->env != NULL && cpuid_has(v->env->cpuid, 0xd, 1, 0, 1) &&
           (comp_bv & ~(v->st.xcr0 | hidden_components(v))) == 0 &&
           (state_bv & ~(comp_bv & v->st.xcr0)) == 0;
}

static void restore_x87(struct vcpu_state *st, const uint8_t *area)
{
    memcpy(st->xsave, area, OFF_MXCSR);
    memcpy(&st->xsave[OFF_ST], area + OFF_ST, OFF_XMM - OFF_ST);
    /* FSW keeps its bits; the ST registers' padding is not architectural. */
}

static void set_components(struct engine_vcpu *v, const uint8_t *area, uint64_t mask,
                           uint64_t state_bv)
{
    struct vcpu_state *st = &v->st;
    uint64_t old = load_le64(&st->xsave[OFF_XSTATE_BV]);

    fpu_normalize(st);
    if ((mask & state_bv & X86_XCR0_X87) != 0) {
        restore_x87(st, area);
    }
    if ((mask & state_bv & X86_XCR0_SSE) != 0) {
        memcpy(&st->xsave[OFF_XMM], area + OFF_XMM, vector_bytes(v));
    }
    if ((mask & state_bv & X86_XCR0_AVX) != 0) {
        memcpy(&st->xsave[OFF_YMM_HIGH], area + OFF_YMM_HIGH, vector_bytes(v));
    }
    if (!interp_is_64(v)) {
        /* Initialising leaves the upper eight registers there (SDM 1 13.8.1): it is a load of 0. */
        const uint64_t cleared = mask & ~state_bv & (X86_XCR0_SSE | X86_XCR0_AVX);

        memset(&st->xsave[OFF_XMM], 0, (cleared & X86_XCR0_SSE) != 0 ? vector_bytes(v) : 0);
        memset(&st->xsave[OFF_YMM_HIGH], 0, (cleared & X86_XCR0_AVX) != 0 ? vector_bytes(v) : 0);
        state_bv |= cleared;
    }
    store_le64(&st->xsave[OFF_XSTATE_BV], (old & ~mask) | (state_bv & mask));
    fpu_normalize(st);
}

int fpu_op_xrstor(struct engine_vcpu *v, const struct insn *in)
{
    uint64_t mask = requested(v);
    unsigned bytes = (mask & X86_XCR0_AVX) != 0 ? FULL_BYTES : HEADER_END;
    uint8_t area[FULL_BYTES] = {0};
    bool compacted;
    bool loads_mxcsr;
    uint64_t state_bv;
    uint64_t va = 0;
    int r = check_xsave(v);

    if (r == 0) {
        r = area_address(v, in, bytes, 64, MMU_READ, &va);
    }
    if (r == 0) {
        r = mmu_read(v, va, area, bytes, mmu_current_mode(v));
    }
    if (r != 0) {
        return r;
    }
    state_bv = load_le64(&area[OFF_XSTATE_BV]);
    compacted = (load_le64(&area[OFF_XCOMP_BV]) & COMPACTED) != 0;
    loads_mxcsr = compacted ? (mask & state_bv & X86_XCR0_SSE) != 0
                            : (mask & (X86_XCR0_SSE | X86_XCR0_AVX)) != 0;
    if (!header_is_valid(v, &area[OFF_XSTATE_BV]) ||
        (loads_mxcsr && (load_le32(&area[OFF_MXCSR]) & ~mxcsr_mask()) != 0)) {
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    set_components(v, area, mask, state_bv);
    if (loads_mxcsr) {
        memcpy(&v->st.xsave[OFF_MXCSR], &area[OFF_MXCSR], 4);
    } else if (compacted && (mask & X86_XCR0_SSE) != 0) {
        store_le32(&v->st.xsave[OFF_MXCSR], MXCSR_INIT);
    }
    return 0;
}

static int check_fxsave(struct engine_vcpu *v)
{
    return (v->st.cr0 & (X86_CR0_EM | X86_CR0_TS)) != 0 ? engine_raise(v, X86_VEC_NM) : 0;
}

int fpu_op_fxsave(struct engine_vcpu *v, const struct insn *in)
{
    bool with_sse = (v->st.cr4 & X86_CR4_OSFXSR) != 0;
    uint64_t va = 0;
    int r = check_fxsave(v);

    if (r == 0) {
        r = area_address(v, in, 512, 16, MMU_WRITE, &va);
    }
    if (r == 0) {
        r = check_writable(v, va, 512);
    }
    if (r != 0) {
        return r;
    }
    fpu_normalize(&v->st);
    fpu_hide_pointers(&v->st);
    store_le32(&v->st.xsave[OFF_MXCSR_MASK], mxcsr_mask());
    r = save_range(v, va, 0, OFF_XMM);
    if (r == 0 && with_sse) {
        r = save_range(v, va, OFF_XMM, vector_bytes(v));
    }
    return r;
}

int fpu_op_fxrstor(struct engine_vcpu *v, const struct insn *in)
{
    bool with_sse = (v->st.cr4 & X86_CR4_OSFXSR) != 0;
    uint8_t area[FULL_BYTES] = {0};
    uint64_t mask = with_sse ? X86_XCR0_X87 | X86_XCR0_SSE : X86_XCR0_X87;
    uint64_t va = 0;
    int r = check_fxsave(v);

    if (r == 0) {
        r = area_address(v, in, 512, 16, MMU_READ, &va);
    }
    if (r == 0) {
        r = mmu_read(v, va, area, 512, mmu_current_mode(v));
    }
    if (r == 0 && with_sse && (load_le32(&area[OFF_MXCSR]) & ~mxcsr_mask()) != 0) {
        r = engine_raise_error(v, X86_VEC_GP, 0);
    }
    if (r == 0) {
        set_components(v, area, mask, mask);
        if (with_sse) {
            memcpy(&v->st.xsave[OFF_MXCSR], &area[OFF_MXCSR], 4);
        }
    }
    return r;
}

/* The two-bit tag of one register from its contents (SDM 1 8.1.7). */
static unsigned full_tag(const uint8_t *st)
{
    uint64_t mantissa = load_le64(st);
    unsigned exponent = load_le16(st + 8) & 0x7fff;

    if (exponent == 0 && mantissa == 0) {
        return 1;
    }
    return exponent == 0 || exponent == 0x7fff || (mantissa >> 63) == 0 ? 2 : 0;
}

static uint16_t full_tag_word(const uint8_t *xsave)
{
    unsigned top = (load_le16(&xsave[OFF_FSW]) >> 11) & 7;
    unsigned word = 0;

    for (unsigned i = 0; i < 8; i++) {
        unsigned tag = 3;

        if ((xsave[OFF_FTW] & (1u << i)) != 0) {
            tag = full_tag(&xsave[OFF_ST + 16 * ((i - top) & 7)]);
        }
        word |= tag << (2 * i);
    }
    return (uint16_t)word;
}

/* FNSTENV and FNSAVE: environment, then for FNSAVE the registers and FNINIT. */
/* FNINIT leaves the contents of the registers; the image has them by distance from TOP. */
static void fninit(struct vcpu_state *st)
{
    const unsigned top = (load_le16(&st->xsave[OFF_FSW]) >> 11) & 7;
    uint8_t old[8 * 16];

    memcpy(old, &st->xsave[OFF_ST], sizeof(old));
    for (unsigned i = 0; i < 8; i++) {
        memcpy(&st->xsave[OFF_ST + 16 * i], old + 16 * ((i - top) & 7), 16);
    }
    memset(st->xsave, 0, OFF_MXCSR);
    store_le16(&st->xsave[OFF_FCW], FCW_INIT);
}

int fpu_op_fnstenv(struct engine_vcpu *v, const struct insn *in)
{
    bool is_save = in->opcode == 0xdd;
    unsigned word = in->opsize_bytes == 2 ? 2 : 4;
    uint8_t image[108];
    uint8_t *xsave = v->st.xsave;
    uint16_t head[3];
    int r = interp_check_fpu(v, in);

    if (r != 0) {
        return r;
    }
    fpu_normalize(&v->st);
    fpu_hide_pointers(&v->st);
    head[0] = load_le16(&xsave[OFF_FCW]);
    head[1] = load_le16(&xsave[OFF_FSW]);
    head[2] = full_tag_word(xsave);
    memset(image, 0, sizeof(image));
    for (unsigned i = 0; i < 3; i++) {
        store_le16(&image[i * word], head[i]);
        if (word == 4) {
            store_le16(&image[i * word + 2], 0xffff);
        }
    }
    if (word == 4) {
        store_le16(&image[6 * word + 2], 0xffff);
    }
    for (unsigned i = 0; i < 8; i++) {
        memcpy(&image[7 * word + 10 * i], &xsave[OFF_ST + 16 * i], 10);
    }
    r = interp_write(v, in->seg, interp_ea(v, in), image, is_save ? 7 * word + 80 : 7 * word);
    if (r != 0) {
        return r;
    }
    if (is_save) {
        fninit(&v->st);
    } else {
        /* All masked: no exception is pending any more. */
        store_le16(&xsave[OFF_FCW], head[0] | 0x3f);
        store_le16(&xsave[OFF_FSW], (uint16_t)(head[1] & ~(FSW_ES | FSW_B)));
    }
    fpu_mark_in_use(&v->st, X86_XCR0_X87);
    return 0;
}
