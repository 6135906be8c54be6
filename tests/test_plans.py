"""
A backlog of others costs nobody anything: each statement of a run's life reads its own rows and no more.

Also while statistics say that the table is empty, as they do from a burst after a quiet time until the next autovacuum,
and in a session without our settings of the planner, as behind a transaction pooler; and where projects are separated.
"""

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from notifyworker.database import Connection, connect
from notifyworker.lanes import SLACK, Batch, Lane
from notifyworker.run import Outcome, Run, State
from notifyworker.run_log_store import NewLog, RunLogStore
from notifyworker.step_store import NewStep, StepStore
from notifyworker.store import Served, Store

BACKLOG = 20_000
OURS = 10
OWNER = "host:1:abc"


class Explained:
    """A Queryable that counts the rows of `runs` that each statement reads, and then executes it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.rows_read: list[float] = []

    async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[asyncpg.Record]:
        transaction = self._connection.transaction()
        await transaction.start()
        plan = json.loads(await self._connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", *args))
        await transaction.rollback()
        self.rows_read.append(sum(_read(plan[0]["Plan"])))
        return await self._connection.fetch(query, *args, timeout=timeout)


def _read(node: dict[str, Any]) -> Iterator[float]:
    if node.get("Relation Name") == "runs" and "Scan" in node["Node Type"]:
        removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        yield (node["Actual Rows"] + removed) * node["Actual Loops"]
    for inner in node.get("Plans", []):
        yield from _read(inner)


@pytest.fixture
async def owner(any_dsn: str) -> Any:
    conn = await asyncpg.connect(any_dsn)
    yield conn
    await conn.close()


@pytest.fixture(params=["our settings", "no settings", "separated projects"])
async def session(request: pytest.FixtureRequest, any_dsn: str, owner: asyncpg.Connection) -> Any:
    if request.param == "no settings":
        conn = await asyncpg.connect(any_dsn, statement_cache_size=0)
    else:
        conn = await connect(any_dsn, schema="notifyworker", purpose="test")
    if request.param == "separated projects" and conn.get_server_version()[0] < 15:
        await conn.close()
        pytest.skip("projects can be separated from PostgreSQL 15 on")
    if request.param == "separated projects":
        await owner.execute("SELECT notifyworker.separate_projects()")
        await conn.execute("SET ROLE notifyworker_worker")
    yield conn
    await conn.close()


@pytest.mark.parametrize("statistics", ["of an empty table", "none", "of the backlog"])
async def test_each_statement_of_a_runs_life_reads_its_own_rows_alone(owner, session, statistics):
    await owner.execute("ALTER TABLE notifyworker.runs SET (autovacuum_enabled = off)")
    if statistics == "of an empty table":
        await owner.execute("INSERT INTO notifyworker.runs (kind) VALUES ('a')")
        await owner.execute("DELETE FROM notifyworker.runs")
        await owner.execute("VACUUM ANALYZE notifyworker.runs")
    for kind, count in (("others", BACKLOG), ("ours", 5 * OURS)):
        await owner.execute(f"INSERT INTO notifyworker.runs (kind) SELECT '{kind}' FROM generate_series(1, {count})")
    if statistics == "of the backlog":
        await owner.execute("VACUUM ANALYZE notifyworker.runs")
    on, store = Explained(session), Store("notifyworker")

    held = await _claimed(on, store)
    assert await store.heartbeat(on, OWNER, 60, held) == held.keys()
    assert await store.held(on, OWNER, held) == held.keys()
    await _steps_and_logs(on, store, held)
    back, done, dead = ({run_id: held[run_id] for run_id in list(held)[place::3]} for place in range(3))
    assert await store.give_back(on, OWNER, _outcomes(back, State.PENDING)) == back.keys()
    assert await store.settle(on, OWNER, _outcomes(done, State.COMPLETED)) == len(done)
    assert await store.settled(on, OWNER, held) == done.keys()
    await session.execute("UPDATE notifyworker.runs SET lease_expires_at = now() WHERE lease_owner IS NOT NULL")
    assert {row["run_id"] for row in await store.reap(on, limit=500, reaper=OWNER, presumed_dead=["x"])} == dead.keys()
    await session.execute("UPDATE notifyworker.runs SET expires_at = now() WHERE kind = 'ours'")
    assert await store.expire(on, limit=5) == 5

    # Each reads a run at most four times: to find it, to lock it, to write it, and its old version.
    assert max(on.rows_read) <= 4 * 5 * OURS, on.rows_read


async def _steps_and_logs(on: Explained, store: Store, held: dict[UUID, int]) -> None:
    steps, logs = StepStore(store), RunLogStore(store)
    new = [NewStep(run_id, token, position, f"{position}", 0.1, "1") for run_id, token in held.items() for position in (1, 2)]
    assert await steps.steps_put(on, OWNER, new) == {(step.run_id, step.position) for step in new}
    run = Run(*next(iter(held.items())))
    assert len(await steps.steps_load(on, run, OWNER) or ()) == 2
    assert (await steps.step_result(on, run, OWNER, 2))[0]["result"] == "1"
    lines = [NewLog(run_id, token, "[1]", 1, 0, is_whole=False) for run_id, token in held.items()]
    await logs.run_logs_put(on, OWNER, lines, keep=200)
    created_at = await on.fetch("SELECT created_at FROM notifyworker.runs WHERE run_id = $1", run.run_id)
    assert len(await logs.run_logs_list(on, run.run_id, created_at[0]["created_at"])) == 1
    assert (await steps.steps_forget(on, limit=5), await logs.run_logs_forget(on, limit=5)) == (0, 0)


async def _claimed(on: Explained, store: Store) -> dict[UUID, int]:
    served = Served(max_attempts={"idle": 3, "ours": 3}, timeouts_s={"idle": None, "ours": 60.0}, project_ids=None)
    (lane,) = await store.lanes(on, served)
    lanes = [Lane("idle", "default", 0, lane["mark"]), Lane("ours", "default", 0, lane["mark"])]
    runs = await store.claim(
        on, served, Batch(lanes, [OURS] * 2), SLACK, limit=OURS, lease_owner=OWNER, lease_s=60, enforce_shadow=False
    )
    assert [(run.kind, run.timeout_s) for run in runs] == [("ours", 60.0)] * OURS
    assert {row["kind"] for row in await store.ready(on)} == {"others", "ours"}
    assert len(await store.ready_since(on, lanes, SLACK)) == 1
    return {run.run_id: run.lease_token for run in runs}


def _outcomes(held: dict[UUID, int], to: State) -> list[Outcome]:
    result = "{}" if to is State.COMPLETED else None
    return [Outcome(run_id, token, 1, "ours", to, result=result) for run_id, token in held.items()]
