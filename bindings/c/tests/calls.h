/*
 * Calls of the whole API with chosen arguments: handles of every kind and state, made-up ones, NULLs, odd times, any
 * bytes for names and URLs. Nothing may crash, hang or leak, and each error has a meaning.
 *
 * Who includes this gives `next`, which chooses: at random, or by the bytes of a fuzzer.
 */
#ifndef POLYLOCK_TESTS_CALLS_H
#define POLYLOCK_TESTS_CALLS_H

#include "check.h"
#include <pthread.h>

/* What it is that chooses. */
struct chooser;
static uint32_t next(struct chooser *chooser);

enum { HANDLES = 64 };

/* Shared by the threads: an object is used by one while another frees it. */
static uint64_t handles[HANDLES];
static pthread_mutex_t handles_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t some_handle(struct chooser *state)
{
    uint64_t handle;
    if (next(state) % 16 == 0)
        return (uint64_t)next(state) << 32 | next(state);
    pthread_mutex_lock(&handles_lock);
    handle = handles[next(state) % HANDLES];
    pthread_mutex_unlock(&handles_lock);
    return next(state) % 32 ? handle : handle ^ UINT64_C(1) << next(state) % 64;
}

static void free_any(uint64_t handle)
{
    polylock_lease_free(handle);
    polylock_manager_free(handle);
    polylock_options_free(handle);
    polylock_connect_options_free(handle);
    polylock_holder_free(handle);
    polylock_future_free(handle);
    polylock_queue_free(handle);
    polylock_error_free(handle);
    polylock_subscription_free(handle);
}

/* Keeps a handle for later, and frees the one that was in its place. */
static void keep(struct chooser *state, uint64_t handle)
{
    uint64_t *place = &handles[next(state) % HANDLES], before;
    if (!handle)
        return;
    pthread_mutex_lock(&handles_lock);
    before = *place;
    *place = handle;
    pthread_mutex_unlock(&handles_lock);
    free_any(before);
}

static const char *some_text(struct chooser *state, char *text, size_t size)
{
    static const char *known[] = {"a", "b", "c", "", "memory:", "memory:x", "\xff", "redis://", "file://"};
    size_t i, length = next(state) % size;
    if (next(state) % 16 == 0)
        return NULL;
    if (next(state) % 4)
        return known[next(state) % (sizeof known / sizeof *known)];
    for (i = 0; i < length; i++)
        text[i] = (char)(1 + next(state) % 255);
    text[length] = 0;
    return text;
}

static double some_time(struct chooser *state)
{
    static const double times[] = {0, 1, 3, 20, 1e4, -1, 1e300, -1e300, 2.5};
    return times[next(state) % (sizeof times / sizeof *times)];
}

/* Not for ever: what is waited for may never happen. */
static double short_time(struct chooser *state)
{
    return next(state) % 3;
}

static void lost(polylock_lease lease, polylock_loss reason, void *userdata)
{
    (void)reason, (void)userdata;
    polylock_lease_free(lease);
}

static void ready(polylock_future future, void *userdata)
{
    (void)userdata;
    polylock_future_cancel(future);
}

static void hear(polylock_log_level level, const char *message, void *userdata)
{
    (void)level, (void)userdata;
    CHECK(message[0]);
}

static void happens(polylock_event event, const char *const *resources, size_t count, uint64_t fencing_token,
                    double duration_ms, polylock_loss reason, const char *error, void *userdata)
{
    (void)event, (void)fencing_token, (void)duration_ms, (void)reason, (void)userdata;
    CHECK(count && resources[count - 1][0] && (!error || error[0]));
}

static int take_all(uint64_t fencing_token, void *userdata)
{
    (void)userdata;
    return !fencing_token;
}

static void finalize(void *userdata)
{
    free(userdata);
}

