#include "storage/fetch.h"

#include "base/io.h"

#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>

#define MAX_REDIRECTS 10L
#define CONNECT_SECONDS 30L
#define STALL_SECONDS 60L   /* a server that sends nothing for so long is gone */
#define MAX_FAILURES 5u     /* in a row, without a byte of progress */
#define FIRST_PAUSE_MS 200u /* before trying again; doubles */

struct transfer {
    const struct fetch_request *request;
    CURL *curl;
    int fd;              /* the partial file */
    uint64_t have_bytes; /* of it */
    uint64_t asked_from; /* where this attempt begins */
    bool has_begun;      /* whether this attempt's first byte has been looked at */
    int write_error;     /* negative errno of the callback */
};

/* Some servers ignore the range and send all: then it begins anew. */
static int begin_body(struct transfer *t)
{
    long status = 0;

    (void)curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &status);
    t->has_begun = true;
    if (status == 206 || t->have_bytes == 0) {
        return 0;
    }
    t->have_bytes = 0;
    return ftruncate(t->fd, 0) == 0 ? 0 : -errno;
}

static size_t on_body(char *data, size_t size, size_t count, void *opaque)
{
    struct transfer *t = opaque;
    size_t len = size * count;
    int rc = t->has_begun ? 0 : begin_body(t);

    if (rc == 0 && len > t->request->max_bytes - t->have_bytes) {
        rc = -EFBIG;
    }
    if (rc == 0) {
        rc = io_pwrite_full(t->fd, data, len, t->have_bytes);
        if (rc == -EFBIG) { /* a limit of this process on lengths is no matter of the server's */
            rc = -ENOSPC;
        }
    }
    if (rc < 0) {
        t->write_error = rc;
        return 0;
    }
    t->have_bytes += len;
    return len;
}

static int on_progress(void *opaque, curl_off_t total, curl_off_t now, curl_off_t up_total,
                       curl_off_t up_now)
{
    struct transfer *t = opaque;

    (void)up_total;
    (void)up_now;
    if (t->request->progress != NULL && t->has_begun) {
        uint64_t before =
            t->have_bytes - (uint64_t)now < t->have_bytes ? t->have_bytes - (uint64_t)now : 0;

        t->request->progress(t->request->opaque, t->have_bytes,
                             total > 0 ? before + (uint64_t)total : 0);
    }
    return 0;
}

/* What every handle of ours is set to: HTTP only, no way back from HTTPS to HTTP. */
static int prepare_handle(CURL *curl, const char *url)
{
    bool is_secure = strncasecmp(url, "https://", 8) == 0;
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): nobody changes the environment */
    const char *authorities = getenv("SSL_CERT_FILE");
    CURLcode code = curl_easy_setopt(curl, CURLOPT_URL, url);

#define SET(option, value) code = code == CURLE_OK ? curl_easy_setopt(curl, option, value) : code
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_REDIR_PROTOCOLS_STR, is_secure ? "https" : "http,https");
    SET(CURLOPT_FOLLOWLOCATION, 1L);
    SET(CURLOPT_MAXREDIRS, MAX_REDIRECTS);
    SET(CURLOPT_FAILONERROR, 1L);
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_CONNECTTIMEOUT, CONNECT_SECONDS);
    SET(CURLOPT_LOW_SPEED_LIMIT, 1L);
    SET(CURLOPT_LOW_SPEED_TIME, STALL_SECONDS);
    SET(CURLOPT_USERAGENT, "corbel/" CORBEL_VERSION);
    if (authorities != NULL && authorities[0] != '\0') {
        SET(CURLOPT_CAINFO, authorities);
    }
#undef SET
    return code == CURLE_OK ? 0 : -ENOMEM;
}

/* What the library says, or what it means by it. */
static int tell_failure(const char *url, CURLcode code, const char *why, struct err *err)
{
    if (code == CURLE_SSL_CACERT_BADFILE) {
        return err_set(err, -ENXIO,
                       "%s cannot be fetched: this host has no list of certificate authorities; "
                       "install ca-certificates, or name a file of them by SSL_CERT_FILE",
                       url);
    }
    return err_set(err, -EIO, "%s cannot be fetched: %s", url,
                   why[0] != '\0' ? why : curl_easy_strerror(code));
}

/* One attempt, from where the partial file ends. */
static CURLcode attempt(struct transfer *t, char *why)
{
    CURL *curl = t->curl;
    CURLcode code = CURLE_OK;

    t->asked_from = t->have_bytes;
    t->has_begun = false;
    t->write_error = 0;
    curl_easy_reset(curl);
    if (prepare_handle(curl, t->request->url) < 0) {
        return CURLE_OUT_OF_MEMORY;
    }
#define SET(option, value) code = code == CURLE_OK ? curl_easy_setopt(curl, option, value) : code
    SET(CURLOPT_ERRORBUFFER, why);
    SET(CURLOPT_WRITEFUNCTION, on_body);
    SET(CURLOPT_WRITEDATA, t);
    SET(CURLOPT_XFERINFOFUNCTION, on_progress);
    SET(CURLOPT_XFERINFODATA, t);
    SET(CURLOPT_NOPROGRESS, 0L);
    SET(CURLOPT_RESUME_FROM_LARGE, (curl_off_t)t->have_bytes);
#undef SET
    return code == CURLE_OK ? curl_easy_perform(curl) : code;
}

