"""run.start() and run.join(): children come with their parent's settle or not at all, and no parent is lost."""

import asyncio
import contextlib
import json
import re
import types
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from servers import SURELY_S, eventually
from test_cli import call as command
from test_pauses import _Session
from test_steps import settled, take_from_its_worker

from notifyworker import ChildFailed, ChildGroup, ChildOutcome, Client, EventTimeout, Fail, Retry, Run, Snooze, Worker
from notifyworker.children_store import ChildrenStore
from notifyworker.store import Store
from notifyworker.testing import HandlerRun

PAGE = Path(__file__).parents[1] / "docs" / "children.md"
QUICKLY = Retry(max_attempts=3, base_s=0.01)
CHECK = "SELECT bool_and(notifyworker.check_parent(parent_id, parent_created_at)) FROM notifyworker.child_checks"
OPEN = "SELECT count(*) FROM notifyworker.child_groups WHERE closed_at IS NULL"


@pytest.fixture
async def db(connection: asyncpg.Connection) -> asyncpg.Connection:
    return connection


async def insert(db: asyncpg.Connection, kind: str = "parent", payload: Any = None, *, is_shadow: bool = False) -> UUID:
    query = "INSERT INTO notifyworker.runs (kind, payload, is_shadow) VALUES ($1, $2, $3) RETURNING run_id"
    return await db.fetchval(query, kind, json.dumps(payload or {}), is_shadow)


async def all_of(db: asyncpg.Connection, kind: str) -> list[asyncpg.Record]:
    return await db.fetch("SELECT * FROM notifyworker.all_runs WHERE kind = $1 ORDER BY run_id", kind)


async def no_notes(db: asyncpg.Connection) -> None:
    await eventually(lambda: db.fetchval("SELECT count(*) = 0 FROM notifyworker.child_checks"))


async def parked(db: asyncpg.Connection, run_id: UUID) -> asyncpg.Record:
    query = "SELECT * FROM notifyworker.runs WHERE run_id = $1 AND waits_for = 'children'"
    return await eventually(lambda: db.fetchrow(query, run_id))


def fan_out(worker: Worker, number: int = 2, **join: Any) -> list[list[ChildOutcome]]:
    """A parent that starts so many children and joins them, and what it was given each time."""
    seen: list[list[ChildOutcome]] = []

    @worker.handler("parent", retry=QUICKLY)
    async def parent(run: Run) -> list[Any]:
        for n in range(number):
            await run.start("child", {"n": n})
        seen.append(await run.join(**join))
        return [outcome.state for outcome in seen[-1]]

    return seen


async def test_a_child_is_inserted_when_its_parent_is_completed(make_worker, db, dsn):
    worker: Worker = make_worker()
    ids: list[UUID] = []

    @worker.handler("parent")
    async def parent(run: Run) -> None:
        ids.append(await run.start("child", {"n": 1}, priority=5, timeout=7, headers={"mine": 1}))
        own = await asyncpg.connect(dsn)  # the test looks through `db` meanwhile
        assert await all_of(own, "child") == []
        await own.close()

    async with worker:
        run_id = await insert(db)
        await settled(db, run_id)

    (child,) = await all_of(db, "child")
    assert child["run_id"] == ids[0]
    assert (child["state"], json.loads(child["payload"]), child["priority"]) == ("pending", {"n": 1}, 5)
    async with Client(dsn) as client:
        (listed,) = await client.children(run_id)
        assert (listed["run_id"], listed["kind"], listed["state"]) == (ids[0], "child", "pending")
        await client.cancel(ids[0])
        (listed,) = await client.children(run_id)
        assert listed["state"] == "cancelled"


