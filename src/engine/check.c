#include "engine/check.h"

#include "base/log.h"
#include "base/wire.h"
#include "engine/interp.h"
#include "engine/translate.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define STEPS_MAX 160u
/* A device may write what the guest is just reading: then the two differ, but not again. */
#define RETRIES 8u
#define WRITES_MAX 512u
#define BYTES_MAX (256u << 10)
/* Legacy region, header and the upper halves of YMM. */
#define COMPARED_FPU_BYTES 832u

#define VECTOR_FLAGS (INSN_X87 | INSN_MMX | INSN_SSE | INSN_AVX)

#define STEP_NONE UINT32_MAX

/* What of the state an instruction that is compared can change. */
struct check_point {
    uint64_t gpr[X86_GPR_COUNT];
    uint64_t rip;
    uint64_t rflags;
    uint64_t fs_base;
    uint64_t gs_base;
    uint64_t kernel_gs_base;
    uint64_t cs_ss;
    uint64_t mxcsr;
};

struct check_write {
    uint32_t step; /* instruction that wrote */
    uint32_t len;
    uint8_t *host;
    uint32_t old; /* offsets into bytes[] */
    uint32_t new;
};

struct engine_check {
    bool recording;
    bool overflow;
    bool stopped_untellable;
    bool stopped_in_access; /* the next instruction faulted or met a device */
    unsigned steps;
    unsigned known; /* entries of insns: steps, and perhaps the next one */
    unsigned write_count;
    struct check_stats stats;
    unsigned captured; /* writes whose new bytes are taken */
    uint32_t bytes_used;
    struct check_point points[STEPS_MAX + 1];
    const uint8_t *fpu_at[STEPS_MAX + 1]; /* the image at each point, in start or in fpu[] */
    unsigned fpu_count;
    uint8_t fpu[STEPS_MAX][COMPARED_FPU_BYTES]; /* behind each instruction that may change it */
    uint64_t insn_rip[STEPS_MAX + 1];
    struct insn insns[STEPS_MAX];
    struct check_write writes[WRITES_MAX];
    uint8_t bytes[BYTES_MAX];
    struct vcpu_state start ALIGNED(64);
    struct vcpu_state other ALIGNED(64);
};

struct engine_check *check_create(void)
{
    struct engine_check *check = aligned_alloc(64, (sizeof(*check) + 63) & ~(size_t)63);

    if (check != NULL) {
        memset(check, 0, sizeof(*check));
    }
    return check;
}

void check_destroy(struct engine_check *check)
{
    free(check);
}

void check_note_write(struct engine_check *c, uint8_t *host, unsigned len)
{
    if (!c->recording) {
        return;
    }
    if (c->write_count == WRITES_MAX || c->bytes_used + 2 * len > BYTES_MAX) {
        c->overflow = true;
        return;
    }

    struct check_write *w = &c->writes[c->write_count++];

    w->step = c->steps;
    w->len = len;
    w->host = host;
    w->old = c->bytes_used;
    w->new = c->bytes_used + len;
    c->bytes_used += 2 * len;
    memcpy(&c->bytes[w->old], host, len);
}

/* After an instruction: what it left in memory. */
static void capture_writes(struct engine_check *c)
{
    for (; c->captured < c->write_count; c->captured++) {
        const struct check_write *w = &c->writes[c->captured];

        memcpy(&c->bytes[w->new], w->host, w->len);
    }
}

/* What is compared of an image: what is in use, the rest as zero. */
static void normalize_image(struct engine_check *c, const uint8_t *xsave,
                            uint8_t ret_image[COMPARED_FPU_BYTES])
{
    memcpy(c->other.xsave, xsave, COMPARED_FPU_BYTES);
    fpu_normalize(&c->other);
    fpu_hide_pointers(&c->other);
    memset(&c->other.xsave[24], 0, 8);    /* MXCSR and its mask */
    memset(&c->other.xsave[416], 0, 160); /* unused, and the header */
    memcpy(ret_image, c->other.xsave, COMPARED_FPU_BYTES);
}

