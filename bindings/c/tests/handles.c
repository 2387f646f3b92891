/* Misuse: every function gets handles that are not its own, and NULL where something must be given. */
#include "check.h"
#include <math.h>

enum { BAD = 12 };

/* Handles that are of no object of any kind, or of another kind than the one that is left out. */
static size_t bad_handles(uint64_t *bad, uint64_t good, uint64_t other)
{
    size_t n = 0;
    polylock_options freed = polylock_options_new();
    CHECK_OK(polylock_options_free(freed));
    bad[n++] = 0;
    bad[n++] = freed;
    bad[n++] = other;
    bad[n++] = 1;
    bad[n++] = UINT64_MAX;
    bad[n++] = INT64_MAX;
    bad[n++] = UINT64_C(0xdeadbeefdeadbeef);
    bad[n++] = good ^ UINT64_C(1) << 63;
    bad[n++] = good ^ 1;
    bad[n++] = good ^ UINT64_C(1) << 30;
    bad[n++] = good ^ UINT64_C(1) << 50;
    bad[n++] = good ^ UINT64_C(1) << 60;
    CHECK(n == BAD);
    return n;
}

#define REFUSED(call)                                                                                                  \
    do {                                                                                                               \
        polylock_error err = 0;                                                                                        \
        CHECK_IS(POLYLOCK_ERR_INVALID_HANDLE, call);                                                                   \
        check_error(err, POLYLOCK_ERR_INVALID_HANDLE, NULL, "handle");                                                 \
    } while (0)

#define NOT_GIVEN(named, call)                                                                                         \
    do {                                                                                                               \
        polylock_error err = 0;                                                                                        \
        CHECK_IS(POLYLOCK_ERR_INVALID_ARGUMENT, call);                                                                 \
        check_error(err, POLYLOCK_ERR_INVALID_ARGUMENT, named, named);                                                 \
    } while (0)

static void managers(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_options options = polylock_options_new();
    uint64_t bad[BAD], out = 77;
    size_t i, count = 77, n = bad_handles(bad, locks, options);
    for (i = 0; i < n; i++) {
        REFUSED(polylock_acquire(bad[i], "r", 0, &out, &err));
        REFUSED(polylock_acquire_n(bad[i], "r", 1, 0, &out, &err));
        REFUSED(polylock_try_acquire(bad[i], "r", 0, &out, &err));
        REFUSED(polylock_try_acquire_n(bad[i], "r", 1, 0, &out, &err));
        REFUSED(polylock_inspect(bad[i], "r", &out, &err));
        REFUSED(polylock_inspect_n(bad[i], "r", 1, &out, &err));
        REFUSED(polylock_waiting(bad[i], "r", &count, &err));
        REFUSED(polylock_close(bad[i], &err));
        REFUSED(polylock_acquire_start(bad[i], "r", 0, 0, &out, &err));
        REFUSED(polylock_acquire_start_n(bad[i], "r", 1, 0, 0, &out, &err));
        REFUSED(polylock_inspect_start(bad[i], "r", 0, &out, &err));
        REFUSED(polylock_close_start(bad[i], 0, &out, &err));
        CHECK(polylock_capabilities(bad[i]) == 0 && polylock_guarantees(bad[i]) == POLYLOCK_GUARANTEE_NONE);
        if (bad[i])
            CHECK_IS(POLYLOCK_ERR_INVALID_HANDLE, polylock_manager_free(bad[i]));
    }
    CHECK(out == 77 && count == 77);
    CHECK_OK(polylock_manager_free(0));
    CHECK_OK(polylock_manager_free(locks));
    CHECK_IS(POLYLOCK_ERR_INVALID_HANDLE, polylock_manager_free(locks));
    REFUSED(polylock_acquire(locks, "r", 0, &out, &err));
    CHECK_OK(polylock_options_free(options));
}

