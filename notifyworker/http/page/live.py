"""
One pulse for all pages: it says that there is something new, and each page asks for itself.

It beats when the worker saw a change, or each few seconds for what others did; never faster than what the pages cost to
read and draw allows, and slower while the worker is at work, so that looking does not hurt the queue.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable

from notifyworker.http.events import Events

SLOWEST_S = 5.0
_FASTEST_S = 2.0
_SLOWED_S = 20.0
_SHARE = 0.006  # of the event loop's time that drawing may take; to read, pack and send it takes about as much again
_READ_SHARE = 0.05  # of the time that one connection may be reading for pages
_BUSY = 0.5  # of the event loop's time


class Live:
    """The pulse. All of it belongs to the event loop."""

    def __init__(self, listen: Callable[[], None]) -> None:
        """`listen` is called when `is_curious` may have changed."""
        self._listen = listen
        self.beat_at = time.monotonic()
        self.stream = Events(self._heard, queue=1)
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._spent_s = 0.0
        self._took_s = 0.0
        self._closed = False

    @property
    def is_curious(self) -> bool:
        """Whether the next change is of interest: a page is open, and none was heard of since the last beat."""
        return self._task is not None and not self._changed.is_set()

    def changed(self) -> None:
        """Something is new. One is enough until the next beat, so that a worker that drains a queue tells of one run alone."""
        if not self._changed.is_set():
            self._changed.set()
            self._listen()

    def spent(self, seconds: float) -> None:
        """A page was drawn, and took so much of this thread's own time: what others on the host take is no reason to be slow."""
        self._spent_s += seconds

    def took(self, seconds: float) -> None:
        """A page was read and drawn, and all of it took so long."""
        self._took_s += seconds

    async def close(self) -> None:
        """End all streams and the pulse."""
        self._closed = True
        self.stream.close()
        await self._end()

    def _heard(self, is_heard: bool) -> None:  # noqa: FBT001 - called back with it alone
        if is_heard and self._task is None and not self._closed:
            self._task = asyncio.create_task(self._beat(), name="notifyworker page pulse")
            self._listen()
        elif not is_heard and self._task is not None:
            self._task.cancel()
            self._task = None
            self._listen()

    async def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _beat(self) -> None:
        wall, own = time.monotonic(), time.thread_time()
        while True:
            is_busy = time.thread_time() - own > _BUSY * (time.monotonic() - wall)
            wall, own = time.monotonic(), time.thread_time()
            rest_s = max(SLOWEST_S if is_busy else _FASTEST_S, self._spent_s / _SHARE, self._took_s / _READ_SHARE)
            rest_s = min(_SLOWED_S, rest_s)
            self._spent_s = self._took_s = 0.0
            await asyncio.sleep(rest_s)  # the pulse itself: it waits for time, and is cancelled at the end
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, SLOWEST_S - rest_s)):
                    await self._changed.wait()
            self._changed.clear()
            self._listen()
            self.beat_at = time.monotonic()
            self.stream.publish({"at": time.time()}, name="tick")
