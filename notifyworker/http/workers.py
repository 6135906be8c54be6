"""The fleet over HTTP: shown, and a worker asked to claim nothing more."""

from aiohttp import web

from notifyworker.http.answer import json_answer, shown
from notifyworker.http.observed import Observed
from notifyworker.http.pool import Pool
from notifyworker.http.problem import Handler, Problem
from notifyworker.http.query import Query

_NOTHING = frozenset[str]()


class Workers:
    """The routes below /workers."""

    def __init__(self, worker: Observed, pool: Pool) -> None:
        self._store = worker.store
        self._pool = pool

    def table(self) -> list[web.RouteDef]:
        """All of them."""
        return [
            web.get("/workers", self.list),
            web.post("/workers/{name}/drain", self._asks(undo=False)),
            web.post("/workers/{name}/undrain", self._asks(undo=True)),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """List the fleet."""
        Query(request, _NOTHING)
        return json_answer({"workers": [shown(row) for row in await self._store.workers_list(self._pool)]})

    def _asks(self, *, undo: bool) -> Handler:
        async def ask(request: web.Request) -> web.Response:
            """Ask a worker to drain, or to go on."""
            Query(request, _NOTHING)
            lease_owner = request.match_info["name"]
            if "\0" in lease_owner or not await self._store.worker_drain(self._pool, lease_owner, undo=undo):
                raise Problem(404, "Not Found", "there is no such worker")
            return json_answer({"lease_owner": lease_owner, "drain_asked": not undo})

        return ask
