/*
 * usage: bench            lists groups and names
 *        bench NAME...    runs them: "begin NAME", then "end NAME NANOSECONDS CHECKSUM"
 *        bench noop       does nothing, for fork and exec
 */
#include "bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const struct bench *const tables[] = {integer_benches, floating_benches, simd_benches,
                                             crypto_benches,  memory_benches,   system_benches,
                                             io_benches,      disk_benches};

void bench_fail(const char *what)
{
    (void)fprintf(stderr, "bench: %s: %s\n", what, strerror(errno));
    exit(2);
}

static uint64_t now_ns(void)
{
    struct timespec ts;

    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int run_one(const struct bench *b)
{
    uint64_t start;
    uint64_t end;
    uint64_t sum;

    if (b->is_supported != NULL && !b->is_supported()) {
        printf("skip %s\n", b->name);
        return 0;
    }
    printf("begin %s\n", b->name);
    (void)fflush(stdout);
    start = now_ns();
    sum = b->run();
    end = now_ns();
    printf("end %s %llu %llx\n", b->name, (unsigned long long)(end - start),
           (unsigned long long)(b->has_varying_result ? 0 : sum));
    return 0;
}

static const struct bench *find(const char *name)
{
    for (size_t t = 0; t < sizeof(tables) / sizeof(tables[0]); t++) {
        for (const struct bench *b = tables[t]; b->name != NULL; b++) {
            if (strcmp(b->name, name) == 0) {
                return b;
            }
        }
    }
    return NULL;
}

static int list(void)
{
    for (size_t t = 0; t < sizeof(tables) / sizeof(tables[0]); t++) {
        for (const struct bench *b = tables[t]; b->name != NULL; b++) {
            printf("%s %s\n", b->group, b->name);
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        return list();
    }
    if (strcmp(argv[1], "noop") == 0) {
        return 0;
    }
    for (int i = 1; i < argc; i++) {
        const struct bench *b = find(argv[i]);

        if (b == NULL) {
            (void)fprintf(stderr, "bench: there is no benchmark \"%s\"\n", argv[i]);
            return 1;
        }
        if (run_one(b) != 0) {
            return 1;
        }
    }
    return 0;
}
