/* Registers as GDB numbers them, and the target description that says so. */
#include "machine/gdb_session.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* In the legacy XSAVE region (SDM 1 table 10-2) and its header. */
#define XSAVE_ST0 32
#define XSAVE_XMM0 160
#define XSAVE_BV 512

enum reg_flavour {
    REG_PLAIN,
    REG_SELECTOR, /* read only: a selector without its descriptor would lie */
    REG_X87,      /* valid when XSTATE_BV says so */
    REG_X87_TAG,  /* two bits per register for GDB, one in the image */
    REG_SSE,
    REG_MXCSR
};

struct reg {
    const char *name;
    const char *type;
    uint8_t bytes;       /* in packets */
    uint8_t state_bytes; /* in struct vcpu_state */
    enum reg_flavour flavour;
    size_t offset;
};

#define AT(member) offsetof(struct vcpu_state, member)
#define GPR(reg_name, index)                               \
    {                                                      \
        reg_name, "int64", 8, 8, REG_PLAIN, AT(gpr[index]) \
    }
#define SEG(reg_name, index)                                           \
    {                                                                  \
        reg_name, "int32", 4, 2, REG_SELECTOR, AT(seg[index].selector) \
    }
#define ST(index)                                                                     \
    {                                                                                 \
        "st" #index, "i387_ext", 10, 10, REG_X87, AT(xsave[XSAVE_ST0 + 16 * (index)]) \
    }
#define X87(reg_name, width, at)                          \
    {                                                     \
        reg_name, "int", 4, width, REG_X87, AT(xsave[at]) \
    }
#define XMM(index)                                                                     \
    {                                                                                  \
        "xmm" #index, "uint128", 16, 16, REG_SSE, AT(xsave[XSAVE_XMM0 + 16 * (index)]) \
    }
#define SYSTEM(reg_name, member)                       \
    {                                                  \
        reg_name, "int64", 8, 8, REG_PLAIN, AT(member) \
    }

static const struct reg regs[] = {
    /* org.gnu.gdb.i386.core wants these in this order. */
    GPR("rax", X86_RAX),
    GPR("rbx", X86_RBX),
    GPR("rcx", X86_RCX),
    GPR("rdx", X86_RDX),
    GPR("rsi", X86_RSI),
    GPR("rdi", X86_RDI),
    GPR("rbp", X86_RBP),
    GPR("rsp", X86_RSP),
    GPR("r8", X86_R8),
    GPR("r9", X86_R9),
    GPR("r10", X86_R10),
    GPR("r11", X86_R11),
    GPR("r12", X86_R12),
    GPR("r13", X86_R13),
    GPR("r14", X86_R14),
    GPR("r15", X86_R15),
    {"rip", "code_ptr", 8, 8, REG_PLAIN, AT(rip)},
    {"eflags", "int32", 4, 4, REG_PLAIN, AT(rflags)},
    SEG("cs", X86_CS),
    SEG("ss", X86_SS),
    SEG("ds", X86_DS),
    SEG("es", X86_ES),
    SEG("fs", X86_FS),
    SEG("gs", X86_GS),
    ST(0),
    ST(1),
    ST(2),
    ST(3),
    ST(4),
    ST(5),
    ST(6),
    ST(7),
    X87("fctrl", 2, 0),
    X87("fstat", 2, 2),
    {"ftag", "int", 4, 1, REG_X87_TAG, AT(xsave[4])},
    X87("fiseg", 2, 12),
    X87("fioff", 4, 8),
    X87("foseg", 2, 20),
    X87("fooff", 4, 16),
    X87("fop", 2, 6),
#define CORE_COUNT 40
    /* org.gnu.gdb.i386.sse */
    XMM(0),
    XMM(1),
    XMM(2),
    XMM(3),
    XMM(4),
    XMM(5),
    XMM(6),
    XMM(7),
    XMM(8),
    XMM(9),
    XMM(10),
    XMM(11),
    XMM(12),
    XMM(13),
    XMM(14),
    XMM(15),
    {"mxcsr", "int", 4, 4, REG_MXCSR, AT(xsave[24])},
#define SSE_END 57
    /* org.gnu.gdb.i386.segments */
    SYSTEM("fs_base", seg[X86_FS].base),
    SYSTEM("gs_base", seg[X86_GS].base),
#define SEGMENTS_END 59
    /* Ours. */
    SYSTEM("k_gs_base", kernel_gs_base),
    SYSTEM("cr0", cr0),
    SYSTEM("cr2", cr2),
    SYSTEM("cr3", cr3),
    SYSTEM("cr4", cr4),
    SYSTEM("cr8", cr8),
    SYSTEM("efer", efer),
    SYSTEM("gdtr_base", gdtr.base),
    SYSTEM("idtr_base", idtr.base),
};

struct feature {
    const char *name;
    unsigned first;
    unsigned end;
};

