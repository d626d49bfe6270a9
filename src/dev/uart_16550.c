/* PC16550D: registers, FIFOs and interrupts; baud rates are accepted and mean nothing. */
#include "base/thread.h"
#include "dev/chardev.h"
#include "dev/dev.h"

#include <errno.h>
#include <stdlib.h>

#define FIFO_BYTES 16u

enum uart_reg { REG_DATA, REG_IER, REG_IIR, REG_LCR, REG_MCR, REG_LSR, REG_MSR, REG_SCRATCH };

#define IER_RECEIVED 0x01u
#define IER_TRANSMIT 0x02u
#define IER_LINE 0x04u
#define IER_MODEM 0x08u
#define IIR_NONE 0x01u
#define IIR_MODEM 0x00u
#define IIR_TRANSMIT 0x02u
#define IIR_RECEIVED 0x04u
#define IIR_LINE 0x06u
#define IIR_TIMEOUT 0x0cu
#define IIR_FIFOS 0xc0u
#define FCR_ENABLE 0x01u
#define FCR_CLEAR_RECEIVE 0x02u
#define LCR_DIVISOR 0x80u
#define MCR_WRITABLE 0x1fu
#define MCR_OUT2 0x08u
#define MCR_LOOP 0x10u
#define LSR_DATA 0x01u
#define LSR_OVERRUN 0x02u
#define LSR_THR_EMPTY 0x20u
#define LSR_IDLE 0x40u
#define MSR_CONNECTED 0xb0u /* CTS, DSR and DCD */

struct uart_16550 {
    struct mutex mutex;
    struct bus *bus;
    struct bus_range *range;
    struct irq_router irq;
    unsigned gsi;
    struct chardev *chardev;
    uint8_t fifo[FIFO_BYTES];
    unsigned fifo_start;
    unsigned fifo_len;
    uint8_t ier, fcr, lcr, mcr, scratch, dll, dlm;
    uint8_t msr_delta; /* low half of MSR: changes since it was read */
    uint8_t msr_high;
    bool overrun;
    bool thr_interrupt; /* the transmitter became empty, not yet reported */
    bool thr_full;      /* the chardev had no room */
    bool input_held;    /* the chardev has more than the FIFO could take */
    bool line;
};

static unsigned fifo_capacity(const struct uart_16550 *uart)
{
    return (uart->fcr & FCR_ENABLE) != 0 ? FIFO_BYTES : 1;
}

static unsigned fifo_trigger(const struct uart_16550 *uart)
{
    static const uint8_t levels[4] = {1, 4, 8, 14};

    return (uart->fcr & FCR_ENABLE) != 0 ? levels[uart->fcr >> 6] : 1;
}

static void fifo_put(struct uart_16550 *uart, uint8_t byte)
{
    if (uart->fifo_len == fifo_capacity(uart)) {
        uart->overrun = true;
        return;
    }
    uart->fifo[(uart->fifo_start + uart->fifo_len) % FIFO_BYTES] = byte;
    uart->fifo_len++;
}

/* The interrupt of highest priority (datasheet table V). Bytes below the trigger level are
 * reported as a timeout at once: waiting for more would only delay them. */
static uint8_t interrupt_id(const struct uart_16550 *uart)
{
    if ((uart->ier & IER_LINE) != 0 && uart->overrun) {
        return IIR_LINE;
    }
    if ((uart->ier & IER_RECEIVED) != 0 && uart->fifo_len > 0) {
        return uart->fifo_len >= fifo_trigger(uart) ? IIR_RECEIVED : IIR_TIMEOUT;
    }
    if ((uart->ier & IER_TRANSMIT) != 0 && uart->thr_interrupt) {
        return IIR_TRANSMIT;
    }
    if ((uart->ier & IER_MODEM) != 0 && uart->msr_delta != 0) {
        return IIR_MODEM;
    }
    return IIR_NONE;
}

/* OUT2 gates the interrupt line on a PC. */
static void line_update_locked(struct uart_16550 *uart)
{
    bool line = interrupt_id(uart) != IIR_NONE && (uart->mcr & (MCR_OUT2 | MCR_LOOP)) == MCR_OUT2;

    if (line != uart->line) {
        uart->line = line;
        irq_set_line(&uart->irq, uart->gsi, line);
    }
}

