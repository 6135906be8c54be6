"""
A client's ear for the ends of runs: told by the settle itself, on a channel that nobody else listens to.

LISTEN, then say which runs are waited for, then look: what was settled before is found by the look, what comes after is
told. All of it again after a reconnect. A settle that had looked for waiters just before we said so tells nothing, and a
notification may be lost with its connection: so there is a second look soon, and one now and then. Where nothing can be
heard or said (a pooler, a standby, a role that may not), only looks are left, as often as once a second.
"""

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import asyncpg

from notifyworker.database import Connection, DatabaseError, brief, reconnect
from notifyworker.hearing import why_deaf
from notifyworker.observe import log
from notifyworker.pause import Backoff, is_set_within
from notifyworker.settings import CONNECT_S
from notifyworker.store import Store

SOON_S = 0.25  # a second look: longer than a settle takes
LOOK_S = 5.0
PING_S = 10.0
PING_DEADLINE_S = 4.0
_RENEW_S = 20.0  # of the minute for which the database remembers
_IDLE_S = 10.0
_DEAF_RETRY_S = 60.0
_REFUSED = (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedFunctionError, asyncpg.ReadOnlySQLTransactionError)


class Waiting:
    """What one client waits for. One connection, opened at the first wait and closed when nobody has waited for a while."""

    def __init__(self, dsn: str, store: Store, *, listens: bool = True) -> None:
        self._dsn = dsn
        self._store = store
        self._listens = listens
        self._channel = f"{store.schema}_wait_{secrets.token_hex(8)}"
        self._waits: dict[UUID, set[Wait]] = {}
        self._expected: set[UUID] = set()
        self._changed = asyncio.Event()
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @contextmanager
    def of(self, run_id: UUID) -> "Iterator[Wait]":
        """Wait for this one from now on."""
        wait = Wait(self, run_id)
        self._waits.setdefault(run_id, set()).add(wait)
        self._changed.set()
        if self._listens and self._task is None and not self._closed:
            self._task = asyncio.create_task(self._live(), name="notifyworker waiting")
        try:
            yield wait
        finally:
            self._waits[run_id].discard(wait)
            if not self._waits[run_id]:
                del self._waits[run_id]
            self._changed.set()

    def is_expected(self, run_id: UUID) -> bool:
        """Whether the run's settle will tell us."""
        return run_id in self._expected

    async def close(self) -> None:
        """Wait for nothing more. What the database remembers is taken back, if it answers at once."""
        self._closed = True
        task, self._task = self._task, None
        if self._connection is not None and self._expected:
            try:
                async with asyncio.timeout(0.5):
                    await self._store.expect_no_more(self._connection, list(self._expected), self._channel)
            except DatabaseError as error:  # busy, or gone: it forgets by itself
                log.debug("waiter_not_taken_back", error=brief(error))
        self._disconnect()
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _live(self) -> None:
        backoff = Backoff(cap_s=1.0)
        try:
            while True:
                pause_s = None
                try:
                    await self._listen(backoff)
                    return  # nobody has waited for a while
                except _REFUSED as error:
                    log.debug("waiter_is_deaf", error=brief(error))
                    pause_s = _DEAF_RETRY_S
                except DatabaseError as error:
                    log.debug("waiter_lost", error=brief(error))
                finally:
                    self._disconnect()
                await asyncio.sleep(pause_s or backoff.next_s())
        finally:
            if self._task is asyncio.current_task():
                self._task = None

    async def _listen(self, backoff: Backoff) -> None:
        self._connection = connection = await reconnect(self._dsn, schema=self._store.schema, purpose="waiting")
        ended = asyncio.Event()

        def end(_connection: object) -> None:
            ended.set()
            self._changed.set()

        connection.add_termination_listener(end)
        async with asyncio.timeout(2 * CONNECT_S):
            if (message := await why_deaf(self._dsn, schema=self._store.schema, listener=connection)) is not None:
                raise asyncpg.ReadOnlySQLTransactionError(message)
            await connection.add_listener(self._channel, self._heard)
        backoff.reset()
        loop = asyncio.get_running_loop()
        renew_at = loop.time() + _RENEW_S
        while not ended.is_set():
            self._changed.clear()
            if loop.time() >= renew_at:
                await self._store.expect(connection, list(self._expected), self._channel)
                renew_at = loop.time() + _RENEW_S
            await self._say(connection)
            if not await is_set_within(self._changed, PING_S if self._waits else _IDLE_S):
                if not self._waits:
                    return
                listening = "SELECT 1 FROM pg_listening_channels() AS c WHERE c = $1"
                if await connection.fetchval(listening, self._channel, timeout=PING_DEADLINE_S) is None:
                    break
        message = "the connection was closed, or does not listen any more"
        raise asyncpg.InterfaceError(message)

    async def _say(self, connection: Connection) -> None:
        """Let the database know what is waited for now."""
        if new := self._waits.keys() - self._expected:
            async with asyncio.timeout(PING_DEADLINE_S):
                await self._store.expect(connection, list(new), self._channel)
            self._expected |= new
            self._wake(new)
        if over := self._expected - self._waits.keys():
            async with asyncio.timeout(PING_DEADLINE_S):
                await self._store.expect_no_more(connection, list(over), self._channel)
            self._expected -= over

    def _heard(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        try:
            self._wake({UUID(str(payload))})
        except ValueError:
            return  # anybody may notify on any channel; a look tells

    def _wake(self, run_ids: set[UUID]) -> None:
        for run_id in run_ids:
            for wait in self._waits.get(run_id, ()):
                wait.told.set()

    def _disconnect(self) -> None:
        self._expected.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()
            self._wake(set(self._waits))  # a look, and from now on looks at shorter pauses


class Wait:
    """One who waits for one run."""

    def __init__(self, waiting: Waiting, run_id: UUID) -> None:
        self._waiting = waiting
        self._run_id = run_id
        self._backoff = Backoff(cap_s=1.0)
        self._looked_soon = False
        self.told = asyncio.Event()

    async def for_a_look(self) -> None:
        """Return when it is time to look at the run."""
        if not self._waiting.is_expected(self._run_id):
            self._looked_soon = False
            await is_set_within(self.told, self._backoff.next_s())
        else:
            self._backoff.reset()
            await is_set_within(self.told, LOOK_S if self._looked_soon else SOON_S)
            self._looked_soon = True
        self.told.clear()
