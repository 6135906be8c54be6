"""The statements about children and their parents, beside those of the store."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from notifyworker.database import Connection, Queryable
from notifyworker.family import NewChild, NewGroup
from notifyworker.run import Run
from notifyworker.store import Row, Store


class ChildrenStore:
    """One function a file in sql/, of the same name."""

    def __init__(self, store: Store) -> None:
        self._sql = store.sql

    async def fresh_ids(self, on: Queryable, number: int) -> list[UUID]:
        """Return so many ids for new runs, in order."""
        return [UUID(row["run_id"]) for row in await on.fetch(self._sql("fresh_ids"), number)]

    async def children_load(self, on: Queryable, run: Run, lease_owner: str) -> list[Row] | None:
        """Return the recorded children of a run; None if it is no longer this worker's."""
        rows = await on.fetch(self._sql("children_load"), run.run_id, run.lease_token, lease_owner)
        return [row for row in rows if row["position"] is not None] if rows else None

    async def child_groups_load(self, on: Queryable, run: Run, lease_owner: str) -> list[Row] | None:
        """Return the recorded groups; None if the run is no longer this worker's."""
        rows = await on.fetch(self._sql("child_groups_load"), run.run_id, run.lease_token, lease_owner)
        return [row for row in rows if row["number"] is not None] if rows else None

    async def make_ready(self, on: Connection, names: Sequence[str]) -> None:
        """
        Have the server parse these now, so that each is sent as a whole later.

        A server that has parsed a statement waits for the rest of it without any time-out: were this process frozen then, with
        children written down, nobody else could start the same ones.
        """
        for name in names:
            await on.executemany(self._sql(name), [])

    async def children_put(self, on: Queryable, run: Run, lease_owner: str, new: Sequence[NewChild]) -> bool:
        """Write down children; False if the run is no longer this worker's."""
        rows = await on.fetch(
            self._sql("children_put"), run.run_id, run.lease_token, lease_owner, [n.run_id for n in new],
            [n.position for n in new], [n.row.kind for n in new], [n.is_detached for n in new],
        )  # fmt: skip
        return bool(rows[0]["put"])

    async def children_insert(self, on: Queryable, run: Run, new: Sequence[NewChild]) -> None:
        """Insert what was written down."""
        columns = ("kind", "payload", "priority", "run_at", "max_attempts", "timeout", "expires_at", "concurrency_key", "headers")
        values = ([getattr(n.row, column) for n in new] for column in columns)
        await on.fetch(self._sql("children_insert"), run.run_id, run.project_id, [n.run_id for n in new], *values)

    async def child_group_put(self, on: Queryable, run: Run, lease_owner: str, group: NewGroup) -> bool:
        """Write down a group; False if the run is no longer this worker's."""
        last = group.last
        return bool(
            await on.fetch(
                self._sql("child_group_put"), run.run_id, run.lease_token, lease_owner, group.number, group.positions,
                group.on_failure, group.last_id, group.last_position, last and last.kind, last and last.payload,
                last and last.headers, group.timeout_s,
            )
        )  # fmt: skip

    async def child_group_close(self, on: Queryable, run: Run, lease_owner: str, number: int) -> Row | None:
        """Ask for the outcomes of a group; None if the run is no longer this worker's."""
        rows = await on.fetch(self._sql("child_group_close"), run.run_id, run.lease_token, lease_owner, number)
        return rows[0] if rows else None

    async def child_outcomes(self, on: Queryable, run: Run, number: int, *, after: int, limit: int) -> list[Row]:
        """Return a page of a group's outcomes."""
        return await on.fetch(self._sql("child_outcomes"), run.run_id, number, after, limit)

    async def park(self, on: Queryable, run: Run, lease_owner: str, number: int, progress: str | None) -> bool:
        """Running -> pending, until the children of a group are settled; False if it is not held, or locked by somebody."""
        rows = await on.fetch(self._sql("park"), run.run_id, run.lease_token, lease_owner, number, progress)
        return rows[0]["parked"] is not None

    async def children_cancel(self, on: Queryable, parents: Sequence[UUID], limit: int, positions: str | None = None) -> int:
        """Cancel live children; return how many."""
        return int((await on.fetch(self._sql("children_cancel"), list(parents), limit, positions))[0]["cancelled"])

    # For the leader.

    async def child_checks_list(self, on: Queryable, limit: int) -> list[Row]:
        """Return parents that have to be looked at."""
        return await on.fetch(self._sql("child_checks_list"), limit)

    async def child_checks_done(self, on: Queryable, check_ids: Sequence[int]) -> None:
        """Delete these notes."""
        await on.fetch(self._sql("child_checks_done"), list(check_ids))

    async def parent_check(self, on: Queryable, parent_id: UUID, created_at: datetime) -> bool:
        """Look at a parent once more; False if it is to be looked at again."""
        return bool((await on.fetch(self._sql("parent_check"), parent_id, created_at))[0]["is_done"])

    async def cancelled_check(self, on: Queryable, parent_id: UUID, limit: int) -> tuple[int, bool]:
        """Cancel the children of a run that was cancelled; return how many, and whether none is left."""
        row = (await on.fetch(self._sql("cancelled_check"), parent_id, limit))[0]
        return row["cancelled"], row["is_done"]

    async def parents_forgotten(self, on: Queryable, after: tuple[UUID, int], limit: int) -> list[Row]:
        """Return open groups, and what is wrong with them."""
        return await on.fetch(self._sql("parents_forgotten"), *after, limit)

    async def child_group_over(self, on: Queryable, parent_id: UUID, created_at: datetime, number: int) -> None:
        """Close a group for which nobody waits any more."""
        await on.fetch(self._sql("child_group_over"), parent_id, created_at, number)

    async def children_forget(self, on: Queryable, *, limit: int) -> int:
        """Delete children of runs that are kept no longer; return how many."""
        return len(await on.fetch(self._sql("children_forget"), limit))

    # For readers.

    async def children_list(
        self, on: Queryable, parent_id: UUID, created_at: datetime, *, after: int = 0, limit: int = 100
    ) -> list[Row]:
        """Return a page of a run's children."""
        return await on.fetch(self._sql("children_list"), parent_id, created_at, after, limit)

    async def relatives(self, on: Queryable, run_id: UUID, created_at: datetime) -> Row:
        """Return who started a run, how many children it has in which state, and which event it waits for."""
        return (await on.fetch(self._sql("relatives"), run_id, created_at))[0]
