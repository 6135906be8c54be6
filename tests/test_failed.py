"""The failed: grouped by what went wrong, retried with another payload, and replayed as runs of their own."""

import re
import shlex
import types
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from servers import SURELY_S, as_role
from test_cli import call, refused
from test_http import Caller, ask  # noqa: F401 - a fixture
from test_roles import login

from notifyworker import Client, Fail, InvalidRun, Run, RunConflict, RunNotFound

PAGE = Path(__file__).parents[1] / "docs" / "failed.md"
NOBODY = UUID(int=7)
SETTLED = """
INSERT INTO notifyworker.run_history (run_id, run_at, created_at, finished_at, lease_token, priority, attempt, is_shadow, state,
    kind, project_id, error_code, payload, headers, errors)
SELECT notifyworker.uuid7(), now(), now(), coalesce($5, now()), 3, 0, 1, false, $1, $2, $3, $4, '{"n": 1}', '{"h": "1"}',
       CASE WHEN $6::text IS NULL THEN '[]' ELSE jsonb_build_array(jsonb_build_object('message', 'old'),
            jsonb_build_object('message', $6)) END
RETURNING run_id
"""


async def settled_run(
    db: asyncpg.Connection,
    state: str = "failed",
    *,
    kind: str = "a",
    project_id: str = "default",
    error_code: str = "E-RUN-001",
    at: datetime | None = None,
    message: str | None = "ValueError: no",
) -> UUID:
    code = error_code if state == "failed" else None
    return await db.fetchval(SETTLED, state, kind, project_id, code, at, message)


async def row(db: asyncpg.Connection, run_id: UUID) -> asyncpg.Record:
    return await db.fetchrow("SELECT * FROM notifyworker.all_runs WHERE run_id = $1", run_id)


@pytest.fixture
async def db(any_dsn: str) -> Any:
    conn = await asyncpg.connect(any_dsn)
    yield conn
    await conn.close()


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        (['ValueError: order 17 has no "to"', 'ValueError: order 4711 has no "cc"'], "ValueError: order # has no …"),
        (["KeyError: 'a'", "KeyError: 'b c'"], "KeyError: …"),
        (["OSError: can't reach 10.0.0.1", "OSError: can't reach 10.0.12.7"], "OSError: can't reach #.#.#.#"),
        (
            ["E: run 0198c0de-1234-7abc-8def-0123456789ab", "E: run ffffffff-ffff-ffff-ffff-ffffffffffff"],
            "E: run #",
        ),
        (["E: at 0x7f3aa0 of beef1", "E: at 0x12 of 77"], "E: at # of #"),
        (["E: first line\nid 1", "E: first line\nid 2"], "E: first line"),
        ([None, ""], ""),
    ],
)
async def test_what_differs_from_run_to_run_is_no_part_of_an_error(db, messages, line):
    for message in messages:
        await settled_run(db, message=message)
    (group,) = await db.fetch("SELECT * FROM notifyworker.failed_groups()")
    assert (group["error"], group["runs"]) == (line, 2)


async def test_groups_have_counts_times_and_the_last_run(db, any_dsn):
    early, late = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
    await settled_run(db, at=late, message="ValueError: 1")
    last = await settled_run(db, at=late.replace(hour=1), message="ValueError: 2")
    await settled_run(db, at=early, message="ValueError: 3")
    await settled_run(db, kind="b", error_code="E-RUN-003", message="timed out after 1 s", project_id="p")
    await settled_run(db, "completed")
    await settled_run(db, "cancelled", message="ValueError: 4")
    await db.execute("INSERT INTO notifyworker.runs (kind) VALUES ('a')")

    async with Client(any_dsn) as client:
        first, second = await client.failed()
        assert (first["kind"], first["error_code"], first["error"], first["runs"]) == ("a", "E-RUN-001", "ValueError: #", 3)
        assert (first["first_at"], first["last_at"], first["run_id"]) == (early, late.replace(hour=1), last)
        assert (second["kind"], second["error"], second["runs"]) == ("b", "timed out after # s", 1)
        assert len(await client.failed(project_id="p")) == len(await client.failed(error_code="E-RUN-003")) == 1
        assert [g["runs"] for g in await client.failed(finished_before=late, kind="a")] == [1]
        assert [g["runs"] for g in await client.failed(finished_after=late, kind="a")] == [2]
        assert sum(g["runs"] for g in await client.failed(newest=2)) == 2
        for wrong, field in (({"newest": 0}, "newest"), ({"kind": ""}, "kind"), ({"colour": "red"}, "colour")):
            with pytest.raises(InvalidRun) as told:
                await client.failed(**wrong)
            assert told.value.field == field


