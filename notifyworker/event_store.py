"""The statements about events, beside those of the store."""

from uuid import UUID

from notifyworker.database import Queryable
from notifyworker.run import Run
from notifyworker.store import Row, Store


class EventStore:
    """One function a file in sql/, of the same name."""

    def __init__(self, store: Store) -> None:
        self._sql = store.sql

    async def event_take(  # noqa: PLR0917 - in the order of the statement's
        self,
        on: Queryable,
        run: Run,
        lease_owner: str,
        position: int,
        step: str,
        name: str,
        key: str,
        timeout_s: float | None,
        progress: str | None,
    ) -> Row | None:
        """Ask for an event; None if the run is no longer this worker's."""
        rows = await on.fetch(
            self._sql("event_take"), run.run_id, run.lease_token, lease_owner, position, step, name, key, timeout_s, progress
        )
        return rows[0] if rows else None

    async def event_emit(  # noqa: PLR0917 - as above
        self,
        on: Queryable,
        name: str,
        payload: str,
        run_id: UUID | None,
        key: str | None,
        project_id: str | None,
        keep_s: float | None,
    ) -> bool:
        """Write down an event, and let go on who waits for it; False if there is one already. Raises as run_cancel does."""
        rows = await on.fetch(self._sql("event_emit"), name, payload, run_id, key, project_id, keep_s)
        return bool(rows[0]["emitted"])

    async def events_mend(self, on: Queryable) -> int:
        """Let go on who waits for what is there, and forget what is over; return how many went on."""
        return int((await on.fetch(self._sql("events_mend")))[0]["mended"])
