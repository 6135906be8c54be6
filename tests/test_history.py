"""Settled runs: how long they are kept by kind and project, who deletes them, and how they are read out."""

import asyncio
import contextlib
import io
import json
import re
import shlex
import tracemalloc
import types
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pyarrow.parquet
import pytest
from servers import as_role, eventually
from test_cli import call, refused, start
from test_failed import settled_run
from test_http import Caller, ask  # noqa: F401 - a fixture
from test_roles import login

from notifyworker import Client, InvalidRun, Run
from notifyworker.cli.history import _written
from notifyworker.errors import NotifyWorkerError
from notifyworker.history import Sweeper, sweep
from notifyworker.store import Store

PAGE = Path(__file__).parents[1] / "docs" / "history.md"
PARTITIONS = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'notifyworker.run_history'::regclass"
LEFT = "SELECT kind, project_id, count(*) FROM notifyworker.run_history GROUP BY 1, 2 ORDER BY 1, 2"
STORE = Store("notifyworker")


@pytest.fixture
async def db(any_dsn: str) -> Any:
    conn = await asyncpg.connect(any_dsn)
    yield conn
    await conn.close()


async def day_ago(db: asyncpg.Connection, days: int) -> datetime:
    """Make the partition of a day so long ago; return noon of it."""
    day: date = await db.fetchval("SELECT (now() AT TIME ZONE 'UTC')::date - $1::int", days)
    following = day + timedelta(days=1)
    await db.execute(f"""CREATE TABLE IF NOT EXISTS notifyworker.run_history_{day:%Y%m%d} PARTITION OF notifyworker.run_history
        FOR VALUES FROM ('{day} 00:00:00+00') TO ('{following} 00:00:00+00')""")
    return datetime(day.year, day.month, day.day, 12, tzinfo=UTC)


async def keep(db: asyncpg.Connection, days: int | None, kind: str | None = None, project_id: str | None = None) -> None:
    await db.execute("SELECT notifyworker.set_retention($1, kind => $2, project_id => $3)", days, kind, project_id)


async def prune(db: asyncpg.Connection) -> tuple[int, int]:
    dropped = await db.fetchval("SELECT notifyworker.drop_expired_partitions()")
    return dropped, sum([step.deleted async for step in sweep(STORE, db)])


async def left(db: asyncpg.Connection) -> list[tuple[str, str, int]]:
    return [tuple(r) for r in await db.fetch(LEFT)]


async def test_what_is_kept_longer_stays_and_all_else_of_its_day_goes(db):
    at = await day_ago(db, 40)
    for kind in ("a", "a", "b", "c"):
        await settled_run(db, kind=kind, at=at)
    await keep(db, 60, "a")
    days = await db.fetchval(PARTITIONS)

    assert await prune(db) == (0, 2)
    assert await left(db) == [("a", "default", 2)]
    assert await prune(db) == (0, 0)
    await keep(db, 39, "a")
    assert await prune(db) == (1, 0)
    assert (await left(db), await db.fetchval(PARTITIONS)) == ([], days - 1)


async def test_what_is_kept_shorter_goes_and_its_day_stays(db):
    for days in (0, 5, 8):
        at = await day_ago(db, days)
        for kind in ("a", "b"):
            await settled_run(db, kind=kind, at=at)
    await keep(db, 5, "a")
    assert await prune(db) == (0, 1)
    assert await left(db) == [("a", "default", 2), ("b", "default", 3)]
    await keep(db, 4, "a")
    assert await prune(db) == (0, 1)
    assert await left(db) == [("a", "default", 1), ("b", "default", 3)]


async def test_the_narrowest_rule_holds(db):
    at = await day_ago(db, 10)
    for kind in ("a", "b"):
        for project in ("p", "q"):
            await settled_run(db, kind=kind, project_id=project, at=at)
    await keep(db, 20, "a", "p")
    await keep(db, 5, "a")
    await keep(db, 7, project_id="p")
    assert await prune(db) == (0, 2)
    assert await left(db) == [("a", "p", 1), ("b", "q", 1)]
    await keep(db, None, "a", "p")
    assert await prune(db) == (0, 1)
    assert await left(db) == [("b", "q", 1)]


