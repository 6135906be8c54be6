"""
Copies of live runs: executed beside the live ones, in a share of the slots, and compared.

Which live runs are chosen is decided by the statement that settles them (schema/0024_shadow.sql). A worker that has the
version looks for them each `poll_interval_s`, when it has itself settled such a run, and when it is told.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from hashlib import md5
from uuid import UUID

from notifyworker.compare import Rules, Verdict, compare
from notifyworker.database import DatabaseError, Link, brief, is_refusal
from notifyworker.observe import Metrics, log
from notifyworker.pause import Backoff, is_set_within
from notifyworker.run import Desk, Outcome, Run
from notifyworker.settings import Settings
from notifyworker.shadow_store import Pair, ShadowStore, rules_of
from notifyworker.store import Served

_PAUSE_S = 0.25  # between looks that find nothing, however often live runs are settled
_BATCH = 200
_SOON_S, _LATE_S = 0.5, 2.0  # how long those that were leased together may take to begin, for more or fewer the next time
_COMPARE_S = 0.5
_RELOAD_S = 60.0
_USUAL = Rules()


class Mirrors:
    """
    One worker's copies.

    Copies are leased many at a time, since a claim costs far more than a copy, and begin here as slots allow.

    `free` tells how many slots live runs would get, `is_busy` whether live ones wait; `on_leased` gets copies and when they
    were asked for, and tells whether they may begin; `begin` those that do; `in_doubt` hears of a claim without an answer, and `alone` keeps a look for such runs away meanwhile.
    """

    def __init__(
        self,
        settings: Settings,
        store: ShadowStore,
        link: Link,
        served: Served,
        lease_owner: str,
        *,
        metrics: Metrics,
        desk: Desk,
        free: Callable[[], int],
        is_busy: Callable[[], bool],
        on_leased: Callable[[list[Run], float], bool],
        begin: Callable[[list[Run]], None],
        alone: Callable[[], AbstractAsyncContextManager[None]],
        in_doubt: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._store = store
        self._link = link
        self._served = served
        self._lease_owner = lease_owner
        self._desk = desk
        self._metrics = metrics
        metrics.copies.set_function(lambda: len(self._running) + len(self._leased))
        self._free = free
        self._is_busy = is_busy
        self._on_leased = on_leased
        self._begin = begin
        self._alone = alone
        self._in_doubt = in_doubt
        self._kinds = [k for k, versions in served.versions.items() if any(v is not None for v in versions)]
        self._allowed = int(settings.shadow_share * settings.concurrency)
        self._rules: dict[str, list[tuple[str, float]]] = {}
        self._ends_at = float("inf")
        self._comparisons: dict[str, Rules] = {}
        self._is_stale = True
        self._leased: deque[Run] = deque()
        self._ahead = 0
        self._leased_at = float("-inf")
        self._running: set[tuple[UUID, int]] = set()
        self._unsettled: set[UUID] = set()
        self._compare_at = 0.0
        self._is_to_compare = False
        self._may_be_more = False
        self._is_stopping = False
        self._wake = asyncio.Event()
        self._clock = asyncio.get_running_loop().time

    # Live runs.

    @property
    def any_rules(self) -> bool:
        """Whether live runs are mirrored, as far as is known here."""
        return bool(self._rules)

    def mark(self, runs: Iterable[Run]) -> None:
        """Let those that will be chosen record their effects."""
        for run in runs:
            if (rules := self._rules.get(run.kind)) is not None and not run.is_shadow:
                run.records = any(_takes(rule, run) for rule in rules)

    @property
    def reserved(self) -> int:
        """Slots that are kept for copies that wait."""
        return max(0, self._allowed - len(self._running)) if self._may_be_more or self._leased else 0

    # What the worker tells.

    def changed(self) -> None:
        """Rules or comparisons are others now, or past runs were chosen."""
        self._is_stale = True
        self._compare_at = 0.0
        self._wake.set()

    def settled(self, outcomes: Sequence[Outcome]) -> None:
        """Outcomes were written, so that there may be room again."""
        if self._leased:
            self._feed()
        if self._unsettled:
            before = len(self._unsettled)
            self._unsettled.difference_update(outcome.run_id for outcome in outcomes)
            self._is_to_compare = self._is_to_compare or len(self._unsettled) < before
            if self._is_to_compare:
                self._wake.set()
        if self._kinds and self._rules and any(outcome.kind in self._rules for outcome in outcomes):
            self._wake.set()

    def slot_is_free(self) -> None:
        """A slot has become free, which may be one that is kept for a copy."""
        if self._leased:
            self._feed()
        elif self._may_be_more:
            self._wake.set()

    def over(self, run: Run) -> None:
        """The handler of a copy has ended, or will never begin."""
        self._running.discard((run.run_id, run.lease_token))
        if self._leased:
            self._feed()
        else:
            self._wake.set()

    def stop(self) -> None:
        """Claim no more copies."""
        self._is_stopping = True
        self._may_be_more = False

    def take_waiting(self) -> list[Run]:
        """Return the copies that are leased and have not begun, and forget them."""
        runs = list(self._leased)
        self._leased.clear()
        return runs

    def take_from_waiting(self, leases: Mapping[UUID, int]) -> list[Run]:
        """The same for those of these leases."""
        runs = [run for run in self._leased if leases.get(run.run_id) == run.lease_token]
        if runs:
            self._leased = deque(run for run in self._leased if leases.get(run.run_id) != run.lease_token)
        return runs

    # The loop.

    async def run(self) -> None:
        """Claim, compare and keep the rules until cancelled."""
        backoff = Backoff()
        while True:
            self._wake.clear()
            try:
                if self._is_stale:
                    await self._load()
                found = await self._round() if self._kinds and not self._is_stopping else False
            except DatabaseError as error:
                log.debug("shadow_looks_again", error=brief(error))
                await asyncio.sleep(backoff.next_s())
                continue
            backoff.reset()
            if self._kinds and (not found or (self._rules and self._is_busy())):
                await asyncio.sleep(_PAUSE_S)  # while live runs wait, copies go on slowly: each costs as much as some of those
            longest_s = self._settings.poll_interval_s if self._kinds else _RELOAD_S
            if self._is_to_compare:
                longest_s = min(longest_s, self._compare_at - self._clock())
            was_woken = await is_set_within(self._wake, max(0.0, min(longest_s, self._ends_at - self._clock())))
            # What was told while nobody listened is found by looking.
            self._is_stale = self._is_stale or not (was_woken or self._is_to_compare)

    async def _load(self) -> None:
        self._is_stale = False
        try:
            rules: dict[str, list[tuple[str, float]]] = {}
            rows = await self._store.mirrors_load(self._link)
            for row in rows:
                rules.setdefault(row["kind"], []).append((row["project_id"], row["percent"]))
            self._rules = rules
            ends = [row["ends_in_s"] for row in rows if row["ends_in_s"] is not None]
            self._ends_at = self._clock() + min(ends) if ends else float("inf")
            if self._kinds:
                rows = await self._store.comparisons_load(self._link, self._kinds)
                self._comparisons = {row["kind"]: rules_of(row) for row in rows}
        except DatabaseError:
            self._is_stale = True
            raise

    async def _round(self) -> bool:
        """Claim what slots are there for, and compare what is settled; False if it has asked for copies in vain."""
        self._feed()
        room = 0 if self._leased else self._room()
        if room > 0:
            wanted = self._wanted(room)
            claimed = await self._claim(wanted)
            self._may_be_more = claimed == wanted
        elif not self._leased:
            claimed = 0  # without a free slot nobody knows whether there are any: one is kept for the next look
            self._may_be_more = len(self._running) < self._allowed
        else:
            claimed = 0
        if self._clock() < self._compare_at:
            return claimed > 0 or room <= 0
        self._is_to_compare = False  # before: what is settled meanwhile is for the next time
        compared = await self._compare()
        if compared == _BATCH:
            self._wake.set()
        else:
            self._compare_at = self._clock() + _COMPARE_S
        return claimed > 0 or room <= 0 or compared == _BATCH

    def _room(self) -> int:
        free = self._free() + self.reserved
        if self._allowed == 0 and self._settings.shadow_share > 0:
            return min(1 - len(self._running), free) if not self._is_busy() else 0
        return min(self._allowed - len(self._running), free)

    def _wanted(self, room: int) -> int:
        """
        How many to lease: what can begin now, and what will soon, going by how long the last ones took.

        While live runs wait no more than can begin: a copy costs as much as three of those.
        """
        if self._is_busy():
            return room
        took_s = self._clock() - self._leased_at
        if took_s < _SOON_S:
            self._ahead = min(_BATCH, 2 * self._ahead + room)
        elif took_s > _LATE_S:
            self._ahead //= 2
        return room + self._ahead

    def _feed(self) -> None:
        """Let begin what is leased, as slots allow."""
        room = min(self._room(), len(self._leased))
        if room > 0 and not self._is_stopping:
            runs = [self._leased.popleft() for _ in range(room)]
            self._running.update((run.run_id, run.lease_token) for run in runs)
            self._begin(runs)
            if not self._leased:
                self._wake.set()

    async def _claim(self, limit: int) -> int:
        sent_at = self._clock()
        async with self._alone():
            try:
                runs = await self._store.claim_shadow(
                    self._link, self._served, limit=limit, lease_owner=self._lease_owner, lease_s=self._settings.lease_s,
                    desk=self._desk,
                )  # fmt: skip
            except DatabaseError as error:
                if not is_refusal(error):
                    self._in_doubt()
                raise
            self._unsettled.update(run.run_id for run in runs)
            if runs and self._on_leased(runs, sent_at):
                self._leased_at = self._clock()
                self._leased.extend(runs)
                self._feed()
        return len(runs)

    async def _compare(self) -> int:
        pairs = await self._store.pairs_take(self._link, self._kinds, limit=_BATCH)
        if pairs:
            judged = [(pair, *self._judge(pair)) for pair in pairs]
            await self._store.pairs_note(self._link, judged)
            for pair, became, verdict in judged:
                for found in verdict.ways if became == "different" else (became,):
                    self._metrics.compared.labels(pair.kind, found).inc()
        return len(pairs)

    def _judge(self, pair: Pair) -> tuple[str, Verdict]:
        if pair.live is None or pair.shadow is None:
            return "gone", Verdict(is_same=False)
        if pair.shadow.state == "cancelled" or pair.shadow.error_code == "E-RUN-002":  # no doing of its handler's
            return "interrupted", Verdict(is_same=False)
        verdict = compare(pair.live, pair.shadow, self._comparisons.get(pair.kind, _USUAL))
        return "same" if verdict.is_same else "different", verdict


def part_of(run_id: UUID) -> float:
    """Where a run stands between 0 and 100, always the same: as {schema}.part_of."""
    return int(md5(str(run_id).encode(), usedforsecurity=False).hexdigest()[:8], 16) * 100.0 / 4294967296.0


def _takes(rule: tuple[str, float], run: Run) -> bool:
    project_id, percent = rule
    return project_id in {"", run.project_id} and part_of(run.run_id) < percent
