/* The kernel of a disk: the input is a disk with partitions, and a configuration of GRUB. */
#include "fuzz_import.h"

#include "storage/import_jailed.h"

static void look_for_places(const uint8_t *data, size_t len)
{
    struct import_places places = {.fd = fuzz_file(data, len)};
    struct err err = {0};
    int rc = import_look_for_places(&places, &err);

    fuzz_expect_said(rc, &err);
    fuzz_expect(places.count <= IMPORT_MAX_PLACES && (rc == 0) == (places.count > 0));
    for (unsigned i = 0; i < places.count; i++) {
        fuzz_expect(places.offsets[i] < len);
    }
    close(places.fd);
}

static bool is_path(const char *text)
{
    return text[0] == '/' && memchr(text, 0, IMPORT_KERNEL_PATH_BYTES) != NULL &&
           strpbrk(text, " \t\r\n;'\"\\$`") == NULL;
}

static void read_grub(const uint8_t *data, size_t len)
{
    struct import_choice choice = {.text = malloc(len + 1)};
    struct err err = {0};
    int rc;

    fuzz_expect(choice.text != NULL);
    memcpy(choice.text, data, len);
    choice.text[len] = '\0';
    rc = import_read_grub(&choice, &err);
    fuzz_expect_said(rc, &err);
    if (rc == 0) {
        fuzz_expect(is_path(choice.kernel) && is_path(choice.initrd));
        fuzz_expect(memchr(choice.cmdline, 0, sizeof(choice.cmdline)) != NULL);
        for (const char *p = choice.cmdline; *p != '\0'; p++) {
            fuzz_expect(*p >= ' ' && *p <= '~');
        }
        fuzz_expect(strstr(choice.cmdline, "console=ttyS0") != NULL);
    }
    free(choice.text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    look_for_places(data, len);
    read_grub(data, len);
    return 0;
}
