#include "cpu/x86.h"

#include <string.h>

/* Byte offsets in the legacy region and header of an XSAVE image (SDM 1 13.4). */
#define XSAVE_FCW 0
#define XSAVE_FTW 4
#define XSAVE_MXCSR 24
#define XSAVE_BV 512

/* What EDX holds after reset: family, model and stepping. Any P6 family value does. */
#define RESET_EDX 0x600u

static struct x86_segment segment_make(uint16_t selector, uint64_t base, uint32_t access_rights)
{
    return (struct x86_segment){
        .base = base,
        .limit = 0xffff,
        .access_rights = access_rights,
        .selector = selector,
    };
}

/* The part of table 9-1 in which the columns "power-up" and "INIT" agree. */
static void state_restart(struct vcpu_state *state)
{
    memset(state->gpr, 0, sizeof(state->gpr));
    state->gpr[X86_RDX] = RESET_EDX;
    state->rip = 0xfff0;
    state->rflags = X86_FLAG_FIXED1;
    for (unsigned i = 0; i < X86_SEG_COUNT; i++) {
        state->seg[i] = segment_make(0, 0, X86_AR_P | X86_AR_S | 0x3);
    }
    state->seg[X86_CS] = segment_make(0xf000, 0xffff0000, X86_AR_P | X86_AR_S | 0xb);
    state->seg[X86_LDTR] = segment_make(0, 0, X86_AR_P | 0x2);
    state->seg[X86_TR] = segment_make(0, 0, X86_AR_P | 0xb);
    state->gdtr = (struct x86_table){.base = 0, .limit = 0xffff};
    state->idtr = (struct x86_table){.base = 0, .limit = 0xffff};
    state->cr2 = 0;
    state->cr3 = 0;
    state->cr4 = 0;
    state->cr8 = 0;
    state->efer = 0;
    memset(state->dr, 0, sizeof(state->dr));
    state->dr[6] = 0xffff0ff0;
    state->dr[7] = 0x400;
    state->tsc_deadline = 0;
    state->events = (struct x86_events){0};
}

void vcpu_state_reset(struct vcpu_state *state, bool bsp)
{
    memset(state, 0, sizeof(*state));
    state_restart(state);
    state->cr0 = X86_CR0_CD | X86_CR0_NW | X86_CR0_ET;
    state->xcr0 = X86_XCR0_X87;
    state->pat = 0x0007040600070406ull;
    /* Fast strings on (Linux drops ERMS without it); no BTS and no PEBS. */
    state->misc_enable = 0x1801;
    state->apic_base = X86_APIC_DEFAULT_BASE | X86_APIC_BASE_ENABLE;
    if (bsp) {
        state->apic_base |= X86_APIC_BASE_BSP;
    }
    state->mp_state = bsp ? X86_MP_RUNNABLE : X86_MP_UNINITIALIZED;

    /* FCW 0040H, FSW 0, FTW 5555H (every register a valid zero), MXCSR 1F80H. */
    state->xsave[XSAVE_FCW] = 0x40;
    state->xsave[XSAVE_FTW] = 0xff;
    state->xsave[XSAVE_MXCSR] = 0x80;
    state->xsave[XSAVE_MXCSR + 1] = 0x1f;
    state->xsave[XSAVE_BV] = X86_XCR0_X87 | X86_XCR0_SSE;
}

void vcpu_state_init_ipi(struct vcpu_state *state)
{
    const uint64_t kept_cr0 = state->cr0 & (X86_CR0_CD | X86_CR0_NW);

    state_restart(state);
    state->cr0 = kept_cr0 | X86_CR0_ET;
    state->mp_state =
        (state->apic_base & X86_APIC_BASE_BSP) != 0 ? X86_MP_RUNNABLE : X86_MP_WAIT_FOR_SIPI;
}

void vcpu_state_sipi(struct vcpu_state *state, uint8_t vector)
{
    state->seg[X86_CS] =
        segment_make((uint16_t)(vector << 8), (uint64_t)vector << 12, X86_AR_P | X86_AR_S | 0xb);
    state->rip = 0;
    state->mp_state = X86_MP_RUNNABLE;
}
