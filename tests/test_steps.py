"""run.step(): what was done once is not done again, whatever becomes of the worker; and what is recorded is told plainly."""

import asyncio
import json
import re
import time
import types
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import structlog
from chaos.proxy import Proxy
from chaos.wire import Rule, statement
from servers import STARTED_S, eventually
from test_cli import ROOT, refused, start
from test_cli import call as command
from test_pauses import _Session

from notifyworker import Client, Fail, InvalidRun, LeaseLost, Retry, Run, Snooze, Worker
from notifyworker.store import Store

PAGE = Path(__file__).parents[1] / "docs" / "steps.md"
INSERT = "INSERT INTO notifyworker.runs (kind, payload, is_shadow) VALUES ('a', $1, $2) RETURNING run_id"
WRITE = "INSERT INTO public.effects (run_id) VALUES ($1)"
QUICKLY = Retry(max_attempts=3, base_s=0.01)


@pytest.fixture
async def db(connection: asyncpg.Connection) -> asyncpg.Connection:
    await connection.execute("CREATE TABLE public.effects (run_id uuid NOT NULL)")
    return connection


async def insert(db: asyncpg.Connection, payload: Any = None, *, is_shadow: bool = False) -> UUID:
    return await db.fetchval(INSERT, json.dumps(payload or {}), is_shadow)


async def settled(db: asyncpg.Connection, run_id: UUID) -> asyncpg.Record:
    query = "SELECT * FROM notifyworker.all_runs WHERE run_id = $1 AND finished_at IS NOT NULL"
    return await eventually(lambda: db.fetchrow(query, run_id))


async def recorded(db: asyncpg.Connection) -> list[tuple[Any, ...]]:
    rows = await db.fetch("SELECT position, name, attempt, result, error FROM notifyworker.steps ORDER BY position")
    return [tuple(row) for row in rows]


async def take_from_its_worker(dsn: str) -> None:
    """As the reaper does with the run of a worker that is gone."""
    db = await asyncpg.connect(dsn)
    try:
        async with db.transaction():  # or a heartbeat could renew it in between
            await db.execute("UPDATE notifyworker.runs SET lease_expires_at = now() WHERE state = 'running'")
            assert len(await Store("notifyworker").reap(db, limit=1, reaper="test", presumed_dead=[])) == 1
    finally:
        db.terminate()  # whoever calls it in a handler may be cancelled here


