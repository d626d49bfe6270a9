#include "bundle/prepare.h"

#include <nss.h>
#include <openssl/crypto.h>
#include <stdlib.h>

/* pack writes them. */
extern const struct bundle_file bundle_files[], bundle_files_end[];

struct bundle bundle_own(void)
{
    return (struct bundle){.files = bundle_files,
                           .file_count = (size_t)(bundle_files_end - bundle_files)};
}

#ifdef BUNDLE_IS_STATIC
/*
 * Names by files and DNS, which this C library has inside. What else nsswitch.conf names would be
 * loaded from the host, and is made for the host's C library.
 */
static void keep_to_own_names(void)
{
    static const char *const lists[][2] = {{"hosts", "files dns"},  {"passwd", "files"},
                                           {"group", "files"},      {"shadow", "files"},
                                           {"services", "files"},   {"protocols", "files"},
                                           {"networks", "files"},   {"netgroup", "files"},
                                           {"initgroups", "files"}, {"aliases", "files"}};

    for (size_t i = 0; i < ARRAY_LEN(lists); i++) {
        (void)__nss_configure_lookup(lists[i][0], lists[i][1]);
    }
}
#else
static void keep_to_own_names(void)
{
}
#endif

static void find_authorities(void)
{
    static const char *const files[] = {
        "/etc/ssl/certs/ca-certificates.crt", /* Debian, Alpine, Arch */
        "/etc/pki/tls/certs/ca-bundle.crt",   /* Fedora and its kin */
        "/etc/ssl/ca-bundle.pem",             /* SUSE */
        "/etc/ssl/cert.pem",
    };

    for (size_t i = 0; i < ARRAY_LEN(files); i++) {
        if (access(files[i], R_OK) == 0) {
            (void)setenv("SSL_CERT_FILE", files[i], 0); // NOLINT(concurrency-mt-unsafe): one thread
            return;
        }
    }
}

void bundle_prepare(void)
{
    keep_to_own_names();
    find_authorities();
    /* The host's openssl.cnf may name modules to load. */
    (void)OPENSSL_init_crypto(OPENSSL_INIT_NO_LOAD_CONFIG, NULL);
}
