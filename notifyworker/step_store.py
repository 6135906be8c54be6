"""The statements about steps, beside those of the store."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from notifyworker.database import Queryable
from notifyworker.run import Run
from notifyworker.store import Row, Store

#: Results up to this size come along with the names; larger ones one by one, when they are asked for.
SMALL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class NewStep:
    """A step that has ended: with a result, as JSON (None: it returned None), or with what it raised."""

    run_id: UUID
    lease_token: int
    position: int
    name: str
    took_s: float
    result: str | None = None
    error: str | None = None


class StepStore:
    """One function a file in sql/, of the same name."""

    def __init__(self, store: Store) -> None:
        self._sql = store.sql

    async def steps_put(self, on: Queryable, lease_owner: str, steps: Sequence[NewStep]) -> set[tuple[UUID, int]]:
        """Record steps; return run_id and position of those that were: the others' runs are locked, or another's."""
        rows = await on.fetch(
            self._sql("steps_put"),
            lease_owner, [s.run_id for s in steps], [s.lease_token for s in steps], [s.position for s in steps],
            [s.name for s in steps], [s.took_s for s in steps], [s.result for s in steps], [s.error for s in steps],
        )  # fmt: skip
        return {(row["run_id"], row["position"]) for row in rows}

    async def steps_load(self, on: Queryable, run: Run, lease_owner: str) -> list[Row] | None:
        """Return what is recorded of a run; None if it is no longer this worker's."""
        rows = await on.fetch(self._sql("steps_load"), run.run_id, run.lease_token, lease_owner, SMALL_BYTES)
        return [row for row in rows if row["position"] is not None] if rows else None

    async def step_result(self, on: Queryable, run: Run, lease_owner: str, position: int) -> list[Row]:
        """Return the row of one result; none if the run is no longer this worker's."""
        return await on.fetch(self._sql("step_result"), run.run_id, run.lease_token, lease_owner, position)

    async def step_live(self, on: Queryable, run_id: UUID, name: str) -> list[Row]:
        """Return the row of what a live run's step of this name has returned; none if it has none."""
        return await on.fetch(self._sql("step_live"), run_id, name)

    async def step_recorded(self, on: Queryable, step: NewStep) -> bool:
        """Whether this step was recorded under exactly this lease."""
        rows = await on.fetch(self._sql("step_recorded"), step.run_id, step.lease_token, step.position)
        return bool(rows[0]["recorded"])

    async def steps_list(self, on: Queryable, run_id: UUID, created_at: datetime) -> list[Row]:
        """Return the steps of a run for readers; a result above SMALL_BYTES only with its size."""
        return await on.fetch(self._sql("steps_list"), run_id, created_at, SMALL_BYTES)

    async def steps_forget(self, on: Queryable, *, limit: int) -> int:
        """Delete steps of runs that are kept no more; return how many."""
        return len(await on.fetch(self._sql("steps_forget"), limit))
