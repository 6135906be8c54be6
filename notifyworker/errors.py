"""
Every exception that this package raises on purpose, and the codes that a failed run carries.

Imports nothing of ours, so that every other module may raise from here. Database errors are not wrapped where
asyncpg's own are precise enough; what a user can mend has a class here, and a hint that says how.
"""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID


class Code(StrEnum):
    """Why an attempt did not complete. Kept in a run's `errors`, and in `error_code` once it has failed."""

    RAISED = "E-RUN-001"  # the handler raised
    LEASE_EXPIRED = "E-RUN-002"  # its worker died or lost its lease
    TIMED_OUT = "E-RUN-003"  # it ran longer than its timeout
    BAD_PAYLOAD = "E-RUN-004"  # the payload does not fit the handler's model; never retried
    BAD_RESULT = "E-RUN-005"  # the result, or a step's, can't be stored as JSON; never retried
    REFUSED = "E-RUN-006"  # the handler raised Fail; never retried
    INTERRUPTED = "interrupted"  # given back at shutdown; uses up no attempt
    EXPIRED = "expired"  # `expires_at` had passed before it was started


class NotifyWorkerError(Exception):
    """Base of every error below. `hint` says what to do about it and is part of the text."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.hint = hint


class SettingsError(NotifyWorkerError):
    """A setting, an argument or a `MODULE:ATTR` is unusable. Nothing was claimed or written."""


class HandlerError(SettingsError):
    """A handler can't be registered: its kind is taken or out of range, or its signature can't be called."""


class StartError(NotifyWorkerError):
    """The worker could not start for a reason outside of its settings: the database or a port."""


class DatabaseUnavailable(StartError):
    """The database can't be reached, or refuses this login."""


class SchemaNotMigrated(StartError):
    """The schema is absent, or older than this code."""


class SchemaTooNew(StartError):
    """The schema was migrated by newer code than this."""


class InvalidRun(NotifyWorkerError):
    """A run was refused before it was inserted. `field` names the column that was wrong; `row` its place among many, from 1."""

    def __init__(
        self, field: str, message: str, *, hint: str | None = None, too_large: bool = False, row: int | None = None
    ) -> None:
        super().__init__(f"{field}: {message}" if row is None else f"row {row}: {field}: {message}", hint=hint)
        self.field = field
        self.message = message
        self.too_large = too_large
        self.row = row

    def at(self, row: int) -> "InvalidRun":
        """Return the same, of this row among many."""
        return InvalidRun(self.field, self.message, hint=self.hint, too_large=self.too_large, row=row)


class RunNotFound(NotifyWorkerError):
    """No run, live or settled, has this id."""

    def __init__(self, run_id: UUID) -> None:
        super().__init__(f"no run has the id {run_id}")
        self.run_id = run_id


class RunConflict(NotifyWorkerError):
    """The run is in a state from which what was asked can't be done."""


class WaitTimeout(NotifyWorkerError, TimeoutError):
    """The run was not settled within the time that the caller was ready to wait. It goes on."""


class LeaseLost(NotifyWorkerError):
    """Another worker may own this run now. Whatever this one still writes about it is refused."""

    def __init__(self, run_id: UUID, *, during: str) -> None:
        super().__init__(f"run {run_id}: the lease was lost ({during})")
        self.run_id = run_id
        self.during = during


class HandlerProcessEnded(NotifyWorkerError):
    """The process that executed a handler has ended by itself, or was killed. It costs the run its attempt."""


class Cancel(NotifyWorkerError):
    """Raised by a handler: settle this run as cancelled."""

    def __init__(self, reason: str = "cancelled by the handler") -> None:
        super().__init__(reason)


class StepError(NotifyWorkerError):
    """
    A step can't be what the handler calls: its name or place differs from what is recorded, it comes twice, it is one too many.

    Nothing was executed. As any other exception it costs the attempt.
    """


class Fail(NotifyWorkerError):
    """Raised by a handler: fail this run now, with no further attempt (E-RUN-006)."""

    code = Code.REFUSED

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class UnstorableStep(Fail):
    """The result of a step can't be stored: it was executed, and would be again. The run fails at once (E-RUN-005)."""

    code = Code.BAD_RESULT


class Snooze(NotifyWorkerError):
    """Raised by a handler: run again in `seconds`, without using up this attempt."""

    def __init__(self, seconds: float, reason: str = "snoozed by the handler") -> None:
        if not 0 <= seconds <= 366 * 86400:
            message = f"Snooze takes 0 to {366 * 86400} seconds, not {seconds!r}"
            raise ValueError(message)
        super().__init__(reason)
        self.seconds = seconds


class ChildFailed(Fail):
    """
    A child of this run is not completed, and `join` was told to raise then. `outcome` is the child's.

    Unless the handler catches it the run fails at once (E-RUN-006): a further attempt would find the same.
    """

    def __init__(self, outcome: Any) -> None:
        super().__init__(f"child {outcome.run_id} ({outcome.kind}) is {outcome.state}: {outcome.error or 'no error is known'}")
        self.outcome = outcome


class EventTimeout(NotifyWorkerError, TimeoutError):
    """The event did not come in time. A further attempt is told the same."""

    def __init__(self, name: str, key: str | None) -> None:
        super().__init__(f"the event {name!r}{'' if key is None else f' with the key {key!r}'} did not come in time")
        self.name = name
        self.key = key


class JoinTimeout(NotifyWorkerError, TimeoutError):
    """The children were not all settled in time. A further attempt is told the same."""

    def __init__(self, children: Sequence[UUID]) -> None:
        super().__init__(f"{len(children)} children were not all settled in time")
        self.children = list(children)


class PauseKind(Snooze):
    """
    Raised by a handler: run again, and claim no run of this kind at all until a time, or for so many seconds.

    For an API that says that it has had enough. The attempt is not used up. Raises ValueError for a time that can't be.
    """

    def __init__(self, until: datetime | float, reason: str = "paused by its handler") -> None:
        if isinstance(until, datetime) and until.tzinfo is None:
            message = f"PauseKind takes a time with a time zone, not {until!r}"
            raise ValueError(message)
        super().__init__(0 if isinstance(until, datetime) else until, reason)
        self.until = until
