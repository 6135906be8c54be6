"""The life of a run: one test an arrow. Nothing here is found by polling."""

import asyncio
import contextvars
import dataclasses
import threading
from typing import Any, TypedDict
from uuid import UUID

import asyncpg
import pydantic
import pytest
import structlog
from servers import SURELY_S, eventually

from notifyworker import Cancel, Client, Fail, HandlerError, LeaseLost, Retry, Run, SettingsError, Snooze, Worker


async def insert(conn: asyncpg.Connection, kind: str, payload: str = "{}", **columns: Any) -> UUID:
    names = ["kind", "payload", *columns]
    places = ", ".join(f"${n}" for n in range(1, len(names) + 1))
    query = f"INSERT INTO notifyworker.runs ({', '.join(names)}) VALUES ({places}) RETURNING run_id"
    return await conn.fetchval(query, kind, payload, *columns.values())


async def run_of(conn: asyncpg.Connection, run_id: UUID) -> asyncpg.Record:
    return await conn.fetchrow("SELECT * FROM notifyworker.all_runs WHERE run_id = $1", run_id)


async def settled(conn: asyncpg.Connection, run_id: UUID, timeout_s: float = SURELY_S) -> asyncpg.Record:
    async def look() -> asyncpg.Record | None:
        row = await run_of(conn, run_id)
        return row if row["state"] in {"completed", "failed", "cancelled"} else None

    return await eventually(look, timeout_s)


async def state(conn: asyncpg.Connection, run_id: UUID) -> str:
    return (await run_of(conn, run_id))["state"]


async def test_a_row_that_appears_is_executed_and_settled(any_dsn):
    worker = Worker(any_dsn, poll_interval_s=60)

    @worker.handler("sum")
    async def add(run: Run, payload: dict) -> dict:
        return {"sum": payload["a"] + payload["b"], "attempt": run.attempt}

    conn = await asyncpg.connect(any_dsn)
    async with worker:
        run = await settled(conn, await insert(conn, "sum", '{"a": 1, "b": 2}'))
    await conn.close()

    assert run["state"] == "completed"
    assert run["result"] == '{"sum": 3, "attempt": 1}'
    assert run["attempt"] == 1
    assert run["lease_token"] == 1
    assert run["errors"] == "[]"
    assert run["started_at"] <= run["finished_at"]


async def test_rows_that_were_there_before_the_worker_are_found(make_worker, connection):
    run_id = await insert(connection, "a")
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    async with worker:
        assert (await settled(connection, run_id))["state"] == "completed"


async def test_a_scheduled_run_starts_at_its_time_and_not_by_the_poll(make_worker, connection):
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    async with worker:
        await settled(connection, await insert(connection, "a"))
        due = await connection.fetchval("SELECT now() + interval '700 ms'")
        run = await settled(connection, await insert(connection, "a", run_at=due))

    assert run["started_at"] >= due


async def test_an_insert_that_comes_before_its_turn_moves_the_next_look_forward(make_worker, connection):
    worker = make_worker()
    order = []

    @worker.handler("a")
    async def handle(run: Run, payload: dict) -> None:
        order.append(payload["n"])

    async with worker:
        late = await connection.fetchval("SELECT now() + interval '1 hour'")
        soon = await connection.fetchval("SELECT now() + interval '400 ms'")
        await insert(connection, "a", '{"n": 1}', run_at=late)
        await settled(connection, await insert(connection, "a", '{"n": 2}', run_at=soon))

    assert order == [2]


async def test_higher_priority_goes_first_and_ties_go_by_run_id(make_worker, connection):
    worker = make_worker(concurrency=1)
    order = []

    @worker.handler("a")
    async def handle(run: Run, payload: dict) -> None:
        order.append(payload["n"])

    async with connection.transaction():
        ids = [
            await insert(connection, "a", f'{{"n": {n}}}', priority=p) for n, p in ((1, 0), (2, 5), (3, -32768), (4, 5), (5, 0))
        ]
    async with worker:
        for run_id in ids:
            await settled(connection, run_id)

    assert order == [2, 4, 1, 5, 3]


