"""Whatever a producer can put into a row by SQL: it is refused, by name, or executed; and it harms no other run."""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Mapping
from typing import Any
from uuid import UUID

import aiohttp
import asyncpg
import hypothesis
import pytest
from hypothesis import strategies as st
from servers import eventually
from structlog.testing import capture_logs
from test_cli import call
from test_http import serve
from test_life import insert, settled

from notifyworker import Client, Fail, InvalidRun, Retry, Run, Worker

#: What only a fault of ours writes.
FAULTS = {
    "loop_ended",
    "execute_failed",
    "sidecar_error",
    "claim_failed",
    "settle_failed",
    "outcome_unstorable",
    "heartbeat_failed",
}
ODD = [
    "\x1b[31m red",
    "\u202eright to left",
    "a\r\nb\tc",
    "\x7f\x80\x9f",
    "\ufeff",
    " ",
    "%s{0}$1';--",
    "é\u0301" * 20,
    "\U0001f600" * 200,
]

TEXTS = [*ODD, "", "\0", "x" * 200, "x" * 201, "\U0010ffff" * 500, "ü" * 501]
MOMENTS = [
    "now", "epoch", "infinity", "-infinity", "4713-01-01 00:00:00+00 BC", "0001-01-01 BC", "1969-12-31 23:59:59.999999+00", "1970-01-01+00",
    "9999-12-31 23:59:59.999999+00", "9999-12-31 23:59:59-01", "10000-01-01 00:00:00+00", "294276-12-31 23:59:59.999999+00", "294277-01-01",
    "2024-02-30", "yesterday", "2000-01-01 24:00:00+15:59", "x",
]  # fmt: skip
JSON = [
    "1e400", "-1e400", "1e-400", "1" + "0" * 400 + ".5", "9" * 5000, "[" * 6000 + "]" * 6000, '{"a":' * 300 + "1" + "}" * 300, r'"\u0000"',
    r'{"a\u0000": 1}', r'"\ud800"', r'"\ud83d\ude00"', "NaN", "", "null", '{"a": 1, "a": 2}', "0.1234567890123456789", "-0", "1e131071",
    '"' + "x" * 1_048_573 + '"', '"' + "x" * 1_048_576 + '"', "18446744073709551616", '"\u202e\u2028\x7f"', "[" + "[]," * 2000 + "[]]",
    '{"a": 1e400}', '{"\x7f": "\u202e"}',
]  # fmt: skip
NUMBERS = ["0", "1", "-1", "2", "32767", "32768", "-32768", "-32769", "1.5", "NaN", "x", "99999999999999999999"]
SPANS = [
    "0", "1 microsecond", "-1 s", "1 s", "365 days", "365 days 1 microsecond", "12 mons", "1 mon -29 days", "1 year -360 days", "178000000 years",
    "-178000000 years", "infinity", "876000000 hours", "x", "PT1S",
]  # fmt: skip
IDS = ["00000000-0000-0000-0000-000000000000", "f" * 32, "x"]
FLAGS = ["true", "false", "x"]

unicode = st.characters(exclude_categories=["Cs"])
texts = st.sampled_from(TEXTS) | st.text(unicode, max_size=12)
moments = st.sampled_from(MOMENTS) | st.datetimes().map(str)
json_texts = st.sampled_from(JSON) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(unicode, max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(unicode, max_size=4), inner, max_size=3),
    max_leaves=6,
).map(json.dumps)
numbers, spans, flags = st.sampled_from(NUMBERS), st.sampled_from(SPANS), st.sampled_from(FLAGS)
ids = st.uuids().map(str) | st.sampled_from(IDS)

