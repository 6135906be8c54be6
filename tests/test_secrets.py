"""
A marked password, token and payload, and every error that we know how to make: none of the three is ever told.

Not in logs, errors, command lines, metrics or answers. Where a payload is shown on purpose (`GET /runs`, `runs show`), it
is not looked for.
"""

import asyncio
import contextlib
import io
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import asyncpg
import pytest
import structlog
from servers import STARTED_S, Cluster, eventually, free_port
from test_cli import start
from test_http import serve

import notifyworker.cli as command
from notifyworker import Retry
from notifyworker.errors import NotifyWorkerError
from notifyworker.migrate import open_or_explain
from notifyworker.observe import configure_logging, outline

PASSWORD = "hush-4711/pass#word"
TOKEN = "hush-4711-token"
PAYLOAD = "hush-4711-payload"
MARK = "hush-4711"  # in each of them

APP = """
import asyncio, os, time
from dataclasses import dataclass
from pydantic import BaseModel
from notifyworker import Cancel, Fail, Retry, Run, Snooze, Worker

worker = Worker()
once = Retry(max_attempts=1)

@dataclass
class Typed:
    number: int

class Model(BaseModel):
    text: int

@worker.handler("fine")
async def fine(run: Run, payload: dict) -> dict:
    await run.progress(payload)
    return payload

@worker.handler("in_locals", retry=once)
async def in_locals(run: Run, payload: dict) -> None:
    mine = payload["text"]
    raise ValueError("no luck")

@worker.handler("in_message", retry=once)
async def in_message(run: Run, payload: dict) -> None:
    try:
        raise KeyError(payload["text"])
    except KeyError as error:
        raise RuntimeError(payload) from error

@worker.handler("in_thread", retry=once)
def in_thread(run: Run, payload: dict) -> None:
    raise OSError(payload["text"])

@worker.handler("typed")
async def typed(run: Run, payload: Typed) -> None: ...

@worker.handler("model")
async def model(run: Run, payload: Model) -> None: ...

@worker.handler("refused")
async def refused(run: Run, payload: dict) -> None:
    raise Fail(payload["text"])

@worker.handler("cancelled")
async def cancelled(run: Run, payload: dict) -> None:
    raise Cancel(payload["text"])

@worker.handler("unstorable")
async def unstorable(run: Run, payload: dict) -> dict:
    class Odd:
        def __repr__(self): return payload["text"]
    return {payload["text"]: Odd()}

@worker.handler("nul")
async def nul(run: Run, payload: dict) -> dict:
    return {"text": payload["text"] + chr(0)}

@worker.handler("slow", timeout=0.2, retry=once)
async def slow(run: Run, payload: dict) -> None:
    await asyncio.sleep(60)

@worker.handler("blocks", retry=once)
async def blocks(run: Run, payload: dict) -> None:
    time.sleep(2.5)

@worker.handler("effect")
async def effect(run: Run, payload: dict) -> None:
    await run.effect(payload["text"], print, payload)

@worker.handler("exits", retry=once)
async def exits(run: Run, payload: dict) -> None:
    raise SystemExit(payload["text"])
"""
KINDS = re.findall(r'handler\("(\w+)"', APP)


