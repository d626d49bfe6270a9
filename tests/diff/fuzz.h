/*
 * The instruction fuzzer: one random instruction with random state runs on the
 * host CPU itself and on the software engine; everything a program could
 * notice must agree.
 *
 * Both see the same linear addresses: a code region full of INT3, so that every
 * instruction ends in an exception, and a data zone of three writable pages, a
 * read-only one and nothing around them.
 */
#ifndef CORBEL_TESTS_DIFF_FUZZ_H
#define CORBEL_TESTS_DIFF_FUZZ_H

#include "cpu/x86.h"
#include "engine/decode.h"

#include <stdbool.h>
#include <stdint.h>

#define FUZZ_CODE_BASE 0x20000000ull
#define FUZZ_CODE_BYTES 0x100000u
#define FUZZ_DATA_BASE 0x10000000ull
#define FUZZ_DATA_RW_BYTES 0x3000u
#define FUZZ_DATA_BYTES 0x4000u /* the last page is read-only */

#define FUZZ_XSAVE_BYTES 832u /* x87, SSE, header, AVX */
#define FUZZ_INT3 0xccu
#define FUZZ_CODE_MAX 256u

struct fuzz_state {
    uint8_t xsave[1024] ALIGNED(64);
    uint64_t gpr[X86_GPR_COUNT];
    uint64_t rip;
    uint64_t rflags;
    uint64_t fs_base;
    uint64_t gs_base;
};

struct fuzz_case {
    struct fuzz_state before;
    struct insn insn; /* in a block: the last one */
    uint8_t code[FUZZ_CODE_MAX];
    unsigned code_bytes;
    bool is_block;
    uint64_t index;
    uint8_t patch[704]; /* contents of the zone at patch_offset */
    unsigned patch_offset;
    unsigned patch_bytes;
    bool is_nondeterministic; /* RDRAND, RDSEED */
};

struct fuzz_outcome {
    struct fuzz_state after;
    uint8_t vector;
    uint32_t error;
    uint64_t cr2;
    uint8_t data[FUZZ_DATA_BYTES];
};

struct fuzz_rng {
    uint64_t state;
};

static inline uint64_t fuzz_random(struct fuzz_rng *rng)
{
    uint64_t z = rng->state += 0x9e3779b97f4a7c15ull;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static inline unsigned fuzz_below(struct fuzz_rng *rng, unsigned limit)
{
    return (unsigned)((fuzz_random(rng) >> 32) * limit >> 32);
}

/* True in percent of the cases. */
static inline bool fuzz_chance(struct fuzz_rng *rng, unsigned percent)
{
    return fuzz_below(rng, 100) < percent;
}

/* Contents of the data zone before the patch. */
extern uint8_t fuzz_pristine[FUZZ_DATA_BYTES];

/* fuzz_gen.c: what is to be covered, and cases. */
struct fuzz_cell {
    uint8_t encoding;
    uint8_t map;
    uint8_t opcode;
    uint8_t pp;    /* 0, 1: 66, 2: F3, 3: F2 */
    uint8_t modrm; /* reg field and form; the rest when is_exact */
    bool is_exact;
    uint32_t executed; /* times it ended without a fault */
    uint32_t tried;
};

struct fuzz_gen;
struct fuzz_gen *fuzz_gen_create(enum insn_mode mode);
void fuzz_gen_destroy(struct fuzz_gen *gen);
unsigned fuzz_gen_cell_count(const struct fuzz_gen *gen);
struct fuzz_cell *fuzz_gen_cell(struct fuzz_gen *gen, unsigned index);
/* Case number index of a seed; the cell it was made for in *ret_cell. */
void fuzz_gen_case(struct fuzz_gen *gen, uint64_t seed, uint64_t index, struct fuzz_case *ret_case,
                   struct fuzz_cell **ret_cell);

/* A straight run of instructions with short forward branches, for the translator. */
void fuzz_block_case(struct fuzz_gen *gen, uint64_t seed, uint64_t index,
                     struct fuzz_case *ret_case);
/* For fuzz_block.c: some encoding of a random cell; set_registers of fuzz_gen.c. */
void fuzz_gen_random_insn(struct fuzz_gen *gen, struct fuzz_rng *rng, struct insn *ret_insn);
void fuzz_gen_registers(struct fuzz_rng *rng, struct fuzz_case *c);

/* Where the memory operand lies. */
uint64_t fuzz_linear_address(const struct fuzz_case *c);

/* fuzz_state.c: random contents of registers and memory. */
uint64_t fuzz_integer(struct fuzz_rng *rng);
void fuzz_fill_vector(struct fuzz_rng *rng, uint8_t *out, unsigned bytes);
void fuzz_fill_xsave(struct fuzz_rng *rng, uint8_t xsave[1024]);
/* Components that are not in use become their initial values. */
void fuzz_normalize_xsave(uint8_t xsave[1024]);

/* fuzz_native.c: on the host CPU. */
int fuzz_native_create(void);
void fuzz_native_run(const struct fuzz_case *c, struct fuzz_outcome *ret_outcome);

/* fuzz_guest.c: on the engine. */
struct fuzz_guest;
int fuzz_guest_create(bool is_reference, struct fuzz_guest **ret_guest);
void fuzz_guest_destroy(struct fuzz_guest *guest);
int fuzz_guest_run(struct fuzz_guest *guest, const struct fuzz_case *c,
                   struct fuzz_outcome *ret_outcome);

#endif
