"""`notifyworker enqueue --wait`: until the run is settled."""

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import UUID

from notifyworker.cli import DONE, FAILED, output
from notifyworker.cli.live import Stopped, Watched, until_signalled
from notifyworker.cli.options import DatabaseOptions
from notifyworker.errors import RunNotFound
from notifyworker.pause import Backoff
from notifyworker.run import TERMINAL

if TYPE_CHECKING:
    from notifyworker.cli.database import Database

CANCELLED, NOT_SETTLED, INTERRUPTED = 5, 6, 130
_CODES = {"completed": DONE, "failed": FAILED, "cancelled": CANCELLED}
_LONGEST_PAUSE_S = 0.5


async def settled(database: DatabaseOptions, run_id: UUID, *, within_s: float | None, json: bool) -> int:
    """Wait, show progress meanwhile, print the result, and return the exit code that tells the outcome."""
    output.say(f"run {run_id}")
    run: dict[str, Any] = {}
    with output.progress("waiting") as told:
        try:
            async with until_signalled() as stop, asyncio.timeout(within_s), Watched(database, stop) as watched:
                await _wait(watched, run_id, run, told)
        except TimeoutError:
            output.say(f"not settled within {within_s:g} s: it is {run.get('state', 'not seen')}, and goes on")
            code = NOT_SETTLED
        except Stopped:
            output.say("no longer waited for; the run goes on")
            code = INTERRUPTED
        else:
            code = _CODES[run["state"]]
    if json:
        output.document(run)
    elif code == DONE:
        output.compact(run["result"])
    elif code in (FAILED, CANCELLED):
        output.say(_told(run))
    return code


async def _wait(watched: Watched, run_id: UUID, run: dict[str, Any], told: "output.Told") -> None:
    from notifyworker.given import as_dict

    async def look(db: "Database") -> Any:
        return await db.store.run_get(db.connection, run_id)

    backoff = Backoff(cap_s=_LONGEST_PAUSE_S)
    while True:
        row = await watched.ask(look)
        if row is None:
            raise RunNotFound(run_id)
        run.clear()
        run.update(as_dict(row))
        if run["state"] in TERMINAL:
            return
        told(_doing(run))
        await watched.pause(backoff.next_s())


def _doing(run: dict[str, Any]) -> str:
    parts = [str(run["state"])]
    if run["attempt"]:
        parts.append(f"attempt {run['attempt']} of {run['max_attempts'] or '-'}")
    if run["progress"] is not None:
        parts.append(output.cell(run["progress"]))
    return ", ".join(parts)


def _told(run: dict[str, Any]) -> str:
    errors = run["errors"] if isinstance(run["errors"], list) else []
    last = errors[-1] if errors else {}
    why = f": {run['error_code']} {last.get('message', '')}".rstrip() if run["state"] == "failed" else ""
    return output.printable(f"{run['state']} after {run['attempt']} attempt{'' if run['attempt'] == 1 else 's'}{why}")
