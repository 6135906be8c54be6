"""
Behind a transaction pooler: workers go on by polling and say so, and leave nothing of theirs on its connections.

Where pgbouncer is not installed these are skipped. Its own defaults, but for few server connections that all share.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import aiohttp
import asyncpg
import pytest
from servers import SURELY_S, eventually, free_port, scratch_directory
from structlog.testing import capture_logs
from test_cli import APP, call, start
from test_cli_looks import Lines
from test_life import insert, run_of, settled

from notifyworker import Client, Run, Worker, leader, wake
from notifyworker.database import _SESSION
from notifyworker.doctor import Verdict, examine
from notifyworker.embedded import server_account
from notifyworker.settings import Settings

SERVER_CONNECTIONS = 3
PGBOUNCER = shutil.which("pgbouncer", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin")))
pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")


@contextlib.asynccontextmanager
async def pooler(dsn: str, **settings: str | int) -> AsyncIterator[str]:
    """Start pgbouncer in front of this database, and yield the DSN that goes through it."""
    assert PGBOUNCER is not None
    at = urlsplit(dsn)
    server = {"host": at.hostname or parse_qs(at.query)["host"][0], "port": at.port or 5432, "user": at.username}
    if at.password:
        server["password"] = unquote(at.password)
    options = {
        "listen_addr": "127.0.0.1", "listen_port": free_port(), "unix_socket_dir": "", "auth_type": "any",
        "pool_mode": "transaction", "default_pool_size": SERVER_CONNECTIONS, **settings,
    }  # fmt: skip
    with scratch_directory() as directory:
        file = directory / "pgbouncer.ini"
        lines = ["[databases]", "* = " + " ".join(f"{name}={value}" for name, value in server.items()), "[pgbouncer]"]
        file.write_text("\n".join([*lines, *(f"{name} = {value}" for name, value in options.items()), ""]))
        with (directory / "log").open("w") as log:
            process = subprocess.Popen([PGBOUNCER, str(file)], stdout=log, stderr=log, cwd="/", **server_account())
        pooled = f"postgresql://{at.username}@127.0.0.1:{options['listen_port']}{at.path}"
        try:
            await eventually(lambda: _answers(pooled, process, directory / "log"))
            yield pooled
        finally:
            process.kill()
            await asyncio.to_thread(process.wait)


async def _answers(dsn: str, process: "subprocess.Popen[bytes]", log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        conn = await asyncpg.connect(dsn, statement_cache_size=0, timeout=5)
    except OSError:
        return False
    await conn.close()
    return True


@pytest.fixture
async def pooled(dsn: str) -> AsyncIterator[str]:
    async with pooler(dsn) as pooled:
        yield pooled


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again each minute is tried all the time."""
    monkeypatch.setattr(wake, "DEAF_RETRY_S", 0.05)
    monkeypatch.setattr(leader, "_NO_SESSION_LOCKS_S", 0.05)


def echoing(dsn: str, **settings: Any) -> Worker:
    worker = Worker(dsn, **{"poll_interval_s": 0.2, "drain_timeout_s": 5, **settings})

    @worker.handler("a")
    async def handle(run: Run, payload: dict) -> dict:
        return payload

    return worker


async def left_behind(pooled: str) -> list[dict[str, Any]]:
    """What stays on the pooler's server connections: of all of them, since each is held while the others are asked."""
    clients = [await asyncpg.connect(pooled, statement_cache_size=0) for _ in range(SERVER_CONNECTIONS)]
    query = """
        SELECT pg_backend_pid() AS pid,
               array(SELECT pg_listening_channels()) AS channels,
               array(SELECT name FROM pg_prepared_statements WHERE name <> '') AS statements,
               array(SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) AS locks,
               array(SELECT name || '=' || setting FROM pg_settings
                      WHERE source = 'session' AND setting <> reset_val AND name <> 'application_name') AS settings"""
    try:
        async with contextlib.AsyncExitStack() as held:
            for client in clients:
                await held.enter_async_context(client.transaction())
            found = [dict(await client.fetchrow(query)) for client in clients]
    finally:
        for client in clients:
            client.terminate()
    assert len({each.pop("pid") for each in found}) == SERVER_CONNECTIONS
    return [each for each in found if any(each.values())]


