#include "fuzz.h"

#include <string.h>

uint8_t fuzz_pristine[FUZZ_DATA_BYTES];

#define XSAVE_FCW 0
#define XSAVE_FSW 2
#define XSAVE_FTW 4
#define XSAVE_FOP 6
#define XSAVE_FIP 8
#define XSAVE_FDP 16
#define XSAVE_MXCSR 24
#define XSAVE_MXCSR_MASK 28
#define XSAVE_ST 32
#define XSAVE_XMM 160
#define XSAVE_XMM_END 416
#define XSAVE_HEADER 512
#define XSAVE_YMM_HI 576

#define FSW_ERROR_SUMMARY 0x8080u /* ES and B */
#define FCW_INIT 0x37f
#define MXCSR_INIT 0x1f80

uint64_t fuzz_integer(struct fuzz_rng *rng)
{
    static const uint64_t special[] = {0,
                                       1,
                                       2,
                                       0x7f,
                                       0x80,
                                       0xff,
                                       0x100,
                                       0x7fff,
                                       0x8000,
                                       0xffff,
                                       0x10000,
                                       0x7fffffff,
                                       0x80000000,
                                       0xffffffff,
                                       0x100000000,
                                       0x7fffffffffffffff,
                                       0x8000000000000000,
                                       0xffffffffffffffff,
                                       0xffffffff80000000};

    switch (fuzz_below(rng, 5)) {
    case 0:
        return special[fuzz_below(rng, sizeof(special) / sizeof(special[0]))];
    case 1:
        return fuzz_below(rng, 256);
    case 2:
        return (uint64_t)(int64_t)(int32_t)fuzz_random(rng);
    default:
        return fuzz_random(rng);
    }
}

static uint32_t random_single(struct fuzz_rng *rng)
{
    static const uint32_t special[] = {0,          0x80000000, 0x3f800000, 0xbf800000, 0x7f800000,
                                       0xff800000, 0x7fc00000, 0x7f800001, 0xffc12345, 0x00000001,
                                       0x807fffff, 0x00800000, 0x7f7fffff, 0x4f000000, 0xcf000000,
                                       0x3effffff, 0x40490fdb, 0x4b000001};

    if (fuzz_chance(rng, 60)) {
        return special[fuzz_below(rng, sizeof(special) / sizeof(special[0]))];
    }
    return (uint32_t)fuzz_random(rng);
}

static uint64_t random_double(struct fuzz_rng *rng)
{
    static const uint64_t special[] = {0,
                                       0x8000000000000000,
                                       0x3ff0000000000000,
                                       0xbff0000000000000,
                                       0x7ff0000000000000,
                                       0xfff0000000000000,
                                       0x7ff8000000000000,
                                       0x7ff0000000000001,
                                       0xfff8123456789abc,
                                       0x0000000000000001,
                                       0x800fffffffffffff,
                                       0x0010000000000000,
                                       0x7fefffffffffffff,
                                       0x43e0000000000000,
                                       0xc3e0000000000000,
                                       0x41dfffffffc00000,
                                       0x36a0000000000000,
                                       0x47efffffe0000000};

    if (fuzz_chance(rng, 60)) {
        return special[fuzz_below(rng, sizeof(special) / sizeof(special[0]))];
    }
    return fuzz_random(rng);
}

void fuzz_fill_vector(struct fuzz_rng *rng, uint8_t *out, unsigned bytes)
{
    const unsigned kind = fuzz_below(rng, 5);

    for (unsigned i = 0; i < bytes; i += 8) {
        const unsigned n = bytes - i < 8 ? bytes - i : 8;
        uint64_t value;

        switch (kind) {
        case 0:
            value = random_single(rng) | (uint64_t)random_single(rng) << 32;
            break;
        case 1:
            value = random_double(rng);
            break;
        case 2:
            value = fuzz_integer(rng);
            break;
        case 3:
            value = fuzz_random(rng) & fuzz_random(rng) & 0x0707070707070707ull;
            break;
        default:
            value = fuzz_random(rng);
            break;
        }
        memcpy(out + i, &value, n);
    }
}

