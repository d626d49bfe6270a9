/*
 * The architectural state of one x86-64 CPU, each register once, and the
 * constants of the architecture that more than one folder needs.
 *
 * "SDM" is the Intel 64 and IA-32 Architectures Software Developer's Manual.
 * Plain data, no functions; who holds a struct vcpu_state owns it.
 */
#ifndef CORBEL_CPU_X86_H
#define CORBEL_CPU_X86_H

#include "base/compiler.h"

#include <stdbool.h>
#include <stdint.h>

/* Register numbers as instructions encode them (SDM 2A 2.1.5). */
enum x86_gpr {
    X86_RAX,
    X86_RCX,
    X86_RDX,
    X86_RBX,
    X86_RSP,
    X86_RBP,
    X86_RSI,
    X86_RDI,
    X86_R8,
    X86_R9,
    X86_R10,
    X86_R11,
    X86_R12,
    X86_R13,
    X86_R14,
    X86_R15,
    X86_GPR_COUNT
};

/* Segment registers as instructions encode them, then the two system ones. */
enum x86_seg { X86_ES, X86_CS, X86_SS, X86_DS, X86_FS, X86_GS, X86_LDTR, X86_TR, X86_SEG_COUNT };

/* RFLAGS (SDM 1 3.4.3). */
#define X86_FLAG_CF 0x00000001u
#define X86_FLAG_FIXED1 0x00000002u
#define X86_FLAG_PF 0x00000004u
#define X86_FLAG_AF 0x00000010u
#define X86_FLAG_ZF 0x00000040u
#define X86_FLAG_SF 0x00000080u
#define X86_FLAG_TF 0x00000100u
#define X86_FLAG_IF 0x00000200u
#define X86_FLAG_DF 0x00000400u
#define X86_FLAG_OF 0x00000800u
#define X86_FLAG_IOPL 0x00003000u
#define X86_FLAG_NT 0x00004000u
#define X86_FLAG_RF 0x00010000u
#define X86_FLAG_VM 0x00020000u
#define X86_FLAG_AC 0x00040000u
#define X86_FLAG_VIF 0x00080000u
#define X86_FLAG_VIP 0x00100000u
#define X86_FLAG_ID 0x00200000u
#define X86_FLAGS_ARITH \
    (X86_FLAG_CF | X86_FLAG_PF | X86_FLAG_AF | X86_FLAG_ZF | X86_FLAG_SF | X86_FLAG_OF)

/* Control registers (SDM 3A 2.5). */
#define X86_CR0_PE 0x00000001u
#define X86_CR0_MP 0x00000002u
#define X86_CR0_EM 0x00000004u
#define X86_CR0_TS 0x00000008u
#define X86_CR0_ET 0x00000010u
#define X86_CR0_NE 0x00000020u
#define X86_CR0_WP 0x00010000u
#define X86_CR0_AM 0x00040000u
#define X86_CR0_NW 0x20000000u
#define X86_CR0_CD 0x40000000u
#define X86_CR0_PG 0x80000000u
#define X86_CR4_VME 0x00000001u
#define X86_CR4_PVI 0x00000002u
#define X86_CR4_TSD 0x00000004u
#define X86_CR4_DE 0x00000008u
#define X86_CR4_PSE 0x00000010u
#define X86_CR4_PAE 0x00000020u
#define X86_CR4_MCE 0x00000040u
#define X86_CR4_PGE 0x00000080u
#define X86_CR4_PCE 0x00000100u
#define X86_CR4_OSFXSR 0x00000200u
#define X86_CR4_OSXMMEXCPT 0x00000400u
#define X86_CR4_UMIP 0x00000800u
#define X86_CR4_LA57 0x00001000u
#define X86_CR4_VMXE 0x00002000u
#define X86_CR4_FSGSBASE 0x00010000u
#define X86_CR4_PCIDE 0x00020000u
#define X86_CR4_OSXSAVE 0x00040000u
#define X86_CR4_SMEP 0x00100000u
#define X86_CR4_SMAP 0x00200000u
#define X86_CR4_PKE 0x00400000u

/* EFER (SDM 3A 2.2.1). */
#define X86_EFER_SCE 0x001u
#define X86_EFER_LME 0x100u
#define X86_EFER_LMA 0x400u
#define X86_EFER_NXE 0x800u

