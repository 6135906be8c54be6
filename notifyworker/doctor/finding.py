"""What an examination says, and what it is given."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from notifyworker.database import Link
from notifyworker.settings import Settings
from notifyworker.store import Store


class Verdict(StrEnum):
    """How bad it is; in this order."""

    OK = "ok"
    NOTE = "note"  # worth knowing, also what could not be seen
    WARNING = "warning"  # runs are executed, but something is slow, at risk or about to get worse
    FAILING = "failing"  # runs are not executed, not woken for, or not safe


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact: which examination found it, how bad it is, what was seen, and what to do about it (empty: nothing)."""

    name: str
    verdict: Verdict
    seen: str
    todo: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """From where on something is worth telling, and how long the doctor itself may take."""

    whole_s: float = 30.0  # of all examinations together
    examination_s: float = 10.0
    statement_s: float = 5.0
    skew_noted_s: float = 1.0
    skew_s: float = 60.0
    queue_filling: float = 0.25
    queue_full: float = 0.5  # from here on inserts stay silent (schema/0005_wake.sql)
    old_transaction_s: float = 300.0
    old_transaction_ids: int = 1_000_000  # where its age in seconds can't be seen
    dead_rows: int = 50_000  # five times what the leader vacuums at
    roomy_bytes: int = 64 * 2**20
    roomy_bytes_per_row: int = 4096
    missed_beats: float = 3.0
    key_wait_s: float = 600.0
    spare_connections: int = 5
    least_queue_pages: int = 1024
    short_transaction_s: float = 60.0
    least_days_made: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """An installation, and the connection over which it is examined."""

    settings: Settings
    store: Store
    on: Link
    limits: Limits
    clock: Callable[[], float]  # this host's, in seconds since 1970
    version: int | None  # of the schema; 0: not migrated, None: not seen

    @property
    def schema(self) -> str:
        """The schema's name."""
        return self.store.schema

    @property
    def dsn(self) -> str:
        """Where the workers work."""
        return self.settings.require_dsn()

    @property
    def listen_dsn(self) -> str:
        """Where they listen."""
        return self.settings.listen_dsn.get_secret_value() if self.settings.listen_dsn else self.dsn

    @property
    def admin_dsn(self) -> str:
        """Where schema changes go."""
        return self.settings.admin_dsn.get_secret_value() if self.settings.admin_dsn else self.dsn


def duration(seconds: float) -> str:
    """Return seconds for people."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:  # noqa: PLR2004 - two minutes
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"  # noqa: PLR2004 - two hours


def some(names: list[str], *, most: int = 5) -> str:
    """Return a list for people that does not grow without end."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
