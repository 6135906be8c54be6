"""What part of the slots a project gets, over HTTP: shown and set."""

from aiohttp import web

from notifyworker.errors import InvalidRun
from notifyworker.given import check_share
from notifyworker.http.answer import json_answer
from notifyworker.http.body import read_object
from notifyworker.http.observed import Observed
from notifyworker.http.pool import Pool
from notifyworker.http.query import Query

_NOTHING = frozenset[str]()


class Shares:
    """The routes of /shares."""

    def __init__(self, worker: Observed, pool: Pool) -> None:
        self._store = worker.store
        self._pool = pool

    def table(self) -> list[web.RouteDef]:
        """All of them."""
        return [web.get("/shares", self.list), web.post("/shares", self.set)]

    async def list(self, request: web.Request) -> web.Response:
        """List the projects with another weight than 1."""
        Query(request, _NOTHING)
        return json_answer({"shares": [dict(row) for row in await self._store.shares_list(self._pool)]})

    async def set(self, request: web.Request) -> web.Response:
        """Give a project this weight."""
        Query(request, _NOTHING)
        given = await read_object(request)
        if unknown := sorted(set(given) - {"project_id", "weight"}):
            raise InvalidRun(unknown[0], "a share has no such field", hint="there are: project_id, weight")
        project_id, weight = given.get("project_id"), given.get("weight")
        check_share(project_id, weight)
        assert isinstance(project_id, str)
        assert isinstance(weight, int | float)
        await self._store.share_set(self._pool, project_id, float(weight))
        return json_answer({"project_id": project_id, "weight": weight})
