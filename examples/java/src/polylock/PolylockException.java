package polylock;

/** Why a call failed. */
@SuppressWarnings("serial")
public final class PolylockException extends RuntimeException {
    /** What kind of failure it is: the same names in every language, and in the order of their numbers. */
    public enum Code {
        TIMEOUT, LOST, UNAVAILABLE, INVALID_ARGUMENT, CONFLICT, UNSUPPORTED, AUTH, CLOSED, FORKED, INVALID_HANDLE, INTERNAL;

        /** The stable name, as "InvalidArgument". */
        public String stableName() {
            return Native.ask(() -> Native.string((java.lang.foreign.MemorySegment) Native.STATUS_NAME.invokeExact(ordinal() + 1)));
        }
    }

    private final Code code;
    private final String argument;
    private final String resource;
    private final boolean retryable;

    private PolylockException(Code code, String message, String argument, String resource, boolean retryable) {
        super(message);
        this.code = code;
        this.argument = argument;
        this.resource = resource;
        this.retryable = retryable;
    }

    /** Makes an exception of an error object, which it frees. */
    static PolylockException of(int status, long error) {
        Code code = status <= Code.values().length ? Code.values()[status - 1] : Code.INTERNAL;
        return Native.ask(() -> {
            PolylockException made = new PolylockException(
                    code,
                    Native.string((java.lang.foreign.MemorySegment) Native.ERROR_MESSAGE.invokeExact(error)),
                    Native.string((java.lang.foreign.MemorySegment) Native.ERROR_ARGUMENT.invokeExact(error)),
                    Native.string((java.lang.foreign.MemorySegment) Native.ERROR_RESOURCE.invokeExact(error)),
                    (boolean) Native.ERROR_IS_RETRYABLE.invokeExact(error));
            int ignored = (int) Native.ERROR_FREE.invokeExact(error);
            return made;
        });
    }

    static PolylockException invalid(String argument, String why) {
        return new PolylockException(Code.INVALID_ARGUMENT, argument + " " + why, argument, null, false);
    }

    public Code code() {
        return code;
    }

    /** The argument that was wrong, or null. */
    public String argument() {
        return argument;
    }

    /** The resource that the call was about, or null. */
    public String resource() {
        return resource;
    }

    /** Whether the same call may succeed later without any change. */
    public boolean isRetryable() {
        return retryable;
    }
}
