"""Handlers in processes: they compute, hang, grow and die, and cost nobody but their own run anything."""

import asyncio
import ctypes
import importlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import process_app
import psutil
import pytest
import structlog
from servers import STARTED_S, eventually
from test_life import insert, run_of, settled

from notifyworker import HandlerError, Retry, Run, Worker

SPAWNED_S = STARTED_S  # an interpreter is started, on a machine that does other things as well


def children() -> list[psutil.Process]:
    """Processes of ours that execute handlers, zombies too; multiprocessing's own helper is none."""
    found = [p for p in psutil.Process().children() if "spawn_main" in " ".join(_command(p))]
    return [*found, *(p for p in psutil.Process().children() if p.status() == psutil.STATUS_ZOMBIE)]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


@pytest.fixture(autouse=True)
def nothing_is_left(no_leaks):
    before = set(children())
    yield
    assert set(children()) - before == set()


async def test_it_is_executed_in_a_process_that_is_kept(make_worker, connection):
    worker = make_worker()
    worker.handler("sum", executor="process")(process_app.compute)
    async with worker:
        first = await settled(connection, await insert(connection, "sum", '{"up_to": 4}'), SPAWNED_S)
        second = await settled(connection, await insert(connection, "sum", '{"up_to": 5}'), SPAWNED_S)

    first, second = json.loads(first["result"]), json.loads(second["result"])
    assert (first["sum"], second["sum"]) == (6, 10)
    assert first["pid"] == second["pid"] != os.getpid()


async def test_it_starts_children_with_its_completion(make_worker, connection):
    worker = make_worker()
    worker.handler("parent", executor="process", retry=Retry(max_attempts=2, base_s=0.01))(process_app.parent)
    worker.handler("last")(_nothing)
    async with worker:
        run = await settled(connection, await insert(connection, "parent", '{"fails": 1}'), SPAWNED_S)
        rows = await connection.fetch("SELECT * FROM notifyworker.all_runs WHERE kind = 'child' ORDER BY run_id")
        assert run["state"] == "completed", run["errors"]
        one, other, *refused, last = json.loads(run["result"])
        assert [str(row["run_id"]) for row in rows[:2]] == [one, other]  # of the attempt that was completed alone
        assert [(json.loads(row["payload"]), row["priority"]) for row in rows] == [({"up_to": 0}, 0), ({"up_to": 1}, 1), ({}, 0)]
        assert refused == ["kind", "payload", "color"]
        await connection.execute("SELECT notifyworker.cancel($1)", rows[2]["run_id"])
        assert json.loads((await settled(connection, last))["payload"]) == {"of": 1}


async def _nothing(run: Run) -> None: ...


async def test_there_are_no_more_processes_than_asked_for(make_worker, connection):
    worker = make_worker(processes=2, concurrency=6)
    worker.handler("sum", executor="process", timeout=SPAWNED_S)(process_app.compute)
    async with worker:
        ids = [await insert(connection, "sum", '{"up_to": 5000000}') for _ in range(6)]
        runs = [await settled(connection, run_id, SPAWNED_S) for run_id in ids]
        assert len(children()) <= 2

    assert {run["state"] for run in runs} == {"completed"}
    assert 1 <= len({json.loads(run["result"])["pid"] for run in runs}) <= 2


async def test_waiting_for_a_process_counts_for_no_timeout(make_worker, connection, tmp_path):
    worker = make_worker(processes=1)
    worker.handler("spin", executor="process")(process_app.spin)
    worker.handler("sum", executor="process", timeout=3, retry=Retry(max_attempts=1))(process_app.compute)
    async with worker:
        payload = {"begun": str(tmp_path / "begun"), "saw": str(tmp_path / "saw")}
        blocker = await insert(connection, "spin", json.dumps(payload))
        await eventually((tmp_path / "begun").exists, SPAWNED_S)
        waiting = await insert(connection, "sum", '{"up_to": 2}')
        over = "SELECT now() - started_at > interval '3.5 s' FROM notifyworker.runs WHERE run_id = $1"
        await eventually(lambda: connection.fetchval(over, waiting))
        await connection.execute("SELECT notifyworker.cancel($1)", blocker)
        assert (await settled(connection, waiting, SPAWNED_S))["state"] == "completed"


