/* Plays tests/scenarios/ through the C API: `scenarios DIRECTORY`. The README there has the format. */
#define _POSIX_C_SOURCE 200809L
#include <dirent.h>
#include <pthread.h>
#include <polylock.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 200, WORDS = 16, TEXT = 2048 };

struct actor {
    polylock_manager locks;
    polylock_lease lease;
    uint64_t token, token_before;
    polylock_future pending;
};

/* One URL's run over all files, on a thread of its own. */
struct run {
    const char *url;
    int number, played, failed;
};

/* One scenario that is being played. */
struct play {
    char url[TEXT], prefix[64];
    struct actor actors[26];
    int words;
    char *word[WORDS];
};

extern char **environ;
static char *files[MOST];
static int file_count;

static void die(const char *what, const char *about)
{
    fprintf(stderr, "scenarios: %s: %s\n", what, about);
    exit(1);
}

static void sleep_ms(double ms)
{
    struct timespec time;
    time.tv_sec = (time_t)(ms / 1e3);
    time.tv_nsec = (long)((ms - (double)time.tv_sec * 1e3) * 1e6);
    nanosleep(&time, NULL);
}

/* The value of a key=, or NULL. */
static const char *key(const struct play *play, const char *name)
{
    int i;
    size_t length = strlen(name);
    for (i = 1; i < play->words; i++)
        if (!strncmp(play->word[i], name, length) && play->word[i][length] == '=')
            return play->word[i] + length + 1;
    return NULL;
}

/* The real name of a resource, and its length. */
static size_t real_name(const struct play *play, const char *word, char *name)
{
    if (!strcmp(word, "<empty>"))
        return name[0] = 0, (size_t)0;
    if (!strcmp(word, "<long>"))
        return memset(name, 'x', 1025), name[1025] = 0, (size_t)1025;
    if (!strcmp(word, "<nul>"))
        return memcpy(name, "a\0b", 4), (size_t)3;
    if (!strcmp(word, "<invalid-utf8>"))
        return memcpy(name, "\xff\xfe", 3), (size_t)2;
    return (size_t)snprintf(name, TEXT, "%s:%s", play->prefix, word);
}

static polylock_status set_options(const struct play *play, polylock_options options, polylock_error *err)
{
    const char *ttl = key(play, "ttl"), *wait = key(play, "wait"), *auto_extend = key(play, "auto_extend");
    const char *max_hold = key(play, "max_hold"), *label = key(play, "label");
    polylock_status status = polylock_options_set_ttl_ms(options, ttl ? strtod(ttl, NULL) : 5000, err);
    if (status == POLYLOCK_OK) {
        if (!wait || !strcmp(wait, "none"))
            status = polylock_options_set_no_wait(options, err);
        else if (!strcmp(wait, "forever"))
            status = polylock_options_set_wait_forever(options, err);
        else
            status = polylock_options_set_wait_ms(options, strtod(wait, NULL), err);
    }
    if (status == POLYLOCK_OK && auto_extend)
        status = polylock_options_set_auto_extend(options, !strcmp(auto_extend, "true"), err);
    if (status == POLYLOCK_OK && max_hold)
        status = polylock_options_set_max_hold_ms(options, strtod(max_hold, NULL), err);
    if (status == POLYLOCK_OK && label)
        status = polylock_options_set_label(options, label, err);
    return status;
}

static void took(struct actor *actor, polylock_lease lease)
{
    polylock_lease_free(actor->lease);
    actor->lease = lease;
    actor->token_before = actor->token;
    actor->token = polylock_lease_fencing_token(lease);
}

