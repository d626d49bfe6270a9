/* A file on an ext file system: the input is a disk with one. */
#include "fuzz_import.h"

#include "storage/import_jailed.h"

#include <errno.h>
#include <sys/stat.h>

#define TEXT_BYTES 2000u
#define PATH "/boot/grub/grub.cfg"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct import_ext_file file = {.disk = fuzz_file(data, len), .path = PATH, .out = -1};
    struct err err = {0};
    struct stat st;
    int text_rc, rc;

    file.text = malloc(TEXT_BYTES);
    file.text_bytes = TEXT_BYTES;
    fuzz_expect(file.text != NULL);
    text_rc = import_read_ext_file(&file, &err);
    fuzz_expect_said(text_rc, &err);
    fuzz_expect(text_rc != 0 || file.text[TEXT_BYTES - 1] == '\0');

    file.out = fuzz_file(data, 0);
    err = (struct err){0};
    rc = import_read_ext_file(&file, &err);
    fuzz_expect_said(rc, &err);
    fuzz_expect(fstat(file.out, &st) == 0);
    /* What fits a text is the same in a file; what does not may still be one. */
    fuzz_expect(text_rc != 0 || rc == 0);
    if (text_rc == 0) {
        char *copy = malloc(TEXT_BYTES);

        fuzz_expect(copy != NULL && st.st_size < TEXT_BYTES);
        fuzz_expect(pread(file.out, copy, (size_t)st.st_size, 0) == st.st_size);
        fuzz_expect(memcmp(copy, file.text, (size_t)st.st_size) == 0);
        free(copy);
    }
    close(file.out);
    close(file.disk);
    free(file.text);
    return 0;
}