class Done:
    """What the steps of a test have done, and how often."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    async def __call__(self, name: str, result: Any = None) -> Any:
        self.calls[name] += 1
        return result


@pytest.fixture
def done() -> Done:
    return Done()


async def test_a_step_is_executed_once_and_returns_the_same_each_time(make_worker, db, done):
    @dataclass
    class Charge:
        amount: float
        parts: tuple[int, ...]

    worker: Worker = make_worker()
    seen: list[Any] = []

    @worker.handler("a", retry=QUICKLY)
    async def handle(run: Run) -> None:
        charge = await run.step("charge", done, "charge", result=Charge(1e22, (1, 2)))
        nothing = await run.step("nothing", done, "nothing")
        number = await run.step("number", done, "number", 2**70)
        long = await run.step("long", done, "long", "ä" * 10_000)
        seen.append((charge, nothing, number, long))
        if run.attempt < 3:
            raise ValueError("again")

    async with worker:
        run = await settled(db, await insert(db))

    assert (run["state"], run["attempt"]) == ("completed", 3)
    assert done.calls == {"charge": 1, "nothing": 1, "number": 1, "long": 1}
    assert seen == [({"amount": 1e22, "parts": [1, 2]}, None, 2**70, "ä" * 10_000)] * 3
    assert isinstance(seen[2][0]["amount"], float)
    steps = await recorded(db)
    assert [(position, name, attempt) for position, name, attempt, *_ in steps] == [
        (1, "charge", 1),
        (2, "nothing", 1),
        (3, "number", 1),
        (4, "long", 1),
    ]
    times = "SELECT bool_and(r.started_at <= now() AND s.started_at <= s.finished_at AND s.finished_at <= r.finished_at) FROM notifyworker.steps AS s, notifyworker.run_history AS r"
    assert await db.fetchval(times) is True


async def test_a_plain_function_is_executed_in_a_thread(make_worker, db):
    worker: Worker = make_worker()
    threads: list[str] = []

    def plain(number: int) -> int:
        import threading

        threads.append(threading.current_thread().name)
        return number + 1

    @worker.handler("a")
    async def handle(run: Run) -> list[int]:
        first = await run.step("plain", plain, 1)
        return [first, *await asyncio.gather(*(run.step(f"plain:{n}", plain, number=n) for n in range(3)))]

    async with worker:
        run = await settled(db, await insert(db))

    assert json.loads(run["result"]) == [2, 1, 2, 3]
    assert all(name.startswith("notifyworker handler") for name in threads)


async def test_a_thread_that_outlives_its_run_keeps_its_slot(make_worker, db):
    worker: Worker = make_worker(concurrency=1, replaced_slots=0)
    go_on = [False]

    def wait() -> None:
        while not go_on[0]:
            time.sleep(0.005)

    @worker.handler("a", timeout=1, retry=Retry(max_attempts=1))
    async def handle(run: Run) -> None:
        await asyncio.gather(run.step("quick", time.sleep, 0), run.step("slow", wait), run.step("quick2", time.sleep, 0))

    async with worker:
        run = await settled(db, await insert(db))
        conductor: Any = worker._conductor
        used = conductor.slots.used
        go_on[0] = True
        await eventually(lambda: conductor.slots.used == 0)
    assert used == 1
    assert run["error_code"] == "E-RUN-003"


async def test_another_worker_goes_on_where_the_first_one_stood(make_worker, db, dsn, done):
    """Two workers race for it: the one that has lost it is told at its next step, and writes nothing."""
    told: list[BaseException] = []
    workers = [make_worker(), make_worker()]

    async def handle(run: Run) -> list[int]:
        try:
            first = await run.step("one", done, "one", 1)
            if run.lease_token == 1:
                await take_from_its_worker(dsn)
                await eventually(lambda: done.calls["two"])
            return [first, await run.step("two", done, "two", 2)]
        except BaseException as error:
            told.append(error)
            raise

    for worker in workers:
        worker.handler("a")(handle)
    async with workers[0], workers[1]:
        run = await settled(db, await insert(db))
        await eventually(lambda: told)

    assert (run["state"], run["attempt"], json.loads(run["result"])) == ("completed", 2, [1, 2])
    assert isinstance(told[0], LeaseLost | asyncio.CancelledError)
    assert done.calls["one"] == 1
    assert [step[:3] for step in await recorded(db)] == [(1, "one", 1), (2, "two", 2)]
    assert await db.fetchval("SELECT array_agg(lease_token ORDER BY position) FROM notifyworker.steps") == [1, 2]


async def test_what_a_zombie_still_records_is_refused(make_worker, db, handlers_own):
    worker: Worker = make_worker()
    told: list[BaseException] = []

    async def lose_it(db: asyncpg.Connection) -> int:
        await db.execute("UPDATE notifyworker.runs SET lease_token = lease_token + 1, lease_owner = 'another'")
        return 1

    @worker.handler("a")
    async def handle(run: Run) -> None:
        try:
            await run.step("one", lose_it, handlers_own)
        except BaseException as error:
            told.append(error)
            raise

    async with worker:
        await insert(db)
        await eventually(lambda: told)

    assert isinstance(told[0], LeaseLost | asyncio.CancelledError)
    assert await recorded(db) == []


async def test_a_run_locked_for_a_moment_is_waited_for(make_worker, db, dsn, handlers_own):
    worker: Worker = make_worker()
    stranger = await asyncpg.connect(dsn)
    lock = stranger.transaction()
    tried = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '-- Which of these runs are still%' AND datname = current_database()"

    async def release() -> None:
        await eventually(lambda: handlers_own.fetchval(tried))
        await lock.rollback()

    releasing: list[asyncio.Task[None]] = []

    async def locked() -> int:
        await lock.start()
        await stranger.execute("SELECT FROM notifyworker.runs FOR UPDATE")
        releasing.append(asyncio.create_task(release()))
        return 1

    @worker.handler("a")
    async def handle(run: Run) -> int:
        return await run.step("one", locked)

    async with worker:
        run_id = await insert(db)
        await eventually(lambda: releasing)
        await releasing[0]
        run = await settled(db, run_id)
    await stranger.close()

    assert (run["state"], run["attempt"]) == ("completed", 1)
    assert [step[:4] for step in await recorded(db)] == [(1, "one", 1, "1")]


async def test_steps_side_by_side_have_the_place_at_which_they_were_called(make_worker, db, dsn, done):
    worker: Worker = make_worker()
    own = await asyncpg.connect(dsn)

    async def slow(name: str) -> str:
        done.calls[name] += 1
        if done.calls[name] == 1:
            await eventually(lambda: own.fetchval("SELECT count(*) = 2 FROM notifyworker.steps"))
            raise ConnectionError(name)
        return name

    @worker.handler("a", retry=QUICKLY)
    async def handle(run: Run) -> list[str]:
        return await asyncio.gather(run.step("slow", slow, "slow"), run.step("b", done, "b", "b"), run.step("c", done, "c", "c"))

    async with worker:
        run = await settled(db, await insert(db))
    await own.close()

    assert (run["state"], json.loads(run["result"])) == ("completed", ["slow", "b", "c"])
    assert done.calls == {"slow": 2, "b": 1, "c": 1}
    assert [step[:3] for step in await recorded(db)] == [(1, "slow", 2), (2, "b", 1), (3, "c", 1)]


async def test_what_a_step_raises_is_shown_and_it_is_executed_again(make_worker, db, dsn, done):
    worker: Worker = make_worker()
    own = await asyncpg.connect(dsn)
    shown: list[Any] = []

    async def fails_first(attempt: int) -> str:
        if attempt == 1:
            raise ConnectionError("no \0 route")
        return "done"

    @worker.handler("a", retry=QUICKLY)
    async def handle(run: Run) -> None:
        if run.attempt == 2:
            shown.extend(await recorded(own))
        await run.step("send", fails_first, run.attempt)

    async with worker:
        await settled(db, await insert(db))
    await own.close()

    assert shown == [(1, "send", 1, None, "ConnectionError: no � route")]
    assert await recorded(db) == [(1, "send", 2, '"done"', None)]


@pytest.mark.parametrize(("wish", "state"), [(Snooze(0.01), "completed"), (Fail("no"), "failed")])
async def test_a_wish_in_a_step_is_the_handlers(make_worker, db, wish, state):
    worker: Worker = make_worker()

    async def wishes(token: int) -> None:
        if token == 1:
            raise wish

    @worker.handler("a")
    async def handle(run: Run) -> None:
        await run.step("wish", wishes, run.lease_token)

    async with worker:
        run = await settled(db, await insert(db))

    assert (run["state"], run["attempt"]) == (state, 1)
    assert len(await recorded(db)) == (1 if state == "completed" else 0)


# Told plainly


async def other_name(run: Run, done: Done) -> None:
    await run.step("one" if run.attempt == 1 else "uno", done, "one")


async def other_order(run: Run, done: Done) -> None:
    for name in ("one", "two") if run.attempt == 1 else ("two", "one"):
        await run.step(name, done, name)


async def one_in_between(run: Run, done: Done) -> None:
    for name in ("one", "two") if run.attempt == 1 else ("one", "new", "two"):
        await run.step(name, done, name)


async def twice(run: Run, done: Done) -> None:
    await run.step("one", done, "one")
    await run.step("one", done, "one")


async def nested(run: Run, done: Done) -> None:
    async def outer() -> None:
        await run.step("inner", done, "one")

    await run.step("outer", outer)


async def no_name(run: Run, done: Done) -> None:
    await run.step("", done, "one")


async def too_many(run: Run, done: Done) -> None:
    for number in range(1001):
        await run.step(f"one:{number}", done, "many")


async def plain_in_transaction(run: Run, done: Done) -> None:
    await run.step_transaction("one", time.sleep, 1)  # type: ignore[arg-type]


async def ends_its_transaction(run: Run, done: Done) -> None:
    async def commits(connection: asyncpg.Connection) -> None:
        await connection.execute("COMMIT")

    await run.step_transaction("one", commits)


async def inside_of_transaction(run: Run, done: Done) -> None:
    """Where all connections are taken by transactions, each would wait for another's end."""
    async with run.transaction():
        await run.step_transaction("one", commits_nothing)


