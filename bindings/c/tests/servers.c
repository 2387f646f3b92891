/* Servers that are not there, do not let us in, or take the lock away. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>
#include <time.h>

static double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

/* Acquires with a short wait; what comes of it is an error of this kind, soon, and without the password. */
static void refused(const char *url, polylock_status expected, const char *password)
{
    polylock_manager locks = check_connect(url);
    polylock_options options = polylock_options_new();
    polylock_lease lease = 77;
    polylock_error err = 0;
    polylock_queue queue = 0;
    polylock_future future = 0;
    double began = now_ms();
    CHECK_OK(polylock_options_set_wait_ms(options, 500, NULL));
    CHECK_OK(polylock_options_set_ttl_ms(options, 2000, NULL)); /* closing waits for no longer, whoever is silent */
    CHECK_IS(expected, polylock_acquire(locks, "c-servers", options, &lease, &err));
    CHECK(!strstr(polylock_error_message(err), password) && strlen(polylock_error_message(err)) > 10);
    CHECK(!strcmp(polylock_error_resource(err), "c-servers"));
    CHECK_OK(polylock_error_free(err));
    CHECK_IS(expected, polylock_try_acquire(locks, "c-servers", options, &lease, NULL));
    CHECK_OK(polylock_queue_new(&queue, NULL));
    CHECK_OK(polylock_acquire_start(locks, "c-servers", options, queue, &future, NULL));
    CHECK_IS(expected, polylock_future_take_lease(future, &lease, NULL));
    CHECK(lease == 77 && now_ms() - began < 30000);
    CHECK_OK(polylock_future_free(future));
    CHECK_OK(polylock_queue_free(queue));
    CHECK_OK(polylock_close(locks, NULL));
    CHECK_OK(polylock_options_free(options));
    CHECK_OK(polylock_manager_free(locks));
}

/* A socket that is bound to a free port of loopback, and the URL of that port. */
static int bound(char *url, size_t size)
{
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(listener >= 0 && !bind(listener, (struct sockaddr *)&address, length));
    CHECK(!getsockname(listener, (struct sockaddr *)&address, &length));
    snprintf(url, size, "redis://:hidden@127.0.0.1:%d", ntohs(address.sin_port));
    return listener;
}

static void a_dead_server_is_unavailable(void)
{
    char url[64];
    int listener = bound(url, sizeof url); /* does not listen: connections are refused */
    refused(url, POLYLOCK_ERR_UNAVAILABLE, "hidden");
    close(listener);
}

static void a_silent_server_is_unavailable(void)
{
    char url[64];
    int listener = bound(url, sizeof url);
    CHECK(!listen(listener, 16)); /* takes connections, and never answers */
    refused(url, POLYLOCK_ERR_UNAVAILABLE, "hidden");
    close(listener);
}

/* A server with no place for another client: says so, and hangs up. */
static void *turn_away(void *listener)
{
    static const char full[] = "-ERR max number of clients reached\r\n";
    int connection;
    while ((connection = accept(*(int *)listener, NULL, NULL)) >= 0) {
        CHECK(write(connection, full, sizeof full - 1) == sizeof full - 1);
        close(connection);
    }
    return NULL;
}

/* What we write then raises no SIGPIPE, which by default ends a program. */
static void a_server_that_hangs_up_ends_no_program(void)
{
    char url[64];
    int listener = bound(url, sizeof url), i;
    pthread_t server;
    polylock_manager locks;
    polylock_lease lease = 77;
    memmove(strstr(url, ":hidden@"), strchr(url, '@') + 1, strlen(strchr(url, '@')));
    locks = check_connect(url);
    CHECK(!listen(listener, 16) && !pthread_create(&server, NULL, turn_away, &listener));
    for (i = 0; i < 200; i++)
        CHECK_IS(POLYLOCK_ERR_UNAVAILABLE, polylock_try_acquire(locks, "c-servers", 0, &lease, NULL));
    CHECK(lease == 77);
    CHECK_OK(polylock_manager_free(locks));
    shutdown(listener, SHUT_RDWR);
    CHECK(!pthread_join(server, NULL));
    close(listener);
}

static void a_wrong_password_is_told_and_not_shown(void)
{
    const char *url = getenv("POLYLOCK_TEST_REDIS_AUTH"), *host = url ? strrchr(url, '@') : NULL;
    char wrong[256];
    if (!host) {
        fprintf(stderr, "  skipped: there is no server with a password\n");
        return;
    }
    snprintf(wrong, sizeof wrong, "redis://:hidden%s", host);
    refused(wrong, POLYLOCK_ERR_AUTH, "hidden");
}

static void a_password_opens_the_server(void)
{
    const char *url = getenv("POLYLOCK_TEST_REDIS_AUTH");
    polylock_manager locks;
    if (!url)
        return;
    locks = check_connect(url);
    CHECK_OK(polylock_lease_free(check_acquire(locks, "c-servers", 5000, 1)));
    CHECK_OK(polylock_close(locks, NULL));
    CHECK_OK(polylock_manager_free(locks));
}

static void many_servers_are_one_lock(void)
{
    const char *given = getenv("POLYLOCK_TEST_REDLOCK");
    const char *urls[9];
    char list[1024], *url, *rest;
    size_t count = 0;
    polylock_manager one = 0, other = 0;
    polylock_lease lease, out = 77;
    if (!given)
        return;
    snprintf(list, sizeof list, "%s", given);
    for (url = strtok_r(list, ",", &rest); url && count < 9; url = strtok_r(NULL, ",", &rest))
        urls[count++] = url;
    CHECK_OK(polylock_connect_many(urls, count, 0, &one, NULL));
    CHECK_OK(polylock_connect_many(urls, count, 0, &other, NULL));
    lease = check_acquire(one, "c-servers", 60000, 1);
    CHECK_IS(POLYLOCK_ERR_TIMEOUT, polylock_try_acquire(other, "c-servers", 0, &out, NULL));
    CHECK_OK(polylock_release(lease, NULL, NULL));
    CHECK_OK(polylock_lease_free(lease));
    lease = check_acquire(other, "c-servers", 60000, 1);
    CHECK_OK(polylock_release(lease, NULL, NULL));
    CHECK_OK(polylock_lease_free(lease));
    CHECK_OK(polylock_manager_free(one));
    CHECK_OK(polylock_manager_free(other));
}

int main(void)
{
    static const struct check_case cases[] = {
        CASE(a_dead_server_is_unavailable),
        CASE(a_silent_server_is_unavailable),
        CASE(a_server_that_hangs_up_ends_no_program),
        CASE(a_wrong_password_is_told_and_not_shown),
        CASE(a_password_opens_the_server),
        CASE(many_servers_are_one_lock),
    };
    return RUN("servers", cases);
}