async def test_progress_and_logs_come_over(make_worker, connection):
    worker = make_worker()
    worker.handler("show", executor="process")(process_app.show)
    with structlog.testing.capture_logs() as logs:
        async with worker:
            run = await settled(connection, await insert(connection, "show"), SPAWNED_S)

    assert (run["state"], run["progress"]) == ("completed", '{"done": 2}')
    (line,) = [entry for entry in logs if entry["event"] == "half_way"]
    assert (line["log_level"], line["percent"], line["run_id"]) == ("warning", 50, str(run["run_id"]))


@pytest.mark.parametrize("handler", [process_app.spin, process_app.nap])
async def test_a_cancel_is_heard_by_a_handler_that_computes_or_waits(make_worker, connection, tmp_path, handler):
    worker = make_worker()
    worker.handler("spin", executor="process")(handler)
    payload = {"begun": str(tmp_path / "begun"), "saw": str(tmp_path / "saw")}
    async with worker:
        run_id = await insert(connection, "spin", json.dumps(payload))
        await eventually((tmp_path / "begun").exists, SPAWNED_S)
        await connection.execute("SELECT notifyworker.cancel($1)", run_id)
        await eventually((tmp_path / "saw").exists)


async def test_one_that_hears_nothing_is_killed_at_its_timeout_with_what_it_has_started(make_worker, connection, tmp_path):
    worker = make_worker()
    worker.handler("hang", executor="process", timeout=3, retry=Retry(max_attempts=1))(process_app.hang)  # it has to begin
    begun = tmp_path / "begun"
    async with worker:
        run_id = await insert(connection, "hang", json.dumps({"begun": str(begun)}))
        run = await settled(connection, run_id, SPAWNED_S)
        pids = [int(pid) for pid in begun.read_text().split()]
        await eventually(lambda: not any(_is_alive(pid) for pid in pids))
        assert worker.lingering == 0

    assert (run["state"], run["error_code"]) == ("failed", "E-RUN-003")


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_heartbeats_go_on_and_a_shutdown_gives_it_back(make_worker, connection, tmp_path):
    worker = make_worker(heartbeat_interval_s=0.2, lease_s=6, drain_timeout_s=0)
    worker.handler("hang", executor="process")(process_app.hang)
    begun = tmp_path / "begun"
    async with worker:
        run_id = await insert(connection, "hang", json.dumps({"begun": str(begun)}))
        await eventually(begun.exists, SPAWNED_S)
        renewed = "SELECT lease_expires_at - started_at > interval '7 s' FROM notifyworker.runs WHERE run_id = $1"
        await eventually(lambda: connection.fetchval(renewed, run_id))

    run = await run_of(connection, run_id)
    assert (run["state"], run["attempt"]) == ("pending", 0)
    assert not any(_is_alive(int(pid)) for pid in begun.read_text().split()[:1])


@pytest.mark.parametrize(
    ("by", "told"),
    [
        ("exit", "HandlerProcessEnded: the handler's process ended with exit code 3"),
        ("segfault", "HandlerProcessEnded: the handler's process was killed by SIGSEGV"),
        ("kill", "HandlerProcessEnded: the handler's process was killed by SIGKILL: out of memory?"),
        ("sys", "SystemExit: 5"),
    ],
)
async def test_one_that_dies_costs_its_own_run_an_attempt(make_worker, connection, by, told):
    worker = make_worker()
    worker.handler("die", executor="process", retry=Retry(max_attempts=1))(process_app.die)
    worker.handler("sum", executor="process")(process_app.compute)
    async with worker:
        died, other = await insert(connection, "die", json.dumps({"by": by})), await insert(connection, "sum", '{"up_to": 3}')
        run, other = await settled(connection, died, SPAWNED_S), await settled(connection, other, SPAWNED_S)

    assert (run["state"], run["error_code"]) == ("failed", "E-RUN-001")
    assert json.loads(run["errors"])[0]["message"] == told
    assert other["state"] == "completed"