@pytest.mark.parametrize(("end", "kinds"), [(Fail("no"), ["always"]), (ValueError("again"), []), (Snooze(3600), [])], ids=repr)
async def test_an_attempt_that_fails_starts_nothing(make_worker, db, end, kinds):
    worker: Worker = make_worker()

    @worker.handler("parent", retry=Retry(max_attempts=2, delay=3600))
    async def parent(run: Run) -> None:
        await run.start("child")
        await run.start("always", if_failed=True)
        raise end

    async with worker:
        run_id = await insert(db)
        query = "SELECT true FROM notifyworker.all_runs WHERE run_id = $1 AND (finished_at IS NOT NULL OR run_at > now())"
        await eventually(lambda: db.fetchval(query, run_id))

    rows = await db.fetch("SELECT kind FROM notifyworker.all_runs WHERE kind <> 'parent'")
    assert [row["kind"] for row in rows] == kinds


async def test_a_worker_that_has_lost_the_lease_starts_nothing(make_worker, db, dsn):
    worker: Worker = make_worker()
    attempts: list[int] = []
    halt = asyncio.Event()

    @worker.handler("parent", retry=QUICKLY)
    async def parent(run: Run) -> None:
        attempts.append(run.attempt)
        await run.start("child", {"attempt": run.attempt})
        if run.attempt == 1:
            await take_from_its_worker(dsn)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait_for(halt.wait(), 0.5)  # it is told sooner or later, and goes on all the same

    async with worker:
        run = await settled(db, await insert(db))
    assert (run["state"], attempts[:2]) == ("completed", [1, 2])
    assert [json.loads(row["payload"]) for row in await all_of(db, "child")] == [{"attempt": 2}]


async def test_a_parent_waits_without_a_slot_and_goes_on_with_the_outcomes(make_worker, db):
    worker: Worker = make_worker(concurrency=1)
    calls: Counter[str] = Counter()

    async def step(name: str) -> str:
        calls[name] += 1
        return name

    @worker.handler("parent")
    async def parent(run: Run) -> list[Any]:
        calls["parent"] += 1
        await run.step("before", step, "before")
        first = [await run.start("child", {"n": n}) for n in range(3)]
        outcomes = await run.join()
        assert [outcome.run_id for outcome in outcomes] == first
        await run.start("child", {"n": 7})
        return [await run.step("after", step, "after"), *[o.result for o in [*outcomes, *await run.join()]]]

    @worker.handler("child")
    async def child(run: Run, payload: dict) -> int:
        return payload["n"] * 10

    async with worker:
        run = await settled(db, await insert(db))

    assert json.loads(run["result"]) == ["after", 0, 10, 20, 70]
    assert (run["attempt"], json.loads(run["errors"])) == (1, [])
    assert calls == {"parent": 3, "before": 1, "after": 1}
    assert len(await all_of(db, "child")) == 4


async def test_a_parked_parent_is_no_backlog(make_worker, db, dsn):
    worker: Worker = make_worker()
    fan_out(worker)
    async with worker:
        run_id = await insert(db)
        run = await parked(db, run_id)
        assert (run["state"], run["attempt"], run["lease_owner"]) == ("pending", 0, None)
    await db.execute("UPDATE notifyworker.runs SET run_at = now() + interval '1 hour' WHERE kind = 'child'")
    await db.execute("UPDATE notifyworker.runs SET run_at = now() - interval '1 hour' WHERE run_id = $1", run_id)
    (row,) = await Store("notifyworker").counts(db)
    assert (row["state"], row["runs"], row["oldest_s"]) == ("pending", 3, None)


