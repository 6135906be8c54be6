"""The commands that look, follow and wait: what a user sees of them, on a terminal, through a pipe, and as JSON."""

import asyncio
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest
from servers import STARTED_S, Cluster, eventually
from test_cli import APP, call, environment, refused, running, start

from notifyworker import InvalidRun, Worker
from notifyworker.cli.app import make_app
from notifyworker.migrate import migrate

INSERT = "INSERT INTO notifyworker.runs (kind, payload) VALUES ($1, $2) RETURNING run_id"


class Lines:
    """A command that goes on, and the lines of its output."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def until(self, pattern: str, stream: str = "stdout") -> str:
        reader = getattr(self.process, stream)
        seen = ""
        async with asyncio.timeout(STARTED_S):
            while not re.search(pattern, seen):
                line = await reader.readline()
                assert line, f"it ended after {seen!r}"
                seen += line.decode()
        return seen

    async def interrupt(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        async with asyncio.timeout(30):
            return await self.process.wait()


@contextlib.asynccontextmanager
async def going_on(*arguments: str, dsn: str) -> AsyncIterator[Lines]:
    process = await start(*arguments, env={"NOTIFYWORKER_DSN": dsn})
    try:
        yield Lines(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def on_terminal(
    *arguments: str,
    dsn: str,
    until: str,
    then: Callable[[], object] | None = None,
    columns: int = 80,
    env: dict[str, str] | None = None,
) -> str:
    """What a terminal receives of a command that goes on until it has shown `until`, when it gets Ctrl-C; or `then` happens."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    surroundings = environment({"NOTIFYWORKER_DSN": dsn, "TERM": "xterm-256color", **(env or {})})
    del surroundings["COLUMNS"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "notifyworker", *arguments), stdin=slave, stdout=slave, stderr=slave, env=surroundings, cwd="/"
    )
    os.close(slave)
    seen = b""
    loop = asyncio.get_running_loop()
    arrived, closed = asyncio.Event(), asyncio.Event()

    def read() -> None:
        nonlocal seen
        try:
            seen += os.read(master, 65536)
        except OSError:  # the other side is closed
            loop.remove_reader(master)
            closed.set()
        arrived.set()

    loop.add_reader(master, read)
    try:
        async with asyncio.timeout(STARTED_S):
            while not re.search(until, seen.decode(errors="replace")):
                arrived.clear()
                await arrived.wait()
                assert process.returncode is None or re.search(until, seen.decode(errors="replace")), seen
        if then is None:
            process.send_signal(signal.SIGINT)
        else:
            then()
        async with asyncio.timeout(30):
            assert await process.wait() == 0, seen
        await eventually(closed.is_set)
    finally:
        loop.remove_reader(master)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        os.close(master)
    return seen.decode(errors="replace")


# Which runs.


@pytest.fixture
async def some_runs(connection: asyncpg.Connection) -> list[str]:
    """Seven runs of every sort; ids in order."""
    insert = "INSERT INTO notifyworker.runs (kind, project_id, payload, is_shadow) VALUES ($1, $2, $3, $4) RETURNING run_id"
    rows = [("a", "p", '{"to": "Ada"}', False), ("a", "q", '{"to": "Bob"}', True), ("b", "p", '{"to": "adam"}', False)]
    ids = [str(await connection.fetchval(insert, *row)) for row in rows]
    # Held and settled by hand, as a worker of the host ams-1 leaves them.
    await connection.execute(
        """UPDATE notifyworker.runs SET state = 'running', attempt = 1, max_attempts = 3, lease_token = 1,
                  lease_owner = 'ams-1:7:x', lease_expires_at = now() + interval '1 h', started_at = now() WHERE run_id = $1""",
        ids[0],
    )
    await connection.execute("SELECT notifyworker.cancel($1::uuid)", ids[1])
    return ids


@pytest.fixture
def listed(dsn: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., Awaitable[list[str]]]:
    """What `runs list` shows, in this process: a new one would take most of the time."""

    async def ids(*options: str) -> list[str]:
        await make_app().run_async(["runs", "list", *options, "--dsn", dsn, "--json"])
        return [run["run_id"] for run in json.loads(capsys.readouterr().out)["runs"]]

    return ids


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], [2, 1, 0]),
        (["--state", "running"], [0]),
        (["--kind", "a", "--project-id", "p"], [0]),
        (["--worker", "ams-1"], [0]),
        (["--worker", "ams-1:7:y"], []),
        (["--shadow"], [1]),
        (["--no-shadow"], [2, 0]),
        (["--text", "ADA"], [2, 0]),
        (["--text", "ada", "--kind", "b"], [2]),
        (["--since", "1h"], [2, 1, 0]),
        (["--until", "1h"], []),
        (["--since", "2999-01-01T00:00:00Z"], []),
        (["--since", "1970-01-01T00:00:00Z", "--until", "2999-01-01T00:00:00Z", "--limit", "1"], [2]),
    ],
)
async def test_which_runs(listed, some_runs: list[str], options: list[str], wanted: list[int]) -> None:
    assert await listed(*options) == [some_runs[n] for n in wanted]


