"""A PostgreSQL of a test session, and databases that are copies of one that was prepared."""

import asyncio
import contextlib
import shutil
import tempfile
import uuid
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from notifyworker.embedded import embedded_postgres
from notifyworker.migrate import migrate
from notifyworker.settings import Settings

_T = TypeVar("_T")
#: Nothing here outlives the session, let alone a crash of the machine.
_UNSAFE_BUT_FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


class TemplateServer:
    """A server with a prepared database; `with` starts and stops it. `dsn` names one that is there, as a superuser."""

    def __init__(self, dsn: str | None, prepare: Callable[[str], None]) -> None:
        self._given = dsn
        self._prepare = prepare
        self._stack = contextlib.ExitStack()
        self._dsn = ""
        self._template = f"nwt_{uuid.uuid4().hex}"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            # An event loop of its own, in a thread of its own: whatever loops tests have, this one lives all the session.
            thread = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="notifyworker test"))
            runner = asyncio.Runner()
            stack.callback(lambda: thread.submit(runner.close).result())

            def run(work: Coroutine[Any, Any, _T]) -> _T:
                return thread.submit(runner.run, work).result()

            self._run = run
            self._dsn = self._given or stack.enter_context(self._embedded())
            self._make()
            stack.callback(self._drop, self._template)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """Make a copy of the prepared database for as long as the block lasts, and yield its DSN."""
        name = f"nwt_{uuid.uuid4().hex}"
        self._run(self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{self._template}"'))
        try:
            yield self._named(name)
        finally:
            self._drop(name)

    @contextlib.contextmanager
    def _embedded(self) -> Iterator[str]:
        home = Path(tempfile.mkdtemp(prefix="notifyworker-test-"))
        server = embedded_postgres(home, tuning=_UNSAFE_BUT_FAST, database="postgres")
        try:
            yield self._run(_entered(server))
        finally:
            self._run(_left(server))
            shutil.rmtree(home, ignore_errors=True)

    def _make(self) -> None:
        self._run(self._execute(f'CREATE DATABASE "{self._template}"'))
        try:
            self._run(_migrated(self._named(self._template), Settings.load().schema_name))
            self._prepare(self._named(self._template))
        except BaseException:
            self._drop(self._template)
            raise

    def _drop(self, name: str) -> None:
        self._run(self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))

    def _named(self, name: str) -> str:
        return urlunsplit(urlsplit(self._dsn)._replace(path=f"/{name}"))

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self._dsn, timeout=30)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


async def _entered(server: contextlib.AbstractAsyncContextManager[str]) -> str:
    return await server.__aenter__()


async def _left(server: contextlib.AbstractAsyncContextManager[str]) -> None:
    await server.__aexit__(None, None, None)


async def _migrated(dsn: str, schema: str) -> None:
    await migrate(dsn, schema)
