/*
 * The guest kernel's half of the address space, mirrored page by page in our
 * own, so that translated kernel code reaches memory through the host's MMU:
 *
 *   host address = guest address + LAYOUT_FOLD   (layout.h; LAYOUT_FOLD is in the
 *                                                 host's GS base meanwhile)
 *
 * The mirror is a TLB: mappings of guest RAM come when translated code faults,
 * as large as the guest's tables allow, and a flush walks the tables again and
 * drops only what changed. A mapping is writable only when the guest's dirty
 * bit is set; pages with translated code are read-only. What is no RAM, not the
 * kernel's half, or where our own memory lies is never mapped: there the
 * instruction keeps faulting and the software TLB serves it.
 *
 * One per VM, shared by its vCPUs: they are to agree on the kernel's half, as
 * the top-level entries in use say at each load of CR3. A vCPU whose tables lack
 * one of these is interpreted until its next load (mirror_is_off); when two
 * disagree for good, mirror_is_refused() and the software TLB takes over.
 *
 * vCPU threads only; some calls come with the guest's vector registers live:
 * general registers, system calls without the C library.
 */
#ifndef CORBEL_ENGINE_MIRROR_H
#define CORBEL_ENGINE_MIRROR_H

#include "base/compiler.h"
#include "engine/layout.h"
#include "engine/mmu.h"

#include <stdbool.h>
#include <stdint.h>

struct accel_stat;
struct engine_vm;
struct engine_vcpu;
struct mirror;

static inline uint64_t mirror_host(uint64_t va)
{
    return va + LAYOUT_FOLD;
}

static inline uint64_t mirror_guest(uint64_t host)
{
    return host - LAYOUT_FOLD;
}

/* For the RAM of vm, whose first byte lies at offset 0 of ram_fd. NULL: no memory. */
struct mirror *mirror_create(struct engine_vm *vm, int ram_fd);
void mirror_destroy(struct mirror *mirror); /* and all mappings; accepts NULL */

/*
 * Translated code of v faulted at guest address va. True: what hinders it is
 * mapped now, try again. False: the software TLB's business, an exception's, or
 * a device's; nothing is changed but accessed and dirty bits.
 */
bool mirror_fault(struct engine_vcpu *v, uint64_t va, bool is_write);

/* After a flush of v's TLB as architecture asks, for struct engine_vcpu.flush_hook's reasons. */
void mirror_on_flush(struct engine_vcpu *v, enum mmu_flush what, uint64_t va);

/* Drops all mappings. No vCPU needs to be out of code: it faults, and asks. */
void mirror_drop(struct mirror *mirror);

/* The page of RAM at this address is marked as code: no mapping of it stays writable. */
void mirror_protect(struct mirror *mirror, const uint8_t *host_page);

/* The mirror is not for this VM: its vCPUs' tables differ, or use our own addresses. */
bool mirror_is_refused(const struct mirror *mirror);

/* As accel_ops.stats. */
unsigned mirror_stats(const struct mirror *mirror, struct accel_stat *ret_stats, unsigned max);

#endif