async def test_a_day_is_dropped_as_a_whole_only_when_nothing_in_it_must_stay(db):
    """Whoever is in the way of its rows: they are not lost with it, and not locked by it."""
    at = await day_ago(db, 40)
    kept = await settled_run(db, kind="a", project_id="p", at=at)
    await settled_run(db, kind="a", project_id="q", at=at)
    await keep(db, 100, project_id="p")
    await keep(db, 3, "a", "p")
    assert await db.fetchval("SELECT is_kept FROM notifyworker.ended_days()") is False  # a narrower rule is shorter
    await keep(db, None, "a", "p")
    assert await db.fetchval("SELECT is_kept FROM notifyworker.ended_days()") is True
    assert await prune(db) == (0, 1)
    assert await db.fetchval("SELECT array_agg(run_id) FROM notifyworker.run_history") == [kept]
    # A run of a day that is kept can be retried, and is not there twice.
    assert await db.fetchval("SELECT notifyworker.retry($1)", kept) == kept
    assert await prune(db) == (1, 0)
    assert await db.fetchval("SELECT state FROM notifyworker.all_runs WHERE run_id = $1", kept) == "pending"


async def test_a_rule_that_is_being_written_is_waited_for_or_the_drop_put_off(db, any_dsn):
    at = await day_ago(db, 40)
    await settled_run(db, kind="a", at=at)
    other = await asyncpg.connect(any_dsn)
    try:
        transaction = other.transaction()
        await transaction.start()
        await keep(other, 100, "a")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await db.execute("SELECT notifyworker.drop_expired_partitions()")
        await transaction.commit()
        assert await prune(db) == (0, 0)
    finally:
        await other.close()
    assert await left(db) == [("a", "default", 1)]


async def test_what_lies_in_the_default_partition_is_treated_alike(db):
    at = await db.fetchval("SELECT now() - interval '40 days'")
    for kind in ("a", "b"):
        await settled_run(db, kind=kind, at=at)
    await keep(db, 60, "a")
    assert await prune(db) == (0, 1)
    assert await left(db) == [("a", "default", 1)]


async def test_rows_are_deleted_page_by_page_and_a_preview_deletes_none(dsn, connection):
    at = await day_ago(connection, 10)
    one = await settled_run(connection, at=at)
    await connection.execute(f"""INSERT INTO notifyworker.run_history SELECT (jsonb_populate_record(h, jsonb_build_object('run_id',
        notifyworker.uuid7(), 'kind', CASE n % 3 WHEN 0 THEN 'b' ELSE 'a' END, 'payload', repeat('x', 1000)))).*
        FROM notifyworker.run_history AS h, generate_series(1, 9000) AS n WHERE h.run_id = '{one}'""")
    await keep(connection, 5, "a")

    seen = [step async for step in sweep(STORE, connection, dry_run=True)]
    assert sum(step.deleted for step in seen) == 6001
    assert len([step for step in seen if step.day is not None]) > 3
    assert max(step.deleted for step in seen) < 3000
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.run_history") == 9001
    # Stopped half-way, the next goes on.
    steps = sweep(STORE, connection)
    first = await anext(steps)
    await steps.aclose()
    assert 0 < first.deleted < 6001
    assert (await prune(connection))[1] == 6001 - first.deleted
    assert await left(connection) == [("b", "default", 3000)]


async def test_a_run_that_somebody_holds_is_passed_over(db, any_dsn):
    at = await day_ago(db, 10)
    runs = [await settled_run(db, at=at) for _ in range(3)]
    await keep(db, 5, "a")
    stranger = await asyncpg.connect(any_dsn)
    try:
        async with stranger.transaction():
            await stranger.execute("SELECT FROM notifyworker.run_history WHERE run_id = $1 FOR UPDATE", runs[1])
            assert await prune(db) == (0, 2)
    finally:
        await stranger.close()
    assert await prune(db) == (0, 1)


