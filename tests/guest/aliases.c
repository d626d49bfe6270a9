/*
 * Addresses that a supervisor must not reach, and those right beside that it
 * may: NULL, the lower half, user pages, what is not canonical, guard pages. Each is
 * asked for in several ways and several times, for an engine may serve the later ones otherwise.
 */
#include "guest.h"

#define UPPER 0xffffc90000000000ull
#define DATA 0x3000000ull
#define ROUNDS 10u

#define WRITE 2u
#define FETCH 16u

enum way {
    READ,
    READ_BYTE,
    READ_STACK,
    STORE,
    STORE_BYTE,
    LOCKED,
    STRING,
    STRING_FROM,
    CALL,
    WAYS
};

static const char *const names[WAYS] = {"read",   "read byte", "read by rbp", "write", "write byte",
                                        "locked", "string to", "string from", "call"};

struct place {
    uint64_t va;
    uint64_t cr2_offset; /* of the first byte that is not there */
    const char *text;
};

static uint64_t guard_l3[512] __attribute__((aligned(4096)));
static uint64_t guard_l2[512] __attribute__((aligned(4096)));
static uint64_t guard_l1[512] __attribute__((aligned(4096)));
static uint64_t buffer[2];
static enum way way;

ONE_COPY static void reach(void *at)
{
    uint64_t value = 0;
    uint64_t count = 1;
    const void *from = at;

    switch (way) {
    case READ:
        __asm__ volatile("mov (%1), %0" : "=r"(value) : "r"(at) : "memory");
        break;
    case READ_BYTE:
        __asm__ volatile("movzbl 7(%1), %k0" : "=r"(value) : "r"(at) : "memory");
        break;
    case READ_STACK:
        __asm__ volatile("push %%rbp\n\tmov %1, %%rbp\n\tmov 0(%%rbp), %0\n\tpop %%rbp"
                         : "=&a"(value)
                         : "d"(at)
                         : "memory");
        break;
    case STORE:
        __asm__ volatile("mov %0, (%1)" : : "r"(value), "r"(at) : "memory");
        break;
    case STORE_BYTE:
        __asm__ volatile("movb $0, 7(%0)" : : "r"(at) : "memory");
        break;
    case LOCKED:
        __asm__ volatile("lock xadd %0, (%1)" : "+r"(value) : "r"(at) : "memory", "cc");
        break;
    case STRING:
        __asm__ volatile("rep stosq" : "+D"(at), "+c"(count) : "a"(value) : "memory");
        break;
    case STRING_FROM:
        at = buffer;
        __asm__ volatile("rep movsq" : "+D"(at), "+S"(from), "+c"(count) : : "memory");
        break;
    default:
        ((void (*)(void))at)();
        break;
    }
}

static bool is_canonical(uint64_t va)
{
    return (uint64_t)((int64_t)(va << 16) >> 16) == va;
}

static bool is_write(void)
{
    return way >= STORE && way <= STRING;
}

static bool is_byte(void)
{
    return way == READ_BYTE || way == STORE_BYTE;
}

static bool is_across(const struct place *p)
{
    return (p->va & 0xfff) > 0xff8;
}

/* The exception that a page which is not there, or not the supervisor's, must give. */
static bool is_right(const struct place *p, uint64_t present)
{
    uint64_t cr2 = p->va + (is_byte() ? 7 : p->cr2_offset);

    if (!caught.happened) {
        return false;
    }
    if (!is_canonical(p->va) || !is_canonical(p->va + 7)) {
        return caught.vector == (way == READ_STACK ? 12 : 13) && caught.error == 0;
    }
    if (way == CALL) {
        return caught.vector == 14 && caught.error == (FETCH | present) &&
               caught.cr2 == p->va + p->cr2_offset;
    }
    return caught.vector == 14 && caught.error == ((is_write() ? WRITE : 0) | present) &&
           caught.cr2 == cr2;
}

