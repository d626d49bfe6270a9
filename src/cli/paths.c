#include "cli/paths.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* The monitor and the builders: beside the program in a build tree, or where it is installed. */
static int find_programs(struct cli *cli, struct err *err)
{
    static const char *const builder_dirs[] = {"../images", "../share/corbel/images"};
    const char *monitor = getenv("CORBEL_VMM"); // NOLINT(concurrency-mt-unsafe)
    const char *own = cli->bundle != NULL ? BUNDLE_PROGRAM : NULL;
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    char *slash;
    int rc;

    if (n <= 0) {
        return err_set_errno(err, -errno, "/proc/self/exe cannot be read");
    }
    self[n] = '\0';
    slash = strrchr(self, '/');
    if (slash != NULL) {
        *slash = '\0';
    }
    monitor = monitor != NULL ? monitor : own;
    rc = monitor != NULL ? path_format(cli->vmm, err, "%s", monitor)
                         : path_find_beside(cli->vmm, "corbel-vmm", err);
    rc = rc < 0        ? rc
         : own != NULL ? path_format(cli->daemon, err, "%s", own)
                       : path_find_beside(cli->daemon, "corbeld", err);
    if (rc == 0 && access(cli->vmm, X_OK) != 0) {
        cli->vmm[0] = '\0';
    }
    for (size_t i = 0; rc == 0 && own == NULL && i < ARRAY_LEN(builder_dirs); i++) {
        char probe[PATH_MAX];

        rc = path_format(probe, err, "%s/%s/lib.sh", self, builder_dirs[i]);
        if (rc == 0 && access(probe, R_OK) == 0) {
            return path_format(cli->builders, err, "%s/%s", self, builder_dirs[i]);
        }
    }
    cli->builders[0] = '\0';
    return rc;
}

int paths_find(struct cli *ret_cli, struct err *err)
{
    int rc = path_find_home(ret_cli->images, "XDG_DATA_HOME", ".local/share", "/images", err);

    if (rc == 0) {
        rc = path_find_home(ret_cli->cache, "XDG_CACHE_HOME", ".cache", "", err);
    }
    if (rc == 0) {
        rc = path_find_home(ret_cli->pools, "XDG_DATA_HOME", ".local/share", "/pools", err);
    }
    if (rc == 0) {
        rc = path_find_home(ret_cli->config, "XDG_CONFIG_HOME", ".config", "", err);
    }
    if (rc == 0) {
        rc = path_find_runtime(ret_cli->runtime, "corbel", err);
    }
    if (rc == 0) {
        rc = find_programs(ret_cli, err);
    }
    return rc;
}
