#include "fuzz.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/cpuid.h"
#include "cpu/vcpu.h"
#include "engine/engine.h"
#include "mem/gmem.h"

/* Guest physical layout. */
#define GPA_PML4 0x1000u
#define GPA_PDPT_LOW 0x2000u
#define GPA_PD_DATA 0x3000u
#define GPA_PT_DATA 0x4000u
#define GPA_PT_CODE 0x5000u
#define GPA_PDPT_KERNEL 0x6000u
#define GPA_PD_KERNEL 0x7000u
#define GPA_PT_KERNEL 0x8000u
#define GPA_GDT 0x9000u
#define GPA_IDT 0xa000u
#define GPA_TSS 0xb000u
#define GPA_STACK 0xc000u
#define GPA_HANDLERS 0xd000u
#define GPA_CODE 0x100000u
#define GPA_DATA 0x200000u
#define GUEST_BYTES 0x400000u

/* The kernel's pages stand at KERNEL_BASE + GPA. */
#define KERNEL_BASE 0xffff900000000000ull
#define HANDLER_BYTES 16u
#define STACK_TOP (KERNEL_BASE + GPA_STACK + 0x1000u)

#define PTE_PRESENT 1ull
#define PTE_WRITE 2ull
#define PTE_USER 4ull
#define PTE_NX (1ull << 63)
#define PTE_TABLE (PTE_PRESENT | PTE_WRITE | PTE_USER)

#define SEL_KERNEL_CODE 0x10
#define SEL_USER_CODE32 0x23
#define SEL_USER_DATA 0x2b
#define SEL_USER_CODE 0x33
#define SEL_TSS 0x40

#define AR_CODE64 0xa0fbu /* present, DPL 3, L, G, accessed */
#define AR_CODE32 0xc0fbu
#define AR_DATA 0xc0f3u

#define BASE_CR0 \
    (X86_CR0_PE | X86_CR0_MP | X86_CR0_ET | X86_CR0_NE | X86_CR0_WP | X86_CR0_AM | X86_CR0_PG)
#define BASE_CR4                                                                              \
    (X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_FSGSBASE | X86_CR4_OSXSAVE | \
     X86_CR4_UMIP | X86_CR4_SMEP | X86_CR4_SMAP)

struct fuzz_guest {
    struct gmem *gmem;
    struct accel_vm *vm;
    struct accel_vcpu *vcpu;
    struct cpuid_table cpuid;
    struct vcpu_env env;
    struct vcpu_state base; /* what every case begins with */
    struct vcpu_state state;
};

static bool never_pending(void *opaque)
{
    (void)opaque;
    return false;
}

static int never_acknowledge(void *opaque)
{
    (void)opaque;
    return -1;
}

static const struct vcpu_intr_ops no_interrupts = {
    .pending = never_pending,
    .acknowledge = never_acknowledge,
};

static void must(int rc)
{
    if (rc != 0) {
        abort(); /* our own layout is wrong */
    }
}

static void put64(struct fuzz_guest *g, uint64_t address, uint64_t value)
{
    must(gmem_write(g->gmem, gpa(address), &value, sizeof(value)));
}

static void map_page(struct fuzz_guest *g, uint64_t table, uint64_t va, uint64_t page,
                     uint64_t bits)
{
    put64(g, table + ((va >> 12) & 511) * 8, page | bits | PTE_PRESENT);
}

static void build_tables(struct fuzz_guest *g)
{
    put64(g, GPA_PML4, GPA_PDPT_LOW | PTE_TABLE);
    put64(g, GPA_PML4 + ((KERNEL_BASE >> 39) & 511) * 8, GPA_PDPT_KERNEL | PTE_TABLE);
    put64(g, GPA_PDPT_LOW, GPA_PD_DATA | PTE_TABLE);
    put64(g, GPA_PD_DATA + (FUZZ_DATA_BASE >> 21) * 8, GPA_PT_DATA | PTE_TABLE);
    put64(g, GPA_PD_DATA + (FUZZ_CODE_BASE >> 21) * 8, GPA_PT_CODE | PTE_TABLE);
    put64(g, GPA_PDPT_KERNEL, GPA_PD_KERNEL | PTE_TABLE);
    put64(g, GPA_PD_KERNEL, GPA_PT_KERNEL | PTE_TABLE);
    for (uint64_t o = 0; o < FUZZ_CODE_BYTES; o += GMEM_PAGE_BYTES) {
        map_page(g, GPA_PT_CODE, FUZZ_CODE_BASE + o, GPA_CODE + o, PTE_USER);
    }
    for (uint64_t o = 0; o < FUZZ_DATA_BYTES; o += GMEM_PAGE_BYTES) {
        map_page(g, GPA_PT_DATA, FUZZ_DATA_BASE + o, GPA_DATA + o,
                 PTE_USER | PTE_NX | (o < FUZZ_DATA_RW_BYTES ? PTE_WRITE : 0));
    }
    for (uint64_t a = GPA_GDT; a <= GPA_HANDLERS; a += GMEM_PAGE_BYTES) {
        map_page(g, GPA_PT_KERNEL, KERNEL_BASE + a, a, PTE_WRITE);
    }
}