static void leases(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_lease lease = check_acquire(locks, "r", 5000, 1);
    uint64_t bad[BAD], out = 77;
    polylock_loss reason = POLYLOCK_LOSS_NONE;
    char text[64];
    size_t i, n = bad_handles(bad, lease, locks);
    for (i = 0; i < n; i++) {
        REFUSED(polylock_extend(bad[i], &err));
        REFUSED(polylock_extend_ttl(bad[i], 1000, &err));
        REFUSED(polylock_release(bad[i], NULL, &err));
        REFUSED(polylock_lease_wait_lost(bad[i], 0, &reason, &err));
        REFUSED(polylock_extend_start(bad[i], 0, &out, &err));
        REFUSED(polylock_extend_ttl_start(bad[i], 1000, 0, &out, &err));
        REFUSED(polylock_release_start(bad[i], 0, &out, &err));
        CHECK(polylock_lease_fencing_token(bad[i]) == 0);
        CHECK(polylock_lease_owner_token(bad[i], text, sizeof text) == 0);
        CHECK(polylock_lease_resource(bad[i], text, sizeof text) == 0);
        CHECK(!polylock_lease_is_held(bad[i]) && polylock_lease_remaining_ms(bad[i]) == 0.0);
        CHECK(polylock_lease_deadline_unix_ms(bad[i]) == 0 && polylock_lease_loss(bad[i]) == POLYLOCK_LOSS_NONE);
        if (bad[i])
            CHECK_IS(POLYLOCK_ERR_INVALID_HANDLE, polylock_lease_free(bad[i]));
    }
    CHECK(polylock_lease_is_held(lease) && out == 77);
    CHECK_OK(polylock_lease_free(lease));
    CHECK_IS(POLYLOCK_ERR_INVALID_HANDLE, polylock_lease_free(lease));
    CHECK_IS(POLYLOCK_ERR_INVALID_HANDLE, polylock_release(lease, NULL, NULL));
    CHECK_OK(polylock_manager_free(locks));
}

static void options(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_options good = polylock_options_new();
    polylock_connect_options connecting = polylock_connect_options_new();
    uint64_t bad[BAD], out = 77;
    size_t i, n = bad_handles(bad, good, connecting);
    for (i = 0; i < n; i++) {
        REFUSED(polylock_options_set_ttl_ms(bad[i], 1, &err));
        REFUSED(polylock_options_set_wait_ms(bad[i], 1, &err));
        REFUSED(polylock_options_set_wait_forever(bad[i], &err));
        REFUSED(polylock_options_set_no_wait(bad[i], &err));
        REFUSED(polylock_options_set_auto_extend(bad[i], true, &err));
        REFUSED(polylock_options_set_max_hold_ms(bad[i], 1, &err));
        REFUSED(polylock_options_set_label(bad[i], "x", &err));
        if (bad[i]) {
            CHECK_IS(POLYLOCK_ERR_INVALID_HANDLE, polylock_options_free(bad[i]));
            REFUSED(polylock_acquire(locks, "r", bad[i], &out, &err));
        }
    }
    n = bad_handles(bad, connecting, good);
    for (i = 0; i < n; i++) {
        REFUSED(polylock_connect_options_set_prefix(bad[i], "x", &err));
        REFUSED(polylock_connect_options_set_drift_factor(bad[i], 0.1, &err));
        REFUSED(polylock_connect_options_set_node_timeout_ms(bad[i], 1, &err));
        if (bad[i]) {
            CHECK_IS(POLYLOCK_ERR_INVALID_HANDLE, polylock_connect_options_free(bad[i]));
            REFUSED(polylock_connect("memory:", bad[i], &out, &err));
        }
    }
    NOT_GIVEN("ttl", polylock_options_set_ttl_ms(good, (double)NAN, &err));
    NOT_GIVEN("wait", polylock_options_set_wait_ms(good, -1, &err));
    NOT_GIVEN("max_hold", polylock_options_set_max_hold_ms(good, 1e300, &err));
    NOT_GIVEN("label", polylock_options_set_label(good, NULL, &err));
    NOT_GIVEN("label", polylock_options_set_label(good, "\xff", &err));
    NOT_GIVEN("prefix", polylock_connect_options_set_prefix(connecting, NULL, &err));
    NOT_GIVEN("node_timeout", polylock_connect_options_set_node_timeout_ms(connecting, -1, &err));
    CHECK_OK(polylock_connect_options_set_drift_factor(connecting, 0.6, NULL));
    NOT_GIVEN("drift_factor", polylock_connect("memory:", connecting, &out, &err));
    CHECK(out == 77);
    CHECK_OK(polylock_options_free(good));
    CHECK_OK(polylock_connect_options_free(connecting));
    CHECK_OK(polylock_manager_free(locks));
}

