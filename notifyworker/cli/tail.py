"""
`notifyworker runs tail`, and what `dev` shows: each change of a run's state, as it is seen.

It looks, some times a second, and tells how what it sees differs from what it saw: what a run was between two looks is
not told. Settled runs are asked for by their time, with some seconds of overlap for transactions that commit late.
"""

import contextlib
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

from cyclopts import Parameter

from notifyworker.cli import output
from notifyworker.cli.filters import ALL_FOLLOWED, Followed
from notifyworker.cli.options import NO_DATABASE_OPTIONS, DatabaseOptions
from notifyworker.errors import SettingsError

if TYPE_CHECKING:
    from notifyworker.cli.database import Database
    from notifyworker.cli.live import Watched
    from notifyworker.views import Filter

_OVERLAP = timedelta(seconds=5)
_KNOWN = 1000  # live runs whose change is noticed also if they are pending again by the next look
_TOLD = 20_000  # settled runs that are not told twice
_SHORTEST_S, _LONGEST_S = 0.1, 60.0

Change = dict[str, Any]


async def tail(
    *,
    wanted: Followed = ALL_FOLLOWED,
    interval_s: Annotated[float, Parameter(help="Seconds between two looks [default: 0.5].")] = 0.5,
    json: Annotated[bool, Parameter(negative="", help="Print one JSON document a line.")] = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """
    Follow runs: a line for each change of state from now on, until Ctrl-C.

    A database that goes away is waited for, and what was settled meanwhile is told. What a run was for less than the
    time between two looks is not seen, and of more than 1,000 changes a look only the latest.
    """
    from notifyworker.cli.live import Stopped, Watched, until_signalled

    if not _SHORTEST_S <= interval_s <= _LONGEST_S:
        message = f"--interval-s must be between {_SHORTEST_S:g} and {_LONGEST_S:g}, not {interval_s:g}"
        raise SettingsError(message)
    wanted.check()
    tell = output.compact if json else tell_people
    with contextlib.suppress(Stopped):
        async with until_signalled() as stop, Watched(database, stop, lost=_lost) as watched:
            await follow(
                watched, wanted.plain(), tell, interval_s=interval_s, ready=lambda: output.say("following; Ctrl-C ends it")
            )


async def follow(
    watched: "Watched",
    wanted: "Filter",
    tell: Callable[[Change], None],
    *,
    interval_s: float,
    ready: Callable[[], None] | None = None,
) -> None:
    """Tell each change from now on. Ends by Stopped alone; `ready` is called after the first look."""
    seen = _Seen(wanted)
    await watched.ask(seen.start)
    if ready is not None:
        ready()
    while True:
        for change in await watched.ask(seen.changes):
            tell(change)
        await watched.pause(interval_s)


def tell_people(change: Change) -> None:
    """Print a change as one line, the state coloured on a terminal."""
    state, words = change["state"], []
    if change["attempt"]:
        words.append(f"attempt {change['attempt']}/{change['max_attempts'] or '-'}")
    if change["took_s"] is not None:
        words.append(f"in {output.age(change['took_s'])}")
    if change["error_code"]:
        words.append(f"{change['error_code']} {change['message'] or ''}".rstrip())
    if change["is_shadow"]:
        words.append("shadow")
    head, tail = f"{change['at']:%H:%M:%S}.{change['at'].microsecond // 1000:03d}  {change['run_id']}  ", "  ".join(words)
    rest = output.printable(f"  {change['kind']}  {tail}".rstrip())
    if not sys.stdout.isatty():
        print(f"{head}{state:<9}{rest}", flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    Console(highlight=False).print(Text(head).append(f"{state:<9}", style=output.STYLES[state]).append(rest), soft_wrap=True)


class _Seen:
    """What was seen up to the last look."""

    def __init__(self, wanted: "Filter") -> None:
        self._wanted = wanted
        self._since: datetime | None = None
        self._live: OrderedDict[UUID, tuple[int, str]] = OrderedDict()
        self._settled: OrderedDict[tuple[UUID, datetime], None] = OrderedDict()

    async def start(self, db: "Database") -> None:
        """Look, and tell nothing: what is there already is no change."""
        self._since = await db.store.clock(db.connection)
        for _change in self._noticed(await self._look(db, above=UUID(int=0))):
            pass

    async def changes(self, db: "Database") -> list[Change]:
        """Return what has changed since the last look, oldest first."""
        from notifyworker.views import first_id

        assert self._since is not None
        now = await db.store.clock(db.connection)
        rows = await self._look(db, above=first_id(self._since - _OVERLAP))
        found = sorted(self._noticed(rows), key=lambda change: change["at"])
        self._since = now
        while len(self._live) > _KNOWN:
            self._live.popitem(last=False)
        while len(self._settled) > _TOLD:
            self._settled.popitem(last=False)
        return [change for change in found if self._is_wanted(change)]

    async def _look(self, db: "Database", *, above: UUID) -> list[Any]:
        from notifyworker.views import Views

        assert self._since is not None
        return await Views(db.schema).runs_changed(
            db.connection, self._wanted, since=self._since - _OVERLAP, above=above, known=list(self._live)
        )

    def _noticed(self, rows: list[Any]) -> Iterator[Change]:
        live = {row["run_id"] for row in rows if row["finished_at"] is None}
        for row in rows:
            run_id = row["run_id"]
            if row["finished_at"] is not None:
                if run_id not in live:  # else it was retried since, and is known again
                    self._live.pop(run_id, None)
                key = run_id, row["finished_at"]
                if key not in self._settled:
                    self._settled[key] = None
                    yield _change(row)
                continue
            now = row["lease_token"], row["state"]
            if self._live.get(run_id) != now:
                self._live[run_id] = now
                self._live.move_to_end(run_id)
                yield _change(row)

    def _is_wanted(self, change: Change) -> bool:
        """Say so of what the statement did not filter."""
        by = change["worker"] or ""
        is_state = self._wanted.state is None or change["state"] == self._wanted.state
        return is_state and (self._wanted.worker is None or by.startswith(self._wanted.worker))


def _change(row: Mapping[str, Any]) -> Change:
    from notifyworker import payload as payloads

    state = row["state"]
    try:
        error = payloads.decode(row["error"]) if row["error"] is not None else {}
    except ValueError:
        error = {}
    was_tried = state == "pending" and isinstance(error, dict) and "at" in error
    ended = row["finished_at"]
    if ended is not None:
        at = ended
    elif state == "running":
        at = row["started_at"]
    else:
        at = datetime.fromisoformat(error["at"]) if was_tried else row["created_at"]
    tells_error = was_tried or state == "failed"
    return {
        "at": at,
        "run_id": row["run_id"],
        "kind": row["kind"],
        "project_id": row["project_id"],
        "state": state,
        "attempt": row["attempt"],
        "max_attempts": row["max_attempts"],
        "is_shadow": row["is_shadow"],
        "worker": row["worker"] or (error.get("worker") if was_tried else None),
        "took_s": (ended - row["started_at"]).total_seconds() if ended and row["started_at"] else None,
        "error_code": row["error_code"] or (error.get("code") if tells_error else None),
        "message": str(error.get("message", "")).partition("\n")[0][:500] if tells_error else None,
    }


def _lost(trouble: str) -> None:
    output.say(trouble or "the database answers again")