async def test_the_leader_deletes_by_itself(make_worker, connection):
    at = await day_ago(connection, 10)
    old = await day_ago(connection, 40)
    for kind in ("a", "b"):
        await settled_run(connection, kind=kind, at=at)
        await settled_run(connection, kind=kind, at=old)
    await keep(connection, 5, "a")
    worker = make_worker(reaper_interval_s=1)

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    async with worker:
        await eventually(lambda: connection.fetchval("SELECT count(*) = 1 FROM notifyworker.run_history"))
    assert await left(connection) == [("b", "default", 1)]


async def test_a_sweep_is_made_once_a_day_and_when_a_rule_changes(dsn, connection):
    asked: list[str] = []

    class Counting:
        async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[asyncpg.Record]:
            asked.append(query)
            return await connection.fetch(query, *args)

    at = await day_ago(connection, 10)
    await settled_run(connection, at=at)
    sweeper, on = Sweeper(STORE), Counting()
    assert await sweeper.go_on(on) is False
    first = len(asked)
    assert await sweeper.go_on(on) is False
    assert len(asked) == first + 1
    await keep(connection, 5, "a")
    assert await sweeper.go_on(on, seconds=0) is True
    while await sweeper.go_on(on, seconds=0):
        pass
    assert sweeper.deleted == 1
    # What fails is begun anew.
    await keep(connection, 4, "a")
    await settled_run(connection, at=at)

    class Broken:
        async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[asyncpg.Record]:
            if "delete_expired" in query:
                raise asyncpg.ConnectionDoesNotExistError
            return await connection.fetch(query, *args)

    with pytest.raises(asyncpg.ConnectionDoesNotExistError):
        await sweeper.go_on(Broken())
    assert await sweeper.go_on(on) is False
    assert sweeper.deleted == 1


async def test_prune_on_the_command_line(dsn, connection):
    env = {"NOTIFYWORKER_DSN": dsn}
    for days in (10, 40):
        await settled_run(connection, at=await day_ago(connection, days))
    await keep(connection, 5, "a")
    told = "would drop 1 day of settled runs, and delete 1 runs of others\n"
    assert (await call("prune", "--dry-run", env=env)).out == told
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.run_history") == 2
    assert (await call("prune", env=env)).out == "dropped 1 day of settled runs, and deleted 1 runs of others\n"
    assert (await call("prune", "--json", env=env)).json() == {"dropped": 0, "deleted": 0, "dry_run": False}


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"days": 3}, "kind"), ({"days": 0, "kind": "a"}, "days"), ({"days": 36501, "kind": "a"}, "days"), ({"days": 1.5, "kind": "a"}, "days"),
        ({"days": True, "kind": "a"}, "days"), ({"days": 3, "kind": ""}, "kind"), ({"days": 3, "project_id": "x" * 201}, "project_id"),
    ],
)  # fmt: skip
async def test_a_rule_that_cant_be_is_named(dsn, given, field):
    async with Client(dsn) as client:
        with pytest.raises(InvalidRun) as told:
            await client.set_retention(**given)
        assert told.value.field == field
        assert await client.retention() == []


async def test_rules_from_sql_python_http_and_the_command_line(ask, connection, dsn):  # noqa: F811
    caller: Caller = ask
    for wrong in ("0, 'a'", "36501, 'a'", "3"):
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute(f"SELECT notifyworker.set_retention({wrong})")
    async with Client(dsn) as client:
        await client.set_retention(5, kind="a", project_id="p")
        await client.set_retention(6, kind="a", project_id="p")
        (rule,) = await client.retention()
    assert (rule["kind"], rule["project_id"], rule["days"]) == ("a", "p", 6)
    answer = await caller.post("/retention", json={"days": 90, "kind": "b"})
    assert answer.json == (await caller.get("/retention")).json
    assert answer.json["history_retention_days"] == 30
    assert [(r["kind"], r["project_id"], r["days"]) for r in answer.json["retention"]] == [("a", "p", 6), ("b", None, 90)]
    assert len((await caller.post("/retention", json={"days": None, "kind": "b"})).json["retention"]) == 1
    for wrong, field in (
        ({"kind": "a"}, "days"), ({"days": 3}, "kind"), ({"days": "3", "kind": "a"}, "days"), ({"days": 3, "state": "failed"}, "state"),
    ):  # fmt: skip
        await caller.refusal("POST", "/retention", 400, field, json=wrong)

    env = {"NOTIFYWORKER_DSN": dsn}
    shown = (await call("retention", "set", "400", "--project-id", "q", env=env)).out
    assert re.search(r"a +p +6.*every kind +q +400.*all others +30", shown, re.DOTALL)
    assert "kind" in await refused(2, "retention", "set", "3", env=env)
    listed = (await call("retention", "set", "--project-id", "q", "--json", env=env)).json()
    assert len(listed["retention"]) == 1


