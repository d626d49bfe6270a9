/* String instructions: each width, both directions, repeats, and across pages. */
#include "user_level.h"

static uint8_t from[3 * 4096 + 64] __attribute__((aligned(4096)));
static uint8_t to[3 * 4096 + 64] __attribute__((aligned(4096)));

static uint64_t sum_of(const uint8_t *bytes, unsigned len)
{
    uint64_t sum = MIX_START;

    for (unsigned i = 0; i < len; i++) {
        sum = (sum ^ bytes[i]) * 0x100000001b3ull;
    }
    return sum;
}

static void fill(void)
{
    uint32_t x = 12345;

    for (unsigned i = 0; i < sizeof(from); i++) {
        x = x * 1103515245u + 12345u;
        from[i] = (uint8_t)(x >> 16);
    }
    memset(to, 0, sizeof(to));
}

#define MOVE(name, insn, start, count, direction, width)                                        \
    static void name(void)                                                                      \
    {                                                                                           \
        const uint8_t *si = from + (start);                                                     \
        uint8_t *di = to + (start) + 3;                                                         \
        uint64_t cx = (count);                                                                  \
        fill();                                                                                 \
        __asm__ volatile(direction "\n\trep " insn "\n\tcld"                                    \
                         : "+S"(si), "+D"(di), "+c"(cx)                                         \
                         :                                                                      \
                         : "memory", "cc");                                                     \
        show(#name, sum_of(to, sizeof(to)) + (uint64_t)(si - from) + (uint64_t)(di - to) + cx); \
    }

MOVE(movsb_forward, "movsb", 4090, 4200, "cld", 1)
MOVE(movsw_forward, "movsw", 4093, 2100, "cld", 2)
MOVE(movsl_forward, "movsl", 4094, 1050, "cld", 4)
MOVE(movsq_forward, "movsq", 4089, 525, "cld", 8)
MOVE(movsb_backward, "movsb", 8200, 4100, "std", 1)
MOVE(movsq_backward, "movsq", 8190, 512, "std", 8)
MOVE(movsb_none, "movsb", 100, 0, "cld", 1)

/* Destination overlaps source: the pattern repeats, as byte by byte it must. */
static void overlap(void)
{
    uint8_t *di = from + 4099;
    const uint8_t *si = from + 4096;
    uint64_t cx = 5000;

    fill();
    __asm__ volatile("rep movsb" : "+S"(si), "+D"(di), "+c"(cx) : : "memory");
    show("overlap", sum_of(from, sizeof(from)));
}

static void store(void)
{
    uint8_t *di = to + 4091;
    uint64_t cx = 513;

    fill();
    __asm__ volatile("rep stosq" : "+D"(di), "+c"(cx) : "a"(0x1122334455667788ull) : "memory");
    show("stosq", sum_of(to, sizeof(to)) + (uint64_t)(di - to));
    cx = 4097;
    __asm__ volatile("rep stosb" : "+D"(di), "+c"(cx) : "a"(0x5a) : "memory");
    show("stosb", sum_of(to, sizeof(to)) + (uint64_t)(di - to));
}

static void compare(void)
{
    const uint8_t *si = from;
    const uint8_t *di = to;
    uint64_t cx = sizeof(from);
    uint64_t flags;

    fill();
    memcpy(to, from, sizeof(from));
    to[4200] ^= 1;
    __asm__ volatile("repe cmpsb\n\tpushfq\n\tpop %3"
                     : "+S"(si), "+D"(di), "+c"(cx), "=r"(flags)
                     :
                     : "memory", "cc");
    show("cmpsb", (uint64_t)(si - from));
    show("cmpsb left", cx);
    show("cmpsb flags", flags & 0x8d5);
    si = from;
    di = to;
    cx = 100;
    __asm__ volatile("repe cmpsq" : "+S"(si), "+D"(di), "+c"(cx) : : "memory", "cc");
    show("cmpsq left", cx);
}

static void scan(void)
{
    const uint8_t *di = to + 4000;
    uint64_t cx = 1000;

    memset(to, 7, sizeof(to));
    to[4501] = 9;
    __asm__ volatile("repne scasb" : "+D"(di), "+c"(cx) : "a"(9) : "memory", "cc");
    show("scasb", (uint64_t)(di - to));
    di = to;
    cx = 3000;
    __asm__ volatile("repe scasl" : "+D"(di), "+c"(cx) : "a"(0x07070707) : "memory", "cc");
    show("scasl", (uint64_t)(di - to));
    show("scasl left", cx);
}

static void load(void)
{
    const uint8_t *si = from + 4093;
    uint64_t sum = MIX_START;

    fill();
    for (unsigned i = 0; i < 4; i++) {
        uint64_t a = 0;
        __asm__ volatile("lodsb" : "+S"(si), "+a"(a));
        sum = mix(sum, a);
        __asm__ volatile("lodsw" : "+S"(si), "+a"(a));
        sum = mix(sum, a);
        __asm__ volatile("lodsl" : "+S"(si), "+a"(a));
        sum = mix(sum, a);
        __asm__ volatile("lodsq" : "+S"(si), "+a"(a));
        sum = mix(sum, a);
    }
    show("lods", sum);
}

int main(void)
{
    movsb_forward();
    movsw_forward();
    movsl_forward();
    movsq_forward();
    movsb_backward();
    movsq_backward();
    movsb_none();
    overlap();
    store();
    compare();
    scan();
    load();
    return 0;
}