/* Handlers tell their vector by the port they write to (SDM 3A 6.14.1). */
static void build_handlers(struct fuzz_guest *g)
{
    for (unsigned vector = 0; vector < 32; vector++) {
        const uint8_t code[] = {0xe6, (uint8_t)vector, 0xf4};
        const uint64_t handler = KERNEL_BASE + GPA_HANDLERS + vector * HANDLER_BYTES;
        const uint64_t dpl = vector == X86_VEC_BP || vector == X86_VEC_OF ? 3 : 0;
        const uint64_t low = (handler & 0xffff) | (uint64_t)SEL_KERNEL_CODE << 16 |
                             0x8e00ull << 32 | dpl << 45 | ((handler >> 16) & 0xffff) << 48;

        must(gmem_write(g->gmem, gpa(GPA_HANDLERS + vector * HANDLER_BYTES), code, sizeof(code)));
        put64(g, GPA_IDT + vector * 16, low);
        put64(g, GPA_IDT + vector * 16 + 8, handler >> 32);
    }
}

static void build_gdt(struct fuzz_guest *g)
{
    put64(g, GPA_GDT + SEL_KERNEL_CODE, 0x00af9b000000ffffull);
    put64(g, GPA_GDT + (SEL_USER_CODE32 & ~7), 0x00cffb000000ffffull);
    put64(g, GPA_GDT + (SEL_USER_DATA & ~7), 0x00cff3000000ffffull);
    put64(g, GPA_GDT + (SEL_USER_CODE & ~7), 0x00affb000000ffffull);
    put64(g, GPA_TSS + 4, STACK_TOP);
    put64(g, GPA_TSS + 96, 0x0068000000000000ull); /* no I/O permission bitmap */
}

static struct x86_segment segment(uint16_t selector, uint32_t rights)
{
    return (struct x86_segment){
        .selector = selector, .access_rights = rights, .limit = 0xffffffffu};
}

static void build_base_state(struct fuzz_guest *g)
{
    struct vcpu_state *s = &g->base;

    vcpu_state_reset(s, true);
    s->cr0 = BASE_CR0;
    s->cr4 = BASE_CR4;
    s->cr3 = GPA_PML4;
    s->efer = X86_EFER_LME | X86_EFER_LMA | X86_EFER_NXE | X86_EFER_SCE;
    s->xcr0 = X86_XCR0_X87 | X86_XCR0_SSE | X86_XCR0_AVX;
    s->seg[X86_CS] = segment(SEL_USER_CODE, AR_CODE64);
    s->seg[X86_SS] = segment(SEL_USER_DATA, AR_DATA);
    for (unsigned i = 0; i < 4; i++) {
        static const uint8_t null[] = {X86_ES, X86_DS, X86_FS, X86_GS};

        s->seg[null[i]] = segment(0, AR_DATA);
    }
    s->seg[X86_TR] = (struct x86_segment){
        .base = KERNEL_BASE + GPA_TSS, .limit = 0x67, .access_rights = 0x8b, .selector = SEL_TSS};
    s->seg[X86_LDTR].access_rights = X86_AR_UNUSABLE;
    s->gdtr = (struct x86_table){.base = KERNEL_BASE + GPA_GDT, .limit = 0x7f};
    s->idtr = (struct x86_table){.base = KERNEL_BASE + GPA_IDT, .limit = 32 * 16 - 1};
}

int fuzz_guest_create(bool is_reference, struct fuzz_guest **ret_guest)
{
    struct fuzz_guest *g = aligned_alloc(64, (sizeof(*g) + 63) & ~(size_t)63);
    struct accel_vm_config config = {.vcpu_count = 1, .reference_only = is_reference};
    struct err err;
    int rc;

    if (g == NULL) {
        return -ENOMEM;
    }
    memset(g, 0, sizeof(*g));
    rc = gmem_create(GUEST_BYTES, &err, &g->gmem);
    if (rc == 0) {
        cpuid_table_init(&g->cpuid, 0, 1);
        g->env = (struct vcpu_env){.intr = &no_interrupts, .cpuid = &g->cpuid};
        config.gmem = g->gmem;
        build_tables(g);
        build_handlers(g);
        build_gdt(g);
        build_base_state(g);
        must(gmem_fill(g->gmem, gpa(GPA_CODE), FUZZ_INT3, FUZZ_CODE_BYTES));
        rc = engine_accel_ops.vm_create(&config, &err, &g->vm);
    }
    if (rc == 0) {
        rc = engine_accel_ops.vcpu_create(g->vm, 0, &g->env, &err, &g->vcpu);
    }
    if (rc != 0) {
        fuzz_guest_destroy(g);
        return rc;
    }
    *ret_guest = g;
    return 0;
}

