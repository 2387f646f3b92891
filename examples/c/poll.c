/*
 * Locks on an event loop of poll(2): `poll [URL]`. Three operations on the same resource wait at the same time, on one
 * thread; each holds the lock for a moment and passes it on.
 */
#include <poll.h>
#include <polylock.h>
#include <stdio.h>

enum { WORKERS = 3 };

/* What a worker waits for: its lease, or the end of its release. */
struct worker {
    polylock_lease lease;
    polylock_future future;
};

static int failed(const char *what, polylock_error err)
{
    fprintf(stderr, "%s: %s\n", what, polylock_error_message(err));
    return 1;
}

int main(int argc, char **argv)
{
    const char *url = argc > 1 ? argv[1] : "memory:";
    struct worker workers[WORKERS] = {{0, 0}, {0, 0}, {0, 0}};
    polylock_manager locks = 0;
    polylock_queue queue = 0;
    polylock_error err = 0;
    int i, left = WORKERS;

    if (polylock_connect(url, 0, &locks, &err) != POLYLOCK_OK || polylock_queue_new(&queue, &err) != POLYLOCK_OK)
        return failed("start", err);
    for (i = 0; i < WORKERS; i++)
        if (polylock_acquire_start(locks, "invoice:42", 0, queue, &workers[i].future, &err) != POLYLOCK_OK)
            return failed("acquire", err);

    while (left > 0) {
        struct pollfd watched = {0, POLLIN, 0};
        polylock_future ready[8];
        size_t count = 0, r;
        watched.fd = polylock_queue_fd(queue);
        if (poll(&watched, 1, -1) < 0)
            return 1;
        if (polylock_queue_turn(queue, ready, 8, &count, &err) != POLYLOCK_OK)
            return failed("turn", err);
        for (r = 0; r < count; r++) {
            struct worker *worker = workers;
            while (worker->future != ready[r])
                worker++;
            if (!worker->lease) {
                if (polylock_future_take_lease(ready[r], &worker->lease, &err) != POLYLOCK_OK)
                    return failed("acquire", err);
                printf("worker %d holds, fencing token %llu\n", (int)(worker - workers),
                       (unsigned long long)polylock_lease_fencing_token(worker->lease));
                if (polylock_release_start(worker->lease, queue, &worker->future, &err) != POLYLOCK_OK)
                    return failed("release", err);
            } else {
                if (polylock_future_take_outcome(ready[r], NULL, &err) != POLYLOCK_OK)
                    return failed("release", err);
                polylock_lease_free(worker->lease);
                left--;
            }
            polylock_future_free(ready[r]);
        }
    }
    polylock_queue_free(queue);
    polylock_manager_free(locks);
    polylock_shutdown(2000);
    return 0;
}
