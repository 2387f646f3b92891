package polylock;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.ref.Cleaner;
import java.lang.ref.Reference;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.function.Consumer;

/**
 * A lock that is or was held. Closing it releases it. One that is forgotten is released in the background when it is
 * collected; do not rely on when that is.
 */
public final class Lease implements AutoCloseable {
    /** What became of a lease that was released; UNKNOWN is released in the background, and expires by its ttl. */
    public enum Outcome { RELEASED, NOT_HELD, UNKNOWN }

    /** Why a lease was lost. */
    public enum Loss { NONE, EXPIRED, TAKEN, MAX_HOLD }

    private static final Cleaner CLEANER = Cleaner.create();

    private final long handle;

    Lease(long handle) {
        this.handle = handle;
        CLEANER.register(this, () -> {
            int ignored = Native.ask(() -> (int) Native.LEASE_FREE.invokeExact(handle));
        });
    }

    /** Asks with the handle, which stays valid for the time of the question. */
    private <T> T ask(Native.Question<T> question) {
        try {
            return Native.ask(question);
        } finally {
            Reference.reachabilityFence(this);
        }
    }

    private void call(Native.Call call) {
        try {
            Native.call(call);
        } finally {
            Reference.reachabilityFence(this);
        }
    }

    /** Greater than every earlier holder's of this resource: hand it to what you protect. */
    public long fencingToken() {
        return ask(() -> (long) Native.FENCING_TOKEN.invokeExact(handle));
    }

    /** 40 hex digits that prove ownership. */
    public String ownerToken() {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment buffer = arena.allocate(41);
            long length = ask(() -> (long) Native.OWNER_TOKEN.invokeExact(handle, buffer, buffer.byteSize()));
            return buffer.getString(0);
        }
    }

    /** What is held, in the order of the names. */
    public List<String> resources() {
        List<String> names = new ArrayList<>();
        long count = ask(() -> (long) Native.RESOURCE_COUNT.invokeExact(handle));
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment buffer = arena.allocate(1025);
            for (long i = 0; i < count; i++) {
                long index = i;
                long length = ask(() -> (long) Native.RESOURCE_AT.invokeExact(handle, index, buffer, buffer.byteSize()));
                names.add(buffer.getString(0));
            }
        }
        return names;
    }

    /** Whether the holder may act now. Asks the clock, no server; so do the next two. */
    public boolean isHeld() {
        return ask(() -> (boolean) Native.IS_HELD.invokeExact(handle));
    }

    /** How long the holder may still act. */
    public Duration remaining() {
        double ms = ask(() -> (double) Native.REMAINING.invokeExact(handle));
        return Duration.ofNanos((long) (ms * 1e6));
    }

    public Loss loss() {
        return Loss.values()[ask(() -> (int) Native.LOSS.invokeExact(handle))];
    }

    /** Calls {@code listener} once if the lease is lost, in the common pool. */
    public void onLost(Consumer<Loss> listener) {
        Native.onLost(handle, reason -> listener.accept(Loss.values()[reason]));
        Reference.reachabilityFence(this);
    }

    /** Makes it last for its ttl from now. */
    public void extend() {
        call(err -> (int) Native.EXTEND.invokeExact(handle, err));
    }

    /** Makes it last for {@code ttl} from now, and so each renewal. */
    public void extend(Duration ttl) {
        extendMs(Options.milliseconds(ttl));
    }

    void extendMs(double ms) {
        call(err -> (int) Native.EXTEND_TTL.invokeExact(handle, ms, err));
    }

    /** Frees the lock, in one round. Again is harmless. */
    public Outcome release() {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment outcome = arena.allocate(4);
            call(err -> (int) Native.RELEASE.invokeExact(handle, outcome, err));
            return Outcome.values()[outcome.get(java.lang.foreign.ValueLayout.JAVA_INT, 0)];
        }
    }

    /** Releases it; never hides an exception of the body behind one of its own. */
    @Override
    public void close() {
        release();
    }
}
