"""
The life of runs against a model: random interleavings of all that may happen to them, statement by statement.

Each worker remembers every lease that it ever had, as one that was paused does, and may try to use any of them at any
time. Time is moved by ending leases, never by waiting.
"""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule, run_state_machine_as_test

from notifyworker.database import connect
from notifyworker.lanes import SLACK, Lane
from notifyworker.run import Desk, Outcome, State
from notifyworker.store import NewRun, Served, Store

DESK: Desk = None  # type: ignore[assignment]  # nobody executes these
SERVED = Served(max_attempts={"a": 2}, timeouts_s={"a": None}, project_ids=None)
LANE = Lane("a", "default", 0, datetime(1970, 1, 1, tzinfo=UTC))
ENDS = st.sampled_from([State.COMPLETED, State.FAILED, State.CANCELLED])


@dataclass
class Told:
    """A run as it has to be."""

    max_attempts: int | None
    state: str = "pending"
    attempt: int = 0
    token: int = 0
    owner: str | None = None
    expired: bool = False
    errors: int = 0


@dataclass(frozen=True)
class Lease:
    """What a worker was given by a claim, and goes on believing."""

    run_id: UUID
    token: int
    owner: str
    attempt: int


@dataclass
class Database:
    """The real thing: one for all examples, emptied before each."""

    loop: asyncio.AbstractEventLoop
    conn: asyncpg.Connection
    store: Store = field(default_factory=lambda: Store("notifyworker"))

    def do(self, what: Any) -> Any:
        return self.loop.run_until_complete(what)


