"""The overview: the sentence first, then what needs somebody, then numbers."""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import asyncpg

from notifyworker.http.observed import Observed
from notifyworker.http.page import attention
from notifyworker.http.page.frame import Frame
from notifyworker.http.page.queries import Queries
from notifyworker.http.page.trends import Minute, Trends, gathered
from notifyworker.http.pool import Pool

CAP = 50_000  # live runs that are counted
RANGES = {"15m": 15, "1h": 60, "6h": 360, "24h": 1440}
_LOOKED_AT = 1_000  # runs with errors
_RECENT = timedelta(minutes=15)
_KINDS = 50
_TIMED = 200  # of the newest runs of each kind


class Overview:
    """Gathers what the overview shows."""

    def __init__(self, worker: Observed, pool: Pool, queries: Queries) -> None:
        self._worker = worker
        self._pool = pool
        self._queries = queries
        self._trends = Trends(queries)
        self._kept: dict[str, tuple[float, dict[str, Any]]] = {}  # by range, of which there are four
        self._turn = asyncio.Lock()
        self._depths: list[tuple[float, int, int]] = []  # when, due and running: what no table keeps

    async def read(self, frame: Frame, span: str) -> dict[str, Any]:
        """All of it, kept for forty times as long as it took to read, at most ten seconds: many pages cost what one does. Raises DatabaseError."""
        async with self._turn:
            kept = self._kept.get(span)
            if kept is not None and time.monotonic() < kept[0]:
                return kept[1]
            began = time.monotonic()
            data = await self._read(frame, span)
            took_s = time.monotonic() - began
            keep_s = min(10.0, max(1.0, 40 * took_s)) * random.uniform(0.8, 1.2)  # noqa: S311 - so that sidecars do not fall into step
            self._kept[span] = time.monotonic() + keep_s, data
            return data

    def stale(self) -> None:
        """Something was changed by hand: read it anew."""
        self._kept.clear()

    async def _read(self, frame: Frame, span: str) -> dict[str, Any]:
        minutes = RANGES[span]
        since = frame.now - timedelta(minutes=minutes)
        async with self._pool.snapshot() as on:
            live = [dict(row) for row in await self._queries.rows(on, "live", CAP)]
            failures = await self._queries.rows(on, "failures", since, _LOOKED_AT, CAP, frame.now - _RECENT)
            causes, per_minute = _split(failures)
            judged = await self._judged(on, _recent(causes), frame.now)
            faults = [dict(row) for row in await self._worker.store.schedules_list(on) if row["error"]]
        moments, known, is_counted = await self._settled(frame.now, minutes)
        whole = live[0] if live and live[0]["is_all"] else _empty()
        kinds = [row for row in live if row["kind"] is not None]
        projects = [row for row in live if row["project_id"] is not None]
        self._remember(whole["due"], whole["running"])
        needs = [
            *attention.of_failures(judged),
            *attention.of_fleet(frame, self._worker.health(), self._worker.reaper_interval_s),
            *attention.of_work(frame, kinds, faults),
        ]
        needs.sort(key=lambda need: need.level != "bad")
        totals = _totals(known)
        whole_minutes, moments = known[:-1], moments[:-1]  # the last has only begun
        series = gathered(whole_minutes)
        step = -(-len(moments) // 60)
        starts = moments[::step]
        failed_attempts = [
            sum(per_minute.get(moments[i], 0) for i in range(at, min(at + step, len(moments))))
            for at in range(0, len(moments), step)
        ]
        return {
            "span": span,
            "minutes": minutes,
            "step": step,
            "sentence": attention.sentence(needs, is_idle=not whole["runs"] and not totals["completed"]),
            "needs": [asdict(need) for need in needs],
            "live": whole,
            "cap": CAP,
            "timed": _TIMED,
            "is_counted": is_counted,
            "totals": totals,
            "attempts_failed": sum(cause["attempts"] for cause in causes),
            "kinds": await self._kinds(kinds, known, causes),
            "projects": projects[:8],
            "projects_more": max(0, len(projects) - 8),
            "causes": causes[:8],
            "causes_more": max(0, len(causes) - 8),
            "slots": sum(worker["concurrency"] for worker in frame.alive),
            "series": _series(starts, series, failed_attempts),
            "depths": [depth[1:] for depth in self._depths],
            "is_new": not whole["runs"] and not any(m and (m.completed or m.failed or m.cancelled) for m in known) and not causes,
        }

    async def _settled(self, now: datetime, minutes: int) -> tuple[list[datetime], list[Minute | None], bool]:
        """A history too big to be counted in time leaves gaps, and is no fault."""
        try:
            async with self._pool.snapshot() as on:
                moments, known = await self._trends.read(on, now, minutes)
        except asyncpg.QueryCanceledError:
            this = now.replace(second=0, microsecond=0)
            moments = [this - timedelta(minutes=back) for back in range(minutes)][::-1]
            known = [None] * minutes
        return moments, known, all(minute is not None for minute in known)

    async def _judged(self, on: Any, recent: list[dict[str, Any]], now: datetime) -> list[tuple[str, str | None, Any, int]]:
        judged = []
        for kind, project, mine in attention.suspects(recent):
            row = await self._queries.row(on, "share", kind, project, now - _RECENT)
            judged.append((kind, project, mine, row["completed"] if row else 0))
        return judged

    async def _kinds(
        self, live: list[dict[str, Any]], known: Sequence[Minute | None], causes: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        sums: dict[str, tuple[int, int]] = {}
        for minute in known:
            for kind, (completed, failed) in (minute.kinds if minute else {}).items():
                had = sums.get(kind, (0, 0))
                sums[kind] = had[0] + completed, had[1] + failed
        of_live = {row["kind"]: row for row in live}
        names = sorted({*of_live, *sums}, key=lambda kind: (-sums.get(kind, (0, 0))[0], kind))[:_KINDS]
        async with self._pool.snapshot() as on:
            times = {row["kind"]: row for row in await self._queries.rows(on, "kind_times", names, _TIMED)}
        series = gathered(known[:-1], most=30)
        failed_attempts: dict[str, int] = {}
        for cause in causes:
            failed_attempts[cause["kind"]] = failed_attempts.get(cause["kind"], 0) + cause["attempts"]
        return [
            {
                "kind": kind,
                **{
                    name: of_live.get(kind, _empty())[name]
                    for name in ("pending", "running", "due", "retrying", "later", "next_at")
                },
                "completed": sums.get(kind, (0, 0))[0],
                "failed": sums.get(kind, (0, 0))[1],
                "attempts_failed": failed_attempts.get(kind, 0),
                "pickup_s": times[kind]["pickup_s"] if kind in times else None,
                "took_s": times[kind]["took_s"] if kind in times else None,
                "trend": [minute.kinds.get(kind, (0, 0))[0] if minute else None for minute in series],
            }
            for kind in names
        ]

    def _remember(self, due: int, running: int) -> None:
        now = time.monotonic()
        if not self._depths or now - self._depths[-1][0] >= 5:  # noqa: PLR2004 - seconds
            self._depths.append((now, due, running))
            del self._depths[:-60]


def _split(rows: Sequence[Any]) -> tuple[list[dict[str, Any]], dict[datetime, int]]:
    causes = [dict(row) for row in rows if row["kind"] is not None]
    causes.sort(key=lambda cause: -cause["attempts"])
    return causes, {row["minute"]: row["attempts"] for row in rows if row["kind"] is None}


def _recent(causes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same causes, as far as they are of the last minutes."""
    names = ("attempts", "first_at", "projects", "project_id")
    return [cause | {name: cause[f"recent_{name}"] for name in names} for cause in causes if cause["recent_attempts"]]


def _empty() -> dict[str, Any]:
    return {
        "is_all": True, "kind": None, "project_id": None, "runs": 0, "pending": 0, "running": 0, "due": 0, "retrying": 0,
        "due_since": None, "later": 0, "next_at": None,
    }  # fmt: skip


def _totals(known: Sequence[Minute | None]) -> dict[str, Any]:
    there = [minute for minute in known if minute is not None]
    full = there[-6:-1] or there
    latest = next((m.pickup_s for m in reversed(there) if m.pickup_s[0] is not None), (None, None, None))
    return {
        "completed": sum(minute.completed for minute in there),
        "failed": sum(minute.failed for minute in there),
        "cancelled": sum(minute.cancelled for minute in there),
        "per_minute": sum(minute.completed for minute in full) / max(1, len(full)),
        "pickup_s": list(latest),
    }


def _series(starts: list[datetime], minutes: Sequence[Minute | None], failed_attempts: list[int]) -> dict[str, Any]:
    every = max(1, len(starts) // 4)
    labels = [((index + 0.5) / len(starts), f"{starts[index]:%H:%M}") for index in range(every // 2, len(starts), every)]
    return {
        "starts": starts,
        "labels": labels,
        "completed": [minute.completed if minute else 0 for minute in minutes],
        "failed": [minute.failed if minute else 0 for minute in minutes],
        "attempts_failed": failed_attempts,
        "pickup_ms": [[_ms(minute, place) for minute in minutes] for place in range(3)],
    }


def _ms(minute: Minute | None, place: int) -> float | None:
    seconds = minute.pickup_s[place] if minute is not None else None
    return None if seconds is None else round(seconds * 1000, 2)
