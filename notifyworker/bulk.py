"""
Cancel or retry many runs by what they have in common, in batches that are committed one by one.

Killed half-way it has done half, and nothing twice: what was done fits the filter no more, and the next call does the
rest. Only runs of before its beginning are meant, so that producers who go on, or runs that fail again, don't keep it
busy for ever.
"""

from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from datetime import datetime
from typing import Any, Literal, TypeAlias
from uuid import UUID

import asyncpg

from notifyworker.database import Queryable
from notifyworker.errors import InvalidRun, RunConflict
from notifyworker.given import check_text, moment_of
from notifyworker.store import Row, Store

Verb: TypeAlias = Literal["cancel", "retry"]

BATCH = 1000
_TRIES = 3
_STATES = {"cancel": ("pending", "running"), "retry": ("failed", "cancelled", "completed")}
_TIMES = {"cancel": "created", "retry": "finished"}


@dataclass(frozen=True, slots=True)
class Filter:
    """
    Which runs; None: any. The times are those of creation where live runs are meant, and else of the settle.

    `error_code` and `error`, as `failed_groups` shows it, are for settled runs alone.
    """

    kind: str | None = None
    project_id: str | None = None
    state: str | None = None
    after: datetime | None = None
    before: datetime | None = None
    error_code: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """How many runs were done; passed over, since they can't be done now; and still fit the filter afterwards."""

    done: int = 0
    skipped: int = 0
    remaining: int = 0


def new_filter(verb: Verb, given: dict[str, Any], *, everything: bool = False) -> Filter:
    """
    Check a filter with the names of its verb: created_after and created_before, or finished_after and finished_before.

    Raises InvalidRun, which names the field. `everything` must be true where nothing is named, and only there.
    """
    after, before = f"{_TIMES[verb]}_after", f"{_TIMES[verb]}_before"
    known = ["kind", "project_id", "state", after, before, *(("error_code", "error") if verb == "retry" else ())]
    if unknown := sorted(set(given) - set(known)):
        raise InvalidRun(unknown[0], "there is no such filter", hint=f"there are: {', '.join(known)}")
    given = {name: value for name, value in given.items() if value is not None}
    if everything == bool(given):
        raise InvalidRun("all", "name what is meant, or set it for everything, and not both", hint=f"filters: {', '.join(known)}")
    for name in {"kind", "project_id", "error_code", "error"} & given.keys():
        check_text(name, given[name], 200)
    if given.get("state") not in {None, *_STATES[verb]}:
        raise InvalidRun("state", f"must be one of {', '.join(_STATES[verb])}, not {given['state']!r:.100}")
    for short, full in (("after", after), ("before", before)):
        if full in given:
            given[short] = moment_of(full, given.pop(full))
    return Filter(**given)


async def steer(
    store: Store,
    on: Queryable,
    verb: Verb,
    which: Filter,
    *,
    batch: int = BATCH,
    told: Callable[[Tally], None] = lambda _tally: None,
) -> Tally:
    """
    Cancel or retry all that fit, `batch` a transaction; `told` hears how far it is after each.

    What somebody had locked is tried again as long as others go.
    """
    if which.before is None:
        which = replace(which, before=await store.clock(on))
    done = 0
    while True:
        behind: UUID | None = None
        before, skipped = done, 0
        while True:
            row = await step(store, on, verb, which, behind=behind, limit=batch)
            done += row["done"]
            skipped += row["skipped"]
            told(Tally(done, skipped))
            if (behind := row["last"]) is None:
                break
        if not skipped or done == before:
            return Tally(done, skipped, await matching(store, on, verb, which))


async def step(store: Store, on: Queryable, verb: Verb, which: Filter, *, behind: UUID | None, limit: int) -> Row:
    """One batch: how many were done and skipped, and `last`, the id behind which to go on, None at the end."""
    statement = store.sql(f"{verb}_runs")
    for tries_left in reversed(range(_TRIES)):
        try:
            return (await on.fetch(statement, *_arguments(verb, which), behind, limit))[0]
        except (asyncpg.UniqueViolationError, asyncpg.LockNotAvailableError) as error:
            # Somebody has taken an idempotency key of these at this moment: the next try sees it.
            if not tries_left:
                message = "another transaction is taking idempotency keys of these runs"
                raise RunConflict(message, hint="call it again, and it goes on") from error
    raise AssertionError


async def matching(store: Store, on: Queryable, verb: Verb, which: Filter, *, cap: int | None = None) -> int:
    """How many fit now; counted up to `cap`."""
    return int((await on.fetch(store.sql(f"{verb}_runs_count"), *_arguments(verb, which), cap))[0]["runs"])


def _arguments(verb: Verb, which: Filter) -> tuple[Any, ...]:
    return astuple(which)[:5] if verb == "cancel" else astuple(which)


async def failed_groups(store: Store, on: Queryable, which: Filter, *, newest: int = 10_000) -> list[Row]:
    """Failed runs by kind, code and error, of the `newest` so many; `run_id` is the one that failed last."""
    arguments = (which.kind, which.project_id, which.error_code, which.after, which.before, newest)
    return await on.fetch(store.sql("failed_groups"), *arguments)