async def test_one_that_takes_too_much_memory_is_killed(make_worker, connection):
    worker = make_worker(concurrency=1)
    limited = {"executor": "process", "memory_limit_bytes": 200 * 1024 * 1024, "retry": Retry(max_attempts=1)}
    worker.handler("grow", **limited)(process_app.grow)
    async with worker:
        fits = await settled(connection, await insert(connection, "grow", '{"mib": 50}'), SPAWNED_S)
        too_much = await insert(connection, "grow", '{"mib": 300, "seconds": 60}')
        killed = await settled(connection, too_much, SPAWNED_S)
        again = await settled(connection, await insert(connection, "grow", '{"mib": 50}'), SPAWNED_S)

    assert (fits["state"], again["state"], killed["state"]) == ("completed", "completed", "failed")
    assert "MemoryError: the handler's process was killed: it took" in killed["errors"]
    assert "memory_limit_bytes is 209715200" in killed["errors"]


async def test_wishes_and_rules_are_those_of_any_handler(make_worker, connection):
    worker = make_worker()
    delays = {process_app.Busy: lambda _attempt, error: error.seconds, ValueError: 0.02}
    worker.handler("wish", executor="process", retry=Retry(max_attempts=2, delay=3600, rules=delays))(process_app.wish)
    runs = {}
    async with worker:
        for what in ("cancel", "fail", "snooze", "busy", "local"):
            run_id = await insert(connection, "wish", json.dumps({"for": what}))
            runs[what] = await settled(connection, run_id, SPAWNED_S)
        await insert(connection, "wish", '{"for": "pause"}')
        await eventually(lambda: connection.fetchval("SELECT reason = '429' FROM notifyworker.pauses WHERE kind = 'wish'"))

    assert {what: run["state"] for what, run in runs.items()} == {
        "cancel": "cancelled", "fail": "failed", "snooze": "completed", "busy": "completed", "local": "completed",
    }  # fmt: skip
    assert runs["fail"]["error_code"] == "E-RUN-006"
    assert {what: run["attempt"] for what, run in runs.items() if run["state"] == "completed"} == {
        "snooze": 1, "busy": 2, "local": 2,
    }  # fmt: skip
    (error,) = json.loads(runs["busy"]["errors"])
    assert error["message"] == "Busy: too many"
    assert 'raise Busy(0.01, "too many")' in error["traceback"]
    assert "notifyworker/child.py" not in error["traceback"]


async def test_payloads_results_and_effects_are_those_of_any_handler(make_worker, connection):
    worker = make_worker()
    worker.handler("sum", executor="process")(process_app.compute)
    worker.handler("nan", executor="process")(process_app.unstorable)
    worker.handler("mail", executor="process")(process_app.effects)
    shadow = "INSERT INTO notifyworker.runs (kind, is_shadow) VALUES ('mail', true) RETURNING run_id"
    async with worker:
        unfit = await settled(connection, await insert(connection, "sum", '{"up_to": "x"}'), SPAWNED_S)
        nan = await settled(connection, await insert(connection, "nan"), SPAWNED_S)
        mail = await settled(connection, await insert(connection, "mail"), SPAWNED_S)
        not_sent = await settled(connection, await connection.fetchval(shadow), SPAWNED_S)

    assert (unfit["error_code"], unfit["attempt"]) == ("E-RUN-004", 1)
    assert "up_to" in unfit["errors"]
    assert nan["error_code"] == "E-RUN-005"
    assert "result is nan" in nan["errors"]
    assert (mail["result"], mail["effects"]) == ('"SENT"', None)
    assert not_sent["result"] == '"not sent"'
    assert json.loads(not_sent["effects"]) == [{"name": "mail", "args": ["sent"], "kwargs": {}}]


