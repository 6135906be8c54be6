"""Lists of runs: filters out of the URL, pages by keyset, and how many fit, as far as it was counted."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
from aiohttp import web

from notifyworker import payload as payloads
from notifyworker.database import Queryable
from notifyworker.errors import InvalidRun
from notifyworker.given import moment_of
from notifyworker.http.page.frame import Frame
from notifyworker.http.page.queries import Queries
from notifyworker.http.problem import Problem
from notifyworker.http.query import Query, cursor_of
from notifyworker.run import State

PAGE = 50
FAR = 50_000  # runs of each sort that are passed on the way, where no index finds what is asked for
FAR_IN_TEXT = 5_000  # the same where payloads have to be read
TALLIED = 10_000
TALLIED_IN_TEXT = 2_000
NAMES = frozenset({"state", "kind", "project_id", "worker", "mode", "since", "until", "q"})
_AGES = {"15m": 15, "1h": 60, "6h": 360, "24h": 1440, "7d": 10080}
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class Filter:
    """What runs are asked for; each may be None. `given` is how it stands in the URL."""

    state: str | None
    kind: str | None
    project_id: str | None
    worker: str | None
    is_shadow: bool | None
    since: datetime | None
    until: datetime | None
    text: str | None
    given: dict[str, str]

    @property
    def is_indexed(self) -> bool:
        """Whether an index finds all that fits, so that nothing is passed on the way."""
        return self.state != State.COMPLETED and not any(
            value is not None
            for value in (self.kind, self.project_id, self.worker, self.is_shadow, self.since, self.until, self.text)
        )

    @property
    def far(self) -> int | None:
        """How many runs are passed at most."""
        return None if self.is_indexed else FAR if self.text is None else FAR_IN_TEXT

    def values(self, *, state: bool = True) -> list[Any]:
        """As the statements take it."""
        first = [self.state] if state else []
        return [*first, self.kind, self.project_id, self.worker, self.is_shadow, self.since, self.until, self.text]


def filter_of(given: dict[str, str], now: datetime) -> Filter:
    """Check what a URL or a form says. Raises Problem, which names the field."""
    kept = {name: value.strip() for name, value in given.items() if name in NAMES and value.strip()}
    for name, value in kept.items():
        if len(value) > _LONGEST:
            raise Problem.of(name, f"must have at most {_LONGEST} characters, not {len(value)}")
        if fault := payloads.find_fault(value):
            raise Problem.of(name, fault.removeprefix("$ "))
    if kept.get("state") is not None and kept["state"] not in set(State):
        raise Problem.of("state", f"must be one of {', '.join(State)}")
    if kept.get("mode", "both") not in {"live", "shadow", "both"}:
        raise Problem.of("mode", "must be live, shadow or both")
    mode = {"live": False, "shadow": True}.get(kept.get("mode", "both"))
    return Filter(
        kept.get("state"), kept.get("kind"), kept.get("project_id"), kept.get("worker"), mode,
        _moment("since", kept.get("since"), now), _moment("until", kept.get("until"), now), kept.get("q"), kept,
    )  # fmt: skip


def _moment(name: str, value: str | None, now: datetime) -> datetime | None:
    if value is None:
        return None
    if value in _AGES:
        return now - timedelta(minutes=_AGES[value])
    try:
        return moment_of(name, value)
    except InvalidRun as error:
        raise Problem.of(name, f"{error.args[0].partition(': ')[2] or error}; or one of {', '.join(_AGES)}") from None


async def find(on: Queryable, queries: Queries, wanted: Filter, before: UUID | None, limit: int) -> tuple[list[Any], UUID | None]:
    """Up to `limit` runs, and the id to go on below; None if that was all. Raises DatabaseError."""
    if wanted.far is not None and wanted.state != State.RUNNING:  # those have an index of their own, and are few
        await queries.rows(on, "walk")
    rows = await queries.rows(on, "runs", *wanted.values(), before, wanted.far, limit + 1)
    edge = rows[0]["edge"]
    found = [row for row in rows if row["run_id"] is not None]
    if len(found) > limit:
        return found[:limit], found[limit - 1]["run_id"]
    return found, edge


class Runs:
    """What the list of runs shows."""

    def __init__(self, queries: Queries) -> None:
        self._queries = queries

    async def read(self, on: Queryable, frame: Frame, request: web.Request) -> dict[str, Any]:
        """Read a page of it. Raises Problem, DatabaseError."""
        query = Query(request, NAMES | {"cursor", "limit", "done"})
        wanted = filter_of(dict(request.query), frame.now)
        before = query.cursor()
        names = await self._queries.rows(on, "names", 2000)
        found, edge = await find(on, self._queries, wanted, before, PAGE)
        tallied = TALLIED if wanted.text is None else TALLIED_IN_TEXT
        tallies = await self._queries.rows(on, "tallies", *wanted.values(state=False), tallied)
        counts = {str(state): 0 for state in State} | {row["state"]: row["runs"] for row in tallies}
        open_ended = {row["state"] for row in tallies if not row["is_all"]}
        if any(state in open_ended for state in ("completed", "failed", "cancelled")):
            open_ended |= {"completed", "failed", "cancelled"}
        if any(state in open_ended for state in ("pending", "running")):
            open_ended |= {"pending", "running"}
        counts["running"] = counts["running"] if not _is_plain(wanted) else sum(worker["leases"] for worker in frame.workers)
        if _is_plain(wanted):
            open_ended.discard("running")
        return {
            "filter": wanted.given,
            "chosen": dict.fromkeys(NAMES, "") | wanted.given,
            "runs": [shown_run(row, frame.now) for row in found],
            "next_cursor": cursor_of(edge) if edge is not None else None,
            "is_short": edge is not None and len(found) < PAGE,
            "is_first": before is None,
            "searched": wanted.far,
            "counts": counts,
            "open_ended": sorted(open_ended),
            "tallied": tallied,
            "kinds": [row["name"] for row in names if row["what"] == "kind"],
            "projects": [row["name"] for row in names if row["what"] == "project"],
            "owners": [worker["lease_owner"] for worker in frame.workers],
            "ages": list(_AGES),
        }

    async def of_ending(self, on: Queryable, text: str) -> UUID | None:
        """The run that is meant by an id, or by the end of one that the page shows; None if none or several are."""
        if re.fullmatch(r"[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}", text):
            return UUID(text)
        if not re.fullmatch(r"[0-9a-f]{8}", text):
            return None
        rows = await self._queries.rows(on, "by_ending", text, 20_000)
        return rows[0]["run_id"] if len(rows) == 1 else None


def _is_plain(wanted: Filter) -> bool:
    return not any(value is not None for value in wanted.values(state=False))


def shown_run(row: Any, now: datetime) -> dict[str, Any]:
    """One row of a list."""
    run = {name: value for name, value in row.items() if name not in {"edge", "error", "progress", "result"}}
    end = row["finished_at"] or now
    start = row["started_at"]
    ready = max(row["run_at"], row["created_at"])
    run["took_s"] = (end - start).total_seconds() if start else None
    run["pickup_s"] = max(0.0, (start - ready).total_seconds()) if start and row["attempt"] == 1 else None
    run["said"] = _said(row)
    run["may"] = {"pending": ["cancel"], "running": ["cancel"]}.get(row["state"], ["retry"])
    return run


def _said(row: Any) -> str:
    """The last that is known of a run, in a line."""
    error = _loaded(row["error"])
    message = ""
    if isinstance(error, dict):
        text = str(error.get("message") or error.get("code") or "")
        message = text.strip().partition("\n")[0][:300]
    if row["state"] in {"pending", "running"}:
        progress = _loaded(row["progress"])
        if row["state"] == "running" and progress is not None:
            return ", ".join(f"{k} {v}" for k, v in progress.items())[:300] if isinstance(progress, dict) else str(progress)[:300]
    if row["state"] == "completed":
        return "" if row["result"] in {None, "null"} else str(row["result"])
    return message


def _loaded(text: str | None) -> Any:
    if text is None or len(text) > 100_000:  # noqa: PLR2004 - not worth a line of a list
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:  # deeper or longer than a reader takes
        return None
