#include "web/web.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* Content Security Policy Level 3. Styles may stand in elements: the terminal's colours do. */
#define POLICY                                                                          \
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src " \
    "'self' data:; font-src 'self' data:; connect-src 'self'; form-action 'none'; "     \
    "base-uri 'none'; frame-ancestors 'none'"

#ifdef WEB_IS_BUILT
extern const char web_index[], web_index_end[], web_icon[], web_icon_end[], web_script[],
    web_script_end[], web_style[], web_style_end[];

static const struct {
    const char *path, *type, *begin, *end;
} files[] = {
    {"/", "text/html; charset=utf-8", web_index, web_index_end},
    {"/icon.svg", "image/svg+xml", web_icon, web_icon_end},
    {"/app.js", "text/javascript; charset=utf-8", web_script, web_script_end},
    {"/app.css", "text/css; charset=utf-8", web_style, web_style_end},
};
enum { FILE_COUNT = sizeof(files) / sizeof(files[0]) };

bool web_is_built(void)
{
    return true;
}

/* FNV-1a: the tag need only tell one build's file from another's. */
static void etag_of(size_t file, char *ret_tag, size_t size)
{
    uint64_t hash = 14695981039346656037u;
    for (const char *at = files[file].begin; at < files[file].end; at++) {
        hash = (hash ^ (unsigned char)*at) * 1099511628211u;
    }
    (void)snprintf(ret_tag, size, "\"%016llx\"", (unsigned long long)hash);
}

static void send_file(struct http_exchange *exchange, size_t file)
{
    char tag[24];
    etag_of(file, tag, sizeof(tag));
    const struct http_header headers[] = {
        {"etag", tag},
        {"cache-control", "no-cache"},
        {"content-security-policy", POLICY},
    };
    const char *known = http_exchange_header(exchange, "if-none-match");
    bool is_known = known != NULL && strstr(known, tag) != NULL;
    size_t len = (size_t)(files[file].end - files[file].begin);
    http_respond(exchange, is_known ? 304 : 200, files[file].type, headers, 3, files[file].begin,
                 is_known ? 0 : len);
}

static bool find_and_send(struct http_exchange *exchange, const char *path)
{
    for (size_t i = 0; i < FILE_COUNT; i++) {
        if (strcmp(files[i].path, path) == 0) {
            send_file(exchange, i);
            return true;
        }
    }
    return false;
}
#else
bool web_is_built(void)
{
    return false;
}

static bool find_and_send(MAYBE_UNUSED struct http_exchange *exchange,
                          MAYBE_UNUSED const char *path)
{
    return false;
}
#endif

void web_serve(struct http_exchange *exchange)
{
    static const char missing[] =
        "There is no such page.\n"
#ifndef WEB_IS_BUILT
        "The web console is not part of this build: its libraries were not there. Run 'make "
        "setup', with a network, and build again.\n"
#endif
        ;
    const struct http_request *request = http_exchange_request(exchange);
    bool is_get = strcmp(request->method, "GET") == 0 || strcmp(request->method, "HEAD") == 0;
    if (!is_get || !find_and_send(exchange, request->path)) {
        http_respond(exchange, is_get ? 404 : 405, "text/plain", NULL, 0, missing,
                     sizeof(missing) - 1);
    }
}