async def busy(pooled: str, connection: asyncpg.Connection, **settings: Any) -> None:
    """A worker's life through the pooler: idle, executing for many heartbeats and pings, and at its end."""
    worker = Worker(
        pooled, poll_interval_s=0.1, lease_s=3, heartbeat_interval_s=0.3, presence_ping_s=0.1, concurrency=20, **settings
    )
    go_on = asyncio.Event()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        await go_on.wait()

    async with worker:
        ids = [await insert(connection, "a") for _ in range(20)]
        renewals = (
            "SELECT count(DISTINCT lease_expires_at) FROM notifyworker.runs WHERE state = 'running' AND lease_owner IS NOT NULL"
        )
        seen = set()

        async def renewed() -> bool:
            seen.add(await connection.fetchval("SELECT max(lease_expires_at) FROM notifyworker.runs"))
            return len(seen) > 5 and await connection.fetchval(renewals) > 0

        await eventually(renewed)
        go_on.set()
        for run_id in ids:
            assert (await settled(connection, run_id))["state"] == "completed"


async def test_a_worker_goes_on_by_polling_and_says_so_once(pooled, connection, impatient):
    with capture_logs() as logs:
        worker = echoing(pooled, sidecar=True, port=0)
        async with worker, aiohttp.ClientSession() as session:
            for _ in range(3):
                assert (await settled(connection, await insert(connection, "a", '{"x": 1}')))["result"] == '{"x": 1}'
            listeners = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'notifyworker%'"
            assert await connection.fetchval(listeners) <= SERVER_CONNECTIONS
            await eventually(worker._conductor.restrictions)
            async with session.get(f"{worker.url}/healthz") as answer:
                told = await answer.json()
                assert (answer.status, told["status"]) == (200, "ok")
                assert "by polling, each 0.2 s; listen_dsn" in told["reasons"][0]
            async with session.get(f"{worker.url}/metrics") as answer:
                assert "notifyworker_listening 0.0" in await answer.text()
            async with session.get(f"{worker.url}/workers") as answer:
                (row,) = (await answer.json())["workers"]
            async with session.get(f"{worker.url}/runs?kind=a") as answer:
                assert len((await answer.json())["runs"]) == 3

    assert (row["presence"], row["is_leader"], row["is_present"]) == (False, None, None)
    (told,) = [entry for entry in logs if entry["log_level"] in {"warning", "error", "critical"}]
    assert told["event"] == "listen_is_deaf"
    assert "listen_dsn" in told["hint"]
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.workers") == 0  # it said goodbye


@pytest.mark.parametrize("settings", [{}, {"server_round_robin": 1}], ids=["last used first", "round robin"])
async def test_nothing_of_a_worker_stays_on_the_poolers_connections(dsn, connection, impatient, settings):
    async with pooler(dsn, **settings) as pooled:
        await busy(pooled, connection)
        assert await left_behind(pooled) == []


async def test_nothing_of_a_worker_stays_where_the_pooler_swallows_startup_parameters(dsn, connection, impatient):
    async with pooler(dsn, ignore_startup_parameters=",".join(_SESSION)) as pooled:
        await busy(pooled, connection)
        assert await left_behind(pooled) == []


async def test_runs_of_the_dead_are_reaped_by_workers_that_are_all_behind_the_pooler(pooled, connection, impatient):
    await connection.execute("UPDATE notifyworker.settings SET value = '0.3' WHERE name = 'reaper_interval_s'")
    dead = "UPDATE notifyworker.runs SET state = 'running', attempt = 1, max_attempts = 3, lease_token = 1, lease_owner = 'dead', started_at = now(), lease_expires_at = now()"
    with capture_logs() as logs:
        async with echoing(pooled) as one, echoing(pooled) as other:
            await eventually(lambda: not any(worker._conductor.reaper.may_lead() for worker in (one, other)))
            before = len(logs)  # until they know that they are deaf they may wonder where their leader is
            for _ in range(3):
                run_id = await insert(connection, "a", run_at=await connection.fetchval("SELECT now() + interval '1 hour'"))
                await connection.execute(f"{dead}, run_at = now() WHERE run_id = $1", run_id)
                run = await settled(connection, run_id)
                assert (run["attempt"], run["state"]) == (2, "completed")
            assert one._conductor.health() == other._conductor.health() == []

            async def told() -> str | None:
                status = (await call("status", env={"NOTIFYWORKER_DSN": pooled})).out
                return status if "3 taken over" in status else None

            status = await eventually(told)  # a pass is noted after what it has done

    assert "none" in status.splitlines()[2]
    alone = {"reaps_without_leader", "leader_does_not_reap"}
    assert 1 <= len([entry for entry in logs if entry["event"] in alone]) <= 2  # once a worker
    assert [entry for entry in logs[before:] if entry["event"] == "leader_does_not_reap"] == []


