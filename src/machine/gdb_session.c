/* One peer of the GDB stub: framing, and what each command does. */
#include "machine/gdb_session.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "machine/machine.h"

/* Bytes of memory in one packet: two gdb_digits each, and the command around them. */
#define MEMORY_MAX ((GDB_PACKET_MAX - 64u) / 2u)

void gdb_session_init(struct gdb_session *session, struct machine *machine)
{
    memset(session, 0, sizeof(*session));
    session->machine = machine;
}

bool gdb_session_take_thread(const struct gdb_session *session, const char **text,
                             unsigned *ret_cpu)
{
    uint64_t id = 0;

    if ((*text)[0] == '-' && (*text)[1] == '1') {
        *text += 2;
        *ret_cpu = session->cpu;
        return true;
    }
    if (!gdb_take_hex(text, &id) || id > machine_cpu_count(session->machine)) {
        return false;
    }
    *ret_cpu = id == 0 ? session->cpu : (unsigned)id - 1;
    return true;
}

/* ---- answers ---- */

static void out_raw(struct gdb_session *session, char c)
{
    if (session->out_len < sizeof(session->out)) {
        session->out[session->out_len++] = c;
    }
}

/* Escapes as the protocol wants and counts the checksum. */
static void out_char(struct gdb_session *session, char c, uint8_t *sum)
{
    if (c == '$' || c == '#' || c == '}' || c == '*') {
        out_raw(session, '}');
        *sum = (uint8_t)(*sum + '}');
        c = (char)(c ^ 0x20);
    }
    out_raw(session, c);
    *sum = (uint8_t)(*sum + (uint8_t)c);
}

void gdb_session_reply(struct gdb_session *session, const char *text)
{
    uint8_t sum = 0;

    out_raw(session, '$');
    while (*text != '\0') {
        out_char(session, *text++, &sum);
    }
    out_raw(session, '#');
    out_raw(session, gdb_digits[sum >> 4]);
    out_raw(session, gdb_digits[sum & 15]);
}

/* Ok, or E and a number: the protocol gives it no meaning, so it is the errno. */
void gdb_session_reply_result(struct gdb_session *session, int rc)
{
    char text[8];

    if (rc == 0) {
        gdb_session_reply(session, "OK");
        return;
    }
    (void)snprintf(text, sizeof(text), "E%02x", (unsigned)-rc & 0xff);
    gdb_session_reply(session, text);
}

void gdb_session_stopped(struct gdb_session *session, unsigned signal_number, unsigned cpu)
{
    char text[32];

    session->cpu = cpu;
    session->step_cpu = cpu;
    (void)snprintf(text, sizeof(text), "T%02xthread:%x;", signal_number & 0xff, cpu + 1);
    gdb_session_reply(session, text);
}

/* ---- registers ---- */

static int state_get(const struct gdb_session *session, struct vcpu_state **ret_state)
{
    struct vcpu_state *state = aligned_alloc(64, sizeof(*state));

    if (state == NULL) {
        return -ENOMEM;
    }
    const int rc = machine_cpu_get_state(session->machine, session->cpu, state);
    if (rc < 0) {
        free(state);
        return rc;
    }
    *ret_state = state;
    return 0;
}

static void command_read_registers(struct gdb_session *session)
{
    char text[GDB_PACKET_MAX] = "";
    uint8_t bytes[GDB_REG_MAX_BYTES] = {0};
    struct vcpu_state *state = NULL;
    char *p = text;

    const int rc = state_get(session, &state);
    if (rc < 0) {
        gdb_session_reply_result(session, rc);
        return;
    }
    for (unsigned i = 0; i < gdb_reg_count(); i++) {
        gdb_reg_get(state, i, bytes);
        p = gdb_put_bytes(p, bytes, gdb_reg_size(i));
    }
    free(state);
    gdb_session_reply(session, text);
}

static int write_registers(struct gdb_session *session, const char *text)
{
    uint8_t bytes[GDB_REG_MAX_BYTES] = {0};
    struct vcpu_state *state = NULL;

    int rc = state_get(session, &state);
    for (unsigned i = 0; rc == 0 && i < gdb_reg_count() && *text != '\0'; i++) {
        if (!gdb_take_bytes(&text, bytes, gdb_reg_size(i))) {
            rc = -EINVAL;
        } else {
            gdb_reg_set(state, i, bytes);
        }
    }
    if (rc == 0) {
        rc = machine_cpu_set_state(session->machine, session->cpu, state);
    }
    free(state);
    return rc;
}

