#include "vmm/config_fields.h"

#include "base/io.h"
#include "vmm/config.h"
#include "vmm/disk_option.h"
#include "vmm/net_option.h"
#include "vmm/parse.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

int vmm_setting_refuse(const struct vmm_setting *setting, const char *mend)
{
    char shown[200];

    return err_set(setting->err, -EINVAL, "%s: \"%s\" does not fit; give %s", setting->place,
                   log_escape(shown, sizeof(shown), setting->value, strlen(setting->value)), mend);
}

/* Copies text into the configuration's keeping. NULL, and a sentence, when it has no room. */
static char *keep(const struct vmm_setting *setting, const char *text)
{
    struct vmm_config *config = setting->config;
    char *copy;

    if (config->string_count == VMM_CONFIG_MAX_STRINGS) {
        (void)err_set(setting->err, -EINVAL, "%s: too many settings; give each setting once",
                      setting->place);
        return NULL;
    }
    copy = strdup(text);
    if (copy == NULL) {
        (void)err_set(setting->err, -ENOMEM, "out of memory");
        return NULL;
    }
    config->strings[config->string_count++] = copy;
    return copy;
}

/* Copies a value into a field of the configuration. */
static int keep_text(const struct vmm_setting *setting, const char *text, const char **ret_text)
{
    char *copy = keep(setting, text);

    if (copy == NULL) {
        return setting->err->code;
    }
    *ret_text = copy;
    return 0;
}

/* Copies a value that names a file. */
static int keep_path(const struct vmm_setting *setting, const char *text, const char **ret_path)
{
    return *text == '\0' ? vmm_setting_refuse(setting, "the name of a file")
                         : keep_text(setting, text, ret_path);
}

static bool is_yes(const struct vmm_setting *setting)
{
    return strcmp(setting->value, "yes") == 0;
}

/* "soft", and when its user code runs natively. */
static bool set_native(const char *value, enum accel_native *ret_native)
{
    static const char *const names[] = {[ACCEL_NATIVE_WHERE_IT_PAYS] = "soft",
                                        [ACCEL_NATIVE_NEVER] = "soft,native=off",
                                        [ACCEL_NATIVE_ALWAYS] = "soft,native=always"};

    for (unsigned i = 0; i < ARRAY_LEN(names); i++) {
        if (strcmp(value, names[i]) == 0) {
            *ret_native = (enum accel_native)i;
            return true;
        }
    }
    return false;
}

static int set_engine(const struct vmm_setting *setting)
{
    struct machine_config *machine = &setting->config->machine;

    if (strcmp(setting->value, "auto") == 0) {
        machine->engine = MACHINE_ENGINE_AUTO;
    } else if (strcmp(setting->value, "kvm") == 0) {
        machine->engine = MACHINE_ENGINE_KVM;
    } else if (set_native(setting->value, &machine->engine_native) ||
               strcmp(setting->value, "reference") == 0) {
        machine->engine = MACHINE_ENGINE_SOFT;
    } else {
        return vmm_setting_refuse(setting, "auto, kvm, soft or reference");
    }
    machine->engine_reference = strcmp(setting->value, "reference") == 0;
    return 0;
}

static int set_engine_check(const struct vmm_setting *setting)
{
    setting->config->machine.engine_check = is_yes(setting);
    return 0;
}

/* "VALUE" or "VALUE,max=VALUE", in a copy of the setting's: the second, or NULL. */
static char *split_max(char *text)
{
    char *rest = parse_split(text, ',');

    if (rest == NULL) {
        return NULL;
    }
    return strncmp(rest, "max=", 4) == 0 ? rest + 4 : rest; /* the latter is no value */
}

static int set_cpus(const struct vmm_setting *setting)
{
    CLEANUP_FREE char *text = strdup(setting->value);
    uint64_t cpus, cpus_max = 0;
    char mend[96];
    char *max;

    if (text == NULL) {
        return err_set(setting->err, -ENOMEM, "out of memory");
    }
    max = split_max(text);
    if (!parse_number(text, 1, MACHINE_MAX_CPUS, &cpus) ||
        (max != NULL && !parse_number(max, cpus, MACHINE_MAX_CPUS, &cpus_max))) {
        (void)snprintf(mend, sizeof(mend),
                       "a number of CPUs from 1 to %d, and ,max=M for as many as there may be",
                       MACHINE_MAX_CPUS);
        return vmm_setting_refuse(setting, mend);
    }
    setting->config->machine.cpus = (unsigned)cpus;
    setting->config->machine.cpus_max = (unsigned)cpus_max;
    return 0;
}

