/* The user's collection of guest images (storage/guest_image.h). */
#ifndef CORBEL_CLI_IMAGE_H
#define CORBEL_CLI_IMAGE_H

#include "base/error.h"
#include "cli/cli.h"
#include "storage/guest_image.h"

#include <stdbool.h>

/* As image_load, for an image's name in this user's collection. */
int image_find(const struct cli *cli, const char *name, struct image *ret_image, struct err *err)
    MUST_CHECK;

/* Builds the image `name` with the builder of `kind`; replaces an older one only when done. */
int image_build(const struct cli *cli, const char *kind, const struct build_options *options,
                struct err *err) MUST_CHECK;

/* Whether `corbel image fetch` knows where that image is. */
bool image_is_in_catalogue(const struct cli *cli, const char *name);

/* Whether the single file has an image of that kind inside, which image_build() takes, too. */
bool image_is_inside(const struct cli *cli, const char *kind);
/* Takes it out, for a verb that finds it missing. */
int image_take_inside(const struct cli *cli, const char *kind, struct err *err) MUST_CHECK;

/*
 * Makes the image `name` in this user's collection: fill() puts its files into
 * a new directory, which then takes its place. Whatever ends it on the way,
 * nothing is left of it. -EEXIST when there is one and it may not be replaced.
 */
struct image_maker {
    int (*fill)(void *opaque, const char *dir, struct err *err);
    void *opaque;
    bool may_replace;
    bool is_aside; /* not what was asked for: what it says goes to standard error */
};

int image_make(const struct cli *cli, const char *name, const struct image_maker *maker,
               struct err *err) MUST_CHECK;

#endif
