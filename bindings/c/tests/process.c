/* Threads, and the end of a process. */
#define _DEFAULT_SOURCE
#include "check.h"
#include <dirent.h>
#include <math.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/resource.h>
#include <time.h>

enum { THREADS = 16, ROUNDS = 200 };

static polylock_manager shared;
static long counted;
static uint64_t last_token;

static const char *server_url(void)
{
    const char *url = getenv("POLYLOCK_TEST_REDIS");
    return url ? url : "memory:process";
}

/* Threads whose name begins so. */
static int threads_named(const char *start)
{
    char path[300], name[16] = "";
    int count = 0;
    DIR *tasks = opendir("/proc/self/task");
    struct dirent *entry;
    CHECK(tasks);
    while ((entry = readdir(tasks))) {
        FILE *comm;
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", entry->d_name);
        comm = fopen(path, "r");
        if (comm && entry->d_name[0] != '.' && fgets(name, sizeof name, comm))
            count += !strncmp(name, start, strlen(start));
        if (comm)
            fclose(comm);
    }
    closedir(tasks);
    return count;
}

static int threads(void)
{
    return threads_named("");
}

/* Of the library: a sanitizer may have threads of its own. They end by themselves, some a moment after they were told to. */
static void no_thread_is_left(void)
{
    const struct timespec moment = {0, 1000000};
    while (threads_named("polylock-"))
        nanosleep(&moment, NULL);
}

static void loading_and_connecting_start_no_thread(void)
{
    polylock_manager locks = check_connect("memory:"), redis = check_connect("redis://127.0.0.1:1");
    CHECK(threads() == 1);
    CHECK_OK(polylock_manager_free(locks));
    CHECK_OK(polylock_manager_free(redis));
}

static void *count_up(void *unused)
{
    int i;
    (void)unused;
    for (i = 0; i < ROUNDS; i++) {
        polylock_lease lease = check_acquire(shared, "c-threads", 60000, i % 2);
        long before = counted;
        CHECK(polylock_lease_fencing_token(lease) > last_token);
        last_token = polylock_lease_fencing_token(lease);
        counted = before + 1;
        if (i % 3)
            CHECK_OK(polylock_release(lease, NULL, NULL));
        CHECK_OK(polylock_lease_free(lease));
    }
    return NULL;
}

static void threads_exclude_each_other(void)
{
    pthread_t thread[THREADS];
    int i;
    shared = check_connect("memory:");
    for (i = 0; i < THREADS; i++)
        CHECK(!pthread_create(&thread[i], NULL, count_up, NULL));
    for (i = 0; i < THREADS; i++)
        pthread_join(thread[i], NULL);
    CHECK(counted == THREADS * ROUNDS);
    CHECK_OK(polylock_manager_free(shared));
}

static polylock_lease contested;
static int freed[THREADS];

static void *use_and_free(void *number)
{
    int i = *(int *)number;
    polylock_lease_is_held(contested);
    polylock_lease_fencing_token(contested);
    polylock_release(contested, NULL, NULL);
    freed[i] = polylock_lease_free(contested) == POLYLOCK_OK;
    CHECK(polylock_lease_fencing_token(contested) == 0);
    return NULL;
}

static void one_of_many_threads_frees(void)
{
    polylock_manager locks = check_connect("memory:");
    pthread_t thread[THREADS];
    int round, i, number[THREADS];
    for (round = 0; round < 20; round++) {
        int count = 0;
        contested = check_acquire(locks, "r", 60000, 1);
        for (i = 0; i < THREADS; i++) {
            number[i] = i;
            CHECK(!pthread_create(&thread[i], NULL, use_and_free, &number[i]));
        }
        for (i = 0; i < THREADS; i++) {
            pthread_join(thread[i], NULL);
            count += freed[i];
        }
        CHECK(count == 1);
    }
    CHECK_OK(polylock_manager_free(locks));
}

static void lost(polylock_lease lease, polylock_loss reason, void *userdata)
{
    (void)lease, (void)reason, (void)userdata;
}