static void command_read_register(struct gdb_session *session, const char *text)
{
    char answer[2 * GDB_REG_MAX_BYTES + 1] = "";
    uint8_t bytes[GDB_REG_MAX_BYTES] = {0};
    struct vcpu_state *state = NULL;
    uint64_t n = 0;

    if (!gdb_take_hex(&text, &n) || n >= gdb_reg_count()) {
        gdb_session_reply_result(session, -EINVAL);
        return;
    }
    const int rc = state_get(session, &state);
    if (rc < 0) {
        gdb_session_reply_result(session, rc);
        return;
    }
    gdb_reg_get(state, (unsigned)n, bytes);
    (void)gdb_put_bytes(answer, bytes, gdb_reg_size((unsigned)n));
    free(state);
    gdb_session_reply(session, answer);
}

static int write_register(struct gdb_session *session, const char *text)
{
    uint8_t bytes[GDB_REG_MAX_BYTES] = {0};
    struct vcpu_state *state = NULL;
    uint64_t n = 0;

    if (!gdb_take_hex(&text, &n) || n >= gdb_reg_count() || !gdb_take_char(&text, '=') ||
        !gdb_take_bytes(&text, bytes, gdb_reg_size((unsigned)n))) {
        return -EINVAL;
    }
    int rc = state_get(session, &state);
    if (rc == 0) {
        gdb_reg_set(state, (unsigned)n, bytes);
        rc = machine_cpu_set_state(session->machine, session->cpu, state);
    }
    free(state);
    return rc;
}

/* ---- memory ---- */

/* Page by page through the guest's tables. Returns how many bytes were done, or an error when none. */
static int memory_access(const struct gdb_session *session, uint64_t va, uint8_t *buf, size_t len,
                         bool is_write)
{
    struct gmem *gmem = machine_gmem(session->machine);
    size_t done = 0;
    int rc = 0;

    while (rc == 0 && done < len) {
        const size_t left = GMEM_PAGE_BYTES - (va + done) % GMEM_PAGE_BYTES;
        const size_t now = len - done < left ? len - done : left;
        gpa_t at;
        rc = machine_cpu_translate(session->machine, session->cpu, va + done, &at);
        if (rc == 0) {
            rc = is_write ? gmem_write(gmem, at, buf + done, now)
                          : gmem_read(gmem, at, buf + done, now);
        }
        done += rc == 0 ? now : 0;
    }
    return done > 0 ? (int)done : rc;
}

static void command_read_memory(struct gdb_session *session, const char *text)
{
    uint8_t bytes[MEMORY_MAX] = {0};
    char answer[2 * MEMORY_MAX + 1] = "";
    uint64_t va = 0;
    uint64_t len = 0;

    if (!gdb_take_hex(&text, &va) || !gdb_take_char(&text, ',') || !gdb_take_hex(&text, &len)) {
        gdb_session_reply_result(session, -EINVAL);
        return;
    }
    len = len < MEMORY_MAX ? len : MEMORY_MAX;
    const int got = memory_access(session, va, bytes, (size_t)len, false);
    if (got < 0) {
        gdb_session_reply_result(session, got);
        return;
    }
    (void)gdb_put_bytes(answer, bytes, (size_t)got);
    gdb_session_reply(session, answer);
}

static int write_memory(struct gdb_session *session, const char *text)
{
    uint8_t bytes[MEMORY_MAX] = {0};
    uint64_t va = 0;
    uint64_t len = 0;

    if (!gdb_take_hex(&text, &va) || !gdb_take_char(&text, ',') || !gdb_take_hex(&text, &len) ||
        !gdb_take_char(&text, ':') || len > MEMORY_MAX ||
        !gdb_take_bytes(&text, bytes, (size_t)len)) {
        return -EINVAL;
    }
    const int done = memory_access(session, va, bytes, (size_t)len, true);
    if (done < 0) {
        return done;
    }
    return (uint64_t)done == len ? 0 : -EFAULT;
}

/* ---- breakpoints and running ---- */

int gdb_session_arm(struct gdb_session *session, bool with_step)
{
    int rc = 0;

    for (unsigned i = 0; rc == 0 && i < machine_cpu_count(session->machine); i++) {
        struct accel_debug debug = session->debug;
        debug.single_step = with_step && session->steps && i == session->stepping_cpu;
        rc = machine_cpu_set_debug(session->machine, i, &debug);
    }
    return rc;
}

