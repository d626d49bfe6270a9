/*
 * A guest made of bytes: the input is a program that drives one virtio device,
 * mostly as the specification says, sometimes not.
 *
 * Everything runs on one thread, so that an input always does the same.
 */
#ifndef CORBEL_TESTS_FUZZ_FUZZ_VIRTIO_H
#define CORBEL_TESTS_FUZZ_FUZZ_VIRTIO_H

#include "virtio_driver.h"

struct fuzz_input {
    const uint8_t *data;
    size_t len;
};

struct fuzz {
    struct test_machine machine;
    struct test_driver driver;
    struct virtio_dev *dev;
    struct loop *loop; /* the device's */
    unsigned queue;    /* the one at hand */
    /* Writes a valid request at TEST_DATA and makes it available. Optional. */
    void (*request)(struct fuzz *fuzz, struct fuzz_input *input);
    /* What the host does between the guest's steps. Optional. */
    void (*host)(struct fuzz *fuzz, struct fuzz_input *input);
    void (*settle)(struct fuzz *fuzz); /* finishes what is in flight. Optional. */
    void *opaque;
};

uint8_t fuzz_u8(struct fuzz_input *input);
uint16_t fuzz_u16(struct fuzz_input *input);
uint32_t fuzz_u32(struct fuzz_input *input);
/* An address in the data area, now and then one at the end of memory or beyond. */
uint64_t fuzz_address(struct fuzz_input *input);

/* Runs the program. The device exists and fuzz->loop is set. */
void fuzz_run(struct fuzz *fuzz, struct fuzz_input *input);
/* One turn of the loop. */
void fuzz_pump(struct fuzz *fuzz);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

#endif
