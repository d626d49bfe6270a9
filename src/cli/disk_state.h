/*
 * What the marks of a disk's file (successor.h) mean to people and programs.
 */
#ifndef CORBEL_CLI_DISK_STATE_H
#define CORBEL_CLI_DISK_STATE_H

#include "block/successor.h"

#include <jansson.h>
#include <stdio.h>

/* A line of text from a file: control characters would reach the terminal. */
void disk_print_text(FILE *stream, const char *label, const char *text);

/* Text from a file, whose bytes may be anything: what is not UTF-8 becomes U+FFFD. */
json_t *disk_json_text(const char *text);

/* "current", "unfinished" or "stale". */
const char *disk_state_name(enum successor_state state);
/* A line for a description, unless the disk is current. */
void disk_print_state(enum successor_state state, const struct successor *next);
/* Whoever only reads a stale disk may do so, but has to know what it is. */
void disk_warn_when_stale(const char *path);

#endif
