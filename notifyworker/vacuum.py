"""
Keep the live table small: the leader vacuums it itself, since autovacuum looks only once a minute.

A run leaves two dead rows behind, so a busy table has a hundred thousand of them within seconds, and every claim and
settle walks through what they leave in the indexes. VACUUM wants the right to (MAINTAIN from PostgreSQL 17 on, before
that a login that is a member of the owner) and can't be wrapped in a function; without the right it only warns, so it
is asked for first. While somebody holds an old snapshot it frees nothing, and then it is tried less and less often.
"""

import asyncio

from notifyworker.database import DatabaseError, Link, brief
from notifyworker.observe import Metrics, log
from notifyworker.store import Store

DEAD_ROWS = 10_000
_SHARE = 0.1  # of the time, at most: over a million waiting runs a vacuum reads large indexes
_LEAST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_COUNTED_S = 0.8  # PostgreSQL 14 shows what a vacuum freed up to half a second later
_IN_VAIN = 3  # vacuums in a row: one alone may be followed by as many dead rows as it freed
LONGEST_VACUUM_S = 600


class Vacuum:
    """The leader's vacuum of the live table."""

    def __init__(self, store: Store, link: Link, metrics: Metrics) -> None:
        self._store = store
        self._link = link
        self._metrics = metrics
        self._dead_rows = 0
        self._is_wanted = asyncio.Event()
        self._is_told = False
        self._in_vain = 0
        # Whether this worker may vacuum; None: not yet asked.
        self._is_allowed: bool | None = None

    @property
    def is_held_up(self) -> bool:
        """Whether the last vacuums freed next to nothing: somebody holds an old snapshot."""
        return self._in_vain >= _IN_VAIN

    def saw(self, dead_rows: int) -> None:
        """Take note of one look of the leader, or of the end of its leadership (0)."""
        self._dead_rows = dead_rows
        if dead_rows >= DEAD_ROWS:
            self._is_wanted.set()
        else:
            self._is_wanted.clear()

    async def run(self) -> None:
        """Vacuum when it is worth it, until cancelled."""
        pause_s = _LEAST_PAUSE_S
        while True:
            await self._is_wanted.wait()
            try:
                if self._is_allowed is None:
                    self._is_allowed = await self._store.may_vacuum(self._link)
                pause_s = await self._vacuum(pause_s) if self._is_allowed else self._do_without()
            except DatabaseError as error:
                self._metrics.database_errors.labels("vacuum").inc()
                log.warning("vacuum_failed", error=brief(error))
                pause_s = _LONGEST_PAUSE_S
            await asyncio.sleep(pause_s)

    async def _vacuum(self, last_pause_s: float) -> float:
        """Vacuum once; return how many seconds to wait before the next."""
        began = asyncio.get_running_loop().time()
        before = self._dead_rows
        await self._store.vacuum(self._link, timeout_s=LONGEST_VACUUM_S)
        took_s = asyncio.get_running_loop().time() - began
        await asyncio.sleep(_COUNTED_S)
        left = await self._store.dead_rows(self._link)
        self._metrics.vacuums.inc()
        self._in_vain = self._in_vain + 1 if left > before * 0.9 else 0
        if self.is_held_up and not self._is_told:
            log.warning("vacuum_frees_nothing", dead_rows=left, hint="a session holds an old snapshot; claims go on from marks")
        self._is_told = self.is_held_up
        if self._is_wanted.is_set():
            self.saw(left)
        if self.is_held_up:
            return min(_LONGEST_PAUSE_S, last_pause_s * 2)
        return max(_LEAST_PAUSE_S - _COUNTED_S, took_s * (1 / _SHARE - 1))

    def _do_without(self) -> float:
        if not self._is_told:
            self._is_told = True
            log.info(
                "vacuum_not_allowed",
                hint=f"the table's autovacuum has to do: grant the role {self._store.schema}_worker on PostgreSQL 17 and later",
            )
        return _LONGEST_PAUSE_S
