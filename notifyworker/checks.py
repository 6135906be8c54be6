"""
The net under runs that wait for their children or for an event.

Who settles a child lets its parent go on, in the same transaction. Where two settle the last two children at the same moment,
or the parent is locked, they leave a note, and tell of it: then a look comes after them. And each pass of the reaper looks for
those of whom nobody has said anything.
"""

import time
from datetime import datetime
from uuid import UUID

from notifyworker.children_store import ChildrenStore
from notifyworker.database import Link
from notifyworker.event_store import EventStore
from notifyworker.observe import log
from notifyworker.pause import Backoff
from notifyworker.store import Store

_BATCH = 200
_CANCELLED = 500
_NO_ID = UUID(int=0)


class Checks:
    """The looks of a leader, and of who stands in for one."""

    def __init__(self, store: Store) -> None:
        self._store = ChildrenStore(store)
        self._events = EventStore(store)
        self._backoff = Backoff(cap_s=5.0)
        #: When to look again, in time.monotonic().
        self.due_at = float("inf")

    def asked(self) -> None:
        """Look at once: somebody has left a note."""
        self.due_at = 0.0

    async def look(self, link: Link) -> None:
        """Look at the parents that were noted. Raises DatabaseError."""
        self.due_at = float("inf")
        is_done = True
        while True:
            noted = await self._store.child_checks_list(link, _BATCH)
            done: list[int] = []
            for row in noted:
                if await self._has_looked(link, row["parent_id"], row["parent_created_at"]):
                    done += row["check_ids"]
            if done:
                await self._store.child_checks_done(link, done)
            is_done = len(done) == sum(len(row["check_ids"]) for row in noted)
            if not noted or not is_done:
                break
        await self._events.events_mend(link)
        if is_done:
            self._backoff.reset()
        else:
            self.due_at = min(self.due_at, time.monotonic() + self._backoff.next_s())

    async def _has_looked(self, link: Link, parent_id: UUID, created_at: datetime | None) -> bool:
        if created_at is None:  # it was cancelled
            cancelled, is_done = _CANCELLED, False
            while cancelled == _CANCELLED and not is_done:
                cancelled, is_done = await self._store.cancelled_check(link, parent_id, _CANCELLED)
            return is_done
        return await self._store.parent_check(link, parent_id, created_at)

    async def cast_net(self, link: Link) -> None:
        """Find parents of whom nobody has said anything. Raises DatabaseError."""
        mended, after = 0, (_NO_ID, 0)
        while rows := await self._store.parents_forgotten(link, after, _BATCH):
            for row in rows:
                if row["is_over"]:
                    await self._store.child_group_over(link, row["parent_id"], row["parent_created_at"], row["number"])
                elif row["is_forgotten"]:
                    await self._store.parent_check(link, row["parent_id"], row["parent_created_at"])
                    mended += 1
            after = rows[-1]["parent_id"], rows[-1]["number"]
        await self.look(link)
        if mended:
            log.info("parents_looked_at", number=mended)
