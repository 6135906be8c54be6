"""Pauses: what is paused is not claimed, by anybody, and is claimed at once when the pause ends."""

import asyncio
import json
import re
import types
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import asyncpg
import pytest
from servers import eventually
from test_cli import call, refused

from notifyworker import Client, InvalidRun, PauseKind, Run, Worker

PAGE = Path(__file__).parents[1] / "docs" / "pauses.md"
INSERT = "INSERT INTO notifyworker.runs (kind, project_id) VALUES ($1, $2) RETURNING run_id"


class House:
    """A worker of the kinds a and b; what it executes is in `executed`."""

    def __init__(self, worker: Worker, connection: asyncpg.Connection) -> None:
        self.worker = worker
        self.connection = connection
        self.executed: list[UUID] = []
        for kind in ("a", "b"):
            worker.handler(kind)(self.handle)

    async def handle(self, run: Run) -> None:
        self.executed.append(run.run_id)

    async def insert(self, kind: str, project: str = "default") -> UUID:
        return await self.connection.fetchval(INSERT, kind, project)

    async def done(self, *runs: UUID) -> None:
        await eventually(lambda: set(runs) <= set(self.executed))

    async def state(self, run: UUID) -> str:
        return await self.connection.fetchval("SELECT state FROM notifyworker.all_runs WHERE run_id = $1", run)


@pytest.fixture
def house(make_worker, connection) -> House:
    return House(make_worker(), connection)


@pytest.mark.parametrize(
    ("paused", "waits", "goes_on"),
    [
        ("kind => 'a'", [("a", "p"), ("a", "q")], [("b", "p"), ("b", "q")]),
        ("project_id => 'p'", [("a", "p"), ("b", "p")], [("a", "q"), ("b", "q")]),
        ("kind => 'a', project_id => 'p'", [("a", "p")], [("a", "q"), ("b", "p"), ("b", "q")]),
        ("", [("a", "p"), ("b", "p"), ("a", "q"), ("b", "q")], []),
    ],
)
async def test_what_is_paused_waits_and_all_else_goes_on(house, connection, paused, waits, goes_on):
    async with house.worker:
        warm = [await house.insert(*one) for one in waits + goes_on]  # lanes that the worker knows already
        await house.done(*warm)
        await connection.execute(f"SELECT notifyworker.pause({paused})")
        waiting = [await house.insert(*one) for one in waits]
        going = [await house.insert(*one) for one in goes_on]
        await house.done(*going)
        # One that is not paused, inserted last and executed: whoever was to be claimed before it has been.
        await connection.execute("INSERT INTO notifyworker.pauses (kind) VALUES ('none')")
        assert {await house.state(run) for run in waiting} == {"pending"}
        assert await connection.fetchval(f"SELECT notifyworker.resume({paused})") is True
        await house.done(*waiting)
    assert await connection.fetchval(f"SELECT notifyworker.resume({paused})") is False


async def test_a_pause_ends_by_itself_without_a_poll(house, connection):
    async with house.worker:
        await house.done(await house.insert("a"))
        await connection.execute("SELECT notifyworker.pause('a', until => now() + interval '1 s')")
        run = await house.insert("a")
        await house.done(run)
    waited = await connection.fetchval(
        "SELECT h.started_at >= p.until FROM notifyworker.run_history AS h, notifyworker.pauses AS p WHERE h.run_id = $1", run
    )
    assert waited is True


async def test_a_pause_that_is_shortened_ends_sooner(house, connection):
    async with house.worker:
        await connection.execute("SELECT notifyworker.pause('a', until => now() + interval '1 h', reason => 'first')")
        run = await house.insert("a")
        await connection.execute("SELECT notifyworker.pause('a', until => now() + interval '0.5 s', reason => 'second')")
        await house.done(run)
    assert await connection.fetchval("SELECT array_agg(reason) FROM notifyworker.pauses") == ["second"]


