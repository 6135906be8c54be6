"""`notifyworker demo`, as on a fresh machine: whatever the environment says, however it ends, nothing is left behind."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from servers import eventually, processes, scratch_directory

import notifyworker

ROOT = Path(notifyworker.__file__).parents[1]
NONSENSE = {
    "NOTIFYWORKER_DSN": "junk",
    "NOTIFYWORKER_SCHEMA": "No Name",
    "NOTIFYWORKER_CONCURRENCY": "-3",
    "NOTIFYWORKER_PORT": "tcp://10.0.0.1:8080",
    "NOTIFYWORKER_TOKEN": "secret",
    "NOTIFYWORKER_SHADOW": "enforce",
    "NOTIFYWORKER_LOG_LEVEL": "error",
    "DATABASE_URL": "mysql://nowhere",
    "PGHOST": "no-such-host.invalid",
    "PGPORT": "x",
    "PGSSLMODE": "perhaps",
    "http_proxy": "http://127.0.0.1:1",
}


@pytest.fixture
def place() -> Iterator[Path]:
    """Where the demo puts its files, so that its processes and its rubbish can be told from others'."""
    with scratch_directory() as directory:
        yield directory


@contextlib.asynccontextmanager
async def demo(place: Path, *options: str, env: dict[str, str] | None = None) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "notifyworker", "demo", *options),
        cwd="/",
        env={**os.environ, "TMPDIR": str(place), "PYTHONPATH": str(ROOT), **(env or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def heard(process: asyncio.subprocess.Process, words: str) -> re.Match[str]:
    """Read what it says until it says this."""
    assert process.stderr is not None
    said = ""
    async with asyncio.timeout(200):
        while not (match := re.search(words, said)):
            line = await process.stderr.readline()
            assert line, f"never said {words!r}: {said}"
            said += line.decode()
    return match


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    out, err = await asyncio.wait_for(process.communicate(), 200)
    assert "Traceback" not in err.decode(), err.decode()
    return process.returncode, out.decode(), err.decode()


def nothing_left(place: Path) -> bool:
    return not processes(place) and not list(place.glob("notifyworker-demo-*"))


async def test_in_a_hostile_environment_and_kept_up(place: Path) -> None:
    async with demo(place, "--keep", "--json", "--data-dir", str(place / "data"), env=NONSENSE) as process:
        url = (await heard(process, r"Everything stays up: (\S+)"))[1]
        listed = await asyncio.to_thread(_get, f"{url}?limit=500")
        process.send_signal(signal.SIGINT)
        code, out, _err = await ended(process)
    seen = json.loads(out)
    assert (code, seen["faults"]) == (0, [])
    assert seen["states"] == {"completed": 208, "failed": 2}
    assert len(listed["runs"]) == seen["runs"] == 210
    assert seen["pickup_s"]["runs"] == 200
    assert 0 < seen["pickup_s"]["p50"] < 1
    assert 9 < seen["take_over_s"] < 30
    await eventually(lambda: nothing_left(place))
    assert (place / "data/data/PG_VERSION").exists()
    shutil.rmtree(place / "data")


async def test_in_a_database_of_the_users(place: Path, empty_dsn: str) -> None:
    async with demo(place, "--dsn", empty_dsn, env={"NOTIFYWORKER_DSN": "junk"}) as process:
        code, out, err = await ended(process)
    assert code == 0, out + err
    assert "210: 208 completed, 2 failed" in out
    assert "p50" in out
    assert "all as it should be" in out
    assert "embedded" not in err
    connection = await asyncpg.connect(empty_dsn)
    try:
        states = await connection.fetch("SELECT state, count(*) FROM notifyworker.all_runs GROUP BY 1 ORDER BY 1")
        assert [tuple(row) for row in states] == [("completed", 208), ("failed", 2)]
    finally:
        await connection.close()
    await eventually(lambda: nothing_left(place))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("moment", ["starting an embedded", "worker 1 started", "serves"])
async def test_interrupted(place: Path, number: int, code: int, moment: str) -> None:
    async with demo(place) as process:
        await heard(process, moment)
        process.send_signal(number)
        assert (await ended(process))[0] == code
    assert nothing_left(place)


async def test_killed(place: Path) -> None:
    async with demo(place) as process:
        await heard(process, "serves")
        process.kill()
        await process.wait()
        await eventually(lambda: not processes(place))


async def test_a_worker_that_dies_is_told(place: Path) -> None:
    async with demo(place) as process:
        pid = int((await heard(process, r"worker 2 started, process (\d+)"))[1])
        os.kill(pid, signal.SIGKILL)
        code, out, err = await ended(process)
    assert (code, out) == (1, "")
    assert "error: worker 2 ended with exit code -9" in err
    assert nothing_left(place)


def _get(url: str) -> Any:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
        return json.load(answer)
