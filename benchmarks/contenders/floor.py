"""The floor: what asyncpg and PostgreSQL do when nothing is promised. Claim 100, settle 100, four connections, a narrow row."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import asyncpg

from benchmarks.contender import Contender
from benchmarks.protocol import Env, Insert, OnRun
from benchmarks.tally import Tally

CONNECTIONS = 4
BATCH = 100

CONTENDERS = [
    Contender(
        name="floor",
        title="floor (bare asyncpg loop)",
        module="floor",
        runtime="ours",
        package="asyncpg",
        unsettled="SELECT EXISTS (SELECT FROM floor WHERE state <> 2)",
        settings=f"{CONNECTIONS} connections, claim {BATCH}, settle {BATCH}, narrow row, no lease, no history, no retry",
        durability="commit on disk before the insert returns; a crash of the worker loses what it had claimed",
        takes=("drain", "pickup", "load"),
        rates=(100, 1000),
    )
]

SCHEMA = """
CREATE TABLE floor (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, state smallint NOT NULL DEFAULT 0, stamp bigint NOT NULL);
CREATE INDEX floor_ready ON floor (id) WHERE state = 0;
"""
TRIGGER = """
CREATE FUNCTION floor_wake() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_notify(''floor'', ''''); RETURN NULL; END';
CREATE TRIGGER wake AFTER INSERT ON floor FOR EACH STATEMENT EXECUTE FUNCTION floor_wake();
"""
FILL = "INSERT INTO floor (stamp) SELECT 0 FROM generate_series(1, $1)"
INSERT = "INSERT INTO floor (stamp) VALUES ($1)"
CLAIM = f"""
UPDATE floor SET state = 1
 WHERE id = ANY (ARRAY(SELECT id FROM floor WHERE state = 0 ORDER BY id LIMIT {BATCH} FOR UPDATE SKIP LOCKED))
RETURNING id, stamp"""
SETTLE = "UPDATE floor SET state = 2 WHERE id = ANY ($1)"


async def prepare(env: Env, trigger: str = TRIGGER) -> None:
    async with connected(env) as conn:
        await conn.execute(SCHEMA + trigger)


async def fill(env: Env) -> None:
    async with connected(env) as conn:
        await conn.execute(FILL, env.count)


@contextlib.asynccontextmanager
async def connected(env: Env) -> AsyncIterator[asyncpg.Connection]:
    conn = await asyncpg.connect(env.dsn)
    try:
        yield conn
    finally:
        await conn.close()


@contextlib.asynccontextmanager
async def worker(env: Env, on_run: OnRun) -> AsyncIterator[None]:
    """Every connection claims when it is woken, and goes on as long as it finds something."""
    wake = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        listener = await stack.enter_async_context(connected(env))
        await listener.add_listener("floor", lambda *_: wake.set())
        conns = [await stack.enter_async_context(connected(env)) for _ in range(CONNECTIONS)]
        async with looping(_loop(conn, wake, on_run) for conn in conns):
            yield


@contextlib.asynccontextmanager
async def looping(loops) -> AsyncIterator[None]:  # noqa: ANN001
    tasks = [asyncio.ensure_future(loop) for loop in loops]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _loop(conn: asyncpg.Connection, wake: asyncio.Event, on_run: OnRun) -> None:
    claim, settle = await conn.prepare(CLAIM), await conn.prepare(SETTLE)
    while True:
        wake.clear()
        while await batch(claim, settle, on_run):
            pass
        await wake.wait()


async def batch(claim, settle, on_run: OnRun) -> bool:  # noqa: ANN001
    """One claim and its settle. Without stamps, as in a drain, the runs are counted at once: no handler is so cheap."""
    rows = await claim.fetch()
    if not rows:
        return False
    tally = getattr(on_run, "__self__", None)
    if isinstance(tally, Tally) and not rows[0]["stamp"]:
        tally.runs(len(rows))
    else:
        for row in rows:
            on_run(row["stamp"])
    await settle.fetch([row["id"] for row in rows])
    return True


@contextlib.asynccontextmanager
async def producer(env: Env) -> AsyncIterator[Insert]:
    async with connected(env) as conn:
        statement = await conn.prepare(INSERT)
        yield statement.fetch
