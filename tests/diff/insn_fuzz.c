/*
 * insn_fuzz --seed S [--start I] [--count N] [--engine reference|soft] [--mode 64|32]
 *           [--blocks] [--verbose] [--progress]
 *
 * --blocks: runs of instructions instead of one at a time.
 * Exit status 1 when the engine and the host CPU disagree; every disagreement
 * is printed with the command that repeats it.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"

#define MAX_REPORTS 12u
#define COMPARED_FLAGS (X86_FLAGS_ARITH | X86_FLAG_DF | X86_FLAG_IF | X86_FLAG_NT | X86_FLAG_ID)

struct options {
    uint64_t seed;
    uint64_t start;
    uint64_t count;
    bool is_reference;
    bool has_blocks;
    bool is_verbose;
    bool has_progress;
    enum insn_mode mode;
};

struct result {
    uint64_t ran;
    uint64_t vectors[256];
    unsigned mismatches;
};

static const char *const gpr_names[X86_GPR_COUNT] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp",
                                                     "rsi", "rdi", "r8",  "r9",  "r10", "r11",
                                                     "r12", "r13", "r14", "r15"};

static void print_bytes(const uint8_t *bytes, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        printf("%02x", bytes[i]);
    }
}

static void print_case(const struct options *o, const struct fuzz_case *c)
{
    char text[128];

    printf("insn_fuzz%s --seed %llu --start %llu --count 1 --engine %s --mode %s --verbose\n",
           c->is_block ? " --blocks" : "", (unsigned long long)o->seed,
           (unsigned long long)c->index, o->is_reference ? "reference" : "soft",
           o->mode == INSN_MODE_64 ? "64" : "32");
    if (c->is_block) {
        printf("  block at %#llx: ", (unsigned long long)c->before.rip);
        print_bytes(c->code, c->code_bytes);
        printf("\n");
    }
    printf("  %s  at %#llx, mem %u bytes\n", insn_describe(&c->insn, text, sizeof(text)),
           (unsigned long long)c->before.rip, c->insn.mem_bytes);
    if (o->is_verbose) {
        for (unsigned i = 0; i < X86_GPR_COUNT; i++) {
            printf("  %s=%llx%s", gpr_names[i], (unsigned long long)c->before.gpr[i],
                   i % 4 == 3 ? "\n" : "");
        }
        printf("  flags=%llx fs=%llx gs=%llx patch %u at %llx\n",
               (unsigned long long)c->before.rflags, (unsigned long long)c->before.fs_base,
               (unsigned long long)c->before.gs_base, c->patch_bytes,
               (unsigned long long)(FUZZ_DATA_BASE + c->patch_offset));
    }
}

static bool differ(const char *what, uint64_t host, uint64_t engine)
{
    if (host == engine) {
        return false;
    }
    printf("  %s: host %llx engine %llx\n", what, (unsigned long long)host,
           (unsigned long long)engine);
    return true;
}

static bool differ_bytes(const char *what, const uint8_t *host, const uint8_t *engine,
                         unsigned count)
{
    if (memcmp(host, engine, count) == 0) {
        return false;
    }
    for (unsigned i = 0; i < count; i++) {
        if (host[i] != engine[i]) {
            const unsigned n = count - i < 32 ? count - i : 32;

            printf("  %s +%#x: host ", what, i);
            print_bytes(host + i, n);
            printf(" engine ");
            print_bytes(engine + i, n);
            printf("\n");
            break;
        }
    }
    return true;
}

/* The host's kernel sets the present bit for addresses of its own half and the page below. */
static uint32_t comparable_error(const struct fuzz_outcome *o)
{
    const bool is_kernel_half = o->vector == X86_VEC_PF && o->cr2 >= 0x7ffffffff000ull;

    return is_kernel_half ? o->error & ~X86_PF_PRESENT : o->error;
}

/* The engine stores 0 for the x87's instruction and data pointers: so do we for the host's. */
static void hide_x87_pointers(const struct fuzz_case *c, struct fuzz_outcome *o)
{
    const uint64_t offset = fuzz_linear_address(c) - FUZZ_DATA_BASE;
    unsigned first = 6;
    unsigned end = 24;

    if (c->insn.op == INSN_OP_FNSTENV) {
        const bool is_16 = c->insn.opsize_bytes == 2;

        first = is_16 ? 6 : 12;
        end = is_16 ? 14 : 28;
    } else if (c->insn.op != INSN_OP_FXSAVE && c->insn.op != INSN_OP_XSAVE) {
        return;
    }
    memset(o->after.xsave + 6, 0, 18);
    for (uint64_t i = offset + first; i < offset + end && i < FUZZ_DATA_BYTES; i++) {
        o->data[i] = 0;
    }
}

