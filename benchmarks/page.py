"""
What the page costs with a full house, and what ten open pages cost a drain.

    python -m benchmarks.page lists --live 1000000 --settled 10000000
    python -m benchmarks.page drain --runs 20000
    python -m benchmarks.page cost --live 0

A server of its own in a temporary folder, deleted afterwards. `lists` tells for each page the slowest statement and the sum
of all, as the sidecar waits for them; `drain` runs the same drain without and with ten open pages, in turns; `cost` counts
the CPU that ten open pages take each second of the worker and of the database. `look` is what the others start for the pages.
"""

import argparse
import asyncio
import contextlib
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import structlog

from notifyworker import Run, Worker
from notifyworker.embedded import embedded_postgres
from notifyworker.migrate import migrate

HTML = {"Accept": "text/html", "HX-Request": "true"}
STEP = 250_000
LISTS = (
    "/", "/?range=24h", "/runs", "/runs?state=pending", "/runs?state=running", "/runs?state=failed", "/runs?state=completed",
    "/runs?kind=k7", "/runs?kind=absent", "/runs?project_id=p3", "/runs?worker=absent", "/runs?mode=shadow", "/runs?since=1h",
    "/runs?q=absent", "/workers", "/reaper", "/schedules", "/pauses", "/audit",
)  # fmt: skip
_LIVE = """INSERT INTO notifyworker.runs (kind, project_id, payload, run_at)
           SELECT 'k' || n % 20, 'p' || n % 50, jsonb_build_object('n', n), now() + (n % 100 - 50) * interval '1 s'
             FROM generate_series($1::bigint, $2::bigint) AS n"""
_SETTLED = """INSERT INTO notifyworker.run_history (run_id, run_at, created_at, started_at, finished_at, lease_token, priority,
                  max_attempts, attempt, is_shadow, state, kind, project_id, settled_by, error_code, payload, headers, errors)
              SELECT notifyworker.uuid7(), at, at, at + interval '5 ms', at + interval '100 ms', 1, 0, 3, 1, n % 1000 = 0,
                     CASE WHEN n % 50 = 0 THEN 'failed' ELSE 'completed' END, 'k' || n % 20, 'p' || n % 50, 'h:1:a',
                     CASE WHEN n % 50 = 0 THEN 'E-RUN-001' END, jsonb_build_object('n', n), '{}',
                     CASE WHEN n % 50 = 0 THEN jsonb_build_array(jsonb_build_object('attempt', 3, 'code', 'E-RUN-001', 'message',
                         'ConnectionError: host ' || n % 7, 'at', at, 'worker', 'h:1:a')) ELSE '[]' END
                FROM (SELECT n, now() - ($3::bigint - n) * interval '86400 s' / $3::bigint AS at
                        FROM generate_series($1::bigint, $2::bigint) AS n) AS r"""


@contextlib.asynccontextmanager
async def house(filled: str | None = None) -> AsyncIterator[str]:
    """A database of our own, migrated; or the one that is given."""
    if filled is not None:
        yield filled
        return
    with tempfile.TemporaryDirectory(prefix="notifyworker-page-", dir="/tmp") as folder:
        async with embedded_postgres(Path(folder)) as dsn:
            await migrate(dsn, "notifyworker")
            yield dsn


async def fill(dsn: str, live: int, settled: int) -> None:
    """In steps, so that others of the machine get their turn."""
    connection = await asyncpg.connect(dsn)
    for statement, number, more in ((_SETTLED, settled, [settled]), (_LIVE, live, [])):
        for first in range(1, number + 1, STEP):
            await connection.execute(statement, first, min(number, first + STEP - 1), *more)
    await connection.execute("VACUUM ANALYZE notifyworker.runs")
    await connection.execute("VACUUM ANALYZE notifyworker.run_history")
    await connection.close()


