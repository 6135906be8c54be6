"""
The sidecar's own two connections: whatever operators ask for, the worker's are never used up by it.

Opened when they are first needed, so that probes are answered while the database is away.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import asyncpg

from notifyworker.database import Connection, connect, is_of_use

CONNECTIONS = 2
ACQUIRE_S = 5.0
STATEMENT_S = 5.0
_ANSWER_S = STATEMENT_S + 1  # a server that is alive has given up by then

# Lists have filters that may be null, so that each set of them deserves its own plan. Behind a transaction pooler a
# setting would stay on a connection that others use: it invents the process id that the client knows, and so it is told.
_SETTINGS = """
SELECT set_config(name, value, false)
  FROM (VALUES ('statement_timeout', $2), ('plan_cache_mode', 'force_custom_plan')) AS s (name, value)
 WHERE pg_backend_pid() = $1
"""


#: A snapshot for the page: what it reads in one transaction is of one moment, changes nothing, and ends soon. By SET LOCAL,
#: which also holds behind a transaction pooler.
READ_S = 2.0
_READ = f"""BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SET LOCAL statement_timeout = '{READ_S:g}s'; SET LOCAL lock_timeout = '500ms';
SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL jit = off"""


class Pool:
    """A Queryable, for many requests at once. `open` it, and `close` it."""

    def __init__(self, dsn: str, schema: str, *, purpose: str = "sidecar") -> None:
        self._dsn = dsn
        self._schema = schema
        self._purpose = purpose
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    async def open(self) -> None:
        """Make ready; connects to nothing."""
        self._pool = await asyncpg.create_pool(
            min_size=0, max_size=CONNECTIONS, max_inactive_connection_lifetime=60, connect=self._connect, reset=_keep
        )

    def used(self) -> int:
        """Return how many connections are in use now."""
        return 0 if self._pool is None else self._pool.get_size() - self._pool.get_idle_size()

    def close(self) -> None:
        """End all connections, whatever they are doing."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None

    async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[asyncpg.Record]:  # noqa: ASYNC109 - asyncpg's own signature
        """Execute and return all rows. Raises DatabaseError, within a dozen seconds."""
        async with self._acquired() as connection:
            rows: list[asyncpg.Record] = await connection.fetch(query, *args, timeout=timeout or _ANSWER_S)
            return rows

    @contextlib.asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Connection]:
        """One connection inside a transaction that only reads, as of one moment. Raises DatabaseError."""
        async with self._acquired() as connection:
            await connection.execute(_READ, timeout=READ_S + 1)
            try:
                yield connection
            except BaseException as error:
                if is_of_use(error):
                    await connection.execute("ROLLBACK", timeout=READ_S + 1)
                raise
            await connection.execute("ROLLBACK", timeout=READ_S + 1)

    @contextlib.asynccontextmanager
    async def _acquired(self) -> AsyncIterator[Any]:
        if self._pool is None:
            message = "the sidecar is stopped"
            raise asyncpg.InterfaceError(message)
        pool = self._pool
        try:
            connection = await pool.acquire(timeout=ACQUIRE_S)
        except TimeoutError as error:
            message = "no connection within the deadline"
            raise asyncpg.InterfaceError(message) from error
        try:
            yield connection
        except BaseException as error:
            if not is_of_use(error):  # timed out, cut, cancelled or now on a standby: never to be used again
                connection.terminate()
            raise
        finally:
            await pool.release(connection)

    async def _connect(self, *_args: Any, **_options: Any) -> Connection:
        connection = await connect(self._dsn, schema=self._schema, purpose=self._purpose)
        try:
            await connection.fetch(_SETTINGS, connection.get_server_pid(), f"{STATEMENT_S:g}s", timeout=ACQUIRE_S)
        except BaseException:
            connection.terminate()
            raise
        return connection


async def _keep(_connection: Any) -> None:
    """Nothing of ours changes a session, so that a pool has nothing to reset at each release."""
