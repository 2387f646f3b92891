"""The resource of a decorated function: a template, filled in from the call's arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable


def check_name(name: object) -> None:
    """Refuses what is no template, as in ``@locks.locked`` without arguments."""
    if not isinstance(name, str):
        raise TypeError(f"name must be str, not {type(name).__name__}")


def check_callback(callback: object) -> None:
    """Refuses what calling does not run, as a coroutine function: nobody would ever be told."""
    if not callable(callback):
        raise TypeError(f"callback must be callable, not {type(callback).__name__}")
    if kind_of(callback) != "function":
        raise TypeError(f"callback must be a function, not a {kind_of(callback)}: nobody would await or iterate it")


def kind_of(function: object) -> str:
    """What calling it gives: only a function and a coroutine function are over when their body is."""
    import inspect  # noqa: PLC0415 - slow to import, and of use only here

    if inspect.iscoroutinefunction(function):
        return "coroutine function"
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return "generator function"
    return "function" if callable(function) else type(function).__name__


def namer(template: str, function: Callable[..., Any]) -> Callable[..., str]:
    """A function that makes the name from the arguments of a call of `function`.

    Raises:
        InvalidArgument: The template names something that is no parameter of `function`.
    """
    # Slow to import, and of use only here.
    import inspect  # noqa: PLC0415
    import re  # noqa: PLC0415
    from string import Formatter  # noqa: PLC0415

    signature = inspect.signature(function)
    try:
        fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise InvalidArgument(f"name {error}", argument="name") from None
    for field in fields:
        root = re.split(r"[.\[]", field, maxsplit=1)[0]
        if root not in signature.parameters:
            why = f"name has {field!r}, which is no parameter of {getattr(function, '__qualname__', function)}"
            raise InvalidArgument(why, argument="name")
    if not fields:
        name = template.format()
        return lambda *_args, **_kwargs: name

    def name_of(*args: Any, **kwargs: Any) -> str:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return template.format(**bound.arguments)

    return name_of
