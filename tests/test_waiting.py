"""client.wait: told by the settle, whatever settles; through lost connections and notifications; at no cost to others."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from servers import eventually
from test_life import insert

from notifyworker import Client, Run, Worker, waiting
from notifyworker.errors import RunNotFound, WaitTimeout
from notifyworker.lanes import EPOCH, SLACK, Batch, Lane
from notifyworker.store import Served, Store

WAITERS = "SELECT count(*) FROM notifyworker.waiters"
CANCEL = "SELECT notifyworker.cancel($1)"
LISTENS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'notifyworker waiting' AND datname = current_database()"
CUT = LISTENS.replace("count(*)", "pg_terminate_backend(pid)")


@pytest.fixture
def no_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks that are so rare that a test which ends was told."""
    monkeypatch.setattr(waiting, "LOOK_S", 300.0)
    monkeypatch.setattr(waiting, "SOON_S", 300.0)


@contextlib.asynccontextmanager
async def waits(client: Client, db: asyncpg.Connection, *run_ids: UUID) -> AsyncIterator[list[asyncio.Task[dict[str, Any]]]]:
    """Somebody who waits for each of these, once the database knows."""
    tasks = [asyncio.create_task(client.wait(run_id)) for run_id in run_ids]
    await eventually(lambda: _is(db, len(set(run_ids))))
    await eventually(lambda: all(client._waiting.is_expected(run_id) for run_id in run_ids))
    # They look once more after it knows: past that they sleep until they are told.
    await asyncio.sleep(0.1)
    yield tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _is(db: asyncpg.Connection, count: int) -> bool:
    return await db.fetchval(WAITERS) == count


async def _claimed(db: asyncpg.Connection, lease_s: float) -> Run:
    served = Served({"a": 1}, {"a": None}, None)
    lanes = [Lane("a", "default", 0, EPOCH)]
    (run,) = await Store("notifyworker").claim(
        db, served, Batch(lanes, [1]), SLACK, limit=1, lease_owner="w", lease_s=lease_s, enforce_shadow=False
    )
    return run


@pytest.mark.parametrize("settles", ["handler", "transaction", "cancel", "expires", "dies"])
async def test_whatever_settles_it_tells(make_worker, connection, dsn, no_looks, settles):
    worker: Worker = make_worker()
    go_on = asyncio.Event()

    @worker.handler("a" if settles in {"handler", "transaction"} else "another")
    async def handle(run: Run) -> dict | None:
        await go_on.wait()
        if settles == "handler":
            return {"n": 1}
        async with run.transaction():
            run.result = {"n": 1}
        return None

    await connection.execute("UPDATE notifyworker.settings SET value = '0.2' WHERE name = 'reaper_interval_s'")
    run_id = await insert(connection, "a")
    if settles == "dies":
        await _claimed(connection, lease_s=0.5)
    async with Client(dsn) as client, waits(client, connection, run_id) as (told,):
        if settles == "expires":
            await connection.execute("UPDATE notifyworker.runs SET expires_at = now()")
        async with worker:
            go_on.set()
            if settles == "cancel":
                await connection.fetchval(CANCEL, run_id)
            run = await asyncio.wait_for(told, 30)
        await eventually(lambda: _is(connection, 0))
    wanted = {"handler": "completed", "transaction": "completed", "cancel": "cancelled", "expires": "cancelled", "dies": "failed"}
    assert (run["state"], run["result"]) == (wanted[settles], {"n": 1} if wanted[settles] == "completed" else None)


async def test_many_waits_are_one_connection_that_is_closed_when_nobody_waits(connection, dsn, no_looks, monkeypatch):
    monkeypatch.setattr(waiting, "_IDLE_S", 0.2)
    ids = [await insert(connection, "a") for _ in range(5)]
    async with Client(dsn) as client:
        async with waits(client, connection, *ids, ids[0]) as told:
            assert await connection.fetchval(LISTENS) == 1
            for run_id in ids[:4]:
                await connection.fetchval(CANCEL, run_id)
            for task in [*told[:4], told[5]]:
                assert (await asyncio.wait_for(task, 30))["state"] == "cancelled"
            assert not told[4].done()
        await eventually(lambda: _is(connection, 0))
        await eventually(lambda: connection.fetchval(LISTENS.replace("count(*)", "count(*) = 0")))
        async with waits(client, connection, ids[4]) as (again,):
            await connection.fetchval(CANCEL, ids[4])
            assert (await asyncio.wait_for(again, 30))["state"] == "cancelled"


