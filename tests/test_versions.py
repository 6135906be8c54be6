"""Versions: which one is live is a row, a claim takes no run for any other, and who lacks it leaves the runs alone."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from servers import eventually

from notifyworker import HandlerError, Retry, Run, Worker

INSERT = "INSERT INTO notifyworker.runs (kind, project_id, payload) SELECT $1, $2, '{}' FROM generate_series(1, $3)"


class Fleet:
    """Workers of the kind k; `executed` counts what each version did."""

    def __init__(self, make_worker: Any, connection: Any) -> None:
        self.make_worker = make_worker
        self.connection = connection
        self.executed: Counter[Any] = Counter()
        self.by: dict[Any, str | None] = {}

    def worker(self, *versions: str | None, **settings: Any) -> Worker:
        worker: Worker = self.make_worker(**settings)
        for version in versions:
            worker.handler("k", version=version)(self.handler(version))
        return worker

    def handler(self, version: str | None) -> Any:
        async def handle(run: Run) -> None:
            assert run.version == version
            self.executed[version, run.project_id] += 1
            self.by[run.run_id] = version

        return handle

    async def insert(self, count: int, project: str = "p") -> None:
        await self.connection.execute(INSERT, "k", project, count)

    async def live(self, version: str | None, project: str | None = None) -> Any:
        return await self.connection.fetchval("SELECT notifyworker.set_version('k', $1, $2)", version, project)

    async def settled(self, count: int) -> None:
        await eventually(lambda: sum(self.executed.values()) >= count)


@pytest.fixture
def fleet(make_worker, connection) -> Fleet:
    return Fleet(make_worker, connection)


async def test_the_first_version_is_live_until_somebody_switches(fleet):
    async with fleet.worker("v1", "v2"):
        await fleet.insert(3)
        await fleet.settled(3)
        assert await fleet.live("v2") == "v1"
        await fleet.insert(3)
        await fleet.settled(6)
        assert await fleet.live("v1") == "v2"
        await fleet.insert(3)
        await fleet.settled(9)
    assert fleet.executed == {("v1", "p"): 6, ("v2", "p"): 3}
    switched = await fleet.connection.fetch(
        "SELECT actor, target->>'from' AS was, target->>'to' AS became FROM notifyworker.audit"
    )
    assert [(row["was"], row["became"]) for row in switched] == [("v1", "v2"), ("v2", "v1")]
    assert all(row["actor"] for row in switched)


async def test_without_a_row_the_handler_without_a_version_is_live(fleet):
    async with fleet.worker(None, "v2"):
        await fleet.insert(2)
        await fleet.settled(2)
        await fleet.live("v2")
        await fleet.insert(2)
        await fleet.settled(4)
        await fleet.live(None)
        await fleet.insert(2)
        await fleet.settled(6)
    assert fleet.executed == {(None, "p"): 4, ("v2", "p"): 2}


@pytest.mark.parametrize("limited", [False, True])
async def test_who_lacks_the_live_version_leaves_the_runs_alone(fleet, connection, limited):
    if limited:
        await connection.execute("SELECT notifyworker.set_limit(max_running => 5)")
    async with fleet.worker("v1"):
        await fleet.insert(1)
        await fleet.settled(1)
        await fleet.live("v2")
        await fleet.insert(5)
        await fleet.insert(1, "other")
        async with fleet.worker("v2"):
            await fleet.settled(7)
    assert fleet.executed == {("v1", "p"): 1, ("v2", "p"): 5, ("v2", "other"): 1}


async def test_a_claim_that_has_not_heard_of_the_switch_takes_nothing(fleet, monkeypatch):
    """The defence itself: what a worker believes is checked by the claim's own statement."""
    worker = fleet.worker("v1", "v2")
    async with worker:
        await fleet.insert(1)
        await fleet.settled(1)
        monkeypatch.setattr(worker._conductor.claims, "look_now", lambda: None)  # deaf for the switch
        claims = worker._conductor.claims
        monkeypatch.setattr(claims._lanes, "look_is_due_in_s", lambda _now: 60.0)  # and it does not look
        await fleet.live("v2")
        none = worker._conductor.metrics.claims.labels("none")._value
        before = none.get()
        await fleet.insert(4)
        await eventually(lambda: none.get() > before)
        await asyncio.sleep(0)
        assert fleet.executed == {("v1", "p"): 1}
        monkeypatch.undo()
        claims.look_now()
        await fleet.settled(5)
    assert fleet.executed == {("v1", "p"): 1, ("v2", "p"): 4}


