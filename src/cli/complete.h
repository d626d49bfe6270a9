/* Completion in shells. */
#ifndef CORBEL_CLI_COMPLETE_H
#define CORBEL_CLI_COMPLETE_H

#include "cli/cli.h"

/* Prints what the last of the words, those after "corbel" up to the one being typed, may become. */
int complete_words(const struct cli *cli, char **words);

#endif
