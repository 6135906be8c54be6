"""The command as a user meets it: a process, its exit code, stdout and stderr, against a real database."""

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import commands
import pytest
from servers import STARTED_S, as_role, eventually, processes, scratch_directory

import notifyworker
from notifyworker.cli import masked
from notifyworker.cli.options import WorkerOptions
from notifyworker.settings import Settings

ROOT = Path(notifyworker.__file__).parents[1]
PASSWORD = "geheim-4711"
NOWHERE = f"postgresql://somebody:{PASSWORD}@127.0.0.1:1/nothing"
SOME_ID = "01890a5d-ac96-774b-bcce-b302099a8057"

APP = """
import asyncio, os, time
from pathlib import Path
from notifyworker import Retry, Run, Worker

worker = Worker()

@worker.handler("echo")
async def echo(run: Run, payload: dict) -> dict:
    return payload

@worker.handler("sleep")
async def sleep(run: Run, payload: dict) -> None:
    await asyncio.sleep(payload["s"])

@worker.handler("until", retry=Retry(delay=60))
async def until(run: Run, payload: dict) -> None:
    while not Path(payload["file"]).exists():
        await asyncio.sleep(0.02)

@worker.handler("stubborn")
def stubborn(run: Run, payload: dict) -> None:
    time.sleep(600)
"""


@dataclass
class Done:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "NOTIFYWORKER_LOG_FORMAT": "json", **(extra or {})}


async def start(*arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "notifyworker", *arguments),
        cwd=cwd or "/",
        env=environment(env),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=2**24,
    )


async def call(
    *arguments: str,
    stdin: str | bytes = b"",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 60,
) -> Done:
    """Run a command to its end. Whatever it says, it says it without a traceback and without a password."""
    given = stdin.encode() if isinstance(stdin, str) else stdin
    code, out, err = await commands.output(arguments, cwd=cwd or "/", env=environment(env), stdin=given, timeout_s=timeout_s)
    done = Done(code, out.decode(), err.decode())
    assert "Traceback" not in done.err, done.err
    assert PASSWORD not in done.out + done.err
    return done


async def refused(code: int, *arguments: str, **options: Any) -> str:
    """Run a command that is to be refused; return its one line."""
    done = await call(*arguments, **options)
    assert done.code == code, done
    assert done.out == ""
    lines = done.err.strip().splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("error: ")
    return lines[0]