/* Model-specific registers (SDM 4). */
#define X86_MSR_TSC 0x10u
#define X86_MSR_PLATFORM_ID 0x17u
#define X86_MSR_APIC_BASE 0x1bu
#define X86_MSR_FEATURE_CONTROL 0x3au
#define X86_MSR_TSC_ADJUST 0x3bu
#define X86_MSR_SPEC_CTRL 0x48u
#define X86_MSR_PRED_CMD 0x49u
#define X86_MSR_BIOS_SIGN_ID 0x8bu
#define X86_MSR_MTRRCAP 0xfeu
#define X86_MSR_ARCH_CAPABILITIES 0x10au
#define X86_MSR_SYSENTER_CS 0x174u
#define X86_MSR_SYSENTER_ESP 0x175u
#define X86_MSR_SYSENTER_EIP 0x176u
#define X86_MSR_MCG_CAP 0x179u
#define X86_MSR_MCG_STATUS 0x17au
#define X86_MSR_MISC_ENABLE 0x1a0u
#define X86_MSR_MTRR_PHYSBASE0 0x200u
#define X86_MSR_MTRR_FIX64K 0x250u
#define X86_MSR_PAT 0x277u
#define X86_MSR_MTRR_DEF_TYPE 0x2ffu
#define X86_MSR_TSC_DEADLINE 0x6e0u
#define X86_MSR_X2APIC_FIRST 0x800u
#define X86_MSR_X2APIC_LAST 0x8ffu
#define X86_MSR_XSS 0xda0u
#define X86_MSR_EFER 0xc0000080u
#define X86_MSR_STAR 0xc0000081u
#define X86_MSR_LSTAR 0xc0000082u
#define X86_MSR_CSTAR 0xc0000083u
#define X86_MSR_SFMASK 0xc0000084u
#define X86_MSR_FS_BASE 0xc0000100u
#define X86_MSR_GS_BASE 0xc0000101u
#define X86_MSR_KERNEL_GS_BASE 0xc0000102u
#define X86_MSR_TSC_AUX 0xc0000103u

#define X86_APIC_BASE_BSP 0x100ull
#define X86_APIC_BASE_X2APIC 0x400ull
#define X86_APIC_BASE_ENABLE 0x800ull
#define X86_APIC_DEFAULT_BASE 0xfee00000ull

/* Exception vectors (SDM 3A 6.3.1). */
enum x86_vector {
    X86_VEC_DE = 0,
    X86_VEC_DB = 1,
    X86_VEC_NMI = 2,
    X86_VEC_BP = 3,
    X86_VEC_OF = 4,
    X86_VEC_BR = 5,
    X86_VEC_UD = 6,
    X86_VEC_NM = 7,
    X86_VEC_DF = 8,
    X86_VEC_TS = 10,
    X86_VEC_NP = 11,
    X86_VEC_SS = 12,
    X86_VEC_GP = 13,
    X86_VEC_PF = 14,
    X86_VEC_MF = 16,
    X86_VEC_AC = 17,
    X86_VEC_MC = 18,
    X86_VEC_XM = 19
};

/* Page-fault error code (SDM 3A 4.7). */
#define X86_PF_PRESENT 0x01u
#define X86_PF_WRITE 0x02u
#define X86_PF_USER 0x04u
#define X86_PF_RSVD 0x08u
#define X86_PF_FETCH 0x10u

/* XCR0 bits (SDM 1 13.1). */
#define X86_XCR0_X87 0x1u
#define X86_XCR0_SSE 0x2u
#define X86_XCR0_AVX 0x4u

/*
 * Access rights of a segment in the layout of SDM 3C 25.4.1, table 25-2:
 * bits 3:0 type, 4 S, 6:5 DPL, 7 P, 12 AVL, 13 L, 14 D/B, 15 G, 16 unusable.
 */
#define X86_AR_TYPE 0x0000fu
#define X86_AR_S 0x00010u
#define X86_AR_DPL_SHIFT 5
#define X86_AR_P 0x00080u
#define X86_AR_AVL 0x01000u
#define X86_AR_L 0x02000u
#define X86_AR_DB 0x04000u
#define X86_AR_G 0x08000u
#define X86_AR_UNUSABLE 0x10000u

