"""
Whether a server, and the way to it, do what waking is built on: found out at each connect, and not assumed.

A transaction pooler takes LISTEN and is deaf; a server that only speaks PostgreSQL's protocol may refuse it, or take it and
deliver nothing; and an advisory lock may be granted to everybody. Runs are found by polling then, and nobody leads.
"""

import asyncio
import random

import asyncpg

from notifyworker.database import LOCK_CLASS, Connection, connect, is_direct, is_queue_full
from notifyworker.pause import is_set_within
from notifyworker.settings import CONNECT_S

POOLER = "nothing can be heard through a transaction pooler"
_NO_LISTEN = (asyncpg.FeatureNotSupportedError, asyncpg.PostgresSyntaxError, asyncpg.UndefinedFunctionError)


async def why_deaf(dsn: str, *, schema: str, listener: Connection) -> str | None:
    """
    Say why nothing can be heard on this connection; None if a notification has come back.

    Only one that arrives proves it. A direct connection sends it to itself. Raises DatabaseError.
    """
    channel = f"{schema}_{random.getrandbits(48):012x}"
    try:
        if await is_direct(listener):
            is_heard = await hears(listener, listener, channel)
            return None if is_heard else "this server takes LISTEN, and delivers nothing"
        other = await connect(dsn, schema=schema, purpose="self-test")
        try:
            # First without LISTEN: what listens behind a transaction pooler is a connection that others will use.
            is_heard = not await _is_shared(listener, other) and await hears(listener, other, channel)
            return None if is_heard else POOLER
        finally:
            other.terminate()
    except _NO_LISTEN as error:
        return f"this server has no LISTEN: {error.args[0]}"


async def hears(listener: Connection, other: Connection, channel: str) -> bool:
    """Say whether what one connection notifies reaches the other within a second, or the server's queue is full."""
    heard = asyncio.Event()

    def hear(*_notification: object) -> None:
        heard.set()

    await listener.add_listener(channel, hear)
    try:
        await other.execute("SELECT pg_notify($1, '')", channel, timeout=CONNECT_S)
    except asyncpg.ProgramLimitExceededError as error:
        if not is_queue_full(error):
            raise
        heard.set()
    is_heard = await is_set_within(heard, 1.0)
    await listener.remove_listener(channel, hear)
    return is_heard


async def _is_shared(one: Connection, other: Connection) -> bool:
    """Say whether a pooler gives these two the same server connection, or one of them now this and now that."""
    had = set()
    for _ in range(10):
        had |= {await _backend(one), await _backend(one)}  # twice in a row: one who hands them out in turn shows it
        if len(had) > 1 or await _backend(other) in had:
            return True
    return False


async def _backend(connection: Connection) -> int:
    pid: int = await connection.fetchval("SELECT pg_backend_pid()", timeout=CONNECT_S)
    return pid


async def locks_hold(connection: Connection) -> bool:
    """Say whether an advisory lock of this session is one that others see: where they do nothing, all would lead."""
    number = random.getrandbits(31)
    await connection.fetchval("SELECT pg_try_advisory_lock($1, $2)", LOCK_CLASS, number, timeout=CONNECT_S)
    is_seen: bool = await connection.fetchval(_SEEN, LOCK_CLASS, number, timeout=CONNECT_S)
    await connection.fetchval("SELECT pg_advisory_unlock($1, $2)", LOCK_CLASS, number, timeout=CONNECT_S)
    return is_seen


_SEEN = """
SELECT EXISTS (SELECT FROM pg_locks
                WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted AND classid::bigint = $1::int AND objid::bigint = $2::int)
"""


async def inserts_wake(connection: Connection, schema: str) -> bool:
    """Say whether the trigger that wakes is there, and fires for what producers insert."""
    enabled = (
        "SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = $1::regclass AND tgname = 'wake' AND tgenabled IN ('O', 'A'))"
    )
    is_there: bool = await connection.fetchval(enabled, f'"{schema}".runs', timeout=CONNECT_S)
    return is_there
