"""The connections of a client: opened when they are first needed, and few."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import asyncpg

from notifyworker.database import Connection, DatabaseError, Queryable, connect, explain, is_of_use
from notifyworker.errors import SettingsError
from notifyworker.settings import Settings
from notifyworker.store import Store


class Connected:
    """What has connections of its own and closes them."""

    def __init__(self, dsn: str | None = None, *, schema: str | None = None) -> None:
        settings = Settings.load(keywords={"dsn": dsn, "schema": schema})
        self._dsn = settings.require_dsn()
        self._listen_dsn = settings.listen_dsn.get_secret_value() if settings.listen_dsn else self._dsn
        self._listens = settings.listen
        self._store = Store(settings.schema_name)
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections that this client opened."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None

    async def _connected(self) -> "_Pool":
        return _Pool(await self._opened())

    @contextlib.asynccontextmanager
    async def _one(self, given: Queryable | None = None) -> AsyncIterator[Connection]:
        """One connection for more than a statement: the caller's own, or one of ours."""
        if given is not None and hasattr(given, "copy_to_table") and hasattr(given, "transaction"):
            yield given  # type: ignore[misc]
            return
        if given is not None and not isinstance(given, asyncpg.Pool):
            message = f"connection must be asyncpg's, not {type(given).__name__}"
            raise TypeError(message)
        pool = given or await self._opened()
        async with pool.acquire() as connection:
            try:
                yield connection  # type: ignore[misc]  # a proxy of one
            except BaseException as error:  # cut, cancelled, or a standby now: never to be used again
                if isinstance(error, (*DatabaseError, asyncio.CancelledError)) and not is_of_use(error):
                    connection.terminate()
                raise

    async def _opened(self) -> "asyncpg.Pool[asyncpg.Record]":
        async with self._opening:
            if self._pool is None:
                schema = self._store.schema
                try:
                    self._pool = await asyncpg.create_pool(
                        min_size=1,
                        max_size=4,
                        connect=lambda *_a, **_k: connect(self._dsn, schema=schema, purpose="client"),
                        reset=_keep,
                    )
                except SettingsError:
                    raise
                except DatabaseError as error:
                    raise explain(error, self._dsn) from None
        return self._pool


class _Pool:
    """A Queryable: the client's connections, which are given up where their server was made one that takes no writes."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[asyncpg.Record]:  # noqa: ASYNC109 - asyncpg's own signature
        """Execute and return all rows."""
        try:
            return await self._pool.fetch(query, *args, timeout=timeout)
        except asyncpg.ReadOnlySQLTransactionError:
            await self._pool.expire_connections()
            raise


async def _keep(_connection: Any) -> None:
    """Nothing of ours changes a session, so that a pool has nothing to reset at each release."""
