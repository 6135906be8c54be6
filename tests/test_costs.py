"""What a worker costs its server: few connections, whatever it executes, and next to nothing while idle."""

import asyncio

import asyncpg
import pytest
from servers import Cluster, eventually
from test_life import insert, is_empty, settled

from notifyworker import Run, Worker
from notifyworker.migrate import migrate


async def test_a_worker_has_seven_connections_at_most_however_many_runs_it_executes(make_worker, connection):
    worker = make_worker(concurrency=200)
    go_on = asyncio.Event()
    running = 0

    @worker.handler("a")
    async def handle(run: Run) -> None:
        nonlocal running
        running += 1
        await go_on.wait()
        await run.progress({"done": 1})

    ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'notifyworker%' AND datname = current_database()"
    async with worker:
        await connection.execute("INSERT INTO notifyworker.runs (kind) SELECT 'a' FROM generate_series(1, 200)")
        await eventually(lambda: running == 200)
        counted = [await connection.fetchval(ours)]
        go_on.set()
        while not await is_empty(connection):
            counted.append(await connection.fetchval(ours))
    assert max(counted) <= 7


@pytest.mark.slow
async def test_an_idle_worker_sends_a_statement_a_second_or_so():
    async with Cluster() as cluster:
        await migrate(cluster.dsn, "notifyworker")
        worker = Worker(cluster.dsn)  # at its defaults

        @worker.handler("a")
        async def handle(run: Run) -> None: ...

        conn = await asyncpg.connect(cluster.dsn)
        async with worker:
            await settled(conn, await insert(conn, "a"))
            await eventually(lambda: worker._conductor.leader.mode == "armed")
            await cluster.conf("log_statement = all\nlog_line_prefix = '%a '")
            await cluster.reload()
            await eventually(lambda: _logs(conn))
            before = cluster.log.read_text().count("\nnotifyworker ")
            began = await conn.fetchval("SELECT now()")
            seconds = 15
            await eventually(lambda: conn.fetchval("SELECT now() - $1 > make_interval(secs => $2)", began, seconds), 2 * seconds)
            sent = cluster.log.read_text().count("\nnotifyworker ") - before
        await conn.close()
    assert 5 < sent < 1.5 * seconds


async def _logs(conn: asyncpg.Connection) -> bool:
    return await conn.fetchval("SHOW log_statement") == "all"
