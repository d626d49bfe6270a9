/* A triple fault: no gate for #UD, none for #GP, none for #DF. */
#include "guest.h"

int main(void)
{
    static const struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) empty = {0, 0};

    line("before the end");
    __asm__ volatile("lidt %0\n\tud2" : : "m"(empty));
    line("not reached");
    return 0;
}