async def test_unknown_kinds_and_other_projects_are_left_untouched(make_worker, connection):
    worker = make_worker(project_ids=["mine"])

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    unknown = await insert(connection, "b", project_id="mine")
    foreign = await insert(connection, "a", project_id="theirs")
    mine = await insert(connection, "a", project_id="mine")
    async with worker:
        await settled(connection, mine)

    for left in (unknown, foreign):
        run = await run_of(connection, left)
        assert (run["state"], run["lease_token"], run["attempt"]) == ("pending", 0, 0)


@dataclasses.dataclass
class Letter:
    to: str
    copies: int = 1


class Note(TypedDict):
    to: str


class Email(pydantic.BaseModel):
    to: str


async def test_the_payload_comes_as_the_annotation_asks(make_worker, connection):
    worker = make_worker()
    seen: dict[str, Any] = {}

    def keep(run: Run, payload: Any) -> None:
        seen[run.kind] = payload

    @worker.handler("dataclass")
    async def one(run: Run, payload: Letter) -> None:
        keep(run, payload)

    @worker.handler("typeddict")
    async def two(run: Run, payload: Note) -> None:
        keep(run, payload)

    @worker.handler("pydantic")
    async def three(run: Run, payload: Email) -> None:
        keep(run, payload)

    @worker.handler("plain")
    def four(run: Run, payload) -> None:
        keep(run, payload)

    async with worker:
        for kind in ("dataclass", "typeddict", "pydantic", "plain"):
            await settled(connection, await insert(connection, kind, '{"to": "a@example.org"}'))

    assert seen == {
        "dataclass": Letter("a@example.org"),
        "typeddict": {"to": "a@example.org"},
        "pydantic": Email(to="a@example.org"),
        "plain": {"to": "a@example.org"},
    }


@pytest.mark.parametrize("kind", ["dataclass", "typeddict", "pydantic"])
async def test_a_payload_that_does_not_fit_fails_at_once_and_names_the_field(make_worker, connection, kind):
    worker = make_worker()
    annotation = {"dataclass": Letter, "typeddict": Note, "pydantic": Email}[kind]

    async def handle(run: Run, payload: Any) -> None:
        raise AssertionError

    handle.__annotations__["payload"] = annotation
    worker.handler("a")(handle)
    async with worker:
        run = await settled(connection, await insert(connection, "a", '{"to": 7}'))

    assert (run["state"], run["error_code"], run["attempt"]) == ("failed", "E-RUN-004", 1)
    assert "payload.to" in run["errors"]


async def test_what_raises_is_retried_and_then_fails_with_every_attempt_kept(make_worker, connection):
    worker = make_worker()

    @worker.handler("a", retry=Retry(max_attempts=3, base_s=0.01))
    async def handle(run: Run) -> None:
        raise ZeroDivisionError(f"number {run.attempt}\0")

    async with worker:
        run = await settled(connection, await insert(connection, "a"))

    assert (run["state"], run["error_code"], run["attempt"]) == ("failed", "E-RUN-001", 3)
    errors = pydantic.TypeAdapter(list[dict]).validate_json(run["errors"])
    assert [e["attempt"] for e in errors] == [1, 2, 3]
    assert {e["code"] for e in errors} == {"E-RUN-001"}
    assert errors[0]["message"].startswith("ZeroDivisionError: number 1")
    assert "test_life.py" in errors[0]["traceback"]
    assert all(e["worker"] and e["at"].endswith("Z") for e in errors)


async def test_a_rows_own_max_attempts_wins_over_the_handlers(make_worker, connection):
    worker = make_worker()

    @worker.handler("a", retry=Retry(max_attempts=5, base_s=0))
    async def handle(run: Run) -> None:
        raise ValueError

    async with worker:
        run = await settled(connection, await insert(connection, "a", max_attempts=2))

    assert (run["attempt"], run["max_attempts"]) == (2, 2)


async def test_only_listed_exceptions_are_retried(make_worker, connection):
    worker = make_worker()

    @worker.handler("a", retry=Retry(on=(ConnectionError,)))
    async def handle(run: Run) -> None:
        raise ValueError

    async with worker:
        run = await settled(connection, await insert(connection, "a"))

    assert (run["state"], run["attempt"]) == ("failed", 1)


