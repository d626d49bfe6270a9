/*
 * The mirror of a guest kernel's half, with real mappings in this process: the
 * test's kernel half is where Linux has vmalloc(), and no process has anything there.
 */
#include "engine_rig.h"

#include "engine/mirror.h"

#include <stdio.h>
#include <sys/uio.h>

#define P 0x1u
#define RW 0x2u
#define US 0x4u
#define A 0x20u
#define D 0x40u
#define PS 0x80u
#define G 0x100u

/* The kernel's half: 2 MiB of 4 KiB pages, then one page of 2 MiB. */
#define BASE 0xffffc90000000000ull
#define HIGH_PDPT 0x60000u
#define HIGH_PD 0x61000u
#define HIGH_PT 0x62000u
#define TOP(va) (((va) >> 39) & 511u)
#define LARGE (BASE + 0x200000)
#define ENTRY(page) (HIGH_PT + (page)*8u)

struct mirror_rig {
    struct rig *rig;
    struct engine_vcpu *v;
    struct mirror *mirror;
};

static uint64_t counter(const struct mirror *mirror, const char *name)
{
    struct accel_stat stats[16];
    unsigned count = mirror_stats(mirror, stats, ARRAY_LEN(stats));

    for (unsigned i = 0; i < count; i++) {
        if (strcmp(stats[i].name, name) == 0) {
            return stats[i].value;
        }
    }
    fail_msg("no counter %s", name);
    return 0;
}

static void map_page(struct mirror_rig *m, unsigned page, uint64_t pa, uint64_t flags)
{
    rig_poke64(m->rig, ENTRY(page), pa | flags);
}

static uint64_t va_of(unsigned page)
{
    return BASE + page * 4096ull;
}

/* The first bytes at the host's address, or -1 when it is not mapped. */
static int64_t peek(uint64_t va)
{
    uint32_t value = 0;
    struct iovec local = {&value, sizeof(value)};
    struct iovec remote = {(void *)(uintptr_t)mirror_host(va), sizeof(value)};

    return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == sizeof(value) ? (int64_t)value
                                                                                 : -1;
}

static bool can_write(uint64_t va)
{
    uint32_t value = (uint32_t)peek(va);
    struct iovec local = {&value, sizeof(value)};
    struct iovec remote = {(void *)(uintptr_t)mirror_host(va), sizeof(value)};

    return process_vm_writev(getpid(), &local, 1, &remote, 1, 0) == sizeof(value);
}

static void fill_pages(struct rig *rig)
{
    for (uint32_t pa = 0x100000; pa < 0x400000; pa += 4096) {
        uint32_t mark = pa >> 12;

        rig_poke(rig, pa, &mark, sizeof(mark));
    }
}

static int setup(void **state)
{
    struct mirror_rig *m = calloc(1, sizeof(*m));
    void *rig;

    assert_non_null(m);
    assert_int_equal(rig_setup(&rig), 0);
    m->rig = rig;
    m->v = rig_vcpu(m->rig);
    rig_poke64(m->rig, RIG_PML4 + TOP(BASE) * 8, HIGH_PDPT | P | RW);
    rig_poke64(m->rig, HIGH_PDPT, HIGH_PD | P | RW);
    rig_poke64(m->rig, HIGH_PD, HIGH_PT | P | RW);
    rig_poke64(m->rig, HIGH_PD + 8, 0x200000 | P | RW | PS | A | D | G);
    fill_pages(m->rig);
    m->rig->st.cr4 |= X86_CR4_SMAP;
    assert_int_equal(engine_accel_ops.set_state(m->rig->vcpu, &m->rig->st), 0);
    m->mirror = mirror_create(m->v->vm, gmem_fd(m->rig->gmem));
    assert_non_null(m->mirror);
    m->v->vm->mirror = m->mirror;
    mmu_flush_all(m->v);
    *state = m;
    return 0;
}

