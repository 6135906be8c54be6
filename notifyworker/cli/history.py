"""The commands for settled runs: how long they are kept, what is deleted, and all of them as a file."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, Protocol

from cyclopts import Parameter

from notifyworker.cli import output
from notifyworker.cli.many import DryRun, ErrorCode, FinishedAfter, FinishedBefore, Kind, Project
from notifyworker.cli.options import NO_DATABASE_OPTIONS, DatabaseOptions, Json
from notifyworker.errors import NotifyWorkerError, SettingsError

if TYPE_CHECKING:
    from notifyworker.cli.database import Database
    from notifyworker.store import Row

_FORGOTTEN = 5000  # steps or logs a statement
_RETENTION = (
    output.Column("kind", "kind"),
    output.Column("project", "project_id"),
    output.Column("days", "days", "right"),
    output.Column("since", "changed_at", spare=1),
)


async def prune(*, dry_run: DryRun = False, json: Json = False, database: DatabaseOptions = NO_DATABASE_OPTIONS) -> None:
    """Drop the days of settled runs whose time is over, and delete what is over in the others. The leader does so by itself."""
    import asyncpg

    from notifyworker.cli.database import opened
    from notifyworker.run_log_store import RunLogStore
    from notifyworker.step_store import StepStore

    async with opened(database) as db:
        try:
            dropped = await _droppable(db) if dry_run else await db.store.drop_expired_partitions(db.connection)
            deleted = await _swept(db, dry_run=dry_run)
            while not dry_run and await StepStore(db.store).steps_forget(db.connection, limit=_FORGOTTEN) == _FORGOTTEN:
                continue
            while not dry_run and await RunLogStore(db.store).run_logs_forget(db.connection, limit=_FORGOTTEN) == _FORGOTTEN:
                continue
        except asyncpg.LockNotAvailableError:
            message = "somebody is reading the history, and nothing may be dropped meanwhile; nothing was"
            raise NotifyWorkerError(message, hint="try again later") from None
    if json:
        output.document({"dropped": dropped, "deleted": deleted, "dry_run": dry_run})
        return
    days = f"{dropped} day{'' if dropped == 1 else 's'} of settled runs"
    if dry_run:
        output.line(f"would drop {days}, and delete {deleted:,} runs of others")
    else:
        output.line(f"dropped {days}" + (f", and deleted {deleted:,} runs of others" if deleted else ""))


async def _droppable(db: "Database") -> int:
    from notifyworker import history

    return sum(row["is_droppable"] for row in await history.ended_days(db.store, db.connection))


async def _swept(db: "Database", *, dry_run: bool) -> int:
    from notifyworker import history
    from notifyworker.cli.progress import Progress

    deleted = 0
    with Progress("counting" if dry_run else "pruning", None, "runs") as progress:
        async for step in history.sweep(db.store, db.connection, dry_run=dry_run):
            deleted += step.deleted
            progress.at(deleted)
    return deleted


async def retention_list(*, json: Json = False, database: DatabaseOptions = NO_DATABASE_OPTIONS) -> None:
    """List how long settled runs are kept, where it is not history_retention_days."""
    from notifyworker.cli.database import opened

    async with opened(database) as db:
        await _show(db, json=json)


async def retention_set(
    days: Annotated[
        int | None, Parameter(name="DAYS", help="1 to 36500; none: as long as all others.", allow_leading_hyphen=True)
    ] = None,
    /,
    *,
    kind: Kind = None,
    project_id: Project = None,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """Keep settled runs of a kind, a project, or a kind of a project for so many days; without DAYS as long as all others."""
    from notifyworker import history
    from notifyworker.cli.database import opened

    async with opened(database) as db:
        await history.retention_set(db.store, db.connection, days, kind, project_id)
        await _show(db, json=json)


async def _show(db: "Database", *, json: bool) -> None:
    from notifyworker import history

    rows: list[dict[str, Any]] = [dict(row) for row in await history.retention_list(db.store, db.connection)]
    days = int((await db.store.settings(db.connection))["history_retention_days"])
    if json:
        output.document({"retention": rows, "history_retention_days": days})
        return
    shown = [{**row, "kind": row["kind"] or "every kind", "project_id": row["project_id"] or "every project"} for row in rows]
    everything = {"kind": "all others", "project_id": "", "days": days, "changed_at": None}
    output.table(_RETENTION, [*shown, everything])


async def export(
    *,
    output_file: Annotated[str, Parameter(name="--output", help="Where to [default: stdout].")] = "-",
    format: Annotated[  # noqa: A002 - the option's name
        Literal["jsonl", "parquet"], Parameter(help="Parquet needs the extra notifyworker[parquet] [default: jsonl].")
    ] = "jsonl",
    kind: Kind = None,
    project_id: Project = None,
    state: Annotated[Literal["completed", "failed", "cancelled"] | None, Parameter()] = None,
    error_code: ErrorCode = None,
    finished_after: FinishedAfter = None,
    finished_before: FinishedBefore = None,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """Write settled runs as they are at this moment, the oldest days first: a JSON object a line, or Parquet."""
    from notifyworker import history
    from notifyworker.cli.database import opened
    from notifyworker.cli.progress import Progress

    which = history.history_filter(
        kind=kind,
        project_id=project_id,
        state=state,
        error_code=error_code,
        finished_after=finished_after,
        finished_before=finished_before,
    )
    if format == "parquet" and output_file == "-":
        message = "Parquet goes to a file"
        raise SettingsError(message, hint="add --output FILE")
    async with opened(database) as db:
        with _written(output_file) as file, _writer(format, file) as writer, Progress("exporting", None, "runs") as progress:
            count = 0
            async for rows in history.read(db.store, db.connection, which):
                writer.write(rows)
                count += len(rows)
                progress.at(count)
    if output_file != "-":
        output.say(f"wrote {count:,} runs to {output_file}")


class _Writer(Protocol):
    def write(self, rows: "list[Row]") -> None: ...


@contextlib.contextmanager
def _written(name: str) -> Iterator[IO[bytes]]:
    """Write beside the file first, so that one which is there is whole."""
    if name == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(name)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        message = f"{name}: {error.strerror}"
        raise NotifyWorkerError(message) from None
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _writer(form: str, file: IO[bytes]) -> Iterator[_Writer]:
    if form == "jsonl":
        yield _JsonLines(file)
        return
    from notifyworker.cli.parquet import ParquetFile

    with contextlib.closing(ParquetFile(file)) as writer:
        yield writer


class _JsonLines:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, rows: "list[Row]") -> None:
        from notifyworker.http.answer import dumps, shown

        self._file.writelines(dumps(shown(row)) + b"\n" for row in rows)