async def test_a_project_may_have_another_version(fleet):
    async with fleet.worker("v1", "v2"):
        await fleet.live("v2", "q")
        await fleet.insert(2)
        await fleet.insert(2, "q")
        await fleet.settled(4)
        await fleet.live(None, "q")
        await fleet.insert(2, "q")
        await fleet.settled(6)
    assert fleet.executed == {("v1", "p"): 2, ("v2", "q"): 2, ("v1", "q"): 2}


async def test_each_version_has_its_own_attempts_and_timeout(make_worker, connection):
    worker = make_worker()
    seen = []

    @worker.handler("k", version="v2", retry=Retry(max_attempts=7), timeout=22)
    @worker.handler("k", version="v1", retry=Retry(max_attempts=2), timeout=11)  # the first
    async def handle(run: Run) -> None:
        seen.append((run.version, run.max_attempts, run.timeout_s))

    async with worker:
        await connection.execute(INSERT, "k", "p", 1)
        await eventually(lambda: len(seen) == 1)
        await connection.execute("SELECT notifyworker.set_version('k', 'v2')")
        await connection.execute(INSERT, "k", "p", 1)
        await eventually(lambda: len(seen) == 2)
    assert seen == [("v1", 2, 11.0), ("v2", 7, 22.0)]


async def test_under_load_each_run_is_executed_once_and_by_a_version_that_was_live(fleet, connection):
    """A switch to and fro: nothing is lost, and after a switch has been committed no claim is made for the other."""
    switches = [("v1", await connection.fetchval("SELECT clock_timestamp()"))]
    async with fleet.worker("v1", "v2", concurrency=20), fleet.worker("v1", concurrency=20):
        for version in ("v2", "v1", "v2"):
            done = sum(fleet.executed.values())
            await fleet.insert(600)  # so that there is work before, during and after each switch, however quick the machine is
            await fleet.settled(done + 200)
            await fleet.live(version)
            switches.append((version, await connection.fetchval("SELECT clock_timestamp()")))
        await fleet.insert(200)
        await fleet.settled(2000)
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.run_history WHERE state = 'completed'") == 2000
    claimed = dict(await connection.fetch("SELECT run_id, started_at FROM notifyworker.run_history"))
    begins = await connection.fetch("SELECT at FROM notifyworker.audit ORDER BY audit_id")
    sure = 0
    for (version, since), until in zip(switches, [*(row["at"] for row in begins), None], strict=True):
        there = [fleet.by[run] for run, at in claimed.items() if at > since and (until is None or at < until)]
        assert set(there) <= {version}
        sure += len(there)
    assert sure > 500
    assert len(fleet.by) == sum(fleet.executed.values()) == 2000


@pytest.mark.parametrize("version", ["", "x" * 101, 5, "a\0"])
def test_a_version_that_can_not_be_is_refused(version):
    with pytest.raises(HandlerError, match="version must be text of 1 to 100 characters"):
        Worker(dsn="postgresql://h/d").handler("k", version=version)(lambda run: None)


def test_a_version_has_one_handler():
    worker = Worker(dsn="postgresql://h/d")
    worker.handler("k", version="v1")(lambda run: None)
    worker.handler("k")(lambda run: None)
    with pytest.raises(HandlerError, match="two handlers for kind 'k'"):
        worker.handler("k", version="v1")(lambda run: None)
