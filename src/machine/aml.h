/*
 * Writes ACPI Machine Language (ACPI 6.3 chapter 20) and resource descriptors
 * (§6.4) into a fixed buffer.
 *
 * A package (scope, device, method ...) is opened and closed; its length is
 * filled in on closing. Running out of room sets overflow, and the rest is not
 * written. Plain data, one thread.
 */
#ifndef CORBEL_MACHINE_AML_H
#define CORBEL_MACHINE_AML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AML_MAX_DEPTH 8

struct aml {
    uint8_t *data;
    size_t capacity;
    size_t len;
    size_t open[AML_MAX_DEPTH]; /* where the lengths of open packages stand */
    unsigned depth;
    bool overflow;
};

void aml_init(struct aml *aml, uint8_t *data, size_t capacity);

void aml_bytes(struct aml *aml, const void *bytes, size_t len);
void aml_u8(struct aml *aml, uint8_t value);

/* An integer constant in its shortest form. */
void aml_integer(struct aml *aml, uint64_t value);
/* A compressed EISA ID ("PNP0A03"). */
void aml_eisa_id(struct aml *aml, const char *id);
/* DefName's operator and name (four characters); the object follows. */
void aml_name(struct aml *aml, const char *name);

/* path: one name segment, or "\\SEGM". */
void aml_open_scope(struct aml *aml, const char *path);
void aml_open_device(struct aml *aml, const char *name);
void aml_open_package(struct aml *aml, uint8_t count);
/* A serialized method, which runs once at a time. */
void aml_open_method(struct aml *aml, const char *name, unsigned arguments);
/* Ports from base on as 32-bit registers, names of four characters after one another. */
void aml_registers(struct aml *aml, const char *region, const char *names, uint16_t base);
void aml_string(struct aml *aml, const char *text);
void aml_buffer(struct aml *aml, const void *bytes, uint8_t len);
/* Inside methods: local = register; register = value; register = argument; if (local & mask)
 * notify(device, code) or return value; return value; a call of \_SB_.device.method. */
void aml_load_local(struct aml *aml, unsigned local, const char *name);
void aml_store(struct aml *aml, uint64_t value, const char *name);
void aml_notify_if(struct aml *aml, unsigned local, uint64_t mask, const char *device,
                   unsigned code);
void aml_store_argument(struct aml *aml, unsigned argument, const char *name);
void aml_return_if(struct aml *aml, unsigned local, uint64_t mask, uint64_t value);
void aml_return(struct aml *aml, uint64_t value);
void aml_call(struct aml *aml, const char *device, const char *method);
/* A resource template; aml_close_resources() ends it. */
void aml_open_resources(struct aml *aml);
void aml_close_resources(struct aml *aml);
void aml_close(struct aml *aml);

/* Resource descriptors. */
void aml_io(struct aml *aml, uint16_t base, uint8_t len);
void aml_irq(struct aml *aml, unsigned irq);
void aml_bus_range(struct aml *aml, uint16_t first, uint16_t last);
void aml_io_range(struct aml *aml, uint16_t first, uint16_t last);
void aml_memory_range(struct aml *aml, uint32_t first, uint32_t last);

#endif