#: Each column with its type, and what is put into it.
COLUMNS: Mapping[str, tuple[str, Any]] = {
    "payload": ("jsonb", json_texts), "headers": ("jsonb", json_texts), "project_id": ("text", texts), "priority": ("smallint", numbers),
    "run_at": ("timestamptz", moments), "expires_at": ("timestamptz", moments), "timeout": ("interval", spans),
    "max_attempts": ("smallint", numbers), "idempotency_key": ("text", texts), "concurrency_key": ("text", texts),
    "is_shadow": ("boolean", flags), "run_id": ("uuid", ids),
    # The system's.
    "state": ("text", texts), "attempt": ("smallint", numbers), "lease_token": ("bigint", numbers), "lease_owner": ("text", texts),
    "lease_expires_at": ("timestamptz", moments), "created_at": ("timestamptz", moments), "started_at": ("timestamptz", moments),
    "progress": ("jsonb", json_texts), "errors": ("jsonb", json_texts), "shadow_by": ("text", texts),
}  # fmt: skip
PRODUCERS = list(COLUMNS)[:12]
EDGES = {
    "payload": JSON, "headers": JSON, "project_id": TEXTS, "priority": NUMBERS, "run_at": MOMENTS, "expires_at": MOMENTS, "timeout": SPANS,
    "max_attempts": NUMBERS, "idempotency_key": TEXTS, "is_shadow": FLAGS, "run_id": IDS,
}  # fmt: skip


def some(names: list[str], most: int) -> st.SearchStrategy[dict[str, str | None]]:
    chosen = st.lists(st.sampled_from(names), max_size=most, unique=True)
    return chosen.flatmap(lambda few: st.fixed_dictionaries({name: COLUMNS[name][1] for name in few}))


rows = st.builds(
    lambda kind, columns, system: {"kind": kind, **columns, **system},
    st.sampled_from(["fuzz", "fuzz", "boom"]) | st.sampled_from(ODD) | texts,
    some(["payload", "headers", "is_shadow", "priority"], 2) | some(PRODUCERS, 2),
    st.integers(0, 9).flatmap(lambda n: some(list(COLUMNS)[12:], 2) if n == 0 else st.just({})),
)


async def put(conn: asyncpg.Connection, row: Mapping[str, str | None]) -> UUID | None:
    """Insert it; None if it was refused. The server's own words for text that is no number, time or JSON need no help."""
    places = ", ".join(f"${n}::text::{COLUMNS.get(name, ('text',))[0]}" for n, name in enumerate(row, 1))
    try:
        return await conn.fetchval(
            f"INSERT INTO notifyworker.runs ({', '.join(row)}) VALUES ({places}) RETURNING run_id", *row.values()
        )
    except asyncpg.PostgresError as error:
        is_of_the_server = isinstance(error, asyncpg.DataError) and error.schema_name is None and error.column_name is None
        named = f"{error.column_name} {error.constraint_name} {error}"
        assert is_of_the_server or any(name in named for name in row), (row, error)
        return None


@contextlib.asynccontextmanager
async def listening(url: str) -> AsyncIterator[list[dict[str, Any]]]:
    """What /events says meanwhile; each of it is JSON."""
    heard: list[dict[str, Any]] = []

    async def listen() -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as http, http.get(f"{url}/events") as stream:
            async for line in stream.content:
                heard.extend([json.loads(line[6:])] if line.startswith(b"data: ") else [])

    task = asyncio.create_task(listen())
    try:
        yield heard
        assert not task.done(), task
    finally:
        task.cancel()


@pytest.fixture
def worker(make_worker) -> Worker:
    worker = make_worker(sidecar=True, port=0)
    later = Retry(base_s=3600, cap_s=7200)

    async def fuzz(run: Run, payload: Any) -> Any:
        await run.progress({"payload": payload})
        await run.effect("send", print_nothing, payload, kind=run.kind)
        return [payload, run.headers]

    async def boom(run: Run, payload: Any) -> None:
        raise Fail(f"{payload!r} {run.kind}")

    for kind in ["fuzz", *ODD]:
        worker.handler(kind, retry=later)(fuzz)
    worker.handler("boom", retry=later)(boom)

    @worker.handler("other")
    async def other(run: Run) -> None: ...

    return worker


def print_nothing(*_args: object, **_more: object) -> None: ...


LEFT = """SELECT count(*) = 0 FROM notifyworker.runs
           WHERE kind = ANY ($1) AND run_at <= now() AND (state = 'running' OR started_at IS NULL)"""


