/*
 * The socket device's insides: connections between a guest port and a unix
 * socket of the host (virtio 1.2 §5.10).
 *
 * virtio_vsock.c speaks with the guest, vsock_host.c with the host's sockets.
 * All of it runs on the device's loop with the device's mutex held; sockets
 * never block. The number of connections and what each may buffer are bounded:
 * bytes from the guest by the credit we grant, bytes from the host by not
 * reading them before the guest has credit and buffers for them.
 */
#ifndef CORBEL_VIRTIO_VSOCK_H
#define CORBEL_VIRTIO_VSOCK_H

#include "virtio/virtio.h"

#include <sys/un.h>

#define VSOCK_MAX_CONNS 128u
#define VSOCK_BUFFER_BYTES 65536u /* credit granted to the guest per connection */
#define VSOCK_HEADER_BYTES 44u
#define VSOCK_CHAIN_MAX 32u
#define VSOCK_MAX_RESETS 64u

#define VSOCK_CID_HOST 2u
#define VSOCK_TYPE_STREAM 1u

/* §5.10.6 */
enum vsock_op {
    VSOCK_OP_REQUEST = 1,
    VSOCK_OP_RESPONSE = 2,
    VSOCK_OP_RST = 3,
    VSOCK_OP_SHUTDOWN = 4,
    VSOCK_OP_RW = 5,
    VSOCK_OP_CREDIT_UPDATE = 6,
    VSOCK_OP_CREDIT_REQUEST = 7
};
#define VSOCK_SHUTDOWN_RCV 1u
#define VSOCK_SHUTDOWN_SEND 2u
#define VSOCK_SHUTDOWN_BOTH 3u

enum vsock_state {
    VSOCK_FREE,
    VSOCK_COMMAND,   /* a host program connected and has not said to which port */
    VSOCK_REQUESTED, /* the guest was asked to accept */
    VSOCK_OPEN,
    VSOCK_DRAINING /* the guest is done with it; the host still has bytes to take */
};

/* Packets a connection owes to the guest; several may be due at once. */
#define VSOCK_DUE_REQUEST 0x01u
#define VSOCK_DUE_RESPONSE 0x02u
#define VSOCK_DUE_CREDIT 0x04u
#define VSOCK_DUE_SHUTDOWN 0x08u
#define VSOCK_DUE_RST 0x10u /* and then the connection ends */

struct vsock_conn {
    struct virtio_vsock *vsock;
    enum vsock_state state;
    int fd;
    struct loop_fd *handler;
    uint32_t watched; /* events the handler asks for */
    uint32_t host_port, guest_port;
    unsigned due;

    /* Host to guest, §5.10.6.3 */
    uint32_t guest_buf_alloc, guest_fwd_cnt;
    uint32_t sent;     /* bytes, modulo 2^32 */
    bool can_read;     /* the socket had bytes, or its end, when last asked */
    bool host_ended;   /* its end was read */
    bool guest_closed; /* the guest receives no more */

    /* Guest to host */
    uint32_t fwd_cnt;      /* bytes handed to the socket, modulo 2^32 */
    uint32_t told_fwd_cnt; /* as the guest knows it */
    bool guest_ended;      /* it sends no more: shut the socket down when all is written */
    uint8_t *buffer;       /* what the socket did not take yet; NULL while nothing ever waited */
    uint32_t buffer_start, buffer_len;
};

/* An answer to a packet that belongs to no connection. */
struct vsock_reset {
    uint32_t host_port, guest_port;
};

struct virtio_vsock {
    struct virtio_dev dev;
    uint32_t guest_cid;
    int listen_fd;
    struct loop_fd *listen_handler;
    struct sockaddr_un address;
    uint32_t next_host_port;
    unsigned next_turn; /* whose bytes go to the guest first */
    bool must_purge;    /* the guest reset the device: the loop ends all connections */
    bool no_room;       /* the guest's receive queue is empty */
    struct vsock_conn conns[VSOCK_MAX_CONNS];
    struct vsock_reset resets[VSOCK_MAX_RESETS];
    unsigned reset_count;
    struct virtq_seg segs[VSOCK_CHAIN_MAX];
    uint8_t packet[VSOCK_HEADER_BYTES + VSOCK_BUFFER_BYTES];
};

/* virtio_vsock.c */

/* Sends the guest whatever is due and has room. */
void vsock_pump(struct virtio_vsock *vsock);
/* Bytes the guest would still take, §5.10.6.3. */
uint32_t vsock_credit(const struct vsock_conn *conn);

/* vsock_host.c */

int vsock_host_listen(struct virtio_vsock *vsock, const char *path, struct err *err) MUST_CHECK;
void vsock_host_done(struct virtio_vsock *vsock);
/* Connects to PATH_PORT; NULL when nobody listens there or there are too many. */
struct vsock_conn *vsock_host_connect(struct virtio_vsock *vsock, uint32_t host_port,
                                      uint32_t guest_port);
/* The guest accepted: tells the program that asked. */
void vsock_host_accepted(struct vsock_conn *conn);
/* Writes or buffers bytes from the guest; false when it overran its credit. */
bool vsock_host_write(struct vsock_conn *conn, const uint8_t *data, uint32_t len);
/* At most len bytes for the guest; 0 when there are none (now, or any more). */
uint32_t vsock_host_read(struct vsock_conn *conn, uint8_t *data, uint32_t len);
/* Makes the handler ask for what the connection's state needs. */
void vsock_host_watch(struct vsock_conn *conn);
/* The guest sends no more, or is gone: ends the socket as far as its buffer allows. */
void vsock_host_finish(struct vsock_conn *conn);
/* Closes the socket and frees the slot. */
void vsock_host_close(struct vsock_conn *conn);

#endif
