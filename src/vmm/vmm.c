/*
 * corbel-vmm: runs one virtual machine until the guest powers off.
 *
 * Exit status: 0 when the guest powered off or somebody asked for the end, 1
 * when the machine could not start or go on, 2 for a wrong flag, 3 when the
 * guest crashed, 4 when the process that runs guest code died.
 */
#include "vmm/vmm.h"
#include "base/io.h"
#include "base/log.h"
#include "base/loop.h"
#include "machine/machine.h"
#include "vmm/config.h"
#include "vmm/console.h"
#include "vmm/control.h"
#include "vmm/listen.h"
#include "vmm/network.h"
#include "vmm/terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>

enum status {
    STATUS_OK = 0,
    STATUS_FAILED = 1,
    STATUS_USAGE = 2,
    STATUS_CRASH = 3,
    STATUS_EXECUTOR_DIED = 4
};

/* As long as systemd in the guest gives its own services to stop. */
#define POWERDOWN_GRACE_NS (90ull * 1000000000ull)

struct vmm {
    struct vmm_config config;
    struct loop *loop;
    struct machine *machine;
    struct vmm_console *console;
    struct vmm_listener control_listener, agent_listener;
    struct control *control;
    int signal_fd;
    struct loop_fd *signal_handler;
    struct loop_fd *event_handler;
    bool is_asked_down;             /* the power button was pressed for a SIGTERM */
    struct loop_timer *grace_timer; /* ... and for how long the guest may take */
    bool is_crash_told;
    enum status status;
};

/* The console's or a client's wish: all ends now. */
static void vmm_quit(void *opaque)
{
    struct vmm *vmm = opaque;

    if (vmm->machine != NULL) {
        machine_stop(vmm->machine);
    }
    loop_stop(vmm->loop);
}

static void vmm_handle_end(struct vmm *vmm, const struct machine_status *status)
{
    switch (status->end) {
    case MACHINE_END_ERROR:
        log_error("%s", status->error.text);
        vmm->status = status->error.code == -EOWNERDEAD ? STATUS_EXECUTOR_DIED : STATUS_FAILED;
        break;
    case MACHINE_END_CRASH:
        vmm->status = STATUS_CRASH;
        if (!vmm->is_crash_told) {
            vmm->is_crash_told = true;
            log_error("the guest crashed (triple fault)");
        }
        if (vmm->config.stay_after_crash) {
            return; /* memory and registers wait for a debugger */
        }
        break;
    case MACHINE_END_DEBUG_EXIT:
        vmm->status = (enum status)status->debug_exit_code;
        break;
    case MACHINE_END_NONE:
    case MACHINE_END_POWEROFF:
    case MACHINE_END_STOP:
    case MACHINE_END_RESET:
        log_info("ended: %s", machine_end_name(status->end));
        break;
    }
    loop_stop(vmm->loop);
}

static void on_machine_event(void *opaque, uint32_t events)
{
    struct vmm *vmm = opaque;
    struct machine_status status;

    (void)events;
    (void)io_eventfd_drain(machine_event_fd(vmm->machine));
    machine_status(vmm->machine, &status);
    if (vmm->control != NULL) {
        control_announce(vmm->control);
    }
    if (status.state == MACHINE_ENDED) {
        vmm_handle_end(vmm, &status);
    }
}

static void on_grace_over(void *opaque)
{
    log_warn("the guest did not power off within %llu s; ending it",
             (unsigned long long)(POWERDOWN_GRACE_NS / 1000000000ull));
    vmm_quit(opaque);
}

/*
 * The first SIGTERM or SIGHUP presses the power button, when the guest listens
 * to it, and gives it some time; all else pulls the plug.
 */
static void vmm_terminate(struct vmm *vmm, uint32_t number)
{
    if (number != SIGINT && !vmm->is_asked_down && machine_powerdown(vmm->machine) == 0) {
        vmm->is_asked_down = true;
        loop_arm_timer(vmm->grace_timer, clock_monotonic_ns() + POWERDOWN_GRACE_NS);
        log_info("asked the guest to power off; once more ends it at once");
        return;
    }
    vmm_quit(vmm);
}

static void on_signal(void *opaque, uint32_t events)
{
    struct vmm *vmm = opaque;
    struct signalfd_siginfo info;

    (void)events;
    if (read(vmm->signal_fd, &info, sizeof(info)) != (ssize_t)sizeof(info)) {
        return;
    }
    if (info.ssi_signo == SIGCONT) {
        vmm_terminal_again();
        return;
    }
    vmm_terminate(vmm, info.ssi_signo);
}

