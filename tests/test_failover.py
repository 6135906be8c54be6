"""A standby is promoted, hosts vanish, names move: work goes on where writes are taken, and nothing that was replicated is lost."""

# ruff: noqa: F811 - fixtures of test_faults are asked for by their names

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Self
from uuid import UUID

import aiohttp
import asyncpg
import pytest
from servers import Cluster, eventually, processes
from test_faults import all_run, cluster  # noqa: F401 - a fixture
from test_life import insert, is_empty, settled

from notifyworker import Client, Retry, Run, Worker, hosts
from notifyworker.migrate import migrate


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Cluster, Cluster]]:
    """A primary, and a standby to which every commit goes synchronously."""
    async with Cluster(conf="wal_keep_size = 256MB") as primary:
        await migrate(primary.dsn, "notifyworker")
        async with Cluster(standby_of=primary) as standby:
            await primary.conf(f"synchronous_standby_names = 's{standby.port}'")
            await primary.reload()
            conn = await asyncpg.connect(primary.dsn)
            await eventually(lambda: conn.fetchval("SELECT count(*) > 0 FROM pg_stat_replication WHERE sync_state = 'sync'"))
            await conn.close()
            yield primary, standby


def either(one: Cluster, other: Cluster) -> str:
    return f"postgresql://postgres@127.0.0.1:{one.port},127.0.0.1:{other.port}/postgres?target_session_attrs=read-write"


def noting(dsn: str, **settings: Any) -> tuple[Worker, Counter[UUID]]:
    worker = Worker(dsn, **{"poll_interval_s": 60, "concurrency": 20, **settings})
    starts: Counter[UUID] = Counter()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        starts[run.run_id] += 1
        await asyncio.sleep(0.01)

    return worker, starts


async def produce(dsn: str, acknowledged: list[UUID]) -> None:
    """Insert until cancelled, through whatever happens; an insert without an answer is not counted, though it may be there."""
    while True:
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            conn = await asyncpg.connect(dsn, timeout=2)
            try:
                while True:
                    acknowledged.append(await insert(conn, "a"))
            finally:
                conn.terminate()
        await asyncio.sleep(0.05)


async def sessions_of_ours(cluster: Cluster) -> int:
    conn = await asyncpg.connect(cluster.dsn)
    try:
        return await conn.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'notifyworker%'")
    finally:
        await conn.close()


async def test_a_promoted_standby_is_worked_on_within_5_s_and_nothing_acknowledged_is_lost(pair):
    primary, standby = pair
    dsn = either(primary, standby)
    worker, starts = noting(dsn)
    acknowledged: list[UUID] = []
    async with worker:
        producer = asyncio.create_task(produce(dsn, acknowledged))
        await eventually(lambda: len(starts) > 100)
        await primary.stop("immediate")
        await standby.promote()
        promoted_at = time.monotonic()

        conn = await asyncpg.connect(standby.dsn)
        run = await settled(conn, await insert(conn, "a"))
        await eventually(lambda: worker._conductor.leader.mode in {"armed", "coalesced"})
        await eventually(lambda: worker._conductor.listener.is_hearing and worker._conductor.health() == [])
        took_s = time.monotonic() - promoted_at
        before = len(acknowledged)
        await eventually(lambda: len(acknowledged) > before + 100)

        # The old one is back, first in the DSN, and takes no writes.
        back = Cluster(standby_of=standby)
        back.port = primary.port
        async with back:
            ours = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'notifyworker%'"
            await conn.execute(ours)
            assert (await settled(conn, await insert(conn, "a")))["state"] == "completed"
            await eventually(lambda: worker._conductor.leader.mode in {"armed", "coalesced"})
            assert await sessions_of_ours(back) == 0

        producer.cancel()
        await asyncio.gather(producer, return_exceptions=True)
        await eventually(lambda: is_empty(conn))
    settles = Counter(row["run_id"] for row in await conn.fetch("SELECT run_id FROM notifyworker.run_history"))
    taken = await conn.fetchval("SELECT count(*) FROM notifyworker.reaps")
    await conn.close()

    assert run["state"] == "completed"
    assert took_s < 5
    assert set(acknowledged) - settles.keys() == set()  # nothing is lost
    assert set(settles.values()) == {1}
    assert taken == 0


