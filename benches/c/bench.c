/*
 * The C library on one Redis, and our two scripts over one blocking socket with nothing around them, side by side:
 * `bench HOST PORT SCRIPTS_DIRECTORY`. Prints a line of JSON.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <polylock.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 60, PAIRS = 25, WARM_UP = 5, SAMPLES = ROUNDS * PAIRS };

static int server;
static char acquire_sha[41], release_sha[41];

static void die(const char *what)
{
    fprintf(stderr, "bench: %s\n", what);
    exit(1);
}

/* Appends one word of a request. */
static size_t add(char *request, size_t used, const char *word)
{
    return used + (size_t)sprintf(request + used, "$%zu\r\n%s\r\n", strlen(word), word);
}

/* Sends a request, and reads the reply; it is small and comes in one piece. */
static void call(const char *request, size_t size, char reply[4096])
{
    ssize_t got;
    if (write(server, request, size) != (ssize_t)size)
        die("cannot write");
    got = read(server, reply, 4095);
    if (got <= 0)
        die("no reply");
    reply[got] = 0;
    if (reply[0] == '-')
        die(reply);
}

/* A script is one file, or two of which the second stands behind the first. */
static void load(const char *directory, const char *const names[2], char sha[41])
{
    static char path[4096], script[8192], request[16384], reply[4096];
    size_t used, length = 0;
    int i;
    for (i = 0; i < 2 && names[i]; i++) {
        FILE *file;
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        file = fopen(path, "rb");
        if (!file)
            die(path);
        length += fread(script + length, 1, sizeof script - 1 - length, file);
        fclose(file);
    }
    script[length] = 0;
    used = (size_t)sprintf(request, "*3\r\n");
    used = add(request, add(request, add(request, used, "SCRIPT"), "LOAD"), script);
    call(request, used, reply);
    memcpy(sha, strstr(reply, "\r\n") + 2, 40);
}

static double now(clockid_t clock)
{
    struct timespec at;
    clock_gettime(clock, &at);
    return (double)at.tv_sec * 1e6 + (double)at.tv_nsec / 1e3;
}

static void floor_pair(void)
{
    static unsigned pairs;
    static char reply[4096];
    char request[2048], owner[41], token[32], limit[32], record[128];
    double us = now(CLOCK_REALTIME);
    size_t used = (size_t)sprintf(request, "*12\r\n");
    const char *words[11];
    int i;
    sprintf(owner, "%040x", ++pairs);
    sprintf(token, "%.0f", us);
    sprintf(limit, "%.0f", us / 1e3 + 30000);
    sprintf(record, "%016.0f %s %.0f\n1\nhost\n", us, owner, us / 1e3);
    words[0] = acquire_sha;
    words[1] = "3";
    words[2] = "bench:floor";
    words[3] = "polylock:fence:{bench:floor}";
    words[4] = "polylock:writer:{bench:floor}";
    words[5] = owner;
    words[6] = "30000";
    words[7] = token;
    words[8] = limit;
    words[9] = record;
    words[10] = "86400000";
    used = add(request, used, "EVALSHA");
    for (i = 0; i < 11; i++)
        used = add(request, used, words[i]);
    call(request, used, reply);
    used = add(request, (size_t)sprintf(request, "*6\r\n"), "EVALSHA");
    used = add(request, add(request, used, release_sha), "1");
    used = add(request, add(request, used, "bench:floor"), owner);
    used = add(request, used, "polylock:wake:{bench:floor}");
    call(request, used, reply);
}

static int ascending(const void *one, const void *other)
{
    double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

static double median(double *values)
{
    qsort(values, SAMPLES, sizeof *values, ascending);
    return values[SAMPLES / 2];
}

int main(int argc, char **argv)
{
    static double ours[SAMPLES], peer[SAMPLES];
    struct sockaddr_in address;
    polylock_manager locks = 0;
    polylock_error err = 0;
    char url[128];
    int round, i, one = 1;
    if (argc != 4)
        die("usage: bench HOST PORT SCRIPTS_DIRECTORY");
    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_port = htons((unsigned short)atoi(argv[2]));
    server = socket(AF_INET, SOCK_STREAM, 0);
    if (inet_pton(AF_INET, argv[1], &address.sin_addr) != 1 ||
        connect(server, (struct sockaddr *)&address, sizeof address) != 0)
        die("cannot connect");
    setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    load(argv[3], (const char *const[]){"acquire.lua", "acquire_one.lua"}, acquire_sha);
    load(argv[3], (const char *const[]){"release.lua", NULL}, release_sha);
    snprintf(url, sizeof url, "redis://%s:%s", argv[1], argv[2]);
    if (polylock_connect(url, 0, &locks, &err) != POLYLOCK_OK)
        die(polylock_error_message(err));
    /* They take turns, so that both see the same machine. */
    for (round = -WARM_UP; round < ROUNDS; round++) {
        for (i = 0; i < PAIRS; i++) {
            polylock_lease lease = 0;
            double began = now(CLOCK_MONOTONIC);
            if (polylock_acquire(locks, "bench:ours", 0, &lease, &err) != POLYLOCK_OK ||
                polylock_release(lease, NULL, &err) != POLYLOCK_OK)
                die(polylock_error_message(err));
            polylock_lease_free(lease);
            if (round >= 0)
                ours[round * PAIRS + i] = now(CLOCK_MONOTONIC) - began;
        }
        for (i = 0; i < PAIRS; i++) {
            double began = now(CLOCK_MONOTONIC);
            floor_pair();
            if (round >= 0)
                peer[round * PAIRS + i] = now(CLOCK_MONOTONIC) - began;
        }
    }
    printf("{\"language\":\"c\",\"what\":\"acquire + release\",\"unit\":\"us\",\"ours\":%.2f,\"peer\":%.2f,"
           "\"peer_name\":\"raw socket\"}\n",
           median(ours), median(peer));
    polylock_manager_free(locks);
    polylock_shutdown(2000);
    close(server);
    return 0;
}