@pytest.mark.parametrize("how", ["fail", "cancel", "cancel_runs", "reap", "delete", "truncate", "complete", "expire"])
async def test_a_parent_goes_on_however_its_last_child_ends(make_worker, db, dsn, how):
    await db.execute("UPDATE notifyworker.settings SET value = '0.5' WHERE name = 'reaper_interval_s'")
    worker: Worker = make_worker()
    seen = fan_out(worker, 1)
    begun, may_end = asyncio.Event(), asyncio.Event()

    @worker.handler("child", retry=Retry(max_attempts=1))
    async def child(run: Run) -> None:
        begun.set()
        if how in {"fail", "complete"}:
            await may_end.wait()
        if how == "fail":
            raise ValueError("mine")
        if how == "complete":
            await other.execute("SELECT notifyworker.complete($1, $2, '7')", run.run_id, run.lease_token)
        elif how != "expire":
            await asyncio.sleep(3600)

    other = await asyncpg.connect(dsn)
    if how == "expire":
        await db.execute("SELECT notifyworker.pause('child')")
    async with worker:
        run_id = await insert(db)
        await parked(db, run_id)
        may_end.set()
        (row,) = await all_of(db, "child")
        if how != "expire":
            await begun.wait()
        match how:
            case "cancel":
                await db.execute("SELECT notifyworker.cancel($1)", row["run_id"])
            case "cancel_runs":
                await db.execute("SELECT notifyworker.cancel_runs('child')")
            case "reap":
                await take_from_its_worker(dsn)
            case "delete":
                await db.execute("DELETE FROM notifyworker.runs WHERE kind = 'child'")
            case "truncate":  # no trigger of a row sees it
                await db.execute("ALTER TABLE notifyworker.runs DISABLE TRIGGER child_ended")
                await db.execute("DELETE FROM notifyworker.runs WHERE kind = 'child'")
                await db.execute("ALTER TABLE notifyworker.runs ENABLE TRIGGER child_ended")
            case "expire":
                await db.execute("UPDATE notifyworker.runs SET expires_at = now() WHERE kind = 'child'")
        run = await settled(db, run_id)
    await other.close()

    state = {"fail": "failed", "reap": "failed", "delete": "deleted", "truncate": "deleted", "complete": "completed"}
    assert json.loads(run["result"]) == [state.get(how, "cancelled")]
    (outcome,) = seen[-1]
    assert (outcome.run_id, outcome.kind) == (row["run_id"], "child")
    assert outcome.error_code == {"fail": "E-RUN-001", "reap": "E-RUN-002"}.get(how)
    assert outcome.result == (7 if how == "complete" else None)
    if how == "fail":
        assert outcome.error == "ValueError: mine"


# Who comes last


async def family(db: asyncpg.Connection, make_worker: Any, number: int = 2, **join: Any) -> tuple[UUID, list[UUID]]:
    """A parked parent and its children, and no worker."""
    worker: Worker = make_worker()
    fan_out(worker, number, **join)
    async with worker:
        run_id = await insert(db)
        await parked(db, run_id)
    return run_id, [row["run_id"] for row in await all_of(db, "child")]


async def is_parked(db: asyncpg.Connection, run_id: UUID) -> bool:
    return await db.fetchval("SELECT waits_for IS NOT NULL FROM notifyworker.runs WHERE run_id = $1", run_id)


async def test_two_last_children_that_are_settled_at_the_same_moment(make_worker, db, dsn):
    """The first relies on the second, which does not see it: it leaves a note, and who looks afterwards lets the parent go on."""
    run_id, (one, other) = await family(db, make_worker)
    second = await asyncpg.connect(dsn)
    async with second.transaction():
        await second.execute("SELECT notifyworker.cancel($1)", one)  # the other is untouched: it will look
        assert await second.fetchval("SELECT count(*) FROM notifyworker.child_checks") == 0
        await db.execute("SELECT notifyworker.cancel($1)", other)  # and finds the one on its way
        assert await db.fetchval("SELECT count(*) FROM notifyworker.child_checks") == 1
        assert await is_parked(db, run_id)
        assert await db.fetchval(CHECK) is False  # the one is still on its way
    await second.close()
    assert await is_parked(db, run_id)

    worker: Worker = make_worker()
    fan_out(worker)
    async with worker:
        run = await settled(db, run_id)
        await no_notes(db)  # the note goes after the parent has gone on
    assert json.loads(run["result"]) == ["cancelled", "cancelled"]


async def test_in_one_transaction_or_one_after_the_other_there_is_no_note(make_worker, db):
    run_id, children = await family(db, make_worker, 5)
    await db.execute("SELECT notifyworker.cancel($1)", children[4])
    assert await is_parked(db, run_id)
    assert await db.fetchval("SELECT done FROM notifyworker.cancel_runs('child')") == 4
    assert not await is_parked(db, run_id)
    assert await db.fetchval("SELECT count(*) FROM notifyworker.child_checks") == 0


