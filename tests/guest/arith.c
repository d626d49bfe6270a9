/* Integer instructions: results and flags, over values at the edges of each width. */
#include "user_level.h"

#define FLAGS_ALL 0x8d5u   /* CF PF AF ZF SF OF */
#define FLAGS_NO_AF 0x8c5u /* logical operations leave AF undefined */
#define FLAGS_CF_OF 0x801u
#define FLAGS_ZF 0x40u

static const uint64_t edges[] = {0,
                                 1,
                                 2,
                                 3,
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
                                 0x7fffffffffffffffull,
                                 0x8000000000000000ull,
                                 0xffffffffffffffffull,
                                 0x0123456789abcdefull,
                                 0xdeadbeefcafebabeull};
#define EDGES (sizeof(edges) / sizeof(edges[0]))

/* Two operands; CF is set before when the first operand is odd. */
#define BINARY(name, text, reg, mask)                                                   \
    static void name(void)                                                              \
    {                                                                                   \
        uint64_t sum = MIX_START;                                                       \
        for (unsigned i = 0; i < EDGES; i++) {                                          \
            for (unsigned j = 0; j < EDGES; j++) {                                      \
                uint64_t a = edges[i];                                                  \
                uint64_t b = edges[j];                                                  \
                uint64_t flags;                                                         \
                __asm__ volatile("bt $0, %[a]\n\t" text " %" reg "[b], %" reg "[a]\n\t" \
                                 "pushfq\n\tpop %[f]"                                   \
                                 : [a] "+&r"(a), [f] "=&r"(flags)                       \
                                 : [b] "r"(b)                                           \
                                 : "cc", "memory");                                     \
                sum = mix(mix(sum, a), flags & (mask));                                 \
            }                                                                           \
        }                                                                               \
        show(#name, sum);                                                               \
    }

#define BINARY_ALL(op, mask)           \
    BINARY(op##_b, #op "b", "b", mask) \
    BINARY(op##_w, #op "w", "w", mask) \
    BINARY(op##_l, #op "l", "k", mask) \
    BINARY(op##_q, #op "q", "q", mask)

BINARY_ALL(add, FLAGS_ALL)
BINARY_ALL(adc, FLAGS_ALL)
BINARY_ALL(sub, FLAGS_ALL)
BINARY_ALL(sbb, FLAGS_ALL)
BINARY_ALL(cmp, FLAGS_ALL)
BINARY_ALL(and, FLAGS_NO_AF)
BINARY_ALL(or, FLAGS_NO_AF)
BINARY_ALL(xor, FLAGS_NO_AF)
BINARY_ALL(test, FLAGS_NO_AF)
BINARY(imul_w, "imulw", "w", FLAGS_CF_OF)
BINARY(imul_l, "imull", "k", FLAGS_CF_OF)
BINARY(imul_q, "imulq", "q", FLAGS_CF_OF)
BINARY(xchg_b, "xchgb", "b", FLAGS_ALL & ~0x8d5u)
BINARY(xadd_q, "xaddq", "q", FLAGS_ALL)
BINARY(bt_q, "btq", "q", 1)
BINARY(bts_q, "btsq", "q", 1)
BINARY(btr_l, "btrl", "k", 1)
BINARY(btc_w, "btcw", "w", 1)
BINARY(cmovc_q, "cmovcq", "q", 0)
BINARY(cmovnc_l, "cmovncl", "k", 0)

/* Shifts and rotates by every count: CF always (count within width), the rest but OF and AF. */
#define SHIFT(name, text, reg, mask)                                             \
    static void name(void)                                                       \
    {                                                                            \
        uint64_t sum = MIX_START;                                                \
        for (unsigned i = 0; i < EDGES; i++) {                                   \
            for (uint64_t n = 0; n < 8; n++) {                                   \
                uint64_t a = edges[i];                                           \
                uint64_t flags;                                                  \
                __asm__ volatile("bt $0, %[a]\n\t" text " %%cl, %" reg "[a]\n\t" \
                                 "pushfq\n\tpop %[f]"                            \
                                 : [a] "+&r"(a), [f] "=&r"(flags)                \
                                 : "c"(n)                                        \
                                 : "cc", "memory");                              \
                sum = mix(mix(sum, a), n == 0 ? 0 : flags & (mask));             \
            }                                                                    \
        }                                                                        \
        show(#name, sum);                                                        \
    }

#define SHIFT_ALL(op, mask)           \
    SHIFT(op##_b, #op "b", "b", mask) \
    SHIFT(op##_w, #op "w", "w", mask) \
    SHIFT(op##_l, #op "l", "k", mask) \
    SHIFT(op##_q, #op "q", "q", mask)

SHIFT_ALL(shl, 0xc5)
SHIFT_ALL(shr, 0xc5)
SHIFT_ALL(sar, 0xc5)
SHIFT_ALL(rol, 1)
SHIFT_ALL(ror, 1)
SHIFT_ALL(rcl, 1)
SHIFT_ALL(rcr, 1)

static void multiply_divide(void)
{
    uint64_t sum = MIX_START;

    for (unsigned i = 0; i < EDGES; i++) {
        for (unsigned j = 0; j < EDGES; j++) {
            uint64_t low = edges[i];
            uint64_t high;
            __asm__ volatile("mulq %2" : "+a"(low), "=d"(high) : "r"(edges[j]) : "cc");
            sum = mix(mix(sum, low), high);
            low = edges[i];
            __asm__ volatile("imulq %2" : "+a"(low), "=d"(high) : "r"(edges[j]) : "cc");
            sum = mix(mix(sum, low), high);
            if (edges[j] != 0) {
                high = edges[i] % edges[j];
                low = edges[j];
                __asm__ volatile("divq %2" : "+a"(low), "+d"(high) : "r"(edges[j]) : "cc");
                sum = mix(mix(sum, low), high);
                uint32_t l = (uint32_t)edges[i];
                uint32_t h = 0;
                const uint32_t d = (uint32_t)edges[j] | 1;
                __asm__ volatile("divl %2" : "+a"(l), "+d"(h) : "r"(d) : "cc");
                sum = mix(mix(sum, l), h);
            }
        }
    }
    show("multiply_divide", sum);
}

static void bits(void)
{
    uint64_t sum = MIX_START;

    for (unsigned i = 0; i < EDGES; i++) {
        uint64_t r = 0;
        uint64_t flags;
        if (edges[i] != 0) {
            __asm__ volatile("bsfq %1, %0" : "=r"(r) : "r"(edges[i]) : "cc");
            sum = mix(sum, r);
            __asm__ volatile("bsrq %1, %0" : "=r"(r) : "r"(edges[i]) : "cc");
            sum = mix(sum, r);
        }
        __asm__ volatile("popcntq %2, %0\n\tpushfq\n\tpop %1"
                         : "=&r"(r), "=r"(flags)
                         : "r"(edges[i])
                         : "cc", "memory");
        sum = mix(mix(sum, r), flags & FLAGS_ALL);
        r = edges[i];
        __asm__ volatile("bswapq %0" : "+r"(r));
        sum = mix(sum, r);
        r = edges[i];
        __asm__ volatile("shldq $13, %1, %0\n\tshrdl $7, %k1, %k0" : "+r"(r) : "r"(~r) : "cc");
        sum = mix(sum, r);
        __asm__ volatile("movsbq %b1, %0" : "=r"(r) : "q"(edges[i]));
        sum = mix(sum, r);
        __asm__ volatile("movslq %k1, %0" : "=r"(r) : "r"(edges[i]));
        sum = mix(sum, r);
        uint64_t d;
        __asm__ volatile("cqto" : "=d"(d) : "a"(edges[i]));
        sum = mix(sum, d);
    }
    show("bits", sum);
}

static uint64_t memory[4];

static void compare_exchange(void)
{
    uint64_t sum = MIX_START;

    for (unsigned i = 0; i < EDGES; i++) {
        memory[0] = edges[i];
        uint64_t a = edges[(i * 7) % EDGES];
        uint64_t flags;
        __asm__ volatile("lock cmpxchgq %3, %1\n\tpushfq\n\tpop %2"
                         : "+a"(a), "+m"(memory[0]), "=r"(flags)
                         : "r"(edges[EDGES - 1 - i])
                         : "cc", "memory");
        sum = mix(mix(mix(sum, a), memory[0]), flags & FLAGS_ALL);
    }
    static uint64_t pair[2] __attribute__((aligned(16)));
    for (unsigned i = 0; i < 4; i++) {
        uint64_t a = i;
        uint64_t d = 1;
        uint8_t same;
        pair[0] = 2;
        pair[1] = 1;
        __asm__ volatile("lock cmpxchg16b %2\n\tsetz %3"
                         : "+a"(a), "+d"(d), "+m"(pair), "=q"(same)
                         : "b"(0x55ull), "c"(0xaaull)
                         : "cc");
        sum = mix(mix(mix(mix(sum, a), d), pair[0]), pair[1] + same);
    }
    show("compare_exchange", sum);
}

static void address_forms(void)
{
    static const uint32_t table[8] = {10, 11, 12, 13, 14, 15, 16, 17};
    uint64_t sum = MIX_START;

    for (uint64_t i = 0; i < 4; i++) {
        uint64_t r = 0;
        __asm__ volatile("movl 4(%1,%2,4), %k0" : "=r"(r) : "r"(table), "r"(i));
        sum = mix(sum, r);
        __asm__ volatile("leaq -5(%1,%1,8), %0" : "=r"(r) : "r"(i));
        sum = mix(sum, r);
        __asm__ volatile("leal 0x7fffffff(%k1,%k1,2), %k0" : "=r"(r) : "r"(i));
        sum = mix(sum, r);
    }
    /* High byte registers, and 32-bit results that clear the upper half. */
    uint64_t a = 0x1122334455667788ull;
    __asm__ volatile("movb %%al, %%ah\n\taddb $0x90, %%ah\n\tmovb %%ah, %%al" : "+a"(a) : : "cc");
    sum = mix(sum, a);
    __asm__ volatile("movl %%eax, %%eax" : "+a"(a));
    show("address_forms", mix(sum, a));
}

int main(void)
{
#define BWLQ(op) op##_b(), op##_w(), op##_l(), op##_q()
    BWLQ(add), BWLQ(adc), BWLQ(sub), BWLQ(sbb), BWLQ(cmp);
    BWLQ(and), BWLQ(or), BWLQ(xor), BWLQ(test);
    imul_w(), imul_l(), imul_q();
    xchg_b(), xadd_q(), bt_q(), bts_q(), btr_l(), btc_w(), cmovc_q(), cmovnc_l();
    BWLQ(shl), BWLQ(shr), BWLQ(sar), BWLQ(rol), BWLQ(ror), BWLQ(rcl), BWLQ(rcr);
    multiply_divide();
    bits();
    compare_exchange();
    address_forms();
    return 0;
}
