"""A worker that was asked to drain claims nothing more, finishes what it runs, and goes on when that is undone."""

import asyncio
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
import pytest
from chaos.proxy import Proxy
from chaos.wire import Rule
from servers import SURELY_S, eventually
from test_cli import call, refused
from test_page import FORM

from notifyworker import Run


async def test_it_claims_nothing_finishes_what_it_runs_and_goes_on(make_worker: Any, connection: Any) -> None:
    worker = make_worker(concurrency=1, poll_interval_s=0.1, sidecar=True, port=0)
    go_on, began, executed = asyncio.Event(), asyncio.Event(), []

    @worker.handler("k")
    async def handle(run: Run) -> None:
        began.set()
        await go_on.wait()
        executed.append(run.run_id)

    async def insert() -> Any:
        return await connection.fetchval("INSERT INTO notifyworker.runs (kind) VALUES ('k') RETURNING run_id")

    async def says(wanted: str) -> bool:
        return await connection.fetchval("SELECT state FROM notifyworker.workers") == wanted

    async def polls() -> float:
        async with session.get("/metrics") as response:
            lines = (await response.text()).splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith('notifyworker_wakes_total{source="poll"}'))

    async with worker, aiohttp.ClientSession(worker.url) as session:
        first = await insert()
        await asyncio.wait_for(began.wait(), SURELY_S)
        second = await insert()
        owner = await connection.fetchval("SELECT lease_owner FROM notifyworker.workers")
        async with session.post(f"/workers/{quote(owner)}/drain") as response:
            assert (response.status, await response.json()) == (200, {"lease_owner": owner, "drain_asked": True})
        await eventually(lambda: says("draining"))
        go_on.set()
        await eventually(lambda: executed == [first])
        before = await polls()
        await eventually(lambda: _more_than(polls, before + 2))  # it has looked around, and left it
        assert executed == [first]
        assert await connection.fetchval("SELECT state FROM notifyworker.runs WHERE run_id = $1", second) == "pending"
        async with session.get("/readyz") as response:
            assert response.status == 503
        async with session.get("/healthz") as response:
            assert response.status == 200
        page = {"worker": owner, "undo": "1", "sure": "1"}
        async with session.post("/actions/drain", data=urlencode(page), headers=FORM, allow_redirects=False) as response:
            assert response.status == 303
        await eventually(lambda: executed == [first, second])
        await eventually(lambda: says("running"))
        async with session.post("/workers/nobody/drain") as response:
            assert response.status == 404
    audit = await connection.fetchrow("SELECT action, changed, target::text FROM notifyworker.audit")
    assert (audit["action"], audit["changed"]) == ("undo drain", 1)
    assert owner in audit["target"]


async def _more_than(read: Any, least: float) -> bool:
    return await read() > least


async def test_the_command_line_says_who_drains(dsn: str, connection: Any) -> None:
    insert = """INSERT INTO notifyworker.workers (lease_owner, host, pid, version, kinds, concurrency, running, state, shadow,
                    presence, presumed_dead_s, lease_s, heartbeat_interval_s)
                VALUES ($1, $2, 1, '0', '{k}', 1, 0, 'running', 'honour', false, 10, 60, 15)"""
    for owner, host in (("a:1:x", "a"), ("a:2:y", "a"), ("b:1:z", "b")):
        await connection.execute(insert, owner, host)

    async def asked() -> list[str]:
        rows = await connection.fetch("SELECT lease_owner FROM notifyworker.workers WHERE drain_asked ORDER BY 1")
        return [row["lease_owner"] for row in rows]

    assert "asked to drain" in (await call("workers", "drain", "b:1:z", "--dsn", dsn)).out
    assert await asked() == ["b:1:z"]
    assert (await call("workers", "drain", "--host", "a", "--dsn", dsn)).code == 0
    assert await asked() == ["a:1:x", "a:2:y", "b:1:z"]
    assert (await call("workers", "drain", "--host", "a", "--undo", "--dsn", dsn)).code == 0
    assert await asked() == ["b:1:z"]
    assert "there is no worker c" in await refused(1, "workers", "drain", "c", "--dsn", dsn)
    assert "which worker" in await refused(2, "workers", "drain", "--dsn", dsn)


async def _nothing(run: Run) -> None:
    pass


@pytest.mark.parametrize(("undo", "button"), [("", "Drain"), ("1", "Undo the drain")])
async def test_it_is_asked_about_first(make_worker: Any, connection: Any, undo: str, button: str) -> None:
    worker = make_worker(sidecar=True, port=0)
    worker.handler("k")(_nothing)
    async with worker, aiohttp.ClientSession(worker.url) as session:
        owner = await connection.fetchval("SELECT lease_owner FROM notifyworker.workers")
        async with session.post("/actions/drain", data=urlencode({"worker": owner, "undo": undo}), headers=FORM) as response:
            text = await response.text()
        assert button in text
        assert ("only worker that answers" in text) is (undo == "")
        assert not await connection.fetchval("SELECT drain_asked FROM notifyworker.workers")


async def test_a_drain_that_was_asked_before_the_worker_listened_is_known_once_it_does(
    make_proxied: Any, connection: Any, proxy: Proxy
) -> None:
    """Nobody hears the notification, and the next heartbeat is far away."""
    worker = make_proxied(heartbeat_interval_s=30, lease_s=90)
    worker.handler("k")(_nothing)
    rule = await proxy.arm(Rule('LISTEN "notifyworker"', "request", "hold", purpose="listener"))
    async with worker:
        await eventually(rule.fired.is_set)
        owner = await connection.fetchval("SELECT lease_owner FROM notifyworker.workers")
        await connection.execute("SELECT notifyworker.drain($1)", owner)
        await proxy.heal()
        asked = "SELECT state = 'draining' FROM notifyworker.workers"
        await eventually(lambda: connection.fetchval(asked), 20)


async def _nothing(run: Run) -> None: ...
