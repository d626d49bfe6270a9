/*
 * Linear-address accesses of the interpreter: RAM through the software TLB,
 * devices as exits with replay.
 */
#include "engine/check.h"
#include "engine/engine_int.h"
#include "engine/mmu.h"

#include <errno.h>
#include <string.h>

/* More than this to a device in one instruction is refused (an XSAVE to MMIO). */
#define MMIO_MAX_BYTES 256u

/* One access of a naturally aligned power of two is one load or store (SDM 3A 8.1.1). */
static void copy_bytes(void *dst, const void *src, unsigned len)
{
    switch (len) {
    case 1:
        memcpy(dst, src, 1);
        break;
    case 2:
        memcpy(dst, src, 2);
        break;
    case 4:
        memcpy(dst, src, 4);
        break;
    case 8:
        memcpy(dst, src, 8);
        break;
    default:
        memcpy(dst, src, len);
        break;
    }
}

/* Notes the data breakpoints that [va, va + len) meets (SDM 3B 18.2.5); they trap afterwards. */
static void watch(struct engine_vcpu *v, uint64_t va, unsigned len, bool is_write)
{
    static const uint8_t lengths[4] = {1, 2, 8, 4};
    uint64_t dr7 = v->st.dr[7];

    for (unsigned i = 0; i < 4; i++) {
        unsigned type = (unsigned)(dr7 >> (16 + 4 * i)) & 3;
        unsigned bytes = lengths[(dr7 >> (18 + 4 * i)) & 3];
        uint64_t start = v->st.dr[i] & ~(uint64_t)(bytes - 1);

        if (((dr7 >> (2 * i)) & 3) == 0 || type == 0 || type == 2 || (type == 1 && !is_write)) {
            continue;
        }
        if (va < start + bytes && start < va + len) {
            v->pending_dr6 |= 1ull << i;
        }
    }
}

/* For lock step, which undoes what the interpreter wrote. */
static void note_write(struct engine_vcpu *v, uint8_t *host, unsigned len)
{
    if (unlikely(v->check != NULL) && host != NULL) {
        check_note_write(v->check, host, len);
    }
}

static unsigned page_left(uint64_t va)
{
    return GMEM_PAGE_BYTES - ((unsigned)va & (GMEM_PAGE_BYTES - 1));
}

int mmu_read_begin(struct engine_vcpu *v, uint64_t va, unsigned len, enum mmu_mode mode,
                   const uint8_t **ret_host)
{
    const struct mmu_tlb_entry *entry = &v->tlb[mode].read[mmu_tlb_index(va)];
    struct mmu_page page;

    if (likely((va ^ entry->tag) <= GMEM_PAGE_BYTES - len)) {
        *ret_host = (const uint8_t *)(uintptr_t)(va + entry->addend);
        return 0;
    }
    if (len > page_left(va)) {
        *ret_host = NULL;
        return 0;
    }

    int r = mmu_fill(v, va, MMU_READ, mode, &page);

    if (r == 0) {
        if (unlikely(v->data_breakpoints)) {
            watch(v, va, len, false);
        }
        *ret_host = page.host;
    }
    return r;
}

int mmu_rmw_begin(struct engine_vcpu *v, uint64_t va, unsigned len, enum mmu_mode mode,
                  uint8_t **ret_host)
{
    const struct mmu_tlb_entry *entry = &v->tlb[mode].write[mmu_tlb_index(va)];
    struct mmu_page page;

    if (likely((va ^ entry->tag) <= GMEM_PAGE_BYTES - len)) {
        *ret_host = (uint8_t *)(uintptr_t)(va + entry->addend);
        note_write(v, *ret_host, len);
        return 0;
    }
    if (len > page_left(va)) {
        *ret_host = NULL;
        return 0;
    }

    int r = mmu_fill(v, va, MMU_WRITE, mode, &page);

    if (r == 0) {
        if (unlikely(v->data_breakpoints)) {
            watch(v, va, len, true);
        }
        *ret_host = page.host;
        note_write(v, page.host, len);
    }
    return r;
}

void mmu_rmw_end(struct engine_vcpu *v, const uint8_t *host, unsigned len)
{
    struct engine_vm *vm = v->vm;

    for (unsigned i = 0; i < vm->ram_count; i++) {
        const struct engine_ram *ram = &vm->ram[i];
        uint64_t offset = (uint64_t)(host - ram->host);

        if (offset >= ram->size_bytes) {
            continue;
        }
        if (vm->translator != NULL) {
            /* The store first, then the look at the mark; the translator marks, then reads. */
            atomic_thread_fence(memory_order_seq_cst);
            if ((atomic_load(&ram->flags[offset >> GMEM_PAGE_SHIFT]) & GMEM_PAGE_CODE) != 0) {
                engine_invalidate_code(vm, gpa(ram->gpa + offset), len);
            }
        }
        if (atomic_load_explicit(&vm->dirty_logging, memory_order_relaxed)) {
            (void)atomic_fetch_or(&ram->flags[offset >> GMEM_PAGE_SHIFT], GMEM_PAGE_DIRTY);
        }
        return;
    }
}

