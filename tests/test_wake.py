"""The wake gate and the listener: nothing that was inserted waits for the poll, which is at 60 s here."""

import asyncio
from datetime import UTC, datetime
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from servers import SURELY_S, Cluster, eventually
from structlog.testing import capture_logs
from test_life import insert, is_empty, run_of, settled

from notifyworker import Run, Worker, lanes
from notifyworker.database import LOCK_CLASS, GateLocks
from notifyworker.migrate import migrate
from notifyworker.vacuum import DEAD_ROWS


async def notified(dsn: str, conn: asyncpg.Connection, statement: str) -> bool:
    """Whether this statement notifies: a marker sent after it must not be the first that is heard."""
    heard: asyncio.Queue[str] = asyncio.Queue()
    listener = await asyncpg.connect(dsn)
    await listener.add_listener("notifyworker", lambda *args: heard.put_nowait(args[3]))
    await conn.execute(statement)
    await conn.execute("SELECT pg_notify('notifyworker', 'marker')")
    first = await heard.get()
    await listener.close()
    return first.startswith("at:")


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
    assert not await notified(dsn, connection, "SELECT notifyworker.announce(now())")
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
        assert (await settled(connection, await insert(connection, "a")))["state"] == "completed"
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
        assert (await settled(connection, run_id))["state"] == "completed"
        await eventually(lambda: worker._conductor.listener.is_hearing)


async def test_leadership_passes_on_when_its_holder_stops(make_worker, connection):
    first, second = make_worker(), make_worker()

    async def handle(run: Run) -> None: ...

    first.handler("a")(handle)
    second.handler("a")(handle)
    async with second:
        async with first:
            await eventually(lambda: second._conductor.leader.mode == "armed" or first._conductor.leader.mode == "armed")
        await eventually(lambda: second._conductor.leader.mode == "armed")
        assert (await settled(connection, await insert(connection, "a")))["state"] == "completed"


async def looks_no_more(worker: Worker, monkeypatch: pytest.MonkeyPatch, conn: asyncpg.Connection) -> None:
    """From now on this worker makes no look from the beginning: as if one took hours, over many dead rows."""
    monkeypatch.setattr(lanes, "LOOK_SHARE", 1e-9)
    while worker._conductor.claims._lanes.look_is_due_in_s(asyncio.get_running_loop().time()) < 100:
        await settled(conn, await insert(conn, "a"))


@pytest.mark.parametrize("mode", ["armed", "coalesced"])
async def test_what_commits_late_is_found_though_nobody_looks_from_the_beginning(dsn, make_worker, connection, monkeypatch, mode):
    """As under a held snapshot, where a look from the beginning is too dear to be made often."""
    worker = make_worker(wake_coalesce_per_s=20 if mode == "coalesced" else 1e6, concurrency=50)

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    async with worker:
        leader = worker._conductor.leader
        await settled(connection, await insert(connection, "a"))
        await looks_no_more(worker, monkeypatch, connection)
        late, later = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
        await eventually(lambda: leader.mode == "armed")
        while leader.mode != mode:
            await connection.execute(INSERT)
        old = late.transaction()
        await old.start()
        first = await insert(late, "a")  # inserts at once, commits late
        older = later.transaction()
        await older.start()
        await later.fetchval("SELECT now()")
        began = await connection.fetchval("SELECT now()")
        while await connection.fetchval("SELECT now() - $1 < interval '2.5 s'", began):
            await connection.execute(INSERT)
        second = await insert(later, "a")  # inserts late, commits at once
        await older.commit()
        assert (await settled(connection, second))["state"] == "completed"
        await old.commit()
        assert (await settled(connection, first))["state"] == "completed"
    await late.close()
    await later.close()


CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()"


async def keep_inserting(conn: asyncpg.Connection, seconds: float) -> None:
    began = await conn.fetchval("SELECT now()")
    while await conn.fetchval("SELECT now() - $1 < $2 * interval '1 s'", began, seconds):
        await conn.execute(INSERT)


async def test_a_silent_transaction_that_outlives_its_leader_is_found_when_it_commits(dsn, make_worker, connection, monkeypatch):
    worker = make_worker(wake_coalesce_per_s=20, concurrency=50)

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    producer = await asyncpg.connect(dsn)
    async with worker:
        leader = worker._conductor.leader
        await looks_no_more(worker, monkeypatch, connection)
        while leader.mode != "coalesced":
            await connection.execute(INSERT)
        async with producer.transaction():
            run_id = await insert(producer, "a")
            await keep_inserting(connection, 2.5)
            await connection.fetch(CUT, "notifyworker gate")
            await eventually(lambda: leader.mode == "follower")
            await eventually(lambda: leader.is_leading)  # who knows nothing of how long that one has been open
            await keep_inserting(connection, 1.5)
        assert (await settled(connection, run_id))["state"] == "completed"
    await producer.close()


async def test_what_commits_late_while_nobody_listens_is_found_when_somebody_does(dsn, make_worker, connection, monkeypatch):
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    producer = await asyncpg.connect(dsn)
    async with worker:
        listener = worker._conductor.listener
        await eventually(lambda: worker._conductor.leader.mode == "armed" and listener.is_hearing)
        await looks_no_more(worker, monkeypatch, connection)
        old = producer.transaction()
        await old.start()
        run_id = await insert(producer, "a")
        await keep_inserting(connection, 2.5)
        name = urlsplit(dsn).path.lstrip("/")
        admin = await asyncpg.connect(urlunsplit(urlsplit(dsn)._replace(path="/postgres")))
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await connection.fetch(CUT, "notifyworker listener")
        await eventually(lambda: not listener.is_hearing)
        await old.commit()
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await admin.close()
        await eventually(lambda: listener.is_hearing)
        assert (await settled(connection, run_id))["state"] == "completed"
    await producer.close()


