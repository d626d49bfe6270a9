/* Runs a fuzz target once on each file of the given directories, in order of names. */
#include "base/io.h"

#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_INPUT_BYTES (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static int replay(const char *dir, const char *name)
{
    char path[4096];
    void *data = NULL;
    size_t len = 0;
    int r;

    (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
    r = io_read_file(path, MAX_INPUT_BYTES, &data, &len);
    if (r < 0) {
        fprintf(stderr, "cannot read '%s'\n", path);
        return r;
    }
    printf("# %s\n", path);
    (void)LLVMFuzzerTestOneInput(data, len);
    free(data);
    return 0;
}

int main(int argc, char **argv)
{
    unsigned runs = 0;

    for (int i = 1; i < argc; i++) {
        struct dirent **names = NULL;
        int count = scandir(argv[i], &names, NULL, alphasort);

        for (int j = 0; j < count; j++) {
            if (names[j]->d_name[0] != '.') {
                if (replay(argv[i], names[j]->d_name) < 0) {
                    return 1;
                }
                runs++;
            }
            free(names[j]);
        }
        free(names);
    }
    if (runs == 0) {
        fprintf(stderr, "no inputs to replay\n");
        return 1;
    }
    printf("ok 1 - %u inputs\n1..1\n", runs);
    return 0;
}
