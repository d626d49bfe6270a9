/* A vCPU beside its thread's own data; see engine.h. */
#include "engine/engine.h"
#include "engine/engine_int.h"

void *engine_vcpu_storage(void)
{
    static _Thread_local struct engine_vcpu vcpu ALIGNED(64);

    return &vcpu;
}
