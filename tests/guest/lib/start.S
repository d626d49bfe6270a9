/*
 * Entry of the test guests, and the code that has to be assembly.
 *
 * Two ways in: in long mode with low memory mapped one to one (the ELF entry),
 * or in flat 32-bit protected mode (the PVH note). Both end in main() with our
 * own stack, GDT and page tables: 4 GiB one to one in 2 MiB pages, user
 * accessible, and nothing taken over from the loader.
 */
    .set KERNEL_CS, 0x08
    .set KERNEL_DS, 0x10
    .set KERNEL_CS32, 0x18
    .set STACK_BYTES, 0x4000

    .section .note.pvh, "a"
    .long 4, 4, 18              /* name size, data size, XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long start32

    .section .text.start, "ax"
    .code32
    .global start32
start32:
    cli
    cld
    mov $stack0_top, %esp
    call tables32
    lgdt gdt_pointer
    mov $page_l4, %eax
    mov %eax, %cr3
    mov %cr4, %eax
    or $0x20, %eax              /* PAE */
    mov %eax, %cr4
    mov $0xc0000080, %ecx       /* EFER.LME, NXE, SCE */
    rdmsr
    or $0x901, %eax
    wrmsr
    mov $0x80010033, %eax       /* PG, WP, NE, ET, MP, PE */
    mov %eax, %cr0
    ljmp $KERNEL_CS, $enter64

/* Page tables: one table of each upper level, four of 2 MiB pages. */
tables32:
    movl $page_l3 + 7, page_l4
    movl $page_l2 + 7, %eax
    mov $page_l3, %edi
    mov $4, %ecx
1:  mov %eax, (%edi)
    add $0x1000, %eax
    add $8, %edi
    loop 1b
    mov $page_l2, %edi
    mov $0x87, %eax             /* present, writable, user, large */
    mov $2048, %ecx
1:  mov %eax, (%edi)
    movl $0, 4(%edi)
    add $0x200000, %eax
    add $8, %edi
    loop 1b
    ret

    .code64
    .global start64
start64:
    cli
    cld
    lea stack0_top(%rip), %rsp
    lea page_l3+7(%rip), %rax
    mov %rax, page_l4(%rip)
    lea page_l2+7(%rip), %rax
    lea page_l3(%rip), %rdi
    mov $4, %ecx
1:  mov %rax, (%rdi)
    add $0x1000, %rax
    add $8, %rdi
    loop 1b
    lea page_l2(%rip), %rdi
    mov $0x87, %eax
    mov $2048, %ecx
1:  mov %rax, (%rdi)
    add $0x200000, %rax
    add $8, %rdi
    loop 1b
    lgdt gdt_pointer(%rip)
    mov $0xc0000080, %ecx
    rdmsr
    or $0x801, %eax             /* NXE, SCE; LME and LMA stay */
    wrmsr
    mov $0x80010033, %eax
    mov %rax, %cr0
    mov $0x20, %eax
    mov %rax, %cr4
    lea page_l4(%rip), %rax
    mov %rax, %cr3
    pushq $KERNEL_CS
    lea enter64(%rip), %rax
    push %rax
    lretq

enter64:
    mov $KERNEL_DS, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    lea stack0_top(%rip), %rsp
    /* SSE, and AVX where CPUID has it. */
    mov %cr4, %rax
    or $0x600, %eax
    mov %rax, %cr4
    fninit
    mov $1, %eax
    cpuid
    bt $26, %ecx
    jnc 1f
    mov %ecx, %esi
    mov %cr4, %rax
    or $0x40000, %eax
    mov %rax, %cr4
    mov $3, %eax
    bt $28, %esi
    jnc 2f
    or $4, %eax
2:  xor %ecx, %ecx
    xor %edx, %edx
    xsetbv
1:  call lib_init
    call main
    mov %eax, %edi
    call guest_exit
1:  hlt
    jmp 1b

/*
 * Exception and interrupt entries. Vectors with an error code leave it on the
 * stack; the others push 0. struct frame in guest.h is what is built here.
 */
    .altmacro
    .macro ENTRY vector
    .align 16
    .if (\vector == 8) || ((\vector >= 10) && (\vector <= 14)) || (\vector == 17) || (\vector == 21)
    .else
    pushq $0
    .endif
    pushq $\vector
    jmp entry_common
    .endm

    .text
    .align 16
    .global entries