/* In loopback the modem outputs feed the inputs (datasheet §8.6.7). */
static void modem_update_locked(struct uart_16550 *uart)
{
    uint8_t high = MSR_CONNECTED;
    uint8_t changed = 0;

    if ((uart->mcr & MCR_LOOP) != 0) {
        high =
            (uint8_t)((uart->mcr & 0x0c) << 4 | (uart->mcr & 0x02) << 3 | (uart->mcr & 0x01) << 5);
    }
    changed = (high ^ uart->msr_high) >> 4;
    if ((changed & 4) != 0 && (high & 0x40) != 0) {
        changed &= (uint8_t)~4u; /* ring: the trailing edge only */
    }
    uart->msr_delta |= changed;
    uart->msr_high = high;
}

static void transmit_locked(struct uart_16550 *uart, uint8_t byte)
{
    uart->thr_interrupt = false;
    if ((uart->mcr & MCR_LOOP) != 0) {
        fifo_put(uart, byte);
    } else {
        (void)chardev_write(uart->chardev, &byte, 1); /* a full line loses what is sent anyway */
        uart->thr_full = chardev_room(uart->chardev) == 0;
    }
    uart->thr_interrupt = !uart->thr_full;
}

static uint8_t receive_locked(struct uart_16550 *uart)
{
    uint8_t byte = 0;

    if (uart->fifo_len > 0) {
        byte = uart->fifo[uart->fifo_start];
        uart->fifo_start = (uart->fifo_start + 1) % FIFO_BYTES;
        uart->fifo_len--;
    }
    return byte;
}

static uint8_t iir_read_locked(struct uart_16550 *uart)
{
    uint8_t id = interrupt_id(uart);

    if (id == IIR_TRANSMIT) {
        uart->thr_interrupt = false;
    }
    return (uart->fcr & FCR_ENABLE) != 0 ? id | IIR_FIFOS : id;
}

static uint8_t lsr_read_locked(struct uart_16550 *uart)
{
    uint8_t value = uart->fifo_len > 0 ? LSR_DATA : 0;

    if (uart->overrun) {
        value |= LSR_OVERRUN;
        uart->overrun = false;
    }
    if (uart->thr_full) {
        uart->thr_full = chardev_room(uart->chardev) == 0;
    }
    return uart->thr_full ? value : value | LSR_THR_EMPTY | LSR_IDLE;
}

static uint8_t msr_read_locked(struct uart_16550 *uart)
{
    uint8_t value = uart->msr_high | uart->msr_delta;

    uart->msr_delta = 0;
    return value;
}

static uint8_t register_read_locked(struct uart_16550 *uart, enum uart_reg reg)
{
    bool divisor = (uart->lcr & LCR_DIVISOR) != 0;

    switch (reg) {
    case REG_DATA:
        return divisor ? uart->dll : receive_locked(uart);
    case REG_IER:
        return divisor ? uart->dlm : uart->ier;
    case REG_IIR:
        return iir_read_locked(uart);
    case REG_LCR:
        return uart->lcr;
    case REG_MCR:
        return uart->mcr;
    case REG_LSR:
        return lsr_read_locked(uart);
    case REG_MSR:
        return msr_read_locked(uart);
    case REG_SCRATCH:
        return uart->scratch;
    }
    return 0xff;
}

/* After an access: the line follows. Whether what waits with input is to be told that there is room. */
static bool finish_locked(struct uart_16550 *uart)
{
    bool has_room;

    line_update_locked(uart);
    has_room = uart->input_held && uart->fifo_len == 0;
    if (has_room) {
        uart->input_held = false;
    }
    return has_room;
}

static uint64_t uart_read(void *opaque, uint64_t offset, unsigned size_bytes)
{
    struct uart_16550 *uart = opaque;
    uint8_t value;
    bool has_room;

    (void)size_bytes; /* always 1 */
    mutex_lock(&uart->mutex);
    value = register_read_locked(uart, (enum uart_reg)offset);
    has_room = finish_locked(uart);
    mutex_unlock(&uart->mutex);
    if (has_room) {
        chardev_input_ready(uart->chardev);
    }
    return value;
}

static void ier_write_locked(struct uart_16550 *uart, uint8_t value)
{
    uint8_t rising = (uint8_t)(value & ~uart->ier);

    uart->ier = value & 0x0f;
    if ((rising & IER_TRANSMIT) != 0 && !uart->thr_full) {
        uart->thr_interrupt = true;
    }
}

static void fcr_write_locked(struct uart_16550 *uart, uint8_t value)
{
    if ((value & FCR_CLEAR_RECEIVE) != 0 || ((value ^ uart->fcr) & FCR_ENABLE) != 0) {
        uart->fifo_len = 0;
    }
    uart->fcr = (value & FCR_ENABLE) != 0 ? value & 0xc9 : 0;
}

