"""The body of a request: read within a deadline and a size, strictly parsed."""

import asyncio
import codecs
import re
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Middleware

from notifyworker import payload as payloads
from notifyworker.http.problem import Handler, Problem

DEADLINE_S = 3.0
SMALL_BYTES = 65_536  # taken apart on the event loop; a larger one in a thread, so that the worker beside us goes on
_FIELD = re.compile(r"(?:a key of )?\$\.(\w{1,200})")


def bodies(limit_bytes: Callable[[], int]) -> Middleware:
    """Read each body before anything is done. aiohttp itself would wait for ever for one that does not come."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method in {"GET", "HEAD"} or not request.can_read_body:
            return await handler(request)
        limited = request.clone(client_max_size=limit_bytes())  # the fleet's limit, which is known once connected
        await _read(limited)
        return await handler(limited)

    return middleware


async def _read(request: web.Request) -> None:
    if (request.content_length or 0) > request.client_max_size:
        raise _too_large(request)
    try:
        async with asyncio.timeout(DEADLINE_S):
            await request.read()
    except TimeoutError:
        detail = f"the body did not come within {DEADLINE_S:g} s"
        raise Problem(408, "Request Timeout", detail, closes=True) from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(request) from None
    except web.RequestPayloadError:
        raise Problem.of("body", "its Content-Encoding or Transfer-Encoding can't be undone", closes=True) from None


async def read_object(request: web.Request) -> dict[str, Any]:
    """Return the body, which must be a JSON object."""
    raw = await request.read()
    _check_charset(request)
    try:
        value = payloads.parse(raw) if len(raw) <= SMALL_BYTES else await asyncio.to_thread(payloads.parse, raw)
    except ValueError as error:
        told = str(error)
        found = _FIELD.match(told)
        raise Problem.of(found[1] if found else "body", told) from None
    if not isinstance(value, dict):
        raise Problem.of("body", "must be a JSON object")
    return value


def _check_charset(request: web.Request) -> None:
    charset = request.charset or "utf-8"
    try:
        is_json = codecs.lookup(charset).name in {"utf-8", "ascii"}
    except (LookupError, ValueError):
        is_json = False
    if not is_json:
        raise Problem.of("body", "JSON is UTF-8, and the charset of the Content-Type another")


def _too_large(request: web.Request) -> Problem:
    detail = f"body: has more than {request.client_max_size} bytes"
    return Problem(413, "Content Too Large", detail, field="body", closes=True)
