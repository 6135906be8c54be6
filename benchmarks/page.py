"""
What the page costs with a full house, and what ten open pages cost a drain.

    python -m benchmarks.page lists --live 1000000 --settled 10000000
    python -m benchmarks.page drain --runs 20000

A server of its own in a temporary folder, deleted afterwards. `lists` tells for each page the slowest statement and the sum
of all, as the sidecar waits for them; `drain` runs the same drain without and with ten open pages, in turns.
"""

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from notifyworker import Run, Worker
from notifyworker.embedded import embedded_postgres
from notifyworker.migrate import migrate

HTML = {"Accept": "text/html"}
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
    """The same drain, without and with open pages that follow the pulse."""
    rates: dict[int, list[float]] = {0: [], pages: []}
    async with house() as dsn:
        for _ in range(rounds):
            for open_pages, found in rates.items():
                found.append(await _drained(dsn, runs, open_pages))
    without, having = map(statistics.median, rates.values())
    print(f"without {without:,.0f} runs/s, with {pages} pages {having:,.0f} runs/s: {having / without:.3f}")
    print({number: [round(rate) for rate in found] for number, found in rates.items()})


async def _drained(dsn: str, runs: int, pages: int) -> float:
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

    async with contextlib.AsyncExitStack() as stack:
        await connection.execute("SELECT notifyworker.pause('k')")
        await stack.enter_async_context(worker)
        sessions = [await stack.enter_async_context(aiohttp.ClientSession(worker.url, headers=HTML)) for _ in range(pages)]
        lookers = [asyncio.create_task(_look(session, ("/", "/runs")[n % 2])) for n, session in enumerate(sessions)]
        began = time.perf_counter()
        await connection.execute("SELECT notifyworker.resume('k')")
        await done.wait()
        took_s = time.perf_counter() - began
        for looker in lookers:
            looker.cancel()
        await asyncio.gather(*lookers, return_exceptions=True)
    await connection.close()
    return runs / took_s


async def _look(session: aiohttp.ClientSession, path: str) -> None:
    """What a browser does: it draws the page at each beat of the pulse."""
    async with session.get("/live", timeout=aiohttp.ClientTimeout(total=None)) as stream:
        async for line in stream.content:
            if line.startswith(b"event: tick"):
                async with session.get(path) as response:
                    await response.read()


def main() -> None:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["lists", "drain"])
    parser.add_argument("--live", type=int, default=1_000_000)
    parser.add_argument("--settled", type=int, default=10_000_000)
    parser.add_argument("--dsn", help="of a database that is filled already")
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--pages", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    asyncio.run(
        lists(given.live, given.settled, given.dsn) if given.what == "lists" else drain(given.runs, given.pages, given.rounds)
    )


if __name__ == "__main__":
    main()