static void register_write_locked(struct uart_16550 *uart, enum uart_reg reg, uint8_t value)
{
    bool divisor = (uart->lcr & LCR_DIVISOR) != 0;

    switch (reg) {
    case REG_DATA:
        if (divisor) {
            uart->dll = value;
        } else {
            transmit_locked(uart, value);
        }
        break;
    case REG_IER:
        if (divisor) {
            uart->dlm = value;
        } else {
            ier_write_locked(uart, value);
        }
        break;
    case REG_IIR:
        fcr_write_locked(uart, value);
        break;
    case REG_LCR:
        uart->lcr = value;
        break;
    case REG_MCR:
        uart->mcr = value & MCR_WRITABLE;
        modem_update_locked(uart);
        break;
    case REG_SCRATCH:
        uart->scratch = value;
        break;
    case REG_LSR: /* read-only */
    case REG_MSR:
        break;
    }
}

static void uart_write(void *opaque, uint64_t offset, unsigned size_bytes, uint64_t value)
{
    struct uart_16550 *uart = opaque;
    bool has_room;

    (void)size_bytes; /* always 1 */
    mutex_lock(&uart->mutex);
    register_write_locked(uart, (enum uart_reg)offset, (uint8_t)value);
    has_room = finish_locked(uart);
    mutex_unlock(&uart->mutex);
    if (has_room) {
        chardev_input_ready(uart->chardev);
    }
}

/* On the loop's thread. */
static size_t uart_input(void *opaque, const uint8_t *data, size_t len)
{
    struct uart_16550 *uart = opaque;
    size_t taken = 0;

    mutex_lock(&uart->mutex);
    if ((uart->mcr & MCR_LOOP) == 0) {
        while (taken < len && uart->fifo_len < fifo_capacity(uart)) {
            fifo_put(uart, data[taken]);
            taken++;
        }
        line_update_locked(uart);
    }
    uart->input_held = taken < len;
    mutex_unlock(&uart->mutex);
    return taken;
}

/* On the loop's thread: the line takes bytes again. */
static void uart_output_ready(void *opaque)
{
    struct uart_16550 *uart = opaque;

    mutex_lock(&uart->mutex);
    if (uart->thr_full) {
        uart->thr_full = false;
        uart->thr_interrupt = true;
        line_update_locked(uart);
    }
    mutex_unlock(&uart->mutex);
}

static const struct chardev_frontend_ops frontend_ops = {
    .input = uart_input,
    .output_ready = uart_output_ready,
};

static const struct bus_ops uart_ops = {
    .read = uart_read,
    .write = uart_write,
    .min_bytes = 1,
    .max_bytes = 1,
};

void uart_16550_reset(struct uart_16550 *uart)
{
    bool held = false;

    mutex_lock(&uart->mutex);
    uart->fifo_start = 0;
    uart->fifo_len = 0;
    uart->ier = uart->fcr = uart->lcr = uart->mcr = uart->scratch = uart->dll = uart->dlm = 0;
    uart->msr_delta = 0;
    uart->msr_high = MSR_CONNECTED;
    uart->overrun = false;
    uart->thr_interrupt = false;
    uart->thr_full = false;
    held = uart->input_held;
    uart->input_held = false;
    line_update_locked(uart);
    mutex_unlock(&uart->mutex);
    if (held) {
        chardev_input_ready(uart->chardev);
    }
}

int uart_16550_create(const struct dev_env *env, uint16_t base, unsigned gsi,
                      struct chardev *chardev, struct uart_16550 **ret_uart)
{
    struct uart_16550 *uart = calloc(1, sizeof(*uart));
    int rc = 0;

    if (uart == NULL) {
        return -ENOMEM;
    }
    mutex_init(&uart->mutex, LOCK_RANK_DEVICE);
    uart->bus = env->bus;
    uart->irq = env->irq;
    uart->gsi = gsi;
    uart->chardev = chardev;
    uart_16550_reset(uart);
    rc = bus_map(env->bus, BUS_PIO, base, 8, &uart_ops, uart, "uart", &uart->range);
    if (rc != 0) {
        uart_16550_destroy(uart);
        return rc;
    }
    chardev_set_frontend(chardev, &frontend_ops, uart);
    *ret_uart = uart;
    return 0;
}

void uart_16550_destroy(struct uart_16550 *uart)
{
    if (uart == NULL) {
        return;
    }
    bus_unmap(uart->bus, uart->range);
    mutex_done(&uart->mutex);
    free(uart);
}
