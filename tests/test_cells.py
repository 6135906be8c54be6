"""
The five cells of the public queue benchmark that hurt the database and its workers: full rate again after each.

A rate is runs that were settled in two seconds of a load that keeps every slot busy. It is bounded by the slots of the
fleet, and not by the machine: with one worker out of three missing it is a third less.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest
from servers import Cluster, eventually
from test_faults import Process, ledger, spawn, until_it_answers  # noqa: F401 - fixtures
from test_life import is_empty
from test_limits import all_taken

from notifyworker.migrate import migrate

# ruff: noqa: F811 - fixtures of test_faults are asked for by their names

pytestmark = pytest.mark.slow

FULL = 0.85  # of the rate before
WINDOW_S = 2.0


class Load:
    """A server of its own, three worker processes, and a producer that always leaves something to do."""

    def __init__(self, cluster: Cluster, start: Callable[[], Process]) -> None:
        self.cluster = cluster
        self.start = start
        self.fleet: list[Process] = []
        self.inserted = 0

    async def produce(self) -> None:
        """Keep a few hundred runs pending, through whatever happens; what had no answer is counted by the history."""
        while True:
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                conn = await asyncpg.connect(self.cluster.dsn, timeout=2)
                try:
                    while True:
                        if await conn.fetchval("SELECT count(*) FROM notifyworker.runs") < 300:
                            await conn.execute("INSERT INTO notifyworker.runs (kind) SELECT 'brief' FROM generate_series(1, 500)")
                            self.inserted += 500
                        await asyncio.sleep(0.005)
                finally:
                    conn.terminate()
            await asyncio.sleep(0.02)

    async def rate(self) -> float:
        """Runs settled a second."""
        conn = await until_it_answers(self.cluster.dsn)
        count = "SELECT count(*) FROM notifyworker.run_history"
        began, before = time.monotonic(), await conn.fetchval(count)
        await asyncio.sleep(WINDOW_S)
        rate = (await conn.fetchval(count) - before) / (time.monotonic() - began)
        await conn.close()
        return rate


@pytest.fixture
async def load(spawn) -> AsyncIterator[Load]:
    async with Cluster(conf="max_connections = 40\nsynchronous_commit = off") as cluster:
        await migrate(cluster.dsn, "notifyworker")
        # An application is no superuser: the server keeps a few connections for those.
        conn = await asyncpg.connect(cluster.dsn)
        await conn.execute("CREATE ROLE app LOGIN; GRANT notifyworker_worker TO app")
        await conn.close()
        dsn = cluster.dsn.replace("postgres@", "app@")
        load = Load(cluster, lambda: spawn(dsn=dsn, concurrency=5, poll_interval_s=5))
        load.fleet = [load.start() for _ in range(3)]
        for process in load.fleet:
            await process.started()
        producer = asyncio.create_task(load.produce())
        await eventually(lambda: load.inserted >= 500)
        yield load
        producer.cancel()
        await asyncio.gather(producer, return_exceptions=True)
        conn = await until_it_answers(cluster.dsn)
        await eventually(lambda: is_empty(conn))
        settled = await conn.fetchval("SELECT count(*) FROM notifyworker.run_history WHERE state = 'completed'")
        distinct = await conn.fetchval("SELECT count(DISTINCT run_id) FROM notifyworker.run_history")
        await conn.close()
        assert settled == distinct >= load.inserted  # nothing is lost, and nothing settled twice


async def crash_recovery(load: Load) -> None:
    """A worker is killed in the middle of its work, and another started in its place."""
    load.fleet[0].popen.kill()
    load.fleet[0] = await load.start().started()


async def postgres_restart(load: Load) -> None:
    await load.cluster.restart("fast")


async def repeated_kills(load: Load) -> None:
    for n in range(6):
        load.fleet[n % 3].popen.kill()
        load.fleet[n % 3] = await load.start().started()


async def backend_kills(load: Load) -> None:
    """Each session of every worker is ended, every 200 ms for four seconds."""
    conn = await asyncpg.connect(load.cluster.dsn)
    ends_at = time.monotonic() + 4
    while time.monotonic() < ends_at:
        await conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'")
        await asyncio.sleep(0.2)
    await conn.close()


async def pool_exhaustion(load: Load) -> None:
    """Strangers take every connection for four seconds, also those that workers lose."""
    conn = await asyncpg.connect(load.cluster.dsn)
    async with all_taken(load.cluster.dsn.replace("postgres@", "app@")):
        ours = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'notifyworker%'"
        ends_at = time.monotonic() + 4
        while time.monotonic() < ends_at:
            await conn.execute(ours)
            await asyncio.sleep(0.1)
    await conn.close()


@pytest.mark.parametrize("fault", [crash_recovery, postgres_restart, repeated_kills, backend_kills, pool_exhaustion])
async def test_full_rate_again_after(load, fault: Callable[[Load], Awaitable[None]]):
    before = await load.rate()
    assert before > 150

    await fault(load)
    over_at = time.monotonic()
    seen = []

    async def is_full() -> bool:
        seen.append(await load.rate())
        return seen[-1] > FULL * before

    await eventually(is_full)
    figures = f"{before:.0f} runs/s before, {[round(rate) for rate in seen]} after, {time.monotonic() - over_at:.1f} s"
    print(f"{fault.__name__}: {figures}")  # noqa: T201 - with -s, for who wants to know
    for process in load.fleet:
        assert not process.exited()
