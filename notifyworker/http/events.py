"""
State changes as server-sent events, to whoever looks at this moment.

What this worker sees, from the moment that somebody listens: nothing is kept and nothing is sent again. A listener that
does not keep up loses the oldest, and is told how many.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from aiohttp import web

from notifyworker.http.answer import dumps, shown
from notifyworker.http.problem import Problem

LISTENERS = 50
QUEUE = 100  # events a listener
PROGRESS_CHARACTERS = 8192  # longer, it is left out: GET /runs/{run_id} has it
PING_S = 15.0
WRITE_S = 30.0  # without taking anything: gone, or asleep

_HEADERS = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}


class Events:
    """One publisher, the worker, and its listeners. All of it belongs to the event loop."""

    def __init__(self, listen: Callable[[bool], None], *, queue: int = QUEUE) -> None:
        """`listen` is told whether anybody listens, so that a worker makes no event that nobody wants."""
        self._listen = listen
        self._queue = queue
        self._listeners: set[_Listener] = set()
        self._closed = False

    def publish(self, event: dict[str, object], *, name: str = "run") -> None:
        """Send to all. Never waits."""
        if not self._listeners:
            return
        if len(str(event.get("progress", ""))) > PROGRESS_CHARACTERS:
            event = {member: value for member, value in event.items() if member != "progress"}
        text = f"event: {name}\ndata: ".encode() + dumps(shown(event)) + b"\n\n"
        for listener in self._listeners:
            listener.put(text)

    def close(self) -> None:
        """End all streams at once, also one that is stuck in a write."""
        self._closed = True
        for listener in self._listeners:
            listener.end()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Stream until the listener goes, or we do. Raises Problem if there are too many."""
        response = web.StreamResponse(headers=_HEADERS)
        if request.method == "HEAD":
            await response.prepare(request)
            return response
        if self._closed or len(self._listeners) >= LISTENERS:
            raise Problem(503, "Service Unavailable", f"{LISTENERS} listen already", headers={"Retry-After": "15"})
        listener = _Listener(request, response, self._queue)
        self._listeners.add(listener)  # before the head is sent: who has read it misses nothing
        self._listen(len(self._listeners) > 0)
        try:
            await response.prepare(request)
            await listener.write(b"retry: 2000\n\n")
            while not self._closed:
                await listener.write(await listener.take())
        except (ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._listeners.discard(listener)
            self._listen(len(self._listeners) > 0)
        return response


class _Listener:
    """What one listener still has to be sent."""

    def __init__(self, request: web.Request, response: web.StreamResponse, queue: int) -> None:
        self._queue = queue
        self._request = request
        self._response = response
        self._waiting: deque[bytes] = deque()
        self._dropped = 0
        self._wake = asyncio.Event()
        self._is_writing = False

    def put(self, text: bytes) -> None:
        if len(self._waiting) == self._queue:
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append(text)
        self._wake.set()

    def end(self) -> None:
        self._wake.set()
        if self._is_writing and self._request.transport is not None:
            self._request.transport.abort()

    async def take(self) -> bytes:
        """Wait for events and return all of them; a comment, for proxies, if there are none for a while."""
        try:
            async with asyncio.timeout(PING_S):
                await self._wake.wait()
        except TimeoutError:
            return b": ping\n\n"
        self._wake.clear()
        texts = list(self._waiting)
        self._waiting.clear()
        if self._dropped:
            texts.insert(0, b"event: dropped\ndata: " + dumps({"count": self._dropped}) + b"\n\n")
            self._dropped = 0
        return b"".join(texts)

    async def write(self, text: bytes) -> None:
        self._is_writing = True
        try:
            async with asyncio.timeout(WRITE_S):
                await self._response.write(text)
        finally:
            self._is_writing = False