static bool is_memory(const char *text, uint64_t min, uint64_t *ret_bytes)
{
    return parse_size(text, ret_bytes) && *ret_bytes >= min &&
           *ret_bytes <= MACHINE_MAX_MEMORY_BYTES && *ret_bytes % (1u << 20) == 0;
}

static int set_cpu_cap(const struct vmm_setting *setting)
{
    uint64_t percent;

    if (!parse_number(setting->value, 0, 100, &percent)) {
        return vmm_setting_refuse(setting, "percent of the CPUs' time, from 1 to 100; 0 is no cap");
    }
    setting->config->machine.cpu_cap = (unsigned)percent;
    return 0;
}

static int set_cpu_spare(const struct vmm_setting *setting)
{
    setting->config->machine.cpu_spare = is_yes(setting);
    return 0;
}

static int set_memory(const struct vmm_setting *setting)
{
    CLEANUP_FREE char *text = strdup(setting->value);
    uint64_t bytes, max_bytes = 0;
    char *max;

    if (text == NULL) {
        return err_set(setting->err, -ENOMEM, "out of memory");
    }
    max = split_max(text);
    if (!is_memory(text, MACHINE_MIN_MEMORY_BYTES, &bytes) ||
        (max != NULL && !is_memory(max, bytes, &max_bytes))) {
        return vmm_setting_refuse(setting,
                                  "a size in whole MiB from 16M to 256G, such as 512M or 2G, and "
                                  ",max=SIZE for as much as there may be");
    }
    setting->config->machine.memory_bytes = bytes;
    setting->config->machine.memory_max_bytes = max_bytes;
    return 0;
}

static int set_kernel(const struct vmm_setting *setting)
{
    return keep_path(setting, setting->value, &setting->config->machine.kernel);
}

static int set_initrd(const struct vmm_setting *setting)
{
    return keep_path(setting, setting->value, &setting->config->machine.initrd);
}

static int set_cmdline(const struct vmm_setting *setting)
{
    return keep_text(setting, setting->value, &setting->config->machine.cmdline);
}

static int set_disk(const struct vmm_setting *setting)
{
    struct machine_config *machine = &setting->config->machine;
    char *text;
    int rc;

    if (machine->disk_count == MACHINE_MAX_DISKS) {
        return err_set(setting->err, -EINVAL, "%s: more than %d disks; leave some out",
                       setting->place, MACHINE_MAX_DISKS);
    }
    text = keep(setting, setting->value);
    if (text == NULL) {
        return setting->err->code;
    }
    rc =
        disk_option_parse(text, setting->place, setting->err, &machine->disks[machine->disk_count]);
    if (rc == 0) {
        machine->disk_count++;
    }
    return rc;
}

static int set_net(const struct vmm_setting *setting)
{
    CLEANUP_FREE char *text = strdup(setting->value);

    return text == NULL ? err_set(setting->err, -ENOMEM, "out of memory")
                        : net_option_parse(text, setting);
}

static int set_serial(const struct vmm_setting *setting)
{
    struct vmm_config *config = setting->config;

    if (strcmp(setting->value, "stdio") == 0) {
        config->serial = VMM_SERIAL_STDIO;
        return 0;
    }
    if (strcmp(setting->value, "none") == 0) {
        config->serial = VMM_SERIAL_NONE;
        return 0;
    }
    if (strncmp(setting->value, "file:", 5) == 0) {
        config->serial = VMM_SERIAL_FILE;
        return keep_path(setting, setting->value + 5, &config->serial_path);
    }
    if (strncmp(setting->value, "socket:", 7) == 0) {
        config->serial = VMM_SERIAL_SOCKET;
        return keep_path(setting, setting->value + 7, &config->serial_path);
    }
    return vmm_setting_refuse(setting, "stdio, none, file:FILE or socket:FILE");
}

static int set_serial_log(const struct vmm_setting *setting)
{
    return keep_path(setting, setting->value, &setting->config->serial_log_path);
}

static int set_ready_fd(const struct vmm_setting *setting)
{
    uint64_t fd;

    if (!parse_number(setting->value, 3, INT_MAX, &fd)) {
        return vmm_setting_refuse(setting, "the number of an open descriptor above 2");
    }
    setting->config->ready_fd = (int)fd;
    return 0;
}

static int set_control(const struct vmm_setting *setting)
{
    return keep_path(setting, setting->value, &setting->config->control_path);
}

static int set_agent(const struct vmm_setting *setting)
{
    return keep_path(setting, setting->value, &setting->config->agent_path);
}

