"""Handlers that take several runs at once: each is settled by itself, whatever becomes of the others."""

import asyncio
import json
import re
import threading
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import structlog
from servers import eventually
from test_steps import settled

from notifyworker import Cancel, Fail, HandlerError, PauseKind, Retry, Run, Snooze, Worker
from notifyworker.store import Store

PAGE = Path(__file__).parents[1] / "docs" / "batches.md"
ALL = "SELECT state, error_code, attempt, result, errors, (payload ->> 'n')::int AS n FROM notifyworker.all_runs ORDER BY n"


async def insert(db: asyncpg.Connection, count: int) -> list[UUID]:
    query = """INSERT INTO notifyworker.runs (kind, payload) SELECT 'a', jsonb_build_object('n', n) FROM generate_series(1, $1) AS n
               RETURNING run_id"""
    return [row["run_id"] for row in await db.fetch(query, count)]


async def all_settled(db: asyncpg.Connection) -> list[asyncpg.Record]:
    await eventually(lambda: db.fetchval("SELECT NOT EXISTS (SELECT FROM notifyworker.runs)"))
    return await db.fetch(ALL)


@dataclass
class Row:
    n: int


async def test_what_is_there_comes_at_once_and_each_has_its_own_result(make_worker, connection):
    worker: Worker = make_worker(concurrency=20)
    sizes: list[int] = []

    @worker.handler("a", batch_size=10, batch_wait_s=0.2)
    async def handle(runs: list[Run], payloads: list[Row]) -> dict[Run, int]:
        sizes.append(len(runs))
        assert [run.payload["n"] for run in runs] == [payload.n for payload in payloads]
        return {run: payload.n * 2 for run, payload in zip(runs, payloads, strict=True)}

    await insert(connection, 25)
    async with worker:
        rows = await all_settled(connection)

    assert [(row["state"], row["result"]) for row in rows] == [("completed", str(2 * n)) for n in range(1, 26)]
    assert max(sizes) == 10
    assert sum(sizes) == 25


async def test_one_alone_waits_no_longer_than_the_time(make_worker, connection):
    worker: Worker = make_worker(concurrency=20)

    @worker.handler("a", batch_size=10, batch_wait_s=0.3)
    async def handle(runs: list[Run]) -> None:
        assert len(runs) == 1

    async with worker:
        (run_id,) = await insert(connection, 1)
        run = await settled(connection, run_id)

    assert (run["state"], run["result"]) == ("completed", None)
    waited = "SELECT finished_at - started_at BETWEEN interval '0.25 s' AND interval '15 s' FROM notifyworker.run_history"
    assert await connection.fetchval(waited) is True


async def test_nothing_waits_for_runs_that_cant_come(make_worker, connection):
    """All slots are taken; and at a stop nothing more is claimed."""
    worker: Worker = make_worker(concurrency=3, drain_timeout_s=20)
    sizes: list[int] = []

    @worker.handler("a", batch_size=10, batch_wait_s=60)
    async def handle(runs: list[Run]) -> None:
        sizes.append(len(runs))

    with structlog.testing.capture_logs() as logs:
        await insert(connection, 3)
        async with worker:
            await all_settled(connection)
            await insert(connection, 2)
            conductor: Any = worker._conductor
            await eventually(lambda: conductor.slots.running == 2)
        rows = await all_settled(connection)

    assert sizes == [3, 2]
    assert {(row["state"], row["attempt"]) for row in rows} == {("completed", 1)}
    assert [entry["batch_size"] for entry in logs if entry["event"] == "batches_stay_small"] == [10]


def value_of(n: int) -> Any:
    return {
        1: "fine",
        2: ValueError("no"),
        3: Fail("never"),
        4: Cancel("not wanted"),
        5: Snooze(0.01),
        6: float("nan"),
        7: PauseKind(0.01, "enough"),
    }[n]


