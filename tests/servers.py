"""
PostgreSQL for the tests: one server a session, one database a test, and clusters that a test may hurt.

`provide` takes NOTIFYWORKER_TEST_DSN, else a Docker engine that answers, else the embedded server.
NOTIFYWORKER_TEST_PG=docker|embedded asks for one of the latter, whose absence is a failure then.
NOTIFYWORKER_TEST_DOCKER_NETWORK=host is for engines that can't publish a port.
"""

import asyncio
import atexit
import contextlib
import functools
import gc
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar, overload
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psutil  # type: ignore[import-untyped]

from notifyworker.embedded import binaries, embedded_postgres, server_account

DEFAULT_MAJOR = 18
UNSAFE_BUT_FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "max_wal_size": "128MB"}
#: A crash of the server, and not of the machine, loses nothing that was committed.
SAFE_IN_A_CRASH = {"fsync": "off", "full_page_writes": "off"}
_ENOUGH_BYTES = 3 * 1024**3  # the tests need less than a quarter at a time
#: Until what surely comes has come, however busy the machine is. What a worker of the tests does by the clock comes later.
SURELY_S = 30.0
#: Until a process of ours has started: an interpreter, and all that it imports, where others want the processors as well.
STARTED_S = 90.0
_HEALTHY_S = 60.0  # until a container has initialised and answers
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server that tests share. `dsn` is of its maintenance database, `source` says where it comes from."""

    dsn: str
    source: str  # 'NOTIFYWORKER_TEST_DSN', 'docker postgres:18' or 'embedded 18.4'
    major: int
    copying: str = ""  # how CREATE DATABASE is to copy, if not as the server does by default


class NoEngine(Exception):
    """There is no usable Docker engine: none answers, it can't get or run the image, or its ports are not reached from here."""


@overload
async def eventually(check: Callable[[], Awaitable[_T]], timeout_s: float = ...) -> _T: ...
@overload
async def eventually(check: Callable[[], _T], timeout_s: float = ...) -> _T: ...
async def eventually(check: Callable[[], Any], timeout_s: float = SURELY_S) -> Any:
    """Wait until `check`, plain or async, returns something true, and return that. TimeoutError after `timeout_s`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        found = check()
        value = await found if isinstance(found, Awaitable) else found
        if value:
            return value
        if loop.time() > deadline:
            message = f"not within {timeout_s} s; last seen: {value!r}"
            raise TimeoutError(message)
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def provide(major: int = DEFAULT_MAJOR) -> AsyncIterator[Server]:
    """Yield a server of this major version for as long as the block lasts. The given DSN is the default version's."""
    wanted = os.environ.get("NOTIFYWORKER_TEST_PG", "")
    if wanted not in {"", "docker", "embedded"}:
        message = f"NOTIFYWORKER_TEST_PG is docker or embedded, not {wanted!r}"
        raise ValueError(message)
    async with contextlib.AsyncExitStack() as stack:
        if not wanted and major == DEFAULT_MAJOR and (dsn := os.environ.get("NOTIFYWORKER_TEST_DSN")):
            yield await _server(dsn, "NOTIFYWORKER_TEST_DSN")
            return
        if wanted != "embedded":
            try:
                server = await stack.enter_async_context(_docker(major))
            except NoEngine:
                if wanted == "docker":
                    raise
            else:
                yield server
                return
        yield await stack.enter_async_context(_embedded(major))


async def create_database(server: Server, template: str | None = None) -> str:
    """Make a database, a copy of `template` (the DSN or name of one that nobody is connected to), return its DSN."""
    name = f"nw_{uuid.uuid4().hex}"
    source = _database(template) if template and "://" in template else template or "template1"
    await _maintain(server, f'CREATE DATABASE "{name}" TEMPLATE "{source}"' + server.copying)
    return urlunsplit(urlsplit(server.dsn)._replace(path=f"/{name}"))