async def test_a_backlog_stops_at_the_pause(make_worker, connection, dsn):
    """Also for a worker that has more to claim than slots, and so looks seldom."""
    own = await asyncpg.connect(dsn)  # the handler's: the other one looks meanwhile
    worker = make_worker(concurrency=2)
    executed = at_pause = 0

    @worker.handler("a")
    async def handle(run: Run) -> None:
        nonlocal executed, at_pause
        executed += 1
        if executed == 20:
            await own.execute("SELECT notifyworker.pause('a')")
            at_pause = executed

    await connection.execute("INSERT INTO notifyworker.runs (kind) SELECT 'a' FROM generate_series(1, 500)")
    async with worker:
        await eventually(lambda: connection.fetchval("SELECT EXISTS (SELECT FROM notifyworker.pauses)"))
        await eventually(lambda: connection.fetchval("SELECT NOT EXISTS (SELECT FROM notifyworker.runs WHERE state = 'running')"))
        left = await connection.fetchval("SELECT count(*) FROM notifyworker.runs")
        # What was claimed before the pause was there is executed; the other slot has gone on until then.
        assert 500 - at_pause - 4 <= left <= 480
        await connection.execute("SELECT notifyworker.resume('a')")
        await eventually(lambda: connection.fetchval("SELECT NOT EXISTS (SELECT FROM notifyworker.runs)"))
    await own.close()


async def test_a_handler_pauses_its_kind(make_worker, connection):
    worker = make_worker(concurrency=1)
    calls: list[tuple[UUID, int]] = []

    @worker.handler("api")
    async def handle(run: Run) -> None:
        calls.append((run.run_id, run.attempt))
        if len(calls) == 1:
            raise PauseKind(2.0, "429 of the API")

    await connection.execute("INSERT INTO notifyworker.runs (kind) SELECT 'api' FROM generate_series(1, 3)")
    async with worker:
        await eventually(lambda: connection.fetchval("SELECT reason FROM notifyworker.pauses WHERE kind = 'api'"))
        assert len(calls) == 1
        await eventually(lambda: connection.fetchval("SELECT count(*) = 3 FROM notifyworker.run_history"))
    assert len(calls) == 4
    assert {attempt for _run, attempt in calls} == {1}
    begun = "SELECT min(h.started_at) >= min(p.until) FROM notifyworker.run_history AS h, notifyworker.pauses AS p"
    assert await connection.fetchval(begun) is True
    assert await connection.fetchval("SELECT reason FROM notifyworker.pauses") == "429 of the API"


async def test_a_handler_pauses_its_kind_in_its_own_transaction(make_worker, connection):
    worker = make_worker(concurrency=1)
    await connection.execute("CREATE TABLE public.effects (attempt int)")

    @worker.handler("api")
    async def handle(run: Run) -> None:
        async with run.transaction() as own:
            await own.execute("INSERT INTO public.effects VALUES ($1)", run.attempt)
            if run.lease_token == 1:
                raise PauseKind(datetime.now(UTC) + timedelta(hours=1))

    async with worker:
        await connection.execute("INSERT INTO notifyworker.runs (kind) VALUES ('api')")
        await eventually(lambda: connection.fetchval("SELECT until FROM notifyworker.pauses WHERE kind = 'api'"))
        assert await connection.fetchval("SELECT array_agg(attempt) FROM public.effects") == [1]
        await connection.execute("SELECT notifyworker.resume('api')")
        await eventually(lambda: connection.fetchval("SELECT count(*) = 1 FROM notifyworker.run_history"))


@pytest.mark.parametrize("until", [0, -1, float("inf"), datetime(2030, 1, 1)])  # noqa: DTZ001 - no time zone is the point
def test_a_time_that_cant_be_is_told_in_the_handler(until):
    if until == 0:
        assert PauseKind(until).seconds == 0
        return
    with pytest.raises(ValueError, match="takes"):
        PauseKind(until)


