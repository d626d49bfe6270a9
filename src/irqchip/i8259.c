#include "irqchip/i8259.h"

#include "base/thread.h"

#include <errno.h>
#include <stdlib.h>

#define PORT_MASTER 0x20u
#define PORT_SLAVE 0xa0u
#define PORT_ELCR 0x4d0u
#define CASCADE 2u
#define SPURIOUS 7u

#define ICW1_INIT 0x10u
#define ICW1_NEEDS_ICW4 0x01u
#define ICW1_SINGLE 0x02u
#define ICW4_AUTO_EOI 0x02u
#define OCW3 0x08u
#define OCW3_POLL 0x04u
#define OCW3_READ 0x02u
#define OCW3_READ_ISR 0x01u
#define OCW3_SPECIAL_MASK_SET 0x40u
#define OCW3_SPECIAL_MASK 0x20u

struct chip {
    uint8_t irr;
    uint8_t isr;
    uint8_t imr;
    uint8_t lines; /* as driven, for edges */
    uint8_t elcr;  /* 1: level */
    uint8_t elcr_mask;
    uint8_t base;      /* vector of line 0 */
    uint8_t lowest;    /* the line of lowest priority */
    uint8_t init_step; /* the ICW expected next, 0: none */
    bool needs_icw4;
    bool is_single;
    bool auto_eoi;
    bool rotate_auto_eoi;
    bool read_isr;
    bool poll;
    bool special_mask;
};

struct i8259 {
    struct mutex mutex;
    struct bus *bus;
    struct bus_range *ranges[3];
    struct chip chips[2]; /* master, slave */
    i8259_output_fn output_fn;
    void *opaque;
    bool output;
};

/* The rank of the highest-priority line in mask: 0 is highest, 8: none. */
static unsigned rank_of(const struct chip *chip, uint8_t mask)
{
    for (unsigned rank = 0; rank < 8; rank++) {
        if ((mask & (1u << ((chip->lowest + 1 + rank) & 7))) != 0) {
            return rank;
        }
    }
    return 8;
}

/* The line to serve next, or -1. */
static int chip_next(const struct chip *chip)
{
    unsigned wanted = rank_of(chip, (uint8_t)(chip->irr & ~chip->imr));
    uint8_t in_service = chip->special_mask ? (uint8_t)(chip->isr & ~chip->imr) : chip->isr;
    unsigned busy = rank_of(chip, in_service);

    return wanted < busy ? (int)((chip->lowest + 1 + wanted) & 7) : -1;
}

static void chip_set_line(struct chip *chip, unsigned line, bool level)
{
    uint8_t bit = (uint8_t)(1u << line);

    if ((chip->elcr & bit) != 0) {
        chip->irr = level ? chip->irr | bit : (uint8_t)(chip->irr & ~bit);
    } else if (level && (chip->lines & bit) == 0) {
        chip->irr |= bit;
    } else if (!level) {
        chip->irr &= (uint8_t)~bit; /* the request must last until INTA */
    }
    chip->lines = level ? chip->lines | bit : (uint8_t)(chip->lines & ~bit);
}

static void outputs_update_locked(struct i8259 *pic)
{
    bool output = false;

    chip_set_line(&pic->chips[0], CASCADE, chip_next(&pic->chips[1]) >= 0);
    output = chip_next(&pic->chips[0]) >= 0;
    if (output != pic->output) {
        pic->output = output;
        pic->output_fn(pic->opaque, output);
    }
}

void i8259_set_line(struct i8259 *pic, unsigned irq, bool level)
{
    if (irq >= 16 || irq == CASCADE) {
        return;
    }
    mutex_lock(&pic->mutex);
    chip_set_line(&pic->chips[irq / 8], irq % 8, level);
    outputs_update_locked(pic);
    mutex_unlock(&pic->mutex);
}

/* Puts line into service. */
static void chip_serve(struct chip *chip, unsigned line)
{
    uint8_t bit = (uint8_t)(1u << line);

    if ((chip->elcr & bit) == 0) {
        chip->irr &= (uint8_t)~bit;
    }
    if (!chip->auto_eoi) {
        chip->isr |= bit;
    } else if (chip->rotate_auto_eoi) {
        chip->lowest = (uint8_t)line;
    }
}

