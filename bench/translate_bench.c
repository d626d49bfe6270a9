/*
 * The translator alone: how long it takes for an instruction of a program that
 * nobody runs. Everything executable in an ELF file is translated in user
 * mode, one unit behind the other, with the default code cache.
 *
 * usage: translate-bench FILE
 *
 * Prints nanoseconds for each instruction decoded, and for each translated;
 * instructions in a unit; bytes of code for each instruction.
 */
#include "engine/engine.h"
#include "engine/translate.h"
#include "engine/translate_int.h"

#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define MEMORY (64u << 20)
#define TABLES 0x1000u
#define CODE 0x200000u

static _Noreturn void fail(const char *what)
{
    (void)fprintf(stderr, "translate-bench: %s\n", what);
    exit(1);
}

static void put64(struct gmem *gmem, uint64_t at, uint64_t value)
{
    if (gmem_write(gmem, gpa(at), &value, sizeof(value)) != 0) {
        fail("cannot write guest memory");
    }
}

/* The largest executable segment of the file, as far as it fits. */
static uint8_t *read_code(const char *name, uint64_t *ret_bytes)
{
    FILE *file = fopen(name, "rb");
    Elf64_Ehdr head;
    Elf64_Phdr best = {0};
    uint8_t *code;

    if (file == NULL || fread(&head, sizeof(head), 1, file) != 1 ||
        memcmp(head.e_ident, ELFMAG, SELFMAG) != 0) {
        fail("cannot read an ELF file of that name");
    }
    for (unsigned i = 0; i < head.e_phnum; i++) {
        Elf64_Phdr segment;

        if (fseek(file, (long)(head.e_phoff + i * sizeof(segment)), SEEK_SET) != 0 ||
            fread(&segment, sizeof(segment), 1, file) != 1) {
            fail("cannot read the program headers");
        }
        if ((segment.p_flags & PF_X) != 0 && segment.p_filesz > best.p_filesz) {
            best = segment;
        }
    }
    if (best.p_filesz > MEMORY / 2) {
        best.p_filesz = MEMORY / 2;
    }
    code = malloc(best.p_filesz);
    if (code == NULL || fseek(file, (long)best.p_offset, SEEK_SET) != 0 ||
        fread(code, best.p_filesz, 1, file) != 1) {
        fail("cannot read the code");
    }
    (void)fclose(file);
    *ret_bytes = best.p_filesz;
    return code;
}

/* 64-bit user mode, everything mapped one to one. */
static void init_state(struct gmem *gmem, struct vcpu_state *st)
{
    put64(gmem, TABLES, TABLES + 0x1007);
    put64(gmem, TABLES + 0x1000, TABLES + 0x2007);
    for (uint64_t i = 0; i < MEMORY >> 21; i++) {
        put64(gmem, TABLES + 0x2000 + i * 8, i << 21 | 0x87);
    }
    vcpu_state_reset(st, true);
    st->cr0 = X86_CR0_PE | X86_CR0_PG | X86_CR0_NE | X86_CR0_ET | X86_CR0_WP | X86_CR0_MP;
    st->cr4 = X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_OSXSAVE;
    st->xcr0 = 7;
    st->efer = X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE;
    st->cr3 = TABLES;
    for (unsigned seg = X86_ES; seg <= X86_GS; seg++) {
        st->seg[seg] =
            (struct x86_segment){.selector = 0x23, .limit = UINT32_MAX, .access_rights = 0xc0f3};
    }
    st->seg[X86_CS] =
        (struct x86_segment){.selector = 0x1b, .limit = UINT32_MAX, .access_rights = 0xa0fb};
}

static double now_ns(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static double decode_all(const uint8_t *code, uint64_t bytes)
{
    double begin = now_ns();
    uint64_t count = 0;

    for (uint64_t at = 0; at + INSN_MAX_BYTES <= bytes; count++) {
        struct insn insn;

        at += insn_decode(code + at, INSN_MAX_BYTES, INSN_MODE_64, &insn) == 0 ? insn.len : 1;
    }
    return (now_ns() - begin) / (double)count;
}

/* How far the trace that was built last goes without a jump. */
static unsigned straight_bytes(const struct trace *trace)
{
    unsigned bytes = 0;

    for (unsigned i = 0; i < trace->count; i++) {
        bytes += trace->insns[i].insn.len;
        if (trace->insns[i].role == TRACE_FOLLOW) {
            break;
        }
    }
    return bytes;
}

static void translate_all(struct engine_vcpu *v, uint64_t bytes)
{
    const struct translator *t = v->vm->translator;
    double begin = now_ns();
    double ns;

    for (v->st.rip = CODE; v->st.rip < CODE + bytes;) {
        if (translate_unit_length(v) == 0) {
            fail("an instruction was not translated");
        }
        v->st.rip += straight_bytes(t->trace);
    }
    ns = now_ns() - begin;
    printf("translate_ns %.1f\n", ns / (double)t->stat_insns);
    printf("unit_instructions %.2f\n", (double)t->stat_insns / (double)t->stat_units);
    printf("code_bytes %.2f\n", (double)t->stat_code_bytes / (double)t->stat_insns);
}

int main(int argc, char **argv)
{
    static struct cpuid_table cpuid;
    static struct vcpu_state state;
    struct vcpu_env env = {.cpuid = &cpuid};
    struct accel_vm_config config = {.vcpu_count = 1, .irqchip = VM_IRQCHIP_USER};
    struct err err = {0};
    struct accel_vcpu *vcpu;
    struct accel_vm *vm;
    uint64_t bytes;

    if (argc != 2) {
        fail("usage: translate-bench FILE");
    }
    uint8_t *code = read_code(argv[1], &bytes);

    cpuid_table_init(&cpuid, 0, 1);
    if (gmem_create(MEMORY, &err, &config.gmem) != 0 ||
        gmem_write(config.gmem, gpa(CODE), code, bytes) != 0 ||
        engine_accel_ops.vm_create(&config, &err, &vm) != 0 ||
        engine_accel_ops.vcpu_create(vm, 0, &env, &err, &vcpu) != 0) {
        fail("cannot create a machine");
    }
    init_state(config.gmem, &state);
    if (engine_accel_ops.set_state(vcpu, &state) != 0) {
        fail("the state was refused");
    }
    printf("decode_ns %.1f\n", decode_all(code, bytes));
    translate_all((struct engine_vcpu *)vcpu, bytes);
    engine_accel_ops.vcpu_destroy(vcpu);
    engine_accel_ops.vm_destroy(vm);
    gmem_destroy(config.gmem);
    free(code);
    return 0;
}
