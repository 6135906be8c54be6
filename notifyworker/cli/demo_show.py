"""The course of the demo: insert, kill, wait, measure, compare."""

import asyncio
import csv
import json as jsons
import statistics
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from notifyworker.cli import output
from notifyworker.cli.demo_fleet import Fleet, Member, fetch_json
from notifyworker.cli.demo_plan import SALES, Planned, faults, killed, others
from notifyworker.cli.demo_view import Board
from notifyworker.database import Connection, DatabaseError, brief
from notifyworker.errors import NotifyWorkerError
from notifyworker.given import as_dict
from notifyworker.run import TERMINAL

_DEADLINE_S = 120.0
_START_S = 30.0
_LOOK_S = 0.1
_APART_S = 0.01  # between two inserts: one by one, as users' requests come


class Show:
    """One demo, on a migrated database."""

    def __init__(self, fleet: Fleet, connection: Connection, *, schema: str, project: str, work: Path) -> None:
        self._fleet = fleet
        self._connection = connection
        self._schema = schema
        self._project = project
        self._work = work
        self._plan: dict[UUID, Planned] = {}
        self._killed_at: datetime | None = None
        self._board = Board()
        self.url = ""

    async def play(self, *, json: bool, keep: bool) -> int:
        """Do it all and print the summary. Return the exit code. Raises NotifyWorkerError."""
        try:
            async with asyncio.timeout(_DEADLINE_S) as deadline:
                with self._board:
                    await self._act()
                    await self._look(last=True)
                seen = await self._measured()
        except DatabaseError as error:  # TimeoutError among them
            if isinstance(error, TimeoutError):
                late = f"the demo is not done after {_DEADLINE_S:g} s" if deadline.expired() else "a worker does not start"
                message = f"{late}: {self._board.text()}"
            else:
                message = f"the database failed: {brief(error)}"
            raise NotifyWorkerError(message) from None
        if json:
            output.document(seen)
        else:
            _summarise(seen, keep=keep)
        for fault in seen["faults"]:
            output.say(f"not as it should be: {fault}")
        return 1 if seen["faults"] else 0

    async def stay_up(self) -> None:
        """Wait until cancelled. Raises NotifyWorkerError if a worker ends meanwhile."""
        while True:
            self._fleet.check()
            await asyncio.sleep(_LOOK_S)

    async def _act(self) -> None:
        source = self._work / "sales.csv"
        first = await self._started("--no-sidecar")
        long_one = await self._insert(killed(source))
        await self._until(lambda runs: runs[long_one]["lease_owner"] == first[1])
        second, _owner = await self._started("--port", "0")
        self.url = await asyncio.wait_for(second.url, _START_S)
        self._board.happened(f"{second.name} serves {self.url}/runs")
        planned = others()
        for number, one in enumerate(planned):
            await self._insert(one)
            if one.group == "immediate":
                await asyncio.sleep(_APART_S)
            if number % 20 == 0:
                await self._look()
        self._board.happened(f"{len(planned)} runs inserted, one by one")
        await self._until(lambda runs: all(run["state"] in TERMINAL for run_id, run in runs.items() if run_id != long_one))
        await first[0].kill()
        self._killed_at = await self._connection.fetchval("SELECT clock_timestamp()")
        self._board.happened(f"{first[0].name} killed (SIGKILL) while it executes a run; {second.name} will take it over")
        _write_sales(source)
        await self._until(lambda runs: runs[long_one]["state"] in TERMINAL)
        self._board.happened(f"{second.name} has taken it over and completed it")

    async def _started(self, *options: str) -> tuple[Member, str]:
        """Start a worker and return it with its lease_owner, once it claims."""
        member = await self._fleet.start(*options)
        present = f'SELECT lease_owner FROM "{self._schema}".workers WHERE pid = $1'  # noqa: S608 - a constant
        async with asyncio.timeout(_START_S):
            while not (owner := await self._connection.fetchval(present, member.pid)):
                self._fleet.check()
                await asyncio.sleep(_LOOK_S)
        self._board.happened(f"{member.name} started, process {member.pid}")
        return member, str(owner)

    async def _insert(self, one: Planned) -> UUID:
        """Insert as any producer does."""
        columns, values = ["kind", "payload", "project_id"], [one.kind, jsons.dumps(one.payload), self._project]
        places = ["$1", "$2", "$3"]
        if one.in_s is not None:
            columns, places = [*columns, "run_at"], [*places, f"now() + interval '{one.in_s:g} s'"]
        if one.is_shadow:
            columns, places = [*columns, "is_shadow"], [*places, "true"]
        insert = f'INSERT INTO "{self._schema}".runs ({", ".join(columns)}) VALUES ({", ".join(places)}) RETURNING run_id'  # noqa: S608 - ours
        run_id: UUID = await self._connection.fetchval(insert, *values)
        self._plan[run_id] = one
        return run_id

    async def _until(self, fact: Callable[[dict[UUID, Any]], bool]) -> None:
        wanted = f'SELECT run_id, state, lease_owner FROM "{self._schema}".all_runs WHERE project_id = $1'  # noqa: S608 - ours
        while True:
            self._fleet.check()
            await self._look()
            if fact({row["run_id"]: row for row in await self._connection.fetch(wanted, self._project)}):
                return
            await asyncio.sleep(_LOOK_S)

    async def _look(self, *, last: bool = False) -> None:
        counts = f'SELECT kind, state, count(*) FROM "{self._schema}".all_runs WHERE project_id = $1 GROUP BY 1, 2'  # noqa: S608 - ours
        rows = await self._connection.fetch(counts, self._project)
        self._board.show([(row[0], row[1], row[2]) for row in rows], last=last)

    async def _measured(self) -> dict[str, Any]:
        """Everything is settled: read it back, from the database and over HTTP."""
        wanted = f'SELECT * FROM "{self._schema}".all_runs WHERE project_id = $1'  # noqa: S608 - ours
        runs = [as_dict(row) for row in await self._connection.fetch(wanted, self._project)]
        listed = await fetch_json(f"{self.url}/runs?project_id={self._project}&limit=500")
        found = faults(self._plan, runs, self._work / "outbox")
        if {run["run_id"] for run in listed["runs"]} != {str(run_id) for run_id in self._plan}:
            found.append(f"{self.url}/runs lists {len(listed['runs'])} runs, not {len(self._plan)}")
        groups = {group: [run for run in runs if self._group(run) == group] for group in ("immediate", "scheduled", "killed")}
        late = [_s(run["started_at"] - run["run_at"]) for run in groups["scheduled"]]
        if late and min(late) < 0:
            found.append("a scheduled run was started before its time")
        return {
            "runs": len(runs),
            "states": dict(Counter(run["state"] for run in runs)),
            "pickup_s": _spread([_s(run["started_at"] - run["created_at"]) for run in groups["immediate"]]),
            "lateness_s": _spread(late),
            "take_over_s": next((_s(run["started_at"] - self._killed_at) for run in groups["killed"]), None),
            "url": f"{self.url}/runs",
            "faults": found,
        }

    def _group(self, run: dict[str, Any]) -> str | None:
        planned = self._plan.get(run["run_id"])
        return planned.group if planned else None