async def transaction_inside(run: Run, done: Done) -> None:
    async def settles() -> None:
        async with run.transaction():
            await done("one")

    await run.step("outer", settles)


async def commits_nothing(connection: asyncpg.Connection) -> None: ...


@pytest.mark.parametrize(
    ("mistake", "told", "calls"),
    [
        (other_name, r"step 1 is now 'uno', and is recorded as 'one' .*from_step=1", {"one": 1}),
        (
            other_order,
            r"step 1 is now 'two', and is recorded as 'one'; 'two' is recorded as step 2",
            {"one": 1, "two": 1},
        ),
        (one_in_between, r"step 2 is now 'new', and is recorded as 'two' .*from_step=2", {"one": 1, "two": 1}),
        (twice, r"step 'one' is called twice in one run .*f\"charge:", {"one": 1}),
        (nested, r"step 'inner' is called inside of step 'outer'", {}),
        (no_name, r"the name of a step must be text of 1 to 200 characters, not ''", {}),
        (too_many, r"step 'one:1000' is one more than the 1000", {"many": 1000}),
        (plain_in_transaction, r"step 'one' must be an async function", {}),
        (inside_of_transaction, r"step_transaction 'one' is called inside of transaction\(\) .*write on that", {}),
        (transaction_inside, r"transaction\(\) is opened inside of step 'outer'", {}),
        (ends_its_transaction, r"the transaction of step 'one' was ended inside of it", {}),
    ],
)
async def test_a_mistake_is_told_and_nothing_is_executed_for_it(make_worker, db, done, mistake, told, calls):  # noqa: PLR0917 - fixtures and cases
    worker: Worker = make_worker()

    @worker.handler("a", retry=Retry(max_attempts=2, base_s=0.01))
    async def handle(run: Run) -> None:
        await mistake(run, done)
        raise ValueError("again")

    async with worker:
        run = await settled(db, await insert(db))

    assert (run["state"], run["error_code"]) == ("failed", "E-RUN-001")
    assert re.search(told, json.loads(run["errors"])[-1]["message"]), run["errors"]
    assert done.calls == calls


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (float("nan"), "the result of step 'one' can't be stored: result is nan"),
        ({"a": ["\0"]}, r"the result of step 'one' can't be stored: result.a\[0\] contains NUL"),
        (object(), "the result of step 'one' can't be stored: "),
        ("x" * 2000, "the result of step 'one' has 2002 bytes, more than max_result_bytes=1000"),
    ],
)
@pytest.mark.parametrize("in_transaction", [False, True])
async def test_a_result_that_cant_be_stored_fails_the_run_and_names_the_step(make_worker, db, result, told, in_transaction):
    await db.execute("UPDATE notifyworker.settings SET value = '1000' WHERE name = 'max_result_bytes'")
    worker: Worker = make_worker()

    async def returns(connection: asyncpg.Connection | None = None) -> Any:
        if connection is not None:
            await connection.execute(WRITE, UUID(int=0))
        return result

    @worker.handler("a")
    async def handle(run: Run) -> None:
        await (run.step_transaction if in_transaction else run.step)("one", returns)

    async with worker:
        run = await settled(db, await insert(db))

    assert (run["state"], run["error_code"], run["attempt"]) == ("failed", "E-RUN-005", 1)
    assert re.search(told, json.loads(run["errors"])[0]["message"])
    assert (await recorded(db), await db.fetchval("SELECT count(*) FROM public.effects")) == ([], 0)


