"""
Durable steps: what a handler has done once is not done again when its run is retried or taken over.

A step is executed, and its result written while this worker holds the run's lease, before the handler goes on: in batches,
by a task of their own, so that a handler that is cancelled meanwhile does not cut off what its step has done. No answer is
not a "no": the same is written again until the database says that it is there, or that the run is another's.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextvars import Context
from typing import Any, NoReturn, TypeVar
from uuid import UUID

from notifyworker import payload as payloads
from notifyworker.database import DatabaseError, Link, brief, is_poison
from notifyworker.errors import Cancel, Fail, LeaseLost, Snooze, StepError, UnstorableStep
from notifyworker.execute import Attempt, in_thread
from notifyworker.journal import Journal, Recorded, inside
from notifyworker.mask import masked
from notifyworker.observe import log
from notifyworker.pause import Backoff
from notifyworker.run import LiveStep
from notifyworker.settings import CANCEL_S
from notifyworker.step_store import NewStep, StepStore
from notifyworker.step_transaction import StepTransactions
from notifyworker.store import Store
from notifyworker.transaction import Transactions

_BATCH = 100
_BATCH_CHARACTERS = 4 * 1024 * 1024
_ERROR_BYTES = 1000
_T = TypeVar("_T")


class Steps:
    """The steps of one worker's runs. `on_lost` is called for a run that is no longer ours."""

    def __init__(
        self,
        store: Store,
        link: Link,
        lease_owner: str,
        *,
        threads: Executor,
        transactions: Transactions,
        unknown_s: float,
        max_result_bytes: Callable[[], int],
        on_lost: Callable[[Attempt], None],
    ) -> None:
        self._runs = store
        self._steps = StepStore(store)
        self._link = link
        self._lease_owner = lease_owner
        self._threads = threads
        self._max_result_bytes = max_result_bytes
        self._on_lost = on_lost
        self._transactions = StepTransactions(
            transactions, store, self._steps, link, lease_owner, unknown_s=unknown_s, on_lost=on_lost
        )
        self._waiting: dict[tuple[UUID, int, int], tuple[NewStep, asyncio.Future[bool]]] = {}
        self._writer: asyncio.Task[None] | None = None
        self._is_closed = False
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        """Write no more. Who still waits is a handler that has outlived its worker."""
        self._is_closed = True
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.wait({self._writer})
        for _, done in self._waiting.values():
            done.cancel()

    async def execute(self, attempt: Attempt, name: str, call: Callable[..., Any], *, in_transaction: bool) -> Any:
        """
        Return what is recorded of this step; else call, record what that returned, and return it.

        Raises StepError, UnstorableStep, LeaseLost, and what the call raises.
        """
        if (outer := inside.get(None)) is not None:
            message = f"step {name!r} is called inside of step {outer!r}"
            raise StepError(message, hint="call it after that one, in the handler itself")
        if in_transaction and attempt.is_in_transaction:
            message = f"step_transaction {name!r} is called inside of transaction()"
            raise StepError(message, hint="write on that connection: it is committed together with the run's settle")
        position, is_recorded, text = await self.find(attempt, name)
        if not is_recorded:
            text = await self._execute(attempt, position, name, call, in_transaction=in_transaction)
        return None if text is None else payloads.decode(text)

    async def find(self, attempt: Attempt, name: str) -> tuple[int, bool, str | None]:
        """Return the position of a step that the handler calls, and whether it is recorded, with which result. Raises StepError, LeaseLost."""
        journal = self._journal(attempt)
        position = journal.call(name)
        await self._load(attempt, journal)
        recorded = journal.find(position, name)
        if recorded is None:
            return position, False, None
        return position, True, recorded.result if recorded.is_here else await self._result(attempt, position)

    async def of_live(self, attempt: Attempt, name: str) -> LiveStep | None:
        """What the live run that this one is a copy of has recorded of its step of this name; None: nothing."""
        if (live := attempt.run.copy_of) is None:
            return None
        rows = await asked(lambda: self._steps.step_live(self._link, live, name))
        return LiveStep(None if rows[0]["result"] is None else payloads.decode(rows[0]["result"])) if rows else None

    def _journal(self, attempt: Attempt) -> Journal:
        if attempt.why == "lost":
            raise LeaseLost(attempt.run.run_id, during="step")
        if attempt.is_settled:
            message = f"{attempt.run!r} is settled already: it has no further steps"
            raise RuntimeError(message)
        if attempt.journal is None:
            attempt.journal = Journal()
        return attempt.journal

    async def _load(self, attempt: Attempt, journal: Journal) -> None:
        async with journal.loading:
            if journal.is_loaded:
                return
            recorded: list[Recorded] = []
            if attempt.run.lease_token > 1:  # under the first lease of its life nothing can be there
                rows = await asked(lambda: self._steps.steps_load(self._link, attempt.run, self._lease_owner))
                if rows is None:
                    self._lost(attempt)
                recorded = [Recorded(row["position"], row["name"], row["is_here"], row["result"]) for row in rows]
            journal.load(recorded)

    async def _result(self, attempt: Attempt, position: int) -> str | None:
        rows = await asked(lambda: self._steps.step_result(self._link, attempt.run, self._lease_owner, position))
        if not rows:
            self._lost(attempt)
        text: str | None = rows[0]["result"]
        return text

    def _lost(self, attempt: Attempt) -> NoReturn:
        self._on_lost(attempt)
        raise LeaseLost(attempt.run.run_id, during="step")

    async def _execute(self, attempt: Attempt, position: int, name: str, call: Any, *, in_transaction: bool) -> str | None:
        run, began = attempt.run, self._loop.time()

        def ended(value: Any = None, error: str | None = None) -> NewStep:
            text = None if value is None else _encoded(name, value, self._max_result_bytes())
            return NewStep(run.run_id, run.lease_token, position, name, self._loop.time() - began, text, error)

        token = inside.set(name)
        try:
            if in_transaction:
                step = await self._transactions.execute(attempt, call, ended)
            else:
                step = ended(await self._call(attempt, call))
        except (Cancel, Fail, Snooze, LeaseLost, StepError):
            raise
        except Exception as error:
            if attempt.why is None:
                await self._note(ended(error=_told(error)))
            raise
        finally:
            inside.reset(token)
        if (run.is_shadow or not in_transaction) and not await self._written(step):
            self._lost(attempt)
        return step.result

    async def _call(self, attempt: Attempt, call: Callable[[], Any]) -> Any:
        if inspect.iscoroutinefunction(call):
            return await call()
        value = await in_thread(attempt, self._threads, call)
        return await value if isinstance(value, Awaitable) else value

    async def _note(self, step: NewStep) -> None:
        """Show what a step has raised. Nothing depends on it: it is executed again, with this note or without."""
        try:
            async with asyncio.timeout(CANCEL_S):
                await self._written(step)
        except (TimeoutError, UnstorableStep) as error:
            log.warning("step_error_not_noted", run_id=str(step.run_id), step=step.name, error=brief(error))

    # Writing.

    async def _written(self, step: NewStep) -> bool:
        """Write it, however long that takes; False if the run is another's. A handler that is cancelled waits no longer than a moment."""
        if self._is_closed:
            return False
        done = self._loop.create_future()
        self._waiting[step.run_id, step.lease_token, step.position] = step, done
        if self._writer is None or self._writer.done():
            self._writer = self._loop.create_task(self._write(), name="notifyworker steps", context=Context())
        try:
            return bool(await asyncio.shield(done))
        except asyncio.CancelledError:
            await asyncio.wait({done}, timeout=CANCEL_S / 2)  # then the run is given back with it
            if done.done() and not done.cancelled():
                done.exception()
            raise

    async def _write(self) -> None:
        backoff, alone, failed = Backoff(cap_s=1.0), 0, False
        while self._waiting:
            batch = self._batch(1 if alone else _BATCH)
            try:
                is_whole = await self._put(batch)
                failed, alone = False, max(0, alone - 1)
                if is_whole:
                    backoff.reset()
                    continue
            except DatabaseError as error:
                if is_poison(error):  # one of them: each is written by itself, until it is found
                    if len(batch) == 1:
                        self._tell(batch[0], error)
                    alone = max(0, alone - 1) if len(batch) == 1 else len(batch)
                    continue
                if not failed:
                    log.warning("step_not_recorded_yet", error=brief(error), waiting=len(self._waiting))
                failed = True
            await asyncio.sleep(backoff.next_s())

    def _batch(self, limit: int) -> list[NewStep]:
        batch: list[NewStep] = []
        characters = 0
        for step, _ in self._waiting.values():
            characters += len(step.result or "")
            if len(batch) == limit or (batch and characters > _BATCH_CHARACTERS):
                break
            batch.append(step)
        return batch

    async def _put(self, batch: Sequence[NewStep]) -> bool:
        """Write a batch and tell who waits; False if some are locked by somebody for a moment."""
        written = await self._steps.steps_put(self._link, self._lease_owner, batch)
        missing = [step for step in batch if (step.run_id, step.position) not in written]
        tokens: dict[UUID, int] = {}
        for step in missing:
            tokens[step.run_id] = max(step.lease_token, tokens.get(step.run_id, 0))
        held = await self._runs.held(self._link, self._lease_owner, tokens) if tokens else set()
        is_whole = True
        for step in batch:
            if (step.run_id, step.position) in written:
                self._tell(step, True)  # noqa: FBT003 - what became of it
            elif step.run_id in held and step.lease_token == tokens[step.run_id]:
                is_whole = False
                key = step.run_id, step.lease_token, step.position
                self._waiting[key] = self._waiting.pop(key)  # behind the others
            else:
                self._tell(step, False)  # noqa: FBT003 - as above
        return is_whole

    def _tell(self, step: NewStep, became: "bool | BaseException") -> None:
        _, done = self._waiting.pop((step.run_id, step.lease_token, step.position))
        if done.done():
            return
        if isinstance(became, BaseException):
            message = f"the result of step {step.name!r} can't be stored: {brief(became)}"
            done.set_exception(UnstorableStep(message))
            done.exception()  # who waited may have been cancelled
        else:
            done.set_result(became)


async def asked(question: Callable[[], Awaitable[_T]]) -> _T:
    """Ask the database until it answers. Ends with the handler, which is cancelled when its lease can't be kept."""
    backoff = Backoff(cap_s=1.0)
    while True:
        try:
            return await question()
        except DatabaseError as error:
            log.debug("steps_not_read_yet", error=brief(error))
        # A connection that is lost at the moment of a cancellation may answer with its own error in that one's place.
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise asyncio.CancelledError
        await asyncio.sleep(backoff.next_s())


def _encoded(name: str, value: Any, max_bytes: int) -> str:
    try:
        text = payloads.encode(value)
    except payloads.Unencodable as error:
        message = f"the result of step {name!r} can't be stored: {error}".replace("$", "result", 1)
        raise UnstorableStep(message) from error
    if (size := len(text.encode())) > max_bytes:
        message = f"the result of step {name!r} has {size} bytes, more than max_result_bytes={max_bytes}"
        raise UnstorableStep(message)
    return text


def _told(error: Exception) -> str:
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception as broken:  # noqa: BLE001 - an exception whose own __str__ raises
        text = f"{type(error).__name__}, whose text can't be had: {type(broken).__name__}"
    return payloads.clean_text(masked(text), _ERROR_BYTES)
