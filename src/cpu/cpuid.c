#include "cpu/cpuid.h"

#include <cpuid.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "base/compiler.h"
#include "cpu/x86.h"

#define BIT(n) (1u << (n))

enum { EAX, EBX, ECX, EDX };

#define LEAF_MAX_BASIC 0x16u
#define LEAF_MAX_HYPERVISOR 0x40000010u
#define LEAF_MAX_EXTENDED 0x80000008u

/* Leaf 1 EDX: FPU DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFLUSH MMX
 * FXSR SSE SSE2: all of them in every x86-64 CPU. */
#define LEAF1_EDX_ALWAYS 0x078bfbfdu
#define LEAF1_EDX_HTT BIT(28)
/* Leaf 1 EAX: family with its extension; family 6, model 0xff. */
#define SIGNATURE_FAMILY 0x0ff00f00u
#define SIGNATURE_UNNAMED 0x000f06f0u
#define VENDOR_EBX_INTEL 0x756e6547u /* "Genu" */
/* Leaf 1 ECX: SSE3 PCLMULQDQ SSSE3 FMA SSE4.1 SSE4.2 MOVBE POPCNT AES AVX F16C RDRAND, from the
 * host; CMPXCHG16B, PCID, x2APIC, TSC-deadline and the hypervisor bit are ours. */
#define LEAF1_ECX_HOST                                                                      \
    (BIT(0) | BIT(1) | BIT(9) | BIT(12) | BIT(19) | BIT(20) | BIT(22) | BIT(23) | BIT(25) | \
     BIT(26) | BIT(28) | BIT(29) | BIT(30))
#define LEAF1_ECX_ALWAYS (BIT(13) | BIT(17) | BIT(21) | BIT(24) | BIT(31))
#define LEAF1_ECX_XSAVE BIT(26)
#define LEAF1_ECX_OSXSAVE BIT(27)
/* What falls with XSAVE: FMA, AVX, F16C. */
#define LEAF1_ECX_NEEDS_AVX (BIT(12) | BIT(28) | BIT(29))
/* Leaf 7 EBX: BMI1, AVX2, FDP_EXCPTN_ONLY, BMI2, ERMS, ZERO_FCS_FDS, RDSEED, ADX, CLFLUSHOPT, CLWB, SHA. */
#define LEAF7_EBX_HOST                                                                    \
    (BIT(3) | BIT(5) | BIT(6) | BIT(8) | BIT(9) | BIT(13) | BIT(18) | BIT(19) | BIT(23) | \
     BIT(24) | BIT(29))
/* FSGSBASE, TSC_ADJUST, SMEP, INVPCID, SMAP. */
#define LEAF7_EBX_ALWAYS (BIT(0) | BIT(1) | BIT(7) | BIT(10) | BIT(20))
#define LEAF7_EBX_NEEDS_AVX BIT(5)
#define LEAF7_EBX_AVX512F BIT(16)
#define LEAF7_ECX_GFNI BIT(8)
#define LEAF7_ECX_ALWAYS BIT(2)              /* UMIP */
#define LEAF7_EDX_ALWAYS (BIT(26) | BIT(29)) /* IBRS and IBPB, ARCH_CAPABILITIES */
/* Leaf 0xd.1 EAX: XSAVEOPT, XSAVEC. */
#define LEAFD1_EAX_HOST (BIT(0) | BIT(1))
/* Leaf 80000001: LAHF, LZCNT and PREFETCHW from the host; SYSCALL, NX, 1 GiB pages, RDTSCP, LM. */
#define LEAF81_ECX_HOST (BIT(0) | BIT(5) | BIT(8))
#define LEAF81_EDX_ALWAYS (BIT(11) | BIT(20) | BIT(26) | BIT(27) | BIT(29))
#define LEAF87_EDX_INVARIANT_TSC BIT(8)

#define KVM_FEATURE_NOP_IO_DELAY BIT(1)
#define KVM_FEATURE_MSI_EXT_DEST_ID BIT(15)

#define XSAVE_LEGACY_BYTES 576u
#define XSAVE_AVX_BYTES 256u
/* Components 3 to 7: MPX and AVX-512. */
#define XSAVE_FIRST_HIDDEN 3u
#define XSAVE_LAST_HIDDEN 7u

static void host_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t ret_regs[4])
{
    const uint32_t highest = __get_cpuid_max(leaf & 0x80000000u, NULL);

    memset(ret_regs, 0, 4 * sizeof(*ret_regs));
    if (leaf <= highest) {
        __cpuid_count(leaf, subleaf, ret_regs[EAX], ret_regs[EBX], ret_regs[ECX], ret_regs[EDX]);
    }
}

