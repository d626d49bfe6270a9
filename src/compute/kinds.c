/* The fields of every kind. */
#include "compute/kinds.h"

#include "cgroup/cgroup.h"

#define MAX_TAGS 50
#define MAX_MEMORY_MIB (256 << 10)
#define MAX_CPUS 16
#define MAX_DISK_GIB (64 << 10)
#define MAX_RATE (1ll << 50)

/* What most kinds begin with. */
#define FIELD_OF_ID                                                                                \
    {                                                                                              \
        .name = "id", .type = FIELD_TEXT, .max = 64, .help = "given by the platform, never reused" \
    }
#define FIELD_OF_PROJECT                                                                \
    {                                                                                   \
        .name = "project", .type = FIELD_TEXT, .max = 64, .help = "whose it is: its id" \
    }
#define FIELD_OF_TAGS                                                                  \
    {                                                                                  \
        .name = "tags", .type = FIELD_TAGS, .access = FIELD_AT_CREATE | FIELD_CHANGES, \
        .max = MAX_TAGS, .help = "words of one's own, to find it by"                   \
    }
/* What instances take from their type; help says the rest. */
#define LIMIT_FIELD(field, access_, min_, max_, help_)                                          \
    {                                                                                           \
        .name = field, .type = FIELD_NUMBER, .access = (access_), .min = (min_), .max = (max_), \
        .help = help_                                                                           \
    }
#define FIELDS_OF_LIMITS(access)                                                                  \
    LIMIT_FIELD("cpu_weight", access, 1, 10000,                                                   \
                "its share of busy CPUs, against others'; 100 is usual"),                         \
        LIMIT_FIELD("cpu_cap_percent", access, 0, 100,                                            \
                    "of its CPUs' time, never more; 0: no cap"),                                  \
        LIMIT_FIELD("cpu_reserved_percent", access, 0, MAX_CPUS * 100,                            \
                    "percent of one CPU that it gets whoever else is busy"),                      \
        LIMIT_FIELD("memory_limit_mib", access, 0, 2 * MAX_MEMORY_MIB,                            \
                    "for all of its process, the guest's memory included; 0: no limit"),          \
        LIMIT_FIELD("disk_bps", access, 0, MAX_RATE, "bytes per second of its own disk; 0: any"), \
        LIMIT_FIELD("disk_iops", access, 0, MAX_RATE,                                             \
                    "operations per second of its own disk; 0: any"),                             \
        LIMIT_FIELD("net_bps", access, 0, MAX_RATE,                                               \
                    "bytes per second of its network card, each way; 0: any"),                    \
        LIMIT_FIELD("net_pps", access, 0, MAX_RATE,                                               \
                    "frames per second of its network card, each way; 0: any")
#define FIELD_OF_CREATED                                                  \
    {                                                                     \
        .name = "created", .type = FIELD_TIME, .help = "when it was made" \
    }
#define FIELD_OF_OPERATION                                                                       \
    {                                                                                            \
        .name = "operation", .type = FIELD_TEXT, .max = 64, .help = "the work that is under way" \
    }