class Heard:
    """Everything that any process of ours has said."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def note(self, where: str, text: str) -> None:
        self.said.append((where, text))

    def check(self) -> None:
        for where, told in self.said:
            # The page shows operators by what runs fail, as GET /runs does; what an error of theirs quotes is their own.
            text = told.replace(PAYLOAD, "") if where == "GET /" else told
            assert MARK not in text, (where, [line for line in text.splitlines() if MARK in line][:3])


@contextlib.asynccontextmanager
async def with_password() -> AsyncIterator[tuple[Cluster, str]]:
    """A server that wants the password, and a DSN that has it. Its owner comes in without."""
    async with Cluster() as cluster:
        owner = await asyncpg.connect(cluster.dsn)
        await owner.execute(f"CREATE ROLE marked LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
        hba = cluster.data / "pg_hba.conf"
        hba.write_text("host all marked 127.0.0.1/32 scram-sha-256\n" + hba.read_text())
        await owner.execute("SELECT pg_reload_conf()")
        await owner.close()
        yield cluster, f"postgresql://marked:{quote(PASSWORD, safe='')}@127.0.0.1:{cluster.port}/postgres"


async def ended(process: asyncio.subprocess.Process, heard: Heard, where: str) -> str:
    out, err = await process.communicate()
    heard.note(where, out.decode() + err.decode())
    return err.decode()


async def run(heard: Heard, *arguments: str, env: dict[str, str] | None = None) -> str:
    process = await start(*arguments, env=env)
    async with asyncio.timeout(60):
        return await ended(process, heard, " ".join(arguments[:2]))


def batched(items: list[Any]) -> list[list[Any]]:
    """As many processes at a time as there are cores on a small machine."""
    return [items[place : place + 4] for place in range(0, len(items), 4)]


async def ask(heard: Heard, url: str, path: str, method: str = "GET", **options: Any) -> int:
    options.setdefault("headers", {"Authorization": f"Bearer {TOKEN}"})
    async with aiohttp.ClientSession() as session, session.request(method, url + path, **options) as response:
        heard.note(f"{method} {path}", f"{dict(response.headers)} {await response.text()}")
        return response.status


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode()


async def test_a_whole_fleet_and_all_that_goes_wrong_in_it_tell_no_secret(tmp_path: Path) -> None:
    heard = Heard()
    (tmp_path / "app.py").write_text(APP)
    async with with_password() as (cluster, dsn):
        await run(heard, "migrate", "--dsn", dsn)
        owner = await asyncpg.connect(cluster.dsn)
        ports = free_port(), free_port()
        options = [
            "--log-level",
            "debug",
            "--drain-timeout-s",
            "2",
            "--heartbeat-interval-s",
            "1",
            "--lease-s",
            "12",
            "--stall-limit-s",
            "1",
        ]
        by_environment = {"NOTIFYWORKER_DSN": dsn, "NOTIFYWORKER_TOKEN": TOKEN, "NOTIFYWORKER_PORT": str(ports[0])}
        workers = [
            await start("worker", "app:worker", *options, cwd=tmp_path, env=by_environment),
            await start(
                *("worker", "app:worker", *options, "--log-format", "console", "--port", str(ports[1])),
                *("--dsn", dsn, "--token", TOKEN),
                cwd=tmp_path,
            ),
        ]
        try:
            for port in ports:  # which is the last that a worker does at its start
                await eventually(lambda port=port: _answers(f"http://127.0.0.1:{port}"), STARTED_S)
            for worker in workers:
                heard.note("process title", command_line(worker.pid))
            assert "app:worker" in command_line(workers[1].pid)

            insert = (
                "INSERT INTO notifyworker.runs (kind, payload, is_shadow) VALUES ($1, jsonb_build_object('text', $2::text), $3)"
            )
            for kind in KINDS:
                for _ in range(1 if kind == "blocks" else 2):
                    await owner.execute(insert, kind, PAYLOAD, kind == "effect")
            await _producers(heard, f"http://127.0.0.1:{ports[0]}", dsn)
            await eventually(
                lambda: owner.fetchval("SELECT count(*) = 0 FROM notifyworker.runs WHERE kind = ANY ($1)", KINDS), 60
            )
            await _readers(heard, f"http://127.0.0.1:{ports[1]}", dsn)

            await owner.execute(insert, "fine", PAYLOAD, False)
            await cluster.restart("immediate")
            owner = await asyncpg.connect(cluster.dsn)
            await owner.execute("ALTER ROLE marked PASSWORD 'another'")
            await owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'marked'")
            assert await ask(heard, f"http://127.0.0.1:{ports[1]}", "/runs") == 503
            await run(heard, "status", env={"NOTIFYWORKER_DSN": dsn})
            await owner.close()
        finally:
            for worker, number in zip(workers, (signal.SIGTERM, signal.SIGKILL), strict=True):
                with contextlib.suppress(ProcessLookupError):  # it has ended itself: nothing could be renewed
                    worker.send_signal(number)
            told = [await ended(worker, heard, f"worker {number}") for number, worker in enumerate(workers)]
    for event in ("attempt_failed", "event_loop_stalled", "claim_failed", "28P01"):
        assert any(event in each for each in told), event
    heard.check()


async def _answers(url: str) -> bool:
    with contextlib.suppress(aiohttp.ClientConnectorError):
        async with aiohttp.ClientSession() as session, session.get(f"{url}/livez") as response:
            return response.status == 200
    return False


async def _producers(heard: Heard, url: str, dsn: str) -> None:
    """Runs that are refused, by each way in."""
    big = io.BytesIO(f'{{"kind": "fine", "payload": "{PAYLOAD * 100_000}"}}'.encode())
    columns: list[dict[str, Any]] = [
        {"priority": "x"}, {"run_at": "x"}, {"timeout": "x"}, {"headers": PAYLOAD}, {"payload": {"a": PAYLOAD + "\0"}},
        {"run_id": "x"}, {"max_attempts": 99999}, {"idempotency_key": PAYLOAD * 100}, {"concurrency_key": PAYLOAD * 100},
    ]  # fmt: skip
    for more in columns:
        assert await ask(heard, url, "/runs", "POST", json={"kind": "fine", "payload": {"text": PAYLOAD}, **more}) == 400
    assert await ask(heard, url, "/runs", "POST", data=big) == 413
    assert await ask(heard, url, "/runs", "POST", data=f'{{"kind": "fine", "payload": {PAYLOAD}}}') == 400
    commands = [
        ["enqueue", "fine", '{"text": "' + PAYLOAD],
        ["enqueue", "x" * 201, f'{{"text": "{PAYLOAD}"}}'],
        ["enqueue", "fine", f'{{"text": "{PAYLOAD}\\u0000"}}'],
        ["enqueue", "fine", f'{{"text": "{PAYLOAD}"}}', "--run-at", "-1"],
    ]
    assert all(await asyncio.gather(*(run(heard, *arguments, env={"NOTIFYWORKER_DSN": dsn}) for arguments in commands)))


async def _readers(heard: Heard, url: str, dsn: str) -> None:
    """What shows the fleet, and what is refused."""
    for path in ("/", "/healthz", "/readyz", "/livez", "/metrics", "/workers", "/leases", "/reaper"):
        assert await ask(heard, url, path) in {200, 503}  # the one whose loop was blocked says so
    for headers in ({}, {"Authorization": f"Bearer x{TOKEN}"}, {"Authorization": f"Basic {TOKEN}"}, {"Cookie": f"a={TOKEN}"}):
        assert await ask(heard, url, "/workers", headers=headers) == 401
    assert await ask(heard, url, "/login", "POST", json={"token": TOKEN}) == 200
    assert await ask(heard, url, "/login", "POST", json={"token": [TOKEN]}) == 400
    host = dsn.rpartition("@")[2]
    secret = quote(PASSWORD, safe="")
    mistyped = [
        dsn.replace("hush", "xhush-4711"), dsn.replace(host.partition("/")[0], "127.0.0.1:1"), f"{dsn}-absent",
        f"postgresql://marked:{PASSWORD}@{host}", f"host=127.0.0.1 user=marked password={PASSWORD}", f"{dsn}?x={secret}",
        f"postgresql://marked:{secret}@no-such-host.invalid/x", f"postgresql://marked:{secret}@127.0.0.1:port/x",
    ]  # fmt: skip
    for two in batched(mistyped):
        assert all(await asyncio.gather(*(run(heard, "status", env={"NOTIFYWORKER_DSN": wrong}) for wrong in two)))
    commands: list[list[str]] = [
        ["status"],
        ["status", "--json"],
        ["runs", "list"],
        ["status", "--dsn", dsn, "--bogus"],
        ["status", dsn],
        ["worker", "app:worker", "--token", TOKEN, "--port", "x"],
        ["worker", "app:worker", f"--token={TOKEN}", "--host", "0.0.0.0", "--concurrency", "-1"],
        ["config", "set", "max_payload_bytes", "1e9"],
    ]
    good = {"NOTIFYWORKER_DSN": dsn, "NOTIFYWORKER_TOKEN": TOKEN}
    for pair in batched(commands):
        await asyncio.gather(*(run(heard, *arguments, env=good) for arguments in pair))


# Faults of ours, which nobody expected


def failing(*_: object, **__: object) -> Any:
    """An error whose text, cause and locals have it all."""
    mine = f"postgresql://u:{PASSWORD}@h/d {TOKEN}"
    try:
        raise KeyError(mine)
    except KeyError as error:
        raise RuntimeError(PAYLOAD + mine) from error


def test_a_crash_of_the_command_tells_where_and_not_what(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(command, "_executed", failing)

    with pytest.raises(SystemExit) as left:
        command.main(["status"])

    told = capsys.readouterr()
    assert left.value.code == command.FAILED
    assert "RuntimeError" in told.err
    assert "in failing" in told.err
    assert "error: this is a fault of notifyworker" in told.err
    assert MARK not in told.out + told.err


async def test_a_fault_of_the_sidecar_tells_where_and_not_what(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(dsn, token=TOKEN) as sidecar:
        monkeypatch.setattr(sidecar.worker, "health", failing)
        with structlog.testing.capture_logs() as logged:
            assert (await sidecar.get("/healthz")).status == 500
    (entry,) = [entry for entry in logged if entry["event"] == "sidecar_error"]
    assert "in failing" in entry["error"]
    assert MARK not in repr(logged)


async def test_a_fault_of_the_worker_tells_where_and_not_what(
    dsn: str, make_worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker()

    @worker.handler("k", retry=Retry(max_attempts=1))
    async def k(run: Any, payload: dict) -> None: ...

    connection = await asyncpg.connect(dsn)
    with structlog.testing.capture_logs() as logged:
        monkeypatch.setattr("notifyworker.worker.Conductor._execute", failing)
        async with worker:
            await connection.execute("INSERT INTO notifyworker.runs (kind) VALUES ('k')")
            await eventually(lambda: any(entry["event"] == "execute_failed" for entry in logged))
            await eventually(lambda: connection.fetchval("SELECT jsonb_array_length(errors) = 1 FROM notifyworker.all_runs"))
    await connection.close()
    assert "in failing" in str(logged)
    assert MARK not in repr(logged)


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_tracebacks_in_logs_have_no_local_variables(log_format: Any, capsys: Any) -> None:
    """Those that a handler logs by itself: `run.log.exception(..)`."""
    before = structlog.get_config()
    configure_logging(log_format, "info")
    try:
        mine = PAYLOAD
        try:
            raise ValueError(len(mine))
        except ValueError:
            structlog.get_logger("handler").exception("failed")
    finally:
        structlog.configure(**before)
    told = capsys.readouterr().err
    assert "ValueError" in told
    assert MARK not in told


def test_an_outline_ends() -> None:
    error: BaseException = ValueError(PAYLOAD)
    for _ in range(100):
        after = TypeError(PAYLOAD)
        after.__cause__ = error
        error = after
    assert outline(error).count("TypeError") == 5
    assert MARK not in outline(error)


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://u:{PASSWORD}@127.0.0.1:1/db",
        f"host=127.0.0.1 password={PASSWORD} dbname=db",
        f"mysql://u:{quote(PASSWORD, safe='')}@127.0.0.1/db",
        f"postgresql://u:{quote(PASSWORD, safe='')}@127.0.0.1:1/db",
        f"postgresql://u@127.0.0.1:1/db?password={quote(PASSWORD, safe='')}",
    ],
)
async def test_a_dsn_that_can_not_be_used_is_not_quoted(dsn: str) -> None:
    """Also without the command line's own masking: what an embedded worker raises goes into its host's log."""
    with pytest.raises(NotifyWorkerError) as raised:
        await open_or_explain(dsn, "notifyworker")
    assert MARK not in f"{raised.value} {raised.value!r} {raised.value.hint}"
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="there is no /proc")
async def test_a_command_line_does_not_show_what_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import time\nopen('there', 'w').close()\ntime.sleep(60)\n")
    secret = quote(PASSWORD, safe="")
    arguments = ["--dsn", f"postgresql://u:{secret}@h/d", f"--token={TOKEN}", "--listen-dsn", f"host=h password={PASSWORD}"]
    process = await start("worker", "app:worker", *arguments, "--port", "4711", cwd=tmp_path)
    try:
        await eventually((tmp_path / "there").exists)
        shown = command_line(process.pid)
    finally:
        process.kill()
        await process.communicate()
    assert MARK not in shown
    words = shown.rstrip("\0").split("\0")
    assert words[-6] == f"postgresql://u:{'x' * len(secret)}@h/d"
    assert words[-2:] == ["--port", "4711"]
