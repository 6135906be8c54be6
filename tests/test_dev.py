"""`notifyworker init` and `dev`: from nothing to a first run, and code that changes under the worker."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import psutil
import pytest
from servers import eventually, processes, scratch_directory
from test_cli import APP, call, environment, refused
from test_cli_looks import Lines

INSERT = "INSERT INTO notifyworker.runs (kind, payload) VALUES ($1, $2) RETURNING run_id"


@contextlib.asynccontextmanager
async def developing(folder: Path, *options: str, dsn: str | None = None) -> AsyncIterator[Lines]:
    """`notifyworker dev app:worker`, all that it says in one stream; nothing of it is left."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", "-m", "notifyworker", "dev", "app:worker", *options),
        cwd=folder,
        env=environment({"NOTIFYWORKER_DSN": dsn} if dsn else {}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=2**24,
    )
    family = psutil.Process(process.pid)
    try:
        yield Lines(process)
    finally:
        children = family.children(recursive=True) if family.is_running() else []
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
        await eventually(
            lambda: not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        )


async def result(dsn: str, run_id: str) -> str | None:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval("SELECT result FROM notifyworker.run_history WHERE run_id = $1", run_id)
    finally:
        await connection.close()


async def test_from_nothing_to_the_first_run(tmp_path: Path) -> None:
    """What init says is typed as it stands, and so is what dev says."""
    done = await call("init", "hello", cwd=tmp_path)
    assert done.code == 0
    assert done.out.splitlines()[1:] == ["next: cd hello", "next: notifyworker dev app:worker"]
    project = tomllib.loads((tmp_path / "hello" / "pyproject.toml").read_text())
    assert project["project"]["name"] == "hello"
    readme = (tmp_path / "hello" / "README.md").read_text()
    with scratch_directory() as place:
        async with developing(tmp_path / "hello", "--port", "0", "--data-dir", str(place / "data")) as told:
            said = await told.until("worker_started")
            dsn = re.search(r"export NOTIFYWORKER_DSN='(.+)'", said)[1]
            env = {"NOTIFYWORKER_DSN": dsn}
            first = await call("enqueue", "hello", '{"name": "Ada"}', "--wait", env=env)
            assert (first.code, first.out) == (0, '{"greeting": "Hello, Ada!"}\n')
            assert "completed  hello  attempt 1/3" in await told.until("completed")
            insert = re.search(r"INSERT INTO [^;]+;", readme)[0]
            connection = await asyncpg.connect(dsn)
            await connection.execute(insert)
            await connection.close()
            await told.until("completed  hello")
            assert await told.interrupt() == 0
        await eventually(lambda: not processes(place))


async def test_init_overwrites_nothing(tmp_path: Path) -> None:
    assert (await call("init", "--json", cwd=tmp_path)).json()["files"] == ["app.py", "pyproject.toml", "README.md", ".gitignore"]
    before = {file.name: file.read_text() for file in tmp_path.iterdir()}
    (tmp_path / "README.md").unlink()
    assert "app.py, pyproject.toml, .gitignore already; nothing was written" in await refused(1, "init", cwd=tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(before.keys() - {"README.md"})
    assert "error: " in await refused(1, "init", "/proc/nowhere")


async def test_new_code_is_executed_and_broken_code_is_told(tmp_path: Path, empty_dsn: str) -> None:
    app = tmp_path / "app.py"
    app.write_text(APP)
    async with developing(tmp_path, "--no-sidecar", dsn=empty_dsn) as told:
        await told.until("worker_started")
        connection = await asyncpg.connect(empty_dsn)
        # One that would take for ever: it gets its three seconds, goes back, and is executed by the new code.
        stuck = str(await connection.fetchval(INSERT, "until", json.dumps({"file": str(tmp_path / "never")})))
        await told.until(f"{stuck}  running")
        app.write_text(APP.replace("while not Path", "while False and not Path").replace("return payload", "return 'new'"))
        seen = await told.until(f"{stuck}  completed")
        assert "changed: app.py; starting anew" in seen

        app.write_text("def (:\n")
        seen = await told.until("a change of a file starts it again")
        assert "error: " in seen
        assert "app.py:1" in seen
        assert "Traceback" not in seen
        app.write_text(APP.replace("return payload", "return 'newer'"))
        await told.until("worker_started")
        run_id = str(await connection.fetchval(INSERT, "echo", "{}"))
        await told.until(f"{run_id}  completed")
        assert await result(empty_dsn, run_id) == '"newer"'
        await connection.close()
        assert await told.interrupt() == 0


async def test_files_that_are_no_code_change_nothing(tmp_path: Path, empty_dsn: str) -> None:
    (tmp_path / "app.py").write_text(APP)
    async with developing(tmp_path, "--no-sidecar", dsn=empty_dsn) as told:
        await told.until("worker_started")
        (tmp_path / "notes.txt").write_text("x")
        (tmp_path / "other.py").write_text("x = 1")  # the first change that counts
        assert "notes" not in await told.until("changed: other.py; starting anew")


async def test_a_second_ctrl_c_ends_it_at_once(tmp_path: Path, empty_dsn: str) -> None:
    (tmp_path / "app.py").write_text(APP)
    async with developing(tmp_path, "--no-sidecar", "--no-reload", dsn=empty_dsn) as told:
        await told.until("worker_started")
        connection = await asyncpg.connect(empty_dsn)
        run_id = await connection.fetchval(INSERT, "sleep", '{"s": 600}')
        await told.until(f"{run_id}  running")
        told.process.send_signal(signal.SIGINT)
        await told.until("draining")
        assert await told.interrupt() == 130
        assert await connection.fetchval("SELECT state FROM notifyworker.runs WHERE run_id = $1", run_id) == "pending"
        await connection.close()


async def test_the_worker_does_not_outlive_a_dev_that_is_killed(tmp_path: Path, empty_dsn: str) -> None:
    (tmp_path / "app.py").write_text(APP)
    async with developing(tmp_path, "--no-sidecar", dsn=empty_dsn) as told:
        await told.until("worker_started")
        children = psutil.Process(told.process.pid).children()
        assert len(children) == 1
        os.kill(told.process.pid, signal.SIGKILL)
        await told.process.wait()
        try:
            await eventually(lambda: not children[0].is_running() or children[0].status() == psutil.STATUS_ZOMBIE)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                children[0].kill()


@pytest.mark.parametrize(("code", "word"), [("worker = 1\n", "is no Worker"), ("import nothing_of_the_kind\n", "app.py:1")])
async def test_a_wrong_reference_is_told_at_once(tmp_path: Path, code: str, word: str) -> None:
    (tmp_path / "app.py").write_text(code)
    assert word in await refused(2, "dev", "app:worker", cwd=tmp_path)
