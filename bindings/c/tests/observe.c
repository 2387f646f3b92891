/* Listing, breaking, metrics and events. */
#include "check.h"

#include <pthread.h>

/* What the callback was told, under its lock. */
struct told {
    pthread_mutex_t lock;
    pthread_cond_t more;
    polylock_event events[16];
    uint64_t tokens[16];
    polylock_loss reasons[16];
    size_t count;
    int finalized;
};

static void on_event(polylock_event event, const char *const *resources, size_t count, uint64_t fencing_token,
                     double duration_ms, polylock_loss reason, const char *error, void *userdata)
{
    struct told *told = userdata;
    CHECK(count == 1 && !strcmp(resources[0], "r") && !error);
    CHECK(event == POLYLOCK_EVENT_CONTENDED ? duration_ms < 0 : duration_ms >= 0);
    pthread_mutex_lock(&told->lock);
    CHECK(told->count < 16);
    told->events[told->count] = event;
    told->tokens[told->count] = fencing_token;
    told->reasons[told->count++] = reason;
    pthread_cond_signal(&told->more);
    pthread_mutex_unlock(&told->lock);
}

static void finalized(void *userdata)
{
    struct told *told = userdata;
    pthread_mutex_lock(&told->lock);
    told->finalized++;
    pthread_cond_signal(&told->more);
    pthread_mutex_unlock(&told->lock);
}

static void wait_for(struct told *told, size_t count, int ended)
{
    pthread_mutex_lock(&told->lock);
    while (told->count < count || told->finalized < ended)
        pthread_cond_wait(&told->more, &told->lock);
    pthread_mutex_unlock(&told->lock);
}

static void lists_and_breaks(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_holder holders[4] = {0, 0, 0, 0};
    polylock_error err = 0;
    size_t count = 99;
    bool broken = true;
    const uint32_t here = POLYLOCK_CAN_LIST | POLYLOCK_CAN_BREAK | POLYLOCK_CAN_SERVE_IN_ORDER;
    CHECK((polylock_capabilities(locks) & here) == here);
    CHECK_OK(polylock_list(locks, "*", holders, 4, &count, NULL));
    CHECK(count == 0 && holders[0] == 0);
    polylock_lease one = check_acquire(locks, "job:1", 60000, 1), two = check_acquire(locks, "job:2", 60000, 1);
    CHECK_OK(polylock_list(locks, "job:*", holders, 4, &count, NULL));
    CHECK(count == 2 && holders[2] == 0);
    CHECK(!strcmp(polylock_holder_resource(holders[0]), "job:1") && !strcmp(polylock_holder_mode(holders[1]), "exclusive"));
    CHECK(polylock_holder_fencing_token(holders[1]) == polylock_lease_fencing_token(two));
    CHECK(polylock_holder_waiting(holders[0]) == 0 && polylock_holder_waiting(0) == -1);
    CHECK(!polylock_holder_resource(0) && !polylock_holder_mode(one));

    uint64_t token = polylock_lease_fencing_token(one);
    CHECK_OK(polylock_break(locks, "job:1", token + 1000, &broken, NULL));
    CHECK(!broken);
    CHECK_OK(polylock_break(locks, "job:1", token, &broken, NULL));
    CHECK(broken && polylock_lease_loss(one) == POLYLOCK_LOSS_TAKEN);
    CHECK_OK(polylock_break_owner(locks, "job:2", polylock_holder_owner(holders[1]), &broken, NULL));
    CHECK(broken);
    CHECK_OK(polylock_list(locks, "job:*", holders + 2, 2, &count, NULL));
    CHECK(count == 0);

    CHECK_IS(POLYLOCK_ERR_INVALID_ARGUMENT, polylock_break(locks, "job:1", 0, &broken, &err));
    check_error(err, POLYLOCK_ERR_INVALID_ARGUMENT, "fencing_token", "positive");
    CHECK_IS(POLYLOCK_ERR_INVALID_ARGUMENT, polylock_break_owner(locks, "job:1", NULL, &broken, &err));
    check_error(err, POLYLOCK_ERR_INVALID_ARGUMENT, "owner", "NULL");
    CHECK_IS(POLYLOCK_ERR_INVALID_ARGUMENT, polylock_list(locks, "*", holders, 0, &count, &err));
    check_error(err, POLYLOCK_ERR_INVALID_ARGUMENT, "capacity", "100,000");
    CHECK_IS(POLYLOCK_ERR_INVALID_ARGUMENT, polylock_list(locks, "", holders, 1, &count, &err));
    check_error(err, POLYLOCK_ERR_INVALID_ARGUMENT, "pattern", "empty");
    CHECK_IS(POLYLOCK_ERR_INVALID_HANDLE, polylock_list(one, "*", holders, 1, &count, NULL));
    for (int i = 0; i < 2; i++)
        CHECK_OK(polylock_holder_free(holders[i]));
    CHECK_OK(polylock_lease_free(one));
    CHECK_OK(polylock_lease_free(two));
    CHECK_OK(polylock_manager_free(locks));
}

