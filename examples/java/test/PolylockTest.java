package polylock;

import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/** {@code PolylockTest SCENARIOS}: runs every test here and every scenario there, and counts. */
final class PolylockTest {
    private static final Options LONG = Options.DEFAULTS.waitFor(Duration.ofMinutes(1));

    interface Test {
        void run() throws Exception;
    }

    static void check(boolean holds, Object what) {
        if (!holds) {
            throw new AssertionError(String.valueOf(what));
        }
    }

    private static PolylockException thrownBy(Test test) throws Exception {
        try {
            test.run();
        } catch (PolylockException e) {
            return e;
        }
        throw new AssertionError("nothing was thrown");
    }

    private static void until(Test test) throws Exception {
        for (int round = 0; ; round++) {
            try {
                test.run();
                return;
            } catch (AssertionError e) {
                if (round == 10_000) {
                    throw e;
                }
                Thread.sleep(5);
            }
        }
    }

    private static long count;
    private static long last;

    private static void threadsExcludeEachOther() throws Exception {
        try (LockManager locks = LockManager.connect("memory:")) {
            List<CompletableFuture<Void>> threads = new ArrayList<>();
            for (int i = 0; i < 8; i++) {
                threads.add(CompletableFuture.runAsync(() -> {
                    for (int round = 0; round < 50; round++) {
                        try (Lease lease = locks.acquire("r", LONG)) {
                            check(lease.fencingToken() > last, "tokens grow");
                            last = lease.fencingToken();
                            count++;
                        } catch (InterruptedException e) {
                            throw new AssertionError(e);
                        }
                    }
                }, command -> new Thread(command).start()));
            }
            CompletableFuture.allOf(threads.toArray(CompletableFuture[]::new)).get(1, TimeUnit.MINUTES);
            check(count == 8 * 50, count);
        }
    }

    private static void aScopeHoldsTheLock() throws Exception {
        try (LockManager locks = LockManager.connect("memory:")) {
            Lease kept;
            try (Lease lease = locks.acquire("r", Options.DEFAULTS.label("me"))) {
                kept = lease;
                check(lease.isHeld() && lease.remaining().toSeconds() > 20 && lease.ownerToken().length() == 40, lease);
                check(locks.tryAcquire("r", Options.DEFAULTS).isEmpty(), "held");
                check(locks.inspect("r").orElseThrow().equals(new Holder(lease.ownerToken(), "me", lease.fencingToken())), "holder");
                lease.extend(Duration.ofMinutes(2));
                check(lease.remaining().toSeconds() > 60, lease.remaining());
            }
            check(!kept.isHeld() && kept.release() == Lease.Outcome.NOT_HELD && locks.inspect("r").isEmpty(), "free");
            check(thrownBy(kept::extend).code() == PolylockException.Code.LOST, "lost");
        }
    }

    private static void anInterruptEndsTheWaiting() throws Exception {
        try (LockManager locks = LockManager.connect("memory:"); Lease held = locks.acquire("r")) {
            CompletableFuture<Boolean> interrupted = new CompletableFuture<>();
            Thread waiter = new Thread(() -> {
                try {
                    locks.acquire("r");
                    interrupted.complete(false);
                } catch (InterruptedException e) {
                    interrupted.complete(true);
                }
            });
            waiter.start();
            until(() -> check(locks.waiting("r") == 1, "waits"));
            waiter.interrupt();
            check(interrupted.get(1, TimeUnit.MINUTES), "interrupted");
            until(() -> check(locks.waiting("r") == 0, "has left"));
            CompletableFuture<Lease> cancelled = locks.acquireAsync("r", LONG);
            check(cancelled.cancel(true) && cancelled.isCancelled(), "cancelled");
            held.release();
            for (int round = 0; round < 200; round++) { // before, while or after it is granted
                CompletableFuture<Lease> acquiring = locks.acquireAsync("r", LONG);
                if (!acquiring.cancel(true)) {
                    acquiring.join().release();
                }
                locks.acquire("r", LONG).release();
            }
            try {
                cancelled.get();
                throw new AssertionError("it was cancelled");
            } catch (CancellationException e) {
                // as it should
            }
        }
    }

    private static void aTimeoutOfTheFutureEndsTheWaiting() throws Exception {
        try (LockManager locks = LockManager.connect("memory:"); Lease held = locks.acquire("r")) {
            CompletableFuture<Lease> late = locks.acquireAsync("r", LONG).orTimeout(1, TimeUnit.MILLISECONDS);
            try {
                late.get();
                throw new AssertionError("it is held");
            } catch (ExecutionException e) {
                check(e.getCause() instanceof TimeoutException, e);
            }
            until(() -> check(locks.waiting("r") == 0, "has left"));
        }
    }

    /** What follows may wait for other locks, as it is not on the one thread that tells of them. */
    private static void whatFollowsMayLock() throws Exception {
        try (LockManager locks = LockManager.connect("memory:")) {
            CompletableFuture<Long> chain = locks.acquireAsync("a", LONG).thenApply(lease -> {
                try (lease; Lease other = locks.acquire("b", LONG)) {
                    return other.fencingToken();
                } catch (InterruptedException e) {
                    throw new AssertionError(e);
                }
            });
            check(chain.get(1, TimeUnit.MINUTES) > 0, "chained");
            CompletableFuture<Long> again = new CompletableFuture<>();
            Lease lost = locks.acquire("r", Options.DEFAULTS.ttl(Duration.ofMillis(50)).autoExtend(false));
            lost.onLost(reason -> {
                try (Lease next = locks.acquire("r", LONG)) {
                    again.complete(next.fencingToken());
                } catch (InterruptedException e) {
                    again.completeExceptionally(e);
                }
            });
            check(again.get(1, TimeUnit.MINUTES) > lost.fencingToken(), "again");
        }
    }