static void shutdown_releases_and_stops_the_threads(void)
{
    polylock_manager locks = check_connect(server_url()), other = check_connect(server_url());
    polylock_lease lease = check_acquire(locks, "c-shutdown", 60000, 1);
    CHECK_OK(polylock_lease_on_lost(lease, lost, NULL, NULL, NULL));
    CHECK(threads() > 1);
    CHECK_OK(polylock_shutdown(10000));
    CHECK(!polylock_lease_is_held(lease));
    CHECK_IS(POLYLOCK_ERR_CLOSED, polylock_acquire(locks, "c-shutdown", 0, &lease, NULL));
    CHECK_OK(polylock_lease_free(lease));
    lease = check_acquire(other, "c-shutdown", 60000, 1); /* was never used: starts a new engine */
    CHECK_OK(polylock_lease_free(lease));
    CHECK_IS(POLYLOCK_ERR_INVALID_ARGUMENT, polylock_shutdown((double)NAN));
    CHECK_OK(polylock_manager_free(other));
    CHECK_OK(polylock_manager_free(locks));
}

static void no_loss(polylock_lease lease, polylock_loss reason, void *userdata)
{
    (void)lease, (void)reason, (void)userdata;
    check_failed(__FILE__, __LINE__, "a loss was told");
}

/* What could not be released is not held any more either: nothing renews it, and it expires on its server. */
static void a_shutdown_without_time_leaves_nothing_held(void)
{
    polylock_manager locks = check_connect(server_url()), other = check_connect(server_url());
    polylock_lease lease = check_acquire(locks, "c-no-time", 600, 1);
    polylock_loss reason = POLYLOCK_LOSS_EXPIRED;
    CHECK_OK(polylock_lease_on_lost(lease, no_loss, NULL, NULL, NULL));
    CHECK_OK(polylock_shutdown(0));
    CHECK(!polylock_lease_is_held(lease) && polylock_lease_remaining_ms(lease) == 0);
    CHECK_IS(POLYLOCK_ERR_LOST, polylock_extend(lease, NULL));
    CHECK_OK(polylock_lease_wait_lost(lease, POLYLOCK_FOREVER, &reason, NULL));
    CHECK(reason == POLYLOCK_LOSS_NONE);
    CHECK_OK(polylock_lease_free(check_acquire(other, "c-no-time", 60000, 1)));
    CHECK_OK(polylock_lease_free(lease));
    CHECK_OK(polylock_manager_free(other));
    CHECK_OK(polylock_manager_free(locks));
}

static sem_t entered, may_go_on;
static int ended_slowly;

static void slow_ready(polylock_future future, void *userdata)
{
    (void)future, (void)userdata;
    sem_post(&entered);
    sem_wait(&may_go_on);
}

static void note_the_end(void *count)
{
    ++*(int *)count;
}

static void *let_go_on(void *unused)
{
    sem_post(&may_go_on);
    return unused;
}

/* One whose time was over leaves the callbacks to the next, which waits for them. No thread is left then, and what is
 * finalized still later leaves none either. */
static void a_later_shutdown_waits_for_callbacks_of_before(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_lease lease;
    polylock_future future = 0;
    pthread_t helper;
    int late = 0;
    CHECK(!sem_init(&entered, 0, 0) && !sem_init(&may_go_on, 0, 0));
    lease = check_acquire(locks, "r", 60000, 1);
    CHECK_OK(polylock_lease_on_lost(lease, lost, &late, note_the_end, NULL));
    CHECK_OK(polylock_acquire_start(locks, "other", 0, 0, &future, NULL));
    CHECK_OK(polylock_future_on_ready(future, slow_ready, &ended_slowly, note_the_end, NULL));
    sem_wait(&entered);
    CHECK_OK(polylock_shutdown(10));
    CHECK(ended_slowly == 0);
    CHECK(!pthread_create(&helper, NULL, let_go_on, NULL));
    CHECK_OK(polylock_shutdown(60000));
    CHECK(ended_slowly == 1);
    pthread_join(helper, NULL);
    no_thread_is_left();
    CHECK_OK(polylock_lease_free(lease));
    CHECK_OK(polylock_future_free(future));
    CHECK_OK(polylock_manager_free(locks));
    CHECK_OK(polylock_shutdown(60000)); /* waits for finalizers, too */
    CHECK(late == 1);
    no_thread_is_left();
    sem_destroy(&entered), sem_destroy(&may_go_on);
}

static __thread int in_a_call;
static int at_once;