static void gives_metrics(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_error err = 0;
    size_t length = 0, again = 0;
    CHECK_OK(polylock_metrics_text(locks, NULL, 0, &length, NULL));
    CHECK(length > 1000);
    char *text = malloc(length + 1);
    memset(text, 'x', length + 1);
    CHECK_OK(polylock_metrics_text(locks, text, length, &again, NULL));
    CHECK(again == length && text[0] == 'x' && text[length] == 'x');
    CHECK_OK(polylock_metrics_text(locks, text, length + 1, &again, NULL));
    CHECK(strlen(text) == length && strstr(text, "# TYPE polylock_lost_total counter\n"));
    free(text);
    CHECK_IS(POLYLOCK_ERR_INVALID_ARGUMENT, polylock_metrics_text(locks, NULL, 0, NULL, &err));
    check_error(err, POLYLOCK_ERR_INVALID_ARGUMENT, "length", "NULL");
    CHECK_OK(polylock_manager_free(locks));
    CHECK_IS(POLYLOCK_ERR_INVALID_HANDLE, polylock_metrics_text(locks, NULL, 0, &length, NULL));
}

static void tells(void)
{
    polylock_manager locks = check_connect("memory:");
    struct told told = {.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER};
    polylock_subscription subscription = 0;
    polylock_error err = 0;
    CHECK_OK(polylock_on_event(locks, on_event, &told, finalized, &subscription, NULL));
    polylock_lease lease = check_acquire(locks, "r", 60000, 1), other = 0, third = 0;
    CHECK_IS(POLYLOCK_ERR_TIMEOUT, polylock_try_acquire(locks, "r", 0, &other, NULL));
    CHECK_OK(polylock_extend(lease, NULL));
    CHECK_OK(polylock_release(lease, NULL, NULL));
    third = check_acquire(locks, "r", 50, 0);
    static const polylock_event expected[] = {POLYLOCK_EVENT_ACQUIRED, POLYLOCK_EVENT_CONTENDED, POLYLOCK_EVENT_EXTENDED,
                                              POLYLOCK_EVENT_RELEASED, POLYLOCK_EVENT_ACQUIRED, POLYLOCK_EVENT_LOST};
    wait_for(&told, 6, 0);
    for (int i = 0; i < 6; i++)
        CHECK(told.events[i] == expected[i]);
    CHECK(told.tokens[0] == polylock_lease_fencing_token(lease) && told.tokens[1] == 0);
    CHECK(told.reasons[5] == POLYLOCK_LOSS_EXPIRED && told.reasons[4] == POLYLOCK_LOSS_NONE);
    CHECK_OK(polylock_subscription_free(subscription));
    CHECK_IS(POLYLOCK_ERR_INVALID_HANDLE, polylock_subscription_free(subscription));
    wait_for(&told, 6, 1);

    /* A subscription that cannot be made is finalized as well; one of a closed manager ends by itself. */
    CHECK_IS(POLYLOCK_ERR_INVALID_ARGUMENT, polylock_on_event(locks, NULL, &told, finalized, &subscription, &err));
    check_error(err, POLYLOCK_ERR_INVALID_ARGUMENT, "callback", "NULL");
    wait_for(&told, 6, 2);
    CHECK_OK(polylock_on_event(locks, on_event, &told, finalized, &subscription, NULL));
    CHECK_OK(polylock_close(locks, NULL));
    wait_for(&told, 6, 3);
    CHECK_OK(polylock_subscription_free(subscription));
    CHECK_IS(POLYLOCK_ERR_CLOSED, polylock_on_event(locks, on_event, &told, finalized, &subscription, NULL));
    wait_for(&told, 6, 4);
    CHECK_OK(polylock_lease_free(lease));
    CHECK_OK(polylock_lease_free(third));
    CHECK_OK(polylock_manager_free(locks));
}

struct once {
    pthread_mutex_t lock;
    pthread_cond_t more;
    polylock_subscription subscription;
    int begun, goes_on, calls, finalized;
};

