#include "engine_rig.h"

#define P 0x1u
#define RW 0x2u
#define US 0x4u
#define A 0x20u
#define D 0x40u
#define PS 0x80u
#define G 0x100u
#define NX 0x8000000000000000ull

/* A mapping under test: its virtual page, and the entries that lead to it. */
#define VA 0x123000u
#define PTE (RIG_PT + (VA >> 12) * 8)

static struct engine_vcpu *start(struct rig *rig)
{
    assert_int_equal(engine_accel_ops.set_state(rig->vcpu, &rig->st), 0);
    return rig_vcpu(rig);
}

/* The error code of an access, or -1 when it succeeds. */
static int access_error(struct rig *rig, uint64_t va, enum mmu_access access, enum mmu_mode mode)
{
    struct engine_vcpu *v = start(rig);
    struct mmu_page page = {0};
    int r = mmu_translate(v, va, access, mode, &page);

    if (r == 0) {
        return -1;
    }
    assert_int_equal(r, ENGINE_FAULT);
    assert_int_equal(v->fault.vector, X86_VEC_PF);
    assert_int_equal(v->fault.cr2, va);
    return (int)v->fault.error;
}

static void test_walk_of_a_4k_page_finds_it_and_sets_accessed_and_dirty(void **state)
{
    struct rig *rig = *state;
    struct engine_vcpu *v = start(rig);
    struct mmu_page page = {0};

    rig_map(rig, VA, 0x55000, P | RW | US);
    assert_int_equal(mmu_translate(v, VA + 0x123, MMU_READ, MMU_USER, &page), 0);
    assert_int_equal(page.gpa, 0x55123);
    assert_int_equal(page.page_bytes, 4096);
    assert_true(page.user && page.writable && !page.global && !page.dirty);
    assert_int_equal(rig_peek64(rig, PTE) & (A | D), A);
    assert_int_equal(rig_peek64(rig, RIG_PD) & A, A);
    assert_int_equal(rig_peek64(rig, RIG_PML4) & A, A);
    assert_int_equal(mmu_translate(v, VA, MMU_WRITE, MMU_KERNEL, &page), 0);
    assert_int_equal(rig_peek64(rig, PTE) & (A | D), A | D);
    assert_int_equal(rig_peek64(rig, RIG_PD) & D, 0);
}

static void test_refused_write_sets_no_dirty_bit(void **state)
{
    struct rig *rig = *state;

    rig_map(rig, VA, 0x55000, P | US);
    assert_int_equal(access_error(rig, VA, MMU_WRITE, MMU_USER),
                     X86_PF_PRESENT | X86_PF_WRITE | X86_PF_USER);
    assert_int_equal(rig_peek64(rig, PTE) & D, 0);
}

static void test_error_codes_by_kind_of_access(void **state)
{
    struct rig *rig = *state;

    rig_map(rig, VA, 0x55000, 0);
    assert_int_equal(access_error(rig, VA, MMU_READ, MMU_KERNEL), 0);
    assert_int_equal(access_error(rig, VA, MMU_WRITE, MMU_USER), X86_PF_WRITE | X86_PF_USER);
    assert_int_equal(access_error(rig, VA, MMU_FETCH, MMU_USER), X86_PF_FETCH | X86_PF_USER);
    rig->st.efer &= ~(uint64_t)X86_EFER_NXE; /* without NX and SMEP a fetch is not told */
    assert_int_equal(access_error(rig, VA, MMU_FETCH, MMU_USER), X86_PF_USER);
    rig->st.efer |= X86_EFER_NXE;
    rig_map(rig, VA, 0x55000, P | RW);
    assert_int_equal(access_error(rig, VA, MMU_READ, MMU_USER), X86_PF_PRESENT | X86_PF_USER);
    rig_map(rig, VA, 0x55000, P | RW | US | NX);
    assert_int_equal(access_error(rig, VA, MMU_FETCH, MMU_USER),
                     X86_PF_PRESENT | X86_PF_USER | X86_PF_FETCH);
    assert_int_equal(access_error(rig, VA, MMU_READ, MMU_USER), -1);
}

