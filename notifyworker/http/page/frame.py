"""What stands around every page: the fleet in short, and how the database answers. Read once in two seconds for all."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from notifyworker.database import Queryable
from notifyworker.http.observed import Observed
from notifyworker.http.page.queries import Queries

SILENT_BEATS = 2.5


@dataclass(frozen=True, slots=True)
class Frame:
    """The fleet at a moment, by the database's clock."""

    now: datetime
    workers: list[dict[str, Any]]
    reaper: dict[str, Any]
    pauses: list[dict[str, Any]]
    answer_s: float
    skew_s: float
    is_listening: bool

    @property
    def silent(self) -> list[dict[str, Any]]:
        """Workers of which nothing was heard for too long, or whose session is gone."""
        return [worker for worker in self.workers if worker["status"] == "silent"]

    @property
    def alive(self) -> list[dict[str, Any]]:
        """The others."""
        return [worker for worker in self.workers if worker["status"] != "silent"]


async def read_frame(on: Queryable, worker: Observed, queries: Queries) -> Frame:
    """Read it. Raises DatabaseError."""
    began = time.monotonic()
    now = await worker.store.clock(on)
    answer_s = time.monotonic() - began
    skew_s = (datetime.now(UTC) - now).total_seconds() - answer_s / 2
    held = {row["lease_owner"]: row for row in await queries.rows(on, "held")}
    workers = []
    for row in await worker.store.workers_list(on):
        one = dict(row)
        silent_s = (now - one["heartbeat_at"]).total_seconds()
        is_silent = silent_s > SILENT_BEATS * one["heartbeat_interval_s"] or one["is_present"] is False
        one["status"] = "silent" if is_silent else "draining" if one["state"] == "draining" or one["drain_asked"] else "alive"
        lease = held.pop(one["lease_owner"], None)
        one["leases"] = lease["leases"] if lease else 0
        one["first_expires_at"] = lease["first_expires_at"] if lease else None
        one["oldest_lease_at"] = lease["oldest_at"] if lease else None
        workers.append(one)
    for owner, lease in held.items():  # who holds runs and is not there any more: the reaper's next
        workers.append(_gone(owner, dict(lease)))
    newest = max((w["version"] for w in workers if w["version"]), default="", key=_version)
    for one in workers:
        one["is_behind"] = bool(one["version"]) and _version(one["version"]) < _version(newest)
    workers.sort(key=lambda w: ({"silent": 0, "draining": 1}.get(w["status"], 2), w["lease_owner"]))
    reaper = dict(await worker.store.reaper_state(on))
    pauses = [dict(row) for row in await worker.store.pauses_list(on)]
    is_listening = bool(worker.metrics.registry.get_sample_value("notifyworker_listening"))
    return Frame(now, workers, reaper, pauses, answer_s, skew_s, is_listening)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in text.split("."))


def _gone(owner: str, lease: dict[str, Any]) -> dict[str, Any]:
    return {
        "lease_owner": owner, "host": owner.partition(":")[0], "pid": None, "version": "", "kinds": [], "project_ids": None,
        "concurrency": lease["leases"], "running": lease["leases"], "state": "gone", "shadow": "", "presence": False,
        "lease_s": None, "heartbeat_interval_s": None, "presumed_dead_s": None, "started_at": None, "heartbeat_at": None,
        "is_leader": False, "drain_asked": False, "is_present": False, "status": "silent", "leases": lease["leases"],
        "first_expires_at": lease["first_expires_at"], "oldest_lease_at": lease["oldest_at"],
    }  # fmt: skip
