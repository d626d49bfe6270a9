/* Units by address and by page, linking and invalidation; see code_cache.h. */
#include "engine/code_cache.h"

#include "engine/engine_int.h"
#include "engine/thunk.h"
#include "engine/translate_int.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE_BUCKETS 8192u
#define PAGE_MASK ((uintptr_t)GMEM_PAGE_BYTES - 1)
#define LINE_SHIFT 6
#define ALL_LINES UINT64_MAX
/* Metadata that goes with a byte of code, from measurements: about a quarter. */
#define ARENA_SHARE(bytes) ((bytes) / 2)
#define ARENA_START 8u
#define UNIT_BYTES_MIN 96u /* of code, for the size of by_code */
#define EXIT_BYTES_MIN 24u
#define ACCESS_BYTES_MIN 48u
/* After this many writes beside the code of a page, its code is dropped too. */
#define HOT_MAX (CODE_CACHE_FILTER_BITS / 16)
#define SLOW_WRITES_MAX 64u
#define RELEASE_BYTES (1u << 20)
#define BRIDGE_BYTES_MAX 256u

static unsigned page_bucket(uintptr_t host)
{
    return (unsigned)((uint64_t)(host >> GMEM_PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> 40) &
           (PAGE_BUCKETS - 1);
}

static void *map_private(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);

    return p == MAP_FAILED ? NULL : p;
}

