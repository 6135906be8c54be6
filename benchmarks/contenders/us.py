"""Ourselves, as a user runs us: `notifyworker worker`, everything on."""

import asyncio
import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable

import asyncpg

from benchmarks.contender import Contender
from benchmarks.protocol import Env, Insert, OnRun
from benchmarks.tally import Tally
from notifyworker import Run, Worker

KIND = "bench"
#: Overridden by NOTIFYWORKER_CONCURRENCY and the like, as everywhere.
SETTINGS = {"concurrency": 800, "port": 0}


def _contender(processes: int) -> Contender:
    return Contender(
        name="us" if processes == 1 else f"us-x{processes}",
        title="notifyworker" if processes == 1 else f"notifyworker, {processes} processes",
        module="us",
        runtime="ours",
        package="notifyworker",
        unsettled="SELECT EXISTS (SELECT FROM notifyworker.runs)",
        settings=f"concurrency {SETTINGS['concurrency']}; leases, heartbeats, presence, history, metrics, sidecar, logs at info",
        durability="commit on disk before the insert returns; a dead worker's runs go on after 10 s; settled once, fenced; kept 30 days",
        takes=("drain", "pickup", "load", "inserts") if processes == 1 else ("drain",),
        rates=(100, 1000, 5000) if processes == 1 else (),
        processes=processes,
    )


def _waking(name: str, title: str, settings: str, environment: dict[str, str]) -> Contender:
    """The same worker and table, woken in another way: what the gate is measured against."""
    return dataclasses.replace(
        _contender(1), name=name, title=title, settings=settings, takes=("inserts",), rates=(), environment=environment
    )


CONTENDERS = [
    _contender(1),
    _contender(2),
    _contender(4),
    _waking(
        "us-no-trigger",
        "our table with no trigger, polled every 5 ms",
        "the trigger that wakes is disabled; poll_interval_s 0.005",
        {"BENCH_WAKE": "never", "NOTIFYWORKER_POLL_INTERVAL_S": "0.005"},
    ),
    _waking(
        "us-always",
        "our table with a trigger that always notifies",
        "the trigger that wakes is disabled, one that always notifies stands in its place",
        {"BENCH_WAKE": "always"},
    ),
]

FILL = "INSERT INTO notifyworker.runs (kind, payload) SELECT $1, '{\"t\": 0}' FROM generate_series(1, $2)"
INSERT = "INSERT INTO notifyworker.runs (kind, payload) VALUES ($1, $2)"
#: Whatever their names: the table's triggers whose function notifies.
NO_WAKE = """
DO $$
DECLARE
    waking name;
BEGIN
    FOR waking IN
        SELECT t.tgname FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
         WHERE t.tgrelid = 'notifyworker.runs'::regclass AND NOT t.tgisinternal AND p.prosrc LIKE '%pg_notify%'
    LOOP
        EXECUTE format('ALTER TABLE notifyworker.runs DISABLE TRIGGER %I', waking);
    END LOOP;
END $$"""
ALWAYS_WAKE = """
CREATE FUNCTION notifyworker.always_wake() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('notifyworker', '');
    RETURN NULL;
END $$;
CREATE TRIGGER always_wake AFTER INSERT ON notifyworker.runs FOR EACH STATEMENT EXECUTE FUNCTION notifyworker.always_wake();
"""


async def prepare(env: Env) -> None:
    migrate = asyncio.create_subprocess_exec(*_command("migrate"), env=_environment(env), stdout=subprocess.DEVNULL)
    if await (await migrate).wait():
        sys.exit("notifyworker migrate failed")
    if wake := os.environ.get("BENCH_WAKE"):
        async with _connected(env) as conn:
            await conn.execute(NO_WAKE)
            if wake == "always":
                await conn.execute(ALWAYS_WAKE)


async def fill(env: Env) -> None:
    async with _connected(env) as conn:
        await conn.execute(FILL, KIND, env.count)


def make_worker(on_run: OnRun | None = None, **settings: object) -> Worker:
    """What `notifyworker worker benchmarks.contenders.us:make_worker` runs."""
    counted: Callable[[int], None] = on_run or Tally(os.environ["BENCH_DIR"]).run
    worker = Worker(os.environ["BENCH_DSN"], **(SETTINGS | settings))

    if held_s := float(os.environ.get("BENCH_HOLD", "0")):

        @worker.handler(KIND)
        async def hold(_run: Run, payload: dict) -> None:
            counted(payload["t"])
            await asyncio.sleep(held_s)

        return worker

    @worker.handler(KIND)
    async def bench(_run: Run, payload: dict) -> None:
        counted(payload["t"])

    return worker


def work(env: Env) -> None:
    """Become the command that a user runs."""
    command = _command("worker", "benchmarks.contenders.us:make_worker")
    os.execve(command[0], command, _environment(env))


@contextlib.asynccontextmanager
async def worker(_env: Env, on_run: OnRun) -> AsyncIterator[None]:
    """In the producer's process, for pickup: as inside a host, but with the sidecar."""
    async with make_worker(on_run, sidecar=True):
        yield


@contextlib.asynccontextmanager
async def producer(env: Env) -> AsyncIterator[Insert]:
    async with _connected(env) as conn:
        statement = await conn.prepare(INSERT)

        async def insert(stamp: int) -> None:
            await statement.fetch(KIND, f'{{"t": {stamp}}}')

        yield insert


@contextlib.asynccontextmanager
async def _connected(env: Env) -> AsyncIterator[asyncpg.Connection]:
    conn = await asyncpg.connect(env.dsn)
    try:
        yield conn
    finally:
        await conn.close()


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "notifyworker", *arguments]


def _environment(env: Env) -> dict[str, str]:
    return os.environ | {"NOTIFYWORKER_DSN": env.dsn}