/* Areas that the CPU reads and writes field by field. */
static bool is_piecewise(const struct fuzz_case *c)
{
    return c->insn.op == INSN_OP_XSAVE || c->insn.op == INSN_OP_XRSTOR ||
           c->insn.op == INSN_OP_FXSAVE || c->insn.op == INSN_OP_FXRSTOR ||
           ((c->insn.flags & INSN_X87) != 0 && c->insn.mem_bytes >= 10);
}

/*
 * What a CPU leaves behind when a store faults and no manual promises:
 * - a faulting MMX store has set TOP to 0 already;
 * - VCVTPS2PH has set its flags in MXCSR;
 * - masked stores and x87 environments report some address within the page;
 * - whether MASKMOVDQU faults where its mask is 0 (see the caller).
 */
static void hide_unspecified(const struct fuzz_case *c, struct fuzz_outcome *o)
{
    const bool is_fault = o->vector != X86_VEC_BP;

    if (is_fault && (c->insn.flags & INSN_MMX) != 0) {
        memset(o->after.xsave, 0, 160);
    }
    if (is_fault && c->insn.encoding != INSN_ENC_LEGACY && c->insn.map == 3 &&
        c->insn.opcode == 0x1d) {
        memset(o->after.xsave + 24, 0, 4);
    }
    if (o->vector != X86_VEC_PF) {
        return;
    }
    if (c->insn.op == INSN_OP_MASKMOV) {
        o->cr2 = 0;
        o->error = 0;
    }
    if (c->insn.op == INSN_OP_VMASKMOV || is_piecewise(c)) {
        o->cr2 &= ~0xfffull;
    }
}

static bool is_branch_by_value(const struct fuzz_case *c)
{
    return c->insn.op == INSN_OP_JMP_IND || c->insn.op == INSN_OP_CALL_IND ||
           c->insn.op == INSN_OP_RET;
}

/* Prints nothing when they agree. */
static bool compare(const struct options *o, const struct fuzz_case *c, struct fuzz_outcome *host,
                    struct fuzz_outcome *engine)
{
    uint64_t flags = COMPARED_FLAGS;
    bool bad = false;

    if (c->is_block && host->vector != X86_VEC_BP) {
        /* Inside a block flags may be dead where it faults. */
        bad |= differ("vector", host->vector, engine->vector);
        bad |= differ("rip", host->after.rip, engine->after.rip);
        bad |= differ("cr2", host->cr2, engine->cr2);
        return bad;
    }
    if (!o->is_reference) {
        memset(host->after.xsave + 6, 0, 18);
        if (host->vector != X86_VEC_BP) {
            flags &= ~(uint64_t)c->insn.flags_written; /* dead: the instruction runs again */
        }
        if (host->vector == X86_VEC_GP && engine->vector == X86_VEC_GP && is_branch_by_value(c)) {
            return false; /* a target that is not canonical: the fault may be the target's */
        }
    }
    if (c->is_block) {
        memset(host->after.xsave + 6, 0, 18);
        memset(engine->after.xsave + 6, 0, 18);
    }
    hide_x87_pointers(c, host);
    hide_x87_pointers(c, engine);
    hide_unspecified(c, host);
    hide_unspecified(c, engine);
    fuzz_normalize_xsave(host->after.xsave);
    fuzz_normalize_xsave(engine->after.xsave);
    if ((c->insn.op == INSN_OP_CMPS || c->insn.op == INSN_OP_SCAS) && host->vector == X86_VEC_PF) {
        flags &= ~(uint64_t)X86_FLAGS_ARITH; /* of the element before, or of the beginning */
    }
    if (c->insn.op == INSN_OP_BCD) {
        flags &= ~(uint64_t)c->insn.flags_undefined; /* computed in C, not by a copy */
    }
    if (c->is_nondeterministic) {
        flags = 0;
        engine->after.gpr[c->insn.rm] = host->after.gpr[c->insn.rm];
    }
    if (is_piecewise(c) && host->vector != X86_VEC_BP && engine->vector != X86_VEC_BP &&
        host->vector != engine->vector) {
        return false; /* a part of it lies beyond the canonical addresses */
    }
    if (c->insn.op == INSN_OP_VMASKMOV && host->vector == X86_VEC_PF) {
        engine->cr2 = host->cr2;
        memcpy(engine->data, host->data, FUZZ_DATA_BYTES); /* elements before the fault */
    }
    if (c->insn.op == INSN_OP_MASKMOV &&
        (host->vector == X86_VEC_PF || host->vector == X86_VEC_GP)) {
        return false;
    }
    if (c->insn.op == INSN_OP_UD && host->vector == X86_VEC_PF &&
        host->cr2 == FUZZ_CODE_BASE + FUZZ_CODE_BYTES) {
        return false; /* how far an opcode that is none is fetched */
    }
    if ((c->insn.flags & INSN_X87) != 0 && c->insn.mem_bytes == 10 && host->vector == X86_VEC_PF) {
        memcpy(engine->data, host->data, FUZZ_DATA_BYTES); /* two stores, the first one done */
    }
    if (is_piecewise(c) && host->vector == X86_VEC_PF && engine->vector == X86_VEC_PF) {
        engine->cr2 = host->cr2;
        engine->error = host->error;
    }
    bad |= differ("vector", host->vector, engine->vector);
    bad |= differ("error", comparable_error(host), comparable_error(engine));
    bad |= differ("cr2", host->cr2, engine->cr2);
    bad |= differ("rip", host->after.rip, engine->after.rip);
    bad |= differ("flags", host->after.rflags & flags, engine->after.rflags & flags);
    for (unsigned i = 0; i < X86_GPR_COUNT; i++) {
        bad |= differ(gpr_names[i], host->after.gpr[i], engine->after.gpr[i]);
    }
    bad |= differ("fs base", host->after.fs_base, engine->after.fs_base);
    bad |= differ("gs base", host->after.gs_base, engine->after.gs_base);
    bad |= differ_bytes("memory", host->data, engine->data, FUZZ_DATA_BYTES);
    bad |= differ_bytes("x87 and MXCSR", host->after.xsave, engine->after.xsave, 160);
    bad |= differ_bytes("xmm", host->after.xsave + 160, engine->after.xsave + 160, 256);
    bad |= differ_bytes("ymm upper", host->after.xsave + 576, engine->after.xsave + 576, 256);
    return bad;
}

