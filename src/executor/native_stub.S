/*
 * All code of ours in a space, a copy in each block (native_page.h). No stack and
 * no memory of a runner can be relied on: the guest's user may write to both. What
 * a runner holds in registers, and all that the mapper does, is safe from him.
 *
 * A runner's handlers never return: the guest goes on by the jump at the end of
 * `restore`, so that no signal mask is ever changed and rt_sigreturn() is not needed.
 *
 * A runner that may spin adds one to its tally before it says that it has stopped. The
 * guest's user can say so without, or jump to where it is added; but behind that there is only
 * this code, which goes on with the guest's when the word says so, and with one runner nobody
 * else can write that. So who has a tally of as many as the executor saw it stop is here.
 */
#include "executor/native_page.h"

#define PAGE(offset) native_stub_start + NATIVE_PAGE_AT + (offset)(%rip)
#define UC_RDX 136 /* gregs[REG_RDX] of struct ucontext_t */
#define UC_RIP 168
#define SYS_WRITE 1
#define SYS_MMAP 9
#define SYS_MUNMAP 11
#define SYS_FUTEX 202
#define FUTEX_WAIT 0
#define FUTEX_WAKE 1

/* A frame there may be needed, others are not. In each part that a signal begins anew: no frame
 * is looked at once rsp is what the page says. */
.macro below_context
    mov PAGE(NATIVE_R_CONTEXT), %rsp
    sub $0x200, %rsp
    and $-64, %rsp
.endm

    .section .rodata.native_stub, "a", @progbits
    .balign 4096
    .globl native_stub_start, native_stub_fault, native_stub_kick, native_stub_begin
    .globl native_stub_map, native_stub_end, native_stub_one, native_stub_counted
    .globl native_stub_woken, native_stub_mapped, native_stub_slept
    .hidden native_stub_start, native_stub_fault, native_stub_kick, native_stub_begin
    .hidden native_stub_map, native_stub_end, native_stub_one, native_stub_counted
    .hidden native_stub_woken, native_stub_mapped, native_stub_slept
native_stub_start:

/* rdx: ucontext_t, from here until `.Lanswer`. */
native_stub_fault:
native_stub_kick:
    mov UC_RIP(%rdx), %rax
    lea native_stub_start(%rip), %rcx
    sub %rcx, %rax
    cmp $NATIVE_PAGE_AT, %rax
    jae .Lkeep

    /* The stub itself was interrupted, where? */
    cmp $(.Lkeep - native_stub_start), %rax
    jb .Louter
    cmp $(.Lanswer - native_stub_start), %rax
    jb .Lkeep_outer
    cmp $(.Lcounted - native_stub_start), %rax
    jb .Lanswer
    cmp $(.Lwake - native_stub_start), %rax
    jb .Lcounted
    cmp $(.Lrestore - native_stub_start), %rax
    jb .Lwake
    cmp $(.Lmap_own - native_stub_start), %rax
    jb .Labort
    jmp .Lmap_abort

    /* In a handler that had noted nothing yet: look at its frame instead. Only a kick comes there. */
.Louter:
    mov UC_RDX(%rdx), %rdx
    lea -0x200(%rdx), %rsp
    and $-64, %rsp
    jmp native_stub_kick
.Lkeep_outer:
    mov UC_RDX(%rdx), %rdx

.Lkeep:
    lea -0x200(%rdx), %rsp
    and $-64, %rsp
    mov %rdx, PAGE(NATIVE_R_CONTEXT)
    movl $0, PAGE(NATIVE_R_ABORTED)
    rdfsbase %rax
    mov %rax, PAGE(NATIVE_R_FS)
    rdgsbase %rax
    mov %rax, PAGE(NATIVE_R_GS)
    mov %ds, %eax
    mov %rax, PAGE(NATIVE_R_SELECTORS + 16)
    mov %es, %eax
    mov %rax, PAGE(NATIVE_R_SELECTORS + 24)
native_stub_begin:
.Lanswer:
    below_context
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    mov %rax, PAGE(NATIVE_R_END)
    lea native_stub_start(%rip), %rcx
    and $NATIVE_BLOCKS_MASK, %ecx
    shr $NATIVE_MAY_SHIFT, %ecx
    movabs $NATIVE_MAY_AT, %rdx
    cmpl $NATIVE_MAY_SPIN, (%rdx,%rcx)
    jne .Lcounted
    mov $NATIVE_TALLY_FD, %edi
    lea native_stub_one(%rip), %rsi
    mov $8, %edx
    mov $SYS_WRITE, %eax
    syscall
native_stub_counted:
.Lcounted:
    below_context
    mov $NATIVE_WORD_STOPPED, %eax
    xchg %eax, PAGE(NATIVE_R_WORD) /* before `waiting` is read */
