/* How much of its thread's stack a call takes, which docs/c.md promises. Built without the sanitizers, whose own use of
 * the stack is larger. */
#define _DEFAULT_SOURCE
#include "check.h"
#include <pthread.h>
#include <sys/mman.h>

enum { ROOM = 1024 * 1024, PAINT = 0xa5 };

static const char *server_url(void)
{
    const char *url = getenv("POLYLOCK_TEST_REDIS");
    return url ? url : "memory:process";
}

static void nothing(void *unused)
{
    (void)unused;
}

static polylock_manager locks;
static polylock_queue queue;
static polylock_future future;
static polylock_lease lease;

static void connect_to_it(void *unused)
{
    (void)unused;
    locks = check_connect(server_url());
}

static void acquire_in_vain(void *unused)
{
    polylock_lease none = 0;
    (void)unused;
    CHECK_IS(POLYLOCK_ERR_TIMEOUT, polylock_try_acquire(locks, "c-stack", 0, &none, NULL));
}

static void acquire(void *unused)
{
    (void)unused;
    CHECK_OK(polylock_acquire(locks, "c-stack", 0, &lease, NULL));
}

static void release(void *unused)
{
    (void)unused;
    CHECK_OK(polylock_release(lease, NULL, NULL));
    CHECK_OK(polylock_lease_free(lease));
}

static void acquire_several(void *unused)
{
    static const char *const names[] = {"{c-stack}1", "{c-stack}2", "{c-stack}3"};
    (void)unused;
    CHECK_OK(polylock_acquire_all(locks, names, 3, 0, &lease, NULL));
}

static void extend(void *unused)
{
    (void)unused;
    CHECK_OK(polylock_extend(lease, NULL));
}

static void start(void *on)
{
    CHECK_OK(polylock_acquire_start(locks, "c-stack", 0, on ? queue : 0, &future, NULL));
}

static void start_to_release(void *on)
{
    CHECK_OK(polylock_release_start(lease, on ? queue : 0, &future, NULL));
}

static void take(void *unused)
{
    (void)unused;
    CHECK_OK(polylock_future_take_lease(future, &lease, NULL));
    CHECK_OK(polylock_future_free(future));
}

static void take_release(void *unused)
{
    (void)unused;
    CHECK_OK(polylock_future_take_outcome(future, NULL, NULL));
    CHECK_OK(polylock_future_free(future));
    CHECK_OK(polylock_lease_free(lease));
}

static void inspect(void *unused)
{
    polylock_holder holder = 0;
    (void)unused;
    CHECK_OK(polylock_inspect(locks, "c-stack", &holder, NULL));
    CHECK_OK(polylock_holder_free(holder));
}

static void close_it(void *unused)
{
    (void)unused;
    CHECK_OK(polylock_close(locks, NULL));
}

struct call {
    void (*run)(void *);
    void *given;
};

static void *run(void *call)
{
    ((struct call *)call)->run(((struct call *)call)->given);
    return NULL;
}

/* What a thread uses of a painted stack that runs this. */
static size_t used_by(void (*what)(void *), void *given)
{
    struct call call;
    pthread_attr_t attributes;
    pthread_t thread;
    size_t untouched = 0;
    unsigned char *stack = mmap(NULL, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(stack != MAP_FAILED);
    memset(stack, PAINT, ROOM);
    call.run = what;
    call.given = given;
    CHECK(!pthread_attr_init(&attributes) && !pthread_attr_setstack(&attributes, stack, ROOM));
    CHECK(!pthread_create(&thread, &attributes, run, &call) && !pthread_join(thread, NULL));
    while (untouched < ROOM && stack[untouched] == PAINT)
        untouched++;
    CHECK(!munmap(stack, ROOM) && !pthread_attr_destroy(&attributes));
    return ROOM - untouched;
}

static size_t idle;

static void takes(const char *name, void (*what)(void *), void *given)
{
    size_t used = used_by(what, given) - idle;
    fprintf(stderr, "  %s: %zu bytes\n", name, used);
    CHECK(used <= STACK_KIB * 1024);
}

static void calls_take_no_more_than_they_say(void)
{
    static int on; /* its address: on the queue */
    int round;
    idle = used_by(nothing, NULL);
    takes("connect", connect_to_it, NULL);
    CHECK_OK(polylock_queue_new(&queue, NULL));
    for (round = 0; round < 2; round++) { /* the first opens connections */
        takes("acquire", acquire, NULL);
        takes("try_acquire", acquire_in_vain, NULL);
        takes("extend", extend, NULL);
        takes("inspect", inspect, NULL);
        takes("release", release, NULL);
        takes("acquire_all", acquire_several, NULL);
        takes("release of several", release, NULL);
        takes("acquire_start", start, NULL);
        takes("take", take, NULL);
        takes("release_start", start_to_release, NULL);
        takes("take", take_release, NULL);
        takes("acquire_start on a queue", start, &on);
        takes("take on a queue", take, NULL);
        takes("release_start on a queue", start_to_release, &on);
        takes("take on a queue", take_release, NULL);
    }
    takes("close", close_it, NULL);
    CHECK_OK(polylock_queue_free(queue));
    CHECK_OK(polylock_manager_free(locks));
}

/* The other servers, each with a manager of its own. */
static void on_all_servers(void)
{
    char urls[4096], *url, *rest = urls;
    const char *all = getenv("POLYLOCK_TEST_URLS");
    snprintf(urls, sizeof urls, "%s", all ? all : "memory:");
    while ((url = strtok_r(rest, " ", &rest))) {
        fprintf(stderr, " %.12s\n", url);
        setenv("POLYLOCK_TEST_REDIS", url, 1);
        calls_take_no_more_than_they_say();
    }
}

int main(void)
{
    static const struct check_case cases[] = {CASE(calls_take_no_more_than_they_say), CASE(on_all_servers)};
    return RUN("stack", cases);
}
