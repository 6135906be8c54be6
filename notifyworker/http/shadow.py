"""Copies of live runs over HTTP: what comparing has found, and the rules by which they are made."""

from aiohttp import web

from notifyworker.errors import InvalidRun
from notifyworker.given import REFUSALS, moment_of, refused
from notifyworker.http.answer import json_answer
from notifyworker.http.body import read_object
from notifyworker.http.observed import Observed
from notifyworker.http.pool import Pool
from notifyworker.http.query import Query
from notifyworker.shadow_report import shadow_report
from notifyworker.shadow_store import ShadowStore
from notifyworker.shadowing import check_kind_and_version, new_mirror

_NOTHING = frozenset[str]()
_WHICH = frozenset({"kind", "version", "project_id", "since", "first"})
_RULE = frozenset({"kind", "version", "project_id"})
_MOST = 1000


class Shadow:
    """The routes of /shadow."""

    def __init__(self, worker: Observed, pool: Pool) -> None:
        self._store = worker.store
        self._shadow = ShadowStore(worker.store)
        self._pool = pool

    def table(self) -> list[web.RouteDef]:
        """All of them."""
        return [
            web.get("/shadow", self.report),
            web.get("/shadow/mirrors", self.list),
            web.post("/shadow/mirrors", self.set),
            web.delete("/shadow/mirrors", self.remove),
        ]

    async def report(self, request: web.Request) -> web.Response:
        """Say how far copies agree with their live runs."""
        query = Query(request, _WHICH)
        since, first = query.text("since"), query.whole("first")
        if first is not None and first > _MOST:
            raise InvalidRun("first", f"must be at most {_MOST}")
        report = await shadow_report(
            self._store, self._pool, kind=query.name("kind"), version=query.name("version"), project_id=query.name("project_id"),
            since=None if since is None else moment_of("since", since), first=10 if first is None else first,
        )  # fmt: skip
        return json_answer({"shadow": report})

    async def list(self, request: web.Request) -> web.Response:
        """List all rules."""
        Query(request, _NOTHING)
        return json_answer({"mirrors": [dict(row) for row in await self._shadow.mirrors_list(self._pool)]})

    async def set(self, request: web.Request) -> web.Response:
        """Make a rule, or change it to exactly this."""
        Query(request, _NOTHING)
        new = new_mirror(**await read_object(request))
        try:
            await self._shadow.mirror_set(self._pool, new)
        except REFUSALS as error:
            raise refused(error) from error
        return json_answer({"set": True}, status=201)

    async def remove(self, request: web.Request) -> web.Response:
        """End exactly the rule that the URL names."""
        query = Query(request, _RULE)
        kind, version, project_id = query.name("kind"), query.name("version"), query.name("project_id")
        check_kind_and_version(kind, version, project_id)
        assert kind is not None
        assert version is not None
        return json_answer({"removed": await self._shadow.mirror_remove(self._pool, kind, version, project_id)})