async def test_whatever_is_inserted_is_refused_by_name_or_executed_and_harms_no_other(worker, connection, dsn):
    loop = asyncio.get_running_loop()
    taken: dict[UUID, Mapping[str, str | None]] = {}
    others: list[UUID] = []

    async def attempt(batch: list[dict[str, str | None]]) -> None:
        for row in batch:
            if (run_id := await put(connection, row)) is not None:
                taken[run_id] = row
        others.append(await insert(connection, "other"))
        assert (await settled(connection, others[-1]))["state"] == "completed", batch
        await eventually(lambda: connection.fetchval(LEFT, worker.kinds))

    @hypothesis.settings(
        max_examples=100, derandomize=True, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(st.lists(rows, min_size=1, max_size=6))
    def whatever(batch: list[dict[str, str | None]]) -> None:
        asyncio.run_coroutine_threadsafe(attempt(batch), loop).result(60)

    with capture_logs() as logs:
        async with worker, listening(worker.url) as heard:
            for name, values in EDGES.items():
                await attempt([{"kind": "fuzz", name: None}, *({"kind": "fuzz", name: value} for value in values)])
            await asyncio.to_thread(whatever)
            assert len(taken) > 100
            await eventually(lambda: {"run_id": str(others[-1]), "kind": "other", "state": "completed"} in heard)
            assert worker._conductor.health() == []
            async with aiohttp.ClientSession() as http:
                await seen_over_http(http, worker.url, [*taken, *others])
    assert {entry["event"] for entry in logs}.isdisjoint(FAULTS)
    await seen_on_the_command_line(dsn, taken)


async def test_a_key_that_is_too_large_for_the_index_is_named(dsn, connection):
    """500 characters are allowed, and may have 2,000 bytes: with a kind and a project of as many, no index takes that."""
    chance = random.Random(1)
    long = {name: "".join(chr(chance.randrange(0x10000, 0x110000)) for _ in range(n)) for name, n in LONGEST.items()}

    with pytest.raises(asyncpg.ProgramLimitExceededError, match="idempotency_key"):
        await insert(connection, long["kind"], project_id=long["project_id"], idempotency_key=long["idempotency_key"])
    async with Client(dsn) as client:
        with pytest.raises(InvalidRun, match="idempotency_key") as refused:
            await client.enqueue(**long)
        assert refused.value.field == "idempotency_key"
        run_id = await client.enqueue(**long | {"kind": "k" * 200, "project_id": "p" * 200})
        with pytest.raises(InvalidRun, match="run_id"):
            await client.enqueue("k", run_id=run_id)
    async with serve(dsn) as ask:
        await ask.refusal("POST", "/runs", 413, "idempotency_key", json=long)


LONGEST = {"kind": 200, "project_id": 200, "idempotency_key": 500}


async def seen_over_http(http: aiohttp.ClientSession, url: str, run_ids: list[UUID]) -> None:
    """Each run by itself, and all of them in pages."""
    for run_id in run_ids:
        async with http.get(f"{url}/runs/{run_id}") as answer:
            assert answer.status == 200
            assert json.loads(await answer.text())["run_id"] == str(run_id)
    seen: set[str] = set()
    cursor: str | None = ""
    while cursor is not None:
        async with http.get(f"{url}/runs", params={"limit": 100, **({"cursor": cursor} if cursor else {})}) as answer:
            page = json.loads(await answer.text())
        seen |= {run["run_id"] for run in page["runs"]}
        cursor = page["next_cursor"]
    assert seen == set(map(str, run_ids))


async def seen_on_the_command_line(dsn: str, taken: Mapping[UUID, Mapping[str, str | None]]) -> None:
    """Both forms of the list; and each run whose sort was not yet shown."""
    env = {"NOTIFYWORKER_DSN": dsn}
    as_json = (await call("runs", "list", "--limit", "500", "--json", env=env)).json()
    assert set(map(str, taken)) <= {run["run_id"] for run in as_json["runs"]} or len(as_json["runs"]) == 500
    as_text = (await call("runs", "list", "--limit", "500", env=env)).out
    assert len(as_text.splitlines()) == len(as_json["runs"]) + 1
    odd = sorted(taken, key=lambda run_id: len(repr(taken[run_id])))
    for run_id in (odd[0], odd[len(odd) // 2], odd[-1]):
        assert (await call("runs", "show", str(run_id), "--json", env=env)).json()["run_id"] == str(run_id)
        shown = (await call("runs", "show", str(run_id), env=env)).out
        assert all(line.isprintable() for line in shown.splitlines())
        assert str(run_id) in shown
