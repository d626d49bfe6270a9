#include "block/io_pool.h"

#include "base/io.h"

#include <errno.h>
#include <pthread.h>

#define MAX_WORKERS 16u

struct io_pool {
    struct mutex lock; /* LEAF; guards all below and the ports' done lists */
    pthread_cond_t work_cond;
    struct io_task_list work;
    unsigned max_workers;
    unsigned workers;
    unsigned idle_workers;
    unsigned waiting; /* tasks on the work list */
    bool is_stopping;
    pthread_t threads[MAX_WORKERS];
};

static void list_init(struct io_task_list *list)
{
    list->first = NULL;
    list->end = &list->first;
}

static void list_append(struct io_task_list *list, struct io_task *task)
{
    task->next = NULL;
    *list->end = task;
    list->end = &task->next;
}

static struct io_task *list_take(struct io_task_list *list)
{
    struct io_task *task = list->first;

    if (task) {
        list->first = task->next;
        if (!list->first) {
            list->end = &list->first;
        }
    }
    return task;
}

/* Whether the port's thread has to be told: it need only be of the first. */
static bool give_back_locked(struct io_task *task)
{
    struct io_port *port = task->port;
    bool is_first = port->done.first == NULL;

    list_append(&port->done, task);
    return is_first;
}

/* Under the lock, given up meanwhile: who is woken would only wait for it. The descriptor lives, for
 * the pool ends before the ports. */
static NO_LOCK_ANALYSIS void run_locked(struct io_pool *pool, struct io_task *task)
{
    int event_fd = task->port->event_fd;

    pool->waiting--;
    task->port->offered -= task->is_offered;
    mutex_unlock(&pool->lock);
    task->run(task);
    mutex_lock(&pool->lock);
    if (give_back_locked(task)) {
        mutex_unlock(&pool->lock);
        io_eventfd_signal(event_fd);
        mutex_lock(&pool->lock);
    }
}

static void *worker_main(void *opaque)
{
    struct io_pool *pool = opaque;
    struct io_task *task;

    mutex_lock(&pool->lock);
    for (;;) {
        task = list_take(&pool->work);
        if (task) {
            run_locked(pool, task);
        } else if (pool->is_stopping) {
            break;
        } else {
            pool->idle_workers++;
            (void)pthread_cond_wait(&pool->work_cond, &pool->lock.raw); /* cannot fail */
            pool->idle_workers--;
        }
    }
    mutex_unlock(&pool->lock);
    return NULL;
}

void io_port_init(struct io_port *port, struct io_pool *pool, int event_fd)
{
    *port = (struct io_port){.pool = pool, .event_fd = event_fd};
    list_init(&port->done);
}

/* Whether a worker will see it, sooner or later; the caller wakes one, without the lock. */
static bool append_locked(struct io_pool *pool, struct io_task *task)
{
    if (pool->idle_workers <= pool->waiting && pool->workers < pool->max_workers &&
        thread_start(&pool->threads[pool->workers], "work/disk", worker_main, pool) == 0) {
        pool->workers++;
    }
    if (pool->workers == 0) {
        return false;
    }
    list_append(&pool->work, task);
    pool->waiting++;
    return true;
}

void io_port_submit(struct io_port *port, struct io_task *task)
{
    struct io_pool *pool = port->pool;
    bool has_worker;

    task->port = port;
    task->is_offered = false;
    port->in_flight++;
    mutex_lock(&pool->lock);
    has_worker = append_locked(pool, task);
    mutex_unlock(&pool->lock);
    if (has_worker) {
        (void)pthread_cond_signal(&pool->work_cond); /* cannot fail */
    }
    if (!has_worker) {
        task->run(task);
        io_port_post(task);
    }
}

/* One worker is woken for all that is offered, and takes one after the other. */
void io_port_offer(struct io_port *port, struct io_task *task)
{
    struct io_pool *pool = port->pool;
    bool wakes;

    task->port = port;
    task->is_offered = true;
    port->in_flight++;
    mutex_lock(&pool->lock);
    wakes = port->offered == 0 && append_locked(pool, task);
    if (!wakes) {
        list_append(&pool->work, task);
        pool->waiting++;
    }
    port->offered++;
    mutex_unlock(&pool->lock);
    if (wakes) {
        (void)pthread_cond_signal(&pool->work_cond); /* cannot fail */
    }
}

struct io_task *io_port_take_back(struct io_port *port)
{
    struct io_pool *pool = port->pool;
    struct io_task **link = &pool->work.first;
    struct io_task *task = NULL;

    mutex_lock(&pool->lock);
    if (port->offered > 0) {
        while (!(*link)->is_offered || (*link)->port != port) {
            link = &(*link)->next;
        }
        task = *link;
        *link = task->next;
        if (!task->next) {
            pool->work.end = link;
        }
        pool->waiting--;
        port->offered--;
        port->in_flight--;
    }
    mutex_unlock(&pool->lock);
    return task;
}

void io_port_expect(struct io_port *port, struct io_task *task)
{
    task->port = port;
    port->in_flight++;
}

void io_port_forget(struct io_port *port)
{
    port->in_flight--;
}

void io_port_post(struct io_task *task)
{
    struct io_pool *pool = task->port->pool;

    mutex_lock(&pool->lock);
    if (give_back_locked(task)) { /* with the lock, which keeps the port */
        io_eventfd_signal(task->port->event_fd);
    }
    mutex_unlock(&pool->lock);
}

unsigned io_port_deliver(struct io_port *port)
{
    struct io_task *next;
    unsigned count = 0;

    mutex_lock(&port->pool->lock);
    next = port->done.first;
    list_init(&port->done);
    mutex_unlock(&port->pool->lock);
    while (next) {
        struct io_task *task = next;

        next = task->next;
        port->in_flight--;
        count++;
        task->done(task);
    }
    return count;
}

int io_pool_create(unsigned max_workers, struct io_pool **ret_pool)
{
    struct io_pool *pool = calloc(1, sizeof(*pool));

    if (!pool) {
        return -ENOMEM;
    }
    pool->max_workers = max_workers < MAX_WORKERS ? max_workers : MAX_WORKERS;
    mutex_init(&pool->lock, LOCK_RANK_LEAF);
    (void)pthread_cond_init(&pool->work_cond, NULL); /* cannot fail on Linux */
    list_init(&pool->work);
    *ret_pool = pool;
    return 0;
}

void io_pool_destroy(struct io_pool *pool)
{
    if (!pool) {
        return;
    }
    mutex_lock(&pool->lock);
    pool->is_stopping = true;
    (void)pthread_cond_broadcast(&pool->work_cond); /* cannot fail */
    mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->workers; i++) {
        (void)pthread_join(pool->threads[i], NULL); /* ours and joinable */
    }
    (void)pthread_cond_destroy(&pool->work_cond);
    mutex_done(&pool->lock);
    free(pool);
}
