"""PgQueuer, on asyncpg and durable tables, with its own advice on autovacuum applied."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta

from benchmarks.contender import Contender
from benchmarks.protocol import Env, Insert, OnRun

CONSUMERS = 2
BATCH = 100

CONTENDERS = [
    Contender(
        name="pgqueuer",
        title="PgQueuer",
        module="pgqueuer",
        runtime="peers",
        package="pgqueuer",
        unsettled="SELECT EXISTS (SELECT FROM pgqueuer)",
        settings=f"{CONSUMERS} consumers, a connection each, batch {BATCH}, durable tables, pgq autovac",
        durability="commit on disk before enqueue returns; a dead worker's jobs go on after 30 s; finished jobs are logged",
        takes=("drain", "pickup", "load"),
        rates=(100, 1000),
    )
]


@contextlib.asynccontextmanager
async def _queries(env: Env):  # noqa: ANN202
    import asyncpg
    from pgqueuer.queries import Queries

    conn = await asyncpg.connect(env.dsn)
    try:
        yield Queries.from_asyncpg_connection(conn)
    finally:
        await conn.close()


async def prepare(env: Env) -> None:
    async with _queries(env) as queries:
        await queries.install()
        await queries.optimize_autovacuum()


async def fill(env: Env) -> None:
    async with _queries(env) as queries:
        for begin in range(0, env.count, 10_000):
            many = min(10_000, env.count - begin)
            await queries.enqueue(["bench"] * many, [b"0"] * many, [0] * many)


@contextlib.asynccontextmanager
async def worker(env: Env, on_run: OnRun) -> AsyncIterator[None]:
    from pgqueuer import PgQueuer

    async with contextlib.AsyncExitStack() as stack:
        consumers = []
        for _ in range(CONSUMERS):
            queries = await stack.enter_async_context(_queries(env))
            consumers.append(consumer := PgQueuer(queries.driver, queries=queries))

            @consumer.entrypoint("bench")
            async def bench(job) -> None:  # noqa: ANN001
                on_run(int(job.payload))

        running = [asyncio.ensure_future(c.run(batch_size=BATCH, dequeue_timeout=timedelta(seconds=10))) for c in consumers]
        try:
            yield
        finally:
            for consumer in consumers:
                consumer.shutdown.set()
            await asyncio.wait(running, timeout=5)


@contextlib.asynccontextmanager
async def producer(env: Env) -> AsyncIterator[Insert]:
    async with _queries(env) as queries:

        async def insert(stamp: int) -> None:
            await queries.enqueue("bench", str(stamp).encode())

        yield insert