static void run_case(const struct options *o, struct fuzz_gen *gen, struct fuzz_guest *guest,
                     uint64_t index, struct result *result)
{
    static struct fuzz_case c;
    static struct fuzz_outcome host;
    static struct fuzz_outcome engine;
    struct fuzz_cell *cell = NULL;
    int rc;

    memset(&host, 0, sizeof(host));
    memset(&engine, 0, sizeof(engine));
    if (o->has_blocks) {
        fuzz_block_case(gen, o->seed, index, &c);
    } else {
        fuzz_gen_case(gen, o->seed, index, &c, &cell);
    }
    if (o->is_verbose) {
        print_case(o, &c);
        (void)fflush(stdout);
    }
    fuzz_native_run(&c, &host);
    rc = fuzz_guest_run(guest, &c, &engine);
    if (c.insn.mode != INSN_MODE_64) {
        memcpy(engine.after.gpr + 8, host.after.gpr + 8, 8 * sizeof(host.after.gpr[0]));
    }
    result->ran++;
    result->vectors[host.vector]++;
    if (cell != NULL) {
        cell->tried++;
        cell->executed += host.vector == X86_VEC_BP ? 1 : 0;
    }
    if (rc != 0) {
        printf("  engine left with exit reason %d\n", -rc);
    }
    if (compare(o, &c, &host, &engine) || rc != 0) {
        print_case(o, &c);
        result->mismatches++;
    }
}

/* Instructions that fault in user mode, whatever their operands. */
static bool always_faults(const struct fuzz_cell *cell, enum insn_mode mode)
{
    uint8_t bytes[INSN_MAX_BYTES] = {0};
    struct insn insn;
    unsigned n = 0;

    if (cell->encoding != INSN_ENC_LEGACY) {
        return false;
    }
    if (cell->pp != 0) {
        bytes[n++] = (uint8_t[]){0, 0x66, 0xf3, 0xf2}[cell->pp];
    }
    if (cell->map != 0) {
        bytes[n++] = 0x0f;
    }
    if (cell->map > 1) {
        bytes[n++] = cell->map == 2 ? 0x38 : 0x3a;
    }
    bytes[n++] = cell->opcode;
    bytes[n++] = cell->modrm;
    if (insn_decode(bytes, sizeof(bytes), mode, &insn) != 0) {
        return false;
    }
    switch (insn.op) {
    case INSN_OP_COPY:
    case INSN_OP_LEA:
    case INSN_OP_BIT_MEM:
    case INSN_OP_PUSH:
    case INSN_OP_POP:
    case INSN_OP_JCC:
    case INSN_OP_CALL:
    case INSN_OP_RET:
    case INSN_OP_MOVS:
        return false;
    default:
        return true;
    }
}