int i8259_acknowledge(struct i8259 *pic)
{
    int line = 0;
    int vector = 0;

    mutex_lock(&pic->mutex);
    line = chip_next(&pic->chips[0]);
    if (line < 0) {
        vector = (pic->chips[0].base & 0xf8) | SPURIOUS;
    } else if (line == (int)CASCADE) {
        int slave_line = chip_next(&pic->chips[1]);

        chip_serve(&pic->chips[0], CASCADE);
        if (slave_line >= 0) {
            chip_serve(&pic->chips[1], (unsigned)slave_line);
        } else {
            slave_line = SPURIOUS;
        }
        vector = (pic->chips[1].base & 0xf8) | slave_line;
    } else {
        chip_serve(&pic->chips[0], (unsigned)line);
        vector = (pic->chips[0].base & 0xf8) | line;
    }
    outputs_update_locked(pic);
    mutex_unlock(&pic->mutex);
    return vector;
}

static void icw1_write(struct chip *chip, uint8_t value)
{
    chip->irr = 0;
    chip->isr = 0;
    chip->imr = 0;
    chip->lowest = 7;
    chip->auto_eoi = false;
    chip->rotate_auto_eoi = false;
    chip->read_isr = false;
    chip->poll = false;
    chip->special_mask = false;
    chip->needs_icw4 = (value & ICW1_NEEDS_ICW4) != 0;
    chip->is_single = (value & ICW1_SINGLE) != 0;
    chip->init_step = 2;
}

/* OCW2: end of interrupt and rotation, by its three top bits. */
static void ocw2_write(struct chip *chip, uint8_t value)
{
    unsigned command = value >> 5;
    unsigned line = value & 7;

    switch (command) {
    case 0: /* rotate in automatic EOI, off and on */
    case 4:
        chip->rotate_auto_eoi = command == 4;
        break;
    case 1: /* non-specific EOI, without and with rotation */
    case 5: {
        unsigned rank = rank_of(chip, chip->isr);

        if (rank < 8) {
            line = (chip->lowest + 1 + rank) & 7;
            chip->isr &= (uint8_t) ~(1u << line);
            if (command == 5) {
                chip->lowest = (uint8_t)line;
            }
        }
        break;
    }
    case 3: /* specific EOI, without and with rotation */
    case 7:
        chip->isr &= (uint8_t) ~(1u << line);
        if (command == 7) {
            chip->lowest = (uint8_t)line;
        }
        break;
    case 6: /* set priority */
        chip->lowest = (uint8_t)line;
        break;
    default: /* no operation */
        break;
    }
}

static void ocw3_write(struct chip *chip, uint8_t value)
{
    if ((value & OCW3_POLL) != 0) {
        chip->poll = true;
    }
    if ((value & OCW3_READ) != 0) {
        chip->read_isr = (value & OCW3_READ_ISR) != 0;
    }
    if ((value & OCW3_SPECIAL_MASK_SET) != 0) {
        chip->special_mask = (value & OCW3_SPECIAL_MASK) != 0;
    }
}

static void data_port_write(struct chip *chip, uint8_t value)
{
    switch (chip->init_step) {
    case 2:
        chip->base = value & 0xf8;
        chip->init_step = chip->is_single ? (chip->needs_icw4 ? 4 : 0) : 3;
        break;
    case 3:
        chip->init_step = chip->needs_icw4 ? 4 : 0;
        break;
    case 4:
        chip->auto_eoi = (value & ICW4_AUTO_EOI) != 0;
        chip->init_step = 0;
        break;
    default:
        chip->imr = value;
        break;
    }
}

static void chip_write(struct i8259 *pic, unsigned index, uint64_t offset, uint8_t value)
{
    struct chip *chip = &pic->chips[index];

    mutex_lock(&pic->mutex);
    if (offset == 1) {
        data_port_write(chip, value);
    } else if ((value & ICW1_INIT) != 0) {
        icw1_write(chip, value);
    } else if ((value & OCW3) != 0) {
        ocw3_write(chip, value);
    } else {
        ocw2_write(chip, value);
    }
    outputs_update_locked(pic);
    mutex_unlock(&pic->mutex);
}