async def test_the_page_behind(listed, some_runs: list[str]) -> None:
    assert await listed("--before", some_runs[2], "--limit", "1") == [some_runs[1]]


async def test_since_and_until_divide_at_a_run(listed, connection: asyncpg.Connection) -> None:
    """What was inserted in a millisecond is on one side of it, and nothing is on both or on neither."""
    ids = []
    for _ in range(3):
        ids.append(str(await connection.fetchval(INSERT, "k", "{}")))
        await connection.execute("SELECT pg_sleep(0.005)")
    at = await connection.fetchval(
        "SELECT to_timestamp(('x' || substr(replace($1::text, '-', ''), 1, 12))::bit(48)::bigint / 1000.0)", ids[1]
    )
    for option, wanted in (("--since", ids[:0:-1]), ("--until", ids[:1])):
        assert await listed(option, at.isoformat()) == wanted, option


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--since", "yesterday"], "since"),
        (["--until", "2026-01-01T00:00:00"], "until"),
        (["--worker", ""], "worker"),
        (["--text", "x" * 1001], "text"),
        (["--before", "me"], "before"),
        (["--kind", "x" * 201], "kind"),
    ],
)
async def test_filters_that_are_refused(listed, options: list[str], word: str) -> None:
    with pytest.raises(InvalidRun) as told:
        await listed(*options)
    assert told.value.field == word


# One run.


async def test_the_time_line(dsn: str, connection: asyncpg.Connection, make_worker) -> None:
    worker: Worker = make_worker()

    @worker.handler("flaky")
    async def flaky(run, payload: dict) -> None:
        if run.attempt == 1:
            raise RuntimeError("no luck")

    env = {"NOTIFYWORKER_DSN": dsn}
    waiting = await connection.fetchval(
        "INSERT INTO notifyworker.runs (kind, run_at) VALUES ('x', now() + interval '1 h') RETURNING run_id"
    )
    async with worker:
        run_id = await connection.fetchval(INSERT, "flaky", "{}")
        await eventually(
            lambda: connection.fetchval("SELECT state = 'completed' FROM notifyworker.all_runs WHERE run_id = $1", run_id)
        )
    shown, later = [(await call("runs", "show", str(one), env=env)).out for one in (run_id, waiting)]
    events = re.findall(
        r"^\d{4}-\d\d-\d\d [\d:.]+Z(?: +\+\S+ \w+)? +(.+?)(?:  .*)?$", shown.partition("Time line")[2], re.MULTILINE
    )
    assert events[0] == "inserted"
    assert events[1].startswith("attempt 1 ended: E-RUN-001 RuntimeError: no luck")
    assert "due" in events
    assert "attempt 2 of 3 started" in events
    assert events[-1] == "completed"
    assert re.search(r"due in 59 min \d+ s", later)


# Kinds.


async def test_top(dsn: str, connection: asyncpg.Connection, make_worker) -> None:
    worker: Worker = make_worker()

    @worker.handler("good")
    async def good(run, payload: dict) -> None: ...

    @worker.handler("bad", retry=None)
    async def bad(run, payload: dict) -> None:
        raise RuntimeError("no")

    env = {"NOTIFYWORKER_DSN": dsn}
    async with worker:
        await connection.execute("INSERT INTO notifyworker.runs (kind, max_attempts) SELECT 'good', 1 FROM generate_series(1, 5)")
        await connection.execute("INSERT INTO notifyworker.runs (kind, max_attempts) VALUES ('bad', 1)")
        await eventually(lambda: connection.fetchval("SELECT NOT EXISTS (SELECT FROM notifyworker.runs)"))
    await connection.execute(
        "INSERT INTO notifyworker.runs (kind, run_at) VALUES ('none', now()), ('none', now() + interval '1 h')"
    )
    seen = (await call("top", "--once", "--json", env=env)).json()
    kinds = {row.pop("kind"): row for row in seen["kinds"]}
    assert list(kinds) == ["none", "good", "bad"]
    assert [kinds["none"][name] for name in ("ready", "later", "running", "completed")] == [1, 1, 0, 0]
    assert [kinds["good"][name] for name in ("ready", "completed", "failed")] == [0, 5, 0]
    assert [kinds["bad"][name] for name in ("completed", "failed")] == [0, 1]
    assert kinds["good"]["took_p95_s"] >= kinds["good"]["took_p50_s"] >= 0
    assert kinds["good"]["wait_p95_s"] >= 0
    shown = (await call("top", "--once", env=env)).out
    assert re.search(r"^good +0 +- +0 +0 +0.0833 +5 +0", shown, re.MULTILINE)
    assert "--window-s" in await refused(2, "top", "--window-s", "0", env=env)
    assert "--interval-s" in await refused(2, "top", "--interval-s", "nan", env=env)


