/* A monitor's configuration file. */
#include "fuzz_import.h"

#include "vmm/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct vmm_config *config = calloc(1, sizeof(*config));
    struct err err = {.code = 0};
    int rc;

    fuzz_expect(config != NULL);
    vmm_config_init(config);
    rc = vmm_config_parse_json(config, "vm.json", (const char *)data, len, &err);
    fuzz_expect_said(rc, &err);
    if (rc == 0) {
        rc = vmm_config_check(config, &err);
        fuzz_expect_said(rc, &err);
    }
    vmm_config_done(config);
    free(config);
    return 0;
}
