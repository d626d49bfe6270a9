/* Addresses of network cards (IEEE 802) in text. */
#ifndef CORBEL_BASE_MAC_H
#define CORBEL_BASE_MAC_H

#include "base/compiler.h"

#include <stdbool.h>
#include <stdint.h>

#define MAC_BYTES 6
#define MAC_TEXT_BYTES 18 /* with its NUL */

/* "52:54:00:ab:cd:ef", in either case: an address that one card can have. False for other text, for
 * a group's address and for the one that is all zero. */
bool mac_parse(const char *text, uint8_t ret_mac[MAC_BYTES]) MUST_CHECK;
/* In lower case. */
void mac_format(const uint8_t mac[MAC_BYTES], char out[MAC_TEXT_BYTES]);

#endif
