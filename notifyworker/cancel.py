"""
From a notification that a run was cancelled to the end of its handler, within milliseconds.

Anybody may notify on our channel, so a notification proves nothing: one look by run_id and lease_token tells. It reads and
writes nothing, and the looks have a pause between them, so that a stranger's notifications cost next to nothing. Without
an answer the next heartbeat finds out, as it does where no notification can be heard.
"""

import asyncio
from collections.abc import Callable
from uuid import UUID

from notifyworker.database import DatabaseError, Link, brief
from notifyworker.observe import log
from notifyworker.store import Store

_PAUSE_S = 0.02


class Cancels:
    """
    Looks after runs that are said to be cancelled.

    `lease_of` returns the token of a run that is executed here or waits for a slot, `on_lost` is called with those that
    are no longer ours, `unsure` when it could not be found out.
    """

    def __init__(
        self,
        store: Store,
        link: Link,
        lease_owner: str,
        *,
        lease_of: Callable[[UUID], int | None],
        on_lost: Callable[[dict[UUID, int], str], None],
        unsure: Callable[[], None],
    ) -> None:
        self._store = store
        self._link = link
        self._lease_owner = lease_owner
        self._lease_of = lease_of
        self._on_lost = on_lost
        self._unsure = unsure
        self._said: dict[UUID, int] = {}
        self._some = asyncio.Event()

    def heard(self, argument: str) -> None:
        """Somebody says that this run was cancelled."""
        try:
            run_id = UUID(argument)
        except ValueError:
            return
        if (token := self._lease_of(run_id)) is not None:
            self._said[run_id] = token
            self._some.set()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self._some.wait()
            self._some.clear()
            said, self._said = self._said, {}
            try:
                held = await self._store.held(self._link, self._lease_owner, said)
                self._on_lost({run_id: token for run_id, token in said.items() if run_id not in held}, "cancel")
            except DatabaseError as error:
                log.debug("cancel_not_looked_into", error=brief(error))
                self._unsure()
            await asyncio.sleep(_PAUSE_S)