async def test_looking_again_and_again(dsn: str, connection: asyncpg.Connection) -> None:
    """Through a pipe: text without escapes, or one document a line; and Ctrl-C is no failure."""
    async with going_on("status", "--watch", "--interval-s", "0.1", dsn=dsn) as plain:
        assert "\x1b" not in await plain.until(r"pending +0\n(.*\n)+.*pending +0\n")
        await connection.execute(INSERT, "k", "{}")
        await plain.until(r"pending +1, ")
        assert await plain.interrupt() == 0
        assert await plain.process.stderr.read() == b""
    async with going_on("top", "--interval-s", "0.1", "--json", dsn=dsn) as documents:
        for _ in range(2):
            assert json.loads(await documents.until("\n"))["kinds"][0]["ready"] == 1
        assert await documents.interrupt(signal.SIGTERM) == 0


@pytest.mark.parametrize("command", [["status", "--watch"], ["top"]])
@pytest.mark.parametrize("columns", [80, 160])
async def test_a_screen_that_leaves_the_terminal_as_it_was(
    dsn: str, connection: asyncpg.Connection, command: list[str], columns: int
) -> None:
    await connection.execute(INSERT, "a.kind.with.a.rather.long.name.\x1b[31m", "{}")
    seen = await on_terminal(
        *command, "--interval-s", "0.2", dsn=dsn, until="Ctrl-C ends it[^\x07]*Ctrl-C ends it", columns=columns
    )
    assert "\x1b[?1049h" in seen
    assert "\x1b[?1049l" in seen
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")
    assert "\x1b[31m" not in seen.replace("\x1b[31mfailed", "")
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in seen.split("\r\n")]
    assert max(map(len, lines)) <= 2 * columns  # two frames may share one


async def test_colours_are_left_out_when_nobody_wants_them(dsn: str, connection: asyncpg.Connection) -> None:
    run_id = str(await connection.fetchval(INSERT, "k", "{}"))
    coloured = await on_terminal("runs", "list", dsn=dsn, until=run_id, then=lambda: None)
    assert "\x1b[34m" in coloured
    for arguments, env in ((["--no-color"], {}), ([], {"NO_COLOR": "1"})):
        assert "\x1b[3" not in await on_terminal("runs", *arguments, "list", dsn=dsn, until=run_id, then=lambda: None, env=env)


# Following.


async def test_tail(dsn: str, connection: asyncpg.Connection, tmp_path: Path) -> None:
    before = await connection.fetchval(INSERT, "nobody", "{}")
    async with running(tmp_path, dsn), going_on("runs", "tail", "--interval-s", "0.1", dsn=dsn) as told:
        await told.until("following", "stderr")
        first = await connection.fetchval(INSERT, "echo", "{}")
        seen = await told.until(f"{first}  completed  echo  attempt 1/3  in ")
        wrong = await connection.fetchval(INSERT, "until", "{}")
        seen += await told.until(f"{wrong}  pending    until  attempt 1/3  E-RUN-001 KeyError: 'file'\n")
        await connection.execute("SELECT notifyworker.cancel($1)", before)
        seen += await told.until(f"{before}  cancelled  nobody\n")
        assert "\x1b" not in seen
        assert await told.interrupt() == 0
        assert await told.process.stderr.read() == b""
    assert all(seen.count(f"{run}  {state}") == 1 for run, state in ((first, "completed"), (before, "cancelled")))


