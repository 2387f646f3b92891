/* What the test programs share: cases that are counted. */
#ifndef POLYLOCK_TESTS_CHECK_H
#define POLYLOCK_TESTS_CHECK_H

#include <polylock.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Ends the program where something does not hold. */
#define CHECK(holds) ((holds) ? (void)0 : check_failed(__FILE__, __LINE__, #holds))
/* The status is the one that is expected. */
#define CHECK_IS(expected, call) check_is(__FILE__, __LINE__, #call, (expected), (call))
#define CHECK_OK(call) CHECK_IS(POLYLOCK_OK, call)

static inline void check_failed(const char *file, int line, const char *what)
{
    fprintf(stderr, "%s:%d: %s\n", file, line, what);
    fflush(stderr);
    _exit(1);
}

static inline void check_is(const char *file, int line, const char *call, int expected, int found)
{
    if (found != expected) {
        fprintf(stderr, "%s:%d: %s: %s instead of %s\n", file, line, call, polylock_status_name(found),
                polylock_status_name(expected));
        fflush(stderr);
        _exit(1);
    }
}

/* The kind of an error is the status that was returned, its message holds `word`, and it is freed. */
static inline void check_error(polylock_error err, int status, const char *argument, const char *word)
{
    const char *named = polylock_error_argument(err);
    CHECK(err != 0);
    CHECK_IS(status, (int)polylock_error_code(err));
    CHECK(argument ? named && !strcmp(named, argument) : !named);
    if (!strstr(polylock_error_message(err), word))
        check_failed(polylock_error_message(err), 0, word);
    CHECK_OK(polylock_error_free(err));
    CHECK_IS(POLYLOCK_ERR_INVALID_HANDLE, polylock_error_free(err));
}

static inline polylock_manager check_connect(const char *url)
{
    polylock_manager locks = 0;
    CHECK_OK(polylock_connect(url, 0, &locks, NULL));
    CHECK(locks != 0);
    return locks;
}

/* A lease with this ttl, not renewed if `renewed` is 0. */
static inline polylock_lease check_acquire(polylock_manager locks, const char *name, double ttl_ms, int renewed)
{
    polylock_lease lease = 0;
    polylock_error err = 0;
    polylock_options options = polylock_options_new();
    CHECK_OK(polylock_options_set_ttl_ms(options, ttl_ms, NULL));
    CHECK_OK(polylock_options_set_auto_extend(options, renewed != 0, NULL));
    CHECK_OK(polylock_options_set_wait_ms(options, 20000, NULL));
    if (polylock_acquire(locks, name, options, &lease, &err))
        check_failed(__FILE__, __LINE__, polylock_error_message(err));
    CHECK_OK(polylock_options_free(options));
    CHECK(lease != 0);
    return lease;
}

struct check_case {
    const char *name;
    void (*run)(void);
};

#define CASE(name) {#name, name}

static inline void check_begin(void)
{
    alarm(120); /* many times what all of it takes: a hang fails */
}

/* A program closes with this. */
static inline int check_end(const char *program, int passed)
{
    CHECK_OK(polylock_shutdown(2000));
    fflush(stderr);
    printf("%s: %d passed, 0 failed\n", program, passed);
    return 0;
}

/* Runs the cases, and closes. */
static inline int check_run(const char *program, const struct check_case *cases, size_t count)
{
    size_t i;
    check_begin();
    for (i = 0; i < count; i++) {
        fprintf(stderr, "%s\n", cases[i].name);
        cases[i].run();
    }
    return check_end(program, (int)count);
}

#define RUN(program, cases) check_run(program, cases, sizeof(cases) / sizeof(cases)[0])

#endif
