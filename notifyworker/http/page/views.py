"""
What is drawn for one of the pages that follow the pulse is shown to all that look at the same.

Only to these: who opens a page, or reloads it, is drawn one of this moment. A page that knows already what it would be
shown is told so in a few bytes.
"""

import asyncio
import gzip
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

from notifyworker.http.auth import ACTOR, LOCAL, Actor
from notifyworker.http.page.live import Live

FRESH_S = 2.0  # as old as the fleet on a page may be
SEEN = "X-Seen"
_MARK = b'data-seen=""'
_KEPT = 64
_DEAREST_S = 10.0
_DRAWN = 20  # times as long as it took to draw, it is shown
_COMPRESSION = 5
# What the script keeps right by itself: how long ago something was, and how fast the database answered a moment ago.
_PASSING = re.compile(rb">[^<]*</(?:time|data)>| data-now=\"[^\"]*\"")


@dataclass(slots=True)
class _View:
    """One drawing, or why there is none."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    began: float = 0.0
    ended: float = -1.0
    error: Exception | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    packed: bytes = b""
    digest: str = ""

    def serves(self, asked: float, beat_at: float) -> bool:
        """Whether it is good enough for who asked then."""
        if self.ended >= asked and (self.error is not None or self.began >= beat_at):  # drawn while they waited
            return True
        age_s = time.monotonic() - self.began
        if self.ended < 0 or self.error is not None:
            return False
        dear_s = min(_DEAREST_S, _DRAWN * (self.ended - self.began))
        return age_s < dear_s or (self.began >= beat_at and age_s < FRESH_S)


class Views:
    """The drawings of the last beats, by what they are of and for whom."""

    def __init__(self, live: Live, base: Callable[[web.Request], str]) -> None:
        self._live = live
        self._base = base
        self._views: OrderedDict[tuple[object, ...], _View] = OrderedDict()

    def forget(self) -> None:
        """Something was changed by hand: draw all anew."""
        self._views.clear()

    async def shown(self, request: web.Request, draw: Callable[[web.Request], Awaitable[web.Response]]) -> web.Response:
        """Answer a page that follows the pulse. Raises what `draw` raises."""
        asked = time.monotonic()
        actor: Actor = request.get(ACTOR, LOCAL)
        key = (request.path_qs, self._base(request), actor.name, actor.may_write)
        view = self._views.setdefault(key, _View())
        self._views.move_to_end(key)
        if len(self._views) > _KEPT:
            self._views.popitem(last=False)
        async with view.turn:
            if not view.serves(asked, self._live.beat_at):
                await self._drawn(view, request, draw)
        if view.error is not None:
            raise view.error
        return _answer(view, request)

    async def _drawn(self, view: _View, request: web.Request, draw: Callable[[web.Request], Awaitable[web.Response]]) -> None:
        view.began, view.error = time.monotonic(), None
        try:
            response = await draw(request)
        except web.HTTPException:  # the way to elsewhere: each is told it anew
            view.ended = -1.0
            raise
        except Exception as error:  # noqa: BLE001 - it is raised to all who wait for it
            view.error = error
        else:
            began = time.thread_time()
            assert isinstance(response.body, bytes)
            view.digest = hashlib.sha256(_PASSING.sub(b"", response.body)).hexdigest()[:16]
            view.body = response.body.replace(_MARK, f'data-seen="{view.digest}"'.encode(), 1)
            view.packed = gzip.compress(view.body, _COMPRESSION)
            view.status = response.status
            view.headers = {name: value for name, value in response.headers.items() if name != "Content-Length"}
            self._live.spent(time.thread_time() - began)
        view.ended = time.monotonic()
        self._live.took(view.ended - view.began)


def _answer(view: _View, request: web.Request) -> web.Response:
    if view.status == 200 and request.headers.get(SEEN) == view.digest:  # noqa: PLR2004
        return web.Response(status=204, headers={"Vary": "Accept"})
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        return web.Response(body=view.packed, status=view.status, headers={**view.headers, "Content-Encoding": "gzip"})
    return web.Response(body=view.body, status=view.status, headers=view.headers)
