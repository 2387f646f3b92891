/* Bends the wall clock of the program it is preloaded into, by the milliseconds that stand in a file.
 *
 * The file is named by CLOCK_SHIM, holds one 64-bit number, and is mapped, so that a step takes effect at once. Raw system
 * calls only: it may be asked for the time before the program's allocator is set up. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int64_t step_ms(void) {
    static volatile int64_t *step;
    static int tried;
    if (!tried) {
        tried = 1;
        const char *path = getenv("CLOCK_SHIM");
        long fd = path ? syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC) : -1;
        if (fd >= 0) {
            long map = syscall(SYS_mmap, 0, 4096, PROT_READ, MAP_SHARED, fd, 0);
            if (map > 0) step = (volatile int64_t *)map;
            syscall(SYS_close, fd);
        }
    }
    return step ? *step : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    long failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t ns = (int64_t)now->tv_sec * 1000000000 + now->tv_nsec + step_ms() * 1000000;
        now->tv_sec = ns / 1000000000;
        now->tv_nsec = ns % 1000000000;
    }
    return failed ? -1 : 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (result) *result = precise.tv_sec;
    return precise.tv_sec;
}