/* Steps that acquire. */
static polylock_status acquire(struct play *play, struct actor *actor, char *outcome, polylock_error *err)
{
    char name[TEXT];
    size_t length = real_name(play, play->word[2], name);
    int try = !strcmp(play->word[1], "try"), behind = !strcmp(play->word[play->words - 1], "&");
    polylock_lease lease = 0;
    polylock_options options = polylock_options_new();
    polylock_status status = set_options(play, options, err);
    if (status == POLYLOCK_OK && behind)
        status = polylock_acquire_start_n(actor->locks, name, length, options, 0, &actor->pending, err);
    else if (status == POLYLOCK_OK && try)
        status = polylock_try_acquire_n(actor->locks, name, length, options, &lease, err);
    else if (status == POLYLOCK_OK)
        status = polylock_acquire_n(actor->locks, name, length, options, &lease, err);
    polylock_options_free(options);
    if (try && status == POLYLOCK_ERR_TIMEOUT) {
        polylock_error_free(*err);
        *err = 0;
        strcpy(outcome, "busy");
        return POLYLOCK_OK;
    }
    if (status == POLYLOCK_OK && !behind) {
        took(actor, lease);
        strcpy(outcome, "ok");
    }
    return status;
}

/* Steps about what was begun. */
static polylock_status finish(struct play *play, struct actor *actor, char *outcome, polylock_error *err)
{
    polylock_lease lease = 0;
    polylock_status status;
    if (!strcmp(play->word[1], "cancel")) {
        strcpy(outcome, polylock_future_is_ready(actor->pending) ? "too late" : "cancelled");
        status = polylock_future_cancel(actor->pending);
    } else {
        status = polylock_future_take_lease(actor->pending, &lease, err);
        if (status == POLYLOCK_OK) {
            took(actor, lease);
            strcpy(outcome, "ok");
        }
    }
    polylock_future_free(actor->pending);
    actor->pending = 0;
    return status;
}

static polylock_status inspect(struct play *play, struct actor *actor, char *outcome, polylock_error *err)
{
    char name[TEXT];
    polylock_holder holder = 0;
    polylock_status status;
    const char *label;
    real_name(play, play->word[2], name);
    status = polylock_inspect(actor->locks, name, &holder, err);
    label = polylock_holder_label(holder);
    snprintf(outcome, TEXT, "%s%s%s", holder ? "held" : "free", label ? ":" : "", label ? label : "");
    polylock_holder_free(holder);
    return status;
}

static polylock_status waiting(struct play *play, struct actor *actor, const char *expected, char *outcome,
                               polylock_error *err)
{
    char name[TEXT];
    size_t count = 0;
    int round;
    real_name(play, play->word[2], name);
    for (round = 0; round < 1000; round++) {
        polylock_status status = polylock_waiting(actor->locks, name, &count, err);
        snprintf(outcome, TEXT, "%u", (unsigned)count);
        if (status != POLYLOCK_OK || !strcmp(outcome, expected))
            return status;
        sleep_ms(5);
    }
    return POLYLOCK_OK;
}

/* Steps about an actor's lease. */
static polylock_status ask(struct play *play, struct actor *actor, char *outcome, polylock_error *err)
{
    const char *action = play->word[1], *ttl = key(play, "ttl");
    polylock_status status = POLYLOCK_OK;
    if (!strcmp(action, "release")) {
        polylock_outcome released = POLYLOCK_OUTCOME_UNKNOWN;
        status = polylock_release(actor->lease, &released, err);
        strcpy(outcome, polylock_outcome_name(released));
    } else if (!strcmp(action, "extend")) {
        status = ttl ? polylock_extend_ttl(actor->lease, strtod(ttl, NULL), err) : polylock_extend(actor->lease, err);
        strcpy(outcome, "ok");
    } else if (!strcmp(action, "held")) {
        strcpy(outcome, polylock_lease_is_held(actor->lease) ? "true" : "false");
    } else if (!strcmp(action, "remaining")) {
        snprintf(outcome, TEXT, "%ld", (long)polylock_lease_remaining_ms(actor->lease));
    } else if (!strcmp(action, "newer_than_before")) {
        strcpy(outcome, actor->token > actor->token_before ? "true" : "false");
    } else if (!strcmp(action, "newer_than")) {
        strcpy(outcome, actor->token > play->actors[play->word[2][0] - 'A'].token ? "true" : "false");
    } else if (!strcmp(action, "lost")) {
        polylock_loss reason = POLYLOCK_LOSS_NONE;
        status = polylock_lease_wait_lost(actor->lease, strtod(key(play, "within"), NULL), &reason, err);
        if (status == POLYLOCK_ERR_TIMEOUT) {
            polylock_error_free(*err);
            *err = 0;
            status = POLYLOCK_OK;
        }
        strcpy(outcome, polylock_loss_name(reason));
    } else {
        die("unknown action", action);
    }
    return status;
}

