"""
`make soak`: a worker process under steady mixed load, and whether it grows.

Success, failure, retry, timeout, snooze, cancel, schedules, shadow runs, bursts, HTTP (also broken off), strange
notifications and cut connections, for MINUTES. Sampled: resident memory, descriptors, threads, and tasks of the event
loop. It fails if what a straight line through the second half of the samples (least squares) rises by is above the
bound: 1 % for the memory, or 16 bytes a run, if that is more, since what a run leaves behind is an object, and the
smallest has 48; two for the others, since a sample may fall into a reconnect, which has one more for a moment.
A leak of 1 kB a run is many times that within ten minutes. The worker gets one malloc arena: of the many that glibc makes
for threads each keeps what it had at its fullest, which looks like a leak of 0.4 MB a minute.
"""

# ruff: noqa: T201 - it prints a table

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import asyncpg
import psutil  # type: ignore[import-untyped]
from servers import Cluster, eventually, free_port

from notifyworker.migrate import migrate

TESTS = Path(__file__).parent
SAMPLE_S = 5.0
WARM_UP_S = 20.0  # imports, pools and caches are filled
MEMORY_BOUND = 0.01
BYTES_A_RUN = 16
COUNT_BOUND = 2.0
#: What only a fault of ours writes.
FAULTS = ("loop_ended", "execute_failed", "sidecar_error", "heartbeat_thread_ended", "outcome_unstorable", "worker_ends_itself")


class Sample(NamedTuple):
    """One look at the worker's process."""

    at_s: float
    rss_mb: float
    descriptors: int
    threads: int
    tasks: int
    settled: int


def growth(samples: Sequence[Sample], name: str) -> float:
    """By how much a straight line through these samples rises from the first to the last."""
    times = [sample.at_s for sample in samples]
    values = [float(getattr(sample, name)) for sample in samples]
    mean_t, mean_v = sum(times) / len(times), sum(values) / len(values)
    spread = sum((t - mean_t) ** 2 for t in times)
    slope = sum((t - mean_t) * (v - mean_v) for t, v in zip(times, values, strict=True)) / spread
    return slope * (times[-1] - times[0])


