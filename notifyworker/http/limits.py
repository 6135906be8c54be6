"""Limits over HTTP: shown, made, changed and ended."""

from aiohttp import web

from notifyworker.given import REFUSALS, limit_scope, new_limit, refused
from notifyworker.http.answer import json_answer
from notifyworker.http.body import read_object
from notifyworker.http.observed import Observed
from notifyworker.http.pool import Pool
from notifyworker.http.query import Query

_NOTHING = frozenset[str]()
_SCOPE = frozenset({"kind", "project_id", "per"})


class Limits:
    """The routes of /limits."""

    def __init__(self, worker: Observed, pool: Pool) -> None:
        self._store = worker.store
        self._pool = pool

    def table(self) -> list[web.RouteDef]:
        """All of them."""
        return [
            web.get("/limits", self.list),
            web.post("/limits", self.set),
            web.delete("/limits", self.remove),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """List all limits, each with how many places of it are taken."""
        Query(request, _NOTHING)
        return json_answer({"limits": [dict(row) for row in await self._store.limits_list(self._pool)]})

    async def set(self, request: web.Request) -> web.Response:
        """Make a limit, or change it to exactly this."""
        Query(request, _NOTHING)
        new = new_limit(**await read_object(request))
        try:
            await self._store.limit_set(self._pool, new)
        except REFUSALS as error:
            raise refused(error) from error
        return json_answer({"set": True}, status=201)

    async def remove(self, request: web.Request) -> web.Response:
        """End exactly the limit that the URL names."""
        query = Query(request, _SCOPE)
        limit = limit_scope(
            kind=query.name("kind"),
            project_id=query.name("project_id"),
            per=query.one_of("per", ["all", "project", "key"]) or "all",
        )
        return json_answer({"removed": await self._store.limit_remove(self._pool, limit.kind, limit.project_id, limit.per)})
