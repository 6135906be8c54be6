"""
From a NOTIFY to one Event, and never a silent end.

LISTEN comes before the look, from the beginning: the event is set after every (re)connect, so that whatever was inserted
while nobody listened is found. A half-open connection says nothing for ever, hence a ping with a deadline, which also asks whether
this session is still listening. Nothing else is executed on this connection: one transaction left open on it would
fill the server's notification queue.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

import asyncpg

from notifyworker.database import Connection, DatabaseError, brief, reconnect
from notifyworker.hearing import POOLER, why_deaf
from notifyworker.lanes import EPOCH
from notifyworker.observe import Metrics, log
from notifyworker.pause import Backoff, is_set_within
from notifyworker.settings import CONNECT_S

PING_S = 10.0
PING_DEADLINE_S = 4.0
DEAF_RETRY_S = 60.0
_WINDOW_S = 0.1


class Listener:
    """The supervised LISTEN connection of one worker."""

    def __init__(self, dsn: str, schema: str, wake: asyncio.Event, metrics: Metrics) -> None:
        self._dsn = dsn
        self._schema = schema
        self._wake = wake
        self._metrics = metrics
        self._connection: Connection | None = None
        self._window = (0.0, 0)
        #: Called with the payload of each message that is more than a wake-up: "cancel:<run_id>", "farewell", ...
        self.on_message: Callable[[str], None] = lambda _message: None
        #: Called with the text of each wake-up.
        self.on_ready: Callable[[str], None] = lambda _text: wake.set()
        #: Called before a wake-up that tells how far back in the table it lies.
        self.on_late: Callable[[datetime], None] = lambda _moment: None
        #: Called when wake-ups came faster than this many a second.
        self.on_burst: Callable[[], None] = lambda: None
        #: Called with each ping's fill of the notification queue, from 0 to 1.
        self.on_queue_usage: Callable[[float], None] = lambda _usage: None
        self.burst_per_s = float("inf")
        self.is_hearing = False
        #: Why nothing can be heard here, such as behind a transaction pooler: LISTEN is accepted there, and deaf.
        self.why_deaf: str | None = None
        self.silent_since = time.monotonic()
        #: Why nothing can be heard.
        self.error = ""

    async def run(self) -> None:
        """Listen until cancelled, through any number of reconnects."""
        backoff = Backoff()
        while True:
            try:
                await self._listen(backoff)
            except DatabaseError as error:
                self._metrics.reconnects.labels("listener").inc()
                self.error = brief(error)
                log.warning("listener_lost", error=self.error)
                self._wake.set()  # a look by the claim loop finds out at once whether there still is a database
            finally:
                self._not_hearing()
            await asyncio.sleep(DEAF_RETRY_S if self.why_deaf else backoff.next_s())

    async def _listen(self, backoff: Backoff) -> None:
        self._connection = connection = await reconnect(self._dsn, schema=self._schema, purpose="listener")
        ended = asyncio.Event()
        connection.add_termination_listener(lambda _connection: ended.set())
        # Tested before LISTEN: behind a transaction pooler that would stay on a connection that others use.
        async with asyncio.timeout(2 * CONNECT_S):  # the self-test connects once more
            was_deaf, self.why_deaf = self.why_deaf, await why_deaf(self._dsn, schema=self._schema, listener=connection)
        if self.why_deaf:
            if not was_deaf:
                hint = "give listen_dsn, a direct connection; polling until then" if self.why_deaf == POOLER else "polling"
                log.warning("listen_is_deaf", why=self.why_deaf, hint=hint)
            return
        async with asyncio.timeout(CONNECT_S):
            await connection.add_listener(self._schema, self._heard)
        backoff.reset()
        self.is_hearing = True
        self._metrics.listening.set(1)
        self._metrics.wakes.labels("connected").inc()
        self.on_late(EPOCH)  # how far back the notifications of meanwhile would have told to look, nobody knows
        self._wake.set()
        while not await is_set_within(ended, PING_S):
            listening = "SELECT pg_notification_queue_usage() FROM pg_listening_channels() AS c WHERE c = $1"
            usage = await connection.fetchval(listening, self._schema, timeout=PING_DEADLINE_S)
            if usage is None:
                break
            self.on_queue_usage(usage)
        message = "the connection was closed" if ended.is_set() else "the session no longer listens"
        raise asyncpg.InterfaceError(message)

    def _heard(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        what, _, argument = str(payload).partition(":")
        if what not in {"", "at", "free", "turn"}:
            self.on_message(str(payload))
            return
        if what == "at" and (moment := _moment(argument)) is not None:
            self.on_late(moment)
        self._metrics.wakes.labels("notify").inc()
        self.on_ready(str(payload))
        if what in {"free", "turn"}:
            return  # no insert
        began, count = self._window
        now = time.monotonic()
        if now - began > _WINDOW_S:
            self._window = (now, 1)
            return
        self._window = (began, count + 1)
        if count + 1 > self.burst_per_s * _WINDOW_S:
            self._window = (now, 0)
            self.on_burst()

    def _not_hearing(self) -> None:
        if self.is_hearing:
            self.silent_since = time.monotonic()
        self.is_hearing = False
        self._metrics.listening.set(0)
        self.terminate()

    def terminate(self) -> None:
        """Drop the connection; before the task is cancelled, so that nothing waits for a dead server."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


def _moment(text: str) -> datetime | None:
    """Seconds since 1970 as a time; None for what is none: anybody may notify on our channel. Below 1970 lies nothing."""
    try:
        return max(EPOCH, datetime.fromtimestamp(float(text), UTC))
    except (ValueError, OverflowError, OSError):
        return None