async def test_with_a_direct_listen_dsn_a_worker_works_in_full(dsn, pooled, connection):
    async with echoing(pooled, listen_dsn=dsn, poll_interval_s=60) as worker:
        await eventually(lambda: worker._conductor.leader.mode == "armed")
        for _ in range(3):
            assert (await settled(connection, await insert(connection, "a")))["state"] == "completed"
        row = await connection.fetchrow("SELECT presence, lease_owner FROM notifyworker.workers")
        assert row["presence"]
        reaper = "SELECT leader FROM notifyworker.reaper WHERE last_pass_at IS NOT NULL"
        assert await eventually(lambda: connection.fetchval(reaper)) == row["lease_owner"]
    assert await left_behind(pooled) == []


async def test_a_worker_behind_the_pooler_keeps_its_runs_beside_a_leader(dsn, pooled, connection, impatient):
    worker = Worker(pooled, poll_interval_s=0.1, lease_s=3, heartbeat_interval_s=0.3, presence_ping_s=0.1, presumed_dead_s=7)
    go_on = asyncio.Event()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        await go_on.wait()

    direct = Worker(dsn, poll_interval_s=60)

    @direct.handler("b")
    async def other(run: Run) -> None: ...

    async with direct, worker:
        run_id = await insert(connection, "a")
        await eventually(lambda: direct._conductor.leader.mode == "armed")
        lease = "SELECT lease_expires_at > started_at + interval '8 s' FROM notifyworker.runs WHERE run_id = $1"
        await eventually(lambda: connection.fetchval(lease, run_id))
        go_on.set()
        assert (await settled(connection, run_id))["attempt"] == 1
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.reaps") == 0


async def test_a_session_pooler_can_be_listened_through(dsn, connection):
    async with pooler(dsn, pool_mode="session", default_pool_size=20) as pooled, echoing(pooled, poll_interval_s=60) as worker:
        await eventually(lambda: worker._conductor.listener.is_hearing)
        assert (await settled(connection, await insert(connection, "a")))["state"] == "completed"


async def test_producers_through_the_pooler_wake_workers_that_listen(dsn, pooled):
    producer = await asyncpg.connect(pooled, statement_cache_size=0)
    async with echoing(dsn, poll_interval_s=60) as worker, Client(pooled) as client:
        await eventually(lambda: worker._conductor.leader.mode == "armed")
        async with producer.transaction():
            first = await insert(producer, "a", '{"n": 1}')
        assert (await settled(producer, first))["state"] == "completed"

        second = await client.enqueue("a", {"n": 2}, idempotency_key="k")
        many = await client.enqueue_many("a", [{"n": n} for n in range(2500)])
        assert (await client.wait(second, timeout=SURELY_S))["result"] == {"n": 2}
        assert [(await client.wait(run_id, timeout=SURELY_S))["state"] for run_id in many[::500]] == ["completed"] * 5
        assert len(await client.list(kind="a", limit=500)) == 500
        assert await client.retry(first) == first
        later = await client.enqueue("a", run_at="2999-01-01T00:00:00Z")
        assert await client.cancel(later) == "cancelled"
    await producer.close()
    assert await left_behind(pooled) == []


async def test_many_clients_share_few_connections(pooled):
    async def produce() -> None:
        async with Client(pooled) as client:
            for n in range(20):
                run_id = await client.enqueue("a", {"n": n}, timeout=1, headers={"n": "1"})
                assert (await client.get(run_id))["payload"] == {"n": n}
                await client.enqueue_many("a", [{"n": n}] * 3, max_attempts=2)

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(produce())
    assert await left_behind(pooled) == []


