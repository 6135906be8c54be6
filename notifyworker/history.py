"""
What becomes of settled runs: how long each is kept, what is deleted when that is over, and all of it read out.

A day goes as a whole, by the drop of its partition, once nothing in it must stay. Where a kind or a project has a
retention of its own, rows are deleted from the days that stay: page by page, so that no statement is long.
"""

import time
from collections.abc import AsyncIterator
from dataclasses import astuple, dataclass
from datetime import date
from typing import Any

from notifyworker.bulk import Filter
from notifyworker.database import Connection, Queryable
from notifyworker.errors import InvalidRun
from notifyworker.given import check_integer, check_text, moment_of
from notifyworker.run import TERMINAL
from notifyworker.store import Row, Store

_PAGES = 256  # of 8 kB: a few thousand runs
_CURSOR_ROWS = 500
_CURSOR_S = 600.0  # until the reader of what is read out has taken the rows before


@dataclass(frozen=True, slots=True)
class Swept:
    """One step: of which day (None: of none that has a partition) how many runs were deleted, and how far that is."""

    day: date | None
    deleted: int
    pages: int
    all_pages: int


async def sweep(store: Store, on: Queryable, *, dry_run: bool = False) -> AsyncIterator[Swept]:
    """Delete what is over by its own retention in days that stay. `dry_run`: only count it."""
    staying: list[date | None] = [row["day"] for row in await ended_days(store, on) if not row["is_droppable"]]
    for day in [*staying, None]:
        page: int | None = 0
        while page is not None:
            row = (await on.fetch(store.sql("delete_expired"), day, page, _PAGES, dry_run))[0]
            page = row["next_page"]
            yield Swept(day, row["deleted"], row["all_pages"] if page is None else page, row["all_pages"])


async def ended_days(store: Store, on: Queryable) -> list[Row]:
    """Return days of which something may be over, and whether each can be dropped as a whole."""
    return await on.fetch(store.sql("ended_days"))


class Sweeper:
    """The leader's own sweep: a moment at a time, and none while nothing new can be over."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._steps: AsyncIterator[Swept] | None = None
        self._state: str | None = None  # of the day and the rules of the last sweep
        self.deleted = 0

    async def go_on(self, on: Queryable, *, seconds: float = 1.0) -> bool:
        """Sweep for so long at most; True if there is more. After an error the next call begins anew."""
        if self._steps is None:
            state = (await on.fetch(self._store.sql("retention_state")))[0]["state"]
            if state == self._state:
                return False
            self._state, self._steps, self.deleted = state, sweep(self._store, on), 0
        ends_at = time.monotonic() + seconds
        try:
            async for swept in self._steps:
                self.deleted += swept.deleted
                if time.monotonic() >= ends_at:
                    return True
        except BaseException:
            self._steps = self._state = None
            raise
        self._steps = None
        return False


async def retention_list(store: Store, on: Queryable) -> list[Row]:
    """Return the retentions of kinds and projects; None: every one."""
    return await on.fetch(store.sql("retention_list"))


async def retention_set(store: Store, on: Queryable, days: int | None, kind: str | None, project_id: str | None) -> None:
    """Keep settled runs of a kind, a project or a kind of a project for so many days; None: as long as all others. Raises InvalidRun."""
    if kind is None and project_id is None:
        raise InvalidRun(
            "kind", "name a kind, a project_id or both", hint="of all runs: notifyworker config set history_retention_days"
        )
    for name, value in (("kind", kind), ("project_id", project_id)):
        if value is not None:
            check_text(name, value, 200)
    if days is not None:
        check_integer("days", days, 1, 36500)
    await on.fetch(store.sql("retention_set"), days, kind, project_id)


def history_filter(**given: Any) -> Filter:
    """Check which settled runs are meant. Raises InvalidRun, which names the field."""
    known = ("kind", "project_id", "state", "finished_after", "finished_before", "error_code")
    if unknown := sorted(set(given) - set(known)):
        raise InvalidRun(unknown[0], "there is no such filter", hint=f"there are: {', '.join(known)}")
    given = {name: value for name, value in given.items() if value is not None}
    for name in {"kind", "project_id", "error_code"} & given.keys():
        check_text(name, given[name], 200)
    if given.get("state") not in {None, *TERMINAL}:
        raise InvalidRun("state", f"must be one of {', '.join(sorted(TERMINAL))}, not {given['state']!r:.100}")
    for short, full in (("after", "finished_after"), ("before", "finished_before")):
        if full in given:
            given[short] = moment_of(full, given.pop(full))
    return Filter(**given)


async def read(store: Store, connection: Connection, which: Filter, *, rows: int = _CURSOR_ROWS) -> AsyncIterator[list[Row]]:
    """
    Read settled runs as they are at this moment, some at a time, the oldest days first: by a cursor of the server's.

    Until it is read to the end, its transaction keeps the days that it reads from being dropped.
    """
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        await connection.execute(_READING)
        cursor = await connection.cursor(store.sql("history_read"), *astuple(which)[:6], timeout=_CURSOR_S)
        while chunk := await cursor.fetch(rows, timeout=_CURSOR_S):
            yield chunk


#: All of it is read once, and in the order in which it lies there: not what our sessions are otherwise set to.
_READING = f"""SET LOCAL enable_seqscan = on; SET LOCAL enable_hashjoin = on; SET LOCAL plan_cache_mode = force_custom_plan;
SET LOCAL statement_timeout = '{_CURSOR_S:g}s'; SET LOCAL idle_in_transaction_session_timeout = '{_CURSOR_S:g}s'"""
