"""The commands that change an installation: migrate and remove it."""

import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from notifyworker.cli import output
from notifyworker.cli.options import NO_DATABASE_OPTIONS, DatabaseOptions, Json
from notifyworker.errors import NotifyWorkerError, SchemaNotMigrated, SettingsError

if TYPE_CHECKING:
    from notifyworker.cli.database import Database

_COUNT_S = 5.0  # an exact count of settled runs is worth no longer wait


async def migrate(
    *,
    remove: Annotated[bool, Parameter(help="Take the installation out again, with all runs.", negative="")] = False,
    yes: Annotated[bool, Parameter(help="Remove without asking.", negative="")] = False,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """Bring the schema up to this version. Safe to repeat, and from many places at once."""
    if remove:
        await _remove(database, yes=yes, json=json)
        return
    from notifyworker import migrate as migrations
    from notifyworker.cli.database import admin_dsn
    from notifyworker.database import describe

    settings = database.load()
    dsn, schema = admin_dsn(settings), settings.schema_name
    version = migrations.newest()
    with output.bar("migrating", version) as done:
        applied = await migrations.migrate(dsn, schema, done=done)
    for migration in applied:
        output.say(f"applied {migration.version:04d} {migration.name}")
    if json:
        shown = [{"version": migration.version, "name": migration.name} for migration in applied]
        output.document({"database": describe(dsn), "schema": schema, "version": version, "applied": shown})
    else:
        already = "" if applied else " already"
        output.line(f"the schema {schema} in {describe(dsn)} is{already} at version {version}")


def schema(*, schema: Annotated[str | None, Parameter(help="Its name [default: notifyworker].")] = None) -> None:
    """Print the SQL of the whole schema, for those who run their own migrations."""
    from notifyworker.migrate import script

    settings = DatabaseOptions(schema=schema).load()
    output.line(script(settings.schema_name))


async def _remove(database: DatabaseOptions, *, yes: bool, json: bool) -> None:
    from notifyworker.cli.database import opened
    from notifyworker.database import describe
    from notifyworker.migrate import remove

    async with opened(database, check=False, admin=True) as db:
        lost = await _lost(db)
        where = f"the schema {db.schema} in {describe(db.dsn)}"
        output.say(f"This removes {where} with {lost['live']} live and {lost['settled']} settled runs, for good.")
        if not yes:
            _confirm(db.schema)
    await remove(db.dsn, db.schema)
    if json:
        output.document({"removed": db.schema, **lost})
    else:
        output.line(f"removed {where}")


async def _lost(db: "Database") -> dict[str, Any]:
    """Count what goes. Raises NotifyWorkerError where a schema of that name is not, or not only, ours."""
    from notifyworker.migrate import applied_version, migrations

    if not await applied_version(db.connection, db.schema):
        message = f"there is no installation in the schema {db.schema}: nothing was removed"
        raise SchemaNotMigrated(message)
    ours = [
        name for migration in migrations() for name in re.findall(r"CREATE (?:UNLOGGED )?TABLE \{schema\}\.(\w+)", migration.text)
    ]
    strangers = await db.connection.fetch(_STRANGERS, db.schema, ours)
    if strangers:
        names = ", ".join(row["relname"] for row in strangers)
        message = f"the schema {db.schema} has tables that are not notifyworker's: {names}"
        raise NotifyWorkerError(message, hint="move them to another schema first; nothing was removed")
    live = await db.connection.fetchval(f'SELECT count(*) FROM "{db.schema}".runs')  # noqa: S608 - validated
    return {"live": live, "settled": await _settled(db)}


async def _settled(db: "Database") -> str | int:
    import asyncpg

    try:
        async with db.connection.transaction():
            await db.connection.execute(f"SET LOCAL statement_timeout = '{_COUNT_S:g}s'")
            return int(await db.connection.fetchval(f'SELECT count(*) FROM "{db.schema}".run_history'))  # noqa: S608 - validated
    except asyncpg.QueryCanceledError:
        estimate = await db.connection.fetchval(_ESTIMATE, f'"{db.schema}".run_history')
        return f"about {int(estimate):,}"


def _confirm(schema: str) -> None:
    if not sys.stdin.isatty():
        message = "nobody is there to confirm it"
        raise SettingsError(message, hint="add --yes")
    sys.stderr.write(f"Type {schema} to go on: ")
    sys.stderr.flush()
    if sys.stdin.readline().strip() != schema:
        message = "not confirmed: nothing was removed"
        raise NotifyWorkerError(message)


_STRANGERS = """
SELECT relname FROM pg_class
 WHERE relnamespace = quote_ident($1)::regnamespace AND relkind IN ('r', 'p', 'f') AND NOT relispartition
   AND relname <> ALL($2) ORDER BY relname LIMIT 10"""
_ESTIMATE = """
SELECT coalesce(sum(greatest(c.reltuples, 0)), 0) FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
 WHERE i.inhparent = $1::regclass"""
