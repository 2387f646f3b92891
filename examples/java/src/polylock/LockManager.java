package polylock;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.ref.Cleaner;
import java.lang.ref.Reference;
import java.time.Duration;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;

/**
 * Makes locks on one backend. May be used by any number of threads.
 *
 * <pre>{@code
 * try (LockManager locks = LockManager.connect("redis://localhost:6379");
 *         Lease lease = locks.acquire("invoice:42", Options.DEFAULTS.ttl(Duration.ofSeconds(10)))) {
 *     charge(lease.fencingToken());
 * }
 * }</pre>
 */
public final class LockManager implements AutoCloseable {
    private static final Cleaner CLEANER = Cleaner.create();
    private static final int CAN_INSPECT = 8;

    private final long handle;

    private LockManager(long handle) {
        this.handle = handle;
        CLEANER.register(this, () -> {
            int ignored = Native.ask(() -> (int) Native.MANAGER_FREE.invokeExact(handle));
        });
    }

    /** The locks at a URL, or at several Redis URLs (Redlock). Opens no connection: see the first use. */
    public static LockManager connect(String... urls) {
        return connect(0, urls);
    }

    static LockManager connect(double nodeTimeoutMs, String... urls) {
        long options = Native.ask(() -> (long) Native.CONNECT_OPTIONS_NEW.invokeExact());
        try (Arena arena = Arena.ofConfined()) {
            if (nodeTimeoutMs != 0) {
                Native.call(err -> (int) Native.SET_NODE_TIMEOUT.invokeExact(options, nodeTimeoutMs, err));
            }
            if (urls.length == 1) {
                MemorySegment url = Native.wholeText(arena, urls[0], "url");
                return new LockManager(Native.output((out, err) -> (int) Native.CONNECT.invokeExact(url, options, out, err)));
            }
            MemorySegment texts = Native.wholeTexts(arena, List.of(urls), "url");
            return new LockManager(Native.output((out, err) ->
                    (int) Native.CONNECT_MANY.invokeExact(texts, (long) urls.length, options, out, err)));
        } finally {
            int ignored = Native.ask(() -> (int) Native.CONNECT_OPTIONS_FREE.invokeExact(options));
        }
    }

    public Lease acquire(String resource) throws InterruptedException {
        return acquire(resource, Options.DEFAULTS);
    }

    /**
     * Takes a resource, waiting as the options say. An interrupt ends the waiting, and what was or will be granted is
     * given back.
     */
    public Lease acquire(String resource, Options how) throws InterruptedException {
        return await(acquireAsync(resource, how));
    }

    /** Takes several resources exclusively: all of them or none. */
    public Lease acquireAll(List<String> resources, Options how) throws InterruptedException {
        return await(start(how, (arena, options, out, err) -> (int) Native.ACQUIRE_ALL_START.invokeExact(
                handle, Native.wholeTexts(arena, resources, "resources"), (long) resources.size(), options, 0L, out, err)));
    }

    /**
     * Begins to acquire. However the future is completed before, by cancelling or by a time-out of its own, that ends the
     * waiting, and what was or will be granted is given back.
     */
    public CompletableFuture<Lease> acquireAsync(String resource, Options how) {
        return start(how, (arena, options, out, err) -> {
            MemorySegment text = Native.text(arena, resource);
            return (int) Native.ACQUIRE_START.invokeExact(handle, text, text.byteSize() - 1, options, 0L, out, err);
        });
    }