async def test_what_the_server_refuses_costs_one_run_and_not_those_that_are_written_with_it(make_worker, db, monkeypatch, done):
    """Nothing that passes our own checks is known to be refused: so one is let past them."""
    worker: Worker = make_worker()
    monkeypatch.setattr(
        "notifyworker.steps._encoded", lambda _name, value, _max: "not JSON" if value == "poison" else json.dumps(value)
    )

    @worker.handler("a")
    async def handle(run: Run, payload: str) -> None:
        await asyncio.gather(*(run.step(f"{n}", done, "all", payload) for n in range(5)))

    async with worker:
        runs = [await settled(db, await insert(db, payload)) for payload in ("fine", "poison", "fine")]
        both = await asyncio.gather(*(insert_apart(db, worker, payload) for payload in ("poison", "fine")))

    assert [run["error_code"] for run in runs] == [None, "E-RUN-005", None]
    assert sorted(str(run["error_code"]) for run in both) == ["E-RUN-005", "None"]
    assert "the result of step '0' can't be stored: 22P02" in runs[1]["errors"]


async def insert_apart(db: asyncpg.Connection, worker: Worker, payload: str) -> asyncpg.Record:
    conn = await asyncpg.connect(worker.settings.require_dsn())
    try:
        return await settled(conn, await insert(conn, payload))
    finally:
        await conn.close()


# In one transaction with what it writes


async def write(connection: asyncpg.Connection, run_id: UUID, number: int = 1) -> int:
    await connection.execute(WRITE, run_id)
    return number


async def effects(db: asyncpg.Connection) -> int:
    return await db.fetchval("SELECT count(*) FROM public.effects")


async def test_effect_and_record_are_there_at_the_same_moment(make_worker, db, dsn):
    worker: Worker = make_worker()
    own = await asyncpg.connect(dsn)
    inside, go_on = asyncio.Event(), asyncio.Event()
    both = "SELECT (SELECT count(*) FROM public.effects), (SELECT count(*) FROM notifyworker.steps)"

    async def waits(connection: asyncpg.Connection, run_id: UUID) -> str:
        await connection.execute(WRITE, run_id)
        inside.set()
        await go_on.wait()
        return "written"

    @worker.handler("a", retry=QUICKLY)
    async def handle(run: Run) -> str:
        result = await run.step_transaction("write", waits, run.run_id)
        if run.attempt == 1:
            assert tuple(await own.fetchrow(both)) == (1, 1)
            raise ValueError("again")
        return result

    async with worker:
        run_id = await insert(db)
        await inside.wait()
        assert tuple(await db.fetchrow(both)) == (0, 0)
        go_on.set()
        run = await settled(db, run_id)
    await own.close()

    assert (run["attempt"], run["result"], await effects(db)) == (2, '"written"', 1)


