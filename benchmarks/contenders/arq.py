"""arq, on Redis."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from benchmarks.contender import Contender
from benchmarks.protocol import Env, Insert, OnRun

JOBS = 100
POLL_S = 0.01

CONTENDERS = [
    Contender(
        name="arq",
        title="arq",
        module="arq",
        runtime="peers",
        package="arq",
        venv=".venv-arq",  # it needs an older client of Redis than Celery
        broker="redis",
        unsettled=(("ZCARD", "arq:queue"),),
        settings=f"max_jobs {JOBS}, polls every {POLL_S * 1000:.0f} ms (default 500), results not kept",
        durability="Redis AOF, fsync each second: the last second may be lost; a dead worker's jobs go on after job_timeout (5 min)",
        at_most=40_000,
    )
]


@contextlib.asynccontextmanager
async def _pool(env: Env):  # noqa: ANN202
    from arq import create_pool
    from arq.connections import RedisSettings

    pool = await create_pool(RedisSettings.from_dsn(env.redis))
    try:
        yield pool
    finally:
        await pool.aclose()


async def prepare(_env: Env) -> None:
    """Redis needs nothing."""


async def fill(env: Env) -> None:
    async with _pool(env) as pool:
        for begin in range(0, env.count, 50):
            await asyncio.gather(*(pool.enqueue_job("bench", 0) for _ in range(min(50, env.count - begin))))


@contextlib.asynccontextmanager
async def worker(env: Env, on_run: OnRun) -> AsyncIterator[None]:
    from arq import Worker, func
    from arq.connections import RedisSettings

    async def bench(_context: dict, t: int) -> None:
        on_run(t)

    made = Worker(
        functions=[func(bench, name="bench")],
        redis_settings=RedisSettings.from_dsn(env.redis),
        max_jobs=JOBS,
        poll_delay=POLL_S,
        keep_result=0,
        log_results=False,
        handle_signals=False,
    )
    running = asyncio.ensure_future(made.async_run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait([running], timeout=5)
        await made.close()


@contextlib.asynccontextmanager
async def producer(env: Env) -> AsyncIterator[Insert]:
    async with _pool(env) as pool:

        async def insert(stamp: int) -> None:
            await pool.enqueue_job("bench", stamp)

        yield insert
