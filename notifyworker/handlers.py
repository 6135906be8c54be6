"""Which function executes which kind, and how it is called. Everything that can be wrong with it is told at import."""

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from notifyworker import payload as payloads
from notifyworker.errors import HandlerError
from notifyworker.retry import Retry
from notifyworker.run import Run

AnyHandler = TypeVar("AnyHandler", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Handler:
    """One kind's function, inspected. `timeout_s` is that of one attempt; None: no limit."""

    kind: str
    function: Callable[..., Any]
    is_async: bool
    wants_payload: bool
    convert: Callable[[Any], Any] | None
    timeout_s: float | None
    retry: Retry

    def arguments(self, run: Run) -> tuple[Any, ...]:
        """What to call it with. Raises ValueError (Mismatch) for a payload that does not fit; the text names the field."""
        if not self.wants_payload:
            return (run,)
        value = run.payload
        return (run, value if self.convert is None else self.convert(value))


class Handlers:
    """The handlers of one worker, by kind."""

    def __init__(self) -> None:
        self._by_kind: dict[str, Handler] = {}

    def add(self, kind: str, function: Callable[..., Any], *, timeout: float | timedelta | None, retry: Retry) -> None:
        """Register. Raises HandlerError if the kind is taken or unusable, or the function can't be called as one."""
        if not isinstance(kind, str) or not 1 <= len(kind) <= 200 or payloads.find_fault(kind):  # noqa: PLR2004 - as the column
            message = f"kind must be text of 1 to 200 characters, not {kind!r:.100}"
            raise HandlerError(message, hint='@worker.handler("email.send")')
        if (other := self._by_kind.get(kind)) is not None:
            message = f"two handlers for kind {kind!r}: {_name(other.function)} and {_name(function)}"
            raise HandlerError(message, hint="a kind has one handler; rename one of them")
        wants_payload, convert = _inspect(kind, function)
        self._by_kind[kind] = Handler(
            kind=kind,
            function=function,
            is_async=inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)),  # noqa: B004 - asked what it is, not whether
            wants_payload=wants_payload,
            convert=convert,
            timeout_s=_seconds(kind, timeout),
            retry=retry,
        )

    def of(self, kinds: list[str] | None) -> Mapping[str, Handler]:
        """All of them, or those of the given kinds. Raises HandlerError for a kind without a handler."""
        if kinds is None:
            return dict(self._by_kind)
        if missing := sorted(set(kinds) - self._by_kind.keys()):
            message = f"kinds: no handler for {', '.join(missing)}"
            raise HandlerError(message, hint=f"there are: {', '.join(sorted(self._by_kind)) or 'none'}")
        return {kind: self._by_kind[kind] for kind in kinds}

    def kinds(self) -> list[str]:
        """Return the kinds in the order of registration."""
        return list(self._by_kind)


def _inspect(kind: str, function: Any) -> tuple[bool, Callable[[Any], Any] | None]:
    if not callable(function):
        message = f"the handler of {kind!r} is no function but {type(function).__name__}"
        raise HandlerError(message)
    signature = inspect.signature(function)
    try:
        signature.bind(None, None)
        wants_payload = True
    except TypeError:
        try:
            signature.bind(None)
            wants_payload = False
        except TypeError:
            message = f"{_name(function)}{signature}: a handler takes (run, payload) or (run)"
            raise HandlerError(message) from None
    if not wants_payload:
        return False, None
    name = list(signature.parameters)[1] if len(signature.parameters) > 1 else None
    try:
        hints = typing.get_type_hints(function if inspect.isroutine(function) else type(function).__call__)
        return True, payloads.converter(hints.get(name or "", Any))
    except (TypeError, NameError) as error:
        message = f"{_name(function)}: the payload's annotation can't be used: {error}"
        raise HandlerError(message, hint="a pydantic model, a dataclass, a TypedDict, or dict") from None


def _seconds(kind: str, timeout: float | timedelta | None) -> float | None:
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if seconds is not None and not 0 < seconds <= 365 * 86400:
        message = f"the timeout of {kind!r} must be above 0 and at most 365 days, not {seconds!r} s"
        raise HandlerError(message)
    return seconds


def _name(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"
