/* What the debugger's test looks at: a call, a variable, and an end that it can wait for. */
#include "guest.h"

int add_up(int a, int b);

volatile int total;
char message[8] = "before";

int ONE_COPY add_up(int a, int b)
{
    total = a + b;
    return total;
}

int main(void)
{
    for (int i = 1; i <= 3; i++) {
        (void)add_up(i, 10 * i);
    }
    __asm__ volatile("" : : : "memory"); /* the debugger writes it */
    put(message);
    put_char('\n');
    return message[0] == 'a' ? 7 : 8;
}
