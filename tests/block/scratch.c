#include "scratch.h"

#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[256];
static char context[256] = "";
static pid_t owner;

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st; /* whatever it is */
    (void)type;
    (void)ftw;
    return remove(path);
}

static void remove_dir(void)
{
    if (dir[0] != 0 && getpid() == owner && !getenv("CORBEL_KEEP_SCRATCH")) {
        (void)nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS); /* best effort at exit */
    }
}

void scratch_init(void)
{
    const char *base = getenv("TMPDIR");

    (void)snprintf(dir, sizeof(dir), "%s/corbel-block-XXXXXX", base ? base : "/tmp");
    if (!mkdtemp(dir)) {
        dir[0] = 0;
        fail("cannot make a scratch directory");
    }
    owner = getpid();
    (void)atexit(remove_dir);
}

const char *scratch_path(const char *name)
{
    static _Thread_local char paths[8][512];
    static _Thread_local unsigned turn;
    char *path = paths[turn++ % 8];

    (void)snprintf(path, sizeof(paths[0]), "%s/%s", dir, name);
    return path;
}

void fail_context(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    (void)vsnprintf(context, sizeof(context), fmt, args);
    va_end(args);
}

void fail(const char *fmt, ...)
{
    va_list args;

    (void)fprintf(stderr, "not ok - %s: ", context);
    va_start(args, fmt);
    (void)vfprintf(stderr, fmt, args);
    va_end(args);
    (void)fputc('\n', stderr);
    exit(1);
}

int run_command(unsigned allowed_statuses, const char *fmt, ...)
{
    char command[2048];
    char line[4096];
    va_list args;
    int n, status;

    va_start(args, fmt);
    n = vsnprintf(command, sizeof(command) - 32, fmt, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof(command) - 32) {
        fail("a command line is too long");
    }
    (void)snprintf(line, sizeof(line), "(%s) >%s/output 2>&1", command, dir);
    status = system(line); /* NOLINT(cert-env33-c): a shell is what a test wants here */
    status = WIFEXITED(status) ? WEXITSTATUS(status) : 255;
    if (status > 31 || !(allowed_statuses & (1u << status))) {
        (void)snprintf(line, sizeof(line), "head -c 3000 %s/output >&2", dir);
        (void)!system(line); /* NOLINT(cert-env33-c) */
        fail("'%s' ended with %d", command, status);
    }
    return status;
}

bool have_qemu_img(void)
{
    return system("command -v qemu-img >/dev/null") == 0; /* NOLINT(cert-env33-c) */
}
