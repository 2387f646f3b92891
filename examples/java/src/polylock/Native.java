package polylock;

import static java.lang.foreign.ValueLayout.ADDRESS;
import static java.lang.foreign.ValueLayout.JAVA_BOOLEAN;
import static java.lang.foreign.ValueLayout.JAVA_DOUBLE;
import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.invoke.MethodHandle;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.MethodType;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ForkJoinPool;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.IntConsumer;

/** The functions of the C library. Handles are numbers, and stay numbers here. */
final class Native {
    private static final Linker LINKER = Linker.nativeLinker();
    private static final SymbolLookup LIBRARY = library();

    static final MethodHandle STATUS_NAME = function("polylock_status_name", ADDRESS, JAVA_INT);
    static final MethodHandle VERSION = function("polylock_version", ADDRESS);
    static final MethodHandle SHUTDOWN = function("polylock_shutdown", JAVA_INT, JAVA_DOUBLE);

    static final MethodHandle ERROR_MESSAGE = function("polylock_error_message", ADDRESS, JAVA_LONG);
    static final MethodHandle ERROR_ARGUMENT = function("polylock_error_argument", ADDRESS, JAVA_LONG);
    static final MethodHandle ERROR_RESOURCE = function("polylock_error_resource", ADDRESS, JAVA_LONG);
    static final MethodHandle ERROR_IS_RETRYABLE = function("polylock_error_is_retryable", JAVA_BOOLEAN, JAVA_LONG);
    static final MethodHandle ERROR_FREE = function("polylock_error_free", JAVA_INT, JAVA_LONG);

    static final MethodHandle CONNECT_OPTIONS_NEW = function("polylock_connect_options_new", JAVA_LONG);
    static final MethodHandle SET_NODE_TIMEOUT =
            function("polylock_connect_options_set_node_timeout_ms", JAVA_INT, JAVA_LONG, JAVA_DOUBLE, ADDRESS);
    static final MethodHandle CONNECT_OPTIONS_FREE = function("polylock_connect_options_free", JAVA_INT, JAVA_LONG);
    static final MethodHandle CONNECT_MANY =
            function("polylock_connect_many", JAVA_INT, ADDRESS, JAVA_LONG, JAVA_LONG, ADDRESS, ADDRESS);
    static final MethodHandle CONNECT = function("polylock_connect", JAVA_INT, ADDRESS, JAVA_LONG, ADDRESS, ADDRESS);
    static final MethodHandle CAPABILITIES = function("polylock_capabilities", JAVA_INT, JAVA_LONG);
    static final MethodHandle WAITING = function("polylock_waiting", JAVA_INT, JAVA_LONG, ADDRESS, ADDRESS, ADDRESS);
    static final MethodHandle CLOSE = function("polylock_close", JAVA_INT, JAVA_LONG, ADDRESS);
    static final MethodHandle MANAGER_FREE = function("polylock_manager_free", JAVA_INT, JAVA_LONG);

    static final MethodHandle OPTIONS_NEW = function("polylock_options_new", JAVA_LONG);
    static final MethodHandle SET_TTL = setter("ttl_ms", JAVA_DOUBLE);
    static final MethodHandle SET_WAIT = setter("wait_ms", JAVA_DOUBLE);
    static final MethodHandle SET_AUTO_EXTEND = setter("auto_extend", JAVA_BOOLEAN);
    static final MethodHandle SET_MAX_HOLD = setter("max_hold_ms", JAVA_DOUBLE);
    static final MethodHandle SET_LABEL = setter("label", ADDRESS);
    static final MethodHandle SET_PERMIT = setter("permit", JAVA_INT);
    static final MethodHandle SET_SHARED = function("polylock_options_set_shared", JAVA_INT, JAVA_LONG, ADDRESS);
    static final MethodHandle OPTIONS_FREE = function("polylock_options_free", JAVA_INT, JAVA_LONG);