async def test_a_bound_operator_sets_the_retention_of_its_own_project_alone(db, any_dsn):
    async with login(any_dsn, "notifyworker_operator") as (name, session):
        await db.execute("SELECT notifyworker.separate_projects(), notifyworker.bind_role($1, 'mine')", name)
        await keep(session, 3, "a", "mine")
        for kind, project in (("a", None), ("a", "others"), (None, "others")):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await keep(session, 3, kind, project)


# Reading it out.


async def test_json_lines_have_all_of_a_run_as_postgres_has_it(dsn, connection, tmp_path):
    env = {"NOTIFYWORKER_DSN": dsn}
    ids = [await settled_run(connection, "completed" if n else "failed", at=await day_ago(connection, 3 - n)) for n in range(3)]
    big = '{"n": 123456789012345678901234567890.5, "x": 1e400, "t": "\\u2028\\n"}'
    await connection.execute("UPDATE notifyworker.run_history SET payload = $2::text::jsonb WHERE run_id = $1", ids[1], big)
    await connection.execute(
        "UPDATE notifyworker.run_history SET timeout = '90 s', replay_of = $2 WHERE run_id = $1", ids[2], ids[0]
    )

    lines = (await call("export", env=env)).out.rstrip("\n").split("\n")
    assert [json.loads(line)["run_id"] for line in lines] == [str(run_id) for run_id in ids]  # the oldest days first
    assert "123456789012345678901234567890.5" in lines[1]
    assert len(str(10**400)) < len(lines[1])
    last = json.loads(lines[2])
    assert (last["timeout"], last["replay_of"], last["state"], last["payload"]) == (90, str(ids[0]), "completed", {"n": 1})
    columns = {r["attname"] for r in await connection.fetch("SELECT attname FROM pg_attribute WHERE attnum > 0 "
               "AND attrelid = 'notifyworker.run_history'::regclass")}  # fmt: skip
    assert set(last) == columns
    file = tmp_path / "failed.jsonl"
    done = await call("export", "--state", "failed", "--output", str(file), env=env)
    assert (done.out, done.err) == ("", f"wrote 1 runs to {file}\n")
    assert [json.loads(line)["run_id"] for line in file.read_text().splitlines()] == [str(ids[0])]
    assert [path.name for path in tmp_path.iterdir()] == ["failed.jsonl"]


async def test_parquet_has_the_same_rows(dsn, connection, tmp_path):
    ids = [await settled_run(connection, message=f"E: {n}") for n in range(3)]
    await connection.execute("UPDATE notifyworker.run_history SET timeout = '90 s' WHERE run_id = $1", ids[0])
    file = tmp_path / "history.parquet"
    await call("export", "--format", "parquet", "--output", str(file), env={"NOTIFYWORKER_DSN": dsn})
    table = pyarrow.parquet.read_table(file)
    rows = {row["run_id"]: row for row in table.to_pylist()}
    assert rows.keys() == {str(run_id) for run_id in ids}
    one = rows[str(ids[0])]
    assert (one["timeout"], one["kind"], json.loads(one["payload"]), one["result"]) == (90.0, "a", {"n": 1}, None)
    assert one["finished_at"] == await connection.fetchval(
        "SELECT finished_at FROM notifyworker.run_history WHERE run_id = $1", ids[0]
    )
    assert "goes to a file" in await refused(2, "export", "--format", "parquet", env={"NOTIFYWORKER_DSN": dsn})


