"""A place where something is hurt: a database, a fleet in front of it, a ledger, and a look at what became of it all."""

import asyncio
import contextlib
import json
import os
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import asyncpg
from servers import Cluster, eventually

import notifyworker
from chaos.check import judge
from chaos.fleet import Fleet, Member
from chaos.forms import Form
from chaos.ledger import Entry, Ledger, Reader
from chaos.thread import ProxyThread
from chaos.witness import Lease, Settle, Verdict, Witness
from notifyworker.database import DatabaseError
from notifyworker.migrate import migrate

#: Triggers that bear witness, in the very transactions of the system under test, where it never looks.
WITNESSES = """
CREATE SCHEMA chaos;
CREATE TABLE chaos.inserted (run_id uuid, parent_id uuid);
CREATE TABLE chaos.leased (run_id uuid, lease_token bigint, lease_owner text, attempt int, max_attempts int);
CREATE TABLE chaos.settled (run_id uuid, lease_token bigint, settled_by text, kind text, state text, error_code text,
                            attempt int, result jsonb, progress jsonb);
CREATE TABLE chaos.effects (run_id uuid, lease_token bigint);
CREATE FUNCTION chaos.insert_seen() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
    'BEGIN INSERT INTO chaos.inserted SELECT NEW.run_id, NEW.parent_id WHERE NOT NEW.is_shadow; RETURN NULL; END';
CREATE FUNCTION chaos.lease_seen() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
    'BEGIN INSERT INTO chaos.leased VALUES (NEW.run_id, NEW.lease_token, NEW.lease_owner, NEW.attempt, NEW.max_attempts);
     RETURN NULL; END';
CREATE FUNCTION chaos.settle_seen() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
    'BEGIN INSERT INTO chaos.settled VALUES (NEW.run_id, NEW.lease_token, NEW.settled_by, NEW.kind, NEW.state,
                                             NEW.error_code, NEW.attempt, NEW.result, NEW.progress); RETURN NULL; END';
CREATE TRIGGER chaos_inserted AFTER INSERT ON notifyworker.runs FOR EACH ROW EXECUTE FUNCTION chaos.insert_seen();
CREATE TRIGGER chaos_leased AFTER UPDATE ON notifyworker.runs FOR EACH ROW
    WHEN (NEW.lease_token <> OLD.lease_token AND NOT NEW.is_shadow) EXECUTE FUNCTION chaos.lease_seen();
CREATE TRIGGER chaos_settled AFTER INSERT ON notifyworker.run_history FOR EACH ROW WHEN (NOT NEW.is_shadow) EXECUTE FUNCTION chaos.settle_seen();
"""
_LOGS = "SELECT run_id::text, lease_token, lines FROM notifyworker.run_logs"
CONF = "max_connections = 300\nshared_buffers = 64MB\n"


async def prepare(cluster: Cluster) -> None:
    """Migrate a server's own database, with the witnesses; arenas copy it."""
    await migrate(cluster.dsn, "notifyworker")
    connection = await asyncpg.connect(cluster.dsn)
    try:
        await connection.execute(WITNESSES)
    finally:
        await connection.close()


