"""
Every answer that is not what was asked for: RFC 9457, `application/problem+json`.

It says what the asker can change, and nothing of our inside: no DSN, no SQL, no text of an exception that is not ours.
That goes to the log.
"""

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, TypeAlias

import asyncpg
from aiohttp import web

from notifyworker.database import DatabaseError, brief
from notifyworker.errors import InvalidRun, RunConflict, RunNotFound, SettingsError
from notifyworker.http.answer import dumps
from notifyworker.observe import log, outline

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

_NAME_CHARACTERS = 200  # of a field that somebody made up, in the answer that tells of it


class Problem(Exception):
    """
    Raised anywhere below the middleware to end a request with an answer.

    `extra` are further members of the answer, `field` among them. With `closes` the connection ends with it: what is
    left of the request is not worth reading.
    """

    def __init__(
        self,
        status: int,
        title: str,
        detail: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        closes: bool = False,
        **extra: Any,
    ) -> None:
        super().__init__(detail or title)
        self.status = status
        self.headers = headers
        self.closes = closes
        self.body = {"type": "about:blank", "title": title, "status": status}
        if detail:
            self.body["detail"] = detail
        self.body |= extra

    @classmethod
    def of(cls, field: str, detail: str, **options: Any) -> "Problem":
        """400, of one field: a parameter, a column or the body."""
        return cls(400, "Bad Request", f"{field[:_NAME_CHARACTERS]}: {detail}", field=field[:_NAME_CHARACTERS], **options)

    def answer(self) -> web.Response:
        """Make it a response."""
        response = web.Response(
            body=dumps(self.body), status=self.status, headers=self.headers, content_type="application/problem+json"
        )
        if self.closes:
            response.force_close()
        return response


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever is raised below into an answer."""
    try:
        return await handler(request)
    except Exception as error:
        if isinstance(error, web.HTTPException) and error.status < HTTPStatus.BAD_REQUEST:
            raise  # a redirect
        return translate(error, request).answer()


def translate(error: Exception, request: web.Request) -> Problem:
    """Say which answer an exception stands for. Logs those that an operator should hear of."""
    if isinstance(error, Problem):
        return error
    for kind, told in _TOLD:
        if isinstance(error, kind):
            return told(error)
    resource = request.match_info.route.resource
    where = {"method": request.method, "route": resource.canonical if resource else None}
    if isinstance(error, (*DatabaseError, SettingsError)):
        log.warning("sidecar_database_error", **where, error=brief(error))
        return Problem(503, "Service Unavailable", "the database can't be used now; see the log of the worker", headers=_LATER)
    log.error("sidecar_error", **where, error=outline(error))
    return Problem(500, "Internal Server Error", "this is a fault of the sidecar; see the log of the worker")


_LATER = {"Retry-After": "1"}


def _invalid(error: InvalidRun) -> Problem:
    field = error.field[:_NAME_CHARACTERS]
    if error.too_large:
        return Problem(413, "Content Too Large", str(error), field=field)
    return Problem(400, "Bad Request", str(error), field=field)


def _of_aiohttp(error: web.HTTPException) -> Problem:
    """Its status and what the headers say; its own words repeat what was sent."""
    details = {404: "there is no such route", 405: f"allowed here: {error.headers.get('Allow', '')}"}
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
    return Problem(error.status, HTTPStatus(error.status).phrase, details.get(error.status), headers=headers)


def _slow(_error: Exception) -> Problem:
    return Problem(504, "Gateway Timeout", "the database did not answer in time", headers=_LATER)


def _held(_error: Exception) -> Problem:
    return Problem(503, "Service Unavailable", "another transaction holds this run; try again", headers=_LATER)


#: In order: the first that fits is told.
_TOLD: tuple[tuple[type[Exception], Callable[[Any], Problem]], ...] = (
    (InvalidRun, _invalid),
    (RunNotFound, lambda error: Problem(404, "Not Found", str(error))),
    (RunConflict, lambda error: Problem(409, "Conflict", str(error))),
    (web.HTTPException, _of_aiohttp),
    (asyncpg.LockNotAvailableError, _held),
    (asyncpg.QueryCanceledError, _slow),
    (TimeoutError, _slow),
)
