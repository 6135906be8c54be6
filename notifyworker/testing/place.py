"""Which database a test works on, and the statements that only tests need."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from notifyworker.database import Connection
from notifyworker.migrate import open_or_explain
from notifyworker.settings import Settings
from notifyworker.store import Row, Store

_T = TypeVar("_T")


class KitStore(Store):
    """The statements of one installation, and those of sql/kit_*.sql."""

    async def left(self, on: Connection, kinds: Sequence[str], project_ids: Sequence[str] | None, owner: str) -> list[Row]:
        """What a drain still has to do."""
        return await on.fetch(self._sql["kit_left"], list(kinds), project_ids, owner)

    async def times(self, on: Connection) -> list[Row]:
        """Tables and their columns that are times."""
        return await on.fetch(self._sql["kit_times"])

    async def move_schedules(self, on: Connection, seconds: float) -> None:
        """Let time pass for schedules."""
        await on.fetch(self._sql["kit_schedules"], seconds)

    async def wake(self, on: Connection) -> None:
        """Tell workers that something may have become due."""
        await on.fetch(self._sql["kit_wake"])

    async def newest(self, on: Connection, kind: str | None, *, limit: int) -> list[Row]:
        """Runs, those that wait first, the newest first."""
        return await on.fetch(self._sql["kit_pending"], kind, limit)


@asynccontextmanager
async def opened(dsn: str | None, schema: str | None = None) -> AsyncIterator[tuple[Connection, KitStore]]:
    """Connect to the database that a worker would find. Raises SettingsError, DatabaseUnavailable."""
    settings = Settings.load({"dsn": dsn, "schema": schema})
    connection = await open_or_explain(settings.require_dsn(), settings.schema_name, "test")
    try:
        yield connection, KitStore(settings.schema_name)
    finally:
        connection.terminate()


def at_once(work: Coroutine[Any, Any, _T]) -> _T:
    """Do it in a thread and wait for it: from any test, whether an event loop runs there or not."""
    with ThreadPoolExecutor(1, thread_name_prefix="notifyworker test") as thread:
        return thread.submit(asyncio.run, work).result()