static void one_call(struct chooser *state)
{
    char bytes[64];
    const char *text = some_text(state, bytes, sizeof bytes);
    uint64_t a = some_handle(state), b = some_handle(state), c = some_handle(state), out = 0, several[4];
    polylock_error failure = 0, *err = next(state) % 4 ? &failure : NULL;
    polylock_outcome outcome;
    polylock_loss reason;
    size_t count = 0, found = 0, i;
    char buffer[48];
    uint64_t *place = next(state) % 16 ? &out : NULL;
    polylock_options brief;
    polylock_holder holders[4];
    bool broken;
    const char *names[3];
    names[0] = text, names[1] = "b", names[2] = "a";
    switch (next(state) % 64) {
    case 0: polylock_connect(text, next(state) % 2 ? a : 0, place, err); break;
    case 1: polylock_connect("memory:shared", 0, place, err); break;
    case 2: polylock_connect_n(text, text ? strlen(text) : 0, 0, place, err); break;
    case 3: keep(state, polylock_options_new()); break;
    case 4: keep(state, polylock_connect_options_new()); break;
    case 5: polylock_options_set_ttl_ms(a, some_time(state), err); break;
    case 6: polylock_options_set_max_hold_ms(a, some_time(state), err); break;
    case 7: polylock_options_set_label(a, text, err); break;
    case 8: polylock_connect_options_set_prefix(a, text, err); break;
    case 9: polylock_options_set_auto_extend(a, next(state) % 2, err); break;
    case 10: polylock_try_acquire(a, text, next(state) % 2 ? b : 0, place, err); break;
    case 11: polylock_try_acquire_n(a, text, text ? strlen(text) : 0, 0, place, err); break;
    case 12:
        brief = polylock_options_new();
        polylock_options_set_wait_ms(brief, short_time(state), NULL);
        polylock_acquire(a, text, brief, place, err);
        polylock_options_free(brief);
        break;
    case 13: polylock_acquire_start(a, text, next(state) % 2 ? b : 0, next(state) % 2 ? c : 0, place, err); break;
    case 14: polylock_release_start(a, next(state) % 2 ? c : 0, place, err); break;
    case 15: polylock_extend_ttl_start(a, some_time(state), next(state) % 2 ? c : 0, place, err); break;
    case 16: polylock_inspect_start(a, text, next(state) % 2 ? c : 0, place, err); break;
    case 17: polylock_extend(a, err); break;
    case 18: polylock_extend_ttl(a, some_time(state), err); break;
    case 19: polylock_release(a, next(state) % 2 ? &outcome : NULL, err); break;
    case 20: polylock_inspect(a, text, place, err); break;
    case 21: polylock_waiting(a, text, &count, err); break;
    case 22: polylock_lease_wait_lost(a, short_time(state), &reason, err); break;
    case 23: polylock_lease_on_lost(a, next(state) % 8 ? lost : NULL, malloc(8), finalize, err); break;
    case 24: polylock_future_on_ready(a, next(state) % 8 ? ready : NULL, malloc(8), finalize, err); break;
    case 25: polylock_future_wait(a, short_time(state), err); break;
    case 26: if (polylock_future_is_ready(a)) polylock_future_take_lease(a, place, err); break;
    case 27: if (polylock_future_is_ready(a)) polylock_future_take_outcome(a, NULL, err); break;
    case 28: if (polylock_future_is_ready(a)) polylock_future_take_holder(a, place, err); break;
    case 29: if (polylock_future_is_ready(a)) polylock_future_take(a, err); break;
    case 30: polylock_future_cancel(a); break;
    case 31: if (next(state) % 4 == 0) polylock_queue_new(place, err); break;
    case 32: polylock_queue_turn(a, several, 4, &count, err); break;
    case 33: polylock_queue_fd(a); break;
    case 34: if (next(state) % 32 == 0) polylock_close(a, err); break;
    case 35: polylock_lease_owner_token(a, buffer, next(state) % sizeof buffer); break;
    case 36: polylock_lease_resource(a, buffer, next(state) % sizeof buffer); break;
    case 37: polylock_lease_remaining_ms(a), polylock_lease_loss(a), polylock_lease_deadline_unix_ms(a); break;
    case 38: polylock_error_code(a), polylock_capabilities(a), polylock_guarantees(a); break;
    case 39: polylock_options_set_shared(a, err); break;
    case 40: polylock_options_set_permit(a, next(state) % 4, err); break;
    case 41: polylock_try_acquire_all(a, next(state) % 8 ? names : NULL, next(state) % 4, b, place, err); break;
    case 42: polylock_acquire_all_start(a, names, next(state) % 4, b, next(state) % 2 ? c : 0, place, err); break;
    case 43: polylock_lease_resource_at(a, next(state) % 4, buffer, next(state) % sizeof buffer); break;
    case 44: polylock_set_log((int)(next(state) % 8) - 1, next(state) % 4 ? hear : NULL, malloc(8), finalize, err); break;
    case 45: polylock_connect_many(names, next(state) % 4, next(state) % 2 ? a : 0, place, err); break;
    case 46: polylock_close_start(a, c, place, err); break;
    case 47: polylock_connect_options_set_node_timeout_ms(a, some_time(state), err); break;
    case 48: polylock_lease_mode(a), polylock_lease_resource_count(a), polylock_holder_owner(a); break;
    case 49: polylock_on_event(a, next(state) % 8 ? happens : NULL, malloc(8), finalize, place, err); break;
    case 50: polylock_break(a, text, polylock_lease_fencing_token(b), next(state) % 8 ? &broken : NULL, err); break;
    case 51: polylock_break_owner(a, text, polylock_holder_owner(0), &broken, err); break;
    case 52:
        found = 0;
        polylock_list(a, next(state) % 4 ? "*" : text, holders, next(state) % 5, next(state) % 8 ? &found : NULL, err);
        for (i = 0; i < found; i++)
            keep(state, holders[i]);
        break;
    case 53: polylock_metrics_text(a, buffer, next(state) % sizeof buffer, next(state) % 8 ? &found : NULL, err); break;
    case 54: polylock_options_set_fair(a, next(state) % 2, err); break;
    case 55: polylock_options_set_exclusive(a, err); break;
    case 56: polylock_options_set_no_wait(a, err); break;
    case 57: polylock_inspect_n(a, text, text ? strlen(text) : 0, place, err); break;
    case 58: polylock_extend_start(a, next(state) % 2 ? c : 0, place, err); break;
    case 59: if (next(state) % 32 == 0) polylock_shutdown(short_time(state)); break;
    case 60: polylock_fork_child(); break;
    case 61: if (next(state) % 64 == 0) polylock_check_refuses_zombies(a, text, take_all, NULL, NULL); break;
    default: free_any(a); break;
    }
    for (i = 0; i < count && i < 4; i++)
        polylock_future_is_ready(several[i]);
    keep(state, out);
    if (failure && (!polylock_error_message(failure)[0] || polylock_error_code(failure) == POLYLOCK_OK ||
                    polylock_error_code(failure) == POLYLOCK_ERR_INTERNAL))
        check_failed(polylock_error_message(failure), __LINE__, "an error without a meaning");
    polylock_error_free(failure);
}


static void free_all(void)
{
    int i;
    for (i = 0; i < HANDLES; i++) {
        free_any(handles[i]);
        handles[i] = 0;
    }
}

#endif
