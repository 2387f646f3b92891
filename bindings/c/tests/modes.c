/* Shared, semaphores and several resources at once, in every form of acquiring, on every backend that has them. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"
#include <poll.h>

static const char *url;
static char prefix[64];

/* A name of this run on this backend. */
static const char *named(const char *word)
{
    static char names[8][96];
    static int next;
    char *name = names[next++ % 8];
    snprintf(name, sizeof names[0], "%s:%s", prefix, word);
    return name;
}

static polylock_options how(polylock_status (*set)(polylock_options, polylock_error *))
{
    polylock_options options = polylock_options_new();
    CHECK_OK(polylock_options_set_wait_ms(options, 60000, NULL));
    if (set)
        CHECK_OK(set(options, NULL));
    return options;
}

/* The lease of a future, which a queue reports if there is one. */
static polylock_lease won(polylock_future future, polylock_queue queue)
{
    polylock_future ready = 0;
    polylock_lease lease = 0;
    size_t count = 0;
    while (queue && !count) {
        struct pollfd watched = {0, POLLIN, 0};
        watched.fd = polylock_queue_fd(queue);
        CHECK(poll(&watched, 1, 60000) == 1);
        CHECK_OK(polylock_queue_turn(queue, &ready, 1, &count, NULL));
    }
    CHECK(!queue || ready == future);
    CHECK_OK(polylock_future_take_lease(future, &lease, NULL));
    CHECK_OK(polylock_future_free(future));
    return lease;
}

static int can(polylock_manager locks, uint32_t what)
{
    if (polylock_capabilities(locks) & what)
        return 1;
    CHECK_OK(polylock_manager_free(locks));
    return 0;
}

static void waiters_are_served_in_order(void)
{
    polylock_manager locks = check_connect(url), other = check_connect(url);
    polylock_options fair = how(0);
    polylock_lease holder = 0, lease = 0;
    polylock_future future = 0;
    const char *name = named("line");
    CHECK_OK(polylock_options_set_fair(fair, true, NULL));
    if (!(polylock_capabilities(locks) & POLYLOCK_CAN_SERVE_IN_ORDER)) {
        CHECK_IS(POLYLOCK_ERR_UNSUPPORTED, polylock_acquire(locks, name, fair, &lease, NULL));
    } else {
        CHECK_OK(polylock_acquire(locks, name, fair, &holder, NULL));
        CHECK_OK(polylock_acquire_start(other, name, fair, 0, &future, NULL));
        CHECK_IS(POLYLOCK_ERR_TIMEOUT, polylock_try_acquire(locks, name, fair, &lease, NULL));
        CHECK_OK(polylock_release(holder, NULL, NULL));
        CHECK_OK(polylock_lease_free(holder));
        lease = won(future, 0);
        CHECK(polylock_lease_is_held(lease));
        CHECK_OK(polylock_lease_free(lease));
    }
    CHECK_OK(polylock_options_free(fair));
    CHECK_OK(polylock_manager_free(locks));
    CHECK_OK(polylock_manager_free(other));
}

static void readers_share_and_a_writer_is_alone(void)
{
    polylock_manager locks = check_connect(url);
    polylock_options share = how(polylock_options_set_shared), alone = how(polylock_options_set_exclusive);
    polylock_lease one = 0, two = 0, three = 0, writer = 0;
    polylock_future future = 0;
    polylock_queue queue = 0;
    const char *name = named("catalogue");
    if (!can(locks, POLYLOCK_CAN_SHARE))
        return;
    CHECK_OK(polylock_acquire(locks, name, share, &one, NULL));
    CHECK_OK(polylock_try_acquire_n(locks, name, strlen(name), share, &two, NULL));
    CHECK_OK(polylock_queue_new(&queue, NULL));
    CHECK_OK(polylock_acquire_start(locks, name, share, queue, &future, NULL));
    three = won(future, queue);
    CHECK(polylock_lease_mode(one) == POLYLOCK_MODE_SHARED && polylock_lease_mode(three) == POLYLOCK_MODE_SHARED);
    CHECK(polylock_lease_is_held(one) && polylock_lease_is_held(two) && polylock_lease_is_held(three));
    CHECK_IS(POLYLOCK_ERR_TIMEOUT, polylock_try_acquire(locks, name, alone, &writer, NULL));
    CHECK_OK(polylock_acquire_start(locks, name, alone, 0, &future, NULL));
    CHECK_OK(polylock_release(one, NULL, NULL));
    CHECK_OK(polylock_lease_free(two));
    CHECK_OK(polylock_release(three, NULL, NULL));
    writer = won(future, 0);
    CHECK(polylock_lease_mode(writer) == POLYLOCK_MODE_EXCLUSIVE);
    CHECK(!strcmp(polylock_mode_name(polylock_lease_mode(writer)), "exclusive"));
    CHECK_IS(POLYLOCK_ERR_TIMEOUT, polylock_try_acquire(locks, name, share, &two, NULL));
    CHECK_OK(polylock_release(writer, NULL, NULL));
    CHECK_OK(polylock_lease_free(one));
    CHECK_OK(polylock_lease_free(three));
    CHECK_OK(polylock_lease_free(writer));
    CHECK_OK(polylock_queue_free(queue));
    CHECK_OK(polylock_options_free(share));
    CHECK_OK(polylock_options_free(alone));
    CHECK_OK(polylock_close(locks, NULL));
    CHECK_OK(polylock_manager_free(locks));
}

