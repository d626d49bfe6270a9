#include "cli/disk_state.h"

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