    private static void aLossIsTold() throws Exception {
        try (LockManager locks = LockManager.connect("memory:")) {
            CompletableFuture<Lease.Loss> told = new CompletableFuture<>();
            Lease lease = locks.acquire("r", Options.DEFAULTS.ttl(Duration.ofMillis(50)).autoExtend(false));
            lease.onLost(told::complete);
            check(told.get(1, TimeUnit.MINUTES) == Lease.Loss.EXPIRED && lease.loss() == Lease.Loss.EXPIRED, told);
            Lease other = locks.acquire("r");
            other.onLost(reason -> told.obtrudeValue(Lease.Loss.NONE));
            other.release();
            check(told.get() == Lease.Loss.EXPIRED, "released, not lost");
        }
    }

    private static void modesAndSeveral() throws Exception {
        try (LockManager locks = LockManager.connect("memory:")) {
            try (Lease one = locks.acquire("r", Options.DEFAULTS.shared());
                    Lease two = locks.acquire("r", Options.DEFAULTS.shared())) {
                check(one.isHeld() && two.isHeld() && locks.tryAcquire("r", Options.DEFAULTS).isEmpty(), "shared");
            }
            Options permit = Options.DEFAULTS.permit(1);
            try (Lease one = locks.acquire("s", permit)) {
                check(one.isHeld() && locks.tryAcquire("s", permit).isEmpty(), "permits");
            }
            try (Lease both = locks.acquireAll(List.of("b", "a"), Options.DEFAULTS)) {
                check(both.resources().equals(List.of("a", "b")), both.resources());
                check(locks.tryAcquire("a", Options.DEFAULTS).isEmpty(), "both");
            }
        }
    }

    private static void errorsSayWhatIsWrong() throws Exception {
        PolylockException url = thrownBy(() -> LockManager.connect("nonsense"));
        check(url.code() == PolylockException.Code.INVALID_ARGUMENT && url.argument().equals("url"), url);
        check(url.code().stableName().equals("InvalidArgument"), url.code().stableName());
        LockManager locks = LockManager.connect("memory:");
        check(thrownBy(() -> locks.acquire("r", Options.DEFAULTS.ttl(Duration.ofSeconds(-1)))).argument().equals("ttl"), "ttl");
        try (Lease held = locks.acquire("r")) {
            PolylockException busy = thrownBy(() -> locks.acquire("r", Options.DEFAULTS.waitFor(Duration.ofMillis(5))));
            check(busy.isRetryable() && busy.resource().equals("r") && busy.getMessage().contains("r"), busy);
        }
        CompletableFuture<Lease> nameless = locks.acquireAsync("", Options.DEFAULTS);
        try {
            nameless.get();
            throw new AssertionError("no name");
        } catch (ExecutionException e) {
            check(((PolylockException) e.getCause()).argument().equals("resource"), e);
        }
        Options labelled = Options.DEFAULTS.label("a\0b");
        for (Test cut : new Test[] {
            () -> locks.acquire("a\0b"), () -> locks.acquireAll(List.of("a", "b\0c"), LONG), () -> locks.waiting("a\0b"),
            () -> locks.acquire("r", labelled), () -> LockManager.connect("memory:\0"),
        }) {
            check(thrownBy(cut).code() == PolylockException.Code.INVALID_ARGUMENT, cut);
        }
        locks.close();
        check(thrownBy(() -> locks.acquire("r")).code() == PolylockException.Code.CLOSED, "closed");
    }

    private static void aForgottenLeaseIsReleased() throws Exception {
        try (LockManager locks = LockManager.connect("memory:")) {
            locks.acquire("r");
            until(() -> {
                System.gc();
                check(locks.tryAcquire("r", Options.DEFAULTS).isPresent(), "collected");
            });
        }
    }

    public static void main(String[] args) throws Exception {
        Test[] tests = {
            PolylockTest::threadsExcludeEachOther, PolylockTest::aScopeHoldsTheLock, PolylockTest::anInterruptEndsTheWaiting,
            PolylockTest::aTimeoutOfTheFutureEndsTheWaiting, PolylockTest::whatFollowsMayLock, PolylockTest::aLossIsTold,
            PolylockTest::modesAndSeveral, PolylockTest::errorsSayWhatIsWrong,
            PolylockTest::aForgottenLeaseIsReleased,
        };
        int failed = 0;
        for (Test test : tests) {
            try {
                test.run();
            } catch (Throwable e) {
                e.printStackTrace();
                failed++;
            }
        }
        Scenarios scenarios = new Scenarios(Path.of(args[0]));
        scenarios.playAll();
        LockManager.shutdown(Duration.ofSeconds(10));
        failed += scenarios.failed();
        System.out.println("java: " + (tests.length + scenarios.played() - failed) + " passed, " + failed + " failed");
        System.exit(failed == 0 ? 0 : 1);
    }
}
