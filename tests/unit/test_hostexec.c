/*
 * Instructions run as copies on the host CPU: results, memory operands and
 * faults as the guest would see them, and the host's own state left alone.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <xmmintrin.h>

#include "engine/hostexec.h"
#include "engine/hostsig.h"
#include "test.h"

#define XSAVE_FCW 0
#define XSAVE_FSW 2
#define XSAVE_FIP 8
#define XSAVE_MXCSR 24
#define XSAVE_ST0 32
#define XSAVE_XMM0 160
#define XSAVE_HEADER 512
#define XSAVE_YMM0_HI 576
#define XSAVE_YMM8_HI 704

struct fixture {
    struct hostexec *exec;
    struct vcpu_state *state;
    uint8_t *mem;
};

/* cmocka takes these signals for itself before every test: they are given back. */
static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
static struct sigaction handlers[ARRAY_LEN(signals)];

static void keep_handlers(void)
{
    assert_int_equal(hostsig_thread_init(), 0);
    for (size_t i = 0; i < ARRAY_LEN(signals); i++) {
        assert_int_equal(sigaction(signals[i], NULL, &handlers[i]), 0);
    }
}

static void give_back_handlers(void)
{
    for (size_t i = 0; i < ARRAY_LEN(signals); i++) {
        assert_int_equal(sigaction(signals[i], &handlers[i], NULL), 0);
    }
}

