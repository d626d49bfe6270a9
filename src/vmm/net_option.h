/*
 * A network card in text, as --net takes it: "user[,OPTION]...",
 * "bridge,bridge=NAME[,OPTION]...", "tap,ifname=NAME[,OPTION]...",
 * "tap,fd=N[,OPTION]..." or "none". Main thread.
 */
#ifndef CORBEL_VMM_NET_OPTION_H
#define CORBEL_VMM_NET_OPTION_H

#include "base/compiler.h"

struct vmm_setting;

/* Reads text, which it changes, in place of what the configuration had. -EINVAL, and a sentence. */
int net_option_parse(char *text, const struct vmm_setting *setting) MUST_CHECK;

/* For the help. */
#define NET_OPTION_VALUE "user|bridge|tap|none[,OPTION=VALUE]..."

#endif
