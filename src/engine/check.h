/*
 * Lock step: every unit of translated code against the interpreter.
 *
 * The interpreter goes first, instruction by instruction, with a log of what it
 * writes to memory; then all is undone and the unit runs on the same state.
 * Where the unit has stopped, some state that the interpreter went through must
 * be found again, with the same memory. A difference counts when it comes again
 * and again: devices write memory meanwhile. One vCPU; on its thread.
 */
#ifndef CORBEL_ENGINE_CHECK_H
#define CORBEL_ENGINE_CHECK_H

#include "base/compiler.h"

#include <stdint.h>

struct engine_check;
struct engine_vcpu;

struct check_stats {
    uint64_t units;   /* of translated code that were compared */
    uint64_t insns;   /* in them */
    uint64_t retries; /* after a difference that did not come again */
    uint64_t undone;  /* instructions that the interpreter executed to compare */
};

/* NULL: no memory. */
struct engine_check *check_create(void);
void check_destroy(struct engine_check *check); /* accepts NULL */

/* [host, host + len) of guest memory is about to be written by the instruction in hand. */
void check_note_write(struct engine_check *check, uint8_t *host, unsigned len);

/*
 * Goes on from st.rip by one unit and compares. 0: go on, something was
 * executed. 1: nothing here is for the translator, interp_step() is to do the
 * instruction. ENGINE_EXIT (2): the two differ, *v->exit says how.
 */
int check_step(struct engine_vcpu *v) MUST_CHECK;

/* Any thread: counters may be of different moments. */
void check_stats(const struct engine_check *check, struct check_stats *ret_stats);

#endif
