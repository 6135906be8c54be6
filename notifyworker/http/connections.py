"""
What stands before the routes: how many connections there may be, and what is no HTTP.

A connection that sends nothing, or half a head, however slowly, is closed by aiohttp's keep-alive timer; one that takes no
answers is cut after a while. If there are too many, those are cut at once for which no route is at work, the oldest
first: so whoever opens thousands and leaves them keeps no probe out. The sidecar is for loopback or a trusted network all the same: it is not hardened
against the internet.
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web

from notifyworker.http.answer import add_headers
from notifyworker.http.problem import Handler, Problem
from notifyworker.observe import log, outline

MAX_CONNECTIONS = 200
KEEPALIVE_S = 15.0
WRITE_S = 15.0  # for one answer, to a client that takes nothing
_LINGERING_S = 2.0  # for the rest of a body that was refused, so that the client reads why


class _Connection(web.RequestHandler):
    """aiohttp's, with an answer of ours to what it can't parse."""

    __slots__ = ("_socket", "is_cut", "is_served")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport: aiohttp forgets it when it closes it, which is long before a client takes the rest."""
        assert isinstance(transport, asyncio.Transport)
        self._socket = transport
        self.is_cut = self.is_served = False
        super().connection_made(transport)

    def cut(self) -> None:
        """End it now, whatever is not sent yet."""
        self.is_cut = True
        self._socket.abort()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the answer, within a deadline."""
        try:
            async with asyncio.timeout(WRITE_S):
                return await super().finish_response(request, resp, start_time)
        except TimeoutError:
            self.cut()
            gone = "the client does not take the answer"
            raise ConnectionError(gone) from None

    def log_exception(self, *_args: Any, **details: Any) -> None:
        """Log what aiohttp could not make sense of, unless it is a body that nobody could."""
        error = details.get("exc_info")
        if not isinstance(error, web.RequestPayloadError):
            log.error("sidecar_error", error=outline(error) if isinstance(error, BaseException) else None)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it quotes what was sent
    ) -> web.StreamResponse:
        """Answer what never reached a route. aiohttp's own text would repeat what was sent, or show a traceback."""
        if request.writer.output_size > 0:
            broken = "the answer is half sent"
            raise ConnectionError(broken)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("sidecar_error", status=status, error=outline(exc) if exc else None)
        detail = "this is not a request that HTTP/1.1 knows" if status == HTTPStatus.BAD_REQUEST else None
        response = Problem(status, HTTPStatus(status).phrase, detail, closes=True).answer()
        add_headers(response)
        return response


@web.middleware
async def served(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Keep the connection while its route is at work: the innermost middleware, after the body was read."""
    connection = request.protocol
    assert isinstance(connection, _Connection)
    connection.is_served = True
    try:
        return await handler(request)
    finally:
        connection.is_served = False


class _Refused(asyncio.Protocol):
    """One connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def protocols(server: web.Server) -> Callable[[], asyncio.Protocol]:
    """Return what asyncio makes a protocol by, for each connection to this server."""
    loop = asyncio.get_running_loop()

    def make() -> asyncio.Protocol:
        there = [c for c in server.connections if isinstance(c, _Connection) and not c.is_cut]
        if len(there) >= MAX_CONNECTIONS:
            oldest = next((connection for connection in there if not connection.is_served), None)
            if oldest is None:
                return _Refused()
            oldest.cut()
        options: dict[str, Any] = {"keepalive_timeout": KEEPALIVE_S, "lingering_time": _LINGERING_S, "access_log": None}
        return _Connection(server, loop=loop, **options)

    return make