static void futures_and_queues(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_future future = 0;
    polylock_queue queue = 0;
    uint64_t bad[BAD], out = 77;
    size_t i, n, count = 77;
    CHECK_OK(polylock_acquire_start(locks, "r", 0, 0, &future, NULL));
    CHECK_OK(polylock_queue_new(&queue, NULL));
    n = bad_handles(bad, future, queue);
    for (i = 0; i < n; i++) {
        REFUSED(polylock_future_wait(bad[i], 0, &err));
        REFUSED(polylock_future_take(bad[i], &err));
        REFUSED(polylock_future_take_lease(bad[i], &out, &err));
        REFUSED(polylock_future_take_outcome(bad[i], NULL, &err));
        REFUSED(polylock_future_take_holder(bad[i], &out, &err));
        CHECK_IS(POLYLOCK_ERR_INVALID_HANDLE, polylock_future_cancel(bad[i]));
        CHECK(!polylock_future_is_ready(bad[i]));
        if (bad[i])
            CHECK_IS(POLYLOCK_ERR_INVALID_HANDLE, polylock_future_free(bad[i]));
    }
    n = bad_handles(bad, queue, future);
    for (i = 0; i < n; i++) {
        REFUSED(polylock_queue_turn(bad[i], &out, 1, &count, &err));
        CHECK(polylock_queue_fd(bad[i]) == -1);
        if (bad[i]) {
            REFUSED(polylock_acquire_start(locks, "r", 0, bad[i], &out, &err));
            CHECK_IS(POLYLOCK_ERR_INVALID_HANDLE, polylock_queue_free(bad[i]));
        }
    }
    NOT_GIVEN("ready", polylock_queue_turn(queue, NULL, 1, &count, &err));
    NOT_GIVEN("count", polylock_queue_turn(queue, &out, 1, NULL, &err));
    NOT_GIVEN("lease", polylock_future_take_lease(future, NULL, &err));
    NOT_GIVEN("holder", polylock_future_take_holder(future, NULL, &err));
    NOT_GIVEN("callback", polylock_future_on_ready(future, NULL, NULL, NULL, &err));
    NOT_GIVEN("timeout_ms", polylock_future_wait(future, (double)NAN, &err));
    NOT_GIVEN("future", polylock_acquire_start(locks, "r", 0, 0, NULL, &err));
    CHECK(out == 77 && count == 77);
    CHECK_OK(polylock_queue_free(queue));
    CHECK_OK(polylock_future_free(future));
    CHECK_OK(polylock_manager_free(locks));
}

static void errors_and_holders(void)
{
    polylock_error err = 0;
    uint64_t bad[BAD];
    size_t i, n;
    polylock_manager out = 0;
    CHECK(polylock_connect("nonsense", 0, &out, &err) == POLYLOCK_ERR_INVALID_ARGUMENT && out == 0);
    n = bad_handles(bad, err, err ^ 2);
    for (i = 0; i < n; i++) {
        int expected = bad[i] ? POLYLOCK_ERR_INVALID_HANDLE : POLYLOCK_OK;
        CHECK_IS(expected, polylock_error_code(bad[i]));
        CHECK_IS(expected, polylock_error_free(bad[i]));
        CHECK_IS(expected, polylock_holder_free(bad[i]));
        CHECK(!strcmp(polylock_error_message(bad[i]), "") && !polylock_error_is_retryable(bad[i]));
        CHECK(!polylock_error_argument(bad[i]) && !polylock_error_resource(bad[i]));
        CHECK(!polylock_holder_owner(bad[i]) && !polylock_holder_label(bad[i]) && !polylock_holder_host(bad[i]));
        CHECK(!polylock_holder_pid(bad[i]) && !polylock_holder_fencing_token(bad[i]));
        CHECK(polylock_holder_expires_in_ms(bad[i]) < 0 && polylock_holder_since_unix_ms(bad[i]) == 0);
    }
    check_error(err, POLYLOCK_ERR_INVALID_ARGUMENT, "url", "scheme");
}

