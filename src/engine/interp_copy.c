/*
 * INSN_OP_COPY: the host CPU computes a rewritten copy of the instruction on
 * the guest's registers. Here its memory operand is found, checked and, where
 * it cannot be worked on in place, carried through a copy.
 */
#include "engine/hostexec.h"
#include "engine/interp.h"

#include "base/wire.h"

#include <string.h>

/* Larger than any operand of a copied instruction (FRSTOR: 108). */
#define BOUNCE_BYTES 512u
/* A copy keeps the guest's address modulo this, so that alignment faults agree. */
#define BOUNCE_ALIGN 64u
/* x87, SSE and AVX state in the XSAVE image. */
#define FPU_BYTES 832u
#define OFF_FSW 2u
#define FSW_ES 0x80u
#define UNTOUCHED 0xa5

static int raise_host_fault(struct engine_vcpu *v, const struct hostexec_fault *fault)
{
    if (fault->vector == X86_VEC_XM && (v->st.cr4 & X86_CR4_OSXMMEXCPT) == 0) {
        return engine_raise(v, X86_VEC_UD);
    }
    return fault->has_error ? engine_raise_error(v, (enum x86_vector)fault->vector, fault->error)
                            : engine_raise(v, (enum x86_vector)fault->vector);
}

static int run(struct engine_vcpu *v, const struct insn *in, void *mem)
{
    struct hostexec_fault fault = {0};

    if (hostexec_run(v->hostexec, in, &v->st, mem, &fault) != 0) {
        return raise_host_fault(v, &fault);
    }
    return 0;
}

/*
 * An x87 store with an unmasked exception does not store (SDM 1 8.5); the bytes
 * tell. One that happens to store exactly these is taken for it only when the
 * exception is there.
 */
static bool is_untouched_bytes(const uint8_t *mem, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++) {
        if (mem[i] != UNTOUCHED) {
            return false;
        }
    }
    return true;
}

static bool is_unstored(const struct engine_vcpu *v, const struct insn *in, const uint8_t *mem)
{
    return in->mem_flags == INSN_MEM_WRITE && (in->flags & INSN_X87) != 0 &&
           (load_le16(&v->st.xsave[OFF_FSW]) & FSW_ES) != 0 &&
           is_untouched_bytes(mem, in->mem_bytes);
}

/*
 * A lock across two cache lines: the host may take it for an attack and slow
 * the process down or stop it. Of more than 8 bytes the CPU refuses it first.
 */
static bool splits_lock(const struct insn *in, uint64_t va)
{
    return (in->flags & INSN_LOCK) != 0 && in->mem_bytes <= 8 && crosses_line(va, in->mem_bytes);
}

/* Where in room a copy of the operand is aligned like the operand. */
static unsigned bounce_offset(const struct insn *in, uint64_t va)
{
    return splits_lock(in, va) ? 0 : (unsigned)(va & (BOUNCE_ALIGN - 1));
}

/* The operand crosses a page or is a device's: read, run on a copy, write. */
static int run_bounced(struct engine_vcpu *v, const struct insn *in, uint64_t va)
{
    uint8_t room[BOUNCE_BYTES + BOUNCE_ALIGN] ALIGNED(BOUNCE_ALIGN);
    uint8_t *mem = room + bounce_offset(in, va);
    enum mmu_mode mode = mmu_current_mode(v);
    int r = 0;

    if (in->mem_bytes > BOUNCE_BYTES) {
        return engine_raise(v, X86_VEC_UD);
    }
    memset(mem, UNTOUCHED, in->mem_bytes);
    if ((in->mem_flags & INSN_MEM_READ) != 0) {
        r = mmu_read(v, va, mem, in->mem_bytes, mode);
    }
    if (r != 0) {
        return r;
    }
    if ((in->mem_flags & INSN_MEM_WRITE) == 0) {
        return run(v, in, mem);
    }

    /* The registers change only when the write has succeeded. */
    uint64_t gpr[X86_GPR_COUNT];
    uint64_t rflags = v->st.rflags;

    memcpy(gpr, v->st.gpr, sizeof(gpr));
    r = run(v, in, mem);
    if (r == 0 && is_unstored(v, in, mem)) {
        return 0; /* an unmasked exception: nothing was stored */
    }
    if (r == 0) {
        r = mmu_write(v, va, mem, in->mem_bytes, mode);
    }
    if (r != 0) {
        memcpy(v->st.gpr, gpr, sizeof(gpr));
        v->st.rflags = rflags;
    }
    return r;
}

/* Stores that carry x87 state leave it changed (FSTP pops): check the page first. */
static int check_writable(struct engine_vcpu *v, const struct insn *in, uint64_t va)
{
    struct mmu_page page;
    enum mmu_mode mode = mmu_current_mode(v);
    int r = mmu_fill(v, va, MMU_WRITE, mode, &page);

    if (r == 0 && (va & (GMEM_PAGE_BYTES - 1)) + in->mem_bytes > GMEM_PAGE_BYTES) {
        r = mmu_fill(v, (va + in->mem_bytes - 1) & ~(uint64_t)(GMEM_PAGE_BYTES - 1), MMU_WRITE,
                     mode, &page);
    }
    return r;
}

/* A device's answer to an x87 store comes after the copy ran once: keep its state apart. */
static int run_bounced_fpu(struct engine_vcpu *v, const struct insn *in, uint64_t va)
{
    uint8_t saved[FPU_BYTES];

    memcpy(saved, v->st.xsave, sizeof(saved));

    int r = run_bounced(v, in, va);

    if (r == ENGINE_EXIT) {
        memcpy(v->st.xsave, saved, sizeof(saved));
    }
    return r;
}

