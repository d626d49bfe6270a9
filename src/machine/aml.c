#include "machine/aml.h"

#include "base/wire.h"

#include <assert.h>
#include <string.h>

#define LENGTH_BYTES 3u /* every package length is written with two following bytes */

void aml_init(struct aml *aml, uint8_t *data, size_t capacity)
{
    *aml = (struct aml){.data = data, .capacity = capacity};
}

void aml_bytes(struct aml *aml, const void *bytes, size_t len)
{
    if (len > aml->capacity - aml->len) {
        aml->overflow = true;
        return;
    }
    memcpy(aml->data + aml->len, bytes, len);
    aml->len += len;
}

void aml_u8(struct aml *aml, uint8_t value)
{
    aml_bytes(aml, &value, 1);
}

static void aml_u16(struct aml *aml, uint16_t value)
{
    uint8_t bytes[2];

    store_le16(bytes, value);
    aml_bytes(aml, bytes, sizeof(bytes));
}

static void aml_u32(struct aml *aml, uint32_t value)
{
    uint8_t bytes[4];

    store_le32(bytes, value);
    aml_bytes(aml, bytes, sizeof(bytes));
}

void aml_integer(struct aml *aml, uint64_t value)
{
    uint8_t bytes[8];

    if (value <= 1) {
        aml_u8(aml, (uint8_t)value); /* ZeroOp, OneOp */
    } else if (value <= UINT8_MAX) {
        aml_u8(aml, 0x0a);
        aml_u8(aml, (uint8_t)value);
    } else if (value <= UINT16_MAX) {
        aml_u8(aml, 0x0b);
        aml_u16(aml, (uint16_t)value);
    } else if (value <= UINT32_MAX) {
        aml_u8(aml, 0x0c);
        aml_u32(aml, (uint32_t)value);
    } else {
        aml_u8(aml, 0x0e);
        store_le64(bytes, value);
        aml_bytes(aml, bytes, sizeof(bytes));
    }
}

static unsigned hex_digit(char c)
{
    return c <= '9' ? (unsigned)(c - '0') : (unsigned)(c - 'A' + 10);
}

/* ACPI 6.3 §19.3.4: three letters of five bits, four hexadecimal digits, big-endian. */
void aml_eisa_id(struct aml *aml, const char *id)
{
    uint32_t value = (uint32_t)(id[0] - 0x40) << 26 | (uint32_t)(id[1] - 0x40) << 21 |
                     (uint32_t)(id[2] - 0x40) << 16 | hex_digit(id[3]) << 12 |
                     hex_digit(id[4]) << 8 | hex_digit(id[5]) << 4 | hex_digit(id[6]);

    aml_u8(aml, 0x0c);
    aml_u32(aml, __builtin_bswap32(value));
}

static void name_string(struct aml *aml, const char *path)
{
    aml_bytes(aml, path, strlen(path));
}

void aml_name(struct aml *aml, const char *name)
{
    aml_u8(aml, 0x08);
    name_string(aml, name);
}

void aml_string(struct aml *aml, const char *text)
{
    aml_u8(aml, 0x0d);
    aml_bytes(aml, text, strlen(text) + 1);
}

static void length_open(struct aml *aml)
{
    static const uint8_t room[LENGTH_BYTES];

    assert(aml->depth < AML_MAX_DEPTH);
    aml->open[aml->depth] = aml->len;
    aml->depth++;
    aml_bytes(aml, room, sizeof(room));
}

void aml_close(struct aml *aml)
{
    size_t start = 0;
    size_t len = 0;

    assert(aml->depth > 0);
    aml->depth--;
    start = aml->open[aml->depth];
    if (aml->overflow) {
        return;
    }
    len = aml->len - start;
    aml->data[start] = (uint8_t)(2u << 6 | (len & 0xf));
    aml->data[start + 1] = (uint8_t)(len >> 4);
    aml->data[start + 2] = (uint8_t)(len >> 12);
}

void aml_open_scope(struct aml *aml, const char *path)
{
    aml_u8(aml, 0x10);
    length_open(aml);
    name_string(aml, path);
}

void aml_open_device(struct aml *aml, const char *name)
{
    aml_u8(aml, 0x5b);
    aml_u8(aml, 0x82);
    length_open(aml);
    name_string(aml, name);
}

void aml_open_package(struct aml *aml, uint8_t count)
{
    aml_u8(aml, 0x12);
    length_open(aml);
    aml_u8(aml, count);
}

void aml_buffer(struct aml *aml, const void *bytes, uint8_t len)
{
    aml_u8(aml, 0x11);
    length_open(aml);
    aml_integer(aml, len);
    aml_bytes(aml, bytes, len);
    aml_close(aml);
}

/* A buffer whose size is a word, filled in by aml_close_resources(). */
void aml_open_resources(struct aml *aml)
{
    aml_u8(aml, 0x11);
    length_open(aml);
    aml_u8(aml, 0x0b);
    aml_u16(aml, 0);
}