/* The arrays cost more than the comparison that nearly always comes before. */
static bool __attribute__((noinline))
normalized_agree(struct engine_check *c, const uint8_t *want, const uint8_t *have)
{
    uint8_t a[COMPARED_FPU_BYTES];
    uint8_t b[COMPARED_FPU_BYTES];

    normalize_image(c, want, a);
    normalize_image(c, have, b);
    return memcmp(a, b, COMPARED_FPU_BYTES) == 0;
}

static bool images_agree(struct engine_check *c, const uint8_t *want, const uint8_t *have)
{
    return memcmp(want, have, COMPARED_FPU_BYTES) == 0 || normalized_agree(c, want, have);
}

static void take_point(const struct vcpu_state *st, struct check_point *point)
{
    memcpy(point->gpr, st->gpr, sizeof(point->gpr));
    point->rip = st->rip;
    point->rflags = st->rflags & ~(uint64_t)X86_FLAG_RF;
    point->fs_base = st->seg[X86_FS].base;
    point->gs_base = st->seg[X86_GS].base;
    point->kernel_gs_base = st->kernel_gs_base;
    point->cs_ss = (uint64_t)st->seg[X86_CS].selector << 16 | st->seg[X86_SS].selector;
    point->mxcsr = load_le32(&st->xsave[24]);
}

/* Instructions whose second execution gives the same and that touch only registers and RAM. */
static bool is_repeatable(const struct insn *in)
{
    switch ((enum insn_op)in->op) {
    case INSN_OP_COPY:
        /* RDRAND and RDSEED. */
        return !(in->map == 1 && in->opcode == 0xc7 && in->rm != INSN_REG_NONE);
    case INSN_OP_NOP:
    case INSN_OP_LEA:
    case INSN_OP_BIT_MEM:
    case INSN_OP_PUSH:
    case INSN_OP_POP:
    case INSN_OP_PUSHF:
    case INSN_OP_POPF:
    case INSN_OP_ENTER:
    case INSN_OP_LEAVE:
    case INSN_OP_JCC:
    case INSN_OP_JCXZ:
    case INSN_OP_LOOP:
    case INSN_OP_JMP:
    case INSN_OP_JMP_IND:
    case INSN_OP_CALL:
    case INSN_OP_CALL_IND:
    case INSN_OP_RET:
    case INSN_OP_MOVS:
    case INSN_OP_CMPS:
    case INSN_OP_STOS:
    case INSN_OP_LODS:
    case INSN_OP_SCAS:
    case INSN_OP_XLAT:
    case INSN_OP_SYSCALL:
    case INSN_OP_SYSRET:
    case INSN_OP_MOV_FROM_SEG:
    case INSN_OP_CLI:
    case INSN_OP_STI:
    case INSN_OP_STAC:
    case INSN_OP_CLAC:
    case INSN_OP_SWAPGS:
    case INSN_OP_RDFSBASE:
    case INSN_OP_WRFSBASE:
    case INSN_OP_CPUID:
    case INSN_OP_MOV_FROM_CR:
        return true;
    default:
        return false;
    }
}

/* Not repeatable, yet a unit may hold it and go on behind it. */
static bool is_untellable(const struct insn *in)
{
    return in->op == INSN_OP_RDTSC || in->op == INSN_OP_RDTSCP || in->op == INSN_OP_XSAVE ||
           in->op == INSN_OP_XRSTOR || (in->op == INSN_OP_COPY && !is_repeatable(in));
}

/* No unit goes on behind it. */
static bool leaves_unit(const struct insn *in, uint64_t rip, uint64_t next_rip)
{
    switch ((enum insn_op)in->op) {
    case INSN_OP_JCC:
    case INSN_OP_JCXZ:
    case INSN_OP_LOOP:
        return next_rip != rip + in->len;
    case INSN_OP_JMP_IND:
    case INSN_OP_CALL:
    case INSN_OP_CALL_IND:
    case INSN_OP_RET:
        return true;
    default:
        return false;
    }
}

