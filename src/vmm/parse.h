/*
 * Small values in text: numbers, sizes and lists, as flags write them.
 *
 * Nothing here allocates. Text that is not wholly the value is refused.
 */
#ifndef CORBEL_VMM_PARSE_H
#define CORBEL_VMM_PARSE_H

#include "base/compiler.h"

#include <stdbool.h>
#include <stdint.h>

/* A decimal number from min to max, digits only. False when text is none. */
bool parse_number(const char *text, uint64_t min, uint64_t max, uint64_t *ret_value) MUST_CHECK;

/* Bytes, with an optional K, M, G or T (powers of 1024). False when it is none or overflows. */
bool parse_size(const char *text, uint64_t *ret_bytes) MUST_CHECK;

/* Splits text (which it changes) at the first separator: the rest, or NULL when there is none. */
char *parse_split(char *text, char separator);

#endif