async def test_from_python(dsn):
    async with Client(dsn) as client:
        await client.pause("a", "p", seconds=60, reason="why")
        await client.pause(until="2999-01-01T00:00:00Z")
        everything, one = sorted(await client.pauses(), key=lambda pause: pause["kind"] or "")
        assert (everything["kind"], everything["project_id"], everything["until"].year) == (None, None, 2999)
        assert (one["kind"], one["project_id"], one["reason"]) == ("a", "p", "why")
        assert await client.resume("a") is False  # not exactly that one
        assert await client.resume("a", "p") is True
        for wrong, field in (
            ({"kind": ""}, "kind"),
            ({"seconds": 0}, "seconds"),
            ({"seconds": 1, "until": "2999-01-01T00:00:00Z"}, "seconds"),
            ({"until": "2001-01-01T00:00:00Z"}, "until"),
            ({"until": "tomorrow"}, "until"),
            ({"reason": "x" * 1001}, "reason"),
        ):
            with pytest.raises(InvalidRun) as told:
                await client.pause(**wrong)
            assert told.value.field == field


async def test_over_http(house, connection):
    worker = Worker(house.worker.settings.dsn.get_secret_value(), sidecar=True, port=0, poll_interval_s=60)
    worker.handler("a")(house.handle)
    async with worker, _Session(str(worker.url)) as http:
        assert await http.post("/pauses", {"kind": "a", "seconds": 60, "reason": "why"}) == (201, {"paused": True})
        status, listed = await http.get("/pauses")
        assert (status, listed["pauses"][0]["kind"], listed["pauses"][0]["reason"]) == (200, "a", "why")
        run = await house.insert("a")
        assert await http.post("/pauses/resume", {"kind": "a"}) == (200, {"resumed": True})
        await house.done(run)
        assert await http.post("/pauses/resume", {"kind": "a"}) == (200, {"resumed": False})
        for body, field in (
            ({}, "all"),
            ({"all": True, "kind": "a"}, "all"),
            ({"kind": 1}, "kind"),
            ({"kind": "a", "until": "2001-01-01T00:00:00Z"}, "until"),
            ({"kind": "a", "for": 1}, "for"),
        ):
            status, problem = await http.post("/pauses", body)
            assert (status, problem["field"]) == (400, field), body
        assert (await http.post("/pauses/resume", {"kind": "a", "seconds": 1}))[0] == 400


class _Session:
    def __init__(self, url: str) -> None:
        self._url = url

    async def __aenter__(self) -> Self:
        import aiohttp

        self._session = aiohttp.ClientSession()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._session.close()

    async def get(self, path: str) -> tuple[int, Any]:
        async with self._session.get(self._url + path) as answer:
            return answer.status, await answer.json(content_type=None)

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        async with self._session.post(self._url + path, json=body) as answer:
            return answer.status, json.loads(await answer.text())


async def test_on_the_command_line(dsn):
    env = {"NOTIFYWORKER_DSN": dsn}

    shown = (await call("pause", "--kind", "a", "--until", "2999-01-01T00:00:00Z", "--reason", "why", env=env)).out
    assert re.search(r"a +every project +2999-01-01T00:00:00.000000Z +.* +why", shown)
    assert (await call("pauses", "--json", env=env)).json()["pauses"][0]["kind"] == "a"
    assert "no such pause" in await refused(1, "resume", "--all", env=env)
    assert (await call("resume", "--kind", "a", "--json", env=env)).json() == {"pauses": []}
    assert "--all" in await refused(2, "pause", env=env)
    assert "--all" in await refused(2, "pause", "--all", "--kind", "a", env=env)
    assert "until" in await refused(2, "pause", "--all", "--until", "2001-01-01T00:00:00Z", env=env)


async def test_the_pages_examples(dsn, connection, monkeypatch):
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    text = PAGE.read_text()
    (sql,) = re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for statement in sql.strip().split(";\n"):
        await connection.execute(statement)
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.pauses") == 2
    await connection.execute("DELETE FROM notifyworker.pauses")
    (shell,) = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for line in shell.splitlines():
        assert (await call(*line.split()[1:], env={"NOTIFYWORKER_DSN": dsn})).code == 0
    (python,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    page = types.ModuleType("pauses_page")
    exec(compile(python, str(PAGE), "exec"), page.__dict__)
    async with page.worker:
        await connection.execute("INSERT INTO notifyworker.runs (kind) VALUES ('api.call')")
        await eventually(lambda: connection.fetchval("SELECT until FROM notifyworker.pauses WHERE kind = 'api.call'"))
        await asyncio.wait_for(page.main(), 30)