async def test_the_commands_work_through_the_pooler(tmp_path, empty_dsn):
    (tmp_path / "app.py").write_text(APP)
    async with pooler(empty_dsn) as pooled:
        env = {"NOTIFYWORKER_DSN": pooled}
        for said in ("is at version", "is already at version"):
            assert said in (await call("migrate", env=env)).out
        assert (await call("config", "set", "reaper_interval_s", "30", env=env)).code == 0
        run_id = (await call("enqueue", "echo", '{"x": 1}', "--json", env=env)).json()["run_id"]
        conn = await asyncpg.connect(empty_dsn)
        worker = await start("worker", "app:worker", "--port", "0", "--poll-interval-s", "0.2", cwd=tmp_path, env=env)
        try:
            assert (await settled(conn, run_id))["state"] == "completed"
            status = (await call("status", "--json", env=env)).json()
            assert [(w["pid"], w["presence"], w["is_present"]) for w in status["workers"]] == [(worker.pid, False, None)]
            said = await Lines(worker).until("listen_is_deaf", "stderr")
        finally:
            worker.terminate()
            _, err = await worker.communicate()
        assert worker.returncode == 0
        assert (said + err.decode()).count("listen_is_deaf") == 1
        assert [r["run_id"] for r in (await call("runs", "list", "--json", env=env)).json()["runs"]] == [run_id]
        assert (await call("runs", "show", run_id, env=env)).code == 0
        assert (await call("runs", "retry", run_id, env=env)).code == 0
        assert (await call("runs", "cancel", run_id, env=env)).code == 0
        assert (await run_of(conn, run_id))["state"] == "cancelled"
        await conn.close()
        assert await left_behind(pooled) == []
        assert "removed" in (await call("migrate", "--remove", "--yes", env=env)).out


async def test_server_connections_that_producers_keep_are_waited_for_and_told(dsn, connection):
    """Transactions left open hold all that the pooler has: it refuses the worker after a while, and closes its connections."""
    async with pooler(dsn, query_wait_timeout=1) as pooled, echoing(pooled) as worker:
        assert (await settled(connection, await insert(connection, "a")))["state"] == "completed"
        producers = [await asyncpg.connect(pooled, statement_cache_size=0) for _ in range(SERVER_CONNECTIONS)]
        open_transactions = [producer.transaction() for producer in producers]
        for producer, transaction in zip(producers, open_transactions, strict=True):
            await transaction.start()
            await producer.execute("SELECT 1")
        run_id = await insert(connection, "a")
        await eventually(lambda: any("no run could be claimed" in reason for reason in worker._conductor.health()))
        assert "query_wait_timeout" in worker._conductor.health()[0]
        for transaction in open_transactions:
            await transaction.rollback()
        assert (await settled(connection, run_id))["attempt"] == 1
        await eventually(lambda: worker._conductor.health() == [])
        for producer in producers:
            producer.terminate()


async def test_a_pooler_that_is_gone_for_a_while_costs_no_run(dsn, connection):
    port = free_port()
    async with contextlib.AsyncExitStack() as ends:
        async with pooler(dsn, listen_port=port) as pooled:
            worker = await ends.enter_async_context(echoing(pooled))
            assert (await settled(connection, await insert(connection, "a")))["state"] == "completed"
        await eventually(worker._conductor.health)
        ids = [await insert(connection, "a") for _ in range(5)]
        async with pooler(dsn, listen_port=port):
            for run_id in ids:
                assert (await settled(connection, run_id))["attempt"] == 1
            await eventually(lambda: worker._conductor.health() == [])
            await ends.aclose()


async def test_the_doctor_sees_the_pooler_and_leaves_nothing_on_it(dsn, pooled):
    found = {finding.name: finding for finding in await examine(Settings.load(command_line={"dsn": pooled}))}
    assert found["notify"].verdict is Verdict.WARNING
    assert "NOTIFYWORKER_LISTEN_DSN" in found["notify"].todo
    assert {f.name for f in found.values() if f.verdict is not Verdict.OK} == {"notify", "leader", "workers"}
    assert await left_behind(pooled) == []
    direct = await examine(Settings.load(command_line={"dsn": pooled, "listen_dsn": dsn}))
    assert [f.verdict for f in direct if f.name == "notify"] == [Verdict.OK]