async def test_a_waiter_that_was_cut_off_connects_again_and_misses_nothing(connection, dsn, no_looks):
    before, after = await insert(connection, "a"), await insert(connection, "a")
    async with Client(dsn) as client, waits(client, connection, before, after) as (first, second):
        async with connection.transaction():
            await connection.fetchval(CUT)
            await connection.fetchval(CANCEL, before)
        assert (await asyncio.wait_for(first, 30))["state"] == "cancelled"  # settled while nobody listened
        await eventually(lambda: client._waiting.is_expected(after))
        await asyncio.sleep(0.1)
        await connection.fetchval(CANCEL, after)
        assert (await asyncio.wait_for(second, 30))["state"] == "cancelled"  # told, on the new connection


async def test_all_connections_lost_and_the_wait_goes_on(connection, dsn, no_looks):
    run_id = await insert(connection, "a")
    everything = """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                     WHERE application_name LIKE 'notifyworker %' AND datname = current_database()"""
    async with Client(dsn) as client, waits(client, connection, run_id) as (told,):
        assert await connection.fetchval(everything) >= 2
        await connection.fetchval(CANCEL, run_id)
        assert (await asyncio.wait_for(told, 30))["state"] == "cancelled"


async def test_a_lost_notification_only_delays(connection, dsn, monkeypatch):
    monkeypatch.setattr(waiting, "LOOK_S", 0.5)
    run_id = await insert(connection, "a")
    async with Client(dsn) as client, waits(client, connection, run_id) as (told,):
        await connection.execute("DELETE FROM notifyworker.waiters")
        await connection.fetchval(CANCEL, run_id)
        assert (await asyncio.wait_for(told, 30))["state"] == "cancelled"


async def test_a_settle_that_began_before_is_found_by_the_second_look(connection, dsn, monkeypatch):
    """It had looked for waiters before there was one, and commits after the waiter has looked."""
    monkeypatch.setattr(waiting, "LOOK_S", 300.0)
    run_id = await insert(connection, "a")
    settling = await asyncpg.connect(dsn)
    transaction = settling.transaction()
    await transaction.start()
    await settling.fetchval(CANCEL, run_id)
    async with Client(dsn) as client, waits(client, connection, run_id) as (told,):
        assert not told.done()
        await transaction.commit()
        assert (await asyncio.wait_for(told, 30))["state"] == "cancelled"
    await settling.close()


async def test_timeouts_unknown_runs_and_settled_ones(connection, dsn):
    run_id = await insert(connection, "a")
    async with Client(dsn) as client:
        with pytest.raises(WaitTimeout):
            await client.wait(run_id, timeout=0.3)
        await eventually(lambda: _is(connection, 0))
        with pytest.raises(RunNotFound):
            await client.wait(UUID(int=1))
        await connection.fetchval(CANCEL, run_id)
        client._waiting._closed = True  # for a settled run nobody listens
        assert (await client.wait(run_id))["state"] == "cancelled"
    assert await connection.fetchval(WAITERS) == 0


async def test_a_role_that_may_not_say_so_looks(connection, dsn, monkeypatch):
    run_id = await insert(connection, "a")
    asked = asyncio.Event()

    async def refused(*_arguments: Any) -> None:
        asked.set()
        raise asyncpg.InsufficientPrivilegeError

    async with Client(dsn) as client:
        monkeypatch.setattr(client._store, "expect", refused)
        told = asyncio.create_task(client.wait(run_id))
        await asyncio.wait_for(asked.wait(), 30)
        await connection.fetchval(CANCEL, run_id)
        assert (await asyncio.wait_for(told, 30))["state"] == "cancelled"


async def test_a_wire_that_falls_silent_is_left_for_another(connection, dsn, proxy, no_looks, monkeypatch):
    monkeypatch.setattr(waiting, "PING_S", 0.3)
    monkeypatch.setattr(waiting, "PING_DEADLINE_S", 0.5)
    run_id = await insert(connection, "a")
    async with Client(dsn) as client:
        client._waiting._dsn = proxy.through(dsn)
        async with waits(client, connection, run_id) as (told,):
            await proxy.hold()
            await connection.fetchval(CANCEL, run_id)
            await eventually(lambda: not client._waiting.is_expected(run_id))
            await proxy.heal()
            assert (await asyncio.wait_for(told, 30))["state"] == "cancelled"


async def test_the_dead_are_forgotten_and_only_channels_of_waiters_are_told(make_worker, connection):
    run_id = await insert(connection, "another")
    await connection.execute("SELECT notifyworker.expect(ARRAY[$1::uuid], 'notifyworker_wait_0123456789abcdef')", run_id)
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute("SELECT notifyworker.expect(ARRAY[$1::uuid], 'notifyworker')", run_id)
    await connection.execute("UPDATE notifyworker.waiters SET expires_at = now()")
    worker: Worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    async with worker:
        await eventually(lambda: _is(connection, 0))
