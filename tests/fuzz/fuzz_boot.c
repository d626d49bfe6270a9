/* Kernel images of any contents: refused with a sentence, or loaded inside guest memory. */
#include "machine/boot.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define RAM_BYTES (16u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct gmem *gmem = NULL;
    struct boot *boot = NULL;
    struct err err = {0};
    const struct acpi_config acpi = {.cpus_present = 1, .cpus_max = 1};
    char path[32];
    int fd = memfd_create("kernel", MFD_CLOEXEC);
    int rc = 0;

    if (fd < 0 || write(fd, data, len) != (ssize_t)len ||
        gmem_create(RAM_BYTES, &err, &gmem) != 0) {
        abort();
    }
    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    rc = boot_create(gmem, &acpi, path, len % 2 == 0 ? path : NULL, "console=ttyS0", &err, &boot);
    if ((rc != 0) != (strlen(err.text) != 0) || (rc != 0 && err.code != rc)) {
        abort(); /* a failure says why, and success says nothing */
    }
    if (rc == 0) {
        struct vcpu_state state;

        vcpu_state_reset(&state, true);
        boot_set_entry(boot, &state);
        rc = boot_load_again(boot, 1, &err);
        if (rc != 0) {
            abort(); /* what loads once loads again */
        }
    }
    boot_destroy(boot);
    gmem_destroy(gmem);
    close(fd);
    return 0;
}