static void test_upper_levels_restrict_rights(void **state)
{
    struct rig *rig = *state;

    rig_map(rig, VA, 0x55000, P | RW | US);
    rig_poke64(rig, RIG_PDPT, RIG_PD | P | RW);
    assert_int_equal(access_error(rig, VA, MMU_READ, MMU_USER), X86_PF_PRESENT | X86_PF_USER);
    rig_poke64(rig, RIG_PDPT, RIG_PD | P | US);
    assert_int_equal(access_error(rig, VA, MMU_WRITE, MMU_KERNEL), X86_PF_PRESENT | X86_PF_WRITE);
    rig_poke64(rig, RIG_PDPT, RIG_PD | P | RW | US | NX);
    assert_int_equal(access_error(rig, VA, MMU_FETCH, MMU_KERNEL), X86_PF_PRESENT | X86_PF_FETCH);
}

static void test_write_protect_binds_the_supervisor_only_when_on(void **state)
{
    struct rig *rig = *state;

    rig_map(rig, VA, 0x55000, P);
    assert_int_equal(access_error(rig, VA, MMU_WRITE, MMU_KERNEL), X86_PF_PRESENT | X86_PF_WRITE);
    rig->st.cr0 &= ~(uint64_t)X86_CR0_WP;
    assert_int_equal(access_error(rig, VA, MMU_WRITE, MMU_KERNEL), -1);
    rig_map(rig, VA, 0x55000, P | US);
    assert_int_equal(access_error(rig, VA, MMU_WRITE, MMU_USER),
                     X86_PF_PRESENT | X86_PF_WRITE | X86_PF_USER);
}

static void test_smep_and_smap_keep_the_supervisor_off_user_pages(void **state)
{
    struct rig *rig = *state;

    rig_map(rig, VA, 0x55000, P | RW | US);
    assert_int_equal(access_error(rig, VA, MMU_FETCH, MMU_KERNEL), -1);
    assert_int_equal(access_error(rig, VA, MMU_READ, MMU_KERNEL), -1);
    rig->st.cr4 |= X86_CR4_SMEP | X86_CR4_SMAP;
    assert_int_equal(access_error(rig, VA, MMU_FETCH, MMU_KERNEL), X86_PF_PRESENT | X86_PF_FETCH);
    assert_int_equal(access_error(rig, VA, MMU_READ, MMU_KERNEL), X86_PF_PRESENT);
    assert_int_equal(access_error(rig, VA, MMU_WRITE, MMU_KERNEL), X86_PF_PRESENT | X86_PF_WRITE);
    assert_int_equal(access_error(rig, VA, MMU_READ, MMU_KERNEL_AC), -1);
    assert_int_equal(access_error(rig, VA, MMU_READ, MMU_USER), -1);
}

static void test_reserved_bits_fault(void **state)
{
    struct rig *rig = *state;

    rig_map(rig, VA, 0x55000 | 1ull << 51, P | RW | US);
    assert_int_equal(access_error(rig, VA, MMU_READ, MMU_KERNEL), X86_PF_PRESENT | X86_PF_RSVD);
    rig_map(rig, VA, 0x55000, P | RW | US | NX);
    rig->st.efer &= ~(uint64_t)X86_EFER_NXE;
    assert_int_equal(access_error(rig, VA, MMU_READ, MMU_KERNEL), X86_PF_PRESENT | X86_PF_RSVD);
    rig->st.efer |= X86_EFER_NXE;
    rig_poke64(rig, RIG_PD + 8, 0x210000 | P | RW | US | PS); /* not 2 MiB aligned */
    assert_int_equal(access_error(rig, 0x200000, MMU_READ, MMU_KERNEL),
                     X86_PF_PRESENT | X86_PF_RSVD);
    rig_poke64(rig, RIG_PML4, RIG_PDPT | P | RW | US | PS);
    assert_int_equal(access_error(rig, VA, MMU_READ, MMU_KERNEL), X86_PF_PRESENT | X86_PF_RSVD);
}

