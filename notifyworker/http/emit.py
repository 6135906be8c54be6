"""Events from outside, over HTTP: for runs that wait for them."""

from typing import Any

from aiohttp import web

from notifyworker.emitting import emit
from notifyworker.errors import InvalidRun
from notifyworker.http.answer import json_answer
from notifyworker.http.body import read_object
from notifyworker.http.observed import Observed
from notifyworker.http.pool import Pool
from notifyworker.http.query import Query

_NOTHING = frozenset[str]()
_FIELDS = ("name", "payload", "run_id", "key", "project_id", "keep_s")


class Emit:
    """The route by which something is said to have happened."""

    def __init__(self, worker: Observed, pool: Pool) -> None:
        self._store = worker.store
        self._pool = pool

    def table(self) -> list[web.RouteDef]:
        """It alone."""
        return [web.post("/events", self.emit)]

    async def emit(self, request: web.Request) -> web.Response:
        """Write down an event, and let go on who waits for it; `emitted` is false if there is one already."""
        Query(request, _NOTHING)
        given: dict[str, Any] = await read_object(request)
        if unknown := sorted(set(given) - set(_FIELDS)):
            raise InvalidRun(unknown[0], "an event has no such field", hint=f"there are: {', '.join(_FIELDS)}")
        if "name" not in given:
            raise InvalidRun("name", "is required")
        emitted = await emit(self._store, self._pool, given.pop("name"), given.pop("payload", None), **given)
        return json_answer({"emitted": emitted}, status=201 if emitted else 200)
