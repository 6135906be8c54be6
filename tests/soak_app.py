"""What the worker of a soak executes: a little of everything that handlers do."""

import asyncio
import os
import time
from typing import Any

from notifyworker import Cancel, Fail, Retry, Run, Snooze, Worker

worker = Worker()
_leak: list[bytes] = []


@worker.handler("fine")
async def fine(run: Run, payload: dict[str, Any]) -> dict[str, Any]:
    await run.progress({"at": "half"})
    if os.environ.get("SOAK_LEAK"):  # so that one can see what the table says then
        _leak.append(bytes(2048))
    return payload


@worker.handler("effect")
async def effect(run: Run) -> None:
    await run.effect("sleep", asyncio.sleep, 0)


@worker.handler("again", retry=Retry(max_attempts=3, base_s=0.1, cap_s=0.2))
async def again(run: Run) -> int:
    if run.attempt < 3:
        raise ValueError("x" * 5000)
    return run.attempt


@worker.handler("snooze")
async def snooze(run: Run) -> None:
    if run.lease_token == 1:
        raise Snooze(0.2)


@worker.handler("fail")
async def fail(run: Run) -> None:
    raise Fail("as asked")


@worker.handler("cancel")
async def cancel(run: Run) -> None:
    raise Cancel("as asked")


@worker.handler("slow", timeout=0.5, retry=Retry(max_attempts=1))
async def slow(run: Run) -> None:
    await asyncio.sleep(60)


@worker.handler("held")
async def held(run: Run) -> None:
    """Until it is cancelled from outside."""
    await asyncio.sleep(3600)


@worker.handler("thread")
def thread(run: Run) -> int:
    time.sleep(0.01)
    return os.getpid()


@worker.handler("tasks")
async def tasks(run: Run) -> int:
    return len(asyncio.all_tasks())
