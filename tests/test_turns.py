"""A fleet in which not every notification makes everybody look: nothing waits for it, whoever is busy or gone."""

import asyncio
import json

import pytest
from servers import eventually
from test_life import insert, settled

from notifyworker import Run, Worker, turns


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two are a herd already, and whoever has no turn looks only after minutes."""
    monkeypatch.setattr(turns, "HERD", 2)
    monkeypatch.setattr(turns, "LATE_S", 300)


async def fleet_of(workers: list[Worker]) -> None:
    """Wait until each knows of all."""
    for worker in workers:
        worker._conductor.keeper.announce()
    await eventually(lambda: all(w._conductor.turns._size == len(workers) for w in workers))


async def test_each_notification_is_one_workers_turn(many, dsn, make_worker, connection):
    workers = [make_worker() for _ in range(3)]
    by: list[int] = []
    for number, worker in enumerate(workers):

        def note(run: Run, *, number: int = number) -> None:
            by.append(number)

        worker.handler("a")(note)

    async with workers[0], workers[1], workers[2]:
        await fleet_of(workers)
        claims = [_claims(w) for w in workers]
        for _ in range(30):
            await settled(connection, await insert(connection, "a"))
        made = sum(_claims(w) for w in workers) - sum(claims)

    assert set(by) == {0, 1, 2}
    assert made < 2 * 30


def _claims(worker: Worker) -> float:
    metrics = worker._conductor.metrics
    return sum(metrics.registry.get_sample_value("notifyworker_claims_total", {"found": f}) or 0 for f in ("some", "none"))


async def test_more_than_one_can_take_is_handed_on(many, make_worker, connection):
    workers = [make_worker(concurrency=2) for _ in range(3)]
    never = asyncio.Event()
    running = 0
    for worker in workers:

        @worker.handler("a")
        async def handle(run: Run) -> None:
            nonlocal running
            running += 1
            await never.wait()

    async with workers[0], workers[1], workers[2]:
        await fleet_of(workers)
        await connection.execute("INSERT INTO notifyworker.runs (kind) SELECT 'a' FROM generate_series(1, 6)")
        await eventually(lambda: running == 6)
        never.set()


async def test_what_the_designated_does_not_take_is_found_late(many, dsn, make_worker, connection, monkeypatch):
    monkeypatch.setattr(turns, "LATE_S", 0.05)
    workers = [make_worker() for _ in range(3)]
    for worker in workers:

        @worker.handler("a")
        async def handle(run: Run) -> None: ...

    async with workers[0], workers[1], workers[2]:
        await fleet_of(workers)
        for deaf in workers[:2]:
            monkeypatch.setattr(deaf._conductor.turns, "_wake", lambda: None)
        for _ in range(20):
            await settled(connection, await insert(connection, "a"))
        assert workers[2]._conductor.turns._late_s == turns.SOON_S  # it has learned that it is needed


async def test_strange_texts_on_the_channel_are_a_turn_like_any_other(many, dsn, make_worker, connection):
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    async with worker:
        for text in (
            "turn:",
            "turn:x",
            "at:nan",
            "at:1e999",
            "at:",
            "at:-1e18",
            "cancel:",
            "farewell:",
            json.dumps({"a": "\u2603"}),
        ):
            await connection.execute("SELECT pg_notify('notifyworker', $1)", text)
        assert (await settled(connection, await insert(connection, "a")))["state"] == "completed"
        assert worker._conductor.health() == []


async def test_workers_that_serve_something_else_have_turns_of_their_own(dsn, make_worker):
    same, also, other, elsewhere = make_worker(), make_worker(), make_worker(), make_worker(project_ids=["p"])

    async def handle(run: Run) -> None: ...

    for worker, kind in ((same, "a"), (also, "a"), (other, "b"), (elsewhere, "a")):
        worker.handler(kind)(handle)
    async with same, also, other, elsewhere:
        for worker in (same, also, other, elsewhere):
            worker._conductor.keeper.announce()
        await eventually(lambda: [w._conductor.turns._size for w in (same, also, other, elsewhere)] == [2, 2, 1, 1])
        assert {w._conductor.turns._position for w in (same, also)} == {0, 1}
