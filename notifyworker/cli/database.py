"""A command's connection, and what the database refuses it, as one sentence each."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import asyncpg

from notifyworker.cli.options import DatabaseOptions
from notifyworker.database import Connection, DatabaseError, brief, describe, explain, is_refusal
from notifyworker.errors import DatabaseUnavailable, NotifyWorkerError, SchemaNotMigrated, SchemaTooNew
from notifyworker.migrate import applied_version, newest, open_or_explain
from notifyworker.settings import Settings
from notifyworker.store import Store

_NOT_THERE = (asyncpg.UndefinedTableError, asyncpg.UndefinedFunctionError, asyncpg.InvalidSchemaNameError)


@dataclass(frozen=True, slots=True)
class Database:
    """One connection to one installation."""

    connection: Connection
    store: Store
    schema: str
    dsn: str


@contextlib.asynccontextmanager
async def opened(options: DatabaseOptions, *, check: bool = True, admin: bool = False) -> AsyncIterator[Database]:
    """
    Connect for one command. `admin`: to where schema changes go.

    `check` looks at the schema's version first; a producer may not read it, and needs no more than its INSERT to pass.
    """
    settings = options.load()
    dsn, schema = (admin_dsn(settings) if admin else settings.require_dsn()), settings.schema_name
    connection = await open_or_explain(dsn, schema, "command")
    with _explained(dsn, schema):
        try:
            if check:
                await require_schema(connection, schema, dsn)
            yield Database(connection, Store(schema), schema, dsn)
        finally:
            connection.terminate()


def admin_dsn(settings: Settings) -> str:
    """Where schema changes go."""
    return settings.admin_dsn.get_secret_value() if settings.admin_dsn else settings.require_dsn()


async def require_schema(connection: Connection, schema: str, dsn: str) -> None:
    """Raise StartError unless the schema is at this code's version."""
    version = await applied_version(connection, schema)
    if version < newest():
        what = f"is at version {version}, this code needs {newest()}" if version else "is not there"
        message = f"the schema {schema} in {describe(dsn)} {what}"
        raise SchemaNotMigrated(message, hint="run: notifyworker migrate")
    if version > newest():
        message = f"the schema {schema} is at version {version}, newer than this code, which knows {newest()}"
        raise SchemaTooNew(message, hint="install a newer notifyworker")


@contextlib.contextmanager
def _explained(dsn: str, schema: str) -> Iterator[None]:
    try:
        yield
    except _NOT_THERE:
        message = f"the schema {schema} in {describe(dsn)} is not there, or is another version's"
        raise SchemaNotMigrated(message, hint="run: notifyworker migrate") from None
    except asyncpg.InsufficientPrivilegeError as error:
        message = f"{describe(dsn)}: {error.args[0]}"
        hint = f"GRANT {schema}_operator TO this role; to enqueue, {schema}_producer; to change settings, be the schema's owner"
        raise DatabaseUnavailable(message, hint=hint) from None
    except asyncpg.ReadOnlySQLTransactionError:
        message = f"{describe(dsn)} is read-only"
        raise DatabaseUnavailable(message, hint="a standby? add target_session_attrs=read-write to the DSN") from None
    except DatabaseError as error:
        if is_refusal(error):
            message = f"{describe(dsn)}: {brief(error)}"
            raise NotifyWorkerError(message) from None
        raise explain(error, dsn) from None
