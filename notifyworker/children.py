"""
Runs that runs start, and parents that wait for them without a slot.

What a handler starts is noted here, and inserted in the transaction in which its run is settled or parked: with the fence of
that, or not at all. A parked run is pending and is not claimed; the settle of its last child lets it go on
(schema/0021_children.sql), and then its handler is executed again from the beginning.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, NoReturn
from uuid import UUID

from notifyworker import payload as payloads
from notifyworker.children_store import ChildrenStore
from notifyworker.database import Connection, DatabaseError, Link, brief, is_refusal
from notifyworker.errors import ChildFailed, InvalidRun, JoinTimeout, LeaseLost, StepError
from notifyworker.execute import Attempt, outcome_of_end, refused_result
from notifyworker.family import ChildOutcome, Family, NewChild, NewGroup, OnFailure, RecordedGroup, Start, ranges
from notifyworker.given import new_run
from notifyworker.journal import inside
from notifyworker.observe import log
from notifyworker.pause import Backoff
from notifyworker.run import Outcome, Run, State
from notifyworker.steps import asked
from notifyworker.store import Store
from notifyworker.trace import sending
from notifyworker.transaction import Transactions

_BATCH = 500
_BATCH_CHARACTERS = 4 * 1024 * 1024
_CANCELLED = 500
_LOCKED_S = 0.1
_COLUMNS = frozenset({"priority", "run_at", "max_attempts", "timeout", "expires_at", "concurrency_key", "headers"})


class Children:
    """
    The children of one worker's runs.

    `on_parked` is called for an attempt whose run was parked, `on_lost` for one whose run is no longer ours.
    """

    def __init__(
        self,
        store: Store,
        link: Link,
        lease_owner: str,
        *,
        transactions: Transactions,
        max_payload_bytes: Callable[[], int],
        progress: Callable[[Run], str | None],
        on_parked: Callable[[Attempt], None],
        on_lost: Callable[[Attempt], None],
    ) -> None:
        self._store = ChildrenStore(store)
        self._link = link
        self._lease_owner = lease_owner
        self._transactions = transactions
        self._max_payload_bytes = max_payload_bytes
        self._progress = progress
        self._on_parked = on_parked
        self._on_lost = on_lost

    # What a handler asks for.

    async def start(self, attempt: Attempt, starts: Sequence[Start], last: Start | None) -> tuple[list[UUID], UUID | None]:
        """Note what is to be started, together with a last one for when all are settled; return the ids."""
        refuse_inside(attempt, "start")
        family = await self._family(attempt)
        async with family.loading:  # ids come in the order of the calls, also of those made side by side
            places = [family.next_position(start.kind) for start in starts]
            is_new = [known is None for _, known in places]
            rows = [self._row(start) if new else None for start, new in zip(starts, is_new, strict=True)]
            fresh = await self._fresh(family, sum(is_new) + (last is not None))
            ids = []
            for (position, known), start, row in zip(places, starts, rows, strict=True):
                child = known or next(fresh)
                ids.append(child)
                if known is None:
                    family.new.append(NewChild(position, child, row, start.detached, start.if_failed))
                if last is None:
                    family.started(position, child)
            attempt.writes = self._write
            return ids, None if last is None else self._group(family, [place for place, _ in places], last, fresh)

    def _group(self, family: Family, positions: Sequence[int], last: Start, fresh: Iterator[UUID]) -> UUID:
        row = self._row(last)
        number, recorded = family.next_group(positions, "wait", last.kind)
        family.skip_position()
        if recorded is not None:
            assert recorded.last_id is not None
            return recorded.last_id
        last_id = next(fresh)
        family.new_groups.append(NewGroup(number, ranges(positions), "wait", positions[-1] + 1, last_id, row))
        return last_id

    async def join(
        self, attempt: Attempt, children: Sequence[UUID] | None, on_failure: OnFailure, timeout_s: float | None
    ) -> list[ChildOutcome]:
        """Return the outcomes of a run's children; or park it until they are there, which cancels its handler here. Raises JoinTimeout."""
        refuse_inside(attempt, "join")
        refuse_parking(attempt, "join")
        family = await self._family(attempt)
        positions = family.take_joined(children)
        if not positions:
            return []
        number, recorded = family.next_group(positions, on_failure, None)
        if recorded is None:
            family.new_groups.append(NewGroup(number, ranges(positions), on_failure, timeout_s=timeout_s))
            await self._park(attempt, number)
        run = attempt.run
        while True:
            row = await asked(lambda: self._store.child_group_close(self._link, run, self._lease_owner, number))
            if row is None:
                self._lost(attempt, "join")
            if row["became"] == "late":
                raise JoinTimeout([family.child_at(position) for position in positions])
            if row["became"] == "closed":
                break
            if row["became"] == "cancel":
                await self._cancel_rest(attempt, ranges(positions))
            else:
                await self._park(attempt, number)
        outcomes = await self._outcomes(attempt, number)
        if (failed := row["failed_position"]) is not None:
            raise ChildFailed(outcomes[failed])
        return [outcomes[position] for position in positions]

    async def _family(self, attempt: Attempt) -> Family:
        if attempt.why == "lost":
            raise LeaseLost(attempt.run.run_id, during="start")
        if attempt.is_settled:
            message = f"{attempt.run!r} is settled already: it starts nothing any more"
            raise RuntimeError(message)
        if attempt.family is None:
            attempt.family = Family()
        family: Family = attempt.family
        async with family.loading:
            if not family.is_loaded and attempt.run.lease_token > 1:
                run = attempt.run
                children = await asked(lambda: self._store.children_load(self._link, run, self._lease_owner))
                groups = await asked(lambda: self._store.child_groups_load(self._link, run, self._lease_owner))
                if children is None or groups is None:
                    self._lost(attempt, "start")
                family.recorded = {row["position"]: (row["kind"], row["child_id"]) for row in children}
                family.groups = {
                    row["number"]: RecordedGroup(row["positions"], row["on_failure"], row["last_id"], row["last_kind"])
                    for row in groups
                }
            family.is_loaded = True
        return family

    async def _fresh(self, family: Family, number: int) -> Iterator[UUID]:
        """Return ids, in order; the more children there are, the more are asked for at once."""
        if len(family.ids) < number:
            wanted = max(number, min(_BATCH, len(family.new)))
            family.ids = await asked(lambda: self._store.fresh_ids(self._link, wanted))
        taken, family.ids = family.ids[:number], family.ids[number:]
        return iter(taken)

    def _row(self, start: Start) -> Any:
        if unknown := sorted(set(start.columns) - _COLUMNS):
            message = "can't be set of a child"
            raise InvalidRun(unknown[0], message, hint=f"there are: {', '.join(sorted(_COLUMNS))}")
        with sending(start.kind, start.columns.get("headers")) as (headers, _):
            return new_run(
                start.kind, start.payload, max_payload_bytes=self._max_payload_bytes(), **start.columns | {"headers": headers}
            )

    async def _outcomes(self, attempt: Attempt, number: int) -> dict[int, ChildOutcome]:
        outcomes: dict[int, ChildOutcome] = {}
        after, run = 0, attempt.run
        while True:
            rows = await asked(lambda: self._store.child_outcomes(self._link, run, number, after=after, limit=_BATCH))  # noqa: B023 - awaited at once
            for row in rows:
                result = None if row["result"] is None else payloads.decode(row["result"])
                outcomes[row["position"]] = ChildOutcome(
                    row["child_id"], row["kind"], row["state"] or State.PENDING, result, row["error_code"], row["error"]
                )
            if len(rows) < _BATCH:
                return outcomes
            after = rows[-1]["position"]

    async def _cancel_rest(self, attempt: Attempt, positions: str) -> None:
        parents = [attempt.run.run_id]
        if not await asked(lambda: self._store.children_cancel(self._link, parents, _CANCELLED, positions)):
            await asyncio.sleep(_LOCKED_S)  # those that are left are locked, or settled by now

    # Inserting.

    async def settle(self, attempt: Attempt, outcome: Outcome) -> Outcome | None:
        """
        Settle a run together with what it has started, if it has; None: it was, or is another's by now.

        For as long as the database does not answer it is tried again: while it does, the handler's work is not lost.
        """
        if not _wanted(attempt.family, outcome):
            return outcome
        if attempt.timer is not None:
            attempt.timer.cancel()  # the handler has ended in time
        outcome.progress = self._progress(attempt.run)
        try:
            await self._until_answered(attempt, outcome, None)
        except LeaseLost:
            return None
        except DatabaseError as error:
            log.error("children_not_inserted", run_id=str(outcome.run_id), kind=outcome.kind, error=brief(error))
            return refused_result(outcome, brief(error), self._lease_owner)
        except asyncio.CancelledError:
            if attempt.why is None:
                raise
            return outcome_of_end(attempt, self._lease_owner)
        return None

    async def _park(self, attempt: Attempt, number: int) -> NoReturn:
        run = attempt.run
        outcome = Outcome(run.run_id, run.lease_token, run.attempt, run.kind, State.PENDING, counts=False, waits_for="children")
        outcome.progress = self._progress(run)

        async def park(connection: Connection, _outcome: Outcome) -> bool:
            return await self._store.park(connection, run, self._lease_owner, number, outcome.progress)

        attempt.writes = self._write
        await self._until_answered(attempt, outcome, park)
        self._on_parked(attempt)
        await asyncio.get_running_loop().create_future()  # until the handler is cancelled
        raise AssertionError

    async def _until_answered(
        self, attempt: Attempt, outcome: Outcome, settle: "Callable[[Connection, Outcome], Awaitable[bool]] | None"
    ) -> None:
        backoff = Backoff(cap_s=1.0)
        while True:
            try:
                await self._transactions.settle(attempt, outcome, settle)
            except DatabaseError as error:
                if is_refusal(error) and str(getattr(error, "sqlstate", "")).startswith(("22", "23", "54")):
                    raise
                log.warning("children_not_inserted_yet", run_id=str(outcome.run_id), kind=outcome.kind, error=brief(error))
            else:
                return
            await asyncio.sleep(backoff.next_s())

    async def _write(self, connection: Connection, attempt: Attempt, outcome: Outcome) -> None:
        """Insert what this outcome starts. Where the lease is lost nothing is: the settle, which comes next, finds out."""
        family, run = attempt.family, attempt.run
        assert family is not None  # it has set this
        wanted = _wanted(family, outcome)
        groups = family.new_groups if outcome.to is State.COMPLETED or outcome.waits_for is not None else []
        if not wanted and not groups:
            return
        ends_by = "park" if outcome.waits_for is not None else "settle"
        await self._store.make_ready(connection, ["children_insert", *(["child_group_put"] if groups else []), ends_by])
        for batch in _batches(wanted):
            if not await self._store.children_put(connection, run, self._lease_owner, batch):
                return
            await self._store.children_insert(connection, run, batch)
        for group in groups:
            await self._store.child_group_put(connection, run, self._lease_owner, group)

    def _lost(self, attempt: Attempt, during: str) -> NoReturn:
        self._on_lost(attempt)
        raise LeaseLost(attempt.run.run_id, during=during)