/* A device access in pieces of at most 8 bytes. */
static int mmio_access(struct engine_vcpu *v, uint64_t address, uint8_t *buf, unsigned len,
                       bool is_write)
{
    if (len > MMIO_MAX_BYTES) {
        return engine_raise_error(v, X86_VEC_GP, 0);
    }
    while (len > 0) {
        unsigned piece = 8;
        uint64_t data = 0;

        /* A power of two goes out whole even when misaligned, as devices expect of a MOV. */
        while (piece > len) {
            piece /= 2;
        }
        if (is_write) {
            memcpy(&data, buf, piece);
        }

        int r = engine_io(v, VMEXIT_MMIO, address, piece, is_write, &data);

        if (r != 0) {
            return r;
        }
        if (!is_write) {
            memcpy(buf, &data, piece);
        }
        address += piece;
        buf += piece;
        len -= piece;
    }
    return 0;
}

static int read_piece(struct engine_vcpu *v, uint64_t va, void *buf, unsigned len,
                      enum mmu_mode mode)
{
    struct mmu_page page;
    int r = mmu_fill(v, va, MMU_READ, mode, &page);

    if (r != 0) {
        return r;
    }
    if (unlikely(v->data_breakpoints)) {
        watch(v, va, len, false);
    }
    if (page.host == NULL) {
        return mmio_access(v, page.gpa, buf, len, false);
    }
    copy_bytes(buf, page.host, len);
    return 0;
}

int mmu_read(struct engine_vcpu *v, uint64_t va, void *buf, unsigned len, enum mmu_mode mode)
{
    const struct mmu_tlb_entry *entry = &v->tlb[mode].read[mmu_tlb_index(va)];
    uint8_t *bytes = buf;

    if (likely((va ^ entry->tag) <= GMEM_PAGE_BYTES - len)) {
        copy_bytes(buf, (const void *)(uintptr_t)(va + entry->addend), len);
        return 0;
    }
    while (len > 0) {
        unsigned piece = page_left(va) < len ? page_left(va) : len;
        int r = read_piece(v, va, bytes, piece, mode);

        if (r != 0) {
            return r;
        }
        va += piece;
        bytes += piece;
        len -= piece;
    }
    return 0;
}

static int write_piece(struct engine_vcpu *v, uint64_t va, const void *buf, unsigned len,
                       const struct mmu_page *page)
{
    if (unlikely(v->data_breakpoints)) {
        watch(v, va, len, true);
    }
    if (page->host == NULL) {
        uint8_t copy[GMEM_PAGE_BYTES];

        memcpy(copy, buf, len);
        return mmio_access(v, page->gpa, copy, len, true);
    }
    note_write(v, page->host, len);
    copy_bytes(page->host, buf, len);
    mmu_rmw_end(v, page->host, len);
    return 0;
}

int mmu_write(struct engine_vcpu *v, uint64_t va, const void *buf, unsigned len, enum mmu_mode mode)
{
    const struct mmu_tlb_entry *entry = &v->tlb[mode].write[mmu_tlb_index(va)];
    struct mmu_page page;
    struct mmu_page next = {0};
    unsigned first = page_left(va) < len ? page_left(va) : len;

    if (likely((va ^ entry->tag) <= GMEM_PAGE_BYTES - len)) {
        uint8_t *host = (uint8_t *)(uintptr_t)(va + entry->addend);

        note_write(v, host, len);
        copy_bytes(host, buf, len);
        mmu_rmw_end(v, host, len);
        return 0;
    }

    int r = mmu_fill(v, va, MMU_WRITE, mode, &page);

    if (r == 0 && first < len) {
        r = mmu_fill(v, va + first, MMU_WRITE, mode, &next);
    }
    if (r == 0) {
        r = write_piece(v, va, buf, first, &page);
    }
    if (r == 0 && first < len) {
        r = write_piece(v, va + first, (const uint8_t *)buf + first, len - first, &next);
    }
    return r;
}

static void fetch_copy(uint8_t *buf, const uint8_t *host, unsigned len)
{
    if (host == NULL) {
        /* Code in a device's registers: what an empty bus gives. */
        memset(buf, 0xff, len);
    } else {
        memcpy(buf, host, len);
    }
}

int mmu_fetch(struct engine_vcpu *v, uint64_t va, uint8_t *buf, unsigned *ret_len)
{
    const uint8_t *host = NULL;
    unsigned first = page_left(va) < INSN_MAX_BYTES ? page_left(va) : INSN_MAX_BYTES;
    int r = mmu_fetch_host(v, va, &host);

    if (r != 0) {
        return r;
    }
    fetch_copy(buf, host, first);
    *ret_len = first;
    if (first < INSN_MAX_BYTES && mmu_fetch_host(v, va + first, &host) == 0) {
        fetch_copy(buf + first, host, INSN_MAX_BYTES - first);
        *ret_len = INSN_MAX_BYTES;
    }
    return 0;
}
