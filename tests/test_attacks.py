"""Attacks on the worker: each was a real failure once."""

# ruff: noqa: F811 - fixtures of test_faults are asked for by their names

import asyncio
import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import asyncpg
import commands
import pydantic
import pytest
from servers import eventually
from structlog.testing import capture_logs
from test_faults import TESTS, all_run, cluster, ledger, spawn  # noqa: F401 - fixtures
from test_life import insert, run_of, settled

from notifyworker import Client, InvalidRun, Retry, Run, RunConflict, Worker
from notifyworker.database import LOCK_CLASS, GateLocks


async def test_a_run_that_comes_back_after_an_idle_time_does_not_end_its_worker(spawn, connection, ledger):
    worker = await spawn(lease_s=3, heartbeat_interval_s=0.3).started()

    run = await settled(connection, await insert(connection, "come_back"))

    assert (run["state"], run["lease_token"]) == ("completed", 2)
    assert not worker.exited()


async def test_a_row_locked_by_a_stranger_during_one_heartbeat_ends_no_worker(dsn, spawn, connection, tmp_path):
    worker = await spawn(lease_s=6, heartbeat_interval_s=1).started()
    until = tmp_path / "until"
    ids = [await insert(connection, "hold", json.dumps({"until": str(until)})) for _ in range(2)]
    await eventually(lambda: all_run(connection, ids))
    held_for = "SELECT bool_and(now() - started_at > interval '6 s') FROM notifyworker.runs"
    await eventually(lambda: connection.fetchval(held_for))
    renewed = await connection.fetchval("SELECT lease_expires_at FROM notifyworker.runs WHERE run_id = $1", ids[1])

    stranger = await asyncpg.connect(dsn)
    async with stranger.transaction():
        await stranger.execute("SELECT FROM notifyworker.runs WHERE run_id = $1 FOR UPDATE", ids[0])
        later = "SELECT lease_expires_at > $2::timestamptz + interval '2 s' FROM notifyworker.runs WHERE run_id = $1"
        await eventually(lambda: worker.exited() or connection.fetchval(later, ids[1], renewed))
    until.touch()

    assert not worker.exited()
    for run_id in ids:
        assert (await settled(connection, run_id))["attempt"] == 1
    await stranger.close()


async def test_a_worker_that_starts_after_a_long_downtime_of_the_fleet_is_healthy(make_worker, connection):
    await connection.execute("UPDATE notifyworker.reaper SET last_pass_at = now() - interval '1 hour', passes = 1")
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    async with worker:
        await eventually(lambda: connection.fetchval("SELECT passes >= 2 FROM notifyworker.reaper"))
        await settled(connection, await insert(connection, "a"))
        assert worker._conductor.health() == []


async def test_reaping_happens_though_a_stranger_has_held_the_leaders_lock_from_the_beginning(dsn, make_worker, connection):
    stranger = await asyncpg.connect(dsn)
    await stranger.execute("SELECT pg_advisory_lock($1, $2)", LOCK_CLASS, GateLocks.of("notifyworker").leader)
    await connection.execute("UPDATE notifyworker.settings SET value = '0.3' WHERE name = 'reaper_interval_s'")
    worker = make_worker()
    run_id = await insert(connection, "a")
    await connection.execute(
        "UPDATE notifyworker.runs SET state = 'running', attempt = 1, max_attempts = 3, lease_token = 1, lease_owner = 'gone',"
        " lease_expires_at = now(), started_at = now()"
    )

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    async with worker:
        assert (await settled(connection, run_id))["attempt"] == 2
    await stranger.close()


class Picky(pydantic.BaseModel):
    to: str

    @pydantic.field_validator("to")
    @classmethod
    def _known(cls, value: str) -> str:
        return {"a": "b"}[value]  # a KeyError, which pydantic lets through


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


