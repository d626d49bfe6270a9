#include "metrics/post.h"

#include "metrics/reach.h"

#include <errno.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CONNECT_MS 5000L
#define TOTAL_MS 10000L
#define MAX_RECEIVED 65536u

/* Here, where the name has become an address: a name may become another one each time. */
static curl_socket_t open_socket(void *opaque, curlsocktype purpose, struct curl_sockaddr *address)
{
    struct post *post = opaque;

    (void)purpose;
    post->refusal = reach_refusal(post->reach, &address->addr);
    return post->refusal != NULL
               ? CURL_SOCKET_BAD
               : socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

static size_t ignore_body(char *data, size_t size, size_t count, void *opaque)
{
    struct post *post = opaque;

    (void)data;
    post->received += size * count;
    post->is_cut = post->received > MAX_RECEIVED;
    return post->is_cut ? 0 : size * count;
}

static bool add_header(struct post *post, const char *text)
{
    struct curl_slist *all = curl_slist_append(post->headers, text);

    post->headers = all != NULL ? all : post->headers;
    return all != NULL;
}

/* "t=TIME,v1=HEX": HMAC-SHA256 by the secret over "TIME.BODY", so that neither comes again. */
static bool add_signature(struct post *post, const struct post_letter *letter)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned len = 0;
    long long now_s = (long long)time(NULL);
    char *text = NULL, header[160];
    int text_len = asprintf(&text, "%lld.%s", now_s, letter->body);
    int used = snprintf(header, sizeof(header), "Corbel-Signature: t=%lld,v1=", now_s);

    if (text_len < 0) {
        return false;
    }
    if (HMAC(EVP_sha256(), letter->secret, (int)strlen(letter->secret), (unsigned char *)text,
             (size_t)text_len, digest, &len) == NULL) {
        len = 0;
    }
    free(text);
    for (unsigned i = 0; i < len; i++) {
        used += snprintf(header + used, sizeof(header) - (size_t)used, "%02x", digest[i]);
    }
    return len > 0 && add_header(post, header);
}

static CURLcode set_up(struct post *post, const struct post_letter *letter)
{
    CURL *curl = post->curl;
    CURLcode code = curl_easy_setopt(curl, CURLOPT_URL, letter->url);

#define SET(option, value) code = code == CURLE_OK ? curl_easy_setopt(curl, option, value) : code
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_FOLLOWLOCATION, 0L); /* to nowhere: a receiver does not choose another */
    SET(CURLOPT_PROXY, "");
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_QUICK_EXIT, 1L); /* a name server that does not answer is not waited for */
    SET(CURLOPT_FAILONERROR, 1L);
    SET(CURLOPT_CONNECTTIMEOUT_MS, CONNECT_MS);
    SET(CURLOPT_TIMEOUT_MS, TOTAL_MS);
    SET(CURLOPT_COPYPOSTFIELDS, letter->body);
    SET(CURLOPT_HTTPHEADER, post->headers);
    SET(CURLOPT_USERAGENT, "corbeld/" CORBEL_VERSION);
    SET(CURLOPT_WRITEFUNCTION, ignore_body);
    SET(CURLOPT_WRITEDATA, post);
    SET(CURLOPT_OPENSOCKETFUNCTION, open_socket);
    SET(CURLOPT_OPENSOCKETDATA, post);
    SET(CURLOPT_ERRORBUFFER, post->why);
#undef SET
    return code;
}

int post_begin(struct post *post, enum metrics_reach reach, const struct post_letter *letter)
{
    char key[160];

    *post = (struct post){.curl = curl_easy_init(), .reach = reach};
    (void)snprintf(key, sizeof(key), "Idempotency-Key: %s", letter->token);
    return post->curl != NULL && letter->body != NULL &&
                   add_header(post, "Content-Type: application/json") && add_header(post, key) &&
                   (letter->secret == NULL || add_signature(post, letter)) &&
                   set_up(post, letter) == CURLE_OK
               ? 0
               : -ENOMEM;
}

/* A server that says so means it; one that is not there may come back. */
int post_end(struct post *post, CURLcode code, unsigned *ret_status)
{
    long status = 0;

    (void)curl_easy_getinfo(post->curl, CURLINFO_RESPONSE_CODE, &status); /* 0 without an answer */
    *ret_status = (unsigned)status;
    if ((code == CURLE_OK || post->is_cut) && status >= 200 && status < 300) {
        return 0;
    }
    if (post->refusal != NULL) {
        (void)snprintf(post->why, sizeof(post->why), "%s", post->refusal);
    } else if (post->why[0] == '\0') {
        (void)snprintf(post->why, sizeof(post->why), "%s",
                       code != CURLE_OK ? curl_easy_strerror(code)
                                        : "it answers with a redirection");
    }
    return post->refusal != NULL ||
                   (status >= 300 && status < 500 && status != 408 && status != 429)
               ? -EPERM
               : -EIO;
}

void post_done(struct post *post)
{
    curl_easy_cleanup(post->curl);
    curl_slist_free_all(post->headers);
    *post = (struct post){.curl = NULL};
}