@pytest.mark.slow
async def test_a_primary_that_falls_silent_is_left_for_the_promoted_one(pair):
    """A host that vanishes says nothing: each session has to find out by its own deadline, and the next must not wait for it."""
    primary, standby = pair
    worker, _ = noting(either(primary, standby))
    async with worker:
        await eventually(lambda: worker._conductor.leader.mode == "armed")
        frozen = processes(primary.data)
        for process in frozen:
            process.suspend()
        await standby.promote()
        conn = await asyncpg.connect(standby.dsn)
        await conn.execute("ALTER SYSTEM RESET synchronous_standby_names")
        run_id = await insert(conn, "a")
        await eventually(lambda: worker._conductor.listener.is_hearing and worker._conductor.leader.is_leading)
        assert (await settled(conn, run_id))["state"] == "completed"
        await eventually(lambda: worker._conductor.health() == [])
        assert (await settled(conn, await insert(conn, "a")))["state"] == "completed"
        await conn.close()
    for process in frozen:
        process.resume()


async def test_the_page_reads_from_a_replica_and_acts_on_the_primary(pair):
    primary, standby = pair
    worker, _ = noting(primary.dsn, sidecar=True, port=0, read_dsn=standby.dsn)
    conn = await asyncpg.connect(primary.dsn)
    async with worker, aiohttp.ClientSession(headers={"Accept": "text/html"}) as session:
        run_id = await insert(conn, "nobody's")

        async def is_listed() -> bool:
            async with session.get(f"{worker.url}/runs") as answer:
                assert answer.status == 200
                return str(run_id) in await answer.text()

        await eventually(is_listed)
        pages = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'notifyworker page'"
        assert await conn.fetchval(pages) == 0
        there = await asyncpg.connect(standby.dsn)
        assert await there.fetchval(pages) > 0
        await there.close()
        async with session.post(f"{worker.url}/runs/{run_id}/cancel", headers={"Accept": "application/json"}) as answer:
            assert answer.status == 200
    await conn.close()


@pytest.mark.slow
async def test_of_two_primaries_each_executes_what_it_has(pair):
    """What docs/failover.md says the fence can't do: it is a number in one database, and here are two."""
    old, new = pair
    conn = await asyncpg.connect(old.dsn)
    run_id = await insert(conn, "a")
    await new.promote()  # and nobody has stopped the old one
    await old.conf("synchronous_standby_names = ''")
    await old.reload()
    started = 0
    tokens = set()
    for server in (old, new):
        worker, starts = noting(server.dsn)
        there = await asyncpg.connect(server.dsn)
        async with worker:
            run = await settled(there, run_id)
        await there.close()
        started += starts[run_id]
        tokens.add((run["state"], run["lease_token"]))
    await conn.close()

    assert started == 2
    assert tokens == {("completed", 1)}


@contextlib.asynccontextmanager
async def silent_host() -> AsyncIterator[int]:
    """A port that takes connections and never says a word."""

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def test_a_silent_host_holds_up_neither_start_nor_work(cluster):
    async with silent_host() as port:
        worker, _ = noting(f"postgresql://postgres@127.0.0.1:{port},127.0.0.1:{cluster.port}/postgres")
        conn = await asyncpg.connect(cluster.dsn)
        async with worker:
            assert (await settled(conn, await insert(conn, "a")))["state"] == "completed"
            await eventually(lambda: worker._conductor.leader.mode == "armed")
            assert worker._conductor.health() == []
        await conn.close()


