/*
 * One request to many monitors at once: one that stands still costs the others
 * nothing. Any thread; waits.
 */
#ifndef CORBEL_RPC_CONTROL_MANY_H
#define CORBEL_RPC_CONTROL_MANY_H

#include <jansson.h>

struct control_question {
    const char *dir; /* holds control.sock */
    json_t *answer;  /* out, the caller's; NULL when none came in time, or a refusal */
};

/* Sends the line to each and waits for all answers, at most for that long in all. */
void control_ask_many(struct control_question *questions, unsigned count, const char *line,
                      unsigned timeout_ms);

#endif
