/*
 * Loads a guest's registers, jumps to the copy of one instruction, stores them
 * back. Never runs where it is linked: hostexec.c copies it behind a data page.
 */
#include "engine/hostexec_stub.h"

#define DATA(offset) hostexec_stub_start - HOSTEXEC_DATA_BYTES + (offset)(%rip)

    .section .rodata.hostexec_stub, "a", @progbits
    .balign 64
    .globl hostexec_stub_start
    .hidden hostexec_stub_start
hostexec_stub_start:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, DATA(HOSTEXEC_HOST_RSP)
    mov DATA(HOSTEXEC_XSAVE), %rdi
    test %rdi, %rdi
    jz .Lload_registers
    stmxcsr DATA(HOSTEXEC_HOST_MXCSR)
    fnstcw DATA(HOSTEXEC_HOST_FCW)
    mov DATA(HOSTEXEC_XMASK), %eax
    xor %edx, %edx
    test %eax, %eax
    jz .Lfxrstor
    xrstor64 (%rdi)
    jmp .Lload_registers
.Lfxrstor:
    fxrstor64 (%rdi)
.Lload_registers:
    push DATA(HOSTEXEC_FLAGS)
    popfq
    mov DATA(HOSTEXEC_GPR + 0), %rax
    mov DATA(HOSTEXEC_GPR + 8), %rcx
    mov DATA(HOSTEXEC_GPR + 16), %rdx
    mov DATA(HOSTEXEC_GPR + 24), %rbx
    mov DATA(HOSTEXEC_GPR + 40), %rbp
    mov DATA(HOSTEXEC_GPR + 48), %rsi
    mov DATA(HOSTEXEC_GPR + 56), %rdi
    mov DATA(HOSTEXEC_GPR + 64), %r8
    mov DATA(HOSTEXEC_GPR + 72), %r9
    mov DATA(HOSTEXEC_GPR + 80), %r10
    mov DATA(HOSTEXEC_GPR + 88), %r11
    mov DATA(HOSTEXEC_GPR + 96), %r12
    mov DATA(HOSTEXEC_GPR + 104), %r13
    mov DATA(HOSTEXEC_GPR + 112), %r14
    mov DATA(HOSTEXEC_GPR + 120), %r15
    mov DATA(HOSTEXEC_GPR + 32), %rsp
    jmp *DATA(HOSTEXEC_TARGET)

    .globl hostexec_stub_leave
    .hidden hostexec_stub_leave
hostexec_stub_leave:
    mov %rax, DATA(HOSTEXEC_GPR + 0)
    mov %rcx, DATA(HOSTEXEC_GPR + 8)
    mov %rdx, DATA(HOSTEXEC_GPR + 16)
    mov %rbx, DATA(HOSTEXEC_GPR + 24)
    mov %rsp, DATA(HOSTEXEC_GPR + 32)
    mov %rbp, DATA(HOSTEXEC_GPR + 40)
    mov %rsi, DATA(HOSTEXEC_GPR + 48)
    mov %rdi, DATA(HOSTEXEC_GPR + 56)
    mov %r8, DATA(HOSTEXEC_GPR + 64)
    mov %r9, DATA(HOSTEXEC_GPR + 72)
    mov %r10, DATA(HOSTEXEC_GPR + 80)
    mov %r11, DATA(HOSTEXEC_GPR + 88)
    mov %r12, DATA(HOSTEXEC_GPR + 96)
    mov %r13, DATA(HOSTEXEC_GPR + 104)
    mov %r14, DATA(HOSTEXEC_GPR + 112)
    mov %r15, DATA(HOSTEXEC_GPR + 120)
    mov DATA(HOSTEXEC_HOST_RSP), %rsp
    pushfq
    pop DATA(HOSTEXEC_FLAGS)
    mov DATA(HOSTEXEC_XSAVE), %rdi
    test %rdi, %rdi
    jz .Lreturn
    mov DATA(HOSTEXEC_XMASK), %eax
    xor %edx, %edx
    test %eax, %eax
    jz .Lfxsave
    xsave64 (%rdi)
    jmp .Lrestore_host
.Lfxsave:
    fxsave64 (%rdi)

    .globl hostexec_stub_abandon
    .hidden hostexec_stub_abandon
hostexec_stub_abandon:
.Lrestore_host:
    fninit
    fldcw DATA(HOSTEXEC_HOST_FCW)
    ldmxcsr DATA(HOSTEXEC_HOST_MXCSR)
    testb $4, DATA(HOSTEXEC_XMASK)
    jz .Lreturn
    vzeroupper
.Lreturn:
    cld
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret
    .globl hostexec_stub_end
    .hidden hostexec_stub_end
hostexec_stub_end:

    .section .note.GNU-stack, "", @progbits
