"""Many runs at once: inserted by COPY, cancelled and retried by filter, and killed half-way."""

import asyncio
import contextlib
import json
import re
import shlex
import tracemalloc
import types
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from servers import SURELY_S, as_role, eventually
from test_cli import call, refused, start
from test_concurrency import insert, ledger  # noqa: F401 - a fixture
from test_failed import row, settled_run
from test_http import Caller, ask  # noqa: F401 - a fixture
from test_roles import login

from notifyworker import Client, InvalidRun, Run, database
from notifyworker.bulk import Filter, Tally, steer, step
from notifyworker.cli.many import _run
from notifyworker.inserting import Enqueued
from notifyworker.store import Store

PAGE = Path(__file__).parents[1] / "docs" / "bulk.md"
COUNT = "SELECT count(*) FROM notifyworker.runs"
STATES = "SELECT state, count(*) FROM notifyworker.all_runs GROUP BY 1"


@pytest.fixture
async def db(any_dsn: str) -> Any:
    conn = await asyncpg.connect(any_dsn)
    yield conn
    await conn.close()


async def states(db: asyncpg.Connection) -> dict[str, int]:
    return dict(await db.fetch(STATES))


async def fill(db: asyncpg.Connection, runs: int, kind: str = "a", project_id: str = "default") -> None:
    await db.execute(
        "INSERT INTO notifyworker.runs (kind, project_id) SELECT $1, $2 FROM generate_series(1, $3::int)", kind, project_id, runs
    )


# Inserting.

TRICKY = [
    "\\",
    "\\N",
    "\t",
    "\n\r",
    "\\.",
    "ä€😀",
    "\x7f",
    "'\"",
    "",
    " ",
    "null",
    "a\\tb",
    {"a\t\\": ["\\n", "\n"]},
    None,
    0,
    2**70,
]