class Name:
    """A host name that can be moved from one server to another, as in DNS: sessions that there are stay where they are."""

    def __init__(self) -> None:
        self.target = 0
        self.port = 0
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, to_writer}
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(self._pump(reader, to_writer), self._pump(to_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


@pytest.mark.slow
async def test_producers_and_handlers_leave_a_server_that_takes_no_writes(pair):
    primary, standby = pair
    async with Name() as name:
        name.target = primary.port
        dsn = f"postgresql://postgres@127.0.0.1:{name.port}/postgres"
        worker = Worker(dsn, poll_interval_s=0.2)
        go_on = asyncio.Event()
        refused = asyncio.Event()

        @worker.handler("writes", retry=Retry(base_s=0.01, max_attempts=2))
        async def writes(run: Run) -> None:
            await go_on.wait()
            try:
                async with run.transaction() as connection:
                    await connection.execute("INSERT INTO written VALUES ($1)", run.run_id)
            except asyncpg.ReadOnlySQLTransactionError:
                refused.set()
                raise

        conn = await asyncpg.connect(primary.dsn)
        await conn.execute("CREATE TABLE written (run_id uuid)")
        async with worker, Client(dsn) as client:
            run_id = await client.enqueue("writes")
            await eventually(lambda: all_run(conn, [run_id]))
            name.target = standby.port
            name.cut()
            await eventually(lambda: _is_refused(client))
            go_on.set()
            await refused.wait()

            name.target = primary.port  # and nobody cuts what goes to the standby
            other = await client.enqueue("writes")
            for settled_id in (run_id, other):
                assert (await settled(conn, settled_id))["state"] == "completed"
        assert await conn.fetchval("SELECT count(*) FROM written") == 2
        await conn.close()


async def _is_refused(client: Client) -> bool:
    try:
        await client.enqueue("nobody's")
    except asyncpg.ReadOnlySQLTransactionError:
        return True
    except (asyncpg.PostgresConnectionError, asyncpg.InterfaceError):
        return False  # it was cut
    return False


async def test_sessions_on_a_server_that_takes_no_writes_lead_nothing_and_are_left(pair):
    """A name that leads to the standby for a while, as after a fail-over: its sessions are healthy, and of no use."""
    primary, standby = pair
    async with Name() as name:
        name.target = primary.port
        worker, _ = noting(f"postgresql://postgres@127.0.0.1:{name.port}/postgres", poll_interval_s=0.2)
        conn = await asyncpg.connect(primary.dsn)
        async with worker:
            await settled(conn, await insert(conn, "a"))
            name.target = standby.port
            name.cut()
            cut_at = time.monotonic()
            await eventually(lambda: any("read-only" in reason for reason in worker._conductor.health()))
            await eventually(lambda: sessions_of_ours(standby))
            run_id = await insert(conn, "a")
            await eventually(lambda: not worker._conductor.leader.is_leading)
            for _ in range(5):
                assert not worker._conductor.leader.is_leading
                failures = worker._conductor.metrics.reconnects.labels("gate")._value.get()
                await eventually(lambda n=failures: worker._conductor.metrics.reconnects.labels("gate")._value.get() > n)

            tries = worker._conductor.metrics.heartbeats.labels("failed")._value.get()
            assert tries < 10 + 4 * (time.monotonic() - cut_at)  # with pauses, however healthy the connection looks

            name.target = primary.port  # and nobody cuts what goes to the standby
            assert (await settled(conn, run_id))["state"] == "completed"
            await eventually(lambda: worker._conductor.leader.mode == "armed")
            await eventually(lambda: worker._conductor.listener.is_hearing and worker._conductor.health() == [])
            assert await sessions_of_ours(standby) == 0
        await conn.close()


@pytest.mark.parametrize(
    ("dsn", "hosts_of_it"),
    [
        ("postgresql://u:p,w@h1:1,h2/db?sslmode=require", ["u:p,w@h1:1", "u:p,w@h2"]),  # no [::1]: Python takes it for a mistake
        ("postgresql://h1/db", ["h1"]),
        ("postgresql://u:a,b@h/db", ["u:a,b@h"]),
        ("postgresql://u@/db?host=h1,h2&port=1,2&sslmode=require", ["u@h1:1", "u@h2:2"]),
        ("postgresql:///db?host=h1,h2&port=3", ["h1:3", "h2:3"]),
        ("postgresql:///db?host=h1,h2", ["h1", "h2"]),
        ("postgresql://h1,h2/db?port=3", None),  # what belongs to which host is asyncpg's to say
        ("postgresql:///db?host=/run/a,/run/b", None),
        ("postgresql:///db?host=h1", None),
        ("postgresql://[::1/db", None),
    ],
)
def test_a_dsn_is_taken_apart_into_its_hosts(dsn, hosts_of_it):
    rest = "?sslmode=require" if "sslmode" in dsn else ""
    whole = [dsn] if hosts_of_it is None else [f"postgresql://{host}/db{rest}" for host in hosts_of_it]
    assert hosts.each(dsn) == whole


class Opened:
    def __init__(self) -> None:
        self.is_ended = False

    def terminate(self) -> None:
        self.is_ended = True


async def test_of_two_that_open_at_once_one_is_taken_and_the_other_ended(monkeypatch):
    monkeypatch.setattr(hosts, "SILENT_S", 0)
    made: dict[str, Opened] = {}
    both = asyncio.Event()

    async def open_it(dsn: str) -> Opened:
        made[dsn] = Opened()
        if len(made) == 2:
            both.set()
        await both.wait()
        return made[dsn]

    taken = await hosts.first(["a", "b"], open_it)

    assert sorted(opened.is_ended for opened in made.values()) == [False, True]
    assert not taken.is_ended


async def test_if_no_host_will_do_the_last_ones_error_is_told():
    async def refuse(dsn: str) -> Opened:
        raise OSError(dsn)

    with pytest.raises(OSError, match="b"):
        await hosts.first(["a", "b"], refuse)
