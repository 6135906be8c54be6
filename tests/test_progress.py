"""Progress is written at most once an interval, fenced, and the last of it is never lost."""

import asyncio
import json
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
import structlog
from servers import eventually
from test_life import insert, settled

from notifyworker import Fail, LeaseLost, Retry, Run, Snooze, Worker

PAGE = Path(__file__).parents[1] / "docs" / "progress-and-waiting.md"


@pytest.fixture
def counted() -> Callable[[Worker], list[Any]]:
    """Every statement that writes progress, as it was sent."""

    def count(worker: Worker) -> list[Any]:
        store = worker._conductor.store
        sent: list[Any] = []
        write = store.progress

        async def progress(on: Any, owner: str, said: Any) -> Any:
            sent.append([json.loads(text) for _run, text in said])
            return await write(on, owner, said)

        store.progress = progress
        return sent

    return count


@pytest.mark.parametrize("plain", [False, True])
async def test_a_thousand_in_a_row_are_a_statement_or_two_and_the_last_is_kept(make_worker, connection, counted, plain):
    worker: Worker = make_worker(progress_interval_s=3600)
    go_on = asyncio.Event()

    async def says(run: Run) -> str:
        await go_on.wait()
        for n in range(1000):
            await run.progress({"n": n})
        return "done"

    def says_in_a_thread(run: Run) -> str:
        for n in range(1000):
            run.progress({"n": n})
        return "done"

    worker.handler("a")(says_in_a_thread if plain else says)
    async with worker:
        sent = counted(worker)
        run_id = await insert(connection, "a")
        go_on.set()
        run = await settled(connection, run_id)
    assert (run["state"], run["progress"]) == ("completed", '{"n": 999}')
    assert len(sent) <= 2


@pytest.mark.parametrize("end", [Fail("no"), Snooze(3600), ValueError("x")])
async def test_the_last_is_kept_however_the_attempt_ends(make_worker, connection, end):
    worker: Worker = make_worker(progress_interval_s=3600)

    @worker.handler("a", retry=Retry(max_attempts=2, base_s=3600, delay=3600))
    async def handle(run: Run) -> None:
        await run.progress({"n": 1})
        await run.progress({"n": 2})
        raise end

    async with worker:
        run_id = await insert(connection, "a")
        progress = "SELECT progress FROM notifyworker.all_runs WHERE run_id = $1 AND state <> 'running'"
        assert await eventually(lambda: connection.fetchval(progress, run_id)) == '{"n": 2}'


async def test_it_goes_with_the_handlers_own_transaction(make_worker, connection):
    worker: Worker = make_worker(progress_interval_s=3600)
    after = asyncio.Event()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        await run.progress({"n": 1})
        async with run.transaction():
            await run.progress({"n": 2})
        with pytest.raises(LeaseLost):
            await run.progress({"n": 3})
        after.set()

    async with worker:
        run = await settled(connection, await insert(connection, "a"))
        await asyncio.wait_for(after.wait(), 30)
    assert (run["state"], run["progress"]) == ("completed", '{"n": 2}')


async def test_the_newest_is_written_when_the_interval_is_over_all_runs_in_one_statement(make_worker, connection, counted):
    worker: Worker = make_worker(progress_interval_s=0.2, concurrency=20)
    go_on = asyncio.Event()
    first: list[int] = []

    @worker.handler("a")
    async def handle(run: Run) -> None:
        await run.progress({"n": 1})
        first.append(1)
        await run.progress({"n": 2})
        await run.progress({"n": 3})
        await go_on.wait()

    async with worker:
        sent = counted(worker)
        await connection.execute("INSERT INTO notifyworker.runs (kind) SELECT 'a' FROM generate_series(1, 20)")
        written = "SELECT count(*) = 20 FROM notifyworker.runs WHERE progress = '{\"n\": 3}'"
        await eventually(lambda: connection.fetchval(written))
        assert len(first) == 20
        assert {"n": 2} not in [said for batch in sent for said in batch]
        assert len(sent) < 20
        go_on.set()


async def test_it_is_fenced_and_the_handler_of_a_lost_run_is_cancelled(make_worker, connection):
    worker: Worker = make_worker(progress_interval_s=0)
    taken, ended = asyncio.Event(), asyncio.Event()
    raised: list[BaseException] = []

    @worker.handler("a")
    async def handle(run: Run) -> None:
        try:
            await run.progress({"by": "us"})
            taken.set()
            while True:
                await run.progress({"by": "the old one"})
                await asyncio.sleep(0)
        except BaseException as error:
            raised.append(error)
            raise
        finally:
            ended.set()

    async with worker:
        run_id = await insert(connection, "a")
        await taken.wait()
        await connection.execute(
            "UPDATE notifyworker.runs SET lease_token = lease_token + 1, lease_owner = 'another', progress = '{}'"
        )
        await asyncio.wait_for(ended.wait(), 30)
    assert isinstance(raised[0], LeaseLost | asyncio.CancelledError)
    run = await connection.fetchrow("SELECT * FROM notifyworker.runs WHERE run_id = $1", run_id)
    assert (run["state"], run["lease_owner"], run["progress"]) == ("running", "another", "{}")