async def test_under_another_isolation_a_note_is_left(make_worker, db):
    run_id, children = await family(db, make_worker)
    async with db.transaction(isolation="repeatable_read"):
        for child in children:
            await db.execute("SELECT notifyworker.cancel($1)", child)
    assert await is_parked(db, run_id)
    assert await db.fetchval(CHECK)
    assert not await is_parked(db, run_id)


async def test_a_last_child_that_ends_while_the_parent_is_locked(make_worker, db, dsn):
    run_id, (child,) = await family(db, make_worker, 1)
    second = await asyncpg.connect(dsn)
    async with second.transaction():
        await second.execute("SELECT FROM notifyworker.runs WHERE run_id = $1 FOR UPDATE", run_id)
        await db.execute("SELECT notifyworker.cancel($1)", child)  # waits for nobody
    await second.close()
    assert await is_parked(db, run_id)
    assert await db.fetchval(CHECK)  # there is a note
    assert not await is_parked(db, run_id)


@pytest.mark.parametrize("what", ["the note is lost", "no trigger has seen it"])
async def test_the_net_finds_a_parent_of_whom_nobody_has_said_anything(make_worker, db, dsn, what):
    run_id, children = await family(db, make_worker)
    if what == "the note is lost":
        second = await asyncpg.connect(dsn)
        async with second.transaction():
            await second.execute("SELECT FROM notifyworker.runs WHERE run_id = $1 FOR UPDATE", run_id)
            for child in children:
                await db.execute("SELECT notifyworker.cancel($1)", child)
        await second.close()
        assert await db.execute("DELETE FROM notifyworker.child_checks") == "DELETE 1"
    else:
        async with db.transaction():
            await db.execute("SET LOCAL session_replication_role = replica")
            await db.execute("DELETE FROM notifyworker.runs WHERE kind = 'child'")
    assert await is_parked(db, run_id)

    worker: Worker = make_worker()
    fan_out(worker)
    async with worker:
        run = await settled(db, run_id)
    assert json.loads(run["result"]) == ["cancelled" if what == "the note is lost" else "deleted"] * 2


async def test_a_last_child_that_ends_while_the_parent_is_being_parked(make_worker, db, dsn):
    """A second join of a child that is there already: its end and the parking see neither each other."""
    worker: Worker = make_worker()
    start, go_on = asyncio.Event(), asyncio.Event()

    @worker.handler("parent")
    async def parent(run: Run) -> list[str]:
        child = await run.start("child")
        other = await run.start("other")
        await run.join([other])
        start.set()
        await go_on.wait()
        return [outcome.state for outcome in await run.join([child])]

    async with worker:
        run_id = await insert(db)
        await parked(db, run_id)
        await db.execute("SELECT notifyworker.cancel_runs('other')")
        await start.wait()
        second = await asyncpg.connect(dsn)
        async with second.transaction():
            await second.execute("SELECT notifyworker.cancel_runs('child')")  # sees a parent that is executed
            go_on.set()
            await parked(db, run_id)  # it saw a child that is live
        await second.close()
        run = await settled(db, run_id)
    assert json.loads(run["result"]) == ["cancelled"]


# Policies


