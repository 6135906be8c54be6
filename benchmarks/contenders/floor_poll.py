"""The floor's table with no trigger at all, and a claim loop that looks every 5 ms: what waking is measured against."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import asyncpg

from benchmarks.contender import Contender
from benchmarks.contenders import floor
from benchmarks.contenders.floor import fill, producer  # noqa: F401 - part of the protocol
from benchmarks.protocol import Env, OnRun

POLL_S = 0.005

CONTENDERS = [
    Contender(
        name="floor-poll",
        title="floor that polls every 5 ms",
        module="floor_poll",
        runtime="ours",
        package="asyncpg",
        unsettled="SELECT EXISTS (SELECT FROM floor WHERE state <> 2)",
        settings="the floor's table with no trigger; one connection looks every 5 ms, and goes on while it finds something",
        durability="as the floor's",
        takes=("pickup", "load"),
        rates=(100, 1000, 5000),
    )
]


async def prepare(env: Env) -> None:
    await floor.prepare(env, trigger="")


@contextlib.asynccontextmanager
async def worker(env: Env, on_run: OnRun) -> AsyncIterator[None]:
    async with floor.connected(env) as conn, floor.looping([_loop(conn, on_run)]):
        yield


async def _loop(conn: asyncpg.Connection, on_run: OnRun) -> None:
    claim, settle = await conn.prepare(floor.CLAIM), await conn.prepare(floor.SETTLE)
    while True:
        while await floor.batch(claim, settle, on_run):
            pass
        await asyncio.sleep(POLL_S)
