/*
 * Command-line options, parsed from a table.
 *
 * A verb describes its options as an array of struct option_spec, each naming
 * the field of the verb's own struct that takes the value. Strings point into
 * argv. `--name VALUE` and `--name=VALUE` are the same.
 */
#ifndef CORBEL_CLI_OPTIONS_H
#define CORBEL_CLI_OPTIONS_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>

enum option_kind {
    OPTION_FLAG,   /* bool */
    OPTION_TEXT,   /* const char * */
    OPTION_NUMBER, /* unsigned, decimal */
    OPTION_LIST    /* struct option_list: may be given several times */
};

struct option_spec {
    const char *name;     /* "--cpus" */
    const char *argument; /* as help shows it; NULL for a flag */
    const char *help;
    enum option_kind kind;
    size_t offset; /* of the field in the verb's struct */
};

struct option_list {
    const char *items[16];
    unsigned count;
};

/* What is no option: words, and the words after "--". */
struct args {
    const char *words[8];
    unsigned count;
    char **rest; /* NULL-terminated, as argv is; NULL when there was no "--" */
    bool wants_help;
    const void *data; /* of the verb's row */
};

/*
 * Parses argv (without the verb). 0, or -EINVAL with the sentence in err when
 * an option is unknown, lacks its value or has one that is no number.
 */
int options_parse(const struct option_spec *specs, char **argv, void *values, struct args *ret_args,
                  struct err *err) MUST_CHECK;

/* The option that argv begins with: how many words it took. Errors as above. */
int options_parse_one(const struct option_spec *specs, char **argv, void *values, struct err *err)
    MUST_CHECK;

#endif
