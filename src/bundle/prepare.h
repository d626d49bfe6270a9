/* What the single file brings along, and what it sees to before one of its programs runs. */
#ifndef CORBEL_BUNDLE_PREPARE_H
#define CORBEL_BUNDLE_PREPARE_H

#include "base/bundle.h"

/* Its files. */
struct bundle bundle_own(void);

/*
 * Once, before any thread: that nothing of the host is loaded into a program with its own C library,
 * and that the host's certificate authorities are found wherever its distribution keeps them.
 */
void bundle_prepare(void);

#endif
