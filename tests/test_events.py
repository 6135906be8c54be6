"""run.event(): a run waits without a slot for what comes from outside, and gets it once, or is told that it came too late."""

import asyncio
import json
import re
import shlex
import types
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from servers import eventually
from test_cli import call as command
from test_pauses import _Session
from test_steps import settled, take_from_its_worker

from notifyworker import Client, EventTimeout, InvalidRun, Retry, Run, RunConflict, RunNotFound, Worker

PAGE = Path(__file__).parents[1] / "docs" / "events.md"
QUICKLY = Retry(max_attempts=3, base_s=0.01)
EMIT = "SELECT notifyworker.emit('paid', $2, run_id => $1)"


@pytest.fixture
async def db(connection: asyncpg.Connection) -> asyncpg.Connection:
    return connection


async def insert(db: asyncpg.Connection, kind: str = "order", *, project_id: str = "default", is_shadow: bool = False) -> UUID:
    query = "INSERT INTO notifyworker.runs (kind, project_id, is_shadow) VALUES ($1, $2, $3) RETURNING run_id"
    return await db.fetchval(query, kind, project_id, is_shadow)


async def waiting(db: asyncpg.Connection, run_id: UUID) -> asyncpg.Record:
    query = "SELECT r.* FROM notifyworker.runs AS r JOIN notifyworker.event_waits AS w USING (run_id) WHERE r.run_id = $1 AND r.state = 'pending'"
    return await eventually(lambda: db.fetchrow(query, run_id))


def asks(worker: Worker, **event: Any) -> list[Any]:
    """A handler that waits for its event, and what it was given each time."""
    seen: list[Any] = []

    @worker.handler("order", retry=QUICKLY)
    async def order(run: Run) -> Any:
        try:
            seen.append(await run.event("paid", **event))
        except EventTimeout as error:
            seen.append(str(error))
        return seen[-1]

    return seen


@pytest.mark.parametrize("timeout", [None, 3600])
async def test_an_event_is_waited_for_without_a_slot(make_worker, db, timeout):
    worker: Worker = make_worker(concurrency=1)
    seen = asks(worker, timeout=timeout)
    worker.handler("other")(_nothing)
    async with worker:
        run_id = await insert(db)
        run = await waiting(db, run_id)
        assert (run["state"], run["attempt"], run["lease_owner"]) == ("pending", 0, None)
        assert run["waits_for"] == (None if timeout else "event")
        await settled(db, await insert(db, "other"))
        async with db.transaction():  # or the run might be settled before the second comes
            assert await db.fetchval(EMIT, run_id, '{"amount": 12}') is True
            assert await db.fetchval(EMIT, run_id, '{"amount": 13}') is False
        run = await settled(db, run_id)
    assert (run["attempt"], json.loads(run["result"]), seen) == (1, {"amount": 12}, [{"amount": 12}])
    (step,) = await db.fetch("SELECT name, result FROM notifyworker.steps")
    assert (step["name"], json.loads(step["result"])["payload"]) == ("event:paid", {"amount": 12})
    assert await db.fetchval("SELECT count(*) FROM notifyworker.event_waits") == 0


async def _nothing(run: Run) -> None: ...


async def test_one_that_came_before_is_there_at_once_and_all_who_wait_for_a_key_get_it(make_worker, db, dsn):
    worker: Worker = make_worker()

    @worker.handler("order")
    async def order(run: Run) -> list[Any]:
        return [await run.event("paid", key="7"), await run.event("shipped")]

    run_id = await insert(db)
    assert await db.fetchval("SELECT notifyworker.emit('paid', '1', key => '7')")
    assert await db.fetchval("SELECT notifyworker.emit('paid', '9', key => '7', project_id => 'other')")
    assert await db.fetchval("SELECT notifyworker.emit('shipped', '2', run_id => $1)", run_id)
    other = await insert(db)
    async with worker, Client(dsn) as client:
        assert json.loads((await settled(db, run_id))["result"]) == [1, 2]
        await waiting(db, other)
        assert await client.emit("shipped", [3], run_id=other)
        assert json.loads((await settled(db, other))["result"]) == [1, [3]]
    assert await db.fetchval("SELECT max(attempt) FROM notifyworker.all_runs") == 1


async def test_what_was_received_is_received_on_every_attempt(make_worker, db, handlers_own):
    worker: Worker = make_worker()
    seen: list[Any] = []

    @worker.handler("order", retry=QUICKLY)
    async def order(run: Run) -> None:
        seen.append(await run.event("paid"))
        if run.attempt == 1:
            await handlers_own.execute("DELETE FROM notifyworker.events")
            raise ValueError("again")

    async with worker:
        run_id = await insert(db)
        await waiting(db, run_id)
        await db.execute(EMIT, run_id, "7")
        await eventually(lambda: asyncio.sleep(0, len(seen) == 2))
    assert seen == [7, 7]


