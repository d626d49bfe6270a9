/*
 * A guest image: a directory with a kernel, an initrd, perhaps a disk, and
 * image.json that says how to boot them. Images are made whole and never
 * changed; an instance links or copies what it needs.
 */
#ifndef CORBEL_STORAGE_GUEST_IMAGE_H
#define CORBEL_STORAGE_GUEST_IMAGE_H

#include "base/error.h"

#include <limits.h>
#include <stdbool.h>

struct image {
    char dir[PATH_MAX];
    char kind[48];         /* "debian" */
    char kernel[96];       /* version, for people */
    char cmdline[512];     /* kernel command line */
    char ready[64];        /* text on the console when the guest is up; empty: unknown */
    char user[32];         /* for ssh; empty: no ssh in this guest */
    unsigned memory_mib;   /* what it boots with unless told otherwise */
    bool has_power_button; /* whether the guest heeds one */
    bool has_disk;
    bool has_kernel; /* without one only firmware could boot it */
};

/* Reads DIR/image.json. -ENOENT when there is none, -EINVAL when it is damaged. */
int image_load(const char *dir, struct image *ret_image, struct err *err) MUST_CHECK;

#endif