/* XGETBV; the builtin wants -mxsave. */
static uint32_t host_xcr0(void)
{
    uint32_t low;
    uint32_t high;

    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static void table_add(struct cpuid_table *table, uint32_t leaf, int subleaf, const uint32_t regs[4])
{
    if (table->count == CPUID_MAX_ENTRIES) {
        return;
    }
    table->entries[table->count++] = (struct cpuid_entry){
        .leaf = leaf,
        .subleaf = subleaf < 0 ? 0 : (uint32_t)subleaf,
        .subleaf_significant = subleaf >= 0,
        .eax = regs[EAX],
        .ebx = regs[EBX],
        .ecx = regs[ECX],
        .edx = regs[EDX],
    };
}

/* The smallest n with 2^n >= count. */
static unsigned log2_up(unsigned count)
{
    unsigned bits = 0;

    while ((1u << bits) < count && bits < 31) {
        bits++;
    }
    return bits;
}

/*
 * Programs choose code by the CPU's name, too (GCC's target_clones("arch=...") by family and model
 * alone), and would fall over instructions that the name promises and the flags deny. So an Intel
 * CPU with AVX-512 or GFNI, which each newer one has, becomes one of its family that nobody knows.
 */
static uint32_t signature_for(uint32_t host)
{
    const bool is_family_6 = (host & SIGNATURE_FAMILY) == 0x600;
    uint32_t vendor[4];
    uint32_t features[4];

    host_cpuid(0, 0, vendor);
    host_cpuid(7, 0, features);
    if (vendor[EBX] != VENDOR_EBX_INTEL || !is_family_6 ||
        ((features[EBX] & LEAF7_EBX_AVX512F) == 0 && (features[ECX] & LEAF7_ECX_GFNI) == 0)) {
        return host;
    }
    return SIGNATURE_UNNAMED;
}

static void add_signature(struct cpuid_table *table, unsigned vcpu_index, unsigned vcpu_count)
{
    const unsigned rounded = 1u << log2_up(vcpu_count);
    uint32_t regs[4];

    host_cpuid(1, 0, regs);
    regs[EAX] = signature_for(regs[EAX]);
    regs[EBX] = (regs[EBX] & 0x0000ffffu) | (rounded > 255 ? 255 : rounded) << 16 |
                (vcpu_index & 0xff) << 24;
    regs[EDX] = LEAF1_EDX_ALWAYS | (vcpu_count > 1 ? LEAF1_EDX_HTT : 0);
    regs[ECX] = (regs[ECX] & LEAF1_ECX_HOST) | LEAF1_ECX_ALWAYS;
    if ((regs[ECX] & LEAF1_ECX_XSAVE) == 0) {
        regs[ECX] &= ~LEAF1_ECX_NEEDS_AVX;
    }
    table_add(table, 1, -1, regs);
}

/* Deterministic cache parameters: the host's caches, shared as our topology says. */
static void add_caches(struct cpuid_table *table, unsigned vcpu_count)
{
    const uint32_t rounded = 1u << log2_up(vcpu_count);
    uint32_t regs[4];

    for (int i = 0; i < 8; i++) {
        host_cpuid(4, (uint32_t)i, regs);
        if ((regs[EAX] & 0x1f) == 0) {
            break;
        }
        const uint32_t level = (regs[EAX] >> 5) & 7;
        const uint32_t sharing = level >= 3 ? rounded - 1 : 0;
        regs[EAX] = (regs[EAX] & 0x3fffu) | (sharing & 0xfff) << 14 | ((rounded - 1) & 0x3f) << 26;
        table_add(table, 4, i, regs);
    }
}

static void add_features(struct cpuid_table *table, bool avx)
{
    uint32_t regs[4];

    host_cpuid(7, 0, regs);
    regs[EAX] = 0;
    regs[EBX] = (regs[EBX] & LEAF7_EBX_HOST) | LEAF7_EBX_ALWAYS;
    if (!avx) {
        regs[EBX] &= ~LEAF7_EBX_NEEDS_AVX;
    }
    regs[ECX] = LEAF7_ECX_ALWAYS;
    regs[EDX] = LEAF7_EDX_ALWAYS;
    table_add(table, 7, 0, regs);
}

static void add_topology(struct cpuid_table *table, unsigned vcpu_index, unsigned vcpu_count)
{
    const uint32_t smt[4] = {0, 1, 1u << 8, vcpu_index};
    const uint32_t core[4] = {log2_up(vcpu_count), vcpu_count & 0xffff, 1 | 2u << 8, vcpu_index};

    table_add(table, 0xb, 0, smt);
    table_add(table, 0xb, 1, core);
}

/*
 * The sizes of components that the guest does not have, but the host's XCR0: a dynamic linker
 * makes room by these for what it may store, and where user code runs natively (engine/native.h)
 * its XSAVEC reaches for that room, though nothing is stored there.
 */
static void add_hidden_components(struct cpuid_table *table)
{
    uint32_t regs[4];
    uint32_t components;

    host_cpuid(1, 0, regs);
    if ((regs[ECX] & LEAF1_ECX_OSXSAVE) == 0) {
        return;
    }
    components = host_xcr0();
    for (uint32_t i = XSAVE_FIRST_HIDDEN; i <= XSAVE_LAST_HIDDEN; i++) {
        if ((components >> i & 1) != 0) {
            host_cpuid(0xd, i, regs);
            table_add(table, 0xd, (int)i, regs);
        }
    }
}

/* Sizes that depend on XCR0 are filled in by cpuid_query(). */
static void add_xsave(struct cpuid_table *table, bool avx)
{
    const uint32_t components = X86_XCR0_X87 | X86_XCR0_SSE | (avx ? X86_XCR0_AVX : 0);
    const uint32_t size = XSAVE_LEGACY_BYTES + (avx ? XSAVE_AVX_BYTES : 0);
    const uint32_t main_leaf[4] = {components, XSAVE_LEGACY_BYTES, size, 0};
    const uint32_t ymm[4] = {XSAVE_AVX_BYTES, XSAVE_LEGACY_BYTES, 0, 0};
    uint32_t regs[4];

    table_add(table, 0xd, 0, main_leaf);
    host_cpuid(0xd, 1, regs);
    regs[EAX] &= LEAFD1_EAX_HOST;
    regs[EBX] = XSAVE_LEGACY_BYTES;
    regs[ECX] = 0;
    regs[EDX] = 0;
    table_add(table, 0xd, 1, regs);
    if (avx) {
        table_add(table, 0xd, 2, ymm);
        add_hidden_components(table);
    }
}

/*
 * Leaf 0x15 gives the TSC as crystal * EBX / EAX. Guests multiply in 32 bits
 * with the crystal in kHz, which bounds EBX; the best fraction under that bound
 * is within a millionth of the frequency.
 */
static void add_tsc(struct cpuid_table *table)
{
    const uint64_t hz = cpuid_tsc_hz();
    const uint64_t max_numerator = UINT32_MAX / (CPUID_CRYSTAL_HZ / 1000);
    uint64_t best_error = UINT64_MAX;
    uint32_t regs[4] = {1, 1, CPUID_CRYSTAL_HZ, 0};

    for (uint64_t den = 1; den <= max_numerator; den++) {
        const uint64_t num = (hz * den + CPUID_CRYSTAL_HZ / 2) / CPUID_CRYSTAL_HZ;
        if (num == 0) {
            continue;
        }
        if (num > max_numerator) {
            break;
        }
        const uint64_t got = CPUID_CRYSTAL_HZ * num / den;
        const uint64_t error = got > hz ? got - hz : hz - got;
        if (error < best_error) {
            best_error = error;
            regs[EAX] = (uint32_t)den;
            regs[EBX] = (uint32_t)num;
        }
    }
    table_add(table, 0x15, -1, regs);

    const uint32_t mhz = (uint32_t)(hz / 1000000) & 0xffff;
    const uint32_t clocks[4] = {mhz, mhz, 100, 0};
    table_add(table, 0x16, -1, clocks);
}

static void add_basic(struct cpuid_table *table, unsigned vcpu_index, unsigned vcpu_count)
{
    /* Leaf 2: "see leaf 4" and 64-byte prefetching. Leaf 6: the APIC timer never stops. */
    static const uint32_t leaf2[4] = {0x0000ff01, 0xf0, 0, 0};
    static const uint32_t leaf6[4] = {BIT(2), 0, 0, 0};
    static const uint32_t none[4] = {0};
    uint32_t regs[4];

    host_cpuid(0, 0, regs);
    regs[EAX] = LEAF_MAX_BASIC;
    table_add(table, 0, -1, regs);
    add_signature(table, vcpu_index, vcpu_count);
    table_add(table, 2, -1, leaf2);
    add_caches(table, vcpu_count);
    table_add(table, 6, -1, leaf6);

    const bool xsave = cpuid_has(table, 1, 0, ECX, 26);
    const bool avx = cpuid_has(table, 1, 0, ECX, 28);
    add_features(table, avx);
    /* No performance counters, said explicitly because KVM fills a missing leaf itself. */
    table_add(table, 0xa, -1, none);
    add_topology(table, vcpu_index, vcpu_count);
    if (xsave) {
        add_xsave(table, avx);
    }
    add_tsc(table);
}

static void add_hypervisor(struct cpuid_table *table)
{
    /* "KVMKVMKVM\0\0\0" */
    static const uint32_t signature[4] = {LEAF_MAX_HYPERVISOR, 0x4b4d564b, 0x564b4d56, 0x4d};
    static const uint32_t features[4] = {KVM_FEATURE_NOP_IO_DELAY | KVM_FEATURE_MSI_EXT_DEST_ID, 0,
                                         0, 0};
    const uint32_t timing[4] = {(uint32_t)(cpuid_tsc_hz() / 1000), CPUID_CRYSTAL_HZ / 1000, 0, 0};

    table_add(table, 0x40000000, -1, signature);
    table_add(table, 0x40000001, -1, features);
    table_add(table, LEAF_MAX_HYPERVISOR, -1, timing);
}

static void add_extended(struct cpuid_table *table, unsigned vcpu_count)
{
    uint32_t regs[4];

    host_cpuid(0x80000000, 0, regs);
    regs[EAX] = LEAF_MAX_EXTENDED;
    table_add(table, 0x80000000, -1, regs);

    host_cpuid(0x80000001, 0, regs);
    regs[ECX] &= LEAF81_ECX_HOST;
    regs[EDX] = LEAF81_EDX_ALWAYS;
    table_add(table, 0x80000001, -1, regs);

    for (uint32_t leaf = 0x80000002; leaf <= 0x80000006; leaf++) {
        host_cpuid(leaf, 0, regs);
        table_add(table, leaf, -1, regs);
    }

    host_cpuid(0x80000007, 0, regs);
    regs[EAX] = regs[EBX] = regs[ECX] = 0;
    regs[EDX] &= LEAF87_EDX_INVARIANT_TSC;
    table_add(table, 0x80000007, -1, regs);

    /* Physical width as the host has it, since its tables check it; linear 48 (no LA57).
     * AMD takes the number of cores from ECX. */
    host_cpuid(0x80000008, 0, regs);
    regs[EAX] = (regs[EAX] & 0xff) | 48u << 8;
    regs[EBX] = 0;
    regs[ECX] = log2_up(vcpu_count) << 12 | ((vcpu_count - 1) & 0xff);
    regs[EDX] = 0;
    table_add(table, 0x80000008, -1, regs);
}

void cpuid_table_init(struct cpuid_table *table, unsigned vcpu_index, unsigned vcpu_count)
{
    memset(table, 0, sizeof(*table));
    add_basic(table, vcpu_index, vcpu_count);
    add_hypervisor(table);
    add_extended(table, vcpu_count);
}

static const struct cpuid_entry *table_find(const struct cpuid_table *table, uint32_t leaf,
                                            uint32_t subleaf)
{
    for (unsigned i = 0; i < table->count; i++) {
        const struct cpuid_entry *entry = &table->entries[i];
        if (entry->leaf == leaf && (!entry->subleaf_significant || entry->subleaf == subleaf)) {
            return entry;
        }
    }
    return NULL;
}

bool cpuid_has(const struct cpuid_table *table, uint32_t leaf, uint32_t subleaf, unsigned reg,
               unsigned bit)
{
    const struct cpuid_entry *entry = table_find(table, leaf, subleaf);

    if (entry == NULL || reg > EDX || bit > 31) {
        return false;
    }
    const uint32_t regs[4] = {entry->eax, entry->ebx, entry->ecx, entry->edx};
    return (regs[reg] & BIT(bit)) != 0;
}

/* A leaf beyond the highest of its range answers as the highest basic leaf (SDM 2A CPUID). */
static uint32_t leaf_effective(uint32_t leaf)
{
    if (leaf <= LEAF_MAX_BASIC || (leaf >= 0x40000000 && leaf <= LEAF_MAX_HYPERVISOR) ||
        (leaf >= 0x80000000 && leaf <= LEAF_MAX_EXTENDED)) {
        return leaf;
    }
    return LEAF_MAX_BASIC;
}

void cpuid_query(const struct cpuid_table *table, uint32_t leaf, uint32_t subleaf, uint64_t cr4,
                 uint64_t xcr0, uint32_t ret_regs[4])
{
    leaf = leaf_effective(leaf);
    memset(ret_regs, 0, 4 * sizeof(*ret_regs));

    const struct cpuid_entry *entry = table_find(table, leaf, subleaf);
    if (entry == NULL) {
        /* Topology levels that do not exist still name the level asked and the APIC id. */
        entry = leaf == 0xb ? table_find(table, leaf, 0) : NULL;
        if (entry != NULL) {
            ret_regs[ECX] = subleaf & 0xff;
            ret_regs[EDX] = entry->edx;
        }
        return;
    }
    ret_regs[EAX] = entry->eax;
    ret_regs[EBX] = entry->ebx;
    ret_regs[ECX] = entry->ecx;
    ret_regs[EDX] = entry->edx;

    if (leaf == 1 && (cr4 & X86_CR4_OSXSAVE) != 0) {
        ret_regs[ECX] |= LEAF1_ECX_OSXSAVE;
    }
    if (leaf == 0xd && subleaf <= 1) {
        ret_regs[EBX] = XSAVE_LEGACY_BYTES + ((xcr0 & X86_XCR0_AVX) != 0 ? XSAVE_AVX_BYTES : 0);
    }
}

/* From CPUID alone: leaf 0x15 with its crystal, or the hypervisor's timing leaf. 0 when unknown. */
static uint64_t tsc_hz_enumerated(void)
{
    uint32_t regs[4];

    host_cpuid(0x15, 0, regs);
    if (regs[EAX] != 0 && regs[EBX] != 0) {
        uint64_t crystal = regs[ECX];
        uint32_t clocks[4];
        host_cpuid(0x16, 0, clocks);
        if (crystal == 0) {
            crystal = (uint64_t)clocks[EAX] * 1000000 * regs[EAX] / regs[EBX];
        }
        if (crystal != 0) {
            return crystal * regs[EBX] / regs[EAX];
        }
    }
    host_cpuid(1, 0, regs);
    if ((regs[ECX] & BIT(31)) != 0) {
        __cpuid(0x40000000, regs[EAX], regs[EBX], regs[ECX], regs[EDX]);
        if (regs[EAX] >= LEAF_MAX_HYPERVISOR && regs[EAX] < 0x40000100) {
            __cpuid(LEAF_MAX_HYPERVISOR, regs[EAX], regs[EBX], regs[ECX], regs[EDX]);
            return (uint64_t)regs[EAX] * 1000;
        }
    }
    return 0;
}

/* One reading of both clocks, the tightest of several brackets. */
static void clocks_read(uint64_t *ret_ns, uint64_t *ret_tsc)
{
    uint64_t best = UINT64_MAX;

    for (int i = 0; i < 16; i++) {
        struct timespec ts;
        const uint64_t before = __builtin_ia32_rdtsc();
        (void)clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
        const uint64_t after = __builtin_ia32_rdtsc();
        if (after - before < best) {
            best = after - before;
            *ret_tsc = before + (after - before) / 2;
            *ret_ns = (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
        }
    }
}

/* Five milliseconds against the kernel's clock, which runs on its own calibration of the TSC. */
static uint64_t tsc_hz_measured(void)
{
    uint64_t ns0 = 0;
    uint64_t tsc0 = 0;
    uint64_t ns1 = 0;
    uint64_t tsc1 = 0;

    clocks_read(&ns0, &tsc0);
    do {
        clocks_read(&ns1, &tsc1);
    } while (ns1 - ns0 < 5000000);

    const uint64_t hz = (uint64_t)((double)(tsc1 - tsc0) * 1e9 / (double)(ns1 - ns0));
    /* Nominal frequencies are whole MHz: within 50 parts in a million, it is that one. */
    const uint64_t nominal = (hz + 500000) / 1000000 * 1000000;
    const uint64_t off = nominal > hz ? nominal - hz : hz - nominal;
    return off < hz / 20000 ? nominal : hz;
}

/* A constant of the host, and a second measurement would differ a little from the first. */
static _Atomic uint64_t cached_hz;

void cpuid_set_tsc_hz(uint64_t hz)
{
    atomic_store_explicit(&cached_hz, hz, memory_order_relaxed);
}

uint64_t cpuid_tsc_hz(void)
{
    uint64_t hz = atomic_load_explicit(&cached_hz, memory_order_relaxed);

    if (hz == 0) {
        uint64_t expected = 0;
        hz = tsc_hz_enumerated();
        if (hz == 0) {
            hz = tsc_hz_measured();
        }
        if (!atomic_compare_exchange_strong(&cached_hz, &expected, hz)) {
            hz = expected;
        }
    }
    return hz;
}
