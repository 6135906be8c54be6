"""
The claim loop: look when woken, take what the free slots hold, sleep until something is due.

`wake` is set by a notification, a slot that freed, a reconnect, a stop; it is cleared before looking, so that none of
them is lost during a look.
"""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

from notifyworker.database import DatabaseError, Link, brief, is_refusal
from notifyworker.lanes import Batch, Key, Lanes, Seen
from notifyworker.observe import Metrics, log
from notifyworker.pause import Backoff, is_set_within
from notifyworker.run import Desk, Run
from notifyworker.settings import Settings
from notifyworker.store import Row, Served, Store

#: From here on one claim takes half of all slots, so that the next is on its way while those runs are executed.
_HALVED_FROM = 100


class Claims:
    """
    One worker's claims.

    `free` tells how many runs may be claimed now. `on_claimed` gets the runs of a claim, and the moment in
    time.monotonic() at which it was sent; `on_answer` hears of each whether it found something, and whether there may be
    more. `leases` tells which are kept, by run_id and lease_token; `on_orphan` gets a row of orphans.sql for each run that
    is this worker's by the database's word and of which it knows nothing.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        links: tuple[Link, Link],
        served: Served,
        lease_owner: str,
        *,
        wake: asyncio.Event,
        metrics: Metrics,
        desk: Desk,
        free: Callable[[], int],
        on_claimed: Callable[[list[Run], float], None],
        on_answer: Callable[..., None],
        leases: Callable[[], set[tuple[UUID, int]]],
        on_orphan: Callable[[Row], None],
    ) -> None:
        self._settings = settings
        self._store = store
        self._link, self._side_link = links
        self._served = served
        self._lease_owner = lease_owner
        self._metrics = metrics
        self._desk = desk
        self._free = free
        self._on_claimed = on_claimed
        self._on_answer = on_answer
        self._leases = leases
        self._on_orphan = on_orphan
        self.wake = wake
        #: Whether there may be more that is ready than the last claim took: then a slot that frees is worth a claim.
        self.more = True
        #: Since when, in time.monotonic(), and why nothing can be claimed.
        self.error: tuple[float, str] | None = None
        self.is_claiming = False
        #: Somebody has asked this worker to drain: it claims nothing until they take it back.
        self.is_held = False
        self._lanes = Lanes(settings.priority_ageing_s)
        self._stopping = False
        self._doubt_until = 0.0
        self._half = (settings.concurrency + settings.prefetch + 1) // 2
        self._clock = asyncio.get_running_loop().time

    @property
    def has_limits(self) -> bool:
        """Whether a run that ends may make room for another by a limit or a key."""
        return self._lanes.any_limited

    def stop(self) -> None:
        """Claim no more; what is on its way is still taken."""
        self._stopping = True
        self.is_claiming = False
        self.wake.set()

    def hold(self, *, is_held: bool) -> None:
        """Claim nothing for now, or go on."""
        self.is_held = is_held
        self.is_claiming = self.is_claiming and not is_held
        self.wake.set()

    def lower(self, to: datetime) -> None:
        """Read all lanes from this place on: something has become visible there only now."""
        self._lanes.lower(to)

    async def run(self) -> None:
        """Claim until stopped."""
        backoff = Backoff()
        was_woken = False
        while not self._stopping:
            self.wake.clear()
            try:
                pause_s = await self._round(was_woken=was_woken)
                await self._find_orphans()  # also where nothing is left to be claimed: nobody else would before the lease ends
            except DatabaseError as error:
                self._failed(error)
                await self._pause(backoff.next_s())
                was_woken = False
                continue
            backoff.reset()
            self.error, self.is_claiming = None, not self._stopping and not self.is_held
            was_woken = pause_s <= 0 or await is_set_within(self.wake, pause_s)
            if not was_woken:
                self._metrics.wakes.labels("poll" if pause_s >= self._settings.poll_interval_s else "due").inc()

    async def _round(self, *, was_woken: bool) -> float:
        """
        Claim what is ready; return for how many seconds there is nothing to do unless woken.

        Woken, or while a look from the beginning is not due, it claims first: what woke it lies most probably in a lane
        that it knows. Then comes the look, which finds the rest, and when the next run is due. With more to do than
        slots, the look comes first whenever it is due, or a lane that is new would wait behind the known ones' backlog.
        """
        poll_s = self._settings.poll_interval_s
        if self.is_held or self._free() <= 0:
            self.more = True
            return poll_s  # a freed slot sets the event, and so does the end of a hold
        is_look_due = self._lanes.look_is_due_in_s(self._clock()) <= 0
        if len(self._lanes) and not (is_look_due and (self.more or not was_woken)):
            if await self._claim():
                return 0.0
            await asyncio.sleep(0)  # what was claimed begins before the look is sent
        if (look_in_s := self._lanes.look_is_due_in_s(self._clock())) > 0:
            return min(poll_s, look_in_s)
        is_ready, due_in_s = await self._look()
        if is_ready and self._free() > 0 and await self._claim():
            return 0.0
        return min(poll_s, due_in_s)

    async def _look(self) -> tuple[bool, float]:
        """Look from the beginning. Tell whether a run is ready, and after how many seconds the next is due."""
        began = self._clock()
        self._lanes.begin()
        rows = await self._store.lanes(self._link, self._served)
        seen = (Seen(*(row[name] for name in Seen._fields)) for row in rows)
        is_ready = self._lanes.looked(seen, began, self._clock())
        dues = (row[name] for row in rows for name in ("due_in_s", "token_in_s"))
        due_in_s = min((due for due in dues if due is not None), default=float("inf"))
        return is_ready, max(0.001, due_in_s)

    async def _claim(self) -> bool:
        """Claim from the marks on. Tell whether there may be more."""
        may_be_more = False
        for batch in self._lanes.batches(self._limit()):
            if (limit := self._limit()) <= 0 or self.is_held:
                return True
            may_be_more = await self._claim_of(batch, limit) or may_be_more
        return may_be_more

    def _limit(self) -> int:
        """How many runs one claim takes now."""
        return min(self._free(), max(_HALVED_FROM, self._half))

    async def _claim_of(self, batch: Batch, limit: int) -> bool:
        """Claim from lanes of one sort. Tell whether there may be more."""
        sent_at = self._clock()
        slack = self._lanes.slack(sent_at)
        self._lanes.begin()
        runs = await self._store.claim(
            self._link, self._served, batch, slack, limit=limit, lease_owner=self._lease_owner, lease_s=self._settings.lease_s,
            enforce_shadow=self._settings.shadow == "enforce", desk=self._desk,
        )  # fmt: skip
        self._lanes.read(slack, sent_at, self._clock())
        self._metrics.claims.labels("some" if runs else "none").inc()
        self.more = self._lanes.have_more(batch, runs, limit)
        self._on_answer(found=bool(runs), has_more=self.more)
        if runs:
            self._metrics.claim_batch.observe(len(runs))
            runs.sort(key=_turn)
            self._note_marks(runs, is_limited=batch.is_limited)
            self._on_claimed(runs, sent_at)
        return self.more

    async def _find_orphans(self) -> None:
        """After a claim without an answer: it may have been executed, even after the looks and claims that came since."""
        if self._doubt_until > self._clock():
            known = self._leases()  # before: what is settled while this look is on its way is no orphan
            for row in await self._store.orphans(self._side_link, self._lease_owner):
                if (row["run_id"], row["lease_token"]) not in known:
                    self._on_orphan(row)

    def _note_marks(self, runs: list[Run], *, is_limited: bool) -> None:
        last: dict[Key, float] = {}
        for run in runs:
            if is_limited:
                run.is_limited = True
            last[run.kind, run.project_id, -2 * run.priority] = run.due_at_s  # a lane's runs come in the order of run_at
        for key, due_at_s in last.items():
            self._lanes.found(key, datetime.fromtimestamp(due_at_s, UTC))

    def _failed(self, error: BaseException) -> None:
        now = self._clock()
        self.is_claiming = False
        self._metrics.claims.labels("error").inc()
        if not is_refusal(error):  # it may have been executed all the same, even later
            self._doubt_until = now + self._settings.lease_s
        if self.error is None:
            log.warning("claim_failed", error=brief(error))
        self.error = (self.error[0] if self.error else now, brief(error))

    async def _pause(self, seconds: float) -> None:
        """A pause that a stop ends, and a notification does not."""
        ends_at = self._clock() + seconds
        while not self._stopping and (left_s := ends_at - self._clock()) > 0:
            self.wake.clear()
            await is_set_within(self.wake, left_s)


def _turn(run: Run) -> tuple[int, float, UUID]:
    return -run.priority, run.due_at_s, run.run_id