class Life(RuleBasedStateMachine):
    db: Database
    runs = Bundle("runs")
    leases = Bundle("leases")
    workers = st.sampled_from(["w1", "w2", "w3"])

    def __init__(self) -> None:
        super().__init__()
        self.db.do(self.db.conn.execute("TRUNCATE notifyworker.runs, notifyworker.run_history"))
        self.told: dict[UUID, Told] = {}
        self.deaths = 0

    @rule(target=runs, max_attempts=st.one_of(st.none(), st.integers(1, 3)))
    def insert(self, max_attempts: int | None) -> UUID:
        run_id, became = self.db.do(self.db.store.run_insert(self.db.conn, NewRun("a", max_attempts=max_attempts)))
        assert became == "new"
        self.told[run_id] = Told(max_attempts)
        return run_id

    @rule(target=leases, worker=workers, limit=st.integers(1, 4))
    def claim(self, worker: str, limit: int) -> Any:
        owner = f"{worker}/{self.deaths}"
        pending = sum(run.state == "pending" for run in self.told.values())
        claim = self.db.store.claim(
            self.db.conn, SERVED, [LANE], SLACK, limit=limit, lease_owner=owner, lease_s=60, enforce_shadow=False, desk=DESK
        )
        runs = self.db.do(claim)
        assert len(runs) == min(limit, pending)
        for run in runs:
            told = self.told[run.run_id]
            assert told.state == "pending"
            told.state, told.owner, told.expired = "running", owner, False
            told.attempt, told.token = told.attempt + 1, told.token + 1
            told.max_attempts = told.max_attempts or SERVED.max_attempts["a"]
            assert (run.attempt, run.lease_token, run.max_attempts) == (told.attempt, told.token, told.max_attempts)
        return multiple(*(Lease(run.run_id, run.lease_token, owner, run.attempt) for run in runs))

    def holds(self, lease: Lease) -> bool:
        told = self.told[lease.run_id]
        return (told.state, told.token, told.owner) == ("running", lease.token, lease.owner)

    @rule(lease=leases)
    def heartbeat(self, lease: Lease) -> None:
        renewed = self.db.do(self.db.store.heartbeat(self.db.conn, lease.owner, 60, {lease.run_id: lease.token}))
        assert renewed == ({lease.run_id} if self.holds(lease) else set())
        if renewed:
            self.told[lease.run_id].expired = False

    @rule(lease=leases, to=ENDS)
    def settle(self, lease: Lease, to: State) -> None:
        code = "E-RUN-001" if to is State.FAILED else None
        outcome = Outcome(lease.run_id, lease.token, lease.attempt, "a", to, error_code=code)
        done = self.db.do(self.db.store.settle(self.db.conn, lease.owner, [outcome]))
        assert done == int(self.holds(lease))
        if done:
            told = self.told[lease.run_id]
            told.state, told.owner = str(to), None

    @rule(lease=leases, counts=st.booleans())
    def give_back(self, lease: Lease, counts: bool) -> None:
        told = self.told[lease.run_id]
        if counts and self.holds(lease) and told.attempt >= (told.max_attempts or 0):
            return  # a worker fails such a run in place of giving it back
        outcome = Outcome(lease.run_id, lease.token, lease.attempt, "a", State.PENDING, counts=counts, error='{"code": "x"}')
        done = self.db.do(self.db.store.give_back(self.db.conn, lease.owner, [outcome]))
        assert done == ({lease.run_id} if self.holds(lease) else set())
        if done:
            told.state, told.owner, told.errors = "pending", None, told.errors + 1
            told.attempt -= not counts

    @rule(lease=leases)
    def time_passes(self, lease: Lease) -> None:
        ended = "UPDATE notifyworker.runs SET lease_expires_at = now() WHERE run_id = $1 AND state = 'running'"
        self.db.do(self.db.conn.execute(ended, lease.run_id))
        self.told[lease.run_id].expired |= self.told[lease.run_id].state == "running"

    @rule()
    def the_workers_die(self) -> None:
        """And are started again under other names; what they believed is still tried now and then."""
        self.deaths += 1

    @rule()
    def reap(self) -> None:
        rows = self.db.do(self.db.store.reap(self.db.conn, limit=500, reaper="r", presumed_dead=[]))
        late = {run_id for run_id, run in self.told.items() if run.state == "running" and run.expired}
        assert {row["run_id"] for row in rows} == late
        for run_id in late:
            told = self.told[run_id]
            told.state = "failed" if told.attempt >= (told.max_attempts or 0) else "pending"
            told.owner, told.errors = None, told.errors + 1

    @rule(run_id=runs)
    def cancel(self, run_id: UUID) -> None:
        told = self.told[run_id]
        try:
            self.db.do(self.db.store.run_cancel(self.db.conn, run_id))
        except asyncpg.ObjectNotInPrerequisiteStateError:
            assert told.state in {"completed", "failed", "cancelled"}
        else:
            assert told.state in {"pending", "running"}
            told.state, told.owner = "cancelled", None

    @rule(run_id=runs)
    def retry(self, run_id: UUID) -> None:
        told = self.told[run_id]
        try:
            self.db.do(self.db.store.run_retry(self.db.conn, run_id))
        except asyncpg.ObjectNotInPrerequisiteStateError:
            assert told.state in {"pending", "running"}
        else:
            assert told.state in {"completed", "failed", "cancelled"}
            told.state, told.attempt = "pending", 0

    @rule(run_id=consumes(runs))
    def forget(self, run_id: UUID) -> None:
        """A settled run is gone for good, and whoever still believes to hold it can't bring it back."""
        if self.told[run_id].state in {"completed", "failed", "cancelled"}:
            self.db.do(self.db.conn.execute("SELECT notifyworker.forget($1)", run_id))
            self.told[run_id] = Told(None, state="forgotten")

    @invariant()
    def all_is_as_told(self) -> None:
        query = "SELECT run_id, state, attempt, lease_token, lease_owner, jsonb_array_length(errors) AS errors FROM notifyworker.all_runs"
        rows = self.db.do(self.db.conn.fetch(query))
        told = {i: (t.state, t.attempt, t.token, t.owner, t.errors) for i, t in self.told.items() if t.state != "forgotten"}
        assert {row["run_id"]: tuple(row)[1:] for row in rows} == told
        assert len(rows) == len(told)  # nothing is both live and settled


def test_whatever_happens_in_whatever_order_a_run_is_what_the_model_says(dsn):
    loop = asyncio.new_event_loop()
    conn = loop.run_until_complete(connect(dsn, schema="notifyworker", purpose="model"))
    try:
        machine = type("LifeHere", (Life,), {"db": Database(loop, conn)})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=80, stateful_step_count=40, deadline=None, database=None, derandomize=True,
                suppress_health_check=list(HealthCheck),
            ),
        )  # fmt: skip
    finally:
        conn.terminate()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
