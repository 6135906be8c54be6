"""What the judge is told by the database's own witnesses, and what it says."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Lease:
    """One grant of a lease, as the database saw it."""

    run: str
    token: int
    owner: str
    attempt: int
    max_attempts: int


@dataclass(frozen=True, slots=True)
class Settle:
    """One settle, as the database saw it. `by` None: reaped, or cancelled from outside."""

    run: str
    token: int
    by: str | None
    kind: str
    state: str
    error_code: str | None
    attempt: int
    result_token: int | None
    result_pid: int | None
    #: What a parent says of its children, and the token that its last progress names.
    family: dict[str, Any] | None = None
    progress_token: int | None = None


@dataclass(frozen=True, slots=True)
class Witness:
    """What triggers wrote in another schema, in the transactions of the system under test; and what is still live."""

    inserted: list[str]
    leases: list[Lease]
    settles: list[Settle]
    #: Rows that handlers wrote in run.transaction(): the run, and the token of the lease.
    effects: list[tuple[str, int]]
    live: set[str]
    #: Places of limits and keys that are still taken.
    places: int = 0
    #: Runs that a schedule inserted: the run, and for which second since 1970.
    scheduled: list[tuple[str, int]] = field(default_factory=list)
    #: What became of live runs' copies, by the live run.
    copies: dict[str, str | None] = field(default_factory=dict)
    #: Runs that runs have started: the child and its parent, one for each insert.
    children: list[tuple[str, str]] = field(default_factory=list)
    #: Lines of run.log that are kept: the run, the token of the row, and the tokens that its lines name.
    logs: list[tuple[str, int, list[int]]] = field(default_factory=list)


@dataclass(slots=True)
class Verdict:
    """How many runs there were; what was lost, done twice, or otherwise wrong."""

    runs: int = 0
    lost: list[str] = field(default_factory=list)
    double: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    #: Commits of which the producer heard nothing, and that had happened.
    recovered: int = 0
