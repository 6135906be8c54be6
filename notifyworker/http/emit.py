"""Events from outside, over HTTP: for runs that wait for them."""

from uuid import UUID

from aiohttp import web

from notifyworker.errors import InvalidRun
from notifyworker.event_store import EventStore
from notifyworker.given import REFUSALS, Conflicts, check_event, new_payload, refused, uuid_of
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
        self._store = EventStore(worker.store)
        self._pool = pool

    def table(self) -> list[web.RouteDef]:
        """It alone."""
        return [web.post("/events", self.emit)]

    async def emit(self, request: web.Request) -> web.Response:
        """Write down an event, and let go on who waits for it; `emitted` is false if there is one already."""
        Query(request, _NOTHING)
        given = await read_object(request)
        if unknown := sorted(set(given) - set(_FIELDS)):
            raise InvalidRun(unknown[0], "an event has no such field", hint=f"there are: {', '.join(_FIELDS)}")
        name, payload, run_id, key, project_id, keep_s = (given.get(field) for field in _FIELDS)
        check_event(name, key, project_id, keep_s)
        wanted = None if run_id is None else uuid_of("run_id", run_id)
        try:
            with Conflicts(wanted or UUID(int=0)):
                emitted = await self._store.event_emit(self._pool, name, new_payload(payload), wanted, key, project_id, keep_s)
        except REFUSALS as error:
            raise refused(error) from error
        return json_answer({"emitted": emitted}, status=201 if emitted else 200)