def grown(samples: Sequence[Sample]) -> list[str]:
    """Say what has grown beyond its bound over the second half."""
    half = samples[len(samples) // 2 :]
    a_run_mb = BYTES_A_RUN * (half[-1].settled - half[0].settled) / 1e6
    bounds = {"rss_mb": max(a_run_mb, MEMORY_BOUND * sum(s.rss_mb for s in half) / len(half))}
    bounds |= dict.fromkeys(("descriptors", "threads", "tasks"), COUNT_BOUND)
    return [
        f"{name} grew by {by:.1f} in the second half, more than {bound:.1f}"
        for name, bound in bounds.items()
        if (by := growth(half, name)) > bound
    ]


class Load:
    """What is done to the worker, and what must have become of it."""

    def __init__(self, dsn: str, url: str) -> None:
        self.dsn, self.url = dsn, url
        self.expected: dict[str, int] = {}
        self.random = random.Random(1)

    async def run(self, until: float) -> None:
        """A turn every second or so, each with something of everything."""
        conn = await asyncpg.connect(self.dsn)
        async with aiohttp.ClientSession() as http:
            for turn in itertools.count():
                if time.monotonic() > until:
                    break
                began = time.monotonic()
                await self.insert(conn)
                await self.steer(conn)
                await self.ask(http, turn)
                if turn % 10 == 3:
                    await self.disturb(conn)
                if turn % 30 == 7:
                    await self.many(conn, "effect", 1000)  # enough for the leader to coalesce
                await asyncio.sleep(max(0.0, began + 1 - time.monotonic()))
        await conn.close()

    async def many(self, conn: asyncpg.Connection, kind: str, count: int, columns: str = "", values: str = "") -> None:
        query = f"INSERT INTO notifyworker.runs (kind, payload{columns}) VALUES ('{kind}', $1{values})"
        for _ in range(count):
            await conn.execute(query, json.dumps({"text": "ä" * self.random.randrange(200)}))
        self.expected[kind] = self.expected.get(kind, 0) + count

    async def insert(self, conn: asyncpg.Connection) -> None:
        for kind, count in (("fine", 30), ("again", 3), ("snooze", 2), ("fail", 2), ("cancel", 2), ("slow", 1), ("thread", 5)):
            await self.many(conn, kind, count)
        await self.many(conn, "effect", 3, ", is_shadow", ", true")
        await self.many(conn, "effect", 3, ", run_at", ", now() + random() * interval '2 s'")
        await self.many(conn, "fine", 1, ", priority, headers", ', 5, \'{"traceparent": "00-a"}\'')

    async def steer(self, conn: asyncpg.Connection) -> None:
        """Cancel one that waits and one that runs; retry one that failed."""
        for when in ("now()", "now() + interval '1 hour'"):
            run_id = await conn.fetchval(f"INSERT INTO notifyworker.runs (kind, run_at) VALUES ('held', {when}) RETURNING run_id")
            self.expected["held"] = self.expected.get("held", 0) + 1
            await asyncio.sleep(0.05)
            await conn.execute("SELECT notifyworker.cancel($1)", run_id)
        failed = await conn.fetchval(
            "SELECT run_id FROM notifyworker.run_history WHERE kind = 'fail' ORDER BY run_id DESC LIMIT 1"
        )
        if failed is not None:
            with contextlib.suppress(asyncpg.ObjectNotInPrerequisiteStateError):
                await conn.execute("SELECT notifyworker.retry($1)", failed)

    async def ask(self, http: aiohttp.ClientSession, turn: int) -> None:
        for path in (
            "/healthz",
            "/metrics",
            "/runs?limit=20",
            "/runs?state=nonsense",
            "/leases",
            "/workers",
            "/reaper",
            "/absent",
        ):
            async with http.get(self.url + path) as answer:
                await answer.read()
        async with http.post(self.url + "/runs", json={"kind": "fine", "payload": {"by": "http"}}) as answer:
            if answer.status == 201:  # not while the sidecar's own connection was just cut
                self.expected["fine"] += 1
        async with http.get(self.url + "/events") as stream:  # left in the middle
            await stream.content.readline()
        host, port = self.url.removeprefix("http://").split(":")
        for data in (
            b"",
            b"GET /runs HTTP/1.1\r\n",
            b"\x16\x03\x01\r\n\r\n",
            b"POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{",
        ):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(data)
            if turn % 2:
                writer.transport.abort()
            writer.close()

    async def disturb(self, conn: asyncpg.Connection) -> None:
        """Strange notifications, and one of the worker's connections cut."""
        for payload in ("", "at:", "at:1e999", "at:nan", "cancel:", "cancel:x", "turn:\x01", "farewell", "x" * 7000, "ü" * 3000):
            await conn.execute("SELECT pg_notify('notifyworker', $1)", payload)
        await conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'notifyworker%'"
            " AND datname = current_database() ORDER BY random() LIMIT 1"
        )


