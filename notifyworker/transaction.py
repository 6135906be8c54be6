"""
A handler's own writes and the settle of its run, in one transaction: both are there afterwards, or neither.

The settle is the fenced one, on the handler's connection, as the last statement before COMMIT. A COMMIT without an answer
is unknown: the run's row tells. While that transaction may still be committing it has the row locked; once the row can be
locked under the same lease it was rolled back; and once the row is gone it was committed, or the lease was lost.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import UUID

import asyncpg
from asyncpg.transaction import Transaction

from notifyworker import sealed
from notifyworker.database import IN_TRANSACTION, Connection, DatabaseError, Link, brief, connect_plainly, is_refusal
from notifyworker.errors import Cancel, Code, Fail, LeaseLost, Snooze
from notifyworker.execute import Attempt, completed, outcome_of_error
from notifyworker.journal import inside
from notifyworker.observe import log
from notifyworker.pause import Backoff
from notifyworker.run import Outcome, Run, State
from notifyworker.settings import CANCEL_S
from notifyworker.store import Store

_COMMIT_S = 30.0


class Transactions:
    """
    The transactions of one worker's handlers, and the connections for those that bring none of their own.

    `before` is awaited with a run's lease before it is settled; `on_settled` is called when a run was settled in its handler's transaction, `on_ended` with the outcome of one whose
    result can't be stored, `on_lost` for a run that is no longer ours.
    """

    def __init__(
        self,
        store: Store,
        dsn: str,
        link: Link,
        lease_owner: str,
        *,
        connections: int,
        unknown_s: float,
        max_result_bytes: Callable[[], int],
        before: Callable[[Sequence[tuple[UUID, int]]], Awaitable[None]],
        progress: Callable[[Run], str | None],
        on_settled: Callable[[Sequence[Outcome]], None],
        on_ended: Callable[[Attempt, Outcome | None], None],
        on_lost: Callable[[Attempt], None],
    ) -> None:
        self._store = store
        self._dsn = dsn
        self._link = link
        self._lease_owner = lease_owner
        self._connections = connections
        self._unknown_s = unknown_s
        self._max_result_bytes = max_result_bytes
        self._before = before
        self._progress = progress
        self._on_settled = on_settled
        self._on_ended = on_ended
        self._on_lost = on_lost
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._opening = asyncio.Lock()
        self._committing: set[asyncio.Task[None]] = set()

    def used(self) -> int:
        """Return how many connections handlers have now."""
        return 0 if self._pool is None else self._pool.get_size() - self._pool.get_idle_size()

    def close(self) -> None:
        """Cut all connections."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None

    async def finish(self) -> None:
        """End the commits that no handler waits for any more: with all connections closed, nothing answers them."""
        committing = list(self._committing)
        for task in committing:
            task.cancel()
        await asyncio.gather(*committing, return_exceptions=True)

    @asynccontextmanager
    async def open(self, attempt: Attempt, given: "Connection | None") -> AsyncIterator[Connection]:
        """
        Begin a transaction; commit it together with the run's settle when the block ends.

        Cancel, Fail and Snooze settle as they say, together with what was written. Any other exception rolls back, and
        so does the end of a shadow run's block. Raises LeaseLost where the run is another's now: nothing was written.
        """
        if attempt.is_settled:
            message = f"{attempt.run!r} is settled already: there is one transaction() a run"
            raise RuntimeError(message)
        if (step := inside.get(None)) is not None:
            message = f"transaction() is opened inside of step {step!r}, which it would leave without a record"
            raise RuntimeError(message)
        is_shadow = attempt.run.is_shadow
        async with self.connection(given) as connection, sealed.session(connection, is_shadow=is_shadow):
            if connection.is_in_transaction():
                message = "a transaction is open on this connection already: transaction() begins and ends its own"
                raise RuntimeError(message)
            transaction = connection.transaction(isolation="read_committed")
            await transaction.start()
            wish: Cancel | Fail | Snooze | None = None
            attempt.is_in_transaction = True
            try:
                if is_shadow:
                    await sealed.seal(connection, self._store.schema)
                yield connection
            except (Cancel, Fail, Snooze) as error:
                wish = error
            except BaseException as error:
                await roll_back(connection, transaction)
                if isinstance(error, asyncpg.ReadOnlySQLTransactionError):  # to a server that was made a standby
                    cut(connection)
                raise
            finally:
                attempt.is_in_transaction = False
            await self._end(attempt, connection, transaction, wish)
            if wish is not None:
                raise wish

    async def _end(self, attempt: Attempt, connection: Connection, transaction: Transaction, wish: Exception | None) -> None:
        if not connection.is_in_transaction():
            await roll_back(connection, transaction)
            message = "the transaction was ended inside of its block: what it wrote and the run's settle are not one"
            raise RuntimeError(message)
        outcome = self._outcome(attempt, wish)
        if attempt.run.is_shadow:
            await roll_back(connection, transaction)
        elif outcome.error_code == Code.BAD_RESULT:
            await roll_back(connection, transaction)
            attempt.is_settled = True
            self._on_ended(attempt, outcome)
            raise Fail(Code.BAD_RESULT)
        else:
            await self._before([(attempt.run.run_id, attempt.run.lease_token)])
            await self.unhurried(self._commit(connection, transaction, attempt, outcome))

    async def settle(
        self, attempt: Attempt, outcome: Outcome, settle: Callable[[Connection, Outcome], Awaitable[bool]] | None = None
    ) -> None:
        """
        Settle a run after its handler, together with what is inserted with it: in one transaction, by `settle` or as usual.

        Raises LeaseLost; and DatabaseError: nothing was written.
        """
        await self._before([(attempt.run.run_id, attempt.run.lease_token)])
        async with self.connection() as connection:
            transaction = connection.transaction(isolation="read_committed")
            await transaction.start()
            await self.unhurried(self._commit(connection, transaction, attempt, outcome, settle))

    @asynccontextmanager
    async def connection(self, given: "Connection | None" = None) -> AsyncIterator[Connection]:
        """Take one of the connections for handlers, for the length of a block; or the handler's own."""
        if given is not None:
            yield given
            return
        async with self._opening:
            if self._pool is None:
                self._pool = await self._opened()
            pool = self._pool
        connection = await pool.acquire()
        try:
            yield cast("Connection", connection)
        finally:
            try:
                await pool.release(connection, timeout=CANCEL_S)
            except DatabaseError as error:
                # The pool has cut it. What became of the block is known: a commit that was answered has not failed now.
                log.debug("handler_connection_lost", error=brief(error))

    async def _opened(self) -> "asyncpg.Pool[asyncpg.Record]":
        def connect(*_arguments: Any, **_options: Any) -> Coroutine[Any, Any, Connection]:
            return connect_plainly(self._dsn, schema=self._store.schema, purpose="handler")

        return await asyncpg.create_pool(min_size=0, max_size=self._connections, connect=connect)

    def _outcome(self, attempt: Attempt, wish: Exception | None) -> Outcome:
        outcome = (
            completed(attempt.run, attempt.run.result, self._lease_owner, self._max_result_bytes())
            if wish is None
            else outcome_of_error(attempt, wish, self._lease_owner)
        )
        assert outcome is not None  # these wishes always have one
        outcome.progress = self._progress(attempt.run)
        return outcome

    async def unhurried(self, commit: Coroutine[Any, Any, None]) -> None:
        """Let a commit end, also when the handler is cancelled meanwhile: what became of it must be known."""
        task = asyncio.get_running_loop().create_task(commit, name="notifyworker commit")
        self._committing.add(task)
        task.add_done_callback(self._committing.discard)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task}, timeout=CANCEL_S)
            if task.done() and not task.cancelled():
                task.exception()  # what the handler would have heard of, had it not been cancelled
            raise

    async def _commit(
        self,
        connection: Connection,
        transaction: Transaction,
        attempt: Attempt,
        outcome: Outcome,
        settle: Callable[[Connection, Outcome], Awaitable[bool]] | None = None,
    ) -> None:
        attempt.is_committing = True
        try:
            async with asyncio.timeout(_COMMIT_S):
                await self._settle(connection, transaction, attempt, outcome, settle or self._settled)
                await transaction.commit()
        except DatabaseError as error:
            if is_refusal(error):
                await roll_back(connection, transaction)
                raise
            cut(connection)
            log.warning("commit_unknown", run_id=str(attempt.run.run_id), kind=attempt.run.kind, error=brief(error))
            if not await self._was_committed(attempt, outcome):
                raise
        finally:
            attempt.is_committing = False
        attempt.is_settled = True
        self._on_settled([outcome])

    async def _settle(
        self,
        connection: Connection,
        transaction: Transaction,
        attempt: Attempt,
        outcome: Outcome,
        settle: Callable[[Connection, Outcome], Awaitable[bool]],
    ) -> None:
        """
        Settle it here; or find it locked by somebody for a moment (its own heartbeat, a cancel), and try again.

        The settle is the first statement that locks the run, and the last before COMMIT: asyncpg sends it as a whole. Of
        a statement that is only prepared the server waits for the rest, whatever its time-outs: were the run locked
        already, and this process frozen at that moment, nobody could ever take it over.
        """
        run, backoff = attempt.run, Backoff(cap_s=0.2)
        lease = {run.run_id: run.lease_token}
        await connection.execute(IN_TRANSACTION)
        if attempt.writes is not None:
            await attempt.writes(connection, attempt, outcome)
        while not await settle(connection, outcome):
            if not await self._store.held(connection, self._lease_owner, lease):
                await roll_back(connection, transaction)
                self._on_lost(attempt)
                raise LeaseLost(run.run_id, during="transaction")
            await asyncio.sleep(backoff.next_s())

    async def _settled(self, connection: Connection, outcome: Outcome) -> bool:
        if outcome.to is State.PENDING:
            return bool(await self._store.give_back(connection, self._lease_owner, [outcome]))
        return bool(await self._store.settle(connection, self._lease_owner, [outcome]))

    async def _was_committed(self, attempt: Attempt, outcome: Outcome) -> bool:
        """Find out, for as long as the lease can last. Raises LeaseLost if it can't be found out, or was lost."""
        run, backoff = attempt.run, Backoff(cap_s=1.0)
        lease = {run.run_id: run.lease_token}
        try:
            async with asyncio.timeout(self._unknown_s):
                while True:
                    try:
                        if await self._store.lock(self._link, run, self._lease_owner):
                            return False
                        if not await self._store.held(self._link, self._lease_owner, lease):
                            # A run that was given back leaves no trace of who gave it.
                            if outcome.to is State.PENDING or await self._store.settled(self._link, self._lease_owner, lease):
                                return True
                            break
                    except DatabaseError as error:
                        log.debug("commit_still_unknown", run_id=str(run.run_id), error=brief(error))
                    await asyncio.sleep(backoff.next_s())
        except TimeoutError:
            log.error("commit_stays_unknown", run_id=str(run.run_id), kind=run.kind)
        self._on_lost(attempt)
        raise LeaseLost(run.run_id, during="transaction")


async def roll_back(connection: Connection, transaction: Transaction) -> None:
    """At once, or not at all: a connection that does not answer is cut, which comes to the same."""
    try:
        async with asyncio.timeout(CANCEL_S):
            await transaction.rollback()
    except BaseException as error:
        cut(connection)
        if not isinstance(error, DatabaseError):
            raise


def cut(connection: Connection) -> None:
    """End a connection whose state nobody knows."""
    with contextlib.suppress(asyncpg.InterfaceError):  # the pool has taken it back already: it was cut before
        connection.terminate()
