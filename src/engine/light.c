/*
 * What translated code calls while the guest's vector registers are live: the
 * slow path of a memory access and the lookup of branch targets. Compiled for
 * general registers only, and calls nothing that is not.
 */
#include "engine/translate_int.h"

#define LIGHT_XSAVE_MASK (X86_XCR0_X87 | X86_XCR0_SSE | X86_XCR0_AVX)
#define LIGHT_XSAVE_BYTES 1024u
#define LIGHT_XSAVE_HEADER 512u
#define PAGE_MASK ((uint64_t)GMEM_PAGE_BYTES - 1)

/* A hint that is wrong less often than this may be so. */
#define HINT_RARE_CYCLES 1000u
#define HINT_SAMPLES_MAX 3u
/* A site whose window failed so often loses it. */
#define RANGE_SAMPLES_MAX 16u
#define SITE_FORGET_CYCLES 1000000u

static void vector_save(uint8_t *area)
{
    volatile uint64_t *header = (volatile uint64_t *)(void *)(area + LIGHT_XSAVE_HEADER);

    /* XSAVE64 leaves most of the header as it was. No memset(): that may use what is to be kept. */
    for (unsigned i = 0; i < 8; i++) {
        header[i] = 0;
    }
    __asm__ volatile("xsave64 (%0)" : : "r"(area), "a"(LIGHT_XSAVE_MASK), "d"(0) : "memory");
}

static void vector_restore(const uint8_t *area)
{
    __asm__ volatile("xrstor64 (%0)" : : "r"(area), "a"(LIGHT_XSAVE_MASK), "d"(0) : "memory");
}

static unsigned fpu_mode(const struct vcpu_state *st)
{
    unsigned mode = 0;

    if ((st->cr0 & (X86_CR0_EM | X86_CR0_TS)) == 0) {
        if ((st->cr4 & X86_CR4_OSFXSR) != 0) {
            mode |= UNIT_MODE_SSE;
        }
    }
    if ((st->cr0 & X86_CR0_TS) == 0 && (st->cr4 & X86_CR4_OSXSAVE) != 0 &&
        (~st->xcr0 & (X86_XCR0_SSE | X86_XCR0_AVX)) == 0) {
        mode |= UNIT_MODE_AVX;
    }
    return mode;
}

int light_unit_mode(const struct engine_vcpu *v)
{
    const struct vcpu_state *st = &v->st;
    unsigned cpl = vcpu_state_cpl(st);
    unsigned mode;

    if ((st->efer & X86_EFER_LMA) == 0 || (st->seg[X86_CS].access_rights & X86_AR_L) == 0) {
        return -1;
    }
    if ((cpl != 0 && cpl != 3) || (st->rflags & X86_FLAG_TF) != 0 || (st->dr[7] & 0xff) != 0) {
        return -1;
    }
    if (cpl == 0 && v->mirror_off && v->vm->translator->is_mirrored) {
        return -1;
    }
    if (v->debug.single_step || v->debug.breakpoint_count != 0) {
        return -1;
    }
    if (cpl == 3 && (st->rflags & X86_FLAG_AC) != 0 && (st->cr0 & X86_CR0_AM) != 0) {
        return -1; /* alignment checks */
    }
    mode = (unsigned)mmu_current_mode(v) | fpu_mode(st);
    if (cpl == 0 || (st->cr4 & X86_CR4_TSD) == 0) {
        mode |= UNIT_MODE_TSC;
    }
    if ((st->cr4 & X86_CR4_SMAP) != 0) {
        mode |= UNIT_MODE_SMAP;
    }
    if ((st->cr4 & X86_CR4_FSGSBASE) != 0) {
        mode |= UNIT_MODE_FSGSBASE;
    }
    return (int)mode;
}

static struct jump_entry *jump_table(const struct engine_vcpu *v, unsigned table)
{
    return v->hot.jump->entries + jump_cache_start(table);
}

static uint16_t *jump_used(const struct engine_vcpu *v, unsigned table)
{
    return v->hot.jump->used + jump_cache_start(table);
}

