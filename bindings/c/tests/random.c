/*
 * Random calls: handles of every kind and state, made-up ones, NULLs, random bytes for names and URLs. Nothing may
 * crash, hang or leak. `random [SECONDS [SEED]]`
 */
#define _POSIX_C_SOURCE 200809L
#include "check.h"
#include <pthread.h>
#include <time.h>

enum { HANDLES = 64, THREADS = 4 };

/* Shared by the threads: an object is used by one while another frees it. */
static uint64_t handles[HANDLES];
static pthread_mutex_t handles_lock = PTHREAD_MUTEX_INITIALIZER;
static time_t end;

static uint32_t next(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*state >> 33);
}

static uint64_t some_handle(uint64_t *state)
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
}

/* Keeps a handle for later, and frees the one that was in its place. */
static void keep(uint64_t *state, uint64_t handle)
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

static const char *some_text(uint64_t *state, char *text, size_t size)
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

static double some_time(uint64_t *state)
{
    static const double times[] = {0, 1, 3, 20, 1e4, -1, 1e300, -1e300, 2.5};
    return times[next(state) % (sizeof times / sizeof *times)];
}

/* Not for ever: what is waited for may never happen. */
static double short_time(uint64_t *state)
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

static void finalize(void *userdata)
{
    free(userdata);
}

static void one_call(uint64_t *state)
{
    char bytes[64];
    const char *text = some_text(state, bytes, sizeof bytes);
    uint64_t a = some_handle(state), b = some_handle(state), c = some_handle(state), out = 0, several[4];
    polylock_error failure = 0, *err = next(state) % 4 ? &failure : NULL;
    polylock_outcome outcome;
    polylock_loss reason;
    size_t count = 0, i;
    char buffer[48];
    uint64_t *place = next(state) % 16 ? &out : NULL;
    polylock_options brief;
    switch (next(state) % 40) {
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

static void *play(void *seed)
{
    uint64_t state = *(uint64_t *)seed, calls = 0;
    while (calls % 64 || time(NULL) < end) {
        one_call(&state);
        calls++;
    }
    *(uint64_t *)seed = calls;
    return NULL;
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : (uint64_t)time(NULL), states[THREADS], calls = 0;
    long seconds = argc > 1 ? strtol(argv[1], NULL, 10) : 5;
    pthread_t threads[THREADS];
    int i;
    fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
    alarm((unsigned)seconds + 120);
    end = time(NULL) + seconds;
    for (i = 0; i < THREADS; i++) {
        states[i] = seed + (uint64_t)i;
        CHECK(!pthread_create(&threads[i], NULL, play, &states[i]));
    }
    for (i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        calls += states[i];
    }
    for (i = 0; i < HANDLES; i++)
        free_any(handles[i]);
    CHECK_OK(polylock_shutdown(20000));
    fprintf(stderr, "%llu calls\n", (unsigned long long)calls);
    CHECK(calls > 1000);
    printf("random: 1 passed, 0 failed\n");
    return 0;
}
