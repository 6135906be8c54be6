"""
The vocabulary: what a run is, which states it goes through, and how an attempt can end. Knows no database.

    inserted -> woken -> claimed -> leased (heartbeat) -> executed -> settled -> observed
                                        |                    |
                                    reaped <- lease ran out  +-> retried later / failed / cancelled
"""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias
from uuid import UUID

from notifyworker import payload as payloads
from notifyworker.effects import Effects, Redact
from notifyworker.errors import EventTimeout, StepError
from notifyworker.family import ChildOutcome, OnFailure, Start, Starting

if TYPE_CHECKING:
    import asyncpg

    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]


class State(StrEnum):
    """Where a run is in its life."""

    #: Waiting. The next claim after `run_at` moves it on, once it `waits_for` nothing: a key, its children, an event. A crash of
    #: any worker leaves it as it is.
    PENDING = "pending"
    #: One worker holds the lease and executes it. The worker settles it or gives it back; if the worker dies, the
    #: reaper gives it back, or fails it on its last attempt.
    RUNNING = "running"
    #: Terminal: the handler returned.
    COMPLETED = "completed"
    #: Terminal: the last attempt failed, or one that must not be repeated. `error_code` says how.
    FAILED = "failed"
    #: Terminal: somebody, the handler or `expires_at` said that it shall not run.
    CANCELLED = "cancelled"


#: The only place that says which transitions are legal. Each is one statement in sql/, whose WHERE names its origin.
TRANSITIONS: dict[State, frozenset[State]] = {
    State.PENDING: frozenset({State.RUNNING, State.CANCELLED}),
    State.RUNNING: frozenset({State.COMPLETED, State.FAILED, State.CANCELLED, State.PENDING}),
    State.COMPLETED: frozenset({State.PENDING}),  # an explicit retry
    State.FAILED: frozenset({State.PENDING}),
    State.CANCELLED: frozenset({State.PENDING}),
}

_ENDS = TRANSITIONS[State.RUNNING]
TERMINAL = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})


@dataclass(slots=True)
class Outcome:
    """
    How an attempt ended, ready to be written: everything in it is encoded and checked already.

    `to` is the state that the run goes to. With `to=PENDING`, `delay_s` seconds until it is due (None: at once, in
    its old place), and `counts` says whether the attempt is used up.
    """

    run_id: UUID
    lease_token: int
    attempt: int
    kind: str
    to: State
    result: str | None = None
    effects: str | None = None
    error_code: str | None = None
    error: str | None = None
    delay_s: float | None = None
    counts: bool = True
    was_started: bool = True
    #: What it said last of itself, where that is not written yet.
    progress: str | None = None
    #: With `to=PENDING`: it is parked in the middle of its handler.
    waits_for: str | None = None

    def __post_init__(self) -> None:
        """Refuse what the table of transitions does not have."""
        if self.to not in _ENDS:
            message = f"a running run does not become {self.to}"
            raise ValueError(message)


class Desk(Protocol):
    """What a run's handler may ask of its worker."""

    def write_progress(self, run: "Run", progress: str) -> Awaitable[None]:
        """Write it, fenced, now or a little later. Raises LeaseLost."""

    def transaction(self, run: "Run", connection: "Connection | None") -> "AbstractAsyncContextManager[Connection]":
        """Begin a transaction that settles it. Raises LeaseLost."""

    def step(self, run: "Run", name: str, call: Callable[..., Any], *, in_transaction: bool) -> Awaitable[Any]:
        """Return what is recorded of a step, or call and record it. Raises LeaseLost."""

    def live_step(self, run: "Run", name: str) -> "Awaitable[LiveStep | None]":
        """What the live run that this one is a copy of has recorded of its step of this name; None: nothing."""

    def start_children(
        self, run: "Run", starts: "Sequence[Start]", last: "Start | None"
    ) -> "Awaitable[tuple[list[UUID], UUID | None]] | tuple[list[UUID], UUID | None]":
        """Note what is to be started, and what when all of that is settled; return the ids. Raises LeaseLost."""

    def join(
        self, run: "Run", children: "Sequence[UUID] | None", on_failure: OnFailure, timeout_s: float | None
    ) -> "Awaitable[list[ChildOutcome]]":
        """Return the outcomes of children, or park the run. Raises LeaseLost, JoinTimeout."""

    def event(self, run: "Run", name: str, key: str | None, timeout_s: float | None) -> Awaitable[Any]:
        """Return the payload of an event, or park the run. Raises LeaseLost."""

    def logger(self, run: "Run") -> Any:
        """Return a structlog logger bound to the run."""


