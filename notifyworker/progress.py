"""
What runs say of themselves, written at most once an interval each, and never lost.

The first goes out at once. What is said within the interval replaces what is not written yet; the newest is written when
the interval is over, all runs' in one statement, or goes with the run's outcome when its handler ends before. A
statement without an answer changes nothing about that: it is written again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any

from notifyworker.database import DatabaseError, Link, brief, is_poison
from notifyworker.errors import LeaseLost
from notifyworker.observe import Metrics, log
from notifyworker.pause import is_set_within
from notifyworker.run import Run
from notifyworker.store import Store

_BATCH = 500
_AGAIN_S = 0.2  # after a row was locked, or the database did not answer


class _Said:
    """The newest of one run."""

    __slots__ = ("due_at", "is_awaited", "is_over", "text", "waiters")

    def __init__(self) -> None:
        self.text: str | None = None
        self.due_at = 0.0
        self.is_over = False
        #: It is written without delay, and may be waited for.
        self.is_awaited = False
        self.waiters: list[asyncio.Future[Exception | None]] = []

    def tell(self, error: Exception | None = None) -> None:
        """Let those go on who wait: it is written, or why it is not."""
        self.is_awaited = False
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(error)


class _Writing:
    """What progress() returns: to be awaited, or not."""

    __slots__ = ("_said",)

    def __init__(self, said: _Said) -> None:
        self._said = said

    def __await__(self) -> Generator[Any, None, None]:
        if not self._said.is_awaited:
            return
        waiter: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._said.waiters.append(waiter)
        error = yield from waiter
        if error is not None:
            raise error


class Progress:
    """
    Writes the progress of one worker's runs.

    `is_mine` says whether a run is still executed here, `on_lost` is called for one that is another's, `on_written` with
    what was written.
    """

    def __init__(
        self,
        store: Store,
        link: Link,
        lease_owner: str,
        metrics: Metrics,
        *,
        interval_s: float,
        is_mine: Callable[[Run], bool],
        on_lost: Callable[[Run], None],
        on_written: Callable[[Run, str], None],
    ) -> None:
        self._store = store
        self._link = link
        self._lease_owner = lease_owner
        self._metrics = metrics
        self._interval_s = interval_s
        self._is_mine = is_mine
        self._on_lost = on_lost
        self._on_written = on_written
        # By the attempt's own Run: a later lease of the same run is another.
        self._of: dict[Run, _Said] = {}
        self._unwritten: dict[Run, _Said] = {}
        self._some = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def put(self, run: Run, text: str) -> Awaitable[None]:
        """Write this, now or later. Raises LeaseLost if the run is not executed here any more."""
        if not self._is_mine(run):
            raise LeaseLost(run.run_id, during="progress")
        said = self._of.get(run)
        if said is None:
            said = self._of[run] = _Said()
        said.text = text
        self._unwritten[run] = said
        self._some.set()
        said.is_awaited = said.due_at <= self._loop.time()
        return _Writing(said)

    def unwritten(self, run: Run) -> str | None:
        """What is to be written together with the run's end; None if all is, as far as is known."""
        said = self._unwritten.get(run)
        return None if said is None else said.text

    def ended(self, run: Run) -> str | None:
        """The same, and write it no more: it goes with the outcome."""
        if not self._unwritten or (said := self._unwritten.pop(run, None)) is None:
            return None
        said.is_over = True
        said.tell()
        return said.text

    def forget(self, run: Run) -> None:
        """Its handler has ended."""
        if self._of:  # as a rule nobody says anything
            self.ended(run)
            self._of.pop(run, None)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._some.wait()
            self._some.clear()
            now = self._loop.time()
            if due := [(run, said) for run, said in self._unwritten.items() if said.due_at <= now][:_BATCH]:
                await self._write(due)
                self._some.set()
            elif self._unwritten:
                await is_set_within(self._some, max(0.0, min(said.due_at for said in self._unwritten.values()) - now))
                self._some.set()

    async def _write(self, due: list[tuple[Run, _Said]]) -> None:
        sent = {run: said.text for run, said in due if said.text is not None}
        due_again_at = self._loop.time() + self._interval_s
        try:
            written = await self._store.progress(self._link, self._lease_owner, list(sent.items()))
            missed = {run.run_id: run.lease_token for run in sent if run.run_id not in written}
            held = await self._store.held(self._link, self._lease_owner, missed) if missed else set()
        except DatabaseError as error:
            await self._failed(due, error)
            return
        for run, said in due:
            if run.run_id in written:
                said.due_at = due_again_at
                if said.text is sent[run]:
                    self._unwritten.pop(run, None)
                self._on_written(run, sent[run])
                said.tell()
            elif run.run_id in held:
                said.due_at = self._loop.time() + _AGAIN_S
            elif not said.is_over:
                self._unwritten.pop(run, None)
                said.tell(LeaseLost(run.run_id, during="progress"))
                self._loop.call_soon(self._on_lost, run)  # its cancellation, after it has heard why

    async def _failed(self, due: list[tuple[Run, _Said]], error: Exception) -> None:
        self._metrics.database_errors.labels("progress").inc()
        if is_poison(error) and len(due) > 1:
            for one in due:
                await self._write([one])
            return
        log.warning("progress_not_written", error=brief(error), runs=len(due))
        for run, said in due:
            said.due_at = self._loop.time() + _AGAIN_S
            if is_poison(error):  # JSON that the server can't hold
                self._unwritten.pop(run, None)
                said.tell(error)
            said.tell()  # the handler need not wait for a database that is away