static void break_lock(struct play *play, char *outcome)
{
    char name[TEXT], *program = getenv("POLYLOCK_TEST_BREAK"), *arguments[3];
    int status = 0;
    pid_t pid;
    real_name(play, play->word[1], name);
    if (!program)
        die("not set", "POLYLOCK_TEST_BREAK");
    arguments[0] = program, arguments[1] = name, arguments[2] = NULL;
    if (posix_spawn(&pid, program, NULL, NULL, arguments, environ) || waitpid(pid, &status, 0) < 0 || status)
        strcpy(outcome, "not broken");
}

/* With time for an answer: a busy machine is no dead server. */
static polylock_manager connect_to(const char *url)
{
    polylock_connect_options options = polylock_connect_options_new();
    polylock_manager locks = 0;
    polylock_error err = 0;
    if (polylock_connect_options_set_node_timeout_ms(options, 2000, &err) != POLYLOCK_OK ||
        polylock_connect(url, options, &locks, &err) != POLYLOCK_OK)
        die(url, polylock_error_message(err));
    polylock_connect_options_free(options);
    return locks;
}

static polylock_status act(struct play *play, const char *expected, char *outcome, polylock_error *err)
{
    const char *action = play->words > 1 ? play->word[1] : "";
    struct actor *actor;
    if (!strcmp(play->word[0], "sleep"))
        return sleep_ms(strtod(action, NULL)), POLYLOCK_OK;
    if (!strcmp(play->word[0], "break"))
        return break_lock(play, outcome), POLYLOCK_OK;
    if (play->word[0][0] < 'A' || play->word[0][0] > 'Z' || play->word[0][1])
        die("no actor", play->word[0]);
    actor = &play->actors[play->word[0][0] - 'A'];
    if (!actor->locks)
        actor->locks = connect_to(play->url);
    if (!strcmp(action, "acquire") || !strcmp(action, "try"))
        return acquire(play, actor, outcome, err);
    if (!strcmp(action, "join") || !strcmp(action, "cancel"))
        return finish(play, actor, outcome, err);
    if (!strcmp(action, "inspect"))
        return inspect(play, actor, outcome, err);
    if (!strcmp(action, "waiting"))
        return waiting(play, actor, expected, outcome, err);
    if (!strcmp(action, "close"))
        return strcpy(outcome, "ok"), polylock_close(actor->locks, err);
    return ask(play, actor, outcome, err);
}

/* Plays one step; says whether its outcome fits. */
static int step(struct play *play, char *line, const char *place)
{
    char outcome[TEXT] = "", nothing[1] = "", *expected = strstr(line, " => "), *rest, *word;
    polylock_error err = 0;
    polylock_status status;
    char *range;
    int fits;
    if (expected) {
        *expected = 0;
        expected += 4;
    } else {
        expected = nothing;
    }
    play->words = 0;
    for (word = strtok_r(line, " ", &rest); word && play->words < WORDS; word = strtok_r(NULL, " ", &rest))
        play->word[play->words++] = word;
    status = act(play, expected, outcome, &err);
    if (status != POLYLOCK_OK) {
        const char *argument = polylock_error_argument(err);
        snprintf(outcome, TEXT, "%s%s%s", polylock_status_name(status), argument ? ":" : "", argument ? argument : "");
    }
    range = strstr(expected, "..");
    fits = range ? strtol(outcome, NULL, 10) >= strtol(expected, NULL, 10) &&
                       strtol(outcome, NULL, 10) <= strtol(range + 2, NULL, 10)
                 : !strcmp(outcome, expected);
    if (!fits)
        fprintf(stderr, "%s (on %s): expected %s, not %s (%s)\n", place, play->url, expected, outcome,
                polylock_error_message(err));
    polylock_error_free(err);
    return fits;
}

