/* Futures on the engine and on an event loop of poll(2). */
#define _POSIX_C_SOURCE 200809L
#include "check.h"
#include <poll.h>
#include <semaphore.h>

struct called {
    sem_t ready, finalized;
    polylock_future future;
};

static void on_ready(polylock_future future, void *userdata)
{
    struct called *called = userdata;
    called->future = future;
    sem_post(&called->ready);
}

static void finalize(void *userdata)
{
    sem_post(&((struct called *)userdata)->finalized);
}

/* The next future that a queue reports; waits for it at the descriptor. */
static polylock_future next_ready(polylock_queue queue)
{
    polylock_future ready = 0;
    size_t count = 0;
    while (!count) {
        struct pollfd watched = {0, POLLIN, 0};
        watched.fd = polylock_queue_fd(queue);
        CHECK(watched.fd >= 0 && poll(&watched, 1, 60000) == 1);
        CHECK_OK(polylock_queue_turn(queue, &ready, 1, &count, NULL));
    }
    return ready;
}

/* Nothing is reported, also by turning once more. */
static void none_ready(polylock_queue queue)
{
    polylock_future ready[4];
    size_t count = 77;
    CHECK_OK(polylock_queue_turn(queue, ready, 4, &count, NULL));
    CHECK(count == 0);
}

static void a_future_brings_a_lease(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_lease held = check_acquire(locks, "r", 60000, 1), lease = 77;
    polylock_future future = 0, release = 0, extend = 0, inspect = 0, close = 0;
    polylock_outcome outcome = POLYLOCK_OUTCOME_UNKNOWN;
    polylock_holder holder = 0;
    polylock_error err = 0;
    CHECK_OK(polylock_acquire_start(locks, "r", 0, 0, &future, NULL));
    CHECK(!polylock_future_is_ready(future));
    CHECK_IS(POLYLOCK_ERR_TIMEOUT, polylock_future_wait(future, 20, &err));
    check_error(err, POLYLOCK_ERR_TIMEOUT, NULL, "way");
    CHECK_OK(polylock_release_start(held, 0, &release, NULL));
    CHECK_OK(polylock_future_take_outcome(release, &outcome, NULL));
    CHECK(outcome == POLYLOCK_OUTCOME_RELEASED);
    CHECK_OK(polylock_future_wait(future, POLYLOCK_FOREVER, NULL));
    CHECK(polylock_future_is_ready(future));
    CHECK_IS(POLYLOCK_ERR_INVALID_ARGUMENT, polylock_future_take(future, &err)); /* of another operation */
    check_error(err, POLYLOCK_ERR_INVALID_ARGUMENT, "future", "another");
    CHECK_OK(polylock_future_take_lease(future, &lease, NULL));
    CHECK(polylock_lease_is_held(lease));
    CHECK_IS(POLYLOCK_ERR_INVALID_ARGUMENT, polylock_future_take_lease(future, &lease, &err));
    check_error(err, POLYLOCK_ERR_INVALID_ARGUMENT, "future", "taken");
    CHECK_OK(polylock_extend_ttl_start(lease, 90000, 0, &extend, NULL));
    CHECK_OK(polylock_future_take(extend, NULL));
    CHECK(polylock_lease_remaining_ms(lease) > 60000);
    CHECK_OK(polylock_inspect_start(locks, "r", 0, &inspect, NULL));
    CHECK_OK(polylock_future_take_holder(inspect, &holder, NULL));
    CHECK(polylock_holder_fencing_token(holder) == polylock_lease_fencing_token(lease));
    CHECK_OK(polylock_holder_free(holder));
    CHECK_OK(polylock_close_start(locks, 0, &close, NULL));
    CHECK_OK(polylock_future_take(close, NULL));
    CHECK(!polylock_lease_is_held(lease));
    CHECK_OK(polylock_future_free(future));
    CHECK_IS(POLYLOCK_ERR_INVALID_HANDLE, polylock_future_free(future));
    CHECK_OK(polylock_future_free(release));
    CHECK_OK(polylock_future_free(extend));
    CHECK_OK(polylock_future_free(inspect));
    CHECK_OK(polylock_future_free(close));
    CHECK_OK(polylock_lease_free(lease));
    CHECK_OK(polylock_lease_free(held));
    CHECK_OK(polylock_manager_free(locks));
}

