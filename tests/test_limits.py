"""What a server and its administrator may withhold: connections, time, space, plans. It is waited for, and told why."""

import asyncio
import contextlib
import os
import secrets
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from servers import Cluster, as_role, eventually, processes
from structlog.testing import capture_logs
from test_faults import all_run, cluster, until_it_answers  # noqa: F401 - fixtures
from test_life import insert, is_empty, settled

from notifyworker import Run, StartError, Worker, vacuum
from notifyworker.embedded import server_account
from notifyworker.migrate import migrate

# ruff: noqa: F811 - fixtures of test_faults are asked for by their names

APP = "CREATE ROLE app LOGIN PASSWORD 'app'; GRANT notifyworker_worker, notifyworker_producer TO app"


def make(dsn: str, **settings: Any) -> tuple[Worker, Counter[UUID]]:
    worker = Worker(dsn, **{"poll_interval_s": 60, **settings})
    starts: Counter[UUID] = Counter()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        starts[run.run_id] += 1
        await asyncio.sleep(0.01)

    return worker, starts


# Connections.


@pytest.fixture
async def crowded() -> AsyncIterator[Cluster]:
    """A server with twelve connections, three of which are the superuser's."""
    async with Cluster(conf="max_connections = 12\nautovacuum_worker_slots = 3") as cluster:
        await migrate(cluster.dsn, "notifyworker")
        conn = await asyncpg.connect(cluster.dsn)
        await conn.execute(APP)
        await conn.close()
        yield cluster


@contextlib.asynccontextmanager
async def all_taken(dsn: str) -> AsyncIterator[list[asyncpg.Connection]]:
    """Every connection that this login can get is taken, also one that becomes free."""
    held: list[asyncpg.Connection] = []
    is_over = False

    async def take() -> None:
        while not is_over:  # and not cancelled: in the middle of a connect asyncpg leaves a future without an owner
            try:
                held.append(await asyncpg.connect(dsn, ssl=False, server_settings={"application_name": "hog"}))
            except (asyncpg.TooManyConnectionsError, OSError):
                await asyncio.sleep(0.005)

    taking = asyncio.create_task(take())
    try:
        yield held
    finally:
        is_over = True
        await taking
        for conn in held:
            conn.terminate()


async def test_a_start_without_a_connection_left_is_told_in_one_sentence(crowded):
    dsn = as_role(crowded.dsn, "app", "app")
    worker, _ = make(dsn)
    async with all_taken(dsn) as held:
        await eventually(lambda: len(held) >= 9)
        with pytest.raises(StartError, match=r"has no connection left: .*raise max_connections") as told:
            await worker.__aenter__()
    assert "app:app" not in str(told.value)


@pytest.mark.slow
async def test_connections_that_are_taken_away_in_the_middle_of_work_are_waited_for(crowded):
    dsn = as_role(crowded.dsn, "app", "app")
    worker, starts = make(dsn, concurrency=5)
    conn = await asyncpg.connect(crowded.dsn)
    async with worker:
        await conn.execute("INSERT INTO notifyworker.runs (kind) SELECT 'a' FROM generate_series(1, 500)")
        await eventually(lambda: len(starts) > 50)
        async with all_taken(dsn):
            ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'notifyworker%'"
            end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'notifyworker%'"

            async def have_none() -> bool:
                await conn.execute(end)
                return await conn.fetchval(ours) == 0

            await eventually(have_none)
            await eventually(lambda: any("connection" in reason for reason in worker._conductor.health()))
            refused = crowded.log.read_text().count("FATAL:  ")
            began = asyncio.get_running_loop().time()
            heard = "no notification can be heard"
            await eventually(lambda: any(heard in reason for reason in worker._conductor.health()))
            took_s = asyncio.get_running_loop().time() - began
            told = worker._conductor.health()
            hogs = took_s / 0.005
            assert crowded.log.read_text().count("FATAL:  ") - refused < hogs + 20 + 20 * took_s  # no tight retry of ours
        assert all("slots" in reason or "clients" in reason or "heartbeat" in reason for reason in told), told
        await eventually(lambda: is_empty(conn))
        await eventually(lambda: worker._conductor.health() == [])
        assert (await settled(conn, await insert(conn, "a")))["state"] == "completed"
    assert await conn.fetchval("SELECT count(*) FROM notifyworker.run_history WHERE state = 'completed'") == 501
    await conn.close()


