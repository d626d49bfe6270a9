#include "fuzz.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "base/compiler.h"

#define LEGACY_FRAME_BYTES 512u
#define USER_CS 0x33
/* Populated: an access that permissions deny must find the page present. */
#define MMAP_FIXED (MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_POPULATE)

extern uint8_t fuzz_stub_xsave[1024];
extern uint64_t fuzz_stub_gpr[X86_GPR_COUNT];
extern uint64_t fuzz_stub_rip;
extern uint64_t fuzz_stub_rflags;
extern uint64_t fuzz_stub_gs_base;
extern uint64_t fuzz_stub_host_rsp;
extern uint64_t fuzz_stub_is_32;
extern uint64_t jump_target;
extern const uint8_t fuzz_stub_leave[];
extern const uint8_t fuzz_stub_far[];
void fuzz_stub_enter(void);

static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};

static struct native {
    uint8_t *code; /* writable views of what the native code sees at its own addresses */
    uint8_t *data;
    struct sigaction old[ARRAY_LEN(signals)];
    volatile sig_atomic_t running;
    struct fuzz_outcome *outcome;
} native;

static void capture(const siginfo_t *info, ucontext_t *uc)
{
    static const int order[X86_GPR_COUNT] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                             REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                             REG_R12, REG_R13, REG_R14, REG_R15};
    const greg_t *gregs = uc->uc_mcontext.gregs;
    struct fuzz_outcome *o = native.outcome;
    uint64_t gs_base;

    (void)info;
    for (unsigned i = 0; i < X86_GPR_COUNT; i++) {
        o->after.gpr[i] = (uint64_t)gregs[order[i]];
    }
    o->after.rip = (uint64_t)gregs[REG_RIP];
    o->after.rflags = (uint64_t)gregs[REG_EFL];
    o->vector = (uint8_t)gregs[REG_TRAPNO];
    o->error = (uint32_t)gregs[REG_ERR];
    o->cr2 = o->vector == X86_VEC_PF ? (uint64_t)gregs[REG_CR2] : 0;
    __asm__ volatile("rdgsbase %0" : "=r"(gs_base));
    o->after.gs_base = gs_base;
    memcpy(o->after.xsave, uc->uc_mcontext.fpregs, FUZZ_XSAVE_BYTES);
}

static void on_signal(int number, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;

    if (!native.running || info->si_code <= 0) {
        for (unsigned i = 0; i < ARRAY_LEN(signals); i++) {
            if (signals[i] == number) {
                native.old[i].sa_sigaction(number, info, context);
            }
        }
        return;
    }
    native.running = 0;
    capture(info, uc);
    uc->uc_mcontext.gregs[REG_RIP] = (greg_t)(uintptr_t)fuzz_stub_leave;
    uc->uc_mcontext.gregs[REG_RSP] = (greg_t)fuzz_stub_host_rsp;
    uc->uc_mcontext.gregs[REG_EFL] = X86_FLAG_FIXED1;
    uc->uc_mcontext.gregs[REG_CSGSFS] = (uc->uc_mcontext.gregs[REG_CSGSFS] & ~0xffffll) | USER_CS;
}

static int map_twice(uint64_t address, size_t bytes, int prot, uint8_t **ret_view)
{
    CLEANUP_CLOSE int fd = memfd_create("insn-fuzz", MFD_CLOEXEC);
    void *view;

    if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0) {
        return -errno;
    }
    /* The fixed addresses lie in a part of the address space that the loader does not use. */
    if (mmap((void *)address, bytes, prot, MMAP_FIXED, fd, 0) != (void *)address) { /* NOLINT */
        return -errno;
    }
    view = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (view == MAP_FAILED) {
        return -errno;
    }
    *ret_view = view;
    return 0;
}

int fuzz_native_create(void)
{
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    int rc = map_twice(FUZZ_CODE_BASE, FUZZ_CODE_BYTES, PROT_READ | PROT_EXEC, &native.code);

    if (rc == 0) {
        rc = map_twice(FUZZ_DATA_BASE, FUZZ_DATA_BYTES, PROT_READ | PROT_WRITE, &native.data);
    }
    if (rc != 0) {
        return rc;
    }
    if (mprotect((void *)(FUZZ_DATA_BASE + FUZZ_DATA_RW_BYTES), /* NOLINT */
                 FUZZ_DATA_BYTES - FUZZ_DATA_RW_BYTES, PROT_READ) != 0) {
        return -errno;
    }
    memset(native.code, FUZZ_INT3, FUZZ_CODE_BYTES);
    sigfillset(&action.sa_mask);
    for (unsigned i = 0; i < ARRAY_LEN(signals); i++) {
        if (sigaction(signals[i], &action, &native.old[i]) != 0) {
            return -errno;
        }
    }
    return 0;
}

/* FS is the C library's: the same instruction runs with GS, which holds the case's FS base. */
static bool swap_fs_for_gs(uint8_t *bytes, const struct insn *insn)
{
    bool uses_fs = false;

    if (insn->op == INSN_OP_RDFSBASE || insn->op == INSN_OP_WRFSBASE) {
        uses_fs = insn->reg_seg == X86_FS;
        bytes[insn->modrm_off] |= 0x08;
        return uses_fs;
    }
    for (unsigned i = 0; i < insn->opcode_off; i++) {
        /* Only prefixes stand there, or opcode escapes, which are neither. */
        if (bytes[i] == 0x64 && insn->encoding == INSN_ENC_LEGACY) {
            bytes[i] = 0x65;
        } else if (bytes[i] == 0x64 && i + 2 < insn->opcode_off) {
            bytes[i] = 0x65;
        }
    }
    return insn->seg == X86_FS;
}

void fuzz_native_run(const struct fuzz_case *c, struct fuzz_outcome *ret_outcome)
{
    const uint64_t offset = c->before.rip - FUZZ_CODE_BASE;
    const unsigned room = (unsigned)(FUZZ_CODE_BYTES - offset);
    const unsigned len = c->code_bytes < room ? c->code_bytes : room;
    uint8_t bytes[FUZZ_CODE_MAX];
    bool swapped;

    memcpy(bytes, c->code, c->code_bytes);
    swapped = !c->is_block && swap_fs_for_gs(bytes, &c->insn);
    memcpy(native.code + offset, bytes, len);
    memcpy(native.data, fuzz_pristine, FUZZ_DATA_BYTES);
    memcpy(native.data + c->patch_offset, c->patch, c->patch_bytes);
    memcpy(fuzz_stub_xsave, c->before.xsave, sizeof(c->before.xsave));
    memcpy(fuzz_stub_gpr, c->before.gpr, sizeof(c->before.gpr));
    fuzz_stub_rip = c->before.rip;
    fuzz_stub_rflags = c->before.rflags;
    fuzz_stub_gs_base = swapped ? c->before.fs_base : c->before.gs_base;
    fuzz_stub_is_32 = c->insn.mode == INSN_MODE_32;
    jump_target = fuzz_stub_is_32 ? (uint64_t)(uintptr_t)fuzz_stub_far : c->before.rip;
    native.outcome = ret_outcome;
    native.running = 1;
    fuzz_stub_enter();

    ret_outcome->after.fs_base = c->before.fs_base;
    if (swapped) {
        ret_outcome->after.fs_base = ret_outcome->after.gs_base;
        ret_outcome->after.gs_base = c->before.gs_base;
    }
    memcpy(ret_outcome->data, native.data, FUZZ_DATA_BYTES);
    memset(native.code + offset, FUZZ_INT3, len);
}
