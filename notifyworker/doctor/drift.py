"""
What the schema is, against what the migrations make of it.

The migrations themselves are the description: they are executed once more under another name, in a transaction that is
rolled back, and the catalogs' rows about both are compared. So the same server words both, of whatever version it is.
"""

import asyncio
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from notifyworker.database import SEARCH_PATH, Connection, connect
from notifyworker.doctor.finding import Finding, Patient, Verdict
from notifyworker.migrate import migrations, newest, render
from notifyworker.store import Row

_MOST = 20
#: How bad it is that something is missing, and that it differs.
_VERDICTS = {
    "table": (Verdict.FAILING, Verdict.FAILING),
    "column": (Verdict.FAILING, Verdict.WARNING),
    "not null": (Verdict.WARNING, Verdict.WARNING),
    "default": (Verdict.FAILING, Verdict.WARNING),
    "constraint": (Verdict.FAILING, Verdict.WARNING),
    "unique index": (Verdict.FAILING, Verdict.WARNING),
    "index": (Verdict.WARNING, Verdict.WARNING),
    "trigger": (Verdict.FAILING, Verdict.WARNING),
    "function": (Verdict.FAILING, Verdict.WARNING),
    "view": (Verdict.FAILING, Verdict.WARNING),
    "policy": (Verdict.FAILING, Verdict.WARNING),
    "row security": (Verdict.FAILING, Verdict.WARNING),
    "storage": (Verdict.NOTE, Verdict.NOTE),
    "grant": (Verdict.WARNING, Verdict.WARNING),
}


@dataclass(frozen=True, slots=True)
class Thing:
    """One object of a schema, in words that do not depend on the schema's name."""

    what: str
    name: str
    definition: str
    when_missing: str | None
    when_different: str | None


async def drift(patient: Patient) -> list[Finding]:
    """What is missing, differs, or is there besides, with the statement that mends it where there is one."""
    real = _things(await patient.store.describe(patient.on, patient.schema), patient.schema, patient.schema)
    faults = [thing for thing in real if thing.what == "fault"]
    try:
        made = await _made(patient)
    except _NotComparable as reason:
        seen = f"not seen: whether the schema is what the migrations make; {reason}"
        return [*(_fault(thing) for thing in faults), Finding("drift", Verdict.NOTE, seen, reason.todo)]
    known = {thing.name for thing in made if thing.what == "table"}
    faults = [thing for thing in faults if thing.when_missing or thing.name not in known]  # else its constraint is missing
    found = [*(_fault(thing) for thing in faults), *compared(real, made)]
    if len(found) > _MOST:
        rest = Finding(
            "drift", Verdict.NOTE, f"{len(found) - _MOST} more differences", "notifyworker doctor, once these are mended"
        )
        return [*found[:_MOST], rest]
    return found or [Finding("drift", Verdict.OK, "the schema is what the migrations make")]


def compared(real: Sequence[Thing], made: Sequence[Thing]) -> list[Finding]:
    """Compare two descriptions: the worst first."""
    roles = {thing.name for thing in real if thing.what == "role"}
    # Without CREATEROLE the copy has no roles, and so nothing that names one.
    told = (
        _VERDICTS
        if any(thing.what == "role" for thing in made)
        else _VERDICTS.keys() - {"grant", "policy", "row security", "view"}
    )
    there = {(thing.what, thing.name): thing for thing in real if thing.what in told}
    wanted = {(thing.what, thing.name): thing for thing in made if thing.what in told}
    missing = [thing for key, thing in wanted.items() if key not in there]
    missing = [thing for thing in missing if thing.what != "grant" or thing.definition in {*roles, "public"}]
    more = [thing for key, thing in there.items() if key not in wanted]
    # Of what is a part of something that is missing, or that nobody knows, nothing needs to be told.
    missing = [thing for thing in missing if not _belongs(thing, missing)]
    more = [thing for thing in more if not _belongs(thing, more)]
    found = [Finding("drift", _VERDICTS[t.what][0], f"missing: {t.what} {t.name}", _statement(t.when_missing)) for t in missing]
    found += [
        Finding("drift", _VERDICTS[thing.what][1], _difference(there[key], thing), _statement(thing.when_different))
        for key, thing in wanted.items()
        if key in there and there[key].definition != thing.definition
    ]
    found.sort(key=lambda finding: list(Verdict).index(finding.verdict), reverse=True)
    for thing in more:
        is_open = thing.what == "grant" and thing.definition == "public"  # whoever may execute it does what only roles should
        todo = _statement(thing.when_missing) if is_open else "If you made it, let it be; else drop it."
        verdict = Verdict.WARNING if is_open else Verdict.NOTE
        found.append(Finding("drift", verdict, f"not from a migration: {thing.what} {thing.name}", todo))
    return found