static int teardown(void **state)
{
    struct mirror_rig *m = *state;
    void *rig = m->rig;

    m->v->vm->mirror = NULL;
    mirror_destroy(m->mirror);
    assert_int_equal(rig_teardown(&rig), 0);
    free(m);
    return 0;
}

static void test_page_is_mapped_read_only_until_it_is_dirty(void **state)
{
    struct mirror_rig *m = *state;

    map_page(m, 5, 0x155000, P | RW);
    assert_int_equal(peek(va_of(5)), -1);
    assert_true(mirror_fault(m->v, va_of(5) + 8, false));
    assert_int_equal(peek(va_of(5)), 0x155);
    assert_int_equal(rig_peek64(m->rig, ENTRY(5)) & (A | D), A);
    assert_false(can_write(va_of(5)));
    assert_true(mirror_fault(m->v, va_of(5) + 8, true));
    assert_true(can_write(va_of(5)));
    assert_int_equal(rig_peek64(m->rig, ENTRY(5)) & (A | D), A | D);

    /* What is written there is written to RAM, and the reverse. */
    *(volatile uint32_t *)(uintptr_t)mirror_host(va_of(5)) = 0x1234;
    assert_int_equal(rig_peek32(m->rig, 0x155000), 0x1234);
    rig_poke64(m->rig, 0x155000, 0x5678);
    assert_int_equal(peek(va_of(5)), 0x5678);
}

static void test_neighbours_that_continue_come_along_and_no_others(void **state)
{
    struct mirror_rig *m = *state;

    for (unsigned i = 8; i < 13; i++) {
        map_page(m, i, 0x150000 + i * 4096, P | RW | A | D);
    }
    map_page(m, 13, 0x150000 + 13 * 4096, P | RW | A); /* not dirty: by itself */
    map_page(m, 7, 0x190000, P | RW | A | D);          /* elsewhere in memory */
    assert_true(mirror_fault(m->v, va_of(10), false));
    for (unsigned i = 8; i < 13; i++) {
        assert_int_equal(peek(va_of(i)), 0x150 + i);
        assert_true(can_write(va_of(i)));
    }
    assert_int_equal(peek(va_of(13)), -1);
    assert_int_equal(peek(va_of(7)), -1);
    assert_int_equal(counter(m->mirror, "mirror_mappings"), 1);

    /* A read-only run becomes writable page by page, for each has a dirty bit. */
    map_page(m, 20, 0x160000, P | RW | A);
    map_page(m, 21, 0x161000, P | RW | A);
    assert_true(mirror_fault(m->v, va_of(20), false));
    assert_int_equal(peek(va_of(21)), 0x161);
    assert_true(mirror_fault(m->v, va_of(20), true));
    assert_true(can_write(va_of(20)));
    assert_int_equal(rig_peek64(m->rig, ENTRY(21)) & D, 0);
    assert_false(can_write(va_of(21)));
}

static void test_large_page_is_mapped_at_once(void **state)
{
    struct mirror_rig *m = *state;

    assert_true(mirror_fault(m->v, LARGE + 0x12345, false));
    for (uint64_t offset = 0; offset < 0x200000; offset += 4096) {
        assert_int_equal(peek(LARGE + offset), (0x200000 + offset) >> 12);
    }
    assert_true(can_write(LARGE + 0x1ff000));
    assert_int_equal(counter(m->mirror, "mirror_mappings"), 1);

    /* Across the end of the page before it, as the host's MMU does it. */
    map_page(m, 511, 0x170000, P | RW | A | D);
    assert_true(mirror_fault(m->v, va_of(511), true));
    memcpy((void *)(uintptr_t)(mirror_host(LARGE) - 4), "\x22\x22\x22\x22\x11\x11\x11\x11", 8);
    assert_int_equal(rig_peek32(m->rig, 0x170ffc), 0x22222222);
    assert_int_equal(rig_peek32(m->rig, 0x200000), 0x11111111);
}

