#include "engine/hostexec.h"

#include <cpuid.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/hostexec_stub.h"
#include "engine/hostsig.h"
#include "engine/rewrite.h"

/* One copy and the jump back. */
#define SLOT_BYTES 32u
#define SLOT_COUNT 2048u
#define SLOTS_OFFSET 1024u /* behind the stub */
#define CODE_BYTES (SLOTS_OFFSET + SLOT_COUNT * SLOT_BYTES + 3072u)
#define JMP_REL32 0xe9
#define JMP_BYTES 5u
#define INT3 0xcc

#define FPU_STATE (INSN_X87 | INSN_MMX | INSN_SSE | INSN_AVX)
#define LOADED_FLAGS (X86_FLAGS_ARITH | X86_FLAG_DF)

/* Offsets in the XSAVE image (SDM 1 table 10-2 and 13.4). */
#define XSAVE_FOP 6u
#define XSAVE_FIP 8u
#define XSAVE_FDP 16u
#define XSAVE_XMM 160u
#define XSAVE_YMM_HI 576u
#define LOW_REGISTERS_BYTES 128u /* of eight XMM registers, or upper halves */

struct hostexec_data {
    uint64_t gpr[X86_GPR_COUNT];
    uint64_t flags;
    uint64_t target;
    uint64_t host_rsp;
    uint64_t xsave;
    uint32_t xmask;
    uint32_t host_mxcsr;
    uint16_t host_fcw;
};
_Static_assert(offsetof(struct hostexec_data, flags) == HOSTEXEC_FLAGS, "layout");
_Static_assert(offsetof(struct hostexec_data, target) == HOSTEXEC_TARGET, "layout");
_Static_assert(offsetof(struct hostexec_data, host_rsp) == HOSTEXEC_HOST_RSP, "layout");
_Static_assert(offsetof(struct hostexec_data, xsave) == HOSTEXEC_XSAVE, "layout");
_Static_assert(offsetof(struct hostexec_data, xmask) == HOSTEXEC_XMASK, "layout");
_Static_assert(offsetof(struct hostexec_data, host_mxcsr) == HOSTEXEC_HOST_MXCSR, "layout");
_Static_assert(offsetof(struct hostexec_data, host_fcw) == HOSTEXEC_HOST_FCW, "layout");

struct hostexec {
    uint8_t *mapping; /* data page, then the executable view of the code */
    uint8_t *code;    /* executable view */
    uint8_t *code_rw; /* writable view of the same pages */
    struct hostexec_data *data;
    bool has_range;
    bool has_signals;
    /* Set by the signal handler. */
    volatile sig_atomic_t faulted;
    struct hostexec_fault fault;
    uint8_t slot_len[SLOT_COUNT]; /* 0: empty */
};

static bool has_error_code(unsigned vector)
{
    return vector == X86_VEC_DF || (vector >= X86_VEC_TS && vector <= X86_VEC_PF) ||
           vector == X86_VEC_AC;
}

/* Goes on where the registers are stored; those are in the context as the CPU left them. */
static bool on_fault(void *opaque, int signal_number, siginfo_t *info, ucontext_t *context)
{
    struct hostexec *exec = opaque;
    greg_t *gregs = context->uc_mcontext.gregs;
    const uint8_t *rip = (const uint8_t *)gregs[REG_RIP];
    const bool in_copy = rip >= exec->code + SLOTS_OFFSET;
    const uint8_t *next = in_copy ? hostexec_stub_leave : hostexec_stub_abandon;

    (void)signal_number;
    if (info->si_code <= 0 || exec->faulted) {
        return false; /* sent by somebody, or a fault of the way out: not the guest's */
    }
    exec->faulted = true;
    if (in_copy) {
        exec->fault.vector = (uint8_t)gregs[REG_TRAPNO];
        exec->fault.has_error = has_error_code((unsigned)gregs[REG_TRAPNO]);
        exec->fault.error = exec->fault.has_error ? (uint32_t)gregs[REG_ERR] : 0;
    } else {
        /* XRSTOR refused the image. */
        exec->fault = (struct hostexec_fault){.vector = X86_VEC_GP, .has_error = true};
        gregs[REG_RSP] = (greg_t)exec->data->host_rsp;
    }
    gregs[REG_RIP] = (greg_t)(exec->code + (next - hostexec_stub_start));
    return true;
}

/* Which components XSAVE has of x87, SSE and AVX; 0 when there is no XSAVE. */
static uint32_t xsave_mask(void)
{
    uint32_t eax;
    uint32_t ebx;
    uint32_t ecx;
    uint32_t edx;

    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & bit_OSXSAVE) == 0) {
        return 0;
    }
    __asm__ volatile("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    return eax & (X86_XCR0_X87 | X86_XCR0_SSE | X86_XCR0_AVX);
}

