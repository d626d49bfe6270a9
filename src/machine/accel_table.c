#include "machine/accel_table.h"

#include "engine/engine.h"
#include "kvm/kvm.h"
#include "proxy/proxy.h"

#include <errno.h>
#include <stdio.h>

/* In the order in which AUTO tries them. */
static const struct {
    enum machine_engine engine;
    const struct accel_ops *ops;
} accels[] = {
    {MACHINE_ENGINE_KVM, &kvm_accel_ops},
    {MACHINE_ENGINE_SOFT, &proxy_accel_ops},
};

/* The software engine's single step in the form that KVM wants. */
static int stepper_create(struct gmem *gmem, const struct vcpu_env *env, struct err *err,
                          void **ret_stepper)
{
    struct engine_stepper *stepper = NULL;
    int rc = engine_stepper_create(gmem, env, err, &stepper);

    if (rc == 0) {
        *ret_stepper = stepper;
    }
    return rc;
}

static void stepper_destroy(void *stepper)
{
    engine_stepper_destroy(stepper);
}

static int stepper_run(void *stepper, struct vcpu_state *state, struct accel_step *step,
                       struct vmexit *exit)
{
    return engine_stepper_run(stepper, state, step, exit);
}

const struct accel_stepper_ops accel_stepper = {
    .create = stepper_create,
    .destroy = stepper_destroy,
    .run = stepper_run,
};

static const char *reason_format(char *out, size_t size, const char *why)
{
    (void)snprintf(out, size, "%s", why);
    return out;
}

static int choose_named(enum machine_engine engine, struct err *err,
                        const struct accel_ops **ret_ops)
{
    for (unsigned i = 0; i < ARRAY_LEN(accels); i++) {
        if (accels[i].engine == engine) {
            *ret_ops = accels[i].ops;
            return 0;
        }
    }
    return err_set(err, -ENODEV, "this build has no such engine");
}

int accel_choose(enum machine_engine engine, struct err *err, const struct accel_ops **ret_ops,
                 char *ret_reason, size_t reason_size, bool *ret_emulated)
{
    struct err why = {0};

    *ret_emulated = false;
    if (engine == MACHINE_ENGINE_KVM && kvm_accel_ops.probe(&why) == -EOPNOTSUPP) {
        *ret_emulated = true;
        (void)snprintf(ret_reason, reason_size, "as asked for, though %s", why.text);
        return choose_named(engine, err, ret_ops);
    }
    if (engine != MACHINE_ENGINE_AUTO) {
        (void)reason_format(ret_reason, reason_size, "as asked for");
        return choose_named(engine, err, ret_ops);
    }
    if (kvm_accel_ops.probe(&why) == 0) {
        (void)reason_format(ret_reason, reason_size, "KVM runs guests at hardware speed here");
        *ret_ops = &kvm_accel_ops;
        return 0;
    }
    (void)reason_format(ret_reason, reason_size, why.text);
    return choose_named(MACHINE_ENGINE_SOFT, err, ret_ops);
}
