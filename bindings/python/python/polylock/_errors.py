"""The errors: one class for each kind that the engine knows, with the same names and numbers in every language."""

from __future__ import annotations


class Error(Exception):
    """What every error of polylock derives from.

    Attributes:
        kind: The stable name, the same in every language, as in ``"Timeout"``.
        code: The stable number.
        resource: What the operation was about, if it was about one resource.
        argument: Which argument was wrong, for `InvalidArgument`.
        causes: What each server said, or what the last try failed with.

    >>> try:
    ...     locks.acquire("invoice:42", wait=0)
    ... except Error as error:
    ...     error.kind, error.code, error.resource, error.retryable
    ('Timeout', 1, 'invoice:42', True)
    """

    kind: str = "Internal"
    code: int = 11

    # For `polylock.redis`: there was no way to the server, or it answered by this error.
    _no_connection: bool = False
    _reply: str | None = None

    def __init__(
        self,
        message: str = "",
        *,
        resource: str | None = None,
        argument: str | None = None,
        causes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.resource = resource
        self.argument = argument
        self.causes = causes

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later without any change.

        >>> LockLost("it expired").retryable
        False
        """
        return isinstance(self, (AcquireTimeout, Unavailable))


class AcquireTimeout(Error, TimeoutError):
    """The resource stayed in use for as long as the caller wanted to wait.

    >>> locks.acquire("invoice:42", wait=0.05)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    polylock.AcquireTimeout: ...
    """

    kind = "Timeout"
    code = 1


class LockLost(Error):
    """The lease is not held any more: its deadline passed, or somebody else took or deleted it.

    >>> with locks.lock("report", ttl=0.1, auto_extend=False):  # doctest: +ELLIPSIS
    ...     time.sleep(0.2)
    Traceback (most recent call last):
        ...
    polylock.LockLost: ...
    """

    kind = "Lost"
    code = 2


class Unavailable(Error, ConnectionError):
    """The server could not be reached, or not enough of them answered; `causes` says what each said.

    >>> connect("redis://127.0.0.1:1").acquire("report", wait=0)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    polylock.Unavailable: ...
    """

    kind = "Unavailable"
    code = 3


class InvalidArgument(Error, ValueError):
    """An argument has no meaning; `argument` names it.

    >>> locks.acquire("report", ttl=-1)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    polylock.InvalidArgument: ttl ...
    """

    kind = "InvalidArgument"
    code = 4


class Conflict(Error):
    """The resource is in use as something else than this kind of lock.

    >>> try:
    ...     locks.acquire("report").release().value
    ... except Conflict as error:
    ...     print("no lock, but something else of that name:", error)
    'released'
    """

    kind = "Conflict"
    code = 5


class Unsupported(Error):
    """The backend cannot do this.

    >>> connect("file:///tmp/locks").shared("catalogue").acquire()  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    polylock.Unsupported: ...
    """

    kind = "Unsupported"
    code = 6


class AuthError(Error):
    """The server refused the user, the password or a permission.

    >>> try:
    ...     locks.acquire("report").release().value
    ... except (AuthError, Unavailable) as error:
    ...     print("no lock, no report:", error)
    'released'
    """

    kind = "Auth"
    code = 7


class Closed(Error):
    """The manager, or the event loop that the operation ran on, was closed.

    >>> locks.close()
    >>> locks.acquire("report")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    polylock.Closed: ...
    """

    kind = "Closed"
    code = 8


class Forked(Error):
    """The object belongs to the process that this one was forked from. Make a new manager after the fork.

    >>> child = os.fork()
    >>> if child == 0:
    ...     try:
    ...         lease.release()
    ...     except Forked:
    ...         os._exit(7)
    ...     os._exit(1)
    >>> os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    7
    """

    kind = "Forked"
    code = 9


class InternalError(Error):
    """A bug in polylock.

    >>> try:
    ...     locks.acquire("report").release().value
    ... except InternalError as error:
    ...     print("please report:", error)
    'released'
    """

    kind = "Internal"
    code = 11


_BY_KIND: dict[str, type[Error]] = {
    error.kind: error
    for error in (
        AcquireTimeout,
        LockLost,
        Unavailable,
        InvalidArgument,
        Conflict,
        Unsupported,
        AuthError,
        Closed,
        Forked,
        InternalError,
    )
}


def from_native(
    kind: str,
    message: str,
    resource: str | None,
    argument: str | None,
    causes: list[str],
    no_connection: bool,
    reply: str | None,
) -> Error:
    """The exception for an error of the engine. Called by the native module."""
    error = _BY_KIND.get(kind, InternalError)(message, resource=resource, argument=argument, causes=tuple(causes))
    if no_connection or reply is not None:
        error._no_connection, error._reply = no_connection, reply
    return error
