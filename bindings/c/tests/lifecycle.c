/* What becomes of leases: held, extended, lost, released, freed, inspected; and who is told. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"
#include <pthread.h>
#include <stdbool.h>

/* What a callback was called with; a finalizer says that it is over. */
struct told {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int calls, finalized;
    polylock_lease lease;
    polylock_loss reason;
    pthread_t thread;
    bool held;
};

static struct told *new_told(void)
{
    struct told *told = calloc(1, sizeof *told);
    CHECK(told);
    pthread_mutex_init(&told->lock, NULL);
    pthread_cond_init(&told->changed, NULL);
    return told;
}

static void on_lost(polylock_lease lease, polylock_loss reason, void *userdata)
{
    struct told *told = userdata;
    pthread_mutex_lock(&told->lock);
    told->calls++;
    told->lease = lease;
    told->reason = reason;
    told->thread = pthread_self();
    told->held = polylock_lease_is_held(lease); /* calling back is allowed */
    pthread_mutex_unlock(&told->lock);
}

static void finalize(void *userdata)
{
    struct told *told = userdata;
    pthread_mutex_lock(&told->lock);
    told->finalized++;
    pthread_cond_broadcast(&told->changed);
    pthread_mutex_unlock(&told->lock);
}

/* Waits for the finalizer; gives how often the callback was called. */
static int await_finalized(struct told *told)
{
    int calls;
    pthread_mutex_lock(&told->lock);
    while (!told->finalized)
        pthread_cond_wait(&told->changed, &told->lock);
    CHECK(told->finalized == 1);
    calls = told->calls;
    pthread_mutex_unlock(&told->lock);
    return calls;
}

static void free_told(struct told *told)
{
    pthread_cond_destroy(&told->changed);
    pthread_mutex_destroy(&told->lock);
    free(told);
}

static void a_lease_tells_what_it_is(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_lease lease = check_acquire(locks, "invoice:42", 20000, 1), next;
    polylock_outcome outcome = POLYLOCK_OUTCOME_UNKNOWN;
    char token[POLYLOCK_OWNER_TOKEN_SIZE], name[8], little[3] = "##";
    CHECK(polylock_lease_fencing_token(lease) > 0 && polylock_lease_is_held(lease));
    CHECK(polylock_lease_remaining_ms(lease) > 10000 && polylock_lease_remaining_ms(lease) < 20000);
    CHECK(polylock_lease_deadline_unix_ms(lease) > INT64_C(1600000000000));
    CHECK(polylock_lease_owner_token(lease, token, sizeof token) == 40 && strspn(token, "0123456789abcdef") == 40);
    CHECK(polylock_lease_owner_token(lease, NULL, 0) == 40);
    CHECK(polylock_lease_resource(lease, name, sizeof name) == 10 && !strcmp(name, "invoice"));
    CHECK(polylock_lease_resource(lease, little, 1) == 10 && !strcmp(little, "") && little[1] == '#');
    CHECK(polylock_lease_loss(lease) == POLYLOCK_LOSS_NONE);
    CHECK_OK(polylock_extend_ttl(lease, 60000, NULL));
    CHECK(polylock_lease_remaining_ms(lease) > 30000);
    CHECK_OK(polylock_release(lease, &outcome, NULL));
    CHECK(outcome == POLYLOCK_OUTCOME_RELEASED && !polylock_lease_is_held(lease));
    CHECK_OK(polylock_release(lease, &outcome, NULL));
    CHECK(outcome == POLYLOCK_OUTCOME_NOT_HELD && polylock_lease_remaining_ms(lease) == 0.0);
    CHECK_IS(POLYLOCK_ERR_LOST, polylock_extend(lease, NULL));
    next = check_acquire(locks, "invoice:42", 20000, 1);
    CHECK(polylock_lease_fencing_token(next) > polylock_lease_fencing_token(lease));
    CHECK_OK(polylock_lease_free(next));
    CHECK_OK(polylock_lease_free(lease));
    CHECK_OK(polylock_manager_free(locks));
}

static void freeing_a_held_lease_releases_it(void)
{
    polylock_manager locks = check_connect("memory:"), freed;
    polylock_lease lease;
    int i;
    for (i = 0; i < 100; i++)
        CHECK_OK(polylock_lease_free(check_acquire(locks, "r", 60000, 1)));
    /* A lease outlives the handle of its manager. */
    freed = check_connect("memory:");
    lease = check_acquire(freed, "r", 60000, 1);
    CHECK_OK(polylock_manager_free(freed));
    CHECK_OK(polylock_extend(lease, NULL));
    CHECK(polylock_lease_is_held(lease));
    CHECK_OK(polylock_lease_free(lease));
    CHECK_OK(polylock_manager_free(locks));
}

