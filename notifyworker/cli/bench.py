"""The command that measures a worker on the user's own database."""

import asyncio
import contextlib
import secrets
import statistics
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from notifyworker.cli import output
from notifyworker.cli.options import NO_DATABASE_OPTIONS, DatabaseOptions, Json

if TYPE_CHECKING:
    from notifyworker.database import Connection
    from notifyworker.run import Run

_KIND = "bench"
_GAP_S = 0.02  # between lone inserts: long enough for a worker to be idle again
_LOOK_S = 0.005
_FILL_S = 600


async def bench(
    *,
    runs: Annotated[int, Parameter(help="Runs to drain [default: 20000].", validator=Number(gte=100, lte=10_000_000))] = 20_000,
    inserts: Annotated[
        int, Parameter(help="Lone inserts to pick up [default: 200].", validator=Number(gte=10, lte=100_000))
    ] = 200,
    concurrency: Annotated[int, Parameter(help="Of the worker [default: 800].", validator=Number(gte=1, lte=10_000))] = 800,
    json: Json = False,
    database: DatabaseOptions = NO_DATABASE_OPTIONS,
) -> None:
    """
    Measure one worker on your database, with handlers that do nothing.

    In a schema and with roles of its own, which are removed at the end. Another load of the server is in the figures.
    """
    from notifyworker.cli.database import admin_dsn

    settings = database.load()
    schema = f"notifyworker_bench_{secrets.token_hex(4)}"
    async with _installed(admin_dsn(settings), schema):
        found = await _measured(settings.require_dsn(), schema, runs=runs, inserts=inserts, concurrency=concurrency)
    if json:
        output.document(found)
        return
    output.line(f"drain    {runs:,} runs in {found['drain_s']:.2f} s: {found['runs_per_s']:,.0f} runs/s")
    output.line(
        f"pickup   insert call to handler, worker idle: p50 {found['pickup_p50_ms']:.2f} ms, p99 {found['pickup_p99_ms']:.2f} ms"
    )
    output.line(f"insert   of these, the insert itself: p50 {found['insert_p50_ms']:.2f} ms")


@contextlib.asynccontextmanager
async def _installed(dsn: str, schema: str) -> AsyncIterator[None]:
    """Migrate into a schema of our own, and take it out again with its roles, whatever happens."""
    from notifyworker.migrate import migrate, remove

    await migrate(dsn, schema)
    try:
        yield
    finally:
        await asyncio.shield(asyncio.ensure_future(_taken_out(dsn, schema, remove)))


async def _taken_out(dsn: str, schema: str, remove: Any) -> None:
    import asyncpg

    from notifyworker.migrate import open_or_explain

    await remove(dsn, schema)
    connection = await open_or_explain(dsn, schema, "bench")
    try:
        for name in ("producer", "worker", "operator", "observer"):
            await connection.execute(f"DROP ROLE IF EXISTS {schema}_{name}")
    except asyncpg.InsufficientPrivilegeError as error:
        output.say(f"the roles {schema}_* are left: {error.args[0]}")
    finally:
        connection.terminate()


async def _measured(dsn: str, schema: str, *, runs: int, inserts: int, concurrency: int) -> dict[str, float]:
    from notifyworker.lifespan import Worker
    from notifyworker.migrate import open_or_explain

    worker = Worker(dsn, schema=schema, concurrency=concurrency, sidecar=False)
    starts: list[float] = []
    started = asyncio.Event()

    @worker.handler(_KIND)
    async def nothing(_run: "Run") -> None:
        starts.append(time.perf_counter())
        started.set()

    connection = await open_or_explain(dsn, schema, "bench")
    try:
        with output.busy(f"inserting {runs:,} runs"):
            insert = f'INSERT INTO "{schema}".runs (kind) SELECT $1 FROM generate_series(1, $2::integer)'  # noqa: S608 - ours
            await connection.execute(insert, _KIND, runs, timeout=_FILL_S)
        async with worker:
            left = f'SELECT EXISTS (SELECT FROM "{schema}".runs)'  # noqa: S608 - ours
            with output.bar("draining them", runs) as done:
                while await connection.fetchval(left):
                    done(len(starts))
                    await asyncio.sleep(_LOOK_S)
                drain_s = time.perf_counter() - starts[0]
            with output.busy(f"inserting {inserts:,} runs, one by one"):
                pickups, calls = await _picked_up(connection, schema, starts, started, inserts)
    finally:
        connection.terminate()
    return {
        "runs": runs,
        "drain_s": drain_s,
        "runs_per_s": runs / drain_s,
        "pickup_p50_ms": statistics.median(pickups) * 1000,
        "pickup_p99_ms": statistics.quantiles(pickups, n=100)[98] * 1000,
        "insert_p50_ms": statistics.median(calls) * 1000,
    }


async def _picked_up(
    connection: "Connection", schema: str, starts: list[float], started: asyncio.Event, inserts: int
) -> tuple[list[float], list[float]]:
    """Insert one run after the other; return from the call to the handler, and the call itself, in seconds."""
    insert = f'INSERT INTO "{schema}".runs (kind) VALUES ($1)'  # noqa: S608 - ours
    pickups, calls = [], []
    for _ in range(inserts):
        await asyncio.sleep(_GAP_S)
        started.clear()
        began = time.perf_counter()
        await connection.execute(insert, _KIND)
        calls.append(time.perf_counter() - began)
        await started.wait()
        pickups.append(starts[-1] - began)
    return pickups, calls