async def test_an_idle_process_that_is_killed_is_replaced_and_no_zombie_is_left(make_worker, connection):
    worker = make_worker()
    worker.handler("sum", executor="process")(process_app.compute)
    with structlog.testing.capture_logs() as logs:
        async with worker:
            run = await settled(connection, await insert(connection, "sum", '{"up_to": 3}'), SPAWNED_S)
            os.kill(json.loads(run["result"])["pid"], signal.SIGKILL)
            await eventually(lambda: not children())
            run = await settled(connection, await insert(connection, "sum", '{"up_to": 3}'), SPAWNED_S)

    assert run["state"] == "completed"
    assert [entry["event"] for entry in logs].count("idle_process_ended") == 1


def test_what_another_process_could_not_find_is_told_at_import():
    worker = Worker("postgresql:///x")

    def inside(run: Run) -> None: ...

    async def waits(run: Run) -> None: ...

    with pytest.raises(HandlerError, match=r"can't import .*inside by its name .*at the top level of a module"):
        worker.handler("a", executor="process")(inside)
    with pytest.raises(HandlerError, match="an async handler is executed by the event loop"):
        worker.handler("a", executor="process")(waits)
    with pytest.raises(HandlerError, match="thread or process, not 'fork'"):
        worker.handler("a", executor="fork")(process_app.compute)
    with pytest.raises(HandlerError, match="memory_limit_bytes"):
        worker.handler("a", memory_limit_bytes=10**9)(process_app.compute)


async def test_a_name_that_leads_elsewhere_is_told_at_the_start(make_worker, monkeypatch):
    worker = make_worker()
    worker.handler("sum", executor="process")(process_app.compute)
    monkeypatch.setattr(process_app, "compute", process_app.show)

    with pytest.raises(HandlerError, match="outermost decorator"):
        async with worker:
            pass


async def test_a_plain_handler_in_a_thread_shows_progress_without_await(make_worker, connection):
    worker = make_worker()

    @worker.handler("a")
    def handle(run: Run) -> str:
        run.progress({"done": 1})
        with pytest.raises(RuntimeError, match="for async ones"):
            run.transaction()
        with pytest.raises(TypeError, match="a plain handler can't await"):
            run.effect("nap", asyncio.sleep, 0)
        return run.effect("mail", str.upper, "sent")

    async with worker:
        run = await settled(connection, await insert(connection, "a"))

    assert (run["state"], run["progress"], run["result"]) == ("completed", '{"done": 1}', '"SENT"')


SCRIPT = """
import asyncio, sys
from notifyworker import Run, Worker
worker = Worker()

@worker.handler("main", executor="process")
def handle(run: Run) -> str:
    return __name__

@worker.handler("hang", executor="process")
def hang(run: Run, payload: dict) -> None:
    import process_app
    process_app.hang(run, payload)

{start}
"""


@pytest.fixture
def script(tmp_path, dsn):
    started: list[psutil.Popen] = []

    def start(text: str) -> psutil.Popen:
        file = tmp_path / "script.py"
        file.write_text(SCRIPT.format(start=text))
        environment = os.environ | {
            "NOTIFYWORKER_DSN": dsn,
            "NOTIFYWORKER_SIDECAR": "0",
            "PYTHONPATH": str(Path(__file__).parent),
        }
        with (tmp_path / "out").open("w") as out:
            started.append(psutil.Popen([sys.executable, str(file)], env=environment, stdout=out, stderr=out))
        return started[-1]

    yield start
    for process in started:
        if process.is_running():
            process.kill()
        process.wait()


