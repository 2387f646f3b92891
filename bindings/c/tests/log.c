/* The log through a callback. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"
#include <pthread.h>
#include <semaphore.h>

struct heard {
    pthread_t thread;
    int count, worst;
    char last[512];
    sem_t something, finalized;
};

static void hear(polylock_log_level level, const char *message, void *userdata)
{
    struct heard *heard = userdata;
    heard->thread = pthread_self();
    heard->count++;
    if (!heard->worst || (int)level < heard->worst)
        heard->worst = (int)level;
    snprintf(heard->last, sizeof heard->last, "%s", message);
    sem_post(&heard->something);
}

static void finalize(void *userdata)
{
    sem_post(&((struct heard *)userdata)->finalized);
}

static void listen(struct heard *heard, int level)
{
    memset(heard, 0, sizeof *heard);
    CHECK(!sem_init(&heard->something, 0, 0) && !sem_init(&heard->finalized, 0, 0));
    CHECK_OK(polylock_set_log(level, hear, heard, finalize, NULL));
}

/* A lease that is lost is worth a warning. */
static void lose_a_lease(void)
{
    polylock_manager locks = check_connect("memory:");
    polylock_lease lease = check_acquire(locks, "lost%s%n", 20, 0);
    polylock_loss reason = POLYLOCK_LOSS_NONE;
    CHECK_OK(polylock_lease_wait_lost(lease, POLYLOCK_FOREVER, &reason, NULL));
    CHECK_OK(polylock_lease_free(lease));
    CHECK_OK(polylock_manager_free(locks));
}

static void messages_come_up_to_their_level(void)
{
    struct heard all, few;
    listen(&all, POLYLOCK_LOG_WARN);
    lose_a_lease();
    sem_wait(&all.something);
    CHECK(!pthread_equal(all.thread, pthread_self()));
    listen(&few, POLYLOCK_LOG_ERROR); /* takes the place of the first */
    sem_wait(&all.finalized);
    CHECK(all.count == 1 && all.worst == POLYLOCK_LOG_WARN);
    CHECK(!strncmp(all.last, "lease lost", 10) && strstr(all.last, "lost%s%n") && strstr(all.last, "expired"));
    lose_a_lease();
    CHECK_OK(polylock_set_log(POLYLOCK_LOG_OFF, NULL, NULL, NULL, NULL));
    sem_wait(&few.finalized);
    CHECK(few.count == 0);
}

static void bad_arguments_are_named(void)
{
    struct heard heard;
    polylock_error err = 0;
    memset(&heard, 0, sizeof heard);
    CHECK(!sem_init(&heard.finalized, 0, 0));
    CHECK_IS(POLYLOCK_ERR_INVALID_ARGUMENT, polylock_set_log(POLYLOCK_LOG_INFO, NULL, &heard, finalize, &err));
    check_error(err, POLYLOCK_ERR_INVALID_ARGUMENT, "callback", "NULL");
    sem_wait(&heard.finalized);
    CHECK_IS(POLYLOCK_ERR_INVALID_ARGUMENT, polylock_set_log(6, hear, &heard, finalize, &err));
    check_error(err, POLYLOCK_ERR_INVALID_ARGUMENT, "level", "LOG");
    sem_wait(&heard.finalized);
    CHECK_IS(POLYLOCK_ERR_INVALID_ARGUMENT, polylock_set_log(-1, hear, &heard, finalize, NULL));
    sem_wait(&heard.finalized);
}

int main(void)
{
    static const struct check_case cases[] = {
        CASE(messages_come_up_to_their_level),
        CASE(bad_arguments_are_named),
    };
    return RUN("log", cases);
}