async def test_it_may_come_too_late_by_the_databases_clock(make_worker, db, dsn):
    """The time goes on from the first wait, whatever becomes of workers; and what was told is told again."""
    first: Worker = make_worker()
    asks(first, timeout=3600)
    async with first:
        run_id = await insert(db)
        run = await waiting(db, run_id)
        ends_at = await db.fetchval("SELECT ends_at FROM notifyworker.event_waits")
        assert run["run_at"] == ends_at

    await db.execute("UPDATE notifyworker.event_waits SET ends_at = now() + interval '1 s'")
    await db.execute("UPDATE notifyworker.runs SET run_at = now() + interval '1 s'")
    second: Worker = make_worker()
    seen = asks(second, timeout=3600)
    async with second:
        run = await settled(db, run_id)
        assert json.loads(run["result"]) == "the event 'paid' did not come in time"
        assert run["finished_at"] >= await db.fetchval("SELECT (result->>'timeout')::timestamptz FROM notifyworker.steps")
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match="is settled already"):
            await db.execute(EMIT, run_id, "7")
        await db.execute(
            "INSERT INTO notifyworker.events VALUES (now(), now() + interval '1 d', 'default', 'paid', $1, '7')", str(run_id)
        )
        await db.execute("SELECT notifyworker.retry($1, from_step => 2)", run_id)
        await settled(db, run_id)
    assert seen == ["the event 'paid' did not come in time"] * 2
    del dsn


async def test_event_and_end_of_time_at_the_same_moment_have_one_outcome(make_worker, db, dsn):
    """The run is executed since its time is over, while its event is on the way: what is committed first counts."""
    worker: Worker = make_worker()
    seen = asks(worker, timeout=3)
    second = await asyncpg.connect(dsn)
    async with worker:
        run_id = await insert(db)
        await waiting(db, run_id)
        async with second.transaction():
            await second.execute("SELECT notifyworker.lock_address('default', 'paid', $1)", str(run_id))
            await eventually(lambda: db.fetchval("SELECT state = 'running' FROM notifyworker.runs"))
            assert await second.fetchval(EMIT, run_id, "7")
        run = await settled(db, run_id)
    await second.close()
    assert (json.loads(run["result"]), seen) == (7, [7])
    assert await db.fetchval("SELECT count(*) FROM notifyworker.steps") == 1


async def test_who_begins_to_wait_while_it_is_emitted_gets_it(make_worker, db, dsn):
    worker: Worker = make_worker()
    asks(worker)
    second = await asyncpg.connect(dsn)
    run_id = await insert(db)
    async with second.transaction():
        assert await second.fetchval(EMIT, run_id, "7")  # sees nobody who waits
        async with worker:
            blocked = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            await eventually(lambda: db.fetchval(blocked))
            await second.execute("COMMIT; BEGIN")
            assert json.loads((await settled(db, run_id))["result"]) == 7
    await second.close()


async def test_a_worker_that_is_gone_while_it_has_been_told(make_worker, db, dsn):
    worker: Worker = make_worker()
    halt = asyncio.Event()
    seen: list[Any] = []

    @worker.handler("order", retry=QUICKLY)
    async def order(run: Run) -> None:
        seen.append(await run.event("paid", timeout=3600))
        if len(seen) == 1:
            await halt.wait()

    async with worker:
        run_id = await insert(db)
        await waiting(db, run_id)
        await db.execute(EMIT, run_id, "7")
        await eventually(lambda: asyncio.sleep(0, seen))
        await take_from_its_worker(dsn)
        run = await settled(db, run_id)
    assert (run["attempt"], seen) == (2, [7, 7])


async def test_the_net_finds_who_was_forgotten(make_worker, db, dsn):
    """The row was locked when the event came, by somebody who has then done nothing; and emit waited for nobody."""
    worker: Worker = make_worker()
    asks(worker)
    async with worker:
        run_id = await insert(db)
        await waiting(db, run_id)
    second = await asyncpg.connect(dsn)
    async with second.transaction():
        await second.execute("SELECT FROM notifyworker.runs FOR UPDATE")
        await db.execute(EMIT, run_id, "7")
    await second.close()
    assert (await db.fetchrow("SELECT waits_for FROM notifyworker.runs"))["waits_for"] == "event"
    async with worker:
        assert json.loads((await settled(db, run_id))["result"]) == 7