static const struct field instance_fields[] = {
    FIELD_OF_ID,
    FIELD_OF_PROJECT,
    {.name = "name",
     .type = FIELD_NAME,
     .access = FIELD_AT_CREATE | FIELD_CHANGES,
     .help = "unique in its project; the id when none is given"},
    {.name = "image",
     .type = FIELD_ID,
     .access = FIELD_AT_CREATE,
     .help = "what its disk and kernel are made from; needed without a snapshot"},
    {.name = "snapshot",
     .type = FIELD_ID,
     .access = FIELD_AT_CREATE,
     .help = "what its disk is made from, in place of an image; later the one that the disk "
             "stands on: taken of it or put back last"},
    {.name = "type",
     .type = FIELD_ID,
     .access = FIELD_AT_CREATE | FIELD_CHANGES | FIELD_STOPPED,
     .preset = "\"small\"",
     .help = "how much of everything it has"},
    {.name = "cpus",
     .type = FIELD_NUMBER,
     .access = FIELD_AT_CREATE | FIELD_CHANGES | FIELD_STOPPED,
     .min = 1,
     .max = MAX_CPUS,
     .help = "virtual CPUs, in place of the type's"},
    {.name = "memory_mib",
     .type = FIELD_NUMBER,
     .access = FIELD_AT_CREATE | FIELD_CHANGES | FIELD_STOPPED,
     .min = 16,
     .max = MAX_MEMORY_MIB,
     .help = "memory, in place of the type's"},
    {.name = "disk_gib",
     .type = FIELD_NUMBER,
     .access = FIELD_AT_CREATE,
     .min = 1,
     .max = MAX_DISK_GIB,
     .help = "its own disk, in place of the type's; never less than the image's"},
    FIELDS_OF_LIMITS(FIELD_AT_CREATE | FIELD_CHANGES),
    {.name = "pinned_cpus",
     .type = FIELD_TEXT,
     .access = FIELD_AT_CREATE | FIELD_CHANGES,
     .max = CGROUP_CPUS_BYTES - 1,
     .help = "the host's CPUs that it runs on, such as \"0-3,8\"; absent: any"},
    {.name = "balloon_mib",
     .type = FIELD_NUMBER,
     .access = FIELD_AT_CREATE | FIELD_CHANGES,
     .max = MAX_MEMORY_MIB,
     .help = "what its guest is asked to give back of its memory"},
    {.name = "unenforced",
     .type = FIELD_TEXT,
     .max = 200,
     .help = "which of its limits nothing on this host keeps it to"},
    {.name = "engine",
     .type = FIELD_CHOICE,
     .access = FIELD_AT_CREATE | FIELD_CHANGES | FIELD_STOPPED,
     .choices = "auto kvm soft",
     .preset = "\"auto\"",
     .help = "what runs the guest's instructions"},
    {.name = "cmdline",
     .type = FIELD_TEXT,
     .access = FIELD_AT_CREATE | FIELD_CHANGES | FIELD_STOPPED,
     .max = 1500,
     .help = "the kernel's command line, in place of the image's"},
    {.name = "key",
     .type = FIELD_ID,
     .access = FIELD_AT_CREATE,
     .help = "the key that opens it by ssh, put there by cloud-init in the guest"},
    {.name = "user_data",
     .type = FIELD_LINES,
     .access = FIELD_AT_CREATE | FIELD_SECRET,
     .max = 64 << 10,
     .help = "for cloud-init in the guest: a script, \"#cloud-config\" ..."},
    {.name = "user_data_base64",
     .type = FIELD_TEXT,
     .access = FIELD_AT_CREATE | FIELD_SECRET,
     .max = 88 << 10,
     .help = "the same in Base64, for what is no plain text"},
    {.name = "volumes",
     .type = FIELD_IDS,
     .access = FIELD_AT_CREATE | FIELD_CHANGES | FIELD_STOPPED,
     .max = 8,
     .help = "disks beside its own, in this order"},
    {.name = "forwards",
     .type = FIELD_FORWARDS,
     .access = FIELD_AT_CREATE | FIELD_CHANGES,
     .max = 16,
     .help = "ports of the host's 127.0.0.1 that lead into it; host port 0 takes a free one"},
    {.name = "restart",
     .type = FIELD_CHOICE,
     .access = FIELD_AT_CREATE | FIELD_CHANGES,
     .choices = "never on-failure always",
     .preset = "\"on-failure\"",
     .help = "what follows when it ends by itself"},
    {.name = "ephemeral",
     .type = FIELD_FLAG,
     .access = FIELD_AT_CREATE,
     .preset = "false",
     .help = "whether it is deleted, with its disk, as soon as it has ended"},
    FIELD_OF_TAGS,
    {.name = "desired",
     .type = FIELD_CHOICE,
     .access = FIELD_AT_CREATE,
     .choices = "running stopped",
     .preset = "\"running\"",
     .help = "what it shall be"},
    {.name = "state",
     .type = FIELD_CHOICE,
     .choices = "pending starting running paused stopping stopped deleting failed",
     .help = "what it is"},
    {.name = "reason",
     .type = FIELD_TEXT,
     .max = 400,
     .help = "why it is so, where that is not plain"},
    FIELD_OF_OPERATION,
    FIELD_OF_CREATED,
    {.name = "started", .type = FIELD_TIME, .help = "when it was started last"},
    {.name = "restarts",
     .type = FIELD_NUMBER,
     .max = INT64_MAX,
     .help = "how often it was restarted after it ended"},
    {.name = "pid", .type = FIELD_NUMBER, .max = INT32_MAX, .help = "the process of its monitor"},
    {.name = "engine_used", .type = FIELD_TEXT, .max = 16, .help = "which engine runs it"},
    {.name = "address",
     .type = FIELD_TEXT,
     .max = 64,
     .help = "its IPv4 address, as it says itself; in a user-mode network only it sees it"},
    {.name = "agent",
     .type = FIELD_CHOICE,
     .choices = "absent silent connected",
     .help = "of the guest; without one that is connected nothing is done inside it"},
    {.name = "agent_version", .type = FIELD_TEXT, .max = 64, .help = "what the agent says it is"},
    {.name = "ssh_port",
     .type = FIELD_NUMBER,
     .max = 65535,
     .help = "of 127.0.0.1, leads to its port 22"},
    {.name = "ports",
     .type = FIELD_FORWARDS,
     .max = 32,
     .help = "the forwards as they were opened"},
    /* The reconciler's own, below; never answered. */
    {.name = "public_key", .type = FIELD_TEXT, .access = FIELD_SECRET, .max = 8192},
    {.name = "has_user_data", .type = FIELD_FLAG, .access = FIELD_SECRET},
    {.name = "generation", .type = FIELD_NUMBER, .access = FIELD_SECRET, .max = INT64_MAX},
    {.name = "paused", .type = FIELD_FLAG, .access = FIELD_SECRET},
    {.name = "restarting", .type = FIELD_FLAG, .access = FIELD_SECRET},
    {.name = "force", .type = FIELD_FLAG, .access = FIELD_SECRET},
    {.name = "timeout_s", .type = FIELD_NUMBER, .access = FIELD_SECRET, .max = 86400},
    {.name = "forwards_next", .type = FIELD_FORWARDS, .access = FIELD_SECRET, .max = 16},
    {.name = "origin", .type = FIELD_TEXT, .access = FIELD_SECRET, .max = 64},
    {.name = "disk", .type = FIELD_TEXT, .access = FIELD_SECRET, .max = 64},
    {.name = "snapshotting", .type = FIELD_TEXT, .access = FIELD_SECRET, .max = 64},
    {.name = "restoring", .type = FIELD_TEXT, .access = FIELD_SECRET, .max = 64},
    {.name = "merging", .type = FIELD_FLAG, .access = FIELD_SECRET},
};