async def test_every_column_arrives_as_it_was_given(db, any_dsn):
    """Also what means something to COPY: backslashes, tabs, ends of lines, the end of the data."""
    at = datetime(2031, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    row_id = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
    columns = {
        "project_id": "p\t\\", "priority": -7, "run_at": at, "max_attempts": 4, "timeout": timedelta(days=2, microseconds=1),
        "expires_at": at, "is_shadow": True, "headers": {"h\n": "\\"},
    }  # fmt: skip
    async with Client(any_dsn) as client:
        ids = await client.enqueue_many("a\\N\t", TRICKY, **columns)
        assert [(await client.get(run_id))["payload"] for run_id in ids] == [*TRICKY[:13], {}, *TRICKY[14:]]
        assert await client.enqueue_rows([{"kind": "b", "run_id": row_id}, {"kind": "b"}]) == Enqueued(2, 0)
    one = await row(db, ids[0])
    assert {name: one[name] for name in columns if name != "headers"} == {n: v for n, v in columns.items() if n != "headers"}
    assert (one["kind"], json.loads(one["headers"]), one["state"]) == ("a\\N\t", columns["headers"], "pending")
    assert (await row(db, row_id))["kind"] == "b"
    defaults = await db.fetchrow("SELECT * FROM notifyworker.runs WHERE kind = 'b' AND run_id <> $1", row_id)
    assert (defaults["run_at"], defaults["timeout"], defaults["max_attempts"]) == (defaults["created_at"], None, None)


async def test_ids_are_in_order_and_in_the_order_of_insertion(db, any_dsn):
    async with Client(any_dsn) as client:
        ids = await client.enqueue_many("a", range(4500))
    assert ids == sorted(ids)
    assert [r["run_id"] for r in await db.fetch("SELECT run_id FROM notifyworker.runs ORDER BY payload")] == ids


async def test_what_is_read_is_not_held(dsn, connection):
    """A hundred megabytes of payloads go through; no more than a batch is there at a time, from an async source as well."""

    async def source() -> AsyncIterator[dict[str, Any]]:
        for n in range(1100):
            yield {"kind": "a", "payload": "x" * 100_000 if n < 1000 else n}

    seen: list[int] = []
    async with Client(dsn) as client:
        await client.enqueue("a")
        tracemalloc.start()
        try:
            told = await client.enqueue_rows(source(), in_batches=True, told=lambda so_far: seen.append(so_far.inserted))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert told == Enqueued(1100, 0)
    assert await connection.fetchval(COUNT) == 1101
    assert peak < 50 * 2**20  # a batch of 8 MB, as rows and as lines
    assert len(seen) > 10
    assert seen[-1] == 1100


@pytest.mark.parametrize("in_batches", [False, True])
@pytest.mark.parametrize(
    ("place", "wrong", "field"),
    [
        (2, {"kind": "a", "priority": "high"}, "priority"),
        (4501, {"kind": "a", "payload": float("nan")}, "payload"),
        (4502, {"kind": "a", "payload": "x" * 2**20}, "payload"),  # the database tells
        (4999, {"kind": "a", "payload": "x" * 2**20, "idempotency_key": "k"}, "payload"),
        (4500, {"kind": "a", "run_id": "01890a5d-ac96-774b-bcce-b302099a8057"}, "run_id"),
        (1, {"payload": 1}, "kind"),
        (5000, {"kind": "a", "colour": "red"}, "colour"),
        (3, "a", "row"),
        (7, {"kind": "a", "idempotency_key": "k", "throttle": 5}, "throttle"),
    ],
)
async def test_a_bad_row_is_told_by_its_place_and_its_field(dsn, connection, place, wrong, field, in_batches):  # noqa: PLR0917
    await connection.execute("INSERT INTO notifyworker.runs (run_id, kind) VALUES ('01890a5d-ac96-774b-bcce-b302099a8057', 'b')")
    rows: list[Any] = [{"kind": "a", "payload": n, "idempotency_key": f"{n}" if n % 3 else None} for n in range(5000)]
    rows[place - 1] = wrong
    async with Client(dsn) as client:
        with pytest.raises(InvalidRun, match=f"^row {place}: {field}: ") as told:
            await client.enqueue_rows(rows, in_batches=in_batches)
    assert (told.value.row, told.value.field) == (place, field)
    assert await connection.fetchval(COUNT) == 1 + ((place - 1) // 2000 * 2000 if in_batches else 0)


async def test_a_key_that_is_taken_is_the_holders_id_and_no_error(db, any_dsn):
    async with Client(any_dsn) as client:
        held = await client.enqueue("a", idempotency_key="live")
        settled = await client.enqueue("a", idempotency_key="settled")
        await client.cancel(settled)
        rows = [
            {"kind": "a", "idempotency_key": "live"},
            {"kind": "a", "idempotency_key": "settled"},
            {"kind": "a", "idempotency_key": "new"},
            {"kind": "a", "idempotency_key": "new"},
            {"kind": "a"},
        ]
        assert await client.enqueue_rows(rows) == Enqueued(2, 3)
        assert await client.enqueue_many("a", [1, 2], idempotency_key="live") == [held, held]
        assert await client.enqueue_many("a", [1], idempotency_key="settled") == [settled]
    assert await db.fetchval(COUNT) == 3


async def test_in_the_callers_own_transaction_all_or_none(dsn, connection):
    """Also where the connection has codecs of its own."""
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
    await connection.set_type_codec("uuid", encoder=str, decoder=str, schema="pg_catalog")
    async with Client(dsn) as client:
        transaction = connection.transaction()
        await transaction.start()
        await client.enqueue_many("a", [{"n": 1}] * 3000, connection=connection)
        assert await connection.fetchval(COUNT) == 3000
        await transaction.rollback()
        assert await connection.fetchval(COUNT) == 0
        ids = await client.enqueue_many("a", [{"n": 1}], connection=connection)
        assert (await client.get(ids[0]))["payload"] == {"n": 1}
        async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool:
            assert len(await client.enqueue_many("a", [1, 2], connection=pool)) == 2
        with pytest.raises(TypeError, match="asyncpg"):
            await client.enqueue_many("a", [1], connection=object())  # type: ignore[arg-type]


async def test_a_source_that_raises_leaves_nothing_and_the_client_goes_on(dsn, connection):
    def source() -> Iterator[int]:
        yield from range(2500)
        raise LookupError

    async with Client(dsn) as client:
        for _ in range(6):  # more often than there are connections
            with pytest.raises(LookupError):
                await client.enqueue_many("a", source())
        assert await connection.fetchval(COUNT) == 0
        assert len(await client.enqueue_many("a", [1])) == 1


async def test_a_producer_needs_no_more_than_its_role(db, any_dsn):
    async with login(any_dsn, "notifyworker_producer") as (name, _session):
        async with Client(as_role(any_dsn, name, name)) as client:
            assert len(await client.enqueue_many("a", range(2500))) == 2500
            assert await client.enqueue_rows([{"kind": "a", "idempotency_key": "k"}] * 2) == Enqueued(1, 1)
        await db.execute("SELECT notifyworker.separate_projects(), notifyworker.bind_role($1, 'mine')", name)
        async with Client(as_role(any_dsn, name, name)) as client:  # where COPY is refused
            assert len(await client.enqueue_many("a", range(2500), project_id="mine")) == 2500
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await client.enqueue_many("a", [1], project_id="others")
    assert await db.fetchval(COUNT) == 5001


async def test_they_are_executed_like_any_others(make_worker, connection, dsn):
    worker = make_worker(concurrency=100)
    executed: list[int] = []

    @worker.handler("a")
    async def handle(run: Run, payload: int) -> None:
        executed.append(payload)

    async with worker, Client(dsn) as client:
        await client.enqueue_many("a", range(5000))
        await eventually(lambda: len(executed) == 5000)
    assert sorted(executed) == list(range(5000))


async def test_a_file_of_json_lines(dsn, connection, tmp_path):
    env = {"NOTIFYWORKER_DSN": dsn}
    good = [{"kind": "a", "payload": {"n": n}, "priority": n % 3, "idempotency_key": "k" if n < 2 else None} for n in range(2500)]
    file = tmp_path / "runs.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in good))
    assert (await call("enqueue-many", str(file), env=env)).out == (
        "inserted 2,499 runs; 1 were there already, by their idempotency keys\n"
    )
    stdin = '1\n"x"\n{}'  # the last line has no end
    done = (await call("enqueue-many", "-", "--kind", "b", "--project-id", "p", "--json", stdin=stdin, env=env)).json()
    assert done == {"inserted": 3, "existing": 0}
    assert await connection.fetchval("SELECT array_agg(payload ORDER BY run_id) FROM notifyworker.runs WHERE project_id = 'p'") == [
        "1", '"x"', "{}",
    ]  # fmt: skip

    text = '{"kind": "c"}\n' * 2100 + json.dumps({"kind": "a", "payload": "x" * 2**20}) + "\n" + '{"kind": "c"}\n' * 10
    assert re.search(r"payload: .*max_payload_bytes.*line 2101", await refused(2, "enqueue-many", "-", stdin=text, env=env))
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.runs WHERE kind = 'c'") == 0
    told = await call("enqueue-many", "-", "--in-batches", stdin=text, env=env)
    assert told.code == 2
    assert "lines 1 to 2000 are inserted; --from-line 2001" in told.err
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.runs WHERE kind = 'c'") == 2000
    mended = '{"kind": "c"}\n' * 2111
    assert (await call("enqueue-many", "-", "--from-line", "2001", stdin=mended, env=env)).out == "inserted 111 runs\n"
    assert "No such file" in await refused(2, "enqueue-many", str(tmp_path / "absent"), env=env)
    assert "--kind" in await refused(2, "enqueue-many", "-", "--project-id", "p", env=env)


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (b"{", "JSON"), (b"", "JSON"), (b"\xff", "JSON"), (b'{"kind": "a", "payload": NaN}', "JSON"), (b"[" * 9000, "JSON"),
        (b'{"kind": ""}', "kind"), (b'{"payload": 1}', "kind"), (b'{"kind": "a", "lease_token": 1}', "lease_token"), (b"7", "row"),
        (b'{"kind": "a", "priority": "1"}', "priority"), (b'{"kind": "a", "run_at": "soon"}', "run_at"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_run_names_its_field(line, field):
    with pytest.raises(InvalidRun) as told:
        _run(line, None, None)
    assert told.value.field == field


async def test_an_insert_that_is_killed_has_inserted_whole_batches_or_nothing(dsn, connection):
    lines = '{"kind": "a"}\n' * 4500
    process = await start("enqueue-many", "-", "--in-batches", env={"NOTIFYWORKER_DSN": dsn})
    processes = [process]
    try:
        process.stdin.write(lines.encode())
        await eventually(lambda: connection.fetchval(f"SELECT ({COUNT}) = 4000"))
        process.kill()
        await process.wait()
        assert await connection.fetchval(COUNT) == 4000
        whole = await start("enqueue-many", "-", env={"NOTIFYWORKER_DSN": dsn})
        processes.append(whole)
        whole.stdin.write(lines.encode())
        busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'notifyworker command' AND backend_xid IS NOT NULL"
        await eventually(lambda: connection.fetchval(busy))
        whole.kill()
        await whole.wait()
        await eventually(lambda: connection.fetchval(busy.replace("count(*)", "count(*) = 0")))
        assert await connection.fetchval(COUNT) == 4000
    finally:
        for one in processes:
            with contextlib.suppress(ProcessLookupError):
                one.kill()
            await one.communicate()


# Cancelling and retrying.


async def test_cancel_by_each_filter(db, any_dsn):
    for kind, project in (("a", "p"), ("a", "q"), ("b", "p")):
        await fill(db, 3, kind, project)
    middle = await db.fetchval("SELECT now()")
    await fill(db, 2, "c", "p")
    async with Client(any_dsn) as client:

        async def would(**which: Any) -> int:
            tally = await client.cancel_many(dry_run=True, **which)
            assert (tally.done, tally.skipped) == (0, 0)
            return tally.remaining

        assert await would(everything=True) == 11
        assert (await would(kind="a"), await would(project_id="p"), await would(kind="a", project_id="p")) == (6, 8, 3)
        assert (await would(state="pending"), await would(state="running")) == (11, 0)
        assert (await would(created_after=middle), await would(created_before=middle)) == (2, 9)
        assert await client.cancel_many(kind="a", project_id="p") == Tally(3, 0, 0)
        assert await client.cancel_many(created_before=middle, state="pending") == Tally(6, 0, 0)
    assert await states(db) == {"cancelled": 9, "pending": 2}
    rows = await db.fetch("SELECT * FROM notifyworker.run_history")
    assert {(r["state"], r["attempt"], r["settled_by"], r["error_code"]) for r in rows} == {("cancelled", 0, None, None)}


async def test_retry_by_each_filter(db, any_dsn):
    early = datetime(2026, 1, 1, tzinfo=UTC)
    await settled_run(db, message="ValueError: 1", at=early)
    await settled_run(db, message="ValueError: 2", kind="b")
    await settled_run(db, message="OSError: 2", project_id="p", error_code="E-RUN-003")
    await settled_run(db, "cancelled")
    completed = await settled_run(db, "completed")
    async with Client(any_dsn) as client:

        async def would(**which: Any) -> int:
            return (await client.retry_many(dry_run=True, **which)).remaining

        assert await would(everything=True) == 3
        assert [await would(state=state) for state in ("failed", "cancelled", "completed")] == [3, 1, 1]
        assert (await would(kind="b"), await would(project_id="p"), await would(error_code="E-RUN-003")) == (1, 1, 1)
        assert (await would(error="ValueError: #"), await would(error="ValueError: 1")) == (2, 0)
        later = early + timedelta(days=1)
        assert (await would(finished_before=later), await would(finished_after=later)) == (1, 2)
        assert await client.retry_many(error="ValueError: #") == Tally(2, 0, 0)
        assert await client.retry_many(state="completed") == Tally(1, 0, 0)
    assert await states(db) == {"pending": 3, "failed": 1, "cancelled": 1}
    one = await row(db, completed)
    assert (one["attempt"], one["lease_token"], json.loads(one["payload"]), json.loads(one["headers"])) == (
        0,
        3,
        {"n": 1},
        {"h": "1"},
    )
    assert [e["message"] for e in json.loads(one["errors"])] == ["old", "ValueError: no"]


@pytest.mark.parametrize(
    ("verb", "wrong", "field"),
    [
        ("cancel", {}, "all"), ("retry", {}, "all"), ("cancel", {"everything": True, "kind": "a"}, "all"),
        ("cancel", {"state": "failed"}, "state"), ("retry", {"state": "pending"}, "state"),
        ("cancel", {"finished_after": datetime.now(UTC)}, "finished_after"), ("cancel", {"error_code": "x"}, "error_code"),
        ("retry", {"created_after": datetime.now(UTC)}, "created_after"), ("retry", {"finished_before": "soon"}, "finished_before"),
        ("retry", {"kind": ""}, "kind"), ("cancel", {"project_id": 7}, "project_id"),
    ],
)  # fmt: skip
async def test_a_wrong_filter_does_nothing_and_is_named(dsn, connection, verb, wrong, field):
    await fill(connection, 1)
    async with Client(dsn) as client:
        with pytest.raises(InvalidRun) as told:
            await getattr(client, f"{verb}_many")(**wrong)
    assert told.value.field == field
    assert await states(connection) == {"pending": 1}


async def test_a_running_run_is_cancelled_in_its_handler(make_worker, connection, dsn):
    worker = make_worker()
    began, ended = asyncio.Event(), asyncio.Event()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        began.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    async with worker, Client(dsn) as client:
        run_id = await client.enqueue("a")
        await asyncio.wait_for(began.wait(), 30)
        assert await client.cancel_many(kind="a", state="pending") == Tally(0, 0, 0)
        assert await client.cancel_many(kind="a") == Tally(1, 0, 0)
        await asyncio.wait_for(ended.wait(), 30)
    assert (await row(connection, run_id))["state"] == "cancelled"


async def test_a_key_goes_on_to_who_waits_for_it_once_the_handler_has_ended(make_worker, connection, ledger):  # noqa: F811
    worker = make_worker()  # whose reaper would mend it after a minute
    worker.handler("a")(ledger.handle)
    async with worker:
        (first,) = await insert(connection, key="x", waits=True)
        await eventually(lambda: ledger.now["all",] == 1)
        (second,) = await insert(connection, key="x")
        await eventually(lambda: connection.fetchval("SELECT waits_for FROM notifyworker.runs WHERE run_id = $1", second))
        await connection.execute("SELECT notifyworker.cancel_runs(state => 'running')")
        await eventually(lambda: connection.fetchval("SELECT count(*) = 2 FROM notifyworker.run_history"))
    assert ((await row(connection, first))["state"], (await row(connection, second))["state"]) == ("cancelled", "completed")
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.places") == 0


async def test_what_changed_its_state_meanwhile_is_left(connection):
    """Between being found and being locked."""
    await fill(connection, 2)
    await connection.execute("""CREATE OR REPLACE FUNCTION notifyworker.live_matching(kind text DEFAULT NULL, project_id text DEFAULT NULL,
        state text DEFAULT NULL, created_after timestamptz DEFAULT NULL, created_before timestamptz DEFAULT NULL,
        behind uuid DEFAULT NULL, max_runs integer DEFAULT NULL) RETURNS SETOF uuid LANGUAGE sql AS
        'UPDATE notifyworker.runs SET state = ''running'', attempt = 1, max_attempts = 3, lease_token = 1, lease_owner = ''w'',
            lease_expires_at = now(), started_at = now() WHERE run_id = (SELECT run_id FROM notifyworker.runs LIMIT 1);
         SELECT run_id FROM notifyworker.runs'""")
    found = await connection.fetchrow("SELECT * FROM notifyworker.cancel_runs(state => 'pending')")
    assert (found["done"], found["skipped"]) == (1, 1)
    assert await states(connection) == {"running": 1, "cancelled": 1}


async def test_who_waits_for_a_run_hears_of_its_cancel(dsn, connection):
    async with Client(dsn) as client:
        run_id = await client.enqueue("a")
        waiting = asyncio.create_task(client.wait(run_id, timeout=SURELY_S))
        await eventually(lambda: connection.fetchval("SELECT EXISTS (SELECT FROM notifyworker.waiters)"))
        await connection.execute("SELECT notifyworker.cancel_runs()")
        assert (await waiting)["state"] == "cancelled"


async def test_a_turn_that_is_cancelled_goes_to_the_next(connection):
    for kind in ("a", "b"):
        await insert(connection, kind=kind, key="x")
    await connection.execute("UPDATE notifyworker.runs SET waits_for = 'key' WHERE kind = 'b'")
    await connection.execute("SELECT notifyworker.cancel_runs(kind => 'a')")
    assert await connection.fetchval("SELECT waits_for IS NULL FROM notifyworker.runs WHERE kind = 'b'")


async def test_what_is_locked_is_waited_for_by_nobody(dsn, connection, monkeypatch):
    """A stranger's transaction holds one run of each sort: the others are done, and these are told and done later."""
    monkeypatch.setitem(database._OURS, "lock_timeout", "0")
    await fill(connection, 5)
    failed = [await settled_run(connection) for _ in range(5)]
    stranger = await asyncpg.connect(dsn)
    try:
        transaction = stranger.transaction()
        await transaction.start()
        await stranger.execute("SELECT FROM notifyworker.runs LIMIT 1 FOR UPDATE")
        await stranger.execute("SELECT FROM notifyworker.run_history WHERE run_id = $1 FOR UPDATE", failed[2])
        async with Client(dsn) as client:
            async with asyncio.timeout(2 * SURELY_S):  # whoever waited for a lock would wait for ever
                assert await client.cancel_many(everything=True) == Tally(4, 1, 1)
                assert await client.retry_many(everything=True) == Tally(4, 1, 1)
            done = await call("runs", "retry-many", "--all", env={"NOTIFYWORKER_DSN": dsn})
            assert (done.code, done.out[:36]) == (1, "retried 0 runs; 1 that fit are left:")
            await transaction.rollback()
            assert await client.retry_many(everything=True) == Tally(1, 0, 0)
            assert await client.cancel_many(everything=True) == Tally(6, 0, 0)
    finally:
        await stranger.close()


async def test_what_cant_be_retried_is_skipped_and_keeps_nobody_back(db, any_dsn):
    held = await settled_run(db)
    twice = await settled_run(db)
    too_large = await settled_run(db)
    fine = [await settled_run(db) for _ in range(3)]
    await db.execute("UPDATE notifyworker.run_history SET idempotency_key = 'k' WHERE run_id = $1", held)
    await db.execute("INSERT INTO notifyworker.runs (kind, idempotency_key) VALUES ('a', 'k')")
    await db.execute("INSERT INTO notifyworker.runs (run_id, kind) VALUES ($1, 'a')", twice)
    await db.execute("UPDATE notifyworker.run_history SET payload = to_jsonb(repeat('x', 2000000)) WHERE run_id = $1", too_large)
    async with Client(any_dsn) as client:
        assert await client.retry_many(everything=True) == Tally(3, 3, 3)
        assert await client.retry_many(everything=True) == Tally(0, 3, 3)
    assert {(await row(db, run_id))["state"] for run_id in fine} == {"pending"}
    assert await db.fetchval("SELECT count(*) FROM notifyworker.run_history") == 3


async def test_a_key_that_a_settled_run_holds_is_kept_through_a_retry_of_many(db, any_dsn):
    async with Client(any_dsn) as client:
        run_id = await client.enqueue("a", idempotency_key="k")
        await client.cancel(run_id)
        assert await client.retry_many(state="cancelled") == Tally(1, 0, 0)
        assert await client.enqueue("a", idempotency_key="k") == run_id
        await client.cancel(run_id)
        await db.execute("UPDATE notifyworker.idempotency_keys SET expires_at = now()")
        other = await client.enqueue("a", idempotency_key="k")
        await client.cancel(other)  # holds it for its window
        assert await client.retry_many(state="cancelled") == Tally(1, 1, 1)
    assert (await row(db, other))["state"] == "pending"


async def test_of_an_id_that_was_given_out_twice_the_later_run_is_retried(db):
    run_id = await settled_run(db, at=datetime(2026, 1, 1, tzinfo=UTC), message="first")
    await db.execute("INSERT INTO notifyworker.runs (run_id, kind) VALUES ($1, 'a')", run_id)
    await db.execute("SELECT notifyworker.cancel($1)", run_id)
    assert await db.fetchval("SELECT (notifyworker.retry_runs()).done") == 0  # the failed one is the earlier
    assert await db.fetchval("SELECT (notifyworker.retry_runs(state => 'cancelled')).done") == 1


async def test_runs_that_fail_again_meanwhile_are_left(dsn, connection):
    """Or a retry of a kind that fails at once would go on for ever."""
    for _ in range(5):
        await settled_run(connection)
    store = Store("notifyworker")
    fail = """WITH gone AS (DELETE FROM notifyworker.runs RETURNING *)
        INSERT INTO notifyworker.run_history (run_id, run_at, created_at, finished_at, lease_token, priority, attempt, is_shadow,
            state, kind, project_id, error_code, payload, headers, errors)
        SELECT run_id, run_at, created_at, clock_timestamp(), lease_token, priority, 1, false, 'failed', kind, project_id,
            'E-RUN-001', payload, headers, errors FROM gone"""

    class Failing:
        """A Queryable after each of whose statements all live runs fail."""

        async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[asyncpg.Record]:
            rows = await connection.fetch(query, *args)
            await connection.execute(fail)
            return rows

    told: list[Tally] = []
    async with asyncio.timeout(30):
        tally = await steer(store, Failing(), "retry", Filter(), batch=1, told=told.append)
    assert tally == Tally(5, 0, 0)
    assert [t.done for t in told] == [1, 2, 3, 4, 5, 5]


async def test_new_runs_keep_a_cancel_from_ending_no_longer_than_the_old(dsn, connection):
    await fill(connection, 3)
    store = Store("notifyworker")

    class Producing:
        async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[asyncpg.Record]:
            rows = await connection.fetch(query, *args)
            await fill(connection, 1)
            return rows

    async with asyncio.timeout(30):
        assert (await steer(store, Producing(), "cancel", Filter(), batch=1)).done == 3


async def test_two_at_once_do_each_run_once(dsn, connection):
    await fill(connection, 5000)
    async with Client(dsn) as one, Client(dsn) as other:
        first, second = await asyncio.gather(one.cancel_many(everything=True), other.cancel_many(everything=True))
        assert first.done + second.done == 5000
        assert await connection.fetchval("SELECT count(DISTINCT run_id) = 5000 AND count(*) = 5000 FROM notifyworker.run_history")
        first, second = await asyncio.gather(*(c.retry_many(state="cancelled") for c in (one, other)))
        assert first.done + second.done == 5000
    assert await states(connection) == {"pending": 5000}


async def test_beside_a_worker_each_run_is_settled_once(make_worker, connection, dsn):
    worker = make_worker(concurrency=50)
    executed: list[UUID] = []

    @worker.handler("a")
    async def handle(run: Run) -> None:
        executed.append(run.run_id)
        await asyncio.sleep(0)

    await fill(connection, 8000)
    async with worker, Client(dsn) as client:
        await eventually(lambda: executed)
        tally = await client.cancel_many(everything=True)
        await eventually(lambda: connection.fetchval("SELECT NOT EXISTS (SELECT FROM notifyworker.runs)"))
    found = await states(connection)
    assert sum(found.values()) == 8000
    assert found["cancelled"] == tally.done > 0
    assert len(set(executed)) == len(executed)


#: From the second batch on, one waits until it is let go on: however slow a machine, it is killed in the middle of its work.
HOLD = """
    CREATE FUNCTION public.hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF EXISTS (SELECT FROM notifyworker.all_runs WHERE state = TG_ARGV[0]) THEN PERFORM pg_advisory_xact_lock(4711); END IF;
        RETURN NULL; END $$;
    CREATE TRIGGER hold BEFORE INSERT ON notifyworker.{table} FOR EACH STATEMENT EXECUTE FUNCTION public.hold('{state}');
    SELECT pg_advisory_lock(4711)"""


@pytest.mark.parametrize("verb", ["cancel", "retry"])
async def test_killed_half_way_it_goes_on_when_called_again(dsn, connection, verb):
    await fill(connection, 20_000)
    if verb == "retry":
        await connection.execute("SELECT notifyworker.cancel_runs(max_runs => 20000)")
    before, after = ("pending", "cancelled") if verb == "cancel" else ("cancelled", "pending")
    which = ["--kind", "a", *(["--state", "cancelled"] if verb == "retry" else [])]
    env = {"NOTIFYWORKER_DSN": dsn}
    await connection.execute(HOLD.format(table="run_history" if verb == "cancel" else "runs", state=after))

    process = await start("runs", f"{verb}-many", *which, env=env)
    try:
        await eventually(lambda: connection.fetchval("SELECT EXISTS (SELECT FROM notifyworker.all_runs WHERE state = $1)", after))
        process.kill()
        await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
    await connection.execute("SELECT pg_advisory_unlock(4711)")
    await eventually(lambda: connection.fetchval(
        "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'notifyworker command'"))  # fmt: skip
    half = await states(connection)
    assert half[before] % 1000 == 0
    assert 0 < half[before] < 20_000
    assert sum(half.values()) == 20_000

    would = await call("runs", f"{verb}-many", *which, "--dry-run", "--json", env=env)
    assert would.json() == {"done": 0, "skipped": 0, "remaining": half[before]}
    done = await call("runs", f"{verb}-many", *which, "--json", env=env)
    assert (done.code, done.json()) == (0, {"done": half[before], "skipped": 0, "remaining": 0})
    assert await states(connection) == {after: 20_000}
    assert await connection.fetchval("SELECT count(DISTINCT run_id) FROM notifyworker.all_runs") == 20_000


async def test_on_the_command_line(dsn, connection):
    env = {"NOTIFYWORKER_DSN": dsn}
    await fill(connection, 2)
    assert (await call("runs", "cancel-many", "--kind", "a", "--dry-run", env=env)).out == "2 runs would be cancelled\n"
    assert (await call("runs", "cancel-many", "--kind", "a", env=env)).out == "cancelled 2 runs\n"
    assert (await call("runs", "retry-many", "--state", "cancelled", env=env)).out == "retried 2 runs\n"
    assert "all" in await refused(2, "runs", "cancel-many", env=env)


async def test_over_http(ask, connection):  # noqa: F811
    caller: Caller = ask
    await fill(connection, 25)
    body: dict[str, Any] = {"kind": "a"}
    preview = (await caller.post("/bulk/cancel", json={**body, "dry_run": True})).json
    assert preview == {"done": 0, "skipped": 0, "remaining": 25, "next_cursor": None}
    seen = []
    while True:
        answer = (await caller.post("/bulk/cancel", json={**body, "limit": 10})).json
        seen.append((answer["done"], answer["remaining"]))
        if (cursor := answer["next_cursor"]) is None:
            break
        body["cursor"] = cursor
    assert seen == [(10, 15), (10, 5), (5, 0)]
    assert await states(connection) == {"cancelled": 25}
    answer = (await caller.post("/bulk/retry", json={"state": "cancelled", "finished_before": "2999-01-01T00:00:00Z"})).json
    assert answer == {"done": 25, "skipped": 0, "remaining": 0, "next_cursor": None}
    for path, wrong, field in (
        ("cancel", {}, "all"),
        ("cancel", {"all": True, "kind": "a"}, "all"),
        ("cancel", {"all": 1}, "all"),
        ("cancel", {"kind": "a", "limit": 1001}, "limit"),
        ("cancel", {"kind": "a", "cursor": "x"}, "cursor"),
        ("cancel", {"kind": "a", "cursor": 7}, "cursor"),
        ("cancel", {"kind": "a", "dry_run": "yes"}, "dry_run"),
        ("retry", {"state": "running"}, "state"),
        ("retry", {"finished_before": "soon"}, "finished_before"),
        ("retry", {"colour": "red"}, "colour"),
    ):
        await caller.refusal("POST", f"/bulk/{path}", 400, field, json=wrong)
    assert await states(connection) == {"pending": 25}


async def test_a_batch_is_bounded_and_goes_on_where_it_ended(db):
    """Also over those that it skips, or it would never come past them."""
    failed = [await settled_run(db) for _ in range(4)]
    for run_id in failed[:2]:
        await db.execute("INSERT INTO notifyworker.runs (run_id, kind) VALUES ($1, 'a')", run_id)
    store, cursor, seen = Store("notifyworker"), None, []
    while True:
        found = await step(store, db, "retry", Filter(), behind=cursor, limit=1)
        seen.append((found["done"], found["skipped"]))
        if (cursor := found["last"]) is None:
            break
    assert seen == [(0, 1), (0, 1), (1, 0), (1, 0), (0, 0)]


async def test_the_pages_examples(dsn, connection, monkeypatch, tmp_path):
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    text = PAGE.read_text()
    (python,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    page = types.ModuleType("bulk_page")
    exec(compile(python, str(PAGE), "exec"), page.__dict__)
    await page.main()
    assert await states(connection) == {"pending": 3010}
    (tmp_path / "runs.jsonl").write_text('{"kind": "email.send", "payload": {"to": "a"}, "priority": 1}\n' * 3)
    (tmp_path / "payloads.jsonl").write_text('{"to": "a"}\n' * 2)
    for shell in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in shell.splitlines():
            done = await call(*shlex.split(line)[1:], cwd=tmp_path, env={"NOTIFYWORKER_DSN": dsn})
            assert done.code == 0, (line, done.err)
    (sql,) = re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for statement in sql.strip().split(";\n"):
        await connection.execute(statement)
