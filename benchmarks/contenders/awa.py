"""Awa from Python: its runtime is Rust, its handlers are Python coroutines."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from benchmarks.contender import Contender
from benchmarks.protocol import Env, Insert, OnRun

SLOTS = 256

CONTENDERS = [
    Contender(
        name="awa",
        title="Awa",
        module="awa",
        runtime="peers",
        package="awa-pg",
        unsettled="SELECT EXISTS (SELECT FROM awa.jobs WHERE state IN ('available', 'running', 'retryable', 'scheduled'))",
        settings=f"queue storage, {SLOTS} slots, claims and completions in batches of 512 (its defaults)",
        durability="commit on disk before insert returns; a dead worker's jobs are rescued; finished jobs are kept for a day",
        takes=("drain", "pickup", "load"),
        rates=(100, 1000),
    )
]


@dataclass
class Bench:
    t: int


@contextlib.asynccontextmanager
async def _client(env: Env):  # noqa: ANN202
    import awa

    client = awa.AsyncClient(env.dsn)
    try:
        yield client
    finally:
        await client.close()


async def prepare(env: Env) -> None:
    async with _client(env) as client:
        await client.migrate()
        await client.install_queue_storage(schema="awa")


async def fill(env: Env) -> None:
    async with _client(env) as client:
        for begin in range(0, env.count, 5000):
            await client.enqueue_many_copy([Bench(0)] * min(5000, env.count - begin), queue="bench")


@contextlib.asynccontextmanager
async def worker(env: Env, on_run: OnRun) -> AsyncIterator[None]:
    async with _client(env) as client:

        @client.task(Bench, queue="bench")
        async def bench(job) -> None:  # noqa: ANN001
            on_run(job.args.t)

        await client.start([("bench", SLOTS)])
        try:
            yield
        finally:
            await client.shutdown()


@contextlib.asynccontextmanager
async def producer(env: Env) -> AsyncIterator[Insert]:
    async with _client(env) as client:

        async def insert(stamp: int) -> None:
            await client.insert(Bench(stamp), queue="bench")

        yield insert