static const struct field type_fields[] = {
    FIELD_OF_ID,
    {.name = "name",
     .type = FIELD_NAME,
     .access = FIELD_AT_CREATE | FIELD_NEEDED,
     .help = "what instances call it by"},
    {.name = "cpus",
     .type = FIELD_NUMBER,
     .access = FIELD_AT_CREATE | FIELD_NEEDED,
     .min = 1,
     .max = MAX_CPUS,
     .help = "virtual CPUs"},
    {.name = "memory_mib",
     .type = FIELD_NUMBER,
     .access = FIELD_AT_CREATE | FIELD_NEEDED,
     .min = 16,
     .max = MAX_MEMORY_MIB,
     .help = "memory"},
    {.name = "disk_gib",
     .type = FIELD_NUMBER,
     .access = FIELD_AT_CREATE,
     .min = 0,
     .max = MAX_DISK_GIB,
     .preset = "0",
     .help = "size of its own disk; the image's where that is larger"},
    FIELDS_OF_LIMITS(FIELD_AT_CREATE),
    FIELD_OF_TAGS,
    FIELD_OF_CREATED,
};

static const struct field image_fields[] = {
    FIELD_OF_ID,
    {.name = "name", .type = FIELD_NAME, .help = "what instances call it by"},
    {.name = "family", .type = FIELD_TEXT, .max = 48, .help = "what it is: \"debian\""},
    {.name = "kernel", .type = FIELD_TEXT, .max = 96, .help = "the kernel's version"},
    {.name = "user", .type = FIELD_TEXT, .max = 32, .help = "who logs in by ssh"},
    {.name = "memory_mib",
     .type = FIELD_NUMBER,
     .max = MAX_MEMORY_MIB,
     .help = "what it boots with at least"},
    {.name = "disk_bytes",
     .type = FIELD_NUMBER,
     .max = INT64_MAX,
     .help = "length of its disk; 0: it has none"},
    {.name = "power_button", .type = FIELD_FLAG, .help = "whether the guest heeds one"},
    FIELD_OF_CREATED,
};