@pytest.mark.parametrize(("policy", "rest"), [("raise", "completed"), ("cancel", "cancelled")])
async def test_a_child_that_fails_ends_the_wait(make_worker, db, policy, rest):
    worker: Worker = make_worker()
    go_on = asyncio.Event()
    errors: list[ChildFailed] = []

    @worker.handler("parent")
    async def parent(run: Run) -> None:
        await run.start("child", {"fails": True})
        await run.start("child", {"fails": False}, detached=True)
        try:
            await run.join(on_failure=policy)
        except ChildFailed as error:
            errors.append(error)
            go_on.set()
            raise

    @worker.handler("child", retry=Retry(max_attempts=1))
    async def child(run: Run, payload: dict) -> None:
        if payload["fails"]:
            raise ValueError("mine")
        await go_on.wait()

    async with worker:
        run_id = await insert(db)
        run = await settled(db, run_id)
        others = "SELECT state FROM notifyworker.children WHERE position = 2 AND state IS NOT NULL"
        assert await eventually(lambda: db.fetchval(others)) == rest

    assert (run["state"], run["error_code"]) == ("failed", "E-RUN-006")
    assert errors[0].outcome.error == "ValueError: mine"
    assert "is failed: ValueError: mine" in str(errors[0])


async def test_an_outcome_that_was_seen_stays_and_a_child_retried_later_is_on_its_own(make_worker, db):
    worker: Worker = make_worker()
    fixed, halt = asyncio.Event(), asyncio.Event()
    seen: list[str] = []

    @worker.handler("parent", retry=QUICKLY)
    async def parent(run: Run) -> None:
        await run.start("child")
        seen.append((await run.join())[0].state)
        if run.attempt == 1:
            await halt.wait()
            raise ValueError("again")

    @worker.handler("child", retry=Retry(max_attempts=1))
    async def child(run: Run) -> None:
        if not fixed.is_set():
            raise ValueError("mine")

    async with worker:
        run_id = await insert(db)
        await eventually(lambda: asyncio.sleep(0, seen))
        fixed.set()
        (row,) = await all_of(db, "child")
        await db.execute("SELECT notifyworker.retry($1)", row["run_id"])
        assert (await settled(db, row["run_id"]))["state"] == "completed"
        halt.set()
        await settled(db, run_id)
    assert seen == ["failed", "failed"]


async def test_a_child_that_is_retried_while_its_parent_waits_is_waited_for(make_worker, db):
    run_id, (one, other) = await family(db, make_worker)
    await db.execute("SELECT notifyworker.cancel($1)", one)
    await db.execute("SELECT notifyworker.retry($1)", one)
    await db.execute("SELECT notifyworker.cancel($1)", other)
    assert await is_parked(db, run_id)
    await db.execute("SELECT notifyworker.cancel($1)", one)
    assert not await is_parked(db, run_id)


async def test_a_cancelled_parent_takes_its_children_along_but_detached_ones(make_worker, db):
    worker: Worker = make_worker()
    begun, ended = asyncio.Event(), asyncio.Event()

    @worker.handler("parent")
    async def parent(run: Run) -> None:
        await run.start("child")
        await run.start("later", detached=True)
        await run.start("middle")
        await run.join()

    @worker.handler("middle")
    async def middle(run: Run) -> None:
        await run.start("leaf")
        await run.join()

    @worker.handler("child")
    async def child(run: Run) -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    async with worker:
        run_id = await insert(db)
        await parked(db, run_id)
        await begun.wait()
        await eventually(lambda: db.fetchval("SELECT true FROM notifyworker.runs WHERE kind = 'leaf'"))
        assert await db.fetchval("SELECT notifyworker.cancel($1)", run_id) == "cancelled"
        states = {row["kind"]: row["state"] for row in await db.fetch("SELECT kind, state FROM notifyworker.all_runs")}
        assert states == {
            "parent": "cancelled",
            "child": "cancelled",
            "middle": "cancelled",
            "leaf": "cancelled",
            "later": "pending",
        }
        await asyncio.wait_for(ended.wait(), SURELY_S)


async def test_children_that_are_locked_or_too_many_are_cancelled_by_the_leader(make_worker, db, dsn, monkeypatch):
    run_id, children = await family(db, make_worker, 1100)
    second = await asyncpg.connect(dsn)
    async with second.transaction():
        await second.execute("SELECT FROM notifyworker.runs WHERE run_id = $1 FOR UPDATE", children[0])
        await db.execute("SELECT notifyworker.cancel($1)", run_id)
    await second.close()
    assert await db.fetchval("SELECT count(*) FROM notifyworker.runs") == 100  # a thousand were cancelled, whoever was locked
    worker: Worker = make_worker()
    worker.handler("none")(_nothing)
    async with worker:
        await eventually(lambda: db.fetchval("SELECT count(*) = 0 FROM notifyworker.runs"))