/* What trying again may mend: a cut connection, a busy server, a name service that is away. */
static bool is_passing(const struct transfer *t, CURLcode code, long status)
{
    switch (code) {
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_CONNECT:
    case CURLE_PARTIAL_FILE:
    case CURLE_RECV_ERROR:
    case CURLE_SEND_ERROR:
    case CURLE_GOT_NOTHING:
    case CURLE_OPERATION_TIMEDOUT:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM:
        return true;
    case CURLE_RANGE_ERROR: /* the server takes no ranges and libcurl saw it before us */
        return t->asked_from > 0;
    case CURLE_HTTP_RETURNED_ERROR:
        return status == 408 || status == 429 || status >= 500;
    default:
        return false;
    }
}

static int explain(const struct transfer *t, CURLcode code, long status, const char *why,
                   struct err *err)
{
    const char *url = t->request->url;

    if (t->write_error == -EFBIG) {
        return err_set(err, -EFBIG, "%s is longer than %llu bytes, which is the limit", url,
                       (unsigned long long)t->request->max_bytes);
    }
    if (t->write_error != 0) {
        return err_set_errno(err, t->write_error,
                             "%s cannot be kept in %s (what came is kept for the next try)", url,
                             t->request->cache_dir);
    }
    if (code == CURLE_URL_MALFORMAT || code == CURLE_UNSUPPORTED_PROTOCOL) {
        return err_set(err, -EINVAL, "\"%s\" is no http:// or https:// address (%s)", url, why);
    }
    if (code == CURLE_HTTP_RETURNED_ERROR) {
        return err_set(err, status == 404 || status == 410 ? -ENOENT : -EIO,
                       "%s: the server answers with status %ld", url, status);
    }
    return tell_failure(url, code, why, err);
}

static void pause_before(unsigned failures)
{
    unsigned ms = FIRST_PAUSE_MS << (failures - 1);
    struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};

    (void)nanosleep(&pause, NULL);
}

/* Attempts until all is there or there is no point in going on. */
static int run_attempts(struct transfer *t, struct err *err)
{
    unsigned failures = 0;

    for (;;) {
        char why[CURL_ERROR_SIZE] = "";
        CURLcode code = attempt(t, why);
        long status = 0;

        if (code == CURLE_OK) {
            return 0;
        }
        (void)curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &status);
        if (code == CURLE_HTTP_RETURNED_ERROR && status == 416 && t->asked_from > 0) {
            /* Nothing lies beyond what is there: whole, or of another file. The checksum tells. */
            return 0;
        }
        if (code == CURLE_RANGE_ERROR) {
            t->have_bytes = 0;
            if (ftruncate(t->fd, 0) != 0) {
                return err_set_errno(err, -errno, "the partial file cannot be emptied");
            }
        }
        failures = t->have_bytes > t->asked_from ? 1 : failures + 1;
        if (t->write_error != 0 || !is_passing(t, code, status) || failures >= MAX_FAILURES) {
            return explain(t, code, status, why, err);
        }
        pause_before(failures);
    }
}

static int verify(const struct transfer *t, struct err *err)
{
    const struct digest *wanted = t->request->digest;
    char wanted_text[DIGEST_TEXT_BYTES];
    char got_text[DIGEST_TEXT_BYTES];
    struct digest got;
    int rc;

    if (wanted == NULL) {
        return 0;
    }
    rc = digest_of_fd(t->fd, 0, UINT64_MAX, wanted->kind, &got);
    if (rc < 0) {
        return err_set_errno(err, rc, "%s cannot be read back", t->request->url);
    }
    if (!digest_equal(&got, wanted)) {
        return err_set(err, -EBADMSG,
                       "%s is not what its checksum says, and nothing of it is kept: expected %s, "
                       "got %s",
                       t->request->url, digest_format(wanted, wanted_text),
                       digest_format(&got, got_text));
    }
    return 0;
}

/* Fetches into the partial file. What an earlier fetch left may be of another file: then anew. */
static int fill_partial(struct transfer *t, struct err *err)
{
    bool is_resumed = t->have_bytes > 0;
    int rc = run_attempts(t, err);

    rc = rc == 0 ? verify(t, err) : rc;
    if (rc == -EBADMSG && is_resumed) {
        t->have_bytes = 0;
        if (ftruncate(t->fd, 0) != 0) {
            return err_set_errno(err, -errno, "the partial file cannot be emptied");
        }
        rc = run_attempts(t, err);
        rc = rc == 0 ? verify(t, err) : rc;
    }
    if (rc == 0 && fsync(t->fd) != 0) {
        rc = err_set_errno(err, -errno, "%s cannot be written", t->request->url);
    }
    return rc;
}

