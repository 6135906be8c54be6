"""
What can be done from the page: asked about first, with its number and what is not undone; then done, and told in the audit.

Both steps are the same form: without `sure` it is answered by the question, with it by the way back.
"""

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit
from uuid import UUID

import orjson
from aiohttp import web

from notifyworker import bulk
from notifyworker.bulk import Verb
from notifyworker.database import DatabaseError
from notifyworker.errors import RunConflict, RunNotFound
from notifyworker.http.auth import ACTOR
from notifyworker.http.many import COUNTED
from notifyworker.http.observed import Observed
from notifyworker.http.page import doings, room, switching
from notifyworker.http.page.asked import Doing
from notifyworker.http.page.pages import Pages
from notifyworker.http.page.runs import filter_of, find
from notifyworker.http.pool import Pool
from notifyworker.http.problem import Problem

MOST = 10_000  # runs by one action
_CHUNK = 500
_MOST_LOOKS = 200
Form = dict[str, list[str]]


class Actions:
    """The routes below /actions. Each answers HTML, and is for the page alone: programs have routes of their own."""

    def __init__(self, worker: Observed, pool: Pool, pages: Pages) -> None:
        self._worker = worker
        self._pool = pool
        self._pages = pages

    def table(self) -> list[web.RouteDef]:
        """All of them."""
        return [web.post("/actions/{name}", self.serve)]

    async def serve(self, request: web.Request) -> web.Response:
        """Ask, or do. Raises Problem, DatabaseError."""
        if request.content_type != "application/x-www-form-urlencoded":
            raise Problem(415, "Unsupported Media Type", "send a form")
        try:
            form = parse_qs((await request.read()).decode("utf-8"), keep_blank_values=True, max_num_fields=MOST + 50)
        except ValueError:
            raise Problem.of("body", "is not a form") from None
        makers: dict[str, Callable[[Form], Awaitable[Doing]]] = {
            "runs": self._on_runs, "again": self._again, "pause": self._pause, "resume": self._resume, "schedule": self._schedule,
            "reaper": self._reap, "drain": self._drain, "limit": self._limit, "share": self._share, "mirror": self._mirror,
            "promote": lambda form: self._promote(form, request[ACTOR].name), "back": lambda form: self._back(form, request[ACTOR].name),
        }  # fmt: skip
        maker = makers.get(request.match_info["name"])
        if maker is None:
            raise Problem(404, "Not Found", "there is no such action")
        doing = await maker(form)
        if one(form, "sure") != "1":
            return await self._asked(request, form, doing)
        return await self._done(request, form, doing)

    async def _asked(self, request: web.Request, form: Form, doing: Doing) -> web.Response:
        asked = {entry["name"] for entry in doing.question.fields}
        kept = [(name, value) for name, values in form.items() for value in values if name not in asked | {"sure"}]
        data = {"question": doing.question, "kept": kept, "back": _back(form)}
        frame = await self._pages.frame()
        return self._pages.site.render(request, "confirm.html", {**data, "frame": frame, "now": frame.now, "done": None})

    async def _done(self, request: web.Request, form: Form, doing: Doing) -> web.Response:
        """Tell first, then do: what nobody was told of was not done."""
        actor = request[ACTOR]
        target = orjson.dumps(doing.target, default=str).decode()
        queries = self._pages.queries
        begun = await queries.rows(self._pool, "audit_begin", actor.name, doing.action, target, doing.question.number)
        audit_id = begun[0]["audit_id"]
        try:
            changed, outcome = await doing.do()
        except (*DatabaseError, Problem, RunConflict, RunNotFound) as error:
            told = str(error)[:500] if not isinstance(error, DatabaseError) else "the database did not answer: not known"
            if not isinstance(error, DatabaseError):
                await queries.rows(self._pool, "audit_end", audit_id, 0, told)
            raise
        await queries.rows(self._pool, "audit_end", audit_id, changed, outcome)
        self._pages.stale()
        back = urlsplit(_back(form))
        kept = "&".join(part for part in back.query.split("&") if part and not part.startswith("done="))
        query = f"{kept}&done={audit_id}" if kept else f"done={audit_id}"
        target_url = urlunsplit(("", "", self._pages.site.base(request) + back.path, query, ""))
        return web.Response(status=303, headers={"Location": target_url})

    # What can be done.

    async def _on_runs(self, form: Form) -> Doing:
        """Cancel or retry: those that are chosen, or all that a filter finds."""
        what: Verb = "retry" if one(form, "do") == "retry" else "cancel"
        if one(form, "do") != what:
            raise Problem.of("do", "must be cancel or retry")
        if one(form, "all") == "1" and (bulky := await self._by_filter(form, what)) is not None:
            return bulky
        if one(form, "all") == "1":
            chosen, is_all, target = await self._matching(form, what)
        else:
            chosen, is_all, target = await self._chosen(form, what)
        return doings.on_runs(self._worker.store, self._pool, what, chosen, target, is_all=is_all)

    async def _by_filter(self, form: Form, what: Verb) -> Doing | None:
        """All that a filter finds, however many, where the statements for many runs know such a filter; else None."""
        frame = await self._pages.frame()
        wanted = filter_of({name: values[0] for name, values in form.items() if values}, frame.now)
        if wanted.worker is not None or wanted.is_shadow is not None or wanted.text is not None:
            return None
        if what == "retry" and (
            wanted.state in {None, "pending", "running"} or wanted.since is not None or wanted.until is not None
        ):
            return None
        if what == "cancel" and wanted.state not in {None, "pending", "running"}:
            return None
        before = min(filter(None, (wanted.until, frame.now)))
        which = bulk.Filter(wanted.kind, wanted.project_id, wanted.state, after=wanted.since, before=before)
        number = await bulk.matching(self._worker.store, self._pool, what, which, cap=COUNTED)
        return doings.on_filter(self._worker.store, self._pool, what, which, number=number, given=wanted.given)

    async def _chosen(self, form: Form, what: str) -> tuple[list[Any], bool, dict[str, Any]]:
        try:
            ids = [UUID(text) for text in form.get("id", [])[:MOST]]
        except ValueError:
            raise Problem.of("id", "must be a UUID") from None
        if not ids:
            raise Problem.of("id", "choose at least one run")
        async with self._pages.reads() as on:
            rows = await self._pages.queries.rows(on, "runs_of", ids)
        fits = [row for row in rows if _fits(row["state"], what)]
        return fits, True, {"ids": [str(run_id) for run_id in ids[:100]], "count": len(ids)}

    async def _matching(self, form: Form, what: str) -> tuple[list[Any], bool, dict[str, Any]]:
        """In small snapshots, each of which looks a bounded way; up to MOST runs."""
        frame = await self._pages.frame()
        wanted = filter_of({name: values[0] for name, values in form.items() if values}, frame.now)
        found: list[Any] = []
        below: UUID | None = None
        looks = 0
        while len(found) < MOST and looks < _MOST_LOOKS:
            async with self._pages.reads() as on:
                rows, below = await find(on, self._pages.queries, wanted, below, _CHUNK)
            found += [row for row in rows if _fits(row["state"], what)]
            looks += 1
            if below is None:
                return found[:MOST], len(found) <= MOST, wanted.given
        return found[:MOST], False, wanted.given

    async def _again(self, form: Form) -> Doing:
        """Insert a run like one that was: the same, in shadow, or with another payload."""
        try:
            run_id = UUID(one(form, "id") or "")
        except ValueError:
            raise Problem.of("id", "must be a UUID") from None
        async with self._pages.reads() as on:
            row = await self._worker.store.run_get(on, run_id)
        if row is None:
            raise RunNotFound(run_id)
        how = one(form, "how")
        if how not in {"replay", "shadow", "edit"}:
            raise Problem.of("how", "must be replay, shadow or edit")
        return doings.again(self._worker.store, self._pool, row, how, one(form, "payload"))

    async def _pause(self, form: Form) -> Doing:
        scope = {name: value for name in ("kind", "project_id") if (value := one(form, name))}
        if not scope and one(form, "all") != "1":
            raise Problem.of("kind", "choose a kind, a project or both; or everything")
        return doings.pause(
            self._worker.store,
            self._pool,
            scope,
            seconds=one(form, "seconds"),
            until=one(form, "until"),
            reason=one(form, "reason"),
        )

    async def _resume(self, form: Form) -> Doing:
        scope = {name: value for name in ("kind", "project_id") if (value := one(form, name))}
        return doings.resume(self._worker.store, self._pool, scope)

    async def _schedule(self, form: Form) -> Doing:
        name, paused = one(form, "name"), one(form, "paused")
        if not name or paused not in {"0", "1"}:
            raise Problem.of("name" if not name else "paused", "is required: a name, and 0 or 1")
        return doings.schedule(self._worker.store, self._pool, name, is_paused=paused == "1")

    async def _limit(self, form: Form) -> Doing:
        names = ("kind", "project_id", "per", "max_running", "rate", "per_s", "burst")
        given = {name: one(form, name) for name in names}
        return room.limit(self._worker.store, self._pool, given, is_end=one(form, "end") == "1")

    async def _share(self, form: Form) -> Doing:
        return room.share(self._worker.store, self._pool, {name: one(form, name) for name in ("project_id", "weight")})

    async def _mirror(self, form: Form) -> Doing:
        names = ("kind", "version", "project_id", "percent", "per_hour")
        given = {name: one(form, name) for name in names}
        return switching.mirror(self._worker.store, self._pool, given, is_end=one(form, "end") == "1")

    async def _promote(self, form: Form, actor: str) -> Doing:
        given = {name: one(form, name) for name in ("kind", "version", "project_id", "since", "force")}
        frame = await self._pages.frame()
        return await switching.promote(self._worker.store, self._pool, given, now=frame.now, alive=len(frame.alive), actor=actor)

    async def _back(self, form: Form, actor: str) -> Doing:
        given = {name: one(form, name) for name in ("kind", "project_id", "live", "force")}
        return await switching.back(self._worker.store, self._pool, given, actor=actor)

    async def _drain(self, form: Form) -> Doing:
        lease_owner, undo = one(form, "worker"), one(form, "undo") == "1"
        frame = await self._pages.frame()
        found = next(
            (worker for worker in frame.workers if worker["lease_owner"] == lease_owner and worker["state"] != "gone"), None
        )
        if found is None:
            raise Problem.of("worker", "there is no such worker any more")
        return doings.drain(self._worker.store, self._pool, found, len(frame.alive), undo=undo)

    async def _reap(self, _form: Form) -> Doing:
        frame = await self._pages.frame()
        expired = sum(w["leases"] for w in frame.workers if w["first_expires_at"] and w["first_expires_at"] <= frame.now)
        return doings.reap(self._worker, self._pool, expired)


def one(form: Form, name: str) -> str | None:
    """Return a field that may be given once. Raises Problem."""
    values = form.get(name, [])
    if len(values) > 1:
        raise Problem.of(name, "is given twice")
    return values[0].strip() if values and values[0].strip() else None


def _fits(state: str, what: str) -> bool:
    return (state in {"pending", "running"}) == (what == "cancel")


def _back(form: Form) -> str:
    """Where the page was: a path of ours, whatever the form says."""
    told = one(form, "back") or "/"
    is_ours = told.startswith("/") and not told.startswith("//") and "\\" not in told and not told.startswith("/actions")
    return told[:2000] if is_ours and not any(ord(c) < 33 for c in told) else "/"  # noqa: PLR2004 - control characters and spaces
