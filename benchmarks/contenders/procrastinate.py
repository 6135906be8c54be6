"""Procrastinate, on psycopg's pool."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from benchmarks.contender import Contender
from benchmarks.protocol import Env, Insert, OnRun

CONCURRENCY = 30

CONTENDERS = [
    Contender(
        name="procrastinate",
        title="Procrastinate",
        module="procrastinate",
        runtime="peers",
        package="procrastinate",
        unsettled="SELECT EXISTS (SELECT FROM procrastinate_jobs WHERE status IN ('todo', 'doing'))",
        settings=f"concurrency {CONCURRENCY}, psycopg pool of 10, finished jobs deleted",
        durability="commit on disk before defer returns; a dead worker's jobs wait until the application retries stalled jobs",
        takes=("drain", "pickup", "load"),
        rates=(100,),
    )
]


@contextlib.asynccontextmanager
async def _app(env: Env, on_run: OnRun | None = None):  # noqa: ANN202
    import procrastinate

    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=env.dsn, min_size=1, max_size=10))

    @app.task(name="bench", queue="bench")
    async def bench(t: int) -> None:
        if on_run is not None:
            on_run(t)

    async with app.open_async():
        yield app, bench


async def prepare(env: Env) -> None:
    async with _app(env) as (app, _task):
        await app.schema_manager.apply_schema_async()


async def fill(env: Env) -> None:
    async with _app(env) as (_, task):
        for begin in range(0, env.count, 5000):
            await task.batch_defer_async(*({"t": 0} for _ in range(min(5000, env.count - begin))))


@contextlib.asynccontextmanager
async def worker(env: Env, on_run: OnRun) -> AsyncIterator[None]:
    async with _app(env, on_run) as (app, _task):
        running = asyncio.ensure_future(
            app.run_worker_async(queues=["bench"], concurrency=CONCURRENCY, delete_jobs="always", install_signal_handlers=False)
        )
        try:
            yield
        finally:
            running.cancel()
            await asyncio.wait([running], timeout=5)


@contextlib.asynccontextmanager
async def producer(env: Env) -> AsyncIterator[Insert]:
    async with _app(env) as (_, task):

        async def insert(stamp: int) -> None:
            await task.defer_async(t=stamp)

        yield insert
