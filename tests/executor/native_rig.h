/*
 * For tests of spaces (executor/native.h) without engine and guest: small machine code at an
 * address of its own, in a process that the test makes as the executor does. One thread.
 */
#ifndef CORBEL_NATIVE_RIG_H
#define CORBEL_NATIVE_RIG_H

#include "test.h"

#include "cpu/x86.h"
#include "executor/native.h"
#include "executor/native_int.h"

#define RAM_BYTES (16u << 20)
#define CODE 0x400000ull
#define DATA 0x7ffe00000000ull
#define PAGE 4096u

extern unsigned vcpu_count;
extern _Atomic uint32_t spares_cpu;
extern const struct native *native;
extern uint8_t *ram;
extern struct vcpu_state st; /* what runs, and what came back */
extern struct native_left left;

/* Makes RAM and spaces for vcpu_count; a group's set-up. */
int native_rig_set_up(void **state);
/* New spaces: what one test does to them is not the next one's. */
void renew(void);

/* Into space 0, code at CODE, a page of data at DATA, and stack in its upper half. */
void put(const void *code, size_t len);
enum native_reason run(void);
/* To the system call; a signal that comes late ends a run, too, for no reason. */
void run_past_kicks(void);
enum native_reason run_code(const void *code, size_t len);

/* A thread: kicks vCPU 0 until *opaque, an _Atomic bool. */
void *kick_often(void *opaque);

/* Where vCPU 0's runner has its block. */
uint64_t own_block(void);

#endif
