/* Inputs of the importer's parsers as files, and what each of their failures has to look like. */
#ifndef CORBEL_TESTS_FUZZ_IMPORT_H
#define CORBEL_TESTS_FUZZ_IMPORT_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static inline void fuzz_expect(bool is_so)
{
    if (!is_so) {
        abort();
    }
}

/* A file in memory with these bytes. */
static inline int fuzz_file(const uint8_t *data, size_t len)
{
    int fd = memfd_create("input", MFD_CLOEXEC);

    if (fd < 0 || write(fd, data, len) != (ssize_t)len) {
        abort();
    }
    return fd;
}

/* A failure says why, and success says nothing. */
static inline void fuzz_expect_said(int rc, const struct err *err)
{
    fuzz_expect(rc <= 0 && (rc != 0) == (err->text[0] != '\0'));
}

#endif