class Soak:
    """One soak: the worker's process, its load, its samples."""

    def __init__(self, dsn: str, minutes: float, log: Path) -> None:
        self.dsn, self.minutes, self.log = dsn, minutes, log
        self.port = free_port()
        self.samples: list[Sample] = []

    async def run(self) -> list[str]:
        """Soak; return what is wrong."""
        environment = {"NOTIFYWORKER_DSN": self.dsn, "NOTIFYWORKER_PORT": str(self.port), "NOTIFYWORKER_LOG_FORMAT": "json"}
        environment |= {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "131072"}
        with self.log.open("w") as file:
            popen = subprocess.Popen(
                [sys.executable, "-m", "notifyworker", "worker", "soak_app:worker"],
                cwd=TESTS, env={**os.environ, **environment}, stdout=file, stderr=file,
            )  # fmt: skip
        try:
            await eventually(lambda: "sidecar_listening" in self.log.read_text() or popen.poll() is not None, 30)
            return await self._watched(popen)
        finally:
            popen.kill()
            popen.wait()

    async def _watched(self, popen: subprocess.Popen[bytes]) -> list[str]:
        until = time.monotonic() + self.minutes * 60
        load = Load(self.dsn, f"http://127.0.0.1:{self.port}")
        loading = asyncio.create_task(load.run(until))
        conn = await asyncpg.connect(self.dsn)
        process, began = psutil.Process(popen.pid), time.monotonic()
        print(f"{'s':>6} {'RSS MB':>8} {'descriptors':>12} {'threads':>8} {'tasks':>6} {'settled':>9}")
        await asyncio.sleep(min(WARM_UP_S, self.minutes * 60 / 4))
        while not loading.done():
            self.samples.append(sample := await _sample(process, conn, began))
            print(
                f"{sample.at_s:6.0f} {sample.rss_mb:8.1f} {sample.descriptors:12} {sample.threads:8} {sample.tasks:6} {sample.settled:9}",
                flush=True,
            )
            await asyncio.wait({loading}, timeout=SAMPLE_S)
            if popen.poll() is not None:
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)
                return [f"the worker ended by itself, with exit code {popen.returncode}"]
        await loading
        wrong = grown(self.samples) + await self._lost(conn, load)
        popen.terminate()
        code = await asyncio.to_thread(popen.wait, 40)
        await conn.close()
        if code:
            wrong.append(f"the worker ended with exit code {code}")
        events = [json.loads(line)["event"] for line in self.log.read_text().splitlines() if line.startswith("{")]
        return wrong + [f"the log has {event}" for event in FAULTS if event in events]

    async def _lost(self, conn: asyncpg.Connection, load: Load) -> list[str]:
        async def is_empty() -> bool:
            return await conn.fetchval("SELECT count(*) = 0 FROM notifyworker.runs")

        with contextlib.suppress(TimeoutError):
            await eventually(is_empty, 60)
        rows = await conn.fetch("SELECT kind, count(*) FROM notifyworker.run_history GROUP BY kind")
        settled = dict(rows)
        return [
            f"of {count} runs {kind}, {settled.get(kind, 0)} are settled"
            for kind, count in load.expected.items()
            if settled.get(kind, 0) < count
        ]


async def _sample(process: psutil.Process, conn: asyncpg.Connection, began: float) -> Sample:
    run_id = await conn.fetchval("INSERT INTO notifyworker.runs (kind, priority) VALUES ('tasks', 9) RETURNING run_id")
    result = "SELECT result::text FROM notifyworker.run_history WHERE run_id = $1"

    async def tasks() -> Any:
        return await conn.fetchval(result, run_id)

    return Sample(
        tasks=int(await eventually(tasks, 60)),
        at_s=time.monotonic() - began,
        rss_mb=process.memory_info().rss / 2**20,
        descriptors=process.num_fds(),
        threads=process.num_threads(),
        settled=await conn.fetchval("SELECT count(*) FROM notifyworker.run_history"),
    )


async def main(minutes: float) -> int:
    """Soak on a server of its own; print a table, and return the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        async with Cluster() as cluster:
            await migrate(cluster.dsn, "notifyworker")
            soak = Soak(cluster.dsn, minutes, Path(folder) / "log")
            wrong = await soak.run()
            if wrong:
                print("".join(soak.log.read_text().splitlines(keepends=True)[-50:]), file=sys.stderr)
    half = soak.samples[len(soak.samples) // 2 :]
    for name in ("rss_mb", "descriptors", "threads", "tasks"):
        print(f"{name}: {growth(half, name):+.2f} over the second half")
    print("; ".join(wrong) or "nothing grows, and nothing is lost")
    return 1 if wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    sys.exit(asyncio.run(main(parser.parse_args().minutes)))
