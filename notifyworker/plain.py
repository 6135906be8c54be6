"""What a plain handler in a thread may ask of its worker: it can't await, so that it is done when the call returns."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from notifyworker.child import refuse_parking, refuse_step, refuse_transaction
from notifyworker.family import ChildOutcome, OnFailure, Start
from notifyworker.run import Done, Run, is_plain

if TYPE_CHECKING:
    from notifyworker.run import Connection

_WRITE_S = 30.0  # above every deadline of a progress


class ThreadDesk:
    """Asks the run's own desk in its event loop. Made in that loop."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._desk = run.desk
        self._loop = asyncio.get_running_loop()

    def write_progress(self, run: Run, progress: str) -> Awaitable[None]:
        """Write it, fenced. Raises LeaseLost."""

        async def write() -> None:
            await self._desk.write_progress(run, progress)

        written = asyncio.run_coroutine_threadsafe(write(), self._loop)
        if not is_plain():  # the handler has made an event loop of its own
            return asyncio.wrap_future(written)
        written.result(_WRITE_S)
        return Done()

    def transaction(self, run: Run, connection: "Connection | None") -> "AbstractAsyncContextManager[Connection]":  # noqa: ARG002 - whichever
        """Refuse: a plain handler can't wait for it."""
        refuse_transaction(run)

    def step(self, run: Run, name: str, call: Callable[..., Any], *, in_transaction: bool) -> Awaitable[Any]:  # noqa: ARG002 - whichever
        """Refuse: a plain handler can't wait for it."""
        refuse_step(run)

    def live_step(self, run: Run, name: str) -> Awaitable[Any]:  # noqa: ARG002 - whichever
        """Refuse, as `step`."""
        refuse_step(run)

    def start_children(self, run: Run, starts: Sequence[Start], last: Start | None) -> Any:
        """Note what is to be started; return the ids. Raises LeaseLost."""

        async def start() -> Any:
            started = self._desk.start_children(run, starts, last)
            return started if isinstance(started, tuple) else await started

        started = asyncio.run_coroutine_threadsafe(start(), self._loop)
        return started.result(_WRITE_S) if is_plain() else asyncio.wrap_future(started)

    def join(
        self,
        run: Run,
        children: Sequence[UUID] | None,  # noqa: ARG002 - whichever
        on_failure: OnFailure,  # noqa: ARG002 - whichever
        timeout_s: float | None,  # noqa: ARG002 - whichever
    ) -> Awaitable[list[ChildOutcome]]:
        """Refuse: a thread can't be ended."""
        refuse_parking(run)

    def event(self, run: Run, name: str, key: str | None, timeout_s: float | None) -> Awaitable[Any]:  # noqa: ARG002 - whichever
        """Refuse: a thread can't be ended."""
        refuse_parking(run)

    def logger(self, run: Run) -> Any:
        """Return a structlog logger bound to the run."""
        return self._desk.logger(run)