@pytest.mark.parametrize("ending", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), MemoryError()])
async def test_a_handler_that_ends_its_process_by_an_exception_only_fails_its_run(make_worker, connection, ending):
    worker = make_worker()

    @worker.handler("a", retry=Retry(max_attempts=1))
    async def handle(run: Run) -> None:
        raise ending

    @worker.handler("b")
    async def other(run: Run) -> None: ...

    async with worker:
        run = await settled(connection, await insert(connection, "a"))
        after = await settled(connection, await insert(connection, "b"))

    assert (run["state"], run["error_code"]) == ("failed", "E-RUN-001")
    assert after["state"] == "completed"


async def test_wishes_of_a_handler(make_worker, connection):
    worker = make_worker()

    @worker.handler("cancel")
    async def cancel(run: Run) -> None:
        raise Cancel("no longer wanted")

    @worker.handler("fail")
    async def fail(run: Run) -> None:
        raise Fail("never will")

    @worker.handler("snooze")
    async def snooze(run: Run) -> int:
        if run.lease_token == 1:
            raise Snooze(0.05)
        return run.attempt

    async with worker:
        cancelled = await settled(connection, await insert(connection, "cancel"))
        failed = await settled(connection, await insert(connection, "fail"))
        snoozed = await settled(connection, await insert(connection, "snooze"))

    assert (cancelled["state"], cancelled["error_code"]) == ("cancelled", None)
    assert "no longer wanted" in cancelled["errors"]
    assert (failed["state"], failed["error_code"], failed["attempt"]) == ("failed", "E-RUN-006", 1)
    assert (snoozed["state"], snoozed["result"], snoozed["lease_token"]) == ("completed", "1", 2)


@pytest.mark.parametrize("plain", [False, True])
async def test_a_timeout_fails_the_attempt(make_worker, connection, plain):
    worker = make_worker()
    release = threading.Event()

    async def waits(run: Run) -> None:
        await asyncio.Event().wait()

    def waits_in_a_thread(run: Run) -> bool:
        return release.wait(10)

    worker.handler("a", timeout=0.1, retry=Retry(max_attempts=2, base_s=0))(waits_in_a_thread if plain else waits)
    async with worker:
        run = await settled(connection, await insert(connection, "a"))
        release.set()

    assert (run["state"], run["error_code"], run["attempt"]) == ("failed", "E-RUN-003", 2)
    assert "timed out after 0.1 s" in run["errors"]


async def test_a_handler_that_ignores_its_cancellation_does_not_hold_its_run(make_worker, connection):
    worker = make_worker(concurrency=2)
    release = asyncio.Event()

    @worker.handler("stubborn", timeout=0.05, retry=Retry(max_attempts=1))
    async def stubborn(run: Run) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    @worker.handler("b")
    async def other(run: Run) -> None: ...

    async with worker:
        run = await settled(connection, await insert(connection, "stubborn"))
        assert (run["state"], run["error_code"]) == ("failed", "E-RUN-003")
        assert (await settled(connection, await insert(connection, "b")))["state"] == "completed"
        release.set()


@pytest.mark.parametrize("bad", [float("nan"), {"x": "a\0b"}, {"x": "\ud800"}, object(), {"x": b"bytes"}])
async def test_a_result_that_is_no_json_fails_the_run_and_is_not_retried(make_worker, connection, bad):
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> Any:
        return bad

    async with worker:
        run = await settled(connection, await insert(connection, "a"))

    assert (run["state"], run["error_code"], run["attempt"]) == ("failed", "E-RUN-005", 1)


async def test_a_result_over_the_limit_is_refused(make_worker, connection):
    worker = make_worker()
    await connection.execute("UPDATE notifyworker.settings SET value = '100' WHERE name = 'max_result_bytes'")

    @worker.handler("a")
    async def handle(run: Run) -> Any:
        return "x" * 200

    async with worker:
        run = await settled(connection, await insert(connection, "a"))

    assert (run["state"], run["error_code"]) == ("failed", "E-RUN-005")
    assert "202 bytes" in run["errors"]


