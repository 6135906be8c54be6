"""Ourselves, as a user runs us: `notifyworker worker`, everything on."""

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable

import asyncpg

from benchmarks.contender import Contender
from benchmarks.protocol import Env, Insert, OnRun
from benchmarks.tally import Tally
from notifyworker import Run, Worker

KIND = "bench"
#: Overridden by NOTIFYWORKER_CONCURRENCY and the like, as everywhere.
SETTINGS = {"concurrency": 500, "port": 0}


def _contender(processes: int) -> Contender:
    return Contender(
        name="us" if processes == 1 else f"us-x{processes}",
        title="notifyworker" if processes == 1 else f"notifyworker, {processes} processes",
        module="us",
        runtime="ours",
        package="notifyworker",
        unsettled="SELECT EXISTS (SELECT FROM notifyworker.runs)",
        settings="concurrency 500; leases, heartbeats, presence, history, metrics, HTTP sidecar, logs at info",
        durability="commit on disk before the insert returns; a dead worker's runs are taken over; settled once, fenced",
        takes=("drain", "pickup", "load") if processes == 1 else ("drain",),
        rates=(100, 1000, 5000) if processes == 1 else (),
        processes=processes,
    )


CONTENDERS = [_contender(1), _contender(2), _contender(4)]

FILL = "INSERT INTO notifyworker.runs (kind, payload) SELECT $1, '{\"t\": 0}' FROM generate_series(1, $2)"
INSERT = "INSERT INTO notifyworker.runs (kind, payload) VALUES ($1, $2)"


def _cli(env: Env, *arguments: str) -> None:
    environment = os.environ | {"NOTIFYWORKER_DSN": env.dsn}
    os.execve(sys.executable, [sys.executable, "-m", "notifyworker", *arguments], environment)  # the last line is its own


async def prepare(env: Env) -> None:
    _cli(env, "migrate", "--json")


async def fill(env: Env) -> None:
    conn = await asyncpg.connect(env.dsn)
    await conn.execute(FILL, KIND, env.count)
    await conn.close()


def make_worker(on_run: OnRun | None = None, **settings: object) -> Worker:
    """What `notifyworker worker benchmarks.contenders.us:make_worker` runs."""
    counted: Callable[[int], None] = on_run or Tally(os.environ["BENCH_DIR"]).run
    worker = Worker(os.environ["BENCH_DSN"], **(SETTINGS | settings))

    @worker.handler(KIND)
    async def bench(_run: Run, payload: dict) -> None:
        counted(payload["t"])

    return worker


def work(env: Env) -> None:
    _cli(env, "worker", "benchmarks.contenders.us:make_worker")


@contextlib.asynccontextmanager
async def worker(_env: Env, on_run: OnRun) -> AsyncIterator[None]:
    """In the producer's process, for pickup: as inside a host, but with the sidecar."""
    async with make_worker(on_run, sidecar=True):
        yield


@contextlib.asynccontextmanager
async def producer(env: Env) -> AsyncIterator[Insert]:
    conn = await asyncpg.connect(env.dsn)
    statement = await conn.prepare(INSERT)

    async def insert(stamp: int) -> None:
        await statement.fetch(KIND, f'{{"t": {stamp}}}')

    try:
        yield insert
    finally:
        await conn.close()
