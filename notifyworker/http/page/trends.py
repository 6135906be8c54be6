"""
What was settled minute by minute, kept in memory: a minute that is over is read once and never again.

Missing minutes are read from the newest on, a few at a time and within a budget, so that a page over a huge history fills
up while it is looked at, and no look costs the database more than the budget.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from notifyworker.database import Queryable
from notifyworker.http.page.queries import Queries

MINUTE = timedelta(minutes=1)
_CHUNK = 60  # minutes a statement, at most
_STATEMENT_S = 0.03  # what one should take: as many minutes as that is enough for
_BUDGET_S = 0.4
_KEPT = 1500  # minutes
_KINDS = 100  # a minute


@dataclass(slots=True)
class Minute:
    """How many runs ended how in a minute; pickup times in seconds at 50, 95 and 99 per cent."""

    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    pickup_s: Sequence[float | None] = (None, None, None)
    kinds: dict[str, tuple[int, int]] = field(default_factory=dict)  # completed and failed


class Trends:
    """The minutes of one installation."""

    def __init__(self, queries: Queries) -> None:
        self._queries = queries
        self._minutes: dict[datetime, Minute] = {}
        self._chunk = 1

    async def read(self, on: Queryable, now: datetime, minutes: int) -> tuple[list[datetime], list[Minute | None]]:
        """The last minutes, the oldest first, this one among them; None for one that is not read yet. Raises DatabaseError."""
        this = now.replace(second=0, microsecond=0)
        wanted = [this - MINUTE * back for back in range(minutes)]
        ends_at = time.monotonic() + _BUDGET_S
        missing = [moment for moment in wanted[1:] if moment not in self._minutes]
        open_ones = [moment for moment in wanted[:2] if moment not in self._minutes or moment == this]
        current = await self._load(on, open_ones[-1], now + MINUTE) if open_ones else {}
        while missing and time.monotonic() < ends_at:
            newest, missing = missing[0], missing[self._chunk :]
            oldest = newest - MINUTE * (self._chunk - 1)
            began = time.monotonic()
            loaded = await self._load(on, oldest, newest + MINUTE)
            fits = _STATEMENT_S / max(time.monotonic() - began, 0.0001)
            self._chunk = max(1, min(_CHUNK, int(self._chunk * min(2.0, fits))))
            moment = oldest
            while moment <= newest:
                self._minutes[moment] = loaded.get(moment, Minute())
                moment += MINUTE
        self._forget()
        order = wanted[::-1]
        known = [current.get(moment, Minute()) if moment == this else self._minutes.get(moment) for moment in order]
        return order, known

    async def _load(self, on: Queryable, start: datetime, end: datetime) -> dict[datetime, Minute]:
        found: dict[datetime, Minute] = {}
        for row in await self._queries.rows(on, "minutes", start, end):
            minute = found.setdefault(row["minute"], Minute())
            if row["kind"] is None:
                minute.completed, minute.failed, minute.cancelled = row["completed"], row["failed"], row["cancelled"]
                minute.pickup_s = row["pickup_s"] or (None, None, None)
            elif len(minute.kinds) < _KINDS:
                minute.kinds[row["kind"]] = row["completed"], row["failed"]
        return found

    def _forget(self) -> None:
        for moment in sorted(self._minutes)[: max(0, len(self._minutes) - _KEPT)]:
            del self._minutes[moment]


def gathered(minutes: Sequence[Minute | None], *, most: int = 60) -> list[Minute | None]:
    """Join neighbours, so that there are at most so many; of pickup times the worst of them counts."""
    step = -(-len(minutes) // most)
    joined: list[Minute | None] = []
    for start in range(0, len(minutes), step):
        group = [minute for minute in minutes[start : start + step] if minute is not None]
        joined.append(_sum(group) if group else None)
    return joined


def _sum(group: Sequence[Minute]) -> Minute:
    kinds: dict[str, tuple[int, int]] = {}
    for minute in group:
        for kind, (completed, failed) in minute.kinds.items():
            had = kinds.get(kind, (0, 0))
            kinds[kind] = had[0] + completed, had[1] + failed
    known = [minute.pickup_s for minute in group if minute.pickup_s[0] is not None]
    worst = [max((one[place] or 0.0 for one in known), default=None) for place in range(3)]
    return Minute(
        sum(m.completed for m in group), sum(m.failed for m in group), sum(m.cancelled for m in group), worst, kinds
    )  # fmt: skip
