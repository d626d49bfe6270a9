/* Ports and device memory: widths, strings of ports, registers of the I/O APIC, what is not there. */
#include "guest.h"

#define IOAPIC 0xfec00000ull

static uint32_t ioapic_read(uint32_t index)
{
    *(volatile uint32_t *)IOAPIC = index;
    return *(volatile uint32_t *)(IOAPIC + 0x10);
}

static void ioapic_write(uint32_t index, uint32_t value)
{
    *(volatile uint32_t *)IOAPIC = index;
    *(volatile uint32_t *)(IOAPIC + 0x10) = value;
}

static void ports(void)
{
    /* The scratch register of the serial port keeps a byte. */
    out8(PORT_SERIAL + 7, 0xa5);
    show("scratch", in8(PORT_SERIAL + 7));
    out8(PORT_SERIAL + 7, 0x5a);
    show("scratch", in8(PORT_SERIAL + 7));
    show("nothing, byte", in8(0x2f7));
    show("nothing, word", in16(0x250));
    show("nothing, dword", in32(0x250));
    uint64_t rax = 0x1122334455667788ull;
    __asm__ volatile("inb $0x99, %%al" : "+a"(rax));
    show("byte keeps the rest", rax);
    rax = 0x1122334455667788ull;
    __asm__ volatile("mov $0x250, %%edx\n\tinl %%dx, %%eax" : "+a"(rax) : : "edx");
    show("dword clears the upper half", rax);
}

static void port_strings(void)
{
    const char *text = "by string\n";
    uint64_t count = 10;
    uint8_t bytes[4];
    uint8_t *to = bytes;

    while ((in8(PORT_SERIAL + 5) & 0x40) == 0) {
    }
    __asm__ volatile("rep outsb" : "+S"(text), "+c"(count) : "d"(PORT_SERIAL) : "memory");
    show("count left", count);
    out8(PORT_SERIAL + 7, 0x3c);
    count = 4;
    __asm__ volatile("rep insb" : "+D"(to), "+c"(count) : "d"(PORT_SERIAL + 7) : "memory");
    show("read by string", bytes[0] + bytes[3]);
    show("bytes read", (uint64_t)(to - bytes));
}

static void device_memory(void)
{
    show("I/O APIC pins", (ioapic_read(1) >> 16 & 0xff) + 1);
    ioapic_write(0x10 + 2 * 5, 0x10000 | 0x35);
    show("redirection entry", ioapic_read(0x10 + 2 * 5));
    /* Read-modify-write and wide forms on device memory. */
    *(volatile uint32_t *)IOAPIC = 0x10 + 2 * 5;
    __asm__ volatile("xorl $0x0f, (%0)" : : "r"(IOAPIC + 0x10) : "memory", "cc");
    show("after xor", ioapic_read(0x10 + 2 * 5));
    *(volatile uint32_t *)IOAPIC = 0x10 + 2 * 5;
    uint32_t value = 0x10000 | 0x44;
    __asm__ volatile("xchgl %0, (%1)" : "+r"(value) : "r"(IOAPIC + 0x10) : "memory");
    show("exchanged", value);
    *(volatile uint32_t *)IOAPIC = 0x10 + 2 * 5;
    uint64_t flags;
    __asm__ volatile("cmpl $0x10044, (%1)\n\tpushfq\n\tpop %0"
                     : "=r"(flags)
                     : "r"(IOAPIC + 0x10)
                     : "memory", "cc");
    show("compared equal", flags >> 6 & 1);
    uint64_t wide = 0;
    __asm__ volatile("movzwl (%1), %k0" : "=r"(wide) : "r"(IOAPIC + 0x10) : "memory");
    show("nothing at 0xc8000000", *(volatile uint32_t *)0xc8000000ull);
    show("nothing, quad", *(volatile uint64_t *)0xc8000000ull);
    static uint32_t copy[4];
    const uint32_t *from = (const uint32_t *)0xc8000000ull;
    uint32_t *to = copy;
    uint64_t count = 4;
    __asm__ volatile("rep movsl" : "+S"(from), "+D"(to), "+c"(count) : : "memory");
    show("string from nothing", copy[3]);
    ioapic_write(0x10 + 2 * 5, 0x10000);
}

static void clock_registers(void)
{
    out8(0x70, 0x0d);
    show("clock valid", in8(0x71) & 0x80);
    out8(0x70, 0x50);
    out8(0x71, 0x77);
    out8(0x70, 0x51);
    out8(0x71, 0x88);
    out8(0x70, 0x50);
    show("CMOS byte", in8(0x71));
}

int main(void)
{
    ports();
    port_strings();
    device_memory();
    clock_registers();
    return 0;
}
