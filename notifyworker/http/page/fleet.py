"""Workers, the reaper, schedules and pauses: what each of their pages shows."""

from typing import Any

from notifyworker.database import Queryable
from notifyworker.given import schedule_as_dict
from notifyworker.http.observed import Observed
from notifyworker.http.page.frame import Frame
from notifyworker.http.page.overview import CAP
from notifyworker.http.page.queries import Queries

_LEASES = 200


class Fleet:
    """Gathers it. Each of its methods raises DatabaseError."""

    def __init__(self, worker: Observed, queries: Queries) -> None:
        self._worker = worker
        self._queries = queries

    async def workers(self, on: Queryable, frame: Frame, chosen: str | None) -> dict[str, Any]:
        """The fleet, and the leases of one worker: of the chosen one, else of the first that is silent and holds any."""
        focus = chosen or next((w["lease_owner"] for w in frame.silent if w["leases"]), None)
        leases = [dict(row) for row in await self._queries.rows(on, "leases", focus, _LEASES)] if focus else []
        return {
            "workers": frame.workers,
            "chosen": focus,
            "leases": [{**lease, "left_s": (lease["lease_expires_at"] - frame.now).total_seconds()} for lease in leases],
            "slots": sum(worker["concurrency"] for worker in frame.alive),
            "busy": sum(worker["running"] for worker in frame.alive),
            "own": self._worker.lease_owner,
        }

    async def reaper(self, on: Queryable, frame: Frame) -> dict[str, Any]:
        """The leader, its passes, and what they took from whom."""
        return {
            "reaper": frame.reaper,
            "interval_s": self._worker.reaper_interval_s,
            "recent": [dict(row) for row in await self._queries.rows(on, "reaps", None, 50)],
            "sums": [dict(row) for row in await self._queries.rows(on, "reap_sums")],
            "queue_usage": await self._worker.store.queue_usage(on),
            "at_risk": [worker for worker in frame.workers if worker["first_expires_at"] is not None],
        }

    async def schedules(self, on: Queryable, frame: Frame) -> dict[str, Any]:
        """All schedules, the next first, and how their last runs ended."""
        found = [schedule_as_dict(row) for row in await self._worker.store.schedules_list(on)]
        names = [one["name"] for one in found][:200]
        runs: dict[str, list[dict[str, Any]]] = {}
        for row in await self._queries.rows(on, "last_runs", names, [one["kind"] for one in found][:200], 500) if names else []:
            runs.setdefault(row["name"], []).append(dict(row))
        for one in found:
            one["runs"] = runs.get(one["name"], [])[:24]
        found.sort(
            key=lambda one: (
                one["error"] is None,
                one["paused"],
                one["next_at"] is None,
                one["next_at"] or frame.now,
                one["name"],
            )
        )
        return {"schedules": found}

    async def pauses(self, on: Queryable, frame: Frame) -> dict[str, Any]:
        """What is paused, and what could be."""
        names = await self._queries.rows(on, "names", 2000)
        live = {(row["kind"], row["project_id"]): row for row in await self._queries.rows(on, "live", CAP)}
        pauses = []
        for pause in frame.pauses:
            row = live.get((pause["kind"], pause["project_id"]) if None in {pause["kind"], pause["project_id"]} else ("", ""))
            pauses.append({**pause, "waiting": row["pending"] if row else None})
        return {
            "pauses": pauses,
            "limits": [dict(row) for row in await self._worker.store.limits_list(on)],
            "shares": [dict(row) for row in await self._worker.store.shares_list(on)],
            "kinds": [row["name"] for row in names if row["what"] == "kind"],
            "projects": [row["name"] for row in names if row["what"] == "project"],
        }