@pytest.mark.parametrize("what", ["payload", "result", "effect"])
async def test_what_raises_around_a_handler_does_not_go_round_for_ever(make_worker, connection, what):
    worker = make_worker()
    calls = 0

    @worker.handler("payload")
    async def payload(run: Run, payload: Picky) -> None: ...

    @worker.handler("result")
    async def result(run: Run) -> object:
        nonlocal calls
        calls += 1
        return Picky  # the class, by mistake

    @worker.handler("effect")
    async def effect(run: Run) -> None:
        nonlocal calls
        calls += 1
        await run.effect("send", print, Odd())

    async with worker:
        run = await settled(connection, await insert(connection, what, '{"to": "x"}', is_shadow=True, max_attempts=1))

    if what == "effect":
        assert (run["state"], calls) == ("completed", 1)
    else:
        assert (run["state"], run["error_code"]) == ("failed", {"payload": "E-RUN-004", "result": "E-RUN-005"}[what])
        assert calls <= 1


async def test_stop_iteration_in_a_plain_handler_fails_the_attempt(make_worker, connection):
    worker = make_worker()

    @worker.handler("a", retry=Retry(max_attempts=1))
    def handle(run: Run) -> object:
        return next(iter([]))

    async with worker:
        run = await settled(connection, await insert(connection, "a"))

    assert (run["state"], run["error_code"]) == ("failed", "E-RUN-001")


async def test_a_stranger_who_may_do_nothing_can_not_end_a_run_by_a_notification(make_worker, connection):
    worker = make_worker()
    go_on, is_cancelled = asyncio.Event(), asyncio.Event()

    @worker.handler("a")
    async def handle(run: Run) -> str:
        try:
            await go_on.wait()
        except asyncio.CancelledError:
            is_cancelled.set()
            raise
        return "done"

    @worker.handler("b")
    async def other(run: Run) -> None: ...

    async with worker:
        run_id = await insert(connection, "a")
        await eventually(lambda: all_run(connection, [run_id]))
        await connection.execute("SELECT pg_notify('notifyworker', $1)", f"cancel:{run_id}")
        await settled(connection, await insert(connection, "b"))  # its notification came after that one
        go_on.set()
        run = await settled(connection, run_id)

    assert run["result"] == '"done"'
    assert not is_cancelled.is_set()


async def test_a_cancelled_run_that_waits_for_a_slot_is_not_executed(make_worker, connection):
    worker = make_worker(concurrency=1, prefetch=1)
    go_on = asyncio.Event()
    executed: list[UUID] = []

    @worker.handler("a")
    async def handle(run: Run) -> None:
        executed.append(run.run_id)
        await go_on.wait()

    async with worker:
        ids = [await insert(connection, "a") for _ in range(2)]
        await eventually(lambda: all_run(connection, ids))
        await connection.execute("SELECT notifyworker.cancel($1)", ids[1])
        third = await insert(connection, "a")
        await eventually(lambda: all_run(connection, [third]))  # its slot is free again
        go_on.set()
        await settled(connection, third)

    assert executed == [ids[0], third]


async def test_two_attempts_at_one_run_in_one_worker_settle_by_the_newer(make_worker, connection):
    await connection.execute("UPDATE notifyworker.settings SET value = '0.2' WHERE name = 'reaper_interval_s'")
    worker = make_worker()
    releases: dict[int, asyncio.Event] = {1: asyncio.Event(), 2: asyncio.Event()}
    began: list[int] = []

    @worker.handler("a")
    async def handle(run: Run) -> int:
        began.append(run.attempt)
        with contextlib.suppress(asyncio.CancelledError):
            await releases[run.attempt].wait()
        return run.attempt

    async with worker:
        run_id = await insert(connection, "a")
        await eventually(lambda: all_run(connection, [run_id]))
        expired = "UPDATE notifyworker.runs SET lease_expires_at = now() - interval '1 s' WHERE attempt = 1 AND state = 'running'"

        async def taken_over() -> bool:
            await connection.execute(expired)  # again, where a heartbeat has renewed it before the reaper came
            return began == [1, 2]

        await eventually(taken_over)
        releases[2].set()
        releases[1].set()
        run = await settled(connection, run_id)

    assert (run["result"], run["attempt"]) == ("2", 2)


@contextlib.asynccontextmanager
async def outage(dsn: str) -> AsyncIterator[None]:
    """Nobody can connect, and whoever was connected is not, but for those who are named test."""
    name = urlsplit(dsn).path.lstrip("/")
    admin = await asyncpg.connect(urlunsplit(urlsplit(dsn)._replace(path="/postgres")))
    await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    ours = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND application_name LIKE 'notifyworker%'"
    await admin.fetch(ours, name)
    try:
        yield
    finally:
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await admin.close()


