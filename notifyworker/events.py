"""
Events from outside, for which a run waits without a slot.

One statement looks for the event, and either records it as a step of the run, or that the time is over, or puts the run back
to pending until one of the two: so there is one outcome, whatever comes at the same moment. A wait that has an end is a run
that is due then, which any worker claims, whoever was restarted meanwhile.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID

from notifyworker import payload as payloads
from notifyworker.children import refuse_inside, refuse_parking
from notifyworker.database import Link
from notifyworker.errors import EventTimeout, LeaseLost
from notifyworker.event_store import EventStore
from notifyworker.execute import Attempt
from notifyworker.pause import Backoff
from notifyworker.run import Outcome, Run, State
from notifyworker.steps import Steps, asked
from notifyworker.store import Row, Store


class EventWaits:
    """
    What one worker's runs wait for. `before` is awaited with a run's lease before it is given up; `on_settled` is called when
    it was.
    """

    def __init__(
        self,
        store: Store,
        link: Link,
        lease_owner: str,
        *,
        steps: Steps,
        unhurried: Callable[..., Awaitable[None]],
        progress: Callable[[Run], str | None],
        before: Callable[[Sequence[tuple[UUID, int]]], Awaitable[None]],
        on_settled: Callable[[Sequence[Outcome]], None],
        on_parked: Callable[[Attempt], None],
        on_lost: Callable[[Attempt], None],
    ) -> None:
        self._store = EventStore(store)
        self._link = link
        self._lease_owner = lease_owner
        self._steps = steps
        self._unhurried = unhurried
        self._progress = progress
        self._before = before
        self._on_settled = on_settled
        self._on_parked = on_parked
        self._on_lost = on_lost

    async def wait(self, attempt: Attempt, name: str, key: str | None, timeout_s: float | None) -> Any:
        """Return an event's payload; or park the run until it is there, which cancels its handler here. Raises EventTimeout."""
        refuse_inside(attempt, "event")
        refuse_parking(attempt, "event")
        step = f"event:{name}" if key is None else f"event:{name}:{key}"
        position, is_recorded, text = await self._steps.find(attempt, step)
        if not is_recorded:
            answers: list[Row] = []
            address = name, str(attempt.run.run_id) if key is None else key
            await self._unhurried(self._take(attempt, position, step, address, timeout_s, answers))
            if not answers:
                self._on_parked(attempt)
                await asyncio.get_running_loop().create_future()  # until the handler is cancelled
            text = answers[0]["result"]
        result = payloads.decode(text or "{}")
        if "timeout" in result:
            raise EventTimeout(name, key)
        return result["payload"]

    async def _take(  # noqa: PLR0917 - what identifies the step and the event
        self, attempt: Attempt, position: int, step: str, address: tuple[str, str], timeout_s: float | None, answers: list[Row]
    ) -> None:
        run, backoff = attempt.run, Backoff(cap_s=0.5)
        while True:
            await self._before([(run.run_id, run.lease_token)])
            progress = self._progress(run)
            row = await asked(
                lambda: self._store.event_take(
                    self._link, run, self._lease_owner, position, step, *address, timeout_s, progress  # noqa: B023 - awaited at once
                )
            )  # fmt: skip
            if row is None:
                self._on_lost(attempt)
                raise LeaseLost(run.run_id, during="event")
            if row["became"] == "waits":
                outcome = Outcome(run.run_id, run.lease_token, run.attempt, run.kind, State.PENDING, counts=False)
                attempt.is_settled = True
                self._on_settled([outcome])
                return
            if row["became"] != "locked":
                answers.append(row)
                return
            await asyncio.sleep(backoff.next_s())