async def test_a_corrected_payload_completes_what_had_failed(make_worker, connection, dsn):
    worker = make_worker()

    @worker.handler("mail")
    async def mail(run: Run, payload: dict) -> Any:
        if "to" not in payload:
            raise Fail(f"order {payload['order']} has no address")
        return payload

    async with worker, Client(dsn) as client:
        run_id = await client.enqueue("mail", {"order": 17}, idempotency_key="k")
        await client.wait(run_id, SURELY_S)
        assert [g["error"] for g in await client.failed()] == ["order # has no address"]
        assert await client.retry(run_id, {"to": "a", "order": 17}) == run_id
        run = await client.wait(run_id, SURELY_S)
    assert (run["state"], run["result"], run["payload"]) == ("completed", {"to": "a", "order": 17}, {"to": "a", "order": 17})
    assert ([e["code"] for e in run["errors"]], run["idempotency_key"], run["lease_token"]) == (["E-RUN-006"], "k", 2)


async def test_what_no_handler_could_be_given_is_refused_and_the_run_stays_as_it_is(db, any_dsn):
    run_id = await settled_run(db)
    before = await row(db, run_id)
    async with Client(any_dsn) as client:
        for call_of in (client.retry, client.replay):
            for payload in (float("nan"), {"a": "\0"}, {"a": "\ud800"}, object()):
                with pytest.raises(InvalidRun) as told:
                    await call_of(run_id, payload)
                assert told.value.field == "payload"
            with pytest.raises(RunConflict, match="max_payload_bytes"):
                await call_of(run_id, "x" * 2**20)
    assert await row(db, run_id) == before
    assert await db.fetchval("SELECT count(*) FROM notifyworker.runs") == 0


async def test_a_replay_is_a_run_of_its_own_and_the_settled_one_stays(make_worker, connection, dsn):
    worker = make_worker()

    @worker.handler("mail")
    async def mail(run: Run, payload: dict) -> Any:
        return payload

    columns = {"priority": 3, "max_attempts": 7, "timeout": 5, "headers": {"h": "1"}, "project_id": "p"}
    async with worker, Client(dsn) as client:
        first = await client.enqueue("mail", {"n": 1}, idempotency_key="k", **columns)
        origin = await client.wait(first, SURELY_S)
        second = await client.replay(first)
        again = await client.wait(second, SURELY_S)
        third = await client.replay(second, {"n": 2})
        last = await client.wait(third, SURELY_S)
        assert await client.get(first) == origin
    assert len({first, second, third}) == 3
    same = ("kind", "payload", "result", "project_id", "priority", "max_attempts", "timeout", "headers")
    assert {name: again[name] for name in same} == {name: origin[name] for name in same}
    assert (origin["replay_of"], again["replay_of"], again["idempotency_key"], again["errors"]) == (None, first, None, [])
    assert (last["replay_of"], last["result"]) == (second, {"n": 2})


async def test_where_a_run_comes_from_stays_with_it_through_its_life(db):
    """Cancelled, retried, expired, reaped: whatever moves the row moves this too."""
    origin = await settled_run(db, "completed")
    run_id = await db.fetchval("SELECT notifyworker.replay($1)", origin)
    for step in ("cancel", "retry", "cancel"):
        await db.execute(f"SELECT notifyworker.{step}($1)", run_id)
        assert (await row(db, run_id))["replay_of"] == origin
    await db.execute("SELECT notifyworker.retry_runs(state => 'cancelled')")
    assert (await row(db, run_id))["replay_of"] == origin
    await db.execute("SELECT notifyworker.cancel_runs()")
    assert ((await row(db, run_id))["replay_of"], (await row(db, run_id))["state"]) == (origin, "cancelled")
    with pytest.raises(asyncpg.InvalidParameterValueError, match='column "replay_of"'):
        await db.execute("INSERT INTO notifyworker.runs (kind, replay_of) VALUES ('a', $1)", origin)


def test_every_statement_that_settles_a_run_takes_its_origin_along():
    texts = [file.read_text() for folder in ("schema", "notifyworker/sql") for file in (PAGE.parents[1] / folder).glob("*.sql")]
    moves = [
        columns for text in texts for columns in re.findall(r"INSERT INTO \{schema\}\.run_history \((.*?)\)", text, re.DOTALL)
    ]
    assert len(moves) >= 6
    assert [columns for columns in moves if "replay_of" not in columns] == []


async def test_a_run_that_was_made_a_shadow_run_by_a_worker_is_replayed_as_its_producer_made_it(db):
    for is_shadow, by, expected in ((True, "worker", False), (True, None, True), (False, None, False)):
        run_id = await settled_run(db, "completed")
        await db.execute(
            "UPDATE notifyworker.run_history SET is_shadow = $2, shadow_by = $3 WHERE run_id = $1", run_id, is_shadow, by
        )
        again = await db.fetchval("SELECT notifyworker.replay($1)", run_id)
        assert (await row(db, again))["is_shadow"] is expected


async def test_what_cant_be_replayed_is_told(db, any_dsn):
    live = await db.fetchval("INSERT INTO notifyworker.runs (kind) VALUES ('a') RETURNING run_id")
    for call_of in ("replay($1)", "retry($1, payload => '1')"):
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match="is live"):
            await db.execute(f"SELECT notifyworker.{call_of}", live)
        with pytest.raises(asyncpg.NoDataFoundError, match=str(NOBODY)):
            await db.execute(f"SELECT notifyworker.{call_of}", NOBODY)
    async with Client(any_dsn) as client:
        with pytest.raises(RunConflict):
            await client.replay(live)
        with pytest.raises(RunNotFound):
            await client.replay(NOBODY)