static void fill_st(struct fuzz_rng *rng, uint8_t *out)
{
    static const struct {
        uint64_t mantissa;
        uint16_t exponent;
    } special[] = {
        {0, 0},
        {0, 0x8000},
        {0x8000000000000000, 0x3fff}, /* 1 */
        {0x8000000000000000, 0xbfff},
        {0x8000000000000000, 0x7fff}, /* infinity */
        {0x8000000000000000, 0xffff},
        {0xc000000000000000, 0x7fff}, /* QNaN */
        {0xc000000000000000, 0xffff},
        {0x8000000000000001, 0x7fff}, /* SNaN */
        {1, 0},                       /* denormal */
        {0x8000000000000000, 0},      /* pseudo-denormal */
        {0x4000000000000000, 0x3fff}, /* unnormal */
        {0, 0x7fff},                  /* pseudo-infinity */
        {0xc90fdaa22168c235, 0x4000}, /* pi */
        {0xffffffffffffffff, 0x7ffe},
        {0x8000000000000000, 0x403e},
        {0x8000000000000000, 0x0001},
    };
    uint64_t mantissa = fuzz_random(rng);
    uint16_t exponent = (uint16_t)fuzz_random(rng);

    if (fuzz_chance(rng, 50)) {
        const unsigned i = fuzz_below(rng, sizeof(special) / sizeof(special[0]));

        mantissa = special[i].mantissa;
        exponent = special[i].exponent;
    } else if (fuzz_chance(rng, 80)) {
        mantissa |= 1ull << 63;
        exponent = (uint16_t)(0x3fff - 40 + fuzz_below(rng, 80)) | (exponent & 0x8000);
    }
    memset(out, 0, 16);
    memcpy(out, &mantissa, sizeof(mantissa));
    memcpy(out + 8, &exponent, sizeof(exponent));
}

static void put16(uint8_t *out, unsigned value)
{
    out[0] = (uint8_t)value;
    out[1] = (uint8_t)(value >> 8);
}

static void fill_x87(struct fuzz_rng *rng, uint8_t *xsave)
{
    const unsigned masks = fuzz_chance(rng, 85) ? 0x3f : fuzz_below(rng, 64);
    const unsigned fcw = 0x40 | masks | (fuzz_chance(rng, 70) ? 0x300 : fuzz_below(rng, 4) << 8) |
                         (fuzz_chance(rng, 60) ? 0 : fuzz_below(rng, 4) << 10);
    unsigned fsw =
        fuzz_below(rng, 8) << 11 | (fuzz_below(rng, 16) & 7) << 8 | fuzz_below(rng, 2) << 14;

    /* Flags of masked exceptions; with an unmasked one the next instruction raises #MF. */
    fsw |= fuzz_below(rng, 64) & (fuzz_chance(rng, 90) ? masks : 0x3f);
    if ((fsw & ~masks & 0x3f) != 0) {
        fsw |= FSW_ERROR_SUMMARY;
    }
    put16(xsave + XSAVE_FCW, fcw);
    put16(xsave + XSAVE_FSW, fsw);
    xsave[XSAVE_FTW] = (uint8_t)(fuzz_chance(rng, 40) ? 0xff : fuzz_random(rng));
    put16(xsave + XSAVE_FOP, 0x123);
    for (unsigned i = 0; i < 8; i++) {
        fill_st(rng, xsave + XSAVE_ST + 16 * i);
    }
}

void fuzz_fill_xsave(struct fuzz_rng *rng, uint8_t xsave[1024])
{
    const uint64_t fip = 0x1234567;
    const uint64_t fdp = 0x7654321;
    uint32_t mxcsr = MXCSR_INIT;

    memset(xsave, 0, 1024);
    fill_x87(rng, xsave);
    memcpy(xsave + XSAVE_FIP, &fip, sizeof(fip));
    memcpy(xsave + XSAVE_FDP, &fdp, sizeof(fdp));
    if (fuzz_chance(rng, 40)) {
        mxcsr = (uint32_t)fuzz_random(rng) & 0xffff;
        if (fuzz_chance(rng, 70)) {
            mxcsr |= MXCSR_INIT;
        }
    }
    memcpy(xsave + XSAVE_MXCSR, &mxcsr, sizeof(mxcsr));
    for (unsigned i = 0; i < 16; i++) {
        fuzz_fill_vector(rng, xsave + XSAVE_XMM + 16 * i, 16);
        fuzz_fill_vector(rng, xsave + XSAVE_YMM_HI + 16 * i, 16);
    }
    xsave[XSAVE_HEADER] = X86_XCR0_X87 | X86_XCR0_SSE | X86_XCR0_AVX;
}

void fuzz_normalize_xsave(uint8_t xsave[1024])
{
    const uint8_t in_use = xsave[XSAVE_HEADER];

    if ((in_use & X86_XCR0_X87) == 0) {
        memset(xsave, 0, XSAVE_MXCSR);
        memset(xsave + XSAVE_ST, 0, XSAVE_XMM - XSAVE_ST);
        put16(xsave + XSAVE_FCW, FCW_INIT);
    }
    if ((in_use & X86_XCR0_SSE) == 0) {
        memset(xsave + XSAVE_XMM, 0, XSAVE_XMM_END - XSAVE_XMM);
    }
    if ((in_use & X86_XCR0_AVX) == 0) {
        memset(xsave + XSAVE_YMM_HI, 0, 256);
    }
    memset(xsave + XSAVE_MXCSR_MASK, 0, 4);
    memset(xsave + XSAVE_XMM_END, 0, XSAVE_YMM_HI - XSAVE_XMM_END);
}