async def test_each_is_settled_by_what_was_returned_for_it(make_worker, connection):
    worker: Worker = make_worker()
    seen: list[list[int]] = []

    @worker.handler("a", batch_size=10, batch_wait_s=0.2, retry=Retry(max_attempts=1))
    async def handle(runs: list[Run], payloads: list[dict]) -> dict[Run, Any]:
        seen.append([payload["n"] for payload in payloads])
        return {
            run: value_of(payload["n"]) if run.lease_token == 1 else "again"
            for run, payload in zip(runs, payloads, strict=True)
            if payload["n"] != 8
        }

    await insert(connection, 8)
    async with worker:
        rows = await all_settled(connection)

    assert [(row["state"], row["error_code"]) for row in rows] == [
        ("completed", None),
        ("failed", "E-RUN-001"),
        ("failed", "E-RUN-006"),
        ("cancelled", None),
        ("completed", None),
        ("failed", "E-RUN-005"),
        ("completed", None),
        ("failed", "E-RUN-001"),
    ]
    assert [rows[n - 1]["result"] for n in (1, 5, 7)] == ['"fine"', '"again"', '"again"']
    assert "returned nothing for this run" in rows[7]["errors"]
    assert sorted(seen[0]) == list(range(1, 9))


async def raises(runs: list[Run]) -> None:
    raise ValueError("all of it")


async def stops_iterating(runs: list[Run]) -> None:
    next(iter(()))


async def a_list(runs: list[Run]) -> list[int]:
    return [1 for _ in runs]


def plainly(runs: list[Run]) -> None:
    assert threading.current_thread() is not threading.main_thread()
    raise ValueError("all of it")


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (raises, "ValueError: all of it"),
        (stops_iterating, "StopIteration"),
        (a_list, "a mapping from its runs, not list"),
        (plainly, "ValueError: all of it"),
    ],
)
async def test_what_the_whole_handler_raises_is_each_runs_own(make_worker, connection, function, told):
    worker: Worker = make_worker()
    worker.handler("a", batch_size=10, batch_wait_s=0.2, retry=Retry(max_attempts=1))(function)
    await insert(connection, 9)
    async with worker:
        rows = await all_settled(connection)

    assert {(row["state"], row["error_code"]) for row in rows} == {("failed", "E-RUN-001")}
    assert all(told in row["errors"] for row in rows)
    tracebacks = [json.loads(row["errors"])[0]["traceback"].count("\n") for row in rows]
    assert max(tracebacks) - min(tracebacks) < 3  # each its own, and not those of all before it
    if function is raises:
        assert all("in raises" in row["errors"] for row in rows)


async def test_a_payload_that_does_not_fit_is_out_alone(make_worker, connection):
    worker: Worker = make_worker()
    sizes: list[int] = []

    @worker.handler("a", batch_size=10, batch_wait_s=0.2)
    async def handle(runs: list[Run], payloads: list[Row]) -> None:
        sizes.append(len(runs))

    await insert(connection, 3)
    await connection.execute("UPDATE notifyworker.runs SET payload = '{\"n\": \"2\"}' WHERE payload ->> 'n' = '2'")
    async with worker:
        rows = await all_settled(connection)

    assert [(row["state"], row["error_code"]) for row in rows] == [
        ("completed", None),
        ("failed", "E-RUN-004"),
        ("completed", None),
    ]
    assert sizes == [2]
    assert "payload.n" in rows[1]["errors"]


async def cancels(db: asyncpg.Connection, run_id: UUID) -> None:
    await db.execute("SELECT notifyworker.cancel($1)", run_id)


async def takes(db: asyncpg.Connection, run_id: UUID) -> None:
    await db.execute(
        "UPDATE notifyworker.runs SET lease_token = lease_token + 1, lease_owner = 'another' WHERE run_id = $1", run_id
    )
    await db.execute("SELECT pg_notify('notifyworker', 'cancel:' || $1)", str(run_id))  # so that it looks


