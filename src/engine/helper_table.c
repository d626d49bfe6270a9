/* Which instructions a C function does while vector registers are live. */
#include "engine/translate_int.h"

enum translate_helper translate_helper_for(const struct insn *insn, unsigned mode)
{
    (void)insn;
    (void)mode;
    return HELPER_NONE;
}
