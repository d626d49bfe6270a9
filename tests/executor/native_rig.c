/* See native_rig.h. */
#include "native_rig.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

unsigned vcpu_count = 2;
_Atomic uint32_t spares_cpu;
const struct native *native;
uint8_t *ram;
struct vcpu_state st;
struct native_left left;

/* Code at CODE, a page of data at DATA, and stack in its upper half. */
void put(const void *code, size_t len)
{
    const struct native_change changes[] = {
        {.va = CODE, .bytes = PAGE, .offset = 0, .prot = PROT_READ | PROT_EXEC},
        {.va = DATA, .bytes = PAGE, .offset = PAGE, .prot = PROT_READ | PROT_WRITE},
    };

    assert_int_equal(native->ops->clear(native->opaque, 0), 0);
    memset(ram, 0xcc, PAGE);
    memcpy(ram, code, len);
    assert_int_equal(native->ops->change(native->opaque, 0, changes, 2), 0);
    memset(&st, 0, sizeof(st));
    st.rip = CODE;
    st.gpr[X86_RSP] = DATA + PAGE;
    st.rflags = X86_FLAG_FIXED1 | X86_FLAG_IF;
    st.xsave[0] = 0x7f; /* FCW, MXCSR as after reset */
    st.xsave[1] = 0x03;
    st.xsave[24] = 0x80;
    st.xsave[25] = 0x1f;
}

enum native_reason run(void)
{
    native->ops->run(native->opaque, 0, 0, &st, NULL, 0, &left);
    return left.reason;
}

/* To the system call; a signal that comes late ends a run, too, for no reason. */
void run_past_kicks(void)
{
    while (run() == NATIVE_KICK) {
    }
    assert_int_equal(left.reason, NATIVE_SYSCALL);
}

enum native_reason run_code(const void *code, size_t len)
{
    put(code, len);
    return run();
}

uint64_t own_block(void)
{
    return NATIVE_OWN + NATIVE_BLOCK_BYTES;
}

void *kick_often(void *opaque)
{
    _Atomic bool *stop = opaque;

    while (!atomic_load(stop)) {
        native->ops->kick(native->opaque, 0);
    }
    return NULL;
}

int native_rig_set_up(void **state)
{
    int fd = memfd_create("ram", 0);

    (void)state;
    if (fd < 0 || ftruncate(fd, RAM_BYTES) != 0 || dup2(fd, NATIVE_RAM_FD) != NATIVE_RAM_FD) {
        return -1;
    }
    executor_native_create(vcpu_count, &spares_cpu, &native);
    ram = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, NATIVE_RAM_FD, 0);
    return native == NULL || native->space_count == 0 || ram == MAP_FAILED ? -1 : 0;
}

/* New spaces: what one test does to them is not the next one's. */
void renew(void)
{
    executor_native_create(vcpu_count, &spares_cpu, &native);
    assert_non_null(native);
}
