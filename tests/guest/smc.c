/* Code that changes itself: behind, ahead, in the running block, through another mapping, by strings. */
#include "guest.h"

#define CODE 0x3100000ull
#define ALIAS 0x3200000ull

typedef uint32_t (*code_fn)(void);

static void write_return(uint64_t at, uint32_t value)
{
    volatile uint8_t *code = (volatile uint8_t *)at;

    code[0] = 0xb8; /* mov $value, %eax */
    *(volatile uint32_t *)(code + 1) = value;
    code[5] = 0xc3; /* ret */
}

static uint32_t call_at(uint64_t at)
{
    return ((code_fn)(uintptr_t)at)();
}

/* Changes the immediate of the very next instruction. */
uint32_t next_instruction(void);
uint32_t loop_body(void);
/* clang-format off */
__asm__(
    ".section .data\n"
    "next_instruction:\n"
    "    movl $0x1234, 1f+1(%rip)\n"
    "1:  mov $0, %eax\n"
    "    ret\n"
    /* Each round adds 1, 2, 3 ...: the ADD's immediate grows while the loop runs. */
    "loop_body:\n"
    "    xor %eax, %eax\n"
    "    mov $10, %ecx\n"
    "2:  incb 3f+2(%rip)\n"
    "3:  add $0, %eax\n"
    "    dec %ecx\n"
    "    jnz 2b\n"
    "    movb $0, 3b+2(%rip)\n"
    "    ret\n"
    ".text\n");
/* clang-format on */

/* Paging marks what it used in a page that code is run from, while that code is made ready. */
static void run_from_page_table(void)
{
    uint64_t *entry = page_entry(0x3106000);
    uint64_t in_table = (uint64_t)&page_entry(0x33fe000)[0];
    bool good = true;

    for (uint32_t i = 0; i < 20; i++) {
        write_return(in_table, i);
        good = good && call_at(in_table) == i;
        write_return(0x3105ffd, i);
        entry[0] &= ~(uint64_t)0x60;
        invlpg(0x3106000);
        good = good && call_at(0x3105ffd) == i && (entry[0] & 0x60) == 0x20;
        (void)cpuid(0, 0);
        *(volatile uint8_t *)0x3106100 = 0;
        good = good && (entry[0] & 0x60) == 0x60 && call_at(in_table) == i;
    }
    check("code in its own page table", good);
}

int main(void)
{
    bool good = true;

    for (uint32_t i = 0; i < 200; i++) {
        write_return(CODE, i);
        good = good && call_at(CODE) == i;
    }
    check("rewritten between calls", good);
    show("next instruction", next_instruction());
    show("growing loop", loop_body());
    show("growing loop again", loop_body());

    /* The same frame at another address. */
    page_entry(ALIAS)[0] = CODE | 7;
    invlpg(ALIAS);
    write_return(CODE, 0x51);
    show("first", call_at(CODE));
    *(volatile uint32_t *)(ALIAS + 1) = 0x52;
    show("written through alias", call_at(CODE));
    show("executed through alias", call_at(ALIAS));

    /* By a string instruction, over a page boundary. */
    static const uint8_t bytes[6] = {0xb8, 0x53, 0, 0, 0, 0xc3};
    const void *from = bytes;
    void *to = (void *)(CODE + 4093);
    uint64_t count = 6;
    write_return(CODE + 4093, 1);
    show("across pages", call_at(CODE + 4093));
    __asm__ volatile("rep movsb" : "+S"(from), "+D"(to), "+c"(count) : : "memory");
    show("written by movs", call_at(CODE + 4093));
    /* Only the second page's bytes. */
    *(volatile uint8_t *)(CODE + 4096) = 0x01;
    show("tail changed", call_at(CODE + 4093));

    /* Another frame behind the same address. */
    write_return(0x3102000, 0x61);
    write_return(0x3103000, 0x62);
    uint64_t *entry = page_entry(0x3104000);
    entry[0] = 0x3102000 | 7;
    invlpg(0x3104000);
    show("frame one", call_at(0x3104000));
    entry[0] = 0x3103000 | 7;
    invlpg(0x3104000);
    show("frame two", call_at(0x3104000));
    run_from_page_table();
    return 0;
}
