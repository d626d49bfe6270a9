/*
 * Instructions that plant.c mistranslates, one kind in each guest (MISTAKE), in
 * kernel code of the upper half with SMAP on, where memory is reached through the
 * mirror. A translator without mistakes ends it with status 0.
 */
#include "planted.h"
#include "guest.h"

#define UPPER 0xffff888000000000ull /* all memory */
#define ROUNDS 100u

#define FLAG 1
#define STORE 2
#define PLACE 3
#define REGISTER 4

static uint64_t upper_l3[512] __attribute__((aligned(4096)));
static uint64_t upper_l2[512] __attribute__((aligned(4096)));
static uint64_t words[4];
/* From memory: as immediates they would be planted, too. */
static volatile uint64_t planted_value = PLANT_VALUE;
static volatile uint64_t planted_place = PLANT_PLACE;

static void make_tables(void)
{
    for (unsigned i = 0; i < 512; i++) {
        upper_l2[i] = (uint64_t)i << 21 | 0x83; /* present, writable, large; the supervisor's */
        page_l2[i] &= ~4ull;
    }
    upper_l3[0] = (uintptr_t)upper_l2 | 3;
    page_l4[273] = (uintptr_t)upper_l3 | 3;
    write_cr3(read_cr3());
    write_cr4(read_cr4() | CR4_SMAP);
}

/* Does the instruction what it should? at: two words, cleared here. */
ONE_COPY static bool is_right(volatile uint64_t *at)
{
    uint64_t value = MISTAKE == PLACE ? planted_place : planted_value;
    uint8_t equal = 1;

    at[0] = 0;
    at[1] = 0;
#if MISTAKE == FLAG
    __asm__ volatile("cmp %2, %k1\n\tsete %0" : "=r"(equal) : "r"(value), "i"(PLANT_VALUE) : "cc");
    return equal == 1;
#elif MISTAKE == STORE
    __asm__ volatile("movl %1, (%0)" : : "r"(at), "i"(PLANT_VALUE) : "memory");
    return at[0] == value && equal == 1;
#elif MISTAKE == PLACE
    __asm__ volatile("movl %1, (%0)" : : "r"(at), "i"(PLANT_PLACE) : "memory");
    return at[0] == value && at[1] == 0 && equal == 1;
#else
    __asm__ volatile("mov %1, %k0" : "=r"(value) : "i"(PLANT_VALUE));
    return value == planted_value && equal == 1;
#endif
}

int main(void)
{
    unsigned wrong = 0;

    make_tables();
    line("begin");
    for (unsigned i = 0; i < ROUNDS; i++) {
        wrong += is_right((volatile uint64_t *)(UPPER + (uintptr_t)words)) ? 0 : 1;
    }
    check("all as written", wrong == 0);
    return 0;
}
