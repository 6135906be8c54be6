"""run.start(), run.join() and run.event() with connections cut and workers killed before and after each of their statements."""

import asyncio
import json
import types
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from chaos.wire import Rule, statement
from servers import STARTED_S, eventually
from test_children import all_of, insert, no_notes
from test_cli import ROOT, start
from test_steps import settled, take_from_its_worker

from notifyworker import Retry, Run, Worker

QUICKLY = Retry(max_attempts=3, base_s=0.01)
COMMIT = "COMMIT;"
SLOW = pytest.mark.slow
#: What is sent when a run is settled with two children, and when it is parked.
SETTLE = (
    pytest.param("BEGIN", marks=SLOW), pytest.param("SET LOCAL", marks=SLOW), pytest.param(statement("children_put"), marks=SLOW),
    statement("children_insert"), statement("settle"), COMMIT,
)  # fmt: skip
PARK = (
    pytest.param("BEGIN", marks=SLOW), pytest.param(statement("children_put"), marks=SLOW),
    pytest.param(statement("children_insert"), marks=SLOW), statement("child_group_put"), statement("park"), COMMIT,
)  # fmt: skip
NAMES = ["begin", "set", "put", "insert", "settle", "commit"]


@pytest.mark.parametrize("at", ["request", "answer"])
@pytest.mark.parametrize("text", SETTLE, ids=NAMES)
async def test_children_that_are_started_with_a_cut_are_started_once(make_proxied, db, proxy, text, at):
    worker: Worker = make_proxied()
    calls: list[list[UUID]] = []

    @worker.handler("parent", retry=QUICKLY)
    async def parent(run: Run) -> None:
        calls.append([await run.start("child"), await run.start("child")])

    rule = await proxy.arm(Rule(text, at, "cut", purpose="handler"))
    async with worker:
        run = await settled(db, await insert(db))
    assert rule.fired.is_set()
    assert (run["state"], run["attempt"], len(calls)) == ("completed", 1, 1)
    assert [row["run_id"] for row in await all_of(db, "child")] == calls[0]


@pytest.fixture
async def db(connection: asyncpg.Connection) -> asyncpg.Connection:
    return connection


@pytest.mark.parametrize("at", ["request", "answer"])
@pytest.mark.parametrize("text", PARK, ids=["begin", "put", "insert", "group", "park", "commit"])
async def test_a_parent_that_is_parked_with_a_cut_joins_its_children_once(make_proxied, db, proxy, text, at):
    worker: Worker = make_proxied()

    @worker.handler("parent", retry=QUICKLY)
    async def parent(run: Run) -> list[Any]:
        await run.start("child")
        await run.start("child")
        return [outcome.result for outcome in await run.join()]

    @worker.handler("child")
    async def child(run: Run) -> int:
        return 7

    rule = await proxy.arm(Rule(text, at, "cut", purpose="handler"))
    async with worker:
        run = await settled(db, await insert(db))
    assert rule.fired.is_set()
    assert (run["state"], run["attempt"], json.loads(run["result"])) == ("completed", 1, [7, 7])
    assert len(await all_of(db, "child")) == 2
    await no_notes(db)


@pytest.mark.parametrize("at", ["request", "answer"])
@pytest.mark.parametrize(
    ("name", "purpose"),
    [
        ("settle", "settle"), ("children_load", "side"), ("child_groups_load", "side"), ("child_group_close", "side"),
        ("child_outcomes", "side"), ("fresh_ids", "side"), ("event_take", "side"),
    ],
)  # fmt: skip
async def test_a_cut_around_the_wait(make_proxied, db, proxy, name, purpose, at):  # noqa: PLR0917 - fixtures and cases
    """The settle of the last child, and what the parent asks before and after it has waited."""
    worker: Worker = make_proxied()

    @worker.handler("parent", retry=QUICKLY)
    async def parent(run: Run) -> list[Any]:
        await run.start("child")
        (outcome,) = await run.join()
        return [outcome.result, await run.event("paid", timeout=3600)]

    @worker.handler("child")
    async def child(run: Run) -> int:
        return 7

    run_id = await insert(db)
    rule = await proxy.arm(Rule(statement(name), at, "cut", purpose=purpose))
    async with worker:
        await eventually(lambda: db.fetchval("SELECT true FROM notifyworker.event_waits"))
        await db.execute("SELECT notifyworker.emit('paid', '8', run_id => $1)", run_id)
        run = await settled(db, run_id)
    assert rule.fired.is_set()
    assert (run["state"], run["attempt"], json.loads(run["result"])) == ("completed", 1, [7, 8])
    assert len(await all_of(db, "child")) == 1


async def test_a_question_that_nobody_answers_ends_with_its_worker(make_proxied, db, proxy):
    """The handler has been given up; what it had asked goes on in a task of its own, and asked a closed connection for ever."""
    worker: Worker = make_proxied(drain_timeout_s=0.1)

    @worker.handler("parent")
    async def parent(run: Run) -> None:
        await run.event("paid")

    await insert(db)
    rule = await proxy.arm(Rule(statement("event_take"), "request", "hold", purpose="side"))
    async with worker:
        await eventually(rule.fired.is_set)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "notifyworker commit"]