async def test_tail_of_some(dsn: str, connection: asyncpg.Connection, tmp_path: Path) -> None:
    options = ("--state", "failed", "--kind", "until", "--json", "--interval-s", "0.1")
    async with running(tmp_path, dsn), going_on("runs", "tail", *options, dsn=dsn) as told:
        await told.until("following", "stderr")
        await connection.execute("INSERT INTO notifyworker.runs (kind, max_attempts) VALUES ('echo', 1), ('stranger', 1)")
        wrong = await connection.fetchval(
            "INSERT INTO notifyworker.runs (kind, max_attempts) VALUES ('until', 1) RETURNING run_id"
        )
        change = json.loads(await told.until("\n"))
    assert (change["run_id"], change["state"], change["error_code"]) == (str(wrong), "failed", "E-RUN-001")
    assert change["message"] == "KeyError: 'file'"
    assert change["took_s"] >= 0


async def test_tail_survives_the_database() -> None:
    """Also what was settled while it was away is told, once."""
    async with Cluster() as cluster:
        await migrate(cluster.dsn, "notifyworker")
        async with going_on("runs", "tail", "--interval-s", "0.1", dsn=cluster.dsn) as told:
            await told.until("following", "stderr")
            connection = await asyncpg.connect(cluster.dsn)
            first = await connection.fetchval(INSERT, "k", "{}")
            await told.until(f"{first}  pending")
            await connection.close()
            await cluster.stop()
            assert "it is tried again" in await told.until("no answer from the database", "stderr")
            await cluster.start()
            connection = await asyncpg.connect(cluster.dsn)
            second = await connection.fetchval(INSERT, "k", "{}")
            await connection.execute("SELECT notifyworker.cancel($1)", first)
            await connection.close()
            assert await told.until("answers again", "stderr") == "the database answers again\n"
            seen = await told.until(f"{first}  cancelled")
            if str(second) not in seen:
                seen += await told.until(f"{second}  pending")
            assert seen.count("\n") == 2
            await cluster.stop("immediate")
            await told.until("no answer", "stderr")
            assert await told.interrupt() == 0


async def test_tail_without_rights(dsn: str) -> None:
    assert "--interval-s" in await refused(2, "runs", "tail", "--interval-s", "0", env={"NOTIFYWORKER_DSN": dsn})
    nowhere = "postgresql://u@127.0.0.1:1/d"
    for command in (["runs", "tail"], ["top"], ["status", "--watch"]):
        assert "127.0.0.1" in await refused(3, *command, env={"NOTIFYWORKER_DSN": nowhere})


# Waiting.


async def test_enqueue_waits_and_tells_the_outcome(dsn: str, connection: asyncpg.Connection, tmp_path: Path) -> None:
    env = {"NOTIFYWORKER_DSN": dsn}
    async with running(tmp_path, dsn):
        done = await call("enqueue", "echo", '{"a": [1]}', "--wait", env=env)
        assert (done.code, done.out) == (0, '{"a": [1]}\n')
        assert re.fullmatch(r"run [0-9a-f-]{36}\n", done.err)
        failed = await call("enqueue", "until", "--max-attempts", "1", "--wait", env=env)
        assert (failed.code, failed.out) == (1, "")
        assert failed.err.endswith("failed after 1 attempt: E-RUN-001 KeyError: 'file'\n")
        as_json = await call("enqueue", "until", "--max-attempts", "1", "--wait", "--json", env=env)
        assert (as_json.code, as_json.json()["state"], as_json.json()["error_code"]) == (1, "failed", "E-RUN-001")
    late = await call("enqueue", "echo", "--wait-s", "0.2", env=env)
    assert (late.code, late.out) == (6, "")
    assert "not settled within 0.2 s: it is pending, and goes on" in late.err
    assert "wait_s" in await refused(2, "enqueue", "echo", "--wait-s", "0", env=env)
    async with going_on("enqueue", "echo", "--wait", dsn=dsn) as waiting:
        run_id = (await waiting.until("run .*\n", "stderr")).split()[1]
        await connection.execute("SELECT notifyworker.cancel($1::uuid)", run_id)
        async with asyncio.timeout(30):
            assert await waiting.process.wait() == 5
    async with going_on("enqueue", "echo", "--wait", dsn=dsn) as waiting:
        run_id = (await waiting.until("run .*\n", "stderr")).split()[1]
        assert await waiting.interrupt() == 130
        assert b"the run goes on" in await waiting.process.stderr.read()
    assert await connection.fetchval("SELECT state FROM notifyworker.runs WHERE run_id = $1::uuid", run_id) == "pending"