static void what_is_not_taken_is_given_back(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_lease lease = 77;
    polylock_future future = 0;
    int i;
    for (i = 0; i < 60; i++) {
        CHECK_OK(polylock_acquire_start(locks, "r", 0, 0, &future, NULL));
        if (i % 3 == 0) /* won, and not taken */
            CHECK_OK(polylock_future_wait(future, POLYLOCK_FOREVER, NULL));
        if (i % 2) {
            CHECK_OK(polylock_future_cancel(future));
            CHECK(polylock_future_is_ready(future));
            CHECK_IS(POLYLOCK_ERR_CLOSED, polylock_future_take_lease(future, &lease, NULL));
            CHECK(lease == 77);
        }
        CHECK_OK(polylock_future_free(future));
    }
    CHECK_OK(polylock_lease_free(check_acquire(locks, "r", 60000, 1)));
    CHECK_OK(polylock_manager_free(locks));
}

static void a_bad_argument_shows_in_the_future(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_future future = 0;
    polylock_lease lease = 77;
    polylock_error err = 0;
    CHECK_OK(polylock_acquire_start(locks, "", 0, 0, &future, NULL));
    CHECK_IS(POLYLOCK_ERR_INVALID_ARGUMENT, polylock_future_take_lease(future, &lease, &err));
    check_error(err, POLYLOCK_ERR_INVALID_ARGUMENT, "resource", "empty");
    CHECK_OK(polylock_future_free(future));
    CHECK_OK(polylock_manager_free(locks));
}

static void a_callback_tells_the_end(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_lease held = check_acquire(locks, "r", 60000, 1), lease = 0;
    polylock_future future = 0;
    struct called called, second, freed;
    polylock_error err = 0;
    sem_init(&called.ready, 0, 0), sem_init(&called.finalized, 0, 0);
    sem_init(&second.ready, 0, 0), sem_init(&second.finalized, 0, 0);
    sem_init(&freed.ready, 0, 0), sem_init(&freed.finalized, 0, 0);
    CHECK_OK(polylock_acquire_start(locks, "r", 0, 0, &future, NULL));
    CHECK_OK(polylock_future_on_ready(future, on_ready, &called, finalize, NULL));
    CHECK_IS(POLYLOCK_ERR_INVALID_ARGUMENT, polylock_future_on_ready(future, on_ready, &second, finalize, &err));
    check_error(err, POLYLOCK_ERR_INVALID_ARGUMENT, "callback", "already");
    sem_wait(&second.finalized);
    CHECK_OK(polylock_release(held, NULL, NULL));
    sem_wait(&called.ready);
    sem_wait(&called.finalized);
    CHECK(called.future == future && polylock_future_is_ready(future));
    CHECK_OK(polylock_future_on_ready(future, on_ready, &second, finalize, NULL)); /* when it is ready: at once */
    sem_wait(&second.ready);
    sem_wait(&second.finalized);
    CHECK_OK(polylock_future_take_lease(future, &lease, NULL));
    CHECK_OK(polylock_future_free(future));
    CHECK_OK(polylock_acquire_start(locks, "r", 0, 0, &future, NULL)); /* waits behind the lease */
    CHECK_OK(polylock_future_on_ready(future, on_ready, &freed, finalize, NULL));
    CHECK_OK(polylock_future_free(future));
    sem_wait(&freed.finalized);
    CHECK_OK(polylock_lease_free(lease));
    CHECK_OK(polylock_lease_free(held));
    CHECK_OK(polylock_manager_free(locks));
    sem_destroy(&called.ready), sem_destroy(&called.finalized);
    sem_destroy(&second.ready), sem_destroy(&second.finalized);
    sem_destroy(&freed.ready), sem_destroy(&freed.finalized);
}

