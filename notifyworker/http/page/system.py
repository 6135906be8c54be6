"""The system page: what the doctor finds, what the tables weigh, and what this worker is set to."""

import asyncio
import time
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from notifyworker.database import Queryable, describe
from notifyworker.doctor import Finding, examine, worst
from notifyworker.http.observed import Observed
from notifyworker.http.page.frame import Frame
from notifyworker.http.page.queries import Queries
from notifyworker.migrate import applied_version

_FRESH_S = 30.0
_WAIT_S = 8.0


class System:
    """Gathers it; the doctor comes at most twice a minute, however many look."""

    def __init__(self, worker: Observed, queries: Queries) -> None:
        self._worker = worker
        self._queries = queries
        self._findings: tuple[float, list[Finding]] | None = None
        self._turn = asyncio.Lock()

    async def read(self, on: Queryable, frame: Frame) -> dict[str, Any]:
        """Read it. Raises DatabaseError."""
        sizes = [dict(row) for row in await self._queries.rows(on, "sizes")]
        holders = [dict(row) for row in await self._worker.store.holders(on)][:8]
        settings = await self._worker.store.settings(on)
        schema_version = await applied_version(on, self._worker.store.schema)  # type: ignore[arg-type]  # a connection of ours
        return {
            "schema": self._worker.store.schema,
            "schema_version": schema_version,
            "version": version("notifyworker"),
            "where": describe(self._worker.dsn),
            "lease_owner": self._worker.lease_owner,
            "sizes": sizes,
            "holders": holders,
            "partitions": dict(await self._worker.store.partitions(on)),
            "queue_usage": await self._worker.store.queue_usage(on),
            "settings": settings,
            "skew_s": frame.skew_s,
            "answer_s": frame.answer_s,
            "reasons": [*self._worker.health(), *self._worker.restrictions()],
        }

    async def findings(self) -> dict[str, Any]:
        """What the doctor has found, at most half a minute ago."""
        async with self._turn:
            if self._findings is None or time.monotonic() - self._findings[0] > _FRESH_S:
                async with asyncio.timeout(_WAIT_S):
                    self._findings = time.monotonic(), await examine(self._worker.settings)
        found = sorted(self._findings[1], key=lambda one: -["ok", "note", "warning", "failing"].index(one.verdict))
        return {
            "findings": [asdict(one) for one in found],
            "worst": str(worst(found)),
            "found_s": time.monotonic() - self._findings[0],
        }
