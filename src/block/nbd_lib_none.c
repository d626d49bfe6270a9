/* The single file, which loads no library of the host's, has no NBD client. */
#include "block/nbd_lib.h"

#include <errno.h>

int nbd_lib_open(struct nbd_lib *lib, struct err *err)
{
    lib->object = NULL;
    return err_set(
        err, -ENOTSUP,
        "the single file has no NBD client; disks of NBD servers need the Debian package");
}

void nbd_lib_close(struct nbd_lib *lib)
{
    (void)lib;
}