def refuse_inside(attempt: Attempt, what: str) -> None:
    """Raise StepError inside of a step: it is not executed again, and what it has asked for would be missing then."""
    if (step := inside.get(None)) is not None:
        message = f"run.{what}() is called inside of step {step!r}"
        raise StepError(message, hint="call it in the handler itself")
    if attempt.is_in_transaction and what != "start":
        message = f"run.{what}() is called inside of transaction(), in which nothing may wait"
        raise StepError(message, hint="call it before")


def refuse_parking(attempt: Attempt, what: str) -> None:
    """Raise RuntimeError for a handler that can't be ended for one of its runs alone."""
    if attempt.handler.batch_size is not None:
        message = f"run.{what}() is called by a batch handler, which can't wait for one of its runs"
        raise RuntimeError(message)


def _wanted(family: Family | None, outcome: Outcome) -> list[NewChild]:
    if family is None:
        return []
    if outcome.to is State.PENDING and outcome.waits_for is None:
        return []
    if outcome.to in {State.FAILED, State.CANCELLED}:
        return [child for child in family.new if child.if_failed]
    return family.new


def _batches(new: Sequence[NewChild]) -> Iterator[list[NewChild]]:
    batch: list[NewChild] = []
    characters = 0
    for child in new:
        size = len(child.row.payload) + len(child.row.headers)
        if batch and (len(batch) == _BATCH or characters + size > _BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(child)
        characters += size
    if batch:
        yield batch
