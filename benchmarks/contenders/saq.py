"""SAQ, on Redis."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from benchmarks.contender import Contender
from benchmarks.protocol import Env, Insert, OnRun

CONCURRENCY = 20

CONTENDERS = [
    Contender(
        name="saq",
        title="SAQ",
        module="saq",
        runtime="peers",
        package="saq",
        broker="redis",
        unsettled=(("ZCARD", "saq:bench:incomplete"),),
        settings=f"concurrency {CONCURRENCY}, blocking pops, hiredis, results not kept",
        durability="Redis AOF, fsync each second: the last second may be lost; a dead worker's jobs are swept after their timeout",
        at_most=40_000,
    )
]


@contextlib.asynccontextmanager
async def _queue(env: Env):  # noqa: ANN202
    from saq import Queue

    logging.disable(logging.WARNING)
    queue = Queue.from_url(env.redis, name="bench")
    await queue.connect()
    try:
        yield queue
    finally:
        await queue.disconnect()


async def prepare(_env: Env) -> None:
    """Redis needs nothing."""


async def fill(env: Env) -> None:
    async with _queue(env) as queue:
        for begin in range(0, env.count, 50):
            await asyncio.gather(*(queue.enqueue("bench", t=0, ttl=-1) for _ in range(min(50, env.count - begin))))


@contextlib.asynccontextmanager
async def worker(env: Env, on_run: OnRun) -> AsyncIterator[None]:
    from saq import Worker

    async def bench(_context: dict, *, t: int) -> None:
        on_run(t)

    async with _queue(env) as queue:
        made = Worker(queue, functions=[("bench", bench)], concurrency=CONCURRENCY)
        made.SIGNALS = []  # the harness's process handles them
        running = asyncio.ensure_future(made.start())
        try:
            yield
        finally:
            await asyncio.wait_for(made.stop(), 5)
            running.cancel()
            await asyncio.wait([running], timeout=5)


@contextlib.asynccontextmanager
async def producer(env: Env) -> AsyncIterator[Insert]:
    async with _queue(env) as queue:

        async def insert(stamp: int) -> None:
            await queue.enqueue("bench", t=stamp, ttl=-1)

        yield insert
