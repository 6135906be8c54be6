"""
Shapes of the claim, beside each other: `python -m benchmarks.shapes [--crowd 1000000]`.

What a claim of 100 costs the server, in microseconds of CPU a run (median of ten claims), with nothing but 2,000 ready
runs in the table and with a crowd of other rows beside them. Each shape has the index or the table that suits it; all
have our columns, constraints and session settings. `held`: a stranger's snapshot is open, and the last 100,000 runs
that went through can't be vacuumed away.

Our own shape is the worker's own statement. The others are written here, and do the same UPDATE.
"""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import cyclopts
from rich.console import Console
from rich.table import Column, Table

from benchmarks import proc
from benchmarks.lab import POSTGRES
from notifyworker.database import Connection, connect
from notifyworker.embedded import embedded_postgres
from notifyworker.lanes import SLACK, Batch, Lane
from notifyworker.migrate import migrate
from notifyworker.store import Served, Store

SCHEMA = "notifyworker"
READY, CLAIM, CLAIMS, GONE = 2_000, 100, 10, 100_000
STEP = 100_000

FILL_S = 600.0
SERVED = Served({"ours": 5}, {"ours": None}, None)

_GOING = "'ours', 'default', now() - interval '1 h'"
CROWDS = {
    "alone": None,
    "pending": "'ours', 'default', now()",
    "future": "'ours', 'default', now() + interval '1 day'",
    "other kind": "'other', 'default', now() - interval '1 h'",
    "other project": "'ours', 'other', now() - interval '1 h'",
    "held": None,
}

_TAKE = """
UPDATE notifyworker.runs AS r
   SET state = 'running', attempt = r.attempt + 1, lease_token = r.lease_token + 1, lease_owner = 'me',
       lease_expires_at = now() + interval '60 s', started_at = now(), max_attempts = coalesce(r.max_attempts, 5)
 WHERE r.ctid = ANY (array(SELECT place FROM picked)) AND CASE WHEN r.state = 'pending' THEN true END
RETURNING r.run_id, r.lease_token, r.kind, r.payload
"""
_SKIP = """
WITH RECURSIVE lane AS (
    (SELECT r.project_id, -r.priority::int AS rank FROM notifyworker.runs AS r WHERE r.state = 'pending' AND r.kind = 'ours'
      ORDER BY r.project_id, -r.priority::int LIMIT 1)
    UNION ALL
    SELECT next.* FROM lane, LATERAL (
        SELECT r.project_id, -r.priority::int FROM notifyworker.runs AS r
         WHERE r.state = 'pending' AND r.kind = 'ours' AND (r.project_id, -r.priority::int) > (lane.project_id, lane.rank)
         ORDER BY r.project_id, -r.priority::int LIMIT 1) AS next
), picked AS MATERIALIZED (
    SELECT ready.place FROM lane AS l, LATERAL (
        SELECT r.ctid AS place FROM notifyworker.runs AS r
         WHERE r.state = 'pending' AND r.kind = 'ours' AND r.project_id = l.project_id AND -r.priority::int = l.rank
           AND r.run_at <= now()
         ORDER BY r.run_at, r.run_id LIMIT 100 FOR UPDATE SKIP LOCKED) AS ready
     WHERE l.project_id = 'default' LIMIT 100
)"""


@dataclass(frozen=True, slots=True)
class Shape:
    """One way to claim: what is made before, and the statement; None: the worker's own."""

    name: str
    ddl: str = ""
    claim: str | None = None


SHAPES = (
    Shape(
        "one queue, ORDER BY priority, run_at",
        "CREATE INDEX shape ON notifyworker.runs ((-priority::int), run_at) WHERE state = 'pending'; DROP INDEX notifyworker.runs_ready",
        f"""WITH picked AS MATERIALIZED (
            SELECT r.ctid AS place FROM notifyworker.runs AS r
             WHERE r.state = 'pending' AND r.kind = ANY ('{{ours}}') AND r.project_id = ANY ('{{default}}') AND r.run_at <= now()
             ORDER BY -r.priority::int, r.run_at LIMIT {CLAIM} FOR UPDATE SKIP LOCKED){_TAKE}""",
    ),
    Shape(
        "an index by kind",
        "CREATE INDEX shape ON notifyworker.runs (kind, (-priority::int), run_at) WHERE state = 'pending'; DROP INDEX notifyworker.runs_ready",
        f"""WITH picked AS MATERIALIZED (
            SELECT r.ctid AS place FROM notifyworker.runs AS r
             WHERE r.state = 'pending' AND r.kind = 'ours' AND r.project_id = ANY ('{{default}}') AND r.run_at <= now()
             ORDER BY r.kind, -r.priority::int, r.run_at LIMIT {CLAIM} FOR UPDATE SKIP LOCKED){_TAKE}""",
    ),
    Shape("skip scan over lanes in each claim", claim=_SKIP + _TAKE),
    Shape(
        "a narrow queue table beside it, skip scan left out",
        """CREATE TABLE notifyworker.queue AS SELECT run_id, kind, project_id, -priority::int AS rank, run_at FROM notifyworker.runs
             ORDER BY run_id; DROP INDEX notifyworker.runs_ready;
           ALTER TABLE notifyworker.queue ADD PRIMARY KEY (run_id);
           CREATE INDEX shape ON notifyworker.queue (kind, project_id, rank, run_at, run_id)""",
        f"""WITH chosen AS MATERIALIZED (
            SELECT q.ctid AS spot FROM notifyworker.queue AS q
             WHERE q.kind = 'ours' AND q.project_id = 'default' AND q.rank = 0 AND q.run_at <= now()
             ORDER BY q.run_at, q.run_id LIMIT {CLAIM} FOR UPDATE SKIP LOCKED
        ), off AS (DELETE FROM notifyworker.queue AS q WHERE q.ctid = ANY (array(SELECT spot FROM chosen)) RETURNING q.run_id
        ), picked AS MATERIALIZED (
            SELECT r.ctid AS place FROM off, LATERAL (SELECT r.ctid FROM notifyworker.runs AS r
             WHERE r.run_id = off.run_id AND r.state = 'pending' FOR UPDATE SKIP LOCKED) AS r){_TAKE}""",
    ),
    Shape("lanes from their marks (ours)"),
)


