/* What follows from the tables of verbs: help, parsing and exit status. */
#include "cli/cli.h"
#include "cli/complete.h"
#include "cli/paths.h"
#include "cli/verb_tables.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdalign.h>
#include <stdio.h>
#include <string.h>

static const struct verb *const verb_tables[] = {verbs_of_daemon, verbs_of_files};

static_assert(sizeof(struct build_options) <= VERB_VALUES_SIZE, "the largest options fit");
static_assert(sizeof(struct api_options) <= VERB_VALUES_SIZE, "the largest options fit");

const struct verb *verb_at(size_t index)
{
    for (size_t i = 0; i < ARRAY_LEN(verb_tables); i++) {
        for (const struct verb *v = verb_tables[i]; v->name != NULL; v++) {
            if (index-- == 0) {
                return v;
            }
        }
    }
    return NULL;
}

static void print_verb_name(FILE *out, const struct verb *v)
{
    (void)fprintf(out, "corbel %s%s%s", v->group != NULL ? v->group : "",
                  v->group != NULL ? " " : "", v->name);
}

static void print_help(FILE *out)
{
    const struct verb *v;

    (void)fputs("Runs virtual machines.\n\n"
                "usage: corbel [--host URL] [--project PROJECT] VERB ...\n\n",
                out);
    for (size_t i = 0; (v = verb_at(i)) != NULL; i++) {
        char name[32];

        (void)snprintf(name, sizeof(name), "%s%s%s", v->group != NULL ? v->group : "",
                       v->group != NULL ? " " : "", v->name);
        (void)fprintf(out, "  %-17s %s\n", name, v->summary);
    }
    (void)fputs("\ncorbel VERB --help tells more about one. First steps:\n"
                "  corbel doctor; corbel image build debian; corbel run debian\n",
                out);
}

static void print_verb_help(FILE *out, const struct verb *v)
{
    (void)fputs("usage: ", out);
    print_verb_name(out, v);
    (void)fprintf(out, "%s%s%s\n  %s\n", v->options != NULL ? " [OPTION...]" : "",
                  v->arguments[0] != '\0' ? " " : "", v->arguments, v->summary);
    for (const struct option_spec *s = v->options; s != NULL && s->name != NULL; s++) {
        char left[40];

        (void)snprintf(left, sizeof(left), "%s%s%s", s->name, s->argument != NULL ? " " : "",
                       s->argument != NULL ? s->argument : "");
        (void)fprintf(out, "  %-22s %s\n", left, s->help);
    }
}

const struct verb *verb_find(char **argv, int *ret_words)
{
    const struct verb *v;

    for (size_t i = 0; (v = verb_at(i)) != NULL; i++) {
        if (v->group == NULL && strcmp(argv[0], v->name) == 0) {
            *ret_words = 1;
            return v;
        }
        if (v->group != NULL && strcmp(argv[0], v->group) == 0 && argv[1] != NULL &&
            strcmp(argv[1], v->name) == 0) {
            *ret_words = 2;
            return v;
        }
    }
    return NULL;
}

static int fail_usage(const struct verb *v, const char *text)
{
    (void)fprintf(stderr, "corbel: %s\n", text);
    if (v != NULL) {
        print_verb_help(stderr, v);
    }
    return CLI_EXIT_USAGE;
}

static int exit_status(int rc)
{
    switch (rc) {
    case -ENOENT:
        return CLI_EXIT_NOT_FOUND;
    case -EEXIST:
    case -EBUSY:
    case -EPERM:
    case -EDQUOT:
        return CLI_EXIT_REFUSED;
    case -ENXIO:
    case -ENOTCONN:
        return CLI_EXIT_MISSING;
    case -EINVAL:
        return CLI_EXIT_USAGE;
    default:
        return rc < 0 ? CLI_EXIT_FAILED : rc;
    }
}

static int run_verb(const struct verb *v, const struct cli *given, char **argv)
{
    alignas(max_align_t) char values[VERB_VALUES_SIZE] = {0};
    struct cli cli = *given;
    struct err err = {0};
    struct args args;
    int rc = options_parse(v->options, argv, values, &args, &err);

    if (rc < 0) {
        return fail_usage(v, err.text);
    }
    if (args.wants_help) {
        print_verb_help(stdout, v);
        return CLI_EXIT_OK;
    }
    if (args.count < v->min_args || args.count > v->max_args ||
        (args.rest != NULL && !v->takes_rest)) {
        return fail_usage(v, args.count < v->min_args ? "something is missing"
                                                      : "there is a word too many");
    }
    args.data = v->data;
    rc = paths_find(&cli, &err);
    if (rc == 0) {
        rc = v->run(&cli, values, &args, &err);
    }
    if (rc < 0) {
        (void)fprintf(stderr, "corbel: %s\n", err.text[0] != '\0' ? err.text : strerror(-rc));
    }
    return exit_status(rc);
}

static const char *from_environment(const char *name)
{
    const char *text = getenv(name); // NOLINT(concurrency-mt-unsafe)

    return text != NULL ? text : "";
}

/* The options before the verb: how many words they took, or -EINVAL. */
static int read_global_options(struct cli *cli, char **argv)
{
    static const struct option_spec specs[] = {
        {"--host", "URL", "", OPTION_TEXT, offsetof(struct cli, host)},
        {"--project", "PROJECT", "", OPTION_TEXT, offsetof(struct cli, project)},
        {.name = NULL},
    };
    int words = 0;

    while (argv[words] != NULL && strncmp(argv[words], "--", 2) == 0 &&
           strcmp(argv[words], "--help") != 0 && strcmp(argv[words], "--version") != 0) {
        struct err err = {0};
        int taken = options_parse_one(specs, argv + words, cli, &err);

        if (taken < 0) {
            return fail_usage(NULL, err.text), -EINVAL;
        }
        words += taken;
    }
    return words;
}

int cli_main(int argc, char **argv, const struct bundle *bundle)
{
    struct cli cli = {.bundle = bundle,
                      .host = from_environment("CORBEL_HOST"),
                      .project = from_environment("CORBEL_PROJECT"),
                      .token = from_environment("CORBEL_TOKEN")};
    const struct verb *v;
    int words = 0, taken;

    (void)signal(SIGXFSZ, SIG_IGN); /* NOLINT(cert-err33-c): a full disk is an error, not an end */
    taken = argc > 0 ? read_global_options(&cli, argv + 1) : 0;
    if (taken < 0) {
        return CLI_EXIT_USAGE;
    }
    argv += 1 + taken;
    if (argv[0] == NULL || strcmp(argv[0], "--help") == 0 || strcmp(argv[0], "help") == 0) {
        print_help(argv[0] == NULL ? stderr : stdout);
        return argv[0] == NULL ? CLI_EXIT_USAGE : CLI_EXIT_OK;
    }
    if (strcmp(argv[0], "--version") == 0) {
        printf("corbel " CORBEL_VERSION "%s\n", bundle != NULL ? " (single file)" : "");
        return CLI_EXIT_OK;
    }
    if (strcmp(argv[0], "complete") == 0) {
        return complete_words(&cli, argv + 1); /* for shells only: in no list of verbs */
    }
    v = verb_find(argv, &words);
    if (v == NULL) {
        (void)fprintf(stderr, "corbel: there is no verb \"%s%s%s\"; corbel --help lists them\n",
                      argv[0], argv[1] != NULL ? " " : "", argv[1] != NULL ? argv[1] : "");
        return CLI_EXIT_USAGE;
    }
    return run_verb(v, &cli, argv + words);
}