static void so_many_permits_and_no_more(void)
{
    enum { PERMITS = 3 };
    polylock_manager locks = check_connect(url);
    polylock_options permit = how(NULL);
    polylock_lease leases[PERMITS], more = 0;
    polylock_future future = 0;
    polylock_error err = 0;
    const char *name = named("gateway");
    int i;
    if (!can(locks, POLYLOCK_CAN_COUNT))
        return;
    CHECK_OK(polylock_options_set_permit(permit, PERMITS, NULL));
    for (i = 0; i < PERMITS; i++)
        CHECK_OK(polylock_acquire(locks, name, permit, &leases[i], NULL));
    CHECK(polylock_lease_mode(leases[0]) == POLYLOCK_MODE_PERMIT);
    CHECK_IS(POLYLOCK_ERR_TIMEOUT, polylock_try_acquire(locks, name, permit, &more, NULL));
    CHECK_OK(polylock_acquire_start(locks, name, permit, 0, &future, NULL));
    CHECK_OK(polylock_release(leases[1], NULL, NULL));
    more = won(future, 0);
    CHECK_OK(polylock_lease_free(more));
    for (i = 0; i < PERMITS; i++)
        CHECK_OK(polylock_lease_free(leases[i]));
    CHECK_OK(polylock_options_set_permit(permit, 0, NULL));
    CHECK_IS(POLYLOCK_ERR_INVALID_ARGUMENT, polylock_acquire(locks, name, permit, &more, &err));
    check_error(err, POLYLOCK_ERR_INVALID_ARGUMENT, "of", "65,535");
    CHECK_OK(polylock_options_free(permit));
    CHECK_OK(polylock_close(locks, NULL));
    CHECK_OK(polylock_manager_free(locks));
}

static void all_of_several_or_none(void)
{
    polylock_manager locks = check_connect(url);
    polylock_options options = how(NULL), shared = how(polylock_options_set_shared);
    const char *both[2], *reversed[2], *twice[2];
    char text[128] = "";
    polylock_lease first = 0, lease = 0, none = 77;
    polylock_future future = 0;
    polylock_queue queue = 0;
    polylock_error err = 0;
    if (!can(locks, POLYLOCK_CAN_TAKE_SEVERAL))
        return;
    both[0] = reversed[1] = twice[0] = twice[1] = named("account:1");
    both[1] = reversed[0] = named("account:2");
    CHECK_OK(polylock_acquire(locks, both[1], options, &first, NULL));
    CHECK_IS(POLYLOCK_ERR_TIMEOUT, polylock_try_acquire_all(locks, both, 2, options, &none, &err));
    CHECK_OK(polylock_error_free(err));
    CHECK_OK(polylock_acquire(locks, both[0], options, &lease, NULL)); /* was left free */
    CHECK_OK(polylock_release(lease, NULL, NULL));
    CHECK_OK(polylock_lease_free(lease));
    CHECK_OK(polylock_queue_new(&queue, NULL));
    CHECK_OK(polylock_acquire_all_start(locks, reversed, 2, options, queue, &future, NULL));
    CHECK_OK(polylock_release(first, NULL, NULL));
    lease = won(future, queue);
    CHECK(polylock_lease_resource_count(lease) == 2 && polylock_lease_resource_count(first) == 1);
    CHECK(polylock_lease_resource_at(lease, 1, text, sizeof text) == strlen(both[1]) && !strcmp(text, both[1]));
    CHECK(polylock_lease_resource_at(lease, 2, text, sizeof text) == 0);
    CHECK_IS(POLYLOCK_ERR_TIMEOUT, polylock_try_acquire(locks, both[0], 0, &none, NULL));
    CHECK_OK(polylock_release(lease, NULL, NULL));
    CHECK_OK(polylock_lease_free(lease));
    CHECK_OK(polylock_acquire_all(locks, both, 2, options, &lease, NULL));
    CHECK_OK(polylock_lease_free(lease));
    CHECK_IS(POLYLOCK_ERR_INVALID_ARGUMENT, polylock_acquire_all(locks, twice, 2, options, &none, &err));
    check_error(err, POLYLOCK_ERR_INVALID_ARGUMENT, "resources", "twice");
    CHECK_IS(POLYLOCK_ERR_INVALID_ARGUMENT, polylock_acquire_all(locks, both, 0, options, &none, NULL));
    CHECK_IS(POLYLOCK_ERR_INVALID_ARGUMENT, polylock_acquire_all(locks, NULL, 2, options, &none, NULL));
    CHECK_IS(POLYLOCK_ERR_INVALID_ARGUMENT, polylock_acquire_all(locks, both, 2, shared, &none, &err));
    check_error(err, POLYLOCK_ERR_INVALID_ARGUMENT, "resources", "exclusively");
    CHECK(none == 77);
    CHECK_OK(polylock_lease_free(first));
    CHECK_OK(polylock_queue_free(queue));
    CHECK_OK(polylock_options_free(options));
    CHECK_OK(polylock_options_free(shared));
    CHECK_OK(polylock_close(locks, NULL));
    CHECK_OK(polylock_manager_free(locks));
}

int main(void)
{
    static const struct check_case cases[] = {
        CASE(readers_share_and_a_writer_is_alone),
        CASE(so_many_permits_and_no_more),
        CASE(all_of_several_or_none),
        CASE(waiters_are_served_in_order),
    };
    const size_t count = sizeof cases / sizeof cases[0];
    const char *given = getenv("POLYLOCK_TEST_URLS");
    char urls[2048], *rest;
    int backend = 0;
    size_t i;
    snprintf(urls, sizeof urls, "%s", given ? given : "memory:");
    check_begin();
    for (url = strtok_r(urls, " ", &rest); url; url = strtok_r(NULL, " ", &rest), backend++) {
        snprintf(prefix, sizeof prefix, "c-modes-%ld-%d", (long)getpid(), backend);
        for (i = 0; i < count; i++) {
            fprintf(stderr, "%s on %.20s\n", cases[i].name, url);
            cases[i].run();
        }
    }
    return check_end("modes", (int)count * backend);
}
