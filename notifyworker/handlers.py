"""Which function executes which kind, and how it is called. Everything that can be wrong with it is told at import."""

import inspect
import pickle
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from notifyworker import payload as payloads
from notifyworker.errors import HandlerError
from notifyworker.retry import Retry
from notifyworker.run import Run

_LARGEST_BATCH = 10_000  # as concurrency
_BATCH_WAIT_S = 0.05
_SHORTEST_BATCH_WAIT_S, _LONGEST_BATCH_WAIT_S = 0.001, 60

AnyHandler = TypeVar("AnyHandler", bound=Callable[..., Any])

#: Where a plain handler is executed: in a thread of the worker, or in a process of its own.
Executor: TypeAlias = Literal["thread", "process"]

#: Below this no interpreter gets as far as a handler.
_LEAST_MEMORY_BYTES = 16 * 1024 * 1024
_STATM = Path("/proc/self/statm")
_LONGEST_VERSION = 100  # as the column


@dataclass(frozen=True, slots=True)
class Handler:
    """
    One kind's function, inspected. `timeout_s` is that of one attempt; None: no limit.

    With a `batch_size` it takes up to so many runs at once, or those that came within `batch_wait_s` seconds. With `in_process`,
    `memory_limit_bytes` is what its process may take; None: no limit.
    """

    kind: str
    function: Callable[..., Any]
    is_async: bool
    wants_payload: bool
    convert: Callable[[Any], Any] | None
    timeout_s: float | None
    retry: Retry
    batch_size: int | None = None
    batch_wait_s: float = 0.0
    in_process: bool = False
    memory_limit_bytes: int | None = None
    #: Which of the kind's versions it is; None: the one without a name.
    version: str | None = None

    def arguments(self, run: Run) -> tuple[Any, ...]:
        """What to call it with. Raises ValueError (Mismatch) for a payload that does not fit; the text names the field."""
        if not self.wants_payload:
            return (run,)
        value = run.payload
        return (run, value if self.convert is None else self.convert(value))


class Roster:
    """What one start of a worker executes: of each kind one handler or, by their versions, several."""

    def __init__(self, handlers: Iterable[Handler]) -> None:
        self._all = {(handler.kind, handler.version): handler for handler in handlers}
        #: The kinds, in the order of registration.
        self.kinds = list(dict.fromkeys(handler.kind for handler in self._all.values()))
        #: The versions of kinds that have any, in the order of registration; None: the one without a name.
        self.versions = {
            kind: [version for other, version in self._all if other == kind]
            for kind in self.kinds
            if any(version is not None for other, version in self._all if other == kind)
        }

    def __iter__(self) -> Iterator[Handler]:
        return iter(self._all.values())

    def __getitem__(self, which: tuple[str, str | None]) -> Handler:
        """Return the handler of a kind and version."""
        return self._all[which]


class Handlers:
    """The handlers of one worker, by kind and version."""

    def __init__(self) -> None:
        self._all: dict[tuple[str, str | None], Handler] = {}

    def add(
        self,
        kind: str,
        function: Callable[..., Any],
        *,
        timeout: float | timedelta | None,
        retry: Retry,
        batch_size: int | None = None,
        batch_wait_s: float | None = None,
        executor: Executor | None = None,
        memory_limit_bytes: int | None = None,
        version: str | None = None,
    ) -> None:
        """Register. Raises HandlerError if the kind is taken or unusable, or the function can't be called as asked."""
        if not isinstance(kind, str) or not 1 <= len(kind) <= 200 or payloads.find_fault(kind):  # noqa: PLR2004 - as the column
            message = f"kind must be text of 1 to 200 characters, not {kind!r:.100}"
            raise HandlerError(message, hint='@worker.handler("email.send")')
        if version is not None:
            check_version(version)
        if (other := self._all.get((kind, version))) is not None:
            message = f"two handlers for kind {kind!r}: {_name(other.function)} and {_name(function)}"
            raise HandlerError(message, hint="a kind has one handler a version; rename one of them, or give it a version")
        wait_s = _batch_wait_s(kind, batch_size, batch_wait_s)
        wants_payload, convert = inspected(kind, function, is_batch=batch_size is not None)
        is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004 - asked what it is, not whether
        _check_executor(kind, function, executor, memory_limit_bytes, is_async=is_async)
        if batch_size is not None and executor == "process":
            message = f"executor of {kind!r}: a batch is executed by the event loop, or in a thread"
            raise HandlerError(message, hint="leave executor out, or batch_size")
        self._all[kind, version] = Handler(
            kind=kind,
            function=function,
            is_async=is_async,
            wants_payload=wants_payload,
            convert=convert,
            timeout_s=_seconds(kind, timeout),
            retry=retry,
            batch_size=batch_size,
            batch_wait_s=wait_s,
            in_process=executor == "process",
            memory_limit_bytes=memory_limit_bytes,
            version=version,
        )

    def of(self, kinds: list[str] | None) -> Roster:
        """All of them, or those of the given kinds. Raises HandlerError for a kind without a handler."""
        if kinds is None:
            return Roster(self._all.values())
        there = self.kinds()
        if missing := sorted(set(kinds) - set(there)):
            message = f"kinds: no handler for {', '.join(missing)}"
            raise HandlerError(message, hint=f"there are: {', '.join(sorted(there)) or 'none'}")
        return Roster(handler for kind in kinds for handler in self._all.values() if handler.kind == kind)

    def kinds(self) -> list[str]:
        """Return the kinds in the order of registration."""
        return list(dict.fromkeys(kind for kind, _ in self._all))