/* Whether the backend can do what a line of needs asks for. */
static int can(const char *url, const char *needs)
{
    polylock_manager locks = 0;
    int can = 1;
    if (strstr(needs, "break"))
        can = can && strncmp(url, "memory:", 7) != 0;
    if (strstr(needs, "inspect")) {
        can = can && polylock_connect(url, 0, &locks, NULL) == POLYLOCK_OK;
        can = can && (polylock_capabilities(locks) & POLYLOCK_CAN_INSPECT);
        polylock_manager_free(locks);
    }
    return can;
}

static void play_file(struct run *run, const char *path, int number)
{
    char line[TEXT], place[2 * TEXT];
    struct play play;
    FILE *file = fopen(path, "r");
    int i, line_number = 0, steps = 0, good = 1, playable = 1;
    if (!file)
        die("cannot be read", path);
    memset(&play, 0, sizeof play);
    snprintf(play.prefix, sizeof play.prefix, "c-%ld-%d-%d", (long)getpid(), run->number, number);
    snprintf(play.url, sizeof play.url, "%s%s", run->url, strcmp(run->url, "memory:") ? "" : play.prefix);
    while (good && playable && fgets(line, sizeof line, file)) {
        line_number++;
        line[strcspn(line, "\n")] = 0;
        if (!line[0] || line[0] == '#' || !strncmp(line, "name: ", 6))
            continue;
        if (!strncmp(line, "needs: ", 7)) {
            playable = can(play.url, line + 7);
            continue;
        }
        snprintf(place, sizeof place, "%s:%d: %s", path, line_number, line);
        good = step(&play, line, place);
        steps++;
    }
    fclose(file);
    for (i = 0; i < 26; i++) {
        polylock_future_free(play.actors[i].pending);
        if (play.actors[i].locks)
            polylock_close(play.actors[i].locks, NULL);
        polylock_lease_free(play.actors[i].lease);
        polylock_manager_free(play.actors[i].locks);
    }
    run->played += playable && steps > 0;
    run->failed += !good || (playable && !steps);
}

static void *play_all(void *argument)
{
    struct run *run = argument;
    int i;
    for (i = 0; i < file_count; i++)
        play_file(run, files[i], i);
    return NULL;
}

static void list_files(const char *path)
{
    DIR *directory = opendir(path);
    struct dirent *entry;
    if (!directory)
        die("no directory", path);
    while ((entry = readdir(directory))) {
        char *file;
        if (entry->d_name[0] == '.' || !strcmp(entry->d_name, "README.md"))
            continue;
        if (file_count == MOST || !(file = malloc(TEXT)))
            die("too many files", path);
        snprintf(file, TEXT, "%s/%s", path, entry->d_name);
        files[file_count++] = file;
    }
    closedir(directory);
    if (file_count < 20)
        die("too few scenarios", path);
}

int main(int argc, char **argv)
{
    const char *given = getenv("POLYLOCK_TEST_URLS");
    char urls[TEXT], *url, *rest;
    struct run runs[16];
    pthread_t threads[16];
    int i, count = 0, played = 0, failed = 0;
    if (argc != 2)
        die("usage", "scenarios DIRECTORY");
    alarm(600); /* longer than all of it takes: a hang fails */
    list_files(argv[1]);
    snprintf(urls, sizeof urls, "%s", given ? given : "memory:");
    for (url = strtok_r(urls, " ", &rest); url && count < 16; url = strtok_r(NULL, " ", &rest)) {
        memset(&runs[count], 0, sizeof runs[count]);
        runs[count].url = url;
        runs[count].number = count;
        if (pthread_create(&threads[count], NULL, play_all, &runs[count]))
            die("no thread", url);
        count++;
    }
    for (i = 0; i < count; i++) {
        pthread_join(threads[i], NULL);
        printf("%s: %d of %d scenarios, %d failed\n", runs[i].url, runs[i].played, file_count, runs[i].failed);
        played += runs[i].played - runs[i].failed;
        failed += runs[i].failed + !runs[i].played;
    }
    for (i = 0; i < file_count; i++)
        free(files[i]);
    polylock_shutdown(2000);
    printf("scenarios: %d passed, %d failed\n", played, failed);
    return failed > 0 || !played;
}
