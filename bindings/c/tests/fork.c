/* Forks of a process that has threads: `fork [ROUNDS]`.
 *
 * Built without the sanitizers: AddressSanitizer's allocator does not take its locks before a fork (up to GCC 12), so
 * that a child whose parent was allocating on another thread waits for ever for one of them. */
#define _GNU_SOURCE
#include "check.h"
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/wait.h>
#ifdef __linux__
#include <sched.h>
#include <sys/syscall.h>
#endif

enum { BUSY = 6, OWN_WORK_S = 60 };

static const char *server_url(void)
{
    const char *url = getenv("POLYLOCK_TEST_REDIS");
    return url ? url : "memory:process";
}

static void lost(polylock_lease lease, polylock_loss reason, void *userdata)
{
    (void)lease, (void)reason, (void)userdata;
}

/* Waits for a child, which did all that it should. */
static void check_child(pid_t child)
{
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
        check_failed("a child of a fork", 0, "hangs");
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* Says so in a pipe. */
static void finalize(void *userdata)
{
    CHECK(write(*(int *)userdata, "f", 1) == 1);
}

/* What the child of a fork sees of its parent's objects, and what it can do by itself. */
static void in_the_child(polylock_manager locks, polylock_lease lease, polylock_future future, polylock_queue queue)
{
    polylock_error err = 0;
    polylock_manager own;
    polylock_lease out = 77;
    polylock_loss reason = POLYLOCK_LOSS_NONE;
    size_t count = 77;
    alarm(OWN_WORK_S);
    polylock_fork_child();
    CHECK_IS(POLYLOCK_ERR_FORKED, polylock_acquire(locks, "other", 0, &out, &err));
    check_error(err, POLYLOCK_ERR_FORKED, NULL, "parent");
    CHECK_IS(POLYLOCK_ERR_FORKED, polylock_release(lease, NULL, NULL));
    CHECK_IS(POLYLOCK_ERR_FORKED, polylock_extend(lease, NULL));
    CHECK_IS(POLYLOCK_ERR_FORKED, polylock_lease_on_lost(lease, lost, NULL, NULL, NULL));
    CHECK_IS(POLYLOCK_ERR_FORKED, polylock_lease_wait_lost(lease, 0, &reason, NULL));
    CHECK_IS(POLYLOCK_ERR_FORKED, polylock_future_take_lease(future, &out, NULL));
    CHECK_IS(POLYLOCK_ERR_FORKED, polylock_future_cancel(future));
    CHECK_IS(POLYLOCK_ERR_FORKED, polylock_queue_turn(queue, &out, 1, &count, NULL));
    CHECK_IS(POLYLOCK_ERR_FORKED, polylock_acquire_start(locks, "x", 0, queue, &out, NULL));
    CHECK(!polylock_lease_is_held(lease) && polylock_queue_fd(queue) == -1 && out == 77 && count == 77);
    CHECK_OK(polylock_close(locks, NULL));
    CHECK_OK(polylock_lease_free(lease));
    CHECK_OK(polylock_future_free(future));
    CHECK_OK(polylock_queue_free(queue));
    CHECK_OK(polylock_manager_free(locks));
    own = check_connect(server_url());
    CHECK_OK(polylock_lease_free(check_acquire(own, "c-fork-child", 60000, 1)));
    if (strncmp(server_url(), "memory:", 7))
        CHECK_IS(POLYLOCK_ERR_TIMEOUT, polylock_try_acquire(own, "c-fork", 0, &out, NULL)); /* the parent's */
    CHECK_OK(polylock_close(own, NULL));
    CHECK_OK(polylock_manager_free(own));
    CHECK_OK(polylock_shutdown(2000));
    _exit(0);
}

static void a_fork_leaves_everything_to_the_parent(void)
{
    int round;
    for (round = 0; round < 3; round++) {
        polylock_manager locks = check_connect(server_url());
        polylock_lease lease = check_acquire(locks, "c-fork", 60000, 1), out = 0;
        polylock_queue queue = 0;
        polylock_future future = 0;
        pid_t child;
        CHECK_OK(polylock_lease_on_lost(lease, lost, NULL, NULL, NULL));
        CHECK_OK(polylock_queue_new(&queue, NULL));
        CHECK_OK(polylock_acquire_start(locks, "c-fork", 0, round ? queue : 0, &future, NULL));
        child = fork();
        if (child == 0)
            in_the_child(locks, lease, future, queue);
        check_child(child);
        CHECK(polylock_lease_is_held(lease));
        CHECK_OK(polylock_extend(lease, NULL));
        CHECK_OK(polylock_release(lease, NULL, NULL));
        CHECK_OK(polylock_future_take_lease(future, &out, NULL));
        CHECK_OK(polylock_release(out, NULL, NULL));
        CHECK_OK(polylock_future_free(future));
        CHECK_OK(polylock_lease_free(out));
        CHECK_OK(polylock_lease_free(lease));
        CHECK_OK(polylock_queue_free(queue));
        CHECK_OK(polylock_manager_free(locks));
    }
}

static void a_finalizer_is_not_called_in_the_child(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_lease lease = check_acquire(locks, "r", 60000, 1);
    pid_t child;
    int finalized[2];
    char byte = 0;
    CHECK(!pipe(finalized));
    CHECK_OK(polylock_lease_on_lost(lease, lost, &finalized[1], finalize, NULL));
    child = fork();
    if (child == 0) {
        alarm(OWN_WORK_S);
        finalized[1] = -1; /* a finalizer here would fail to write, and end this process */
        CHECK_OK(polylock_lease_free(lease));
        CHECK_OK(polylock_shutdown(2000));
        _exit(0);
    }
    check_child(child);
    CHECK_OK(polylock_lease_free(lease));
    CHECK(read(finalized[0], &byte, 1) == 1 && byte == 'f');
    close(finalized[0]);
    close(finalized[1]);
    CHECK_OK(polylock_manager_free(locks));
}

/* What a forking callback has to know, and what it found out. */
struct forking {
    sem_t begins;
    pid_t parent, child;
    int calls[2];
};

static void fork_and_return(polylock_future future, void *userdata)
{
    struct forking *forking = userdata;
    (void)future;
    sem_wait(&forking->begins);
    forking->child = fork();
    if (forking->child == 0)
        alarm(OWN_WORK_S);
}

static void say_who(void *userdata)
{
    struct forking *forking = userdata;
    CHECK(write(forking->calls[1], getpid() == forking->parent ? "p" : "c", 1) == 1);
}

static void say_who_is_ready(polylock_future future, void *userdata)
{
    (void)future;
    say_who(userdata);
}

/* It returns twice. In the child nothing of the parent's is called, and nothing waits for ever. */
static void a_callback_may_fork(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_future one = 0, two = 0;
    struct forking forking = {.parent = getpid()};
    char said[4];
    ssize_t length = 0, more;
    CHECK(!pipe(forking.calls) && !sem_init(&forking.begins, 0, 0));
    CHECK_OK(polylock_inspect_start(locks, "r", 0, &one, NULL));
    CHECK_OK(polylock_inspect_start(locks, "r", 0, &two, NULL));
    CHECK_OK(polylock_future_on_ready(one, fork_and_return, &forking, say_who, NULL));
    CHECK_OK(polylock_future_take_holder(two, &(polylock_holder){0}, NULL));
    CHECK_OK(polylock_future_on_ready(two, say_who_is_ready, &forking, NULL, NULL));
    sem_post(&forking.begins);
    CHECK_OK(polylock_shutdown(60000));
    check_child(forking.child);
    close(forking.calls[1]);
    while ((more = read(forking.calls[0], said + length, sizeof said - (size_t)length)) > 0)
        length += more;
    CHECK(length == 2 && !memcmp(said, "pp", 2));
    close(forking.calls[0]);
    sem_destroy(&forking.begins);
    CHECK_OK(polylock_future_free(one));
    CHECK_OK(polylock_future_free(two));
    CHECK_OK(polylock_manager_free(locks));
}

/* A fork that the C library does not know of, so that no hook of pthread_atfork is called: found out all the same. Comes
 * before there is any thread, whose locks in the C library nobody would take care of in the child. */
static void a_raw_clone_is_a_fork(void)
{
#if defined(__linux__) && defined(__x86_64__)
    polylock_manager locks = check_connect("memory:");
    pid_t child = (pid_t)syscall(SYS_clone, (long)SIGCHLD, 0L, 0L, 0L, 0L);
    if (child == 0) {
        polylock_manager own;
        alarm(OWN_WORK_S);
        CHECK_IS(POLYLOCK_ERR_FORKED, polylock_inspect(locks, "r", &(polylock_holder){0}, NULL));
        own = check_connect("memory:");
        CHECK_IS(POLYLOCK_OK, polylock_inspect(own, "r", &(polylock_holder){0}, NULL));
        child = (pid_t)syscall(SYS_clone, (long)SIGCHLD, 0L, 0L, 0L, 0L); /* and so on, in the child's child */
        if (child == 0) {
            CHECK_IS(POLYLOCK_ERR_FORKED, polylock_inspect(own, "r", &(polylock_holder){0}, NULL));
            _exit(0);
        }
        check_child(child);
        CHECK_IS(POLYLOCK_OK, polylock_inspect(own, "r", &(polylock_holder){0}, NULL));
        _exit(0);
    }
    check_child(child);
    CHECK_IS(POLYLOCK_OK, polylock_inspect(locks, "r", &(polylock_holder){0}, NULL));
    CHECK_OK(polylock_manager_free(locks));
#endif
}

/* Options that every thread sets and reads, and the children too. */
static polylock_options shared_options;
static char file_url[64];

static void hear(polylock_log_level level, const char *message, void *userdata)
{
    (void)level, (void)message, (void)userdata;
}

/* Something of everything that a program does with the library, with managers, names and a queue of its own. */
static void use_everything(const char *name, int round)
{
    const char *const urls[] = {"memory:shared", file_url, server_url()};
    polylock_manager locks = check_connect(urls[round % 3]);
    polylock_queue queue = 0;
    polylock_future future = 0, ready = 0;
    polylock_lease lease = 0;
    polylock_holder holder = 0;
    polylock_error err = 0;
    size_t count = 0;
    CHECK_OK(polylock_set_log(round % 2 ? POLYLOCK_LOG_TRACE : POLYLOCK_LOG_OFF, hear, NULL, NULL, NULL));
    CHECK_OK(polylock_options_set_ttl_ms(shared_options, 60000 + round, NULL));
    CHECK_OK(polylock_options_set_label(shared_options, name, NULL));
    CHECK_OK(polylock_acquire(locks, name, shared_options, &lease, NULL));
    CHECK_OK(polylock_lease_on_lost(lease, lost, NULL, NULL, NULL));
    CHECK_OK(polylock_inspect(locks, name, &holder, NULL));
    CHECK_OK(polylock_holder_free(holder));
    CHECK_IS(POLYLOCK_ERR_TIMEOUT, polylock_try_acquire(locks, name, 0, &lease, &err));
    check_error(err, POLYLOCK_ERR_TIMEOUT, NULL, name);
    CHECK_OK(polylock_queue_new(&queue, NULL));
    CHECK_OK(polylock_acquire_start(locks, name, shared_options, round % 2 ? queue : 0, &future, NULL));
    CHECK_OK(polylock_release(lease, NULL, NULL));
    CHECK_OK(polylock_lease_free(lease));
    CHECK_OK(polylock_future_take_lease(future, &lease, NULL));
    CHECK_OK(polylock_queue_turn(queue, &ready, 1, &count, NULL));
    CHECK_OK(polylock_future_free(future));
    CHECK_OK(polylock_lease_free(lease));
    CHECK_OK(polylock_queue_free(queue));
    CHECK_OK(polylock_close(locks, NULL));
    CHECK_OK(polylock_manager_free(locks));
}

/* In a new PID namespace a child may have the number that its parent has in an older one. */
static void a_process_id_may_come_again(void)
{
#ifdef __linux__
    int status = -1;
    pid_t child = fork();
    if (child == 0) { /* has one thread, as a new user namespace wants */
        alarm(OWN_WORK_S);
        if (unshare(CLONE_NEWUSER | CLONE_NEWPID))
            _exit(9);
        child = fork();
        if (child == 0) {
            polylock_manager locks = check_connect("memory:");
            polylock_lease lease = check_acquire(locks, "r", 60000, 1);
            CHECK(getpid() == 1 && !unshare(CLONE_NEWPID));
            child = fork();
            if (child == 0) {
                alarm(OWN_WORK_S);
                CHECK(getpid() == 1);
                CHECK_IS(POLYLOCK_ERR_FORKED, polylock_extend(lease, NULL));
                CHECK_IS(POLYLOCK_ERR_FORKED, polylock_inspect(locks, "r", &(polylock_holder){0}, NULL));
                CHECK_OK(polylock_lease_free(check_acquire(check_connect("memory:"), "r", 60000, 1)));
                _exit(0);
            }
            check_child(child);
            CHECK_OK(polylock_extend(lease, NULL));
            _exit(0);
        }
        check_child(child);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
    if (WEXITSTATUS(status) == 9)
        fprintf(stderr, "skip: no namespaces are to be had here\n");
    else
        CHECK(WEXITSTATUS(status) == 0);
#endif
}

static volatile int stopped; /* only ever set, and read until it is */
static int fork_rounds = 30;

static void *be_busy(void *number)
{
    char name[32];
    int round;
    snprintf(name, sizeof name, "c-busy-%ld-%d", (long)getpid(), *(int *)number);
    for (round = *(int *)number; !stopped; round++)
        use_everything(name, round);
    return NULL;
}

/* Whatever lock a thread of the parent held during the fork, no child waits for it. */
static void a_child_waits_for_no_thread_of_its_parent(void)
{
    char directory[] = "/tmp/polylock-fork-XXXXXX", command[64];
    pthread_t busy[BUSY];
    int i, round, number[BUSY];
    CHECK(mkdtemp(directory));
    snprintf(file_url, sizeof file_url, "file://%s/locks", directory);
    shared_options = polylock_options_new();
    CHECK_OK(polylock_set_log(POLYLOCK_LOG_ERROR, hear, NULL, NULL, NULL)); /* the first call is told apart: see there */
    for (i = 0; i < BUSY; i++) {
        number[i] = i;
        CHECK(!pthread_create(&busy[i], NULL, be_busy, &number[i]));
    }
    for (round = 0; round < fork_rounds; round++) {
        pid_t child = fork();
        if (child == 0) {
            alarm(OWN_WORK_S);
            polylock_fork_child();
            for (i = 0; i < 3; i++)
                use_everything("c-busy-child", i);
            CHECK_OK(polylock_shutdown(2000));
            _exit(0);
        }
        check_child(child);
    }
    stopped = 1;
    CHECK_OK(polylock_set_log(POLYLOCK_LOG_OFF, NULL, NULL, NULL, NULL));
    for (i = 0; i < BUSY; i++)
        pthread_join(busy[i], NULL);
    CHECK_OK(polylock_options_free(shared_options));
    snprintf(command, sizeof command, "rm -r %s", directory);
    CHECK(system(command) == 0);
}

int main(int argc, char **argv)
{
    static const struct check_case cases[] = {
        CASE(a_raw_clone_is_a_fork),
        CASE(a_fork_leaves_everything_to_the_parent),
        CASE(a_finalizer_is_not_called_in_the_child),
        CASE(a_callback_may_fork),
        CASE(a_process_id_may_come_again),
        CASE(a_child_waits_for_no_thread_of_its_parent),
    };
    if (argc > 1)
        fork_rounds = atoi(argv[1]);
    return RUN("fork", cases);
}
