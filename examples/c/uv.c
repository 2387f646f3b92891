/*
 * Locks on an event loop of libuv: `uv [URL]`. Three operations on the same resource wait at the same time, on one thread;
 * each holds the lock for a moment and passes it on.
 */
#define _POSIX_C_SOURCE 200809L
#include <polylock.h>
#include <stdio.h>
#include <stdlib.h>
#include <uv.h>

enum { WORKERS = 3 };

/* What a worker waits for: its lease, or the end of its release. */
struct worker {
    polylock_lease lease;
    polylock_future future;
};

static struct worker workers[WORKERS];
static polylock_queue queue;
static int left = WORKERS;

static void must(polylock_status status, polylock_error err)
{
    if (status != POLYLOCK_OK) {
        fprintf(stderr, "%s: %s\n", polylock_status_name(status), polylock_error_message(err));
        exit(1);
    }
}

static void went_on(struct worker *worker)
{
    polylock_error err = 0;
    polylock_future over = worker->future;
    polylock_status status;
    if (!worker->lease) {
        status = polylock_future_take_lease(over, &worker->lease, &err);
        must(status, err);
        printf("worker %d holds, fencing token %llu\n", (int)(worker - workers),
               (unsigned long long)polylock_lease_fencing_token(worker->lease));
        status = polylock_release_start(worker->lease, queue, &worker->future, &err);
    } else {
        status = polylock_future_take_outcome(over, NULL, &err);
        polylock_lease_free(worker->lease);
        left--;
    }
    must(status, err);
    polylock_future_free(over);
}

/* The queue's descriptor is readable. */
static void on_readable(uv_poll_t *watcher, int status, int events)
{
    polylock_future ready[8];
    size_t count = 0, i;
    polylock_error err = 0;
    polylock_status turned = polylock_queue_turn(queue, ready, 8, &count, &err);
    (void)status, (void)events;
    must(turned, err);
    for (i = 0; i < count; i++) {
        struct worker *worker = workers;
        while (worker->future != ready[i])
            worker++;
        went_on(worker);
    }
    if (!left)
        uv_close((uv_handle_t *)watcher, NULL); /* before the queue is freed, which closes the descriptor */
}

int main(int argc, char **argv)
{
    polylock_manager locks = 0;
    polylock_error err = 0;
    polylock_status status = polylock_connect(argc > 1 ? argv[1] : "memory:", 0, &locks, &err);
    uv_poll_t watcher;
    int i;

    must(status, err);
    status = polylock_queue_new(&queue, &err);
    must(status, err);
    for (i = 0; i < WORKERS; i++) {
        status = polylock_acquire_start(locks, "invoice:42", 0, queue, &workers[i].future, &err);
        must(status, err);
    }
    if (uv_poll_init(uv_default_loop(), &watcher, polylock_queue_fd(queue)) || uv_poll_start(&watcher, UV_READABLE, on_readable))
        return 1;
    uv_run(uv_default_loop(), UV_RUN_DEFAULT);
    uv_loop_close(uv_default_loop());
    polylock_queue_free(queue);
    polylock_manager_free(locks);
    polylock_shutdown(2000);
    return 0;
}