/* Before any thread starts, so that all inherit the mask. */
static int vmm_open_signals(struct vmm *vmm, struct err *err)
{
    sigset_t set;
    int rc;

    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGINT);
    (void)sigaddset(&set, SIGHUP);
    (void)sigaddset(&set, SIGCONT);
    (void)sigprocmask(SIG_BLOCK, &set, NULL);
    /* A peer that left and a file size limit are errors of one call, not of the process. */
    (void)signal(SIGPIPE, SIG_IGN); /* NOLINT(cert-err33-c): cannot fail for these signals */
    (void)signal(SIGXFSZ, SIG_IGN); /* NOLINT(cert-err33-c) */
    (void)signal(SIGXFSZ, SIG_IGN); /* NOLINT(cert-err33-c): a full disk is an error, not an end */
    vmm->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (vmm->signal_fd < 0) {
        return err_set_errno(err, -errno, "cannot receive signals");
    }
    rc = loop_add_fd(vmm->loop, vmm->signal_fd, EPOLLIN, on_signal, vmm, &vmm->signal_handler);
    if (rc == 0) {
        rc = loop_add_timer(vmm->loop, on_grace_over, vmm, &vmm->grace_timer);
    }
    return rc < 0 ? err_set_errno(err, rc, "cannot receive signals") : 0;
}

static int vmm_open_control(struct vmm *vmm, struct err *err)
{
    struct control_env env = {
        .loop = vmm->loop,
        .machine = vmm->machine,
        .quit = vmm_quit,
        .opaque = vmm,
    };
    int rc;

    if (vmm->control_listener.fd < 0) {
        return 0;
    }
    rc = control_create(&env, vmm->control_listener.fd, &vmm->control);
    return rc < 0
               ? err_set_errno(err, rc, "--control: cannot serve \"%s\"", vmm->config.control_path)
               : 0;
}

static int vmm_check_ready_fd(const struct vmm *vmm, struct err *err)
{
    int fd = vmm->config.ready_fd;

    return fd >= 0 && fcntl(fd, F_SETFD, FD_CLOEXEC) != 0
               ? err_set_errno(err, -errno, "--ready-fd: descriptor %d cannot be written", fd)
               : 0;
}

static void vmm_tell_ready(struct vmm *vmm)
{
    static const char line[] = "ready\n";

    if (vmm->config.ready_fd < 0) {
        return;
    }
    if (io_write_full(vmm->config.ready_fd, line, sizeof(line) - 1) < 0) {
        log_warn("nobody reads --ready-fd");
    }
    (void)close(vmm->config.ready_fd);
}

/* In order: what can fail for the user's mistakes first, the guest last. */
static int vmm_open(struct vmm *vmm, struct err *err)
{
    struct machine_status status;
    int rc = vmm_network_open(&vmm->config, err); /* first: a privilege ends with it */

    if (rc < 0) {
        return rc;
    }
    rc = loop_create(&vmm->loop);
    if (rc < 0) {
        return err_set_errno(err, rc, "cannot make an event loop");
    }
    rc = vmm_check_ready_fd(vmm, err);
    if (rc == 0) {
        rc = vmm_open_signals(vmm, err);
    }
    if (rc == 0 && vmm->config.control_path != NULL) {
        rc = vmm_listener_open(&vmm->control_listener, "--control", vmm->config.control_path, err);
    }
    if (rc == 0 && vmm->config.agent_path != NULL) {
        rc = vmm_listener_open(&vmm->agent_listener, "--agent", vmm->config.agent_path, err);
    }
    if (rc == 0) {
        rc = vmm_console_create(&vmm->config, vmm->loop, vmm_quit, vmm, err, &vmm->console);
    }
    if (rc < 0) {
        return rc;
    }
    vmm->config.machine.serial = *vmm_console_chardev(vmm->console);
    if (vmm->agent_listener.fd >= 0) {
        vmm->config.machine.agent.kind = MACHINE_CHARDEV_LISTEN;
        vmm->config.machine.agent.listen_fd = vmm->agent_listener.fd;
    }
    rc = machine_create(&vmm->config.machine, err, &vmm->machine);
    if (rc < 0) {
        return rc;
    }
    vmm_network_close(&vmm->config); /* the machine has a copy */
    vmm->agent_listener.fd = -1;     /* the machine's now; we remove its name */
    rc = vmm_console_start(vmm->console);
    if (rc < 0) {
        return err_set_errno(err, rc, "--serial: cannot set up the terminal");
    }
    rc = loop_add_fd(vmm->loop, machine_event_fd(vmm->machine), EPOLLIN, on_machine_event, vmm,
                     &vmm->event_handler);
    if (rc < 0) {
        return err_set_errno(err, rc, "cannot watch the machine");
    }
    rc = vmm_open_control(vmm, err);
    if (rc < 0) {
        return rc;
    }
    machine_status(vmm->machine, &status);
    log_info("engine %s: %s", status.engine, status.engine_reason);
    rc = machine_start(vmm->machine, err);
    if (rc == 0) {
        vmm_tell_ready(vmm);
    }
    return rc;
}