async def test_a_role_sees_and_replays_its_own_project_alone(db, any_dsn):
    mine, others = [await settled_run(db, project_id=project) for project in ("mine", "others")]
    async with login(any_dsn, "notifyworker_operator") as (name, session):
        await db.execute("SELECT notifyworker.separate_projects(), notifyworker.bind_role($1, 'mine')", name)
        assert [g["run_id"] for g in await session.fetch("SELECT * FROM notifyworker.failed_groups()")] == [mine]
        for call_of in ("replay($1)", "retry($1, payload => '1')"):
            with pytest.raises(asyncpg.NoDataFoundError):
                await session.execute(f"SELECT notifyworker.{call_of}", others)
        assert await session.fetchval("SELECT notifyworker.replay($1)", mine)
        async with Client(as_role(any_dsn, name, name)) as client:
            assert (await client.retry_many(everything=True)).done == 1
            assert (await client.cancel_many(everything=True)).done == 2
    assert (await row(db, others))["state"] == "failed"


async def test_over_http(ask, dsn, connection):  # noqa: F811
    caller: Caller = ask
    failed = await settled_run(connection, message="ValueError: 7")
    (group,) = (await caller.get("/failed", params={"kind": "a"})).json["failed"]
    assert (group["runs"], group["error"], group["run_id"]) == (1, "ValueError: #", str(failed))
    assert (await caller.get("/failed", params={"finished_before": "2001-01-01T00:00:00Z"})).json == {"failed": []}
    await caller.refusal("GET", "/failed", 400, "finished_after", params={"finished_after": "soon"})
    await caller.refusal("GET", "/failed", 400, "limit", params={"limit": "1"})

    replayed = await caller.post(f"/runs/{failed}/replay", json={"payload": [1]})
    assert (replayed.status, replayed.json["replay_of"]) == (201, str(failed))
    shown = (await caller.get(replayed.headers["Location"])).json
    assert (shown["payload"], shown["replay_of"], shown["state"]) == ([1], str(failed), "pending")
    assert (await caller.post(f"/runs/{failed}/replay")).status == 201
    for path in (f"/runs/{failed}/replay", f"/runs/{failed}/retry"):
        await caller.refusal("POST", path, 400, "kind", json={"kind": "b"})
        await caller.refusal("POST", path, 400, "payload", data='{"payload": "\\u0000"}')
    await caller.refusal("POST", f"/runs/{NOBODY}/replay", 404, None)
    await caller.refusal("POST", f"/runs/{replayed.json['run_id']}/replay", 409, None)
    retried = await caller.post(f"/runs/{failed}/retry", json={"payload": None})
    assert retried.json == {"run_id": str(failed), "state": "pending"}
    assert (await caller.get(f"/runs/{failed}")).json["payload"] is None


async def test_on_the_command_line(dsn, connection):
    env = {"NOTIFYWORKER_DSN": dsn}
    failed = await settled_run(connection, message="ValueError: 7\nmore")
    shown = (await call("failed", env=env)).out
    assert re.search(rf"1 +a +E-RUN-001 +ValueError: # .*{failed}", shown)
    assert (await call("failed", "--json", env=env)).json()["failed"][0]["runs"] == 1
    again = (await call("runs", "replay", str(failed), "--json", env=env)).json()
    assert again["replay_of"] == str(failed)
    printed = (await call("runs", "replay", str(failed), "--payload", "null", env=env)).out.strip()
    assert (await call("runs", "show", printed, "--json", env=env)).json()["payload"] is None
    assert "payload" in await refused(2, "runs", "retry", str(failed), "--payload", "{", env=env)
    assert (await call("runs", "retry", str(failed), "--payload", "-", stdin='{"x": 1}', env=env)).out == "pending\n"
    assert (await call("runs", "show", str(failed), "--json", env=env)).json()["payload"] == {"x": 1}
    assert "is live" in await refused(1, "runs", "replay", str(failed), env=env)


async def test_the_pages_examples(dsn, connection, monkeypatch):
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    text = PAGE.read_text()

    async def ids() -> dict[str, str]:
        return {
            "$ID": str(await settled_run(connection, kind="email.send")),
            "$COMPLETED": str(await settled_run(connection, "completed", kind="email.send")),
        }

    (shell,) = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names = await ids()
    for line in shell.splitlines():
        arguments = [names.get(word, word) for word in shlex.split(line)[1:]]
        assert (await call(*arguments, env={"NOTIFYWORKER_DSN": dsn})).code == 0, line
    (sql,) = re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names = await ids()
    for name, value in names.items():
        sql = sql.replace(name, f"'{value}'")
    for statement in sql.strip().split(";\n"):
        found = await connection.fetch(statement)
    assert [r["state"] for r in found] == ["pending"]
    (python,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    page = types.ModuleType("failed_page")
    exec(compile(python, str(PAGE), "exec"), page.__dict__)
    await page.main(*(await ids()).values())
