"""
The pages: who is shown what, and what is shown where something goes wrong.

A page and the JSON of the same address are of the same data: what a browser asks for is told by its Accept header. Two
middlewares: the outer one turns whatever is raised into a page, the inner one stands behind the guard and draws.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs

import asyncpg
from aiohttp import web

from notifyworker.database import Connection, DatabaseError, brief, describe
from notifyworker.http.answer import json_answer
from notifyworker.http.auth import Guard
from notifyworker.http.body import read_object
from notifyworker.http.observed import Observed
from notifyworker.http.page.fleet import Fleet
from notifyworker.http.page.frame import Frame, read_frame
from notifyworker.http.page.live import Live
from notifyworker.http.page.memory import Memory
from notifyworker.http.page.overview import RANGES, Overview
from notifyworker.http.page.queries import Queries
from notifyworker.http.page.run import OneRun
from notifyworker.http.page.runs import Runs
from notifyworker.http.page.shadow import ShadowPage
from notifyworker.http.page.site import Site, wants_page
from notifyworker.http.page.system import System
from notifyworker.http.page.views import Views
from notifyworker.http.pool import Pool
from notifyworker.http.problem import Handler, Problem, translate
from notifyworker.http.query import Query, run_id_of
from notifyworker.observe import log

_FRESH_S = 2.0
_NOTHING = frozenset({"done"})


class Pages:
    """All pages of one sidecar."""

    def __init__(self, worker: Observed, pool: Pool, guard: Guard, live: Live) -> None:
        self._worker = worker
        self._pool = pool
        self._guard = guard
        self._live = live
        self.queries = Queries(worker.store.schema)
        self.site = Site(worker.settings.prefix or "", describe(worker.dsn).rpartition("@")[2])
        self._views = Views(live, self.site.base)
        self._memory = Memory(describe(worker.dsn))
        self._overview = Overview(worker, pool, self.queries)
        self._runs = Runs(self.queries)
        self._run = OneRun(worker, self.queries)
        self._fleet = Fleet(worker, self.queries)
        self._system = System(worker, self.queries)
        self._shadow = ShadowPage(worker, self.queries)
        self._frame: tuple[float, Frame] | None = None
        self._turn = asyncio.Lock()
        self._pages: dict[str, Callable[[web.Request], Awaitable[web.Response]]] = {
            "/": self.overview, "/runs": self.runs, "/runs/{run_id}": self.run, "/workers": self.workers, "/reaper": self.reaper,
            "/schedules": self.schedules, "/pauses": self.pauses, "/system": self.system, "/audit": self.audit,
            "/shadow": self.shadow,
        }  # fmt: skip

    def table(self) -> list[web.RouteDef]:
        """The routes that are the page's alone."""
        return [
            web.get("/", self.overview),
            web.get("/system", self.system),
            web.get("/audit", self.audit),
            web.get("/login", self.login),
            web.post("/login", self.log_in),
            web.post("/logout", self.logout),
            web.get("/live", self._live.stream.serve),
            web.get("/assets/{name}", self.site.assets.serve),
        ]

    @web.middleware
    async def told(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Turn what is raised into a page, for a browser."""
        try:
            return await handler(request)
        except Exception as error:
            is_for_browser = wants_page(request) or (_is_home(request) and isinstance(error, DatabaseError))
            if not is_for_browser or (isinstance(error, web.HTTPException) and error.status < 400):  # noqa: PLR2004 - a redirect
                raise
            return self._failed(request, error)

    @web.middleware
    async def drawn(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Draw the page of an address, where a browser asks for it."""
        resource = request.match_info.route.resource
        page = self._pages.get(resource.canonical) if resource is not None else None
        if page is None or request.method not in {"GET", "HEAD"} or not (wants_page(request) or _is_home(request)):
            return await handler(request)
        return await (self._views.shown(request, page) if request.headers.get("HX-Request") == "true" else page(request))

    async def frame(self) -> Frame:
        """The fleet, at most two seconds old. Raises DatabaseError."""
        async with self._turn:
            if self._frame is None or time.monotonic() - self._frame[0] > _FRESH_S:
                async with self._pool.snapshot() as on:
                    frame = await read_frame(on, self._worker, self.queries)
                self._frame = time.monotonic(), frame
            read_at, frame = self._frame
        age = timedelta(seconds=time.monotonic() - read_at)
        return replace(frame, now=frame.now + age)

    def reads(self) -> AbstractAsyncContextManager[Connection]:
        """A snapshot to read in. Raises DatabaseError."""
        return self._pool.snapshot()

    def stale(self) -> None:
        """Something was changed by hand: read the fleet anew."""
        self._frame = None
        self._overview.stale()
        self._views.forget()
        self._shadow.stale()

    async def overview(self, request: web.Request) -> web.Response:
        """The overview."""
        query = Query(request, frozenset({"range", "done"}))
        span = query.one_of("range", list(RANGES)) or "1h"
        is_page = wants_page(request) or _is_home(request)
        try:
            frame = await self.frame()
            data = await self._overview.read(frame, span)
        except DatabaseError as error:
            if is_page:
                raise
            log.warning("sidecar_database_error", method=request.method, route="/", error=brief(error))
            return json_answer(self._state(None, ["the sidecar can't use the database"]))
        if not is_page:
            return json_answer({**self._state(frame.reaper["leader"], []), **data})
        self._memory.keep(frame, data)
        template = "empty.html" if data["is_new"] and not frame.alive else "overview.html"
        return await self._drawn(request, template, frame, data)

    async def runs(self, request: web.Request) -> web.Response:
        """The list of runs. An id, or the end of one, leads to its run."""
        frame = await self.frame()
        async with self._pool.snapshot() as on:
            if text := request.query.get("q", "").strip():
                run_id = await self._runs.of_ending(on, text)
                if run_id is not None:
                    target = f"{self.site.base(request)}/runs/{run_id}"
                    raise web.HTTPSeeOther(target)
            data = await self._runs.read(on, frame, request)
        return await self._drawn(request, "runs.html", frame, data)

    async def run(self, request: web.Request) -> web.Response:
        """One run."""
        Query(request, _NOTHING)
        run_id = run_id_of(request)
        frame = await self.frame()
        async with self._pool.snapshot() as on:
            data = await self._run.read(on, frame, run_id)
        return await self._drawn(request, "run.html", frame, data)

    async def workers(self, request: web.Request) -> web.Response:
        """The fleet."""
        query = Query(request, frozenset({"worker", "done"}))
        frame = await self.frame()
        async with self._pool.snapshot() as on:
            data = await self._fleet.workers(on, frame, query.name("worker"))
        return await self._drawn(request, "workers.html", frame, data)

    async def reaper(self, request: web.Request) -> web.Response:
        """The reaper."""
        Query(request, _NOTHING)
        frame = await self.frame()
        async with self._pool.snapshot() as on:
            data = await self._fleet.reaper(on, frame)
        return await self._drawn(request, "reaper.html", frame, data)

    async def schedules(self, request: web.Request) -> web.Response:
        """Runs by the clock."""
        Query(request, _NOTHING)
        frame = await self.frame()
        async with self._pool.snapshot() as on:
            data = await self._fleet.schedules(on, frame)
        return await self._drawn(request, "schedules.html", frame, data)

    async def pauses(self, request: web.Request) -> web.Response:
        """What is paused."""
        Query(request, _NOTHING)
        frame = await self.frame()
        async with self._pool.snapshot() as on:
            data = await self._fleet.pauses(on, frame)
        return await self._drawn(request, "pauses.html", frame, data)

    async def shadow(self, request: web.Request) -> web.Response:
        """Copies of live runs, and which version is live."""
        frame = await self.frame()
        async with self._pool.snapshot() as on:
            data = await self._shadow.read(on, frame, request)
        return await self._drawn(request, "shadow.html", frame, data)

    async def system(self, request: web.Request) -> web.Response:
        """What the doctor finds, and what there is."""
        Query(request, _NOTHING)
        frame = await self.frame()
        async with self._pool.snapshot() as on:
            data = await self._system.read(on, frame)
        data |= await self._system.findings()
        if not wants_page(request):
            return json_answer(data)
        return await self._drawn(request, "system.html", frame, data)

    async def audit(self, request: web.Request) -> web.Response:
        """Who changed what."""
        query = Query(request, frozenset({"before", "done"}))
        before = query.whole("before")
        async with self._pool.snapshot() as on:
            rows = [dict(row) for row in await self.queries.rows(on, "audit", None, before, 51)]
        data = {"actions": rows[:50], "next_before": rows[49]["audit_id"] if len(rows) > 50 else None}  # noqa: PLR2004 - a page
        if not wants_page(request):
            return json_answer(data)
        return await self._drawn(request, "audit.html", await self.frame(), data)

    async def login(self, request: web.Request) -> web.Response:
        """The way in."""
        if not self._guard.has_tokens:
            raise web.HTTPSeeOther(self.site.base(request) + "/")
        return self.site.render(request, "login.html", {"error": None, "next": _path_of(request.query.get("next"))})

    async def log_in(self, request: web.Request) -> web.Response:
        """Exchange a token, in a form or as JSON, for a session cookie."""
        if request.content_type == "application/x-www-form-urlencoded":
            form = parse_qs((await request.read()).decode("utf-8", "replace"))
            given: Any = form.get("token", [None])[0]
            target = self.site.base(request) + (_path_of(form.get("next", [None])[0]) or "/")
            response = web.Response(status=303, headers={"Location": target})
        else:
            given = (await read_object(request)).get("token")
            response = json_answer({"status": "ok"})
        if not isinstance(given, str):
            raise Problem.of("token", "is required, as text")
        self._guard.log_in(request, given, response)
        return response

    async def logout(self, request: web.Request) -> web.Response:
        """End the session of this browser."""
        response = web.Response(status=303, headers={"Location": self.site.base(request) + "/login"})
        self._guard.log_out(response)
        return response

    async def _drawn(self, request: web.Request, template: str, frame: Frame, data: dict[str, Any]) -> web.Response:
        done = None
        if (told := request.query.get("done", "")).isdecimal() and len(told) < 19:  # noqa: PLR2004 - a bigint
            async with self._pool.snapshot() as on:
                done = await self.queries.row(on, "audit_one", int(told))
        context = {**data, "frame": frame, "now": frame.now, "done": done, "interval_s": self._worker.reaper_interval_s}
        began = time.thread_time()
        response = self.site.render(request, template, context)
        self._live.spent(time.thread_time() - began)
        return response

    def _state(self, leader: str | None, more: list[str]) -> dict[str, Any]:
        reasons = [*self._worker.health(), *more]
        return {
            "status": "failing" if reasons else "ok",
            "reasons": reasons,
            "ready": self._worker.is_ready(),
            "lease_owner": self._worker.lease_owner,
            "leader": leader,
        }

    def _failed(self, request: web.Request, error: Exception) -> web.Response:
        if isinstance(error, Problem) and error.status == 401:  # noqa: PLR2004
            if request.path == "/login":
                return self.site.render(
                    request, "login.html", {"error": "This token is not known here.", "next": None}, status=401
                )
            if request.method in {"GET", "HEAD"}:
                path = request.path_qs if request.path != "/" else ""
                target = f"{self.site.base(request)}/login" + self.site.next_of(path)
                return web.Response(status=303, headers={"Location": target})
        problem = translate(error, request)
        is_gone = isinstance(error, (*DatabaseError, TimeoutError)) and not isinstance(
            error, (asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError)
        )
        if is_gone:
            return self.site.render(
                request, "gone.html", self._memory.told(error, self._worker.health(), self._worker.unanswered_s()), status=503
            )
        return self.site.render(request, "problem.html", {"problem": problem.body}, status=problem.status)


def _is_home(request: web.Request) -> bool:
    """The overview is a page also for whoever names nothing: curl is shown it."""
    return (
        request.path == "/" and request.method in {"GET", "HEAD"} and "application/json" not in request.headers.get("Accept", "")
    )


def _path_of(told: str | None) -> str | None:
    """A path of ours to go on to, and no other site."""
    is_ours = told is not None and told.startswith("/") and not told.startswith(("//", "/\\")) and "\\" not in told
    return told[:2000] if told is not None and is_ours else None