static void an_error_says_what_happened(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_lease lease = check_acquire(locks, "invoice:42", 20000, 1), out = 77;
    polylock_options options = polylock_options_new();
    polylock_error err = 0;
    CHECK_OK(polylock_options_set_wait_ms(options, 10, NULL));
    CHECK_IS(POLYLOCK_ERR_TIMEOUT, polylock_acquire(locks, "invoice:42", options, &out, &err));
    CHECK(polylock_error_is_retryable(err) && !strcmp(polylock_error_resource(err), "invoice:42"));
    check_error(err, POLYLOCK_ERR_TIMEOUT, NULL, "invoice:42");
    CHECK_IS(POLYLOCK_ERR_TIMEOUT, polylock_try_acquire(locks, "invoice:42", 0, &out, &err));
    check_error(err, POLYLOCK_ERR_TIMEOUT, NULL, "invoice:42");
    CHECK_IS(POLYLOCK_ERR_TIMEOUT, polylock_try_acquire(locks, "invoice:42", 0, &out, NULL));
    CHECK(out == 77);
    CHECK_OK(polylock_options_free(options));
    CHECK_OK(polylock_lease_free(lease));
    CHECK_OK(polylock_manager_free(locks));
}

static void a_loss_is_told_once(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_lease lease = check_acquire(locks, "r", 300, 0);
    struct told *told = new_told(), *late = new_told();
    CHECK_OK(polylock_lease_on_lost(lease, on_lost, told, finalize, NULL));
    CHECK(await_finalized(told) == 1);
    CHECK(told->lease == lease && told->reason == POLYLOCK_LOSS_EXPIRED && !told->held);
    CHECK(!pthread_equal(told->thread, pthread_self()));
    CHECK(polylock_lease_loss(lease) == POLYLOCK_LOSS_EXPIRED);
    /* Who asks when it is lost already is told as well, and not from within the call. */
    CHECK_OK(polylock_lease_on_lost(lease, on_lost, late, finalize, NULL));
    CHECK(await_finalized(late) == 1 && pthread_equal(late->thread, told->thread));
    CHECK_OK(polylock_lease_free(lease));
    free_told(told);
    free_told(late);
    CHECK_OK(polylock_manager_free(locks));
}

static void no_loss_is_told_after_a_release(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_lease lease = check_acquire(locks, "r", 60000, 0);
    struct told *released = new_told(), *freed = new_told(), *failed = new_told();
    polylock_loss reason = POLYLOCK_LOSS_TAKEN;
    CHECK_OK(polylock_lease_on_lost(lease, on_lost, released, finalize, NULL));
    CHECK_OK(polylock_release(lease, NULL, NULL));
    CHECK(await_finalized(released) == 0);
    CHECK_OK(polylock_lease_wait_lost(lease, POLYLOCK_FOREVER, &reason, NULL));
    CHECK(reason == POLYLOCK_LOSS_NONE);
    CHECK_OK(polylock_lease_free(lease));
    lease = check_acquire(locks, "r", 60000, 1);
    CHECK_OK(polylock_lease_on_lost(lease, on_lost, freed, finalize, NULL));
    CHECK_OK(polylock_lease_free(lease));
    CHECK(await_finalized(freed) == 0);
    CHECK_IS(POLYLOCK_ERR_INVALID_HANDLE, polylock_lease_on_lost(lease, on_lost, failed, finalize, NULL));
    CHECK(await_finalized(failed) == 0);
    free_told(released);
    free_told(freed);
    free_told(failed);
    CHECK_OK(polylock_manager_free(locks));
}

static void *free_it(void *lease)
{
    CHECK_OK(polylock_lease_free(*(polylock_lease *)lease));
    return NULL;
}