async def test_what_is_given_back_to_an_old_place_is_found_at_once(make_worker, connection, monkeypatch):
    first, second = make_worker(concurrency=1), make_worker()
    holds = asyncio.Event()
    never = asyncio.Event()

    @first.handler("a")
    async def hold(run: Run) -> None:
        holds.set()
        await never.wait()

    @second.handler("a")
    async def handle(run: Run) -> None: ...

    async with first:
        old = await insert(connection, "a", run_at=datetime(2020, 1, 1, tzinfo=UTC))
        await holds.wait()
        async with second:
            await settled(connection, await insert(connection, "a"))
            await looks_no_more(second, monkeypatch, connection)
            first.settings = first.settings.model_copy(update={"drain_timeout_s": 0.0})
            await first.__aexit__(None, None, None)
            assert (await settled(connection, old))["state"] == "completed"
            await first.__aenter__()


async def test_the_leader_keeps_the_live_table_small(make_worker, connection):
    worker = make_worker(concurrency=500)

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    async with worker:
        await eventually(lambda: _vacuumed_after_more_work(connection), 3 * SURELY_S)  # after some ten thousand runs
        vacuum = worker._conductor.vacuum
        await eventually(lambda: vacuum._dead_rows < DEAD_ROWS)
        assert not vacuum.is_held_up


async def _vacuumed_after_more_work(conn: asyncpg.Connection) -> bool:
    """By hand, as the leader does it: autovacuum counts for itself."""
    await conn.execute("INSERT INTO notifyworker.runs (kind) SELECT 'a' FROM generate_series(1, 500)")
    await eventually(lambda: is_empty(conn))
    return await conn.fetchval("SELECT vacuum_count > 0 FROM pg_stat_user_tables WHERE relid = 'notifyworker.runs'::regclass")


async def test_a_lane_that_is_new_does_not_wait_behind_a_backlog(dsn, make_worker, connection):
    worker = make_worker(concurrency=5)
    others_left = []
    watcher = await asyncpg.connect(dsn)

    @worker.handler("a")
    async def handle(run: Run) -> None:
        await asyncio.sleep(0)

    @worker.handler("urgent")
    async def urgent(run: Run) -> None:
        others_left.append(await watcher.fetchval("SELECT count(*) FROM notifyworker.runs WHERE kind = 'a'"))

    await connection.execute("INSERT INTO notifyworker.runs (kind) SELECT 'a' FROM generate_series(1, 5000)")
    async with worker:
        await eventually(lambda: _some_done(connection))
        run_id = await connection.fetchval("INSERT INTO notifyworker.runs (kind, priority) VALUES ('urgent', 1) RETURNING run_id")
        await settled(connection, run_id)

    await watcher.close()
    assert others_left[0] > 1000


async def _some_done(conn: asyncpg.Connection) -> bool:
    return await conn.fetchval("SELECT EXISTS (SELECT FROM notifyworker.run_history)")


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


async def test_producers_that_queue_up_to_notify_do_not_cost_the_leader_its_locks():
    """Commits that notify go one after the other; here each takes a tenth of a second."""
    async with Cluster(conf="fsync=on\ncommit_delay=100000\ncommit_siblings=0") as cluster:
        await migrate(cluster.dsn, "notifyworker")
        worker = Worker(cluster.dsn, poll_interval_s=60, wake_coalesce_per_s=5, concurrency=100)

        @worker.handler("a")
        async def handle(run: Run) -> None: ...

        async def produce() -> None:
            conn = await asyncpg.connect(cluster.dsn)
            for _ in range(5):
                await conn.execute(INSERT)
            await conn.close()

        conn = await asyncpg.connect(cluster.dsn)
        with capture_logs() as logs:
            async with worker:
                leader = worker._conductor.leader
                await eventually(lambda: leader.mode == "armed")
                producers = asyncio.gather(*(produce() for _ in range(8)))
                await eventually(lambda: leader.mode == "coalesced")
                await producers
                await eventually(lambda: is_empty(conn))
        await conn.close()
    assert "gate_lost" not in {entry["event"] for entry in logs}


async def test_a_worker_that_comes_back_between_two_looks_begins_its_absence_anew(make_worker, connection):
    """It beats when it is back, and gives its runs up by its own clock, counted from the last time that it was there."""
    await connection.execute(
        """INSERT INTO notifyworker.workers (lease_owner, host, pid, version, kinds, concurrency, running, state, shadow, presence,
                presumed_dead_s, lease_s, heartbeat_interval_s)
           VALUES ('flapping', 'h', 1, '0', '{a}', 1, 1, 'running', 'honour', true, 3, 600, 15)"""
    )
    run_id = await insert(connection, "a")
    await connection.execute(
        """UPDATE notifyworker.runs SET state = 'running', attempt = 1, max_attempts = 3, lease_token = 1, started_at = now(),
                lease_owner = 'flapping', lease_expires_at = now() + interval '10 min' WHERE run_id = $1""",
        run_id,
    )
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    async with worker:
        began = await connection.fetchval("SELECT now()")
        while await connection.fetchval("SELECT now() - $1 < interval '9 s'", began):
            await connection.execute("UPDATE notifyworker.workers SET heartbeat_at = now() WHERE lease_owner = 'flapping'")
            assert (await run_of(connection, run_id))["lease_owner"] == "flapping"
        run = await settled(connection, run_id)

    assert (run["state"], run["attempt"]) == ("completed", 2)
