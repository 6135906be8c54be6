"""
What every contender's process understands: `python -m benchmarks.protocol MODULE VERB`, with BENCH_* in the environment.

    prepare   make tables, and whatever else the contender wants before its first run
    fill      put BENCH_COUNT runs in the queue, as its documentation does for many
    work      execute runs until SIGTERM, counting them in a tally (see tally.py)
    pickup    be a worker and a producer in one process: BENCH_COUNT lone inserts, one after the other
    produce   BENCH_RATE inserts a second for BENCH_SECONDS, each one a statement of its own

The last line on stdout is one JSON document. A contender's module offers

    CONTENDERS                        what it is, see contender.py
    async prepare(env), fill(env)
    worker(env, on_run)               async context manager: works while the block lasts, calls on_run(stamp) in its handler
    producer(env)                     async context manager: yields `insert(stamp)`
    work(env)                         instead of `worker` for the verb work, where workers are a command of their own
    async pickup(env)                 instead of the common one, where worker and producer can't share a process

The scripts of Node contenders do the same, see contenders/protocol.mjs.
"""

import asyncio
import importlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from benchmarks.tally import Tally

OnRun = Callable[[int], None]
Insert = Callable[[int], Awaitable[Any]]
WARM_UP = 20
LOST_S = 10.0  # an insert that is picked up no sooner counts as lost


@dataclass(frozen=True)
class Env:
    """What the harness says to a contender's process."""

    dsn: str = field(default_factory=lambda: os.environ.get("BENCH_DSN", ""))
    redis: str = field(default_factory=lambda: os.environ.get("BENCH_REDIS", ""))
    directory: str = field(default_factory=lambda: os.environ.get("BENCH_DIR", "."))
    count: int = field(default_factory=lambda: int(os.environ.get("BENCH_COUNT", "0")))
    rate: int = field(default_factory=lambda: int(os.environ.get("BENCH_RATE", "0")))
    seconds: float = field(default_factory=lambda: float(os.environ.get("BENCH_SECONDS", "0")))


def run(main: Awaitable[Any]) -> Any:
    """Run on uvloop where it is installed: for us, the floor and the peers alike."""
    try:
        import uvloop
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop

    async def awaited() -> Any:
        return await main

    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(awaited())


async def until_told() -> None:
    """Return at SIGTERM."""
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    await told.wait()


async def _work(module: ModuleType, env: Env) -> None:
    async with module.worker(env, Tally(env.directory).run):
        await until_told()


async def _pickup(module: ModuleType, env: Env) -> list[float]:
    """Lone inserts: the next is made when the last has been picked up and the worker is idle again."""
    picked: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def on_run(stamp: int) -> None:
        took = time.monotonic_ns() - stamp
        loop.call_soon_threadsafe(picked.put_nowait, took)  # a peer may call its handlers in a thread

    async with module.worker(env, on_run), module.producer(env) as insert:
        await asyncio.sleep(1.0)
        return await lone(insert, picked, env.count)


async def lone(insert: Insert, picked: "asyncio.Queue[int]", count: int) -> list[float]:
    """Milliseconds from the call of insert until what the handler put in the queue."""
    chance = random.Random(1)
    latencies = []
    for number in range(WARM_UP + count):
        await insert(time.monotonic_ns())
        took = await asyncio.wait_for(picked.get(), LOST_S)
        if number >= WARM_UP:
            latencies.append(took / 1e6)
        await asyncio.sleep(chance.uniform(0.010, 0.030))
    return latencies


async def _produce(module: ModuleType, env: Env) -> dict[str, float]:
    """Inserts on a schedule, from as many connections as it takes; the stamp is when the insert was called."""
    producers = max(1, min(32, env.rate // 50))
    sent = 0
    begin = time.monotonic()

    async def one(place: int) -> None:
        nonlocal sent
        async with module.producer(env) as insert:
            due = begin + 0.5 + place / env.rate
            while (now := time.monotonic()) < begin + 0.5 + env.seconds:
                if due > now:
                    await asyncio.sleep(due - now)
                await insert(time.monotonic_ns())
                sent += 1
                due += producers / env.rate

    await asyncio.gather(*(one(place) for place in range(producers)))
    return {"inserts_per_s": sent / (time.monotonic() - begin - 0.5), "inserts": sent}


def main() -> None:
    name, verb = sys.argv[1:]
    module = importlib.import_module(f"benchmarks.contenders.{name}")
    env = Env()
    if verb in {"prepare", "fill"}:
        run(getattr(module, verb)(env))
        said: Any = {}
    elif verb == "work":
        said = module.work(env) if hasattr(module, "work") else run(_work(module, env))
    elif verb == "pickup":
        said = {"latencies_ms": run(module.pickup(env) if hasattr(module, "pickup") else _pickup(module, env))}
    else:
        said = run(_produce(module, env))
    print(json.dumps(said or {}), flush=True)


if __name__ == "__main__":
    main()