static void test_what_is_not_the_kernels_memory_is_refused(void **state)
{
    static const uint64_t addresses[] = {
        0, /* NULL */
        0xfff,
        0x1000, /* the low half */
        RIG_DATA,
        0x7fffffffffffull,
        0x800000000000ull, /* not canonical */
        0x1234567812345678ull,
        0xfffeffffffffffffull,
        0xffff7fffffffffffull,
        0xffff800000000000ull, /* first page of the half */
        0xffff800000011000ull, /* where our own memory lies */
        0xffff800000401000ull,
        0xffff880000000000ull,
        0xffff880000001000ull, /* a hole of the guest's */
        0xffff888000000000ull,
        0xffffffffff5fb000ull,
        0xfffffffffffff000ull, /* last page, not mapped by the guest */
        0xffffffffffffffffull,
    };
    struct mirror_rig *m = *state;

    for (size_t i = 0; i < ARRAY_LEN(addresses); i++) {
        assert_false(mirror_fault(m->v, addresses[i], false));
        assert_false(mirror_fault(m->v, addresses[i], true));
    }
    map_page(m, 1, 0xfee00000, P | RW);    /* a device */
    map_page(m, 2, 0x155000, P | RW | US); /* SMAP */
    map_page(m, 3, 0x155000, P);           /* read-only */
    rig_poke64(m->rig, RIG_PML4 + TOP(BASE) * 8, HIGH_PDPT | P | RW | US);
    rig_poke64(m->rig, HIGH_PDPT, HIGH_PD | P | RW | US);
    rig_poke64(m->rig, HIGH_PD, HIGH_PT | P | RW | US);
    assert_false(mirror_fault(m->v, va_of(1), false));
    assert_false(mirror_fault(m->v, va_of(2), false));
    assert_false(mirror_fault(m->v, va_of(3), true));
    assert_true(mirror_fault(m->v, va_of(3), false));
    assert_false(can_write(va_of(3)));
    assert_int_equal(counter(m->mirror, "mirror_mappings"), 1);
}

/* The guest's last page, whose end is the address space's. */
static void test_last_page_is_mapped_and_dropped(void **state)
{
    const uint64_t va = 0xfffffffffffff000ull;
    struct mirror_rig *m = *state;

    if (peek(va) != -1) {
        skip(); /* without address space randomization the stack begins there */
    }
    rig_poke64(m->rig, RIG_PML4 + 511 * 8, 0x63000 | P | RW);
    rig_poke64(m->rig, 0x63000 + 511 * 8, 0x64000 | P | RW);
    rig_poke64(m->rig, 0x64000 + 511 * 8, 0x65000 | P | RW);
    rig_poke64(m->rig, 0x65000 + 511 * 8, 0x177000 | P | RW);
    assert_true(mirror_fault(m->v, va + 0xfff, false));
    assert_int_equal(peek(va), 0x177);
    rig_poke64(m->rig, 0x65000 + 511 * 8, 0);
    mmu_flush_page(m->v, va);
    assert_int_equal(peek(va), -1);
}

static void test_flush_drops_only_what_changed(void **state)
{
    struct mirror_rig *m = *state;

    for (unsigned i = 30; i < 34; i++) {
        map_page(m, i, 0x130000 + (40 - i) * 8192, P | RW | A | D | (i < 32 ? G : 0));
        assert_true(mirror_fault(m->v, va_of(i), true));
    }
    map_page(m, 30, 0x1a0000, P | RW | A | D | G);
    map_page(m, 32, 0x1a1000, P | RW | A | D);
    assert_int_equal(peek(va_of(30)), 0x130 + 20); /* stale until flushed */
    mmu_flush_non_global(m->v);
    assert_int_equal(peek(va_of(30)), 0x130 + 20); /* global */
    assert_int_equal(peek(va_of(32)), -1);
    assert_int_equal(peek(va_of(33)), 0x130 + 14);
    mmu_flush_page(m->v, va_of(31));
    assert_int_equal(peek(va_of(30)), 0x130 + 20);
    mmu_flush_page(m->v, va_of(30));
    assert_int_equal(peek(va_of(30)), -1);
    assert_true(mirror_fault(m->v, va_of(30), false));
    assert_int_equal(peek(va_of(30)), 0x1a0);
    map_page(m, 31, 0, 0);
    mmu_flush_all(m->v);
    assert_int_equal(peek(va_of(31)), -1);
    assert_int_equal(peek(va_of(33)), 0x130 + 14);
    assert_int_equal(counter(m->mirror, "mirror_drops"), 3);
}