@pytest.mark.parametrize("locked", ["a child of a cancelled parent", "a parent whose children are settled"])
async def test_what_stays_locked_is_looked_at_now_and_then(make_worker, db, dsn, locked, monkeypatch):
    looks: list[str] = []

    def counted(name: str) -> None:
        look = getattr(ChildrenStore, name)

        async def looked(self: ChildrenStore, *arguments: Any) -> Any:
            looks.append(name)
            return await look(self, *arguments)

        monkeypatch.setattr(ChildrenStore, name, looked)

    counted("cancelled_check")
    counted("parent_check")
    run_id, children = await family(db, make_worker)
    second = await asyncpg.connect(dsn)
    lock = second.transaction()
    await lock.start()
    is_parent = locked.startswith("a parent")
    await second.execute("SELECT FROM notifyworker.runs WHERE run_id = $1 FOR UPDATE", run_id if is_parent else children[0])
    for cancelled in children if is_parent else [run_id]:
        await db.execute("SELECT notifyworker.cancel($1)", cancelled)
    worker: Worker = make_worker()
    worker.handler("later")(_nothing)
    async with worker:
        later = "INSERT INTO notifyworker.runs (kind, run_at) VALUES ('later', now() + interval '2 s') RETURNING run_id"
        await settled(db, await db.fetchval(later))
        assert 1 <= len(looks) < 50  # without a pause there are hundreds
        assert await db.fetchval("SELECT count(*) FROM notifyworker.child_checks") == 1
        await lock.rollback()
        await no_notes(db)
        left = "SELECT count(*) FROM notifyworker.runs WHERE kind = 'child' OR waits_for IS NOT NULL"
        assert await db.fetchval(left) == 0
    await second.close()


async def _nothing(run: Run) -> None: ...


async def test_a_last_run_is_inserted_when_all_of_a_group_are_settled(make_worker, db, dsn):
    worker: Worker = make_worker()
    groups: list[ChildGroup] = []

    @worker.handler("parent")
    async def parent(run: Run) -> None:
        groups.append(await run.start_group([("child", {"n": n}) for n in range(4)], then=("report", {"of": "four"})))

    @worker.handler("child", retry=Retry(max_attempts=1))
    async def child(run: Run, payload: dict) -> None:
        if payload["n"] == 2:
            raise ValueError("mine")

    @worker.handler("report")
    async def report(run: Run, payload: dict) -> int:
        assert payload == {"of": "four"}
        async with Client(dsn) as client:
            return sum(child["state"] in {"completed", "failed"} for child in await client.children(parent_id))

    async with worker:
        parent_id = await insert(db)
        await settled(db, parent_id)
        run = await settled(db, groups[0].then)
    assert json.loads(run["result"]) == 4
    assert len(await all_of(db, "report")) == 1
    assert [row["run_id"] for row in await all_of(db, "child")] == groups[0].children
    assert await db.fetchval(OPEN) == 0


# Determinism


@pytest.mark.parametrize("mistake", ["other kind", "fewer", "other policy"])
async def test_a_handler_that_starts_something_else_is_told(make_worker, db, mistake):
    worker: Worker = make_worker()
    calls = 0

    @worker.handler("parent", retry=Retry(max_attempts=1))
    async def parent(run: Run) -> None:
        nonlocal calls
        calls += 1
        await run.start("child" if calls == 1 or mistake != "other kind" else "other")
        if calls == 1 or mistake != "fewer":
            await run.start("child")
        await run.join(on_failure="wait" if calls == 1 or mistake != "other policy" else "raise")

    worker.handler("child")(_nothing)
    async with worker:
        run = await settled(db, await insert(db))
    told = json.loads(run["errors"])[-1]["message"]
    assert run["state"] == "failed"
    assert {
        "other kind": "StepError: child 1 is now of kind 'other', and was started as 'child'",
        "fewer": "StepError: join or group 1 is now of the children {[1,2)}, on_failure=wait, and was of {[1,3)}",
        "other policy": "on_failure=raise, and was of {[1,3)}, on_failure=wait",
    }[mistake] in told