void fuzz_guest_destroy(struct fuzz_guest *guest)
{
    if (guest == NULL) {
        return;
    }
    if (guest->vcpu != NULL) {
        engine_accel_ops.vcpu_destroy(guest->vcpu);
    }
    if (guest->vm != NULL) {
        engine_accel_ops.vm_destroy(guest->vm);
    }
    gmem_destroy(guest->gmem);
    free(guest);
}

static void load_case(struct fuzz_guest *g, const struct fuzz_case *c, uint64_t offset,
                      unsigned len)
{
    struct vcpu_state *s = &g->state;

    *s = g->base;
    memcpy(s->gpr, c->before.gpr, sizeof(s->gpr));
    s->rip = c->before.rip;
    s->rflags = c->before.rflags;
    s->seg[X86_FS].base = c->before.fs_base;
    s->seg[X86_GS].base = c->before.gs_base;
    if (c->insn.mode == INSN_MODE_32) {
        s->seg[X86_CS] = segment(SEL_USER_CODE32, AR_CODE32);
        s->seg[X86_DS] = segment(SEL_USER_DATA, AR_DATA);
        s->seg[X86_ES] = segment(SEL_USER_DATA, AR_DATA);
    }
    memset(s->xsave, 0, sizeof(s->xsave));
    memcpy(s->xsave, c->before.xsave, sizeof(c->before.xsave));
    must(gmem_write(g->gmem, gpa(GPA_CODE + offset), c->code, len));
    must(gmem_write(g->gmem, gpa(GPA_DATA), fuzz_pristine, FUZZ_DATA_BYTES));
    must(gmem_write(g->gmem, gpa(GPA_DATA + c->patch_offset), c->patch, c->patch_bytes));
    must(engine_accel_ops.set_state(g->vcpu, s));
}

/* What the exception's frame on the kernel stack says (SDM 3A figure 6-9). */
static void read_frame(struct fuzz_guest *g, uint64_t rsp, struct fuzz_outcome *o)
{
    uint64_t frame[6] = {0};
    const unsigned words = (unsigned)((STACK_TOP - rsp) / 8);

    if (words != 5 && words != 6) {
        o->vector = 0xff;
        return;
    }
    must(gmem_read(g->gmem, gpa(rsp - KERNEL_BASE), frame + (6 - words), words * 8));
    o->error = (uint32_t)frame[0];
    o->after.rip = frame[1];
    o->after.rflags = frame[3];
    o->after.gpr[X86_RSP] = frame[4];
}

int fuzz_guest_run(struct fuzz_guest *g, const struct fuzz_case *c,
                   struct fuzz_outcome *ret_outcome)
{
    struct fuzz_outcome *o = ret_outcome;
    const uint64_t offset = c->before.rip - FUZZ_CODE_BASE;
    const unsigned room = (unsigned)(FUZZ_CODE_BYTES - offset);
    const unsigned len = c->code_bytes < room ? c->code_bytes : room;
    struct vmexit exit = {.reason = VMEXIT_INTR};
    struct vcpu_state *s = &g->state;

    load_case(g, c, offset, len);
    do {
        must(engine_accel_ops.run(g->vcpu, &exit));
    } while (exit.reason == VMEXIT_INTR);
    if (exit.reason != VMEXIT_PIO) {
        return -(int)exit.reason;
    }
    must(engine_accel_ops.get_state(g->vcpu, s));
    memcpy(o->after.gpr, s->gpr, sizeof(s->gpr));
    o->vector = (uint8_t)exit.pio.port;
    o->cr2 = o->vector == X86_VEC_PF ? s->cr2 : 0;
    o->after.fs_base = s->seg[X86_FS].base;
    o->after.gs_base = s->seg[X86_GS].base;
    memcpy(o->after.xsave, s->xsave, sizeof(o->after.xsave));
    read_frame(g, s->gpr[X86_RSP], o);
    must(gmem_read(g->gmem, gpa(GPA_DATA), o->data, FUZZ_DATA_BYTES));
    must(gmem_fill(g->gmem, gpa(GPA_CODE + offset), FUZZ_INT3, len));
    return 0;
}