async def test_one_poison_row_and_one_poison_result_among_a_thousand(make_worker, connection):
    worker = make_worker(concurrency=100)

    @worker.handler("a")
    async def handle(run: Run, payload: Any) -> Any:
        return float("nan") if payload == {"n": 500} else None

    await connection.execute(
        "INSERT INTO notifyworker.runs (kind, payload) SELECT 'a', jsonb_build_object('n', n) FROM generate_series(1, 998) n"
    )
    deep = await insert(connection, "a", "[" * 5000 + "]" * 5000)
    huge = await insert(connection, "a", '{"n": 1' + "0" * 10_000 + "}")
    async with worker:
        await eventually(lambda: is_empty(connection))

    counts = dict(await connection.fetch("SELECT coalesce(error_code, state), count(*) FROM notifyworker.all_runs GROUP BY 1"))
    assert counts == {"completed": 997, "E-RUN-005": 1, "E-RUN-004": 2}
    assert {(await run_of(connection, r))["error_code"] for r in (deep, huge)} == {"E-RUN-004"}


async def is_empty(conn: asyncpg.Connection) -> bool:
    return await conn.fetchval("SELECT count(*) FROM notifyworker.runs") == 0


async def test_integers_of_any_size_arrive_exactly(make_worker, connection):
    worker = make_worker()
    number = 2**80 + 1

    @worker.handler("a")
    async def handle(run: Run, payload: dict) -> Any:
        return payload["n"] + 1

    async with worker:
        run = await settled(connection, await insert(connection, "a", f'{{"n": {number}}}'))

    assert run["result"] == str(number + 1)


async def test_progress_is_seen_while_the_run_goes_on(make_worker, connection):
    worker = make_worker()
    go_on = asyncio.Event()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        await run.progress({"done": 1, "of": 2})
        await go_on.wait()

    async with worker:
        run_id = await insert(connection, "a")
        await eventually(lambda: _progress(connection, run_id))
        assert (await run_of(connection, run_id))["progress"] == '{"of": 2, "done": 1}'
        go_on.set()
        await settled(connection, run_id)


async def _progress(conn: asyncpg.Connection, run_id: UUID) -> str | None:
    return (await run_of(conn, run_id))["progress"]


async def test_a_cancelled_run_is_settled_in_the_call_and_its_handler_ends(make_worker, connection):
    worker = make_worker()
    ended = asyncio.Event()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            assert run.cancelled
            ended.set()

    async with worker:
        run_id = await insert(connection, "a")
        await eventually(lambda: _is(connection, run_id, "running"))
        await connection.fetchval("SELECT notifyworker.cancel($1)", run_id)
        assert await state(connection, run_id) == "cancelled"
        async with asyncio.timeout(30):
            await ended.wait()

    assert await state(connection, run_id) == "cancelled"


async def _is(conn: asyncpg.Connection, run_id: UUID, wanted: str) -> bool:
    return await state(conn, run_id) == wanted


async def test_a_late_outcome_is_refused_by_the_fence_logged_and_counted(make_worker, connection):
    """The lease goes to another while the handler runs: what it returns, and its progress, are refused."""
    worker = make_worker()
    go_on = asyncio.Event()
    problem: list[BaseException] = []

    @worker.handler("a")
    async def handle(run: Run) -> str:
        await go_on.wait()
        try:
            await run.progress({"by": "the old one"})
        except LeaseLost as error:
            problem.append(error)
        return "the old one"

    with structlog.testing.capture_logs() as logs:
        async with worker:
            run_id = await insert(connection, "a")
            await eventually(lambda: _is(connection, run_id, "running"))
            await connection.execute(
                "UPDATE notifyworker.runs SET lease_token = lease_token + 1, lease_owner = 'another', progress = '{}' WHERE run_id = $1",
                run_id,
            )
            go_on.set()
            await eventually(lambda: problem)
            metrics = worker._conductor.metrics
            await eventually(lambda: metrics.lost._value.get() + metrics.refused._value.get() > 0)

    run = await run_of(connection, run_id)
    assert (run["state"], run["lease_owner"], run["progress"]) == ("running", "another", "{}")
    assert {e["event"] for e in logs} & {"lease_lost", "outcome_refused"}