struct x86_segment {
    uint64_t base;
    uint32_t limit; /* in bytes, already scaled by G */
    uint32_t access_rights;
    uint16_t selector;
    uint16_t pad[3];
};

struct x86_table {
    uint64_t base;
    uint16_t limit;
    uint16_t pad[3];
};

enum x86_mp_state {
    X86_MP_RUNNABLE,
    X86_MP_HALTED,        /* HLT; an interrupt or NMI wakes it */
    X86_MP_WAIT_FOR_SIPI, /* an AP after INIT */
    X86_MP_UNINITIALIZED  /* an AP at power-on: waits for INIT and SIPI */
};

/* What is held back or waits at this instruction boundary (SDM 3A 6.7, 6.8.3). */
struct x86_events {
    bool exception_pending; /* to be delivered before the next instruction */
    bool exception_has_error;
    uint8_t exception_vector;
    uint32_t exception_error;
    bool interrupt_pending; /* an acknowledged external interrupt, not yet delivered */
    uint8_t interrupt_vector;
    bool nmi_pending;
    bool nmi_blocked;   /* until IRET */
    bool sti_shadow;    /* after STI: interrupts held for one instruction */
    bool mov_ss_shadow; /* after MOV SS / POP SS */
    bool smi_blocked;   /* kept for state exchange; there is no SMM here */
};

#define X86_XSAVE_BYTES 4096u
#define X86_MTRR_VARIABLE 8
#define X86_MTRR_FIXED 11

struct vcpu_state {
    uint64_t gpr[X86_GPR_COUNT];
    uint64_t rip;
    uint64_t rflags;
    struct x86_segment seg[X86_SEG_COUNT]; /* fs and gs bases live here */
    struct x86_table gdtr;
    struct x86_table idtr;
    uint64_t cr0;
    uint64_t cr2;
    uint64_t cr3;
    uint64_t cr4;
    uint64_t cr8; /* TPR >> 4; the local APIC's copy is derived from it */
    uint64_t efer;
    uint64_t xcr0;
    uint64_t dr[8]; /* 4 and 5 unused */
    uint64_t star;
    uint64_t lstar;
    uint64_t cstar;
    uint64_t sfmask;
    uint64_t kernel_gs_base;
    uint64_t sysenter_cs;
    uint64_t sysenter_esp;
    uint64_t sysenter_eip;
    uint64_t tsc_offset; /* guest TSC = host TSC + tsc_offset */
    uint64_t tsc_aux;
    uint64_t tsc_adjust;
    uint64_t tsc_deadline;
    uint64_t pat;
    uint64_t misc_enable;
    uint64_t spec_ctrl;
    uint64_t apic_base;
    uint64_t mtrr_def_type;
    uint64_t mtrr_fixed[X86_MTRR_FIXED];
    uint64_t mtrr_base[X86_MTRR_VARIABLE];
    uint64_t mtrr_mask[X86_MTRR_VARIABLE];
    uint64_t kvm_system_time; /* MSR 0x4b564d01, kvmclock */
    uint64_t kvm_wall_clock;  /* MSR 0x4b564d00 */
    enum x86_mp_state mp_state;
    struct x86_events events;
    /* Standard (not compacted) XSAVE image: legacy region, header, YMM_Hi128 at 576. */
    uint8_t xsave[X86_XSAVE_BYTES] ALIGNED(64);
};

/* Power-on / INIT state (SDM 3A 9.1.1, table 9-1). bsp starts runnable, others wait. */
void vcpu_state_reset(struct vcpu_state *state, bool bsp);

/* INIT keeps the FPU, MSRs and caches (table 9-1, column INIT). */
void vcpu_state_init_ipi(struct vcpu_state *state);

/* A start-up IPI on a CPU that waits for one: real mode at vector << 12 (SDM 3A 8.4.3). */
void vcpu_state_sipi(struct vcpu_state *state, uint8_t vector);

/* Current privilege level: DPL of SS (SDM 3A 5.5). */
static inline unsigned vcpu_state_cpl(const struct vcpu_state *state)
{
    return (state->seg[X86_SS].access_rights >> X86_AR_DPL_SHIFT) & 3u;
}

#endif
