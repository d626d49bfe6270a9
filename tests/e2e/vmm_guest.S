/*
 * A tiny guest for tests of the monitor itself. It prints "up" on COM1 and then
 * does what the first byte of its command line says:
 *   o  power off              h  halt for ever          s  spin for ever
 *   t  triple fault           r  reset once, then off   b  off at the power button
 *   e  echo COM1, off at "q"     i  enable the power button and ignore it
 * Loaded as boot.h says: long mode, RSI = zero page, no interrupts.
 */
#define COM1 0x3f8
#define PM_EVENT 0x600
#define PM_ENABLE 0x602
#define PM_CONTROL 0x604
#define PM_RESET 0x60c
#define POWER_BUTTON 0x0100
#define SLEEP_S5 0x3400 /* SLP_TYP 5, SLP_EN */
#define CMOS_MARK 0x50  /* a byte of the clock's RAM, which outlives a reset */

    .text
    .global _start
_start:
    mov 0x228(%rsi), %ebx /* cmd_line_ptr */
    mov (%rbx), %bl
    cmp $'b', %bl
    je enable_button
    cmp $'i', %bl
    jne say_up
enable_button:
    mov $PM_ENABLE, %dx
    mov $POWER_BUTTON, %ax
    out %ax, %dx
say_up:
    lea text_up(%rip), %rsi
1:  lodsb
    test %al, %al
    jz 2f
    call put
    jmp 1b
2:  cmp $'o', %bl
    je off
    cmp $'s', %bl
    je spin
    cmp $'t', %bl
    je triple
    cmp $'r', %bl
    je reset_once
    cmp $'b', %bl
    je button
    cmp $'e', %bl
    je echo
halt:
    hlt
    jmp halt
spin:
    jmp spin
off:
    mov $PM_CONTROL, %dx
    mov $SLEEP_S5, %ax
    out %ax, %dx
    jmp halt
triple:
    lidt no_idt(%rip)
    ud2
reset_once:
    mov $CMOS_MARK, %al
    out %al, $0x70
    in $0x71, %al
    cmp $0x5a, %al
    je off
    mov $CMOS_MARK, %al
    out %al, $0x70
    mov $0x5a, %al
    out %al, $0x71
    mov $PM_RESET, %dx
    mov $1, %al
    out %al, %dx
    jmp halt
button:
    mov $PM_EVENT, %dx
    in %dx, %ax
    test $POWER_BUTTON, %ax
    jz button
    jmp off
echo:
    mov $(COM1 + 5), %dx
    in %dx, %al
    test $1, %al
    jz echo
    mov $COM1, %dx
    in %dx, %al
    cmp $'q', %al
    je off
    call put
    jmp echo

/* Writes AL to COM1 when its transmitter is empty. Keeps all but DX and AH. */
put:
    mov %al, %ah
    mov $(COM1 + 5), %dx
3:  in %dx, %al
    test $0x20, %al
    jz 3b
    mov $COM1, %dx
    mov %ah, %al
    out %al, %dx
    ret

    .section .rodata
text_up:
    .asciz "up\n"
no_idt:
    .word 0
    .quad 0

    .section .note.GNU-stack, "", @progbits
