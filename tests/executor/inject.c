/*
 * An attacker who has won: linked into an executor that is otherwise the real
 * one, this takes over a vCPU's thread after its first exit, when the process
 * has locked itself down, and does what struct inject in guest memory says.
 */
#include "inject.h"

#include "engine/code_cache.h"
#include "engine/engine_int.h"
#include "engine/layout.h"
#include "executor/protocol.h"

#include <string.h>

bool __wrap_engine_can_take_interrupt(struct accel_vcpu *vcpu);

/* No call between these: such variables stay in their registers only where the asm stands. */
static uint64_t call_with(const uint8_t *entry, const struct inject *inject)
{
    register uint64_t r10 __asm__("r10") = inject->r10;
    register uint64_t r8 __asm__("r8") = inject->r8;
    register uint64_t r9 __asm__("r9") = inject->r9;
    uint64_t rax = inject->rax;

    __asm__ volatile("lea -128(%%rsp), %%rsp\n\t" /* the red zone */
                     "call *%[entry]\n\t"
                     "lea 128(%%rsp), %%rsp"
                     : "+a"(rax), "+r"(r10), "+r"(r8), "+r"(r9)
                     : [entry] "b"(entry), "D"(inject->rdi), "S"(inject->rsi), "d"(inject->rdx)
                     : "rcx", "r11", "memory");
    return rax;
}

/* At the end of the code cache, which the translator has not reached. */
static void run_code(struct engine_vcpu *v, struct inject *inject)
{
    struct translator *t = v->vm->translator;
    uint32_t at = t->size_bytes - GMEM_PAGE_BYTES;

    memcpy(t->rw + at, inject->code, inject->code_bytes);
    inject->result = call_with(t->rx + at, inject);
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void scribble_range(void *start, size_t bytes, uint64_t *seed)
{
    for (size_t i = 0; i < bytes; i++) {
        ((uint8_t *)start)[i] = (uint8_t)next_random(seed);
    }
}

/* All of the shared pages but the bells, so that the monitor is woken and looks. */
static void scribble(struct executor_shared *shared, uint64_t seed)
{
    struct executor_vcpu *page = &shared->vcpus[0];
    size_t first = offsetof(struct executor_vcpu, command);

    scribble_range(shared, offsetof(struct executor_shared, phase), &seed);
    scribble_range(&shared->error_code,
                   offsetof(struct executor_shared, service_asked) -
                       offsetof(struct executor_shared, error_code),
                   &seed);
    scribble_range(
        &shared->service,
        offsetof(struct executor_shared, vcpus) - offsetof(struct executor_shared, service), &seed);
    scribble_range((uint8_t *)page + first, sizeof(*page) - first, &seed);
    page->exit.reason %= VMEXIT_ERROR + 2;
}

bool __wrap_engine_can_take_interrupt(struct accel_vcpu *vcpu)
{
    struct engine_vcpu *v = container_of(vcpu, struct engine_vcpu, base);
    struct inject *inject = (struct inject *)(LAYOUT_RAM + INJECT_GPA);
    uint32_t op = inject->op;

    switch ((enum inject_op)op) {
    case INJECT_CODE:
        run_code(v, inject);
        break;
    case INJECT_SCRIBBLE:
        scribble((struct executor_shared *)LAYOUT_SHARED, inject->rax);
        break;
    case INJECT_NEVER:
        for (;;) {
        }
    case INJECT_NOTHING:
        break;
    }
    return false;
}
