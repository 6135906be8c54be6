"""Many runs and settled ones, over HTTP: what failed, once more, cancel and retry by filter, and how long runs are kept."""

import asyncio
from typing import Any, get_args

from aiohttp import web

from notifyworker import bulk, history
from notifyworker.bulk import Verb
from notifyworker.errors import InvalidRun
from notifyworker.given import Conflicts, check_from_step, check_integer, new_payload
from notifyworker.http.answer import json_answer
from notifyworker.http.body import read_object
from notifyworker.http.observed import Observed
from notifyworker.http.pool import Pool
from notifyworker.http.query import Query, cursor_id, cursor_of, run_id_of

_NOTHING = frozenset[str]()
_FAILED = frozenset({"kind", "project_id", "error_code", "finished_after", "finished_before"})
MAX_BATCH = 1000  # runs a request: it is answered within a second or so
COUNTED = 100_000


class Many:
    """The routes below /bulk, /failed and /retention, and those of a run that take a payload."""

    def __init__(self, worker: Observed, pool: Pool) -> None:
        self._store = worker.store
        self._pool = pool

    def table(self) -> list[web.RouteDef]:
        """All of them."""
        return [
            web.post("/runs/{run_id}/retry", self.retry),
            web.post("/runs/{run_id}/replay", self.replay),
            web.get("/failed", self.failed),
            *(web.post(f"/bulk/{verb}", self._bulk(verb)) for verb in get_args(Verb)),
            web.get("/retention", self.retention),
            web.post("/retention", self.set_retention),
        ]

    async def retry(self, request: web.Request) -> web.Response:
        """Put a settled run back to pending, from its beginning or from one of its steps, with another payload if one is given."""
        run_id = run_id_of(request)
        payload, from_step = await _given(request, frozenset({"payload", "from_step"}))
        check_from_step(from_step)
        with Conflicts(run_id):
            await self._store.run_retry(self._pool, run_id, from_step, payload)
        return json_answer({"run_id": run_id, "state": "pending"})

    async def replay(self, request: web.Request) -> web.Response:
        """Insert a settled run once more, as a run of its own."""
        run_id = run_id_of(request)
        payload, _ = await _given(request, frozenset({"payload"}))
        with Conflicts(run_id):
            again = await self._store.run_replay(self._pool, run_id, payload)
        return json_answer({"run_id": again, "replay_of": run_id}, status=201, headers={"Location": f"/runs/{again}"})

    async def failed(self, request: web.Request) -> web.Response:
        """List failed runs by kind, code and error, of the newest ten thousand."""
        Query(request, _FAILED)
        which = history.history_filter(**request.query)
        rows = await bulk.failed_groups(self._store, self._pool, which)
        return json_answer({"failed": [dict(row) for row in rows]})

    def _bulk(self, verb: Verb) -> Any:
        async def steer(request: web.Request) -> web.Response:
            Query(request, _NOTHING)
            given = await read_object(request)
            limit, dry_run, cursor = given.pop("limit", MAX_BATCH), given.pop("dry_run", False), given.pop("cursor", None)
            check_integer("limit", limit, 1, MAX_BATCH)
            everything = given.pop("all", False)
            for name, flag in (("dry_run", dry_run), ("all", everything)):
                if not isinstance(flag, bool):
                    raise InvalidRun(name, "must be true or false")
            which = bulk.new_filter(verb, given, everything=everything)
            behind = None if cursor is None else cursor_id(cursor)
            if dry_run:
                done: dict[str, Any] = {"done": 0, "skipped": 0, "last": None}
            else:
                done = dict(await bulk.step(self._store, self._pool, verb, which, behind=behind, limit=limit))
            remaining = await bulk.matching(self._store, self._pool, verb, which, cap=COUNTED)
            last = done.pop("last")
            return json_answer({**done, "remaining": remaining, "next_cursor": None if last is None else cursor_of(last)})

        return steer

    async def retention(self, request: web.Request) -> web.Response:
        """List how long settled runs of kinds and projects are kept."""
        Query(request, _NOTHING)
        return await self._retention()

    async def set_retention(self, request: web.Request) -> web.Response:
        """Keep those of a kind, a project or both for so many days; null: as long as all others."""
        Query(request, _NOTHING)
        given = await read_object(request)
        if unknown := sorted(set(given) - {"kind", "project_id", "days"}):
            raise InvalidRun(unknown[0], "there is no such field", hint="there are: days, kind, project_id")
        if "days" not in given:
            raise InvalidRun("days", "is required", hint="null: as long as all others")
        await history.retention_set(self._store, self._pool, given["days"], given.get("kind"), given.get("project_id"))
        return await self._retention()

    async def _retention(self) -> web.Response:
        rows = await history.retention_list(self._store, self._pool)
        days = int((await self._store.settings(self._pool))["history_retention_days"])
        return json_answer({"retention": [dict(row) for row in rows], "history_retention_days": days})


async def _given(request: web.Request, known: frozenset[str]) -> tuple[str | None, Any]:
    """Return what takes the place of the payload, and from_step; None without a body, or without one in it."""
    Query(request, _NOTHING)
    given = await read_object(request) if await request.read() else {}
    if unknown := sorted(set(given) - known):
        raise InvalidRun(unknown[0], "there is no such field", hint=f"there are: {', '.join(sorted(known))}")
    payload = await asyncio.to_thread(new_payload, given["payload"]) if "payload" in given else None
    return payload, given.get("from_step")