static void test_flush_sees_cleared_bits_and_lost_rights(void **state)
{
    struct mirror_rig *m = *state;

    for (unsigned i = 40; i < 44; i++) {
        map_page(m, i, 0x140000 + (50 - i) * 8192, P | RW | A | D);
        assert_true(mirror_fault(m->v, va_of(i), true));
    }
    map_page(m, 40, 0x140000 + 10 * 8192, P | RW | A); /* D */
    map_page(m, 41, 0x140000 + 9 * 8192, P | RW | D);  /* A */
    map_page(m, 42, 0x140000 + 8 * 8192, P | A | D);   /* RW */
    rig_poke64(m->rig, HIGH_PD, rig_peek64(m->rig, HIGH_PD));
    for (unsigned i = 40; i < 44; i++) {
        mmu_flush_page(m->v, va_of(i));
    }
    assert_int_equal(peek(va_of(40)), -1);
    assert_int_equal(peek(va_of(41)), -1);
    assert_int_equal(peek(va_of(42)), -1);
    assert_true(can_write(va_of(43)));

    /* The upper level alone, too. */
    rig_poke64(m->rig, HIGH_PD, HIGH_PT | P | A);
    mmu_flush_page(m->v, va_of(43));
    assert_int_equal(peek(va_of(43)), -1);
}

static void test_invlpg_drops_all_of_a_large_page(void **state)
{
    struct mirror_rig *m = *state;

    assert_true(mirror_fault(m->v, LARGE, false));
    rig_poke64(m->rig, HIGH_PD + 8, 0x200000 | P | PS | A);
    mmu_flush_page(m->v, LARGE + 0x100000);
    assert_int_equal(peek(LARGE), -1);

    /* 4 KiB pages in the place of a large one, without a word: the fault puts it right. */
    assert_true(mirror_fault(m->v, LARGE, false));
    rig_poke64(m->rig, HIGH_PD + 8, HIGH_PT | P | RW);
    map_page(m, 0, 0x155000, P | RW | A | D);
    assert_true(mirror_fault(m->v, LARGE, true));
    assert_int_equal(peek(LARGE), 0x155);
    assert_int_equal(peek(LARGE + 4096), -1);
}

/* A page of 2 MiB of which only half is memory is mapped piece by piece, and dropped as a whole. */
static void test_invlpg_drops_all_pieces_of_a_large_page(void **state)
{
    struct mirror_rig *m = *state;
    uint64_t *ram_bytes = &m->v->vm->ram[0].size_bytes;
    const uint64_t all = *ram_bytes;

    *ram_bytes = 3u << 20;
    assert_true(mirror_fault(m->v, LARGE + 0x5000, true));
    assert_true(mirror_fault(m->v, LARGE + 0x9000, false));
    assert_int_equal(peek(LARGE + 0x5000), 0x205);
    assert_int_equal(peek(LARGE + 0x6000), -1);
    mmu_flush_page(m->v, LARGE);
    assert_int_equal(peek(LARGE + 0x5000), 0x205);
    rig_poke64(m->rig, HIGH_PD + 8, P | PS | A);
    mmu_flush_page(m->v, LARGE + 0x100000);
    assert_int_equal(peek(LARGE + 0x5000), -1);
    assert_int_equal(peek(LARGE + 0x9000), -1);
    *ram_bytes = all;
}

