#include "cli/disk_state.h"

#include <stdlib.h>
#include <string.h>

void disk_print_text(FILE *stream, const char *label, const char *text)
{
    (void)fputs(label, stream);
    for (const char *p = text; *p != '\0'; p++) {
        (void)putc((unsigned char)*p < ' ' || *p == 0x7f ? '?' : *p, stream);
    }
    (void)putc('\n', stream);
}

const char *disk_state_name(enum successor_state state)
{
    return state == SUCCESSOR_UNFINISHED  ? "unfinished"
           : state == SUCCESSOR_CONTINUED ? "stale"
                                          : "current";
}

void disk_print_state(enum successor_state state, const struct successor *next)
{
    if (state == SUCCESSOR_UNFINISHED) {
        puts("state:      an unfinished copy");
    } else if (state == SUCCESSOR_CONTINUED) {
        disk_print_text(stdout, "state:      stale; the disk went on in ", next->path);
    }
}

void disk_warn_when_stale(const char *path)
{
    struct successor next;

    if (successor_state_of(path, &next) == SUCCESSOR_CONTINUED) {
        (void)fprintf(stderr, "corbel: %s is stale: its disk went on in ", path);
        disk_print_text(stderr, "", next.path);
    }
}

/* The length of the UTF-8 character at p; 0 for what is none. RFC 3629. */
static size_t character(const unsigned char *p)
{
    size_t len = *p < 0x80 ? 1 : *p < 0xc2 ? 0 : *p < 0xe0 ? 2 : *p < 0xf0 ? 3 : *p < 0xf5 ? 4 : 0;

    for (size_t i = 1; i < len; i++) {
        if ((p[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    if ((*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] > 0x9f) || (*p == 0xf0 && p[1] < 0x90) ||
        (*p == 0xf4 && p[1] > 0x8f)) {
        return 0;
    }
    return len;
}

json_t *disk_json_text(const char *text)
{
    static const char replacement[] = "\xef\xbf\xbd";
    char *out = malloc(3 * strlen(text) + 1);
    json_t *result;
    size_t len = 0;

    if (out == NULL) {
        return NULL;
    }
    while (*text != '\0') {
        size_t n = character((const unsigned char *)text);

        memcpy(out + len, n > 0 ? text : replacement, n > 0 ? n : 3);
        len += n > 0 ? n : 3;
        text += n > 0 ? n : 1;
    }
    result = json_stringn(out, len);
    free(out);
    return result;
}