/*
 * Says how it ended to whoever may not have been there: a process that is
 * killed says nothing, and that is its difference.
 */
static void vmm_note_end(const struct vmm *vmm)
{
    struct machine_status status;
    char text[128];
    CLEANUP_CLOSE int fd = -1;
    int n;

    if (vmm->config.end_path == NULL || vmm->machine == NULL) {
        return;
    }
    machine_status(vmm->machine, &status);
    n = snprintf(text, sizeof(text), "{\"end\":\"%s\",\"status\":%d}\n",
                 machine_end_name(status.end), (int)vmm->status);
    fd = open(vmm->config.end_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 || io_write_full(fd, text, (size_t)n) < 0) {
        log_warn("--end-file: cannot write \"%s\", ignoring", vmm->config.end_path);
    }
}

/* The mirror of vmm_open; accepts half-built. */
static void vmm_close(struct vmm *vmm)
{
    control_destroy(vmm->control);
    loop_remove_fd(vmm->event_handler);
    machine_destroy(vmm->machine);
    vmm_console_destroy(vmm->console);
    vmm_listener_close(&vmm->agent_listener);
    vmm_listener_close(&vmm->control_listener);
    loop_remove_timer(vmm->grace_timer);
    loop_remove_fd(vmm->signal_handler);
    if (vmm->signal_fd >= 0) {
        (void)close(vmm->signal_fd);
    }
    vmm_network_close(&vmm->config);
    loop_destroy(vmm->loop);
}

static enum status vmm_run(struct vmm *vmm)
{
    struct err err = {0};
    int rc = vmm_open(vmm, &err);

    if (rc == 0) {
        rc = loop_run(vmm->loop);
        if (rc < 0) {
            (void)err_set_errno(&err, rc, "the event loop failed");
        }
        vmm_note_end(vmm);
    }
    vmm_close(vmm);
    if (rc < 0) {
        log_error("%s", err.text);
        return STATUS_FAILED;
    }
    return vmm->status;
}

/* Descriptors 0 to 2 are open from here on, so that no other file is taken for a standard one. */
static int vmm_open_standard(void)
{
    int fd;

    do {
        fd = open("/dev/null", O_RDWR);
    } while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd < 0) {
        return -errno;
    }
    (void)close(fd);
    return 0;
}

int vmm_main(int argc, char **argv)
{
    struct vmm vmm = {.control_listener = VMM_LISTENER_NONE,
                      .agent_listener = VMM_LISTENER_NONE,
                      .signal_fd = -1};
    enum vmm_action action = VMM_ACTION_RUN;
    enum status status = STATUS_OK;
    struct err err = {0};
    int rc;

    if (vmm_open_standard() < 0) {
        return STATUS_FAILED;
    }
    log_set_program("corbel-vmm");
    vmm_config_init(&vmm.config);
    rc = vmm_config_parse_args(&vmm.config, argc, argv, &err, &action);
    if (rc == 0 && action == VMM_ACTION_RUN) {
        rc = vmm_config_check(&vmm.config, &err);
    }
    if (rc < 0) {
        log_error("%s", err.text);
        status = STATUS_USAGE;
    } else if (action == VMM_ACTION_HELP) {
        vmm_config_print_help(stdout);
    } else if (action == VMM_ACTION_VERSION) {
        (void)puts("corbel-vmm " CORBEL_VERSION);
    } else {
        log_set_level(vmm.config.log_level);
        status = vmm_run(&vmm);
    }
    vmm_config_done(&vmm.config);
    return (int)status;
}
