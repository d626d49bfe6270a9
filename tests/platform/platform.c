/*
 * The control plane against real machines, with its process killed at every
 * turn.
 *
 * A "daemon" is a child that opens store and compute, makes calls, and is
 * ended by SIGKILL at a step that was chosen. The next one goes on with what it
 * finds; then everything that was acknowledged has to be there, once, and after
 * deletion nothing may be left.
 *
 * usage: platform --vmm FILE --image DIR --dir DIR [--steps EVERY [--first N] [--only STEP]]
 *                 [--ops N] [--cycles N] [--parallel N] [--seed N]
 *                 [--cgroup GROUP --cgroup-dirs DIR,DIR...]
 *
 * The image is one of `corbel image`; its kernel and initrd are used. All that
 * is made is in the directory; what a test that fails leaves there, and its
 * machines, are the caller's. GROUP is a control group that machines' groups may
 * be made in, and is seen in the directories given; the first of them is that of
 * CPU time.
 */
#include "platform.h"

#include "base/log.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static unsigned number_of(const char *text)
{
    return (unsigned)strtoul(text, NULL, 10);
}

int main(int argc, char **argv)
{
    const char *vmm = NULL, *image = NULL, *dir = NULL, *only = NULL;
    const char *cgroup = "", *cgroup_dirs = "";
    unsigned every = 0, first = 0, operations = 0, cycles = 0, parallel = 0, seed = 1;

    for (int i = 1; i + 1 < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];

        vmm = strcmp(name, "--vmm") == 0 ? value : vmm;
        cgroup = strcmp(name, "--cgroup") == 0 ? value : cgroup;
        cgroup_dirs = strcmp(name, "--cgroup-dirs") == 0 ? value : cgroup_dirs;
        image = strcmp(name, "--image") == 0 ? value : image;
        dir = strcmp(name, "--dir") == 0 ? value : dir;
        only = strcmp(name, "--only") == 0 ? value : only;
        every = strcmp(name, "--steps") == 0 ? number_of(value) : every;
        first = strcmp(name, "--first") == 0 ? number_of(value) : first;
        operations = strcmp(name, "--ops") == 0 ? number_of(value) : operations;
        cycles = strcmp(name, "--cycles") == 0 ? number_of(value) : cycles;
        parallel = strcmp(name, "--parallel") == 0 ? number_of(value) : parallel;
        seed = strcmp(name, "--seed") == 0 ? number_of(value) : seed;
    }
    CHECK(vmm != NULL && image != NULL && dir != NULL,
          "usage: platform --vmm FILE --image DIR --dir DIR ...");
    log_set_program("platform");
    log_set_level(LOG_LEVEL_ERROR);
    (void)signal(SIGPIPE, SIG_IGN);
    rig_open(vmm, image, dir);
    rig_use_groups(cgroup, cgroup_dirs);
    if (every != 0) {
        test_steps(every, first, only);
    }
    if (operations != 0) {
        test_random(operations, seed);
    }
    if (cycles != 0) {
        test_cycles(cycles);
    }
    if (parallel != 0) {
        test_parallel(parallel);
    }
    return 0;
}
