#include "vmm/terminal.h"

#include <errno.h>
#include <signal.h>
#include <termios.h>

/* Reachable from a handler, so not in any object: written before is_raw is set, then constant. */
static struct termios saved;
static struct termios raw;
static int terminal_fd = -1;
static volatile sig_atomic_t is_raw;

void vmm_terminal_restore(void)
{
    int kept = errno;

    if (is_raw) {
        is_raw = 0;
        (void)tcsetattr(terminal_fd, TCSADRAIN, &saved); /* nothing better to do when it fails */
    }
    errno = kept;
}

/* Ends as the signal would have ended the process, but with the terminal restored. */
static void on_deadly(int number)
{
    vmm_terminal_restore();
    (void)raise(number); /* SA_RESETHAND: the default action now */
}

int vmm_terminal_raw(int fd)
{
    static const int deadly[] = {SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGQUIT, SIGSYS};
    struct sigaction action = {.sa_handler = on_deadly,
                               .sa_flags = (int)(SA_RESETHAND | SA_NODEFER)};

    if (tcgetattr(fd, &saved) < 0) {
        return -errno;
    }
    raw = saved;
    cfmakeraw(&raw);
    terminal_fd = fd;
    if (tcsetattr(fd, TCSADRAIN, &raw) < 0) {
        return -errno;
    }
    is_raw = 1;
    if (atexit(vmm_terminal_restore) != 0) {
        vmm_terminal_restore();
        return -ENOMEM;
    }
    for (unsigned i = 0; i < ARRAY_LEN(deadly); i++) {
        struct sigaction old;

        /* An engine's own handler stays: it knows which faults are the guest's. */
        if (sigaction(deadly[i], NULL, &old) == 0 && (old.sa_flags & SA_SIGINFO) == 0 &&
            old.sa_handler == SIG_DFL) {
            (void)sigaction(deadly[i], &action, NULL); /* valid by construction */
        }
    }
    return 0;
}

void vmm_terminal_again(void)
{
    if (is_raw) {
        (void)tcsetattr(terminal_fd, TCSADRAIN, &raw);
    }
}