async def test_runs_wait_no_longer_than_expires_at(make_worker, connection):
    worker = make_worker()
    started = []

    @worker.handler("a")
    async def handle(run: Run) -> None:
        started.append(run.run_id)

    past = await connection.fetchval("SELECT now() - interval '1 s'")
    late = await insert(connection, "a", expires_at=past)
    async with worker:
        run = await settled(connection, late)

    assert (run["state"], run["attempt"], run["started_at"]) == ("cancelled", 0, None)
    assert "expires_at passed" in run["errors"]
    assert started == []


async def test_the_reaper_gives_back_and_fails_on_the_last_attempt(make_worker, connection):
    await connection.execute("UPDATE notifyworker.settings SET value = '0.2' WHERE name = 'reaper_interval_s'")
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> int:
        return run.attempt

    again, last = await insert(connection, "a"), await insert(connection, "a")
    dead = "UPDATE notifyworker.runs SET state = 'running', attempt = $2, max_attempts = 2, lease_token = 5, lease_owner = 'dead', started_at = now(), lease_expires_at = now() - interval '1 s' WHERE run_id = $1"
    await connection.execute(dead, again, 1)
    await connection.execute(dead, last, 2)
    async with worker:
        retried, failed = await settled(connection, again), await settled(connection, last)

    assert (retried["state"], retried["result"], retried["lease_token"]) == ("completed", "2", 6)
    assert '"E-RUN-002"' in retried["errors"]
    assert (failed["state"], failed["error_code"], failed["attempt"]) == ("failed", "E-RUN-002", 2)
    log = await connection.fetch("SELECT taken_from, became FROM notifyworker.reaps ORDER BY became")
    assert [tuple(r) for r in log] == [("dead", "failed"), ("dead", "pending")]


async def test_leaving_gives_leases_back_with_the_attempt_not_used_up(make_worker, connection):
    first, second = make_worker(drain_timeout_s=0), make_worker()
    started = asyncio.Event()

    async def waits(run: Run) -> int:
        if run.lease_token == 1:
            started.set()
            await asyncio.Event().wait()
        return run.attempt

    first.handler("a", retry=Retry(max_attempts=1))(waits)
    second.handler("a", retry=Retry(max_attempts=1))(waits)
    async with first:
        run_id = await insert(connection, "a")
        await started.wait()
    given_back = await run_of(connection, run_id)
    assert (given_back["state"], given_back["attempt"], given_back["lease_token"]) == ("pending", 0, 1)
    assert '"interrupted"' in given_back["errors"]
    async with second:
        assert (await settled(connection, run_id))["result"] == "1"


async def test_draining_lets_what_runs_finish_and_takes_nothing_new(make_worker, connection):
    worker = make_worker(concurrency=1)
    started, go_on = asyncio.Event(), asyncio.Event()

    @worker.handler("a")
    async def handle(run: Run) -> str:
        started.set()
        await go_on.wait()
        return "finished"

    async with worker:
        first = await insert(connection, "a")
        await started.wait()
        second = await insert(connection, "a")
        asyncio.get_running_loop().call_later(0.2, go_on.set)

    assert (await run_of(connection, first))["result"] == '"finished"'
    assert (await run_of(connection, second))["attempt"] == 0


async def test_a_worker_can_be_started_again(make_worker, connection):
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    for _ in range(3):
        async with worker:
            await settled(connection, await insert(connection, "a"))


async def test_a_retried_run_keeps_its_token_growing(make_worker, connection):
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> int:
        return run.lease_token

    async with worker:
        run_id = await insert(connection, "a")
        await settled(connection, run_id)
        await connection.fetchval("SELECT notifyworker.retry($1)", run_id)
        await eventually(lambda: _result_is(connection, run_id, "2"))

    assert (await run_of(connection, run_id))["attempt"] == 1


async def _result_is(conn: asyncpg.Connection, run_id: UUID, wanted: str) -> bool:
    return (await run_of(conn, run_id))["result"] == wanted


