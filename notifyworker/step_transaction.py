"""
A step and what it writes into the same database, in one transaction: both are there afterwards, or neither.

The record is written last before COMMIT, and locks the run until then. A COMMIT without an answer is unknown: as long as it
may still be executed the run is locked; once it can be locked under the same lease, the record is there or it never will be.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

from notifyworker import sealed
from notifyworker.database import IN_TRANSACTION, Connection, DatabaseError, Link, brief, is_refusal
from notifyworker.errors import LeaseLost
from notifyworker.execute import Attempt
from notifyworker.observe import log
from notifyworker.pause import Backoff
from notifyworker.step_store import NewStep, StepStore
from notifyworker.store import Store
from notifyworker.transaction import Transactions, cut, roll_back

_COMMIT_S = 30.0


class StepTransactions:
    """The transactions of one worker's steps, on the connections of its handlers' transactions."""

    def __init__(
        self,
        transactions: Transactions,
        store: Store,
        steps: StepStore,
        link: Link,
        lease_owner: str,
        *,
        unknown_s: float,
        on_lost: Callable[[Attempt], None],
    ) -> None:
        self._transactions = transactions
        self._store = store
        self._steps = steps
        self._link = link
        self._lease_owner = lease_owner
        self._unknown_s = unknown_s
        self._on_lost = on_lost

    async def execute(
        self,
        attempt: Attempt,
        work: Callable[[Connection], Awaitable[Any]],
        ended: Callable[[Any], NewStep],
    ) -> NewStep:
        """
        Do the work and commit it together with the step that `ended` makes of what it returned; return that.

        In a shadow run all is rolled back, and the record is left to the caller. Raises LeaseLost: nothing was written.
        """
        is_shadow = attempt.run.is_shadow
        async with self._transactions.connection() as connection, sealed.session(connection, is_shadow=is_shadow):
            transaction = connection.transaction(isolation="read_committed")
            await transaction.start()
            try:
                if is_shadow:
                    await sealed.seal(connection, self._store.schema)
                step = ended(await work(connection))
                _check_open(connection, step)
            except BaseException as error:
                await roll_back(connection, transaction)
                if isinstance(error, asyncpg.ReadOnlySQLTransactionError):  # to a server that was made a standby
                    cut(connection)
                raise
            if is_shadow:
                await roll_back(connection, transaction)
            else:
                await self._transactions.unhurried(self._commit(connection, transaction, attempt, step))
            return step

    async def _commit(self, connection: Connection, transaction: Any, attempt: Attempt, step: NewStep) -> None:
        attempt.is_committing = True
        try:
            async with asyncio.timeout(_COMMIT_S):
                await self._record(connection, transaction, attempt, step)
                await transaction.commit()
        except DatabaseError as error:
            if is_refusal(error):
                await roll_back(connection, transaction)
                raise
            cut(connection)
            log.warning("commit_unknown", run_id=str(step.run_id), kind=attempt.run.kind, step=step.name, error=brief(error))
            if not await self._was_committed(attempt, step):
                raise
        finally:
            attempt.is_committing = False

    async def _record(self, connection: Connection, transaction: Any, attempt: Attempt, step: NewStep) -> None:
        """Record it here; or find its run locked by somebody for a moment (its own heartbeat, a cancel), and try again."""
        backoff = Backoff(cap_s=0.2)
        await connection.execute(IN_TRANSACTION)
        while not await self._steps.steps_put(connection, self._lease_owner, [step]):
            if not await self._store.held(connection, self._lease_owner, {step.run_id: step.lease_token}):
                await roll_back(connection, transaction)
                self._lost(attempt)
            await asyncio.sleep(backoff.next_s())

    async def _was_committed(self, attempt: Attempt, step: NewStep) -> bool:
        """Find out, for as long as the lease can last. Raises LeaseLost if it can't be found out, or was lost."""
        backoff = Backoff(cap_s=1.0)
        try:
            async with asyncio.timeout(self._unknown_s):
                while True:
                    try:
                        # Two statements: what was committed before the lock was had is seen by the second.
                        is_locked = await self._store.lock(self._link, attempt.run, self._lease_owner)
                        if is_locked or await self._steps.step_recorded(self._link, step):
                            return await self._steps.step_recorded(self._link, step)
                        if not await self._store.held(self._link, self._lease_owner, {step.run_id: step.lease_token}):
                            break
                    except DatabaseError as error:
                        log.debug("commit_still_unknown", run_id=str(step.run_id), error=brief(error))
                    await asyncio.sleep(backoff.next_s())
        except TimeoutError:
            log.error("commit_stays_unknown", run_id=str(step.run_id), kind=attempt.run.kind, step=step.name)
        self._lost(attempt)
        return False

    def _lost(self, attempt: Attempt) -> None:
        self._on_lost(attempt)
        raise LeaseLost(attempt.run.run_id, during="step")


def _check_open(connection: Connection, step: NewStep) -> None:
    if not connection.is_in_transaction():
        message = f"the transaction of step {step.name!r} was ended inside of it: what it wrote and its record are not one"
        raise RuntimeError(message)