async def test_what_cant_be_is_told_at_the_call(make_worker, db):
    worker: Worker = make_worker()
    told: list[str] = []

    @worker.handler("parent")
    async def parent(run: Run) -> None:
        async def inner() -> None:
            await run.start("child")

        for call in (
            lambda: run.start(""), lambda: run.start("child", "x" * 2_000_000), lambda: run.start("child", idempotency_key="k"),
            lambda: run.join([run.run_id]), lambda: run.step("inner", inner),
        ):  # fmt: skip
            with pytest.raises(Exception) as raised:
                await call()
            told.append(str(raised.value))

    async with worker:
        run = await settled(db, await insert(db))
    assert run["state"] == "completed", run["errors"]
    assert told == [
        "kind: must have 1 to 200 characters, not 0",
        "payload: has 2000002 bytes, more than max_payload_bytes=1048576",
        "idempotency_key: can't be set of a child (there are: concurrency_key, expires_at, headers, max_attempts, priority, run_at, timeout)",
        f"{run['run_id']} is no child that this run has started",
        "run.start() is called inside of step 'inner' (call it in the handler itself)",
    ]
    assert await all_of(db, "child") == []


async def test_a_producer_cant_make_a_child(db):
    run_id = await insert(db)
    with pytest.raises(
        asyncpg.InvalidParameterValueError, match=r'column "parent_id" of notifyworker\.runs is set by the system'
    ):
        await db.execute("INSERT INTO notifyworker.runs (kind, parent_id) VALUES ('a', $1)", run_id)


async def test_a_shadow_run_starts_nothing(make_worker, db):
    worker: Worker = make_worker()

    @worker.handler("parent")
    async def parent(run: Run) -> list[Any]:
        await run.start("child", {"n": 1}, shadow_result=7)
        group = await run.start_group([("child", {})], then=("report", {}))
        first, second = await run.join()
        assert second.run_id == group.children[0]
        return [first.state, first.result]

    async with worker:
        run = await settled(db, await insert(db, is_shadow=True))
    assert json.loads(run["result"]) == ["completed", 7]
    assert [effect["args"][0] for effect in json.loads(run["effects"])] == ["child", "child", "report"]
    assert await db.fetchval("SELECT count(*) FROM notifyworker.all_runs") == 1


async def test_a_plain_handler_starts_and_cant_wait(make_worker, db):
    worker: Worker = make_worker()
    told: list[str] = []

    @worker.handler("parent")
    def parent(run: Run) -> str:
        child = run.start("child")
        try:
            run.join()
        except RuntimeError as error:
            told.append(str(error))
        return str(child)

    async with worker:
        run = await settled(db, await insert(db))
    (child,) = await all_of(db, "child")
    assert json.loads(run["result"]) == str(child["run_id"])
    assert "run.join() and run.event() are for async ones" in told[0]


async def test_in_a_transaction_children_go_with_what_is_written(make_worker, db):
    worker: Worker = make_worker()
    await db.execute("CREATE TABLE public.effects (run_id uuid)")

    @worker.handler("parent", retry=QUICKLY)
    async def parent(run: Run) -> None:
        async with run.transaction() as connection:
            await connection.execute("INSERT INTO public.effects VALUES ($1)", run.run_id)
            await run.start("child")
            if run.attempt == 1:
                raise ValueError("again")

    async with worker:
        await settled(db, await insert(db))
    assert len(await all_of(db, "child")) == 1
    assert await db.fetchval("SELECT count(*) FROM public.effects") == 1


