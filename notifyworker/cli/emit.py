"""`notifyworker emit`: what has happened outside, for runs that wait for it."""

import sys
from typing import Annotated

from cyclopts import Parameter

from notifyworker.cli import output
from notifyworker.cli.options import NO_DATABASE_OPTIONS, DatabaseOptions, Json
from notifyworker.errors import InvalidRun

_HYPHEN = {"allow_leading_hyphen": True}  # refused for their values, not for their looks


async def emit(
    name: Annotated[str, Parameter(name="NAME", help="What has happened.")],
    payload: Annotated[str, Parameter(name="JSON", help="What the runs are given; - reads stdin.", **_HYPHEN)] = "null",
    /,
    *,
    run_id: Annotated[str | None, Parameter(help="For this run alone.", **_HYPHEN)] = None,
    key: Annotated[str | None, Parameter(help="For all that wait for this name and key.", **_HYPHEN)] = None,
    project_id: Annotated[str | None, Parameter(help="Of the key [default: default].", **_HYPHEN)] = None,
    keep_s: Annotated[
        float | None, Parameter(help="So long it is kept for who waits later [default: 7 days].", **_HYPHEN)
    ] = None,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """
    Tell runs that wait for it that something has happened. The first of a name and key, or of a run, counts.

    Prints whether it is the first: `emitted`, or `there is one already`.
    """
    from notifyworker import payload as payloads
    from notifyworker.cli.database import opened
    from notifyworker.emitting import emit as emit_it

    try:
        value = payloads.parse(sys.stdin.buffer.read() if payload == "-" else payload)
    except ValueError as error:
        raise InvalidRun("payload", str(error).replace("$", "payload", 1)) from None
    async with opened(database) as db:
        emitted = await emit_it(
            db.store, db.connection, name, value, run_id=run_id, key=key, project_id=project_id, keep_s=keep_s
        )
    if json:
        output.document({"emitted": emitted})
    else:
        output.line("emitted" if emitted else "there is one already")