async def test_a_step_that_raises_in_its_transaction_writes_nothing(make_worker, db):
    worker: Worker = make_worker()

    async def fails_first(connection: asyncpg.Connection, run: Run) -> None:
        await connection.execute(WRITE, run.run_id)
        if run.attempt == 1:
            raise ValueError("no")

    @worker.handler("a", retry=QUICKLY)
    async def handle(run: Run) -> None:
        await run.step_transaction("write", fails_first, run)

    async with worker:
        run = await settled(db, await insert(db))

    assert (run["state"], run["attempt"], await effects(db)) == ("completed", 2, 1)
    assert await recorded(db) == [(1, "write", 2, None, None)]


async def test_a_transaction_under_a_lost_lease_writes_nothing(make_worker, db, handlers_own):
    worker: Worker = make_worker()
    told: list[BaseException] = []

    async def lose_it(connection: asyncpg.Connection, run: Run) -> None:
        await connection.execute(WRITE, run.run_id)
        await handlers_own.execute("UPDATE notifyworker.runs SET lease_token = lease_token + 1, lease_owner = 'another'")

    @worker.handler("a")
    async def handle(run: Run) -> None:
        try:
            await run.step_transaction("write", lose_it, run)
        except BaseException as error:
            told.append(error)
            raise

    async with worker:
        await insert(db)
        await eventually(lambda: told)

    assert isinstance(told[0], LeaseLost | asyncio.CancelledError)
    assert (await recorded(db), await effects(db)) == ([], 0)


async def test_a_shadow_runs_steps_are_executed_and_stand_for_nothing_in_earnest(make_worker, db, done):
    """The function is the handler's own code; what it writes in step_transaction is rolled back, and effects are not made."""
    shadow: Worker = make_worker(shadow="enforce", drain_timeout_s=0)
    earnest: Worker = make_worker()
    ready = asyncio.Event()

    async def handle(run: Run) -> list[Any]:
        async def charge() -> str:
            return await run.effect("charge", done, "effect", "charged", shadow_result="nothing")

        result = [await run.step("charge", charge, in_shadow="call"), await run.step_transaction("write", write, run.run_id)]
        if run.is_shadow:
            ready.set()
            await asyncio.Event().wait()
        return result

    for worker in (shadow, earnest):
        worker.handler("a")(handle)
    async with shadow:
        run_id = await insert(db)
        await ready.wait()
        assert (await effects(db), done.calls) == (0, {})
        assert [step[:4] for step in await recorded(db)] == [(1, "charge", 1, '"nothing"'), (2, "write", 1, "1")]
        assert await db.fetchval("SELECT bool_and(is_shadow) FROM notifyworker.steps") is True
    async with earnest:
        run = await settled(db, run_id)

    assert (run["is_shadow"], json.loads(run["result"])) == (False, ["charged", 1])
    assert (await effects(db), done.calls) == (1, {"effect": 1})
    assert await db.fetchval("SELECT bool_or(is_shadow) FROM notifyworker.steps") is False


# Cut before and after every statement of it


@pytest.mark.parametrize("at", ["request", "answer"])
@pytest.mark.parametrize("name", ["steps_put", "steps_load", "step_result"])
async def test_a_cut_connection_repeats_no_step(make_proxied, db, proxy, done, name, at):  # noqa: PLR0917 - fixtures and cases
    worker: Worker = make_proxied()

    @worker.handler("a", retry=QUICKLY)
    async def handle(run: Run) -> None:
        await run.step("one", done, "one", "x" * 5000)
        await run.step("two", done, "two", 2)
        if run.attempt == 1:
            raise ValueError("again")

    rule = await proxy.arm(Rule(statement(name), at, "cut", purpose="side"))
    async with worker:
        run = await settled(db, await insert(db))

    assert rule.fired.is_set()
    assert (run["state"], run["attempt"], done.calls) == ("completed", 2, {"one": 1, "two": 1})
    assert [step[:3] for step in await recorded(db)] == [(1, "one", 1), (2, "two", 1)]