    static final MethodHandle TRY_ACQUIRE = function(
            "polylock_try_acquire_n", JAVA_INT, JAVA_LONG, ADDRESS, JAVA_LONG, JAVA_LONG, ADDRESS, ADDRESS);
    static final MethodHandle ACQUIRE_START = function(
            "polylock_acquire_start_n", JAVA_INT, JAVA_LONG, ADDRESS, JAVA_LONG, JAVA_LONG, JAVA_LONG, ADDRESS, ADDRESS);
    static final MethodHandle ACQUIRE_ALL_START = function(
            "polylock_acquire_all_start", JAVA_INT, JAVA_LONG, ADDRESS, JAVA_LONG, JAVA_LONG, JAVA_LONG, ADDRESS, ADDRESS);
    static final MethodHandle FUTURE_ON_READY =
            function("polylock_future_on_ready", JAVA_INT, JAVA_LONG, ADDRESS, ADDRESS, ADDRESS, ADDRESS);
    static final MethodHandle FUTURE_TAKE_LEASE =
            function("polylock_future_take_lease", JAVA_INT, JAVA_LONG, ADDRESS, ADDRESS);
    static final MethodHandle FUTURE_FREE = function("polylock_future_free", JAVA_INT, JAVA_LONG);

    static final MethodHandle FENCING_TOKEN = function("polylock_lease_fencing_token", JAVA_LONG, JAVA_LONG);
    static final MethodHandle OWNER_TOKEN =
            function("polylock_lease_owner_token", JAVA_LONG, JAVA_LONG, ADDRESS, JAVA_LONG);
    static final MethodHandle RESOURCE_COUNT = function("polylock_lease_resource_count", JAVA_LONG, JAVA_LONG);
    static final MethodHandle RESOURCE_AT =
            function("polylock_lease_resource_at", JAVA_LONG, JAVA_LONG, JAVA_LONG, ADDRESS, JAVA_LONG);
    static final MethodHandle IS_HELD = function("polylock_lease_is_held", JAVA_BOOLEAN, JAVA_LONG);
    static final MethodHandle REMAINING = function("polylock_lease_remaining_ms", JAVA_DOUBLE, JAVA_LONG);
    static final MethodHandle LOSS = function("polylock_lease_loss", JAVA_INT, JAVA_LONG);
    static final MethodHandle ON_LOST =
            function("polylock_lease_on_lost", JAVA_INT, JAVA_LONG, ADDRESS, ADDRESS, ADDRESS, ADDRESS);
    static final MethodHandle EXTEND = function("polylock_extend", JAVA_INT, JAVA_LONG, ADDRESS);
    static final MethodHandle EXTEND_TTL = function("polylock_extend_ttl", JAVA_INT, JAVA_LONG, JAVA_DOUBLE, ADDRESS);
    static final MethodHandle RELEASE = function("polylock_release", JAVA_INT, JAVA_LONG, ADDRESS, ADDRESS);
    static final MethodHandle LEASE_FREE = function("polylock_lease_free", JAVA_INT, JAVA_LONG);

    static final MethodHandle INSPECT =
            function("polylock_inspect_n", JAVA_INT, JAVA_LONG, ADDRESS, JAVA_LONG, ADDRESS, ADDRESS);
    static final MethodHandle HOLDER_OWNER = function("polylock_holder_owner", ADDRESS, JAVA_LONG);
    static final MethodHandle HOLDER_LABEL = function("polylock_holder_label", ADDRESS, JAVA_LONG);
    static final MethodHandle HOLDER_TOKEN = function("polylock_holder_fencing_token", JAVA_LONG, JAVA_LONG);
    static final MethodHandle HOLDER_FREE = function("polylock_holder_free", JAVA_INT, JAVA_LONG);

    /** What callbacks are for, by the number that is their userdata. */
    private static final Map<Long, IntConsumer> WAITING_FOR = new ConcurrentHashMap<>();
    private static final AtomicLong LAST = new AtomicLong();
    private static final MemorySegment READY =
            callback("ready", MethodType.methodType(void.class, long.class, MemorySegment.class), JAVA_LONG, ADDRESS);
    private static final MemorySegment LOST = callback(
            "lost", MethodType.methodType(void.class, long.class, int.class, MemorySegment.class), JAVA_LONG, JAVA_INT, ADDRESS);
    private static final MemorySegment DONE =
            callback("done", MethodType.methodType(void.class, MemorySegment.class), ADDRESS);

    private Native() {}

    private static SymbolLookup library() {
        String path = System.getProperty("polylock.library", System.mapLibraryName("polylock"));
        return SymbolLookup.libraryLookup(path, Arena.global());
    }

    private static MethodHandle function(String name, MemoryLayout result, MemoryLayout... arguments) {
        return LINKER.downcallHandle(LIBRARY.findOrThrow(name), FunctionDescriptor.of(result, arguments));
    }