/* Where translated code looks in user mode: the table of the current context. */
static void choose_user_table(struct engine_vcpu *v)
{
    v->hot.jump_table[MMU_USER] = jump_table(v, jump_cache_table(MMU_USER) + v->context);
}

void light_init_jump_cache(struct engine_vcpu *v)
{
    for (unsigned table = 0; table < JUMP_CACHE_TABLES; table++) {
        v->hot.jump_count[table] = 0;
        v->hot.jump_local[table] = false;
        jump_table(v, table)[0].minus_rip = jump_cache_empty(0); /* the others: 0 */
    }
    v->hot.jump_table[MMU_KERNEL] = jump_table(v, jump_cache_table(MMU_KERNEL));
    v->hot.jump_table[MMU_KERNEL_AC] = jump_table(v, jump_cache_table(MMU_KERNEL_AC));
    choose_user_table(v);
}

static unsigned page_bit(uint64_t va)
{
    return (unsigned)((va >> GMEM_PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> 40) & (JUMP_PAGE_BITS - 1);
}

static void flush_table(struct engine_vcpu *v, unsigned table)
{
    const uint16_t *used = jump_used(v, table);

    for (uint32_t i = 0; i < v->hot.jump_count[table]; i++) {
        jump_table(v, table)[used[i]].minus_rip = jump_cache_empty(used[i]);
    }
    v->hot.jump_count[table] = 0;
    v->hot.jump_local[table] = false;
}

/* A unit that crosses into the page begins in the one before it. */
static void flush_page(struct engine_vcpu *v, unsigned table, uint64_t va)
{
    uint64_t page = va >> GMEM_PAGE_SHIFT;
    uint16_t *used = jump_used(v, table);

    for (uint32_t i = 0; i < v->hot.jump_count[table]; i++) {
        struct jump_entry *entry = &jump_table(v, table)[used[i]];

        if (page - (entry->page >> GMEM_PAGE_SHIFT) <= 1) {
            entry->minus_rip = jump_cache_empty(used[i]);
            used[i] = used[--v->hot.jump_count[table]];
            i--;
        }
    }
}

/*
 * The page's bit stays only while an entry needs it, else each later flush of a page with that bit
 * would look through all tables in vain.
 */
static void drop_page_bit(struct engine_vcpu *v, uint64_t va)
{
    const unsigned bit = page_bit(va);

    if ((v->hot.jump_pages[bit / 64] >> (bit % 64) & 1) == 0) {
        return;
    }
    for (unsigned table = 0; table < JUMP_CACHE_TABLES; table++) {
        for (uint32_t i = 0; i < v->hot.jump_count[table]; i++) {
            if (page_bit(jump_table(v, table)[jump_used(v, table)[i]].page) == bit) {
                return;
            }
        }
    }
    v->hot.jump_pages[bit / 64] &= ~(1ull << (bit % 64));
}

void light_flush_jump_cache(struct engine_vcpu *v)
{
    for (unsigned i = 0; i < JUMP_PAGE_BITS / 64; i++) {
        /* Atomic, so that no compiler makes a call of memset() from the loop. */
        __atomic_store_n(&v->hot.jump_pages[i], 0, __ATOMIC_RELAXED);
    }
    for (unsigned table = 0; table < JUMP_CACHE_TABLES; table++) {
        flush_table(v, table);
    }
}

static bool may_have_entries(const struct engine_vcpu *v, uint64_t va)
{
    return (v->hot.jump_pages[page_bit(va) / 64] >> (page_bit(va) % 64) & 1) != 0;
}

/* The table for code of the mode in the current context. */
static unsigned current_table(const struct engine_vcpu *v, unsigned mode)
{
    unsigned table = jump_cache_table(mode & UNIT_MODE_MMU);

    return (mode & UNIT_MODE_MMU) == MMU_USER ? table + v->context : table;
}

void light_on_mmu_flush(struct engine_vcpu *v, enum mmu_flush what, uint64_t va)
{
    const unsigned user = current_table(v, MMU_USER);

    if (what == MMU_FLUSH_PAGE && !may_have_entries(v, va) &&
        !may_have_entries(v, va - GMEM_PAGE_BYTES)) {
        return;
    }
    choose_user_table(v);
    for (unsigned table = 0; table < JUMP_CACHE_TABLES; table++) {
        bool is_current = table < jump_cache_table(MMU_USER) || table == user;

        if (what == MMU_FLUSH_PAGE) {
            if (is_current || v->hot.jump_global) {
                flush_page(v, table, va);
            }
        } else if (what == MMU_FLUSH_ALL || (is_current && v->hot.jump_local[table] &&
                                             (what != MMU_FLUSH_SWITCH || table != user))) {
            flush_table(v, table);
        }
    }
    if (what == MMU_FLUSH_PAGE) {
        drop_page_bit(v, va);
        drop_page_bit(v, va - GMEM_PAGE_BYTES);
    }
}

void light_give_flags(struct engine_vcpu *v)
{
    uint64_t flags = v->hot.flags;

    v->st.rflags = (v->st.rflags & ~(uint64_t)X86_FLAGS_ARITH) |
                   ((flags >> 8) & (X86_FLAGS_ARITH & 0xff)) | ((flags & 1) != 0 ? X86_FLAG_OF : 0);
}

void light_take_flags(struct engine_vcpu *v)
{
    v->hot.flags = (v->st.rflags & 0xff) << 8 | ((v->st.rflags & X86_FLAG_OF) != 0 ? 1u : 0u);
    v->st.rflags &= ~(uint64_t)(X86_FLAGS_ARITH | X86_FLAG_RF);
}

/* The access of hot.site. */
static struct unit_access missed_access(const struct engine_vcpu *v)
{
    const struct translator *t = v->vm->translator;
    uint32_t code;

    if (v->hot.site != COMPACT_SITE) {
        return t->accesses[v->hot.site];
    }
    code = (uint32_t)(v->hot.check_return - (uintptr_t)t->rx) - COMPACT_DATA_BYTES;
    return (struct unit_access){.code = code,
                                .size = t->rx[code],
                                .mode = MMU_USER,
                                .flags = t->rx[code + 1] & ((1u << COMPACT_REG_SHIFT) - 1)};
}

void light_undo_access(struct engine_vcpu *v)
{
    const struct translator *t = v->vm->translator;
    uint32_t code = missed_access(v).code;
    const struct unit *unit = code_cache_unit_at(t, code_rx(t, code));
    const struct unit_insn at = unit_insn_at(unit, code);

    for (unsigned r = 0; r < X86_GPR_COUNT; r++) {
        if ((at.spilled & REG_BIT(r)) != 0) {
            v->st.gpr[r] = v->hot.spill[r];
        }
    }
    v->st.rip = v->hot.page + at.offset;
}

struct unit *light_find(struct engine_vcpu *v, unsigned mode)
{
    const uint8_t *host;
    const uint8_t *next = NULL;
    uint64_t rip = v->st.rip;

    if (mmu_fetch_host(v, rip, &host) != 0 || host == NULL) {
        return NULL;
    }
    if ((rip & PAGE_MASK) > GMEM_PAGE_BYTES - INSN_MAX_BYTES &&
        mmu_fetch_host(v, (rip & ~PAGE_MASK) + GMEM_PAGE_BYTES, &next) != 0) {
        next = NULL;
    }
    return code_cache_find(v->vm->translator, (uintptr_t)host, mode, (uintptr_t)next);
}

/* indirect: as in struct found_entry. */
static void remember(struct engine_vcpu *v, unsigned mode, uint32_t indirect, bool is_local)
{
    const struct translator *t = v->vm->translator;
    unsigned cache = current_table(v, mode);
    uint32_t set = jump_cache_set(cache, v->st.rip);
    struct jump_entry *entry = &jump_table(v, cache)[set];

    if ((mode & UNIT_MODE_SINGLE) != 0) {
        return;
    }
    if ((mode & UNIT_MODE_REST) != v->hot.jump_mode) {
        light_flush_jump_cache(v);
        v->hot.jump_mode = mode & UNIT_MODE_REST;
    }
    if (entry->minus_rip == jump_cache_empty(set)) {
        jump_used(v, cache)[v->hot.jump_count[cache]++] = (uint16_t)set;
    }
    v->hot.jump_pages[page_bit(v->st.rip) / 64] |= 1ull << (page_bit(v->st.rip) % 64);
    if (is_local || !mmu_fetch_is_global(v, v->st.rip)) {
        v->hot.jump_local[cache] = true;
    } else if ((mode & UNIT_MODE_MMU) == MMU_USER) {
        v->hot.jump_global = true;
    }
    entry->minus_rip = 0 - v->st.rip;
    entry->page = v->st.rip & ~PAGE_MASK;
    entry->host = code_rx(t, indirect & ~FOUND_FLAGS_DEAD);
    entry->host_slot =
        (indirect & FOUND_FLAGS_DEAD) != 0 ? entry->host : (uintptr_t)t->restore_flags;
}

static uint32_t found_indirect(const struct unit *unit)
{
    return (unit->code + unit->indirect) | (unit->flags_dead ? FOUND_FLAGS_DEAD : 0);
}

void light_remember(struct engine_vcpu *v, const struct unit *unit)
{
    uint64_t next = (v->st.rip & ~PAGE_MASK) + GMEM_PAGE_BYTES;

    remember(v, unit->mode, found_indirect(unit),
             unit_crosses(unit) && !mmu_fetch_is_global(v, next));
}

/* Things that run() looks at before the next instruction. */
static bool must_look_around(const struct engine_vcpu *v)
{
    const struct x86_events *e = &v->st.events;

    return e->exception_pending || e->interrupt_pending || e->nmi_pending || e->sti_shadow ||
           e->mov_ss_shadow || v->st.mp_state != X86_MP_RUNNABLE ||
           (v->intr_check && (v->st.rflags & X86_FLAG_IF) != 0);
}

static void note_found(struct engine_vcpu *v, const struct unit *unit)
{
    uint64_t key = found_key(unit->guest, unit->mode);
    struct found_entry *found = &v->hot.found[found_set(key)];

    found->entry = unit_entry(unit);
    found->indirect = found_indirect(unit);
    __atomic_store_n(&found->key, key, __ATOMIC_SEQ_CST);
    /* Who kills a unit marks it dead first, and looks here then. */
    if (atomic_load(&unit->dead)) {
        __atomic_store_n(&found->key, 0, __ATOMIC_SEQ_CST);
    }
}

static void begin_unit(struct engine_vcpu *v)
{
    /* What the last unit checked is done with. */
    atomic_store_explicit(&v->evicted_writes, 0, memory_order_release);
    v->hot.single = false;
    v->hot.leave = LEAVE_KICK; /* should there be one */
    v->hot.page = v->st.rip & ~PAGE_MASK;
}

static uint64_t go_to_unit(struct engine_vcpu *v, uint32_t entry)
{
    begin_unit(v);
    return code_rx(v->vm->translator, entry);
}

/*
 * On to st.rip by the jump cache, as a branch there goes: with the flags in the host's and R10 and
 * R11 borrowed. When the unit has died, its entry leads to the lookup. 0: it is not in the cache.
 */
static uint64_t go_by_jump_cache(struct engine_vcpu *v, unsigned mode)
{
    unsigned table = current_table(v, mode);
    const struct jump_entry *entry = &jump_table(v, table)[jump_cache_set(table, v->st.rip)];

    if (entry->minus_rip != 0 - v->st.rip || (mode & UNIT_MODE_REST) != v->hot.jump_mode ||
        v->hot.single) {
        return 0;
    }
    v->hot.spill[X86_R10] = v->st.gpr[X86_R10];
    v->hot.spill[X86_R11] = v->st.gpr[X86_R11];
    v->hot.target = v->st.rip;
    v->hot.flags_in_slot = 0;
    begin_unit(v);
    return entry->host;
}

/* On to st.rip; is_branch: it was not in the jump cache. */
static uint64_t dispatch(struct engine_vcpu *v, bool is_branch)
{
    int state = light_unit_mode(v);
    unsigned mode = (unsigned)state | (v->hot.single ? UNIT_MODE_SINGLE : 0u);
    const uint8_t *host;
    const struct found_entry *found;
    struct unit *unit;
    uint64_t host_entry = state < 0 || is_branch ? 0 : go_by_jump_cache(v, mode);

    if (host_entry != 0) {
        return host_entry;
    }
    v->hot.stat_jumps++;
    v->hot.leave = LEAVE_LOOKUP;
    if (state < 0 || mmu_fetch_host(v, v->st.rip, &host) != 0 || host == NULL) {
        return 0;
    }
    found = &v->hot.found[found_set(found_key((uintptr_t)host, mode))];
    if (found->key == found_key((uintptr_t)host, mode)) {
        remember(v, mode, found->indirect, false);
        return go_to_unit(v, found->entry);
    }
    unit = light_find(v, mode);
    if (unit == NULL) {
        return 0;
    }
    light_remember(v, unit);
    if (!unit_crosses(unit)) {
        note_found(v, unit);
    }
    return go_to_unit(v, unit_entry(unit));
}

/* After the interpreter's code ran with the vector registers live: r is what it gave. */
static uint64_t go_on(struct engine_vcpu *v, int r)
{
    light_take_flags(v);
    if (r != 0) {
        v->hot.leave = LEAVE_EXIT;
        return 0;
    }
    if (must_look_around(v)) {
        v->hot.leave = LEAVE_KICK;
        return 0;
    }
    if (v->vm->native_user != NULL && vcpu_state_cpl(&v->st) == 3) {
        if (v->native.wanted && !v->native.is_paused) {
            v->hot.leave = LEAVE_KICK;
            return 0;
        }
        native_user_note_user(v);
    }
    v->hot.odd = true; /* often: the end of an interrupt */
    return dispatch(v, false);
}

/* Fills the TLB for the access; false: it cannot be done inline. */
static bool fill(struct engine_vcpu *v, const struct unit_access *a, int *ret_r)
{
    uint64_t va = v->hot.va;
    bool is_write = (a->flags & ACCESS_WRITE) != 0;
    const struct mmu_tlb *tlb = &v->tlb[a->mode];
    const struct mmu_tlb_entry *table = is_write ? tlb->write : tlb->read;
    struct mmu_page page;

    *ret_r = 0;
    if ((va & PAGE_MASK) + a->size > GMEM_PAGE_BYTES ||
        ((a->flags & ACCESS_LOCKED) != 0 && crosses_line(va, a->size))) {
        return false;
    }
    if (table[mmu_tlb_index(va)].tag == (va & ~PAGE_MASK) && (va & ~PAGE_MASK) != MMU_TLB_EMPTY) {
        return true;
    }
    *ret_r = mmu_fill(v, va, is_write ? MMU_WRITE : MMU_READ, (enum mmu_mode)a->mode, &page);
    return *ret_r == 0 && page.host != NULL && table[mmu_tlb_index(va)].tag == (va & ~PAGE_MASK);
}

/* The host address for an element; NULL: the interpreter is to look at it. */
static const uint8_t *element(struct engine_vcpu *v, uint64_t va, unsigned bytes, unsigned mode)
{
    const struct mmu_tlb_entry *entry = &v->tlb[mode].read[mmu_tlb_index(va)];
    struct mmu_page page;

    if ((va & PAGE_MASK) + bytes > GMEM_PAGE_BYTES || (va & ~PAGE_MASK) == MMU_TLB_EMPTY) {
        return NULL;
    }
    if (entry->tag != (va & ~PAGE_MASK) &&
        (mmu_fill(v, va, MMU_READ, (enum mmu_mode)mode, &page) != 0 || page.host == NULL ||
         entry->tag != (va & ~PAGE_MASK))) {
        return NULL;
    }
    return (const uint8_t *)(uintptr_t)(va + entry->addend);
}

/* VGATHER and VPGATHER on hot.gather; false: not done, and nothing is changed for the guest. */
static bool gather(struct engine_vcpu *v, const struct unit_access *a)
{
    struct gather_operands *g = &v->hot.gather;
    unsigned bytes = (a->size & GATHER_QUADWORDS) != 0 ? 8 : 4;
    unsigned index_bytes = (a->size & GATHER_INDEX_QUADWORDS) != 0 ? 8 : 4;
    unsigned shift = a->size >> GATHER_SCALE_SHIFT & 3u;
    unsigned count =
        ((a->size & GATHER_YMM) != 0 ? 32u : 16u) / (bytes > index_bytes ? bytes : index_bytes);

    for (unsigned i = 0; i < count; i++) {
        int64_t offset = index_bytes == 8 ? ((const int64_t *)(const void *)g->index)[i]
                                          : ((const int32_t *)(const void *)g->index)[i];
        uint64_t va = v->hot.va + ((uint64_t)offset << shift);
        const uint8_t *from;

        if ((g->mask[i * bytes + bytes - 1] & 0x80) == 0) {
            continue;
        }
        from = element(v, va, bytes, a->mode);
        if (from == NULL) {
            return false;
        }
        if (bytes == 8) {
            ((uint64_t *)(void *)g->result)[i] = *(const uint64_t *)(const void *)from;
        } else {
            ((uint32_t *)(void *)g->result)[i] = *(const uint32_t *)(const void *)from;
        }
    }
    /* Atomic, so that no compiler makes a call of memset() from the loop. */
    for (unsigned i = count * bytes / 4; i < 8; i++) {
        __atomic_store_n(&((uint32_t *)(void *)g->result)[i], 0, __ATOMIC_RELAXED);
    }
    for (unsigned i = 0; i < 4; i++) {
        ((uint64_t *)(void *)g->mask)[i] = 0;
    }
    return true;
}

/* The site failed max times, and never long ago: it is translated anew. */
static void note_site(struct engine_vcpu *v, const struct unit_access *a, unsigned max,
                      uint64_t now)
{
    uint8_t area[LIGHT_XSAVE_BYTES] ALIGNED(64);
    struct site_sample *sample = &v->hot.samples[a->code % SAMPLED_SITES];

    if (sample->site != a->code || now - sample->at > SITE_FORGET_CYCLES) {
        sample->site = a->code;
        sample->count = 0;
    }
    sample->at = now;
    if (++sample->count >= max) {
        sample->count = 0;
        vector_save(area);
        translate_note_site(v, a->code, max == RANGE_SAMPLES_MAX);
        vector_restore(area);
    }
}

/*
 * One of many wrong hints. When they are frequent and the site is among them
 * again and again, it is translated anew; this unit goes on until it ends, and is
 * not entered again. Those of a process that begins are frequent, but not the same.
 */
static void sample_hint(struct engine_vcpu *v, const struct unit_access *a)
{
    uint64_t now = __builtin_ia32_rdtsc();
    uint64_t took = now - v->hot.hint_clock;

    v->hot.hint_clock = now;
    v->hot.hint_budget = HINT_SAMPLE;
    if (took <= HINT_SAMPLE * HINT_RARE_CYCLES) {
        note_site(v, a, HINT_SAMPLES_MAX, now);
    }
}

/* The last of so many checks by thunk. */
static void sample_check(struct engine_vcpu *v)
{
    uint8_t area[LIGHT_XSAVE_BYTES] ALIGNED(64);

    v->hot.check_budget = COMPACT_CHECKS_PER_SAMPLE;
    vector_save(area);
    translate_sample(v);
    vector_restore(area);
}

/* Where the code goes on when the TLB holds the access now. */
static uint64_t go_on_with_access(struct engine_vcpu *v, const struct unit_access *a)
{
    const struct translator *t = v->vm->translator;

    v->hot.leave = LEAVE_KICK_ACCESS; /* should there be one */
    if (v->hot.site == COMPACT_SITE) {
        bool is_write = (a->flags & ACCESS_WRITE) != 0;
        const struct mmu_tlb *tlb = &v->tlb[a->mode];
        const struct mmu_tlb_entry *table = is_write ? tlb->write : tlb->read;

        v->st.gpr[t->rx[a->code + 1] >> COMPACT_REG_SHIFT] = table[mmu_tlb_index(v->hot.va)].addend;
        return v->hot.check_return;
    }
    v->hot.hint[v->hot.site % ACCESS_HINTS] =
        mmu_tlb_index(v->hot.va) * (uint32_t)sizeof(struct mmu_tlb_entry);
    return code_rx(t, a->code);
}

uint64_t light_access(void *vcpu)
{
    struct engine_vcpu *v = vcpu;
    struct unit_access a = missed_access(v);
    int r;

    v->hot.stat_accesses++;
    if (v->hot.check_budget < 0) {
        sample_check(v);
    }
    if ((a.flags & ACCESS_GATHER) != 0) {
        v->hot.leave = gather(v, &a) ? LEAVE_KICK_ACCESS : LEAVE_ACCESS;
        return v->hot.leave == LEAVE_ACCESS ? 0 : code_rx(v->vm->translator, a.code);
    }
    if (v->hot.site != COMPACT_SITE && v->hot.hint_budget > HINT_SAMPLE) {
        sample_hint(v, &a);
    }
    if (fill(v, &a, &r)) {
        return go_on_with_access(v, &a);
    }
    v->hot.leave = LEAVE_ACCESS;
    if ((a.flags & ACCESS_RANGE) != 0) {
        /* Perhaps only a later access is in the way: on in a unit that looks at each. */
        light_undo_access(v);
        note_site(v, &a, RANGE_SAMPLES_MAX, __builtin_ia32_rdtsc());
        v->hot.stat_ranges++;
        v->hot.single = true;
        v->hot.leave = LEAVE_LOOKUP;
        return v->check != NULL ? 0 : dispatch(v, false);
    }
    if (r != 0 && LIGHT_INTERP && v->check == NULL && v->fault.vector == X86_VEC_PF &&
        (a.flags & ACCESS_ORDERED) == 0) {
        struct engine_fault fault = v->fault;

        v->hot.stat_faults++;
        light_undo_access(v);
        light_give_flags(v);
        return go_on(v, exception_deliver(v, &fault));
    }
    return 0;
}

uint64_t light_exit(void *vcpu)
{
    struct engine_vcpu *v = vcpu;
    struct unit_exit *exit;

    v->hot.odd = false;
    if (v->hot.exit == 0 && v->check == NULL) {
        return dispatch(v, true);
    }
    if (v->hot.exit == 0) {
        v->hot.leave = LEAVE_LOOKUP; /* lock step looks at each unit */
        return 0;
    }
    exit = &v->vm->translator->exits[v->hot.exit];
    v->st.rip = v->hot.page + (uint64_t)(int64_t)exit->target_offset;
    if (exit_kind(exit) == EXIT_HELPER) {
        if (v->check != NULL) {
            v->hot.leave = LEAVE_INTERP;
            return 0;
        }
        v->hot.stat_helpers[exit->kind_and_helper >> EXIT_HELPER_SHIFT]++;
        light_give_flags(v);
        return go_on(v, interp_step(v));
    }
    if (exit_kind(exit) == EXIT_CHAIN &&
        ((exit->state & EXIT_UNLINKABLE) != 0 || exit->taken < EXIT_LINK_AFTER) &&
        v->check == NULL) {
        if ((exit->state & EXIT_UNLINKABLE) == 0) {
            exit->taken++; /* several vCPUs may count at once: it is not exact */
        }
        return dispatch(v, false);
    }
    v->hot.leave = exit_kind(exit) == EXIT_CHAIN ? LEAVE_CHAIN : LEAVE_INTERP;
    return 0;
}

/* Stores of the interpreter end here, and it may run with the guest's vector registers live. */
void engine_invalidate_code(struct engine_vm *vm, gpa_t start, uint64_t len)
{
    uint8_t area[LIGHT_XSAVE_BYTES] ALIGNED(64);

    vector_save(area);
    translate_invalidate(vm, start, len);
    vector_restore(area);
}