KILLED_APP = """
from notifyworker import Run, Worker

worker = Worker()


@worker.handler("parent")
async def parent(run: Run) -> list:
    await run.start("child")
    await run.start("child")
    outcomes = await run.join()
    await run.start("after")
    return [outcome.result for outcome in outcomes] + [await run.event("paid")]


@worker.handler("child")
async def child(run: Run) -> int:
    return 7
"""


@pytest.mark.parametrize("at", ["request", "answer"])
@pytest.mark.parametrize(
    ("text", "purpose"),
    [
        pytest.param(statement("children_insert"), "handler", marks=SLOW), pytest.param(statement("park"), "handler", marks=SLOW),
        (COMMIT, "handler"), (statement("settle"), "settle"),
        pytest.param(statement("child_group_close"), "side", marks=SLOW), pytest.param(statement("event_take"), "side", marks=SLOW),
    ],
    ids=["insert", "park", "commit", "last settle", "close", "event"],
)  # fmt: skip
async def test_a_worker_that_is_killed_at_any_statement(make_worker, db, dsn, proxy, tmp_path, text, purpose, at):  # noqa: PLR0917 - fixtures and cases
    """Another goes on: each child is there once and is executed, and the parent gets what it waits for."""
    (tmp_path / "killed_app.py").write_text(KILLED_APP)
    env = {"NOTIFYWORKER_DSN": proxy.through(dsn), "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    process = await start("worker", "killed_app:worker", "--no-sidecar", cwd=tmp_path, env=env)
    rule = await proxy.arm(Rule(text, at, "cut", purpose=purpose, deed=lambda _name: process.kill()))
    run_id = await insert(db)
    await asyncio.wait_for(process.communicate(), STARTED_S)
    assert rule.fired.is_set()
    await take_all(dsn)

    app = types.ModuleType("killed_app")
    exec(compile(KILLED_APP.replace("Worker()", "None").replace("@worker.handler", "#"), "killed_app", "exec"), app.__dict__)
    worker: Worker = make_worker()
    worker.handler("parent")(app.parent)
    worker.handler("child")(app.child)
    async with worker:
        await eventually(lambda: db.fetchval("SELECT true FROM notifyworker.event_waits"))
        await db.execute("SELECT notifyworker.emit('paid', '8', run_id => $1)", run_id)
        run = await settled(db, run_id)

    assert (run["state"], json.loads(run["result"])) == ("completed", [7, 7, 8])
    assert [row["state"] for row in await all_of(db, "child")] == ["completed"] * 2
    assert len(await all_of(db, "after")) == 1
    await no_notes(db)


async def take_all(dsn: str) -> None:
    """As the reaper does with the runs of a worker that is gone, if it holds any."""
    db = await asyncpg.connect(dsn)
    if await db.fetchval("SELECT count(*) FROM notifyworker.runs WHERE state = 'running'"):
        await db.close()
        await take_from_its_worker(dsn)
    else:
        await db.close()


async def test_two_workers_race_for_the_end_of_many_families(make_worker, db, dsn):
    """Their settles meet in the middle of a family again and again; each parent goes on, once."""
    workers: list[Worker] = [make_worker(concurrency=20) for _ in range(2)]

    async def parent(run: Run) -> int:
        for n in range(6):
            await run.start("child", {"n": n})
        return sum(outcome.result for outcome in await run.join())

    async def child(run: Run, payload: dict) -> int:
        return payload["n"]

    for worker in workers:
        worker.handler("parent")(parent)
        worker.handler("child")(child)
    async with workers[0], workers[1]:
        await db.execute("INSERT INTO notifyworker.runs (kind) SELECT 'parent' FROM generate_series(1, 100)")
        await eventually(lambda: db.fetchval("SELECT count(*) = 0 FROM notifyworker.runs"))
        await no_notes(db)
    parents = await all_of(db, "parent")
    assert {(row["state"], row["result"], row["attempt"]) for row in parents} == {("completed", "15", 1)}
    children = await all_of(db, "child")
    assert (len(parents), len(children)) == (100, 600)
    assert {row["state"] for row in children} == {"completed"}


@pytest.mark.slow
async def test_ten_thousand_children_of_one_parent(make_worker, db):
    worker: Worker = make_worker(concurrency=100)

    @worker.handler("parent")
    async def parent(run: Run) -> int:
        for n in range(10_000):
            await run.start("child", {"n": n})
        return sum(outcome.result for outcome in await run.join())

    @worker.handler("child")
    async def child(run: Run, payload: dict) -> int:
        return payload["n"]

    async with worker:
        run_id = await insert(db)
        query = "SELECT * FROM notifyworker.all_runs WHERE run_id = $1 AND finished_at IS NOT NULL"
        run = await eventually(lambda: db.fetchrow(query, run_id), 120)
    assert (run["state"], run["result"]) == ("completed", str(sum(range(10_000))))
    assert await db.fetchval("SELECT count(*) FROM notifyworker.run_history WHERE kind = 'child' AND attempt = 1") == 10_000