static const struct feature features[] = {
    {"org.gnu.gdb.i386.core", 0, CORE_COUNT},
    {"org.gnu.gdb.i386.sse", CORE_COUNT, SSE_END},
    {"org.gnu.gdb.i386.segments", SSE_END, SEGMENTS_END},
    {"org.corbel.system", SEGMENTS_END, ARRAY_LEN(regs)},
};

unsigned gdb_reg_count(void)
{
    return ARRAY_LEN(regs);
}

size_t gdb_reg_size(unsigned n)
{
    return n < ARRAY_LEN(regs) ? regs[n].bytes : 0;
}

static bool component_is_set(const struct vcpu_state *state, uint8_t bit)
{
    return (state->xsave[XSAVE_BV] & bit) != 0;
}

/* Empty is 3, anything else 0: GDB does not need to know zero from special. */
static uint16_t tag_expand(uint8_t abridged)
{
    uint16_t tag = 0;

    for (unsigned i = 0; i < 8; i++) {
        if ((abridged & 1u << i) == 0) {
            tag = (uint16_t)(tag | 3u << 2 * i);
        }
    }
    return tag;
}

void gdb_reg_get(const struct vcpu_state *state, unsigned n, uint8_t *ret_bytes)
{
    const struct reg *reg = &regs[n];
    const uint8_t *from = (const uint8_t *)state + reg->offset;

    memset(ret_bytes, 0, reg->bytes);
    switch (reg->flavour) {
    case REG_X87:
        if (component_is_set(state, X86_XCR0_X87)) {
            memcpy(ret_bytes, from, reg->state_bytes);
        } else if (strcmp(reg->name, "fctrl") == 0) {
            ret_bytes[0] = 0x7f; /* FNINIT's control word is 37FH */
            ret_bytes[1] = 0x03;
        }
        break;
    case REG_X87_TAG: {
        const uint16_t tag = tag_expand(component_is_set(state, X86_XCR0_X87) ? *from : 0);
        memcpy(ret_bytes, &tag, sizeof(tag));
        break;
    }
    case REG_SSE:
        if (component_is_set(state, X86_XCR0_SSE)) {
            memcpy(ret_bytes, from, reg->state_bytes);
        }
        break;
    case REG_PLAIN:
    case REG_SELECTOR:
    case REG_MXCSR:
        memcpy(ret_bytes, from, reg->state_bytes);
        break;
    }
}

/* Registers that the component's clear bit stood for become real before one is written. */
static void component_begin(struct vcpu_state *state, uint8_t bit)
{
    if (component_is_set(state, bit)) {
        return;
    }
    if (bit == X86_XCR0_X87) {
        memset(state->xsave, 0, 24);
        memset(&state->xsave[XSAVE_ST0], 0, XSAVE_XMM0 - XSAVE_ST0);
        state->xsave[0] = 0x7f;
        state->xsave[1] = 0x03;
    } else {
        memset(&state->xsave[XSAVE_XMM0], 0, 256);
    }
    state->xsave[XSAVE_BV] |= bit;
}

void gdb_reg_set(struct vcpu_state *state, unsigned n, const uint8_t *bytes)
{
    const struct reg *reg = &regs[n];
    uint8_t *to = (uint8_t *)state + reg->offset;
    uint16_t tag;

    switch (reg->flavour) {
    case REG_SELECTOR:
        return;
    case REG_X87_TAG:
        component_begin(state, X86_XCR0_X87);
        memcpy(&tag, bytes, sizeof(tag));
        *to = 0;
        for (unsigned i = 0; i < 8; i++) {
            if ((tag >> 2 * i & 3) != 3) {
                *to = (uint8_t)(*to | 1u << i);
            }
        }
        return;
    case REG_X87:
        component_begin(state, X86_XCR0_X87);
        break;
    case REG_SSE:
        component_begin(state, X86_XCR0_SSE);
        break;
    case REG_PLAIN:
    case REG_MXCSR:
        break;
    }
    memcpy(to, bytes, reg->state_bytes);
}

struct text {
    char *out;
    size_t size;
    size_t len;
};

static void text_add(struct text *text, const char *fmt, ...) PRINTF_LIKE(2, 3);

static void text_add(struct text *text, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    const int n = vsnprintf(text->out + text->len, text->size - text->len, fmt, args);
    va_end(args);
    if (n > 0 && (size_t)n < text->size - text->len) {
        text->len += (size_t)n;
    }
}

size_t gdb_target_xml(char *out, size_t size)
{
    struct text text = {.out = out, .size = size};

    text_add(&text, "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\">"
                    "<target><architecture>i386:x86-64</architecture>");
    for (size_t f = 0; f < ARRAY_LEN(features); f++) {
        text_add(&text, "<feature name=\"%s\">", features[f].name);
        for (unsigned i = features[f].first; i < features[f].end; i++) {
            text_add(&text, "<reg name=\"%s\" bitsize=\"%u\" type=\"%s\" regnum=\"%u\"/>",
                     regs[i].name, 8u * regs[i].bytes, regs[i].type, i);
        }
        text_add(&text, "</feature>");
    }
    text_add(&text, "</target>");
    return text.len;
}
