"""
Examine an installation and its surroundings: what is not as it should be, and what to do about it.

Data out, nothing shown: the command line, the page and an HTTP route have the same findings. It reads catalogs and our
own small tables, never a payload; every statement has a deadline; no lock is taken that anybody would wait for. What
this login may not see is said so, and is no fault of the installation.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias

import asyncpg

from notifyworker.database import DatabaseError, Link, brief, connect, explain
from notifyworker.doctor import drift, fleet, server, table, waking
from notifyworker.doctor.finding import Finding, Limits, Patient, Verdict
from notifyworker.errors import DatabaseUnavailable
from notifyworker.migrate import applied_version
from notifyworker.settings import Settings
from notifyworker.store import Store

__all__ = ["EXAMINATIONS", "Finding", "Limits", "Verdict", "examine", "worst"]

Examination: TypeAlias = Callable[[Patient], Awaitable[list[Finding]]]

#: Of the server; these need no schema.
_SERVER: dict[str, Examination] = {
    "connection": server.connection,
    "server": server.settings,
    "session": server.session,
    "standbys": server.standbys,
    "schema": server.schema,
}
#: Of what the migration made and the fleet does with it, in the order in which they are shown.
_INSTALLATION: dict[str, Examination] = {
    "privileges": server.privileges,
    "drift": drift.drift,
    "triggers": waking.triggers,
    "notify": waking.notify,
    "queue": waking.queue,
    "clock": fleet.clock,
    "leader": fleet.leader,
    "workers": fleet.workers,
    "kinds": fleet.kinds,
    "limits": fleet.limits,
    "settings": fleet.settings,
    "connections": server.connections,
    "bloat": table.bloat,
    "horizon": table.horizon,
    "vacuum": table.vacuum,
    "partitions": table.partitions,
}
#: The names of all of them.
EXAMINATIONS = (*_SERVER, *_INSTALLATION)
_SESSION = {
    "statement_timeout": "5s",
    "lock_timeout": "1s",
    "synchronous_commit": "local",  # a standby that is not there is to be found, not waited for
}


async def examine(settings: Settings, *, limits: Limits | None = None, clock: Callable[[], float] = time.time) -> list[Finding]:
    """
    Examine the installation that these settings name.

    `clock` is this host's, in seconds since 1970. Raises SettingsError if no database is named; one that can't be
    reached is a finding.
    """
    limits = limits or Limits()
    dsn, schema = settings.require_dsn(), settings.schema_name
    ends_at = time.monotonic() + limits.whole_s
    link = Link(partial(connect, dsn, schema=schema, purpose="doctor", session=_SESSION), deadline_s=limits.statement_s)
    try:
        try:
            version = await _version(dsn, schema, limits)
        except DatabaseError as error:
            told = explain(error, dsn)
            seen = str(told).removesuffix(f" ({told.hint})")
            return [Finding("connection", Verdict.FAILING, seen, told.hint or "")]
        patient = Patient(settings=settings, store=Store(schema), on=link, limits=limits, clock=clock, version=version)
        found = []
        for name, examination in (_SERVER | ({} if version == 0 else _INSTALLATION)).items():
            found += await _examined(name, examination, patient, min(limits.examination_s, ends_at - time.monotonic()))
        return found
    finally:
        link.close()


async def _version(dsn: str, schema: str, limits: Limits) -> int | None:
    """Return the schema's version: 0 without one, None if this login may not see it. Raises DatabaseError."""
    connection = await connect(dsn, schema=schema, purpose="doctor", session=_SESSION)
    try:
        async with asyncio.timeout(limits.statement_s):
            return await applied_version(connection, schema)
    except DatabaseUnavailable:
        return None
    finally:
        connection.terminate()


def worst(findings: list[Finding]) -> Verdict:
    """Return the worst verdict among them."""
    return max((finding.verdict for finding in findings), key=list(Verdict).index, default=Verdict.OK)


async def _examined(name: str, examination: Examination, patient: Patient, seconds: float) -> list[Finding]:
    if seconds <= 0:
        return [Finding(name, Verdict.NOTE, "not seen: the examinations before it took too long", "Try again.")]
    try:
        async with asyncio.timeout(seconds):
            return await examination(patient)
    except asyncpg.InsufficientPrivilegeError as error:
        todo = f'GRANT "{patient.schema}_observer" TO this login, to see it.'
        return [Finding(name, Verdict.NOTE, f"not seen: {error.args[0]}", todo)]
    except (TimeoutError, asyncpg.QueryCanceledError):
        return [
            Finding(
                name,
                Verdict.WARNING,
                f"not seen: no answer within {min(seconds, patient.limits.statement_s):.0f} s",
                "Try again.",
            )
        ]
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.UndefinedFunctionError) as error:
        return [Finding(name, Verdict.WARNING, f"not seen: {error.args[0]}", "See schema and drift.")]
    except DatabaseError as error:
        return [Finding(name, Verdict.WARNING, f"not seen: {brief(error)}")]
