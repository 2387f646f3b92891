/*
 * Adds 1 to the number in a file, many times: `counter URL FILE COUNT [LOG]`.
 *
 * With `none` for a URL it takes no lock, and loses updates when several run at once. Appends each fencing token to
 * LOG while it holds the lock. Prints one line of JSON.
 */
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <inttypes.h>
#include <polylock.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void must(int good, const char *what)
{
    if (!good) {
        perror(what);
        exit(1);
    }
}

static void must_lock(polylock_status status, const polylock_error *err)
{
    if (status != POLYLOCK_OK) {
        fprintf(stderr, "%s: %s\n", polylock_status_name(status), polylock_error_message(*err));
        exit(1);
    }
}

static double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

/* Reads, takes a moment, writes back: wrong unless nobody else does so meanwhile. */
static void add_one(const char *path)
{
    const struct timespec moment = {0, 100000};
    char text[32] = "";
    int file = open(path, O_RDWR), length;
    must(file >= 0 && read(file, text, sizeof text - 1) > 0, path);
    nanosleep(&moment, NULL);
    /* As wide as before, so that one write replaces the whole number. */
    length = snprintf(text, sizeof text, "%010ld\n", strtol(text, NULL, 10) + 1);
    must(pwrite(file, text, (size_t)length, 0) == length && close(file) == 0, path);
}

int main(int argc, char **argv)
{
    polylock_manager locks = 0;
    polylock_error err = 0;
    FILE *log = NULL;
    long i, count;
    double *waits;
    uint64_t *tokens;

    if (argc < 4) {
        fprintf(stderr, "usage: counter URL FILE COUNT [LOG]\n");
        return 2;
    }
    count = strtol(argv[3], NULL, 10);
    must(count > 0, "COUNT");
    waits = malloc((size_t)count * sizeof *waits);
    tokens = malloc((size_t)count * sizeof *tokens);
    must(waits && tokens, "malloc");
    if (strcmp(argv[1], "none") != 0)
        must_lock(polylock_connect(argv[1], 0, &locks, &err), &err);
    if (argc > 4)
        must((log = fopen(argv[4], "a")) != NULL, argv[4]);

    for (i = 0; i < count; i++) {
        polylock_lease lease = 0;
        double began = now_ms();
        if (locks)
            must_lock(polylock_acquire(locks, "counter", 0, &lease, &err), &err);
        waits[i] = now_ms() - began;
        tokens[i] = polylock_lease_fencing_token(lease);
        if (log && lease)
            must(fprintf(log, "%" PRIu64 "\n", tokens[i]) > 0 && fflush(log) == 0, argv[4]);
        add_one(argv[2]);
        if (lease)
            must_lock(polylock_release(lease, NULL, &err), &err);
        polylock_lease_free(lease);
    }

    printf("{\"language\":\"c\",\"acquisitions\":%ld,\"wait_ms\":[", count);
    for (i = 0; i < count; i++)
        printf("%s%.3f", i ? "," : "", waits[i]);
    printf("],\"tokens\":[");
    for (i = 0; locks && i < count; i++)
        printf("%s%" PRIu64, i ? "," : "", tokens[i]);
    printf("]}\n");
    if (log)
        fclose(log);
    free(waits);
    free(tokens);
    polylock_manager_free(locks);
    polylock_shutdown(2000);
    return 0;
}
