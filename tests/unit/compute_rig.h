/* A control plane with a store of its own in a folder that goes with it, and no monitor to start. */
#ifndef CORBEL_TESTS_UNIT_COMPUTE_RIG_H
#define CORBEL_TESTS_UNIT_COMPUTE_RIG_H

#include "test.h"

#include "base/path.h"
#include "compute/compute.h"
#include "store/store_sqlite.h"

#include <stdio.h>
#include <stdlib.h>

struct compute_rig {
    char dir[64];
    struct store *store;
    struct compute *compute;
};

static inline void compute_rig_init(struct compute_rig *rig)
{
    char db[PATH_MAX], runtime[PATH_MAX];
    struct err err;
    const struct store_sqlite_config store = {.path = db};
    struct compute_config config = {.state_dir = rig->dir,
                                    .runtime_dir = runtime,
                                    .images_dir = rig->dir,
                                    .vmm = "/bin/false",
                                    .workers = 1};

    (void)snprintf(rig->dir, sizeof(rig->dir), "/tmp/corbel-compute-XXXXXX");
    assert_non_null(mkdtemp(rig->dir));
    assert_int_equal(path_format(db, &err, "%s/state.db", rig->dir), 0);
    assert_int_equal(path_format(runtime, &err, "%s/run", rig->dir), 0);
    assert_int_equal(store_sqlite_open(&store, &err, &rig->store), 0);
    config.store = rig->store;
    assert_int_equal(compute_open(&config, &err, &rig->compute), 0);
}

static inline void compute_rig_done(struct compute_rig *rig)
{
    compute_close(rig->compute);
    store_close(rig->store);
    path_discard(rig->dir);
}

#endif
