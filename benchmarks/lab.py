"""
The laboratory: one PostgreSQL 18 and one Redis on 127.0.0.1, a database a turn, and processes that can't outstay their turn.

fsync is on. The configuration below holds for everyone; what is not named has PostgreSQL's default.
"""

import asyncio
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import asyncpg

from benchmarks import proc
from benchmarks.contender import Contender
from benchmarks.tally import Tallies
from notifyworker.embedded import binaries, server_account

ROOT = Path(__file__).parent.parent

POSTGRES = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",  # no checkpoint by volume within a turn; each turn begins with one
    "checkpoint_timeout": "30min",
    "max_connections": "500",  # fifty workers
    "jit": "off",
    "log_min_messages": "warning",
    "log_lock_waits": "off",
}
REDIS = {"appendonly": "yes", "appendfsync": "everysec", "save": ""}
TROUBLE = re.compile(r"deadlock detected|could not serialize", re.IGNORECASE)


ANSWER_S = 10.0


class TurnError(Exception):
    """A contender failed or was too slow. It is told in the table; the others go on."""


class Unanswered(TurnError):
    """The contender's own tables did not tell in time what was asked of them."""


class Lab:
    """`with Lab() as lab:`. At its end nothing of it runs and its files are gone."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._password = secrets.token_hex(16)
        self._port = _free_port()
        self._redis_port = 0
        self._turns = 0
        self.directory = Path()

    def __enter__(self) -> Self:
        self.directory = Path(
            self._stack.enter_context(tempfile.TemporaryDirectory(prefix="nw-bench-", ignore_cleanup_errors=True))
        )
        if os.geteuid() == 0:
            self.directory.chmod(0o711)
        try:
            self._start_postgres()
            if shutil.which("redis-server"):
                self._start_redis()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def redis(self) -> str:
        return f"redis://127.0.0.1:{self._redis_port}/0"

    def dsn(self, database: str = "postgres", user: str = "postgres") -> str:
        return f"postgresql://{user}:{self._password}@127.0.0.1:{self._port}/{database}"

    def make_login(self, name: str, member_of: str) -> None:
        """A login that is no superuser, for `dsn`. It stays until the laboratory ends."""
        if not self.execute(f"SELECT count(*) FROM pg_roles WHERE rolname = '{name}'"):
            self.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{self._password}'")
        self.execute(f"GRANT {member_of} TO {name}")

    def program(self, name: str) -> Path:
        """One of the embedded server's programs, such as pgbench."""
        return binaries(copies=self.directory / "programs") / name

    def versions(self) -> dict[str, str]:
        found = {"postgres_version": _first_line(str(self.program("postgres")), "--version")}
        if shutil.which("redis-server"):
            words = _first_line("redis-server", "--version").split()
            found["redis_version"] = "Redis " + next(word.removeprefix("v=") for word in words if word.startswith("v="))
        if shutil.which("node"):
            found["node"] = _first_line("node", "--version").removeprefix("v")
        return found

    @contextlib.contextmanager
    def turn(self, contender: Contender) -> Iterator["Turn"]:
        """A fresh database (or an emptied Redis), a checkpoint before the clock starts, and an end for all processes."""
        self._turns += 1
        name = f"turn_{self._turns}"
        directory = self.directory / name
        directory.mkdir()
        if contender.broker == "redis":
            self.redis_command("FLUSHALL")
        self.execute(f"CREATE DATABASE {name}")
        turn = Turn(self, contender, name, directory)
        mark = self.log_size()
        try:
            yield turn
        finally:
            turn.end_all()
            turn.trouble = len(TROUBLE.findall(self.log_since(mark)))
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")
            shutil.rmtree(directory, ignore_errors=True)

    def execute(self, statement: str, database: str = "postgres") -> Any:
        """Run one statement on a connection of its own, return its first value."""
        with Asking(self.dsn(database)) as asking:
            return asking.value(statement)

    def redis_command(self, *words: str) -> int:
        """Send one command, return its integer (0 for OK)."""
        with socket.create_connection(("127.0.0.1", self._redis_port), timeout=30) as conn:
            encoded = b"".join(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words)
            conn.sendall(b"*%d\r\n%s" % (len(words), encoded))
            answer = conn.makefile("rb").readline()
        if answer.startswith(b"-"):
            raise TurnError(answer.decode().strip())
        return int(answer[1:]) if answer.startswith(b":") else 0

    def server_cpu_s(self) -> float:
        """CPU seconds of all of the server's processes, those that have ended included."""
        server = int((self.directory / "postgres/data/postmaster.pid").read_text().split()[0])
        ended = sum(proc.fields(server)[proc.CUTIME : proc.CSTIME + 1]) / proc.TICKS_A_SECOND
        return ended + sum(map(proc.thread_cpu_s, [server, *proc.children(server)]))

    def log_size(self) -> int:
        """Where the server's log ends now."""
        return self._log.stat().st_size

    def log_since(self, mark: int) -> str:
        """What the server has logged since it was so long."""
        return self._log.read_bytes()[mark:].decode(errors="replace")

    @property
    def _log(self) -> Path:
        return self.directory / "postgres" / "log"

    def _start_postgres(self) -> None:
        home = self.directory / "postgres"
        home.mkdir()
        password = home / "password"
        password.write_text(self._password)
        password.chmod(0o600)
        if account := server_account():
            for path in (home, password):
                os.chown(path, account["user"], account["group"])
        data = home / "data"
        self._server_program(
            "initdb", "-D", data, "-U", "postgres", "-A", "scram-sha-256", "--pwfile", password, "-E", "UTF8", "--locale=C"
        )
        password.unlink()
        where = {"port": self._port, "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
        with (data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in (where | POSTGRES).items())
        # Before the start: a start that is interrupted leaves a server behind.
        self._stack.callback(self._stop_postgres, data)
        self._server_program("pg_ctl", "start", "-w", "-t", "60", "-D", data, "-l", self._log)

    def _stop_postgres(self, data: Path) -> None:
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            self._server_program("pg_ctl", "stop", "-w", "-t", "60", "-m", "immediate", "-D", data)

    def _server_program(self, name: str, *arguments: object) -> None:
        done = subprocess.run(
            [str(self.program(name)), *map(str, arguments)],
            env={k: v for k, v in os.environ.items() if not k.startswith("PG")} | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            check=False, cwd="/", timeout=120, start_new_session=True, **server_account(),
        )  # fmt: skip
        if done.returncode:
            tail = self._log.read_text(errors="replace")[-2000:] if self._log.exists() else ""
            message = f"{name}: {done.stdout}\n{tail}"
            raise RuntimeError(message)

    def _start_redis(self) -> None:
        self._redis_port = _free_port()
        home = self.directory / "redis"
        home.mkdir()
        options = {"port": self._redis_port, "bind": "127.0.0.1", "dir": home, "daemonize": "no"} | REDIS
        command = ["redis-server", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        self._stack.callback(_end, process)
        deadline = time.monotonic() + 10
        while True:
            try:
                self.redis_command("PING")
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return


class Asking:
    """A connection for those who are not asynchronous."""

    def __init__(self, dsn: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._conn: asyncpg.Connection = self._loop.run_until_complete(asyncpg.connect(dsn, timeout=30))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._conn.terminate()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def value(self, statement: str) -> Any:
        """Run one statement, return its first value. Raises Unanswered."""
        try:
            return self._loop.run_until_complete(self._conn.fetchval(statement, timeout=ANSWER_S))
        except TimeoutError:
            self._conn.terminate()
            message = f"no answer within {ANSWER_S:g} s to: {statement}"
            raise Unanswered(message) from None


class Turn:
    """One contender's turn: its database, its processes, its tallies."""

    def __init__(self, lab: Lab, contender: Contender, database: str, directory: Path) -> None:
        self.lab = lab
        self.contender = contender
        self.database = database
        self.directory = directory
        self.tallies = Tallies(directory)
        self.trouble = 0  # deadlocks and serialization failures in the server's log, known after the turn
        self._processes: list[tuple[subprocess.Popen[bytes], Path]] = []
        self._owned: list[subprocess.Popen[str]] = []
        self._asking: Asking | None = None

    def start(self, verb: str, **options: object) -> "subprocess.Popen[bytes]":
        """Start the contender's process for a verb of the protocol."""
        environment = os.environ | self.contender.environment
        environment |= {"PYTHONPATH": str(ROOT), "BENCH_DSN": self.lab.dsn(self.database), "BENCH_REDIS": self.lab.redis}
        environment |= {"BENCH_DIR": str(self.directory)}
        environment |= {f"BENCH_{name.upper()}": str(value) for name, value in options.items()}
        output = self.directory / f"{verb}.{len(self._processes)}"
        with (
            output.with_suffix(output.suffix + ".out").open("wb") as out,
            output.with_suffix(output.suffix + ".err").open("wb") as err,
        ):
            process = subprocess.Popen(
                self.contender.command(verb), env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                cwd=self.directory, start_new_session=True,
            )  # fmt: skip
        self._processes.append((process, output))
        return process

    def finish(self, process: "subprocess.Popen[bytes]", timeout_s: float) -> Any:
        """Wait for a process and return the JSON of its last line. Raises TurnError."""
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            message = f"not done within {timeout_s:g} s{self._told(process)}"
            raise TurnError(message) from None
        if code:
            message = f"exit {code}{self._told(process)}"
            raise TurnError(message)
        lines = self._output(process, ".out").strip().splitlines()
        with contextlib.suppress(ValueError):
            return json.loads(lines[-1]) if lines else {}
        return {}

    def run(self, verb: str, timeout_s: float, **options: object) -> Any:
        """Start, and wait for the end."""
        return self.finish(self.start(verb, **options), timeout_s)

    def stop(self, processes: "list[subprocess.Popen[bytes]]", timeout_s: float = 10) -> None:
        """Ask workers to end, and see that they do."""
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + timeout_s
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
            _end(process)

    def check(self, processes: "list[subprocess.Popen[bytes]]") -> None:
        """Raise TurnError if a worker has ended by itself."""
        for process in processes:
            if process.poll() is not None:
                message = f"the worker ended: exit {process.returncode}{self._told(process)}"
                raise TurnError(message)

    def unsettled(self) -> bool:
        """Whether anything is left to be executed or settled."""
        question = self.contender.unsettled
        if isinstance(question, str):
            if self._asking is None:
                self._asking = Asking(self.lab.dsn(self.database))
            try:
                return bool(self._asking.value(question))
            except Unanswered:
                self._asking.__exit__()
                self._asking = None
                raise
        return sum(self.lab.redis_command(*words) for words in question) > 0

    def own(self, process: "subprocess.Popen[str]") -> "subprocess.Popen[str]":
        """Take care of the end of a process that is not the contender's."""
        self._owned.append(process)
        return process

    def end_all(self) -> None:
        if self._asking is not None:
            self._asking.__exit__()
            self._asking = None
        for process in [*(started for started, _output in self._processes), *self._owned]:
            _end(process)

    def _output(self, process: "subprocess.Popen[bytes]", suffix: str) -> str:
        path = next(output for started, output in self._processes if started is process)
        return path.with_suffix(path.suffix + suffix).read_text(errors="replace")

    def _told(self, process: "subprocess.Popen[bytes]") -> str:
        lines = [line.strip() for line in self._output(process, ".err").splitlines() if line.strip()]
        if os.environ.get("BENCH_DEBUG"):
            print("\n".join(lines[-60:]), file=sys.stderr)
        return f": {lines[-1][:300]}" if lines else ""


def _end(process: "subprocess.Popen[Any]") -> None:
    """End a process and those that it started: it leads a session of its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _first_line(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]
