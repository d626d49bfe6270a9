/* A catalogue of images, as somebody may have given it: what is taken can be fetched and checked. */
#include "fuzz_import.h"

#include "storage/catalogue.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct catalogue_entry *entries = NULL;
    struct err err = {.code = 0};
    unsigned count = 0;
    int rc = catalogue_parse((const char *)data, len, "catalogue.json", &entries, &count, &err);

    fuzz_expect_said(rc, &err);
    for (unsigned i = 0; rc == 0 && i < count; i++) {
        const struct catalogue_entry *entry = &entries[i];
        char text[DIGEST_TEXT_BYTES];
        struct digest digest;

        fuzz_expect(entry->name[0] != '\0' && entry->url[0] != '\0');
        fuzz_expect(entry->checksum[0] != '\0' ||
                    strncasecmp(entry->checksums_url, "https://", 8) == 0);
        if (entry->checksum[0] != '\0') {
            fuzz_expect(digest_parse(entry->checksum, &digest) == 0);
            fuzz_expect(strlen(digest_format(&digest, text)) < sizeof(text));
        }
    }
    free(entries);
    return 0;
}
