#include "cli/options.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

static const struct option_spec *find_spec(const struct option_spec *specs, const char *word,
                                           size_t name_len)
{
    for (const struct option_spec *s = specs; s != NULL && s->name != NULL; s++) {
        if (strlen(s->name) == name_len && strncmp(s->name, word, name_len) == 0) {
            return s;
        }
    }
    return NULL;
}

static int store_number(unsigned *field, const char *name, const char *text, struct err *err)
{
    char *end;
    unsigned long v;

    errno = 0;
    v = strtoul(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || text[0] == '-' || v > UINT_MAX) {
        return err_set(err, -EINVAL, "%s takes a number, not \"%s\"", name, text);
    }
    *field = (unsigned)v;
    return 0;
}

static int store_value(const struct option_spec *spec, const char *text, void *values,
                       struct err *err)
{
    void *field = (char *)values + spec->offset;
    struct option_list *list;

    switch (spec->kind) {
    case OPTION_FLAG:
        *(bool *)field = true;
        return 0;
    case OPTION_TEXT:
        *(const char **)field = text;
        return 0;
    case OPTION_NUMBER:
        return store_number(field, spec->name, text, err);
    case OPTION_LIST:
        list = field;
        if (list->count == ARRAY_LEN(list->items)) {
            return err_set(err, -EINVAL, "%s is given more than %zu times", spec->name,
                           ARRAY_LEN(list->items));
        }
        list->items[list->count++] = text;
        return 0;
    }
    return -EINVAL;
}

int options_parse_one(const struct option_spec *specs, char **argv, void *values, struct err *err)
{
    const char *equals = strchr(argv[0], '=');
    size_t name_len = equals != NULL ? (size_t)(equals - argv[0]) : strlen(argv[0]);
    const struct option_spec *spec = find_spec(specs, argv[0], name_len);
    const char *text = "";
    int taken = 1;
    int rc;

    if (spec == NULL) {
        return err_set(err, -EINVAL, "there is no option %.*s here; --help lists them",
                       (int)name_len, argv[0]);
    }
    if (spec->argument == NULL && equals != NULL) {
        return err_set(err, -EINVAL, "%s takes no value", spec->name);
    }
    if (spec->argument != NULL && equals != NULL) {
        text = equals + 1;
    } else if (spec->argument != NULL) {
        text = argv[1];
        taken = 2;
        if (text == NULL) {
            return err_set(err, -EINVAL, "%s needs a value: %s %s", spec->name, spec->name,
                           spec->argument);
        }
    }
    rc = store_value(spec, text, values, err);
    return rc < 0 ? rc : taken;
}

int options_parse(const struct option_spec *specs, char **argv, void *values, struct args *ret_args,
                  struct err *err)
{
    struct args args = {.count = 0};

    while (*argv != NULL) {
        if (strcmp(*argv, "--") == 0) {
            args.rest = argv + 1;
            break;
        }
        if (strcmp(*argv, "--help") == 0 || strcmp(*argv, "-h") == 0) {
            args.wants_help = true;
            argv++;
        } else if ((*argv)[0] == '-' && (*argv)[1] != '\0') {
            int taken = options_parse_one(specs, argv, values, err);

            if (taken < 0) {
                return taken;
            }
            argv += taken;
        } else if (args.count == ARRAY_LEN(args.words)) {
            return err_set(err, -EINVAL, "too many words, from \"%s\" on", *argv);
        } else {
            args.words[args.count++] = *argv++;
        }
    }
    *ret_args = args;
    return 0;
}
