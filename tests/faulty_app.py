"""A worker for tests that hurt whole processes. It writes what it does to a ledger: a file, outside of the system under test."""

import asyncio
import ctypes
import os
import time
from pathlib import Path
from typing import Any

from notifyworker import Retry, Run, Snooze, Worker

worker = Worker()
LEDGER = Path(os.environ.get("TEST_LEDGER", os.devnull))


def note(what: str, run: Run) -> None:
    with LEDGER.open("a") as file:
        file.write(f"{what} {run.run_id} {run.attempt} {run.lease_token} {os.getpid()} {time.monotonic()}\n")


async def appears(path: str) -> None:
    while not Path(path).exists():
        await asyncio.sleep(0.01)


@worker.handler("noop")
async def noop(run: Run) -> None:
    note("start", run)


@worker.handler("brief")
async def brief(run: Run) -> None:
    """Takes a twentieth of a second, whatever the machine: so many slots, so many runs a second."""
    await asyncio.sleep(0.05)


@worker.handler("hold")
async def hold(run: Run, payload: dict[str, Any]) -> str:
    """Ends when a file appears; later attempts end at once."""
    note("start", run)
    if run.lease_token == 1:
        await appears(payload["until"])
    return str(os.getpid())


@worker.handler("block", retry=Retry(max_attempts=2))
async def block(run: Run, payload: dict[str, Any]) -> str:
    """Block the event loop for so many seconds."""
    note("start", run)
    if run.lease_token == 1:
        time.sleep(payload["seconds"])
    return str(os.getpid())


@worker.handler("gil", retry=Retry(max_attempts=2))
async def gil(run: Run, payload: dict[str, Any]) -> None:
    """One C call that holds the GIL for so many seconds."""
    note("start", run)
    ctypes.PyDLL(None).usleep(int(payload["seconds"] * 1_000_000))


@worker.handler("die", retry=Retry(max_attempts=2))
async def die(run: Run) -> None:
    note("start", run)
    os._exit(3)


@worker.handler("come_back")
async def come_back(run: Run) -> None:
    """Held through a heartbeat, then away for longer than a lease."""
    note("start", run)
    if run.lease_token == 1:
        await asyncio.sleep(1.5)
        raise Snooze(5)