async def test_a_locked_row_and_a_database_that_is_away_only_delay_it(make_worker, connection, dsn):
    worker: Worker = make_worker(progress_interval_s=0)
    go_on = asyncio.Event()
    said: list[int] = []

    @worker.handler("a")
    async def handle(run: Run) -> None:
        await go_on.wait()
        for n in range(3):
            await run.progress({"n": n})
            said.append(n)
        await asyncio.Event().wait()

    async with worker:
        run_id = await insert(connection, "a")
        await eventually(lambda: worker._conductor.slots.running)
        other = await asyncpg.connect(dsn)
        transaction = other.transaction()
        await transaction.start()
        await other.execute("SELECT FROM notifyworker.runs FOR UPDATE")
        go_on.set()
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'notifyworker side'"
        )
        await asyncio.sleep(0)
        assert await other.fetchval("SELECT progress FROM notifyworker.runs") is None
        await transaction.rollback()
        progress = "SELECT progress FROM notifyworker.runs WHERE run_id = $1"
        await eventually(lambda: _is(connection, progress, run_id, '{"n": 2}'))
        await other.close()
        await connection.fetchval("SELECT notifyworker.cancel($1)", run_id)
    assert said == [0, 1, 2]


async def _is(db: asyncpg.Connection, query: str, argument: Any, wanted: Any) -> bool:
    return await db.fetchval(query, argument) == wanted


async def test_what_the_server_cant_hold_costs_its_own_run_alone(make_worker, connection):
    worker: Worker = make_worker(progress_interval_s=0)
    go_on = asyncio.Event()

    @worker.handler("a")
    async def handle(run: Run, payload: dict) -> None:
        await go_on.wait()
        # Nothing that JSON of ours can be is refused, as far as we know: so, past the check.
        await run._desk.write_progress(run, '{"n": 1e999999}' if payload["bad"] else '{"n": 1}')

    with structlog.testing.capture_logs() as logs:
        async with worker:
            bad = await insert(connection, "a", '{"bad": true}')
            good = await insert(connection, "a", '{"bad": false}')
            await eventually(lambda: worker._conductor.slots.running == 2)
            go_on.set()
            assert (await settled(connection, good))["progress"] == '{"n": 1}'
            failed = "SELECT errors <> '[]' FROM notifyworker.all_runs WHERE run_id = $1"
            await eventually(lambda: connection.fetchval(failed, bad))
            await connection.fetchval("SELECT notifyworker.cancel($1)", bad)
    assert "progress_not_written" in {entry["event"] for entry in logs}


async def test_a_thread_whose_run_is_over_hears_it_from_progress(make_worker, connection):
    worker: Worker = make_worker()
    raised: list[BaseException] = []

    @worker.handler("a", timeout=0.05, retry=Retry(max_attempts=1))
    def handle(run: Run) -> None:
        try:
            while not run.cancelled_within(10):
                pass
            run.progress({"too": "late"})
        except BaseException as error:
            raised.append(error)
            raise

    async with worker:
        run = await settled(connection, await insert(connection, "a"))
        await eventually(lambda: worker.lingering == 0)
    assert (run["error_code"], run["progress"]) == ("E-RUN-003", None)
    assert isinstance(raised[0], LeaseLost)


async def test_events_stream_it_with_its_value(make_worker, connection):
    worker: Worker = make_worker(sidecar=True, port=0, progress_interval_s=0)

    @worker.handler("a")
    async def handle(run: Run) -> None:
        await run.progress({"n": 10**30})
        await run.progress({"long": "x" * 10_000})

    async with worker, aiohttp.ClientSession() as http, http.get(f"{worker.url}/events") as stream:
        run_id = await insert(connection, "a")
        events: list[dict[str, Any]] = []
        async with asyncio.timeout(30):
            while not events or events[-1]["state"] != "completed":
                line = (await stream.content.readline()).decode()
                if line.startswith("data: {"):
                    events.append(json.loads(line.removeprefix("data: ")))
    assert [event["state"] for event in events] == ["running", "progress", "progress", "completed"]
    assert events[1] == {"run_id": str(run_id), "kind": "a", "state": "progress", "progress": {"n": 10**30}}
    assert "progress" not in events[2]


async def test_nothing_is_kept_of_runs_that_have_ended(make_worker, connection):
    worker: Worker = make_worker(progress_interval_s=3600)

    @worker.handler("a")
    async def handle(run: Run) -> None:
        await run.progress({"n": 1})
        await run.progress({"n": 2})

    async with worker:
        for _ in range(5):
            await settled(connection, await insert(connection, "a"))
        progress = worker._conductor.progress
        await eventually(lambda: not progress._of and not progress._unwritten)


async def test_the_pages_examples(dsn, connection, monkeypatch):
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    (python,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    page = types.ModuleType("progress_page")
    exec(compile(python, str(PAGE), "exec"), page.__dict__)
    async with page.worker:
        told = await asyncio.wait_for(page.main(), 30)
        assert told == {"state": "completed", "result": {"rows": 1000}, "progress": {"row": 1000, "of": 1000}}
        run = await settled(connection, await insert(connection, "import.plain", '{"rows": 3}'))
    assert run["progress"] == '{"row": 3}'
