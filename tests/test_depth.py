"""What /metrics tells of the queue: looked at by who reaps, while somebody scrapes, and cheaply whatever waits."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest
from prometheus_client import generate_latest
from servers import SURELY_S, eventually
from test_plans import Explained

from notifyworker import Run, Worker
from notifyworker.database import Link, reconnect
from notifyworker.depth import Depth
from notifyworker.observe import Metrics
from notifyworker.store import Store

STORE = Store("notifyworker")


@contextlib.asynccontextmanager
async def looking(dsn: str, metrics: Metrics, *, looks: Callable[[], bool] = lambda: True) -> AsyncIterator[Link]:
    link = Link(lambda: reconnect(dsn, schema="notifyworker", purpose="side"))
    depth = Depth(STORE, link, metrics, kinds=["served"], looks=looks, interval_s=0.05)
    task = asyncio.create_task(depth.run())
    try:
        yield link
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        link.close()


def scraped(metrics: Metrics) -> dict[str, float]:
    lines = generate_latest(metrics.registry).decode().splitlines()
    shown = [line for line in lines if line.startswith(("notifyworker_queue_", "notifyworker_horizon_"))]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in shown)}


INSERT = """INSERT INTO notifyworker.runs (kind, project_id, run_at)
            SELECT $1, 'p' || n % $3::int, now() + $4::float8 * interval '1 s' FROM generate_series(1, $2::int) AS n"""


async def test_each_kind_is_counted_by_state(dsn: str, connection: asyncpg.Connection) -> None:
    metrics = Metrics()
    for kind, number, projects, due_in_s in (("a", 30, 3, -60.0), ("a", 5, 5, 3600.0), ("b", 2, 1, 3600.0)):
        await connection.execute(INSERT, kind, number, projects, due_in_s)
    await connection.execute(
        """UPDATE notifyworker.runs SET state = 'running', lease_owner = 'w', lease_expires_at = now() + interval '1 h', lease_token = 1, attempt = 1, max_attempts = 3,
           started_at = now()
           WHERE run_id IN (SELECT run_id FROM notifyworker.runs WHERE kind = 'a' AND run_at < now() LIMIT 4)"""
    )
    async with looking(dsn, metrics):
        await eventually(lambda: scraped(metrics))
        seen = scraped(metrics)
    counted = {name: value for name, value in seen.items() if "_runs{" in name and value}
    assert counted == {
        'notifyworker_queue_runs{kind="a",state="ready"}': 26,
        'notifyworker_queue_runs{kind="a",state="later"}': 5,
        'notifyworker_queue_runs{kind="a",state="running"}': 4,
        'notifyworker_queue_runs{kind="b",state="later"}': 2,
    }
    assert seen['notifyworker_queue_runs{kind="served",state="ready"}'] == 0  # what has a handler is there with nothing, too
    assert 60 <= seen['notifyworker_queue_oldest_seconds{kind="a"}'] < 600
    assert seen['notifyworker_queue_oldest_seconds{kind="b"}'] == 0


async def test_who_keeps_dead_rows_is_seen(dsn: str, connection: asyncpg.Connection) -> None:
    metrics = Metrics()
    other = await asyncpg.connect(dsn)
    async with looking(dsn, metrics), connection.transaction(isolation="repeatable_read"):
        await connection.fetchval("SELECT count(*) FROM notifyworker.runs")
        await eventually(lambda: scraped(metrics).get("notifyworker_horizon_held_seconds", 0) > 0.2)
    await other.close()


async def test_nobody_looks_unless_somebody_scrapes_and_only_who_reaps(dsn: str) -> None:
    """Told by the pause between two looks: a query made meanwhile would have been seen."""
    metrics, asked = Metrics(), 0
    is_reaping = False

    def looks() -> bool:
        nonlocal asked
        asked += 1
        return is_reaping

    async with looking(dsn, metrics, looks=looks) as link:
        statements = 0
        fetch = link.fetch

        async def counted(*args: Any, **options: Any) -> Any:
            nonlocal statements
            statements += 1
            return await fetch(*args, **options)

        link.fetch = counted  # type: ignore[method-assign]
        is_reaping = True
        await eventually(lambda: asked > 3)
        assert statements == 0  # not scraped
        scraped(metrics)
        await eventually(lambda: statements > 2)
        assert scraped(metrics)
        is_reaping = False
        await eventually(lambda: not scraped(metrics))  # another tells it now


async def test_a_database_that_is_away_is_not_told_as_a_number(dsn: str, connection: asyncpg.Connection) -> None:
    metrics = Metrics()
    async with looking(dsn, metrics):
        await eventually(lambda: scraped(metrics))
        await connection.execute("ALTER TABLE notifyworker.runs RENAME TO gone")
        await eventually(lambda: not scraped(metrics))
        assert metrics.database_errors.labels("depth")._value.get() > 0
        await connection.execute("ALTER TABLE notifyworker.gone RENAME TO runs")
        await eventually(lambda: scraped(metrics))


@pytest.mark.parametrize("due_in_s", [-60.0, 3600.0])
async def test_a_look_is_as_cheap_however_much_waits(dsn: str, connection: asyncpg.Connection, due_in_s: float) -> None:
    """A hundred of each kind's lanes at least; not the twenty thousand that wait."""
    await connection.execute(INSERT, "many", 20_000, 4, due_in_s)
    await connection.execute(INSERT, "few", 7, 2, -1.0)
    await connection.execute("VACUUM ANALYZE notifyworker.runs")
    explained = Explained(connection)
    rows = {row["kind"]: dict(row) for row in await explained.fetch(STORE.sql("queue"), 1000, 5000)}
    assert rows["few"]["ready"] == 7
    assert rows["many"]["ready" if due_in_s < 0 else "later"] == 500  # half of the thousand that are counted
    assert explained.rows_read[0] < 1200


async def test_lanes_beyond_the_bound_are_not_looked_at(connection: asyncpg.Connection) -> None:
    await connection.execute(INSERT, "a", 600, 600, -1.0)
    (row,) = await connection.fetch(STORE.sql("queue"), 1000, 50)
    assert row["ready"] == 50


async def test_a_worker_that_leads_tells_it(dsn: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Depth.__init__.__kwdefaults__, "interval_s", 0.05)
    worker = Worker(dsn=dsn, kinds=["a"])

    @worker.handler("a")
    async def handle(run: Run, payload: dict[str, Any]) -> None: ...

    await connection.execute(INSERT, "not.served", 3, 1, -1.0)
    async with worker:
        metrics = worker._conductor.metrics
        await eventually(lambda: scraped(metrics).get('notifyworker_queue_runs{kind="not.served",state="ready"}') == 3)
        shown = generate_latest(metrics.registry).decode()
    assert 'notifyworker_connections_allowed{pool="transactions"} 10.0' in shown
    assert 'notifyworker_connections_used{pool="transactions"} 0.0' in shown
    (age_s,) = re.findall(r"^notifyworker_heartbeat_age_seconds (\S+)", shown, re.MULTILINE)
    assert 0 <= float(age_s) < SURELY_S
