"""A cancelled run's handler ends at once; one that does not is told of, counted, and replaced up to a limit."""

import asyncio
import re
import statistics
import threading
import types
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
import structlog
from servers import SURELY_S, eventually
from test_life import insert, settled, state

from notifyworker import Retry, Run, Worker

PAGE = Path(__file__).parents[1] / "docs" / "cancel.md"
CANCEL = "SELECT notifyworker.cancel($1)"


async def test_each_of_many_cancels_is_heard_and_none_waits_for_a_heartbeat(make_worker, connection):
    worker: Worker = make_worker(concurrency=20)
    begun: list[UUID] = []
    ended: dict[UUID, asyncio.Event] = {}

    @worker.handler("a")
    async def handle(run: Run) -> None:
        begun.append(run.run_id)
        ended[run.run_id] = asyncio.Event()
        try:
            await asyncio.Event().wait()
        finally:
            ended[run.run_id].set()

    def beats() -> float | None:
        return _value(worker, "notifyworker_heartbeats_total", outcome="sent")

    async with worker:
        await connection.execute("INSERT INTO notifyworker.runs (kind) SELECT 'a' FROM generate_series(1, 20)")
        await eventually(lambda: len(begun) == 20)
        # One at the start, and one when it listened: the next is half a minute away.
        await eventually(lambda: beats() == 2)
        took = []
        for run_id in begun:
            await connection.fetchval(CANCEL, run_id)
            committed_at = asyncio.get_running_loop().time()
            await asyncio.wait_for(ended[run_id].wait(), 30)
            took.append(1000 * (asyncio.get_running_loop().time() - committed_at))
        # With -s: a measure, and no bound, since nothing here is idle.
        print(f"cancel to handler: median {statistics.median(took):.1f} ms, worst {max(took):.1f} ms")  # noqa: T201
        assert beats() == 2
        assert _value(worker, "notifyworker_leases_lost_total") == 20


async def test_a_notification_that_is_not_true_cancels_nobody(make_worker, connection):
    worker: Worker = make_worker()
    go_on = asyncio.Event()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        await go_on.wait()

    async with worker:
        first, second = await insert(connection, "a"), await insert(connection, "a")
        await eventually(lambda: worker._conductor.slots.running == 2)
        for text in (str(first), "no id", "", str(UUID(int=0))):
            await connection.execute("SELECT pg_notify('notifyworker', $1)", f"cancel:{text}")
        await connection.fetchval(CANCEL, second)
        await eventually(lambda: worker._conductor.slots.running == 1)  # the look that was after all of them
        go_on.set()
        assert (await settled(connection, first))["state"] == "completed"


async def test_without_an_answer_the_heartbeat_tells(make_worker, connection, monkeypatch):
    worker: Worker = make_worker()
    ended = asyncio.Event()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with worker:
        run_id = await insert(connection, "a")
        await eventually(lambda: worker._conductor.slots.running)
        conductor = worker._conductor
        held = conductor.store.held

        async def unanswered(on, *rest):
            if on is conductor._side_link:
                raise TimeoutError
            return await held(on, *rest)

        monkeypatch.setattr(conductor.store, "held", unanswered)
        await connection.fetchval(CANCEL, run_id)
        await asyncio.wait_for(ended.wait(), 30)


async def test_a_thread_hears_of_it_while_it_waits_and_when_it_looks(make_worker, connection):
    worker: Worker = make_worker()
    waits, ended = threading.Event(), threading.Event()
    heard: list[bool] = []

    @worker.handler("a")
    def handle(run: Run) -> None:
        heard.extend([run.cancelled, run.cancelled_within(0.001)])
        waits.set()
        heard.extend([run.cancelled_within(30), run.cancelled, run.cancelled_within(30)])
        ended.set()

    with structlog.testing.capture_logs() as logs:
        async with worker:
            run_id = await insert(connection, "a")
            await eventually(waits.is_set)
            await connection.fetchval(CANCEL, run_id)
            await eventually(ended.is_set)
            await eventually(lambda: worker.lingering == 0)
    assert heard == [False, False, True, True, True]
    assert await state(connection, run_id) == "cancelled"
    assert "handler_ignores_cancellation" not in {entry["event"] for entry in logs}  # it had its 2 s, and ended


@pytest.mark.parametrize("plain", [False, True])
async def test_one_that_goes_on_is_told_with_its_stack_counted_and_replaced(make_worker, connection, plain):
    worker: Worker = make_worker(concurrency=1, replaced_slots=1)
    release, thread_release = asyncio.Event(), threading.Event()

    async def stubborn(run: Run) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    def stubborn_thread(run: Run) -> None:
        thread_release.wait(2 * SURELY_S)

    worker.handler("stubborn", timeout=0.05, retry=Retry(max_attempts=1))(stubborn_thread if plain else stubborn)

    @worker.handler("b")
    async def other(run: Run) -> None: ...

    with structlog.testing.capture_logs() as logs:
        async with worker:
            try:
                await _goes_on(worker, connection, logs)
            finally:
                release.set()
                thread_release.set()
            conductor = worker._conductor
            await eventually(lambda: conductor.health() + conductor.restrictions() == [])
            assert _value(worker, "notifyworker_handlers_stuck") == 0
            assert _value(worker, "notifyworker_cancellations_ignored_total", kind="stubborn") == 2
            await eventually(lambda: connection.fetchval("SELECT count(*) = 0 FROM notifyworker.runs"))  # the one that waited


async def _goes_on(worker: Worker, connection: asyncpg.Connection, logs: list[dict]) -> None:
    await insert(connection, "stubborn")
    run = await settled(connection, await insert(connection, "b"))  # in the only slot's place
    assert run["state"] == "completed"
    (told,) = [entry for entry in logs if entry["event"] == "handler_ignores_cancellation"]
    assert (told["kind"], told["why"]) == ("stubborn", "timeout")
    assert any("test_cancel.py" in line and "in stubborn" in line for line in told["at"])
    conductor = worker._conductor
    assert conductor.health() == []
    assert conductor.restrictions() == ["1 handlers ignore that their runs were ended, and go on: stubborn (1)"]
    assert _value(worker, "notifyworker_handlers_stuck") == 1

    await insert(connection, "stubborn")
    await eventually(lambda: _value(worker, "notifyworker_handlers_stuck") == 2)
    assert "2 handlers ignore" in conductor.health()[0]
    assert "replaced_slots=1" in conductor.health()[0]
    assert conductor.restrictions() == []
    assert conductor.slots.used == 1  # one is replaced, the other keeps the slot
    await insert(connection, "b")


async def test_the_pages_examples(dsn, connection, monkeypatch):
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    text = PAGE.read_text()
    (python,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (sql,) = re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    page = types.ModuleType("cancel_page")
    exec(compile(python, str(PAGE), "exec"), page.__dict__)
    written = threading.Semaphore(0)
    page.write = lambda _page: written.release()
    async with page.worker:
        run_id = await insert(connection, "export", '{"pages": 1}')
        assert await asyncio.to_thread(written.acquire, timeout=SURELY_S)
        await _cancelled(connection, sql)
        assert await state(connection, run_id) == "cancelled"
        await eventually(lambda: page.worker.lingering == 0 and page.worker._conductor.slots.used == 0)


async def _cancelled(connection: asyncpg.Connection, sql: str) -> None:
    assert await connection.fetch(sql)


def _value(worker: Worker, name: str, **labels: str) -> float:
    return worker._conductor.metrics.registry.get_sample_value(name, labels) or 0.0