static void must_fault(const struct place *p, uint64_t present, unsigned ways)
{
    for (way = READ; way < ways; way++) {
        bool good = true;

        for (unsigned round = 0; round < ROUNDS && !(is_byte() && is_across(p)); round++) {
            good = catch_call(reach, (void *)p->va) && is_right(p, present) && good;
        }
        if (!good) {
            put(p->text);
            put(", ");
            put(names[way]);
            show_caught(" FAILED");
        }
    }
    put(p->text);
    line(" refused");
}

static void must_work(const struct place *p)
{
    for (way = READ; way < CALL; way++) {
        for (unsigned round = 0; round < ROUNDS; round++) {
            if (catch_call(reach, (void *)p->va)) {
                put(p->text);
                put(", ");
                put(names[way]);
                show_caught(" FAILED");
            }
        }
    }
    put(p->text);
    line(" reached");
}

static void make_tables(void)
{
    *page_entry(0) = 0;
    *page_entry(DATA) |= 4;
    *page_entry(DATA + 0x1000) = 0;
    *page_entry(DATA + 0x2000) &= ~4ull;
    for (unsigned i = 0; i < 4 * 512; i++) {
        page_l2[i] &= i == DATA >> 21 ? ~0ull : ~4ull; /* the supervisor's, as SMAP wants it */
    }
    for (unsigned i = 0; i < 6; i += 2) {
        guard_l1[i] = (DATA + 0x10000 + i * 4096) | 3;
    }
    guard_l2[0] = (uintptr_t)guard_l1 | 3;
    guard_l3[0] = (uintptr_t)guard_l2 | 3;
    page_l4[UPPER >> 39 & 511] = (uintptr_t)guard_l3 | 3;
    write_cr3(read_cr3());
    write_cr4(read_cr4() | CR4_SMAP | CR4_PGE);
}

int main(void)
{
    static const struct place nowhere[] = {
        {0, 0, "NULL"},
        {0xff0, 0, "near NULL"},
        {DATA + 0x1000, 0, "hole in the lower half"},
        {0x100000000000ull, 0, "lower half"},
        {0x7fffffffe000ull, 0, "end of the lower half"},
        {0x800000000000ull, 0, "beyond the lower half"},
        {0x8000000000000000ull, 0, "bit 63 alone"},
        {0x7fffffffffffff00ull, 0, "all bits but 63"},
        {0xfffe800000000000ull, 0, "bit 48 clear"},
        {0xffff7fffffffff00ull, 0, "before the upper half"},
        {0xffff880000001000ull, 0, "begin of the kernel's memory"},
        {UPPER - 0x1000, 0, "before the guard pages"},
        {UPPER + 0x1000, 0, "guard page"},
        {UPPER + 0x3ff8, 0, "end of a guard page"},
        {UPPER + 0x6000, 0, "behind the guard pages"},
        {0xffffffff80000000ull, 0, "kernel's image"},
        {0xfffffffffffffff8ull, 0, "last quadword"},
    };
    static const struct place across[] = {
        {UPPER + 0xffc, 4, "into a guard page"},
        {DATA + 0x2000 - 4, 0, "out of a hole"},
        {UPPER + 0x1ffc, 0, "out of a guard page"},
    };
    static const struct place user = {DATA, 0, "user page"};
    static const struct place there[] = {
        {DATA + 0x2000, 0, "lower half"},
        {UPPER, 0, "first page"},
        {UPPER + 0x2000, 0, "between guard pages"},
        {UPPER + 0x4ff8, 0, "before the last guard page"},
    };

    make_tables();
    for (unsigned i = 0; i < sizeof(nowhere) / sizeof(nowhere[0]); i++) {
        must_fault(&nowhere[i], 0, WAYS);
    }
    must_fault(&user, 1, CALL);
    for (unsigned i = 0; i < sizeof(there) / sizeof(there[0]); i++) {
        must_work(&there[i]);
    }
    for (unsigned i = 0; i < sizeof(across) / sizeof(across[0]); i++) {
        must_fault(&across[i], 0, CALL);
    }
    return 0;
}
