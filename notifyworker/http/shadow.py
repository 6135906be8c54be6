"""Copies of live runs over HTTP: what comparing has found, the rules by which they are made, and which version is live."""

from datetime import datetime, timedelta
from typing import Any

from aiohttp import web

from notifyworker import promoting, versions
from notifyworker.database import Queryable
from notifyworker.errors import InvalidRun
from notifyworker.given import REFUSALS, check_integer, check_text, moment_of, refused
from notifyworker.http.answer import json_answer
from notifyworker.http.auth import ACTOR
from notifyworker.http.body import read_object
from notifyworker.http.observed import Observed
from notifyworker.http.pool import Pool
from notifyworker.http.problem import Problem
from notifyworker.http.query import Query
from notifyworker.shadow_report import shadow_report
from notifyworker.shadow_store import ShadowStore
from notifyworker.shadowing import check_kind_and_version, check_version_name, new_mirror
from notifyworker.store import Store

_NOTHING = frozenset[str]()
_WHICH = frozenset({"kind", "version", "project_id", "since", "first"})
_RULE = frozenset({"kind", "version", "project_id"})
_PROMOTE = _RULE | {"since", "least_agreement", "least_runs", "force"}
_BACK = frozenset({"kind", "project_id", "force"})
#: How far back `since` may lie, by a word in place of a time.
AGES = {"1h": timedelta(hours=1), "24h": timedelta(days=1), "7d": timedelta(days=7), "30d": timedelta(days=30)}
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
            web.post("/shadow/promote", self.promote),
            web.post("/shadow/back", self.back),
        ]

    async def report(self, request: web.Request) -> web.Response:
        """Say how far copies agree with their live runs, by which rules they are made, what is live, and since when."""
        query = Query(request, _WHICH)
        since, first = since_of(query.text("since"), await self._store.clock(self._pool)), query.whole("first")
        if first is not None and first > _MOST:
            raise InvalidRun("first", f"must be at most {_MOST}")
        if (version := query.name("version")) is not None:
            check_version_name(version)
        report = await shadow_report(
            self._store, self._pool, kind=query.name("kind"), version=version, project_id=query.name("project_id"),
            since=since, first=10 if first is None else first,
        )  # fmt: skip
        return json_answer({"shadow": report, **await state_of(self._store, self._pool)})

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

    async def promote(self, request: web.Request) -> web.Response:
        """Make a version live, if what was compared allows it, or with `force`."""
        given = await _given(request, _PROMOTE)
        kind, version, project_id = given["kind"], given["version"], given["project_id"]
        check_kind_and_version(kind, version, project_id)
        least_agreement, least_runs = given["least_agreement"], given["least_runs"]
        if least_agreement is None:
            least_agreement = promoting.LEAST_AGREEMENT
        elif isinstance(least_agreement, bool) or not isinstance(least_agreement, int | float) or not 0 <= least_agreement <= 1:
            raise InvalidRun("least_agreement", f"must be between 0 and 1, not {least_agreement!r:.100}")
        if least_runs is None:
            least_runs = promoting.LEAST_RUNS
        check_integer("least_runs", least_runs, 1, 1_000_000_000)
        since = None if given["since"] is None else since_of(given["since"], await self._store.clock(self._pool))
        done = await promoting.promote(
            self._store, self._pool, kind, version, project_id=project_id, since=since, least_agreement=least_agreement,
            least_runs=least_runs, force=given["force"], actor=request[ACTOR].name,
        )  # fmt: skip
        return json_answer(done)

    async def back(self, request: web.Request) -> web.Response:
        """Make live again what was before the last switch."""
        given = await _given(request, _BACK)
        check_text("kind", given["kind"], 200)
        if given["project_id"] is not None:
            check_text("project_id", given["project_id"], 200)
        done = await promoting.switch_back(
            self._store, self._pool, given["kind"], project_id=given["project_id"], force=given["force"], actor=request[ACTOR].name
        )  # fmt: skip
        return json_answer(done)


async def _given(request: web.Request, known: frozenset[str]) -> dict[str, Any]:
    Query(request, _NOTHING)
    given = await read_object(request)
    if unknown := sorted(given.keys() - known):
        raise Problem.of(unknown[0], f"there is no such field; there are: {', '.join(sorted(known))}")
    given = dict.fromkeys(known) | given
    if given["force"] is None:
        given["force"] = False
    if not isinstance(given["force"], bool):
        raise InvalidRun("force", f"must be true or false, not {given['force']!r:.100}")
    return given


def since_of(given: Any, now: datetime) -> datetime | None:
    """A time, or one of AGES that lies back. Raises InvalidRun."""
    if isinstance(given, str) and given in AGES:
        return now - AGES[given]
    return None if given is None else moment_of("since", given)


async def state_of(store: Store, on: Queryable) -> dict[str, Any]:
    """Return all rules, which versions are live, and the last switches."""
    return {
        "mirrors": [dict(row) for row in await ShadowStore(store).mirrors_list(on)],
        "versions": [dict(row) for row in await versions.versions_list(store, on)],
        "switches": [dict(row) for row in await promoting.switches_list(store, on)],
    }
