"""The server's notification queue fills up, or is flooded: no insert fails for it, and no worker is disturbed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import asyncpg
import psutil
import pytest
from servers import Cluster, as_role, eventually
from structlog.testing import capture_logs
from test_life import insert, settled

from notifyworker import Retry, Run, Worker, wake
from notifyworker.migrate import migrate


@pytest.fixture
async def small() -> AsyncIterator[Cluster]:
    """A server whose notification queue is as small as it may be: half a megabyte."""
    async with Cluster(conf="max_notify_queue_pages = 64") as cluster:
        await migrate(cluster.dsn, "notifyworker")
        yield cluster


async def fill(conn: asyncpg.Connection, ratio: float) -> None:
    """Notify, as any application on this server may, until the queue is so full."""
    with contextlib.suppress(asyncpg.ProgramLimitExceededError):
        while await conn.fetchval("SELECT pg_notification_queue_usage()") < ratio:
            await conn.execute("SELECT pg_notify('elsewhere', repeat('x', 7000) || clock_timestamp())")


@contextlib.asynccontextmanager
async def held_queue(dsn: str, ratio: float) -> AsyncIterator[asyncpg.Connection]:
    """A session that has listened and left a transaction open: nothing is taken out of the queue while it stays."""
    forgetful = await asyncpg.connect(dsn)
    await forgetful.execute("LISTEN elsewhere")
    await forgetful.execute("BEGIN; SELECT 1")
    other = await asyncpg.connect(dsn)
    try:
        await fill(other, ratio)
        yield other
    finally:
        forgetful.terminate()
        await eventually(lambda: has_room(other))
        await other.close()


async def has_room(conn: asyncpg.Connection) -> bool:
    with contextlib.suppress(asyncpg.ProgramLimitExceededError):  # that session has not ended yet
        await conn.execute("NOTIFY elsewhere")  # the room is freed by whoever notifies next
    return await conn.fetchval("SELECT pg_notification_queue_usage()") < 0.1


def is_told(worker: Worker) -> bool:
    return any("notification queue" in reason for reason in worker._conductor.health())


def make(dsn: str, kind: str, **settings: Any) -> Worker:
    worker = Worker(dsn, **{"poll_interval_s": 60, **settings})

    @worker.handler(kind, retry=Retry(base_s=0))
    async def handle(run: Run) -> None:
        if run.attempt == 1:
            raise RuntimeError

    return worker


async def test_while_the_queue_fills_no_insert_fails_and_runs_are_found_by_looking(small, monkeypatch):
    monkeypatch.setattr(wake, "PING_S", 0.2)
    conn = await asyncpg.connect(small.dsn)
    leader, follower = make(small.dsn, "a", sidecar=True, port=0), make(small.dsn, "b", poll_interval_s=0.5)
    with capture_logs() as logs:
        async with leader, aiohttp.ClientSession() as session:
            await eventually(lambda: leader._conductor.leader.mode == "armed")
            async with follower:
                await settled(conn, await insert(conn, "a"))
                async with held_queue(small.dsn, 0.55) as filler:
                    await eventually(lambda: is_told(leader) and is_told(follower))
                    for kind in ("a", "b"):  # inserted, given back and retried: all of it would notify
                        assert (await settled(conn, await insert(conn, kind)))["attempt"] == 2
                    for _ in range(2000):
                        await insert(conn, "nobody's")
                    assert await conn.fetchval("SELECT pg_notification_queue_usage()") < 0.6  # ours add nothing to it

                    await fill(filler, 2.0)
                    assert await conn.fetchval("SELECT pg_notification_queue_usage()") > 0.9
                    with pytest.raises(asyncpg.ProgramLimitExceededError):
                        await conn.execute("NOTIFY elsewhere, 'no room'")
                    for kind in ("a", "b"):
                        run_id = await insert(conn, kind)
                        assert (await settled(conn, run_id))["attempt"] == 2
                        await conn.execute("SELECT notifyworker.retry($1)", run_id)
                        assert (await settled(conn, run_id))["state"] == "completed"
                    await conn.execute("SELECT notifyworker.cancel($1)", await insert(conn, "nobody's"))
                    async with session.get(f"{leader.url}/healthz") as answer:
                        assert answer.status == 503
                        assert "% full, so that inserts wake nobody" in (await answer.json())["reasons"][0]
                    async with session.get(f"{leader.url}/metrics") as answer:
                        (line,) = [
                            text
                            for text in (await answer.text()).splitlines()
                            if text.startswith("notifyworker_notification_queue")
                        ]
                        assert float(line.split()[1]) > 0.9

                await eventually(lambda: not is_told(leader) and not is_told(follower))
                assert follower._conductor.health() == leader._conductor.health() == []
            woken = leader._conductor.metrics.wakes.labels("notify")._value.get()
            assert (await settled(conn, await insert(conn, "a")))["state"] == "completed"
            await eventually(lambda: leader._conductor.metrics.wakes.labels("notify")._value.get() > woken)
    await conn.close()
    told = [entry for entry in logs if entry["event"] == "notification_queue_fills"]
    assert len(told) == 2  # once a worker
    assert "left a transaction open" in told[0]["hint"]
    assert [entry["event"] for entry in logs].count("notification_queue_has_room") == 2


#: As if the queue had still had room when it was asked, and none any more at the commit.
ALWAYS_NOTIFY = """
    CREATE OR REPLACE FUNCTION notifyworker.announce(oldest timestamptz) RETURNS boolean LANGUAGE sql
    AS 'SELECT pg_notify(''notifyworker'', '''') IS NULL'"""


async def test_a_retry_whose_notification_found_no_room_is_given_back_later_and_not_failed(small):
    conn = await asyncpg.connect(small.dsn)
    await conn.execute(ALWAYS_NOTIFY)
    worker = make(small.dsn, "a", poll_interval_s=0.2)
    async with worker:
        async with held_queue(small.dsn, 2.0):
            run_id = await insert(conn, "a")
            await eventually(lambda: any("NOTIFY queue" in reason for reason in worker._conductor.health()))
        run = await settled(conn, run_id)
        await eventually(lambda: worker._conductor.health() == [])
    await conn.close()

    assert (run["state"], run["attempt"]) == ("completed", 2)


async def flood(dsn: str, texts: list[str]) -> None:
    """Each in a transaction of its own, as fast as one session can."""
    stranger = await asyncpg.connect(dsn)
    for text in texts:
        await stranger.execute("SELECT pg_notify('notifyworker', $1)", text)
    await stranger.close()


async def test_ten_thousand_notifications_of_a_stranger_disturb_nobody(dsn, connection, make_worker):
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{name}'")  # who may do nothing but connect
    strangers = as_role(dsn, name, name)
    worker = make_worker(heartbeat_interval_s=15, concurrency=5)
    go_on, is_cancelled = asyncio.Event(), asyncio.Event()

    @worker.handler("long")
    async def long(run: Run) -> str:
        try:
            await go_on.wait()
        except asyncio.CancelledError:
            is_cancelled.set()
            raise
        return "done"

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    async with worker:
        held = await insert(connection, "long")
        await settled(connection, await insert(connection, "a"))
        await eventually(lambda: worker._conductor.leader.mode == "armed")
        texts = [
            text
            for n in range(2000)
            for text in (f"cancel:{held}", f"at:{n}", f"turn:{n}", "farewell", chr(0x2603 + n % 500) * (n + 1))
        ]
        beats = worker._conductor.metrics.heartbeats.labels("sent")._value.get()
        memory = psutil.Process().memory_info().rss
        began = asyncio.get_running_loop().time()
        await flood(strangers, texts)
        most_tasks = len(asyncio.all_tasks())
        assert (await settled(connection, await insert(connection, "a")))["state"] == "completed"
        took_s = asyncio.get_running_loop().time() - began
        grown = psutil.Process().memory_info().rss - memory
        beats = worker._conductor.metrics.heartbeats.labels("sent")._value.get() - beats
        assert worker._conductor.health() == []
        go_on.set()
        assert (await settled(connection, held))["result"] == '"done"'

    await connection.execute(f"DROP ROLE {name}")
    assert not is_cancelled.is_set()
    assert beats < 10 + 4 * took_s
    assert grown < 32 * 2**20
    assert most_tasks < 50
