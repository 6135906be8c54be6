"""The commands for many runs at once: insert them from a file, cancel and retry them by what they have in common."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from notifyworker.cli import output
from notifyworker.cli.options import NO_DATABASE_OPTIONS, DatabaseOptions, Json
from notifyworker.errors import InvalidRun, NotifyWorkerError, SettingsError

if TYPE_CHECKING:
    from uuid import UUID

    from notifyworker.bulk import Tally, Verb
    from notifyworker.store import NewRun

_LONGEST_LINE = 256 * 2**20  # as the largest payload that there can be
_WHICH = Group("Which runs", sort_key=10)

Kind = Annotated[str | None, Parameter(help="Of this kind.", group=_WHICH)]
Project = Annotated[str | None, Parameter(help="Of this project.", group=_WHICH)]
All = Annotated[bool, Parameter(help="All of them, where nothing else is named.", negative="", group=_WHICH)]
ErrorCode = Annotated[str | None, Parameter(help="That failed with this code, such as E-RUN-001.", group=_WHICH)]
FinishedAfter = Annotated[str | None, Parameter(help="Settled then or later; RFC 3339.", group=_WHICH)]
FinishedBefore = Annotated[str | None, Parameter(help="Settled before then.", group=_WHICH)]
DryRun = Annotated[bool, Parameter(help="Only say how many it would be.", negative="")]


async def enqueue_many(
    file: Annotated[
        str,
        Parameter(name="FILE", help="JSON lines, each an object of a run's columns; - reads stdin.", allow_leading_hyphen=True),
    ],
    /,
    *,
    kind: Annotated[str | None, Parameter(help="Each line is the payload of a run of this kind.")] = None,
    project_id: Annotated[str | None, Parameter(help="With --kind: their project [default: default].")] = None,
    in_batches: Annotated[
        bool, Parameter(help="Commit every 2,000 lines: what went before a faulty line stays.", negative="")
    ] = False,
    from_line: Annotated[int, Parameter(help="Pass over the lines before this one.", allow_leading_hyphen=True)] = 1,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """Insert a run a line, all or none of them. A line whose idempotency key is taken inserts nothing, and is counted."""
    from notifyworker import inserting
    from notifyworker.cli.database import opened

    if project_id is not None and kind is None:
        message = "--project-id is for --kind; else it stands in each line"
        raise SettingsError(message)
    if from_line < 1:
        message = f"--from-line must be at least 1, not {from_line}"
        raise SettingsError(message)
    so_far = inserting.Enqueued()
    async with opened(database, check=False) as db:
        with _lines(file) as lines:

            def took(ids: "list[UUID]", existing: int) -> None:
                nonlocal so_far
                so_far = inserting.Enqueued(so_far.inserted + len(ids) - existing, so_far.existing + existing)
                lines.done()

            runs = inserting.checked(lines.each(from_line), lambda line: _run(line, kind, project_id))
            try:
                await inserting.pour(db.store, db.connection, runs, in_batches=in_batches, took=took)
            except InvalidRun as error:
                raise _of_line(error, from_line) from None
            finally:
                if in_batches and sys.exc_info()[0] is not None:
                    _tell_kept(from_line, so_far.inserted + so_far.existing)
    if json:
        output.document({"inserted": so_far.inserted, "existing": so_far.existing})
    else:
        already = f"; {so_far.existing:,} were there already, by their idempotency keys" if so_far.existing else ""
        output.line(f"inserted {so_far.inserted:,} runs{already}")


async def cancel_many(
    *,
    kind: Kind = None,
    project_id: Project = None,
    state: Annotated[Literal["pending", "running"] | None, Parameter(help="[default: both].", group=_WHICH)] = None,
    created_after: Annotated[str | None, Parameter(help="Enqueued then or later; RFC 3339.", group=_WHICH)] = None,
    created_before: Annotated[str | None, Parameter(help="Enqueued before then [default: now].", group=_WHICH)] = None,
    all: All = False,  # noqa: A002 - the option's name
    dry_run: DryRun = False,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> int:
    """Cancel all live runs that fit, 1,000 a transaction. Stopped half-way, the same command goes on."""
    given = {
        "kind": kind,
        "project_id": project_id,
        "state": state,
        "created_after": created_after,
        "created_before": created_before,
    }
    return await _steer("cancel", given, everything=all, dry_run=dry_run, json=json, database=database)


async def retry_many(
    *,
    kind: Kind = None,
    project_id: Project = None,
    state: Annotated[
        Literal["failed", "cancelled", "completed"] | None, Parameter(help="[default: failed].", group=_WHICH)
    ] = None,
    error_code: ErrorCode = None,
    error: Annotated[str | None, Parameter(help="With this error, as `failed` lists it.", group=_WHICH)] = None,
    finished_after: FinishedAfter = None,
    finished_before: Annotated[
        str | None, Parameter(help="Settled before then [default: now]: runs that fail again are left.", group=_WHICH)
    ] = None,
    all: All = False,  # noqa: A002 - the option's name
    dry_run: DryRun = False,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> int:
    """Put all settled runs that fit back to pending, 1,000 a transaction. Stopped half-way, the same command goes on."""
    given = {
        "kind": kind,
        "project_id": project_id,
        "state": state,
        "error_code": error_code,
        "error": error,
        "finished_after": finished_after,
        "finished_before": finished_before,
    }
    return await _steer("retry", given, everything=all, dry_run=dry_run, json=json, database=database)


async def _steer(
    verb: "Verb", given: dict[str, Any], *, everything: bool, dry_run: bool, json: bool, database: DatabaseOptions
) -> int:
    from notifyworker import bulk
    from notifyworker.cli.database import opened
    from notifyworker.cli.progress import Progress

    which = bulk.new_filter(verb, given, everything=everything)
    async with opened(database) as db:
        total = await bulk.matching(db.store, db.connection, verb, which)
        if dry_run:
            _tell_tally(verb, bulk.Tally(remaining=total), json=json, dry_run=True)
            return 0
        with Progress(f"{verb}ing" if verb == "retry" else "cancelling", total, "runs") as progress:
            tally = await bulk.steer(db.store, db.connection, verb, which, told=lambda so_far: progress.at(so_far.done))
    _tell_tally(verb, tally, json=json, dry_run=False)
    return 1 if tally.remaining else 0


def _tell_tally(verb: "Verb", tally: "Tally", *, json: bool, dry_run: bool) -> None:
    if json:
        output.document({"done": tally.done, "skipped": tally.skipped, "remaining": tally.remaining})
    elif dry_run:
        output.line(f"{tally.remaining:,} runs would be {_DONE[verb]}")
    else:
        left = f"; {tally.remaining:,} that fit are left: {_LEFT[verb]}" if tally.remaining else ""
        output.line(f"{_DONE[verb]} {tally.done:,} runs{left}")


_DONE = {"cancel": "cancelled", "retry": "retried"}
_LEFT = {
    "cancel": "other transactions hold them",
    "retry": "another run holds their id or idempotency key, or they are too large by now",
}


class _Lines:
    """The lines of a file, and how far it has been read, in bytes."""

    def __init__(self, file: IO[bytes], progress: Any) -> None:
        self._file = file
        self._progress = progress
        self._read = 0

    def each(self, first: int) -> Iterator[bytes]:
        number = 0
        while line := self._file.readline(_LONGEST_LINE):
            number += 1
            self._read += len(line)
            if number < first:
                continue
            if len(line) == _LONGEST_LINE:
                message = f"line {number} has more than {_LONGEST_LINE} bytes"
                raise NotifyWorkerError(message)
            yield line

    def done(self) -> None:
        self._progress.at(self._read)


@contextlib.contextmanager
def _lines(name: str) -> Iterator[_Lines]:
    from notifyworker.cli.progress import Progress

    with contextlib.ExitStack() as stack:
        if name == "-":
            file: IO[bytes] = sys.stdin.buffer
            size = None
        else:
            try:
                file = stack.enter_context(Path(name).open("rb"))
            except OSError as error:
                message = f"{name}: {error.strerror}"
                raise SettingsError(message) from None
            size = os.fstat(file.fileno()).st_size or None
        yield _Lines(file, stack.enter_context(Progress("inserting", size, "bytes")))


def _run(line: bytes, kind: str | None, project_id: str | None) -> "NewRun":
    from notifyworker import inserting
    from notifyworker import payload as payloads
    from notifyworker.given import new_run

    try:
        value = payloads.parse(line)
    except ValueError as error:
        raise InvalidRun("JSON", str(error)) from None
    return inserting.run_of(value) if kind is None else new_run(kind, value, project_id=project_id)


def _of_line(error: InvalidRun, first: int) -> InvalidRun:
    if error.row is None:
        return error
    line = error.row + first - 1
    return InvalidRun(error.field, f"{error.message} (line {line})", hint=error.hint, too_large=error.too_large)


def _tell_kept(first: int, done: int) -> None:
    if done:
        output.say(f"lines {first} to {first + done - 1} are inserted; --from-line {first + done} goes on behind them")
    else:
        output.say("nothing was inserted")