async def test_progress_is_shown_while_it_waits(dsn: str, make_worker) -> None:
    worker: Worker = make_worker()
    go_on = asyncio.Event()

    @worker.handler("slow")
    async def slow(run, payload: dict) -> str:
        await run.progress({"step": "half"})
        await go_on.wait()
        return "done"

    async with worker:
        seen = await on_terminal("enqueue", "slow", "--wait", dsn=dsn, until="half", then=go_on.set)
    assert '{"step": "half"}' in seen
    assert '"done"' in seen


# Settings, completion, help.


async def test_where_settings_come_from(dsn: str, connection: asyncpg.Connection, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP.replace("Worker()", "Worker(concurrency=7, lease_s=70)"))
    env = {
        "NOTIFYWORKER_DSN": dsn.replace("postgres@", "postgres:geheim-4711@"),
        "NOTIFYWORKER_TOKEN": "geheim-4711",
        "NOTIFYWORKER_LEASE_S": "80",
        "notifyworker_prefetch": "3",
        "NOTIFYWORKER_POLL_INTERVAL_S": "",
        "NOTIFYWORKER_REAPER_INTERVAL_S": "5",
        "NOTIFYWORKER_PORT": "tcp://10.0.0.1:80",
    }
    await call("config", "set", "max_payload_bytes", "1000", env={"NOTIFYWORKER_DSN": dsn})
    done = await call("config", "show", "app:worker", "--shadow", "enforce", "--json", cwd=tmp_path, env=env)
    assert done.code == 0, done
    rows = {row["name"]: row for row in done.json()["settings"]}
    told = {name: (rows[name]["value"], rows[name]["source"]) for name in rows}
    assert told["shadow"] == ("enforce", "command line")
    assert told["lease_s"] == (80.0, "environment: NOTIFYWORKER_LEASE_S")
    assert told["concurrency"] == (7, "keyword")
    assert told["prefetch"] == (3, "environment: NOTIFYWORKER_PREFETCH")
    assert told["poll_interval_s"] == (5.0, "default")
    assert told["port"] == (8080, "default")
    assert told["token"] == ("***", "environment: NOTIFYWORKER_TOKEN")
    assert told["dsn"][1] == "environment: NOTIFYWORKER_DSN"
    assert told["max_payload_bytes"] == (1000, "fleet table")
    assert told["reaper_interval_s"] == (60, "fleet table")
    assert rows["reaper_interval_s"]["overruled"] == {"value": 5.0, "source": "environment: NOTIFYWORKER_REAPER_INTERVAL_S"}
    shown = (await call("config", "show", cwd=tmp_path, env={**env, "NOTIFYWORKER_DSN": "", "DATABASE_URL": dsn})).out
    assert re.search(r"^dsn +\S.* environment: DATABASE_URL$", shown, re.MULTILINE)
    assert re.search(r"^reaper_interval_s +60 +fleet table \(and not 5.0, environment: NOTIFYWORKER_REAPER", shown, re.MULTILINE)


async def test_settings_without_a_database() -> None:
    nowhere = await call("config", "show", "--json")
    assert (nowhere.code, nowhere.json()["fleet"]) == (0, "no database is given")
    away = await call("config", "show", env={"NOTIFYWORKER_DSN": "postgresql://u@127.0.0.1:1/d"})
    assert away.code == 3
    assert "lease_s" in away.out
    assert "the fleet's own settings are not known" in away.err


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
async def test_completion_completes() -> None:
    script = (await call("completion", "bash")).out
    ask = 'COMP_WORDS=(notifyworker runs ""); COMP_CWORD=2; COMP_LINE="notifyworker runs "; COMP_POINT=${#COMP_LINE}; '
    function = re.findall(r"complete .*-F (\w+)", script)[0]
    done = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-c", f'{script}\n{ask}\n{function}; printf "%s\\n" "${{COMPREPLY[@]}}"'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert {"list", "show", "tail", "cancel", "retry"} <= {word.strip() for word in done.stdout.split("\n")}, done
    for shell in ("zsh", "fish"):
        assert "runs" in (await call("completion", shell)).out
    assert "--help" in await refused(2, "completion", "tcsh")


async def test_help_through_a_pipe_has_no_escapes_and_fits() -> None:
    for arguments in ([], ["runs", "list"], ["enqueue"], ["config", "show"]):
        done = await call(*arguments, "--help", env={"COLUMNS": "80"})
        assert done.code == 0
        assert "\x1b" not in done.out
        assert max(map(len, done.out.splitlines())) <= 80
        assert "Examples:" in done.out or not arguments
