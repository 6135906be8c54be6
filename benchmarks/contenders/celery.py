"""Celery on Redis, set as its guide to optimizing says for many short tasks; its threads were its fastest pool here."""

import asyncio
import contextlib
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks.contender import Contender
from benchmarks.protocol import LOST_S, Env, Insert, lone
from benchmarks.tally import HEAD, Tally

THREADS = 8

CONTENDERS = [
    Contender(
        name="celery",
        title="Celery",
        module="celery",
        runtime="peers",
        package="celery",
        broker="redis",
        unsettled=(("LLEN", "celery"), ("HLEN", "unacked")),
        settings=f"{THREADS} threads, prefetch 128 each, results ignored, no gossip, mingle, heartbeat or events",
        durability="Redis AOF, fsync each second: the last second may be lost; acknowledged early: a dead worker loses what it executes",
        measured="insert in one process, handler in another",
        at_most=20_000,
    )
]


def app(env: Env):  # noqa: ANN201
    import celery

    made = celery.Celery("bench", broker=env.redis)
    made.conf.update(
        task_ignore_result=True,
        worker_prefetch_multiplier=128,
        worker_disable_rate_limits=True,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
    )

    tally: list[Tally] = []  # made where a task is executed, so by workers only
    one_at_a_time = threading.Lock()

    @made.task(name="bench")
    def bench(t: int) -> None:
        with one_at_a_time:
            if not tally:
                tally.append(Tally(env.directory))
            tally[0].run(t)

    return made


async def prepare(_env: Env) -> None:
    """Redis needs nothing."""


async def fill(env: Env) -> None:
    made = app(env)
    task = made.tasks["bench"]
    with made.producer_pool.acquire(block=True) as held:
        for _ in range(env.count):
            task.apply_async((0,), producer=held)


def work(env: Env) -> None:
    logging.disable(logging.WARNING)
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=ERROR"]
    app(env).worker_main(["worker", "--pool=threads", f"--concurrency={THREADS}", *quiet])


@contextlib.asynccontextmanager
async def producer(env: Env) -> AsyncIterator[Insert]:
    made = app(env)
    task = made.tasks["bench"]
    with made.producer_pool.acquire(block=True) as held:

        async def insert(stamp: int) -> None:
            task.apply_async((stamp,), producer=held)

        yield insert


async def pickup(env: Env) -> list[float]:
    return await across(env, "celery", producer)


async def across(env: Env, module: str, make_producer) -> list[float]:  # noqa: ANN001
    """The pickup where the handler runs in another process: what its tally says is read here."""
    command = [sys.executable, "-m", "benchmarks.protocol", module, "work"]
    worker = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    picked: asyncio.Queue[int] = asyncio.Queue()
    reading = asyncio.ensure_future(_read(Path(env.directory), picked))
    try:
        async with make_producer(env) as insert:
            await insert(1)  # a stamp of the machine's start: answered when the worker is up
            await asyncio.wait_for(picked.get(), 3 * LOST_S)
            await asyncio.sleep(1)
            return await lone(insert, picked, env.count)
    finally:
        reading.cancel()
        worker.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(5)


async def _read(directory: Path, picked: "asyncio.Queue[int]") -> None:
    """Hand on each latency that the worker has written."""
    seen: dict[Path, int] = {}
    while True:
        for path in directory.glob("tally.*"):
            with path.open("rb") as file:
                head = memoryview(file.read(8 * HEAD)).cast("q")
                for number in range(seen.get(path, 0), head[2]):
                    file.seek(8 * (HEAD + number))
                    picked.put_nowait(int.from_bytes(file.read(8), sys.byteorder))
                    seen[path] = number + 1
        await asyncio.sleep(0.002)