static void end_of_once(void *userdata)
{
    struct once *once = userdata;
    pthread_mutex_lock(&once->lock);
    once->finalized = 1;
    pthread_cond_broadcast(&once->more);
    pthread_mutex_unlock(&once->lock);
}

/* Waits in its first call, so that the others come together, and has the second be the last. */
static void hear_once(polylock_event event, const char *const *resources, size_t count, uint64_t fencing_token,
                      double duration_ms, polylock_loss reason, const char *error, void *userdata)
{
    struct once *once = userdata;
    (void)event, (void)resources, (void)count, (void)fencing_token, (void)duration_ms, (void)reason, (void)error;
    pthread_mutex_lock(&once->lock);
    once->begun = 1;
    pthread_cond_broadcast(&once->more);
    while (!once->goes_on)
        pthread_cond_wait(&once->more, &once->lock);
    if (++once->calls == 2)
        CHECK_OK(polylock_subscription_free(once->subscription));
    pthread_mutex_unlock(&once->lock);
}

static void none_is_told_after_the_end(void)
{
    polylock_manager locks = check_connect("memory:");
    struct once once = {.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER};
    CHECK_OK(polylock_on_event(locks, hear_once, &once, end_of_once, &once.subscription, NULL));
    for (int i = 0; i < 10; i++) {
        polylock_lease lease = check_acquire(locks, "r", 60000, 1);
        CHECK_OK(polylock_release(lease, NULL, NULL));
        CHECK_OK(polylock_lease_free(lease));
        pthread_mutex_lock(&once.lock);
        while (!once.begun)
            pthread_cond_wait(&once.more, &once.lock);
        pthread_mutex_unlock(&once.lock);
    }
    pthread_mutex_lock(&once.lock);
    once.goes_on = 1;
    pthread_cond_broadcast(&once.more);
    while (!once.finalized)
        pthread_cond_wait(&once.more, &once.lock);
    CHECK(once.calls == 2);
    pthread_mutex_unlock(&once.lock);
    CHECK_OK(polylock_manager_free(locks));
}

static void claims_are_told(void)
{
    CHECK(strstr(polylock_claim_redis(), "redis.call('HGET', KEYS[1], 'token')"));
    CHECK(strstr(polylock_claim_postgres(), "INSERT INTO polylock_claim"));
    CHECK(strstr(polylock_claim_postgres_table(), "CREATE TABLE IF NOT EXISTS polylock_claim"));
    CHECK(polylock_claim_redis() == polylock_claim_redis());
}

/* A store that remembers the greatest token, and how it goes wrong. */
struct store {
    uint64_t last;
    enum { RIGHT, CARELESS, STRICT } kind;
};

static int write_to(uint64_t fencing_token, void *userdata)
{
    struct store *store = userdata;
    if (store->kind != CARELESS && fencing_token < store->last)
        return 1;
    if (store->kind == STRICT && fencing_token == store->last)
        return 1;
    store->last = fencing_token;
    return 0;
}

static void zombies_are_found_out(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_error err = 0;
    struct store right = {0, RIGHT}, careless = {0, CARELESS}, strict = {0, STRICT};
    CHECK_OK(polylock_check_refuses_zombies(locks, "right", write_to, &right, NULL));
    CHECK(polylock_check_refuses_zombies(locks, "careless", write_to, &careless, &err) == POLYLOCK_ERR_INTERNAL);
    CHECK(strstr(polylock_error_message(err), "was taken after"));
    polylock_error_free(err);
    err = 0;
    CHECK(polylock_check_refuses_zombies(locks, "strict", write_to, &strict, &err) == POLYLOCK_ERR_INTERNAL);
    CHECK(strstr(polylock_error_message(err), "refused by itself"));
    polylock_error_free(err);
    CHECK(polylock_check_refuses_zombies(locks, "r", NULL, NULL, NULL) == POLYLOCK_ERR_INVALID_ARGUMENT);
    CHECK(polylock_check_refuses_zombies(0, "r", write_to, &right, NULL) == POLYLOCK_ERR_INVALID_HANDLE);
    CHECK_OK(polylock_manager_free(locks));
}

int main(void)
{
    lists_and_breaks();
    gives_metrics();
    tells();
    none_is_told_after_the_end();
    claims_are_told();
    zombies_are_found_out();
    CHECK_OK(polylock_shutdown(2000));
    printf("observe: 6 passed, 0 failed\n");
    return 0;
}
