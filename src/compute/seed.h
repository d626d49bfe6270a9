/*
 * An instance's data for its guest (cloud-init's NoCloud): name, key, user
 * data. User data is kept in a record of its own, which only the seed is made
 * from. Any thread.
 */
#ifndef CORBEL_COMPUTE_SEED_H
#define CORBEL_COMPUTE_SEED_H

#include "compute/compute_int.h"

#define SEED_FILE "seed.img"
#define SEED_MAX_USER_DATA (64u << 10)

/*
 * What a creation says of user data and key, checked and moved: user data from
 * the object into the change, the key's text into the object.
 */
int seed_prepare(struct change *change, struct object *instance, struct fault *fault) MUST_CHECK;
/* The record of user data goes with the instance. */
void seed_forget(struct change *change, const struct object *instance);

/* Whether the instance has data for its guest. */
bool seed_is_wanted(const struct object *instance);
/* Writes it into the instance's directory, anew. */
int seed_make(struct compute *compute, const struct object *instance, const char *dir,
              struct err *err) MUST_CHECK;
/* The instance's name as a host name. */
void seed_host_name(const struct object *instance, char out[ID_BYTES]);

#endif
