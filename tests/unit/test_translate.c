/*
 * The translator against the interpreter: small guests in 64-bit mode run on
 * both, and must end with the same registers and memory.
 *
 * A guest begins at CODE with its stack below STACK and ends with OUT to port
 * 0xf4. Vector 14 (#PF) and 0 (#DE) go to a handler that counts in R15, keeps
 * what it saw at SCRATCH and goes on at R14.
 */
#include "cpu/cpuid.h"
#include "engine/engine.h"
#include "engine/hostsig.h"
#include "engine/translate_int.h"
#include "mem/gmem.h"
#include "test.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define MEMORY (16u << 20)
#define CODE 0x100000u
#define STACK 0x200000u
#define DATA 0x300000u
#define SCRATCH 0x380000u
#define HANDLER 0x8000u
#define HOLE 0x40000000u /* not mapped */
#define END_PORT 0xf4

#define GUEST(name, text)                                                           \
    extern const uint8_t guest_##name[];                                            \
    extern const uint8_t guest_##name##_end[];                                      \
    __asm__(".pushsection .rodata\n.globl guest_" #name "\nguest_" #name ":\n" text \
            "\nout %al, $0xf4\n.globl guest_" #name "_end\nguest_" #name "_end:\n.popsection\n")

struct vm {
    struct gmem *gmem;
    struct accel_vm *vm;
    struct accel_vcpu *vcpu;
    struct cpuid_table cpuid;
    struct vcpu_env env;
};

/* cmocka takes these signals for itself before every test: they are given back. */
static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
static struct sigaction handlers[ARRAY_LEN(signals)];

static void keep_handlers(void)
{
    if (hostsig_thread_init() != 0) {
        abort();
    }
    for (size_t i = 0; i < ARRAY_LEN(signals); i++) {
        (void)sigaction(signals[i], NULL, &handlers[i]);
    }
}

static void give_back_handlers(void)
{
    for (size_t i = 0; i < ARRAY_LEN(signals); i++) {
        assert_int_equal(sigaction(signals[i], &handlers[i], NULL), 0);
    }
}

static void put64(struct gmem *gmem, uint64_t at, uint64_t value)
{
    assert_int_equal(gmem_write(gmem, gpa(at), &value, sizeof(value)), 0);
}

/* Arithmetic flags that nothing reads need not be exact in a frame: they are cleared there. */
GUEST(handler, "popq %rax\nandl $~0x8d5, 16(%rsp)\n"
               "incq %r15\n"
               "movq %rax, 0x380000\n"
               "movq (%rsp), %rax\n"
               "movq %rax, 0x380008\n"
               "movq %cr2, %rax\n"
               "movq %rax, 0x380010\n"
               "movq %r14, (%rsp)\n"
               "iretq\n");

GUEST(handler_de, "andl $~0x8d5, 16(%rsp)\nincq %r15\n"
                  "movq (%rsp), %rax\n"
                  "movq %rax, 0x380008\n"
                  "movq %r14, (%rsp)\n"
                  "iretq\n");

static void put_gate(struct gmem *gmem, unsigned vector, uint64_t handler)
{
    put64(gmem, 0x5000 + vector * 16u,
          (handler & 0xffff) | 0x8ull << 16 | 0x8e00ull << 32 | (handler >> 16 & 0xffff) << 48);
    put64(gmem, 0x5008 + vector * 16u, handler >> 32);
}

static void put_tables(struct gmem *gmem)
{
    put64(gmem, 0x1000, 0x2007);
    put64(gmem, 0x2000, 0x3007);
    for (uint64_t i = 0; i < MEMORY >> 21; i++) {
        put64(gmem, 0x3000 + i * 8, i << 21 | 0x87);
    }
    put64(gmem, 0x6008, 0x00af9b000000ffffull);
    put64(gmem, 0x6010, 0x00cf93000000ffffull);
    assert_int_equal(
        gmem_write(gmem, gpa(HANDLER), guest_handler, (size_t)(guest_handler_end - guest_handler)),
        0);
    assert_int_equal(gmem_write(gmem, gpa(HANDLER + 0x100), guest_handler_de,
                                (size_t)(guest_handler_de_end - guest_handler_de)),
                     0);
    put_gate(gmem, 14, HANDLER);
    put_gate(gmem, 0, HANDLER + 0x100);
}

static void init_state(struct vcpu_state *st)
{
    vcpu_state_reset(st, true);
    st->cr0 = X86_CR0_PE | X86_CR0_PG | X86_CR0_NE | X86_CR0_ET | X86_CR0_WP | X86_CR0_MP;
    st->cr4 =
        X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_OSXSAVE | X86_CR4_FSGSBASE;
    st->xcr0 = 7;
    st->efer = X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE;
    st->cr3 = 0x1000;
    st->seg[X86_CS] =
        (struct x86_segment){.selector = 8, .limit = UINT32_MAX, .access_rights = 0xa09b};
    for (unsigned seg = X86_ES; seg <= X86_GS; seg++) {
        if (seg != X86_CS) {
            st->seg[seg] =
                (struct x86_segment){.selector = 16, .limit = UINT32_MAX, .access_rights = 0xc093};
        }
    }
    st->gdtr = (struct x86_table){.base = 0x6000, .limit = 0x17};
    st->idtr = (struct x86_table){.base = 0x5000, .limit = 0xfff};
    st->rip = CODE;
    st->gpr[X86_RSP] = STACK;
}

static void vm_start(struct vm *m, bool reference, uint64_t cache_bytes, const uint8_t *code,
                     size_t bytes, uint64_t at)
{
    struct accel_vm_config config = {.vcpu_count = 1,
                                     .irqchip = VM_IRQCHIP_USER,
                                     .reference_only = reference,
                                     .code_cache_bytes = cache_bytes};
    struct vcpu_state *st = test_calloc(1, sizeof(*st));
    struct err err = {0};

    give_back_handlers();
    memset(m, 0, sizeof(*m));
    assert_int_equal(gmem_create(MEMORY, &err, &m->gmem), 0);
    put_tables(m->gmem);
    assert_int_equal(gmem_write(m->gmem, gpa(at), code, bytes), 0);
    config.gmem = m->gmem;
    cpuid_table_init(&m->cpuid, 0, 1);
    m->env.cpuid = &m->cpuid;
    assert_int_equal(engine_accel_ops.vm_create(&config, &err, &m->vm), 0);
    assert_int_equal(engine_accel_ops.vcpu_create(m->vm, 0, &m->env, &err, &m->vcpu), 0);
    init_state(st);
    st->rip = at;
    assert_int_equal(engine_accel_ops.set_state(m->vcpu, st), 0);
    test_free(st);
}

static void vm_stop(struct vm *m)
{
    engine_accel_ops.vcpu_destroy(m->vcpu);
    engine_accel_ops.vm_destroy(m->vm);
    gmem_destroy(m->gmem);
}

static void run_to_end(struct vm *m)
{
    struct vmexit exit = {.reason = VMEXIT_INTR};

    do {
        assert_int_equal(engine_accel_ops.run(m->vcpu, &exit), 0);
        assert_true(exit.reason == VMEXIT_INTR || exit.reason == VMEXIT_PIO);
    } while (exit.reason != VMEXIT_PIO || exit.pio.port != END_PORT);
}

static uint64_t stat_of(struct vm *m, const char *name)
{
    struct accel_stat stats[64];
    unsigned count = engine_accel_ops.stats(m->vm, stats, 64);

    for (unsigned i = 0; i < count; i++) {
        if (strcmp(stats[i].name, name) == 0) {
            return stats[i].value;
        }
    }
    fail_msg("no statistic %s", name);
    return 0;
}

/* Runs the guest on both; the translator's final state is for further asserts. */
static void run_both(const uint8_t *code, const uint8_t *end, uint64_t at,
                     struct vcpu_state *ret_state, struct vm *m)
{
    struct vcpu_state *expected = test_calloc(1, sizeof(*expected));
    uint8_t *memory = test_calloc(1, MEMORY);
    struct vm reference;

    vm_start(&reference, true, 0, code, (size_t)(end - code), at);
    run_to_end(&reference);
    assert_int_equal(engine_accel_ops.get_state(reference.vcpu, expected), 0);
    vm_start(m, false, 0, code, (size_t)(end - code), at);
    run_to_end(m);
    assert_int_equal(engine_accel_ops.get_state(m->vcpu, ret_state), 0);

    for (unsigned r = 0; r < X86_GPR_COUNT; r++) {
        if (ret_state->gpr[r] != expected->gpr[r]) {
            print_message("register %u: %llx, interpreter %llx\n", r,
                          (unsigned long long)ret_state->gpr[r],
                          (unsigned long long)expected->gpr[r]);
        }
    }
    assert_memory_equal(ret_state->gpr, expected->gpr, sizeof(expected->gpr));
    assert_int_equal(ret_state->rip, expected->rip);
    assert_memory_equal(ret_state->xsave + 160, expected->xsave + 160, 256);
    assert_int_equal(gmem_read(reference.gmem, gpa(0), memory, MEMORY), 0);
    for (uint64_t page = 0; page < MEMORY; page += 4096) {
        if (memcmp(gmem_host(m->gmem, gpa(page), 4096), memory + page, 4096) != 0) {
            fail_msg("memory differs in the page at %llx", (unsigned long long)page);
        }
    }
    vm_stop(&reference);
    test_free(memory);
    test_free(expected);
}

static void check_guest(const uint8_t *code, const uint8_t *end)
{
    struct vcpu_state *st = test_calloc(1, sizeof(*st));
    struct vm m;

    run_both(code, end, CODE, st, &m);
    /* It was not simply interpreted. */
    assert_true(stat_of(&m, "translator_units") > 0);
    vm_stop(&m);
    test_free(st);
}

#define CHECK(name)                                    \
    static void test_##name(void **state)              \
    {                                                  \
        (void)state;                                   \
        check_guest(guest_##name, guest_##name##_end); \
    }

GUEST(loop, "xorl %eax, %eax\nmovl $100000, %ecx\n1: addq %rcx, %rax\nrorq $3, %rax\n"
            "decq %rcx\njnz 1b\n");
CHECK(loop)

GUEST(stack, "movl $1000, %ebx\nmovq $7, %rax\n"
             "1: callq 2f\npushq %rax\npushq $-5\npopq %rcx\npopq %rdx\naddq %rcx, %rax\n"
             "decl %ebx\njnz 1b\njmp 3f\n"
             "2: pushq %rbp\nmovq %rsp, %rbp\nsubq $32, %rsp\nmovq %rax, -8(%rbp)\n"
             "imulq $31, -8(%rbp), %rax\npushq -8(%rbp)\npopq %rsi\nxorq %rsi, %rax\n"
             "leave\nretq\n3:\n");
CHECK(stack)

GUEST(flags, "movl $0x300000, %edi\nmovl $500, %ecx\nxorl %r8d, %r8d\n"
             "1: movq %rcx, (%rdi)\n"
             "cmpq $250, %rcx\nmovq (%rdi), %rax\nmovq %rax, 8(%rdi)\nadcq $0, %r8\n"
             "setc %r9b\nmovzbl %r9b, %r9d\naddq %r9, %r8\n"
             "movq $-1, %r10\naddq %r10, %r10\npushfq\npopq %r11\nandl $0x0c5, %r11d\n"
             "addq %r11, %r8\n"
             "shlq %cl, %r10\nmovq %r10, 16(%rdi)\npushfq\npopq %r11\nandl $0x0c5, %r11d\n"
             "incq 24(%rdi)\nadcq %r11, %r8\n"
             "negq %r11\nmovq 8(%rdi), %rdx\nsbbq %rdx, %r8\ncmovcq %r8, %rbx\n"
             "loop 1b\n");
CHECK(flags)

GUEST(pressure, /* every register is in use, and memory is reached through them */
      "movl $0x300000, %ebp\nmovl $3, %eax\nmovl $5, %ebx\nmovl $64, %ecx\nmovl $7, %edx\n"
      "movl $11, %esi\nmovl $13, %edi\nmovl $17, %r8d\nmovl $19, %r9d\nmovl $23, %r10d\n"
      "movl $29, %r11d\nmovl $31, %r12d\nmovl $37, %r13d\nmovl $41, %r14d\nmovl $43, %r15d\n"
      "1: movq %rax, (%rbp,%rcx,8)\naddq %rbx, (%rbp,%rcx,8)\nmovq (%rbp,%rcx,8), %rdx\n"
      "xaddq %rsi, (%rbp,%rcx,8)\nlock xaddq %rdi, 8(%rbp,%rcx,8)\nxchgq %r8, 16(%rbp)\n"
      "imulq (%rbp,%rcx,8), %r9\naddb %ah, (%rbp)\naddb (%rbp), %bh\nmovzbl %ch, %edx\n"
      "lock cmpxchgq %r11, (%rbp,%rcx,8)\nadcq %r12, %r13\nxorq %r14, (%rbp)\n"
      "movl %r15d, 4(%rbp)\nleaq 1(%r15,%rdx,2), %r15\nmulq (%rbp)\n"
      "rorq $7, (%rbp,%rcx,8)\nsubq %rax, %r14\ndecq %rcx\njnz 1b\n");
CHECK(pressure)

GUEST(bits, "movl $0x300000, %edi\nmovl $200, %ecx\nxorl %eax, %eax\n"
            "1: movq %rcx, %rdx\nimulq $7, %rdx\nsubq $300, %rdx\nbtsq %rdx, 256(%rdi)\n"
            "adcl $0, %eax\nlock btrl %edx, 250(%rdi)\nadcl %eax, %eax\nbtcl %ecx, (%rdi)\n"
            "btq %rcx, 8(%rdi)\nadcl $1, %eax\ndecl %ecx\njnz 1b\n");
CHECK(bits)

GUEST(
    vectors,
    "fninit\nmovl $0x300000, %edi\nmovl $64, %ecx\ncvtsi2sdl %ecx, %xmm0\n"
    "movapd %xmm0, %xmm1\n"
    "1: mulsd %xmm0, %xmm1\nsqrtsd %xmm1, %xmm1\nmovapd %xmm1, (%rdi)\n"
    "addpd (%rdi), %xmm0\nmovups %xmm0, 17(%rdi,%rcx)\nmovups 17(%rdi,%rcx), %xmm4\npaddd %xmm4, %xmm2\n"
    "vaddpd (%rdi), %ymm0, %ymm3\nvmovupd %ymm3, 128(%rdi)\nfldl (%rdi)\n"
    "fsqrt\nfstpl 8(%rdi)\ncvttsd2si (%rdi), %rax\naddq %rax, %rbx\n"
    "decl %ecx\njnz 1b\n");
CHECK(vectors)

/* The x87's instruction and data pointers in the area must not be the host's. */
GUEST(xsave, "fninit\nmovl $0x300000, %edi\nmovq $4, 1024(%rdi)\nfildl 1024(%rdi)\nfsqrt\n"
             "vpcmpeqd %ymm3, %ymm3, %ymm3\nmovl $7, %eax\nxorl %edx, %edx\n"
             "xsave64 (%rdi)\nmovl $6, %eax\nmovq $-1, 4104(%rdi)\nxsave64 4096(%rdi)\n"
             "movq 8(%rdi), %rbx\norq 16(%rdi), %rbx\n");
CHECK(xsave)

GUEST(strings, "cld\nmovl $0x300000, %edi\nmovl $0x1234, %eax\nmovl $5000, %ecx\nrep stosl\n"
               "movl $0x300000, %esi\nmovl $0x310123, %edi\nmovl $9001, %ecx\nrep movsb\n"
               "std\nmovl $64, %ecx\nmovl $0x310400, %edi\nmovl $0x310200, %esi\nrep movsq\n"
               "cld\nmovl $0x300000, %esi\nmovl $0x310123, %edi\nmovl $9000, %ecx\nrepe cmpsb\n"
               "movq %rcx, %rbx\nlodsq\nscasb\nsetz %dl\n");
CHECK(strings)

GUEST(indirect, "leaq 3f(%rip), %rbx\nmovl $2000, %ecx\nxorl %eax, %eax\n"
                "1: movl %ecx, %edx\nandl $3, %edx\nshll $4, %edx\naddq %rbx, %rdx\n"
                "testl $1, %ecx\njz 2f\ncallq *%rdx\nloop 1b\njmp 4f\n"
                "2: movq %rdx, 0x300000\ncallq *0x300000\nloop 1b\njmp 4f\n"
                ".balign 16\n3: addl $1, %eax\nretq\n.balign 16\naddl $100, %eax\nretq\n"
                ".balign 16\nimull $3, %eax\nretq\n.balign 16\nxorl %ecx, %eax\nretq $0\n4:\n");
CHECK(indirect)

GUEST(page_fault, /* push of an unmapped operand: RSP and memory are as before it */
      "movl $0x40000000, %esi\nmovq %rsp, %r13\nleaq 1f(%rip), %r14\nmovl $77, %eax\n"
      "cmpl $78, %eax\nmovl $5, %ecx\n"
      "pushq 8(%rsi)\n"
      "1: movq %rsp, %r12\nleaq 2f(%rip), %r14\nmovl $3, %ebx\n"
      "addl $7, 0x100(%rsi,%rbx,4)\n2: movl %ebx, %ecx\nleaq 3f(%rip), %r14\n"
      "leave\n3: movq 0x380010, %r11\n");
CHECK(page_fault)

GUEST(divide_fault, "movl $40, %ecx\nleaq 2f(%rip), %r14\nmovl $1000, %eax\n"
                    "1: movl $0, %edx\nmovl %ecx, %ebx\nandl $7, %ebx\nmovl $99, %eax\n"
                    "divl %ebx\naddl %eax, %esi\n2: loop 1b\n");
CHECK(divide_fault)

GUEST(self_modify, /* changes the immediate in a function it then calls, and one just ahead */
      "leaq 3f(%rip), %rbx\nmovl $300, %ecx\nxorl %esi, %esi\n"
      "1: movl %ecx, 1(%rbx)\ncallq 3f\naddl %eax, %esi\n"
      "movb %cl, 2f+1(%rip)\n2: movb $0, %dl\nmovzbl %dl, %edx\naddl %edx, %esi\nloop 1b\n"
      "jmp 4f\n3: movl $0, %eax\nretq\n4:\n");
CHECK(self_modify)

GUEST(frames, /* frames at every place around a page end: one check for a frame cannot do */
      "movl $150, %ecx\nxorl %eax, %eax\nmovl $3, %ebx\n"
      "1: movl $0x1ff140, %esp\nsubq %rcx, %rsp\nsubq %rcx, %rsp\nsubq %rcx, %rsp\n"
      "pushq %rax\npushq %rbx\npushq %rcx\nsubq $72, %rsp\nmovq %rcx, (%rsp)\n"
      "movq %rbx, 8(%rsp)\naddq %rax, 16(%rsp)\naddq 8(%rsp), %rax\nmovl %ecx, 60(%rsp)\n"
      "xorq 24(%rsp), %rax\nmovb 60(%rsp), %dl\nleaq 8(%rsp), %rsp\naddb %dl, (%rsp)\n"
      "addq (%rsp), %rbx\naddq $64, %rsp\npopq %rcx\npopq %rdx\nxorq %rdx, %rbx\npopq %rdx\n"
      "loop 1b\nmovl $0x200000, %esp\n");
CHECK(frames)

GUEST(segments, /* relative to GS and RIP at once, as kernels reach per-CPU data */
      "movl $0x280000, %eax\nwrgsbase %rax\nmovl $100, %ecx\n"
      "1: incl %gs:2f(%rip)\naddl %ecx, %gs:2f+8(%rip)\nmovl %gs:2f(%rip), %edx\n"
      "addl %gs:2f+8(%rip), %edx\naddq %rdx, %rbx\nmovq %gs:8(%rcx,%rcx), %rsi\n"
      "xorq %rsi, %rbx\nswapgs\nmovl %ecx, %edi\nshll $8, %edi\norl $0x280000, %edi\n"
      "wrgsbase %rdi\nrdgsbase %rsi\naddq %rsi, %rbx\nloop 1b\nrdgsbase %rdx\n2:\n");
CHECK(segments)

GUEST(gather, /* masks of all kinds, all forms, elements across a page end */
      "movl $0x300000, %edi\nmovl $4096, %ecx\n1: imull $0x9e3779b1, %ecx, %eax\n"
      "movl %eax, -4(%rdi,%rcx,4)\nloop 1b\nmovl $60, %ecx\n"
      "2: vmovdqu (%rdi,%rcx,8), %ymm1\nvpslld $20, %ymm1, %ymm1\nvpsrad $20, %ymm1, %ymm1\n"
      "vmovdqu 64(%rdi,%rcx,8), %ymm2\nvpgatherdd %ymm2, 0x2000(%rdi,%ymm1,4), %ymm3\n"
      "vpxor %ymm3, %ymm4, %ymm4\nvmovdqu 96(%rdi,%rcx,8), %ymm2\n"
      "vgatherdpd %ymm2, 0x2000(%rdi,%xmm1,2), %ymm5\nvpxor %ymm5, %ymm4, %ymm4\n"
      "vmovdqu 32(%rdi,%rcx,8), %ymm9\nvpsrlq $54, %ymm9, %ymm9\n"
      "vmovdqu 96(%rdi,%rcx,8), %xmm12\nvpgatherqd %xmm12, (%rdi,%ymm9,8), %xmm6\n"
      "vpxor %ymm6, %ymm4, %ymm4\nvmovdqu 33(%rdi,%rcx,8), %xmm2\n"
      "vpgatherqq %xmm2, 1(%rdi,%xmm9,4), %xmm7\nvpxor %ymm7, %ymm4, %ymm4\n"
      "vmovdqu %ymm4, 0x310000(%rcx)\nvmovdqu %ymm2, 0x310100(%rcx)\n"
      "cmpq $30, %rcx\nvpgatherdd %xmm2, (%rdi,%xmm1,1), %xmm7\nadcq $0, %rbx\n"
      "decl %ecx\njnz 2b\n");
CHECK(gather)

/* The loop lies across a page end, with an instruction across it too. */
GUEST(crossing, "xorl %eax, %eax\nmovl $3000, %ecx\n1: addq %rcx, %rax\n"
                "movabsq $0x1122334455667788, %rdx\nxorq %rdx, %rax\ndecq %rcx\njnz 1b\n");

static void test_crossing(void **state)
{
    struct vcpu_state *st = test_calloc(1, sizeof(*st));
    struct vm m;

    (void)state;
    for (uint64_t back = 1; back < 30; back++) {
        run_both(guest_crossing, guest_crossing_end, CODE + 4096 - back, st, &m);
        vm_stop(&m);
    }
    test_free(st);
}

/* The loop begins within the unit before it, where that is entered: it is not translated again. */
GUEST(inside, "movl $7, %ecx\nincl %eax\n1: addl %ecx, %eax\nxorl %eax, %edx\ndecl %ecx\n"
              "jnz 1b\n");

static void test_inside(void **state)
{
    struct vcpu_state *st = test_calloc(1, sizeof(*st));
    struct vm m;

    (void)state;
    run_both(guest_inside, guest_inside_end, CODE, st, &m);
    assert_true(stat_of(&m, "translator_aliases") == 1);
    vm_stop(&m);
    test_free(st);
}

/* An instruction without an end makes no unit, and leaves its page data. */
GUEST(no_end, "leaq 1f(%rip), %r14\nmovl $0xffffff, %eax\nmovb $0xb8, (%rax)\njmp *%rax\n1: nop\n");

static void test_no_end(void **state)
{
    struct vcpu_state *st = test_calloc(1, sizeof(*st));
    struct vm m;

    (void)state;
    run_both(guest_no_end, guest_no_end_end, CODE, st, &m);
    assert_int_equal(st->gpr[X86_R15], 1);
    assert_int_equal(atomic_load(gmem_page_flags(m.gmem, gpa(0xfff000))) & GMEM_PAGE_CODE, 0);
    assert_int_not_equal(atomic_load(gmem_page_flags(m.gmem, gpa(CODE))) & GMEM_PAGE_CODE, 0);
    vm_stop(&m);
    test_free(st);
}

/* So many units, each of which counts in memory, and the end. */
#define COUNTING_BLOCKS 60000u
#define COUNTING_AT 0x400000u
#define COUNTED 0x380100u

static void start_counting(struct vm *m, uint64_t cache_bytes)
{
    /* addl $1, 0x380100; jmp +3; nops */
    static const uint8_t block[] = {0x83, 0x04, 0x25, 0x00, 0x01, 0x38, 0x00, 0x01,
                                    0xe9, 0x03, 0x00, 0x00, 0x00, 0x90, 0x90, 0x90};
    uint8_t *code = test_calloc(COUNTING_BLOCKS + 1, sizeof(block));

    for (unsigned i = 0; i < COUNTING_BLOCKS; i++) {
        memcpy(code + i * sizeof(block), block, sizeof(block));
    }
    memcpy(code + COUNTING_BLOCKS * sizeof(block), "\xe6\xf4", 2);
    vm_start(m, false, cache_bytes, code, (COUNTING_BLOCKS + 1) * sizeof(block), COUNTING_AT);
    test_free(code);
}

static uint32_t counted(const struct vm *m)
{
    return *(uint32_t *)(void *)gmem_host(m->gmem, gpa(COUNTED), 4);
}

/* More code than the cache holds: it is dropped and made again. */
static void test_cache_full(void **state)
{
    struct vm m;

    (void)state;
    start_counting(&m, 1u << 20);
    run_to_end(&m);
    assert_int_equal(counted(&m), COUNTING_BLOCKS);
    assert_true(stat_of(&m, "translator_flushes") > 0);
    vm_stop(&m);
}

/* KiB of the host's memory that translated code takes, in either of its mappings. */
static unsigned long code_kib(void)
{
    FILE *maps = fopen("/proc/self/smaps", "r");
    unsigned long sum = 0;
    char line[512];
    bool is_code = false;

    assert_non_null(maps);
    while (fgets(line, sizeof(line), maps) != NULL) {
        is_code = strchr(line, '-') != NULL && strchr(line, '-') < strchr(line, ' ')
                      ? strstr(line, "corbel-code") != NULL
                      : is_code;
        if (is_code && strncmp(line, "Rss:", 4) == 0) {
            sum += strtoul(line + 4, NULL, 10);
        }
    }
    (void)fclose(maps);
    return sum;
}

/* What a guest at rest ran once takes no memory, and runs again. */
static void test_trim(void **state)
{
    struct vcpu_state *st = test_calloc(1, sizeof(*st));
    struct vm m;

    (void)state;
    start_counting(&m, 0);
    run_to_end(&m);
    assert_true(code_kib() > 3072);
    assert_int_equal(engine_accel_ops.get_state(m.vcpu, st), 0);
    assert_true(engine_trim(m.vcpu));
    assert_true(code_kib() < 512);
    assert_false(engine_trim(m.vcpu));
    st->rip = COUNTING_AT;
    assert_int_equal(engine_accel_ops.set_state(m.vcpu, st), 0);
    run_to_end(&m);
    assert_int_equal(counted(&m), 2 * COUNTING_BLOCKS);
    assert_int_equal(stat_of(&m, "translator_flushes"), 1);
    vm_stop(&m);
    test_free(st);
}

/* An endless loop without memory, one with, and one of calls: a kick ends each run(). */
GUEST(spin, "1: jmp 1b\n");
GUEST(spin_memory, "movl $0x300000, %edi\n1: incq (%rdi)\nmovq (%rdi), %rax\n"
                   "cmpq $0, %rax\njne 1b\n");
GUEST(spin_call, "1: callq 2f\njmp 1b\n2: pushq %rax\nincq %rbx\npopq %rcx\nretq\n");

struct kicker {
    struct vm *m;
    atomic_uint rounds;
    atomic_bool stop;
};

static void *kick_thread(void *opaque)
{
    struct kicker *k = opaque;
    unsigned seen = 0;

    while (!atomic_load(&k->stop)) {
        engine_accel_ops.kick(k->m->vcpu);
        /* The next kick comes when run() has answered this one. */
        while (atomic_load(&k->rounds) == seen && !atomic_load(&k->stop)) {
            sched_yield();
        }
        seen = atomic_load(&k->rounds);
    }
    return NULL;
}

static void check_kicks(const uint8_t *code, const uint8_t *end)
{
    struct vcpu_state *st = test_calloc(1, sizeof(*st));
    struct vmexit exit = {.reason = VMEXIT_INTR};
    struct kicker k = {0};
    pthread_t thread;
    struct vm m;

    vm_start(&m, false, 0, code, (size_t)(end - code), CODE);
    k.m = &m;
    assert_int_equal(pthread_create(&thread, NULL, kick_thread, &k), 0);
    for (unsigned i = 0; i < 40; i++) {
        assert_int_equal(engine_accel_ops.run(m.vcpu, &exit), 0);
        assert_int_equal(exit.reason, VMEXIT_INTR);
        assert_int_equal(engine_accel_ops.get_state(m.vcpu, st), 0);
        assert_true(st->rip >= CODE && st->rip < CODE + (uint64_t)(end - code));
        atomic_fetch_add(&k.rounds, 1);
    }
    atomic_store(&k.stop, true);
    pthread_join(thread, NULL);
    /* What the loop keeps true at each boundary still holds: RCX is RAX or its pushed value. */
    assert_true(st->gpr[X86_RSP] <= STACK && st->gpr[X86_RSP] >= STACK - 16);
    vm_stop(&m);
    test_free(st);
}

/* Locked operands at RDI. RBX keeps what the exchanges found. */
GUEST(locked, "movl $200, %ecx\nmovabsq $0x123456789abcdef1, %rdx\nxorl %ebx, %ebx\n"
              "1: lock addq %rdx, (%rdi)\n"
              "movq %rcx, %rax\nlock xaddq %rax, (%rdi)\naddq %rax, %rbx\n"
              "movl %ecx, %eax\nxchgl %eax, 4(%rdi)\nxorq %rax, %rbx\n"
              "movq (%rdi), %rax\nlock cmpxchgq %rdx, (%rdi)\nsetz %al\naddq %rax, %rbx\n"
              "lock xorq %rcx, (%rdi)\n"
              "lock btcq %rcx, (%rdi)\nsbbq $0, %rbx\n"
              "decl %ecx\njnz 1b\n");
#define LOCKED_OPERANDS 6u

/* How often the code compares an offset in a cache line with what a lock of some size allows. */
static unsigned count_line_checks(const struct vm *m)
{
    const struct engine_vm *vm = (const struct engine_vm *)(const void *)m->vm;
    const uint8_t *code = vm->translator->rw;
    unsigned found = 0;

    for (uint32_t i = 0; i + 8 < vm->translator->used_bytes; i++) {
        const uint8_t *cmp = code + i + 3;

        cmp += *cmp == 0x41; /* REX.B */
        found += code[i] == 0x83 && (code[i + 1] & 0xf8) == 0xe0 && code[i + 2] == 63 &&
                 cmp[0] == 0x83 && (cmp[1] & 0xf8) == 0xf8 && (cmp[2] == 56 || cmp[2] == 60);
    }
    return found;
}

static void run_locked(struct vm *m, uint64_t at, struct vcpu_state *st)
{
    assert_int_equal(engine_accel_ops.get_state(m->vcpu, st), 0);
    st->rip = CODE;
    st->gpr[X86_RDI] = at;
    assert_int_equal(engine_accel_ops.set_state(m->vcpu, st), 0);
    run_to_end(m);
    assert_int_equal(engine_accel_ops.get_state(m->vcpu, st), 0);
}

/*
 * A lock across two cache lines must not reach the host. That each is looked at
 * is seen in the code first, after a run that has none; then they do their work.
 */
static void test_split_locks_are_not_for_the_host(void **state)
{
    struct vcpu_state *st = test_calloc(1, sizeof(*st));
    struct vm m;

    (void)state;
    vm_start(&m, false, 0, guest_locked, (size_t)(guest_locked_end - guest_locked), CODE);
    run_locked(&m, DATA, st);
    assert_true(count_line_checks(&m) > 0);
    assert_int_equal(count_line_checks(&m) % LOCKED_OPERANDS, 0); /* the loop is in two units */
    for (uint64_t offset = 0; offset <= 64; offset++) {
        uint64_t aligned = DATA + 0x1000 + offset * 128;
        uint64_t shifted = DATA + 0x4000 - 64 + offset; /* some of them across a page too */
        uint64_t expected;
        uint64_t sum;

        run_locked(&m, aligned, st);
        sum = st->gpr[X86_RBX];
        for (unsigned i = 0; i < 32; i += 8) {
            put64(m.gmem, shifted + i, 0); /* BTC goes on from the operand by bit RCX */
        }
        run_locked(&m, shifted, st);
        if (st->gpr[X86_RBX] != sum) {
            fail_msg("the operand at %llx gives another result", (unsigned long long)shifted);
        }
        expected = *(const uint64_t *)(const void *)gmem_host(m.gmem, gpa(aligned), 8);
        assert_memory_equal(gmem_host(m.gmem, gpa(shifted), 8), &expected, 8);
    }
    vm_stop(&m);
    test_free(st);
}

static void test_kick(void **state)
{
    (void)state;
    check_kicks(guest_spin, guest_spin_end);
    check_kicks(guest_spin_memory, guest_spin_memory_end);
    check_kicks(guest_spin_call, guest_spin_call_end);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loop),
        cmocka_unit_test(test_stack),
        cmocka_unit_test(test_flags),
        cmocka_unit_test(test_pressure),
        cmocka_unit_test(test_bits),
        cmocka_unit_test(test_vectors),
        cmocka_unit_test(test_xsave),
        cmocka_unit_test(test_strings),
        cmocka_unit_test(test_indirect),
        cmocka_unit_test(test_page_fault),
        cmocka_unit_test(test_divide_fault),
        cmocka_unit_test(test_self_modify),
        cmocka_unit_test(test_crossing),
        cmocka_unit_test(test_inside),
        cmocka_unit_test(test_no_end),
        cmocka_unit_test(test_frames),
        cmocka_unit_test(test_segments),
        cmocka_unit_test(test_gather),
        cmocka_unit_test(test_cache_full),
        cmocka_unit_test(test_trim),
        cmocka_unit_test(test_kick),
        cmocka_unit_test(test_split_locks_are_not_for_the_host),
    };

    keep_handlers();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