static void test_code_is_never_writable(void **state)
{
    struct mirror_rig *m = *state;
    _Atomic uint8_t *flags = gmem_page_flags(m->rig->gmem, gpa(0x201000));

    assert_true(mirror_fault(m->v, LARGE, true));
    assert_true(can_write(LARGE + 0x1000));
    assert_int_equal(mmu_protect_code_page(m->v, gpa(0x201000)), 0);
    assert_false(can_write(LARGE + 0x1000));
    assert_int_equal(peek(LARGE + 0x1000), 0x201);
    assert_true(can_write(LARGE));
    assert_true(can_write(LARGE + 0x2000));
    assert_false(mirror_fault(m->v, LARGE + 0x1000, true));

    /* Another mapping of the same page, made later. */
    map_page(m, 50, 0x200000, P | RW | A | D);
    map_page(m, 51, 0x201000, P | RW | A | D);
    map_page(m, 52, 0x202000, P | RW | A | D);
    assert_true(mirror_fault(m->v, va_of(50), true));
    assert_true(can_write(va_of(50)));
    assert_false(can_write(va_of(51)));
    assert_true(can_write(va_of(52)));

    (void)atomic_fetch_and(flags, (uint8_t)~GMEM_PAGE_CODE);
    assert_true(mirror_fault(m->v, LARGE + 0x1000, true));
    assert_true(can_write(LARGE + 0x1000));
    assert_true(mirror_fault(m->v, va_of(51), true));
    assert_true(can_write(va_of(51)));
}

/* Tables with another entry for the kernel's half, the rest the same. */
static void other_tables(struct mirror_rig *m, uint64_t pml4, uint64_t top)
{
    for (unsigned i = 0; i < 512; i++) {
        rig_poke64(m->rig, pml4 + i * 8, rig_peek64(m->rig, RIG_PML4 + i * 8));
    }
    rig_poke64(m->rig, pml4 + TOP(BASE) * 8, top);
}

static void load_cr3(struct engine_vcpu *v, uint64_t cr3)
{
    v->st.cr3 = cr3;
    mmu_flush_non_global(v);
}

static void test_one_vcpu_may_change_its_kernel_half(void **state)
{
    struct mirror_rig *m = *state;

    map_page(m, 5, 0x155000, P | RW | A | D | G);
    assert_true(mirror_fault(m->v, va_of(5), false));
    other_tables(m, 0x66000, rig_peek64(m->rig, RIG_PML4 + TOP(BASE) * 8));
    load_cr3(m->v, 0x66000);
    assert_int_equal(peek(va_of(5)), 0x155);
    other_tables(m, 0x67000, 0);
    load_cr3(m->v, 0x67000);
    assert_int_equal(peek(va_of(5)), -1);
    assert_false(mirror_fault(m->v, va_of(5), false));
    load_cr3(m->v, RIG_PML4);
    assert_true(mirror_fault(m->v, va_of(5), false));
    assert_false(mirror_is_refused(m->mirror));
}

static void test_tables_at_our_own_addresses_end_it(void **state)
{
    struct mirror_rig *m = *state;

    assert_true(mirror_fault(m->v, LARGE, false));
    rig_poke64(m->rig, RIG_PML4 + 256 * 8,
               RIG_PML4 | P | RW); /* as some kernels see their tables */
    load_cr3(m->v, RIG_PML4);
    assert_true(mirror_is_refused(m->mirror));
    assert_false(mirror_fault(m->v, LARGE, false));
}

/* A second vCPU that uses the mirror. */
static void second_vcpu(struct mirror_rig *m, struct engine_vcpu *other)
{
    memset(other, 0, sizeof(*other));
    other->vm = m->v->vm;
    other->st = m->v->st;
    mmu_init(other);
    m->v->vm->vcpu_count = 2;
    atomic_store(&m->v->vm->vcpus[1], other);
    mmu_flush_all(other);
}