/* The interpreter's way, up to what cannot be done twice. */
static void record(struct engine_vcpu *v, unsigned limit)
{
    struct engine_check *c = v->check;

    c->recording = true;
    c->fpu_count = 0;
    c->overflow = false;
    c->stopped_untellable = false;
    c->stopped_in_access = false;
    c->steps = 0;
    c->known = 0;
    c->write_count = 0;
    c->captured = 0;
    c->bytes_used = 0;
    take_point(&v->st, &c->points[0]);
    c->fpu_at[0] = c->start.xsave;
    while (c->steps < limit && !c->overflow) {
        unsigned writes = c->write_count;

        c->insn_rip[c->steps] = v->st.rip;
        c->insns[c->steps].op = INSN_OP_UD; /* should it not be fetched at all */
        c->insns[c->steps].len = 0;
        c->insns[c->steps].flags = 0;
        c->insns[c->steps].flags_read = 0;
        c->insns[c->steps].flags_written = 0;
        c->known = c->steps + 1;
        int r = interp_try(v, is_repeatable, &c->insns[c->steps]);

        if (r != 0) {
            c->stopped_in_access = r == ENGINE_FAULT || v->exit_unanswered;
            /* A page fault or a device in the middle: what it wrote is no state to compare. */
            c->stopped_untellable = is_untellable(&c->insns[c->steps]);
            capture_writes(c);
            for (unsigned i = writes; i < c->write_count; i++) {
                c->writes[i].step = STEP_NONE;
            }
            break;
        }
        capture_writes(c);
        c->steps++;
        take_point(&v->st, &c->points[c->steps]);
        c->fpu_at[c->steps] = c->fpu_at[c->steps - 1];
        if ((c->insns[c->steps - 1].flags & VECTOR_FLAGS) != 0) {
            memcpy(c->fpu[c->fpu_count], v->st.xsave, COMPARED_FPU_BYTES);
            c->fpu_at[c->steps] = c->fpu[c->fpu_count++];
        }
        if (leaves_unit(&c->insns[c->steps - 1], c->insn_rip[c->steps - 1], v->st.rip)) {
            break;
        }
    }
    c->recording = false;
}

/* By the library: what the compiler makes of an assignment of this size takes several times as
 * long, and this happens with every unit. */
static void copy_state(struct vcpu_state *to, const struct vcpu_state *from)
{
    size_t bytes = sizeof(*to);

    __asm__("" : "+r"(bytes));
    memcpy(to, from, bytes);
}

/* Back to where record() began, whoever went on from there. */
static void undo(struct engine_vcpu *v)
{
    struct engine_check *c = v->check;

    for (unsigned i = c->write_count; i > 0; i--) {
        const struct check_write *w = &c->writes[i - 1];

        memcpy(w->host, &c->bytes[w->old], w->len);
        mmu_rmw_end(v, w->host, w->len);
    }
    copy_state(&v->st, &c->start);
    v->exit_unanswered = false;
    v->leave = false;
    interp_io_clear(v);
}

/* Is memory as it was after the first count instructions? Else the write that is not. */
static bool memory_agrees(const struct engine_check *c, unsigned count,
                          const struct check_write **ret_write)
{
    for (unsigned i = 0; i < c->write_count; i++) {
        const struct check_write *w = &c->writes[i];
        bool later = false;

        if (w->step >= count) {
            continue;
        }
        for (unsigned j = i + 1; j < c->write_count && !later; j++) {
            const struct check_write *o = &c->writes[j];

            later = o->step < count && o->host < w->host + w->len && w->host < o->host + o->len;
        }
        if (!later && memcmp(w->host, &c->bytes[w->new], w->len) != 0) {
            *ret_write = w;
            return false;
        }
    }
    return true;
}