async def drop_database(server: Server, dsn: str) -> None:
    """Drop a database, with whoever is still connected to it."""
    await _maintain(server, f'DROP DATABASE IF EXISTS "{_database(dsn)}" WITH (FORCE)')


def as_role(dsn: str, role: str, password: str) -> str:
    """Return the DSN of the same database for another login. A server in a container may want a password of each."""
    parts = urlsplit(dsn)
    return urlunsplit(parts._replace(netloc=f"{role}:{password}@{parts.netloc.rpartition('@')[2]}"))


def free_port() -> int:
    """Return a TCP port of the loopback interface that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processes(directory: Path) -> list[psutil.Process]:
    """List what still runs for a cluster in this directory: servers, pg_ctl, guards. Zombies do not count."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            inside = Path(process.cwd()).is_relative_to(directory)  # a server's working directory is its data
            if inside or any(_names(argument, directory) for argument in process.cmdline()):
                found.append(process)
    return found


def _names(argument: str, directory: Path) -> bool:
    return re.search(re.escape(str(directory)) + r"(/|$)", argument) is not None


def _database(dsn: str) -> str:
    return urlsplit(dsn).path.lstrip("/")


async def _maintain(server: Server, statement: str) -> None:
    conn = await asyncpg.connect(server.dsn)
    try:
        await conn.execute(statement)
    finally:
        await conn.close()


async def _server(dsn: str, source: str, copying: str = "") -> Server:
    conn = await asyncpg.connect(dsn, timeout=10)
    try:
        number = int(await conn.fetchval("SHOW server_version_num"))
    finally:
        await conn.close()
    major, minor = divmod(number, 10000)
    return Server(dsn=dsn, source=source.format(version=f"{major}.{minor}"), major=major, copying=copying)


@contextlib.asynccontextmanager
async def _embedded(major: int) -> AsyncIterator[Server]:
    with scratch_directory() as directory:
        async with embedded_postgres(directory, major=major, tuning=UNSAFE_BUT_FAST, database="postgres") as dsn:
            # Copying files asks for a checkpoint, which costs nothing without fsync; the default writes it all to the WAL too.
            yield await _server(dsn, "embedded {version}", " STRATEGY file_copy")


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """Yield a short-lived directory that the server's account can reach; pytest's tmp_path is root's alone."""
    directory = Path(tempfile.mkdtemp(prefix="nwt-", dir=_room()))
    if os.geteuid() == 0:
        directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _room() -> str:
    """In memory, if there is plenty: a new database is 580 files, which take a disk's file system up to ten times as long."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK):
        about = os.statvfs(memory)
        has_room = min(about.f_bavail * about.f_frsize, psutil.virtual_memory().available) > _ENOUGH_BYTES
        if has_room and not about.f_flag & os.ST_NOEXEC:  # programs are copied there as well
            return str(memory)
    return "/tmp"


@contextlib.asynccontextmanager
async def _docker(major: int) -> AsyncIterator[Server]:
    host_network = os.environ.get("NOTIFYWORKER_TEST_DOCKER_NETWORK") == "host"
    password = secrets.token_hex(16)
    port = free_port() if host_network else 5432
    options = container_options(port=port, password=password, host_network=host_network)
    container = await asyncio.to_thread(_run_container, f"postgres:{major}", options)
    try:
        await _until_healthy(container)
        if not host_network:
            port = _published_port(container)
        try:
            server = await _server(f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres", f"docker postgres:{major}")
        except OSError as error:  # the engine is another machine's, as that of a development container may be
            message = f"the engine runs postgres:{major}, but 127.0.0.1:{port} is not reached from here: {error}"
            raise NoEngine(message) from error
        yield server
    finally:
        await asyncio.to_thread(_remove_container, container)


def container_options(*, port: int, password: str, host_network: bool) -> dict[str, Any]:
    """Arguments of the SDK's `containers.run`. `port` is the server's own, which matters in the host's network only."""
    second_ns = 1_000_000_000
    tuning = {**UNSAFE_BUT_FAST, "max_connections": "200"}
    if host_network:
        tuning["listen_addresses"] = "127.0.0.1"
    options: dict[str, Any] = {
        "command": ["-p", str(port), *(word for item in tuning.items() for word in ("-c", "=".join(item)))],
        "environment": {"POSTGRES_PASSWORD": password},
        "labels": {"notifyworker.tests": "1"},
        "detach": True,
        "remove": True,
        "shm_size": "256m",
        "healthcheck": {  # over TCP, which the image opens only once it has initialised
            "test": ["CMD", "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres"],
            "interval": second_ns // 4,
            "timeout": 5 * second_ns,
            "retries": 240,
        },
    }
    return options | ({"network_mode": "host"} if host_network else {"ports": {"5432/tcp": ("127.0.0.1", 0)}})