static int map_code(struct translator *t, struct err *err)
{
    int fd CLEANUP_CLOSE = memfd_create("corbel-code", MFD_CLOEXEC);
    void *rw;
    void *rx;

    if (fd < 0 || ftruncate(fd, t->size_bytes) != 0) {
        return err_set_errno(err, -errno, "cannot make the translation cache");
    }
    rw = mmap(NULL, t->size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    rx = mmap(NULL, t->size_bytes, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    t->rw = rw == MAP_FAILED ? NULL : rw;
    t->rx = rx == MAP_FAILED ? NULL : rx;
    if (t->rw == NULL || t->rx == NULL) {
        return err_set_errno(err, -errno, "cannot map the translation cache");
    }
    return 0;
}

static int map_tables(struct translator *t, struct err *err)
{
    bool has_all = true;

    t->arena_bytes = ARENA_SHARE(t->size_bytes);
    t->arena = map_private(t->arena_bytes);
    t->units = map_private(CODE_CACHE_BUCKETS * sizeof(*t->units));
    t->pages = map_private(PAGE_BUCKETS * sizeof(struct code_page *));
    t->by_code = map_private(t->size_bytes / UNIT_BYTES_MIN * sizeof(*t->by_code));
    t->exits = map_private(t->size_bytes / EXIT_BYTES_MIN * sizeof(*t->exits));
    t->accesses = map_private(t->size_bytes / ACCESS_BYTES_MIN * sizeof(*t->accesses));
    for (unsigned i = 0; i < FILTER_COUNT; i++) {
        t->filters[i] = map_private(CODE_CACHE_FILTER_BYTES);
        has_all = has_all && t->filters[i] != NULL;
    }
    if (!has_all || t->accesses == NULL || t->arena == NULL || t->units == NULL ||
        t->pages == NULL || t->by_code == NULL || t->exits == NULL) {
        return err_set(err, -ENOMEM, "no memory for the tables of the translation cache");
    }
    return 0;
}

static void unmap(void *p, size_t bytes)
{
    if (p != NULL) {
        (void)munmap(p, bytes);
    }
}

void code_cache_destroy(struct translator *t)
{
    if (t == NULL) {
        return;
    }
    unmap(t->rw, t->size_bytes);
    unmap(t->rx, t->size_bytes);
    unmap(t->arena, t->arena_bytes);
    unmap(t->units, CODE_CACHE_BUCKETS * sizeof(*t->units));
    unmap(t->pages, PAGE_BUCKETS * sizeof(struct code_page *));
    unmap(t->by_code, t->size_bytes / UNIT_BYTES_MIN * sizeof(*t->by_code));
    unmap(t->exits, t->size_bytes / EXIT_BYTES_MIN * sizeof(*t->exits));
    for (unsigned i = 0; i < FILTER_COUNT; i++) {
        unmap(t->filters[i], CODE_CACHE_FILTER_BYTES);
    }
    unmap(t->accesses, t->size_bytes / ACCESS_BYTES_MIN * sizeof(*t->accesses));
    free(t);
}

int code_cache_create(struct engine_vm *vm, uint64_t size_bytes, struct err *err,
                      struct translator **ret_translator)
{
    struct translator *t;
    int r;

    if (size_bytes < CODE_CACHE_MIN_BYTES || size_bytes > CODE_CACHE_MAX_BYTES) {
        return err_set(err, -EINVAL, "the translation cache must have between %u KiB and %u MiB",
                       CODE_CACHE_MIN_BYTES >> 10, CODE_CACHE_MAX_BYTES >> 20);
    }
    t = calloc(1, sizeof(*t));
    if (t == NULL) {
        return err_set(err, -ENOMEM, "no memory for the translator");
    }
    t->vm = vm;
    t->vcpu_at = (struct emit_vcpu){EMIT_SEG_GS, 0};
    if (vm->mirror != NULL) {
        t->is_mirrored = true;
        t->vcpu_at = (struct emit_vcpu){EMIT_SEG_FS, vm->vcpu_from_fs};
    }
    t->size_bytes = (uint32_t)(size_bytes & ~(uint64_t)PAGE_MASK);
    r = map_code(t, err);
    if (r == 0) {
        r = map_tables(t, err);
    }
    if (r != 0) {
        code_cache_destroy(t);
        return r;
    }
    t->exit_count = 1;
    t->arena_used = ARENA_START;
    thunk_emit_all(t);
    t->thunk_bytes = t->used_bytes;
    *ret_translator = t;
    return 0;
}

bool code_cache_room(const struct translator *t)
{
    size_t tables = sizeof(struct unit) + UNIT_MARKS_MAX * UNIT_MARK_BYTES_MAX +
                    2 * sizeof(struct code_page) + 2 * sizeof(struct code_page_ref);

    return t->size_bytes - t->used_bytes >= UNIT_CODE_MAX &&
           t->arena_bytes - t->arena_used >= tables + 64 &&
           t->unit_count < t->size_bytes / UNIT_BYTES_MIN &&
           t->access_count + UNIT_ACCESSES_MAX <= t->size_bytes / ACCESS_BYTES_MIN &&
           t->exit_count + UNIT_EXITS_MAX <= t->size_bytes / EXIT_BYTES_MIN;
}

void *code_cache_alloc_as_is(struct translator *t, size_t bytes)
{
    void *p = t->arena + t->arena_used;

    t->arena_used += (bytes + 7) & ~(size_t)7;
    return p;
}

void *code_cache_alloc(struct translator *t, size_t bytes)
{
    return memset(code_cache_alloc_as_is(t, bytes), 0, bytes);
}

static struct code_page *page_find(const struct translator *t, uintptr_t host)
{
    struct code_page *page = t->pages[page_bucket(host)];

    while (page != NULL && page->host != host) {
        page = page->next;
    }
    return page;
}

uint64_t code_cache_lines(const struct translator *t, uintptr_t page)
{
    const struct code_page *known = page_find(t, page);

    return known == NULL ? 0 : known->lines;
}

static struct code_page *page_get(struct translator *t, uintptr_t host, gpa_t gpa_)
{
    struct code_page *page = page_find(t, host);
    struct code_page **bucket = &t->pages[page_bucket(host)];

    if (page == NULL) {
        page = code_cache_alloc(t, sizeof(*page));
        page->host = host;
        page->gpa = gpa(gpa_.v & ~(uint64_t)PAGE_MASK);
        page->next = *bucket;
        *bucket = page;
    }
    return page;
}

static void clear_mark(struct translator *t, gpa_t page)
{
    (void)atomic_fetch_and(gmem_page_flags(t->vm->gmem, page), (uint8_t)~GMEM_PAGE_CODE);
}

void code_cache_unmark(struct translator *t, const uint8_t *host, gpa_t gpa_)
{
    const struct code_page *page = page_find(t, (uintptr_t)host & ~PAGE_MASK);

    if (page == NULL || page->lines == 0) {
        clear_mark(t, gpa_);
    }
}

static void filter_add(struct translator *t, enum code_cache_filter filter, uintptr_t guest)
{
    unsigned bit = code_cache_filter_bit(guest);

    (void)__atomic_fetch_or(&t->filters[filter][bit / 64], 1ull << (bit % 64), __ATOMIC_RELAXED);
}

void code_cache_add_checked(struct translator *t, uintptr_t guest)
{
    filter_add(t, FILTER_CHECKED, guest);
    t->stat_checked++;
}

void code_cache_add_roaming(struct translator *t, uintptr_t guest)
{
    filter_add(t, FILTER_ROAMING, guest);
    t->stat_roaming++;
}

static void add_hot(struct translator *t, uintptr_t guest)
{
    if (++t->hot_count > HOT_MAX) {
        memset(t->filters[FILTER_HOT], 0, CODE_CACHE_FILTER_BYTES);
        t->hot_count = 1;
    }
    filter_add(t, FILTER_HOT, guest);
    t->stat_hot++;
}

void code_cache_add_narrow(struct translator *t, uintptr_t guest)
{
    filter_add(t, FILTER_NARROW, guest);
    t->stat_narrow++;
}

/*
 * Code is hardly written again: its pages in the RW mapping are given up, MiB by
 * MiB (they stay in the memfd, and come back where a branch is linked).
 */
static void release_written(struct translator *t)
{
    while (t->used_bytes - t->released_bytes >= 2 * RELEASE_BYTES) {
        (void)madvise(t->rw + t->released_bytes, RELEASE_BYTES, MADV_DONTNEED);
        t->released_bytes += RELEASE_BYTES;
    }
}

static uint64_t lines_of(uint64_t offset, uint64_t len)
{
    uint64_t first = offset >> LINE_SHIFT;
    uint64_t last = (offset + len - 1) >> LINE_SHIFT;
    uint64_t upto = last >= 63 ? ALL_LINES : (1ull << (last + 1)) - 1;

    return upto & ~((1ull << first) - 1);
}

static uint64_t lines_of_unit(const struct unit *unit)
{
    uint64_t first = (uint64_t)(unit->first_line & UNIT_LINE) << LINE_SHIFT;
    uint64_t last = (uint64_t)(unit->last_line & UNIT_LINE) << LINE_SHIFT;

    return lines_of(first, last - first + 1);
}

void code_cache_publish(struct translator *t, struct unit *unit, gpa_t gpa_, gpa_t gpa_next)
{
    unsigned bucket = code_cache_bucket(unit->guest, unit->mode);
    struct code_page *page = page_get(t, unit->guest & ~PAGE_MASK, gpa_);

    release_written(t);
    if ((unit->mode & UNIT_MODE_SINGLE) == 0) {
        filter_add(t, FILTER_HEADS, unit->guest);
    }
    unit->page_next = page->units;
    page->units = unit_ref_of(t, unit);
    page->lines |= lines_of_unit(unit);
    if (unit_crosses(unit)) {
        struct code_page *second = page_get(t, unit_guest_next(unit), gpa_next);
        struct code_page_ref *ref = code_cache_alloc(t, sizeof(*ref));

        ref->unit = unit;
        ref->next = second->crossing;
        second->crossing = ref;
        second->lines |= 1; /* an instruction has at most 15 bytes */
    }
    t->by_code[t->unit_count] = unit_ref_of(t, unit);
    __atomic_store_n(&t->unit_count, t->unit_count + 1, __ATOMIC_RELEASE);
    unit->next = atomic_load_explicit(&t->units[bucket], memory_order_relaxed);
    atomic_store_explicit(&t->units[bucket], unit_ref_of(t, unit), memory_order_release);
}

/* Patched through RW; displacements are the same in both mappings. */
static void patch(struct translator *t, uint32_t site, uint32_t target)
{
    emit_patch(t->rw + site, t->rw + target);
}

/*
 * Where the branch of the exit leads when target borrows other registers: code that gives back
 * what only the exit's unit borrows. False: there is no room.
 */
static bool bridge_to(struct translator *t, struct unit_exit *exit, const struct unit *target)
{
    const struct unit *unit = unit_get(t, exit->unit);
    struct emit e = {t->rw + t->used_bytes, t->vcpu_at};

    if (exit->bridge == 0) {
        if (t->size_bytes - t->used_bytes < BRIDGE_BYTES_MAX) {
            return false;
        }
        exit->bridge = t->used_bytes;
        for (unsigned rest = unit->body_spilled; rest != 0; rest &= rest - 1) {
            unsigned r = (unsigned)__builtin_ctz(rest);

            emit_gs_load(&e, r, GS_SPILL(r));
        }
        (void)emit_jmp(&e);
        t->used_bytes = code_offset(t, e.p);
    }
    e.p = t->rw + exit->bridge + EMIT_GS_BYTES * (unsigned)__builtin_popcount(unit->body_spilled);
    patch(t, code_offset(t, emit_jmp_site(&e)), unit_entry(target));
    patch(t, unit->code + exit->branch, exit->bridge);
    return true;
}

void code_cache_link_lookup(struct translator *t, struct unit_exit *exit)
{
    const struct unit *unit = unit_get(t, exit->unit);
    const struct thunk_dispatch *dispatch =
        &t->dispatch[(unit->code >> 6) % THUNK_DISPATCH_COPIES][exit->mode & UNIT_MODE_MMU];
    struct emit e = {t->rw + t->used_bytes, t->vcpu_at};
    uint32_t lookup = t->used_bytes;

    if ((exit->state & (EXIT_LINKED | EXIT_UNLINKABLE)) != 0 || atomic_load(&unit->dead) ||
        t->size_bytes - t->used_bytes < BRIDGE_BYTES_MAX) {
        return;
    }
    for (unsigned rest = unit->body_spilled; rest != 0; rest &= rest - 1) {
        unsigned r = (unsigned)__builtin_ctz(rest);

        emit_gs_load(&e, r, GS_SPILL(r));
    }
    emit_gs_store_imm32(&e, GS_HOT(offset), (uint32_t)exit->target_offset);
    emit_jmp_to(&e, t->rw + (dispatch->offset_in_slot[0] - t->rx));
    t->used_bytes = code_offset(t, e.p);
    patch(t, unit->code + exit->branch, lookup);
    exit->state |= EXIT_UNLINKABLE;
}

void code_cache_link(struct translator *t, struct unit_exit *exit, struct unit *target)
{
    const struct unit *unit = unit_get(t, exit->unit);

    if ((exit->state & EXIT_LINKED) != 0 || atomic_load(&target->dead) ||
        atomic_load(&unit->dead)) {
        return;
    }
    if (unit->body_spilled == target->body_spilled) {
        patch(t, unit->code + exit->branch, target->body);
    } else if (!bridge_to(t, exit, target)) {
        exit->state |= EXIT_UNLINKABLE;
        return;
    }
    exit->state |= EXIT_LINKED;
    exit->next_incoming = target->incoming;
    target->incoming = (uint32_t)(exit - t->exits);
}

/* No vCPU is to find the unit again in its own small table. */
static void forget_found(struct translator *t, const struct unit *unit)
{
    uint64_t key = found_key(unit->guest, unit->mode);

    for (unsigned i = 0; i < t->vm->vcpu_count; i++) {
        struct engine_vcpu *v = atomic_load(&t->vm->vcpus[i]);
        uint64_t expected = key;

        if (v != NULL) {
            (void)__atomic_compare_exchange_n(&v->hot.found[found_set(key)].key, &expected, 0,
                                              false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        }
    }
}

static void unit_kill(struct translator *t, struct unit *unit)
{
    if (atomic_load(&unit->dead)) {
        return;
    }
    atomic_store(&unit->dead, true);
    forget_found(t, unit);
    t->stat_invalidated++;
    for (uint32_t i = unit->incoming; i != 0; i = t->exits[i].next_incoming) {
        struct unit_exit *exit = &t->exits[i];
        uint32_t code = unit_get(t, exit->unit)->code;

        patch(t, code + exit->branch, code + exit->stub);
        exit->state &= (uint8_t)~EXIT_LINKED;
    }
    unit->incoming = 0;

    /* Jump caches may still lead here: the first instruction becomes a jump to the lookup. */
    uint8_t *first = t->rw + unit->code + unit->indirect;
    uint64_t bytes;
    uint32_t rel =
        (uint32_t)(t->dead - (t->rx + unit->code + unit->indirect + UNIT_INDIRECT_BYTES));

    memcpy(&bytes, first, sizeof(bytes));
    bytes = (bytes & 0xffffff0000000000ull) | (uint64_t)rel << 8 | 0xe9u;
    __atomic_store_n((uint64_t *)(void *)first, bytes, __ATOMIC_SEQ_CST);

    _Atomic(unit_ref) *link = &t->units[code_cache_bucket(unit->guest, unit->mode)];
    struct unit *head = unit_get(t, atomic_load_explicit(link, memory_order_relaxed));

    if (head == unit) {
        atomic_store_explicit(link, unit->next, memory_order_release);
        return;
    }
    for (; head != NULL; head = unit_get(t, head->next)) {
        if (head->next == unit_ref_of(t, unit)) {
            __atomic_store_n(&head->next, unit->next, __ATOMIC_RELEASE);
            return;
        }
    }
}

void code_cache_drop_unit(struct translator *t, struct unit *unit)
{
    const struct code_page *page = page_find(t, unit->guest & ~PAGE_MASK);
    unit_ref ref = unit_ref_of(t, unit);

    unit_kill(t, unit);
    for (struct unit *u = unit_get(t, page->units); u != NULL; u = unit_get(t, u->page_next)) {
        if (unit_alias_of(u) == ref) {
            unit_kill(t, u);
        }
    }
}

void code_cache_heat_unit(struct translator *t, struct unit *unit)
{
    const struct code_page *page = page_find(t, unit->guest & ~PAGE_MASK);
    unit_ref ref = unit_ref_of(t, unit);

    add_hot(t, unit->guest);
    for (struct unit *u = unit_get(t, page->units); u != NULL; u = unit_get(t, u->page_next)) {
        if (unit_alias_of(u) == ref && !atomic_load(&u->dead)) {
            add_hot(t, u->guest);
        }
    }
    code_cache_drop_unit(t, unit);
}

void code_cache_add_inside(struct translator *t, uintptr_t guest)
{
    uint64_t *word = &t->filters[FILTER_INSIDE][code_cache_filter_bit(guest) / 64];

    *word |= 1ull << (code_cache_filter_bit(guest) % 64);
}

struct unit *code_cache_find_inside(const struct translator *t, uintptr_t guest, unsigned mode,
                                    struct unit_insn *ret_mark, unsigned *ret_index)
{
    const struct code_page *page =
        code_cache_in_filter(t, FILTER_INSIDE, guest) ? page_find(t, guest & ~PAGE_MASK) : NULL;
    unsigned line = (unsigned)(guest & PAGE_MASK) >> LINE_SHIFT;
    struct unit *unit = page == NULL ? NULL : unit_get(t, page->units);

    for (; unit != NULL; unit = unit_get(t, unit->page_next)) {
        if (unit->mode == mode && line >= (unit->first_line & UNIT_LINE) &&
            line <= (unit->last_line & UNIT_LINE) && !unit_is_alias(unit) && !unit_crosses(unit) &&
            !atomic_load(&unit->dead) &&
            unit_find_insn(unit, (unsigned)(guest & PAGE_MASK), ret_mark, ret_index) &&
            unit_mark_is_entry(unit, ret_mark)) {
            return unit;
        }
    }
    return NULL;
}

static void page_invalidate(struct translator *t, struct code_page *page, uint64_t lines)
{
    unit_ref *link = &page->units;
    struct code_page_ref **ref = &page->crossing;

    page->lines = 0;
    while (*link != 0) {
        struct unit *unit = unit_get(t, *link);

        if ((lines_of_unit(unit) & lines) != 0 || atomic_load(&unit->dead)) {
            unit_kill(t, unit);
            *link = unit->page_next;
        } else {
            page->lines |= lines_of_unit(unit);
            link = &unit->page_next;
        }
    }
    while (*ref != NULL) {
        if ((lines & 1) != 0 || atomic_load(&(*ref)->unit->dead)) {
            unit_kill(t, (*ref)->unit);
            *ref = (*ref)->next;
        } else {
            page->lines |= 1;
            ref = &(*ref)->next;
        }
    }
    if (page->lines == 0) {
        clear_mark(t, page->gpa);
    }
}

void code_cache_invalidate(struct translator *t, gpa_t start, uint64_t len)
{
    while (len > 0) {
        uint64_t offset = start.v & PAGE_MASK;
        uint64_t part = GMEM_PAGE_BYTES - offset < len ? GMEM_PAGE_BYTES - offset : len;
        uint8_t *host = gmem_host(t->vm->gmem, gpa(start.v - offset), GMEM_PAGE_BYTES);
        struct code_page *page = host == NULL ? NULL : page_find(t, (uintptr_t)host);
        uint64_t lines = lines_of(offset, part);

        if (page != NULL && page->lines != 0) {
            if ((page->lines & lines) != 0) {
                page->slow_writes = 0;
                page_invalidate(t, page, lines);
            } else if (++page->slow_writes > SLOW_WRITES_MAX) {
                page->slow_writes = 0;
                page_invalidate(t, page, ALL_LINES);
            }
        }
        start.v += part;
        len -= part;
    }
}

/* A table that may be empty from now on; its memory reads as zeroes. */
static void give_back(void *table, size_t bytes)
{
    (void)madvise(table, bytes, MADV_DONTNEED);
}

void code_cache_reset(struct translator *t)
{
    for (unsigned i = 0; i < PAGE_BUCKETS; i++) {
        for (struct code_page *page = t->pages[i]; page != NULL; page = page->next) {
            clear_mark(t, page->gpa);
        }
        t->pages[i] = NULL;
    }
    for (unsigned i = 0; i < CODE_CACHE_BUCKETS; i++) {
        atomic_store(&t->units[i], 0);
    }
    t->arena_used = ARENA_START;
    for (unsigned i = 0; i < FILTER_COUNT; i++) {
        if (i != FILTER_HOT) {
            memset(t->filters[i], 0, CODE_CACHE_FILTER_BYTES);
        }
    }
    t->unit_count = 0;
    t->exit_count = 1;
    t->access_count = 0;
    t->used_bytes = t->thunk_bytes;
    t->released_bytes = 0;
    t->stat_flushes++;
    atomic_fetch_add(&t->generation, 1);
}

void code_cache_trim(struct translator *t)
{
    uint32_t kept = (t->thunk_bytes + (uint32_t)PAGE_MASK) & ~(uint32_t)PAGE_MASK;

    code_cache_reset(t);
    give_back(t->arena, t->arena_bytes);
    give_back(t->units, CODE_CACHE_BUCKETS * sizeof(*t->units));
    give_back(t->pages, PAGE_BUCKETS * sizeof(struct code_page *));
    give_back(t->by_code, t->size_bytes / UNIT_BYTES_MIN * sizeof(*t->by_code));
    give_back(t->exits, t->size_bytes / EXIT_BYTES_MIN * sizeof(*t->exits));
    for (unsigned i = 0; i < FILTER_COUNT; i++) {
        if (i != FILTER_HOT) {
            give_back(t->filters[i], CODE_CACHE_FILTER_BYTES);
        }
    }
    give_back(t->accesses, t->size_bytes / ACCESS_BYTES_MIN * sizeof(*t->accesses));
    /* Of the memfd, and so of both mappings. */
    (void)madvise(t->rw + kept, t->size_bytes - kept, MADV_REMOVE);
}