static void report_registers(const struct check_point *want, const struct check_point *have)
{
    static const char *const names[] = {"rax", "rcx", "rdx",       "rbx",   "rsp",  "rbp",
                                        "rsi", "rdi", "r8",        "r9",    "r10",  "r11",
                                        "r12", "r13", "r14",       "r15",   "rip",  "flags",
                                        "fs",  "gs",  "kernel gs", "cs:ss", "mxcsr"};
    const uint64_t *w = want->gpr;
    const uint64_t *h = have->gpr;

    static_assert(sizeof(struct check_point) / 8 == ARRAY_LEN(names), "one name for each");
    for (unsigned i = 0; i < ARRAY_LEN(names); i++) {
        if (w[i] != h[i]) {
            log_error("  %-9s reference 0x%016llx, translated 0x%016llx", names[i],
                      (unsigned long long)w[i], (unsigned long long)h[i]);
        }
    }
}

/* Vector and x87 state differ: where in the XSAVE image. */
static void report_fpu(struct engine_check *c, unsigned point, const struct vcpu_state *st)
{
    uint8_t want[COMPARED_FPU_BYTES];
    uint8_t have[COMPARED_FPU_BYTES];

    normalize_image(c, c->fpu_at[point], want);
    normalize_image(c, st->xsave, have);
    for (unsigned i = 0; i < COMPARED_FPU_BYTES; i += 8) {
        if (load_le64(want + i) != load_le64(have + i)) {
            log_error("  xsave+%-4u reference 0x%016llx, translated 0x%016llx", i,
                      (unsigned long long)load_le64(want + i),
                      (unsigned long long)load_le64(have + i));
        }
    }
}

static void report_code(const struct engine_check *c, unsigned count)
{
    for (unsigned i = 0; i < count && i < c->steps; i++) {
        const struct insn *in = &c->insns[i];
        char bytes[3 * INSN_MAX_BYTES + 1] = "";
        char text[96];

        for (unsigned b = 0; b < in->len; b++) {
            (void)snprintf(&bytes[3 * b], 4, "%02x ", in->bytes[b]);
        }
        log_error("  0x%016llx  %-30s %s", (unsigned long long)c->insn_rip[i], bytes,
                  insn_describe(in, text, sizeof(text)));
    }
}

/*
 * Arithmetic flags that the instructions from point i on overwrite before they
 * read them. A unit that stops in front of one (to fault, say) need not have them.
 */
static uint64_t dead_flags(const struct engine_check *c, unsigned i)
{
    uint64_t live = 0;
    uint64_t dead = 0;

    for (; i < (c->stopped_in_access ? c->steps : c->known); i++) {
        live |= c->insns[i].flags_read & ~dead;
        dead |= c->insns[i].flags_written & ~live;
    }
    /* What follows then, and might overwrite them, is not known. */
    return c->stopped_in_access ? X86_FLAGS_ARITH & ~live : dead;
}

static bool point_matches(struct engine_check *c, unsigned i, const struct check_point *have,
                          const uint8_t *xsave)
{
    struct check_point want = c->points[i];

    if (want.rip != have->rip) {
        return false;
    }
    if (((want.rflags ^ have->rflags) & ~dead_flags(c, i)) == 0) {
        want.rflags = have->rflags;
    }
    /* An instruction that raises #XM has set its status flags when it is started again. */
    if (i < c->known && (c->insns[i].flags & (INSN_SSE | INSN_AVX)) != 0 &&
        (have->mxcsr & ~0x3full) == (want.mxcsr & ~0x3full) && (want.mxcsr & ~have->mxcsr) == 0) {
        want.mxcsr = have->mxcsr;
    }
    return memcmp(&want, have, sizeof(want)) == 0 && images_agree(c, c->fpu_at[i], xsave);
}

/* The point at the same rip that differs in the fewest fields. */
static unsigned nearest(const struct engine_check *c, const struct check_point *have)
{
    unsigned best = c->steps;
    unsigned best_differences = UINT32_MAX;

    for (unsigned i = 0; i <= c->steps; i++) {
        const uint64_t *w = c->points[i].gpr;
        const uint64_t *h = have->gpr;
        unsigned differences = c->points[i].rip == have->rip ? 0 : 100;

        for (unsigned f = 0; f < sizeof(*have) / 8; f++) {
            differences += w[f] != h[f] ? 1 : 0;
        }
        if (differences < best_differences) {
            best_differences = differences;
            best = i;
        }
    }
    return best;
}