class _NotComparable(Exception):
    def __init__(self, reason: str, todo: str = "") -> None:
        super().__init__(reason)
        self.todo = todo


async def _made(patient: Patient) -> list[Thing]:
    """Describe what the migrations make, up to the version that this schema has."""
    if patient.version is None or patient.version > newest():
        message = "its version is not seen" if patient.version is None else "it is newer than this code"
        raise _NotComparable(message, "See schema.")
    copy = f"nwdoctor_{random.getrandbits(48):012x}"
    connection = await connect(
        patient.admin_dsn, schema=patient.schema, purpose="doctor", session={"statement_timeout": "5s", "lock_timeout": "1s"}
    )
    try:
        async with asyncio.timeout(patient.limits.examination_s):
            await connection.execute(f"BEGIN; SET LOCAL search_path = {SEARCH_PATH}; SET LOCAL client_min_messages = error")
            await _make(connection, patient, patient.version, copy)
            rows = await patient.store.describe(connection, copy)
            quoted = await connection.fetchval("SELECT quote_ident($1)", patient.schema)
            await connection.execute("ROLLBACK")
    except asyncpg.InsufficientPrivilegeError as error:
        todo = "Run it as the schema's owner, or with --admin-dsn of one who may create a schema."
        raise _NotComparable(error.args[0], todo) from None
    except asyncpg.ReadOnlySQLTransactionError:
        message = "the server is read-only"
        raise _NotComparable(message) from None
    finally:
        connection.terminate()
    return _things(rows, copy, patient.schema, quoted)


async def _make(connection: Connection, patient: Patient, version: int, copy: str) -> None:
    for migration in migrations():
        if migration.version <= version:
            await connection.execute(render(migration.text, patient.schema, copy=copy))
    # The settings are the installation's own, and one of them stands in a trigger.
    await connection.execute(
        f'UPDATE "{copy}".settings AS mine SET value = s.value FROM "{patient.schema}".settings AS s WHERE s.name = mine.name;'  # noqa: S608 - validated
        f'SELECT "{copy}".apply_settings();'
    )
    is_separated = "SELECT relrowsecurity FROM pg_class WHERE oid = to_regclass($1)"
    may_separate = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)"
    if await connection.fetchval(is_separated, f'"{patient.schema}".runs') and await connection.fetchval(
        may_separate, f"{copy}_worker"
    ):
        await connection.execute(f'SELECT "{copy}".separate_projects()')


def _things(rows: Sequence[Row], of: str, schema: str, quoted: str | None = None) -> list[Thing]:
    """Put the installation's name in the place of the copy's, and write it in one way."""

    def named(text: str | None) -> str:
        if quoted is not None:
            text = re.sub(rf'"?{of}"?(?=\.)', lambda _: quoted, text or "").replace(of, schema)
        return text or ""

    def bare(text: str | None) -> str:
        return named(text).replace(f'"{schema}"', schema)

    return [
        Thing(row["what"], bare(row["name"]), bare(row["definition"]), named(row["when_missing"]), named(row["when_different"]))
        for row in rows
    ]


def _belongs(thing: Thing, others: Sequence[Thing]) -> bool:
    """Say whether it is a part of one of the others, or a grant on it."""
    return any(_is_part(thing, other) for other in others if other is not thing)


def _is_part(thing: Thing, other: Thing) -> bool:
    if thing.what == "grant":
        on = thing.name.partition(" on ")[2]
        return other.what in {"table", "view", "function"} and on.startswith(
            (f"{other.what} {other.name} to ", f"table {other.name} to ", f"column {other.name}.")
        )
    if other.what == "column":
        return thing.what in {"not null", "default"} and thing.name == other.name
    if other.what == "table":  # an index names its table in its definition alone
        return thing.name == other.name or thing.name.startswith(f"{other.name}.") or f".{other.name} USING " in thing.definition
    return False


def _fault(thing: Thing) -> Finding:
    return Finding("drift", Verdict.WARNING, thing.definition, _statement(thing.when_missing))


def _difference(is_so: Thing, should: Thing) -> str:
    if "\n" in should.definition or len(should.definition) > 100:  # noqa: PLR2004 - one line
        return f"different: {should.what} {should.name}"
    return f"different: {should.what} {should.name} is {is_so.definition or 'nothing'!r}, made as {should.definition!r}"


def _statement(text: str | None) -> str:
    return f"{text.rstrip().rstrip(';')};" if text else "Its statement is in: notifyworker schema"
