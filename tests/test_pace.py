"""Debounce and throttle: what becomes of calls that have a key in common, whoever races whom."""

import asyncio
import json
import re
import shlex
import types
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from servers import eventually
from test_cli import call, refused
from test_pauses import _Session

from notifyworker import Client, Run, Worker
from notifyworker.errors import InvalidRun
from notifyworker.lanes import EPOCH, SLACK, Batch, Lane
from notifyworker.store import Served, Store

PAGE = Path(__file__).parents[1] / "docs" / "keys.md"
STORE = Store("notifyworker")
DEBOUNCE = "SELECT notifyworker.enqueue('a', $1, idempotency_key => 'k', debounce => $2, debounce_at_most => $3)"
THROTTLE = "SELECT notifyworker.enqueue('a', idempotency_key => 'k', throttle => $1)"
BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
HOUR = timedelta(hours=1)


@pytest.fixture
async def db(any_dsn: str):
    conn = await asyncpg.connect(any_dsn)
    yield conn
    await conn.close()


@pytest.fixture
async def other(any_dsn: str):
    conn = await asyncpg.connect(any_dsn)
    yield conn
    await conn.close()


async def debounced(db: asyncpg.Connection, n: int, pause: timedelta = HOUR, at_most: timedelta | None = None) -> UUID:
    return await db.fetchval(DEBOUNCE, json.dumps({"n": n}), pause, at_most)


async def rows(db: asyncpg.Connection) -> list[dict[str, Any]]:
    found = await db.fetch("SELECT *, run_at - now() AS left FROM notifyworker.runs ORDER BY created_at, run_id")
    return [{**row, "payload": json.loads(row["payload"])} for row in found]


async def claim(db: asyncpg.Connection, lease_s: float = 60) -> list[Run]:
    await db.execute("UPDATE notifyworker.runs SET run_at = now() WHERE state = 'pending'")
    return await claimed(db, lease_s)


async def claimed(db: asyncpg.Connection, lease_s: float = 60) -> list[Run]:
    served = Served({"a": 3}, {"a": None}, None)
    lanes = [Lane("a", "default", 0, EPOCH)]
    return await STORE.claim(
        db, served, Batch(lanes, [10]), SLACK, limit=10, lease_owner="w", lease_s=lease_s, enforce_shadow=False
    )


async def test_a_later_call_replaces_what_a_pending_run_has(db):
    first = await debounced(db, 1)
    await db.execute("UPDATE notifyworker.runs SET errors = '[{}]', attempt = 2, max_attempts = 3, progress = '1'")

    again = await db.fetchval(
        """SELECT notifyworker.enqueue('a', '{"n": 2}', idempotency_key => 'k', debounce => '2 hours', priority => 5,
                                       headers => '{"h": 1}', max_attempts => 1)"""
    )

    (run,) = await rows(db)
    assert again == first == run["run_id"]
    assert (run["payload"], run["priority"], run["headers"], run["max_attempts"]) == ({"n": 2}, 5, '{"h": 1}', 1)
    assert (run["attempt"], run["errors"], run["progress"]) == (0, "[{}]", None)
    assert HOUR < run["left"] <= 2 * HOUR
    assert run["idempotency_key"] == "k"


async def test_a_run_that_waits_for_its_key_is_put_off_and_gives_its_turn_on(db):
    """The one that has its turn for a concurrency key is put off to another key: the next one who waits gets the turn."""
    enqueue = """SELECT notifyworker.enqueue('a', idempotency_key => $1, concurrency_key => $2, debounce => '1 hour')"""
    first, second = await db.fetchval(enqueue, "1", "c"), await db.fetchval(enqueue, "2", "c")
    await db.execute("UPDATE notifyworker.runs SET waits_for = 'key' WHERE run_id = $1", second)

    assert await db.fetchval(enqueue, "1", "another") == first

    waits = "SELECT waits_for IS NULL FROM notifyworker.runs WHERE run_id = $1"
    assert await db.fetchval(waits, second)
    await db.execute("UPDATE notifyworker.runs SET waits_for = 'key' WHERE run_id = $1", second)
    assert await db.fetchval(enqueue, "2", None) == second
    assert await db.fetchval(waits, second)


async def test_calls_without_end_put_a_run_off_only_so_far(db):
    await debounced(db, 1, HOUR, HOUR)
    await db.execute("UPDATE notifyworker.runs SET created_at = now() - interval '50 minutes'")

    await debounced(db, 2, HOUR, HOUR)

    (run,) = await rows(db)
    assert timedelta(minutes=9) < run["left"] < timedelta(minutes=11)
    await db.execute("UPDATE notifyworker.runs SET created_at = now() - interval '2 days'")
    await debounced(db, 3, HOUR, HOUR)
    assert (await rows(db))[0]["left"] <= timedelta(0)