static unsigned breakpoint_find(const struct gdb_session *session, uint64_t address)
{
    unsigned i = 0;

    while (i < session->debug.breakpoint_count && session->debug.breakpoints[i] != address) {
        i++;
    }
    return i;
}

/* Z0 and Z1 are the same here: neither writes into the guest. */
static int set_breakpoint(struct gdb_session *session, const char *text, bool insert)
{
    struct accel_debug *debug = &session->debug;
    const struct accel_debug old = *debug;
    uint64_t address = 0;

    if (!gdb_take_hex(&text, &address)) {
        return -EINVAL;
    }
    const unsigned at = breakpoint_find(session, address);
    if (insert && at == debug->breakpoint_count) {
        if (at == ARRAY_LEN(debug->breakpoints)) {
            return -ENOSPC;
        }
        debug->breakpoints[debug->breakpoint_count++] = address;
    } else if (!insert && at < debug->breakpoint_count) {
        debug->breakpoints[at] = debug->breakpoints[--debug->breakpoint_count];
    }
    const int rc = gdb_session_arm(session, false);
    if (rc < 0) {
        *debug = old;
        return gdb_session_arm(session, false) < 0 ? -EIO : rc;
    }
    return 0;
}

static enum gdb_want run(struct gdb_session *session, bool steps, unsigned cpu)
{
    session->steps = steps;
    session->stepping_cpu = cpu;
    const int rc = gdb_session_arm(session, true);
    if (rc < 0) {
        gdb_session_reply_result(session, rc);
        return GDB_WANT_NOTHING;
    }
    return GDB_WANT_RUN;
}

/* c [address] and s [address]. */
static enum gdb_want command_run(struct gdb_session *session, const char *text, bool steps)
{
    uint64_t address = 0;

    if (gdb_take_hex(&text, &address)) {
        struct vcpu_state *state = NULL;
        int rc = state_get(session, &state);
        if (rc == 0) {
            state->rip = address;
            rc = machine_cpu_set_state(session->machine, session->cpu, state);
        }
        free(state);
        if (rc < 0) {
            gdb_session_reply_result(session, rc);
            return GDB_WANT_NOTHING;
        }
    }
    return run(session, steps, session->step_cpu);
}

/* vCont;action[:thread]... All CPUs run; the one with a step action makes one step. */
static enum gdb_want command_vcont(struct gdb_session *session, const char *text)
{
    bool steps = false;
    unsigned stepping = session->step_cpu;

    while (gdb_take_char(&text, ';')) {
        const char action = *text;
        unsigned cpu = session->step_cpu;
        uint64_t ignored_signal = 0;
        if (strchr("cCsS", action) == NULL || action == '\0') {
            gdb_session_reply_result(session, -EINVAL);
            return GDB_WANT_NOTHING;
        }
        text++;
        if (action == 'C' || action == 'S') {
            (void)gdb_take_hex(&text, &ignored_signal); /* a CPU takes no signals */
        }
        if (gdb_take_char(&text, ':') && !gdb_session_take_thread(session, &text, &cpu)) {
            gdb_session_reply_result(session, -EINVAL);
            return GDB_WANT_NOTHING;
        }
        if ((action == 's' || action == 'S') && !steps) {
            steps = true;
            stepping = cpu;
        }
    }
    return run(session, steps, stepping);
}

/* ---- commands ---- */

/* Hg and Hc. */
static int select_thread(struct gdb_session *session, const char *text)
{
    const char which = *text;
    unsigned cpu = 0;

    if (which != 'g' && which != 'c') {
        return -EINVAL;
    }
    text++;
    if (!gdb_session_take_thread(session, &text, &cpu)) {
        return -EINVAL;
    }
    if (which == 'g') {
        session->cpu = cpu;
    }
    session->step_cpu = cpu;
    return 0;
}

static enum gdb_want command_v(struct gdb_session *session, const char *text)
{
    if (strcmp(text, "vCont?") == 0) {
        gdb_session_reply(session, "vCont;c;C;s;S");
    } else if (gdb_after(text, "vCont;") != NULL) {
        return command_vcont(session, text + 5);
    } else if (gdb_after(text, "vKill;") != NULL) {
        gdb_session_reply(session, "OK");
        return GDB_WANT_KILL;
    } else {
        gdb_session_reply(session, "");
    }
    return GDB_WANT_NOTHING;
}