static const struct field volume_fields[] = {
    FIELD_OF_ID,
    FIELD_OF_PROJECT,
    {.name = "name",
     .type = FIELD_NAME,
     .access = FIELD_AT_CREATE | FIELD_CHANGES,
     .help = "unique in its project; the id when none is given"},
    {.name = "size_gib",
     .type = FIELD_NUMBER,
     .access = FIELD_AT_CREATE | FIELD_CHANGES,
     .min = 1,
     .max = MAX_DISK_GIB,
     .help = "what it holds, needed without a snapshot; may grow while no instance runs with it"},
    {.name = "snapshot",
     .type = FIELD_ID,
     .access = FIELD_AT_CREATE,
     .help = "what it begins as; later the one that it stands on: taken of it or put back last"},
    LIMIT_FIELD("bps", FIELD_AT_CREATE | FIELD_CHANGES, 0, MAX_RATE, "bytes per second; 0: any"),
    LIMIT_FIELD("iops", FIELD_AT_CREATE | FIELD_CHANGES, 0, MAX_RATE,
                "operations per second; 0: any"),
    FIELD_OF_TAGS,
    {.name = "state",
     .type = FIELD_CHOICE,
     .choices = "creating available in-use resizing snapshotting restoring deleting failed",
     .help = "what it is"},
    {.name = "reason",
     .type = FIELD_TEXT,
     .max = 400,
     .help = "why it is so, where that is not plain"},
    {.name = "instance",
     .type = FIELD_TEXT,
     .max = 64,
     .help = "whose disk it is; absent: nobody's"},
    FIELD_OF_OPERATION,
    FIELD_OF_CREATED,
    {.name = "origin", .type = FIELD_TEXT, .access = FIELD_SECRET, .max = 64},
    {.name = "snapshotting", .type = FIELD_TEXT, .access = FIELD_SECRET, .max = 64},
    {.name = "restoring", .type = FIELD_TEXT, .access = FIELD_SECRET, .max = 64},
};

