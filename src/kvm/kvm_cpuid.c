/* CPUID for KVM: the policy's table without what this KVM does not support. */
#include "kvm/kvm_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/cpuid.h"

#define SUPPORTED_MAX 256

struct cpuid_buffer {
    struct kvm_cpuid2 header;
    struct kvm_cpuid_entry2 entries[SUPPORTED_MAX];
};

/*
 * The registers that hold feature bits, per leaf; in all others the table's
 * value stands. `kept` are bits that KVM provides but does not report:
 * hyper-threading in leaf 1, and TSC-deadline, which is a capability.
 */
struct feature_leaf {
    uint32_t leaf;
    uint32_t subleaf;
    bool masked[4];
    uint32_t kept[4];
};

static const struct feature_leaf feature_leaves[] = {
    {0x1, 0, {false, false, true, true}, {0, 0, 0, 1u << 28}},
    {0x6, 0, {true, false, false, false}, {0}},
    {0x7, 0, {false, true, true, true}, {0}},
    {0xd, 0, {true, false, false, true}, {0}},
    {0xd, 1, {true, false, false, false}, {0}},
    {0x40000001, 0, {true, false, false, false}, {0}},
    {0x80000001, 0, {false, false, true, true}, {0}},
    {0x80000007, 0, {false, false, false, true}, {0}},
};

static const struct kvm_cpuid_entry2 *supported_find(const struct cpuid_buffer *supported,
                                                     uint32_t leaf, uint32_t subleaf)
{
    for (uint32_t i = 0; i < supported->header.nent; i++) {
        const struct kvm_cpuid_entry2 *entry = &supported->entries[i];
        const bool indexed = (entry->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) != 0;
        if (entry->function == leaf && (!indexed || entry->index == subleaf)) {
            return entry;
        }
    }
    return NULL;
}

static void entry_mask(struct kvm_cpuid_entry2 *entry, const struct cpuid_buffer *supported,
                       bool deadline)
{
    for (size_t i = 0; i < ARRAY_LEN(feature_leaves); i++) {
        const struct feature_leaf *rule = &feature_leaves[i];
        if (rule->leaf != entry->function || rule->subleaf != entry->index) {
            continue;
        }
        const struct kvm_cpuid_entry2 *have =
            supported_find(supported, entry->function, entry->index);
        const uint32_t host[4] = {have == NULL ? 0 : have->eax, have == NULL ? 0 : have->ebx,
                                  have == NULL ? 0 : have->ecx, have == NULL ? 0 : have->edx};
        uint32_t *const regs[4] = {&entry->eax, &entry->ebx, &entry->ecx, &entry->edx};
        for (unsigned r = 0; r < 4; r++) {
            uint32_t kept = rule->kept[r];
            if (rule->leaf == 1 && r == 2 && deadline) {
                kept |= 1u << 24;
            }
            if (rule->masked[r]) {
                *regs[r] &= host[r] | kept;
            }
        }
    }
}

static int cpuid_set(struct kvm_vm *vm, int cpu_fd, const struct cpuid_table *table,
                     struct cpuid_buffer *supported, struct cpuid_buffer *wanted)
{
    supported->header.nent = SUPPORTED_MAX;
    const int rc = kvm_ioctl(vm->kvm_fd, KVM_GET_SUPPORTED_CPUID, supported);
    if (rc < 0) {
        return rc;
    }
    /* Without KVM's local APIC the deadline MSR is the machine's. */
    const bool deadline =
        !kvm_vm_has_lapic(vm) || kvm_capability(vm->vm_fd, KVM_CAP_TSC_DEADLINE_TIMER) > 0;
    for (unsigned i = 0; i < table->count; i++) {
        const struct cpuid_entry *from = &table->entries[i];
        struct kvm_cpuid_entry2 *to = &wanted->entries[wanted->header.nent++];
        to->function = from->leaf;
        to->index = from->subleaf;
        to->flags = from->subleaf_significant ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0;
        to->eax = from->eax;
        to->ebx = from->ebx;
        to->ecx = from->ecx;
        to->edx = from->edx;
        entry_mask(to, supported, deadline);
    }
    return kvm_ioctl(cpu_fd, KVM_SET_CPUID2, wanted);
}

int kvm_cpuid_apply(struct kvm_vm *vm, int cpu_fd, const struct cpuid_table *table)
{
    struct cpuid_buffer *supported = calloc(1, sizeof(*supported));
    struct cpuid_buffer *wanted = calloc(1, sizeof(*wanted));
    int rc = -ENOMEM;

    if (supported != NULL && wanted != NULL) {
        rc = cpuid_set(vm, cpu_fd, table, supported, wanted);
    }
    free(supported);
    free(wanted);
    return rc;
}
