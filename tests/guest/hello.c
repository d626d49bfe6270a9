/* The smallest guest: a line, and the machine switches itself off. */
#include "guest.h"

int main(void)
{
    line("hello, world");
    power_off();
    return 9; /* not reached on a machine that can be switched off */
}