static int fetch_under_lock(const struct fetch_request *request, const char *path, struct err *err)
{
    struct transfer t = {.request = request, .fd = -1};
    char partial[PATH_MAX];
    struct stat st;
    CLEANUP_CLOSE int fd = -1;
    int rc;

    if (snprintf(partial, sizeof(partial), "%s.part", path) >= (int)sizeof(partial)) {
        return err_set(err, -ENAMETOOLONG, "%s is too long a name", path);
    }
    fd = open(partial, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 || fstat(fd, &st) != 0) {
        return err_set_errno(err, -errno, "%s cannot be written", partial);
    }
    if (request->digest == NULL && ftruncate(fd, 0) != 0) {
        return err_set_errno(err, -errno, "%s cannot be written", partial);
    }
    t.fd = fd;
    t.have_bytes = request->digest != NULL ? (uint64_t)st.st_size : 0;
    t.curl = curl_easy_init();
    rc = t.curl != NULL ? fill_partial(&t, err) : err_set(err, -ENOMEM, "out of memory");
    curl_easy_cleanup(t.curl);
    if (rc == 0 && rename(partial, path) != 0) {
        rc = err_set_errno(err, -errno, "%s cannot be renamed", partial);
    }
    if (rc == -EBADMSG || rc == -EFBIG ||
        (rc < 0 && (request->digest == NULL || t.have_bytes == 0))) {
        (void)unlink(partial);
    }
    return rc;
}

/* Where the file is kept: under its checksum or, without one, under that of its address. */
static int name_file(const struct fetch_request *request, char *ret_path, struct err *err)
{
    char text[DIGEST_TEXT_BYTES];
    struct digest of_url;
    char *colon;
    int n;

    if (request->digest != NULL) {
        (void)digest_format(request->digest, text);
    } else if (digest_of_text(request->url, DIGEST_SHA256, &of_url) == 0) {
        (void)digest_format(&of_url, text);
    } else {
        return err_set(err, -ENOMEM, "out of memory");
    }
    colon = strchr(text, ':');
    *colon = '-';
    n = snprintf(ret_path, PATH_MAX, "%s/%s%s", request->cache_dir,
                 request->digest != NULL ? "" : "url-", text);
    return n > 0 && n < PATH_MAX - 8 ? 0
                                     : err_set(err, -ENAMETOOLONG, "the cache's path is too long");
}

int fetch_file(const struct fetch_request *request, char *ret_path, struct err *err)
{
    char path[PATH_MAX];
    char lock_path[PATH_MAX + 8];
    CLEANUP_CLOSE int lock = -1;
    int rc = name_file(request, path, err);

    if (rc < 0) {
        return rc;
    }
    (void)snprintf(lock_path, sizeof(lock_path), "%s.lock", path);
    lock = open(lock_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (lock < 0) {
        return err_set_errno(err, -errno, "%s cannot be opened", lock_path);
    }
    while (flock(lock, LOCK_EX) != 0) {
        if (errno != EINTR) {
            return err_set_errno(err, -errno, "%s cannot be locked", lock_path);
        }
    }
    if (request->digest == NULL || access(path, R_OK) != 0) {
        rc = fetch_under_lock(request, path, err);
    }
    if (rc == 0) {
        memcpy(ret_path, path, strlen(path) + 1);
    }
    return rc;
}

struct text_sink {
    char *text;
    size_t len;
    size_t max;
};

static size_t on_text(char *data, size_t size, size_t count, void *opaque)
{
    struct text_sink *sink = opaque;
    size_t len = size * count;

    if (len > sink->max - sink->len) {
        return 0;
    }
    memcpy(sink->text + sink->len, data, len);
    sink->len += len;
    sink->text[sink->len] = '\0';
    return len;
}

int fetch_to_text(const char *url, size_t max_bytes, char **ret_text, struct err *err)
{
    struct text_sink sink = {.text = calloc(1, max_bytes + 1), .max = max_bytes};
    char why[CURL_ERROR_SIZE] = "";
    CURL *curl = curl_easy_init();
    CURLcode code = CURLE_OUT_OF_MEMORY;
    int rc;

    if (sink.text != NULL && curl != NULL && prepare_handle(curl, url) == 0 &&
        curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, why) == CURLE_OK &&
        curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_text) == CURLE_OK &&
        curl_easy_setopt(curl, CURLOPT_WRITEDATA, &sink) == CURLE_OK) {
        code = curl_easy_perform(curl);
    }
    curl_easy_cleanup(curl);
    rc = code == CURLE_OK ? 0 : tell_failure(url, code, why, err);
    if (rc < 0) {
        free(sink.text);
        return rc;
    }
    *ret_text = sink.text;
    return 0;
}
