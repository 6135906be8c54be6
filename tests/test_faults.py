"""Whole processes and servers that are hurt: nothing is lost, and nothing is written twice."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from servers import STARTED_S, SURELY_S, Cluster, eventually
from structlog.testing import capture_logs
from test_life import insert, is_empty, run_of, settled, state

from notifyworker import Run, Worker
from notifyworker.migrate import migrate

TESTS = Path(__file__).parent


class Process:
    """A worker process from the command line."""

    def __init__(self, dsn: str, ledger: Path, log: Path, settings: dict[str, Any]) -> None:
        environment = {"NOTIFYWORKER_DSN": dsn, "TEST_LEDGER": str(ledger), "NOTIFYWORKER_LOG_FORMAT": "json"}
        environment |= {
            f"NOTIFYWORKER_{k.upper()}": str(v) for k, v in {"poll_interval_s": 60, "sidecar": "false", **settings}.items()
        }
        self.log_file = log
        with log.open("w") as file:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "notifyworker", "worker", "faulty_app:worker"],
                cwd=TESTS, env={**os.environ, **environment}, stdout=file, stderr=file,
            )  # fmt: skip

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log_file.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    async def started(self) -> "Process":
        await eventually(lambda: self.events("worker_started") or self.exited(), STARTED_S)
        assert self.popen.poll() is None, self.log_file.read_text()
        return self

    def exited(self) -> bool:
        return self.popen.poll() is not None

    async def end(self, timeout_s: float = SURELY_S) -> int:
        await eventually(self.exited, timeout_s)
        return self.popen.returncode


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger"
    path.touch()
    return path


@pytest.fixture
def spawn(dsn: str, tmp_path: Path, ledger: Path) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def start(**settings: Any) -> Process:
        process = Process(settings.pop("dsn", dsn), ledger, tmp_path / f"log{len(processes)}", settings)
        processes.append(process)
        return process

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.popen.send_signal(signal.SIGCONT)
            process.popen.kill()
        process.popen.wait(SURELY_S)


def starts(ledger: Path) -> list[list[str]]:
    return [line.split() for line in ledger.read_text().splitlines() if line.startswith("start")]


async def all_run(conn: asyncpg.Connection, ids: list[UUID], owner_of: Process | None = None) -> bool:
    query = "SELECT count(*) FROM notifyworker.runs WHERE run_id = ANY ($1) AND state = 'running' AND ($2::text IS NULL OR lease_owner LIKE $2)"
    pattern = f"%:{owner_of.popen.pid}:%" if owner_of else None
    return await conn.fetchval(query, ids, pattern) == len(ids)


async def test_a_killed_workers_runs_are_started_elsewhere_within_15_s_at_default_settings(spawn, connection, ledger, tmp_path):
    victim = await spawn().started()
    ids = [await insert(connection, "hold", json.dumps({"until": str(tmp_path / "never")})) for _ in range(10)]
    await eventually(lambda: all_run(connection, ids))
    other = await spawn().started()

    victim.popen.kill()
    killed_at = time.monotonic()
    await eventually(lambda: len(starts(ledger)) == 20)
    took_s = time.monotonic() - killed_at

    for run_id in ids:
        run = await settled(connection, run_id)
        assert (run["state"], run["result"], run["attempt"]) == ("completed", f'"{other.popen.pid}"', 2)
        assert '"E-RUN-002"' in run["errors"]
    assert took_s < 15
    reasons = await connection.fetch("SELECT DISTINCT reason FROM notifyworker.reaps")
    assert [r["reason"] for r in reasons] == ["presumed_dead"]


async def test_a_killed_leader_is_followed_at_once(spawn, connection):
    leader = await spawn().started()
    await eventually(lambda: leader.events("wake_mode"))
    await spawn().started()
    leader.popen.kill()

    run = await settled(connection, await insert(connection, "noop"))

    assert run["started_at"] - run["created_at"] < (await connection.fetchval("SELECT interval '5 s'"))


async def test_a_frozen_worker_ends_itself_when_it_wakes(spawn, connection, ledger, tmp_path):
    short = {"lease_s": 3, "heartbeat_interval_s": 0.3}
    await connection.execute("UPDATE notifyworker.settings SET value = '0.5' WHERE name = 'reaper_interval_s'")
    zombie = await spawn(**short).started()
    until = tmp_path / "until"
    run_id = await insert(connection, "hold", json.dumps({"until": str(until)}))
    await eventually(lambda: all_run(connection, [run_id]))
    other = await spawn(**short).started()

    zombie.popen.send_signal(signal.SIGSTOP)
    assert await freed(connection, zombie)
    run = await settled(connection, run_id)
    until.touch()
    zombie.popen.send_signal(signal.SIGCONT)

    # The switch dumps threads that run meanwhile, and may fall over their frames: it ends the process all the same.
    assert await zombie.end() in {1, -signal.SIGSEGV}
    assert (run["result"], (await run_of(connection, run_id))["result"]) == (f'"{other.popen.pid}"',) * 2


async def freed(conn: asyncpg.Connection, frozen: Process) -> bool:
    """End the frozen worker's sessions if it leads: a frozen leader's locks would outlive it."""
    await conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'notifyworker gate'")
    return frozen.popen.poll() is None


async def test_a_frozen_worker_that_may_not_end_itself_is_refused(spawn, connection, tmp_path):
    short = {"lease_s": 3, "heartbeat_interval_s": 0.3, "on_lapse": "log"}
    await connection.execute("UPDATE notifyworker.settings SET value = '0.5' WHERE name = 'reaper_interval_s'")
    zombie = await spawn(**short).started()
    until = tmp_path / "until"
    run_id = await insert(connection, "hold", json.dumps({"until": str(until)}))
    await eventually(lambda: all_run(connection, [run_id]))
    other = await spawn(**short).started()

    zombie.popen.send_signal(signal.SIGSTOP)
    assert await freed(connection, zombie)
    await settled(connection, run_id)
    until.touch()
    zombie.popen.send_signal(signal.SIGCONT)

    await eventually(lambda: zombie.events("outcome_refused") or zombie.events("lease_lost"))
    assert (await run_of(connection, run_id))["result"] == f'"{other.popen.pid}"'
    assert zombie.popen.poll() is None


async def test_a_handler_that_blocks_the_loop_for_three_leases_keeps_its_run(spawn, connection, ledger):
    worker = await spawn(lease_s=3, heartbeat_interval_s=0.3).started()
    await connection.execute("UPDATE notifyworker.settings SET value = '0.3' WHERE name = 'reaper_interval_s'")
    await spawn(lease_s=3, heartbeat_interval_s=0.3, kinds="noop").started()

    run = await settled(connection, await insert(connection, "block", '{"seconds": 9.5}'))

    assert (run["state"], run["attempt"], run["result"]) == ("completed", 1, f'"{worker.popen.pid}"')
    assert len(starts(ledger)) == 1


async def test_a_stalled_worker_is_told_with_its_stack_and_loses_its_runs_at_the_limit(spawn, connection):
    short = {"lease_s": 3, "heartbeat_interval_s": 0.3, "stall_limit_s": 0.5, "on_lapse": "log"}
    await connection.execute("UPDATE notifyworker.settings SET value = '0.3' WHERE name = 'reaper_interval_s'")
    stalled = await spawn(**short).started()
    run_id = await insert(connection, "block", '{"seconds": 90}')  # until it is killed, however late the other starts
    await eventually(lambda: all_run(connection, [run_id]))
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'notifyworker gate'"
    )
    other = await spawn(**{**short, "stall_limit_s": 30}).started()

    run = await settled(connection, run_id)

    assert (run["result"], run["attempt"]) == (f'"{other.popen.pid}"', 2)
    # A busy machine may let the loop stand still as well: that is told with another stack.
    assert ["in block" in event["stack"] for event in stalled.events("event_loop_stalled")].count(True) == 1
    assert stalled.events("renewals_stopped")


async def test_a_call_that_holds_the_gil_past_the_lease_ends_the_process_with_the_guilty_line(spawn, connection):
    short = {"lease_s": 3, "heartbeat_interval_s": 0.3}
    await connection.execute("UPDATE notifyworker.settings SET value = '0.3' WHERE name = 'reaper_interval_s'")
    await spawn(**short, kinds="noop").started()
    first, second = await spawn(**short).started(), await spawn(**short).started()

    run = await settled(connection, await insert(connection, "gil", '{"seconds": 30}'))

    assert (run["state"], run["error_code"], run["attempt"]) == ("failed", "E-RUN-002", 2)
    assert [await p.end() for p in (first, second)] == [1, 1]
    assert "in gil" in first.log_file.read_text()


async def test_a_run_that_kills_its_process_ends_as_failed(spawn, connection):
    await spawn(kinds="noop", presumed_dead_s=7, presence_ping_s=0.5).started()
    for _ in range(2):
        await spawn(presumed_dead_s=7, presence_ping_s=0.5).started()

    run = await settled(connection, await insert(connection, "die"), 40)

    assert (run["state"], run["error_code"], run["attempt"]) == ("failed", "E-RUN-002", 2)


async def test_ten_thousand_runs_by_four_processes_are_settled_exactly_once(dsn, spawn, connection, ledger):
    async def produce() -> None:
        conn = await asyncpg.connect(dsn)
        for _ in range(50):
            await conn.execute("INSERT INTO notifyworker.runs (kind) SELECT 'noop' FROM generate_series(1, 25)")
        await conn.close()

    for process in [spawn(concurrency=25) for _ in range(4)]:
        await process.started()
    await asyncio.gather(*(produce() for _ in range(8)))
    await eventually(lambda: is_empty(connection), 90)

    counts = Counter(line[1] for line in starts(ledger))
    assert len(counts) == 10_000
    assert set(counts.values()) == {1}
    settles = "SELECT count(*), count(DISTINCT run_id) FROM notifyworker.run_history WHERE state = 'completed'"
    assert tuple(await connection.fetchrow(settles)) == (10_000, 10_000)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster() as cluster:
        await migrate(cluster.dsn, "notifyworker")
        yield cluster


async def until_it_answers(dsn: str) -> asyncpg.Connection:
    async def attempt() -> asyncpg.Connection | None:
        with contextlib.suppress(OSError, asyncpg.PostgresError):
            return await asyncpg.connect(dsn)
        return None

    return await eventually(attempt)


@pytest.mark.parametrize("mode", ["immediate", "fast"])
async def test_a_restart_of_the_server_during_work_loses_nothing(cluster, mode):
    worker = Worker(cluster.dsn, poll_interval_s=60, concurrency=20)
    counts: Counter[UUID] = Counter()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        counts[run.run_id] += 1
        await asyncio.sleep(0.01)

    conn = await asyncpg.connect(cluster.dsn)
    async with worker:
        for _ in range(3):
            await conn.execute("INSERT INTO notifyworker.runs (kind) SELECT 'a' FROM generate_series(1, 1000)")
            seen = len(counts)
            await eventually(lambda seen=seen: len(counts) > seen + 100)
            await cluster.restart(mode)
            conn.terminate()
            conn = await until_it_answers(cluster.dsn)
        await eventually(lambda: is_empty(conn), 60)
        await eventually(lambda: worker._conductor.health() == [])
        assert (await settled(conn, await insert(conn, "a")))["state"] == "completed"

    settles = "SELECT count(*), count(DISTINCT run_id) FROM notifyworker.run_history WHERE state = 'completed'"
    assert tuple(await conn.fetchrow(settles)) == (3001, 3001)
    assert await conn.fetchval("SELECT count(*) FROM notifyworker.reaps") == 0
    await conn.close()


async def test_sessions_ended_again_and_again_take_no_run_from_a_live_worker(dsn, make_worker, connection):
    worker = make_worker(presumed_dead_s=7, presence_ping_s=0.5)
    go_on = asyncio.Event()
    counts: Counter[UUID] = Counter()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        counts[run.run_id] += 1
        await go_on.wait()

    async with worker:
        ids = [await insert(connection, "a") for _ in range(5)]
        await eventually(lambda: all_run(connection, ids))
        for _ in range(10):
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            heartbeat = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            await eventually(lambda query=heartbeat: connection.fetchval(query))
        go_on.set()
        for run_id in ids:
            assert (await settled(connection, run_id))["attempt"] == 1

    assert set(counts.values()) == {1}


async def test_a_stranger_who_holds_one_row_holds_up_that_run_alone(dsn, make_worker, connection):
    worker = make_worker()
    go_on = asyncio.Event()

    @worker.handler("a")
    async def handle(run: Run) -> None:
        await go_on.wait()

    stranger = await asyncpg.connect(dsn)
    async with worker:
        ids = [await insert(connection, "a") for _ in range(5)]
        await eventually(lambda: all_run(connection, ids))
        transaction = stranger.transaction()
        await transaction.start()
        await stranger.execute("SELECT FROM notifyworker.runs WHERE run_id = $1 FOR UPDATE", ids[0])
        go_on.set()
        for run_id in ids[1:]:
            assert (await settled(connection, run_id))["state"] == "completed"
        assert await state(connection, ids[0]) == "running"
        await transaction.rollback()
        assert (await settled(connection, ids[0]))["state"] == "completed"
    await stranger.close()


async def test_an_exclusive_lock_on_the_table_is_waited_out(dsn, make_worker, connection):
    worker = make_worker()

    @worker.handler("a")
    async def handle(run: Run) -> None: ...

    stranger = await asyncpg.connect(dsn)
    async with worker:
        await settled(connection, await insert(connection, "a"))
        run_id = await insert(connection, "a", run_at=await connection.fetchval("SELECT now() + interval '200 ms'"))
        async with stranger.transaction():
            await stranger.execute("LOCK TABLE notifyworker.runs IN ACCESS EXCLUSIVE MODE")
            await eventually(lambda: worker._conductor.health() != [])
            assert "lock timeout" in worker._conductor.health()[0]
        assert (await settled(connection, run_id))["state"] == "completed"
        await eventually(lambda: worker._conductor.health() == [])
    await stranger.close()


async def test_after_a_claim_without_an_answer_only_what_nobody_knows_of_is_given_back(make_worker, connection):
    worker = make_worker(concurrency=20)

    @worker.handler("a")
    async def handle(run: Run) -> int:
        return run.attempt

    async with worker:
        conductor = worker._conductor
        await settled(connection, await insert(connection, "a"))
        conductor.claims._doubt_until = float("inf")  # as after an answer that did not come
        with capture_logs() as logs:
            await connection.execute("INSERT INTO notifyworker.runs (kind) SELECT 'a' FROM generate_series(1, 3000)")
            await eventually(lambda: is_empty(connection))
        assert not [entry for entry in logs if entry["event"] in {"orphan_given_back", "outcome_refused"}]

        orphan = await insert(connection, "a", run_at=await connection.fetchval("SELECT now() + interval '1 hour'"))
        await connection.execute(
            "UPDATE notifyworker.runs SET state = 'running', attempt = 1, max_attempts = 3, lease_token = 1, lease_owner = $1, run_at = now(),"
            " started_at = now(), lease_expires_at = now() + interval '1 min' WHERE run_id = $2",
            conductor.lease_owner, orphan,
        )  # fmt: skip
        await settled(connection, await insert(connection, "a"))
        run = await settled(connection, orphan)

    assert (run["state"], run["attempt"], run["lease_token"]) == ("completed", 1, 2)