static struct engine_vcpu other_vcpu ALIGNED(64);

static void test_two_vcpus_share_what_both_have(void **state)
{
    struct mirror_rig *m = *state;

    second_vcpu(m, &other_vcpu);
    map_page(m, 5, 0x155000, P | RW | A | D);
    assert_true(mirror_fault(m->v, va_of(5), true));
    map_page(m, 5, 0x156000, P | RW | A | D);
    mmu_flush_page(&other_vcpu, va_of(5)); /* either one's shootdown is enough */
    assert_int_equal(peek(va_of(5)), -1);
    assert_true(mirror_fault(&other_vcpu, va_of(5), true));
    assert_int_equal(peek(va_of(5)), 0x156);

    /* Tables that lack the half, as of a processor that starts: interpreted meanwhile. */
    other_tables(m, 0x66000, 0);
    load_cr3(&other_vcpu, 0x66000);
    assert_true(other_vcpu.mirror_off);
    assert_false(mirror_fault(&other_vcpu, va_of(5), false));
    assert_int_equal(peek(va_of(5)), 0x156);
    load_cr3(&other_vcpu, RIG_PML4);
    assert_false(other_vcpu.mirror_off);
    assert_false(mirror_is_refused(m->mirror));

    /* Another half altogether: the end of it. */
    other_tables(m, 0x67000, HIGH_PD | P | RW);
    load_cr3(&other_vcpu, 0x67000);
    assert_true(mirror_is_refused(m->mirror));
}

static void test_slot_that_only_one_vcpu_has_is_not_mapped(void **state)
{
    struct mirror_rig *m = *state;

    second_vcpu(m, &other_vcpu);
    other_tables(m, 0x66000, 0);
    load_cr3(&other_vcpu, 0x66000);
    assert_false(other_vcpu.mirror_off); /* nothing is mapped yet */
    assert_false(mirror_fault(m->v, LARGE, false));
    load_cr3(&other_vcpu, RIG_PML4);
    assert_true(mirror_fault(m->v, LARGE, false));
}

/* With CR0.WP clear a vCPU writes to read-only pages; another one's faults are its own. */
static void test_write_protection_of_one_vcpu_is_not_the_others(void **state)
{
    struct mirror_rig *m = *state;

    second_vcpu(m, &other_vcpu);
    other_vcpu.st.cr0 &= ~(uint64_t)X86_CR0_WP;
    mmu_flush_all(&other_vcpu);
    map_page(m, 5, 0x155000, P | A | D);
    assert_false(mirror_fault(&other_vcpu, va_of(5), true));
    assert_true(mirror_fault(&other_vcpu, va_of(5), false));
    assert_int_equal(peek(va_of(5)), 0x155);
    assert_false(can_write(va_of(5)));
    assert_false(mirror_fault(m->v, va_of(5), true));
    map_page(m, 5, 0x155000, P | RW | A | D);
    assert_true(mirror_fault(m->v, va_of(5), true));
    assert_true(can_write(va_of(5)));
}

/* A flush of everything by a vCPU whose tables lack the half counts when it has it again. */
static void test_flush_without_the_half_is_not_forgotten(void **state)
{
    struct mirror_rig *m = *state;

    second_vcpu(m, &other_vcpu);
    map_page(m, 5, 0x155000, P | RW | A | D | G);
    map_page(m, 9, 0x159000, P | RW | A | D | G);
    assert_true(mirror_fault(m->v, va_of(5), true));
    assert_true(mirror_fault(m->v, va_of(9), true));
    other_tables(m, 0x66000, 0);
    load_cr3(&other_vcpu, 0x66000);
    assert_true(other_vcpu.mirror_off);
    map_page(m, 5, 0x156000, P | RW | A | D | G);
    mmu_flush_all(&other_vcpu);
    load_cr3(&other_vcpu, RIG_PML4);
    assert_false(other_vcpu.mirror_off);
    assert_int_equal(peek(va_of(5)), -1);
    assert_int_equal(peek(va_of(9)), 0x159);
}

