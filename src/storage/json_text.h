/* Text out of JSON that somebody else wrote. Any thread. */
#ifndef CORBEL_STORAGE_JSON_TEXT_H
#define CORBEL_STORAGE_JSON_TEXT_H

#include "base/compiler.h"

#include <jansson.h>
#include <stddef.h>

/* Copies a string member; an absent one leaves `out` empty. -EINVAL for another type, or when it is
 * too long. */
int json_text_copy(const json_t *object, const char *key, char *out, size_t out_size) MUST_CHECK;

#endif
