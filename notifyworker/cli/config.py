"""`notifyworker config`: what holds, and who said so; and what holds for the whole fleet."""

import os
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from notifyworker.cli import DONE, NOT_STARTED, output
from notifyworker.cli.options import NO_DATABASE_OPTIONS, NO_WORKER_OPTIONS, DatabaseOptions, Json, WorkerOptions
from notifyworker.errors import SettingsError, StartError

if TYPE_CHECKING:
    from notifyworker.cli.database import Database
    from notifyworker.settings import Settings

_FLEET = ("reaper_interval_s", "max_payload_bytes", "max_result_bytes", "idempotency_window_s", "history_retention_days")
_SHOWN = (
    output.Column("setting", "name"),
    output.Column("value", "value"),
    output.Column("from", "source"),
)


async def config_show(
    reference: Annotated[str | None, Parameter(name="MODULE:ATTR", help="A Worker, whose keywords count as well.")] = None,
    /,
    *,
    json: Json = False,
    settings: WorkerOptions = NO_WORKER_OPTIONS,
) -> int:
    """
    Show each setting, and where its value comes from: command line, environment, keyword, fleet table or default.

    What is marked with the fleet table is one for all workers, whatever these say themselves. Passwords and the token
    are not shown. Exit code 3 if the database that is named could not be asked for the fleet's settings.
    """
    from notifyworker.cli.options import log_early
    from notifyworker.settings import Settings

    log_early("auto", "warning")
    keywords: dict[str, Any] = {}
    if reference is not None:
        from notifyworker.cli.load import load_worker

        keywords = load_worker(reference).keywords
    given = settings.given()
    loaded, sources = Settings.load(given, keywords), Settings.sources(given, keywords)
    rows = [_row(loaded, name, source) for name, source in sources.items()]
    trouble = await _ask_fleet(loaded, rows, settings)
    if json:
        output.document({"settings": rows, "fleet": trouble or "asked"})
    else:
        shown = [{**row, "value": _shown(row), "source": _source(row)} for row in rows]
        output.table(_SHOWN, shown, title="Settings")
        if trouble:
            output.say(f"the fleet's own settings are not known: {trouble}")
    return NOT_STARTED if trouble and loaded.names_a_database else DONE


def _row(loaded: "Settings", name: str, source: str) -> dict[str, Any]:
    from pydantic import SecretStr

    from notifyworker.database import describe

    value = getattr(loaded, "schema_name" if name == "schema" else name)
    if isinstance(value, SecretStr):
        value = "***" if name == "token" else describe(value.get_secret_value())
    elif isinstance(value, os.PathLike):
        value = str(value)
    if name == "dsn" and value is None and loaded.names_a_database:
        value = describe(loaded.require_dsn())
        source = "environment: DATABASE_URL" if os.environ.get("DATABASE_URL") else "environment: PG*"
    return {"name": name, "value": value, "source": source}


async def _ask_fleet(loaded: "Settings", rows: list[dict[str, Any]], settings: WorkerOptions) -> str | None:
    """Put what stands in the fleet table into the rows; return why that could not be done."""
    from notifyworker.cli.database import opened

    if not loaded.names_a_database:
        return "no database is given"
    options = DatabaseOptions(dsn=loaded.require_dsn(), admin_dsn=settings.admin_dsn, schema=loaded.schema_name)
    try:
        async with opened(options) as db:
            fleet = await db.store.settings(db.connection)
    except StartError as error:
        return str(error)
    for row in rows:
        if row["name"] in fleet:
            number = fleet[row["name"]]
            if row["source"] != "default" and row["value"] != number:
                row["overruled"] = {"value": row["value"], "source": row["source"]}
            row.update(value=int(number) if number.is_integer() else number, source="fleet table")
    return None


def _shown(row: dict[str, Any]) -> str:
    value = row["value"]
    return f"{value:.15g}" if isinstance(value, float) else output.cell(value)


def _source(row: dict[str, Any]) -> str:
    over = row.get("overruled")
    return f"{row['source']} (and not {output.cell(over['value'])}, {over['source']})" if over else str(row["source"])


async def config_set(
    name: Annotated[str, Parameter(name="NAME", help=", ".join(_FLEET))],
    value: Annotated[str, Parameter(name="VALUE", help="A number.", allow_leading_hyphen=True)],
    /,
    *,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """Change a setting for the whole fleet. Workers that run read it when they start."""
    from notifyworker.cli.database import opened
    from notifyworker.settings import Settings

    if name not in _FLEET:
        message = f"{name} is no setting of the whole fleet"
        raise SettingsError(message, hint=f"there are: {', '.join(_FLEET)}")
    number = getattr(Settings.load(command_line={name: value}), name)
    async with opened(database, admin=True) as db:
        await _write_setting(db, name, number)
    if json:
        output.document({"name": name, "value": number})
    else:
        output.line(f"{name} = {number:.15g}")


async def _write_setting(db: "Database", name: str, value: float) -> None:
    import asyncpg

    update = f'UPDATE "{db.schema}".settings SET value = to_jsonb($2::numeric), changed_at = now() WHERE name = $1'  # noqa: S608 - validated
    try:
        async with db.connection.transaction():
            await db.connection.execute(update, name, value)
            await db.connection.execute(f'SELECT "{db.schema}".apply_settings()')
    except asyncpg.CheckViolationError:
        message = f"{name}: {value:.15g} is out of range"
        raise SettingsError(message) from None