@pytest.mark.slow
async def test_a_handler_that_takes_every_connection_there_is_holds_up_no_other_run(crowded):
    dsn = as_role(crowded.dsn, "app", "app")
    worker, _ = make(dsn, heartbeat_interval_s=0.3, lease_s=3)
    go_on = asyncio.Event()

    @worker.handler("greedy")
    async def greedy(run: Run) -> None:
        async with all_taken(dsn):
            await go_on.wait()

    conn = await asyncpg.connect(crowded.dsn)
    async with worker:
        await settled(conn, await insert(conn, "a"))
        await eventually(lambda: worker._conductor.leader.mode == "armed")
        run_id = await insert(conn, "greedy")
        hogs = "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'hog'"
        await eventually(lambda: conn.fetchval(hogs))
        kept = "SELECT now() - started_at > interval '4 s' FROM notifyworker.runs WHERE run_id = $1"  # above a lease
        while not await conn.fetchval(kept, run_id):
            assert (await settled(conn, await insert(conn, "a")))["state"] == "completed"
        assert worker._conductor.health() == []
        go_on.set()
        assert (await settled(conn, run_id))["attempt"] == 1
    await conn.close()


# Time.


async def test_low_limits_of_the_role_are_not_the_workers(any_server, any_dsn):
    conn = await asyncpg.connect(any_dsn)
    name = await conn.fetchval("SELECT current_database()")
    limits = {
        "statement_timeout": "150ms", "lock_timeout": "10ms", "idle_in_transaction_session_timeout": "150ms",
        "idle_session_timeout": "300ms", "default_transaction_isolation": "serializable", "search_path": "nowhere",
    }  # fmt: skip
    if any_server[0].major >= 17:
        limits["transaction_timeout"] = "150ms"
    await conn.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{name}'; GRANT notifyworker_worker TO {name}")
    for limit, value in limits.items():
        await conn.execute(f"ALTER ROLE {name} SET {limit} = '{value}'")
    stranger = await asyncpg.connect(any_dsn)
    worker, starts = make(as_role(any_dsn, name, name), heartbeat_interval_s=0.5, lease_s=4.5)
    with capture_logs() as logs:
        async with worker:
            await settled(conn, await insert(conn, "a"))
            run_id = await insert(conn, "a", run_at=await conn.fetchval("SELECT now() + interval '0.8 s'"))  # idle until then
            await settled(conn, run_id)
            async with stranger.transaction():
                await stranger.execute("LOCK TABLE notifyworker.runs IN ACCESS EXCLUSIVE MODE")
                began = await stranger.fetchval("SELECT clock_timestamp()")
                worker._conductor.claims.wake.set()
                await eventually(lambda: stranger.fetchval("SELECT clock_timestamp() - $1 > interval '0.6 s'", began))
            assert (await settled(conn, await insert(conn, "a")))["state"] == "completed"
    await stranger.close()
    await conn.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")
    await conn.close()
    assert [entry for entry in logs if entry["log_level"] in {"warning", "error", "critical"}] == []
    assert set(starts.values()) == {1}


# Plans.


async def test_changes_of_the_tables_in_the_middle_of_work_cost_no_run(dsn, connection):
    worker, starts = make(dsn, concurrency=20)
    await connection.execute("INSERT INTO notifyworker.runs (kind) SELECT 'a' FROM generate_series(1, 3000)")
    ready = await connection.fetchval("SELECT pg_get_indexdef('notifyworker.runs_ready'::regclass)")
    changes = [
        "ALTER TABLE notifyworker.runs ADD COLUMN mine text",
        "ALTER TABLE notifyworker.runs ALTER COLUMN mine SET DEFAULT 'x'",
        f"DROP INDEX notifyworker.runs_ready; {ready}",
        "CREATE INDEX ON notifyworker.runs (created_at)",
        "ALTER TABLE notifyworker.run_history ADD COLUMN mine text",
        "ANALYZE notifyworker.runs",
        "ALTER TABLE notifyworker.runs DROP COLUMN mine",
        "REINDEX TABLE notifyworker.runs",
        "ALTER TABLE notifyworker.run_history DROP COLUMN mine",
    ]
    with capture_logs() as logs:
        async with worker:
            for change in changes:
                seen = len(starts)
                await eventually(lambda seen=seen: len(starts) > seen + 100)
                await connection.execute(change)
            await eventually(lambda: is_empty(connection))
            assert worker._conductor.health() == []
    assert Counter(starts.values()) == {1: 3000}
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.run_history WHERE state = 'completed'") == 3000
    events = {entry["event"] for entry in logs if entry["log_level"] in {"error", "critical"}}
    assert events == set()