static int set_end_file(const struct vmm_setting *setting)
{
    return keep_path(setting, setting->value, &setting->config->end_path);
}

static int set_gdb(const struct vmm_setting *setting)
{
    struct machine_config *machine = &setting->config->machine;
    char listen[24];
    uint64_t port;

    if (strncmp(setting->value, "unix:", 5) == 0 && setting->value[5] != '\0') {
        return keep_path(setting, setting->value, &machine->gdb_listen);
    }
    if (!parse_number(setting->value, 1, UINT16_MAX, &port)) {
        return vmm_setting_refuse(setting, "a port from 1 to 65535, or unix:FILE");
    }
    (void)snprintf(listen, sizeof(listen), "127.0.0.1:%u", (unsigned)port);
    return keep_text(setting, listen, &machine->gdb_listen);
}

static int set_gdb_wait(const struct vmm_setting *setting)
{
    setting->config->machine.gdb_wait = is_yes(setting);
    return 0;
}

static int set_kvm_split_irqchip(const struct vmm_setting *setting)
{
    setting->config->machine.kvm_split_irqchip = is_yes(setting);
    return 0;
}

static int set_debug_exit(const struct vmm_setting *setting)
{
    setting->config->machine.has_debug_exit = is_yes(setting);
    return 0;
}

static int set_vsock(const struct vmm_setting *setting)
{
    struct machine_config *machine = &setting->config->machine;
    char *text = keep(setting, setting->value);
    uint64_t cid;
    char *path;

    if (text == NULL) {
        return setting->err->code;
    }
    path = parse_split(text, ',');
    if (path == NULL || *path == '\0' || !parse_number(text, 3, UINT32_MAX - 1, &cid)) {
        return vmm_setting_refuse(setting, "CID,FILE with a CID from 3 to 4294967294");
    }
    machine->has_vsock = true;
    machine->vsock_guest_cid = (uint32_t)cid;
    machine->vsock_socket_path = path;
    return 0;
}

static int set_rng(const struct vmm_setting *setting)
{
    setting->config->machine.has_rng = is_yes(setting);
    return 0;
}

static int set_balloon(const struct vmm_setting *setting)
{
    setting->config->machine.has_balloon = is_yes(setting);
    return 0;
}

static int set_on_reset(const struct vmm_setting *setting)
{
    if (strcmp(setting->value, "restart") == 0) {
        setting->config->machine.on_reset = MACHINE_POLICY_RESET;
    } else if (strcmp(setting->value, "exit") == 0) {
        setting->config->machine.on_reset = MACHINE_POLICY_STOP;
    } else {
        return vmm_setting_refuse(setting, "restart or exit");
    }
    return 0;
}

static int set_on_crash(const struct vmm_setting *setting)
{
    struct vmm_config *config = setting->config;

    if (strcmp(setting->value, "restart") == 0) {
        config->machine.on_crash = MACHINE_POLICY_RESET;
    } else if (strcmp(setting->value, "exit") == 0 || strcmp(setting->value, "pause") == 0) {
        config->machine.on_crash = MACHINE_POLICY_STOP;
    } else {
        return vmm_setting_refuse(setting, "exit, restart or pause");
    }
    config->stay_after_crash = strcmp(setting->value, "pause") == 0;
    return 0;
}

static int set_log_level(const struct vmm_setting *setting)
{
    static const char *const names[] = {
        [LOG_LEVEL_ERROR] = "error",
        [LOG_LEVEL_WARN] = "warning",
        [LOG_LEVEL_INFO] = "info",
        [LOG_LEVEL_DEBUG] = "debug",
    };

    for (unsigned i = 0; i < ARRAY_LEN(names); i++) {
        if (strcmp(setting->value, names[i]) == 0) {
            setting->config->log_level = (enum log_level)i;
            return 0;
        }
    }
    return vmm_setting_refuse(setting, "error, warning, info or debug");
}

static int set_config(const struct vmm_setting *setting)
{
    CLEANUP_FREE void *text = NULL;
    size_t len = 0;
    int rc = io_read_file(setting->value, VMM_CONFIG_MAX_FILE_BYTES, &text, &len);

    if (rc < 0) {
        return err_set_errno(setting->err, rc, "%s: cannot read \"%s\"", setting->place,
                             setting->value);
    }
    return vmm_config_parse_json(setting->config, setting->value, text, len, setting->err);
}

