/*
 * Rewriting an INSN_OP_COPY instruction so that it runs on the 64-bit host.
 *
 * The copy computes the same as the original: operand size, LOCK and REX/VEX
 * are kept, segment and address-size prefixes dropped, 16- and 32-bit encodings
 * turned into their 64-bit twin (INC/DEC r, operand-size prefix), and the
 * memory operand replaced. Pure, any thread.
 */
#ifndef CORBEL_ENGINE_REWRITE_H
#define CORBEL_ENGINE_REWRITE_H

#include "engine/decode.h"

#define INSN_REWRITE_MAX_BYTES 24

/*
 * Writes the copy with memory operand [base + index * scale + disp] to out and
 * returns its length. base: a 64-bit GPR number or INSN_REG_NONE; index: a GPR
 * number other than RSP, or INSN_REG_NONE; scale: 1, 2, 4 or 8. For an
 * instruction without memory operand they are ignored.
 * base and index must not be registers that the instruction uses itself unless
 * the caller means their current content; note that an instruction that names
 * AH CH DH BH (INSN_BYTE_REG, no REX) can take only base/index below 8.
 * Returns 0 when it cannot be encoded so.
 */
unsigned insn_rewrite(const struct insn *insn, uint8_t base, uint8_t index, unsigned scale,
                      int32_t disp, uint8_t out[INSN_REWRITE_MAX_BYTES]);

/* True when the copy has to avoid REX (it names AH CH DH BH). */
bool insn_uses_high_byte(const struct insn *insn);

#endif