static void test_tables_outside_memory_fault(void **state)
{
    struct rig *rig = *state;

    rig_poke64(rig, RIG_PDPT, 0x40000000 | P | RW | US);
    assert_int_equal(access_error(rig, VA, MMU_READ, MMU_KERNEL), X86_PF_PRESENT | X86_PF_RSVD);
}

static void test_large_page_and_device_page(void **state)
{
    struct rig *rig = *state;
    struct engine_vcpu *v = start(rig);
    struct mmu_page page = {0};

    assert_int_equal(mmu_translate(v, 0x234567, MMU_WRITE, MMU_KERNEL, &page), 0);
    assert_int_equal(page.gpa, 0x234567);
    assert_int_equal(page.page_bytes, 2u << 20);
    assert_non_null(page.host);
    assert_int_equal(rig_peek64(rig, RIG_PD + 8) & (A | D), A | D);
    rig_map(rig, VA, 0xfee00000, P | RW);
    assert_int_equal(mmu_translate(v, VA, MMU_READ, MMU_KERNEL, &page), 0);
    assert_null(page.host);
    assert_int_equal(page.gpa, 0xfee00000);
}

static uint64_t read_u64(struct engine_vcpu *v, uint64_t va)
{
    uint64_t value = 0;

    assert_int_equal(mmu_read(v, va, &value, 8, mmu_current_mode(v)), 0);
    return value;
}

static void test_entries_stay_until_flushed(void **state)
{
    struct rig *rig = *state;
    struct engine_vcpu *v = start(rig);

    rig_poke64(rig, 0x55000, 0x55);
    rig_poke64(rig, 0x56000, 0x56);
    rig_map(rig, VA, 0x55000, P | RW);
    assert_int_equal(read_u64(v, VA), 0x55);
    rig_map(rig, VA, 0x56000, P | RW);
    assert_int_equal(read_u64(v, VA), 0x55);
    mmu_flush_page(v, VA + 8);
    assert_int_equal(read_u64(v, VA), 0x56);
    rig_map(rig, VA, 0x55000, P | RW);
    mmu_flush_non_global(v);
    assert_int_equal(read_u64(v, VA), 0x55);
}

static void test_global_entries_outlive_a_cr3_load(void **state)
{
    struct rig *rig = *state;
    struct engine_vcpu *v = start(rig);

    rig_poke64(rig, 0x55000, 0x55);
    rig_poke64(rig, 0x56000, 0x56);
    rig_map(rig, VA, 0x55000, P | RW | G);
    assert_int_equal(read_u64(v, VA), 0x55);
    rig_map(rig, VA, 0x56000, P | RW);
    mmu_flush_non_global(v);
    assert_int_equal(read_u64(v, VA), 0x55);
    mmu_flush_all(v);
    assert_int_equal(read_u64(v, VA), 0x56);
}

static void test_contexts_are_kept_by_pcid_when_asked(void **state)
{
    struct rig *rig = *state;
    struct engine_vcpu *v = start(rig);
    uint64_t base = v->st.cr3;

    rig_poke64(rig, 0x55000, 0x55);
    rig_poke64(rig, 0x56000, 0x56);
    rig_map(rig, VA, 0x55000, P | RW);
    assert_int_equal(read_u64(v, VA), 0x55);
    rig_map(rig, VA, 0x56000, P | RW);
    mmu_switch_context(v, base | 1, true); /* unknown as yet */
    assert_int_equal(read_u64(v, VA), 0x56);
    rig_map(rig, VA, 0x57000, P | RW);
    mmu_switch_context(v, base, true);
    assert_int_equal(read_u64(v, VA), 0x55);
    mmu_switch_context(v, base | 1, true);
    assert_int_equal(read_u64(v, VA), 0x56);
    mmu_switch_context(v, base, false);
    assert_int_equal(read_u64(v, VA), 0);
    mmu_forget_context(v, 1);
    mmu_switch_context(v, base | 1, true);
    assert_int_equal(read_u64(v, VA), 0);
}