async def test_a_running_one_is_not_touched_and_one_run_follows_it(db):
    first = await debounced(db, 1)
    (running,) = await claim(db)
    assert running.run_id == first

    second = await debounced(db, 2)
    third = await debounced(db, 3)

    assert first != second == third
    one, two = await rows(db)
    assert (one["state"], one["payload"], one["idempotency_key"]) == ("running", {"n": 1}, "k")
    assert (two["state"], two["payload"], two["idempotency_key"]) == ("pending", {"n": 3}, None)
    await db.execute("SELECT notifyworker.cancel($1)", first)
    assert await debounced(db, 4) == second
    assert len(await claim(db)) == 1
    assert await debounced(db, 5) not in {first, second}
    assert (await rows(db))[1]["idempotency_key"] == "k"


async def test_a_settled_runs_key_is_free_for_a_debounced_one(db):
    await db.execute("INSERT INTO notifyworker.runs (kind, idempotency_key) VALUES ('a', 'k')")
    await db.execute("SELECT notifyworker.cancel(run_id) FROM notifyworker.runs")

    first = await debounced(db, 1)
    await db.execute("SELECT notifyworker.cancel($1)", first)
    plain = await db.fetchval("SELECT notifyworker.enqueue('a', idempotency_key => 'k')")

    assert plain != first  # a debounced run leaves no window behind
    assert await debounced(db, 2) == plain  # whoever has inserted what is pending


async def test_a_claim_comes_first_and_another_run_follows(any_dsn, db, other):
    first = await debounced(db, 1)
    await db.execute("UPDATE notifyworker.runs SET run_at = now()")
    transaction = other.transaction()
    await transaction.start()
    assert [run.run_id for run in await claimed(other)] == [first]
    waiting = asyncio.create_task(debounced(db, 2))
    await eventually(lambda: other.fetchval(BLOCKED))

    await transaction.commit()

    second = await asyncio.wait_for(waiting, 30)
    assert second != first
    assert [(run["state"], run["payload"]["n"]) for run in await rows(db)] == [("running", 1), ("pending", 2)]


async def test_a_claim_that_fails_leaves_the_run_to_the_call(db, other):
    first = await debounced(db, 1)
    await db.execute("UPDATE notifyworker.runs SET run_at = now()")
    transaction = other.transaction()
    await transaction.start()
    await claimed(other)
    waiting = asyncio.create_task(debounced(db, 2))
    await eventually(lambda: other.fetchval(BLOCKED))

    await transaction.rollback()

    assert await asyncio.wait_for(waiting, 30) == first
    assert [(run["state"], run["payload"]["n"]) for run in await rows(db)] == [("pending", 2)]


async def test_the_call_comes_first_and_the_claim_finds_it_later(db, other):
    first = await debounced(db, 1)
    await db.execute("UPDATE notifyworker.runs SET run_at = now()")
    transaction = other.transaction()
    await transaction.start()
    assert await debounced(other, 2, timedelta(microseconds=1)) == first

    assert await claimed(db) == []  # and does not wait

    await transaction.commit()
    assert [run.payload for run in await claimed(db)] == [{"n": 2}]


async def test_racing_producers_and_workers_lose_no_last_call(any_dsn, db):
    """Four producers call at once while a worker claims what is due: whatever is executed last is what was said last."""
    seen: list[int] = []
    worker = Worker(any_dsn, poll_interval_s=60)

    @worker.handler("a")
    async def handle(run: Run, payload: dict) -> None:
        seen.append(payload["n"])

    producers = [await asyncpg.connect(any_dsn) for _ in range(4)]
    told: list[int] = []
    most = 0

    async def produce(conn: asyncpg.Connection, numbers: range) -> None:
        nonlocal most
        for n in numbers:
            async with conn.transaction():
                await debounced(conn, n, timedelta(milliseconds=n % 7 + 1))
                told.append(n)  # while the key is ours: in the order in which they come
            most = max(most, await conn.fetchval("SELECT count(*) FROM notifyworker.runs WHERE state = 'pending'"))

    async with worker:
        await asyncio.gather(*(produce(conn, range(k, 240, 4)) for k, conn in enumerate(producers)))
        await eventually(lambda: db.fetchval("SELECT count(*) = 0 FROM notifyworker.runs"))
    assert seen[-1] == told[-1]
    assert most == 1
    assert 1 <= len(seen) < 240
    assert sorted(seen, key=told.index) == seen  # each what was said at that time, never what came before
    await asyncio.gather(*(conn.close() for conn in producers))