static void command_breakpoint(struct gdb_session *session, const char *text)
{
    if ((text[1] != '0' && text[1] != '1') || text[2] != ',') {
        gdb_session_reply(session, ""); /* watchpoints: not supported */
        return;
    }
    gdb_session_reply_result(session, set_breakpoint(session, text + 3, text[0] == 'Z'));
}

static enum gdb_want command(struct gdb_session *session, const char *text)
{
    unsigned cpu = 0;
    const char *rest = text + 1;

    switch (text[0]) {
    case '?':
        gdb_session_stopped(session, 5, session->cpu);
        break;
    case 'g':
        command_read_registers(session);
        break;
    case 'G':
        gdb_session_reply_result(session, write_registers(session, rest));
        break;
    case 'p':
        command_read_register(session, rest);
        break;
    case 'P':
        gdb_session_reply_result(session, write_register(session, rest));
        break;
    case 'm':
        command_read_memory(session, rest);
        break;
    case 'M':
        gdb_session_reply_result(session, write_memory(session, rest));
        break;
    case 'Z':
    case 'z':
        command_breakpoint(session, text);
        break;
    case 'c':
        return command_run(session, rest, false);
    case 's':
        return command_run(session, rest, true);
    case 'v':
        return command_v(session, text);
    case 'q':
        gdb_session_query(session, text);
        break;
    case 'Q':
        session->no_ack = session->no_ack || strcmp(text, "QStartNoAckMode") == 0;
        gdb_session_reply(session, session->no_ack ? "OK" : "");
        break;
    case 'H':
        gdb_session_reply_result(session, select_thread(session, rest));
        break;
    case 'T':
        gdb_session_reply_result(session,
                                 gdb_session_take_thread(session, &rest, &cpu) ? 0 : -EINVAL);
        break;
    case 'D':
        gdb_session_reply(session, "OK");
        return GDB_WANT_DETACH;
    case 'k':
        return GDB_WANT_KILL;
    default:
        gdb_session_reply(session, "");
        break;
    }
    return GDB_WANT_NOTHING;
}

/* ---- framing ---- */

static enum gdb_want packet_end(struct gdb_session *session)
{
    session->rx = GDB_RX_IDLE;
    if (session->sum != session->sum_seen) {
        out_raw(session, '-');
        return GDB_WANT_NOTHING;
    }
    if (!session->no_ack) {
        out_raw(session, '+');
    }
    if (session->too_long) {
        gdb_session_reply_result(session, -E2BIG);
        return GDB_WANT_NOTHING;
    }
    session->packet[session->packet_len] = '\0';
    return command(session, session->packet);
}

static void packet_char(struct gdb_session *session, char c)
{
    if (session->packet_len == GDB_PACKET_MAX) {
        session->too_long = true;
    } else {
        session->packet[session->packet_len++] = c;
    }
    session->sum = (uint8_t)(session->sum + (uint8_t)c);
}

/* A bad digit gives a wrong sum, which is answered as such. */
static uint8_t sum_digit(char c)
{
    const int value = gdb_digit_value(c);

    return value < 0 ? 0 : (uint8_t)value;
}

enum gdb_want gdb_session_feed(struct gdb_session *session, const char *bytes, size_t len,
                               size_t *ret_used)
{
    for (size_t i = 0; i < len; i++) {
        const char c = bytes[i];
        *ret_used = i + 1;
        switch (session->rx) {
        case GDB_RX_IDLE:
            if (c == 3) {
                return GDB_WANT_INTERRUPT;
            }
            if (c == '$') {
                session->rx = GDB_RX_DATA;
                session->packet_len = 0;
                session->too_long = false;
                session->sum = 0;
            }
            break;
        case GDB_RX_DATA:
            if (c == '#') {
                session->rx = GDB_RX_SUM1;
            } else {
                packet_char(session, c);
            }
            break;
        case GDB_RX_SUM1:
            session->sum_seen = (uint8_t)(sum_digit(c) << 4);
            session->rx = GDB_RX_SUM2;
            break;
        case GDB_RX_SUM2:
            session->sum_seen = (uint8_t)(session->sum_seen | sum_digit(c));
            return packet_end(session);
        }
    }
    return GDB_WANT_NOTHING;
}
