/*
 * Instructions that a user may execute and that answer for the host, not for
 * the guest: RDTSCP, RDPID and LSL (which CPU), XGETBV and XSAVE (which state
 * there is), SMSW, RDPKRU, WRPKRU, RDPRU, and CPUID where it does not fault; and
 * the system call of a uprobe's trampoline, which Linux lets no filter see.
 */
#include "engine/native_int.h"

#include <emmintrin.h>
#include <string.h>

#define MOD(modrm) ((modrm) >> 6)
#define MOV_EAX_IMM32 0xb8
#define MODRM_EAX 0xc0
#define NUMBER_DISTANCE 16u
#define MASK_DISTANCE 80u /* it clears the header between */
/* Decoding begins so far before what was found, at so many places; of them, so many must lead
 * there. From wherever it begins, it soon is in step with the code that was meant. */
#define STEP_BACK 48u
#define STEP_STARTS 16u
#define STEP_AGREE 4u
#define REG(modrm) ((modrm) >> 3 & 7u)

/* 0F 01, with a register: forms with memory (SGDT, SIDT, SMSW) are in too much ordinary code. */
static bool group7_tells(uint8_t modrm)
{
    return MOD(modrm) == 3 && (REG(modrm) == 4 || modrm == 0xd0 || modrm == 0xee || modrm == 0xef ||
                               modrm == 0xf9 || modrm == 0xfd);
}

/* RDPID has F3 before it, perhaps with a REX prefix between. */
static bool has_f3(const uint8_t *page, const uint8_t *opcode)
{
    return opcode - page < 2 || opcode[-1] == 0xf3 || opcode[-2] == 0xf3;
}

/*
 * A mask of few components as a constant before it: a dynamic linker's way that is for CPUs
 * without XSAVEC, and the hosts with more state than the guest is told of have that.
 */
static bool has_mask(const uint8_t *page, const uint8_t *opcode)
{
    for (unsigned back = 5; back <= MASK_DISTANCE && opcode - page >= back; back++) {
        if (opcode[-(int)back] == MOV_EAX_IMM32 && opcode[2 - (int)back] == 0 &&
            opcode[3 - (int)back] == 0 && opcode[4 - (int)back] == 0) {
            return true;
        }
    }
    return false;
}

/* mov $336,%eax or %rax, and not far behind it SYSCALL. */
static bool has_uprobe_number(const uint8_t *page, const uint8_t *opcode)
{
    static const uint8_t number[] = {0x50, 0x01, 0, 0};

    for (unsigned back = sizeof(number); back <= NUMBER_DISTANCE && opcode - page > back; back++) {
        const uint8_t *at = opcode - back;

        if (memcmp(at, number, sizeof(number)) == 0 &&
            (at[-1] == MOV_EAX_IMM32 || at[-1] == MODRM_EAX)) {
            return true;
        }
    }
    return false;
}

/* b: what follows 0F, of which no more may be in the page. */
static bool tells(const uint8_t *page, const uint8_t *opcode, const uint8_t *b, bool flag_cpuid,
                  bool flag_xsave)
{
    switch (b[0]) {
    case 0x01:
        return group7_tells(b[1]);
    case 0x03: /* the operands of LSL that are used are registers */
        return MOD(b[1]) == 3;
    case 0x05:
        return has_uprobe_number(page, opcode);
    case 0xa2:
        return flag_cpuid;
    case 0xae:
        return flag_xsave && MOD(b[1]) != 3 && REG(b[1]) == 4 && !has_mask(page, opcode);
    case 0xc7:
        return MOD(b[1]) == 3 && REG(b[1]) == 7 && has_f3(page, opcode);
    default:
        return false;
    }
}

/* Begun there, does the code reach the opcode as that of an instruction? */
static bool leads_to(const uint8_t *page, unsigned start, unsigned opcode)
{
    struct insn insn;

    while (start <= opcode) {
        if (insn_decode(page + start, GMEM_PAGE_BYTES - start, INSN_MODE_64, &insn) != 0) {
            return true;
        }
        if (insn.map == 1 && start + insn.opcode_off - 1 == opcode) {
            return true;
        }
        start += insn.len != 0 ? insn.len : 1u;
    }
    return false;
}

/* Is it an instruction rather than a part of another? */
static bool is_meant(const uint8_t *page, const uint8_t *opcode)
{
    const unsigned at = (unsigned)(opcode - page);
    unsigned agree = 0;

    if (at < STEP_BACK) {
        return true;
    }
    for (unsigned i = 0; i < STEP_STARTS; i++) {
        agree += leads_to(page, at - STEP_BACK + i, at) ? 1 : 0;
    }
    return agree >= STEP_AGREE;
}

/* Which of 16 places hold 0F before a byte that tells() may know: next is what follows each. */
static unsigned candidates(__m128i bytes, __m128i next)
{
    static const uint8_t known[] = {0x01, 0x03, 0x05, 0xa2, 0xae, 0xc7};
    __m128i any = _mm_setzero_si128();

    for (unsigned i = 0; i < ARRAY_LEN(known); i++) {
        any = _mm_or_si128(any, _mm_cmpeq_epi8(next, _mm_set1_epi8((char)known[i])));
    }
    any = _mm_and_si128(any, _mm_cmpeq_epi8(bytes, _mm_set1_epi8(0x0f)));
    return (unsigned)_mm_movemask_epi8(any);
}

/* The first 0F from there on that may matter; the last bytes of a page may in any case. */
static const uint8_t *find(const uint8_t *at, const uint8_t *end)
{
    for (; end - at > 16; at += 16) {
        unsigned found = candidates(_mm_loadu_si128((const __m128i *)(const void *)at),
                                    _mm_loadu_si128((const __m128i *)(const void *)(at + 1)));

        if (found != 0) {
            return at + __builtin_ctz(found);
        }
    }
    return memchr(at, 0x0f, (size_t)(end - at));
}

int native_scan_next(const uint8_t *page, unsigned from, const uint8_t *next, bool flag_cpuid,
                     bool flag_xsave)
{
    const uint8_t *end = page + GMEM_PAGE_BYTES;
    const uint8_t *at = page + from;

    for (;;) {
        uint8_t follows[2] = {0x90, 0};

        at = find(at, end);
        if (at == NULL) {
            return -1;
        }
        at++;
        for (unsigned i = 0; i < 2; i++) {
            if (at + i < end) {
                follows[i] = at[i];
            } else if (next != NULL) {
                follows[i] = next[at + i - end];
            }
        }
        if (tells(page, at - 1, follows, flag_cpuid, flag_xsave) && is_meant(page, at - 1)) {
            return (int)(at - 1 - page);
        }
    }
}

bool native_scan_page(const uint8_t *page, const uint8_t *next, bool flag_cpuid, bool flag_xsave)
{
    return native_scan_next(page, 0, next, flag_cpuid, flag_xsave) >= 0;
}