@pytest.mark.parametrize(("hurt", "state"), [(cancels, "cancelled"), (takes, "running")])
async def test_one_that_is_cancelled_or_lost_ends_alone(make_worker, connection, hurt: Callable[..., Any], state):
    worker: Worker = make_worker(replaced_slots=0)
    inside, go_on = asyncio.Event(), asyncio.Event()
    told: dict[int, bool] = {}

    @worker.handler("a", batch_size=3, batch_wait_s=5)
    async def handle(runs: list[Run], payloads: list[Row]) -> None:
        inside.set()
        await go_on.wait()
        told.update({payload.n: run.cancelled for run, payload in zip(runs, payloads, strict=True)})

    async with worker:
        first, *_ = await insert(connection, 3)
        await inside.wait()
        await hurt(connection, first)
        conductor: Any = worker._conductor
        await eventually(lambda: conductor.slots.running == 2)
        assert conductor.slots.used == 3  # its slot is taken as long as the handler may still do something for it
        go_on.set()
        await eventually(
            lambda: connection.fetchval("SELECT count(*) >= 2 FROM notifyworker.run_history WHERE state = 'completed'")
        )
        await eventually(lambda: conductor.slots.used == 0)

    assert told == {1: True, 2: False, 3: False}
    assert [row["state"] for row in await connection.fetch(ALL)] == [state, "completed", "completed"]


async def test_when_all_are_ended_the_handler_is_cancelled(make_worker, connection):
    worker: Worker = make_worker()
    how: list[BaseException] = []

    @worker.handler("a", batch_size=3, batch_wait_s=5, timeout=0.5, retry=Retry(max_attempts=1))
    async def handle(runs: list[Run]) -> None:
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            how.append(error)
            raise

    async with worker:
        await insert(connection, 3)
        rows = await all_settled(connection)
        conductor: Any = worker._conductor
        await eventually(lambda: conductor.slots.used == 0)

    assert [type(error) for error in how] == [asyncio.CancelledError]
    assert {(row["state"], row["error_code"]) for row in rows} == {("failed", "E-RUN-003")}


async def test_a_thread_that_goes_on_keeps_the_slots(make_worker, connection):
    worker: Worker = make_worker(concurrency=3, replaced_slots=0)
    go_on = threading.Event()

    @worker.handler("a", batch_size=3, batch_wait_s=5, timeout=0.3, retry=Retry(max_attempts=1))
    def handle(runs: list[Run]) -> None:
        go_on.wait(30)

    async with worker:
        await insert(connection, 3)
        await all_settled(connection)
        conductor: Any = worker._conductor
        assert conductor.slots.used == 3
        go_on.set()
        await eventually(lambda: conductor.slots.used == 0)


async def test_one_that_is_cancelled_while_the_batch_gathers_is_never_handed_out(make_worker, connection):
    worker: Worker = make_worker()
    seen: list[int] = []

    @worker.handler("a", batch_size=3, batch_wait_s=60)
    async def handle(runs: list[Run], payloads: list[Row]) -> None:
        seen.extend(payload.n for payload in payloads)

    async with worker:
        first, _ = await insert(connection, 2)
        conductor: Any = worker._conductor
        await eventually(lambda: conductor.slots.running == 2)
        await connection.execute("SELECT notifyworker.cancel($1)", first)
        await eventually(lambda: conductor.slots.used == 1)
        await insert(connection, 2)
        await all_settled(connection)

    assert sorted(seen) == [1, 2, 2]


async def test_a_stop_gives_all_of_them_back(make_worker, connection):
    worker: Worker = make_worker(drain_timeout_s=0)
    inside = asyncio.Event()

    @worker.handler("a", batch_size=3, batch_wait_s=5)
    async def handle(runs: list[Run]) -> None:
        inside.set()
        await asyncio.Event().wait()

    async with worker:
        await insert(connection, 3)
        await inside.wait()

    rows = await connection.fetch(ALL)
    assert [(row["state"], row["attempt"]) for row in rows] == [("pending", 0)] * 3