def _run_container(image: str, options: Mapping[str, Any]) -> Any:
    try:
        import docker.errors  # type: ignore[import-untyped]
    except ImportError as error:
        message = "the docker SDK is not installed"
        raise NoEngine(message) from error
    try:
        _ping(docker)
        client = docker.from_env(timeout=600)  # a pull is slower than a ping
        try:
            client.images.get(image)
        except docker.errors.ImageNotFound:
            client.images.pull(*image.split(":"))
        return client.containers.run(image, **options)
    except (docker.errors.DockerException, OSError) as error:
        message = f"no Docker engine, or none that runs {image}: {error}"
        raise NoEngine(message) from error


def _ping(docker: Any) -> None:
    """Raise if no engine answers. Without one the SDK leaves its socket to the garbage collector, which would warn later."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            docker.from_env(timeout=3).ping()
        except (docker.errors.DockerException, OSError) as error:
            message = str(error)
        else:
            return
        gc.collect()
    raise NoEngine(message)


async def _until_healthy(container: Any) -> None:
    import docker.errors

    def healthy() -> bool:
        container.reload()
        return bool(container.attrs["State"]["Health"]["Status"] == "healthy")

    try:
        await eventually(lambda: asyncio.to_thread(healthy), _HEALTHY_S)
    except docker.errors.NotFound as error:
        message = f"the container of {container.attrs['Config']['Image']} ended, and removed itself, before it was healthy"
        raise NoEngine(message) from error
    except TimeoutError as error:
        message = f"the container of {container.attrs['Config']['Image']} was not healthy within {_HEALTHY_S} s"
        raise NoEngine(message) from error


def _published_port(container: Any) -> int:
    published = (container.attrs["NetworkSettings"]["Ports"] or {}).get("5432/tcp")
    if not published:
        message = "the Docker engine publishes no ports; NOTIFYWORKER_TEST_DOCKER_NETWORK=host does without"
        raise NoEngine(message)
    return int(published[0]["HostPort"])


def _remove_container(container: Any) -> None:
    import docker.errors

    with contextlib.suppress(docker.errors.APIError):  # it is removing itself already
        container.remove(force=True, v=True)


@functools.cache
def _programs(major: int) -> Path:
    """Find the binaries; copied once a session if we are root and the server's account can't reach the wheel."""
    if os.geteuid() != 0:
        return binaries(major)
    copies = Path(tempfile.mkdtemp(prefix="nwt-programs-", dir="/tmp"))
    copies.chmod(0o711)
    atexit.register(shutil.rmtree, copies, ignore_errors=True)
    return binaries(major, copies=copies)


class Cluster:
    """
    A throw-away server that one test may hurt: `async with Cluster() as cluster`, which initialises and starts it.

    It listens on 127.0.0.1 at a port of its own, kept over restarts; anyone is `postgres`, the superuser, without a
    password. `conf` is text for postgresql.conf; a cluster `standby_of` another streams from that; `programs` is
    where another PostgreSQL than the embedded one has its own. At the end of
    the block its processes are gone, however they were left, also stopped by SIGSTOP.
    """

    def __init__(
        self,
        *,
        major: int = DEFAULT_MAJOR,
        conf: str = "",
        standby_of: "Cluster | None" = None,
        programs: Path | None = None,
    ) -> None:
        """Touch nothing yet."""
        self._programs = programs or _programs(major)
        self.port = free_port()
        self.directory = Path()
        self._conf = conf
        self._primary = standby_of
        self._stack = contextlib.ExitStack()

    async def __aenter__(self) -> Self:
        """Initialise and start."""
        self.directory = self._stack.enter_context(scratch_directory())
        try:
            await asyncio.to_thread(self._init)
            await self.start()
        except BaseException:
            await self._destroy()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        """End all processes and remove the directory."""
        await self._destroy()

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.directory / "data"

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.directory / "log"

    @property
    def dsn(self) -> str:
        """Of the database postgres."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def pid(self) -> int:
        """Of the postmaster. FileNotFoundError while the server is stopped."""
        return int((self.data / "postmaster.pid").read_text().split()[0])

    async def start(self) -> None:
        """Start, and return when it accepts connections. RuntimeError with the end of the log if it does not."""
        await self._pg_ctl("start", "-w", "-t", "60", "-l", str(self.log))

    async def stop(self, mode: str = "fast") -> None:
        """Stop: smart, fast or immediate (which is a crash). Returns when the postmaster is gone."""
        await self._pg_ctl("stop", "-w", "-t", "60", "-m", mode)

    async def restart(self, mode: str = "fast") -> None:
        """Stop, then start."""
        await self.stop(mode)
        await self.start()

    async def reload(self) -> None:
        """Make the server read its configuration again; it does so a moment later."""
        await self._pg_ctl("reload")

    async def promote(self) -> None:
        """Make a standby a primary."""
        await self._pg_ctl("promote", "-w", "-t", "60")

    async def conf(self, text: str) -> None:
        """Append lines to postgresql.conf. They count from the next reload or restart on, whichever they need."""
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(text + "\n")

    async def signal(self, number: signal.Signals, pid: int | None = None) -> None:
        """Send a signal to one process, the postmaster unless a backend's pid is given."""
        os.kill(self.pid if pid is None else pid, number)

    def _init(self) -> None:
        if account := server_account():
            os.chown(self.directory, account["user"], account["group"])
        if self._primary is None:
            where = ("-D", str(self.data), "-U", "postgres")
            self._run("initdb", *where, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        else:
            source = f"host=127.0.0.1 port={self._primary.port} user=postgres application_name=s{self.port}"
            self._run("pg_basebackup", "-D", str(self.data), "-R", "-X", "stream", "-c", "fast", "--no-sync", "-d", source)
        settings = {"port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": self.directory}
        lines = [f"{name} = '{value}'" for name, value in (settings | SAFE_IN_A_CRASH).items()]
        with (self.data / "postgresql.conf").open("a") as file:
            file.write("\n".join([*lines, self._conf, ""]))

    async def _pg_ctl(self, action: str, *options: str) -> None:
        await asyncio.to_thread(self._run, "pg_ctl", action, "-D", str(self.data), *options)

    def _run(self, program: str, *arguments: str) -> None:
        """Run as the server's account. With -l pg_ctl does not hand our pipe on to the server, which would hang us."""
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            env={name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            check=False, cwd="/", timeout=120, start_new_session=True, **server_account(),
        )  # fmt: skip
        if done.returncode:
            tail = self.log.read_text(errors="replace").splitlines()[-20:] if self.log.exists() else []
            message = "\n".join([f"{program}: {done.stdout}", *tail])
            raise RuntimeError(message)

    async def _destroy(self) -> None:
        for process in processes(self.directory):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):  # not running, or beyond stopping
            await self.stop("immediate")
        for process in processes(self.directory):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        await eventually(lambda: not processes(self.directory))
        self._stack.close()
