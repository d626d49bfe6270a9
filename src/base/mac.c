#include "base/mac.h"

#include <stdio.h>
#include <string.h>

#define GROUP_BIT 0x01u /* of the first byte */

static int hex_digit(char c)
{
    static const char digits[] = "0123456789abcdefABCDEF";
    const char *at = c != '\0' ? strchr(digits, c) : NULL;
    int index = at != NULL ? (int)(at - digits) : -1;

    return index < 16 ? index : index - 6;
}

bool mac_parse(const char *text, uint8_t ret_mac[MAC_BYTES])
{
    static const uint8_t none[MAC_BYTES] = {0};

    if (strlen(text) != MAC_TEXT_BYTES - 1) {
        return false;
    }
    for (unsigned i = 0; i < MAC_BYTES; i++) {
        int high = hex_digit(text[3 * i]), low = hex_digit(text[3 * i + 1]);

        if (high < 0 || low < 0 || text[3 * i + 2] != (i + 1 < MAC_BYTES ? ':' : '\0')) {
            return false;
        }
        ret_mac[i] = (uint8_t)(high << 4 | low);
    }
    return (ret_mac[0] & GROUP_BIT) == 0 && memcmp(ret_mac, none, MAC_BYTES) != 0;
}

void mac_format(const uint8_t mac[MAC_BYTES], char out[MAC_TEXT_BYTES])
{
    (void)snprintf(out, MAC_TEXT_BYTES, "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2],
                   mac[3], mac[4], mac[5]);
}