COMMIT = "COMMIT;"  # BEGIN has READ COMMITTED
STATEMENTS = ("BEGIN", WRITE, "SET LOCAL", statement("steps_put"), COMMIT)


@pytest.mark.parametrize("at", ["request", "answer"])
@pytest.mark.parametrize("text", STATEMENTS, ids=["begin", "write", "set", "put", "commit"])
async def test_a_cut_transaction_writes_once(make_proxied, db, proxy, text, at):
    """Where the COMMIT was executed and only its answer is lost, the handler goes on."""
    worker: Worker = make_proxied()
    called: list[int] = []

    @worker.handler("a", retry=QUICKLY)
    async def handle(run: Run) -> int:
        called.append(run.attempt)
        return await run.step_transaction("write", write, run.run_id, 7)

    rule = await proxy.arm(Rule(text, at, "cut", purpose="handler"))
    async with worker:
        run = await settled(db, await insert(db))

    assert rule.fired.is_set()
    expected = 1 if (text, at) == (COMMIT, "answer") else 2
    assert called == [1, 2][:expected]
    assert (run["state"], run["attempt"], run["result"]) == ("completed", expected, "7")
    assert await effects(db) == 1
    assert await recorded(db) == [(1, "write", expected, "7", None)]


KILLED_APP = """
from pathlib import Path

from notifyworker import Run, Worker

worker = Worker()


def mark(file: str) -> int:
    with Path(file).open("a") as marks:
        marks.write("x")
    return 1


async def write(connection, run_id) -> int:
    await connection.execute("INSERT INTO public.effects (run_id) VALUES ($1)", run_id)
    return 2


@worker.handler("a")
async def handle(run: Run, payload: dict) -> list[int]:
    return [await run.step("mark", mark, payload["file"]), await run.step_transaction("write", write, run.run_id)]
"""


