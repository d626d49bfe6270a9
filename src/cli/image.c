#include "cli/image.h"

#include "cli/paths.h"

#include <errno.h>

int image_find(const struct cli *cli, const char *name, struct image *ret_image, struct err *err)
{
    char dir[PATH_MAX];
    int rc = path_check_name(name, err);

    if (rc == 0) {
        rc = path_format(dir, err, "%s/%s", cli->images, name);
    }
    if (rc < 0) {
        return rc;
    }
    if (!path_exists(dir)) {
        return err_set(err, -ENOENT, "there is no image \"%s\"; build it: corbel image build %s",
                       name, name);
    }
    return image_load(dir, ret_image, err);
}