/* Until all vCPUs have left it, a mirror that was given up holds nothing that is flushed. */
static void test_flush_after_the_end_drops_what_is_left(void **state)
{
    struct mirror_rig *m = *state;

    second_vcpu(m, &other_vcpu);
    map_page(m, 5, 0x155000, P | RW | A | D | G);
    assert_true(mirror_fault(m->v, va_of(5), true));
    other_tables(m, 0x67000, HIGH_PD | P | RW);
    load_cr3(&other_vcpu, 0x67000);
    assert_true(mirror_is_refused(m->mirror));
    map_page(m, 5, 0x156000, P | RW | A | D | G);
    mmu_flush_page(m->v, va_of(5));
    assert_int_equal(peek(va_of(5)), -1);
    assert_false(mirror_fault(m->v, va_of(5), false));
}

static unsigned count_maps(void)
{
    FILE *file = fopen("/proc/self/maps", "r");
    unsigned lines = 0;

    assert_non_null(file);
    for (int c = fgetc(file); c != EOF; c = fgetc(file)) {
        lines += c == '\n' ? 1 : 0;
    }
    (void)fclose(file);
    return lines;
}

/* Twice as many pages that do not merge as Linux allows mappings: all are served. */
static void test_more_pages_than_the_host_allows_mappings(void **state)
{
    struct mirror_rig *m = *state;
    const unsigned tables = 256;

    /* One table of 512 pages in reverse order serves all tables' worth of addresses. */
    for (unsigned i = 0; i < 512; i++) {
        map_page(m, i, 0x100000 + (511 - i) * 4096ull, P | RW | A | D | G);
    }
    for (unsigned i = 0; i < tables; i++) {
        rig_poke64(m->rig, HIGH_PD + i * 8, HIGH_PT | P | RW);
    }
    mmu_flush_all(m->v);
    for (unsigned page = 0; page < tables * 512; page++) {
        assert_true(mirror_fault(m->v, va_of(page), true));
    }
    assert_true(counter(m->mirror, "mirror_evicted") > 0);
    assert_true(count_maps() < 40000);
    assert_int_equal(peek(va_of(tables * 512 - 1)), 0x100);
    assert_int_equal(counter(m->mirror, "mirror_drops"), 0);
    assert_true(mirror_fault(m->v, va_of(0), true));
    assert_int_equal(peek(va_of(0)), 0x2ff);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        CASE(test_page_is_mapped_read_only_until_it_is_dirty),
        CASE(test_neighbours_that_continue_come_along_and_no_others),
        CASE(test_large_page_is_mapped_at_once),
        CASE(test_what_is_not_the_kernels_memory_is_refused),
        CASE(test_last_page_is_mapped_and_dropped),
        CASE(test_flush_drops_only_what_changed),
        CASE(test_flush_sees_cleared_bits_and_lost_rights),
        CASE(test_invlpg_drops_all_of_a_large_page),
        CASE(test_invlpg_drops_all_pieces_of_a_large_page),
        CASE(test_code_is_never_writable),
        CASE(test_one_vcpu_may_change_its_kernel_half),
        CASE(test_tables_at_our_own_addresses_end_it),
        CASE(test_two_vcpus_share_what_both_have),
        CASE(test_slot_that_only_one_vcpu_has_is_not_mapped),
        CASE(test_write_protection_of_one_vcpu_is_not_the_others),
        CASE(test_flush_without_the_half_is_not_forgotten),
        CASE(test_flush_after_the_end_drops_what_is_left),
        CASE(test_more_pages_than_the_host_allows_mappings),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
