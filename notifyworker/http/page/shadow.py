"""The shadow page: which version may go live, which differs from its live runs and in what, and what is switched."""

import random
import time
from datetime import datetime
from typing import Any

from aiohttp import web

from notifyworker.database import Queryable
from notifyworker.http.observed import Observed
from notifyworker.http.page import beside
from notifyworker.http.page.frame import Frame
from notifyworker.http.page.queries import Queries
from notifyworker.http.problem import Problem
from notifyworker.http.query import Query
from notifyworker.http.shadow import AGES, since_of, state_of
from notifyworker.promoting import LEAST_AGREEMENT, LEAST_RUNS
from notifyworker.shadow_report import shadow_report

#: Ways to differ, as people say it.
WAYS = {"outcome": "Other state", "failure": "Other failure", "result": "Result differs", "effects": "Effects differ"}
_NAMES = frozenset({"kind", "version", "project_id", "since", "way", "n", "first", "done"})
_PAGE = 10
_FURTHEST = 10_000  # difference that is shown
_FRESH_S, _SHARE = 5.0, 0.05  # a report is kept so long, or until it took no more than this part of the time
_MOST_KEPT = 16
_FLOORS = (0.85, 0.5, 0.0)  # where the scale of the intervals begins


class ShadowPage:
    """Gathers it."""

    def __init__(self, worker: Observed, queries: Queries) -> None:
        self._worker = worker
        self._queries = queries
        self._reports: dict[tuple[str | None, str | None], tuple[float, list[dict[str, Any]]]] = {}

    def stale(self) -> None:
        """Something was changed by hand: count anew."""
        self._reports.clear()

    async def read(self, on: Queryable, frame: Frame, request: web.Request) -> dict[str, Any]:
        """Read it. Raises Problem, InvalidRun, DatabaseError."""
        query = Query(request, _NAMES)
        kind, version, project_id = query.name("kind"), query.name("version"), query.name("project_id")
        way, number = query.one_of("way", list(WAYS)), query.whole("n") or 1
        if number > _FURTHEST:
            raise Problem.of("n", f"must be at most {_FURTHEST}")
        told = query.text("since")
        since = since_of(told, frame.now)
        entries = [_judged(entry, frame) for entry in await self._report(on, project_id, told, since)]
        chosen = _chosen(entries, kind, version)
        differing: list[dict[str, Any]] = []
        pair = None
        if chosen is not None and chosen["different"]:
            first = (number - 1) // _PAGE * _PAGE
            which = chosen["kind"], chosen["version"], project_id, since, way
            differing = [dict(row) for row in await self._queries.rows(on, "differing", *which, _PAGE + 1, first)]
            place = number - 1 - first
            pair = await self._pair(on, differing[place]) if place < len(differing) else None
        given = {"project_id": project_id, "since": told}
        return {
            "entries": entries,
            "chosen": chosen,
            "way": way,
            "ways": WAYS,
            "number": number,
            "of_way": (chosen["ways"][way] if way else chosen["different"]) if chosen else 0,
            "first_shown": (number - 1) // _PAGE * _PAGE,
            "differing": differing[:_PAGE],
            "pair": pair,
            "filter": {name: value for name, value in given.items() if value},
            "ages": list(AGES),
            "since": told,
            "floor": _floor(entries),
            "least_agreement": LEAST_AGREEMENT,
            "least_runs": LEAST_RUNS,
            "alive": len(frame.alive),
            **_with_ways_back(await state_of(self._worker.store, on)),
        }

    async def _report(
        self, on: Queryable, project_id: str | None, told: str | None, since: datetime | None
    ) -> list[dict[str, Any]]:
        """It reads all pairs, so it is kept: the longer, the longer it took."""
        kept = self._reports.get((project_id, told))
        now = time.monotonic()
        if kept is not None and now < kept[0]:
            return kept[1]
        report = await shadow_report(self._worker.store, on, project_id=project_id, since=since, first=0)
        took_s = time.monotonic() - now
        if len(self._reports) >= _MOST_KEPT:
            self._reports.clear()
        fresh_s = max(_FRESH_S, took_s / _SHARE) * random.uniform(0.8, 1.2)  # noqa: S311 - so that pages don't come at once
        self._reports[project_id, told] = now + fresh_s, report
        return report

    async def _pair(self, on: Queryable, row: dict[str, Any]) -> dict[str, Any]:
        """One that differs, with both of its runs as far as they are kept."""
        found = [await self._worker.store.run_get(on, row[name]) for name in ("live_run_id", "shadow_run_id")]
        live, shadow = (dict(run) if run is not None else None for run in found)
        left, right = beside.results(live["result"] if live else None, shadow["result"] if shadow else None)
        return {
            **row,
            "live": live,
            "shadow": shadow,
            "effects": beside.effects(live["effects"] if live else None, shadow["effects"] if shadow else None),
            "left": left,
            "right": right,
        }


def _judged(entry: dict[str, Any], frame: Frame) -> dict[str, Any]:
    """An entry of the report, and whether promote would take it: as notifyworker/promoting.py."""
    name = f"{entry['kind']}@{entry['version']}"
    workers = sum(name in (worker.get("versions") or ()) for worker in frame.alive)
    if entry["version"] == entry["live_version"]:
        verdict = "live"
    elif entry["compared"] < LEAST_RUNS:
        verdict = "too few"
    elif entry["agreement"] < LEAST_AGREEMENT:
        verdict = "differs"
    else:
        verdict = "ready" if workers else "nobody has it"
    return {**entry, "workers": workers, "verdict": verdict}


def _chosen(entries: list[dict[str, Any]], kind: str | None, version: str | None) -> dict[str, Any] | None:
    """What is asked for; else the first that differs."""
    if kind is not None:
        fit = [e for e in entries if e["kind"] == kind and version in {None, e["version"]}]
        return fit[0] if fit else None
    return next((e for e in entries if e["verdict"] == "differs"), next((e for e in entries if e["different"]), None))


def _floor(entries: list[dict[str, Any]]) -> float:
    lowest = min((entry["agreement_low"] for entry in entries if entry["verdict"] != "too few"), default=1.0)
    return next(floor for floor in _FLOORS if lowest >= floor)


def _with_ways_back(state: dict[str, Any]) -> dict[str, Any]:
    """To what a kind would go back, where it was switched."""
    for version in state["versions"]:
        last = next((s for s in state["switches"] if _scope(s) == _scope(version)), None)
        version["back_to"] = last and (last["was"] or "the handler without a version")
        version["may_go_back"] = last is not None and last["version"] == version["version"]
    return state


def _scope(row: dict[str, Any]) -> tuple[str, str | None]:
    return row["kind"], row["project_id"]