@dataclass(frozen=True, slots=True)
class LiveStep:
    """What a step of a live run has returned."""

    value: Any


class Done:
    """What has been done already, whether it is awaited or not: what a plain handler gets, which can't wait."""

    def __await__(self) -> Generator[Any, Any, None]:
        """Wait for nothing."""
        yield from ()


class Run(Starting):
    """
    One attempt at one run, as its handler sees it.

    `attempt` counts from 1. `lease_token` grows with every lease of the run: a system that a handler writes to can
    refuse a token lower than one it has seen, and so keep out a worker that was paused and came back.
    """

    __slots__ = (
        "_desk",
        "_effects",
        "_ended",
        "_headers",
        "_is_shadow",
        "_log",
        "_payload",
        "_shadow_children",
        "attempt",
        "cancelled",
        "copy_of",
        "due_at_s",
        "expired",
        "is_limited",
        "kind",
        "lease_token",
        "max_attempts",
        "priority",
        "project_id",
        "records",
        "result",
        "run_id",
        "timeout_s",
        "version",
        "waited_s",
    )

    def __init__(  # noqa: PLR0917 - in the order in which claim.sql returns them
        self,
        run_id: UUID,
        lease_token: int = 1,
        kind: str = "",
        project_id: str = "default",
        priority: int = 0,
        due_at_s: float = 0.0,
        payload: str = "{}",
        headers: str = "{}",
        attempt: int = 1,
        max_attempts: int = 3,
        is_shadow: bool = False,  # noqa: FBT001, FBT002 - a column
        timeout_s: float | None = None,
        expired: bool | None = None,  # noqa: FBT001 - a column
        waited_s: float = 0.0,
        desk: Desk | None = None,
    ) -> None:
        self.run_id = run_id
        self.lease_token = lease_token
        self.kind = kind
        self.project_id = project_id
        self.priority = priority
        #: When it was due, in seconds since 1970.
        self.due_at_s = due_at_s
        self._payload = payload
        self._headers = headers
        self.attempt = attempt
        self.max_attempts = max_attempts
        self._is_shadow = is_shadow
        self.timeout_s = timeout_s
        self.expired = expired
        #: Whether it holds places of limits or a concurrency key.
        self.is_limited = False
        #: The version of its handler that executes it; None: the one without a name.
        self.version: str | None = None
        #: The live run of which this one is a copy, to compare them.
        self.copy_of: UUID | None = None
        self.waited_s = waited_s
        #: True once the run was cancelled, timed out or lost: a handler in a thread looks at it now and then.
        self.cancelled = False
        self._ended: threading.Event | None = None
        #: What it is completed with in `transaction()`, whose end comes before the handler returns anything.
        self.result: Any = None
        self._desk = desk
        #: Whether it keeps what its effects are called with: a shadow run, or a live one that a rule compares.
        self.records = is_shadow
        self._effects: Effects | None = None
        self._shadow_children: dict[UUID, ChildOutcome] | None = None
        self._log: Any = None

    def __repr__(self) -> str:
        return f"<Run {self.kind} {self.run_id} attempt {self.attempt} of {self.max_attempts}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """For a process of its own, where another desk is set."""
        return _again, (
            self.version, self.records, self.run_id, self.lease_token, self.kind, self.project_id, self.priority, self.due_at_s, self._payload, self._headers,
            self.attempt, self.max_attempts, self.is_shadow, self.timeout_s, self.expired, self.waited_s,
        )  # fmt: skip

    @property
    def is_shadow(self) -> bool:
        """Whether it is executed without effects. No handler can change it."""
        return self._is_shadow

    @property
    def payload(self) -> Any:
        """The payload as plain JSON. Decoded when asked for; raises ValueError for JSON that Python can't hold."""
        return payloads.decode(self._payload)

    @property
    def headers(self) -> dict[str, Any]:
        """Trace context and whatever else the producer put there. Decoded when asked for."""
        headers: dict[str, Any] = payloads.decode(self._headers)
        return headers

    def cancelled_within(self, seconds: float) -> bool:
        """Wait in a handler's thread, in place of time.sleep: True as soon as the run is cancelled, False after `seconds`."""
        if self._ended is None:
            self._ended = threading.Event()
        return self.cancelled or self._ended.wait(seconds)

    def cancel(self) -> None:
        """For the worker: let the handler know that its run was cancelled, timed out or lost. It settles nothing."""
        self.cancelled = True  # before the look at the event, which the handler makes before it looks at this
        if self._ended is not None:
            self._ended.set()

    @property
    def log(self) -> Any:
        """A structlog logger, bound to this run."""
        if self._log is None:
            self._log = self.desk.logger(self)
        return self._log

    def progress(self, progress: dict[str, Any]) -> Awaitable[None]:
        """
        Show how far this run is. Call it as often as you like: the newest is written each `progress_interval_s`, at the latest
        together with the run's end.

        It returns, or what it returns is awaited, until it is written or noted; in a plain handler without `await`.

        Raises LeaseLost if it is no longer ours, Unencodable if it is not JSON.
        """
        return self.desk.write_progress(self, payloads.encode(progress))

    def effect(
        self,
        name: str,
        call: Callable[..., Any],
        *args: Any,
        shadow_result: Any = None,
        redact: Redact = (),
        **kwargs: Any,
    ) -> Any:
        """
        Do something that the world outside can see: call `call(*args, **kwargs)`, await it if it is to be awaited.

        In a shadow run nothing is called: name and arguments are recorded in the run's `effects`, and
        `shadow_result` is returned. To be awaited itself, but in a plain handler, where it returns what the call does.
        Where a rule mirrors live runs they are recorded there as well (docs/shadow.md). Of what `redact` names, parameters
        of the call, only `***` is recorded; or it is a function of the same arguments that returns what is recorded.
        """
        if not is_plain():
            return self._awaited_effect(name, call, args, kwargs, shadow_result, redact)
        if self.records:
            self.note_effect(name, args, kwargs, call=call, redact=redact)
        if self.is_shadow:
            return shadow_result
        outcome = call(*args, **kwargs)
        if isinstance(outcome, Coroutine):
            outcome.close()
            message = f"effect {name!r}: a plain handler can't await what {call!r} returns; make the handler async"
            raise TypeError(message)
        return outcome

    async def _awaited_effect(  # noqa: PLR0917 - those of effect
        self,
        name: str,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        shadow_result: Any,
        redact: Redact,
    ) -> Any:
        if self.records:
            self.note_effect(name, args, kwargs, call=call, redact=redact)
        if self.is_shadow:
            return shadow_result
        outcome = call(*args, **kwargs)
        return await outcome if isinstance(outcome, Awaitable) else outcome

    def note_effect(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        *,
        call: Callable[..., Any] | None = None,
        redact: Redact = (),
    ) -> None:
        """Record an effect, of a shadow run or of a live one that is compared; for what makes effects in a handler's name."""
        if self._effects is None:
            self._effects = Effects()
        self._effects.add(name, args, kwargs, call, redact)

    def transaction(self, connection: "Connection | None" = None) -> "AbstractAsyncContextManager[Connection]":
        """
        Write and be settled in one transaction: `async with run.transaction() as connection`.

        What is written through `connection` (asyncpg, of the worker's database) and the run's completion, with
        `run.result`, are committed together when the block ends, if this worker still holds the lease; or nothing is.
        Cancel, Fail and Snooze raised in the block settle the run as they say, together with what was written; any other
        exception rolls back, and the attempt has failed. In a shadow run all is rolled back. A `connection` of the
        handler's own, on which no transaction is open, may be given.

        The handler may go on after the block, but nothing repeats what comes there: the run is settled. Raises LeaseLost
        if the run is another's by now; nothing was written then.
        """
        return self.desk.transaction(self, connection)

    def record(self, effects: list[dict[str, Any]]) -> None:
        """Take over the effects that were recorded in another process."""
        self._effects = Effects(effects)

    def step(
        self,
        name: str,
        function: Callable[..., Any],
        /,
        *args: Any,
        in_shadow: Literal["skip", "call"] = "skip",
        shadow_result: Any = None,
        **kwargs: Any,
    ) -> Awaitable[Any]:
        """
        Do something that is not done again when the run is retried or taken over.

        The first time `function(*args, **kwargs)` is called, a plain function in a thread, and what it returns is recorded
        as JSON; from then on that is returned, without a call. It is also what the first call returns: a tuple comes as a
        list, a dataclass as a dict. What it raises is not recorded as a result. The name is the step's own within the run;
        steps come in the order in which they were recorded, and not inside of each other.

        A worker that dies between the end of the call and the record leaves it to be executed again: give a system that it
        calls a key, such as the run's id and the step's name. Raises StepError, LeaseLost, and Fail (E-RUN-005) if the
        result can't be stored.

        In a shadow run it is not called, since it may have effects: a copy of a live run gets what that run's step of the
        same name has returned, and where there is none, it is recorded as an effect and `shadow_result` returned. With
        `in_shadow="call"` it is called all the same: for what only reads or computes.
        """
        call = partial(function, *args, **kwargs)
        if self.is_shadow and in_shadow == "skip" and not is_plain():
            return self._skipped_step(name, function, args, kwargs, shadow_result)
        return self.desk.step(self, name, call, in_transaction=False)

    async def _skipped_step(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], shadow_result: Any
    ) -> Any:
        found = await self.desk.live_step(self, name)
        if found is None:
            self.note_effect(name, args, kwargs, call=function)
            return shadow_result
        return found.value

    def step_transaction(
        self, name: str, function: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any
    ) -> Awaitable[Any]:
        """
        As `step`, of an async function that writes into the worker's own database: exactly once.

        It is called as `function(connection, *args, **kwargs)`, with asyncpg's connection in a transaction that is committed
        together with the step's record, if this worker still holds the lease; or nothing is. In a shadow run what it wrote
        is rolled back.
        """
        if not inspect.iscoroutinefunction(function):
            message = f"step {name!r} must be an async function: its connection is asyncpg's"
            raise StepError(message)

        def call(connection: "Connection") -> Awaitable[Any]:
            return function(connection, *args, **kwargs)

        return self.desk.step(self, name, call, in_transaction=True)

    @property
    def recorded_effects(self) -> str | None:
        """What a shadow run would have done, or a live one that is compared has done, as JSON; None for any other."""
        if not self.records:
            return None
        return "[]" if self._effects is None else self._effects.as_json()

    def _recorded(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], shadow_result: Any) -> Any:
        self.note_effect(name, args, kwargs)
        return shadow_result

    def _noted_live(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.records:
            self.note_effect(name, args, kwargs)

    def _event_of_live(self, name: str, key: str | None) -> Awaitable[Any] | None:
        if self.copy_of is None:
            return None

        async def told() -> Any:
            found = await self.desk.live_step(self, f"event:{name}" if key is None else f"event:{name}:{key}")
            if found is None:
                raise EventTimeout(name, key)
            return found.value

        return told()

    def _desk_of(self) -> Desk:
        return self.desk

    def _in_shadow(self) -> dict[UUID, ChildOutcome] | None:
        if self.is_shadow and self._shadow_children is None:
            self._shadow_children = {}
        return self._shadow_children

    def sit_at(self, desk: Desk) -> None:
        """Ask another desk from now on: of a thread, of a process."""
        self._desk = desk

    @property
    def desk(self) -> Desk:
        """Who is asked. Raises RuntimeError outside of a worker."""
        if self._desk is None:
            message = f"{self!r} is not executed by a worker"
            raise RuntimeError(message)
        return self._desk


def _again(version: str | None, records: bool, *columns: Any) -> Run:  # noqa: FBT001 - as they were pickled
    run = Run(*columns)
    run.version, run.records = version, records
    return run


def is_plain() -> bool:
    """Whether the caller can't wait for anything: no event loop runs in its thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False
