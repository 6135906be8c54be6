"""A run without a database: a handler is called with it as with any other, and it records what the handler asks for."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

import structlog

from notifyworker import payload as payloads
from notifyworker.errors import EventTimeout, JoinTimeout
from notifyworker.family import ChildOutcome, OnFailure, Start
from notifyworker.run import Done, Run

if TYPE_CHECKING:
    from notifyworker.run import Connection


class HandlerRun(Run):
    """
    A `Run` to call a handler with: `await send_email(HandlerRun(), Email(to="a@example.org"))`.

    `progresses` are all that was shown, the last one last; `effects` those of a shadow run, by `name`, `args` and
    `kwargs`: a live run calls them. `lines` are what was logged. `transaction()` gives the `connection` that was given,
    and is refused without one. `started` is what it starts; `join()` returns the `outcomes` that were given, and `event()`
    the payload of `events` by name, or raises EventTimeout. `cancel()` it to see a handler stop.
    """

    def __init__(
        self,
        kind: str = "test",
        payload: Any = None,
        *,
        attempt: int = 1,
        max_attempts: int = 3,
        lease_token: int = 1,
        project_id: str = "default",
        priority: int = 0,
        headers: dict[str, Any] | None = None,
        is_shadow: bool = False,
        connection: Any = None,
        outcomes: Sequence[ChildOutcome] = (),
        events: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            uuid.uuid4(), lease_token, kind, project_id, priority, 0.0, payloads.encode({} if payload is None else payload),
            payloads.encode(headers or {}), attempt, max_attempts, is_shadow,
            desk=_Desk(self, connection),
        )  # fmt: skip
        self.progresses: list[Any] = []
        self.lines: list[dict[str, Any]] = []
        self.started: list[Start] = []
        self.outcomes = outcomes
        self.events = events or {}

    @property
    def effects(self) -> list[dict[str, Any]]:
        """What a shadow run would have done."""
        return [] if self._effects is None else self._effects.entries


class _Desk:
    def __init__(self, run: HandlerRun, connection: Any) -> None:
        self._run = run
        self._connection = connection

    def write_progress(self, run: Run, progress: str) -> Awaitable[None]:  # noqa: ARG002 - there is one
        """Record it."""
        self._run.progresses.append(payloads.decode(progress))
        return Done()

    def transaction(self, run: Run, connection: "Connection | None") -> "AbstractAsyncContextManager[Connection]":
        """Give what was given. Raises RuntimeError without."""
        given = connection or self._connection
        if given is None:
            message = f"{run!r} has no database: HandlerRun(connection=...) takes one, or a fake of yours; or drain() it"
            raise RuntimeError(message)
        return _given(given)

    async def step(self, run: Run, name: str, call: Callable[..., Any], *, in_transaction: bool) -> Any:  # noqa: ARG002 - as above
        """Call it: nothing was recorded before. What it returns comes back as JSON, as from a worker."""
        if in_transaction:
            async with self.transaction(run, None) as connection:
                value = await call(connection)
        else:
            value = call()
            value = await value if isinstance(value, Awaitable) else value
        return None if value is None else payloads.decode(payloads.encode(value))

    async def live_step(self, run: Run, name: str) -> None:
        """Nothing is recorded."""

    async def start_children(
        self,
        run: Run,  # noqa: ARG002 - as above
        starts: Sequence[Start],
        last: Start | None,
    ) -> tuple[list[uuid.UUID], uuid.UUID | None]:
        """Record it."""
        self._run.started += [*starts, *([last] if last else [])]
        return [uuid.uuid4() for _ in starts], uuid.uuid4() if last else None

    async def join(
        self,
        run: Run,  # noqa: ARG002 - as above
        children: Sequence[uuid.UUID] | None,
        on_failure: OnFailure,  # noqa: ARG002 - as above
        timeout_s: float | None,
    ) -> list[ChildOutcome]:
        """Return what was given, or be too late."""
        if timeout_s is not None and not self._run.outcomes:
            raise JoinTimeout(children or [])
        return list(self._run.outcomes)

    async def event(self, run: Run, name: str, key: str | None, timeout_s: float | None) -> Any:  # noqa: ARG002 - as above
        """Return what was given, or be too late."""
        if name not in self._run.events:
            raise EventTimeout(name, key)
        return self._run.events[name]

    def logger(self, run: Run) -> Any:  # noqa: ARG002 - as above
        """Return a logger that records."""

        def record(_logger: Any, method: str, event: Any) -> Any:
            self._run.lines.append({"level": method, **event})
            raise structlog.DropEvent

        bound = structlog.make_filtering_bound_logger(0)
        return structlog.wrap_logger(None, processors=[record], wrapper_class=bound)


@asynccontextmanager
async def _given(connection: Any) -> "AsyncIterator[Connection]":
    yield connection
