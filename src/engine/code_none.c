/* In place of the code cache while there is no translator: nothing is made from code pages. */
#include "engine/engine_int.h"

void engine_invalidate_code(struct engine_vm *vm, gpa_t gpa, uint64_t len)
{
    (void)vm;
    (void)gpa;
    (void)len;
}