@pytest.mark.slow
async def test_a_snapshot_that_is_held_is_told_once_and_claims_go_on(dsn, connection, make_worker, monkeypatch):
    monkeypatch.setattr(vacuum, "DEAD_ROWS", 200)
    monkeypatch.setattr(vacuum, "_LONGEST_PAUSE_S", 0.1)
    monkeypatch.setattr(vacuum, "_LEAST_PAUSE_S", 0.1)
    monkeypatch.setattr(vacuum, "_COUNTED_S", 0.1)
    worker = make_worker(concurrency=100)

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    holder = await asyncpg.connect(dsn)
    with capture_logs() as logs:
        async with worker:
            async with holder.transaction(isolation="repeatable_read"):
                await holder.fetchval("SELECT 1")
                for _ in range(3):
                    await connection.execute("INSERT INTO notifyworker.runs (kind) SELECT 'a' FROM generate_series(1, 2000)")
                    await eventually(lambda: is_empty(connection))
                await eventually(lambda: worker._conductor.vacuum.is_held_up)
                assert (await settled(connection, await insert(connection, "a")))["state"] == "completed"
                assert worker._conductor.health() == []
            await eventually(lambda: not worker._conductor.vacuum.is_held_up)
    await holder.close()
    (told,) = [entry for entry in logs if entry["event"] == "vacuum_frees_nothing"]
    assert "old snapshot" in told["hint"]


# Space.


@contextlib.asynccontextmanager
async def small_files(cluster: Cluster) -> AsyncIterator[Callable[[], None]]:
    """No file may grow beyond 17 MB: above what a segment of WAL has, so that tables alone are hurt. Yields what ends it."""
    if shutil.which("prlimit") is None:
        pytest.skip("prlimit is not installed")

    def limit(size: str) -> None:
        for process in processes(cluster.data):
            with contextlib.suppress(subprocess.CalledProcessError):  # it has ended meanwhile
                subprocess.run(
                    ["prlimit", f"--fsize={size}:", "--pid", str(process.pid)], check=True, cwd="/", **server_account()
                )

    limit(str(17 * 2**20))
    yield lambda: limit("unlimited")


@contextlib.asynccontextmanager
async def small_disk(cluster: Cluster) -> AsyncIterator[Callable[[], None]]:
    """The history lies on a file system of 8 MB. Yields what makes it larger."""
    place = cluster.directory / "disk"
    place.mkdir()
    account = server_account()
    owner = f",uid={account['user']},gid={account['group']},mode=700" if account else ""
    mount = ["mount", "-t", "tmpfs", "-o", f"size=8m{owner}", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    conn = await asyncpg.connect(cluster.dsn)
    await conn.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
    parts = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'notifyworker.run_history'::regclass"
    for (partition,) in await conn.fetch(parts):
        await conn.execute(f"ALTER TABLE {partition} SET TABLESPACE small")
    await conn.close()
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=200m", str(place)], check=True) and None
    finally:
        await cluster.stop("immediate")
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("full", [small_files, pytest.param(small_disk, marks=pytest.mark.slow)])
async def test_outcomes_for_which_there_is_no_room_are_kept_until_there_is(cluster, full):
    worker = Worker(cluster.dsn, poll_interval_s=0.5, concurrency=4)
    starts: Counter[UUID] = Counter()

    @worker.handler("large")
    async def large(run: Run) -> str:
        starts[run.run_id] += 1
        return secrets.token_hex(500_000)

    conn = await asyncpg.connect(cluster.dsn)
    with capture_logs() as logs:
        async with full(cluster) as make_room, worker:
            ids = [await insert(conn, "large") for _ in range(40)]
            await eventually(lambda: any("could not extend" in reason for reason in worker._conductor.health()))
            errors = worker._conductor.metrics.database_errors.labels("settle")._value
            failed, began = errors.get(), asyncio.get_running_loop().time()
            await eventually(lambda: errors.get() > failed + 3)
            assert asyncio.get_running_loop().time() - began > 0.1  # no tight retry
            assert "outcomes could not be written" in worker._conductor.health()[0]
            assert not await is_empty(conn)
            make_room()
            for run_id in ids:
                assert (await settled(conn, run_id))["state"] == "completed"
            await eventually(lambda: worker._conductor.health() == [])
    conn.terminate()
    assert set(starts.values()) == {1}
    assert len([entry for entry in logs if entry["event"] == "settle_failed"]) == 1