const struct vmm_field vmm_fields[] = {
    {.name = "engine",
     .value = "auto|kvm|soft|reference",
     .help = "what runs the guest's instructions; auto takes KVM where it is fast, else soft; "
             "soft,native=off translates user code, too, soft,native=always none of it",
     .set = set_engine},
    {.name = "engine-check",
     .value = NULL,
     .help = "run soft and reference in lock step, stop at the first difference",
     .set = set_engine_check},
    {.name = "kvm-split-irqchip",
     .value = NULL,
     .help = "leave KVM only the local APICs; PIC, I/O APIC and PIT are ours",
     .set = set_kvm_split_irqchip},
    {.name = "cpus",
     .value = "N[,max=M]",
     .help = "number of virtual CPUs (1), and how many there may be while it runs",
     .set = set_cpus},
    {.name = "cpu-cap",
     .value = "PERCENT",
     .help = "of its CPUs' time, never more (0: no cap); for hosts without control groups",
     .set = set_cpu_cap},
    {.name = "cpu-spare",
     .value = NULL,
     .help = "CPU time is counted or capped elsewhere: spend none on being quicker",
     .set = set_cpu_spare},
    {.name = "memory",
     .value = "SIZE[,max=SIZE]",
     .help = "guest memory, such as 512M or 2G (512M), and how much it may be while it runs",
     .set = set_memory},
    {.name = "kernel",
     .value = "FILE",
     .help = "the kernel to boot, a bzImage or an ELF file",
     .set = set_kernel},
    {.name = "initrd", .value = "FILE", .help = "the initial RAM disk", .set = set_initrd},
    {.name = "cmdline", .value = "TEXT", .help = "the kernel's command line", .set = set_cmdline},
    {.name = "disk",
     .value = DISK_OPTION_VALUE,
     .help = "a disk image; ,ro only reads it; may be repeated",
     .set = set_disk,
     .is_repeatable = true},
    {.name = "net",
     .value = NET_OPTION_VALUE,
     .help = "a network card: user|bridge,bridge=NAME|tap,ifname=NAME|tap,fd=N; of user mode with "
             "forward=HOSTPORT:GUESTPORT on 127.0.0.1, as many as needed; of the others with guard",
     .set = set_net},
    {.name = "serial",
     .value = "stdio|none|file:FILE|socket:FILE",
     .help = "where the serial console goes (stdio)",
     .set = set_serial},
    {.name = "serial-log",
     .value = "FILE",
     .help = "keep the last of what the serial console shows, 256 KiB at least, in this file too",
     .set = set_serial_log},
    {.name = "control",
     .value = "FILE",
     .help = "listen for commands on this unix socket",
     .set = set_control},
    {.name = "agent",
     .value = "FILE",
     .help = "a port for the guest's agent, reached through this unix socket",
     .set = set_agent},
    {.name = "end-file",
     .value = "FILE",
     .help = "write to this file how the machine ended, as JSON",
     .set = set_end_file},
    {.name = "ready-fd",
     .value = "N",
     .help = "write a line to this descriptor, and close it, when all sockets listen",
     .set = set_ready_fd,
     .is_flag_only = true},
    {.name = "gdb",
     .value = "PORT|unix:FILE",
     .help = "let a debugger attach at 127.0.0.1:PORT or a unix socket",
     .set = set_gdb},
    {.name = "gdb-wait",
     .value = NULL,
     .help = "run nothing before the debugger says so",
     .set = set_gdb_wait},
    {.name = "debug-exit",
     .value = NULL,
     .help = "a port by which a test guest ends the machine with a status",
     .set = set_debug_exit},
    {.name = "vsock",
     .value = "CID,FILE",
     .help = "a vsock device, reached through this unix socket",
     .set = set_vsock},
    {.name = "rng",
     .value = NULL,
     .help = "leave out the entropy device",
     .set = set_rng,
     .is_default_on = true},
    {.name = "balloon",
     .value = NULL,
     .help = "leave out the memory balloon",
     .set = set_balloon,
     .is_default_on = true},
    {.name = "on-reset",
     .value = "restart|exit",
     .help = "what a reset does (restart)",
     .set = set_on_reset},
    {.name = "on-crash",
     .value = "exit|restart|pause",
     .help = "what a triple fault does (exit)",
     .set = set_on_crash},
    {.name = "config",
     .value = "FILE",
     .help = "read settings from a JSON file: flags without dashes are its keys",
     .set = set_config,
     .is_flag_only = true},
    {.name = "log-level",
     .value = "error|warning|info|debug",
     .help = "which messages to show on stderr (info)",
     .set = set_log_level},
};

const unsigned vmm_field_count = ARRAY_LEN(vmm_fields);
