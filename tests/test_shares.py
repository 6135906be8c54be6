"""Whose turn it is: projects share the slots, by weight; and who waits long enough gains a priority."""

import asyncio
import re
import types
from collections import Counter
from pathlib import Path

import aiohttp
import pytest
from servers import eventually
from test_cli import call, refused

from notifyworker import Client, InvalidRun, Run, Worker
from notifyworker.shares import Shares

PAGE = Path(__file__).parents[1] / "docs" / "turns.md"
INSERT = "INSERT INTO notifyworker.runs (kind, project_id, priority) SELECT 'a', $1, $2 FROM generate_series(1, $3)"


class House:
    """A worker; `order` says of which project each run was that it began, `may_end` how many more may end."""

    def __init__(self, worker, connection) -> None:
        self.worker = worker
        self.connection = connection
        self.order: list[str] = []
        self.may_end = asyncio.Semaphore(0)
        worker.handler("a")(self.handle)

    async def handle(self, run: Run) -> None:
        self.order.append(run.project_id)
        await self.may_end.acquire()

    async def insert(self, project: str, number: int = 1, priority: int = 0) -> None:
        await self.connection.execute(INSERT, project, priority, number)

    async def began(self, number: int) -> None:
        await eventually(lambda: len(self.order) >= number)

    def let_end(self, number: int) -> None:
        for _ in range(number):
            self.may_end.release()


@pytest.fixture
def house(make_worker, connection) -> House:
    return House(make_worker(concurrency=10, poll_interval_s=60), connection)


async def test_a_hundred_projects_with_one_run_each_pass_by_a_great_backlog_while_every_slot_is_taken(house):
    await house.insert("great", 5000)
    async with house.worker:
        await house.began(10)
        for n in range(100):
            await house.insert(f"small {n}")
        # Each slot that is freed from now on is theirs, but for those that were given away before they were seen.
        for n in range(12):
            house.let_end(10)
            await house.began(10 * (n + 2))
        counts = Counter(project for project in house.order if project != "great")
        assert len(counts) == 100
        house.let_end(6000)
        await eventually(lambda: not house.connection.is_in_transaction() and len(house.order) == 5100)


async def test_more_projects_than_one_claim_reads_wait_for_no_poll(make_worker, connection):
    executed: list[str] = []
    worker = make_worker(concurrency=2000, poll_interval_s=3600)

    @worker.handler("a")
    async def handle(run: Run) -> None:
        executed.append(run.project_id)

    await connection.execute(
        "INSERT INTO notifyworker.runs (kind, project_id) SELECT 'a', 'project ' || i FROM generate_series(1, 2000) AS i"
    )
    async with worker:
        await eventually(lambda: len(executed) == 2000)
    assert len(set(executed)) == 2000


async def test_slots_are_shared_from_the_first_claim_on(house):
    await house.insert("great", 200)
    await house.insert("other", 200)
    async with house.worker:
        await house.began(10)
        assert Counter(house.order) == {"great": 5, "other": 5}
        house.let_end(400)


@pytest.mark.parametrize("weight", [3.0, 0.5])
async def test_a_share_is_kept_in_the_long_run(house, connection, weight):
    await connection.execute("SELECT notifyworker.set_share('heavy', $1)", weight)
    await house.insert("heavy", 300)
    await house.insert("light", 300)
    async with house.worker:
        for n in range(1, 21):
            await house.began(10 * n)
            house.let_end(10)
        counts = Counter(house.order[:200])
        assert counts["heavy"] / counts["light"] == pytest.approx(weight, rel=0.25)
        house.let_end(600)


async def test_priority_comes_before_shares(house):
    await house.insert("great", 50)
    await house.insert("other", 20, priority=1)
    async with house.worker:
        await house.began(10)
        assert set(house.order) == {"other"}
        house.let_end(100)


@pytest.mark.parametrize("ageing_s", [None, 10])
async def test_who_waits_long_enough_gains_a_priority(make_worker, connection, ageing_s):
    house = House(make_worker(concurrency=1, poll_interval_s=60, priority_ageing_s=ageing_s), connection)
    await house.insert("old")
    await connection.execute("UPDATE notifyworker.runs SET run_at = now() - interval '31 s'")
    for priority in (2, 4):
        await house.insert(f"new {priority}", priority=priority)
    async with house.worker:
        house.let_end(3)
        await house.began(3)
    assert house.order == (["new 4", "new 2", "old"] if ageing_s is None else ["new 4", "old", "new 2"])


def test_nobody_saves_up_while_it_has_nothing_to_do():
    shares = Shares()
    shares.ready({"a": 1.0, "b": 1.0})
    shares.claimed("a", 1000)
    shares.ready({"a": 1.0})
    shares.ready({"a": 1.0, "b": 1.0})
    assert shares.time("a") == shares.time("b")


def test_a_project_with_several_lanes_has_one_share():
    shares = Shares()
    shares.ready({"a": 1.0, "b": 3.0})
    assert shares.split([("a", True), ("a", True), ("b", True), ("c", False)], 100) == [25, 25, 75, 20]


async def test_a_share_is_set_and_shown_by_command_line_client_and_http(dsn, make_worker):
    env = {"NOTIFYWORKER_DSN": dsn}
    (shown,) = (await call("shares", "set", "acme", "3", "--json", env=env)).json()["shares"]
    assert (shown["project_id"], shown["weight"], shown["running"]) == ("acme", 3, 0)
    assert re.search(r"acme +3", (await call("shares", "list", env=env)).out)
    assert "weight" in await refused(2, "shares", "set", "acme", "-1", env=env)
    async with Client(dsn) as client:
        await client.set_share("acme", 1)
        assert await client.shares() == []
        with pytest.raises(InvalidRun, match="weight"):
            await client.set_share("acme", 0)
    worker = Worker(dsn, sidecar=True, port=0)
    worker.handler("a")(print)
    async with worker, aiohttp.ClientSession(str(worker.url)) as http:
        async with http.post("/shares", json={"project_id": "acme", "weight": 2}) as answer:
            assert answer.status == 200
        async with http.get("/shares") as answer:
            assert [share["weight"] for share in (await answer.json())["shares"]] == [2]
        for wrong in ({"project_id": "acme"}, {"weight": 2}, {"project_id": "acme", "weight": 2, "more": 1}):
            async with http.post("/shares", json=wrong) as answer:
                assert answer.status == 400


async def test_the_pages_examples(dsn, connection, monkeypatch):
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    text = PAGE.read_text()
    (sql,) = re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    await connection.execute(sql)
    assert await connection.fetch("SELECT project_id, weight FROM notifyworker.shares") == [("trial", 0.25)]
    (sh,) = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for line in sh.splitlines():
        await call(*line.split()[1:], env={"NOTIFYWORKER_DSN": dsn})
    (python,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    page = types.ModuleType("page")
    exec(compile(python, str(PAGE), "exec"), page.__dict__)
    await page.main()
    assert await connection.fetchval("SELECT weight FROM notifyworker.shares WHERE project_id = 'acme'") == 3
