"""What stands in a URL: filters, cursors and ids, checked before any SQL; and pages of rows that they ask for."""

import base64
import binascii
import re
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from aiohttp import web

from notifyworker import payload as payloads
from notifyworker.http.answer import weight
from notifyworker.http.problem import Problem
from notifyworker.run import State
from notifyworker.store import Row

DEFAULT_LIMIT = 50
MAX_LIMIT = 500
_LONGEST_NAME = 200  # as the columns
_PAGE_CHARACTERS = 8 * 2**20  # a page of big rows is shorter than was asked for
_CHUNK = 101
#: A cursor, in URLs and bodies: 16 bytes in base64.
CURSOR = "^[A-Za-z0-9_-]{21}[AQgw]$"
_UUID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}", re.IGNORECASE | re.ASCII)


class Query:
    """The parameters of one request. Raises Problem for one that is unknown or given twice."""

    def __init__(self, request: web.Request, known: frozenset[str]) -> None:
        self._given = request.query
        for name in self._given:
            if name not in known:
                told = f"there is no such parameter; there are: {', '.join(sorted(known))}" if known else "takes no parameters"
                raise Problem.of(name, told)
            if len(self._given.getall(name)) > 1:
                raise Problem.of(name, "is given twice")

    def state(self) -> str | None:
        """Return the state that is asked for."""
        value = self._given.get("state")
        if value is not None and value not in set(State):
            raise Problem.of("state", f"must be one of {', '.join(State)}")
        return value

    def text(self, parameter: str) -> str | None:
        """Return a parameter as it was given."""
        return self._given.get(parameter)

    def name(self, parameter: str) -> str | None:
        """Return a kind or project that is asked for."""
        value = self._given.get(parameter)
        if value is not None:
            if not 1 <= len(value) <= _LONGEST_NAME:
                raise Problem.of(parameter, f"must have 1 to {_LONGEST_NAME} characters, not {len(value)}")
            if fault := payloads.find_fault(value):
                raise Problem.of(parameter, fault.removeprefix("$ "))
        return value

    def one_of(self, parameter: str, known: list[str]) -> str | None:
        """Return a word out of a list."""
        value = self._given.get(parameter)
        if value is not None and value not in known:
            raise Problem.of(parameter, f"must be one of {', '.join(known)}")
        return value

    def whole(self, parameter: str) -> int | None:
        """Return a whole number."""
        value = self._given.get(parameter)
        if value is not None and not re.fullmatch(r"[0-9]{1,18}", value, re.ASCII):
            raise Problem.of(parameter, "must be a whole number")
        return int(value) if value is not None else None

    def limit(self) -> int:
        """Return how many rows a page may have."""
        value = self._given.get("limit")
        if value is None:
            return DEFAULT_LIMIT
        if not re.fullmatch(r"[0-9]{1,9}", value) or not 1 <= int(value) <= MAX_LIMIT:
            raise Problem.of("limit", f"must be an integer between 1 and {MAX_LIMIT}")
        return int(value)

    def cursor(self) -> UUID | None:
        """Return the last id of the page before."""
        value = self._given.get("cursor")
        return None if value is None else cursor_id(value)


def cursor_of(run_id: UUID) -> str:
    """Return the opaque text that stands for an id."""
    return base64.urlsafe_b64encode(run_id.bytes).rstrip(b"=").decode()


def cursor_id(value: Any) -> UUID:
    """Return the id that a cursor stands for. Raises Problem."""
    try:
        cursor = UUID(bytes=base64.b64decode(value.encode("ascii") + b"==", altchars=b"-_", validate=True))
    except (AttributeError, ValueError, binascii.Error):
        raise Problem.of("cursor", "is not one that this sidecar gave") from None
    if cursor_of(cursor) != value:
        raise Problem.of("cursor", "is not one that this sidecar gave")
    return cursor


def run_id_of(request: web.Request) -> UUID:
    """Return the id in the path. Raises Problem."""
    given = request.match_info["run_id"]
    if not _UUID.fullmatch(given):
        raise Problem.of("run_id", "must be a UUID")
    return UUID(given)


async def page(
    read: Callable[[UUID | None, int], Awaitable[list[Row]]], *, limit: int, start: UUID | None
) -> tuple[list[Row], str | None]:
    """
    Read up to `limit` rows behind `start`, and the cursor of the next page; None if this is the last.

    `read` takes the id to start behind and how many. It is called for few rows at a time, so that a page of rows of
    megabytes ends early in place of filling the worker's memory.
    """
    rows: list[Row] = []
    size = 0
    behind = start
    while True:
        wanted = min(_CHUNK, limit + 1 - len(rows))  # one more than is shown tells whether there is a next page
        chunk = await read(behind, wanted)
        for row in chunk:
            size += weight(row)
            if len(rows) == limit or (rows and size > _PAGE_CHARACTERS):
                return rows, cursor_of(rows[-1]["run_id"])
            rows.append(row)
        if len(chunk) < wanted:
            return rows, None
        behind = rows[-1]["run_id"]
