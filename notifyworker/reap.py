"""
Give back the runs of workers that are gone, and the other chores that only a leader does.

A run is reaped when its lease has expired on the database's clock, or when the session by which its worker proved to
be alive has been gone for `presumed_dead_s`, counted from this leader's own first look that saw it gone. Reaping does
not stop the old worker: it ends the lease, so that whatever that one still writes is refused.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import datetime

import asyncpg

from notifyworker.checks import Checks
from notifyworker.children_store import ChildrenStore
from notifyworker.database import DatabaseError, Link, brief
from notifyworker.history import Sweeper
from notifyworker.observe import Metrics, log
from notifyworker.pause import is_set_within
from notifyworker.run_log_store import RunLogStore
from notifyworker.step_store import StepStore
from notifyworker.store import Store

_BATCH = 500
_PARTITIONS_S = 3600.0
_LATER_S = 60.0
_SWEEP_S = 1.0


class Reaper:
    """The leader's chores, and a follower's readiness to do them if nobody else does."""

    def __init__(self, store: Store, link: Link, lease_owner: str, metrics: Metrics, *, interval_s: float) -> None:
        self._store = store
        self._steps = StepStore(store)
        self._logs = RunLogStore(store)
        self._children = ChildrenStore(store)
        self._checks = Checks(store)
        self._link = link
        self._lease_owner = lease_owner
        self._metrics = metrics
        self.interval_s = interval_s
        self.is_leading = False
        #: Whether this worker reaps without leading, since nobody else does.
        self.stands_in = False
        #: Whether this worker could lead at all: behind a pooler it can't.
        self.may_lead: Callable[[], bool] = lambda: True
        self._following_since = time.monotonic()
        self._next_pass = 0.0
        self._absent: set[str] = set()
        # Since when an owner is gone, and its last beat before that.
        self._gone_since: dict[str, tuple[float, datetime]] = {}
        self._news = asyncio.Event()
        self._partitions_at = 0.0
        self._sweeper = Sweeper(store)
        self._sweep_at = float("inf")

    def saw(self, absent: Sequence[str]) -> None:
        """Take note of one look of the leader: these owners should be present and are not."""
        self._absent = set(absent)
        if self._absent or self._gone_since:
            self._news.set()

    def check(self) -> None:
        """Look at the parents of children, if this one leads: somebody has left a note."""
        if self.is_leading or self.stands_in:
            self._checks.asked()
            self._news.set()

    def lead(self, *, is_leading: bool) -> None:
        """Take note of an election, or of its end."""
        if is_leading != self.is_leading:
            self.is_leading = is_leading
            self._following_since = time.monotonic()
            self.stands_in = False
            if is_leading:
                self._next_pass = 0.0
            self._metrics.places.set(0)
            self._metrics.waiting.set(0)
            self._gone_since.clear()
            self._news.set()

    async def run(self) -> None:
        """Reap until cancelled."""
        while True:
            try:
                next_death = float("inf")
                if self.is_leading:
                    next_death = await self._take_over()
                if time.monotonic() >= self._next_pass:
                    self._next_pass = time.monotonic() + self.interval_s
                    if self.is_leading or await self._nobody_reaps():
                        await self._pass()
                        await self._keep_partitions()
                if time.monotonic() >= self._checks.due_at:
                    await self._checks.look(self._link)
                if time.monotonic() >= self._sweep_at:
                    await self._sweep()
                pause_s = min(self._next_pass, next_death, self._sweep_at, self._checks.due_at) - time.monotonic()
            except DatabaseError as error:
                self._metrics.database_errors.labels("reap").inc()
                log.warning("reap_failed", error=brief(error))
                self._next_pass = 0.0
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
        for forget in (self._store.keys_forget, self._store.debounces_forget, self._store.waiters_forget):
            while await forget(self._link, limit=_BATCH) == _BATCH:
                continue
        await self._store.pauses_forget(self._link)
        await self._store.workers_forget(self._link, sorted(self._absent))
        await self._mend_limits()
        await self._checks.cast_net(self._link)
        leader = self._lease_owner if self.is_leading else None
        await self._store.reaper_pass(self._link, leader, taken=taken, failed=failed, next_in_s=self.interval_s)

    async def _mend_limits(self) -> None:
        """Cast the net under limits and keys."""
        if mended := await self._store.mend_limits(self._link):
            log.warning("limits_mended", number=mended)
        seen = await self._store.limits_seen(self._link)
        self._metrics.places.set(seen["places"])
        self._metrics.waiting.set(seen["waiting"])

    async def _take_over(self) -> float:
        """
        Take the runs of those who have been gone long enough, each by the number that its worker gave.

        Return when, in time.monotonic(), the next of them will have been: then, and not at a later look, it is taken.
        """
        if not self._absent:
            self._gone_since.clear()
            return float("inf")
        holders = await self._store.absent_holders(self._link, sorted(self._absent))
        now = time.monotonic()
        before = self._gone_since
        self._gone_since = {
            owner: before[owner] if owner in before and before[owner][1] == beat else (now, beat)
            for owner, (_, beat) in holders.items()
        }
        dies_at = {owner: since + holders[owner][0] for owner, (since, _) in self._gone_since.items()}
        dead = [owner for owner, at in dies_at.items() if at <= now]
        next_death = min((at for at in dies_at.values() if at > now), default=float("inf"))
        if not dead:
            return next_death
        log.warning("workers_presumed_dead", workers=dead)
        while True:
            rows = await self._store.reap(self._link, limit=_BATCH, reaper=self._lease_owner, presumed_dead=dead)
            failed = self._told(rows)
            if rows:
                await self._store.reaper_counts(self._link, taken=len(rows), failed=failed)
            if len(rows) < _BATCH:
                return next_death

    def _told(self, rows: Sequence[asyncpg.Record]) -> int:
        for row in rows:
            self._metrics.reaped.labels(row["reason"], row["became"]).inc()
            log.warning(
                "run_reaped", run_id=str(row["run_id"]), taken_from=row["taken_from"], reason=row["reason"], became=row["became"]
            )
        return sum(row["became"] == "failed" for row in rows)

    async def _nobody_reaps(self) -> bool:
        """
        Say whether two passes were missed, so that a follower has to reap.

        With workers behind poolers alone there is no leader; and any role may take advisory locks, also the leader's.
        """
        state = await self._store.reaper_state(self._link)
        missed_s = 2 * self.interval_s
        is_due = state["silent_s"] is None or state["silent_s"] > missed_s
        if self.may_lead():  # then a leader is found within seconds, and is given the time
            is_due = is_due and time.monotonic() - self._following_since > missed_s
        is_new = is_due and not self.stands_in
        self.stands_in = is_due or (self.stands_in and state["leader"] is None)
        if is_new and self.may_lead():
            log.warning("leader_does_not_reap", leader=state["leader"], silent_s=round(state["silent_s"] or 0))
        elif is_new:
            log.info("reaps_without_leader")
        return is_due

    async def _keep_partitions(self) -> None:
        """Make the coming days' partitions and drop the expired ones; a reader in the way puts it off."""
        if time.monotonic() < self._partitions_at:
            return
        try:
            made = await self._store.make_partitions(self._link)
            dropped = await self._store.drop_expired_partitions(self._link)
            await self._forget_belongings()
        except asyncpg.LockNotAvailableError:
            self._partitions_at = time.monotonic() + _LATER_S
            log.info("partitions_put_off", retry_s=_LATER_S)
            return
        self._partitions_at = time.monotonic() + _PARTITIONS_S
        self._sweep_at = 0.0
        if made or dropped:
            log.info("partitions_kept", made=made, dropped=dropped)

    async def _sweep(self) -> None:
        """Delete what has a shorter retention than its day, between the other chores; a reader in the way puts it off."""
        try:
            goes_on = await self._sweeper.go_on(self._link)
        except asyncpg.LockNotAvailableError:
            self._sweep_at = time.monotonic() + _LATER_S
            return
        self._sweep_at = time.monotonic() + _SWEEP_S if goes_on else float("inf")
        if not goes_on and self._sweeper.deleted:
            log.info("history_swept", deleted=self._sweeper.deleted)
            self._sweeper.deleted = 0
            await self._forget_belongings()

    async def _forget_belongings(self) -> None:
        """Delete steps and logs of runs that are kept no longer."""
        for forget in (self._steps.steps_forget, self._logs.run_logs_forget, self._children.children_forget):
            while await forget(self._link, limit=_BATCH) == _BATCH:
                continue
