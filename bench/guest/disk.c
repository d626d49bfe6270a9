/*
 * The virtual disk under many requests at once: asynchronous, past the guest's
 * cache, from one process or from four.
 */
#include "bench.h"

#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define DISK_BYTES (32u << 20)
#define MAX_DEPTH 32u
#define MAX_BLOCK (128u << 10)

struct work {
    bool is_write;
    bool is_random;
    unsigned block; /* bytes */
    unsigned depth; /* requests under way, of each job */
    unsigned count; /* of requests, of each job */
    unsigned jobs;
};

static bool has_disk(void)
{
    return getenv("BENCH_DISK") != NULL;
}

struct job {
    const struct work *work;
    int fd;
    char *buf;
    uint64_t state;
    uint64_t next; /* block, where they come one after another */
    aio_context_t context;
    struct iocb blocks[MAX_DEPTH];
};

static void submit(struct job *job, unsigned slot)
{
    const struct work *work = job->work;
    uint64_t blocks = DISK_BYTES / work->block;
    uint64_t block = work->is_random ? bench_random(&job->state) % blocks : job->next++ % blocks;
    struct iocb *iocb = &job->blocks[slot];

    memset(iocb, 0, sizeof(*iocb));
    iocb->aio_data = slot;
    iocb->aio_lio_opcode = work->is_write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
    iocb->aio_fildes = (uint32_t)job->fd;
    iocb->aio_buf = (uint64_t)(uintptr_t)(job->buf + (size_t)slot * work->block);
    iocb->aio_nbytes = work->block;
    iocb->aio_offset = (int64_t)(block * work->block);
    if (syscall(SYS_io_submit, job->context, 1L, &iocb) != 1) {
        bench_fail("io_submit");
    }
}

static void run_job(const struct work *work, unsigned index)
{
    struct job job = {.work = work, .state = BENCH_SEED + index};
    struct io_event events[MAX_DEPTH];
    unsigned submitted = 0;
    unsigned done = 0;

    job.next = (uint64_t)index * (DISK_BYTES / work->block) / work->jobs;
    job.fd = open(getenv("BENCH_DISK"), O_RDWR | O_DIRECT | O_CLOEXEC);
    if (job.fd < 0 || posix_memalign((void **)&job.buf, 4096, (size_t)work->depth * work->block) ||
        syscall(SYS_io_setup, work->depth, &job.context) != 0) {
        bench_fail("the disk");
    }
    memset(job.buf, 0x5a, (size_t)work->depth * work->block);
    while (submitted < work->depth) {
        submit(&job, submitted++);
    }
    while (done < work->count) {
        long n = syscall(SYS_io_getevents, job.context, 1L, (long)MAX_DEPTH, events, NULL);

        for (long i = 0; i < n; i++) {
            if (events[i].res != (int64_t)work->block) {
                bench_fail("a transfer");
            }
            done++;
            if (submitted < work->count) {
                submit(&job, (unsigned)events[i].data);
                submitted++;
            }
        }
    }
    (void)syscall(SYS_io_destroy, job.context);
    free(job.buf);
    (void)close(job.fd);
}

static uint64_t run_work(const struct work *work)
{
    for (unsigned i = 1; i < work->jobs; i++) {
        if (fork() == 0) {
            run_job(work, i);
            _exit(0);
        }
    }
    run_job(work, 0);
    for (unsigned i = 1; i < work->jobs; i++) {
        int status = 0;

        if (wait(&status) < 0 || status != 0) {
            bench_fail("a job");
        }
    }
    return 0;
}

static uint64_t run_seq_write(void)
{
    return run_work(&(struct work){true, false, MAX_BLOCK, 16, 512, 1});
}

static uint64_t run_seq_read(void)
{
    return run_work(&(struct work){false, false, MAX_BLOCK, 16, 512, 1});
}

static uint64_t run_rand_write(void)
{
    return run_work(&(struct work){true, true, 4096, 32, 4000, 1});
}

static uint64_t run_rand_read(void)
{
    return run_work(&(struct work){false, true, 4096, 32, 4000, 1});
}

static uint64_t run_rand_write_4(void)
{
    return run_work(&(struct work){true, true, 4096, 8, 1000, 4});
}

static uint64_t run_rand_read_4(void)
{
    return run_work(&(struct work){false, true, 4096, 8, 1000, 4});
}

const struct bench disk_benches[] = {
    {"disk", "disk-seq-write", run_seq_write, has_disk, false},
    {"disk", "disk-seq-read", run_seq_read, has_disk, false},
    {"disk", "disk-rand-write", run_rand_write, has_disk, false},
    {"disk", "disk-rand-read", run_rand_read, has_disk, false},
    {"disk", "disk-rand-write-4", run_rand_write_4, has_disk, false},
    {"disk", "disk-rand-read-4", run_rand_read_4, has_disk, false},
    {.name = NULL},
};
