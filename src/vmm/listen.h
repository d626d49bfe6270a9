/*
 * Listening unix sockets with a name in the file system.
 *
 * A name that a dead process left behind is taken over; one that a living
 * process listens on, or that is no socket, is refused. Only the owner may
 * connect. Main thread.
 */
#ifndef CORBEL_VMM_LISTEN_H
#define CORBEL_VMM_LISTEN_H

#include "base/compiler.h"
#include "base/error.h"

#include <sys/types.h>

struct vmm_listener {
    int fd;           /* -1 when there is none, or once it was handed over */
    const char *path; /* the caller's, must outlive this; NULL when there is none */
    dev_t dev;
    ino_t ino;
};

#define VMM_LISTENER_NONE ((struct vmm_listener){.fd = -1})

/*
 * Listens, non-blocking and close-on-exec. -EADDRINUSE when another process
 * does, -EEXIST when path is no socket, -ENAMETOOLONG, or what the host says;
 * err holds a sentence that begins with flag.
 */
int vmm_listener_open(struct vmm_listener *listener, const char *flag, const char *path,
                      struct err *err) MUST_CHECK;

/* Closes the descriptor, and removes the name when it is still ours. */
void vmm_listener_close(struct vmm_listener *listener);

#endif
