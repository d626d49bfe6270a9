/*
 * A VMDK disk in parts: the input is the text that describes it, a NUL, and
 * the file that each of its parts is in.
 */
#include "fuzz_import.h"

#include "storage/import_jailed.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    const uint8_t *end = len > 0 ? memchr(data, 0, len) : NULL;
    size_t text_len = end != NULL ? (size_t)(end - data) : len;
    size_t rest = end != NULL ? len - text_len - 1 : 0;
    int part = fuzz_file(end != NULL ? end + 1 : data, rest);
    struct import_vmdk *v = calloc(1, sizeof(*v));
    struct err err = {0};
    uint64_t sectors = 0;
    int rc;

    fuzz_expect(v != NULL);
    v->text = (struct import_part){.fd = fuzz_file(data, text_len), .len = text_len};
    v->out = fuzz_file(data, 0);
    rc = import_vmdk_read_text(v, &err);
    fuzz_expect_said(rc, &err);
    fuzz_expect(v->count <= IMPORT_VMDK_MAX_EXTENTS);
    for (unsigned i = 0; rc == 0 && i < v->count; i++) {
        fuzz_expect(memchr(v->extents[i].name, 0, IMPORT_VMDK_NAME_BYTES) != NULL);
        fuzz_expect(v->extents[i].first == sectors);
        sectors += v->extents[i].sectors;
        v->extents[i].fd = part;
    }
    if (rc == 0) {
        fuzz_expect(sectors == v->sectors && sectors <= UINT64_MAX / 512);
        rc = import_vmdk_copy_extents(v, &err);
        fuzz_expect_said(rc, &err);
    }
    close(v->text.fd);
    close(v->out);
    close(part);
    free(v);
    return 0;
}