static const struct field snapshot_fields[] = {
    FIELD_OF_ID,
    FIELD_OF_PROJECT,
    {.name = "name",
     .type = FIELD_NAME,
     .access = FIELD_AT_CREATE | FIELD_CHANGES,
     .help = "unique in its project; the id when none is given"},
    {.name = "instance",
     .type = FIELD_ID,
     .access = FIELD_AT_CREATE,
     .help = "whose own disk it is taken of; running or not"},
    {.name = "volume",
     .type = FIELD_ID,
     .access = FIELD_AT_CREATE,
     .help = "what it is taken of, in place of an instance; in use or not"},
    FIELD_OF_TAGS,
    {.name = "state",
     .type = FIELD_CHOICE,
     .choices = "creating available restoring deleting failed",
     .help = "what it is"},
    {.name = "reason",
     .type = FIELD_TEXT,
     .max = 400,
     .help = "why it is so, where that is not plain"},
    {.name = "source",
     .type = FIELD_TEXT,
     .max = 64,
     .help = "what the instance or volume was called then"},
    {.name = "parent",
     .type = FIELD_TEXT,
     .max = 64,
     .help = "the snapshot before it: its id; absent: it is the first"},
    {.name = "size_gib", .type = FIELD_NUMBER, .max = MAX_DISK_GIB, .help = "of the disk"},
    {.name = "image", .type = FIELD_TEXT, .max = 64, .help = "what the instance was made from"},
    {.name = "live",
     .type = FIELD_FLAG,
     .help = "taken while a machine ran with the disk: as after a power cut"},
    {.name = "frozen",
     .type = FIELD_FLAG,
     .help = "... after the guest had written its file systems out, by its agent"},
    FIELD_OF_OPERATION,
    FIELD_OF_CREATED,
    /* The file in the snapshot's directory that is the disk. */
    {.name = "layer", .type = FIELD_TEXT, .access = FIELD_SECRET, .max = 64},
};

static const struct field key_fields[] = {
    FIELD_OF_ID,
    FIELD_OF_PROJECT,
    {.name = "name",
     .type = FIELD_NAME,
     .access = FIELD_AT_CREATE | FIELD_NEEDED,
     .help = "unique in its project"},
    {.name = "public_key",
     .type = FIELD_TEXT,
     .access = FIELD_AT_CREATE,
     .min = 20,
     .max = 8192,
     .help = "a line as in authorized_keys; a new pair is made where none is given"},
    {.name = "fingerprint", .type = FIELD_TEXT, .max = 64, .help = "SHA-256 of the public key"},
    {.name = "private_key",
     .type = FIELD_LINES,
     .max = 8192,
     .help = "of a pair that was made: in the answer to that call, and nowhere else"},
    FIELD_OF_TAGS,
    FIELD_OF_CREATED,
};

static const struct field alarm_fields[] = {
    FIELD_OF_ID,
    FIELD_OF_PROJECT,
    {.name = "name",
     .type = FIELD_NAME,
     .access = FIELD_AT_CREATE | FIELD_CHANGES,
     .help = "unique in its project; the id when none is given"},
    {.name = "metric",
     .type = FIELD_CHOICE,
     .access = FIELD_AT_CREATE | FIELD_NEEDED | FIELD_CHANGES,
     .choices = "cpu_percent steal_percent memory_resident_bytes memory_used_bytes "
                "disk_read_bytes_per_s disk_written_bytes_per_s disk_reads_per_s "
                "disk_writes_per_s disk_latency_us net_received_bytes_per_s net_sent_bytes_per_s "
                "net_received_packets_per_s net_sent_packets_per_s exits_per_s exit_latency_us",
     .help = "a series of an instance's history"},
    {.name = "comparison",
     .type = FIELD_CHOICE,
     .access = FIELD_AT_CREATE | FIELD_CHANGES,
     .choices = "above below",
     .preset = "\"above\"",
     .help = "on which side of the threshold"},
    {.name = "threshold",
     .type = FIELD_NUMBER,
     .access = FIELD_AT_CREATE | FIELD_NEEDED | FIELD_CHANGES,
     .max = INT64_MAX,
     .help = "in the series' unit"},
    {.name = "for_s",
     .type = FIELD_NUMBER,
     .access = FIELD_AT_CREATE | FIELD_CHANGES,
     .max = 12 * 3600,
     .preset = "60",
     .help = "for how long it has to be there; 0: once is enough"},
    {.name = "instance",
     .type = FIELD_ID,
     .access = FIELD_AT_CREATE | FIELD_CHANGES,
     .help = "the instance that it watches; this, or tag"},
    {.name = "tag",
     .type = FIELD_TEXT,
     .access = FIELD_AT_CREATE | FIELD_CHANGES,
     .min = 2,
     .max = 200,
     .help = "NAME=VALUE: it watches each instance of the project that has it"},
    {.name = "action",
     .type = FIELD_CHOICE,
     .access = FIELD_AT_CREATE | FIELD_CHANGES,
     .choices = "none stop reboot",
     .preset = "\"none\"",
     .help = "what is done to an instance that goes into alarm, once"},
    {.name = "webhook",
     .type = FIELD_TEXT,
     .access = FIELD_AT_CREATE | FIELD_CHANGES,
     .min = 8,
     .max = 1000,
     .help = "http or https address that is told of each transition by POST"},
    FIELD_OF_TAGS,
    {.name = "state",
     .type = FIELD_CHOICE,
     .choices = "ok alarm no-data",
     .help = "alarm: at least one of its instances is"},
    {.name = "since", .type = FIELD_TIME, .help = "when it became so"},
    {.name = "firing", .type = FIELD_IDS, .max = 10000, .help = "the instances in alarm"},
    FIELD_OF_CREATED,
    /* compute/alarm.c's own. */
    {.name = "turn", .type = FIELD_NUMBER, .access = FIELD_SECRET, .max = INT64_MAX},
    {.name = "owed", .type = FIELD_IDS, .access = FIELD_SECRET, .max = 10000},
};

