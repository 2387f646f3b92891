package polylock;

import java.lang.foreign.Arena;
import java.time.Duration;
import java.util.function.Function;

/**
 * How to acquire. Without any: exclusively, for 30 s at a time, renewed in the background, waiting for as long as it takes.
 * Each method gives new options; they can be kept and shared.
 */
public final class Options {
    public static final Options DEFAULTS = new Options(null, null);

    private final Options before;
    private final Function<Long, Native.Call> setting;

    private Options(Options before, Function<Long, Native.Call> setting) {
        this.before = before;
        this.setting = setting;
    }

    private Options with(Function<Long, Native.Call> setting) {
        return new Options(this, setting);
    }

    /** How long the lease lasts without renewal: the time after which a dead holder frees it. */
    public Options ttl(Duration ttl) {
        return ttlMs(milliseconds(ttl));
    }

    Options ttlMs(double ms) {
        return with(options -> err -> (int) Native.SET_TTL.invokeExact((long) options, ms, err));
    }

    /** Waits at most this long. */
    public Options waitFor(Duration wait) {
        return waitMs(milliseconds(wait));
    }

    Options waitMs(double ms) {
        return with(options -> err -> (int) Native.SET_WAIT.invokeExact((long) options, ms, err));
    }

    /** Whether the lease is renewed in the background. */
    public Options autoExtend(boolean yes) {
        return with(options -> err -> (int) Native.SET_AUTO_EXTEND.invokeExact((long) options, yes, err));
    }

    /** No renewal begins later than this after the grant. */
    public Options maxHold(Duration most) {
        return maxHoldMs(milliseconds(most));
    }

    Options maxHoldMs(double ms) {
        return with(options -> err -> (int) Native.SET_MAX_HOLD.invokeExact((long) options, ms, err));
    }

    /** What {@link Holder#label} will say. */
    public Options label(String label) {
        return with(options -> err -> {
            try (Arena arena = Arena.ofConfined()) {
                return (int) Native.SET_LABEL.invokeExact((long) options, Native.wholeText(arena, label, "label"), err);
            }
        });
    }

    /** Together with others that hold it shared. */
    public Options shared() {
        return with(options -> err -> (int) Native.SET_SHARED.invokeExact((long) options, err));
    }

    /** One of so many permits: the resource is a semaphore. */
    public Options permit(int of) {
        return with(options -> err -> (int) Native.SET_PERMIT.invokeExact((long) options, of, err));
    }

    static double milliseconds(Duration time) {
        return time.getSeconds() * 1e3 + time.getNano() / 1e6;
    }

    /** The options as the library has them, to be freed. */
    long build() {
        long options = Native.ask(() -> (long) Native.OPTIONS_NEW.invokeExact());
        try {
            set(options);
        } catch (RuntimeException e) {
            free(options);
            throw e;
        }
        return options;
    }

    private void set(long options) {
        if (before != null) {
            before.set(options);
            Native.call(setting.apply(options));
        }
    }

    static void free(long options) {
        int ignored = Native.ask(() -> (int) Native.OPTIONS_FREE.invokeExact(options));
    }
}
