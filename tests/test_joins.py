"""run.join(timeout=): a parent waits for its children until then, without a slot, by the database's clock."""

import asyncio
import contextlib
import json
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from servers import eventually
from test_children import all_of, insert
from test_steps import settled

from notifyworker import ChildOutcome, JoinTimeout, Retry, Run, Worker
from notifyworker.testing import HandlerRun

QUICKLY = Retry(max_attempts=3, base_s=0.01)
LATE = "2 children were not all settled in time"


@pytest.fixture
async def db(connection: asyncpg.Connection) -> asyncpg.Connection:
    return connection


def waits(worker: Worker, **join: Any) -> list[str]:
    """A parent that joins two children, one of which never begins, and what it was told each time."""
    told: list[str] = []

    @worker.handler("parent", retry=QUICKLY)
    async def parent(run: Run) -> str:
        children = [await run.start("quick"), await run.start("slow")]
        try:
            told.append(str([outcome.state for outcome in await run.join(**join)]))
        except JoinTimeout as error:
            assert error.children == children
            told.append(str(error))
        return told[-1]

    @worker.handler("quick")
    async def quick(run: Run) -> None: ...

    return told


async def parked(db: asyncpg.Connection, run_id: UUID) -> asyncpg.Record:
    """The parent, once it waits for the slow one alone."""
    query = """SELECT r.*, g.ends_at, g.run_at AS place FROM notifyworker.runs AS r JOIN notifyworker.child_groups AS g ON g.parent_id = r.run_id
                WHERE r.run_id = $1 AND r.state = 'pending' AND g.lease_token = r.lease_token
                  AND EXISTS (SELECT FROM notifyworker.children WHERE kind = 'quick' AND state IS NOT NULL)"""
    return await eventually(lambda: db.fetchrow(query, run_id))


async def let_pass(db: asyncpg.Connection, run_id: UUID) -> None:
    """As if the time were over now."""
    await db.execute("UPDATE notifyworker.child_groups SET ends_at = now() WHERE parent_id = $1", run_id)
    await db.execute("UPDATE notifyworker.runs SET run_at = now() WHERE run_id = $1", run_id)


async def test_the_deadline_counts_by_the_databases_clock_whichever_worker_is_there(make_worker, db):
    first: Worker = make_worker(concurrency=1)
    waits(first, timeout=3600)
    async with first:
        run_id = await insert(db)
        run = await parked(db, run_id)
    assert (run["waits_for"], run["run_at"], run["attempt"], run["lease_owner"]) == (None, run["ends_at"], 0, None)
    assert 3500 < (run["ends_at"] - run["created_at"]).total_seconds() < 3700

    await let_pass(db, run_id)
    second: Worker = make_worker()
    told = waits(second, timeout=7)  # the time that counts is the first one
    async with second:
        run = await settled(db, run_id)
        assert (run["state"], run["attempt"], json.loads(run["result"])) == ("completed", 1, LATE)
        (slow,) = await all_of(db, "slow")
        assert slow["state"] == "pending"  # it goes on

        await db.execute("SELECT notifyworker.cancel($1)", slow["run_id"])
        await db.execute(
            "UPDATE notifyworker.run_history SET state = 'failed', result = NULL, error_code = 'E-RUN-001' WHERE run_id = $1",
            run_id,
        )
        await db.execute(
            "INSERT INTO notifyworker.steps SELECT run_id, created_at, now(), now(), 1, 1, 1, false, project_id, 'x', NULL, 'null' FROM notifyworker.run_history WHERE run_id = $1",
            run_id,
        )
        await db.execute("SELECT notifyworker.retry($1, from_step => 1)", run_id)
        await settled(db, run_id)
    assert told == [LATE] * 2  # what was told is told again, although all are settled by now


