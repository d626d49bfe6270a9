/*
 * CPUID policy: the leaves a guest sees, made once from the host's and a list
 * of what we can keep, so that both accelerators answer alike.
 *
 * Hidden at first: AVX-512, AMX, VMX, TSX, CET, PKU, LA57, UINTR, XSAVES, MPX,
 * PT, SGX, HLE, RDPMC-related, MONITOR/MWAIT. Shown: x87 to SSE4.2, AVX, AVX2,
 * FMA, F16C, BMI1/2, ADX, MOVBE, POPCNT, LZCNT, AES, PCLMUL, SHA, RDRAND, RDSEED,
 * XSAVE(OPT,C), FSGSBASE, SMEP, SMAP, UMIP, PCID, INVPCID, ERMS, x2APIC, TSC-deadline,
 * invariant TSC with frequency in leaf 0x15, hypervisor leaves (KVM's signature, so that
 * Linux uses x2APIC; no kvmclock, the TSC is better). What user-level instructions
 * need is shown only where the host CPU has it; what we emulate is always shown.
 * Pure data after cpuid_table_init(); any thread.
 */
#ifndef CORBEL_CPU_CPUID_H
#define CORBEL_CPU_CPUID_H

#include <stdbool.h>
#include <stdint.h>

#define CPUID_MAX_ENTRIES 96

/*
 * The crystal of leaf 0x15. Linux takes it for the frequency of the local APIC
 * timer before its divider, so every local APIC here counts at this rate.
 */
#define CPUID_CRYSTAL_HZ 1000000000u

/*
 * IA32_ARCH_CAPABILITIES (SDM 4 table 2-2) where the accelerator decides alone:
 * RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO,
 * SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO. Guest kernels
 * then leave out page-table isolation, retpolines and buffer clearing: where translated
 * code runs they would cost time and protect nothing.
 */
#define CPUID_ARCH_CAPABILITIES 0x400000000d10e17bull

struct cpuid_entry {
    uint32_t leaf;
    uint32_t subleaf;
    bool subleaf_significant;
    uint32_t eax, ebx, ecx, edx;
};

struct cpuid_table {
    unsigned count;
    struct cpuid_entry entries[CPUID_MAX_ENTRIES];
};

/* vcpu_index gives the APIC id and topology; vcpu_count the package size. */
void cpuid_table_init(struct cpuid_table *table, unsigned vcpu_index, unsigned vcpu_count);

/* Answers CPUID as hardware does (SDM 2A CPUID): beyond the highest leaf, the
 * highest basic leaf's data. cr4 and xcr0 feed OSXSAVE and leaf 0xd's size. */
void cpuid_query(const struct cpuid_table *table, uint32_t leaf, uint32_t subleaf, uint64_t cr4,
                 uint64_t xcr0, uint32_t ret_regs[4]);

/* True when the table promises the feature bit (register 0 eax .. 3 edx). */
bool cpuid_has(const struct cpuid_table *table, uint32_t leaf, uint32_t subleaf, unsigned reg,
               unsigned bit);

/* TSC ticks per second, as guests are told: measured or known from the host, or what was set. */
uint64_t cpuid_tsc_hz(void);
/* Known already, by another process, or not to be the truth. Before there are guests. */
void cpuid_set_tsc_hz(uint64_t hz);

#endif