static int setup(void **out)
{
    static struct fixture f;
    struct err err;

    f.state = mmap(NULL, sizeof(*f.state) + 8192, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    f.mem = (uint8_t *)f.state + ((sizeof(*f.state) + 4095) & ~4095ul);
    assert_int_equal(hostexec_create(&err, &f.exec), 0);
    *out = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    hostexec_destroy(f->exec);
    return munmap(f->state, sizeof(*f->state) + 8192);
}

static void reset(struct fixture *f)
{
    const uint16_t fcw = 0x37f;
    const uint32_t mxcsr = 0x1f80;

    give_back_handlers();
    memset(f->state, 0, sizeof(*f->state));
    f->state->rflags = X86_FLAG_FIXED1 | X86_FLAG_IF;
    f->state->rip = 0x401000;
    memcpy(f->state->xsave + XSAVE_FCW, &fcw, sizeof(fcw));
    memcpy(f->state->xsave + XSAVE_MXCSR, &mxcsr, sizeof(mxcsr));
    for (unsigned i = 0; i < X86_GPR_COUNT; i++) {
        f->state->gpr[i] = 0x1111111111111111ull * i;
    }
}

static int run(struct fixture *f, const void *bytes, unsigned len, enum insn_mode mode, void *mem,
               struct hostexec_fault *fault)
{
    struct insn insn;

    assert_int_equal(insn_decode(bytes, len, mode, &insn), 0);
    assert_int_equal(insn.op, INSN_OP_COPY);
    assert_int_equal(insn.len, len);
    assert_int_equal(insn.mem_bytes != 0, mem != NULL);
    return hostexec_run(f->exec, &insn, f->state, mem, fault);
}

#define RUN(f, code, mem, fault) run(f, code, sizeof(code) - 1, INSN_MODE_64, mem, fault)

static void test_add_sets_register_and_flags(void **state)
{
    struct fixture *f = *state;
    struct hostexec_fault fault;

    reset(f);
    f->state->gpr[X86_RSP] = 0xffffffff;
    f->state->rflags |= X86_FLAG_DF;
    assert_int_equal(RUN(f, "\x83\xc4\x01", NULL, &fault), 0); /* add esp, 1 */
    assert_int_equal(f->state->gpr[X86_RSP], 0);
    assert_int_equal(f->state->rflags, X86_FLAG_FIXED1 | X86_FLAG_IF | X86_FLAG_DF | X86_FLAG_ZF |
                                           X86_FLAG_CF | X86_FLAG_PF | X86_FLAG_AF);
    for (unsigned i = 0; i < X86_GPR_COUNT; i++) {
        if (i != X86_RSP) {
            assert_int_equal(f->state->gpr[i], 0x1111111111111111ull * i);
        }
    }
}

static void test_memory_operand_is_the_given_one(void **state)
{
    struct fixture *f = *state;
    struct hostexec_fault fault;
    uint64_t value = 5;

    reset(f);
    memcpy(f->mem, &value, sizeof(value));
    /* lock xadd fs:[rsp+r12*8+0x12345678], r12 */
    assert_int_equal(RUN(f, "\x64\xf0\x4e\x0f\xc1\xa4\xe4\x78\x56\x34\x12", f->mem, &fault), 0);
    assert_int_equal(f->state->gpr[X86_R12], 5);
    memcpy(&value, f->mem, sizeof(value));
    assert_int_equal(value, 5 + 0x1111111111111111ull * 12);
}

static void test_high_byte_register_with_memory(void **state)
{
    struct fixture *f = *state;
    struct hostexec_fault fault;

    reset(f);
    f->state->gpr[X86_RBX] = 0xab00;
    assert_int_equal(RUN(f, "\x88\x3c\x1e", f->mem, &fault), 0); /* mov [rsi+rbx], bh */
    assert_int_equal(f->mem[0], 0xab);
    assert_int_equal(f->state->gpr[X86_RSI], 0x6666666666666666ull);
}

static void test_divide_error_leaves_registers(void **state)
{
    struct fixture *f = *state;
    struct hostexec_fault fault;

    reset(f);
    f->state->gpr[X86_RCX] = 0;
    assert_int_equal(RUN(f, "\x48\xf7\xf1", NULL, &fault), -EFAULT); /* div rcx */
    assert_int_equal(fault.vector, X86_VEC_DE);
    assert_false(fault.has_error);
    assert_int_equal(f->state->gpr[X86_RDX], 0x2222222222222222ull);
    assert_int_equal(f->state->rip, 0x401000);
}

static void test_misaligned_movaps_is_gp(void **state)
{
    struct fixture *f = *state;
    struct hostexec_fault fault;

    reset(f);
    assert_int_equal(RUN(f, "\x0f\x28\x03", f->mem + 8, &fault), -EFAULT); /* movaps xmm0, [rbx] */
    assert_int_equal(fault.vector, X86_VEC_GP);
    assert_true(fault.has_error);
    assert_int_equal(fault.error, 0);
}

static void test_unmasked_sse_exception_is_xm(void **state)
{
    struct fixture *f = *state;
    struct hostexec_fault fault;
    const uint32_t guest_mxcsr = 0;
    const uint32_t host_mxcsr = _mm_getcsr();
    const float minus_one = -1;

    reset(f);
    memcpy(f->state->xsave + XSAVE_MXCSR, &guest_mxcsr, sizeof(guest_mxcsr));
    memcpy(f->mem, &minus_one, sizeof(minus_one));
    assert_int_equal(RUN(f, "\xf3\x0f\x51\x00", f->mem, &fault), -EFAULT); /* sqrtss xmm0, [rax] */
    assert_int_equal(fault.vector, X86_VEC_XM);
    assert_int_equal(f->state->xsave[XSAVE_MXCSR] & 0x3f, 1); /* IE */
    assert_int_equal(_mm_getcsr(), host_mxcsr);
}

static void test_x87_result_and_pending_exception(void **state)
{
    struct fixture *f = *state;
    struct hostexec_fault fault;
    const uint16_t all_unmasked = 0x340;
    uint16_t host_fcw;
    uint64_t fip;

    reset(f);
    __asm__ volatile("fnstcw %0" : "=m"(host_fcw));
    assert_int_equal(RUN(f, "\xd9\xe8", NULL, &fault), 0); /* fld1 */
    assert_memory_equal(f->state->xsave + XSAVE_ST0, "\0\0\0\0\0\0\0\x80\xff\x3f", 10);
    memcpy(&fip, f->state->xsave + XSAVE_FIP, sizeof(fip));
    assert_int_equal(fip, 0x401000);
    assert_int_equal(RUN(f, "\xd9\xee", NULL, &fault), 0); /* fldz */
    memcpy(f->state->xsave + XSAVE_FCW, &all_unmasked, sizeof(all_unmasked));
    assert_int_equal(RUN(f, "\xde\xf9", NULL, &fault), 0);   /* fdivp: ZE stays pending */
    assert_int_equal(RUN(f, "\x9b", NULL, &fault), -EFAULT); /* wait */
    assert_int_equal(fault.vector, X86_VEC_MF);
    assert_int_equal(f->state->xsave[XSAVE_FSW] & 0x84, 0x84); /* ES, ZE */
    uint16_t now;
    __asm__ volatile("fnstcw %0" : "=m"(now));
    assert_int_equal(now, host_fcw);
}

static void test_vzeroupper_outside_64_bit_mode_spares_upper_registers(void **state)
{
    struct fixture *f = *state;
    struct hostexec_fault fault;

    if (!__builtin_cpu_supports("avx")) {
        skip();
    }
    reset(f);
    f->state->xsave[XSAVE_HEADER] = 7;
    memset(f->state->xsave + XSAVE_YMM0_HI, 0x55, 256);
    assert_int_equal(run(f, "\xc5\xf8\x77", 3, INSN_MODE_32, NULL, &fault), 0);
    assert_int_equal(f->state->xsave[XSAVE_YMM0_HI], 0);
    assert_int_equal(f->state->xsave[XSAVE_YMM8_HI], 0x55);
    assert_int_equal(RUN(f, "\xc5\xf8\x77", NULL, &fault), 0);
    assert_int_equal(f->state->xsave[XSAVE_YMM8_HI], 0);
}

static void test_malformed_xsave_image_is_a_fault_not_a_crash(void **state)
{
    struct fixture *f = *state;
    struct hostexec_fault fault;

    reset(f);
    memset(f->state->xsave + XSAVE_HEADER, 0xff, 64);
    assert_int_equal(RUN(f, "\x0f\x58\xc1", NULL, &fault), -EFAULT); /* addps */
    assert_int_equal(fault.vector, X86_VEC_GP);
    reset(f);
    assert_int_equal(RUN(f, "\x0f\x58\xc1", NULL, &fault), 0);
}

static void test_sixteen_bit_code_runs_in_its_64_bit_twin(void **state)
{
    struct fixture *f = *state;
    struct hostexec_fault fault;

    reset(f);
    f->state->gpr[X86_RAX] = 0x1ffff;
    assert_int_equal(run(f, "\x40", 1, INSN_MODE_16, NULL, &fault), 0); /* inc ax */
    assert_int_equal(f->state->gpr[X86_RAX], 0x10000);
    assert_int_equal(run(f, "\xa3\x34\x12", 3, INSN_MODE_16, f->mem, &fault), 0);
    assert_int_equal(f->mem[0], 0);
    assert_int_equal(run(f, "\x66\x48", 2, INSN_MODE_16, NULL, &fault), 0); /* dec eax */
    assert_int_equal(f->state->gpr[X86_RAX], 0xffff);
}

static volatile unsigned kicks;

static bool count_kick(void *opaque, int signal_number, siginfo_t *info, ucontext_t *context)
{
    (void)opaque;
    (void)signal_number;
    (void)info;
    (void)context;
    kicks++;
    return true;
}

static void test_kick_reaches_its_thread(void **state)
{
    (void)state;
    hostsig_set_kick(count_kick, NULL);
    kicks = 0;
    assert_int_equal(raise(HOSTSIG_KICK), 0);
    assert_int_equal(kicks, 1);
    hostsig_set_kick(NULL, NULL);
    assert_int_equal(raise(HOSTSIG_KICK), 0);
    assert_int_equal(kicks, 1);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_add_sets_register_and_flags),
        cmocka_unit_test(test_memory_operand_is_the_given_one),
        cmocka_unit_test(test_high_byte_register_with_memory),
        cmocka_unit_test(test_divide_error_leaves_registers),
        cmocka_unit_test(test_misaligned_movaps_is_gp),
        cmocka_unit_test(test_unmasked_sse_exception_is_xm),
        cmocka_unit_test(test_x87_result_and_pending_exception),
        cmocka_unit_test(test_vzeroupper_outside_64_bit_mode_spares_upper_registers),
        cmocka_unit_test(test_malformed_xsave_image_is_a_fault_not_a_crash),
        cmocka_unit_test(test_sixteen_bit_code_runs_in_its_64_bit_twin),
        cmocka_unit_test(test_kick_reaches_its_thread),
    };

    keep_handlers();
    return cmocka_run_group_tests(tests, setup, teardown);
}
