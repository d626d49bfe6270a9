/*
 * The web console: static files that are carried inside the program, and the
 * headers that keep a page of theirs from loading or being loaded by others.
 */
#ifndef CORBEL_WEB_WEB_H
#define CORBEL_WEB_WEB_H

#include "http/http.h"

/* Answers a request for a file of the console, or with 404. The HTTP server's thread; never waits. */
void web_serve(struct http_exchange *exchange);

/* Whether the program was built with the console. */
bool web_is_built(void);

#endif