async def test_what_is_settled_in_time_is_joined_at_once_in_its_old_place(make_worker, db):
    worker: Worker = make_worker()
    told = waits(worker, timeout=3600)
    async with worker:
        run_id = await insert(db)
        place = await db.fetchval("SELECT run_at FROM notifyworker.runs WHERE run_id = $1", run_id)
        assert (await parked(db, run_id))["place"] == place
        await db.execute("SELECT notifyworker.cancel(run_id) FROM notifyworker.runs WHERE kind = 'slow'")
        run = await settled(db, run_id)
    assert (run["run_at"], told) == (place, ["['completed', 'cancelled']"])


async def test_a_worker_wakes_for_the_end_of_the_time(make_worker, db):
    worker: Worker = make_worker()
    waits(worker, timeout=0.5)
    async with worker:
        run = await settled(db, await insert(db))
    assert json.loads(run["result"]) == LATE
    assert (run["finished_at"] - run["created_at"]).total_seconds() >= 0.5


async def test_with_cancel_they_are_cancelled_first(make_worker, db):
    worker: Worker = make_worker()
    told = waits(worker, timeout=3600, on_failure="cancel")
    async with worker:
        run_id = await insert(db)
        await parked(db, run_id)
        await let_pass(db, run_id)
        await db.execute("SELECT notifyworker.announce(now())")
        await settled(db, run_id)
    assert told == [LATE]
    assert [row["state"] for row in await all_of(db, "slow")] == ["cancelled"]


async def test_a_last_child_that_ends_later_changes_no_other_time(make_worker, db, dsn):
    """The parent was taken up after its time, and is given back: it is due when its retry says, not when a child ends."""
    worker: Worker = make_worker()
    is_held = asyncio.Event()

    @worker.handler("parent", retry=Retry(max_attempts=3, delay=3600))
    async def parent(run: Run) -> None:
        if run.lease_token > 1:
            is_held.set()
            message = "before the join"
            raise ValueError(message)
        await run.start("quick")
        await run.start("slow")
        await run.join(timeout=3600)

    @worker.handler("quick")
    async def quick(run: Run) -> None: ...

    async with worker:
        run_id = await insert(db)
        await parked(db, run_id)
        await let_pass(db, run_id)
        await db.execute("SELECT notifyworker.announce(now())")
        await is_held.wait()
        later = "SELECT run_at FROM notifyworker.runs WHERE run_id = $1 AND state = 'pending' AND run_at > now() + interval '1 minute'"
        due_at = await eventually(lambda: db.fetchval(later, run_id))
        await db.execute("SELECT notifyworker.cancel(run_id) FROM notifyworker.runs WHERE kind = 'slow'")
        assert await db.fetchval("SELECT run_at FROM notifyworker.runs WHERE run_id = $1", run_id) == due_at


async def test_late_children_are_joined_again_by_their_ids(make_worker, db):
    worker: Worker = make_worker()

    @worker.handler("parent")
    async def parent(run: Run) -> list[str]:
        child = await run.start("slow")
        await run.start("quick")
        with contextlib.suppress(JoinTimeout):
            await run.join([child], timeout=0.1)
        return [outcome.state for outcome in await run.join([child])]

    @worker.handler("quick")
    async def quick(run: Run) -> None: ...

    async with worker:
        run_id = await insert(db)
        await eventually(lambda: db.fetchval("SELECT true FROM notifyworker.runs WHERE waits_for = 'children'"))
        await db.execute("SELECT notifyworker.cancel(run_id) FROM notifyworker.runs WHERE kind = 'slow'")
        run = await settled(db, run_id)
    assert json.loads(run["result"]) == ["cancelled"]


async def test_the_kit_has_deadlines_and_a_time_that_cant_be_is_told():
    run = HandlerRun()
    await run.start("slow")
    with pytest.raises(JoinTimeout):
        await run.join(timeout=60)
    given = HandlerRun(outcomes=[ChildOutcome(run.run_id, "slow", "completed")])
    assert [outcome.state for outcome in await given.join(timeout=60)] == ["completed"]
    with pytest.raises(ValueError, match="timeout must be above 0"):
        await run.join(timeout=0)
