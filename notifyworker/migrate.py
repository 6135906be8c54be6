"""
Bring the schema up to this code: numbered files under schema/, each applied once, all in one transaction.

Ten processes may do so at once: the first holds an advisory lock until its commit, and the others find nothing to do.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import asyncpg

from notifyworker.data import folder
from notifyworker.database import LOCK_CLASS, SEARCH_PATH, Connection, DatabaseError, GateLocks, connect, describe, explain
from notifyworker.errors import DatabaseUnavailable, NotifyWorkerError, SchemaNotMigrated, SchemaTooNew, SettingsError, StartError
from notifyworker.pause import Backoff

OLDEST_SERVER = 140000
_WAIT_S = 60
#: So long a migration that waits for a lock on a table may hold up who comes after it.
_HOLDS_UP_MS = 100
_PATH = f"SET LOCAL search_path = {SEARCH_PATH};"  # not left to the session: a pooler may have dropped its settings


@dataclass(frozen=True, slots=True)
class Migration:
    """One file under schema/."""

    version: int
    name: str
    text: str


@cache
def migrations() -> tuple[Migration, ...]:
    """All files, in order."""
    files = sorted((f for f in folder("schema").iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    return tuple(Migration(int(f.name[:4]), f.name[5:-4], f.read_text(encoding="utf-8")) for f in files)


def newest() -> int:
    """The version that this code works with."""
    return migrations()[-1].version


#: A lane's rank: higher priority first, and of one priority those without a concurrency key before those with one, whose
#: rank is odd. Written once, since an index on an expression is used only by the very same expression.
RANK = "(-priority::int * 2 + (concurrency_key IS NOT NULL)::int)"


def render(text: str, schema: str, *, copy: str | None = None) -> str:
    """
    Put the schema's name, and what is derived from it, into SQL of ours.

    `copy` is another schema that gets the same objects, to compare with: its name, but the locks of the original.
    """
    locks = GateLocks.of(schema)
    for token, value in (
        ("{schema}", f'"{copy or schema}"'),
        ("{name}", copy or schema),
        ("{lock_class}", LOCK_CLASS),
        ("{leader_lock}", locks.leader),
        ("{coalesced_lock}", locks.coalesced),
        ("{silent_lock}", locks.silent),
        ("{rank}", RANK),
    ):
        text = text.replace(token, str(value))
    return text


def script(schema: str) -> str:
    """All the SQL, for people who run their own migrations: to be executed as one transaction, in an empty database."""
    parts = [f"-- notifyworker: schema version {newest()}, in the schema {schema}.", "BEGIN;", _PATH]
    parts += [f"-- {m.version:04d} {m.name}\n{_with_record(m, schema)}" for m in migrations()]
    return "\n\n".join([*parts, "COMMIT;"])


def statements(schema: str, *, above: int = 0, to: int | None = None) -> list[str]:
    """
    The SQL of the migrations from `above` (exclusive) to `to` (inclusive; None: the newest), for another migration tool.

    To be executed in one transaction of that tool's, which keeps its own search_path. Name `to`: what a migration of
    yours does then stays the same with each version of this package. Raises ValueError for a version that is not there.
    """
    newest_wanted = newest() if to is None else to
    if not 0 <= above < newest_wanted <= newest():
        message = f"there are the versions 1 to {newest()}, and none from {above + 1} to {newest_wanted}"
        raise ValueError(message)
    keep = "SELECT set_config('notifyworker.search_path', current_setting('search_path'), true)"
    give_back = "SELECT set_config('search_path', current_setting('notifyworker.search_path'), true)"
    wanted = [_with_record(m, schema) for m in migrations() if above < m.version <= newest_wanted]
    return [keep, _PATH, *wanted, give_back]


async def migrate(dsn: str, schema: str, *, done: Callable[[int], None] = lambda _version: None) -> list[Migration]:
    """
    Apply what is missing and return it. `done` is told each version that is reached; none holds before all are.

    Raises SchemaTooNew if the database is ahead of this code, StartError if it can't be reached or refuses.
    """
    connection = await open_or_explain(dsn, schema)
    try:
        return await _applied(connection, schema, done)
    except asyncpg.LockNotAvailableError:
        message = f"{describe(dsn)}: the tables were in use for {_WAIT_S} s on end; nothing was changed"
        hint = "look in pg_stat_activity for a transaction that has been open for long, end it, and migrate again"
        raise StartError(message, hint=hint) from None
    except asyncpg.InsufficientPrivilegeError as error:
        message = f"{describe(dsn)}: {error.args[0]}"
        raise StartError(message, hint="migrate as the database's owner, or as a role with CREATE on the database") from None
    except asyncpg.ReadOnlySQLTransactionError:
        raise _read_only(dsn) from None
    except (asyncpg.DuplicateTableError, asyncpg.UndefinedColumnError) as error:
        message = f"{describe(dsn)}: the schema {schema} has tables that are not notifyworker's: {error.args[0]}"
        raise StartError(
            message, hint="move them to another schema, or give --schema another name; nothing was changed"
        ) from None
    except DatabaseError as error:
        raise explain(error, dsn) from None
    finally:
        connection.terminate()


async def _applied(connection: Connection, schema: str, done: Callable[[int], None]) -> list[Migration]:
    """
    Apply what is missing, and give way again and again while somebody holds a table that it changes.

    Whoever comes after a migration that waits, waits as well: all inserts behind one that waits for a reader.
    """
    gives_up_at = time.monotonic() + _WAIT_S
    backoff = Backoff()
    while True:
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{_WAIT_S}s'; SET LOCAL statement_timeout = 0; {_PATH}")
                await connection.execute(f"SELECT pg_advisory_xact_lock({LOCK_CLASS}, {GateLocks.of(schema).migrate})")
                await connection.execute(f"SET LOCAL lock_timeout = '{_HOLDS_UP_MS}ms'")
                version = await applied_version(connection, schema)
                if version > newest():
                    raise _too_new(schema, version)
                missing = [m for m in migrations() if m.version > version]
                for migration in missing:
                    await connection.execute(_with_record(migration, schema))
                    done(migration.version)
            return missing
        except asyncpg.LockNotAvailableError:
            if time.monotonic() >= gives_up_at:
                raise
        await asyncio.sleep(backoff.next_s())


async def check(connection: Connection, schema: str, dsn: str) -> None:
    """Raise StartError unless this database can be worked with: version, migrations, rights, writable."""
    if connection.get_server_version()[0] * 10000 < OLDEST_SERVER:
        message = f"PostgreSQL {connection.get_server_version()[0]} is too old"
        raise DatabaseUnavailable(message, hint="notifyworker needs 14 or later")
    version = await applied_version(connection, schema)
    if version < newest():
        what = f"is at version {version}, this code needs {newest()}" if version else "is not there"
        message = f"the schema {schema} in {describe(dsn)} {what}"
        raise SchemaNotMigrated(message, hint="run: notifyworker migrate")
    if version > newest():
        raise _too_new(schema, version)
    if await connection.fetchval("SHOW transaction_read_only") == "on":
        raise _read_only(dsn)
    may = "SELECT has_table_privilege($1, 'SELECT') AND has_table_privilege($1, 'UPDATE') AND has_table_privilege($1, 'DELETE')"
    if not await connection.fetchval(may, f'"{schema}".runs'):
        message = f"{describe(dsn)}: this role may not work on {schema}.runs"
        raise DatabaseUnavailable(message, hint=f"GRANT {schema}_worker TO it")
    sees_all = "SELECT NOT row_security_active($1) OR pg_has_role($2, 'USAGE')"
    if not await connection.fetchval(sees_all, f'"{schema}".runs', f"{schema}_worker"):
        message = f"{describe(dsn)}: projects are separated, and this role is no worker: it would find no run"
        raise DatabaseUnavailable(message, hint=f"GRANT {schema}_worker TO it")


async def applied_version(connection: Connection, schema: str) -> int:
    """Return the newest migration that the database has; 0 without a schema."""
    try:
        if await connection.fetchval("SELECT to_regclass($1)", f'"{schema}".migrations') is None:
            return 0
        return await connection.fetchval(f'SELECT coalesce(max(version), 0) FROM "{schema}".migrations') or 0  # noqa: S608 - the name was validated
    except asyncpg.InsufficientPrivilegeError as error:
        message = f"this role may not use the schema {schema}: {error.args[0]}"
        raise DatabaseUnavailable(message, hint=f"GRANT {schema}_worker TO it") from None


async def remove(dsn: str, schema: str) -> None:
    """Take an installation out again, runs and history included. Its roles stay: other databases may use them."""
    connection = await open_or_explain(dsn, schema)
    try:
        await connection.execute(f'DROP SCHEMA "{schema}" CASCADE')
    except asyncpg.InvalidSchemaNameError:
        message = f"there is no schema {schema} in {describe(dsn)}"
        raise SchemaNotMigrated(message) from None
    except asyncpg.InsufficientPrivilegeError as error:
        message = f"{describe(dsn)}: {error.args[0]}"
        raise StartError(message, hint="only the schema's owner may remove it; nothing was removed") from None
    except asyncpg.LockNotAvailableError:
        message = f"somebody is using the schema {schema} in {describe(dsn)}; nothing was removed"
        raise NotifyWorkerError(message, hint="stop its workers and readers first") from None
    except DatabaseError as error:
        raise explain(error, dsn) from None
    finally:
        connection.terminate()


async def open_or_explain(dsn: str, schema: str, purpose: str = "migrate") -> Connection:
    """Connect, or raise DatabaseUnavailable with one sentence."""
    try:
        return await connect(dsn, schema=schema, purpose=purpose)
    except SettingsError:
        raise
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        raise explain(error, dsn) from None


def _with_record(migration: Migration, schema: str) -> str:
    insert = f"INSERT INTO \"{schema}\".migrations (version, name) VALUES ({migration.version}, '{migration.name}');"  # noqa: S608 - ours
    return f"{render(migration.text, schema).strip()}\n\n{insert}"


def _too_new(schema: str, version: int) -> SchemaTooNew:
    message = f"the schema {schema} is at version {version}, newer than this code, which knows {newest()}"
    return SchemaTooNew(message, hint="install a newer notifyworker")


def _read_only(dsn: str) -> DatabaseUnavailable:
    message = f"{describe(dsn)} is read-only"
    return DatabaseUnavailable(message, hint="a standby? add target_session_attrs=read-write to the DSN, or use another role")
