"""
Conductor after conductor, with a sleep between them in which a worker sends its database nothing (`idle_sleep_s`).

For a PostgreSQL that is itself put to sleep while nobody asks it anything. Heartbeat, leadership, polling, pings: all of it is
the conductor's, so it is all silent when there is none. What stays is one connection that has said LISTEN and says nothing
more; it ends the sleep when something is inserted, for as long as the server keeps it. When it is gone nobody connects anew,
which would wake the server, and the sleep ends by the clock.

A worker falls asleep only when there is nothing to do: nothing is executed, here or elsewhere, nothing is ready, and what is due
next is not due soon. No run is interrupted, and none overlooked: the listening connection is there before the last look, and
the conductor claims nothing from then on.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from notifyworker.database import Connection, DatabaseError, brief, reconnect
from notifyworker.errors import DatabaseUnavailable, NotifyWorkerError
from notifyworker.observe import Metrics, log
from notifyworker.pause import Backoff, is_set_within
from notifyworker.settings import CONNECT_S, Settings
from notifyworker.store import Served, Store
from notifyworker.worker import Conductor

_DRAIN_S = 5.0
#: What is told to those who listen, and is no reason to get up: it concerns workers that are at work.
_OF_OTHERS = frozenset({"armed", "coalesced", "farewell", "cancel", "drain"})


class Shifts:
    """
    What one worker is while it works, and while it sleeps: to the sidecar it is both, as one (`Observed`).

    `make` returns a conductor that counts in the given metrics; `on_change` is told each that has begun.
    """

    def __init__(
        self, first: Conductor, served: Served, make: Callable[[Metrics], Conductor], on_change: Callable[[Conductor], None]
    ) -> None:
        assert first.settings.idle_sleep_s is not None
        self._sleep_s = first.settings.idle_sleep_s
        self._served = served
        self._make = make
        self._on_change = on_change
        self._sink: Callable[[dict[str, object]], None] | None = None
        self._stop = asyncio.Event()
        self._heard = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.now = first
        self.is_asleep = False
        #: Has the error by which a conductor has ended, or could not begin again.
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def begin(self) -> None:
        """The first conductor has started: send it to sleep when it is idle, and so on, until `end`."""
        self.now.failed.add_done_callback(self._conductor_failed)
        self._task = asyncio.create_task(self._run(), name="notifyworker shifts")

    async def end(self) -> bool:
        """Sleep no more. Return whether there is a conductor, to be drained."""
        self._stop.set()
        if self._task is not None:
            await self._task
        if self.failed.done():
            self.failed.exception()  # in a host nobody else asks for it, and the log has told it
        return not self.is_asleep

    async def _run(self) -> None:
        while not self._stop.is_set():
            idle_left_s = self.now.settings.idle_after_s - self.now.idle_s()
            if idle_left_s > 0:
                await is_set_within(self._stop, idle_left_s)
                continue
            try:
                connection = await self._opened()
            except DatabaseError as error:
                log.debug("stays_awake", error=brief(error))  # the conductor tells of the database, and goes on
                connection = None
            if connection is None:
                await is_set_within(self._stop, self.now.settings.idle_after_s)
                continue
            try:
                await self._rest(connection)
            finally:
                connection.terminate()
            if self.is_asleep and not self._stop.is_set():
                await self._wake_up()

    async def _opened(self) -> "Connection | None":
        """Connect, to listen if that can be heard here; None if there is something to do. Raises DatabaseError."""
        settings = self.now.settings
        is_heard = not self.now.listener.why_deaf
        direct = settings.listen_dsn.get_secret_value() if settings.listen_dsn and is_heard else self.now.dsn
        opening = reconnect(direct, schema=settings.schema_name, purpose="rest")
        connection: Connection | None = await self._unless_stopped(opening)
        if connection is None:
            return None
        try:
            async with asyncio.timeout(CONNECT_S):
                self._heard.clear()
                if is_heard:
                    await connection.add_listener(settings.schema_name, self._hear)
                if await self._quiet_s(connection) > 0 and self.now.idle_s() > 0:
                    return connection
        except BaseException:
            connection.terminate()
            raise
        connection.terminate()
        return None

    async def _quiet_s(self, connection: Connection) -> float:
        """For how many seconds nothing is to be done, and at most for how many a worker may sleep; 0: there is something."""
        store = self.now.store
        lanes = await store.lanes(connection, self._served)
        watched = (await connection.fetch(store.sql("at_rest")))[0]["is_watched"]
        if watched or any(lane["is_ready"] and self._served.has(lane["kind"], lane["version"]) for lane in lanes):
            return 0.0
        dues = [lane[name] for lane in lanes for name in ("due_in_s", "token_in_s")]
        dues.append((await store.schedules_ahead(connection))["due_in_s"])
        quiet_s = min((due for due in dues if due is not None), default=self._sleep_s)
        return 0.0 if quiet_s < min(self.now.settings.idle_after_s, self._sleep_s) else min(quiet_s, self._sleep_s)

    async def _rest(self, connection: Connection) -> None:
        """Send the conductor home, if it still has nothing to do, and sleep."""
        conductor = self.now
        # Nothing may come between this look and the end of its claims: what is executed is not interrupted.
        if conductor.is_busy() or conductor.claims.is_held or self._heard.is_set() or self._stop.is_set():
            return
        conductor.stop_claiming()
        self.is_asleep = True
        await conductor.drain(_DRAIN_S, self._stop)
        try:
            async with asyncio.timeout(CONNECT_S):
                quiet_s = await self._quiet_s(connection)  # what was claimed at the last moment has been given back
        except DatabaseError as error:
            log.debug("stays_awake", error=brief(error))
            quiet_s = 0.0
        await conductor.close()
        conductor.metrics.beat_age.set_function(lambda: 0.0)  # there is no heartbeat that could be late
        is_listening = not conductor.listener.why_deaf
        if not is_listening:
            connection.terminate()
        if quiet_s > 0:
            log.info("worker_sleeps", at_most_s=round(quiet_s, 3), listens=is_listening)
            stopped, heard = (asyncio.ensure_future(event.wait()) for event in (self._stop, self._heard))
            await asyncio.wait({stopped, heard}, timeout=quiet_s, return_when=asyncio.FIRST_COMPLETED)
            for waiter in (stopped, heard):
                waiter.cancel()

    async def _wake_up(self) -> None:
        """Begin anew, however long the database takes to be there; what can't be mended by waiting ends the worker."""
        log.info("worker_wakes", why="notified" if self._heard.is_set() else "in time")
        backoff = Backoff(cap_s=5.0)
        while not self._stop.is_set():
            conductor = self._make(self.now.metrics)
            try:
                is_there = await self._unless_stopped(_begun(conductor))
            except DatabaseUnavailable as error:
                log.warning("wake_failed", error=str(error))
                is_there = None
            except NotifyWorkerError as error:
                await conductor.close()
                self._fail(error)
                return
            if is_there:
                self.now, self.is_asleep = conductor, False
                conductor.publish_to(self._sink)
                conductor.failed.add_done_callback(self._conductor_failed)
                self._on_change(conductor)
                return
            await conductor.close()
            await is_set_within(self._stop, backoff.next_s())

    async def _unless_stopped(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What it returns; None if the worker is stopped meanwhile, which ends it at once."""
        doing, stopped = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({doing, stopped}, return_when=asyncio.FIRST_COMPLETED)
            return await doing if doing.done() else None
        finally:
            stopped.cancel()
            doing.cancel()
            await asyncio.wait({doing})

    def _hear(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        if str(payload).partition(":")[0] not in _OF_OTHERS:
            self._heard.set()

    def _conductor_failed(self, failed: "asyncio.Future[None]") -> None:
        if not failed.cancelled() and (error := failed.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._stop.set()
        if not self.failed.done():
            self.failed.set_exception(error)

    # As the sidecar sees it.

    @property
    def settings(self) -> Settings:
        """As the conductor's."""
        return self.now.settings

    @property
    def store(self) -> Store:
        """As the conductor's."""
        return self.now.store

    @property
    def metrics(self) -> Metrics:
        """One and the same through all shifts."""
        return self.now.metrics

    @property
    def lease_owner(self) -> str:
        """Another one in each shift."""
        return self.now.lease_owner

    @property
    def dsn(self) -> str:
        """As the conductor's."""
        return self.now.dsn

    @property
    def reaper_interval_s(self) -> float:
        """As the conductor's."""
        return self.now.reaper_interval_s

    @property
    def max_payload_bytes(self) -> int:
        """As the conductor's."""
        return self.now.max_payload_bytes

    def health(self) -> list[str]:
        """As the conductor's; a worker that sleeps as it was asked to is well."""
        return [] if self.is_asleep else self.now.health()

    def unanswered_s(self) -> float:
        """As the conductor's; asleep it asks nothing."""
        return 0.0 if self.is_asleep else self.now.unanswered_s()

    def restrictions(self) -> list[str]:
        """As the conductor's."""
        return ["asleep, as idle_sleep_s asks for: runs may wait until it ends"] if self.is_asleep else self.now.restrictions()

    def is_ready(self) -> bool:
        """As the conductor's; asleep it waits for work as much as awake."""
        return self.is_asleep or self.now.is_ready()

    def publish_to(self, sink: Callable[[dict[str, object]], None] | None) -> None:
        """As the conductor's, for all that follow too."""
        self._sink = sink
        self.now.publish_to(sink)


async def _begun(conductor: Conductor) -> bool:
    await conductor.start()
    return True
