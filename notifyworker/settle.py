"""
Outcomes, gathered and written in batches, each fenced by its lease token.

The first outcome goes out at once; what gathers while it is on its way goes together with the next. No answer is not
a "no": a statement whose connection was cut may have been executed, so its outcomes are sent again, and what is no
longer there is looked for in the history before it is called lost.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from uuid import UUID

from notifyworker.database import DatabaseError, Link, brief, is_poison, is_refusal
from notifyworker.execute import refused_result
from notifyworker.observe import Metrics, log
from notifyworker.pause import Backoff, is_set_within
from notifyworker.run import Outcome, State
from notifyworker.store import Store

_BATCH = 500


class Settler:
    """Writes outcomes until there are none. `put` never waits; the worker bounds how many are on their way."""

    def __init__(
        self,
        store: Store,
        link: Link,
        lease_owner: str,
        metrics: Metrics,
        *,
        on_settled: Callable[[Sequence[Outcome]], None],
        on_refused: Callable[[Outcome], None],
    ) -> None:
        self._store = store
        self._link = link
        self._lease_owner = lease_owner
        self._metrics = metrics
        self._on_settled = on_settled
        self._on_refused = on_refused
        #: Awaited before outcomes are written, with their leases: what is to be written while these last.
        self.before: Callable[[Iterable[tuple[UUID, int]]], Awaitable[None]] | None = None
        self._waiting: deque[Outcome] = deque()
        # Their rows were locked by somebody: they go again with the next batch, or after a pause.
        self._skipped: list[Outcome] = []
        # Runs given back without an answer, by run_id and lease_token.
        self._unsure: set[tuple[UUID, int]] = set()
        self._writing = 0
        self._some = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()
        #: Since when, in time.monotonic(), and why nothing can be written.
        self.error: tuple[float, str] | None = None

    @property
    def backlog(self) -> int:
        """How many outcomes are not yet written."""
        return len(self._waiting) + len(self._skipped) + self._writing

    def put(self, outcome: Outcome) -> None:
        """Write this one as soon as may be."""
        self._waiting.append(outcome)
        self._none.clear()
        self._some.set()

    async def flushed(self) -> None:
        """Return when all is written."""
        await self._none.wait()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._some.wait()
            backoff = Backoff(cap_s=1.0)
            while self._waiting or self._skipped:
                self._some.clear()
                again = len(self._skipped)
                batch = self._next_batch()
                self._writing = len(batch)
                await self._write_all(batch)
                self._writing = 0
                if len(batch) > again:
                    backoff.reset()
                elif self._skipped:
                    await is_set_within(self._some, backoff.next_s())  # a stranger's lock has no event to wait for
            self._some.clear()
            self._none.set()

    def _next_batch(self) -> list[Outcome]:
        """One outcome a run: two attempts at one run, of which one is refused, go one after the other."""
        batch = {outcome.run_id: outcome for outcome in self._skipped}
        most = len(batch) + _BATCH
        self._skipped = []
        later = []
        while self._waiting and len(batch) < most:
            outcome = self._waiting.popleft()
            if outcome.run_id in batch:
                later.append(outcome)
            else:
                batch[outcome.run_id] = outcome
        self._waiting.extendleft(reversed(later))
        return list(batch.values())

    async def _write_all(self, batch: list[Outcome]) -> None:
        back = [o for o in batch if o.to is State.PENDING]
        settled = [o for o in batch if o.to is not State.PENDING] if back else batch
        if settled:
            self._metrics.settle_batch.observe(len(settled))
            await self._write(settled)
        if back:
            await self._write(back)

    async def _write(self, batch: Sequence[Outcome]) -> None:
        """Write outcomes of one sort until each is settled, lost, or found to be locked by somebody."""
        is_back = batch[0].to is State.PENDING
        left = {o.run_id: o for o in batch}
        backoff = Backoff()
        while left:
            outcomes = list(left.values())
            try:
                if self.before is not None:
                    await self.before((o.run_id, o.lease_token) for o in outcomes)
                self._written(left, await (self._give_back(outcomes) if is_back else self._settle(outcomes)))
                if left:
                    await self._look_after(left)
                if is_back:
                    self._unsure.difference_update((o.run_id, o.lease_token) for o in outcomes if o.run_id not in left)
                self._skipped += left.values()
                left = {}
            except DatabaseError as error:
                if is_poison(error):
                    await self._isolate(outcomes, error)
                    return
                if is_back and not is_refusal(error):
                    self._unsure.update((o.run_id, o.lease_token) for o in left.values())
                await self._pause(error, len(left), backoff)
                continue
            self.error = None

    async def _give_back(self, outcomes: Sequence[Outcome]) -> Collection[UUID]:
        return await self._store.give_back(self._link, self._lease_owner, outcomes)

    async def _settle(self, outcomes: Sequence[Outcome]) -> Collection[UUID]:
        """Return those known to be settled: all, or none where something is missing, for what was written is on record."""
        count = await self._store.settle(self._link, self._lease_owner, outcomes)
        return [o.run_id for o in outcomes] if count == len(outcomes) else ()

    def _written(self, left: dict[UUID, Outcome], run_ids: Collection[UUID]) -> None:
        if run_ids:
            self._on_settled([left.pop(run_id) for run_id in run_ids])

    async def _look_after(self, left: dict[UUID, Outcome]) -> None:
        """
        Leave those that are locked, which go again; tell of the others whether they were written or are lost.

        First what is held, then what is on record: a settle that was cut off may be executed only now.
        """
        tokens = {o.run_id: o.lease_token for o in left.values()}
        held = await self._store.held(self._link, self._lease_owner, tokens)
        gone = {run_id: token for run_id, token in tokens.items() if run_id not in held}
        settled = {run_id: token for run_id, token in gone.items() if left[run_id].to is not State.PENDING}
        written = await self._store.settled(self._link, self._lease_owner, settled) if settled else set()
        # A give-back leaves no trace of who gave it: after a lost answer, a run that is no longer held was given.
        written.update(run_id for run_id in gone.keys() - settled.keys() if (run_id, gone[run_id]) in self._unsure)
        self._written(left, written)
        for run_id in gone.keys() - written:
            self._on_refused(left.pop(run_id))

    async def _isolate(self, batch: Sequence[Outcome], error: BaseException) -> None:
        """Find the one outcome of a batch that the server refuses: halve it until it stands alone."""
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._write(batch[:middle])
            await self._write(batch[middle:])
            return
        poison = batch[0]
        self._unsure.discard((poison.run_id, poison.lease_token))
        log.error("outcome_unstorable", run_id=str(poison.run_id), kind=poison.kind, error=brief(error))
        if poison.error_code == "E-RUN-005":
            self._on_refused(poison)  # even the plain note about it is refused: the lease's end will tell
            return
        await self._write([refused_result(poison, brief(error), self._lease_owner)])

    async def _pause(self, error: BaseException, waiting: int, backoff: Backoff) -> None:
        now = asyncio.get_running_loop().time()
        if self.error is None:
            log.warning("settle_failed", error=brief(error), waiting=waiting + len(self._waiting))
        self.error = (self.error[0] if self.error else now, brief(error))
        self._metrics.database_errors.labels("settle").inc()
        await asyncio.sleep(backoff.next_s())