async def test_a_worker_outlives_an_outage_if_its_handlers_have_ended(dsn, spawn, connection, tmp_path):
    worker = await spawn().started()
    until = tmp_path / "until"
    run_id = await insert(connection, "hold", json.dumps({"until": str(until)}))
    await eventually(lambda: all_run(connection, [run_id]))

    async with outage(dsn):
        until.touch()
        await eventually(lambda: worker.events("settle_failed"))
        failed_at = time.monotonic()
        await eventually(lambda: worker.exited() or time.monotonic() - failed_at > 12)  # above every limit of presence
        assert not worker.exited()

    run = await settled(connection, run_id)
    assert (run["state"], run["attempt"]) == ("completed", 1)


async def test_an_outage_that_is_over_ends_no_worker_that_has_new_work(dsn, spawn, connection, tmp_path):
    worker = await spawn().started()
    until = tmp_path / "until"
    run_id = await insert(connection, "hold", json.dumps({"until": str(until)}))
    await eventually(lambda: all_run(connection, [run_id]))

    async with connection.transaction():
        # So that the worker always holds something, as one does that has much to do.
        await connection.execute("SELECT FROM notifyworker.runs WHERE run_id = $1 FOR UPDATE", run_id)
        async with outage(dsn):
            await eventually(lambda: worker.events("leases_lapsed"))
        lapsed_at = time.monotonic()
        await connection.execute("SELECT 1")
        other = await asyncpg.connect(dsn)
        new = await insert(other, "hold", json.dumps({"until": str(tmp_path / "never")}))
        await eventually(lambda: all_run(other, [new]))
        await eventually(lambda: worker.exited() or time.monotonic() - lapsed_at > 4)
        await other.close()

    assert not worker.exited()


async def test_a_worker_can_live_in_one_loop_after_another(dsn):
    worker = Worker(dsn, poll_interval_s=60, drain_timeout_s=10)

    has_begun = threading.Event()

    @worker.handler("a")
    async def handle(run: Run) -> str:
        has_begun.set()
        await asyncio.sleep(0.3)
        return "done"

    async def lifetime() -> str:
        has_begun.clear()
        conn = await asyncpg.connect(dsn)
        async with worker:
            run_id = await insert(conn, "a")
            await eventually(has_begun.is_set)
        run = await run_of(conn, run_id)
        await conn.close()
        return run["state"]

    # As a host's test-suite does, with a loop a test.
    states = [await asyncio.to_thread(asyncio.run, lifetime()) for _ in range(2)]

    assert states == ["completed", "completed"]


async def test_what_is_silent_behind_a_locked_head_is_found_when_the_leader_arms_again(dsn, make_worker, connection):
    worker = make_worker(wake_coalesce_per_s=20, concurrency=50)

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    stranger = await asyncpg.connect(dsn)
    coalesced = "SELECT mode = 'coalesced' FROM notifyworker.reaper"
    async with worker:
        head = await insert(connection, "a", run_at=await connection.fetchval("SELECT now() + interval '1 s'"))
        async with stranger.transaction():
            await stranger.execute("SELECT FROM notifyworker.runs WHERE run_id = $1 FOR UPDATE", head)
            await eventually(lambda: connection.fetchval("SELECT run_at < now() FROM notifyworker.runs WHERE run_id = $1", head))
            ids: list[UUID] = []

            async def burst() -> bool:
                ids.extend([await insert(connection, "a") for _ in range(30)])
                return await connection.fetchval(coalesced)

            await eventually(burst)
            ids += [await insert(connection, "a") for _ in range(10)]
            for run_id in ids:
                await settled(connection, run_id)
    await stranger.close()


async def test_readyz_is_not_ready_without_a_database_whatever_the_poll(dsn, make_worker, connection):
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    async with worker:
        await settled(connection, await insert(connection, "a"))
        assert worker._conductor.is_ready()
        async with outage(dsn):
            await eventually(lambda: not worker._conductor.is_ready())
        await eventually(worker._conductor.is_ready)