def _write_sales(source: Path) -> None:
    """Write the file that the long run waits for, whole or not at all."""
    draft = source.with_suffix(".draft")
    with draft.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["product", "amount"])
        table.writerows(SALES)
    draft.rename(source)


def _s(duration: Any) -> float:
    return float(duration.total_seconds())


def _spread(values: list[float]) -> dict[str, float]:
    if len(values) < 2:  # noqa: PLR2004 - quantiles need two
        return {}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"runs": len(values), "p50": cuts[49], "p99": cuts[98], "max": max(values)}


def _summarise(seen: dict[str, Any], *, keep: bool) -> None:
    def spread(name: str) -> str:
        return "   ".join(f"{cut} {1000 * seen[name][cut]:.1f} ms" for cut in ("p50", "p99", "max")) if seen[name] else "-"

    states = ", ".join(f"{runs} {state}" for state, runs in sorted(seen["states"].items()))
    output.line("")
    output.fields(
        {
            "runs": f"{seen['runs']}: {states}",
            "pickup": f"{spread('pickup_s')}   from insert to start, {seen['pickup_s'].get('runs', 0)} runs",
            "scheduled": f"{spread('lateness_s')}   after their time, {seen['lateness_s'].get('runs', 0)} runs",
            "take-over": f"{seen['take_over_s']:.1f} s after the worker was killed" if seen["take_over_s"] is not None else "-",
            "all runs": seen["url"] + ("" if keep else "   (gone by now; --keep leaves it up)"),
            "outcome": "all as it should be" if not seen["faults"] else f"{len(seen['faults'])} things are not as they should be",
        }
    )
