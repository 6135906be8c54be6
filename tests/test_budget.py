"""Many workers start at once, and the server has connections for a few: these work, and the others say why they do not."""

import asyncio

import asyncpg
import pytest
from servers import Cluster, eventually
from test_life import is_empty

from notifyworker import Run, Worker
from notifyworker.errors import DatabaseUnavailable
from notifyworker.migrate import migrate


@pytest.fixture
async def narrow():
    async with Cluster(conf="max_connections = 30\n") as cluster:
        await migrate(cluster.dsn, "notifyworker")
        yield cluster


async def test_those_that_find_connections_work_and_the_others_are_told(narrow):
    conn = await asyncpg.connect(narrow.dsn)
    workers = [Worker(narrow.dsn, poll_interval_s=0.2) for _ in range(12)]
    for worker in workers:

        @worker.handler("a")
        async def handle(run: Run) -> None:
            pass

    started = await asyncio.gather(*(worker.__aenter__() for worker in workers), return_exceptions=True)
    up = [worker for worker in started if isinstance(worker, Worker)]
    await conn.execute("INSERT INTO notifyworker.runs (kind) SELECT 'a' FROM generate_series(1, 200)")
    try:
        await eventually(lambda: is_empty(conn))
    finally:
        await asyncio.gather(*(worker.__aexit__(None, None, None) for worker in up))
        await conn.close()

    refused = [told for told in started if not isinstance(told, Worker)]
    assert 1 <= len(up) < 12
    assert all(isinstance(told, DatabaseUnavailable) and "no connection left" in str(told) for told in refused)