void aml_close_resources(struct aml *aml)
{
    size_t size_at = aml->open[aml->depth - 1] + LENGTH_BYTES + 1;

    aml_u8(aml, 0x79); /* end tag; checksum 0 is not checked */
    aml_u8(aml, 0);
    if (!aml->overflow) {
        store_le16(aml->data + size_at, (uint16_t)(aml->len - size_at - 2));
    }
    aml_close(aml);
}

void aml_io(struct aml *aml, uint16_t base, uint8_t len)
{
    aml_u8(aml, 0x47);
    aml_u8(aml, 1); /* 16-bit decode */
    aml_u16(aml, base);
    aml_u16(aml, base);
    aml_u8(aml, 1);
    aml_u8(aml, len);
}

void aml_irq(struct aml *aml, unsigned irq)
{
    aml_u8(aml, 0x22); /* without flags: edge, active high */
    aml_u16(aml, (uint16_t)(1u << irq));
}

static void word_range(struct aml *aml, uint8_t type, uint8_t type_flags, uint16_t first,
                       uint16_t last)
{
    aml_u8(aml, 0x88);
    aml_u16(aml, 13);
    aml_u8(aml, type);
    aml_u8(aml, 0x0c); /* producer, positive decode, both ends fixed */
    aml_u8(aml, type_flags);
    aml_u16(aml, 0); /* granularity */
    aml_u16(aml, first);
    aml_u16(aml, last);
    aml_u16(aml, 0); /* translation */
    aml_u16(aml, (uint16_t)(last - first + 1));
}

void aml_bus_range(struct aml *aml, uint16_t first, uint16_t last)
{
    word_range(aml, 2, 0, first, last);
}

void aml_io_range(struct aml *aml, uint16_t first, uint16_t last)
{
    word_range(aml, 1, 3, first, last); /* the entire range */
}

void aml_memory_range(struct aml *aml, uint32_t first, uint32_t last)
{
    aml_u8(aml, 0x87);
    aml_u16(aml, 23);
    aml_u8(aml, 0);
    aml_u8(aml, 0x0c); /* producer, positive decode, both ends fixed */
    aml_u8(aml, 1);    /* read-write, not cacheable */
    aml_u32(aml, 0);
    aml_u32(aml, first);
    aml_u32(aml, last);
    aml_u32(aml, 0);
    aml_u32(aml, last - first + 1);
}

void aml_open_method(struct aml *aml, const char *name, unsigned arguments)
{
    aml_u8(aml, 0x14);
    length_open(aml);
    name_string(aml, name);
    aml_u8(aml, (uint8_t)(arguments | 0x08));
}

void aml_registers(struct aml *aml, const char *region, const char *names, uint16_t base)
{
    size_t count = strlen(names) / 4;

    aml_u8(aml, 0x5b); /* OperationRegion */
    aml_u8(aml, 0x80);
    name_string(aml, region);
    aml_u8(aml, 1); /* ports */
    aml_integer(aml, base);
    aml_integer(aml, count * 4);
    aml_u8(aml, 0x5b); /* Field */
    aml_u8(aml, 0x81);
    length_open(aml);
    name_string(aml, region);
    aml_u8(aml, 0x43); /* 32-bit accesses, no lock, the rest of a write is zeroes */
    for (size_t i = 0; i < count; i++) {
        aml_bytes(aml, names + 4 * i, 4);
        aml_u8(aml, 32); /* bits */
    }
    aml_close(aml);
}

static void local_object(struct aml *aml, unsigned local)
{
    aml_u8(aml, (uint8_t)(0x60 + local));
}

void aml_load_local(struct aml *aml, unsigned local, const char *name)
{
    aml_u8(aml, 0x70);
    name_string(aml, name);
    local_object(aml, local);
}

void aml_store(struct aml *aml, uint64_t value, const char *name)
{
    aml_u8(aml, 0x70);
    aml_integer(aml, value);
    name_string(aml, name);
}

void aml_store_argument(struct aml *aml, unsigned argument, const char *name)
{
    aml_u8(aml, 0x70);
    aml_u8(aml, (uint8_t)(0x68 + argument));
    name_string(aml, name);
}

static void open_if(struct aml *aml, unsigned local, uint64_t mask)
{
    aml_u8(aml, 0xa0); /* If */
    length_open(aml);
    aml_u8(aml, 0x7b); /* And, into nothing */
    local_object(aml, local);
    aml_integer(aml, mask);
    aml_u8(aml, 0);
}

void aml_notify_if(struct aml *aml, unsigned local, uint64_t mask, const char *device,
                   unsigned code)
{
    open_if(aml, local, mask);
    aml_u8(aml, 0x86); /* Notify */
    name_string(aml, device);
    aml_integer(aml, code);
    aml_close(aml);
}

void aml_return(struct aml *aml, uint64_t value)
{
    aml_u8(aml, 0xa4);
    aml_integer(aml, value);
}

void aml_return_if(struct aml *aml, unsigned local, uint64_t mask, uint64_t value)
{
    open_if(aml, local, mask);
    aml_return(aml, value);
    aml_close(aml);
}

void aml_call(struct aml *aml, const char *device, const char *method)
{
    aml_bytes(aml, "\\/\x03_SB_", 7);
    name_string(aml, device);
    name_string(aml, method);
}