class Trial:
    """One shape beside one crowd, in a schema made anew."""

    def __init__(self, dsn: str, admin: Connection, shape: Shape, crowd: str) -> None:
        self._dsn = dsn
        self._admin = admin
        self._shape = shape
        self._crowd = crowd

    async def cost_us(self, count: int) -> float:
        """Fill, claim ten times; the median of the server's CPU time in microseconds a run."""
        await self._fill(count)
        session = await connect(self._dsn, schema=SCHEMA, purpose="shapes")
        stranger = await asyncpg.connect(self._dsn)
        try:
            if self._crowd == "held":
                await self._hold(stranger)
            took = [await self._claim(session) for _ in range(CLAIMS)]
        finally:
            await stranger.close()
            await session.close()
        return statistics.median(took)

    async def _fill(self, count: int) -> None:
        await self._admin.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        await migrate(self._dsn, SCHEMA)
        if values := CROWDS[self._crowd]:
            for _ in range(max(1, count // STEP)):
                await self._insert(values, min(count, STEP))
        if self._crowd == "held":
            await self._insert(_GOING, GONE)
        await self._insert("'ours', 'default', now()", READY)
        await self._execute(*self._shape.ddl.split(";"), *(f"VACUUM ANALYZE {SCHEMA}.{table}" for table in self._tables))

    @property
    def _tables(self) -> tuple[str, ...]:
        return ("runs", "queue") if "notifyworker.queue" in self._shape.ddl else ("runs",)

    async def _insert(self, values: str, count: int) -> None:
        await self._execute(
            f"INSERT INTO {SCHEMA}.runs (kind, project_id, run_at) SELECT {values} FROM generate_series(1, {count})"
        )

    async def _execute(self, *statements: str) -> None:
        for statement in statements:
            if statement.strip():
                await self._admin.execute(statement, timeout=FILL_S)

    async def _hold(self, stranger: Connection) -> None:
        """A snapshot, and then 100,000 runs that go through."""
        await stranger.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await stranger.fetch("SELECT 1")
        await self._execute(*(f"DELETE FROM {SCHEMA}.{table} WHERE run_at < now() - interval '30 min'" for table in self._tables))

    async def _claim(self, session: Connection) -> float:
        before = proc.thread_cpu_s(session.get_server_pid())
        claim = self._shape.claim
        found = len(await (self._ours(session) if claim is None else session.fetch(claim)))
        if found != CLAIM:
            message = f"{self._shape.name}, {self._crowd}: claimed {found} of {CLAIM}"
            raise RuntimeError(message)
        return (proc.thread_cpu_s(session.get_server_pid()) - before) / CLAIM * 1e6

    async def _ours(self, session: Connection) -> Sequence[object]:
        mark = datetime.now(UTC) - timedelta(minutes=30) if self._crowd == "held" else datetime(1970, 1, 1, tzinfo=UTC)
        return await Store(SCHEMA).claim(
            session, SERVED, Batch([Lane("ours", "default", 0, mark)], [CLAIM]), SLACK, limit=CLAIM, lease_owner="me", lease_s=60,
            enforce_shadow=False,
        )  # fmt: skip


async def compare(crowd: int = 1_000_000) -> None:
    """
    Compare shapes of the claim.

    Parameters
    ----------
    crowd
        How many other rows lie beside the ready ones.
    """
    table = Table("us of server CPU a run", *(Column(name, justify="right") for name in CROWDS))
    with tempfile.TemporaryDirectory(prefix="nw-shapes-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o711)  # the server's account, where this runs as root
        async with embedded_postgres(Path(directory) / "data", major=18, tuning=POSTGRES, database="postgres") as dsn:
            admin = await asyncpg.connect(dsn)
            for shape in SHAPES:
                costs = [await Trial(dsn, admin, shape, name).cost_us(crowd) for name in CROWDS]
                table.add_row(shape.name, *(f"{cost:,.1f}" for cost in costs))
            await admin.close()
    Console().print(table)


if __name__ == "__main__":
    app = cyclopts.App(help=__doc__, default_command=compare)
    app()
