"""
`python -m benchmarks.capacity`: measure what the capacity model forecasts. Exit code 1 if it is off by more than a quarter.

A server of its own; a worker, eight producers that insert single rows, and payloads that can't be compressed.
"""

import asyncio
import base64
import json
import logging
import os
import sys
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import structlog

from notifyworker import Run, Worker
from notifyworker.capacity import CONNECTIONS, LEADERS_CONNECTIONS, Load, forecast
from notifyworker.embedded import embedded_postgres
from notifyworker.migrate import migrate

TOLERANCE = 0.25
RUNS = 3000
PRODUCERS = 8
SIZES = [(2, 0), (200, 200), (1000, 0), (10_000, 0), (2, 10_000)]
#: Only bytes are measured: waiting for the disk would change none of them.
TUNING = {"fsync": "off", "max_wal_size": "8GB", "checkpoint_timeout": "30min", "max_connections": "300"}
SETTLED_BYTES = (
    "SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits WHERE inhparent = 'notifyworker.run_history'::regclass"
)


@dataclass(slots=True)
class Measured:
    what: str
    forecast: float
    measured: float

    @property
    def is_off(self) -> bool:
        return abs(self.forecast - self.measured) > TOLERANCE * self.measured

    def show(self) -> None:
        off = 100 * (self.forecast / self.measured - 1)
        print(
            f"{'OFF' if self.is_off else 'ok ':4}{self.what:60}{self.forecast:12,.0f}{self.measured:12,.0f}{off:+7.0f} %",
            flush=True,
        )


def text(size: int) -> str:
    return base64.b64encode(os.urandom(size))[:size].decode()


class Turn:
    """One database, and one size of payloads and results."""

    def __init__(self, dsn: str, payload: int, result: int) -> None:
        self.dsn = dsn
        self.payload, self.result = payload, result
        self.worker = Worker(dsn, concurrency=50)
        results = [text(result - 9) for _ in range(20)] if result else []

        @self.worker.handler("a")
        async def handle(run: Run) -> dict | None:
            return {"r": results[run.run_id.int % 20]} if results else None

    async def __aenter__(self) -> Self:
        await migrate(self.dsn, "notifyworker")
        self.conn = await asyncpg.connect(self.dsn)
        await self.worker.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.worker.__aexit__(None, None, None)
        await self.conn.close()

    async def drained(self) -> None:
        while await self.conn.fetchval("SELECT EXISTS (SELECT FROM notifyworker.runs)"):  # noqa: ASYNC110 - it looks, and is not told
            await asyncio.sleep(0.05)

    async def do(self, runs: int) -> None:
        payloads = [json.dumps({"p": text(self.payload - 9)}) if self.payload > 9 else "{}" for _ in range(50)]

        async def produce() -> None:
            conn = await asyncpg.connect(self.dsn)
            for n in range(runs // PRODUCERS):
                await conn.execute("INSERT INTO notifyworker.runs (kind, payload) VALUES ('a', $1)", payloads[n % 50])
            await conn.close()

        await asyncio.gather(*(produce() for _ in range(PRODUCERS)))
        await self.drained()

    def load(self, runs_per_s: float = 1.0, retention_days: float = 1 / 86_400) -> Load:
        return Load(
            runs_per_s=runs_per_s, peak_per_s=runs_per_s, duration_s=0.01, payload_bytes=self.payload,
            result_bytes=self.result, retention_days=retention_days, concurrency=10,
        )  # fmt: skip

    async def sizes(self) -> list[Measured]:
        """WAL and history of one run."""
        await self.do(400)
        lsn = await self.conn.fetchval("SELECT pg_current_wal_lsn()::text")
        before = await self.conn.fetchval(SETTLED_BYTES)
        await self.do(RUNS)
        wal = float(await self.conn.fetchval("SELECT pg_current_wal_lsn() - $1::text::pg_lsn", lsn))
        kept = float(await self.conn.fetchval(SETTLED_BYTES) - before)
        expected = forecast(self.load())
        name = f"payload {self.payload}, result {self.result}"
        return [
            Measured(f"WAL bytes a run, {name}", expected.wal_bytes_per_s, wal / RUNS),
            Measured(f"history bytes a run, {name}", expected.history_bytes, kept / RUNS),
        ]

    async def held(self) -> Measured:
        """What stays of each run in the live table while somebody holds a snapshot."""
        holder = await asyncpg.connect(self.dsn)
        async with holder.transaction(isolation="repeatable_read"):
            await holder.fetch("SELECT 1")
            await self.do(400)
            size = "SELECT pg_total_relation_size('notifyworker.runs')"
            before = await self.conn.fetchval(size)
            await self.do(RUNS)
            grown = float(await self.conn.fetchval(size) - before)
        await holder.close()
        expected = forecast(self.load()).held_bytes_per_hour / 3600
        return Measured(f"bytes a run under a held snapshot, payload {self.payload}", expected, grown / RUNS)


async def connections(dsn: str) -> Measured:
    """Twenty workers that start at once, all at work."""
    await migrate(dsn, "notifyworker")
    turns = [Turn(dsn, 2, 0) for _ in range(20)]
    conn = await asyncpg.connect(dsn)
    await asyncio.gather(*(turn.worker.__aenter__() for turn in turns))
    turns[0].conn = conn
    await turns[0].do(4000)
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'notifyworker%' AND datname = current_database()"
    there = float(await conn.fetchval(count))
    await asyncio.gather(*(turn.worker.__aexit__(None, None, None) for turn in turns))
    await conn.close()
    return Measured("connections of twenty workers without sidecars", 20 * CONNECTIONS + LEADERS_CONNECTIONS, there)


async def main() -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    found = []
    with tempfile.TemporaryDirectory(prefix="nw-capacity-") as name:
        Path(name).chmod(0o711)
        async with embedded_postgres(Path(name), major=18, tuning=TUNING, database="postgres") as dsn:
            admin = await asyncpg.connect(dsn)

            async def database() -> str:
                new = f"c{uuid.uuid4().hex}"
                await admin.execute(f'CREATE DATABASE "{new}"')
                return urlunsplit(urlsplit(dsn)._replace(path=f"/{new}"))

            print(f"{'':4}{'':60}{'forecast':>12}{'measured':>12}")
            for payload, result in SIZES:
                async with Turn(await database(), payload, result) as turn:
                    found += await turn.sizes()
                for one in found[-2:]:
                    one.show()
            for payload in (2, 1000, 10_000):
                async with Turn(await database(), payload, 0) as turn:
                    found.append(await turn.held())
                found[-1].show()
            found.append(await connections(await database()))
            found[-1].show()
            await admin.close()
    return int(any(one.is_off for one in found))


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