def check_version(version: Any) -> None:
    """Raise HandlerError unless it can be the name of a version."""
    if not isinstance(version, str) or not 1 <= len(version) <= _LONGEST_VERSION or payloads.find_fault(version):
        message = f"version must be text of 1 to {_LONGEST_VERSION} characters, not {version!r:.200}"
        raise HandlerError(message, hint='@worker.handler("price.quote", version="v2")')


def _batch_wait_s(kind: str, size: Any, wait_s: Any) -> float:
    if size is None and wait_s is not None:
        message = f"batch_wait_s of {kind!r} is given, and no batch_size"
        raise HandlerError(message, hint='@worker.handler("row.load", batch_size=100, batch_wait_s=0.05)')
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= _LARGEST_BATCH):
        message = f"batch_size of {kind!r} must be an integer between 1 and {_LARGEST_BATCH}, not {size!r:.100}"
        raise HandlerError(message)
    wait_s = _BATCH_WAIT_S if wait_s is None else wait_s
    if (
        not isinstance(wait_s, int | float)
        or isinstance(wait_s, bool)
        or not _SHORTEST_BATCH_WAIT_S <= wait_s <= _LONGEST_BATCH_WAIT_S
    ):
        message = f"batch_wait_s of {kind!r} must be between {_SHORTEST_BATCH_WAIT_S} and {_LONGEST_BATCH_WAIT_S} seconds, not {wait_s!r:.100}"
        raise HandlerError(message)
    return float(wait_s)


def _check_executor(
    kind: str, function: Any, executor: Executor | None, memory_limit_bytes: int | None, *, is_async: bool
) -> None:
    if executor not in {None, "thread", "process"}:
        message = f"executor of {kind!r} is thread or process, not {executor!r:.100}"
        raise HandlerError(message)
    if executor is not None and is_async:
        message = f"executor of {kind!r}: an async handler is executed by the event loop"
        raise HandlerError(message, hint="make it a plain def, or leave executor out")
    if memory_limit_bytes is not None:
        is_bytes = isinstance(memory_limit_bytes, int) and memory_limit_bytes >= _LEAST_MEMORY_BYTES
        if executor != "process" or not is_bytes:
            message = f"memory_limit_bytes of {kind!r} is a number of at least {_LEAST_MEMORY_BYTES}, of a process"
            raise HandlerError(message, hint='executor="process", memory_limit_bytes=512 * 1024 * 1024')
        if not _STATM.exists():
            message = f"memory_limit_bytes of {kind!r}: this system has no /proc to read a process's memory from"
            raise HandlerError(message, hint="leave it out")
    name = getattr(function, "__qualname__", "<")
    if executor == "process" and ("<" in name or not hasattr(function, "__module__")):
        message = f"executor of {kind!r}: another process can't import {_name(function)} by its name"
        raise HandlerError(message, hint="define it with def, at the top level of a module")


def by_name(handler: Handler) -> bytes:
    """Pickle a handler's function, which is done by its name. Raises HandlerError if the name leads elsewhere."""
    try:
        return pickle.dumps(handler.function)
    except (pickle.PicklingError, AttributeError, TypeError, ImportError) as error:
        message = f"the handler of {handler.kind!r} can't be executed in a process: {error}"
        hint = "it must be what its name in its module says; let worker.handler be the outermost decorator"
        raise HandlerError(message, hint=hint) from None


def inspected(kind: str, function: Any, *, is_batch: bool = False) -> tuple[bool, Callable[[Any], Any] | None]:
    """Whether a function takes the payload, and how that is converted. Raises HandlerError."""
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
            taken = "(runs, payloads) or (runs)" if is_batch else "(run, payload) or (run)"
            message = f"{_name(function)}{signature}: a {'batch ' if is_batch else ''}handler takes {taken}"
            raise HandlerError(message) from None
    if not wants_payload:
        return False, None
    name = list(signature.parameters)[1] if len(signature.parameters) > 1 else None
    try:
        hints = typing.get_type_hints(function if inspect.isroutine(function) else type(function).__call__)
        annotation = hints.get(name or "", Any)
        return True, payloads.converter(_element(function, annotation) if is_batch else annotation)
    except (TypeError, NameError) as error:
        message = f"{_name(function)}: the payload's annotation can't be used: {error}"
        raise HandlerError(message, hint="a pydantic model, a dataclass, a TypedDict, or dict") from None


def _element(function: Any, annotation: Any) -> Any:
    if annotation in {Any, list}:
        return Any
    if typing.get_origin(annotation) is list:
        return typing.get_args(annotation)[0]
    message = f"{_name(function)}: the payloads of a batch handler are a list"
    raise HandlerError(message, hint="annotate them as list[Email], or not at all")


def _seconds(kind: str, timeout: float | timedelta | None) -> float | None:
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if seconds is not None and not 0 < seconds <= 365 * 86400:
        message = f"the timeout of {kind!r} must be above 0 and at most 365 days, not {seconds!r} s"
        raise HandlerError(message)
    return seconds


def _name(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"