static int report(struct engine_vcpu *v, const struct check_point *have, unsigned point,
                  const struct check_write *write)
{
    struct engine_check *c = v->check;

    log_error("translated code differs from the reference, %u instructions from rip 0x%llx", point,
              (unsigned long long)c->start.rip);
    report_code(c, point + 1);
    report_registers(&c->points[point], have);
    report_fpu(c, point, &v->st);
    if (write != NULL) {
        uint64_t want = 0;
        uint64_t got = 0;

        memcpy(&want, &c->bytes[write->new], write->len < 8 ? write->len : 8);
        memcpy(&got, write->host, write->len < 8 ? write->len : 8);
        log_error("  memory, %u bytes written by 0x%llx: reference 0x%llx, translated 0x%llx",
                  write->len, (unsigned long long)c->insn_rip[write->step],
                  (unsigned long long)want, (unsigned long long)got);
    }
    v->exit->reason = VMEXIT_ERROR;
    (void)err_set(&v->exit->error, -EILSEQ,
                  "translated code at guest address 0x%llx differs from the reference",
                  (unsigned long long)c->start.rip);
    return ENGINE_EXIT;
}

/* Where translated code has stopped, among the points; the last that fits. Without, steps + 1 and
 * the write that hinders it, if it is one. */
static unsigned find_point(struct engine_vcpu *v, const struct check_point *have,
                           const struct check_write **ret_write)
{
    struct engine_check *c = v->check;

    for (unsigned i = c->steps + 1; i-- > 0;) {
        const struct check_write *write = NULL;

        if (!point_matches(c, i, have, v->st.xsave)) {
            continue;
        }
        if (memory_agrees(c, i, &write)) {
            return i;
        }
        *ret_write = write;
    }
    return c->steps + 1;
}

/* One try: 0 when both agree, 1 for the interpreter, ENGINE_EXIT when they do not. */
static int try_once(struct engine_vcpu *v, unsigned limit, struct check_point *ret_have,
                    const struct check_write **ret_write)
{
    struct engine_check *c = v->check;
    unsigned point;

    record(v, limit);
    c->stats.undone += c->steps;
    undo(v);
    if (c->overflow || c->stopped_untellable || c->steps == 0) {
        return 1;
    }
    if (translate_run_one(v) == TRANSLATE_INTERP && v->st.rip == c->start.rip &&
        memcmp(v->st.gpr, c->start.gpr, sizeof(v->st.gpr)) == 0) {
        return 1;
    }
    take_point(&v->st, ret_have);
    *ret_write = NULL;
    point = find_point(v, ret_have, ret_write);
    if (point > c->steps) {
        return ENGINE_EXIT;
    }
    c->stats.units++;
    c->stats.insns += point;
    return 0;
}

int check_step(struct engine_vcpu *v)
{
    struct engine_check *c = v->check;
    const struct check_write *write = NULL;
    struct check_point have;
    unsigned limit = translate_unit_length(v);
    int r;

    if (limit == 0) {
        return 1;
    }
    copy_state(&c->start, &v->st);
    r = try_once(v, limit < STEPS_MAX ? limit : STEPS_MAX, &have, &write);
    for (unsigned i = 0; r == ENGINE_EXIT && i < RETRIES; i++) {
        c->stats.retries++;
        undo(v);
        r = try_once(v, limit < STEPS_MAX ? limit : STEPS_MAX, &have, &write);
    }
    if (r == ENGINE_EXIT) {
        return report(v, &have, nearest(c, &have), write);
    }
    return r;
}

void check_stats(const struct engine_check *check, struct check_stats *ret_stats)
{
    *ret_stats = check->stats;
}