async def test_nothing_outlives_a_worker_that_is_killed(script, connection, tmp_path):
    worker = script('if __name__ == "__main__": asyncio.run(worker.run())')
    begun = tmp_path / "begun"
    assert (await settled(connection, await insert(connection, "main"), SPAWNED_S))["result"] == '"__mp_main__"'
    await insert(connection, "hang", json.dumps({"begun": str(begun)}))
    await eventually(begun.exists, SPAWNED_S)
    pids = [process.pid for process in worker.children()] + [int(begun.read_text().split()[0])]
    assert len(pids) >= 2

    worker.kill()
    await eventually(lambda: not any(_is_alive(pid) for pid in pids))
    os.kill(int(begun.read_text().split()[1]), signal.SIGKILL)  # a program of the handler's own is nobody's then


async def test_a_program_that_starts_a_worker_when_it_is_imported_is_told_what_to_do(script, connection, tmp_path):
    script("asyncio.run(worker.run())")
    run_id = await insert(connection, "main")
    failed = "SELECT errors <> '[]' FROM notifyworker.all_runs WHERE run_id = $1"
    await eventually(lambda: connection.fetchval(failed, run_id), SPAWNED_S)

    assert "ended with exit code 1" in (await run_of(connection, run_id))["errors"]
    assert 'if __name__ == "__main__"' in (tmp_path / "out").read_text()


@pytest.mark.parametrize("plain", [False, True])
async def test_a_handler_that_holds_the_gil_is_named(make_worker, connection, plain):
    worker = make_worker()

    async def holds(run: Run) -> None:
        ctypes.PyDLL(None).usleep(3_500_000)

    def holds_in_a_thread(run: Run) -> None:
        ctypes.PyDLL(None).usleep(3_500_000)

    worker.handler("innocent")(process_app.wish)
    worker.handler("guilty")(holds_in_a_thread if plain else holds)
    with structlog.testing.capture_logs() as logs:
        async with worker:
            run_id = await insert(connection, "guilty")
            await settled(connection, run_id)
            found = await eventually(lambda: [e for e in logs if e["event"] == "interpreter_stood_still" and e["handlers"]])

    assert [(h["kind"], h["run_id"]) for h in found[0]["handlers"]] == [("guilty", str(run_id))]
    assert __file__ in (at := found[0]["handlers"][0]["at"]) or at == "has ended just now"
    assert found[0]["still_s"] > 2


async def test_a_handler_that_blocks_the_event_loop_is_named(make_worker, connection):
    worker = make_worker(stall_limit_s=0.5)

    @worker.handler("blocks")
    async def blocks(run: Run) -> None:
        time.sleep(2)

    with structlog.testing.capture_logs() as logs:
        async with worker:
            await settled(connection, await insert(connection, "blocks"))

    # A busy machine may let the loop stand still as well: that is told with another stack.
    (stalled,) = [entry for entry in logs if entry["event"] == "event_loop_stalled" and "in blocks" in entry["stack"]]
    assert [handler["kind"] for handler in stalled["handlers"]] == ["blocks"]
    assert "in blocks" in stalled["handlers"][0]["at"]


PAGE = (Path(__file__).parents[1] / "docs" / "handlers-and-cpu.md").read_text()


async def test_the_pages_example(db_page, connection):
    async with db_page.worker:
        primes = await settled(connection, await insert(connection, "primes.count", '{"below": 1000}'), SPAWNED_S)
        shrunk = await settled(connection, await insert(connection, "file.shrink"))

    assert (primes["result"], primes["progress"]) == ('{"primes": 168}', '{"done": 900}')
    assert shrunk["state"] == "completed"


@pytest.fixture
def db_page(dsn, tmp_path, monkeypatch):
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "cpu_page.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("NOTIFYWORKER_DSN", dsn)
    return importlib.import_module("cpu_page")


def test_the_events_that_the_page_names_are_there():
    code = "".join(file.read_text() for file in (Path(__file__).parents[1] / "notifyworker").rglob("*.py"))
    told = {"event_loop_stalled", "interpreter_stood_still", "handler_ignores_cancellation"}
    assert told <= set(re.findall(r"`(\w+)`", PAGE))
    assert told <= set(re.findall(r"log\.\w+\(\s*\"(\w+)\"", code))
