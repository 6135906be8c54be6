"""
Fires schedules: the leader's clock, which goes by the database's.

It sleeps until the next one is due, and looks again when one was changed. What it fires it fires by the `next_at` that it
has seen; so a second leader, or one that was frozen meanwhile, fires nothing twice, and a new one goes on where the last
one stopped.
"""

import asyncio
import time
from datetime import datetime

from notifyworker import cron
from notifyworker.database import DatabaseError, Link, brief, is_refusal
from notifyworker.observe import Metrics, log
from notifyworker.pause import Backoff, is_set_within
from notifyworker.store import Row, Store

_LOOK_S = 60.0  # in case a change was not heard of
_LEAST_PAUSE_S = 0.2  # anybody may notify on our channel
_BATCH = 200


class Scheduler:
    """Fires the schedules of an installation while this worker leads."""

    def __init__(self, store: Store, link: Link, metrics: Metrics) -> None:
        self._store = store
        self._link = link
        self._metrics = metrics
        self._leads = asyncio.Event()
        self._news = asyncio.Event()
        #: Since when, in time.monotonic(), and why nothing can be fired.
        self.error: tuple[float, str] | None = None
        #: What keeps single schedules from firing, by name.
        self.faults: dict[str, str] = {}

    def lead(self, *, is_leading: bool) -> None:
        """Take note of an election, or of its end."""
        if is_leading:
            self._leads.set()
        else:
            self._leads.clear()
            self.error, self.faults = None, {}
        self._news.set()

    def changed(self) -> None:
        """A schedule was changed, somebody says."""
        self._news.set()

    async def run(self) -> None:
        """Fire until cancelled."""
        backoff = Backoff(cap_s=5.0)
        while True:
            await self._leads.wait()
            self._news.clear()
            try:
                pause_s = await self._look()
                self.error = None
                backoff.reset()
            except DatabaseError as error:
                if self.error is None:
                    log.warning("schedules_failed", error=brief(error))
                self.error = (self.error[0] if self.error else time.monotonic(), brief(error))
                self._metrics.database_errors.labels("schedule").inc()
                pause_s = backoff.next_s()
            if pause_s > _LEAST_PAUSE_S:
                await asyncio.sleep(_LEAST_PAUSE_S)
            await is_set_within(self._news, max(0.0, pause_s - _LEAST_PAUSE_S))

    async def _look(self) -> float:
        """Fire what is due. Return for how many seconds nothing will be."""
        rows = await self._store.schedules_due(self._link, limit=_BATCH)
        for row in rows:
            await self._fire(row)
        if len(rows) == _BATCH:
            return 0.0
        ahead = await self._store.schedules_ahead(self._link)
        self.faults = dict(zip(ahead["faulty"], ahead["errors"], strict=True))
        return min(_LOOK_S, _LOOK_S if ahead["due_in_s"] is None else max(0.0, ahead["due_in_s"]))

    async def _fire(self, row: Row) -> None:
        now: datetime = row["now"]
        try:
            if row["next_at"] is None:
                after = max(now, row["last_tick_at"] or now)
                await self._store.schedule_next(self._link, row, cron.upcoming(row["cron"], row["timezone"], after, 1)[0])
                return
            found, following = cron.due(row["cron"], row["timezone"], row["next_at"], now)
            fired = cron.to_fire(found, now, row["missed"])
            runs = await self._store.schedule_fire(self._link, row, found[-1], following, fired)
        except ValueError as error:
            await self._fault(row, str(error))
            return
        except DatabaseError as error:
            if not is_refusal(error):
                raise
            await self._fault(row, brief(error))  # the run is refused: the same again at the next look
            return
        if len(found) > len(fired):
            log.warning("schedule_missed", schedule=row["name"], ticks=len(found) - len(fired), last=found[-1].isoformat())
        for run_id in runs:
            log.debug("schedule_fired", schedule=row["name"], run_id=str(run_id))

    async def _fault(self, row: Row, error: str) -> None:
        log.error("schedule_faulty", schedule=row["name"], error=error)
        await self._store.schedule_fault(self._link, row, error[:1000])

    def health(self) -> list[str]:
        """What does not fire, and why."""
        reasons = [f"the schedule {name!r} does not fire: {error}" for name, error in sorted(self.faults.items())[:3]]
        if len(self.faults) > len(reasons):
            reasons.append(f"{len(self.faults) - len(reasons)} schedules more do not fire")
        if self.error is not None:
            reasons.append(f"schedules could not be fired for {time.monotonic() - self.error[0]:.0f} s: {self.error[1]}")
        return reasons
