"""The routes, in the order of the README's table. Each handler checks, asks the store once, and answers."""

import asyncio
from importlib.metadata import version
from typing import Any

import asyncpg
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from notifyworker.errors import InvalidRun, RunConflict, RunNotFound
from notifyworker.given import Conflicts, new_run, refused
from notifyworker.http.answer import dumps, json_answer, shown
from notifyworker.http.body import SMALL_BYTES, read_object
from notifyworker.http.emit import Emit
from notifyworker.http.events import Events
from notifyworker.http.limits import Limits
from notifyworker.http.many import Many
from notifyworker.http.observed import Observed
from notifyworker.http.openapi import document
from notifyworker.http.pauses import Pauses
from notifyworker.http.pool import Pool
from notifyworker.http.query import Query, page, run_id_of
from notifyworker.http.schedules import Schedules
from notifyworker.http.shares import Shares
from notifyworker.http.workers import Workers
from notifyworker.relatives import relatives_of
from notifyworker.run_log_store import RunLogStore
from notifyworker.step_store import StepStore
from notifyworker.store import Inserted, NewRun, Row

_NOTHING = frozenset[str]()
_PAGE = frozenset({"limit", "cursor"})
_FILTERS = frozenset({"state", "kind", "project_id"}) | _PAGE
_PRODUCERS = frozenset(NewRun.__dataclass_fields__)
_SYSTEMS = frozenset(
    {
        "state", "attempt", "lease_owner", "lease_token", "lease_expires_at", "created_at", "started_at", "finished_at",
        "progress", "errors", "result", "effects", "error_code", "shadow_by", "settled_by", "replay_of",
        "waits_for", "is_limited", "parent_id",
    }
)  # fmt: skip