@pytest.mark.parametrize("at", ["request", "answer"])
@pytest.mark.parametrize(
    ("text", "purpose"),
    [(statement("steps_put"), "side"), (COMMIT, "handler")],
    ids=["record", "commit"],
)
async def test_a_worker_that_is_killed_at_any_statement(make_worker, db, dsn, proxy, tmp_path, text, purpose, at):  # noqa: PLR0917 - fixtures and cases
    """Another goes on: what was committed in the database is there once, and only a step that was not recorded is done again."""
    (tmp_path / "killed_app.py").write_text(KILLED_APP)
    env = {"NOTIFYWORKER_DSN": proxy.through(dsn), "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    process = await start("worker", "killed_app:worker", "--no-sidecar", cwd=tmp_path, env=env)
    rule = await proxy.arm(Rule(text, at, "cut", purpose=purpose, deed=lambda _name: process.kill()))
    marks = tmp_path / "marks"
    run_id = await insert(db, {"file": str(marks)})
    await asyncio.wait_for(process.communicate(), STARTED_S)
    assert rule.fired.is_set()
    await take_from_its_worker(dsn)

    app = types.ModuleType("killed_app")
    exec(compile(KILLED_APP.replace("Worker()", "None").replace("@worker.handler", "#"), "killed_app", "exec"), app.__dict__)
    worker: Worker = make_worker()
    worker.handler("a")(app.handle)
    async with worker:
        run = await settled(db, run_id)

    assert (run["state"], run["attempt"], json.loads(run["result"])) == ("completed", 2, [1, 2])
    assert len(marks.read_text()) == (2 if (purpose, at) == ("side", "request") else 1)
    assert await effects(db) == 1


async def test_a_commit_that_goes_on_after_its_connection_is_waited_for(make_proxied, db, proxy):
    await db.execute(
        """CREATE FUNCTION public.slowly() RETURNS trigger LANGUAGE plpgsql AS $$
           BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$;
           CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON public.effects DEFERRABLE INITIALLY DEFERRED
           FOR EACH ROW EXECUTE FUNCTION public.slowly();
           SELECT pg_advisory_lock(1)"""
    )
    worker: Worker = make_proxied()
    called: list[int] = []

    async def slow(connection: asyncpg.Connection, run: Run) -> None:
        called.append(run.attempt)
        await connection.execute("SET client_connection_check_interval = 0")  # or the server would see that it was cut
        await connection.execute(WRITE, run.run_id)

    @worker.handler("a", retry=QUICKLY)
    async def handle(run: Run) -> None:
        await run.step_transaction("write", slow, run)

    blocked = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = 1"
    with structlog.testing.capture_logs() as logs:
        async with worker:
            run_id = await insert(db)
            await eventually(lambda: db.fetchval(blocked))
            await proxy.cut("handler")
            await eventually(lambda: [entry for entry in logs if entry["event"] == "commit_unknown"])
            await db.execute("SELECT pg_advisory_unlock(1)")
            run = await settled(db, run_id)

    assert called == [1]
    assert (run["state"], run["attempt"], await effects(db)) == ("completed", 1, 1)


async def test_a_worker_that_is_stopped_records_what_it_has_done(make_proxied, db, proxy, done):
    """Its handler is cancelled while the record is on its way."""
    worker: Worker = make_proxied(drain_timeout_s=0)
    other: Worker = make_proxied()

    async def handle(run: Run) -> int:
        return await run.step("one", done, "one", 1)

    for one in (worker, other):
        one.handler("a")(handle)
    rule = await proxy.arm(Rule(statement("steps_put"), "request", "hold", purpose="side"))
    async with worker:
        run_id = await insert(db)
        await eventually(rule.fired.is_set)
        releasing = asyncio.create_task(_let_go_when_draining(worker, proxy))
        await asyncio.sleep(0)
    await releasing
    async with other:
        run = await settled(db, run_id)

    assert (run["state"], run["attempt"], run["lease_token"], done.calls) == ("completed", 1, 2, {"one": 1})


async def _let_go_when_draining(worker: Worker, proxy: Proxy) -> None:
    """An outcome that does not wait for the record arrives before it."""
    conductor: Any = worker._conductor
    (attempt,) = conductor.slots._running.values()
    given_back = await proxy.arm(Rule(statement("give_back"), "answer", "pass"))
    while attempt.why != "stopping":
        await asyncio.sleep(0.001)
    for _ in range(50):
        await asyncio.sleep(0)
    if attempt.is_settled:
        await eventually(given_back.fired.is_set)
    await proxy.heal()


# What becomes of them


async def finished(make_worker, db, done) -> tuple[Worker, UUID]:
    """A run with three steps whose handler has failed after them."""
    worker: Worker = make_worker(sidecar=True, port=0)

    @worker.handler("a", retry=Retry(max_attempts=1))
    async def handle(run: Run) -> dict[str, int]:
        for name in ("one", "two", "three"):
            await run.step(name, done, name, {"by": name})
        if done.calls["broken"] == 0:
            await done("broken")
            raise ValueError("a mistake after the steps")
        return dict(done.calls)

    return worker, await insert(db)


@pytest.mark.parametrize(("from_step", "again"), [(None, 3), (1, 3), (3, 1), (4, 0)])
async def test_retry_executes_all_of_them_again_or_those_from_one_on(make_worker, db, dsn, done, from_step, again):  # noqa: PLR0917 - fixtures and cases
    worker, run_id = await finished(make_worker, db, done)
    async with worker, Client(dsn) as client:
        await settled(db, run_id)
        for wrong in (0, 5):
            with pytest.raises(asyncpg.InvalidParameterValueError, match="between 1 and 4"):
                await db.fetchval("SELECT notifyworker.retry($1, $2)", run_id, wrong)
        with pytest.raises(InvalidRun, match="from_step"):
            await client.retry(run_id, from_step=5)
        assert await client.retry(run_id, from_step=from_step) == run_id
        run = await settled(db, run_id)
        steps = await client.steps(run_id)

    assert run["state"] == "completed"
    assert done.calls == {"one": 1 + (again > 2), "two": 1 + (again > 1), "three": 1 + (again > 0), "broken": 1}
    assert [(step["position"], step["name"], step["result"]["by"]) for step in steps] == [
        (1, "one", "one"),
        (2, "two", "two"),
        (3, "three", "three"),
    ]


async def test_forget_and_the_retention_leave_no_step_behind(make_worker, db, done):
    worker, run_id = await finished(make_worker, db, done)
    async with worker:
        await settled(db, run_id)
    store, count = Store("notifyworker"), "SELECT count(*) FROM notifyworker.steps"
    from notifyworker.step_store import StepStore

    old = await db.fetchval(
        """INSERT INTO notifyworker.steps (run_id, run_created_at, started_at, finished_at, lease_token, position, attempt, is_shadow,
               project_id, name)
           SELECT notifyworker.uuid7(), now(), now(), now() - interval '40 days', 1, 1, 1, false, 'default', 'orphan' RETURNING run_id"""
    )
    await db.execute("UPDATE notifyworker.steps SET finished_at = now() - interval '40 days'")
    assert await StepStore(store).steps_forget(db, limit=100) == 1  # one of a run that is kept stays, however old
    assert await db.fetchval("SELECT count(*) FROM notifyworker.steps WHERE run_id = $1", old) == 0
    assert await db.fetchval(count) == 3
    await db.execute("SELECT notifyworker.forget($1)", run_id)
    assert await db.fetchval(count) == 0


async def test_the_leader_forgets_the_steps_of_days_that_it_drops(make_worker, db, done):
    worker, run_id = await finished(make_worker, db, done)
    async with worker:
        await settled(db, run_id)
    await db.execute(
        "UPDATE notifyworker.run_history SET finished_at = finished_at - interval '40 days'"
    )  # to the default partition
    await db.execute("UPDATE notifyworker.steps SET finished_at = finished_at - interval '40 days'")
    async with worker:
        await eventually(lambda: db.fetchval("SELECT NOT EXISTS (SELECT FROM notifyworker.steps)"))
    assert await db.fetchval("SELECT count(*) FROM notifyworker.run_history") == 0


async def test_an_id_that_is_used_again_has_its_own_steps(make_worker, db, dsn, done):
    worker, run_id = await finished(make_worker, db, done)
    async with worker, Client(dsn) as client:
        await settled(db, run_id)
        await db.execute("INSERT INTO notifyworker.runs (run_id, kind) VALUES ($1, 'a')", run_id)
        await eventually(lambda: db.fetchval("SELECT count(*) = 2 FROM notifyworker.run_history"))
        assert done.calls == {"one": 2, "two": 2, "three": 2, "broken": 1}
        assert len(await client.steps(run_id)) == 3
    assert await db.fetchval("SELECT count(*) FROM notifyworker.steps") == 6


async def test_over_http_and_on_the_command_line(make_worker, db, dsn, done):
    worker, run_id = await finished(make_worker, db, done)
    env = {"NOTIFYWORKER_DSN": dsn}
    async with worker, _Session(str(worker.url)) as http:
        await settled(db, run_id)
        status, shown = await http.get(f"/runs/{run_id}")
        assert (status, [step["name"] for step in shown["steps"]]) == (200, ["one", "two", "three"])
        assert shown["steps"][0].keys() == {
            "position", "name", "attempt", "is_shadow", "started_at", "finished_at", "error", "result_bytes", "result",
        }  # fmt: skip
        assert (shown["steps"][2]["result"], shown["steps"][2]["result_bytes"]) == ({"by": "three"}, 14)
        for body, field in (({"from_step": 0}, "from_step"), ({"from_step": 5}, "from_step"), ({"from": 1}, "from")):
            status, problem = await http.post(f"/runs/{run_id}/retry", body)
            assert (status, problem["field"]) == (400, field), body
        assert await http.post(f"/runs/{run_id}/retry", {"from_step": 3}) == (200, {"run_id": str(run_id), "state": "pending"})
        assert (await settled(db, run_id))["state"] == "completed"
        assert done.calls == {"one": 1, "two": 1, "three": 2, "broken": 1}
        told = (await command("runs", "show", str(run_id), env=env)).out
        assert re.search(r"step +name +attempt +finished +took +result\n +1 +one +1 .*\{\"by\": \"one\"\}", told)
        assert (await command("runs", "show", str(run_id), "--json", env=env)).json()["steps"][2]["name"] == "three"
        assert "from_step" in await refused(2, "runs", "retry", str(run_id), "--from-step", "9", env=env)
        assert (await command("runs", "retry", str(run_id), "--from-step", "4", env=env)).out == "pending\n"
        assert (await settled(db, run_id))["state"] == "completed"
    assert done.calls == {"one": 1, "two": 1, "three": 2, "broken": 1}


async def test_the_pages_examples(dsn, connection, monkeypatch):
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    text = PAGE.read_text()
    await connection.execute("CREATE TABLE public.orders (number int, charge text)")
    (python,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    page = types.ModuleType("steps_page")
    exec(compile(python, str(PAGE), "exec"), page.__dict__)
    async with page.worker:
        run_id = await connection.fetchval(
            'INSERT INTO notifyworker.runs (kind, payload) VALUES (\'order.ship\', \'{"number": 7, "mails": ["a", "b"]}\') RETURNING run_id'
        )
        run = await settled(connection, run_id)
        assert (run["state"], run["attempt"]) == ("completed", 1)
        assert tuple(await connection.fetchrow("SELECT * FROM public.orders")) == (7, f"charged {run_id}")
        (sql,) = re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for statement_ in sql.strip().split(";\n"):
            await connection.execute(statement_.replace("'…'", f"'{run_id}'"))
        await settled(connection, run_id)
        (shell,) = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for line in shell.splitlines():
            assert (await command(*line.replace("ID", str(run_id)).split()[1:], env={"NOTIFYWORKER_DSN": dsn})).code == 0
            await settled(connection, run_id)
