"""Schedules over HTTP: shown, made, changed and deleted."""

from aiohttp import web

from notifyworker import payload as payloads
from notifyworker.errors import InvalidRun
from notifyworker.given import REFUSALS, new_schedule, refused, schedule_as_dict
from notifyworker.http.answer import json_answer
from notifyworker.http.body import read_object
from notifyworker.http.observed import Observed
from notifyworker.http.pool import Pool
from notifyworker.http.problem import Problem
from notifyworker.http.query import Query

_NOTHING = frozenset[str]()
_LONGEST_NAME = 200  # as the column


class Schedules:
    """The routes below /schedules."""

    def __init__(self, worker: Observed, pool: Pool) -> None:
        self._store = worker.store
        self._pool = pool

    def table(self) -> list[web.RouteDef]:
        """All of them."""
        return [
            web.get("/schedules", self.list),
            web.get("/schedules/{name}", self.show),
            web.put("/schedules/{name}", self.put),
            web.delete("/schedules/{name}", self.delete),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """List all schedules, each with the next times at which it fires."""
        Query(request, _NOTHING)
        rows = await self._store.schedules_list(self._pool)
        return json_answer({"schedules": [schedule_as_dict(row) for row in rows]})

    async def show(self, request: web.Request) -> web.Response:
        """Show one."""
        name = _name_of(request)
        rows = await self._store.schedules_list(self._pool, name)
        if not rows:
            raise _unknown(name)
        return json_answer(schedule_as_dict(rows[0]))

    async def put(self, request: web.Request) -> web.Response:
        """Make it, or change it to exactly this."""
        name = _name_of(request)
        given = await read_object(request)
        if "name" in given:
            raise InvalidRun("name", "stands in the URL", hint="leave it out")
        for column in ("cron", "kind"):
            if column not in given:
                raise InvalidRun(column, "is required")
        new = new_schedule(name, **given)
        try:
            await self._store.schedule_put(self._pool, new)
        except REFUSALS as error:
            raise refused(error) from error
        return await self.show(request)

    async def delete(self, request: web.Request) -> web.Response:
        """Delete it. Its runs stay."""
        name = _name_of(request)
        if not await self._store.schedule_delete(self._pool, name):
            raise _unknown(name)
        return json_answer({"name": name, "deleted": True})


def _name_of(request: web.Request) -> str:
    Query(request, _NOTHING)
    name = request.match_info["name"]
    if len(name) > _LONGEST_NAME or payloads.find_fault(name):
        raise Problem.of("name", f"must have 1 to {_LONGEST_NAME} characters, none of them NUL")
    return name


def _unknown(name: str) -> Problem:
    return Problem(404, "Not Found", f"there is no schedule {name!r:.220}", field="name")
