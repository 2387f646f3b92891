/* Takes a lock, uses it, gives it back: `basic [URL]`. */
#include <polylock.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    polylock_manager locks = 0;
    polylock_lease lease = 0;
    polylock_error err = 0;
    const char *url = argc > 1 ? argv[1] : "redis://localhost:6379";

    if (polylock_connect(url, 0, &locks, &err) == POLYLOCK_OK &&
        polylock_acquire(locks, "invoice:42", 0, &lease, &err) == POLYLOCK_OK) {
        printf("charged, fencing token %llu\n", (unsigned long long)polylock_lease_fencing_token(lease));
        polylock_release(lease, NULL, &err);
    }
    if (err)
        fprintf(stderr, "%s\n", polylock_error_message(err));
    polylock_lease_free(lease);
    polylock_manager_free(locks);
    polylock_shutdown(2000);
    polylock_error_free(err);
    return err != 0;
}