async def test_first_calls_at_once_are_one_run(any_dsn, db):
    producers = [await asyncpg.connect(any_dsn) for _ in range(8)]

    found = await asyncio.gather(*(debounced(conn, n) for n, conn in enumerate(producers)))

    assert len(set(found)) == 1
    assert len(await rows(db)) == 1
    await asyncio.gather(*(conn.close() for conn in producers))


async def test_a_run_that_is_put_off_starts_then_without_a_poll(make_worker, connection):
    worker: Worker = make_worker()
    seen = asyncio.Event()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        seen.set()

    async with worker:
        await debounced(connection, 1, HOUR)
        await debounced(connection, 2, timedelta(milliseconds=100))  # sooner than the worker knows
        await asyncio.wait_for(seen.wait(), 30)


async def test_throttled_calls_are_one_run_a_period(db):
    first = await db.fetchval(THROTTLE, HOUR)
    assert await db.fetchval(THROTTLE, HOUR) == first
    await db.execute("UPDATE notifyworker.settings SET value = '0' WHERE name = 'idempotency_window_s'")
    await db.execute("SELECT notifyworker.cancel($1)", first)
    assert await db.fetchval(THROTTLE, HOUR) == first  # settled, and the period goes on
    await db.execute("UPDATE notifyworker.settings SET value = '86400' WHERE name = 'idempotency_window_s'")
    await db.execute("UPDATE notifyworker.idempotency_keys SET expires_at = now() - interval '1 s'")

    second = await db.fetchval(THROTTLE, timedelta(microseconds=1))

    assert second != first
    assert await db.fetchval(THROTTLE, HOUR) == second  # the period is over, and the run is live
    await db.execute("SELECT notifyworker.cancel($1)", second)
    assert await db.fetchval(THROTTLE, HOUR) != second  # and now it is settled: not for a day, as without throttle


async def test_the_period_counts_from_the_call_and_not_from_the_settle(db):
    first = await db.fetchval(THROTTLE, HOUR)
    await db.execute("SELECT notifyworker.cancel($1)", first)

    left = await db.fetchval(
        "SELECT expires_at - (SELECT created_at FROM notifyworker.run_history) FROM notifyworker.idempotency_keys"
    )

    assert left == HOUR


async def test_a_key_whose_worker_has_died_is_free_when_the_lease_ends(make_worker, connection):
    """The one who held the run renews nothing: on its last attempt it fails, and then the key is the next one's."""
    await connection.execute("UPDATE notifyworker.settings SET value = '0' WHERE name = 'idempotency_window_s'")
    enqueue = "SELECT notifyworker.enqueue('a', idempotency_key => 'k', max_attempts => 1)"
    first = await connection.fetchval(enqueue)
    again = await debounced(connection, 1, timedelta(microseconds=1))
    assert again == first
    await connection.execute("UPDATE notifyworker.runs SET max_attempts = 1")
    await connection.execute("UPDATE notifyworker.settings SET value = '0.2' WHERE name = 'reaper_interval_s'")
    (dead,) = await claim(connection, lease_s=1)
    assert await connection.fetchval(enqueue) == dead.run_id
    worker: Worker = make_worker()

    @worker.handler("another")
    async def handle(run: Run) -> None: ...

    async with worker:
        assert await eventually(lambda: _another(connection, enqueue, first))
    assert await connection.fetchval("SELECT error_code FROM notifyworker.run_history") == "E-RUN-002"


async def _another(db: asyncpg.Connection, enqueue: str, first: UUID) -> bool:
    return await db.fetchval(enqueue) != first


async def test_the_leader_clears_away_what_is_left(make_worker, connection):
    await debounced(connection, 1)
    live = await connection.fetchval("SELECT notifyworker.enqueue('a', idempotency_key => 'live', debounce => '1 hour')")
    await connection.execute("SELECT notifyworker.cancel(run_id) FROM notifyworker.runs WHERE run_id <> $1", live)
    await connection.execute("UPDATE notifyworker.debounces SET due_at = now() - interval '2 minutes'")
    worker: Worker = make_worker(reaper_interval_s=0.2)

    @worker.handler("another")
    async def handle(run: Run) -> None: ...

    async with worker:
        await eventually(lambda: connection.fetchval("SELECT count(*) = 1 FROM notifyworker.debounces"))
    assert await connection.fetchval("SELECT run_id FROM notifyworker.debounces") == live


WRONG = [
    ({"debounce": 1}, "idempotency_key"),
    ({"throttle": 1}, "idempotency_key"),
    ({"debounce_at_most": 1, "idempotency_key": "k"}, "debounce_at_most"),
    ({"debounce": 0, "idempotency_key": "k"}, "debounce"),
    ({"debounce": 366 * 86400, "idempotency_key": "k"}, "debounce"),
    ({"debounce": 1, "debounce_at_most": -1, "idempotency_key": "k"}, "debounce_at_most"),
    ({"throttle": 0, "idempotency_key": "k"}, "throttle"),
    ({"debounce": 1, "throttle": 1, "idempotency_key": "k"}, "throttle"),
    ({"debounce": 1, "run_at": "2999-01-01T00:00:00Z", "idempotency_key": "k"}, "run_at"),
]


