/* What a debugger asks about the stub, the threads and the registers: the q commands. */
#include "machine/gdb_session.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "machine/machine.h"

static void query_threads(struct gdb_session *session)
{
    char text[8 * MACHINE_MAX_CPUS] = "";
    size_t len = 0;

    for (unsigned i = 0; i < machine_cpu_count(session->machine); i++) {
        const int n = snprintf(text + len, sizeof(text) - len, "%c%x", i == 0 ? 'm' : ',', i + 1);
        len += n > 0 ? (size_t)n : 0;
    }
    gdb_session_reply(session, text);
}

static void query_thread_name(struct gdb_session *session, const char *text)
{
    char name[32];
    char hex[2 * sizeof(name) + 1] = "";
    unsigned cpu = 0;

    if (!gdb_session_take_thread(session, &text, &cpu)) {
        gdb_session_reply_result(session, -EINVAL);
        return;
    }
    const int len = snprintf(name, sizeof(name), "CPU %u", cpu);
    (void)gdb_put_bytes(hex, (const uint8_t *)name, (size_t)len);
    gdb_session_reply(session, hex);
}

/* qXfer:features:read:target.xml:offset,length */
static void query_target(struct gdb_session *session, const char *text)
{
    char xml[GDB_XML_MAX];
    char answer[GDB_PACKET_MAX];
    uint64_t offset = 0;
    uint64_t len = 0;

    if (!gdb_take_hex(&text, &offset) || !gdb_take_char(&text, ',') || !gdb_take_hex(&text, &len)) {
        gdb_session_reply_result(session, -EINVAL);
        return;
    }
    const size_t total = gdb_target_xml(xml, sizeof(xml));
    if (offset > total) {
        gdb_session_reply_result(session, -EINVAL);
        return;
    }
    const size_t left = total - (size_t)offset;
    len = len < sizeof(answer) - 2 ? len : sizeof(answer) - 2;
    const size_t now = len < left ? (size_t)len : left;
    answer[0] = now < left ? 'm' : 'l';
    memcpy(answer + 1, xml + offset, now);
    answer[1 + now] = '\0';
    gdb_session_reply(session, answer);
}

void gdb_session_query(struct gdb_session *session, const char *text)
{
    char answer[128];
    const char *rest = NULL;

    if (gdb_after(text, "qSupported") != NULL) {
        (void)snprintf(answer, sizeof(answer),
                       "PacketSize=%x;qXfer:features:read+;QStartNoAckMode+;vContSupported+",
                       GDB_PACKET_MAX);
        gdb_session_reply(session, answer);
    } else if ((rest = gdb_after(text, "qXfer:features:read:target.xml:")) != NULL) {
        query_target(session, rest);
    } else if (strcmp(text, "qfThreadInfo") == 0) {
        query_threads(session);
    } else if (strcmp(text, "qsThreadInfo") == 0) {
        gdb_session_reply(session, "l");
    } else if ((rest = gdb_after(text, "qThreadExtraInfo,")) != NULL) {
        query_thread_name(session, rest);
    } else if (strcmp(text, "qC") == 0) {
        (void)snprintf(answer, sizeof(answer), "QC%x", session->cpu + 1);
        gdb_session_reply(session, answer);
    } else if (strcmp(text, "qAttached") == 0) {
        gdb_session_reply(session, "1");
    } else {
        gdb_session_reply(session, "");
    }
}