async def test_shadow_runs_have_no_effect_and_tell_what_they_would_have_done(make_worker, connection):
    worker = make_worker()
    sent: list[str] = []

    @worker.handler("a")
    async def handle(run: Run) -> Any:
        async def send(to: str, *, copies: int) -> str:
            sent.append(to)
            return "sent"

        return await run.effect("send", send, "a@example.org", copies=2, shadow_result="pretended")

    async with worker:
        shadow = await settled(connection, await insert(connection, "a", is_shadow=True))
        live = await settled(connection, await insert(connection, "a"))

    assert sent == ["a@example.org"]
    assert (live["result"], live["effects"], live["is_shadow"], live["shadow_by"]) == ('"sent"', None, False, None)
    assert (shadow["result"], shadow["is_shadow"], shadow["shadow_by"]) == ('"pretended"', True, "run")
    assert shadow["effects"] == '[{"args": ["a@example.org"], "name": "send", "kwargs": {"copies": 2}}]'


async def test_an_enforcing_worker_makes_every_run_a_shadow_run_for_as_long_as_it_has_it(make_worker, connection):
    worker, plain = make_worker(shadow="enforce", drain_timeout_s=0), make_worker()
    sent: list[bool] = []
    reached = asyncio.Event()

    async def handle(run: Run, payload: dict) -> bool:
        await run.effect("send", sent.append, True)
        if payload.get("wait") and run.is_shadow:
            reached.set()
            await asyncio.Event().wait()
        return run.is_shadow

    worker.handler("a")(handle)
    plain.handler("a")(handle)
    async with worker:
        run = await settled(connection, await insert(connection, "a"))
        assert (run["result"], run["is_shadow"], run["shadow_by"]) == ("true", True, "worker")
        waiting = await insert(connection, "a", '{"wait": true}')
        await reached.wait()
        assert (await run_of(connection, waiting))["shadow_by"] == "worker"
    assert sent == []
    back = await run_of(connection, waiting)
    assert (back["is_shadow"], back["shadow_by"]) == (False, None)
    async with plain:
        assert (await settled(connection, waiting))["result"] == "false"
    assert sent == [True]


async def test_ten_thousand_runs_are_settled_exactly_once_each(dsn, make_worker, connection):
    """Four workers, eight producers; the settles of one process stand in for those of four, see test_faults.py."""
    workers = [make_worker(concurrency=25) for _ in range(4)]
    calls: list[UUID] = []

    async def handle(run: Run) -> None:
        calls.append(run.run_id)

    async def produce() -> None:
        conn = await asyncpg.connect(dsn)
        for _ in range(50):
            await conn.execute("INSERT INTO notifyworker.runs (kind) SELECT 'a' FROM generate_series(1, 25)")
        await conn.close()

    for worker in workers:
        worker.handler("a")(handle)
    async with workers[0], workers[1], workers[2], workers[3]:
        await asyncio.gather(*(produce() for _ in range(8)))
        await eventually(lambda: is_empty(connection), 60)

    assert len(calls) == len(set(calls)) == 10_000
    assert (
        await connection.fetchval("SELECT count(*) FROM notifyworker.run_history WHERE state = 'completed' AND attempt = 1")
        == 10_000
    )


async def test_the_client_enqueues_waits_lists_cancels_and_retries(dsn, make_worker):
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run, payload: dict) -> Any:
        return payload

    async with Client(dsn) as client:
        async with worker:
            run = await client.wait(await client.enqueue("a", {"n": 1}, idempotency_key="k"), timeout=SURELY_S)
            assert (run["state"], run["result"]) == ("completed", {"n": 1})
            ids = await client.enqueue_many("a", ({"n": n} for n in range(2500)))
            assert (await client.wait(ids[-1], timeout=SURELY_S))["result"] == {"n": 2499}
        assert len(set(ids)) == 2500
        pending = await client.enqueue("a", idempotency_key="x")
        assert await client.enqueue("a", idempotency_key="x") == pending
        assert [r["run_id"] for r in await client.list(state="pending")] == [pending]
        assert await client.cancel(pending) == "cancelled"
        assert await client.retry(pending) == pending
        assert (await client.get(pending))["state"] == "pending"


