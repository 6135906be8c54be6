"""How rows and errors become JSON, and what stands in the head of every answer."""

import json
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

import orjson
from aiohttp import web

from notifyworker import payload as payloads
from notifyworker.store import Row

#: Kept as the text that PostgreSQL prints, so that numbers of any size and precision leave as they came.
JSON_COLUMNS = frozenset({"payload", "headers", "progress", "errors", "result", "effects", "lines"})

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Server": "notifyworker",  # in place of the versions of Python and aiohttp
}
_FLAT = 200  # so few brackets can't be nested too deeply for anybody
_LONG_NUMBER = re.compile(r"(?<!\d)\d{4300}")  # Python's own limit; a reader would refuse the whole answer


async def secure(_request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Signal of aiohttp, called before the head of an answer is written."""
    add_headers(response)


def add_headers(response: web.StreamResponse) -> None:
    """Say what a browser may make of this answer: nothing, unless it says so itself."""
    for name, value in _HEADERS.items():
        if name == "Server" or name not in response.headers:
            response.headers[name] = value


def json_answer(data: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer with JSON."""
    return web.Response(body=dumps(data), status=status, headers=headers, content_type="application/json")


def dumps(data: Any) -> bytes:
    """Encode: times as RFC 3339 in UTC, durations in seconds, ids as text, integers of any size."""
    try:
        return orjson.dumps(data, default=_plain, option=orjson.OPT_UTC_Z)
    except orjson.JSONEncodeError:  # an integer over 64 bits, or a lone surrogate that somebody sent and is told of
        return json.dumps(data, default=_plain_for_stdlib).encode()


def shown(row: Row | Mapping[str, Any]) -> dict[str, Any]:
    """Prepare a row for JSON."""
    return {name: _embedded(value) if name in JSON_COLUMNS else value for name, value in row.items()}


def weight(row: Row) -> int:
    """Roughly the size of a row, in characters."""
    return 1000 + sum(len(row[name] or "") for name in JSON_COLUMNS.intersection(row.keys()))


def _embedded(text: str | None) -> Any:
    """
    JSON of the database as a part of the answer.

    jsonb takes what hardly any reader does: 10,000 levels, numbers of 5,000 digits. Such a value is shown as text, so
    that one poison row does not make a page unreadable.
    """
    if text is None:
        return None
    if text.count("[") + text.count("{") > _FLAT:
        try:
            payloads.decode(text)
        except ValueError:
            return text
    return text if _LONG_NUMBER.search(text) else orjson.Fragment(text)


def _plain(item: Any) -> Any:
    if isinstance(item, timedelta):
        seconds = item.total_seconds()
        return int(seconds) if seconds.is_integer() else seconds
    if isinstance(item, UUID):  # asyncpg's own kind
        return str(item)
    message = f"{type(item).__name__} is not JSON"
    raise TypeError(message)


def _plain_for_stdlib(item: Any) -> Any:
    return orjson.loads(orjson.dumps(item, default=_plain, option=orjson.OPT_UTC_Z))
