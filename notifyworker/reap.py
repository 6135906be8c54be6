"""
Give back the runs of workers that are gone, and the other chores that only a leader does.

A run is reaped when its lease has expired on the database's clock, or when the session by which its worker proved to
be alive has been gone for `presumed_dead_s`, counted from this leader's own first look that saw it gone. Reaping does
not stop the old worker: it ends the lease, so that whatever that one still writes is refused.
"""

import asyncio
import time
from collections.abc import Sequence

import asyncpg

from notifyworker.database import DatabaseError, Link, brief
from notifyworker.observe import Metrics, log
from notifyworker.pause import is_set_within
from notifyworker.store import Store

_BATCH = 500
_PARTITIONS_S = 3600.0
_LATER_S = 60.0


class Reaper:
    """The leader's chores, and a follower's readiness to do them if nobody else does."""

    def __init__(self, store: Store, link: Link, lease_owner: str, metrics: Metrics, *, interval_s: float) -> None:
        self._store = store
        self._link = link
        self._lease_owner = lease_owner
        self._metrics = metrics
        self.interval_s = interval_s
        self.is_leading = False
        #: Set if this worker reaps without leading, since whoever holds the leader's lock does not.
        self.stands_in = False
        self._absent: set[str] = set()
        self._gone_since: dict[str, float] = {}
        self._news = asyncio.Event()
        self._partitions_at = 0.0
        self._pass_at = 0.0

    def saw(self, absent: Sequence[str]) -> None:
        """Take note of one look of the leader: these owners should be present and are not."""
        self._absent = set(absent)
        if self._absent or self._gone_since:
            self._news.set()

    def lead(self, *, is_leading: bool) -> None:
        """Take note of an election, or of its end."""
        if is_leading != self.is_leading:
            self.is_leading = is_leading
            self.stands_in = False
            self._gone_since.clear()
            self._pass_at = 0.0 if is_leading else time.monotonic() + self.interval_s
            self._news.set()

    async def run(self) -> None:
        """Reap until cancelled."""
        # A leader passes at once. A follower first gives one the time to: the fleet may just have been started.
        self._pass_at = 0.0 if self.is_leading else time.monotonic() + self.interval_s
        while True:
            pause_s = self._pass_at - time.monotonic()
            try:
                if self.is_leading:
                    await self._take_over()
                    if time.monotonic() >= self._pass_at:
                        await self._pass()
                        await self._keep_partitions()
                        self._pass_at = time.monotonic() + self.interval_s
                elif time.monotonic() >= self._pass_at:
                    self._pass_at = time.monotonic() + self.interval_s  # before: an election meanwhile wants a pass at once
                    await self._stand_in()
                pause_s = self._pass_at - time.monotonic()
            except DatabaseError as error:
                self._metrics.database_errors.labels("reap").inc()
                log.warning("reap_failed", error=brief(error))
                pause_s = 1.0
            await is_set_within(self._news, max(0.05, pause_s))
            self._news.clear()

    async def _pass(self) -> None:
        """One pass over expired leases and runs that may no longer be started, in bounded batches."""
        taken = failed = 0
        while True:
            rows = await self._store.reap(self._link, limit=_BATCH, reaper=self._lease_owner, presumed_dead=[])
            taken += len(rows)
            failed += self._told(rows)
            if len(rows) < _BATCH:
                break
        while await self._store.expire(self._link, limit=_BATCH) == _BATCH:
            continue
        await self._store.workers_forget(self._link, sorted(self._absent))
        await self._store.reaper_pass(self._link, self._lease_owner, taken=taken, failed=failed, next_in_s=self.interval_s)

    async def _take_over(self) -> None:
        """Take the runs of those who have been gone long enough, each by the number that its worker gave."""
        if not self._absent:
            self._gone_since.clear()
            return
        holders = await self._store.absent_holders(self._link, sorted(self._absent))
        now = time.monotonic()
        self._gone_since = {owner: self._gone_since.get(owner, now) for owner in holders}
        dead = [owner for owner, since in self._gone_since.items() if now - since >= holders[owner]]
        if not dead:
            return
        log.warning("workers_presumed_dead", workers=dead)
        while True:
            rows = await self._store.reap(self._link, limit=_BATCH, reaper=self._lease_owner, presumed_dead=dead)
            failed = self._told(rows)
            if rows:
                await self._store.reaper_counts(self._link, taken=len(rows), failed=failed)
            if len(rows) < _BATCH:
                return

    def _told(self, rows: Sequence[asyncpg.Record]) -> int:
        for row in rows:
            self._metrics.reaped.labels(row["reason"], row["became"]).inc()
            log.warning(
                "run_reaped", run_id=str(row["run_id"]), taken_from=row["taken_from"], reason=row["reason"], became=row["became"]
            )
        return sum(row["became"] == "failed" for row in rows)

    async def _stand_in(self) -> None:
        """Reap all the same if the leader's lock is held by somebody who does not: any role may take advisory locks."""
        state = await self._store.reaper_state(self._link)
        self.stands_in = not self.is_leading and state["silent_s"] > 2 * self.interval_s
        if self.stands_in:
            log.warning("leader_does_not_reap", leader=state["leader"], silent_s=round(state["silent_s"]))
            await self._pass()

    async def _keep_partitions(self) -> None:
        """Make the coming days' partitions and drop the expired ones; a reader in the way puts it off."""
        if time.monotonic() < self._partitions_at:
            return
        try:
            made = await self._store.make_partitions(self._link)
            dropped = await self._store.drop_expired_partitions(self._link)
        except asyncpg.LockNotAvailableError:
            self._partitions_at = time.monotonic() + _LATER_S
            log.info("partitions_put_off", retry_s=_LATER_S)
            return
        self._partitions_at = time.monotonic() + _PARTITIONS_S
        if made or dropped:
            log.info("partitions_kept", made=made, dropped=dropped)
