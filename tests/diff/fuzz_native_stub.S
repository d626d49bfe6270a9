/*
 * Enters the code region with the registers of a case. Comes back through
 * fuzz_stub_leave, where the signal handler sends the thread.
 */
    .section .bss
    .balign 64
    .globl fuzz_stub_xsave
fuzz_stub_xsave:
    .skip 1024
    .globl fuzz_stub_gpr
fuzz_stub_gpr:
    .skip 128
    .globl fuzz_stub_rip
fuzz_stub_rip:
    .skip 8
    .globl fuzz_stub_rflags
fuzz_stub_rflags:
    .skip 8
    .globl fuzz_stub_gs_base
fuzz_stub_gs_base:
    .skip 8
    .globl fuzz_stub_host_rsp
fuzz_stub_host_rsp:
    .skip 8
host_gs_base:
    .skip 8
host_mxcsr:
    .skip 4
host_fcw:
    .skip 2
    .balign 8
    .globl fuzz_stub_is_32
fuzz_stub_is_32:
    .skip 8
far_target:
    .skip 8

    .text
    .globl fuzz_stub_enter
fuzz_stub_enter:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, fuzz_stub_host_rsp(%rip)
    stmxcsr host_mxcsr(%rip)
    fnstcw host_fcw(%rip)
    rdgsbase %rax
    mov %rax, host_gs_base(%rip)
    mov $7, %eax
    xor %edx, %edx
    lea fuzz_stub_xsave(%rip), %rdi
    xrstor64 (%rdi)
    mov fuzz_stub_gs_base(%rip), %rax
    wrgsbase %rax
    cmpq $0, fuzz_stub_is_32(%rip)
    je 1f
    mov $0x2b, %eax
    mov %eax, %ds
    mov %eax, %es
    mov fuzz_stub_rip(%rip), %rax
    mov %eax, far_target(%rip)
    movl $0x23, far_target+4(%rip)
1:
    push fuzz_stub_rflags(%rip)
    popfq
    lea fuzz_stub_gpr(%rip), %rdi
    mov 0(%rdi), %rax
    mov 8(%rdi), %rcx
    mov 16(%rdi), %rdx
    mov 24(%rdi), %rbx
    mov 32(%rdi), %rsp
    mov 40(%rdi), %rbp
    mov 48(%rdi), %rsi
    mov 64(%rdi), %r8
    mov 72(%rdi), %r9
    mov 80(%rdi), %r10
    mov 88(%rdi), %r11
    mov 96(%rdi), %r12
    mov 104(%rdi), %r13
    mov 112(%rdi), %r14
    mov 120(%rdi), %r15
    mov 56(%rdi), %rdi
    jmp *jump_target(%rip)

    .globl fuzz_stub_far
fuzz_stub_far:
    ljmp *far_target(%rip)

    .globl fuzz_stub_leave
fuzz_stub_leave:
    push $2
    popfq
    mov host_gs_base(%rip), %rax
    wrgsbase %rax
    fninit
    fldcw host_fcw(%rip)
    ldmxcsr host_mxcsr(%rip)
    vzeroupper
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

    .section .bss
    .globl jump_target
jump_target:
    .skip 8
    .section .note.GNU-stack, "", @progbits
