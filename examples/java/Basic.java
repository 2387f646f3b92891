import java.time.Duration;
import polylock.Lease;
import polylock.LockManager;
import polylock.Options;

/** Takes a lock: {@code Basic URL}. */
final class Basic {
    private static void charge(long token) {
        System.out.println("charged with fencing token " + token);
    }

    public static void main(String[] args) throws InterruptedException {
        Options how = Options.DEFAULTS.ttl(Duration.ofSeconds(10)).waitFor(Duration.ofSeconds(5));
        try (LockManager locks = LockManager.connect(args[0]);
                Lease lease = locks.acquire("invoice:42", how)) {
            charge(lease.fencingToken());
        }
        LockManager.shutdown(Duration.ofSeconds(2));
    }
}
