/*
 * What a virtual machine shall be, from flags and from a JSON file.
 *
 * One table of fields (config.c) drives the flags, the keys of the file, the
 * help and what is checked: a key of the file is a flag without its dashes,
 * its value is what the flag takes, or a number, a boolean, or an array of
 * values where the flag may be repeated. Later settings win over earlier ones.
 *
 * Everything given is untrusted text; each mistake yields one sentence that
 * names the setting, the value and the mend. Main thread. The configuration
 * owns copies of all strings until vmm_config_done().
 */
#ifndef CORBEL_VMM_CONFIG_H
#define CORBEL_VMM_CONFIG_H

#include "base/compiler.h"
#include "base/error.h"
#include "base/log.h"
#include "hostnet/hostnet.h"
#include "machine/machine.h"

#include <stdio.h>

#define VMM_CONFIG_MAX_STRINGS 128
#define VMM_CONFIG_MAX_FILE_BYTES (1u << 20)

enum vmm_serial {
    VMM_SERIAL_STDIO,
    VMM_SERIAL_NONE,
    VMM_SERIAL_FILE,  /* serial_path is written */
    VMM_SERIAL_SOCKET /* serial_path is listened on */
};

enum vmm_net_kind {
    VMM_NET_NONE,
    VMM_NET_USER,
    VMM_NET_BRIDGE, /* a tap is made and put into the bridge of that name */
    VMM_NET_TAP     /* one that is there, of that name, or the open descriptor */
};

/* Where the network card leads; the rest of it is in machine.net. */
struct vmm_net {
    enum vmm_net_kind kind;
    char device[HOSTNET_NAME_BYTES];
    int fd; /* -1: by the name */
};

/* What the parsed flags ask for. */
enum vmm_action { VMM_ACTION_RUN, VMM_ACTION_HELP, VMM_ACTION_VERSION };

struct vmm_config {
    struct machine_config machine; /* but serial and taps, which need descriptors */
    struct vmm_net net;
    enum vmm_serial serial;
    const char *serial_path;
    const char *serial_log_path; /* NULL: no log of it is kept */
    const char *control_path;    /* NULL: no control socket */
    const char *agent_path;      /* NULL: no port for a guest agent */
    const char *end_path;        /* how it ended is written there; NULL: nowhere */
    int ready_fd;                /* -1: nobody waits */
    bool stay_after_crash;       /* --on-crash pause */
    enum log_level log_level;

    char *strings[VMM_CONFIG_MAX_STRINGS]; /* owns what the pointers above point to */
    unsigned string_count;
};

void vmm_config_init(struct vmm_config *config);
void vmm_config_done(struct vmm_config *config);

/*
 * Parses the flags, and the files that --config names, in order. On a mistake
 * -EINVAL, -ENOMEM, or what reading a file gave, and err holds the sentence.
 */
int vmm_config_parse_args(struct vmm_config *config, int argc, char *const argv[], struct err *err,
                          enum vmm_action *ret_action) MUST_CHECK;

/* Parses one JSON object; name stands in messages. Errors as above. */
int vmm_config_parse_json(struct vmm_config *config, const char *name, const char *text, size_t len,
                          struct err *err) MUST_CHECK;

/* What no single field can tell: -EINVAL and a sentence, or 0. */
int vmm_config_check(const struct vmm_config *config, struct err *err) MUST_CHECK;

/* Every flag with its help, as --help shows it. */
void vmm_config_print_help(FILE *out);

#endif