async def test_a_transaction_that_rolls_back_leaves_no_run(dsn, make_worker, connection):
    async with Client(dsn) as client:
        with pytest.raises(ZeroDivisionError):
            async with connection.transaction():
                await client.enqueue("a", connection=connection)
                raise ZeroDivisionError
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.runs") == 0


def test_mistakes_in_handlers_are_told_at_import():
    worker = Worker("postgresql://nowhere")
    worker.handler("a")(lambda run: None)
    for kind, function, told in (
        ("a", lambda run: None, "two handlers for kind 'a'"),
        ("", lambda run: None, "1 to 200 characters"),
        ("x" * 201, lambda run: None, "1 to 200 characters"),
        ("b", lambda: None, r"takes \(run, payload\) or \(run\)"),
        ("c", lambda a, b, c: None, r"takes \(run, payload\) or \(run\)"),
    ):
        with pytest.raises(HandlerError, match=told):
            worker.handler(kind)(function)
    with pytest.raises(SettingsError):
        Worker(concurrency=0)


async def test_the_log_of_a_run_is_bound_to_it(make_worker, connection):
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        run.log.info("letter_written", pages=2)

    with structlog.testing.capture_logs() as logs:
        async with worker:
            run_id = await insert(connection, "a")
            await settled(connection, run_id)

    (line,) = [e for e in logs if e["event"] == "letter_written"]
    assert (line["run_id"], line["kind"], line["attempt"], line["pages"]) == (str(run_id), "a", 1, 2)


async def test_a_handler_leaves_nothing_in_its_slot_for_the_next_run(make_worker, connection):
    worker = make_worker(concurrency=1, prefetch=5)
    seen: list[object] = []

    class Odd:
        """What is set in a context may not even be comparable."""

        __hash__ = None

        def __eq__(self, other: object) -> bool:
            raise RuntimeError

    value: contextvars.ContextVar[object] = contextvars.ContextVar("value", default=None)

    @worker.handler("a")
    async def handle(run: Run, payload: dict) -> None:
        await asyncio.sleep(0)
        seen.append(value.get())
        value.set(Odd())
        structlog.contextvars.bind_contextvars(order=payload["n"])
        seen.append(structlog.contextvars.get_contextvars())
        if payload["n"] == 2:
            asyncio.current_task().cancel()  # and nobody waits any more

    async with worker:
        async with connection.transaction():
            ids = [await insert(connection, "a", f'{{"n": {n}}}') for n in (1, 2, 3)]
        for run_id in ids:
            run = await settled(connection, run_id)
            assert (run["state"], run["attempt"]) == ("completed", 1)

    assert seen == [None, {"order": 1}, None, {"order": 2}, None, {"order": 3}]


WATCH_COMMITS = """
CREATE TABLE public.commits (what text, setting text);
CREATE FUNCTION public.watch_commits() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO public.commits VALUES (TG_ARGV[0], current_setting('synchronous_commit'));
    RETURN NULL;
END $$;
CREATE TRIGGER watch AFTER UPDATE ON notifyworker.runs FOR EACH ROW EXECUTE FUNCTION public.watch_commits('claim');
CREATE TRIGGER watch AFTER INSERT ON notifyworker.run_history FOR EACH ROW EXECUTE FUNCTION public.watch_commits('settle');
"""


@pytest.mark.parametrize(("given", "settles"), [({}, "on"), ({"synchronous_commit": "off"}, "off")])
async def test_only_settles_may_forgo_the_disk(dsn, make_worker, connection, given, settles):
    """A claim never does, not even where the database's own default is off."""
    database = await connection.fetchval("SELECT current_database()")
    await connection.execute(f'{WATCH_COMMITS}; ALTER DATABASE "{database}" SET synchronous_commit = off')
    worker = make_worker(**given)

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    async with worker:
        await settled(connection, await insert(connection, "a"))

    seen = {(row["what"], row["setting"]) for row in await connection.fetch("SELECT * FROM public.commits")}
    assert seen == {("claim", "on"), ("settle", settles)}