class Arena:
    """One place. `faults` counts what was done to it."""

    def __init__(
        self, *, name: str, form: Form, cluster: Cluster, database: str, directory: Path, thread: ProxyThread, seed: int
    ) -> None:
        self.name = name
        self.form = form
        self.cluster = cluster
        self.database = database
        self.directory = directory
        self.seed = seed
        self.random = random.Random(seed)
        (directory / "ledger").mkdir(parents=True)
        self.ledger = Ledger(directory / "ledger", "harness")
        self.reader = Reader(directory / "ledger")
        self.fleet = Fleet(database, cluster.port, thread, self.ledger)
        self.thread = thread
        self.injected = 0
        #: Sessions may be lost here while a call holds the GIL: then only the fence holds.
        self.gil_is_frozen = False
        #: Faults of many kinds come together: which code a poison run fails with is chance.
        self.is_mixed = False
        #: What a fault found to be wrong by itself.
        self.wrong: list[str] = []
        #: What it measured beside its recovery.
        self.notes: list[str] = []
        #: Where the workers' package may come from.
        self.packages = {notifyworker.__file__}
        self.drained_at = 0.0
        #: Servers beside the arena's own: they end after the verdict.
        self.servers = contextlib.AsyncExitStack()
        self._connection: asyncpg.Connection[Any] | None = None
        self._turn = asyncio.Lock()
        self._files = 0

    @property
    def dsn(self) -> str:
        """Of this arena's database, past all proxies."""
        return f"postgresql://postgres@127.0.0.1:{self.cluster.port}/{self.database}"

    # What the harness does there.

    async def fetch(self, query: str, *args: Any, within_s: float = 20) -> list[Any]:
        """Ask the database past all proxies, through restarts."""
        async with self._turn, asyncio.timeout(within_s):
            while True:
                try:
                    if self._connection is None or self._connection.is_closed():
                        self._connection = await asyncpg.connect(
                            self.dsn, timeout=5, server_settings={"application_name": "chaos"}
                        )
                    return await self._connection.fetch(query, *args)
                except DatabaseError:
                    if self._connection is not None:
                        self._connection.terminate()
                    self._connection = None
                    await asyncio.sleep(0.02)

    async def value(self, query: str, *args: Any) -> Any:
        """The first value of the first row."""
        return (await self.fetch(query, *args))[0][0]

    async def workers(self, count: int, **settings: Any) -> list[Member]:
        """Start so many, and wait until they claim."""
        members = [await self.fleet.add({**self.form.settings, **settings}) for _ in range(count)]
        for member in members:
            await self.up(member)
        return members

    async def up(self, member: Member) -> None:
        """Wait until this worker, and whoever else runs, has started and listens."""
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'notifyworker listener' AND (query LIKE 'LISTEN%' OR query LIKE '%pg_listening%')"
        )

        async def all_listen() -> bool:
            if len(member.events("worker_started")) < member.starts:
                return False
            return bool(await self.value(query) >= sum(m.is_running for m in self.fleet.members))

        await self.soon(all_listen, 40, "a worker did not start")

    async def insert(self, kind: str, count: int = 1, *, max_attempts: int = 100, **payload: Any) -> list[str]:
        """Insert runs in one statement, past all proxies."""
        ids = [str(uuid.UUID(int=self.random.getrandbits(128), version=4)) for _ in range(count)]
        self.ledger.note("try", runs=ids)
        await self.fetch(
            "INSERT INTO notifyworker.runs (run_id, kind, payload, max_attempts)"
            " SELECT id, $2, $3, $4 FROM unnest($1::uuid[]) AS id"
            " WHERE NOT EXISTS (SELECT FROM chaos.inserted WHERE run_id = id)",  # the answer to a first try may have been lost
            ids, kind, json.dumps(payload), max_attempts,
        )  # fmt: skip
        self.ledger.note("ok", runs=ids)
        return ids

    def file(self) -> Path:
        """A file that does not exist yet, for handlers to wait for."""
        self._files += 1
        return self.directory / f"file{self._files}"

    def starts(self, ids: Sequence[str]) -> list[Entry]:
        """Every start of one of these runs so far."""
        wanted = set(ids)
        return [e for e in self.reader.look() if e.what == "start" and e.facts["run"] in wanted]

    async def started(self, ids: Sequence[str], *, leases: int = 1, within_s: float = 40) -> float:
        """Wait until each of these was started under so many leases; return when the last was."""

        def all_started() -> float | None:
            nth: dict[str, list[float]] = {run: [] for run in ids}
            for entry in self.starts(ids):
                nth[entry.facts["run"]].append(entry.at)
            if all(len(times) >= leases for times in nth.values()):
                return max(sorted(times)[leases - 1] for times in nth.values())
            return None

        at: float = await self.soon(all_started, within_s, f"{len(ids)} runs were not started under {leases} leases")
        return at

    async def settled(self, ids: Sequence[str], *, within_s: float = 40) -> None:
        """Wait until all of these are settled."""
        query = "SELECT count(DISTINCT run_id) FROM chaos.settled WHERE run_id = ANY ($1::uuid[])"

        async def all_settled() -> bool:
            return bool(await self.value(query, ids) == len(ids))

        await self.soon(all_settled, within_s, f"{len(ids)} runs were not all settled")

    async def soon(self, fact: Callable[[], Any], within_s: float, else_: str) -> Any:
        """Wait for a fact. TimeoutError that says what did not happen."""
        try:
            return await eventually(fact, within_s)
        except TimeoutError as error:
            message = f"{else_} within {within_s:g} s"
            raise TimeoutError(message) from error

    async def pickup(self, within_s: float = 40, kind: str = "good") -> float:
        """How long an insert waits for its handler now, in seconds."""
        began = time.monotonic()
        return await self.started(await self.insert(kind), within_s=within_s) - began

    async def warm(self) -> None:
        """Let every worker have claimed and settled once: what is cold is slower, by a second on a busy machine."""
        cold = {member.pid for member in self.fleet.members}
        while cold:
            ids = await self.insert("good", 15 * len(self.fleet.members), ms=50)  # more than one of them takes
            await self.settled(ids)
            cold -= {entry.pid for entry in self.starts(ids)}

    async def leader(self) -> Member:
        """Who leads the fleet now."""

        async def found() -> Member | None:
            pid = await self.fetch("SELECT split_part(leader, ':', 2)::int FROM notifyworker.reaper WHERE leader IS NOT NULL")
            return next((m for m in self.fleet.members if pid and m.is_running and m.pid == pid[0][0]), None)

        member: Member = await self.soon(found, 20, "nobody led")
        return member

    async def holders(self, ids: Sequence[str]) -> list[Member]:
        """Who holds these runs."""
        rows = await self.fetch(
            "SELECT DISTINCT split_part(lease_owner, ':', 2)::int FROM notifyworker.runs WHERE run_id = ANY ($1::uuid[]) AND lease_owner IS NOT NULL",
            ids,
        )
        return [m for m in self.fleet.members if m.is_running and m.pid in {row[0] for row in rows}]

    # The end.

    async def verdict(self) -> Verdict:
        """Heal all, wait until nothing is live, stop, and judge."""
        await self.fleet.heal()
        self.fleet.keep_up()

        async def drained() -> bool:
            left = "SELECT EXISTS (SELECT FROM notifyworker.runs) OR EXISTS (SELECT FROM notifyworker.shadow_pairs WHERE became IS NULL)"
            return not await self.value(left)

        with contextlib.suppress(TimeoutError):  # what is left is told as lost
            await eventually(drained, self.form.drain_s)
        self.drained_at = time.monotonic()
        witness = await self._witness()
        await self.fleet.close()
        return judge(self.reader.look(), witness, gil_is_frozen=self.gil_is_frozen, is_mixed=self.is_mixed)

    async def _witness(self) -> Witness:
        inserted = await self.fetch("SELECT run_id::text FROM chaos.inserted")
        leases = await self.fetch("SELECT run_id::text, lease_token, lease_owner, attempt, max_attempts FROM chaos.leased")
        settles = await self.fetch(
            "SELECT run_id::text, lease_token, settled_by, kind, state, error_code, attempt, (result ->> 'token')::bigint,"
            " (result ->> 'pid')::bigint, result -> 'family', (progress ->> 'token')::bigint FROM chaos.settled"
        )
        effects = await self.fetch("SELECT run_id::text, lease_token FROM chaos.effects")
        live = await self.fetch("SELECT run_id::text FROM notifyworker.runs")
        scheduled = await self.fetch(
            "SELECT run_id::text, date_part('epoch', (headers ->> 'tick')::timestamptz)::bigint FROM notifyworker.all_runs"
            " WHERE headers ? 'tick'"
        )
        return Witness(
            [row[0] for row in inserted],
            [Lease(*row) for row in leases],
            [Settle(*row[:9], row[9] and json.loads(row[9]), row[10]) for row in settles],
            [(row[0], row[1]) for row in effects],
            {row[0] for row in live},
            await self.value("SELECT count(*) FROM notifyworker.places"),
            [(row[0], row[1]) for row in scheduled],
            {
                row["live_run_id"]: row["became"]
                for row in await self.fetch("SELECT live_run_id::text, became FROM notifyworker.shadow_pairs")
            },
            [
                (row[0], row[1])
                for row in await self.fetch(
                    "SELECT run_id::text, parent_id::text FROM chaos.inserted WHERE parent_id IS NOT NULL"
                )
            ],
            [(row[0], row[1], [line["lease"] for line in json.loads(row[2])]) for row in await self.fetch(_LOGS)],
        )

    async def close(self) -> None:
        """End what is left."""
        await self.fleet.close()
        if self._connection is not None:
            self._connection.terminate()
        self.ledger.close()


@contextlib.asynccontextmanager
async def arena(
    *, name: str, form: Form, shared: Cluster | None, directory: Path, thread: ProxyThread, seed: int
) -> AsyncIterator[Arena]:
    """Make a place on the shared server, or on a server of its own (None)."""
    async with contextlib.AsyncExitStack() as stack:
        cluster = shared
        if cluster is None:
            cluster = await stack.enter_async_context(Cluster(conf=CONF))
            await prepare(cluster)
        database = f"chaos_{os.urandom(6).hex()}"
        connection = await asyncpg.connect(f"postgresql://postgres@127.0.0.1:{cluster.port}/template1")
        try:
            await connection.execute(f'CREATE DATABASE "{database}" TEMPLATE postgres')
        finally:
            await connection.close()
        place = Arena(name=name, form=form, cluster=cluster, database=database, directory=directory, thread=thread, seed=seed)
        await stack.enter_async_context(place.servers)
        stack.push_async_callback(place.close)
        value = json.dumps(form.reaper_interval_s)
        await place.fetch("UPDATE notifyworker.settings SET value = $1 WHERE name = 'reaper_interval_s'", value)
        yield place