/* The code pages twice: never writable and executable at one address. */
static int map_code(struct hostexec *exec)
{
    CLEANUP_CLOSE int fd = memfd_create("corbel-hostexec", MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, CODE_BYTES) != 0) {
        return -errno;
    }
    exec->mapping = mmap(NULL, HOSTEXEC_DATA_BYTES + CODE_BYTES, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (exec->mapping == MAP_FAILED) {
        exec->mapping = NULL;
        return -errno;
    }
    exec->code = mmap(exec->mapping + HOSTEXEC_DATA_BYTES, CODE_BYTES, PROT_READ | PROT_EXEC,
                      MAP_SHARED | MAP_FIXED, fd, 0);
    if (exec->code == MAP_FAILED) {
        return -errno;
    }
    exec->code_rw = mmap(NULL, CODE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (exec->code_rw == MAP_FAILED) {
        exec->code_rw = NULL;
        return -errno;
    }
    exec->data = (struct hostexec_data *)(void *)exec->mapping;
    return 0;
}

static int hostexec_setup(struct hostexec *exec)
{
    const size_t stub_bytes = (size_t)(hostexec_stub_end - hostexec_stub_start);
    int rc = map_code(exec);

    if (rc != 0 || exec->code_rw == NULL) {
        return rc;
    }
    memset(exec->code_rw, INT3, CODE_BYTES);
    memcpy(exec->code_rw, hostexec_stub_start, stub_bytes);
    exec->data->xmask = xsave_mask();
    rc = hostsig_thread_init();
    if (rc != 0) {
        return rc;
    }
    exec->has_signals = true;
    rc = hostsig_add_range((uintptr_t)exec->code, (uintptr_t)exec->code + CODE_BYTES, on_fault,
                           exec);
    exec->has_range = rc == 0;
    return rc;
}

int hostexec_create(struct err *err, struct hostexec **ret_exec)
{
    struct hostexec *exec = calloc(1, sizeof(*exec));
    int rc;

    _Static_assert(CODE_BYTES % 4096 == 0, "whole pages");
    if (exec == NULL) {
        return err_set(err, -ENOMEM, "cannot run instructions on the host: out of memory");
    }
    rc = hostexec_setup(exec);
    if (rc != 0) {
        hostexec_destroy(exec);
        return err_set_errno(err, rc, "cannot map executable memory for the software engine");
    }
    *ret_exec = exec;
    return 0;
}

void hostexec_destroy(struct hostexec *exec)
{
    if (exec == NULL) {
        return;
    }
    if (exec->has_range) {
        hostsig_remove_range((uintptr_t)exec->code);
    }
    if (exec->has_signals) {
        hostsig_thread_done();
    }
    if (exec->code_rw != NULL) {
        (void)munmap(exec->code_rw, CODE_BYTES); /* a mapping of ours */
    }
    if (exec->mapping != NULL) {
        (void)munmap(exec->mapping, HOSTEXEC_DATA_BYTES + CODE_BYTES);
    }
    free(exec);
}

/* Code written at another linear address needs a serializing instruction (SDM 3A 8.1.3). */
static void serialize(void)
{
    uint64_t scratch;

    __asm__ volatile("lea -128(%%rsp), %%rsp\n\t" /* the red zone */
                     "mov %%ss, %k0\n\t"
                     "push %0\n\t"
                     "lea 136(%%rsp), %0\n\t"
                     "push %0\n\t"
                     "pushfq\n\t"
                     "mov %%cs, %k0\n\t"
                     "push %0\n\t"
                     "lea 1f(%%rip), %0\n\t"
                     "push %0\n\t"
                     "iretq\n"
                     "1:"
                     : "=&r"(scratch)
                     :
                     : "memory", "cc");
}

static unsigned slot_of(const uint8_t *bytes, unsigned len)
{
    uint64_t low = 0;
    uint64_t high = 0;

    memcpy(&low, bytes, len < 8 ? len : 8);
    if (len > 8) {
        memcpy(&high, bytes + len - 8, 8);
    }
    low = (low ^ (high >> 3)) * 0x9e3779b97f4a7c15ull;
    return (unsigned)(low >> 40) % SLOT_COUNT;
}

/* The address of a copy that ends with a jump to the way out. */
static const uint8_t *slot_get(struct hostexec *exec, const uint8_t *bytes, unsigned len)
{
    const unsigned slot = slot_of(bytes, len);
    const size_t offset = SLOTS_OFFSET + slot * SLOT_BYTES;
    uint8_t *rw = exec->code_rw + offset;

    if (exec->slot_len[slot] != len || memcmp(rw, bytes, len) != 0) {
        const ptrdiff_t leave = hostexec_stub_leave - hostexec_stub_start;
        const int32_t rel = (int32_t)(leave - (ptrdiff_t)(offset + len + JMP_BYTES));

        memcpy(rw, bytes, len);
        rw[len] = JMP_REL32;
        memcpy(rw + len + 1, &rel, sizeof(rel));
        exec->slot_len[slot] = (uint8_t)len;
        serialize();
    }
    return exec->code + offset;
}

/* A register that the instruction does not name, to hold the address of its operand. */
static uint8_t choose_base(const struct insn *insn)
{
    const unsigned used = (unsigned)insn->gpr_read | insn->gpr_written | 1u << X86_RSP;
    const unsigned usable = insn_uses_high_byte(insn) ? 0xffu : 0xffffu;

    return (uint8_t)__builtin_ctz(~used & usable);
}

/* VZEROUPPER and VZEROALL outside 64-bit mode: eight registers, which no copy can do. */
static bool run_vzero(const struct insn *insn, struct vcpu_state *state)
{
    if (insn->encoding == INSN_ENC_LEGACY || insn->map != 1 || insn->opcode != 0x77 ||
        insn->mode == INSN_MODE_64) {
        return false;
    }
    memset(state->xsave + XSAVE_YMM_HI, 0, LOW_REGISTERS_BYTES);
    if (insn->vex_l) {
        memset(state->xsave + XSAVE_XMM, 0, LOW_REGISTERS_BYTES);
    }
    return true;
}

static uint64_t effective_offset(const struct insn *insn, const uint64_t *gpr, uint64_t rip)
{
    uint64_t offset = (uint64_t)insn->disp;

    if (insn->base == INSN_REG_RIP) {
        offset += rip + insn->len;
    } else if (insn->base < X86_GPR_COUNT) {
        offset += gpr[insn->base];
    }
    if (insn->index < X86_GPR_COUNT) {
        offset += gpr[insn->index] * insn->scale;
    }
    if (insn->addrsize_bytes == 8) {
        return offset;
    }
    return offset & (insn->addrsize_bytes == 2 ? 0xffffu : 0xffffffffu);
}

/* The x87 remembers where its last instruction and operand were: the guest's, not the copy's. */
static void fix_x87_pointers(const struct hostexec *exec, const struct insn *insn,
                             struct vcpu_state *state, const uint64_t *gpr, const void *mem,
                             uint64_t old_fip)
{
    uint64_t fip;
    uint64_t fdp;

    memcpy(&fip, state->xsave + XSAVE_FIP, sizeof(fip));
    if (fip == old_fip || fip - (uint64_t)(uintptr_t)exec->code >= CODE_BYTES) {
        return;
    }
    fip = insn->mode == INSN_MODE_64 ? state->rip : (uint32_t)state->rip;
    memcpy(state->xsave + XSAVE_FIP, &fip, sizeof(fip));
    memcpy(&fdp, state->xsave + XSAVE_FDP, sizeof(fdp));
    if (mem != NULL && fdp == (uint64_t)(uintptr_t)mem) {
        uint16_t fop = (uint16_t)((insn->opcode & 7) << 8 | insn->bytes[insn->modrm_off]);

        fdp = effective_offset(insn, gpr, state->rip);
        memcpy(state->xsave + XSAVE_FDP, &fdp, sizeof(fdp));
        memcpy(state->xsave + XSAVE_FOP, &fop, sizeof(fop));
    }
}

static void run_copy(struct hostexec *exec, const uint8_t *copy)
{
    void (*enter)(void);

    exec->faulted = false;
    exec->data->target = (uint64_t)(uintptr_t)copy;
    memcpy(&enter, &exec->code, sizeof(enter));
    enter();
}

int hostexec_run(struct hostexec *exec, const struct insn *insn, struct vcpu_state *state,
                 void *mem, struct hostexec_fault *ret_fault)
{
    struct hostexec_data *data = exec->data;
    const uint8_t base = mem != NULL ? choose_base(insn) : INSN_REG_NONE;
    uint8_t bytes[INSN_REWRITE_MAX_BYTES] = {0};
    const unsigned len = insn_rewrite(insn, base, INSN_REG_NONE, 1, 0, bytes);
    uint64_t old_gpr[X86_GPR_COUNT];
    uint64_t old_fip;

    if (len == 0) {
        if (run_vzero(insn, state)) {
            return 0;
        }
        *ret_fault = (struct hostexec_fault){.vector = X86_VEC_UD};
        return -EFAULT;
    }
    memcpy(old_gpr, state->gpr, sizeof(old_gpr));
    memcpy(data->gpr, state->gpr, sizeof(data->gpr));
    if (mem != NULL) {
        data->gpr[base] = (uint64_t)(uintptr_t)mem;
    }
    data->flags = (state->rflags & LOADED_FLAGS) | X86_FLAG_FIXED1;
    data->xsave = (insn->flags & FPU_STATE) != 0 ? (uint64_t)(uintptr_t)state->xsave : 0;
    memcpy(&old_fip, state->xsave + XSAVE_FIP, sizeof(old_fip));
    run_copy(exec, slot_get(exec, bytes, len));

    memcpy(state->gpr, data->gpr, sizeof(data->gpr));
    if (mem != NULL) {
        state->gpr[base] = old_gpr[base];
    }
    state->rflags = (state->rflags & ~(uint64_t)LOADED_FLAGS) | (data->flags & LOADED_FLAGS);
    if ((insn->flags & INSN_X87) != 0) {
        fix_x87_pointers(exec, insn, state, old_gpr, mem, old_fip);
    }
    if (exec->faulted) {
        *ret_fault = exec->fault;
        return -EFAULT;
    }
    return 0;
}