static unsigned check_coverage(struct fuzz_gen *gen, const struct options *o)
{
    unsigned missing = 0;

    for (unsigned i = 0; i < fuzz_gen_cell_count(gen); i++) {
        const struct fuzz_cell *cell = fuzz_gen_cell(gen, i);

        if (cell->executed == 0 && !always_faults(cell, o->mode)) {
            missing++;
            if (missing <= MAX_REPORTS || o->is_verbose) {
                printf("never executed: %s map %u opcode %02x prefix %u modrm %02x (tried %u)\n",
                       cell->encoding != INSN_ENC_LEGACY ? "VEX" : "legacy", cell->map,
                       cell->opcode, cell->pp, cell->modrm, cell->tried);
            }
        }
    }
    return missing;
}

static int run_all(const struct options *o)
{
    struct fuzz_gen *gen = fuzz_gen_create(o->mode);
    struct fuzz_guest *guest = NULL;
    struct result result = {0};
    unsigned missing = 0;

    if (gen == NULL || fuzz_guest_create(o->is_reference, &guest) != 0 ||
        fuzz_native_create() != 0) {
        printf("insn_fuzz: cannot set up\n");
        return 2;
    }
    printf("seed %llu, %u instruction forms\n", (unsigned long long)o->seed,
           fuzz_gen_cell_count(gen));
    for (uint64_t i = o->start; i < o->start + o->count; i++) {
        run_case(o, gen, guest, i, &result);
        if (result.mismatches >= MAX_REPORTS) {
            printf("stopped: too many\n");
            break;
        }
        if (o->has_progress && result.ran % 500000 == 0) {
            printf("%llu\n", (unsigned long long)result.ran);
            (void)fflush(stdout);
        }
    }
    if (!o->has_blocks && o->count >= 16ull * fuzz_gen_cell_count(gen)) {
        missing = check_coverage(gen, o);
    }
    printf("%llu cases, %u differences, %u forms never executed; ended without fault %llu, #GP "
           "%llu, #PF %llu, #UD %llu, #XM %llu, #MF %llu, #DE %llu\n",
           (unsigned long long)result.ran, result.mismatches, missing,
           (unsigned long long)result.vectors[X86_VEC_BP],
           (unsigned long long)result.vectors[X86_VEC_GP],
           (unsigned long long)result.vectors[X86_VEC_PF],
           (unsigned long long)result.vectors[X86_VEC_UD],
           (unsigned long long)result.vectors[X86_VEC_XM],
           (unsigned long long)result.vectors[X86_VEC_MF],
           (unsigned long long)result.vectors[X86_VEC_DE]);
    fuzz_guest_destroy(guest);
    fuzz_gen_destroy(gen);
    return result.mismatches == 0 && missing == 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    static const struct option names[] = {
        {"seed", required_argument, NULL, 's'},
        {"start", required_argument, NULL, 'i'},
        {"count", required_argument, NULL, 'c'},
        {"engine", required_argument, NULL, 'e'},
        {"blocks", no_argument, NULL, 'b'},
        {"mode", required_argument, NULL, 'm'},
        {"verbose", no_argument, NULL, 'v'},
        {"progress", no_argument, NULL, 'p'},
        {NULL, 0, NULL, 0},
    };
    struct options o = {.seed = 1, .count = 200000, .is_reference = true, .mode = INSN_MODE_64};
    int c;

    while ((c = getopt_long(argc, argv, "", names, NULL)) != -1) {
        switch (c) {
        case 's':
            o.seed = strtoull(optarg, NULL, 0);
            break;
        case 'i':
            o.start = strtoull(optarg, NULL, 0);
            break;
        case 'c':
            o.count = strtoull(optarg, NULL, 0);
            break;
        case 'e':
            o.is_reference = strcmp(optarg, "soft") != 0;
            break;
        case 'm':
            o.mode = strcmp(optarg, "32") == 0 ? INSN_MODE_32 : INSN_MODE_64;
            break;
        case 'b':
            o.has_blocks = true;
            break;
        case 'v':
            o.is_verbose = true;
            break;
        case 'p':
            o.has_progress = true;
            break;
        default:
            return 2;
        }
    }
    return run_all(&o);
}