async def test_a_retried_parent_starts_its_children_again(make_worker, db):
    worker: Worker = make_worker()
    fan_out(worker, 2)
    worker.handler("child")(_nothing)
    async with worker:
        run_id = await insert(db)
        await settled(db, run_id)
        await db.execute("SELECT notifyworker.retry($1)", run_id)
        await settled(db, run_id)
    assert len(await all_of(db, "child")) == 4


async def test_what_is_forgotten_is_forgotten(make_worker, db):
    worker: Worker = make_worker()
    fan_out(worker, 1)
    worker.handler("child")(_result)
    async with worker:
        run_id = await insert(db)
        await settled(db, run_id)
    (child,) = await all_of(db, "child")
    await db.execute("SELECT notifyworker.forget($1)", child["run_id"])
    assert tuple(await db.fetchrow("SELECT state, result FROM notifyworker.children")) == ("deleted", None)
    await db.execute("SELECT notifyworker.forget($1)", run_id)
    assert await db.fetchval("SELECT count(*) FROM notifyworker.children") == 0
    assert await db.fetchval("SELECT count(*) FROM notifyworker.child_groups") == 0


async def _result(run: Run) -> str:
    return "secret"


async def test_over_http_and_on_the_command_line(make_worker, db, dsn):
    worker: Worker = make_worker(sidecar=True, port=0)
    fan_out(worker, 3)
    env = {"NOTIFYWORKER_DSN": dsn}
    async with worker, _Session(str(worker.url)) as http:
        run_id = await insert(db)
        await parked(db, run_id)
        children = await all_of(db, "child")
        await db.execute("SELECT notifyworker.cancel($1)", children[0]["run_id"])
        _, shown = await http.get(f"/runs/{run_id}")
        assert (shown["state"], shown["waits_for"]) == ("pending", "children")
        first = shown["children"].pop("first")
        assert shown["children"] == {"live": 2, "completed": 0, "failed": 0, "cancelled": 1, "deleted": 0}
        assert [child["state"] for child in first] == ["cancelled", "pending", "pending"]
        _, shown = await http.get(f"/runs/{children[1]['run_id']}")
        assert (shown["parent_id"], shown["event"]) == (str(run_id), None)
        told = (await command("runs", "show", str(run_id), env=env)).out
        assert "waits for its children, without a slot" in told
        assert str(children[2]["run_id"]) in told
        assert (await command("runs", "show", str(children[0]["run_id"]), "--json", env=env)).json()["parent_id"] == str(run_id)


async def test_the_pages_examples(dsn, connection, monkeypatch):
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    text = PAGE.read_text()
    (python,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    page = types.ModuleType("children_page")
    exec(compile(python, str(PAGE), "exec"), page.__dict__)
    async with page.worker:
        run_id = await insert(connection, "album.make", {"pictures": ["a", "b", "c"]})
        run = await settled(connection, run_id)
        assert json.loads(run["result"]) == {"a.small": "completed", "b.small": "completed", "c.small": "completed"}
        await eventually(lambda: connection.fetchval("SELECT count(*) = 0 FROM notifyworker.runs"))
    assert [json.loads(row["payload"]) for row in await all_of(connection, "album.tell")] == [{"number": 3}]
    (sql,) = re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for statement in sql.strip().split(";\n"):
        assert await connection.fetch(statement.replace("'…'", f"'{run_id}'"))
    (shell,) = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for line in shell.splitlines():
        assert (await command(*line.replace("ID", str(run_id)).split()[1:], env={"NOTIFYWORKER_DSN": dsn})).code == 0


async def test_a_handler_is_tested_without_a_database():
    async def handle(run: Run) -> list[Any]:
        await run.start("child", {"n": 1})
        return [outcome.result for outcome in await run.join()] + [await run.event("paid")]

    outcome = ChildOutcome(UUID(int=1), "child", "completed", 7)
    run = HandlerRun(outcomes=[outcome], events={"paid": 8})
    assert await handle(run) == [7, 8]
    assert [(start.kind, start.payload) for start in run.started] == [("child", {"n": 1})]
    with pytest.raises(EventTimeout, match="'other' did not come in time"):
        await run.event("other")
