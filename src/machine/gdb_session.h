/*
 * The inner parts of the GDB stub: packets, registers and commands.
 *
 * A session is one peer. It takes bytes, answers bytes, and knows nothing of
 * sockets; all functions are for the stub's thread. What it needs done with the
 * machine's running it asks by `want`.
 */
#ifndef CORBEL_MACHINE_GDB_SESSION_H
#define CORBEL_MACHINE_GDB_SESSION_H

#include "cpu/vcpu.h"
#include "cpu/x86.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct machine;

/* The longest packet we take, said to the peer as PacketSize. */
#define GDB_PACKET_MAX 4096u
/* The longest answer with its frame, and room for escapes. */
#define GDB_REPLY_MAX (2u * GDB_PACKET_MAX + 16u)

enum gdb_want {
    GDB_WANT_NOTHING,
    GDB_WANT_RUN,       /* resume; the answer comes when the machine stops */
    GDB_WANT_INTERRUPT, /* Ctrl-C */
    GDB_WANT_DETACH,
    GDB_WANT_KILL
};

struct gdb_session {
    struct machine *machine;
    unsigned cpu;      /* of registers, memory and steps: Hg */
    unsigned step_cpu; /* of Hc */
    bool no_ack;       /* QStartNoAckMode */
    struct accel_debug debug;
    bool steps; /* the next run is one step of `stepping_cpu` */
    unsigned stepping_cpu;

    char packet[GDB_PACKET_MAX + 1]; /* being received */
    size_t packet_len;
    enum { GDB_RX_IDLE, GDB_RX_DATA, GDB_RX_SUM1, GDB_RX_SUM2 } rx;
    bool too_long;
    uint8_t sum;
    uint8_t sum_seen;

    char out[4 * GDB_REPLY_MAX]; /* to be sent */
    size_t out_len;
};

void gdb_session_init(struct gdb_session *session, struct machine *machine);

/*
 * Takes bytes up to the end of one packet or a Ctrl-C; *ret_used says how many.
 * Answers land in session->out; there must be room for GDB_REPLY_MAX.
 */
enum gdb_want gdb_session_feed(struct gdb_session *session, const char *bytes, size_t len,
                               size_t *ret_used);

/* Queues one packet with checksum. */
void gdb_session_reply(struct gdb_session *session, const char *text);

/* The machine stopped because of a signal (5 trap, 2 interrupt) on a CPU. */
void gdb_session_stopped(struct gdb_session *session, unsigned signal_number, unsigned cpu);

/* Gives every CPU the session's breakpoints, and the step. 0 or a negative errno. */
int gdb_session_arm(struct gdb_session *session, bool with_step) MUST_CHECK;

/* "OK" or "E" and the errno. */
void gdb_session_reply_result(struct gdb_session *session, int rc);

/* A thread of the protocol to a CPU: -1 all, 0 any, N+1 CPU N. False when there is none. */
bool gdb_session_take_thread(const struct gdb_session *session, const char **text,
                             unsigned *ret_cpu);

/* gdb_query.c: the q commands. */
void gdb_session_query(struct gdb_session *session, const char *text);

/* gdb_text.c. take_* read from *text and move it on; false, and *text anywhere, on other text. */
extern const char gdb_digits[];
int gdb_digit_value(char c); /* -1: none */
bool gdb_take_hex(const char **text, uint64_t *ret_value);
bool gdb_take_char(const char **text, char c);
bool gdb_take_bytes(const char **text, uint8_t *out, size_t len);
/* Writes 2 * len digits and a NUL; returns where the NUL is. */
char *gdb_put_bytes(char *out, const uint8_t *bytes, size_t len);
/* The rest of text behind prefix, or NULL. */
const char *gdb_after(const char *text, const char *prefix);

/* gdb_regs.c: the registers in the order of the target description. */
unsigned gdb_reg_count(void);
/* Bytes of register n in packets, 0 when there is no such register. */
size_t gdb_reg_size(unsigned n);
void gdb_reg_get(const struct vcpu_state *state, unsigned n, uint8_t *ret_bytes);
void gdb_reg_set(struct vcpu_state *state, unsigned n, const uint8_t *bytes);
/* Formats the target description; returns its length, which is below size. */
size_t gdb_target_xml(char *out, size_t size);
#define GDB_REG_MAX_BYTES 16u
#define GDB_XML_MAX 8192u

#endif
