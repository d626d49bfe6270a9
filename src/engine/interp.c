/*
 * One instruction: events first, then fetch, decode, the handler and traps.
 */
#include "engine/interp.h"

#include "base/wire.h"

#include <errno.h>
#include <string.h>

#define ICACHE_SETS 8192u
#define DR6_BS 0x4000ull

/*
 * Decoded instructions by the host address of their first byte. An entry is
 * used only when the bytes in memory are still those it was made from, so
 * nothing needs to tell it about writes.
 */
struct icache_entry {
    const uint8_t *host;
    interp_fn fn;
    struct insn insn;
};

struct interp_cache {
    struct icache_entry entries[ICACHE_SETS];
    struct icache_entry crossing; /* the last one that crossed a page */
};

struct interp_cache *interp_cache_create(void)
{
    return calloc(1, sizeof(struct interp_cache));
}

static const interp_fn system_table[INSN_OP_COUNT] = {
    [INSN_OP_COPY] = interp_copy,
    [INSN_OP_PUSH_SEG] = segment_op_push,
    [INSN_OP_POP_SEG] = segment_op_pop,
    [INSN_OP_JMP_FAR] = far_jump,
    [INSN_OP_JMP_FAR_IND] = far_jump,
    [INSN_OP_CALL_FAR] = far_call,
    [INSN_OP_CALL_FAR_IND] = far_call,
    [INSN_OP_RET_FAR] = far_return,
    [INSN_OP_IRET] = exception_op_iret,
    [INSN_OP_INT] = exception_op_int,
    [INSN_OP_INT3] = exception_op_int,
    [INSN_OP_INT1] = exception_op_int,
    [INSN_OP_INTO] = exception_op_int,
    [INSN_OP_BOUND] = exception_op_bound,
    [INSN_OP_MOVS] = string_op,
    [INSN_OP_CMPS] = string_op,
    [INSN_OP_STOS] = string_op,
    [INSN_OP_LODS] = string_op,
    [INSN_OP_SCAS] = string_op,
    [INSN_OP_INS] = string_op_io,
    [INSN_OP_OUTS] = string_op_io,
    [INSN_OP_IN] = sysop_in_out,
    [INSN_OP_OUT] = sysop_in_out,
    [INSN_OP_MASKMOV] = vector_op_maskmov,
    [INSN_OP_GATHER] = vector_op_gather,
    [INSN_OP_VMASKMOV] = vector_op_vmaskmov,
    [INSN_OP_SYSCALL] = fast_syscall,
    [INSN_OP_SYSRET] = fast_sysret,
    [INSN_OP_SYSENTER] = fast_sysenter,
    [INSN_OP_SYSEXIT] = fast_sysexit,
    [INSN_OP_HLT] = sysop_hlt,
    [INSN_OP_CLI] = sysop_cli,
    [INSN_OP_STI] = sysop_sti,
    [INSN_OP_CLTS] = sysop_clts,
    [INSN_OP_MOV_FROM_CR] = sysop_mov_from_cr,
    [INSN_OP_MOV_TO_CR] = sysop_mov_to_cr,
    [INSN_OP_MOV_FROM_DR] = sysop_mov_from_dr,
    [INSN_OP_MOV_TO_DR] = sysop_mov_to_dr,
    [INSN_OP_MOV_FROM_SEG] = segment_op_mov_from,
    [INSN_OP_MOV_TO_SEG] = segment_op_mov_to,
    [INSN_OP_LOAD_FAR_PTR] = segment_op_load_far,
    [INSN_OP_LGDT] = sysop_load_table,
    [INSN_OP_LIDT] = sysop_load_table,
    [INSN_OP_SGDT] = sysop_store_table,
    [INSN_OP_SIDT] = sysop_store_table,
    [INSN_OP_LLDT] = segment_op_lldt,
    [INSN_OP_LTR] = segment_op_ltr,
    [INSN_OP_SLDT] = segment_op_store,
    [INSN_OP_STR] = segment_op_store,
    [INSN_OP_LMSW] = sysop_lmsw,
    [INSN_OP_SMSW] = sysop_smsw,
    [INSN_OP_VERR] = segment_op_verify,
    [INSN_OP_VERW] = segment_op_verify,
    [INSN_OP_LAR] = segment_op_lar_lsl,
    [INSN_OP_LSL] = segment_op_lar_lsl,
    [INSN_OP_ARPL] = segment_op_arpl,
    [INSN_OP_INVLPG] = sysop_invlpg,
    [INSN_OP_INVPCID] = sysop_invpcid,
    [INSN_OP_INVD] = sysop_invd,
    [INSN_OP_RDMSR] = msr_op_read,
    [INSN_OP_WRMSR] = msr_op_write,
    [INSN_OP_RDTSC] = sysop_rdtsc,
    [INSN_OP_RDTSCP] = sysop_rdtsc,
    [INSN_OP_RDPMC] = sysop_rdpmc,
    [INSN_OP_CPUID] = sysop_cpuid,
    [INSN_OP_XGETBV] = sysop_xgetbv,
    [INSN_OP_XSETBV] = sysop_xsetbv,
    [INSN_OP_XSAVE] = fpu_op_xsave,
    [INSN_OP_XRSTOR] = fpu_op_xrstor,
    [INSN_OP_FXSAVE] = fpu_op_fxsave,
    [INSN_OP_FXRSTOR] = fpu_op_fxrstor,
    [INSN_OP_FNSTENV] = fpu_op_fnstenv,
    [INSN_OP_SWAPGS] = segment_op_swapgs,
    [INSN_OP_RDFSBASE] = segment_op_fsgsbase,
    [INSN_OP_WRFSBASE] = segment_op_fsgsbase,
    [INSN_OP_STAC] = sysop_smap,
    [INSN_OP_CLAC] = sysop_smap,
};