static const struct field project_fields[] = {
    FIELD_OF_ID,
    {.name = "name",
     .type = FIELD_NAME,
     .access = FIELD_AT_CREATE | FIELD_NEEDED,
     .help = "unique on this platform"},
    {.name = "max_instances",
     .type = FIELD_NUMBER,
     .access = FIELD_AT_CREATE | FIELD_CHANGES,
     .max = 100000,
     .preset = "0",
     .help = "how many instances it may have; 0: no limit"},
    {.name = "max_cpus",
     .type = FIELD_NUMBER,
     .access = FIELD_AT_CREATE | FIELD_CHANGES,
     .max = 1000000,
     .preset = "0",
     .help = "virtual CPUs of all its instances; 0: no limit"},
    {.name = "max_memory_mib",
     .type = FIELD_NUMBER,
     .access = FIELD_AT_CREATE | FIELD_CHANGES,
     .max = INT32_MAX,
     .preset = "0",
     .help = "memory of all its instances; 0: no limit"},
    {.name = "max_volume_gib",
     .type = FIELD_NUMBER,
     .access = FIELD_AT_CREATE | FIELD_CHANGES,
     .max = INT32_MAX,
     .preset = "0",
     .help = "what its volumes and snapshots may hold together; 0: no limit"},
    {.name = "max_snapshots",
     .type = FIELD_NUMBER,
     .access = FIELD_AT_CREATE | FIELD_CHANGES,
     .max = 100000,
     .preset = "0",
     .help = "how many snapshots it may have; 0: no limit"},
    FIELD_OF_TAGS,
    FIELD_OF_CREATED,
};

static const struct field operation_fields[] = {
    FIELD_OF_ID,
    FIELD_OF_PROJECT,
    {.name = "action",
     .type = FIELD_TEXT,
     .max = 64,
     .help = "what was asked for: \"instance.create\""},
    {.name = "kind", .type = FIELD_TEXT, .max = 32, .help = "of its object"},
    {.name = "target", .type = FIELD_TEXT, .max = 64, .help = "its object's id"},
    {.name = "state",
     .type = FIELD_CHOICE,
     .choices = "pending running done failed cancelled",
     .help = "how far it is"},
    {.name = "progress", .type = FIELD_NUMBER, .max = 100, .help = "in percent"},
    {.name = "step", .type = FIELD_TEXT, .max = 64, .help = "what is being done"},
    {.name = "error_code", .type = FIELD_TEXT, .max = 32, .help = "why it failed, for programs"},
    {.name = "error", .type = FIELD_TEXT, .max = 400, .help = "why it failed, for people"},
    {.name = "actor", .type = FIELD_TEXT, .max = 128, .help = "who asked for it"},
    FIELD_OF_CREATED,
    {.name = "ended", .type = FIELD_TIME, .help = "when it was done, or failed"},
};

