"""
Execute what is due, by a worker as it is in production, until nothing is left.

Nothing is simulated: runs are claimed, executed and settled by the statements and the code of any worker, one after the
other unless told otherwise, expired leases are reaped and schedules fired.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from notifyworker.errors import NotifyWorkerError
from notifyworker.given import as_dict
from notifyworker.lifespan import Worker
from notifyworker.pause import is_set_within
from notifyworker.run import State
from notifyworker.store import Row
from notifyworker.testing.place import opened
from notifyworker.worker import Conductor

_LOOK_S = 0.05


class DrainTimeout(NotifyWorkerError, TimeoutError):
    """`drain` did not end: the text says what is left. What was executed is settled."""


class Drained(list[dict[str, Any]]):
    """What became of the runs, each as `Client.get` returns it, in the order in which they ended."""

    @property
    def states(self) -> list[str]:
        """The state of each."""
        return [run["state"] for run in self]

    def assert_completed(self) -> None:
        """Raise AssertionError, with the tracebacks, unless every run is completed."""
        others = [run for run in self if run["state"] != State.COMPLETED]
        if others:
            told = "\n".join(f"{_told(run)}\n{_traceback(run)}" for run in others)
            message = f"{len(others)} of {len(self)} runs are not completed:\n{told}"
            raise AssertionError(message)

    def __repr__(self) -> str:
        return f"<Drained: {', '.join(map(_told, self)) or 'nothing was due'}>"


async def drain(
    worker: Worker,
    *,
    dsn: str | None = None,
    concurrency: int = 1,
    timeout_s: float = 30.0,
    max_runs: int = 1000,
) -> Drained:
    """
    Execute everything that is due for this worker's handlers until nothing is left, and return what became of it.

    Retries that are due are executed too; those that are not yet are returned as `pending`: `travel`, and drain again.
    Only what is committed is seen. `dsn` wins over the worker's own and the environment's. Raises DrainTimeout after
    `timeout_s` seconds, or when more than `max_runs` attempts were executed, as by a handler that enqueues its own kind;
    and what starting a worker raises.
    """
    settings = {"dsn": dsn, "concurrency": concurrency, "prefetch": 0, "drain_timeout_s": 1.0, "poll_interval_s": 1.0}
    conductor = worker.conduct(settings)
    watch = _Watch()
    conductor.publish_to(watch.see)
    kinds = conductor.settings.kinds or worker.kinds
    try:
        await conductor.start()
        try:
            async with opened(conductor.dsn, conductor.store.schema) as (connection, store):
                deadline = asyncio.get_running_loop().time() + timeout_s
                while left := await store.left(connection, kinds, conductor.settings.project_ids, conductor.lease_owner):
                    if watch.attempts > max_runs:
                        _refuse(f"drain() has executed more than max_runs={max_runs} attempts", watch, left, conductor)
                    if asyncio.get_running_loop().time() > deadline:
                        _refuse(f"drain() has not ended within timeout_s={timeout_s:g}", watch, left, conductor)
                    await is_set_within(watch.news, _LOOK_S)
                    watch.news.clear()
        finally:
            await conductor.drain(1.0, asyncio.Event())
        # Now the worker has told of each run: what is settled is seen in the database before its worker hears the answer.
        async with opened(conductor.dsn, conductor.store.schema) as (connection, store):
            rows = [await store.run_get(connection, run_id) for run_id in list(watch.ended)]
        return Drained(as_dict(row) for row in rows if row is not None)
    finally:
        await conductor.close()


class _Watch:
    """What the worker says of its runs."""

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self.attempts = 0
        self.ended: dict[UUID, None] = {}
        self.kinds: Counter[str] = Counter()

    def see(self, change: dict[str, object]) -> None:
        """Take note of a change of state."""
        if change["state"] == State.RUNNING:
            self.attempts += 1
            self.kinds[str(change["kind"])] += 1
        elif change["state"] in set(State):
            run_id = UUID(str(change["run_id"]))
            self.ended.pop(run_id, None)
            self.ended[run_id] = None
        self.news.set()


def _refuse(message: str, watch: _Watch, left: Sequence[Row], conductor: Conductor) -> None:
    counted = Counter((row["kind"], row["state"]) for row in left)
    told = ", ".join(f"{count} {state} of {kind!r}" for (kind, state), count in sorted(counted.items())[:10])
    done = ", ".join(f"{count} of {kind!r}" for kind, count in watch.kinds.most_common(10)) or "none"
    reasons = "; ".join(conductor.health())
    message = f"{message}; executed: {done}; left: {told}{'; ' + reasons if reasons else ''}"
    hint = (
        "does a handler enqueue its own kind, or wait for another run? Is a row locked by the test's own transaction, or a rate "
        "used up (travel)?"
    )
    raise DrainTimeout(message, hint=hint)


def _told(run: dict[str, Any]) -> str:
    error = f", {run['errors'][-1]['message']}" if run["errors"] and run["state"] != State.COMPLETED else ""
    return f"{run['kind']} {run['state']} (attempt {run['attempt']} of {run['max_attempts']}{error})"


def _traceback(run: dict[str, Any]) -> str:
    return (run["errors"][-1]["traceback"] or "") if run["errors"] else ""
