"""
What people look at, beside what the store has for workers: filtered lists, changes, and kinds at a glance.

Nothing here writes or locks, and every look has a bound on what it counts or returns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from notifyworker.data import folder
from notifyworker.database import Queryable
from notifyworker.migrate import render

#: Where no index helps, so many runs are searched, and so many live and settled ones counted.
SEARCHED = 100_000
#: Changes of one look.
CHANGES = 1000


@dataclass(frozen=True, slots=True)
class Filter:
    """Which runs are meant; None stands for any. `since` (inclusive) and `until` go by when a run was inserted, as its id says."""

    state: str | None = None
    kind: str | None = None
    project_id: str | None = None
    is_shadow: bool | None = None
    worker: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    text: str | None = None

    @property
    def is_searched(self) -> bool:
        """Whether something is asked for that no index helps with."""
        return self.worker is not None or self.text is not None


class Views:
    """The statements of one installation that only look."""

    def __init__(self, schema: str) -> None:
        files = folder("sql")
        self._sql = {
            name: render((files / f"{name}.sql").read_text(encoding="utf-8"), schema)
            for name in ("runs_find", "runs_changed", "kinds_list")
        }

    async def runs_find(
        self, on: Queryable, wanted: Filter, *, before: UUID | None = None, limit: int = 50
    ) -> list[asyncpg.Record]:
        """Runs that a filter leaves, newest first; `before` is the last run_id of the page before."""
        until = [bound for bound in (before, wanted.until and first_id(wanted.until)) if bound is not None]
        searched = max(limit, SEARCHED) if wanted.is_searched else limit
        return await on.fetch(
            self._sql["runs_find"],
            wanted.state, wanted.kind, wanted.project_id, wanted.is_shadow, wanted.since and first_id(wanted.since),
            min(until, default=None), searched, wanted.worker, wanted.text, limit,
        )  # fmt: skip

    async def runs_changed(
        self, on: Queryable, wanted: Filter, *, since: datetime, above: UUID, known: Sequence[UUID], limit: int = CHANGES
    ) -> list[asyncpg.Record]:
        """Runs settled since then, and live ones that are newer than `above`, known, or held by a worker."""
        return await on.fetch(
            self._sql["runs_changed"],
            since, above, known, limit, wanted.kind, wanted.project_id, wanted.is_shadow, wanted.state, wanted.worker,
        )  # fmt: skip

    async def kinds_list(self, on: Queryable, *, window_s: float, cap: int = SEARCHED) -> list[asyncpg.Record]:
        """Each kind: what waits, what runs, and what was settled within the last seconds."""
        return await on.fetch(self._sql["kinds_list"], window_s, cap)


def first_id(moment: datetime) -> UUID:
    """Return the least id (uuid v7) that a run inserted then can have been given."""
    return UUID(int=max(0, int(moment.timestamp() * 1000)) << 80)