/* No other vCPU does such a one meanwhile (SDM 3A 8.1.2.2). */
static int run_split(struct engine_vcpu *v, const struct insn *in, uint64_t va)
{
    int r;

    while (atomic_flag_test_and_set(&v->vm->split_lock)) {
        __builtin_ia32_pause();
    }
    r = run_bounced(v, in, va);
    atomic_flag_clear(&v->vm->split_lock);
    return r;
}

static int run_in_place(struct engine_vcpu *v, const struct insn *in, uint64_t va)
{
    uint8_t *host = NULL;
    bool is_write = (in->mem_flags & INSN_MEM_WRITE) != 0;
    enum mmu_mode mode = mmu_current_mode(v);
    int r;

    if (splits_lock(in, va)) {
        r = check_writable(v, in, va);
        return r != 0 ? r : run_split(v, in, va);
    }
    if (is_write) {
        r = mmu_rmw_begin(v, va, in->mem_bytes, mode, &host);
    } else {
        const uint8_t *readable = NULL;

        r = mmu_read_begin(v, va, in->mem_bytes, mode, &readable);
        host = (uint8_t *)(uintptr_t)readable;
    }
    if (r != 0) {
        return r;
    }
    if (host != NULL) {
        r = run(v, in, host);
        if (is_write && r == 0) {
            mmu_rmw_end(v, host, in->mem_bytes);
        }
        return r;
    }
    if (is_write) {
        r = check_writable(v, in, va);
        if (r != 0) {
            return r;
        }
    }
    if (is_write && (in->flags & (INSN_X87 | INSN_MMX | INSN_SSE | INSN_AVX)) != 0) {
        return run_bounced_fpu(v, in, va);
    }
    return (in->flags & INSN_LOCK) != 0 ? run_split(v, in, va) : run_bounced(v, in, va);
}

/*
 * A fault of the operand's address comes after what the CPU checks first: a pending x87 exception
 * (SDM 3A 6.9) and, for vector operands, alignment. The copy on memory of ours
 * at the same alignment says whether there is one of these.
 */
static int raise_earlier_fault(struct engine_vcpu *v, const struct insn *in, uint64_t va)
{
    uint8_t room[BOUNCE_BYTES + BOUNCE_ALIGN] ALIGNED(BOUNCE_ALIGN);
    uint8_t *mem = room + bounce_offset(in, va);
    const struct engine_fault operand_fault = v->fault;
    struct hostexec_fault fault = {0};
    uint8_t xsave[FPU_BYTES];
    uint64_t gpr[X86_GPR_COUNT];
    uint64_t rflags = v->st.rflags;
    const bool is_store = in->mem_flags == INSN_MEM_WRITE;
    int r;

    memset(mem, is_store ? UNTOUCHED : 0, in->mem_bytes);
    memcpy(xsave, v->st.xsave, sizeof(xsave));
    memcpy(gpr, v->st.gpr, sizeof(gpr));
    r = hostexec_run(v->hostexec, in, &v->st, mem, &fault);
    if (r != 0 && is_store && fault.vector == X86_VEC_XM) {
        return raise_host_fault(v, &fault); /* VCVTPS2PH: it leaves its flags in MXCSR */
    }
    if (r == 0 && is_unstored(v, in, mem)) {
        return 0; /* an unmasked exception: nothing was stored, #MF comes with the next one */
    }
    memcpy(v->st.xsave, xsave, sizeof(xsave));
    memcpy(v->st.gpr, gpr, sizeof(gpr));
    v->st.rflags = rflags;
    if (r != 0 && (fault.vector == X86_VEC_GP || fault.vector == X86_VEC_MF)) {
        return raise_host_fault(v, &fault);
    }
    v->fault = operand_fault;
    return ENGINE_FAULT;
}

/* Did finding the operand raise it, not executing? */
static bool is_operand_fault(const struct engine_vcpu *v)
{
    const uint8_t vector = v->fault.vector;

    return vector == X86_VEC_PF || vector == X86_VEC_GP || vector == X86_VEC_SS;
}

static bool may_fault_earlier(const struct insn *in, uint64_t va)
{
    if ((in->flags & (INSN_X87 | INSN_MMX)) != 0) {
        return true;
    }
    /* Some compute before they store. */
    return in->mem_bytes >= 16 ? (va & (in->mem_bytes - 1u)) != 0 || in->mem_flags == INSN_MEM_WRITE
                               : in->mem_flags == INSN_MEM_WRITE && (in->flags & INSN_AVX) != 0;
}

int interp_copy(struct engine_vcpu *v, const struct insn *in)
{
    uint64_t va = 0;
    int r = interp_check_fpu(v, in);

    if (r != 0) {
        return r;
    }
    if (in->mem_bytes == 0) {
        return run(v, in, NULL);
    }
    r = interp_linear(v, in->seg, interp_ea(v, in), in->mem_bytes,
                      (in->mem_flags & INSN_MEM_WRITE) != 0 ? MMU_WRITE : MMU_READ, &va);
    if (r == 0) {
        r = run_in_place(v, in, va);
    }
    if (r == ENGINE_FAULT && interp_is_64(v)) {
        va = interp_ea(v, in) + (in->seg >= X86_FS ? v->st.seg[in->seg].base : 0);
    }
    if (r == ENGINE_FAULT && is_operand_fault(v) && may_fault_earlier(in, va)) {
        r = raise_earlier_fault(v, in, va);
    }
    return r;
}