async def starts_and_waits(conn: asyncpg.Connection) -> bool:
    waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'notifyworker start' AND wait_event_type = 'Lock' AND datname = current_database()"
    return await conn.fetchval(waits) == 1


@pytest.mark.parametrize("is_told_to_stop", [True, False])
async def test_a_start_that_has_to_wait_ends_at_a_signal_and_else_with_one_sentence(dsn, spawn, connection, is_told_to_stop):
    stranger = await asyncpg.connect(dsn)
    async with stranger.transaction():
        await stranger.execute("LOCK TABLE notifyworker.settings IN ACCESS EXCLUSIVE MODE")
        worker = spawn()
        await eventually(lambda: starts_and_waits(connection))
        if is_told_to_stop:
            worker.popen.terminate()
        code = await worker.end()
    await stranger.close()

    assert code == (0 if is_told_to_stop else 3), worker.log_file.read_text()
    assert "Traceback" not in worker.log_file.read_text()


async def test_run_can_be_repeated_after_a_stop(dsn, connection):
    worker = Worker(dsn, poll_interval_s=60, sidecar=False)

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    for _ in range(2):
        running = asyncio.create_task(worker.run())
        assert (await settled(connection, await insert(connection, "a")))["state"] == "completed"
        worker.stop()
        assert (await running).how == "drained"


async def cli(*arguments: str, dsn: str) -> tuple[int, str]:
    """Exit code and all that was printed."""
    code, out, err = await commands.output(arguments, cwd=TESTS, env={**os.environ, "NOTIFYWORKER_DSN": dsn})
    return code, (out + err).decode()


@pytest.mark.parametrize(
    "dsn_of_a_user",
    [
        "postgresql://u:hush/hush@127.0.0.1:1/db",
        "postgresql://u:hush#hush@127.0.0.1:1/db",
        "postgresql://[::1:hush/db",
        "host=127.0.0.1 password=hush dbname=db",
        "postgresql://u:hush@127.0.0.1:99999/db",
    ],
)
@pytest.mark.parametrize("command", ["migrate", "dev"])
async def test_a_dsn_that_is_mistyped_shows_no_password_and_no_traceback(command, dsn_of_a_user):
    code, printed = await cli(command, *(["faulty_app:worker", "--no-sidecar"] if command == "dev" else []), dsn=dsn_of_a_user)

    assert code == 2
    assert "hush" not in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("strange", ["runs (x int)", "migrations (x int)"])
async def test_a_schema_that_is_somebody_elses_is_told_in_one_sentence(empty_dsn, strange):
    conn = await asyncpg.connect(empty_dsn)
    await conn.execute(f"CREATE SCHEMA notifyworker; CREATE TABLE notifyworker.{strange}")
    await conn.close()

    code, printed = await cli("migrate", dsn=empty_dsn)

    assert code == 3
    assert "not notifyworker's" in printed
    assert "Traceback" not in printed


async def test_a_removal_that_can_not_be_is_told_in_one_sentence(dsn, connection):
    reader = connection.transaction()
    await reader.start()
    await connection.execute("SELECT FROM notifyworker.run_history")
    in_use, told = await cli("migrate", "--remove", "--yes", dsn=dsn)
    await reader.rollback()
    await connection.execute("DROP ROLE IF EXISTS attacker; CREATE ROLE attacker LOGIN; GRANT notifyworker_operator TO attacker")
    host = urlsplit(dsn).netloc.rpartition("@")[2]
    attackers = urlunsplit(urlsplit(dsn)._replace(netloc=f"attacker@{host}"))
    refused, told_too = await cli("migrate", "--remove", "--yes", dsn=attackers)
    await connection.execute("DROP OWNED BY attacker; DROP ROLE attacker")

    assert (in_use, refused) == (1, 3)
    assert "Traceback" not in told + told_too