async def test_without_pyarrow_it_says_what_to_install(dsn, tmp_path):
    (tmp_path / "pyarrow.py").write_text("raise ImportError")
    file = tmp_path / "history.parquet"
    env = {"NOTIFYWORKER_DSN": dsn, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"}
    assert "notifyworker[parquet]" in await refused(2, "export", "--format", "parquet", "--output", str(file), env=env)
    assert not file.exists()


async def test_memory_is_flat_however_much_there_is(dsn, connection):
    one = await settled_run(connection)
    await connection.execute(f"""INSERT INTO notifyworker.run_history SELECT (jsonb_populate_record(h, jsonb_build_object(
        'run_id', notifyworker.uuid7(), 'payload', repeat('x', 10000)))).*
        FROM notifyworker.run_history AS h, generate_series(1, 5000) AS n WHERE h.run_id = '{one}'""")
    seen = 0
    async with Client(dsn) as client:
        await client.list()
        tracemalloc.start()
        try:
            async for run in client.history(kind="a"):
                seen += len(run["payload"]) > 100
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert seen == 5000  # fifty megabytes
    assert peak < 25 * 2**20


async def test_it_is_one_moment_that_is_read(dsn, connection):
    first = await settled_run(connection)
    for _ in range(1500):
        await settled_run(connection)
    async with Client(dsn) as client:
        runs = client.history()
        assert (await anext(runs))["run_id"] == first
        await connection.execute("DELETE FROM notifyworker.run_history")
        await settled_run(connection, kind="later")
        assert len([run async for run in runs if run["kind"] == "a"]) == 1500
        assert [run["kind"] async for run in client.history()] == ["later"]
        with pytest.raises(InvalidRun):
            _ = [run async for run in client.history(state="pending")]
        # Left in the middle, it gives its connection back.
        for _ in range(6):
            runs = client.history()
            await anext(runs)
            await runs.aclose()
        assert len(await client.list(state="failed")) == 1


async def test_an_observer_reads_it_out_and_of_its_project_alone(db, any_dsn):
    for project in ("mine", "others"):
        await settled_run(db, project_id=project)
    async with login(any_dsn, "notifyworker_observer") as (name, _session), Client(as_role(any_dsn, name, name)) as client:
        assert len([run async for run in client.history()]) == 2
        await db.execute("SELECT notifyworker.separate_projects(), notifyworker.bind_role($1, 'mine')", name)
        assert [run["project_id"] async for run in client.history()] == ["mine"]


async def test_an_export_that_is_killed_leaves_no_half_file(dsn, connection, tmp_path):
    one = await settled_run(connection)
    await connection.execute(f"""INSERT INTO notifyworker.run_history SELECT (jsonb_populate_record(h, jsonb_build_object(
        'run_id', notifyworker.uuid7()))).* FROM notifyworker.run_history AS h, generate_series(1, 30000) AS n WHERE h.run_id = '{one}'""")
    file = tmp_path / "history.jsonl"
    file.write_text("the last one\n")
    part = tmp_path / "history.jsonl.part"
    process = await start("export", "--output", str(file), env={"NOTIFYWORKER_DSN": dsn})
    try:
        await eventually(lambda: part.exists() and part.stat().st_size)
        process.kill()
        await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert file.read_text() == "the last one\n"
    with pytest.raises(ZeroDivisionError), _written(str(file)) as out:
        out.write(b"half")
        1 / 0  # noqa: B018
    assert file.read_text() == "the last one\n"
    assert not part.exists()
    with pytest.raises(NotifyWorkerError, match="No such file"), _written(str(tmp_path / "no" / "file")):
        pass


async def test_the_pages_examples(dsn, connection, monkeypatch, tmp_path):
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    await settled_run(connection, "completed", kind="invoice.book")
    text = PAGE.read_text()
    (sql,) = re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for statement in sql.strip().split(";\n"):
        await connection.execute(statement)
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.retention") == 2
    for shell in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in shell.splitlines():
            done = await call(*shlex.split(line)[1:], cwd=tmp_path, env={"NOTIFYWORKER_DSN": dsn})
            assert done.code == 0, (line, done.err)
    (python,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    page = types.ModuleType("history_page")
    exec(compile(python, str(PAGE), "exec"), page.__dict__)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        await asyncio.wait_for(page.main(), 30)
    assert "invoice.book" in out.getvalue()