static int op_unknown(struct engine_vcpu *v, const struct insn *in)
{
    (void)in;
    return engine_raise(v, X86_VEC_UD);
}

static interp_fn handler(const struct insn *in)
{
    interp_fn fast = interp_fast_handler(in);

    if (fast != NULL) {
        return fast;
    }
    if (in->op >= INSN_OP_COUNT) {
        return op_unknown;
    }
    if (system_table[in->op] != NULL) {
        return system_table[in->op];
    }
    return interp_basic_table[in->op] != NULL ? interp_basic_table[in->op] : op_unknown;
}

static enum insn_mode code_mode(const struct engine_vcpu *v)
{
    uint32_t ar = v->st.seg[X86_CS].access_rights;

    if (interp_is_64(v)) {
        return INSN_MODE_64;
    }
    return (ar & X86_AR_DB) != 0 ? INSN_MODE_32 : INSN_MODE_16;
}

static bool bytes_match(const struct icache_entry *entry, const uint8_t *host)
{
    unsigned left = GMEM_PAGE_BYTES - ((unsigned)(uintptr_t)host & (GMEM_PAGE_BYTES - 1));
    uint64_t now;
    uint64_t then;

    if (left < 16 || entry->insn.len > 8) {
        return memcmp(entry->insn.bytes, host, entry->insn.len) == 0;
    }
    memcpy(&now, host, 8);
    memcpy(&then, entry->insn.bytes, 8);
    return ((now ^ then) & interp_mask(entry->insn.len)) == 0;
}

