"""What is paused, over HTTP: shown, begun and ended."""

from typing import Any

import asyncpg
from aiohttp import web

from notifyworker.errors import InvalidRun
from notifyworker.given import new_pause, refused
from notifyworker.http.answer import json_answer
from notifyworker.http.body import read_object
from notifyworker.http.observed import Observed
from notifyworker.http.pool import Pool
from notifyworker.http.problem import Problem
from notifyworker.http.query import Query
from notifyworker.store import NewPause

_NOTHING = frozenset[str]()


class Pauses:
    """The routes below /pauses."""

    def __init__(self, worker: Observed, pool: Pool) -> None:
        self._store = worker.store
        self._pool = pool

    def table(self) -> list[web.RouteDef]:
        """All of them."""
        return [
            web.get("/pauses", self.list),
            web.post("/pauses", self.pause),
            web.post("/pauses/resume", self.resume),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """List what is paused now."""
        Query(request, _NOTHING)
        return json_answer({"pauses": [dict(row) for row in await self._store.pauses_list(self._pool)]})

    async def pause(self, request: web.Request) -> web.Response:
        """Pause a kind, a project, or with `all` everything."""
        pause = await _given(request)
        try:
            await self._store.pause(self._pool, pause)
        except asyncpg.InvalidParameterValueError as error:
            raise refused(error) from error
        return json_answer({"paused": True}, status=201)

    async def resume(self, request: web.Request) -> web.Response:
        """End exactly this pause."""
        pause = await _given(request)
        for name in ("until", "seconds", "reason"):
            if getattr(pause, name) is not None:
                raise InvalidRun(name, "is nothing that a resume takes")
        return json_answer({"resumed": await self._store.resume(self._pool, pause.kind, pause.project_id)})


async def _given(request: web.Request) -> NewPause:
    Query(request, _NOTHING)
    given: dict[str, Any] = await read_object(request)
    is_all = given.pop("all", False)
    pause = new_pause(**given)
    if (is_all is True) == (pause.kind is not None or pause.project_id is not None):
        raise Problem.of("all", "name a kind or a project_id, or set all to true for everything")
    return pause