@pytest.mark.parametrize(("columns", "field"), WRONG)
async def test_what_cant_be_is_refused_and_named(connection, dsn, columns, field):
    given = {name: f"interval '{value} s'" if isinstance(value, int) else f"'{value}'" for name, value in columns.items()}
    arguments = ", ".join(f"{name} => {value}" for name, value in given.items())
    with pytest.raises(asyncpg.InvalidParameterValueError) as told:
        await connection.fetchval(f"SELECT notifyworker.enqueue('a', {arguments})")
    assert (told.value.column_name, str(told.value).startswith(field)) == (field, True)
    async with Client(dsn) as client:
        with pytest.raises(InvalidRun) as wrong:
            await client.enqueue("a", **columns)
    assert wrong.value.field == field


async def test_a_payload_that_is_too_large_replaces_nothing(db):
    await debounced(db, 1)
    await db.execute("UPDATE notifyworker.settings SET value = '20' WHERE name = 'max_payload_bytes'")
    await db.execute("SELECT notifyworker.apply_settings()")

    with pytest.raises(asyncpg.ProgramLimitExceededError) as told:
        await db.fetchval(DEBOUNCE, json.dumps("x" * 30), HOUR, None)

    assert told.value.column_name == "payload"
    assert (await rows(db))[0]["payload"] == {"n": 1}


async def test_python_says_what_became_of_it(dsn):
    async with Client(dsn) as client:
        first = await client.insert("a", {"n": 1}, idempotency_key="k", debounce=3600, debounce_at_most=timedelta(days=1))
        again = await client.insert("a", {"n": 2}, idempotency_key="k", debounce=3600)
        plain = await client.insert("a", {"n": 3}, idempotency_key="k")
        assert (first.became, again.became, plain.became) == ("new", "replaced", "existing")
        assert first.run_id == again.run_id == plain.run_id
        assert (await client.get(first.run_id))["payload"] == {"n": 2}
        with pytest.raises(InvalidRun, match="singly"):
            await client.enqueue_many("a", [1], idempotency_key="k", throttle=1)


async def test_over_http(make_worker, connection):
    worker: Worker = make_worker(sidecar=True, port=0)

    @worker.handler("another")
    async def handle(run: Run) -> None: ...

    async with worker, _Session(str(worker.url)) as http:
        body = {"kind": "a", "idempotency_key": "k", "debounce": 3600}
        status, first = await http.post("/runs", body)
        again = await http.post("/runs", {**body, "payload": {"n": 2}})
        throttled = await http.post("/runs", {"kind": "a", "idempotency_key": "k", "throttle": 3600})
        wrong_status, wrong = await http.post("/runs", {"kind": "a", "debounce": 1})
    assert status == 201
    assert again == (200, {"run_id": first["run_id"], "replaced": True})
    assert throttled == (200, {"run_id": first["run_id"], "existing": True})
    assert (wrong_status, wrong["field"]) == (400, "idempotency_key")


async def test_on_the_command_line(dsn):
    env = {"NOTIFYWORKER_DSN": dsn}
    key = ("--idempotency-key", "k", "--json")
    first = (await call("enqueue", "a", "1", *key, "--debounce", "3600", "--debounce-at-most", "7200", env=env)).json()
    again = (await call("enqueue", "a", "2", *key, "--debounce", "3600", env=env)).json()
    held = (await call("enqueue", "a", "3", *key, "--throttle", "3600", env=env)).json()
    assert (first["replaced"], again["replaced"], held["existing"]) == (False, True, True)
    assert first["run_id"] == again["run_id"] == held["run_id"]
    assert "idempotency_key" in await refused(2, "enqueue", "a", "1", "--debounce", "1", env=env)


async def test_the_pages_examples(dsn, connection, monkeypatch):
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    text = PAGE.read_text()
    (sql,) = re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for statement in sql.strip().split(";\n"):
        assert await connection.fetchval(statement)
    (shell,) = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for line in shell.splitlines():
        assert (await call(*shlex.split(line)[1:], env={"NOTIFYWORKER_DSN": dsn})).code == 0
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.runs") == 3
    (python,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    page = types.ModuleType("keys_page")
    exec(compile(python, str(PAGE), "exec"), page.__dict__)
    assert [await page.changed(3), await page.changed(4)] == ["replaced", "new"]
