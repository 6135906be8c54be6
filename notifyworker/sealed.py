"""
The transactions of a shadow run's handler: nothing of them can be committed, whatever it does on its connection.

A row whose constraint is tested at COMMIT, and refuses it, is the first thing in such a transaction: so a handler that
commits by hand gets an error, and all is rolled back. What it would send after that, or after a ROLLBACK of its own, meets
a session whose transactions are read-only. Behind a transaction pooler, where a session is anybody's, the row alone holds.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from notifyworker.database import Connection, DatabaseError, is_direct
from notifyworker.settings import CANCEL_S

_ASK = "SELECT current_setting('default_transaction_read_only') = 'off'"


@asynccontextmanager
async def session(connection: Connection, *, is_shadow: bool) -> AsyncIterator[None]:
    """For a shadow run, let this session write nothing for the length of a block, but in a transaction that is sealed."""
    is_closed = is_shadow and await is_direct(connection) and bool(await connection.fetchval(_ASK))
    if is_closed:
        await connection.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
    try:
        yield
    finally:
        if is_closed and not connection.is_closed():
            await _reopen(connection)


async def _reopen(connection: Connection) -> None:
    """At once, or not at all: nobody may be left with a session that writes nothing."""
    try:
        async with asyncio.timeout(CANCEL_S):
            await connection.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE")
    except BaseException as error:
        connection.terminate()
        if not isinstance(error, DatabaseError):
            raise


async def seal(connection: Connection, schema: str) -> None:
    """Let this transaction, which has just begun, write, and never be committed."""
    await connection.execute(f"SET TRANSACTION READ WRITE; SELECT {schema}.seal()")
