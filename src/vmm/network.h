/*
 * The host's end of a network that is not of user mode: a tap, opened before
 * everything else, because it is all that this process may need a privilege
 * for. Main thread, before others start.
 */
#ifndef CORBEL_VMM_NETWORK_H
#define CORBEL_VMM_NETWORK_H

#include "base/compiler.h"
#include "base/error.h"

struct vmm_config;

/*
 * Opens what config->net names and gives config->machine.net its descriptor, and an address where
 * none was given. Then the privilege is gone, whatever was named. A sentence that begins with --net.
 */
int vmm_network_open(struct vmm_config *config, struct err *err) MUST_CHECK;
void vmm_network_close(struct vmm_config *config);

#endif
