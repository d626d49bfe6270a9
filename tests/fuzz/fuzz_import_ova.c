/* An OVA archive: headers, and a manifest of checksums. */
#include "fuzz_import.h"

#include "storage/import_jailed.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct import_ova *ova = calloc(1, sizeof(*ova));
    struct err err = {0};
    int rc;

    fuzz_expect(ova != NULL);
    ova->fd = fuzz_file(data, len);
    ova->len = len;
    rc = import_search_ova(ova, &err);
    fuzz_expect_said(rc, &err);
    fuzz_expect(ova->count <= IMPORT_OVA_MAX_ENTRIES);
    if (rc == 0) {
        fuzz_expect(ova->disk_offset >= 512 && ova->disk_offset <= len &&
                    ova->disk_len <= len - ova->disk_offset);
    }
    close(ova->fd);
    free(ova);
    return 0;
}
