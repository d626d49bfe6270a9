/*
 * A tiny guest for tests of the monitor itself. It prints "up" on COM1 and then
 * does what the first byte of its command line says:
 *   o  power off              h  halt for ever          s  spin for ever
 *   t  triple fault           r  reset once, then off   b  off at the power button
 *   e  echo COM1, off at "q"     i  enable the power button and ignore it
 *   c  tick: the timer at 1 kHz, "." each 64 ticks
 *   d  halt for ever with interrupts off and one waiting
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
    cmp $'c', %bl
    je tick
    cmp $'d', %bl
    je halt_deaf
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
/* The timer's interrupt is edge-triggered and ended by itself; IRQ 0 is vector 0x20. BH: how channel 0 counts. */
start_timer:
    mov $0x11, %al /* ICW1 */
    out %al, $0x20
    mov $0x20, %al
    out %al, $0x21
    mov $4, %al
    out %al, $0x21
    mov $3, %al /* automatic end of interrupt */
    out %al, $0x21
    mov $0xfe, %al
    out %al, $0x21
    mov %bh, %al
    out %al, $0x43
    mov $(1193 & 0xff), %al
    out %al, $0x40
    mov $(1193 >> 8), %al
    out %al, $0x40
    ret
tick:
    lea stack_top(%rip), %rsp
    lea idt(%rip), %rcx
    lea on_tick(%rip), %rax
    lea 0x200(%rcx), %rdx
    call set_gate
    lea on_spurious(%rip), %rax /* IRQ 7: a tick that was over when it was asked for */
    lea 0x270(%rcx), %rdx
    call set_gate
    lidt idt_pointer(%rip)
    mov $0x34, %bh /* again and again */
    call start_timer
    xor %ebp, %ebp
1:  sti
    hlt
    cli
    test $63, %ebp
    jnz 1b
    mov $'.', %al
    call put
    jmp 1b
set_gate: /* at RDX, to RAX */
    mov %ax, (%rdx)
    mov %cs, 2(%rdx)
    movw $0x8e00, 4(%rdx)
    shr $16, %rax
    mov %ax, 6(%rdx)
    ret
on_tick:
    inc %ebp
on_spurious:
    iretq
halt_deaf:
    lea stack_top(%rip), %rsp
    cli
    mov $0x30, %bh /* once */
    call start_timer
    jmp halt
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

    .data
    .balign 16
idt:
    .zero 0x280
idt_pointer:
    .word 0x27f
    .quad idt
    .balign 16
    .zero 256
stack_top:

    .section .note.GNU-stack, "", @progbits
