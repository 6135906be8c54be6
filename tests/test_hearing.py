"""Servers that speak PostgreSQL's protocol and lack what waking is built on: told once, and runs are found by polling."""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from chaos.proxy import Proxy
from chaos.thread import ProxyThread
from servers import eventually
from structlog.testing import capture_logs
from test_life import insert, settled

from notifyworker import Run, Worker, hearing, leader, wake


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again each minute is tried all the time."""
    monkeypatch.setattr(wake, "DEAF_RETRY_S", 0.05)
    monkeypatch.setattr(leader, "_NO_SESSION_LOCKS_S", 0.05)


def echoing(dsn: str, **settings: Any) -> Worker:
    worker = Worker(dsn, **{"poll_interval_s": 0.1, **settings})

    @worker.handler("a")
    async def handle(run: Run) -> None:
        pass

    return worker


@pytest.fixture
async def deaf_dsn(dsn: str) -> AsyncIterator[str]:
    """The way to a server that takes LISTEN and delivers nothing."""
    thread = ProxyThread()
    at = urlsplit(dsn)
    given = parse_qs(at.query)
    server = at.port or f"{given['host'][0]}/.s.PGSQL.{given.get('port', ['5432'])[0]}"
    proxy = await Proxy("deaf", thread, server).start()
    proxy.drops_notifications = True
    yield f"postgresql://postgres@127.0.0.1:{proxy.port}{at.path}"
    await proxy.stop()
    thread.stop()


@pytest.mark.listens
async def test_what_is_never_delivered_is_noticed_told_once_and_found_by_polling(deaf_dsn, connection):
    worker = echoing(deaf_dsn)
    with capture_logs() as logs:
        async with worker:
            await eventually(worker._conductor.restrictions)
            assert (await settled(connection, await insert(connection, "a")))["state"] == "completed"
            failures = worker._conductor.metrics.reconnects.labels("listener")._value.get()
            await eventually(lambda: worker._conductor.leader.mode == "armed")  # locks are as good as ever
            assert worker._conductor.health() == []
            assert worker._conductor.restrictions() == [
                "this server takes LISTEN, and delivers nothing: runs are found by polling, each 0.1 s"
            ]
    told = [line for line in logs if line["event"] == "listen_is_deaf"]
    assert len(told) == 1
    assert failures == 0


async def test_a_server_without_listen_is_no_error(dsn):
    class Refusing:
        def get_server_pid(self) -> int:
            return 1

        async def execute(self, *_: object, **__: object) -> str:
            return "SELECT 1"

        async def add_listener(self, *_: object) -> None:
            message = "unimplemented: LISTEN"
            raise asyncpg.FeatureNotSupportedError(message)

    why = await hearing.why_deaf(dsn, schema="notifyworker", listener=Refusing())
    assert why == "this server has no LISTEN: unimplemented: LISTEN"


async def test_a_connection_that_is_ended_meanwhile_is_not_taken_for_deaf(dsn):
    listener = await asyncpg.connect(dsn)
    stranger = await asyncpg.connect(dsn)

    class Ending:
        """Notifies nobody, and has the listener ended."""

        async def execute(self, *_: object, **__: object) -> None:
            await stranger.fetchval("SELECT pg_terminate_backend($1)", listener.get_server_pid())

    with pytest.raises(asyncpg.InterfaceError, match="closed"):
        await hearing.hears(listener, Ending(), "channel")
    await stranger.close()


async def test_nobody_leads_where_locks_do_not_hold(dsn, connection):
    async with connection.transaction():
        await connection.execute("SET LOCAL allow_system_table_mods = on")
        await connection.execute(
            "CREATE OR REPLACE FUNCTION pg_catalog.pg_try_advisory_lock(int, int) RETURNS boolean LANGUAGE sql AS 'SELECT true'"
        )
    workers = [echoing(dsn), echoing(dsn)]
    with capture_logs() as logs:
        async with workers[0], workers[1]:
            await eventually(lambda: all(w._conductor.restrictions() for w in workers))
            assert (await settled(connection, await insert(connection, "a")))["state"] == "completed"
            assert not any(worker._conductor.leader.is_leading for worker in workers)
            assert "nobody leads" in workers[0]._conductor.restrictions()[-1]
    assert [line["event"] for line in logs].count("locks_do_not_hold") == 2


async def test_a_trigger_that_is_disabled_is_told_and_runs_are_found(dsn, connection):
    await connection.execute("ALTER TABLE notifyworker.runs DISABLE TRIGGER wake")
    worker = echoing(dsn)
    with capture_logs() as logs:
        async with worker:
            assert (await settled(connection, await insert(connection, "a")))["state"] == "completed"
            assert "the trigger that wakes is disabled" in worker._conductor.restrictions()[-1]
    assert [line["event"] for line in logs].count("inserts_wake_nobody") == 1


async def test_listen_off_takes_no_connection_for_it(dsn, connection):
    worker = echoing(dsn, listen=False)
    async with worker:
        assert (await settled(connection, await insert(connection, "a")))["state"] == "completed"
        listening = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'notifyworker listener' AND datname = current_database()"
        assert await connection.fetchval(listening) == 0
        assert worker._conductor.restrictions() == ["listen is off: runs are found by polling, each 0.1 s"]
        assert worker._conductor.health() == []
