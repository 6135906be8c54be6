"""One server a session and major version, one database a test, cloned from a migrated template; and a look for leaks."""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import asyncpg
import pytest
import pytest_asyncio
import structlog
from chaos.proxy import Proxy
from chaos.thread import ProxyThread
from servers import Server, create_database, drop_database, eventually, provide

from notifyworker import Worker, observe
from notifyworker.migrate import migrate

_sources: list[str] = []

# A shell script that runs the tests in the background has them, and so every child of theirs, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


#: NOTIFYWORKER_TEST_LISTEN=off: no worker and no client hears a notification, and all must pass as well (make test-poll).
IS_DEAF = os.environ.get("NOTIFYWORKER_TEST_LISTEN") == "off"
#: Files that take longest come first, so that no process of make test is left alone with one of them at the end.
_LONGEST = ("chaos", "demo", "faults", "attacks", "cli", "secrets", "cli_looks", "embedded", "models", "kit", "doctor", "history")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    if IS_DEAF:
        for item in items:
            if item.get_closest_marker("listens"):
                item.add_marker(pytest.mark.skip(reason="what it shows is a notification"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for source in _sources:
        terminalreporter.write_line(f"PostgreSQL: {source}")


@contextlib.asynccontextmanager
async def _with_template(major: int) -> AsyncIterator[tuple[Server, str]]:
    async with provide(major) as server:
        _sources.append(server.source)
        template = await create_database(server)
        await migrate(template, "notifyworker")
        yield server, template
        await drop_database(server, template)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server18() -> AsyncIterator[tuple[Server, str]]:
    async with _with_template(18) as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server16() -> AsyncIterator[tuple[Server, str]]:
    async with _with_template(16) as server:
        yield server


@contextlib.asynccontextmanager
async def _database(server: tuple[Server, str], *, migrated: bool) -> AsyncIterator[str]:
    dsn = await create_database(server[0], server[1] if migrated else None)
    yield dsn
    try:
        await eventually(lambda: _nobody_left(dsn))
    finally:
        await drop_database(server[0], dsn)


async def _nobody_left(dsn: str) -> bool:
    """No connection of ours is left behind."""
    conn = await asyncpg.connect(dsn)
    try:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND application_name LIKE 'notifyworker%'"
        return await conn.fetchval(query, urlsplit(dsn).path.lstrip("/")) == 0
    finally:
        await conn.close()


@pytest.fixture
async def dsn(server18: tuple[Server, str]) -> AsyncIterator[str]:
    """A fresh migrated database on PostgreSQL 18."""
    async with _database(server18, migrated=True) as dsn:
        yield dsn


@pytest.fixture
async def empty_dsn(server18: tuple[Server, str]) -> AsyncIterator[str]:
    """A fresh database without a schema."""
    async with _database(server18, migrated=False) as dsn:
        yield dsn


@pytest.fixture(params=[18, 16])
def any_server(request: pytest.FixtureRequest) -> tuple[Server, str]:
    """Each of the two versions."""
    server: tuple[Server, str] = request.getfixturevalue(f"server{request.param}")
    return server


@pytest.fixture
async def any_dsn(any_server: tuple[Server, str]) -> AsyncIterator[str]:
    """A fresh migrated database on each of the two versions."""
    async with _database(any_server, migrated=True) as dsn:
        yield dsn


@pytest.fixture
async def any_empty_dsn(any_server: tuple[Server, str]) -> AsyncIterator[str]:
    """A fresh database without a schema on each of the two versions."""
    async with _database(any_server, migrated=False) as dsn:
        yield dsn


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    conn = await asyncpg.connect(dsn)
    yield conn
    await conn.close()


@pytest.fixture
async def handlers_own(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """For what a handler does beside its test, whose own connection may be at work: an insert is heard of before it returns."""
    conn = await asyncpg.connect(dsn)
    yield conn
    await conn.close()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine's environment says must not reach a test."""
    for name in os.environ:
        if name.startswith(("NOTIFYWORKER_", "PG")) or name == "DATABASE_URL":
            if name.startswith("NOTIFYWORKER_TEST_"):
                continue
            monkeypatch.delenv(name)
    if IS_DEAF:  # it wins over what a test's worker is made with
        monkeypatch.setenv("NOTIFYWORKER_LISTEN", "false")
        monkeypatch.setenv("NOTIFYWORKER_POLL_INTERVAL_S", "0.1")
        monkeypatch.setenv("NOTIFYWORKER_HEARTBEAT_INTERVAL_S", "0.3")  # which tells of cancels then


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command that was called in this process has configured the logging of whatever test comes next."""
    yield
    structlog.reset_defaults()
    vars(observe.log).pop("bind", None)  # where structlog keeps what it was configured with first


@pytest.fixture(autouse=True)
async def no_leaks(clean_environment: None) -> AsyncIterator[None]:
    """No task and no thread of ours outlives its test, and no callback of the loop fails unheard."""
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unheard.append(context))
    yield
    # asyncpg drops a future of its own when the server ends while it sends; the statement itself has raised the same.
    assert [c for c in unheard if not isinstance(c.get("exception"), asyncpg.InternalClientError)] == []
    await eventually(lambda: not _tasks_of_ours())
    await eventually(lambda: not _threads_of_ours())


def _tasks_of_ours() -> list[str]:
    return [t.get_name() for t in asyncio.all_tasks() if t.get_name().startswith(("notifyworker", "run "))]


def _threads_of_ours() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("notifyworker")]


@pytest.fixture
def make_worker(dsn: str) -> Callable[..., Worker]:
    """A worker of this test's database that finds nothing by the clock: whatever it does, it was told to."""
    rare = {"poll_interval_s": 600, "lease_s": 400, "heartbeat_interval_s": 120}

    def make(**settings: Any) -> Worker:
        return Worker(**{"dsn": dsn, "drain_timeout_s": 5, **rare, **settings})

    return make


@pytest.fixture
async def proxy(dsn: str) -> AsyncIterator[Proxy]:
    """The way to this test's database that can be cut, held and slowed."""
    thread = ProxyThread()
    parts = urlsplit(dsn)
    sockets = dict(parse_qsl(parts.query)).get("host")
    proxy = await Proxy("test", thread, f"{sockets}/.s.PGSQL.5432" if sockets else parts.port or 5432).start()
    yield proxy
    await proxy.stop()
    thread.stop()


@pytest.fixture
def make_proxied(make_worker: Callable[..., Worker], dsn: str, proxy: Proxy) -> Callable[..., Worker]:
    """A worker, as make_worker makes it, behind the proxy."""
    return lambda **settings: make_worker(dsn=proxy.through(dsn), **settings)
