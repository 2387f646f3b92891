import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.time.Duration;
import java.util.Arrays;
import java.util.concurrent.locks.LockSupport;
import polylock.Lease;
import polylock.LockManager;

/**
 * Adds 1 to the number in a file, many times: {@code Counter URL FILE COUNT [LOG]}.
 *
 * <p>With {@code none} for a URL it takes no lock, and loses updates when several run at once. Appends each fencing token
 * to LOG while it holds the lock. Prints one line of JSON.
 */
final class Counter {
    /** Reads, takes a moment, writes back: wrong unless nobody else does so meanwhile. */
    private static void addOne(Path path) throws IOException {
        long number = Long.parseLong(Files.readString(path).strip());
        LockSupport.parkNanos(100_000);
        // As wide as before, so that one write replaces the whole number.
        Files.write(path, String.format("%010d%n", number + 1).getBytes(), StandardOpenOption.WRITE);
    }

    public static void main(String[] args) throws IOException, InterruptedException {
        Path path = Path.of(args[1]);
        int count = Integer.parseInt(args[2]);
        double[] waits = new double[count];
        long[] tokens = new long[count];
        boolean locking = !args[0].equals("none");
        try (LockManager locks = locking ? LockManager.connect(args[0].split(",")) : null) {
            for (int i = 0; i < count; i++) {
                if (locks == null) {
                    addOne(path);
                    continue;
                }
                long began = System.nanoTime();
                try (Lease lease = locks.acquire("counter")) {
                    waits[i] = (System.nanoTime() - began) / 1e6;
                    tokens[i] = lease.fencingToken();
                    if (args.length > 3) {
                        byte[] line = (tokens[i] + "\n").getBytes();
                        Files.write(Path.of(args[3]), line, StandardOpenOption.APPEND, StandardOpenOption.CREATE);
                    }
                    addOne(path);
                }
            }
        }
        System.out.printf("{\"language\":\"java\",\"acquisitions\":%d,\"wait_ms\":%s,\"tokens\":%s}%n",
                count, Arrays.toString(waits), Arrays.toString(tokens));
        LockManager.shutdown(Duration.ofSeconds(2));
    }
}