class Routes:
    """What the sidecar answers, of one worker."""

    def __init__(self, worker: Observed, pool: Pool, events: Events) -> None:
        self._worker = worker
        self._store = worker.store
        self._steps = StepStore(worker.store)
        self._logs = RunLogStore(worker.store)
        self._pool = pool
        self._events = events

    def table(self) -> list[web.RouteDef]:
        """All routes. A GET answers HEAD as well."""
        return [
            web.get("/healthz", self.healthz),
            web.get("/readyz", self.readyz),
            web.get("/livez", self.livez),
            web.get("/runs", self.runs),
            web.post("/runs", self.insert),
            web.get("/runs/{run_id}", self.run),
            web.post("/runs/{run_id}/cancel", self.cancel),
            web.get("/leases", self.leases),
            web.get("/reaper", self.reaper),
            *Many(self._worker, self._pool).table(),
            *Pauses(self._worker, self._pool).table(),
            *Limits(self._worker, self._pool).table(),
            *Schedules(self._worker, self._pool).table(),
            *Emit(self._worker, self._pool).table(),
            *Shares(self._worker, self._pool).table(),
            *Workers(self._worker, self._pool).table(),
            web.get("/metrics", self.metrics),
            web.get("/events", self._events.serve),
            web.get("/openapi.json", self.openapi),
        ]

    # From memory, whatever the database does.

    async def healthz(self, _request: web.Request) -> web.Response:
        """Say whether the worker does its job, and why not, or what it does without."""
        failing = self._worker.health()
        reasons = [*failing, *self._worker.restrictions()]
        return json_answer({"status": "failing" if failing else "ok", "reasons": reasons}, status=503 if failing else 200)

    async def readyz(self, _request: web.Request) -> web.Response:
        """Say whether the worker claims."""
        is_ready = self._worker.is_ready()
        return json_answer({"status": "ready" if is_ready else "not ready"}, status=200 if is_ready else 503)

    async def livez(self, _request: web.Request) -> web.Response:
        """Answer, which proves that the event loop turns."""
        return json_answer({"status": "ok"})

    async def metrics(self, _request: web.Request) -> web.Response:
        """Return the metrics of this worker alone, as Prometheus' text."""
        body = generate_latest(self._worker.metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def openapi(self, request: web.Request) -> web.Response:
        """Describe all of these routes to programs."""
        Query(request, _NOTHING)
        return json_answer(document(version("notifyworker")))

    # Runs.

    async def runs(self, request: web.Request) -> web.Response:
        """List runs, newest first."""
        query = Query(request, _FILTERS)
        state, kind, project_id = query.state(), query.name("kind"), query.name("project_id")

        async def read(before: Any, limit: int) -> list[Row]:
            return await self._store.runs_list(
                self._pool, state=state, kind=kind, project_id=project_id, before=before, limit=limit
            )

        rows, next_cursor = await page(read, limit=query.limit(), start=query.cursor())
        return await _rows_answer("runs", rows, next_cursor=next_cursor)

    async def run(self, request: web.Request) -> web.Response:
        """Show one run, live or settled."""
        run_id = run_id_of(request)
        Query(request, _NOTHING)
        row = await self._store.run_get(self._pool, run_id)
        if row is None:
            raise RunNotFound(run_id)
        steps = await self._steps.steps_list(self._pool, run_id, row["created_at"])
        logged = await self._logs.run_logs_list(self._pool, run_id, row["created_at"])
        family = await relatives_of(self._store, self._pool, row)
        more = {"steps": [shown(step) for step in steps], "log": [shown(lease) for lease in logged], **family}
        body = await asyncio.to_thread(dumps, {**shown(row), **more})  # up to some megabytes
        return web.Response(body=body, content_type="application/json")

    async def insert(self, request: web.Request) -> web.Response:
        """Insert one run, or name the one that holds the idempotency key."""
        Query(request, _NOTHING)
        given = await read_object(request)
        _check_columns(given)
        is_small = len(await request.read()) <= SMALL_BYTES
        new = new_run(**given) if is_small else await asyncio.to_thread(new_run, **given)
        run_id, became = await self._inserted(new)
        if became != "new":
            return json_answer({"run_id": run_id, became: True})
        return json_answer({"run_id": run_id}, status=201, headers={"Location": f"/runs/{run_id}"})

    async def cancel(self, request: web.Request) -> web.Response:
        """Settle a pending or running run as cancelled."""
        run_id = run_id_of(request)
        Query(request, _NOTHING)
        with Conflicts(run_id):
            state = await self._store.run_cancel(self._pool, run_id)
        return json_answer({"run_id": run_id, "state": state})

    # The fleet.

    async def leases(self, request: web.Request) -> web.Response:
        """List who holds what, until when."""
        query = Query(request, _PAGE)

        async def read(after: Any, limit: int) -> list[Row]:
            return await self._store.leases_list(self._pool, after=after, limit=limit)

        rows, next_cursor = await page(read, limit=query.limit(), start=query.cursor())
        return await _rows_answer("leases", rows, next_cursor=next_cursor)

    async def reaper(self, request: web.Request) -> web.Response:
        """Show the leader, its passes, and what they took from whom."""
        Query(request, _NOTHING)
        state = await self._store.reaper_state(self._pool)
        recent = await self._store.reaps_list(self._pool)
        return json_answer({**state, "interval_s": self._worker.reaper_interval_s, "recent": [shown(row) for row in recent]})

    async def _inserted(self, new: NewRun) -> Inserted:
        """Insert; what the database refuses is told without its own words, unless they are ours."""
        try:
            return await self._store.run_insert(self._pool, new)
        except asyncpg.UniqueViolationError as error:
            message = f"a live run has the id {new.run_id}"
            raise RunConflict(message) from error
        except (
            asyncpg.IntegrityConstraintViolationError,
            asyncpg.DataError,
            asyncpg.ProgramLimitExceededError,
            asyncpg.FeatureNotSupportedError,
        ) as error:
            told = refused(error)
            if error.column_name:  # raised by our own trigger
                raise told from error
            raise InvalidRun(told.field, "the database refuses this value", too_large=told.too_large) from error


def _check_columns(given: dict[str, Any]) -> None:
    for name in given:
        if name in _SYSTEMS:
            raise InvalidRun(name, "is set by the system", hint="leave it out")
        if name not in _PRODUCERS:
            raise InvalidRun(name, "there is no such column", hint=f"there are: {', '.join(sorted(_PRODUCERS))}")
    if "kind" not in given:
        raise InvalidRun("kind", "is required")


async def _rows_answer(name: str, rows: list[Row], **more: Any) -> web.Response:
    """Encode in a thread: a full page may take tens of milliseconds, in which the worker would not turn."""

    def encode() -> bytes:
        return dumps({name: [shown(row) for row in rows], **more})

    return web.Response(body=await asyncio.to_thread(encode), content_type="application/json")