async def test_events_that_nobody_waits_for_are_forgotten(make_worker, db, dsn):
    async with Client(dsn) as client:
        assert await client.emit("old", key="k", keep_s=600)
        assert not await client.emit("old", key="k")
        await client.emit("young")
        await db.execute("UPDATE notifyworker.events SET expires_at = now() WHERE name = 'old'")
        assert await client.emit("old", 2, key="k", keep_s=600)  # the first one's time is over
        await db.execute("UPDATE notifyworker.events SET expires_at = now() WHERE name = 'old'")
    assert await db.fetchval("SELECT notifyworker.mend_events()") == 0
    assert [row["name"] for row in await db.fetch("SELECT name FROM notifyworker.events")] == ["young"]


async def test_what_cant_be_is_told(dsn, db):
    async with Client(dsn) as client:
        for wrong, field in (
            ({"name": ""}, "name"), ({"name": "a", "key": "x" * 91}, "key"), ({"name": "a", "keep_s": 0}, "keep_s"),
            ({"name": "a", "payload": "x" * 2_000_000}, "payload"), ({"name": "a", "run_id": "x"}, "run_id"),
        ):  # fmt: skip
            with pytest.raises(InvalidRun) as told:
                await client.emit(**wrong)
            assert told.value.field == field
        with pytest.raises(RunNotFound):
            await client.emit("a", run_id=UUID(int=1))
        run_id = await insert(db)
        await client.cancel(run_id)
        with pytest.raises(RunConflict, match="is settled already"):
            await client.emit("a", run_id=run_id)


async def test_a_name_is_asked_for_once_and_steps_keep_their_order(make_worker, db):
    worker: Worker = make_worker()

    @worker.handler("order", retry=Retry(max_attempts=1))
    async def order(run: Run) -> None:
        await run.step("one", str, 1)
        await run.event("paid")
        await run.event("paid")

    run_id = await insert(db)
    await db.execute(EMIT, run_id, "7")
    async with worker:
        run = await settled(db, run_id)
    assert "StepError: step 'event:paid' is called twice in one run" in json.loads(run["errors"])[0]["message"]
    assert [row["name"] for row in await db.fetch("SELECT name FROM notifyworker.steps ORDER BY position")] == [
        "one",
        "event:paid",
    ]


async def test_over_http_and_on_the_command_line(make_worker, db, dsn):
    worker: Worker = make_worker(sidecar=True, port=0)
    asks(worker, timeout=3600)
    env = {"NOTIFYWORKER_DSN": dsn}
    async with worker:
        first, second = await insert(db), await insert(db)
        for run_id in (first, second):
            await waiting(db, run_id)
        async with _Session(str(worker.url)) as http:
            _, shown = await http.get(f"/runs/{first}")
            assert (shown["event"]["name"], shown["event"]["key"]) == ("paid", None)
            assert await http.post("/events", {"name": "paid", "run_id": str(first), "payload": 1}) == (201, {"emitted": True})
            status, told = await http.post("/events", {"name": "paid", "of": "it"})
            assert (status, told["field"]) == (400, "of")
            assert (await http.post("/events", {"name": "paid", "run_id": str(UUID(int=1))}))[0] == 404
        assert (await command("runs", "show", str(second), env=env)).out.count("paid")
        assert (await command("emit", "paid", "2", "--run-id", str(second), env=env)).out == "emitted\n"
        assert (await command("emit", "paid", "2", "--key", "k", env=env)).out == "emitted\n"
        assert (await command("emit", "paid", "2", "--key", "k", "--json", env=env)).json() == {"emitted": False}
        assert [json.loads((await settled(db, run_id))["result"]) for run_id in (first, second)] == [1, 2]
        assert (await command("emit", "paid", "--run-id", str(second), env=env)).code == 1


async def test_the_pages_examples(dsn, db, monkeypatch):
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    text = PAGE.read_text()
    (python,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    page = types.ModuleType("events_page")
    exec(compile(python, str(PAGE), "exec"), page.__dict__)
    insert_order = (
        "INSERT INTO notifyworker.runs (kind, payload) VALUES ('order.ship', '{\"article\": \"chair\"}') RETURNING run_id"
    )
    async with page.worker:
        run_id = await db.fetchval(insert_order)
        await waiting(db, run_id)
        (sql,) = re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        assert await db.fetchval(sql.replace("'…'", f"'{run_id}'"))
        (shell,) = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        assert (await command(*shlex.split(shell)[1:], env={"NOTIFYWORKER_DSN": dsn})).out == "emitted\n"
        assert json.loads((await settled(db, run_id))["result"]) == "12 paid, 3 there"