.Lwake:
    below_context
    cmpl $0, PAGE(NATIVE_R_WAITING)
    je .Lwait
    lea PAGE(NATIVE_R_WORD), %rdi
    mov $FUTEX_WAKE, %esi
    mov $1, %edx
    mov $SYS_FUTEX, %eax
    syscall
native_stub_woken:
.Lwait:
    lea native_stub_start(%rip), %r8
    and $NATIVE_BLOCKS_MASK, %r8d
    shr $NATIVE_MAY_SHIFT, %r8d
    movabs $NATIVE_MAY_AT, %r9
    add %r8, %r9
    rdtsc
    shl $32, %rdx
    lea NATIVE_SPIN_TSC(%rdx,%rax), %r8
.Lspin:
    mov PAGE(NATIVE_R_WORD), %eax
    cmp $NATIVE_WORD_GO, %eax
    je .Lrestore
    cmp $NATIVE_WORD_MAPPING, %eax
    je .Lmap_own
    cmpl $NATIVE_MAY_SPIN, (%r9)
    jne .Lsleep
    pause
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    cmp %r8, %rax
    jb .Lspin
.Lsleep:
    mov $1, %eax
    xchg %eax, PAGE(NATIVE_R_SLEEPS) /* before the word is read */
    mov PAGE(NATIVE_R_WORD), %eax
    cmp $NATIVE_WORD_GO, %eax
    je .Lawake
    cmp $NATIVE_WORD_MAPPING, %eax
    je .Lmap_own
    lea PAGE(NATIVE_R_WORD), %rdi
    mov $FUTEX_WAIT, %esi
    mov %eax, %edx
    xor %r10d, %r10d
    mov $SYS_FUTEX, %eax
    syscall
native_stub_slept:
    jmp .Lsleep
.Lawake:
    movl $0, PAGE(NATIVE_R_SLEEPS)

    /* A kick from here on ends in .Lanswer with `aborted`; one before is seen here. */
.Lrestore:
    lea native_stub_start(%rip), %rcx
    and $NATIVE_BLOCKS_MASK, %ecx
    shr $NATIVE_MAY_SHIFT, %ecx
    movabs $NATIVE_MAY_AT, %rdx
    cmpl $NATIVE_MAY_NOT, (%rdx,%rcx) /* nobody in the space can write that */
    je .Labort
    cmpl $0, PAGE(NATIVE_R_KICKED)
    jne .Labort
    mov PAGE(NATIVE_R_SELECTORS), %fs
    mov PAGE(NATIVE_R_SELECTORS + 8), %gs
    mov PAGE(NATIVE_R_SELECTORS + 16), %ds
    mov PAGE(NATIVE_R_SELECTORS + 24), %es
    mov PAGE(NATIVE_R_FS), %rax
    wrfsbase %rax
    mov PAGE(NATIVE_R_GS), %rax
    wrgsbase %rax
    mov PAGE(NATIVE_R_XMASK), %eax
    xor %edx, %edx
    xrstor64 PAGE(NATIVE_R_XSAVE)
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    mov %rax, PAGE(NATIVE_R_BEGIN)
    lea PAGE(NATIVE_R_FLAGS), %rsp
    popfq
    mov PAGE(NATIVE_R_GPR + 0), %rax
    mov PAGE(NATIVE_R_GPR + 8), %rcx
    mov PAGE(NATIVE_R_GPR + 16), %rdx
    mov PAGE(NATIVE_R_GPR + 24), %rbx
    mov PAGE(NATIVE_R_GPR + 32), %rsp
    mov PAGE(NATIVE_R_GPR + 40), %rbp
    mov PAGE(NATIVE_R_GPR + 48), %rsi
    mov PAGE(NATIVE_R_GPR + 56), %rdi
    mov PAGE(NATIVE_R_GPR + 64), %r8
    mov PAGE(NATIVE_R_GPR + 72), %r9
    mov PAGE(NATIVE_R_GPR + 80), %r10
    mov PAGE(NATIVE_R_GPR + 88), %r11
    mov PAGE(NATIVE_R_GPR + 96), %r12
    mov PAGE(NATIVE_R_GPR + 104), %r13
    mov PAGE(NATIVE_R_GPR + 112), %r14
    mov PAGE(NATIVE_R_GPR + 120), %r15
    jmp *PAGE(NATIVE_R_RIP)
.Labort:
    movl $1, PAGE(NATIVE_R_ABORTED)
    jmp .Lanswer

/*
 * The only runner makes the changes itself that the executor has for it (native_confirm.c saw that
 * it is here). The kernel lets it by the key only, which the guest's user must never see:
 * it is in the page from the executor's order until here, then in r12 to r14 and the
 * arguments of the system calls. A kick puts all of them into a frame; so they
 * are wiped, and so is the stack, before anything else happens, and the order is not carried out.
 */