static void waiting_for_a_loss_ends(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_lease lease = check_acquire(locks, "r", 60000, 1);
    polylock_loss reason = POLYLOCK_LOSS_TAKEN;
    pthread_t thread;
    CHECK_IS(POLYLOCK_ERR_TIMEOUT, polylock_lease_wait_lost(lease, 0, &reason, NULL));
    CHECK(reason == POLYLOCK_LOSS_TAKEN);
    CHECK_OK(polylock_lease_free(lease));
    lease = check_acquire(locks, "r", 300, 0);
    CHECK_OK(polylock_lease_wait_lost(lease, 60000, &reason, NULL));
    CHECK(reason == POLYLOCK_LOSS_EXPIRED);
    CHECK_OK(polylock_lease_free(lease));
    /* Freeing the handle from another thread ends the wait: the lease is released. */
    lease = check_acquire(locks, "r", 60000, 1);
    CHECK(!pthread_create(&thread, NULL, free_it, &lease));
    CHECK(polylock_lease_wait_lost(lease, POLYLOCK_FOREVER, &reason, NULL) == POLYLOCK_ERR_INVALID_HANDLE ||
          reason == POLYLOCK_LOSS_NONE);
    pthread_join(thread, NULL);
    CHECK_OK(polylock_manager_free(locks));
}

static void inspection_says_who_holds(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_options options = polylock_options_new();
    polylock_holder holder = 77;
    polylock_lease lease = 0;
    char token[POLYLOCK_OWNER_TOKEN_SIZE];
    CHECK(polylock_capabilities(locks) & POLYLOCK_CAN_INSPECT && polylock_capabilities(locks) & POLYLOCK_CAN_FENCE);
    CHECK(polylock_guarantees(locks) == POLYLOCK_GUARANTEE_FENCED);
    CHECK_OK(polylock_inspect(locks, "r", &holder, NULL));
    CHECK(holder == 0);
    CHECK_OK(polylock_options_set_label(options, "night shift", NULL));
    CHECK_OK(polylock_acquire(locks, "r", options, &lease, NULL));
    CHECK_OK(polylock_inspect_n(locks, "r", 1, &holder, NULL));
    polylock_lease_owner_token(lease, token, sizeof token);
    CHECK(holder && !strcmp(polylock_holder_owner(holder), token));
    CHECK(!strcmp(polylock_holder_label(holder), "night shift"));
    CHECK(polylock_holder_fencing_token(holder) == polylock_lease_fencing_token(lease));
    CHECK(polylock_holder_expires_in_ms(holder) > 10000);
    CHECK_OK(polylock_holder_free(holder));
    CHECK_IS(POLYLOCK_ERR_INVALID_HANDLE, polylock_holder_free(holder));
    CHECK_OK(polylock_lease_free(lease));
    CHECK_OK(polylock_options_free(options));
    CHECK_OK(polylock_manager_free(locks));
}

static void *wait_in_line(void *locks)
{
    polylock_lease lease = 77;
    polylock_error err = 0;
    CHECK_IS(POLYLOCK_ERR_CLOSED, polylock_acquire(*(polylock_manager *)locks, "r", 0, &lease, &err));
    CHECK(lease == 77);
    check_error(err, POLYLOCK_ERR_CLOSED, NULL, "closed");
    return NULL;
}

static void closing_ends_everything(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_lease lease = check_acquire(locks, "r", 60000, 1);
    size_t waiting = 0;
    pthread_t thread;
    CHECK(!pthread_create(&thread, NULL, wait_in_line, &locks));
    while (!waiting)
        CHECK_OK(polylock_waiting(locks, "r", &waiting, NULL));
    CHECK_OK(polylock_close(locks, NULL));
    pthread_join(thread, NULL);
    CHECK(!polylock_lease_is_held(lease));
    CHECK_OK(polylock_close(locks, NULL));
    CHECK_IS(POLYLOCK_ERR_CLOSED, polylock_acquire(locks, "r", 0, &lease, NULL));
    CHECK_IS(POLYLOCK_ERR_CLOSED, polylock_inspect(locks, "r", &lease, NULL));
    CHECK_OK(polylock_lease_free(lease));
    CHECK_OK(polylock_manager_free(locks));
}

int main(void)
{
    static const struct check_case cases[] = {
        CASE(a_lease_tells_what_it_is),
        CASE(freeing_a_held_lease_releases_it),
        CASE(an_error_says_what_happened),
        CASE(a_loss_is_told_once),
        CASE(no_loss_is_told_after_a_release),
        CASE(waiting_for_a_loss_ends),
        CASE(inspection_says_who_holds),
        CASE(closing_ends_everything),
    };
    return RUN("lifecycle", cases);
}