static void urls_and_names(void)
{
    static const char *urls[] = {"", "nonsense", "ftp://host", ":", "redis://", "redis://:secret@host:notaport",
                                 "redis://user:secret@[::1", "http://:secret@h", "\xff\xfe"};
    polylock_manager locks = check_connect("memory:"), out = 77;
    polylock_lease lease = 77;
    char name[1026];
    size_t i;
    for (i = 0; i < sizeof urls / sizeof *urls; i++) {
        polylock_error err = 0;
        polylock_status status = polylock_connect(urls[i], 0, &out, &err);
        if (status == POLYLOCK_OK) { /* what has a meaning fails when it is used */
            CHECK_OK(polylock_manager_free(out));
            out = 77;
            continue;
        }
        CHECK(!strstr(polylock_error_message(err), "secret"));
        check_error(err, POLYLOCK_ERR_INVALID_ARGUMENT, "url", "");
    }
    NOT_GIVEN("url", polylock_connect(NULL, 0, &out, &err));
    NOT_GIVEN("url", polylock_connect_n(NULL, 0, 0, &out, &err));
    NOT_GIVEN("url", polylock_connect_n("memory:", SIZE_MAX, 0, &out, &err));
    NOT_GIVEN("url", polylock_connect_many(NULL, 0, 0, &out, &err));
    NOT_GIVEN("url", polylock_connect_many(urls, 0, 0, &out, &err));
    NOT_GIVEN("manager", polylock_connect("memory:", 0, NULL, &err));
    NOT_GIVEN("resource", polylock_acquire(locks, NULL, 0, &lease, &err));
    NOT_GIVEN("resource", polylock_acquire_n(locks, NULL, 0, 0, &lease, &err));
    NOT_GIVEN("resource", polylock_acquire(locks, "", 0, &lease, &err));
    NOT_GIVEN("resource", polylock_acquire(locks, "\xc3", 0, &lease, &err));
    NOT_GIVEN("resource", polylock_acquire_n(locks, "a\0b", 3, 0, &lease, &err));
    NOT_GIVEN("lease", polylock_acquire(locks, "r", 0, NULL, &err));
    NOT_GIVEN("lease", polylock_try_acquire(locks, "r", 0, NULL, &err));
    NOT_GIVEN("holder", polylock_inspect(locks, "r", NULL, &err));
    NOT_GIVEN("count", polylock_waiting(locks, "r", NULL, &err));
    NOT_GIVEN("queue", polylock_queue_new(NULL, &err));
    memset(name, 'x', sizeof name);
    NOT_GIVEN("resource", polylock_acquire_n(locks, name, 1025, 0, &lease, &err));
    CHECK(out == 77 && lease == 77);
    CHECK_OK(polylock_acquire_n(locks, name, 1024, 0, &lease, NULL));
    CHECK(polylock_lease_resource(lease, name, sizeof name) == 1024 && strlen(name) == 1024);
    CHECK_OK(polylock_lease_free(lease));
    CHECK_OK(polylock_manager_free(locks));
}

static void versions(void)
{
    char text[32];
    snprintf(text, sizeof text, "%d.%d.%d", POLYLOCK_VERSION_MAJOR, POLYLOCK_VERSION_MINOR, POLYLOCK_VERSION_PATCH);
    CHECK(!strcmp(text, POLYLOCK_VERSION) && !strcmp(text, polylock_version()));
    CHECK(POLYLOCK_VERSION_NUMBER ==
          POLYLOCK_VERSION_MAJOR * 1000000 + POLYLOCK_VERSION_MINOR * 1000 + POLYLOCK_VERSION_PATCH);
    CHECK(polylock_abi_version() == POLYLOCK_ABI_VERSION);
    CHECK(!strcmp(polylock_status_name(POLYLOCK_ERR_INVALID_HANDLE), "InvalidHandle"));
    CHECK(!strcmp(polylock_status_name(12345), "Unknown"));
}

int main(void)
{
    static const struct check_case cases[] = {
        CASE(managers),           CASE(leases),         CASE(options),  CASE(futures_and_queues),
        CASE(errors_and_holders), CASE(urls_and_names), CASE(versions),
    };
    return RUN("handles", cases);
}