static void not_inside(polylock_future future, void *userdata)
{
    (void)future, (void)userdata;
    CHECK(!in_a_call);
    CHECK(__sync_fetch_and_add(&at_once, 1) == 0);
    CHECK(__sync_fetch_and_sub(&at_once, 1) == 1);
}

static void *register_many(void *url)
{
    polylock_manager locks = check_connect(url);
    int i;
    for (i = 0; i < 2000; i++) {
        polylock_future future = 0;
        if (polylock_inspect_start(locks, "r", 0, &future, NULL))
            continue;
        in_a_call = 1;
        polylock_future_on_ready(future, not_inside, NULL, NULL, NULL);
        in_a_call = 0;
        polylock_future_wait(future, POLYLOCK_FOREVER, NULL);
        CHECK_OK(polylock_future_free(future));
    }
    CHECK_OK(polylock_manager_free(locks));
    return NULL;
}

/* Also while the callback thread is stopped and started. */
static void callbacks_come_one_after_the_other_and_inside_no_call(void)
{
    pthread_t thread[4];
    int i;
    for (i = 0; i < 4; i++)
        CHECK(!pthread_create(&thread[i], NULL, register_many, "memory:"));
    for (i = 0; i < 200; i++)
        CHECK_OK(polylock_shutdown(i % 3));
    for (i = 0; i < 4; i++)
        pthread_join(thread[i], NULL);
    CHECK_OK(polylock_shutdown(60000));
    CHECK(at_once == 0);
}

static int locking; /* guarded by the mutex */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static int goes_on(void)
{
    int answer;
    pthread_mutex_lock(&mutex);
    answer = locking;
    pthread_mutex_unlock(&mutex);
    return answer;
}

static void *lock_anew(void *url)
{
    polylock_options options = polylock_options_new();
    CHECK_OK(polylock_options_set_wait_ms(options, 100, NULL));
    while (goes_on()) {
        polylock_manager locks = check_connect(url);
        polylock_lease lease = 0;
        int status = polylock_acquire(locks, "c-shutdowns", options, &lease, NULL);
        CHECK(status == POLYLOCK_OK || status == POLYLOCK_ERR_CLOSED || status == POLYLOCK_ERR_TIMEOUT ||
              status == POLYLOCK_ERR_UNAVAILABLE);
        polylock_release(lease, NULL, NULL);
        polylock_lease_free(lease);
        CHECK_OK(polylock_manager_free(locks));
    }
    CHECK_OK(polylock_options_free(options));
    return NULL;
}

static void *shut_down(void *unused)
{
    (void)unused;
    while (goes_on())
        CHECK_OK(polylock_shutdown(20));
    return NULL;
}

/* Whatever they do at once, everybody comes to an end. (Those who wait would wait for an engine that is gone.) */
static void shutdowns_hang_nobody(void)
{
    pthread_t thread[8];
    char *url = getenv("POLYLOCK_TEST_REDIS");
    int i;
    locking = 1;
    for (i = 0; i < 8; i++)
        CHECK(!pthread_create(&thread[i], NULL, i < 6 ? lock_anew : shut_down, url ? url : "memory:process"));
    usleep(1500000);
    pthread_mutex_lock(&mutex);
    locking = 0;
    pthread_mutex_unlock(&mutex);
    for (i = 0; i < 8; i++)
        pthread_join(thread[i], NULL);
}

static polylock_manager used_at_once;

static void *lock_and_extend(void *number)
{
    char name[32];
    int i, answer = POLYLOCK_OK;
    for (i = *(int *)number; answer != POLYLOCK_ERR_CLOSED; i++) {
        polylock_options options = polylock_options_new();
        polylock_lease lease = 0;
        snprintf(name, sizeof name, "c-used-%d", i % 6);
        CHECK_OK(polylock_options_set_ttl_ms(options, 60000, NULL));
        answer = polylock_acquire(used_at_once, name, options, &lease, NULL);
        polylock_extend(lease, NULL);
        polylock_release(lease, NULL, NULL);
        polylock_lease_free(lease);
        CHECK_OK(polylock_options_free(options));
    }
    return NULL;
}