static sem_t goes_on;

static void hold_up(polylock_future future, void *userdata)
{
    on_ready(future, userdata);
    sem_wait(&goes_on);
}

/* Neither of a future that is not over nor of one whose callback waits for others. */
static void no_callback_begins_after_the_free(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_lease held = check_acquire(locks, "r", 60000, 1);
    polylock_future busy, waits, ready;
    struct called first = {0}, second = {0}, third = {0};
    struct called *called[] = {&first, &second, &third};
    int i, value;
    sem_init(&goes_on, 0, 0);
    for (i = 0; i < 3; i++)
        sem_init(&called[i]->ready, 0, 0), sem_init(&called[i]->finalized, 0, 0);
    CHECK_OK(polylock_acquire_start(locks, "other", 0, 0, &busy, NULL));
    CHECK_OK(polylock_future_on_ready(busy, hold_up, &first, finalize, NULL));
    sem_wait(&first.ready); /* the callback thread is in it */
    CHECK_OK(polylock_inspect_start(locks, "r", 0, &ready, NULL));
    CHECK_OK(polylock_future_wait(ready, POLYLOCK_FOREVER, NULL));
    CHECK_OK(polylock_future_on_ready(ready, on_ready, &second, finalize, NULL));
    CHECK_OK(polylock_acquire_start(locks, "r", 0, 0, &waits, NULL));
    CHECK_OK(polylock_future_on_ready(waits, on_ready, &third, finalize, NULL));
    CHECK_OK(polylock_future_free(ready));
    CHECK_OK(polylock_future_free(waits));
    sem_post(&goes_on);
    for (i = 0; i < 3; i++) {
        sem_wait(&called[i]->finalized);
        CHECK(!sem_getvalue(&called[i]->ready, &value) && value == 0);
        sem_destroy(&called[i]->ready), sem_destroy(&called[i]->finalized);
    }
    CHECK_OK(polylock_future_free(busy));
    CHECK_OK(polylock_lease_free(held));
    CHECK_OK(polylock_manager_free(locks));
    sem_destroy(&goes_on);
}

static void a_queue_reports_each_future_once(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_queue queue = 0;
    polylock_future futures[3] = {0, 0, 0};
    polylock_future ready = 0, early = 0;
    polylock_lease leases[3] = {0, 0, 0};
    int i;
    CHECK_OK(polylock_queue_new(&queue, NULL));
    none_ready(queue);
    for (i = 0; i < 3; i++)
        CHECK_OK(polylock_acquire_start(locks, "r", 0, queue, &futures[i], NULL));
    for (i = 0; i < 3; i++) {
        polylock_future release = 0;
        CHECK((early ? early : next_ready(queue)) == futures[i]);
        early = 0;
        CHECK_OK(polylock_future_take_lease(futures[i], &leases[i], NULL));
        CHECK(i == 0 || polylock_lease_fencing_token(leases[i]) > polylock_lease_fencing_token(leases[i - 1]));
        none_ready(queue);
        CHECK_OK(polylock_release_start(leases[i], queue, &release, NULL));
        CHECK_OK(polylock_future_wait(release, POLYLOCK_FOREVER, NULL));
        CHECK_OK(polylock_future_take_outcome(release, NULL, NULL));
        /* Whichever ends first, the release or the acquisition that it lets through, both are reported. */
        ready = next_ready(queue);
        if (ready != release) {
            early = ready;
            CHECK(next_ready(queue) == release);
        }
        CHECK_OK(polylock_future_free(release));
    }
    none_ready(queue);
    for (i = 0; i < 3; i++) {
        CHECK_OK(polylock_future_free(futures[i]));
        CHECK_OK(polylock_lease_free(leases[i]));
    }
    CHECK_OK(polylock_queue_free(queue));
    CHECK_IS(POLYLOCK_ERR_INVALID_HANDLE, polylock_queue_free(queue));
    CHECK_OK(polylock_manager_free(locks));
}

