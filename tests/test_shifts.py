"""A worker that sleeps: it sends nothing, wakes when it was to, and nothing is overlooked on the way."""

import asyncio
import random
import time
from typing import Any

import aiohttp
import pytest
from servers import eventually
from structlog.testing import capture_logs
from test_life import insert, settled, state

from notifyworker import Run, SchemaTooNew

#: Everything that a worker does by the clock it does often here.
BUSY_CLOCKS = {"poll_interval_s": 0.1, "heartbeat_interval_s": 0.2, "lease_s": 6, "presence_ping_s": 0.1}


def with_handler(worker: Any) -> Any:
    @worker.handler("k")
    async def handle(run: Run) -> None:
        pass

    return worker


def sleeper(make: Any, **settings: Any) -> Any:
    return with_handler(make(**{**BUSY_CLOCKS, "idle_after_s": 0.2, "idle_sleep_s": 600, **settings}))


def times(told: list[Any], event: str) -> int:
    return sum(line["event"] == event for line in told)


async def asleep(told: list[Any], proxy: Any) -> int:
    """It sleeps, and all but the connection that listens are gone: how many bytes it has sent until then."""
    await eventually(lambda: times(told, "worker_sleeps"))
    listens = told[[line["event"] for line in told].index("worker_sleeps")]["listens"]
    await eventually(lambda: {pair.purpose for pair in proxy.pairs} == ({"rest"} if listens else set()))
    return proxy.sent_bytes


@pytest.mark.parametrize("listen", [True, False])
async def test_an_idle_worker_sends_nothing_for_as_long_as_it_was_asked(make_proxied, proxy, connection, listen):
    with capture_logs() as told:
        async with sleeper(make_proxied, idle_sleep_s=1.5, listen=listen):
            since = time.monotonic()
            sent = await asleep(told, proxy)
            seen = set()
            while True:
                now = proxy.sent_bytes
                if times(told, "worker_wakes"):
                    break
                seen.add(now)
                await asyncio.sleep(0.02)
            assert seen == {sent}
            assert time.monotonic() - since >= 1.5
            await settled(connection, await insert(connection, "k"))
            assert proxy.sent_bytes > sent


@pytest.mark.listens
async def test_an_insert_wakes_it_and_its_sidecar_answers_all_the_time(make_worker, connection):
    with capture_logs() as told:
        worker = sleeper(make_worker, sidecar=True, port=0)
        async with worker, aiohttp.ClientSession() as client:
            url = worker.url
            await eventually(lambda: times(told, "worker_sleeps"))
            async with client.get(f"{url}/healthz") as answer:
                assert await answer.json() == {
                    "status": "ok", "reasons": ["asleep, as idle_sleep_s asks for: runs may wait until it ends"]
                }  # fmt: skip
            async with client.get(f"{url}/readyz") as answer:
                assert answer.status == 200
            run = await settled(connection, await insert(connection, "k"))
            assert (run["state"], run["attempt"]) == ("completed", 1)
            await eventually(lambda: times(told, "worker_sleeps") == 2)
            await settled(connection, await insert(connection, "k"))
            async with client.get(f"{url}/metrics") as answer:  # through all shifts
                assert 'notifyworker_runs_claimed_total{kind="k"} 2.0' in await answer.text()
            assert worker.url == url
            await eventually(lambda: times(told, "worker_sleeps") == 3)
    assert times(told, "worker_stopped") == 3
    assert [line for line in told if line["log_level"] not in {"debug", "info"}] == []


@pytest.mark.listens
async def test_nobody_wakes_a_server_that_ended_the_session(make_proxied, proxy, connection):
    with capture_logs() as told:
        async with sleeper(make_proxied):
            sent = await asleep(told, proxy)
            await proxy.cut("rest")
            await eventually(lambda: not proxy.pairs)
            run_id = await insert(connection, "k")
            with pytest.raises(TimeoutError):
                await settled(connection, run_id, 1.0)
            assert (times(told, "worker_wakes"), proxy.sent_bytes) == (0, sent)
    assert await state(connection, run_id) == "pending"