/* Threads come to a new manager at the same time, and are in the middle of everything when it ends. */
static void shutdown_among_threads_takes_no_ttl(void)
{
    pthread_t thread[8];
    int round, i, number[8];
    for (round = 0; round < 20; round++) {
        struct timespec begin, end, some = {0, 20000000};
        used_at_once = check_connect(server_url());
        for (i = 0; i < 8; i++) {
            number[i] = i;
            CHECK(!pthread_create(&thread[i], NULL, lock_and_extend, &number[i]));
        }
        nanosleep(&some, NULL); /* they lock */
        clock_gettime(CLOCK_MONOTONIC, &begin);
        CHECK_OK(polylock_shutdown(60000));
        clock_gettime(CLOCK_MONOTONIC, &end);
        CHECK(end.tv_sec - begin.tv_sec < 20);
        for (i = 0; i < 8; i++)
            pthread_join(thread[i], NULL);
        CHECK_OK(polylock_manager_free(used_at_once));
    }
}

/* What was given up as it was answered is known when the manager is closed. (Not to know would take 20 s.) */
static void what_was_given_up_does_not_hold_up_the_end(void)
{
    polylock_manager locks, others = check_connect(server_url());
    polylock_lease mine, held = check_acquire(others, "c-given-up", 60000, 1);
    polylock_connect_options patient = polylock_connect_options_new();
    polylock_queue queue;
    polylock_future future;
    struct timespec begin, end;
    CHECK_OK(polylock_connect_options_set_node_timeout_ms(patient, 20000, NULL));
    CHECK_OK(polylock_connect(server_url(), patient, &locks, NULL));
    CHECK_OK(polylock_queue_new(&queue, NULL));
    CHECK_OK(polylock_acquire_start(locks, "c-mine", 0, queue, &future, NULL)); /* connects */
    CHECK_OK(polylock_future_wait(future, 30000, NULL));
    CHECK_OK(polylock_future_take_lease(future, &mine, NULL));
    CHECK_OK(polylock_future_free(future));
    CHECK_OK(polylock_acquire_start(locks, "c-given-up", 0, queue, &future, NULL));
    CHECK_OK(polylock_future_free(future));
    CHECK_OK(polylock_queue_free(queue));
    clock_gettime(CLOCK_MONOTONIC, &begin);
    CHECK_OK(polylock_close(locks, NULL));
    clock_gettime(CLOCK_MONOTONIC, &end);
    CHECK(end.tv_sec - begin.tv_sec < 10);
    CHECK_OK(polylock_lease_free(mine));
    CHECK_OK(polylock_connect_options_free(patient));
    CHECK_OK(polylock_manager_free(locks));
    CHECK_OK(polylock_lease_free(held));
    CHECK_OK(polylock_manager_free(others));
}

/* What the system lacks at first it has later. */
static void descriptors_that_are_used_up_come_back(void)
{
    struct rlimit usual, none;
    polylock_manager locks = check_connect("memory:");
    polylock_lease lease = 0;
    CHECK_OK(polylock_shutdown(2000));
    CHECK(!getrlimit(RLIMIT_NOFILE, &usual));
    none = usual;
    none.rlim_cur = 3;
    CHECK(!setrlimit(RLIMIT_NOFILE, &none));
    CHECK_IS(POLYLOCK_ERR_INTERNAL, polylock_acquire(locks, "r", 0, &lease, NULL));
    CHECK(!setrlimit(RLIMIT_NOFILE, &usual));
    CHECK_OK(polylock_acquire(locks, "r", 0, &lease, NULL));
    CHECK_OK(polylock_lease_free(lease));
    CHECK_OK(polylock_manager_free(locks));
}

int main(void)
{
    static const struct check_case cases[] = {
        CASE(loading_and_connecting_start_no_thread),
        CASE(threads_exclude_each_other),
        CASE(one_of_many_threads_frees),
        CASE(shutdown_releases_and_stops_the_threads),
        CASE(a_shutdown_without_time_leaves_nothing_held),
        CASE(a_later_shutdown_waits_for_callbacks_of_before),
        CASE(callbacks_come_one_after_the_other_and_inside_no_call),
        CASE(shutdowns_hang_nobody),
        CASE(shutdown_among_threads_takes_no_ttl),
        CASE(what_was_given_up_does_not_hold_up_the_end),
        CASE(descriptors_that_are_used_up_come_back),
    };
    return RUN("process", cases);
}
