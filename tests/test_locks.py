"""Somebody holds the live table, or waits for it: claims time out and come back, and what runs keeps running."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import asyncpg
import pytest
from servers import eventually
from structlog.testing import capture_logs
from test_faults import all_run
from test_life import insert, settled

from notifyworker import Run


@contextlib.asynccontextmanager
async def waiting_alter(dsn: str) -> AsyncIterator[None]:
    """A change of the table waits behind one open reader, and everybody else behind that."""
    reader, changer = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    async with reader.transaction():
        await reader.execute("SELECT FROM notifyworker.runs")
        change = asyncio.create_task(changer.execute("ALTER TABLE notifyworker.runs ADD COLUMN mine text"))
        waits = "SELECT count(*) FROM pg_locks WHERE pid = $1 AND NOT granted"
        await eventually(lambda: reader.fetchval(waits, changer.get_server_pid()))
        yield
    await change
    await reader.close()
    await changer.close()


@contextlib.asynccontextmanager
async def held_table(dsn: str) -> AsyncIterator[None]:
    stranger = await asyncpg.connect(dsn)
    async with stranger.transaction():
        await stranger.execute("LOCK TABLE notifyworker.runs IN ACCESS EXCLUSIVE MODE")
        yield
    await stranger.close()


@pytest.mark.parametrize(
    ("locked", "for_s"), [(waiting_alter, 5), pytest.param(held_table, 10, marks=pytest.mark.slow)], ids=["waiting ALTER", "held"]
)
async def test_a_lock_on_the_table_takes_no_run_and_no_presence_from_its_worker(dsn, make_worker, connection, locked, for_s):
    leading = make_worker()
    holding = make_worker(heartbeat_interval_s=3, lease_s=30, presence_ping_s=0.5, presumed_dead_s=7)
    go_on = asyncio.Event()
    starts = 0

    @leading.handler("b")
    async def nothing(run: Run) -> None: ...

    @holding.handler("long")
    async def long(run: Run) -> None:
        nonlocal starts
        starts += 1
        await go_on.wait()

    present = """
        SELECT count(*) FROM pg_locks
         WHERE locktype = 'advisory' AND objsubid = 1 AND granted
           AND (classid::bigint << 32) | objid::bigint = hashtextextended('notifyworker' || $1, 0)"""
    with capture_logs() as logs:
        async with leading:
            await eventually(lambda: leading._conductor.leader.mode == "armed")
            async with holding:
                run_id = await insert(connection, "long")
                await eventually(lambda: all_run(connection, [run_id]))
                renewed = await connection.fetchval("SELECT lease_expires_at FROM notifyworker.runs")
                async with locked(dsn):
                    began = await connection.fetchval("SELECT now()")
                    holding._conductor.keeper.announce()
                    for worker in (leading, holding):
                        worker._conductor.claims.wake.set()
                    for worker in (leading, holding):
                        await eventually(lambda w=worker: any("lock timeout" in why for why in w._conductor.health()))
                    seen = set()
                    while await connection.fetchval("SELECT now() - $1 < make_interval(secs => $2)", began, for_s):
                        seen.add(await connection.fetchval(present, holding._conductor.lease_owner))
                        await asyncio.sleep(0.01)
                later = "SELECT lease_expires_at > $1 FROM notifyworker.runs"
                await eventually(lambda: connection.fetchval(later, renewed))  # a beat came through at once
                run_ids = [await insert(connection, "b"), run_id]
                go_on.set()
                for settled_id in run_ids:
                    run = await settled(connection, settled_id)
                await eventually(lambda: leading._conductor.health() == holding._conductor.health() == [])
    assert seen == {1}
    assert (run["attempt"], starts) == (1, 1)
    assert {"lease_lost", "leases_lapsed", "run_reaped", "workers_presumed_dead"} & {entry["event"] for entry in logs} == set()