@pytest.mark.listens
async def test_it_gets_up_however_long_the_server_takes_to_be_there(make_proxied, proxy, connection):
    with capture_logs() as told:
        async with sleeper(make_proxied):
            await asleep(told, proxy)
            server, proxy.server = proxy.server, 1
            run_id = await insert(connection, "k")
            await eventually(lambda: times(told, "wake_failed") >= 2)
            proxy.server = server
            assert (await settled(connection, run_id))["state"] == "completed"


@pytest.mark.listens
async def test_what_waiting_does_not_mend_ends_it(make_worker, connection):
    with capture_logs() as told:
        working = asyncio.create_task(sleeper(make_worker, sidecar=False).run())
        await eventually(lambda: times(told, "worker_sleeps"))
        await connection.execute("INSERT INTO notifyworker.migrations (version, name) VALUES (9999, 'tomorrow')")
        await insert(connection, "k")
        with pytest.raises(SchemaTooNew):
            await working


async def test_it_sleeps_no_longer_than_until_what_is_due_and_not_while_something_runs(make_worker, connection):
    async def quiet_s() -> float:
        return await worker._shifts._quiet_s(connection)

    worker = sleeper(make_worker, idle_after_s=300)
    over = asyncio.Event()
    async with worker:
        assert await quiet_s() == 600
        later = await insert(connection, "k", run_at=await connection.fetchval("SELECT now() + interval '500 seconds'"))
        assert 300 < await quiet_s() <= 500
        await connection.execute("UPDATE notifyworker.runs SET run_at = now() + interval '200 seconds' WHERE run_id = $1", later)
        assert await quiet_s() == 0  # that is not worth it
        await connection.execute("SELECT notifyworker.cancel($1)", later)
        assert await quiet_s() == 600

        other = make_worker()

        @other.handler("other")
        async def hold(run: Run) -> None:
            await over.wait()

        async with other:
            run_id = await insert(connection, "other")
            await eventually(lambda: _is(connection, run_id, "running"))
            assert await quiet_s() == 0  # who notices, if that one dies?
            over.set()
            await settled(connection, run_id)
        assert await quiet_s() == 600


async def _is(connection: Any, run_id: Any, wanted: str) -> bool:
    return await state(connection, run_id) == wanted


@pytest.mark.listens
async def test_nothing_is_overlooked_while_it_falls_asleep(make_worker, connection):
    """Runs come at any moment of it, and none waits for the end of the sleep, nor is one interrupted."""
    with capture_logs() as told:
        async with sleeper(make_worker, idle_after_s=0.01):
            for _ in range(15):
                run_id = await insert(connection, "k")
                assert (await settled(connection, run_id))["attempt"] == 1
                await asyncio.sleep(random.uniform(0, 0.08))
    assert times(told, "worker_sleeps") > 0


async def test_asked_to_drain_it_stays_as_it_is(make_worker, connection):
    worker = sleeper(make_worker, idle_after_s=300)
    async with worker:
        await connection.execute("SELECT notifyworker.drain(lease_owner) FROM notifyworker.workers")
        await eventually(lambda: worker._conductor.claims.is_held)
        assert worker._conductor.idle_s() == 0


async def test_what_has_just_begun_is_not_interrupted(make_worker, connection):
    worker = make_worker(idle_after_s=300, idle_sleep_s=600)
    began, over = asyncio.Event(), asyncio.Event()

    @worker.handler("k")
    async def hold(run: Run) -> None:
        began.set()
        await over.wait()

    async with worker:
        run_id = await insert(connection, "k")
        await began.wait()
        await worker._shifts._rest(connection)  # as when it began after the look
        assert not worker._shifts.is_asleep
        over.set()
        assert (await settled(connection, run_id))["errors"] == "[]"


async def test_what_comes_at_the_last_moment_and_is_not_heard_is_seen(make_worker, connection):
    worker = sleeper(make_worker, listen=False, idle_after_s=1)
    inserted: list[Any] = []
    async with worker:
        drain = worker._conductor.drain

        async def late(*arguments: Any) -> bool:
            inserted.append(await insert(connection, "k"))  # it claims no more: as if given back by a claim on its way
            return await drain(*arguments)

        worker._conductor.drain = late
        await eventually(lambda: inserted)
        assert (await settled(connection, inserted[0]))["state"] == "completed"