.Lmap_own:
    movl $0, PAGE(NATIVE_R_SLEEPS)
    xor %eax, %eax
    mov PAGE(NATIVE_R_KEY + 0), %r12
    mov PAGE(NATIVE_R_KEY + 8), %r13
    mov PAGE(NATIVE_R_KEY + 16), %r14
    mov %rax, PAGE(NATIVE_R_KEY + 0)
    mov %rax, PAGE(NATIVE_R_KEY + 8)
    mov %rax, PAGE(NATIVE_R_KEY + 16)
    movabs $NATIVE_MAPPER_AT, %r15
    mov NATIVE_M_COUNT(%r15), %ebx
    add $NATIVE_M_ITEMS, %r15
.Lown_next:
    test %ebx, %ebx
    jz .Lown_done
    mov 0(%r15), %rdi
    mov 8(%r15), %rsi
    mov 16(%r15), %rdx
    mov 24(%r15), %r10
    mov 32(%r15), %r9
    mov 40(%r15), %r8
    mov $SYS_MMAP, %eax
    mov $SYS_MUNMAP, %ecx
    test %rdx, %rdx
    cmovz %ecx, %eax
    or %r12, %rdx
    or %r13, %r10
    or %r14, %r8
    syscall
native_stub_mapped:
    cmp $-4096, %rax
    ja .Lown_failed
    add $NATIVE_M_ITEM_BYTES, %r15
    dec %ebx
    jmp .Lown_next
.macro forget_key
    xor %edx, %edx
    xor %r8d, %r8d
    xor %r10d, %r10d
    xor %r12d, %r12d
    xor %r13d, %r13d
    xor %r14d, %r14d
.endm
.Lown_done:
    forget_key
    movl $NATIVE_WORD_GO, PAGE(NATIVE_R_WORD)
    jmp .Lrestore
.Lown_failed:
    forget_key
    mov $NATIVE_WORD_FAILED, %eax
    xchg %eax, PAGE(NATIVE_R_WORD)
    jmp .Lwake
.Lmap_abort:
    forget_key
    xor %eax, %eax
    mov %rax, PAGE(NATIVE_R_KEY + 0)
    mov %rax, PAGE(NATIVE_R_KEY + 8)
    mov %rax, PAGE(NATIVE_R_KEY + 16)
    lea native_stub_start + NATIVE_STACK_AT(%rip), %rdi
    mov $((NATIVE_BLOCK_BYTES - NATIVE_STACK_AT) / 8), %ecx
    cld
    rep stosq
    mov $NATIVE_WORD_ABORTED, %eax
    xchg %eax, PAGE(NATIVE_R_WORD)
    jmp .Lwake

native_stub_one:
    .quad 1

/* The mapper: registers only. ebx: the last command, r12d: items left, r13: the next one. */
native_stub_map:
    xor %ebx, %ebx
.Lmap_wait:
    mov PAGE(NATIVE_M_GO), %eax
    cmp %eax, %ebx
    jne .Lmap_begin
    lea PAGE(NATIVE_M_GO), %rdi
    mov $FUTEX_WAIT, %esi
    mov %ebx, %edx
    xor %r10d, %r10d
    mov $SYS_FUTEX, %eax
    syscall
    jmp .Lmap_wait
.Lmap_begin:
    mov %eax, %ebx
    mov PAGE(NATIVE_M_COUNT), %r12d
    lea PAGE(NATIVE_M_ITEMS), %r13
.Lmap_next:
    test %r12d, %r12d
    jz .Lmap_done
    mov 0(%r13), %rdi
    mov 8(%r13), %rsi
    mov 16(%r13), %rdx
    test %rdx, %rdx
    jz .Lmap_remove
    mov 24(%r13), %r10
    mov 32(%r13), %r9
    mov 40(%r13), %r8
    mov $SYS_MMAP, %eax
    jmp .Lmap_call
.Lmap_remove:
    mov $SYS_MUNMAP, %eax
.Lmap_call:
    syscall
    cmp $-4096, %rax
    ja .Lmap_failed
    add $NATIVE_M_ITEM_BYTES, %r13
    dec %r12d
    jmp .Lmap_next
.Lmap_done:
    lea PAGE(NATIVE_M_DONE), %rsi
    jmp .Lmap_tell
.Lmap_failed:
    lea PAGE(NATIVE_M_FAILED), %rsi
.Lmap_tell:
    mov $NATIVE_BELL_FD, %edi
    mov $8, %edx
    mov $SYS_WRITE, %eax
    syscall
    jmp .Lmap_wait
native_stub_end:
    .section .note.GNU-stack, "", @progbits
