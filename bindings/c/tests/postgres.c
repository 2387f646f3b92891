/* The ids of PostgreSQL's advisory locks for names, which other programs may count on. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

/* As tests/golden/advisory_lock_ids.tsv has them. */
static const struct golden {
    const char *name, *id;
} golden[] = {
    {"a", "-8554193735040695412"},
    {"invoice:42", "-7620102459633850050"},
    {"\xc3\xbcn\xc3\xaf" "code", "-8640306424853195635"},
};

/* A manager whose names are ids finds exactly these held. */
static void ids_are_golden(void)
{
    const char *server = getenv("POLYLOCK_TEST_POSTGRES");
    char by_name[512], by_number[512];
    polylock_manager names, numbers;
    size_t i;
    if (!server) {
        fprintf(stderr, "  skipped: there is no PostgreSQL\n");
        return;
    }
    snprintf(by_name, sizeof by_name, "%s?mode=session", server);
    snprintf(by_number, sizeof by_number, "%s?mode=session&keys=number", server);
    names = check_connect(by_name);
    numbers = check_connect(by_number);
    for (i = 0; i < sizeof golden / sizeof golden[0]; i++) {
        polylock_lease held = check_acquire(names, golden[i].name, 60000, 1), out = 77;
        CHECK_IS(POLYLOCK_ERR_TIMEOUT, polylock_try_acquire(numbers, golden[i].id, 0, &out, NULL));
        CHECK_OK(polylock_release(held, NULL, NULL));
        CHECK_OK(polylock_lease_free(held));
        held = check_acquire(numbers, golden[i].id, 60000, 1);
        CHECK_OK(polylock_release(held, NULL, NULL));
        CHECK_OK(polylock_lease_free(held));
    }
    CHECK_OK(polylock_close(names, NULL));
    CHECK_OK(polylock_close(numbers, NULL));
    CHECK_OK(polylock_manager_free(names));
    CHECK_OK(polylock_manager_free(numbers));
}

int main(void)
{
    static const struct check_case cases[] = {CASE(ids_are_golden)};
    return RUN("postgres", cases);
}