static void more_ready_than_there_is_room_for(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_queue queue = 0;
    polylock_future futures[5], got[5];
    int i;
    CHECK_OK(polylock_queue_new(&queue, NULL));
    for (i = 0; i < 5; i++) {
        char name[] = "r0";
        name[1] = (char)('0' + i);
        CHECK_OK(polylock_acquire_start(locks, name, 0, queue, &futures[i], NULL));
    }
    for (i = 0; i < 5; i++)
        got[i] = next_ready(queue); /* room for one at a time */
    CHECK(!memcmp(got, futures, sizeof got));
    none_ready(queue);
    for (i = 0; i < 5; i++)
        CHECK_OK(polylock_future_free(futures[i]));
    CHECK_OK(polylock_queue_free(queue));
    CHECK_OK(polylock_manager_free(locks));
}

static void a_queue_forgets_what_is_cancelled(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_lease held = check_acquire(locks, "r", 60000, 1), lease = 77;
    polylock_queue queue = 0;
    polylock_future waits = 0, won = 0, left = 0;
    polylock_error err = 0;
    CHECK_OK(polylock_queue_new(&queue, NULL));
    CHECK_OK(polylock_acquire_start(locks, "r", 0, queue, &waits, NULL));
    CHECK_OK(polylock_acquire_start(locks, "other", 0, queue, &won, NULL));
    CHECK_OK(polylock_future_cancel(waits));
    CHECK_OK(polylock_future_free(won));
    CHECK_IS(POLYLOCK_ERR_CLOSED, polylock_future_take_lease(waits, &lease, NULL));
    none_ready(queue);
    CHECK_OK(polylock_lease_free(check_acquire(locks, "other", 60000, 1)));
    /* Futures outlive their queue, cancelled. */
    CHECK_OK(polylock_acquire_start(locks, "r", 0, queue, &left, NULL));
    CHECK_OK(polylock_queue_free(queue));
    CHECK_IS(POLYLOCK_ERR_CLOSED, polylock_future_take_lease(left, &lease, &err));
    check_error(err, POLYLOCK_ERR_CLOSED, NULL, "cancelled");
    CHECK_OK(polylock_future_free(left));
    CHECK_OK(polylock_future_free(waits));
    CHECK_OK(polylock_lease_free(held));
    CHECK_OK(polylock_manager_free(locks));
}

static void shutdown_ends_futures(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_lease held = check_acquire(locks, "r", 60000, 1), lease = 77;
    polylock_future future = 0;
    CHECK_OK(polylock_acquire_start(locks, "r", 0, 0, &future, NULL));
    CHECK_OK(polylock_shutdown(5000));
    CHECK(!polylock_lease_is_held(held));
    CHECK_IS(POLYLOCK_ERR_CLOSED, polylock_future_take_lease(future, &lease, NULL));
    CHECK_OK(polylock_future_free(future));
    CHECK_OK(polylock_lease_free(held));
    CHECK_OK(polylock_manager_free(locks));
    /* A new manager starts a new engine. */
    locks = check_connect("memory:");
    CHECK_OK(polylock_acquire_start(locks, "r", 0, 0, &future, NULL));
    CHECK_OK(polylock_future_take_lease(future, &lease, NULL));
    CHECK_OK(polylock_future_free(future));
    CHECK_OK(polylock_lease_free(lease));
    CHECK_OK(polylock_manager_free(locks));
}

int main(void)
{
    static const struct check_case cases[] = {
        CASE(a_future_brings_a_lease),
        CASE(what_is_not_taken_is_given_back),
        CASE(a_bad_argument_shows_in_the_future),
        CASE(a_callback_tells_the_end),
        CASE(no_callback_begins_after_the_free),
        CASE(a_queue_reports_each_future_once),
        CASE(more_ready_than_there_is_room_for),
        CASE(a_queue_forgets_what_is_cancelled),
        CASE(shutdown_ends_futures),
    };
    return RUN("futures", cases);
}