async def lists(live: int, settled: int, filled: str | None) -> None:
    """Each page three times, the last of which counts: the first fills what is kept of minutes that are over."""
    taken: list[float] = []
    plain = asyncpg.Connection.fetch

    async def timed(self: Any, *args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return await plain(self, *args, **options)
        finally:
            if threads.get(id(asyncio.get_running_loop())):
                taken.append(time.perf_counter() - began)

    threads = {id(asyncio.get_running_loop()): True}
    asyncpg.Connection.fetch = timed
    async with house(filled) as dsn:
        if filled is None:
            await fill(dsn, live, settled)
        worker = Worker(dsn, sidecar=True, port=0, kinds=["nothing"])
        worker.handler("nothing")(_nothing)
        async with worker, aiohttp.ClientSession(worker.url, headers=HTML) as session:
            for path in LISTS:
                told = []
                for _ in range(4):
                    await asyncio.sleep(6 if path.startswith("/?") or path == "/" else 0.3)  # beyond what is kept
                    taken.clear()
                    began = time.perf_counter()
                    async with session.get(path) as response:
                        size = len(await response.read())
                    told.append((time.perf_counter() - began, max(taken, default=0.0), sum(taken), response.status, size))
                whole_s, slowest_s, sum_s, status, size = sorted(told[1:])[1]
                first_s = told[0][1]
                print(
                    f"{path:26} {status} slowest {slowest_s * 1000:6.1f} ms, sum {sum_s * 1000:6.1f} ms, "
                    f"answer {whole_s * 1000:6.1f} ms, {size / 1000:.0f} kB; slowest of the first {first_s * 1000:.0f} ms",
                    flush=True,
                )


async def _nothing(_run: Run) -> None:
    pass


async def drain(runs: int, pages: int, rounds: int) -> None:
    """The same drain, without and with open pages that follow the pulse, in turns: runs per second, and exact CPU per run."""
    found: dict[int, list[Spent]] = {0: [], pages: []}
    async with house() as dsn:
        for _ in range(rounds):
            for open_pages, spent in found.items():
                spent.append(await _drained(dsn, runs, open_pages))
    for number, spent in found.items():
        print(f"{number:2} pages: " + "; ".join(f"{runs / one.took_s:,.0f}/s {one.told(runs)}" for one in spent))
    without, having = (statistics.median(runs / one.took_s for one in spent) for spent in found.values())
    print(f"without {without:,.0f} runs/s, with {pages} pages {having:,.0f} runs/s: {having / without:.3f}")
    without, having = (statistics.median(one.worker_s + one.backends_s for one in spent) for spent in found.values())
    print(
        f"CPU of a run, worker and all backends: {without / runs * 1e6:.0f} and {having / runs * 1e6:.0f} us: {without / having:.3f}"
    )


async def cost(pages: int, seconds: float, filled: str | None, live: int, settled: int) -> None:
    """What open pages cost each second, while some 20 runs a second are executed."""
    async with house(filled) as dsn:
        if filled is None and live:
            await fill(dsn, live, settled)
        for number in (0, pages, 0, pages):
            spent = await _trickled(dsn, number, seconds)
            print(
                f"{number:2} pages: worker {spent.worker_s / spent.took_s * 1000:6.1f} ms/s, the pages' backends "
                f"{spent.pages_s / spent.took_s * 1000:6.1f} ms/s, {spent.answers / spent.took_s:.1f} answers/s",
                flush=True,
            )


@dataclass
class Spent:
    """Wall-clock and CPU seconds of a while."""

    took_s: float
    worker_s: float
    backends_s: float
    pages_s: float
    answers: int

    def told(self, runs: int) -> str:
        """Per run."""
        return f"(worker {self.worker_s / runs * 1e6:.0f} us, backends {self.backends_s / runs * 1e6:.0f} us a run; {self.answers} answers, of which the database {self.pages_s * 1000:.0f} ms)"


class Meter:
    """CPU of this process, which is the worker's, and of all backends: by the kernel's own count, to the nanosecond."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._began = time.perf_counter()
        self._cpu_s = time.process_time()
        self._had: dict[int, float] = {}
        self._pages_had: dict[int, float] = {}

    @classmethod
    async def start(cls, connection: asyncpg.Connection) -> "Meter":
        """Begin to count."""
        meter = cls(connection)
        meter._had, meter._pages_had = await meter._read()
        meter._began, meter._cpu_s = time.perf_counter(), time.process_time()
        return meter

    async def end(self, answers: int) -> Spent:
        """What was used since."""
        took_s, cpu_s = time.perf_counter() - self._began, time.process_time() - self._cpu_s
        all_, pages = await self._read()
        return Spent(
            took_s,
            cpu_s,
            sum(s - self._had.get(pid, 0.0) for pid, s in all_.items()),
            sum(s - self._pages_had.get(pid, 0.0) for pid, s in pages.items()),
            answers,
        )

    async def _read(self) -> tuple[dict[int, float], dict[int, float]]:
        rows = await self._connection.fetch(
            "SELECT pid, application_name = 'notifyworker page' AS is_page FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        )
        all_, pages = {}, {}
        for row in rows:
            with contextlib.suppress(FileNotFoundError):
                all_[row["pid"]] = int(Path(f"/proc/{row['pid']}/schedstat").read_text().split()[0]) / 1e9
                if row["is_page"]:
                    pages[row["pid"]] = all_[row["pid"]]
        return all_, pages


async def _drained(dsn: str, runs: int, pages: int) -> Spent:
    connection = await asyncpg.connect(dsn)
    await connection.execute("INSERT INTO notifyworker.runs (kind) SELECT 'k' FROM generate_series(1, $1)", runs)
    worker = Worker(dsn, sidecar=True, port=0, concurrency=100)
    left, done = runs, asyncio.Event()

    @worker.handler("k")
    async def handle(_run: Run) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            done.set()

    await connection.execute("SELECT notifyworker.pause('k')")
    async with worker, _looked_at(worker.url, pages) as lookers:
        await lookers.drawn()
        meter = await Meter.start(connection)
        before = lookers.answers
        await connection.execute("SELECT notifyworker.resume('k')")
        await done.wait()
        spent = await meter.end(lookers.answers - before)
    await connection.close()
    return spent


async def _trickled(dsn: str, pages: int, seconds: float) -> Spent:
    connection = await asyncpg.connect(dsn)
    worker = Worker(dsn, sidecar=True, port=0, kinds=["trickle"])
    worker.handler("trickle")(_nothing)
    async with worker, _looked_at(worker.url, pages) as lookers:
        await lookers.drawn()
        meter = await Meter.start(connection)
        before = lookers.answers
        for _ in range(int(seconds * 4)):
            await connection.execute("INSERT INTO notifyworker.runs (kind) SELECT 'trickle' FROM generate_series(1, 5)")
            await asyncio.sleep(0.25)
        spent = await meter.end(lookers.answers - before)
    await connection.close()
    return spent


class _Lookers:
    """Open pages, in a process of their own, whose CPU is not the worker's."""

    def __init__(self, pages: int, process: asyncio.subprocess.Process | None) -> None:
        self.answers = 0
        self._pages = pages
        self._process = process
        self._more = asyncio.Event()

    async def count(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for _line in self._process.stdout:
            self.answers += 1
            self._more.set()

    async def drawn(self) -> None:
        """Wait until each page was drawn for the first time."""
        while self.answers < self._pages:
            self._more.clear()
            await self._more.wait()


@contextlib.asynccontextmanager
async def _looked_at(url: str, pages: int) -> AsyncIterator[_Lookers]:
    if not pages:
        yield _Lookers(0, None)
        return
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.page", "look", "--url", url, "--pages", str(pages), stdout=asyncio.subprocess.PIPE
    )
    lookers = _Lookers(pages, process)
    counting = asyncio.create_task(lookers.count())
    try:
        yield lookers
    finally:
        process.terminate()
        await process.wait()
        await counting


async def look(url: str, pages: int) -> None:
    """What browsers do: each draws its page, and again at each beat of the pulse. Prints a line for each answer."""
    async with contextlib.AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(aiohttp.ClientSession(url, headers=HTML)) for _ in range(pages)]
        await asyncio.gather(*(_look(session, ("/", "/runs")[n % 2]) for n, session in enumerate(sessions)))


async def _look(session: aiohttp.ClientSession, path: str) -> None:
    async with session.get("/live", timeout=aiohttp.ClientTimeout(total=None)) as stream:
        await _draw(session, path)
        async for line in stream.content:
            if line.startswith(b"event: tick"):
                await _draw(session, path)


async def _draw(session: aiohttp.ClientSession, path: str) -> None:
    async with session.get(path) as response:
        await response.read()
        print(response.status, path, flush=True)


def main() -> None:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["lists", "drain", "cost", "look"])
    parser.add_argument("--live", type=int, default=1_000_000)
    parser.add_argument("--settled", type=int, default=10_000_000)
    parser.add_argument("--dsn", help="of a database that is filled already")
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--pages", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--url", help="of the sidecar that is looked at")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    asyncio.run(
        {
            "lists": lambda: lists(given.live, given.settled, given.dsn),
            "drain": lambda: drain(given.runs, given.pages, given.rounds),
            "cost": lambda: cost(given.pages, given.seconds, given.dsn, given.live, given.settled),
            "look": lambda: look(given.url, given.pages),
        }[given.what]()
    )


if __name__ == "__main__":
    main()