    private static MethodHandle setter(String option, MemoryLayout value) {
        return function("polylock_options_set_" + option, JAVA_INT, JAVA_LONG, value, ADDRESS);
    }

    private static MemorySegment callback(String method, MethodType type, MemoryLayout... arguments) {
        try {
            MethodHandle target = MethodHandles.lookup().findStatic(Native.class, method, type);
            return LINKER.upcallStub(target, FunctionDescriptor.ofVoid(arguments), Arena.global());
        } catch (ReflectiveOperationException e) {
            throw new AssertionError(e);
        }
    }

    private static void ready(long future, MemorySegment userdata) {
        run(userdata, 0);
    }

    private static void lost(long lease, int reason, MemorySegment userdata) {
        run(userdata, reason);
    }

    /** Not on the thread of the library, which may be what it waits for; nor may an exception reach C. */
    private static void run(MemorySegment userdata, int value) {
        IntConsumer what = WAITING_FOR.get(userdata.address());
        try {
            if (what != null) {
                ForkJoinPool.commonPool().execute(() -> what.accept(value));
            }
        } catch (Throwable e) {
            Thread thread = Thread.currentThread();
            thread.getUncaughtExceptionHandler().uncaughtException(thread, e);
        }
    }

    private static void done(MemorySegment userdata) {
        WAITING_FOR.remove(userdata.address());
    }

    /** Has {@code what} called once when the future is over. */
    static void onReady(long future, Runnable what) {
        register(FUTURE_ON_READY, future, READY, ignored -> what.run());
    }

    /** Has {@code what} called once with the number of the reason if the lease is lost. */
    static void onLost(long lease, IntConsumer what) {
        register(ON_LOST, lease, LOST, what);
    }

    private static void register(MethodHandle function, long handle, MemorySegment callback, IntConsumer what) {
        long number = LAST.incrementAndGet();
        WAITING_FOR.put(number, what);
        // The library calls DONE once, also if this fails.
        call(err -> (int) function.invokeExact(handle, callback, MemorySegment.ofAddress(number), DONE, err));
    }

    /** A call that can fail. */
    interface Call {
        int with(MemorySegment err) throws Throwable;
    }

    /** A call that has an output as well. */
    interface OutputCall {
        int with(MemorySegment out, MemorySegment err) throws Throwable;
    }

    /** A call that only answers. */
    interface Question<T> {
        T ask() throws Throwable;
    }

    static <T> T ask(Question<T> question) {
        try {
            return question.ask();
        } catch (RuntimeException | Error e) {
            throw e;
        } catch (Throwable e) {
            throw new AssertionError("a downcall throws nothing", e);
        }
    }

    static void call(Call call) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment err = arena.allocate(JAVA_LONG);
            int status = ask(() -> call.with(err));
            if (status != 0) {
                throw PolylockException.of(status, err.get(JAVA_LONG, 0));
            }
        }
    }

    static long output(OutputCall call) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment out = arena.allocate(JAVA_LONG);
            call(err -> call.with(out, err));
            return out.get(JAVA_LONG, 0);
        }
    }

    /** The bytes of a text in UTF-8, with NUL behind them; their length is one less than the segment's. */
    static MemorySegment text(Arena arena, String text) {
        byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
        MemorySegment segment = arena.allocate(bytes.length + 1L);
        return segment.copyFrom(MemorySegment.ofArray(bytes));
    }

    /** As text, for functions that take no length: they would take what is before a NUL for all of it. */
    static MemorySegment wholeText(Arena arena, String text, String argument) {
        if (text.indexOf(0) >= 0) {
            throw PolylockException.invalid(argument, "must not contain NUL");
        }
        return text(arena, text);
    }

    static MemorySegment wholeTexts(Arena arena, List<String> texts, String argument) {
        MemorySegment array = arena.allocate(ADDRESS, Math.max(1, texts.size()));
        for (int i = 0; i < texts.size(); i++) {
            array.setAtIndex(ADDRESS, i, wholeText(arena, texts.get(i), argument));
        }
        return array;
    }

    /** A string that belongs to the library; null for NULL. */
    static String string(MemorySegment pointer) {
        return pointer.address() == 0 ? null : pointer.reinterpret(Long.MAX_VALUE).getString(0);
    }
}