static const struct field event_fields[] = {
    FIELD_OF_ID,
    FIELD_OF_PROJECT,
    {.name = "level",
     .type = FIELD_CHOICE,
     .choices = "info warning error",
     .help = "how much it matters"},
    {.name = "action",
     .type = FIELD_TEXT,
     .max = 64,
     .help = "what happened: \"instance.started\""},
    {.name = "kind", .type = FIELD_TEXT, .max = 32, .help = "of its object"},
    {.name = "target", .type = FIELD_TEXT, .max = 64, .help = "its object's id"},
    {.name = "text", .type = FIELD_TEXT, .max = 400, .help = "one sentence"},
    {.name = "actor",
     .type = FIELD_TEXT,
     .max = 128,
     .help = "who asked for it; absent: nobody did"},
    FIELD_OF_OPERATION,
    FIELD_OF_CREATED,
};

#define FIELDS(table) .fields = (table), .field_count = ARRAY_LEN(table)

static const struct kind_spec kinds[KIND_COUNT] = {
    [KIND_INSTANCE] = {KIND_INSTANCE, "instance", "instances", "i-", false,
                       FIELDS(instance_fields)},
    [KIND_TYPE] = {KIND_TYPE, "type", "types", "t-", true, FIELDS(type_fields)},
    [KIND_IMAGE] = {KIND_IMAGE, "image", "images", "", true, FIELDS(image_fields)},
    [KIND_VOLUME] = {KIND_VOLUME, "volume", "volumes", "v-", false, FIELDS(volume_fields)},
    [KIND_SNAPSHOT] = {KIND_SNAPSHOT, "snapshot", "snapshots", "s-", false,
                       FIELDS(snapshot_fields)},
    [KIND_KEY] = {KIND_KEY, "key", "keys", "k-", false, FIELDS(key_fields)},
    [KIND_ALARM] = {KIND_ALARM, "alarm", "alarms", "a-", false, FIELDS(alarm_fields)},
    [KIND_PROJECT] = {KIND_PROJECT, "project", "projects", "p-", true, FIELDS(project_fields)},
    [KIND_OPERATION] = {KIND_OPERATION, "operation", "operations", "op-", false,
                        FIELDS(operation_fields)},
    [KIND_EVENT] = {KIND_EVENT, "event", "events", "ev-", false, FIELDS(event_fields)},
};

static const struct field stop_fields[] = {
    {.name = "force",
     .type = FIELD_FLAG,
     .access = FIELD_AT_CREATE,
     .preset = "false",
     .help = "pull the plug; else the power button is pressed first"},
    {.name = "timeout_s",
     .type = FIELD_NUMBER,
     .access = FIELD_AT_CREATE,
     .min = 1,
     .max = 86400,
     .preset = "90",
     .help = "how long the guest may take before the plug is pulled"},
};

static const struct compute_action actions[ACTION_COUNT] = {
    [ACTION_START] = {"start", NULL, 0, "starts it with the disk as it is"},
    [ACTION_STOP] = {"stop", stop_fields, ARRAY_LEN(stop_fields), "switches it off"},
    [ACTION_RESTART] = {"restart", stop_fields, ARRAY_LEN(stop_fields),
                        "switches it off, and on again"},
    [ACTION_PAUSE] = {"pause", NULL, 0, "stops its CPUs and clocks where they are"},
    [ACTION_RESUME] = {"resume", NULL, 0, "lets a paused one go on"},
};

const struct kind_spec *kind_spec(enum kind kind)
{
    return &kinds[kind];
}

const struct compute_action *compute_actions(unsigned *ret_count)
{
    *ret_count = ARRAY_LEN(actions);
    return actions;
}