@contextlib.asynccontextmanager
async def silent_once_at(port: int, words: bytes) -> AsyncIterator[int]:
    """A way to the server on which the first connection that says these words hears nothing from then on."""
    is_used = False

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_watched: bool) -> None:
        nonlocal is_used
        while data := await reader.read(65536):
            if is_watched and not is_used and words in data:
                is_used = True
                await reader.read(-1)  # silent, and open, until the client gives up
                break
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(
                pass_on(reader, server_writer, is_watched=True), pass_on(server_reader, writer, is_watched=False)
            )
        server_writer.close()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def test_a_server_that_falls_silent_at_the_listen_is_left(cluster):
    async with silent_once_at(cluster.port, b"LISTEN") as port:
        worker = Worker(cluster.dsn.replace(f":{cluster.port}/", f":{port}/"), poll_interval_s=60)

        @worker.handler("a")
        async def handle(run: Run) -> None: ...

        conn = await asyncpg.connect(cluster.dsn)
        async with worker:
            await eventually(lambda: worker._conductor.listener.is_hearing)
            assert (await settled(conn, await insert(conn, "a")))["state"] == "completed"
        await conn.close()


async def test_a_retry_above_a_limit_that_was_lowered_is_a_conflict(dsn, connection):
    async with Client(dsn) as client:
        run_id = await client.enqueue("a", "x" * 1000)
        await client.cancel(run_id)
        await connection.execute("UPDATE notifyworker.settings SET value = '100' WHERE name = 'max_payload_bytes'")
        await connection.execute("SELECT notifyworker.apply_settings()")
        with pytest.raises(RunConflict, match="max_payload_bytes"):
            await client.retry(run_id)
        assert (await client.get(run_id))["state"] == "cancelled"


async def test_a_run_whose_row_is_locked_does_not_hold_up_outcomes_that_come_later(dsn, make_worker, connection):
    worker = make_worker(drain_timeout_s=1)
    go_on = asyncio.Event()

    @worker.handler("held")
    async def held(run: Run) -> None:
        await go_on.wait()

    @worker.handler("free", retry=Retry(base_s=0))
    async def free(run: Run) -> None:
        if run.attempt == 1:
            raise RuntimeError

    stranger = await asyncpg.connect(dsn)
    async with worker:
        run_id = await insert(connection, "held")
        await eventually(lambda: all_run(connection, [run_id]))
        async with stranger.transaction():
            await stranger.execute("SELECT FROM notifyworker.runs WHERE run_id = $1 FOR UPDATE", run_id)
            go_on.set()
            await eventually(lambda: worker._conductor.settler.backlog == 1)
            for _ in range(5):
                assert (await settled(connection, await insert(connection, "free")))["state"] == "completed"
        assert (await settled(connection, run_id))["state"] == "completed"
    await stranger.close()


CUT_THE_GATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'notifyworker gate' AND datname = current_database()"


async def test_a_part_that_ended_by_a_fault_is_told_in_health_inside_of_a_host(make_worker, connection, monkeypatch):
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    def break_down(*_: object) -> None:
        raise ZeroDivisionError

    async with worker:
        await settled(connection, await insert(connection, "a"))
        assert worker._conductor.health() == []
        monkeypatch.setattr(worker._conductor.leader, "_contend", break_down)
        await connection.execute(CUT_THE_GATE)
        await eventually(lambda: any("restart it" in reason for reason in worker._conductor.health()))


async def test_what_makes_a_dsn_unusable_for_a_while_ends_no_part_of_a_worker(make_worker, connection, monkeypatch):
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    async with worker:
        leader = worker._conductor.leader
        await eventually(lambda: leader.mode == "armed")
        monkeypatch.setenv("PGSSLMODE", "nonsense")  # stands for what a DSN refers to and is not there for a moment
        await connection.execute(CUT_THE_GATE)
        await eventually(lambda: leader.mode == "follower")
        monkeypatch.delenv("PGSSLMODE")
        await eventually(lambda: leader.mode == "armed")
        assert worker._conductor.health() == []


async def test_a_stranger_who_holds_a_workers_row_holds_up_no_heartbeat(dsn, make_worker, connection):
    worker = make_worker(heartbeat_interval_s=3, lease_s=15)

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    stranger = await asyncpg.connect(dsn)
    async with worker:
        with capture_logs() as logs:
            async with stranger.transaction():
                await stranger.execute("SELECT FROM notifyworker.workers FOR UPDATE")
                worker._conductor.keeper.announce()
                await eventually(lambda: "presence_not_noted" in {entry["event"] for entry in logs})
        assert "heartbeat_failed" not in {entry["event"] for entry in logs}
    await stranger.close()


