/*
 * Random calls from several threads at once: see calls.h. `random [SECONDS [SEED]]`
 */
#define _POSIX_C_SOURCE 200809L
#include "calls.h"
#include <time.h>

enum { THREADS = 4 };

static time_t end;

struct chooser {
    uint64_t state;
};

static uint32_t next(struct chooser *chooser)
{
    chooser->state = chooser->state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(chooser->state >> 33);
}

static void *play(void *seed)
{
    struct chooser chooser;
    uint64_t calls = 0;
    chooser.state = *(uint64_t *)seed;
    while (calls % 64 || time(NULL) < end) {
        one_call(&chooser);
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
    free_all();
    CHECK_OK(polylock_shutdown(20000));
    fprintf(stderr, "%llu calls\n", (unsigned long long)calls);
    CHECK(calls > 1000);
    printf("random: 1 passed, 0 failed\n");
    return 0;
}
