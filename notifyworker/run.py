"""
The vocabulary: what a run is, which states it goes through, and how an attempt can end. Knows no database.

    inserted -> woken -> claimed -> leased (heartbeat) -> executed -> settled -> observed
                                        |                    |
                                    reaped <- lease ran out  +-> retried later / failed / cancelled
"""

import inspect
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias
from uuid import UUID

from notifyworker import payload as payloads
from notifyworker.errors import StepError

if TYPE_CHECKING:
    import asyncpg

    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]


class State(StrEnum):
    """Where a run is in its life."""

    #: Waiting. The next claim after `run_at` moves it on; a crash of any worker leaves it as it is.
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

    def __post_init__(self) -> None:
        """Refuse what the table of transitions does not have."""
        if self.to not in _ENDS:
            message = f"a running run does not become {self.to}"
            raise ValueError(message)


class Desk(Protocol):
    """What a run's handler may ask of its worker."""

    async def write_progress(self, run: "Run", progress: str) -> None:
        """Write it, fenced. Raises LeaseLost."""

    def transaction(self, run: "Run", connection: "Connection | None") -> "AbstractAsyncContextManager[Connection]":
        """Begin a transaction that settles it. Raises LeaseLost."""

    async def step(self, run: "Run", name: str, call: Callable[..., Any], *, in_transaction: bool) -> Any:
        """Return what is recorded of a step, or call and record it. Raises LeaseLost."""

    def logger(self, run: "Run") -> Any:
        """Return a structlog logger bound to the run."""


class Run:
    """
    One attempt at one run, as its handler sees it.

    `attempt` counts from 1. `lease_token` grows with every lease of the run: a system that a handler writes to can
    refuse a token lower than one it has seen, and so keep out a worker that was paused and came back.
    """

    __slots__ = (
        "_desk",
        "_effects",
        "_headers",
        "_log",
        "_payload",
        "attempt",
        "cancelled",
        "due_at_s",
        "expired",
        "is_shadow",
        "kind",
        "lease_token",
        "max_attempts",
        "priority",
        "project_id",
        "result",
        "run_id",
        "timeout_s",
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
        self.is_shadow = is_shadow
        self.timeout_s = timeout_s
        self.expired = expired
        self.waited_s = waited_s
        #: True once the run was cancelled, timed out or lost: a handler in a thread looks at it now and then.
        self.cancelled = False
        #: What it is completed with in `transaction()`, whose end comes before the handler returns anything.
        self.result: Any = None
        self._desk = desk
        self._effects: list[dict[str, Any]] | None = None
        self._log: Any = None

    def __repr__(self) -> str:
        return f"<Run {self.kind} {self.run_id} attempt {self.attempt} of {self.max_attempts}>"

    @property
    def payload(self) -> Any:
        """The payload as plain JSON. Decoded when asked for; raises ValueError for JSON that Python can't hold."""
        return payloads.decode(self._payload)

    @property
    def headers(self) -> dict[str, Any]:
        """Trace context and whatever else the producer put there. Decoded when asked for."""
        headers: dict[str, Any] = payloads.decode(self._headers)
        return headers

    @property
    def log(self) -> Any:
        """A structlog logger, bound to this run."""
        if self._log is None:
            self._log = self._need_desk().logger(self)
        return self._log

    async def progress(self, progress: dict[str, Any]) -> None:
        """Show how far this run is. Raises LeaseLost if it is no longer ours, Unencodable if it is not JSON."""
        await self._need_desk().write_progress(self, payloads.encode(progress))

    async def effect(
        self,
        name: str,
        call: Callable[..., Any],
        *args: Any,
        shadow_result: Any = None,
        **kwargs: Any,
    ) -> Any:
        """
        Do something that the world outside can see: call `call(*args, **kwargs)`, await it if it is to be awaited.

        In a shadow run nothing is called: name and arguments are recorded in the run's `effects`, and
        `shadow_result` is returned.
        """
        if self.is_shadow:
            if self._effects is None:
                self._effects = []
            self._effects.append({"name": name, "args": list(args), "kwargs": kwargs})
            return shadow_result
        outcome = call(*args, **kwargs)
        return await outcome if isinstance(outcome, Awaitable) else outcome

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
        return self._need_desk().transaction(self, connection)

    async def step(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """
        Do something that is not done again when the run is retried or taken over.

        The first time `function(*args, **kwargs)` is called, a plain function in a thread, and what it returns is recorded
        as JSON; from then on that is returned, without a call. It is also what the first call returns: a tuple comes as a
        list, a dataclass as a dict. What it raises is not recorded as a result. The name is the step's own within the run;
        steps come in the order in which they were recorded, and not inside of each other.

        A worker that dies between the end of the call and the record leaves it to be executed again: give a system that it
        calls a key, such as the run's id and the step's name. Raises StepError, LeaseLost, and Fail (E-RUN-005) if the
        result can't be stored.
        """
        return await self._need_desk().step(self, name, partial(function, *args, **kwargs), in_transaction=False)

    async def step_transaction(self, name: str, function: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any) -> Any:
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

        return await self._need_desk().step(self, name, call, in_transaction=True)

    @property
    def recorded_effects(self) -> str | None:
        """What a shadow run would have done, as JSON; None for a live run."""
        return payloads.encode_leniently(self._effects or []) if self.is_shadow else None

    def _need_desk(self) -> Desk:
        if self._desk is None:
            message = f"{self!r} is not executed by a worker"
            raise RuntimeError(message)
        return self._desk