async def test_the_client_names_a_filter_that_cannot_be(dsn):
    async with Client(dsn) as client:
        for name, value in (("limit", -1), ("limit", 501), ("kind", "\0"), ("state", "nonsense"), ("before", "x")):
            with pytest.raises(InvalidRun, match=name):
                await client.list(**{name: value})
        with pytest.raises(InvalidRun, match="concurrency_key"):
            await client.enqueue_many("a", [{}], concurrency_key="k" * 501)


async def test_a_setting_that_was_stored_as_text_counts_as_a_number(make_worker, connection):
    await connection.execute("""UPDATE notifyworker.settings SET value = '"42"' WHERE name = 'reaper_interval_s'""")
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    async with worker:
        assert worker._conductor.reaper_interval_s == 42


async def test_a_second_signal_ends_a_worker_whose_loop_is_blocked(spawn, connection):
    worker = await spawn().started()
    run_id = await insert(connection, "block", '{"seconds": 60}')
    await eventually(lambda: all_run(connection, [run_id]))

    worker.popen.terminate()
    worker.popen.terminate()
    with contextlib.suppress(TimeoutError):  # two signals at once may be one
        await worker.end(1)
    worker.popen.terminate()

    assert await worker.end() in {143, -signal.SIGTERM}


async def test_a_strangers_hold_on_the_coalescing_lock_does_not_end_coalescing_for_good(dsn, make_worker, connection):
    worker = make_worker(wake_coalesce_per_s=20, concurrency=50)
    locks = GateLocks.of("notifyworker")

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    async def mode(wanted: str) -> bool:
        return await connection.fetchval("SELECT mode = $1 FROM notifyworker.reaper", wanted)

    async def burst_until_coalesced() -> bool:
        for _ in range(30):
            await insert(connection, "a")
        return await mode("coalesced")

    async with worker:
        await eventually(lambda: mode("armed"))
        stranger = await asyncpg.connect(dsn)
        await stranger.execute("SELECT pg_advisory_lock($1, $2)", LOCK_CLASS, locks.coalesced)
        waits = "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND objid = $1::bigint::oid AND NOT granted"

        async def burst_until_it_waits() -> bool:
            await burst_until_coalesced()
            return await connection.fetchval(waits, locks.coalesced % 2**32)

        await eventually(burst_until_it_waits)
        await eventually(lambda: connection.fetchval(waits.replace("> 0", "= 0"), locks.coalesced % 2**32))  # it gave up
        await stranger.close()

        await eventually(burst_until_coalesced)
        held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = $1::bigint::oid AND mode = 'ExclusiveLock' AND granted"

        async def coalesces_without_m() -> bool:
            return await burst_until_coalesced() and await connection.fetchval(held, locks.silent % 2**32) == 0

        assert await eventually(coalesces_without_m)


async def test_a_claim_whose_answer_was_lost_costs_no_lease_when_nothing_else_is_ready(make_worker, connection):
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    async with worker:
        store = worker._conductor.store
        claim = store.claim

        async def lost(*args: object, **keywords: object) -> object:
            """The answer is lost, and the database can't be reached for a while."""
            nonlocal left
            if left == 0 or (left == 5 and not (await claim(*args, **keywords))):
                return await claim(*args, **keywords)
            left -= 1
            raise ConnectionResetError

        left = 5
        store.claim = lost
        run = await settled(connection, await insert(connection, "a"))

    assert (run["state"], run["attempt"], run["lease_token"]) == ("completed", 1, 2)
    assert "the answer to its claim was lost" in run["errors"]


async def test_a_look_that_had_to_wait_for_a_lock_does_not_put_off_the_next(dsn, make_worker, connection):
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    stranger = await asyncpg.connect(dsn)
    async with worker:
        await eventually(lambda: worker._conductor.listener.is_hearing)
        async with stranger.transaction():
            await stranger.execute("LOCK TABLE notifyworker.runs IN ACCESS EXCLUSIVE MODE")
            await connection.execute("SELECT pg_notify('notifyworker', '')")
            waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND now() - waitstart > interval '0.7 s')"
            await eventually(lambda: connection.fetchval(waits))
        run = await settled(connection, await insert(connection, "a"))

    assert run["state"] == "completed"
    await stranger.close()
