/*
 * Taps and bridges of the host: network devices whose other end is a
 * descriptor of this process, and the switches that they are put into.
 *
 * A tap that is made here lives as long as its descriptor is open somewhere:
 * whoever ends leaves none behind. Frames are read and written whole, without
 * any header before them, checksums complete. Any thread.
 */
#ifndef CORBEL_HOSTNET_HOSTNET_H
#define CORBEL_HOSTNET_HOSTNET_H

#include "base/compiler.h"
#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

#define HOSTNET_NAME_BYTES 16 /* with its NUL: IFNAMSIZ */
#define HOSTNET_NAME_RULE "1 to 15 letters, digits or _.-, not beginning with a dot"

struct hostnet_tap {
    int fd; /* non-blocking, close-on-exec; the caller's */
    uint16_t mtu;
    char name[HOSTNET_NAME_BYTES];
};

/* Whether text can be the name of a network device as HOSTNET_NAME_RULE says. */
bool hostnet_is_name(const char *text);

/*
 * Makes a tap, puts it into the bridge, with the bridge's MTU, and switches it on. name is its
 * name, or NULL for any. Needs CAP_NET_ADMIN: -EPERM without. -ENODEV when there is no such
 * bridge, -EINVAL when it is none, -EBUSY when a tap has the name, which may be about to go, -EEXIST
 * when another device has it, -ENOENT without /dev/net/tun.
 */
int hostnet_make_tap(const char *bridge, const char *name, struct err *err,
                     struct hostnet_tap *ret_tap) MUST_CHECK;

/* Opens a tap that is there; it may belong to this user. -ENODEV, -EPERM, -EBUSY, -EINVAL. */
int hostnet_open_tap(const char *name, struct err *err, struct hostnet_tap *ret_tap) MUST_CHECK;

/* Looks at a descriptor that somebody else opened: a tap's whose frames have no header. The
 * descriptor stays the caller's after an error. -EINVAL, -EBADF. */
int hostnet_check_tap(int fd, struct err *err, struct hostnet_tap *ret_tap) MUST_CHECK;

/* Whether there is such a bridge: 0, -ENODEV, -EINVAL and a sentence. Needs no privilege. */
int hostnet_check_bridge(const char *bridge, struct err *err) MUST_CHECK;

/* Whether this thread could make a tap: 0, or -EPERM, -ENOENT ... and a sentence with the mend. */
int hostnet_check_privilege(struct err *err) MUST_CHECK;

/* Gives up CAP_NET_ADMIN for this thread and what it starts, for ever. Before other threads. */
int hostnet_drop_privilege(void) MUST_CHECK;

/* What this process starts does not get CAP_NET_ADMIN from it, which keeps it; root's children have
 * it by being root's. Before other threads. */
int hostnet_keep_privilege(void) MUST_CHECK;

#endif