async def test_each_has_its_own_transaction_steps_and_log(make_worker, connection):
    """And what one of them was settled by in its transaction is what counts."""
    worker: Worker = make_worker()
    await connection.execute("CREATE TABLE public.effects (n int)")

    @worker.handler("a", batch_size=3, batch_wait_s=0.2, retry=Retry(max_attempts=1))
    async def handle(runs: list[Run], payloads: list[Row]) -> dict[Run, Any]:
        for run, payload in zip(runs, payloads, strict=True):
            run.log.info("one", n=payload.n)
            assert await run.step("double", asyncio.sleep, 0, payload.n) == payload.n
            if payload.n == 2:
                async with run.transaction() as own:
                    await own.execute("INSERT INTO public.effects VALUES (2)")
                    run.result = "in its own"
        return {run: ValueError("no") if payload.n == 2 else "fine" for run, payload in zip(runs, payloads, strict=True)}

    await insert(connection, 3)
    async with worker:
        rows = await all_settled(connection)

    assert [row["result"] for row in rows] == ['"fine"', '"in its own"', '"fine"']
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.steps") == 3
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.run_logs") == 3


async def test_two_workers_share_the_runs_and_one_takes_over_from_the_other(make_worker, connection, dsn):
    own = await asyncpg.connect(dsn)
    workers = [make_worker(concurrency=5), make_worker(concurrency=5)]
    handled: list[tuple[UUID, int]] = []
    taken = asyncio.Event()

    async def handle(runs: list[Run]) -> None:
        if not taken.is_set():
            taken.set()
            async with own.transaction():  # no heartbeat and no other reaper comes between
                await own.execute("UPDATE notifyworker.runs SET lease_expires_at = now() WHERE run_id = $1", runs[0].run_id)
                assert len(await Store("notifyworker").reap(own, limit=1, reaper="test", presumed_dead=[])) == 1
        handled.extend((run.run_id, run.lease_token) for run in runs)

    for worker in workers:
        worker.handler("a", batch_size=5, batch_wait_s=0.05)(handle)
    ids = await insert(connection, 50)
    async with workers[0], workers[1]:
        await taken.wait()
        rows = await all_settled(connection)
    await own.close()

    assert {row["state"] for row in rows} == {"completed"}
    assert len(set(handled)) == len(handled)  # under each lease once
    assert {run_id for run_id, _ in handled} == set(ids)
    assert sum(row["attempt"] for row in rows) == 51


@pytest.mark.parametrize(
    ("options", "function", "told"),
    [
        ({"batch_size": 0}, raises, "batch_size of 'a' must be an integer between 1 and 10000, not 0"),
        ({"batch_size": True}, raises, "batch_size"),
        ({"batch_size": 2, "batch_wait_s": 0}, raises, "batch_wait_s of 'a' must be between 0.001 and 60 seconds, not 0"),
        ({"batch_wait_s": 1}, raises, "batch_wait_s of 'a' is given, and no batch_size"),
        ({"batch_size": 2}, lambda: None, r"takes \(runs, payloads\) or \(runs\)"),
    ],
)
def test_a_handler_that_cant_be_one_is_told_at_import(options, function, told):
    with pytest.raises(HandlerError, match=told):
        Worker("postgresql://").handler("a", **options)(function)


def test_payloads_are_a_list():
    with pytest.raises(HandlerError, match="a list"):

        @Worker("postgresql://").handler("a", batch_size=2)
        async def handle(runs: list[Run], payloads: Row) -> None: ...


async def test_the_pages_example(dsn, connection, monkeypatch):
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    monkeypatch.setenv("NOTIFYWORKER_CONCURRENCY", "100")
    await connection.execute("CREATE TABLE public.readings (sensor int, value float8)")
    (python,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    page = types.ModuleType("batches_page")
    exec(compile(python, str(PAGE), "exec"), page.__dict__)
    async with page.worker:
        await connection.execute(
            """INSERT INTO notifyworker.runs (kind, payload)
               SELECT 'reading.store', jsonb_build_object('sensor', n, 'value', n - 1) FROM generate_series(1, 20) AS n"""
        )
        await eventually(lambda: connection.fetchval("SELECT NOT EXISTS (SELECT FROM notifyworker.runs)"))
    assert await connection.fetchval("SELECT count(*) FROM public.readings") == 19
    failed = "SELECT array_agg(payload ->> 'sensor') FROM notifyworker.run_history WHERE error_code = 'E-RUN-006'"
    assert await connection.fetchval(failed) == ["1"]