    /** Tries once; empty if somebody else holds it. */
    public Optional<Lease> tryAcquire(String resource, Options how) {
        long options = how.build();
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment text = Native.text(arena, resource);
            return Optional.of(new Lease(Native.output((out, err) -> (int) Native.TRY_ACQUIRE.invokeExact(
                    handle, text, text.byteSize() - 1, options, out, err))));
        } catch (PolylockException e) {
            if (e.code() == PolylockException.Code.TIMEOUT) {
                return Optional.empty();
            }
            throw e;
        } finally {
            Options.free(options);
            Reference.reachabilityFence(this);
        }
    }

    private interface Starter {
        int start(Arena arena, long options, MemorySegment out, MemorySegment err) throws Throwable;
    }

    private CompletableFuture<Lease> start(Options how, Starter starter) {
        long options = how.build();
        long started;
        try (Arena arena = Arena.ofConfined()) {
            started = Native.output((out, err) -> starter.start(arena, options, out, err));
        } finally {
            Options.free(options);
            Reference.reachabilityFence(this);
        }
        long future = started;
        CompletableFuture<Lease> acquiring = new CompletableFuture<>();
        // Freeing the library's future cancels it, and gives back what was won and not taken.
        acquiring.whenComplete((lease, error) -> {
            int ignored = Native.ask(() -> (int) Native.FUTURE_FREE.invokeExact(future));
        });
        try {
            Native.onReady(future, () -> finish(acquiring, future));
        } catch (RuntimeException e) {
            acquiring.completeExceptionally(e);
            throw e;
        }
        return acquiring;
    }

    private static void finish(CompletableFuture<Lease> acquiring, long future) {
        try {
            Lease lease = new Lease(Native.output((out, err) -> (int) Native.FUTURE_TAKE_LEASE.invokeExact(future, out, err)));
            if (!acquiring.complete(lease)) {
                lease.release(); // cancelled at this moment
            }
        } catch (PolylockException e) {
            acquiring.completeExceptionally(e);
        }
    }

    private static Lease await(CompletableFuture<Lease> acquiring) throws InterruptedException {
        try {
            return acquiring.get();
        } catch (InterruptedException e) {
            if (!acquiring.cancel(true) && !acquiring.isCompletedExceptionally()) {
                acquiring.join().release(); // it was won just now
            }
            throw e;
        } catch (ExecutionException e) {
            if (e.getCause() instanceof PolylockException failed) {
                failed.addSuppressed(new Throwable("called here"));
                throw failed;
            }
            throw new AssertionError(e);
        }
    }

    /** Who holds a resource; empty if it is free. */
    public Optional<Holder> inspect(String resource) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment text = Native.text(arena, resource);
            long holder = Native.output((out, err) ->
                    (int) Native.INSPECT.invokeExact(handle, text, text.byteSize() - 1, out, err));
            if (holder == 0) {
                return Optional.empty();
            }
            return Native.ask(() -> {
                Holder found = new Holder(
                        Native.string((MemorySegment) Native.HOLDER_OWNER.invokeExact(holder)),
                        Native.string((MemorySegment) Native.HOLDER_LABEL.invokeExact(holder)),
                        (long) Native.HOLDER_TOKEN.invokeExact(holder));
                int ignored = (int) Native.HOLDER_FREE.invokeExact(holder);
                return Optional.of(found);
            });
        } finally {
            Reference.reachabilityFence(this);
        }
    }

    /** How many wait for a resource through this manager. */
    public long waiting(String resource) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment text = Native.wholeText(arena, resource, "resource");
            return Native.output((out, err) -> (int) Native.WAITING.invokeExact(handle, text, out, err));
        } finally {
            Reference.reachabilityFence(this);
        }
    }

    /** Whether {@link #inspect} works on this backend. */
    public boolean canInspect() {
        return (Native.ask(() -> (int) Native.CAPABILITIES.invokeExact(handle)) & CAN_INSPECT) != 0;
    }

    /** Ends who waits, releases the leases and lets go of connections. Again is harmless. */
    @Override
    public void close() {
        Native.call(err -> (int) Native.CLOSE.invokeExact(handle, err));
        Reference.reachabilityFence(this);
    }

    /** Releases every lease of the process and stops the library's threads, within about {@code limit}. */
    public static void shutdown(Duration limit) {
        double ms = Options.milliseconds(limit);
        Native.call(err -> (int) Native.SHUTDOWN.invokeExact(ms));
    }
}
