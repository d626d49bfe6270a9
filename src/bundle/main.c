/*
 * The single file: corbel, and under their own names (a link, or argv[0] of whoever starts them)
 * corbeld and corbel-vmm. Each starts the others from this file.
 */
#include "bundle/prepare.h"
#include "cli/cli.h"
#include "daemon/daemon.h"
#include "vmm/vmm.h"

#include <string.h>
#include <sys/prctl.h>

int main(int argc, char **argv)
{
    const struct bundle bundle = bundle_own();
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
    const char *name = slash != NULL ? slash + 1 : argc > 0 ? argv[0] : "";

    /* Started by way of /proc/self/exe the process would be called "exe". */
    if (strcmp(name, "corbel-vmm") == 0) {
        (void)prctl(PR_SET_NAME, "corbel-vmm");
        return vmm_main(argc, argv);
    }
    bundle_prepare();
    if (strcmp(name, "corbeld") == 0) {
        (void)prctl(PR_SET_NAME, "corbeld");
        return daemon_main(argv, BUNDLE_PROGRAM);
    }
    return cli_main(argc, argv, &bundle);
}
