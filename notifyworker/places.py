"""
Tell the database when the handler of a cancelled run has ended.

A run with a concurrency key or under a limit that is cancelled while it is executed keeps its places: its handler still
runs somewhere (schema/0012_limits.sql, `lingers`). They are free once this worker says so, or once it is gone, which the
leader sees. So what is to be said is said again until it is heard.
"""

import asyncio
from collections.abc import Sequence
from uuid import UUID

from notifyworker.database import DatabaseError, Link, brief
from notifyworker.observe import log
from notifyworker.pause import Backoff
from notifyworker.run import Outcome, Run
from notifyworker.store import Store


class LingeringPlaces:
    """The places of runs that were taken from this worker by a cancel. Holds no more than there were handlers."""

    def __init__(self, store: Store, link: Link, lease_owner: str) -> None:
        self._store = store
        self._link = link
        self._lease_owner = lease_owner
        # Limited runs whose handler has ended and whose outcome is still to be written.
        self._ending: set[tuple[UUID, int]] = set()
        self._to_tell: set[tuple[UUID, int]] = set()
        self._changed = asyncio.Event()

    def handler_ended(self, run: Run, *, is_held: bool) -> None:
        """Nothing is executed for this run any more; `is_held`: its outcome is still to be written under its lease."""
        if not run.is_limited:
            return
        if is_held:
            self._ending.add((run.run_id, run.lease_token))
        else:
            self._tell(run.run_id, run.lease_token)

    def settled(self, outcomes: Sequence[Outcome]) -> None:
        """They were written, which freed their places."""
        if self._ending:
            self._ending.difference_update((outcome.run_id, outcome.lease_token) for outcome in outcomes)

    def refused(self, run_id: UUID, lease_token: int) -> None:
        """Its outcome was refused: it was cancelled, or is another's."""
        if (run_id, lease_token) in self._ending:
            self._ending.discard((run_id, lease_token))
            self._tell(run_id, lease_token)

    async def run(self) -> None:
        """Tell until cancelled."""
        backoff = Backoff()
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._to_tell:
                run_id, lease_token = next(iter(self._to_tell))
                try:
                    await self._store.end_lingering(self._link, run_id, self._lease_owner, lease_token)
                except DatabaseError as error:
                    log.warning("places_not_freed", run_id=str(run_id), error=brief(error))
                    await asyncio.sleep(backoff.next_s())
                    continue
                backoff.reset()
                self._to_tell.discard((run_id, lease_token))

    def _tell(self, run_id: UUID, lease_token: int) -> None:
        self._to_tell.add((run_id, lease_token))
        self._changed.set()
