/*
 * Takes locks, holds them, writes under them and tells of all of it: `worker URL STORE LOG SEED NAMES SECONDS`.
 *
 * The same program exists in each language; README.md of this directory says what it does and what the lines mean.
 */
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <inttypes.h>
#include <polylock.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ANY is more than there are. */
enum { MOST_NAMES = 16, PERMITS = 2, ANY = 1000000 };

/* In ms: of a lock that its ttl does not end while it is looked whether anything is left, and how long a server may take for it. */
static const double LONG = 60000, HASTY = 200;

static int log_file, store;
static char *names[MOST_NAMES];
static unsigned count;
static uint64_t dice;

static void must(int good, const char *what)
{
    if (!good) {
        perror(what);
        exit(1);
    }
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void sleep_ms(double ms)
{
    struct timespec time;
    time.tv_sec = (time_t)(ms / 1000);
    time.tv_nsec = (long)((ms - (double)time.tv_sec * 1000) * 1e6);
    nanosleep(&time, NULL);
}

/* One line an event, each written at once: a killed worker has told all that it knew. */
static void tell_at(int64_t at, const char *event, const char *name, long attempt, const char *detail)
{
    char line[256];
    int length = snprintf(line, sizeof line, "%" PRId64 " %s %s %ld %s\n", at, event, name, attempt, detail);
    must(write(log_file, line, (size_t)length) == length, "log");
}

static void tell(const char *event, const char *name, long attempt, const char *detail)
{
    tell_at(now_ns(), event, name, attempt, detail);
}

/* To the guarded store, which refuses a token smaller than one that it has seen. */
static void write_store(const char *name, long attempt, uint64_t token)
{
    char line[256];
    int length = snprintf(line, sizeof line, "%s %" PRIu64 "\n", name, token);
    ssize_t got = 0;
    must(write(store, line, (size_t)length) == length, "store");
    do {
        ssize_t more = read(store, line + got, sizeof line - 1 - (size_t)got);
        must(more > 0, "store");
        got += more;
    } while (line[got - 1] != '\n');
    line[got - 1] = 0;
    tell("wrote", name, attempt, line);
}

/* From 0 to below 1 (xorshift64*). */
static double draw(void)
{
    dice ^= dice >> 12;
    dice ^= dice << 25;
    dice ^= dice >> 27;
    return (double)((dice * UINT64_C(2685821657736338717)) >> 11) / 9007199254740992.0;
}

static volatile sig_atomic_t fork_asked;

static void ask_to_fork(int number)
{
    (void)number;
    fork_asked = 1;
}

/* The child is told that the locks are its parent's, and ends. */
static void fork_once(polylock_manager locks, polylock_lease lease)
{
    polylock_lease none = 0;
    int status = -1;
    pid_t child = fork();
    must(child >= 0, "fork");
    if (child == 0)
        _exit(polylock_lease_is_held(lease) ||
              polylock_acquire(locks, "of the child", 0, &none, NULL) != POLYLOCK_ERR_FORKED);
    must(waitpid(child, &status, 0) == child && status == 0, "a child had its parent's locks");
}

/* Asks every few milliseconds whether the lease is still held, until the time is over. */
static void hold(polylock_manager locks, polylock_lease lease, double ms, const char *name, long attempt)
{
    int64_t ends = now_ns() + (int64_t)(ms * 1e6);
    bool held = true;
    while (held && now_ns() < ends) {
        int64_t before = now_ns();
        held = polylock_lease_is_held(lease);
        if (held)
            tell_at(before, "valid", name, attempt, "-");
        else
            tell("invalid", name, attempt, "-");
        sleep_ms(10);
        if (fork_asked) {
            fork_asked = 0;
            fork_once(locks, lease);
        }
    }
}

struct grant {
    const char *name;
    long attempt;
};

static void lost(polylock_lease lease, polylock_loss reason, void *userdata)
{
    const struct grant *grant = userdata;
    (void)lease;
    tell("lost", grant->name, grant->attempt, polylock_loss_name(reason));
}

static bool is_kind(const char *name, const char *kind)
{
    return strncmp(name, kind, strlen(kind)) == 0;
}

/* Breaks the lock of whoever has it. */
static void take_away(polylock_manager locks, const char *name, long attempt)
{
    polylock_holder holder = 0;
    bool broken = false;
    uint64_t token;
    char detail[32];

    if (polylock_inspect(locks, name, &holder, NULL) != POLYLOCK_OK) {
        sleep_ms(50);
        return;
    }
    token = polylock_holder_fencing_token(holder);
    polylock_holder_free(holder);
    if (token == 0)
        return;
    snprintf(detail, sizeof detail, "%" PRIu64, token);
    tell("breaks", name, attempt, detail);
    if (polylock_break(locks, name, token, &broken, NULL) == POLYLOCK_OK && broken)
        tell("broke", name, attempt, detail);
}

static void once(polylock_manager patient, polylock_manager hasty, const char *name, long attempt)
{
    static const double waits[] = {0, 500, 2000}, parts[] = {0, 0.1, 0.3, 1.6};
    polylock_manager locks = is_kind(name, "long:") ? hasty : patient;
    bool is_broken = is_kind(name, "own:"), lapses = is_kind(name, "lapses:");
    double lasts = is_broken ? 1000 : lapses ? 300 : 300 + (double)(int)(draw() * 700);
    double wait = waits[(int)(draw() * 3)];
    double ttl = is_kind(name, "long:") ? LONG : lasts;
    bool auto_extend = is_broken || (!lapses && draw() < 0.7), alone = true;
    double part;
    polylock_options options = polylock_options_new();
    polylock_lease lease = 0;
    polylock_outcome outcome = POLYLOCK_OUTCOME_NOT_HELD;
    polylock_status status;
    struct grant *grant;
    char detail[32];

    if (name[0] == '!') {
        polylock_options_free(options);
        take_away(locks, name + 1, attempt);
        return;
    }
    polylock_options_set_ttl_ms(options, ttl, NULL);
    polylock_options_set_wait_ms(options, wait, NULL);
    polylock_options_set_auto_extend(options, auto_extend, NULL);
    snprintf(detail, sizeof detail, "%.0f", wait);
    tell("call", name, attempt, detail);
    snprintf(detail, sizeof detail, "%.0f", ttl);
    if (!auto_extend)
        tell("lasts", name, attempt, detail);
    if (is_kind(name, "permits:")) {
        alone = false;
        polylock_options_set_permit(options, PERMITS, NULL);
    } else if (is_kind(name, "rw:") && draw() < 0.7) {
        alone = false;
        polylock_options_set_shared(options, NULL);
    }
    snprintf(detail, sizeof detail, "%d", is_kind(name, "rw:") ? ANY : PERMITS - 1);
    if (!alone)
        tell("beside", name, attempt, detail);
    status = polylock_acquire(locks, name, options, &lease, NULL);
    polylock_options_free(options);
    if (status != POLYLOCK_OK) {
        tell("failed", name, attempt, polylock_status_name(status));
        if (status != POLYLOCK_ERR_TIMEOUT)
            sleep_ms(50);
        return;
    }
    snprintf(detail, sizeof detail, "%" PRIu64, polylock_lease_fencing_token(lease));
    tell("granted", name, attempt, detail);
    must((grant = malloc(sizeof *grant)) != NULL, "malloc");
    grant->name = name, grant->attempt = attempt;
    must(polylock_lease_on_lost(lease, lost, grant, free, NULL) == POLYLOCK_OK, "on_lost");
    if (alone)
        write_store(name, attempt, polylock_lease_fencing_token(lease));
    part = is_broken || lapses ? 1.6 : parts[(int)(draw() * 4)];
    hold(locks, lease, part > 0 ? part * lasts : 20, name, attempt);
    if (draw() < 0.3) {
        tell("extend", name, attempt, "-");
        status = polylock_extend(lease, NULL);
        if (status != POLYLOCK_OK)
            tell("unextended", name, attempt, polylock_status_name(status));
        hold(locks, lease, 20, name, attempt);
    }
    /* Also if it was lost meanwhile: then the store is what stands between us and the next holder. */
    if (alone)
        write_store(name, attempt, polylock_lease_fencing_token(lease));
    tell("release", name, attempt, "-");
    must(polylock_release(lease, &outcome, NULL) == POLYLOCK_OK, "release");
    tell("released", name, attempt, polylock_outcome_name((int)outcome));
    polylock_lease_free(lease);
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct sigaction asking = {0};
    polylock_connect_options options = polylock_connect_options_new();
    polylock_manager locks = 0, hasty = 0;
    int64_t ends;
    long attempt;
    char *name;

    if (argc != 7) {
        fprintf(stderr, "usage: worker URL STORE LOG SEED NAMES SECONDS\n");
        return 2;
    }
    strncpy(address.sun_path, argv[2], sizeof address.sun_path - 1);
    must((store = socket(AF_UNIX, SOCK_STREAM, 0)) >= 0, "socket");
    must(connect(store, (struct sockaddr *)&address, sizeof address) == 0, argv[2]);
    asking.sa_handler = ask_to_fork;
    asking.sa_flags = SA_RESTART;
    must(sigaction(SIGUSR1, &asking, NULL) == 0, "sigaction");
    /* From here on it may be asked to fork. */
    must((log_file = open(argv[3], O_WRONLY | O_APPEND | O_CREAT, 0644)) >= 0, argv[3]);
    dice = strtoull(argv[4], NULL, 10) * 2 + 1;
    for (name = strtok(argv[5], ","); name && count < MOST_NAMES; name = strtok(NULL, ","))
        names[count++] = name;
    ends = now_ns() + (int64_t)(strtod(argv[6], NULL) * 1e9);
    must(polylock_connect(argv[1], 0, &locks, NULL) == POLYLOCK_OK, argv[1]);
    polylock_connect_options_set_node_timeout_ms(options, HASTY, NULL);
    must(polylock_connect(argv[1], options, &hasty, NULL) == POLYLOCK_OK, argv[1]);
    polylock_connect_options_free(options);
    for (attempt = 1; now_ns() < ends; attempt++)
        once(locks, hasty, names[(unsigned)(draw() * count)], attempt);
    once(locks, hasty, names[count - 1], attempt);
    tell("rest", "-", 0, "-");
    while (getchar() != EOF)
        ;
    polylock_close(locks, NULL);
    polylock_close(hasty, NULL);
    polylock_manager_free(locks);
    polylock_manager_free(hasty);
    polylock_shutdown(2000);
    tell("end", "-", 0, "-");
    return 0;
}
