"""The statements about what runs have logged, beside those of the store."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from notifyworker.database import Queryable
from notifyworker.store import Row, Store


@dataclass(frozen=True, slots=True)
class NewLog:
    """The last lines of a lease, as a JSON array; how many they are, how many came before; whether no more will come."""

    run_id: UUID
    lease_token: int
    lines: str
    line_count: int
    cut: int
    is_whole: bool


class RunLogStore:
    """One function a file in sql/, of the same name."""

    def __init__(self, store: Store) -> None:
        self._sql = store.sql

    async def run_logs_put(self, on: Queryable, lease_owner: str, logs: Sequence[NewLog], *, keep: int) -> None:
        """Write logs of leases that this worker holds; `keep` lines of a run, over all of its leases."""
        await on.fetch(
            self._sql("run_logs_put"),
            lease_owner, [n.run_id for n in logs], [n.lease_token for n in logs], [n.lines for n in logs],
            [n.line_count for n in logs], [n.cut for n in logs], [n.is_whole for n in logs], keep,
        )  # fmt: skip

    async def run_logs_list(self, on: Queryable, run_id: UUID, created_at: datetime) -> list[Row]:
        """Return what is kept of a run's log, a row a lease."""
        return await on.fetch(self._sql("run_logs_list"), run_id, created_at)

    async def run_logs_forget(self, on: Queryable, *, limit: int) -> int:
        """Delete logs of runs that are kept no more; return how many."""
        return len(await on.fetch(self._sql("run_logs_forget"), limit))
