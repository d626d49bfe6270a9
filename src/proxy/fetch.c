#include "base/log.h"
#include "proxy/proxy_int.h"

#include <errno.h>
#include <string.h>

#define MAX_ERRNO 4095
#define PHYSICAL_ADDRESS_MASK ((1ull << 52) - 1)
#define PAGE_OFFSET_MASK ((uint64_t)GMEM_PAGE_BYTES - 1)
#define TEXT_MAX 256u

/* The copy is what counts from here: the compiler may not go back to the source. */
static void fetch(void *to, const void *from, size_t bytes)
{
    memcpy(to, from, bytes);
    __asm__ volatile("" : : "r"(to) : "memory");
}

uint64_t fetch_u64(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

uint32_t fetch_u32(const uint32_t *word)
{
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

int fetch_result(const struct executor_vcpu *page)
{
    int result = __atomic_load_n(&page->result, __ATOMIC_RELAXED);

    return result >= -MAX_ERRNO && result <= 0 ? result : -EPROTO;
}

void fetch_text(const char *from, size_t from_bytes, char *out, size_t out_bytes)
{
    char copy[TEXT_MAX] = {0};

    fetch(copy, from, from_bytes < sizeof(copy) ? from_bytes : sizeof(copy));
    (void)log_escape(out, out_bytes, copy, strnlen(copy, sizeof(copy)));
}

static bool is_power_up_to(uint32_t size, uint32_t max)
{
    return size != 0 && size <= max && (size & (size - 1)) == 0;
}

static uint64_t mask_of(uint32_t size_bytes)
{
    return size_bytes >= 8 ? UINT64_MAX : (1ull << (size_bytes * 8)) - 1;
}

static int fetch_pio(const struct executor_exit *e, struct vmexit *to)
{
    if (!is_power_up_to(e->size_bytes, 4) || e->address > UINT16_MAX) {
        return -EPROTO;
    }
    to->pio.port = (uint16_t)e->address;
    to->pio.size_bytes = (uint8_t)e->size_bytes;
    to->pio.is_write = e->flag != 0;
    to->pio.data = (uint32_t)(e->data & mask_of(e->size_bytes));
    return 0;
}

static int fetch_mmio(const struct executor_exit *e, struct vmexit *to)
{
    if (!is_power_up_to(e->size_bytes, 8) || e->address > PHYSICAL_ADDRESS_MASK ||
        (e->address & PAGE_OFFSET_MASK) + e->size_bytes > GMEM_PAGE_BYTES) {
        return -EPROTO;
    }
    to->mmio.gpa = e->address;
    to->mmio.size_bytes = (uint8_t)e->size_bytes;
    to->mmio.is_write = e->flag != 0;
    to->mmio.data = e->data & mask_of(e->size_bytes);
    return 0;
}

int fetch_exit(const struct executor_vcpu *page, struct vmexit *ret_exit, bool *ret_can_take)
{
    struct executor_exit e;
    struct vmexit exit = {.reason = VMEXIT_INTR};
    int rc = 0;

    fetch(&e, &page->exit, sizeof(e));
    switch (e.reason) {
    case VMEXIT_INTR:
    case VMEXIT_HLT:
    case VMEXIT_SHUTDOWN:
    case VMEXIT_RESET:
        break;
    case VMEXIT_EOI:
        exit.eoi.vector = (uint8_t)e.address;
        break;
    case VMEXIT_PIO:
        rc = fetch_pio(&e, &exit);
        break;
    case VMEXIT_MMIO:
        rc = fetch_mmio(&e, &exit);
        break;
    case VMEXIT_MSR_READ:
    case VMEXIT_MSR_WRITE:
        exit.msr.index = (uint32_t)e.address;
        exit.msr.data = e.data;
        exit.msr.tsc_offset = e.tsc_offset;
        break;
    case VMEXIT_TPR:
        exit.tpr.cr8 = (uint8_t)(e.data & 0xf);
        break;
    case VMEXIT_DEBUG:
        exit.debug.rip = e.address;
        exit.debug.dr6 = e.data;
        exit.debug.is_breakpoint_insn = e.flag != 0;
        break;
    case VMEXIT_ERROR: {
        char text[sizeof(e.text)];

        fetch_text(e.text, sizeof(e.text), text, sizeof(text));
        (void)err_set(&exit.error, -EIO, "%s", text);
        break;
    }
    default:
        rc = -EPROTO;
        break;
    }
    if (rc == 0) {
        exit.reason = (enum vmexit_reason)e.reason;
        *ret_exit = exit;
        *ret_can_take = e.can_take != 0;
    }
    return rc;
}

/* A bool of hostile memory may hold any byte. */
static void make_bool(bool *flag)
{
    unsigned char byte;

    memcpy(&byte, flag, sizeof(byte));
    byte = byte != 0;
    memcpy(flag, &byte, sizeof(byte));
}

static void make_sound(struct vcpu_state *s)
{
    struct x86_events *e = &s->events;
    int mp_state;

    memcpy(&mp_state, &s->mp_state, sizeof(mp_state));
    if (mp_state < X86_MP_RUNNABLE || mp_state > X86_MP_UNINITIALIZED) {
        s->mp_state = X86_MP_RUNNABLE;
    }
    make_bool(&e->exception_pending);
    make_bool(&e->exception_has_error);
    make_bool(&e->interrupt_pending);
    make_bool(&e->nmi_pending);
    make_bool(&e->nmi_blocked);
    make_bool(&e->sti_shadow);
    make_bool(&e->mov_ss_shadow);
    make_bool(&e->smi_blocked);
    e->exception_vector &= 31;
    s->rflags = (uint32_t)s->rflags | X86_FLAG_FIXED1;
    s->cr8 &= 0xf;
    for (unsigned i = 0; i < X86_SEG_COUNT; i++) {
        memset(s->seg[i].pad, 0, sizeof(s->seg[i].pad));
    }
    memset(s->gdtr.pad, 0, sizeof(s->gdtr.pad));
    memset(s->idtr.pad, 0, sizeof(s->idtr.pad));
}

void fetch_apic(const struct executor_vcpu *page, struct lapic_state *ret_state)
{
    fetch(ret_state, &page->apic, sizeof(*ret_state));
}

void fetch_state(const struct executor_vcpu *page, struct vcpu_state *ret_state)
{
    fetch(ret_state, &page->state, sizeof(*ret_state));
    make_sound(ret_state);
}