entries:
    .set vector, 0
    .rept 256
    ENTRY %vector
    .set vector, vector + 1
    .endr

entry_common:
    cld
    push %rax
    push %rcx
    push %rdx
    push %rbx
    push %rbp
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, %rdi
    mov %rsp, %rbp
    and $-16, %rsp
    call entry_handle
    mov %rbp, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rbp
    pop %rbx
    pop %rdx
    pop %rcx
    pop %rax
    add $16, %rsp               /* vector, error code */
    iretq

/*
 * user_enter(rip, rsp, cs, ss, rflags) runs code at CPL 3 until it comes back
 * by UD1; returns its RAX. Callee-saved registers survive.
 */
    .global user_enter
user_enter:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, user_saved_rsp(%rip)
    mov %rsp, tss0+4(%rip)      /* RSP0 */
    push %rcx
    push %rsi
    push %r8
    push %rdx
    push %rdi
    iretq

    .global user_return
user_return:                    /* where the handler of UD1 goes */
    mov user_saved_rsp(%rip), %rsp
    mov $KERNEL_DS, %ecx
    mov %ecx, %ds
    mov %ecx, %es
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

/* Application processors: copied to 0x8000, real mode with CS:IP = 0x0800:0. */
    .global trampoline, trampoline_end
    .code16
trampoline:
    cli
    xor %ax, %ax
    mov %ax, %ds
    lgdtl 0x8000 + trampoline_gdt - trampoline
    mov %cr0, %eax
    or $1, %eax
    mov %eax, %cr0
    ljmpl $KERNEL_CS32, $0x8000 + trampoline32 - trampoline
    .code32
trampoline32:
    mov $KERNEL_DS, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $page_l4, %eax
    mov %eax, %cr3
    mov $0x20, %eax
    mov %eax, %cr4
    mov $0xc0000080, %ecx
    rdmsr
    or $0x901, %eax
    wrmsr
    mov $0x80010033, %eax
    mov %eax, %cr0
    ljmp $KERNEL_CS, $ap_enter64
    .align 8
trampoline_gdt:
    .word gdt_end - gdt - 1
    .long gdt
trampoline_end:

    .code64
ap_enter64:
    mov $KERNEL_DS, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    lea stack1_top(%rip), %rsp
    mov %cr4, %rax
    or $0x600, %eax
    mov %rax, %cr4
    lgdt gdt_pointer(%rip)
    lidt idt_pointer(%rip)
    call ap_main
1:  hlt
    jmp 1b

    .section .data
    .align 16
    .global gdt, gdt_pointer, idt_pointer
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    /* 08 kernel code, 64-bit */
    .quad 0x00cf93000000ffff    /* 10 kernel data */
    .quad 0x00cf9b000000ffff    /* 18 kernel code, 32-bit */
    .quad 0x00cffb000000ffff    /* 20 user code, 32-bit; SYSRET base */
    .quad 0x00cff3000000ffff    /* 28 user data */
    .quad 0x00affb000000ffff    /* 30 user code, 64-bit */
    .quad 0x008f9b000000ffff    /* 38 kernel code, 16-bit */
    .quad 0x008f93000000ffff    /* 40 kernel data, 16-bit */
    .quad 0                     /* 48 for a test to fill */
    .quad 0                     /* 50 */
    .quad 0, 0                  /* 58 TSS of CPU 0 */
    .quad 0, 0                  /* 68 TSS of CPU 1 */
gdt_end:
    .word 0, 0, 0
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
    .word 0, 0, 0
idt_pointer:
    .word 256 * 16 - 1
    .quad idt

    .section .bss
    .align 4096
    .global page_l4, page_l3, page_l2, tss0, tss1, idt
page_l4: .skip 4096
page_l3: .skip 4096
page_l2: .skip 4 * 4096
idt:    .skip 4096
    .skip STACK_BYTES
stack0_top:
    .skip STACK_BYTES
stack1_top:
    .align 16
tss0:   .skip 104
    .align 16
tss1:   .skip 104
user_saved_rsp: .skip 8
    .section .note.GNU-stack, "", @progbits