static void test_all_contexts_end_with_a_full_flush(void **state)
{
    struct rig *rig = *state;
    struct engine_vcpu *v = start(rig);
    uint64_t base = v->st.cr3;

    rig_poke64(rig, 0x55000, 0x55);
    rig_map(rig, VA, 0x55000, P | RW);
    assert_int_equal(read_u64(v, VA), 0x55);
    mmu_switch_context(v, base | 1, true);
    rig_map(rig, VA, 0x56000, P | RW);
    mmu_flush_all(v);
    mmu_switch_context(v, base, true);
    assert_int_equal(read_u64(v, VA), 0);
}

static void test_invlpg_drops_all_of_a_large_page(void **state)
{
    struct rig *rig = *state;
    struct engine_vcpu *v = start(rig);

    rig_poke64(rig, 0x3ff000, 0x3f);
    assert_int_equal(read_u64(v, 0x3ff000), 0x3f);
    rig_poke64(rig, RIG_PD + 8, 0);
    mmu_flush_page(v, 0x200000); /* another 4 KiB piece of the same page */

    uint64_t value = 0;

    assert_int_equal(mmu_read(v, 0x3ff000, &value, 8, MMU_KERNEL), ENGINE_FAULT);
}

static void test_write_checks_both_pages_before_the_first_byte(void **state)
{
    struct rig *rig = *state;
    struct engine_vcpu *v = start(rig);
    uint64_t value = ~0ull;

    rig_map(rig, VA, 0x55000, P | RW);
    rig_map(rig, VA + 0x1000, 0x56000, P);
    assert_int_equal(mmu_write(v, VA + 0xffc, &value, 8, MMU_KERNEL), ENGINE_FAULT);
    assert_int_equal(v->fault.cr2, VA + 0x1000);
    assert_int_equal(rig_peek32(rig, 0x55ffc), 0);
}

static void test_code_pages_are_written_by_the_slow_path_only(void **state)
{
    struct rig *rig = *state;
    struct engine_vcpu *v = start(rig);
    const struct mmu_tlb_entry *entry = &v->tlb[MMU_KERNEL].write[(VA >> 12) % MMU_TLB_SETS];
    uint64_t value = 1;

    rig_map(rig, VA, 0x55000, P | RW);
    assert_int_equal(mmu_write(v, VA, &value, 8, MMU_KERNEL), 0);
    assert_int_equal(entry->tag, VA);
    mmu_protect_code_page(v, gpa(0x55000));
    assert_int_not_equal(entry->tag, VA);
    assert_int_equal(mmu_write(v, VA, &value, 8, MMU_KERNEL), 0);
    assert_int_not_equal(entry->tag, VA);
}

/* A unit may have checked a page, then have another take its place, and store to the first. */
static void test_what_a_unit_had_checked_is_waited_for(void **state)
{
    static struct engine_vcpu other ALIGNED(64);
    struct rig *rig = *state;
    struct engine_vcpu *v = start(rig);
    const uint64_t rival = VA ^ (1ull << 22) ^ (1ull << 12); /* of the same set */
    uint64_t value = 1;

    other.vm = v->vm;
    mmu_init(&other);
    v->vm->vcpu_count = 2;
    atomic_store(&v->vm->vcpus[1], &other);
    rig_map(rig, VA, 0x55000, P | RW);
    assert_int_equal(mmu_tlb_index(rival), mmu_tlb_index(VA));
    rig_poke64(rig, RIG_PD + (rival >> 21) * 8, P | RW | 0x80);
    assert_int_equal(mmu_write(v, VA, &value, 8, MMU_KERNEL), 0);
    assert_int_equal(mmu_write(v, rival + 8, &value, 8, MMU_KERNEL), 0);
    assert_int_equal(v->tlb[MMU_KERNEL].write[mmu_tlb_index(VA)].tag, rival & ~0xfffull);
    assert_int_equal(mmu_protect_code_page(&other, gpa(0x55000)), 1);
    atomic_store(&v->evicted_writes, 0);
    assert_int_equal(mmu_protect_code_page(&other, gpa(0x77000)), 0);
}

