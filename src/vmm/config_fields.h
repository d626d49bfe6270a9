/*
 * The table of settings: names, help, and how each value is checked and kept.
 *
 * Only config.c uses it, for flags, files and help alike. Main thread.
 */
#ifndef CORBEL_VMM_CONFIG_FIELDS_H
#define CORBEL_VMM_CONFIG_FIELDS_H

#include "base/error.h"

#include <stdbool.h>

struct vmm_config;

/* One setting being made: what it is called where it was written, and its text. */
struct vmm_setting {
    struct vmm_config *config;
    const char *place; /* "--cpus", or "\"cpus\" in vm.json" */
    const char *value; /* "yes" or "no" for a switch */
    struct err *err;
};

struct vmm_field {
    const char *name;  /* the flag without dashes, and the key */
    const char *value; /* what --help calls the value; NULL for a switch */
    const char *help;
    int (*set)(const struct vmm_setting *setting); /* 0, or -EINVAL, -ENOMEM ... and a sentence */
    bool is_repeatable;
    bool is_default_on; /* a switch that help shows as --no-NAME */
    bool is_flag_only;
};

/* Refuses the value; mend says what to give instead. -EINVAL. */
int vmm_setting_refuse(const struct vmm_setting *setting, const char *mend);

extern const struct vmm_field vmm_fields[];
extern const unsigned vmm_field_count;

#endif