static uint8_t chip_poll(struct chip *chip)
{
    int line = chip_next(chip);

    chip->poll = false;
    if (line < 0) {
        return 0;
    }
    chip_serve(chip, (unsigned)line);
    return (uint8_t)(0x80 | line);
}

static uint8_t chip_read(struct i8259 *pic, unsigned index, uint64_t offset)
{
    struct chip *chip = &pic->chips[index];
    uint8_t value = 0;

    mutex_lock(&pic->mutex);
    if (chip->poll) {
        value = chip_poll(chip);
        outputs_update_locked(pic);
    } else if (offset == 1) {
        value = chip->imr;
    } else {
        value = chip->read_isr ? chip->isr : chip->irr;
    }
    mutex_unlock(&pic->mutex);
    return value;
}

static uint64_t master_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
    (void)size_bytes;
    return chip_read(opaque, 0, offset);
}

static void master_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
    (void)size_bytes;
    chip_write(opaque, 0, offset, (uint8_t)value);
}

static uint64_t slave_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
    (void)size_bytes;
    return chip_read(opaque, 1, offset);
}

static void slave_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
    (void)size_bytes;
    chip_write(opaque, 1, offset, (uint8_t)value);
}

static uint64_t elcr_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
    struct i8259 *pic = opaque;
    uint8_t value = 0;

    (void)size_bytes;
    mutex_lock(&pic->mutex);
    value = pic->chips[offset].elcr;
    mutex_unlock(&pic->mutex);
    return value;
}

static void elcr_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
    struct i8259 *pic = opaque;
    struct chip *chip = &pic->chips[offset];

    (void)size_bytes;
    mutex_lock(&pic->mutex);
    chip->elcr = (uint8_t)value & chip->elcr_mask;
    mutex_unlock(&pic->mutex);
}

static const struct bus_ops chip_ops[3] = {
    {.read = master_read, .write = master_write, .min_bytes = 1, .max_bytes = 1},
    {.read = slave_read, .write = slave_write, .min_bytes = 1, .max_bytes = 1},
    {.read = elcr_read, .write = elcr_write, .min_bytes = 1, .max_bytes = 1},
};

void i8259_reset(struct i8259 *pic)
{
    mutex_lock(&pic->mutex);
    for (unsigned i = 0; i < 2; i++) {
        struct chip *chip = &pic->chips[i];
        uint8_t lines = chip->lines;

        *chip = (struct chip){
            .lines = lines,
            .imr = 0xff, /* as firmware leaves it */
            .lowest = 7,
            /* 0, 1, 2, 8 and 13 are edge-triggered by wiring */
            .elcr_mask = i == 0 ? 0xf8 : 0xde,
        };
    }
    outputs_update_locked(pic);
    mutex_unlock(&pic->mutex);
}

int i8259_create(struct bus *bus, i8259_output_fn fn, void *opaque, struct i8259 **ret_pic)
{
    static const uint16_t ports[3] = {PORT_MASTER, PORT_SLAVE, PORT_ELCR};
    struct i8259 *pic = calloc(1, sizeof(*pic));
    int rc = 0;

    if (pic == NULL) {
        return -ENOMEM;
    }
    mutex_init(&pic->mutex, LOCK_RANK_IRQ);
    pic->bus = bus;
    pic->output_fn = fn;
    pic->opaque = opaque;
    i8259_reset(pic);
    for (unsigned i = 0; rc == 0 && i < 3; i++) {
        rc = bus_map(bus, BUS_PIO, ports[i], 2, &chip_ops[i], pic, "i8259", &pic->ranges[i]);
    }
    if (rc != 0) {
        i8259_destroy(pic);
        return rc;
    }
    *ret_pic = pic;
    return 0;
}

void i8259_destroy(struct i8259 *pic)
{
    if (pic == NULL) {
        return;
    }
    for (unsigned i = 0; i < 3; i++) {
        bus_unmap(pic->bus, pic->ranges[i]);
    }
    mutex_done(&pic->mutex);
    free(pic);
}
