"""The wake gate and the listener: nothing that was inserted waits for the poll, which is at 60 s here."""

import asyncio

import asyncpg
from servers import eventually
from structlog.testing import capture_logs
from test_life import insert, is_empty, settled

from notifyworker import Run
from notifyworker.database import LOCK_CLASS, GateLocks


async def notified(dsn: str, conn: asyncpg.Connection, statement: str) -> bool:
    """Whether this statement notifies: a marker sent after it must not be the first that is heard."""
    heard: asyncio.Queue[str] = asyncio.Queue()
    listener = await asyncpg.connect(dsn)
    await listener.add_listener("notifyworker", lambda *args: heard.put_nowait(args[3]))
    await conn.execute(statement)
    await conn.execute("SELECT pg_notify('notifyworker', 'marker')")
    first = await heard.get()
    await listener.close()
    return first == ""


INSERT = "INSERT INTO notifyworker.runs (kind) VALUES ('a')"


async def test_an_insert_notifies_unless_a_leader_has_said_that_it_looks_itself(dsn, connection):
    leader = await asyncpg.connect(dsn)
    locks = GateLocks.of("notifyworker")
    take, give = "SELECT pg_advisory_lock($1, $2)", "SELECT pg_advisory_unlock($1, $2)"

    assert await notified(dsn, connection, INSERT)  # no leader
    await leader.execute(take, LOCK_CLASS, locks.silent)
    assert await notified(dsn, connection, INSERT)  # armed
    await leader.execute(take, LOCK_CLASS, locks.coalesced)
    assert await notified(dsn, connection, INSERT)
    await leader.execute(give, LOCK_CLASS, locks.silent)
    assert not await notified(dsn, connection, INSERT)  # coalesced
    assert not await notified(dsn, connection, "SELECT notifyworker.announce()")
    await leader.close()
    assert await notified(dsn, connection, INSERT)  # the leader died
    assert not await notified(dsn, connection, f"BEGIN; SET LOCAL notifyworker.quiet = on; {INSERT}; COMMIT")


async def test_a_leader_that_coalesces_still_finds_everything_and_arms_again(dsn, make_worker, connection):
    worker = make_worker(wake_coalesce_per_s=20, concurrency=50)

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    late = await asyncpg.connect(dsn)
    async with worker:
        leader = worker._conductor.leader
        await eventually(lambda: leader.mode == "armed")
        seen: set[str] = set()
        while "coalesced" not in seen:
            await connection.execute(INSERT)
            seen.add(leader.mode)
        # Inserted in silence, and committed when nobody else inserts any more.
        async with late.transaction():
            await late.execute(INSERT)
            await eventually(lambda: _others_done(connection))
        await eventually(lambda: is_empty(connection))
        await eventually(lambda: leader.mode == "armed")
        assert (await settled(connection, await insert(connection, "a"), 5))["state"] == "completed"
    await late.close()


async def _others_done(conn: asyncpg.Connection) -> bool:
    return await conn.fetchval("SELECT count(*) FROM notifyworker.runs") == 0


async def test_a_listener_that_was_cut_looks_after_it_listens_again(make_worker, connection):
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'notifyworker listener' AND datname = current_database()"
    async with worker:
        await settled(connection, await insert(connection, "a"))
        async with connection.transaction():
            await connection.execute(cut)
            run_id = await insert(connection, "a")
        assert (await settled(connection, run_id, 5))["state"] == "completed"
        await eventually(lambda: worker._conductor.listener.is_hearing)


async def test_leadership_passes_on_when_its_holder_stops(make_worker, connection):
    first, second = make_worker(), make_worker()

    async def handle(run: Run) -> None: ...

    first.handler("a")(handle)
    second.handler("a")(handle)
    async with second:
        async with first:
            await eventually(lambda: second._conductor.leader.mode == "armed" or first._conductor.leader.mode == "armed")
        await eventually(lambda: second._conductor.leader.mode == "armed", 5)
        assert (await settled(connection, await insert(connection, "a"), 5))["state"] == "completed"


LATER = "INSERT INTO notifyworker.runs (kind, run_at) VALUES ('a', now() + interval '1 day') RETURNING run_id"
TAKEN_BY_THE_DEAD = """
    UPDATE notifyworker.runs SET state = 'running', attempt = 1, max_attempts = 3, lease_token = 1, lease_owner = 'dead',
           run_at = now(), started_at = now(), lease_expires_at = now()
     WHERE run_id = $1"""


async def test_a_stranger_who_holds_the_leaders_lock_keeps_nobody_from_reaping(dsn, make_worker, connection):
    await connection.execute("UPDATE notifyworker.settings SET value = '0.3' WHERE name = 'reaper_interval_s'")
    stranger = await asyncpg.connect(dsn)
    await stranger.execute("SELECT pg_advisory_lock($1, $2)", LOCK_CLASS, GateLocks.of("notifyworker").leader)
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    async with worker:
        for _ in range(2):
            run_id = await connection.fetchval(LATER)
            await connection.execute(TAKEN_BY_THE_DEAD, run_id)
            assert (await settled(connection, run_id))["attempt"] == 2
            assert "the leader's lock is held by somebody who does not reap" in worker._conductor.health()[0]
        assert await connection.fetchval("SELECT leader FROM notifyworker.reaper") is None
        await stranger.close()
        await eventually(lambda: worker._conductor.leader.mode == "armed")
        assert worker._conductor.health() == []


async def test_a_fleet_that_was_down_for_long_is_healthy_and_reaps_at_once_when_it_is_back(make_worker, connection):
    await connection.execute("UPDATE notifyworker.reaper SET leader = 'dead', last_pass_at = now() - interval '1 day'")
    run_id = await connection.fetchval(LATER)
    await connection.execute(TAKEN_BY_THE_DEAD, run_id)
    worker = make_worker()  # the reaper's interval is a minute

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    with capture_logs() as logs:
        async with worker:
            assert (await settled(connection, run_id))["attempt"] == 2
            assert worker._conductor.leader.mode == "armed"
            assert worker._conductor.health() == []
    assert "leader_does_not_reap" not in {entry["event"] for entry in logs}