static void test_a_page_that_became_code_comes_back_without_write_entry(void **state)
{
    struct rig *rig = *state;
    struct engine_vcpu *v = start(rig);
    const struct mmu_tlb_entry *entry = &v->tlb[MMU_KERNEL].write[mmu_tlb_index(VA)];
    uint64_t base = v->st.cr3;
    uint64_t value = 1;

    rig_map(rig, VA, 0x55000, P | RW);
    assert_int_equal(mmu_write(v, VA, &value, 8, MMU_KERNEL), 0);
    mmu_switch_context(v, base | 1, true);
    assert_int_not_equal(entry->tag, VA);
    mmu_switch_context(v, base, true);
    assert_int_equal(entry->tag, VA);
    mmu_switch_context(v, base | 1, true);
    (void)mmu_protect_code_page(v, gpa(0x55000));
    mmu_switch_context(v, base, true);
    assert_int_not_equal(entry->tag, VA);
}

static void test_pae_and_32_bit_tables(void **state)
{
    struct rig *rig = *state;
    struct engine_vcpu *v;
    struct mmu_page page = {0};

    /* PAE: the PDPT of the rig serves; its entries may not have R/W and U/S. */
    rig_poke64(rig, RIG_PDPT, RIG_PD | P);
    rig->st.efer = X86_EFER_NXE;
    rig->st.cr3 = RIG_PDPT;
    rig->st.seg[X86_CS] = rig_segment(RIG_CS32, 0xc09b);
    v = start(rig);
    rig_map(rig, VA, 0x55000, P | RW | US);
    assert_int_equal(mmu_translate(v, VA, MMU_WRITE, MMU_USER, &page), 0);
    assert_int_equal(page.gpa, 0x55000);

    /* 32-bit with a 4 MiB page and a 4 KiB one. */
    rig->st.cr4 = X86_CR4_PSE;
    rig->st.cr3 = RIG_DATA;
    rig->st.efer = 0;
    v = start(rig);
    uint32_t directory[2] = {0x51000 | P | RW | US, P | RW | US | PS};
    uint32_t table[2] = {0x66000 | P | US, 0};

    rig_poke(rig, RIG_DATA, directory, sizeof(directory));
    rig_poke(rig, 0x51000, table, sizeof(table));
    assert_int_equal(mmu_translate(v, 0x400123, MMU_WRITE, MMU_USER, &page), 0);
    assert_int_equal(page.gpa, 0x123);
    assert_int_equal(page.page_bytes, 4u << 20);
    assert_int_equal(mmu_translate(v, 0x123, MMU_READ, MMU_USER, &page), 0);
    assert_int_equal(page.gpa, 0x66123);
    assert_int_equal(access_error(rig, 0x123, MMU_WRITE, MMU_USER),
                     X86_PF_PRESENT | X86_PF_WRITE | X86_PF_USER);
    assert_int_equal(rig_peek32(rig, 0x51000) & (A | D), A);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define CASE(name) cmocka_unit_test_setup_teardown(name, rig_setup, rig_teardown)
        CASE(test_walk_of_a_4k_page_finds_it_and_sets_accessed_and_dirty),
        CASE(test_refused_write_sets_no_dirty_bit),
        CASE(test_error_codes_by_kind_of_access),
        CASE(test_upper_levels_restrict_rights),
        CASE(test_write_protect_binds_the_supervisor_only_when_on),
        CASE(test_smep_and_smap_keep_the_supervisor_off_user_pages),
        CASE(test_reserved_bits_fault),
        CASE(test_tables_outside_memory_fault),
        CASE(test_large_page_and_device_page),
        CASE(test_entries_stay_until_flushed),
        CASE(test_global_entries_outlive_a_cr3_load),
        CASE(test_contexts_are_kept_by_pcid_when_asked),
        CASE(test_all_contexts_end_with_a_full_flush),
        CASE(test_invlpg_drops_all_of_a_large_page),
        CASE(test_write_checks_both_pages_before_the_first_byte),
        CASE(test_code_pages_are_written_by_the_slow_path_only),
        CASE(test_what_a_unit_had_checked_is_waited_for),
        CASE(test_a_page_that_became_code_comes_back_without_write_entry),
        CASE(test_pae_and_32_bit_tables),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