@contextlib.asynccontextmanager
async def running(folder: Path, dsn: str, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker process that claims."""
    (folder / "app.py").write_text(APP)
    process = await start("worker", "app:worker", "--no-sidecar", *options, cwd=folder, env={"NOTIFYWORKER_DSN": dsn})
    connection = await asyncpg.connect(dsn)

    async def present() -> bool:
        assert process.returncode is None, (await process.communicate())[1].decode()
        return await connection.fetchval("SELECT EXISTS (SELECT FROM notifyworker.workers WHERE pid = $1)", process.pid)

    try:
        await eventually(present, STARTED_S)
        yield process
    finally:
        await connection.close()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def state_of(connection: asyncpg.Connection, run_id: str) -> str:
    return await connection.fetchval("SELECT state FROM notifyworker.all_runs WHERE run_id = $1", run_id)


# Help, version, usage.


def test_version_is_quick() -> None:
    """Of three, the least processor time: that of the command, whatever else the machine does."""
    took = []
    for _ in range(3):
        command = subprocess.Popen([sys.executable, "-m", "notifyworker", "--version"], env=environment(), stdout=subprocess.PIPE)
        assert command.stdout is not None
        with command.stdout as out:
            assert re.fullmatch(rb"\d+\.\d+\.\d+\S*\n", out.read())
        _, status, used = os.wait4(command.pid, 0)
        command.returncode = os.waitstatus_to_exitcode(status)
        assert command.returncode == 0
        took.append(used.ru_utime + used.ru_stime)
    assert min(took) < 0.25


async def test_help_names_commands_and_exit_codes() -> None:
    done = await call("--help")
    assert done.code == 0
    for word in (
        "demo",
        "dev",
        "worker",
        "migrate",
        "schema",
        "enqueue",
        "runs",
        "status",
        "doctor",
        "healthcheck",
        "schedules",
        "pause",
        "resume",
        "config",
        "prune",
        "bench",
        "Exit codes: 0 done",
    ):
        assert word in done.out
    assert "--heartbeat-interval-s" in (await call("worker", "--help")).out


def test_every_setting_is_an_option() -> None:
    settings = {"schema" if name == "schema_name" else name for name in Settings.model_fields}
    internal = {"wake_coalesce_per_s", "wake_tick_s"}
    assert {f.name for f in dataclasses.fields(WorkerOptions)} == settings - internal


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["worker"],
        ["worker", "app:worker", "--bogus"],
        ["worker", "app:worker", "--concurrency", "many"],
        ["worker", "app:worker", "--shadow", "perhaps"],
        ["runs", "list", "--state", "lost"],
        ["runs", "show"],
        ["enqueue"],
    ],
)
async def test_wrong_usage(arguments: list[str]) -> None:
    assert "--help" in await refused(2, *arguments)


def test_masked() -> None:
    assert masked(f"Unknown command {NOWHERE}") == "Unknown command postgresql://somebody:***@127.0.0.1:1/nothing"
    assert masked("postgresql://h/d?password=x&user=y") == "postgresql://h/d?password=***&user=y"
    assert masked("postgresql://u:a@b:c@h/d") == "postgresql://u:***@h/d"


# The database.


@pytest.mark.parametrize(
    "arguments", [["status"], ["migrate"], ["runs", "list"], ["enqueue", "k"], ["prune"], ["migrate", "--remove", "--yes"]]
)
async def test_unreachable_database(arguments: list[str]) -> None:
    told = await refused(3, *arguments, "--dsn", NOWHERE)
    assert "somebody@127.0.0.1:1/nothing" in told


@pytest.mark.parametrize(
    "dsn",
    [
        f"mysql://u:{PASSWORD}@h/d",
        "nonsense",
        f"host=localhost password={PASSWORD}",
        f"postgresql://u:{PASSWORD}@h:port/d",
        f"postgresql://u:{PASSWORD}@h/d?sslmode=perhaps",
    ],
)
async def test_dsn_that_is_none(dsn: str) -> None:
    assert "dsn" in await refused(2, "status", "--dsn", dsn)
    assert "dsn" in await refused(2, "status", env={"NOTIFYWORKER_DSN": dsn})


async def test_no_database_is_given() -> None:
    assert "NOTIFYWORKER_DSN" in await refused(2, "status")


async def test_unknown_host_database_and_login(dsn: str) -> None:
    assert "unknown" in await refused(3, "status", "--dsn", f"postgresql://u:{PASSWORD}@no-such-host.invalid/d")
    base, _, rest = dsn.partition("?")
    other = base.rpartition("/")[0] + "/no_such_database" + ("?" + rest if rest else "")
    assert "no_such_database" in await refused(3, "status", "--dsn", other)


async def test_not_migrated(empty_dsn: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    env = {"NOTIFYWORKER_DSN": empty_dsn}
    for arguments in (
        ["status"],
        ["runs", "list"],
        ["runs", "cancel", SOME_ID],
        ["enqueue", "k"],
        ["prune"],
        ["config", "set", "max_payload_bytes", "5"],
    ):
        assert "notifyworker migrate" in await refused(3, *arguments, env=env)
    assert "notifyworker migrate" in await _worker_refused(3, tmp_path, env=env)


async def test_too_new(dsn: str, connection: asyncpg.Connection, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    await connection.execute("INSERT INTO notifyworker.migrations (version, name) VALUES (9999, 'tomorrow')")
    env = {"NOTIFYWORKER_DSN": dsn}
    for arguments in (["migrate"], ["status"], ["runs", "list"]):
        assert "newer than this code" in await refused(3, *arguments, env=env)
    assert "newer than this code" in await _worker_refused(3, tmp_path, env=env)


async def test_without_rights_and_read_only(dsn: str, connection: asyncpg.Connection, tmp_path: Path) -> None:
    role = f"nobody_{os.urandom(4).hex()}"
    await connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    try:
        env = {"NOTIFYWORKER_DSN": as_role(dsn, role, PASSWORD)}
        assert "GRANT" in await refused(3, "runs", "list", env=env)
        assert "GRANT" in await refused(3, "enqueue", "k", env=env)
        (tmp_path / "app.py").write_text(APP)
        assert "GRANT" in await _worker_refused(3, tmp_path, env=env)
        await connection.execute(f"GRANT notifyworker_producer TO {role}")
        assert (await call("enqueue", "k", env=env)).code == 0
        database = await connection.fetchval("SELECT current_database()")
        await connection.execute(f'ALTER ROLE {role} IN DATABASE "{database}" SET default_transaction_read_only = on')
        assert "read-only" in await refused(3, "enqueue", "k", env=env)
        await connection.execute(f"GRANT notifyworker_worker TO {role}")
        assert "read-only" in await _worker_refused(3, tmp_path, env=env)
        await connection.execute(f"ALTER ROLE {role} NOLOGIN")
        assert role in await refused(3, "status", env=env)
    finally:
        await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


# MODULE:ATTR.

APPS = {
    "good.py": "from notifyworker import Worker\nworker = Worker()\nworker.handler('k')(lambda run: None)\n",
    "factory.py": "import good\ndef make():\n    return good.worker\nasync def late():\n    return good.worker\n",
    "holder.py": "import good\nclass Box:\n    inner = good.worker\n",
    "imports_missing.py": "import os\n\nimport not_installed_anywhere\n",
    "imports_name.py": "from os import not_in_there\n",
    "imports_itself.py": "import imports_itself.deeper\n",
    "raises.py": "def boom():\n    return 1 / 0\n\nboom()\n",
    "exits.py": "raise SystemExit(5)\n",
    "broken.py": "def (:\n",
    "plain.py": "worker = {'a': 1}\nclass C:\n    def __init__(self, x): ...\ndef takes(x): ...\ndef fails():\n    raise RuntimeError('no\\nway')\n",
    "empty.py": "from notifyworker import Worker\nworker = Worker()\n",
    "twice.py": (
        "from notifyworker import Worker\nworker = Worker()\n"
        "@worker.handler('k')\ndef a(run): ...\n@worker.handler('k')\ndef b(run): ...\n"
    ),
    "wrong_keyword.py": "from notifyworker import Worker\n\nworker = Worker(concurrency=0)\n",
}


@pytest.fixture
def apps(tmp_path: Path) -> Path:
    for name, text in APPS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("worker", ["MODULE:ATTR", "app:worker"]),
        ("good:", ["MODULE:ATTR"]),
        (":worker", ["MODULE:ATTR"]),
        ("good.py:worker", ["without .py: good"]),
        ("../good:worker", ["MODULE:ATTR"]),
        ("nowhere:worker", ["no module nowhere"]),
        ("nowhere.deep:worker", ["no module nowhere"]),
        ("good.deep:worker", ["no module good.deep"]),
        ("imports_missing:worker", ["imports_missing.py:3", "not_installed_anywhere"]),
        ("imports_name:worker", ["imports_name.py:1", "not_in_there"]),
        ("imports_itself:worker", ["imports_itself.py:1"]),
        ("raises:worker", ["raises.py:2", "ZeroDivisionError"]),
        ("exits:worker", ["exits.py:1", "SystemExit"]),
        ("broken:worker", ["broken.py:1", "SyntaxError"]),
        ("good:wroker", ["no attribute 'wroker'", "did you mean worker?"]),
        ("holder:Box.outer", ["holder.Box has no attribute 'outer'", "did you mean inner?"]),
        ("plain:worker", ["is no Worker", "dict"]),
        ("plain:C", ["is no Worker", "class C"]),
        ("plain:takes", ["is no Worker", "takes arguments"]),
        ("plain:fails", ["plain.py:6", "RuntimeError: no way"]),
        ("factory:late", ["async function"]),
        ("empty:worker", ["no handler"]),
        ("twice:worker", ["twice.py:", "'k'"]),
        ("wrong_keyword:worker", ["wrong_keyword.py:3", "concurrency"]),
    ],
)
async def test_reference_that_is_no_worker(apps: Path, dsn: str, reference: str, words: list[str]) -> None:
    told = await refused(2, "worker", reference, "--no-sidecar", cwd=apps, env={"NOTIFYWORKER_DSN": dsn})
    assert all(word in told for word in words), told


@pytest.mark.parametrize("reference", ["good:worker", "factory:make", "holder:Box.inner"])
async def test_reference_that_is_a_worker(apps: Path, reference: str) -> None:
    await _worker_refused(3, apps, reference=reference, env={"NOTIFYWORKER_DSN": NOWHERE})


async def _worker_refused(code: int, folder: Path, *options: str, reference: str = "app:worker", **more: Any) -> str:
    """As `refused`; a worker may have logged something before."""
    done = await call("worker", reference, *options, cwd=folder, **{**more, "env": {"NOTIFYWORKER_PORT": "0", **more["env"]}})
    assert done.code == code, done
    lines = [line for line in done.err.strip().splitlines() if not line.startswith("{")]
    assert len(lines) == 1, done.err
    assert lines[0].startswith("error: ")
    return lines[0]


# Settings and ports.


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--lease-s", "30", "--heartbeat-interval-s", "15"], "three times"),
        (["--concurrency", "0"], "concurrency"),
        (["--poll-interval-s", "-1"], "poll_interval_s"),
        (["--lease-s", "nan"], "lease_s"),
        (["--presumed-dead-s", "5"], "presumed_dead_s"),
        (["--port", "70000"], "port"),
        (["--schema", "Robert'); DROP"], "schema"),
        (["--project-ids", ","], "project_ids"),
        (["--kinds", "no.such"], "no.such"),
        (["--host", "0.0.0.0"], "NOTIFYWORKER_TOKEN"),
    ],
)
async def test_settings_out_of_range(tmp_path: Path, dsn: str, options: list[str], word: str) -> None:
    (tmp_path / "app.py").write_text(APP)
    assert word in await _worker_refused(2, tmp_path, *options, env={"NOTIFYWORKER_DSN": dsn})


async def test_command_line_wins_over_environment(tmp_path: Path, dsn: str) -> None:
    (tmp_path / "app.py").write_text(APP)
    env = {"NOTIFYWORKER_DSN": NOWHERE, "NOTIFYWORKER_CONCURRENCY": "0"}
    assert "concurrency" in await _worker_refused(2, tmp_path, "--dsn", dsn, env=env)
    assert (await call("status", "--dsn", dsn, env={"NOTIFYWORKER_DSN": NOWHERE})).code == 0


async def test_port_in_use(tmp_path: Path, dsn: str) -> None:
    (tmp_path / "app.py").write_text(APP)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert port in await _worker_refused(3, tmp_path, "--port", port, env={"NOTIFYWORKER_DSN": dsn})


# Start and stop.


async def test_sigterm_drains(tmp_path: Path, dsn: str, connection: asyncpg.Connection) -> None:
    async with running(tmp_path, dsn) as worker:
        run_id = await _started(connection, "until", {"file": str(tmp_path / "go")})
        worker.send_signal(signal.SIGTERM)
        await eventually(lambda: connection.fetchval("SELECT state = 'draining' FROM notifyworker.workers"))
        (tmp_path / "go").touch()
        assert await asyncio.wait_for(worker.wait(), 30) == 0
    assert await state_of(connection, run_id) == "completed"


async def test_nobody_reads_its_log(tmp_path: Path, dsn: str, connection: asyncpg.Connection) -> None:
    """As with `| tee`, which Ctrl-C ends as well: the worker works on, and hears the signal."""
    async with running(tmp_path, dsn) as worker:
        assert worker.stderr is not None
        worker.stderr._transport.close()
        failing = await _started(connection, "until", {"file": str(tmp_path / "go")})
        await connection.execute("INSERT INTO notifyworker.runs (kind, max_attempts) VALUES ('until', 1)")  # which is logged
        await eventually(lambda: connection.fetchval("SELECT count(*) = 1 FROM notifyworker.run_history WHERE state = 'failed'"))
        (tmp_path / "go").touch()
        await eventually(lambda: _is(connection, failing, "completed"))
        worker.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(worker.wait(), 30) == 0


async def test_drain_deadline(tmp_path: Path, dsn: str, connection: asyncpg.Connection) -> None:
    async with running(tmp_path, dsn, "--drain-timeout-s", "0.2") as worker:
        run_id = await _started(connection, "sleep", {"s": 60})
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(worker.wait(), 30) == 4
    run = await connection.fetchrow("SELECT state, attempt, errors FROM notifyworker.all_runs WHERE run_id = $1", run_id)
    assert (run["state"], run["attempt"]) == ("pending", 0)
    assert [error["code"] for error in json.loads(run["errors"])] == ["interrupted"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
async def test_second_signal(tmp_path: Path, dsn: str, connection: asyncpg.Connection, number: int, code: int) -> None:
    async with running(tmp_path, dsn) as worker:
        run_id = await _started(connection, "sleep", {"s": 60})
        worker.send_signal(signal.SIGTERM)
        await eventually(lambda: connection.fetchval("SELECT state = 'draining' FROM notifyworker.workers"))
        worker.send_signal(number)
        assert await asyncio.wait_for(worker.wait(), 30) == code
    assert await state_of(connection, run_id) == "pending"


async def test_thread_that_never_ends_does_not_keep_the_process(tmp_path: Path, dsn: str, connection: asyncpg.Connection) -> None:
    async with running(tmp_path, dsn, "--drain-timeout-s", "0.2") as worker:
        await _started(connection, "stubborn", {})
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(worker.wait(), 30) == 4


async def _started(connection: asyncpg.Connection, kind: str, payload: dict[str, Any]) -> str:
    insert = "INSERT INTO notifyworker.runs (kind, payload) VALUES ($1, $2) RETURNING run_id"
    run_id = await connection.fetchval(insert, kind, json.dumps(payload))

    async def is_running() -> bool:
        return await state_of(connection, run_id) == "running"

    await eventually(is_running)
    return run_id


async def test_dev_migrates_the_database_that_it_is_given(tmp_path: Path, empty_dsn: str) -> None:
    (tmp_path / "app.py").write_text(APP)
    worker = await start("dev", "app:worker", "--no-sidecar", cwd=tmp_path, env={"NOTIFYWORKER_DSN": empty_dsn})
    connection = await asyncpg.connect(empty_dsn)
    try:
        present = "SELECT to_regclass('notifyworker.workers') IS NOT NULL"
        await eventually(lambda: connection.fetchval(present))
        await eventually(lambda: connection.fetchval("SELECT EXISTS (SELECT FROM notifyworker.workers)"))
        worker.send_signal(signal.SIGINT)
        _out, err = await asyncio.wait_for(worker.communicate(), 30)
        assert worker.returncode == 0
        assert "database: " in err.decode()
        assert "applied 0001" in err.decode()
    finally:
        await connection.close()
        if worker.returncode is None:
            worker.kill()
            await worker.wait()


async def test_dev_brings_its_own_database(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    with scratch_directory() as place:
        worker = await start("dev", "app:worker", "--port", "0", "--data-dir", str(place / "data"), cwd=tmp_path)
        try:
            dsn = await _read_until(worker, r"psql '(.+)'")
            assert str(place) in dsn
            connection = await asyncpg.connect(dsn)
            await eventually(lambda: connection.fetchval("SELECT to_regclass('notifyworker.runs') IS NOT NULL"))
            run_id = await connection.fetchval("INSERT INTO notifyworker.runs (kind) VALUES ('echo') RETURNING run_id")
            await eventually(lambda: _is(connection, run_id, "completed"))
            await connection.close()
            worker.send_signal(signal.SIGTERM)
            _out, err = await asyncio.wait_for(worker.communicate(), 30)
            assert worker.returncode == 0, err.decode()
            assert not processes(place)
        finally:
            with contextlib.suppress(ProcessLookupError):
                worker.kill()
            await worker.communicate()
            await eventually(lambda: not processes(place))


async def _is(connection: asyncpg.Connection, run_id: str, state: str) -> bool:
    return await state_of(connection, run_id) == state


async def _read_until(process: asyncio.subprocess.Process, words: str) -> str:
    assert process.stderr is not None
    said = ""
    async with asyncio.timeout(STARTED_S):
        while not (match := re.search(words, said)):
            line = await process.stderr.readline()
            assert line, said
            said += line.decode()
    return match[1]


# migrate, schema, config, prune.


async def test_ten_migrate_at_once(empty_dsn: str) -> None:
    env = {"NOTIFYWORKER_DSN": empty_dsn}
    done = await asyncio.gather(*(call("migrate", "--json", env=env, timeout_s=100) for _ in range(10)))
    assert [d.code for d in done] == [0] * 10, [d.err for d in done]
    applied = [d.json()["applied"] for d in done]
    assert sorted(map(bool, applied)) == [False] * 9 + [True]
    versions = {d.json()["version"] for d in done}
    assert versions == {max(m["version"] for a in applied for m in a)}
    again = await call("migrate", env=env)
    assert again.code == 0
    assert "already at version" in again.out


async def test_schema_is_what_migrate_does(dsn: str, empty_dsn: str) -> None:
    done = await call("schema")
    assert (done.code, done.err) == (0, "")
    connection = await asyncpg.connect(empty_dsn)
    try:
        await connection.execute(done.out)
    finally:
        await connection.close()
    assert await _catalogue(empty_dsn) == await _catalogue(dsn)
    again = await call("migrate", "--json", env={"NOTIFYWORKER_DSN": empty_dsn})
    assert again.json()["applied"] == []


@pytest.mark.skipif(shutil.which("psql") is None, reason="there is no psql")
async def test_schema_piped_into_psql(empty_dsn: str) -> None:
    sql = (await call("schema", "--schema", "other_name")).out
    command = ["psql", "--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", empty_dsn]
    done = await asyncio.to_thread(subprocess.run, command, input=sql, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    listed = await call("runs", "list", "--schema", "other_name", "--json", env={"NOTIFYWORKER_DSN": empty_dsn})
    assert listed.json() == {"runs": []}


async def _catalogue(dsn: str) -> list[str]:
    """Everything in the schema, as text."""
    connection = await asyncpg.connect(dsn)
    query = """
        SELECT 'column ' || c.relname || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull
               || ' ' || coalesce(pg_get_expr(d.adbin, d.adrelid), '')
          FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
          LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (c.oid, a.attnum)
         WHERE c.relnamespace = 'notifyworker'::regnamespace AND c.relkind IN ('r', 'p', 'v')
        UNION ALL SELECT 'index ' || indexdef FROM pg_indexes WHERE schemaname = 'notifyworker'
        UNION ALL SELECT 'constraint ' || conname || ' ' || pg_get_constraintdef(oid)
          FROM pg_constraint WHERE connamespace = 'notifyworker'::regnamespace
        UNION ALL SELECT 'function ' || pg_get_functiondef(oid) || coalesce(proacl::text, '')
          FROM pg_proc WHERE pronamespace = 'notifyworker'::regnamespace
        UNION ALL SELECT 'trigger ' || pg_get_triggerdef(t.oid) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
         WHERE c.relnamespace = 'notifyworker'::regnamespace AND NOT t.tgisinternal
        UNION ALL SELECT 'grants ' || relname || ' ' || coalesce(relacl::text, '')
          FROM pg_class WHERE relnamespace = 'notifyworker'::regnamespace
        ORDER BY 1"""
    try:
        return [row[0] for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def test_remove(dsn: str, connection: asyncpg.Connection) -> None:
    env = {"NOTIFYWORKER_DSN": dsn}
    await connection.execute("INSERT INTO notifyworker.runs (kind) VALUES ('a'), ('b'), ('c')")
    await connection.execute("SELECT notifyworker.cancel(run_id) FROM notifyworker.runs WHERE kind = 'a'")
    done = await call("migrate", "--remove", env=env)
    assert done.code == 2
    assert "2 live and 1 settled runs" in done.err
    await connection.execute("CREATE TABLE notifyworker.precious (id int)")
    assert "precious" in await refused(1, "migrate", "--remove", "--yes", env=env)
    await connection.execute("DROP TABLE notifyworker.precious")
    assert (await call("migrate", "--remove", "--yes", env=env)).code == 0
    assert await connection.fetchval("SELECT to_regnamespace('notifyworker')") is None
    assert "no installation" in await refused(3, "migrate", "--remove", "--yes", "--schema", "public", env=env)
    assert await connection.fetchval("SELECT to_regnamespace('public')") is not None


async def test_config_set(dsn: str, connection: asyncpg.Connection) -> None:
    env = {"NOTIFYWORKER_DSN": dsn}
    assert "no setting of the whole fleet" in await refused(2, "config", "set", "lease_s", "60", env=env)
    for value in ("1", "-5", "many", "nan", "1e400", "3.5"):
        assert "max_payload_bytes" in await refused(2, "config", "set", "max_payload_bytes", value, env=env)
    assert "reaper_interval_s" in await refused(2, "config", "set", "reaper_interval_s", "0.01", env=env)
    assert (await call("config", "set", "max_payload_bytes", "100", env=env)).out == "max_payload_bytes = 100\n"
    assert "max_payload_bytes" in await refused(2, "enqueue", "k", json.dumps({"a": "x" * 100}), env=env)
    done = await call("config", "set", "reaper_interval_s", "2.5", "--json", env=env)
    assert done.json() == {"name": "reaper_interval_s", "value": 2.5}
    settings = await connection.fetch("SELECT name, value FROM notifyworker.settings WHERE value IN ('100', '2.5')")
    assert {row["name"] for row in settings} == {"max_payload_bytes", "reaper_interval_s"}


async def test_bench_measures_and_leaves_nothing(empty_dsn: str) -> None:
    env = {"NOTIFYWORKER_DSN": empty_dsn}
    conn = await asyncpg.connect(empty_dsn)
    left = "SELECT (SELECT count(*) FROM pg_namespace WHERE nspname ~ '^notifyworker') + (SELECT count(*) FROM pg_roles WHERE rolname ~ '^notifyworker_bench')"
    before = await conn.fetchval(left)

    found = (await call("bench", "--runs", "500", "--inserts", "10", "--json", env=env)).json()
    told = (await call("bench", "--runs", "100", "--inserts", "10", env=env)).out

    assert found["runs"] == 500
    assert found["runs_per_s"] == pytest.approx(500 / found["drain_s"])
    assert found["insert_p50_ms"] > 0
    assert 0 < found["pickup_p50_ms"] <= found["pickup_p99_ms"]
    assert re.fullmatch(r"drain +100 runs .*runs/s\npickup .*p99 .* ms\ninsert .* ms\n", told)
    assert await conn.fetchval(left) == before == 0
    await conn.close()
    assert "--runs" in await refused(2, "bench", "--runs", "1", env=env)


async def test_prune(dsn: str, connection: asyncpg.Connection) -> None:
    env = {"NOTIFYWORKER_DSN": dsn}
    await connection.execute(
        """CREATE TABLE notifyworker.run_history_20010101 PARTITION OF notifyworker.run_history
           FOR VALUES FROM ('2001-01-01 00:00:00+00') TO ('2001-01-02 00:00:00+00')"""
    )
    other = await asyncpg.connect(dsn)
    try:
        async with other.transaction():
            await other.execute("SELECT FROM notifyworker.run_history LIMIT 1")
            assert "try again later" in await refused(1, "prune", env=env)
    finally:
        await other.close()
    assert (await call("prune", env=env)).out == "dropped 1 day of settled runs\n"
    assert (await call("prune", "--json", env=env)).json() == {"dropped": 0, "deleted": 0, "dry_run": False}


# enqueue, runs, status.


async def test_enqueue_every_column(dsn: str, connection: asyncpg.Connection) -> None:
    env = {"NOTIFYWORKER_DSN": dsn}
    done = await call(
        *("enqueue", "email.send", "-", "--project-id", "p", "--priority", "-7", "--run-at", "2031-01-02T03:04:05Z"),
        *("--max-attempts", "4", "--timeout", "1.5", "--expires-at", "2031-02-02T00:00:00+02:00", "--idempotency-key", "once"),
        *("--shadow", "--headers", '{"traceparent": "00-1"}'),
        stdin='{"to": "ä"}',
        env=env,
    )
    assert (done.code, done.err) == (0, "")
    run_id = done.out.strip()
    run = (await call("runs", "show", run_id, "--json", env=env)).json()
    wanted = {
        "run_id": run_id, "kind": "email.send", "payload": {"to": "ä"}, "project_id": "p", "priority": -7, "max_attempts": 4,
        "run_at": "2031-01-02T03:04:05.000000Z", "timeout": 1.5, "expires_at": "2031-02-01T22:00:00.000000Z",
        "idempotency_key": "once", "is_shadow": True, "headers": {"traceparent": "00-1"}, "state": "pending",
    }  # fmt: skip
    assert {name: run[name] for name in wanted} == wanted
    live, again = [
        (await call("enqueue", "email.send", "--project-id", "p", "--idempotency-key", "once", "--json", env=env)).json()
        for _ in range(2)
    ]
    assert (live["run_id"] != run_id, live["existing"]) == (True, False)  # a shadow run's key holds nothing
    assert again == {"run_id": live["run_id"], "existing": True, "replaced": False}
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.runs") == 2


DEEP = "[" * 10_000 + "]" * 10_000


@pytest.mark.parametrize(
    ("arguments", "stdin", "word"),
    [
        (["", "{}"], "", "kind"),
        (["x" * 201, "{}"], "", "kind"),
        (["k", "{not json"], "", "payload"),
        (["k", ""], "", "payload"),
        (["k", "-"], "", "payload"),
        (["k", "-"], b"\xff\xfe", "payload"),
        (["k", '{"a": "\\u0000"}'], "", "payload"),
        (["k", '{"a": "\\ud800"}'], "", "payload"),
        (["k", '{"a": NaN}'], "", "payload"),
        (["k", '{"a": 1e400}'], "", "payload"),
        (["k", "-"], DEEP, "payload"),
        (["k", "-"], json.dumps("x" * 1_100_000), "payload"),
        (["k", "--run-at", "-4000-01-01T00:00:00Z"], "", "run_at"),
        (["k", "--run-at", "20000-01-01T00:00:00Z"], "", "run_at"),
        (["k", "--run-at", "1969-12-31T00:00:00Z"], "", "run_at"),
        (["k", "--run-at", "2030-01-01T00:00:00"], "", "time zone"),
        (["k", "--expires-at", "tomorrow"], "", "expires_at"),
        (["k", "--max-attempts", "0"], "", "max_attempts"),
        (["k", "--timeout", "-1"], "", "timeout"),
        (["k", "--timeout", "nan"], "", "timeout"),
        (["k", "--priority", "40000"], "", "priority"),
        (["k", "--project-id", ""], "", "project_id"),
        (["k", "--idempotency-key", "x" * 501], "", "idempotency_key"),
        (["k", "--headers", "[1]"], "", "headers"),
        (["k", "--headers", "{"], "", "headers"),
    ],
)
async def test_runs_that_are_refused(
    dsn: str, connection: asyncpg.Connection, arguments: list[str], stdin: str | bytes, word: str
) -> None:
    told = await refused(2, "enqueue", *arguments, stdin=stdin, env={"NOTIFYWORKER_DSN": dsn})
    assert word in told
    assert len(told) < 600
    assert await connection.fetchval("SELECT count(*) FROM notifyworker.runs") == 0


async def test_list_show_cancel_retry(dsn: str) -> None:
    env = {"NOTIFYWORKER_DSN": dsn}
    ids = [(await call("enqueue", kind, env=env)).out.strip() for kind in ("a", "b", "bad\x1b[31m\nkind")]
    listed = await call("runs", "list", env=env)
    assert "\x1b" not in listed.out
    assert len(listed.out.splitlines()) == 4
    assert listed.out.splitlines()[1].startswith(ids[2])
    assert [run["run_id"] for run in (await call("runs", "list", "--json", env=env)).json()["runs"]] == ids[::-1]
    assert [run["kind"] for run in (await call("runs", "list", "--kind", "a", "--json", env=env)).json()["runs"]] == ["a"]
    assert len((await call("runs", "list", "--limit", "1", "--json", env=env)).json()["runs"]) == 1
    assert "limit" in await refused(2, "runs", "list", "--limit", "501", env=env)
    assert (await call("runs", "cancel", ids[0], env=env)).out == "cancelled\n"
    assert "settled already" in await refused(1, "runs", "cancel", ids[0], env=env)
    assert (await call("runs", "list", "--state", "cancelled", "--json", env=env)).json()["runs"][0]["run_id"] == ids[0]
    assert (await call("runs", "retry", ids[0], "--json", env=env)).json() == {"run_id": ids[0], "state": "pending"}
    assert "is live" in await refused(1, "runs", "retry", ids[0], env=env)
    assert f"run_id       {ids[0]}" in (await call("runs", "show", ids[0], env=env)).out


@pytest.mark.parametrize("command", ["show", "cancel", "retry"])
async def test_ids(dsn: str, command: str) -> None:
    env = {"NOTIFYWORKER_DSN": dsn}
    assert "UUID" in await refused(2, "runs", command, "not-an-id", env=env)
    assert SOME_ID in await refused(1, "runs", command, SOME_ID, env=env)


async def test_status(tmp_path: Path, dsn: str, connection: asyncpg.Connection) -> None:
    env = {"NOTIFYWORKER_DSN": dsn}
    await connection.execute("INSERT INTO notifyworker.runs (kind) VALUES ('nobody.knows.it')")
    empty = await call("status", env=env)
    assert empty.code == 0
    assert re.search(r"leader +none", empty.out)
    async with running(tmp_path, dsn) as worker:
        await _started(connection, "sleep", {"s": 60})
        await eventually(lambda: connection.fetchval("SELECT leader IS NOT NULL FROM notifyworker.reaper"))
        seen = (await call("status", "--json", env=env)).json()
        shown = (await call("status", env=env)).out
        worker.kill()
        await worker.wait()
    assert seen["live"]["pending"]["runs"] == seen["live"]["running"]["runs"] == 1
    assert seen["live"]["pending"]["oldest_s"] > 0
    assert [(w["pid"], w["concurrency"], w["is_leader"], w["is_present"]) for w in seen["workers"]] == [
        (worker.pid, 10, True, True)
    ]
    assert seen["workers"][0]["heartbeat_age_s"] < 30
    assert seen["reaper"]["leader"] == seen["workers"][0]["lease_owner"]
    assert re.search(r"pending +1, oldest ready for ", shown)
    assert "1/10" in shown or "0/10" in shown


async def test_reader_that_leaves_early(dsn: str, connection: asyncpg.Connection) -> None:
    await connection.execute("INSERT INTO notifyworker.runs (kind, payload) SELECT 'k', '{}' FROM generate_series(1, 500)")
    command = f"{sys.executable} -m notifyworker runs list --limit 500 --json | head -1"
    env = environment({"NOTIFYWORKER_DSN": dsn})
    done = await asyncio.to_thread(subprocess.run, command, shell=True, capture_output=True, text=True, check=False, env=env)
    assert (done.stdout, done.stderr) == ("{\n", "")
