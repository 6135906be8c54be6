"""Dramatiq on Redis: its worker's threads in one process."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator

from benchmarks.contender import Contender
from benchmarks.protocol import Env, Insert, OnRun

THREADS = 8

CONTENDERS = [
    Contender(
        name="dramatiq",
        title="Dramatiq",
        module="dramatiq",
        runtime="peers",
        package="dramatiq",
        broker="redis",
        unsettled=(("HLEN", "dramatiq:bench.msgs"),),
        settings=f"{THREADS} threads (its default), prefetch 256, no results",
        durability="Redis AOF, fsync each second: the last second may be lost; a dead worker's messages go on after a minute",
        environment={"dramatiq_queue_prefetch": "256"},
        at_most=40_000,
    )
]


def _actor(env: Env, on_run: OnRun | None = None):  # noqa: ANN202
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker

    logging.disable(logging.WARNING)
    broker = RedisBroker(url=env.redis)
    dramatiq.set_broker(broker)
    one_at_a_time = threading.Lock()

    @dramatiq.actor(actor_name="bench", queue_name="bench")
    def bench(t: int) -> None:
        if on_run is not None:
            with one_at_a_time:
                on_run(t)

    return broker, bench


async def prepare(_env: Env) -> None:
    """Redis needs nothing."""


async def fill(env: Env) -> None:
    _broker, actor = _actor(env)
    for _ in range(env.count):
        actor.send(0)


@contextlib.asynccontextmanager
async def worker(env: Env, on_run: OnRun) -> AsyncIterator[None]:
    import dramatiq

    broker, _ = _actor(env, on_run)
    running = dramatiq.Worker(broker, worker_threads=THREADS)
    running.start()
    try:
        yield
    finally:
        await asyncio.to_thread(running.stop, 5000)


@contextlib.asynccontextmanager
async def producer(env: Env) -> AsyncIterator[Insert]:
    import dramatiq

    try:  # the worker's own, where it runs in this process
        actor = dramatiq.get_broker().get_actor("bench")
    except dramatiq.errors.ActorNotFound:
        _broker, actor = _actor(env)

    async def insert(stamp: int) -> None:
        actor.send(stamp)

    yield insert
