"""
What is in the queue, for /metrics: looked at by whoever reaps, and only while somebody scrapes it.

A scrape queries nothing. It reads what the last look found, at most INTERVAL_S and a look old; a fleet that nobody
scrapes is not looked at. A look counts to a bound, so that it is as cheap with a million runs as with a thousand.
"""

import asyncio
from collections.abc import Callable, Iterable

from notifyworker.database import DatabaseError, Link, brief
from notifyworker.observe import Metrics, log
from notifyworker.store import Store

INTERVAL_S = 15.0
WANTED_S = 150.0  # two scrapes, as rarely as they are made anywhere
COUNTED = 20_000
_LANES = 5000
_LOOK_S = 5.0


class Depth:
    """The look of one worker at the queue."""

    def __init__(
        self,
        store: Store,
        link: Link,
        metrics: Metrics,
        *,
        kinds: Iterable[str],
        looks: Callable[[], bool],
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._store = store
        self._link = link
        self._metrics = metrics
        self._kinds = list(kinds)
        self._looks = looks
        self._interval_s = interval_s

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            if self._looks() and self._metrics.queue.was_scraped_within(WANTED_S):
                await self._look()
            else:
                self._metrics.queue.forget()
            await asyncio.sleep(self._interval_s)

    async def _look(self) -> None:
        try:
            rows = await self._link.fetch(self._store.sql("queue"), COUNTED, _LANES, timeout=_LOOK_S)
            holders = await self._store.holders(self._link)
        except DatabaseError as error:
            self._metrics.queue.forget()  # what nobody knows is not told as a number
            self._metrics.database_errors.labels("depth").inc()
            log.warning("depth_unknown", error=brief(error))
            return
        ages = dict.fromkeys(self._kinds, 0.0)
        runs = {(kind, state): 0 for kind in self._kinds for state in ("ready", "later", "running")}
        for row in rows:
            ages[row["kind"]] = row["oldest_s"]
            runs |= {(row["kind"], state): row[state] for state in ("ready", "later", "running")}
        held_s = max((row["age_s"] for row in holders if row["holds"] and row["age_s"] is not None), default=0.0)
        self._metrics.queue.saw(runs, ages, held_s)