/* Across a page, or in a device's registers: decoded anew each time. */
static int decode_slow(struct engine_vcpu *v, uint64_t va, struct icache_entry **ret_entry)
{
    struct icache_entry *entry = &v->icache->crossing;
    uint8_t bytes[INSN_MAX_BYTES];
    const uint8_t *unused = NULL;
    unsigned len = 0;
    int r = mmu_fetch(v, va, bytes, &len);

    if (r != 0) {
        return r;
    }
    r = insn_decode(bytes, len, code_mode(v), &entry->insn);
    if (r == -ENODATA) {
        r = mmu_fetch_host(v, va + len, &unused);
        return r != 0 ? r : engine_raise_error(v, X86_VEC_GP, 0);
    }
    if (r != 0) {
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    entry->fn = handler(&entry->insn);
    *ret_entry = entry;
    return 0;
}

static int fetch_decode(struct engine_vcpu *v, struct icache_entry **ret_entry)
{
    uint64_t va = v->st.rip;
    const uint8_t *host = NULL;
    enum insn_mode mode = code_mode(v);
    struct icache_entry *entry;
    int r;

    if (mode != INSN_MODE_64) {
        if (va > v->st.seg[X86_CS].limit) {
            return engine_raise_error(v, X86_VEC_GP, 0);
        }
        va = (va + v->st.seg[X86_CS].base) & 0xffffffffu;
    }
    r = mmu_fetch_host(v, va, &host);
    if (r != 0) {
        return r;
    }
    if (host == NULL) {
        return decode_slow(v, va, ret_entry);
    }
    entry = &v->icache->entries[((uintptr_t)host ^ ((uintptr_t)host >> 13)) & (ICACHE_SETS - 1)];
    if (likely(entry->host == host && entry->insn.mode == mode && bytes_match(entry, host))) {
        *ret_entry = entry;
        return 0;
    }

    unsigned left = GMEM_PAGE_BYTES - ((unsigned)va & (GMEM_PAGE_BYTES - 1));
    uint8_t bytes[INSN_MAX_BYTES];

    /* One copy is decoded: the guest may change its code meanwhile. */
    left = left < INSN_MAX_BYTES ? left : INSN_MAX_BYTES;
    memcpy(bytes, host, left);
    entry->host = NULL;
    r = insn_decode(bytes, left, mode, &entry->insn);
    if (r == -ENODATA) {
        return decode_slow(v, va, ret_entry);
    }
    if (r != 0) {
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    entry->fn = handler(&entry->insn);
    entry->host = host;
    *ret_entry = entry;
    return 0;
}

int engine_io(struct engine_vcpu *v, enum vmexit_reason reason, uint64_t address,
              unsigned size_bytes, bool is_write, uint64_t *data)
{
    struct vmexit *exit = v->exit;

    if (v->io.cursor < v->io.done) {
        unsigned i = v->io.cursor++;

        if (((v->io.faults >> i) & 1) != 0) {
            return engine_raise_error(v, X86_VEC_GP, 0);
        }
        if (!is_write) {
            *data = v->io.data[i];
        }
        return 0;
    }
    if (v->io.done == ENGINE_IO_LOG_MAX) {
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    exit->reason = reason;
    if (reason == VMEXIT_PIO) {
        exit->pio.port = (uint16_t)address;
        exit->pio.size_bytes = (uint8_t)size_bytes;
        exit->pio.is_write = is_write;
        exit->pio.data = (uint32_t)*data;
    } else if (reason == VMEXIT_MMIO) {
        exit->mmio.gpa = address;
        exit->mmio.size_bytes = (uint8_t)size_bytes;
        exit->mmio.is_write = is_write;
        exit->mmio.data = *data;
    } else {
        exit->msr.index = (uint32_t)address;
        exit->msr.fault = false;
        exit->msr.data = *data;
        exit->msr.tsc_offset = v->st.tsc_offset;
    }
    v->exit_unanswered = true;
    return ENGINE_EXIT;
}

void interp_io_answer(struct engine_vcpu *v, const struct vmexit *exit)
{
    unsigned i = v->io.done;

    v->exit_unanswered = false;
    if (i == ENGINE_IO_LOG_MAX) {
        return;
    }
    switch (exit->reason) {
    case VMEXIT_PIO:
        v->io.data[i] = exit->pio.data & interp_mask(exit->pio.size_bytes);
        break;
    case VMEXIT_MMIO:
        v->io.data[i] = exit->mmio.data & interp_mask(exit->mmio.size_bytes);
        break;
    default:
        v->io.data[i] = exit->msr.data;
        v->io.faults |= exit->msr.fault ? 1ull << i : 0;
        break;
    }
    v->io.done = i + 1;
    v->io.cursor = 0;
}

void interp_io_clear(struct engine_vcpu *v)
{
    v->io.done = 0;
    v->io.cursor = 0;
    v->io.faults = 0;
}

/* Not in the middle of an instruction or a delivery: what devices answered must not be asked for
 * again. */
static bool nmi_waits(const struct engine_vcpu *v)
{
    const struct x86_events *e = &v->st.events;

    return e->nmi_pending && !e->nmi_blocked && !e->mov_ss_shadow && v->io.done == 0;
}

/* SDM 3A 6.7.1, 6.9: exceptions, then NMI, then an interrupt already acknowledged. */
static bool event_waits(const struct engine_vcpu *v)
{
    const struct x86_events *e = &v->st.events;

    return e->exception_pending || e->interrupt_pending || nmi_waits(v);
}

static int deliver_event(struct engine_vcpu *v)
{
    struct x86_events *e = &v->st.events;
    int r;

    v->st.mp_state = X86_MP_RUNNABLE;
    if (e->exception_pending) {
        struct engine_fault fault = {
            .vector = e->exception_vector,
            .has_error = e->exception_has_error,
            .error = e->exception_error,
            .cr2 = v->st.cr2,
        };

        e->exception_pending = false;
        return exception_deliver(v, &fault);
    }
    if (nmi_waits(v)) {
        e->nmi_pending = false;
        e->nmi_blocked = true;
        r = interrupt_deliver(v, X86_VEC_NMI, false);
    } else {
        e->interrupt_pending = false;
        r = interrupt_deliver(v, e->interrupt_vector, false);
    }
    v->stat_interrupts++;
    return r;
}

/* An instruction breakpoint at rip is a fault before the instruction (SDM 3B 17.3.1.1). */
static int check_breakpoints(struct engine_vcpu *v)
{
    uint64_t va = v->st.rip;
    uint64_t hit = 0;

    if ((v->st.dr[7] & 0xff) == 0 || (v->st.rflags & X86_FLAG_RF) != 0) {
        return 0;
    }
    if (!interp_is_64(v)) {
        va = (va + v->st.seg[X86_CS].base) & 0xffffffffu;
    }
    for (unsigned i = 0; i < 4; i++) {
        bool enabled = ((v->st.dr[7] >> (2 * i)) & 3) != 0;

        if (enabled && ((v->st.dr[7] >> (16 + 4 * i)) & 3) == 0 && v->st.dr[i] == va) {
            hit |= 1ull << i;
        }
    }
    if (hit == 0) {
        return 0;
    }
    v->fault = (struct engine_fault){.vector = X86_VEC_DB, .dr6 = hit};
    return ENGINE_FAULT;
}

/* Software interrupts clear TF on their way: no single-step trap after them. */
static bool traps_after(const struct insn *in)
{
    return in->op != INSN_OP_INT && in->op != INSN_OP_INT3 && in->op != INSN_OP_INT1 &&
           in->op != INSN_OP_INTO;
}

/* What follows a completed instruction: rip, RF, data breakpoints and single step. */
static int complete(struct engine_vcpu *v, const struct insn *in, bool single_step)
{
    uint64_t dr6 = v->pending_dr6;
    int r = 0;

    v->st.rip = v->next_rip;
    v->stat_interpreted++;
    if (in->op != INSN_OP_IRET) {
        v->st.rflags &= ~(uint64_t)X86_FLAG_RF;
    }
    if (unlikely(single_step) && !v->st.events.mov_ss_shadow && traps_after(in)) {
        dr6 |= DR6_BS;
    }
    if (unlikely(dr6 != 0)) {
        struct engine_fault fault = {.vector = X86_VEC_DB, .dr6 = dr6};

        if (v->leave) {
            v->st.dr[6] |= dr6;
            v->st.events.exception_pending = true;
            v->st.events.exception_has_error = false;
            v->st.events.exception_vector = X86_VEC_DB;
        } else {
            r = exception_deliver(v, &fault);
        }
    }
    interp_io_clear(v);
    if (unlikely(v->leave)) {
        v->leave = false;
        return ENGINE_EXIT;
    }
    return r;
}

static int execute(struct engine_vcpu *v, const struct icache_entry *entry)
{
    struct x86_events *e = &v->st.events;
    bool sti_shadow = e->sti_shadow;
    bool mov_ss_shadow = e->mov_ss_shadow;
    bool single_step = (v->st.rflags & X86_FLAG_TF) != 0;
    int r;

    e->sti_shadow = false;
    e->mov_ss_shadow = false;
    v->next_rip = v->st.rip + entry->insn.len;
    if (entry->insn.mode != INSN_MODE_64) {
        v->next_rip &= 0xffffffffu;
    }
    r = entry->fn(v, &entry->insn);
    if (r == 0) {
        return complete(v, &entry->insn, single_step);
    }
    if (r == ENGINE_EXIT) {
        e->sti_shadow = sti_shadow;
        e->mov_ss_shadow = mov_ss_shadow;
        v->io.cursor = 0;
    }
    return r;
}

int interp_try(struct engine_vcpu *v, bool (*may_run)(const struct insn *insn),
               struct insn *ret_insn)
{
    struct icache_entry *entry = NULL;
    int r;

    v->pending_dr6 = 0;
    r = fetch_decode(v, &entry);
    if (entry == NULL) {
        return r;
    }
    *ret_insn = entry->insn;
    return may_run(&entry->insn) ? execute(v, entry) : ENGINE_EXIT;
}

int interp_step(struct engine_vcpu *v)
{
    struct icache_entry *entry = NULL;
    int r;

    if (unlikely(event_waits(v))) {
        r = deliver_event(v);
        if (r == 0) {
            interp_io_clear(v);
        } else {
            v->io.cursor = 0;
        }
        return r;
    }
    v->pending_dr6 = 0;
    r = check_breakpoints(v);
    if (r == 0) {
        r = fetch_decode(v, &entry);
    }
    if (entry != NULL) {
        r = execute(v, entry);
    }
    if (r == ENGINE_FAULT) {
        struct engine_fault fault = v->fault;

        interp_io_clear(v);
        r = exception_deliver(v, &fault);
    }
    return r;
}
