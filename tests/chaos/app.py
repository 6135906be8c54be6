"""The worker of the chaos harness: its handlers do harm, and write in the ledger what they do."""

import asyncio
import contextlib
import ctypes
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg

import notifyworker
from chaos.kinds import BATCHED, CALLBACK, CHILD, DOOMED, ENDLESS_CHILD, FAMILY, OPENED, PAID
from chaos.ledger import Ledger
from notifyworker import Retry, Run, Worker
from notifyworker.processes import is_child

worker = Worker()
ledger = Ledger(Path(os.environ["CHAOS_LEDGER"]), f"worker-{os.getpid()}")
#: What a process of a worker's does counts as the worker's: it must end with it.
ME = os.getppid() if is_child() else os.getpid()
ledger.note("up", package=notifyworker.__file__, pid=ME)


@contextlib.contextmanager
def noted(run: Run) -> Iterator[dict[str, int]]:
    """Start and end of one handler. Yields what it returns, which names the lease under which it was executed."""
    facts = {"run": str(run.run_id), "token": run.lease_token, "pid": ME}
    ledger.note("start", kind=run.kind, attempt=run.attempt, key=run.headers.get("key"), **facts)
    how = "raised"
    try:
        yield {"token": run.lease_token, "pid": ME}
        ledger.note("effect", **facts)
        how = "returned"
    except asyncio.CancelledError:
        how = "cancelled"
        raise
    finally:
        ledger.note("end", how=how, **facts)


async def until(path: str | None) -> None:
    """Return when this file exists."""
    while path is not None and not Path(path).exists():
        await asyncio.sleep(0.01)


@worker.handler("good", retry=Retry(max_attempts=100, base_s=0.05, cap_s=0.2))
async def good(run: Run, payload: dict[str, Any]) -> dict[str, int]:
    with noted(run) as result:
        if ms := payload.get("ms"):
            await asyncio.sleep(ms / 1000)
        return result


worker.handler("cancelled")(good)
worker.handler("scheduled", retry=Retry(max_attempts=100, base_s=0.05, cap_s=0.2))(good)
worker.handler(CHILD, retry=Retry(max_attempts=100, base_s=0.05, cap_s=0.2))(good)
worker.handler(CALLBACK, retry=Retry(max_attempts=100, base_s=0.05, cap_s=0.2))(good)
if os.environ.get("CHAOS_VERSION") == "next":
    worker.handler("newer")(good)


@worker.handler("exact", retry=Retry(max_attempts=100, base_s=0.05, cap_s=0.2))
async def exact(run: Run, payload: dict[str, Any]) -> None:
    """Its effect is a row beside its settle, in one transaction."""
    with noted(run) as result:
        async with run.transaction() as connection:
            await connection.execute("INSERT INTO chaos.effects VALUES ($1, $2)", run.run_id, run.lease_token)
            if ms := payload.get("ms"):
                await asyncio.sleep(ms / 1000)
            run.result = result


@worker.handler("stepped", retry=Retry(max_attempts=100, base_s=0.05, cap_s=0.2))
async def stepped(run: Run, payload: dict[str, Any]) -> dict[str, int]:
    """One step outside of the database, and one inside of it."""
    facts = {"run": str(run.run_id), "token": run.lease_token}

    async def mark() -> None:
        ledger.note("step", **facts)

    async def write(connection: Any) -> None:
        await connection.execute("INSERT INTO chaos.effects VALUES ($1, $2)", run.run_id, run.lease_token)

    with noted(run) as result:
        await run.step("mark", mark)
        ledger.note("recorded", **facts)
        await run.step_transaction("write", write)
        if ms := payload.get("ms"):
            await asyncio.sleep(ms / 1000)
        return result


@worker.handler(BATCHED, batch_size=5, batch_wait_s=0.02, retry=Retry(max_attempts=100, base_s=0.05, cap_s=0.2))
async def batched(runs: list[Run]) -> dict[Run, dict[str, int]]:
    with contextlib.ExitStack() as all_noted:
        return {run: all_noted.enter_context(noted(run)) for run in runs}


@contextlib.contextmanager
def waiting(run: Run) -> Iterator[None]:
    """What may park the run: another may execute it before this handler has heard that it is cancelled."""
    facts = {"run": str(run.run_id), "token": run.lease_token}
    ledger.note("parks", **facts)
    yield
    ledger.note("goes on", **facts)


@worker.handler(FAMILY, retry=Retry(max_attempts=100, base_s=0.05, cap_s=0.2))
async def family(run: Run, payload: dict[str, Any]) -> dict[str, Any]:
    """Its result names every child, and what it was told of it; the judge compares that with what has happened."""
    facts = {"run": str(run.run_id), "token": run.lease_token}

    async def told(name: str, key: str | None = None) -> Any:
        with waiting(run):
            value = await run.event(name, key=key, timeout=3600)
        ledger.note("took", name=name, key=key, value=value, **facts)
        return value

    with noted(run) as result:
        run.log.info("begins", lease=run.lease_token)
        await run.step("mark", ledger.note, "step", **facts)
        ledger.note("recorded", **facts)
        alone = [await run.start(CHILD, {"ms": n}) for n in range(payload.get("children", 3))]
        group = await run.start_group([(CHILD, {})] * 2, then=(CALLBACK, {}))
        await run.progress({"token": run.lease_token})
        with waiting(run):
            outcomes = await run.join()
        seen = [[str(o.run_id), o.state, (o.result or {}).get("token")] for o in outcomes]
        events = [await told(PAID), await told(OPENED, payload["key"])] if "key" in payload else []
        late = await run.start(CHILD)
        run.log.info("ends", lease=run.lease_token)
        await run.progress({"token": run.lease_token})
        named = {"alone": alone, "group": group.children, "then": [group.then], "late": [late]}
        kin = {name: [str(child) for child in children] for name, children in named.items()}
        return {**result, "family": {**kin, "seen": seen, "events": events}}


@worker.handler(DOOMED)
async def doomed(run: Run) -> None:
    with noted(run):
        for _ in range(3):
            await run.start(ENDLESS_CHILD)
        with waiting(run):
            await run.join()


@worker.handler(ENDLESS_CHILD)
async def endless_child(run: Run) -> None:
    """Waits in its slot; one that is taken over waits without one."""
    with noted(run):
        if run.attempt > 1:
            with waiting(run):
                await run.event("never")
        await asyncio.Event().wait()


@worker.handler("mirrored", version="v1", retry=Retry(max_attempts=100, base_s=0.05, cap_s=0.2))
async def mirrored(run: Run, payload: dict[str, Any]) -> dict[str, int]:
    with noted(run) as result:
        await run.effect("mark", ledger.note, "mirrored", run=str(run.run_id))
        return result


@worker.handler("mirrored", version="v2", retry=Retry(max_attempts=100, base_s=0.05, cap_s=0.2))
async def tried(run: Run) -> None:
    """A copy, which tries to have effects: there must never be any."""
    ledger.note("copy", run=str(run.run_id), live=str(run.copy_of), is_shadow=run.is_shadow)
    await run.effect("mark", ledger.note, "copied effect", run=str(run.run_id))
    await run.step("mark", ledger.note, "copied effect", run=str(run.run_id))
    with contextlib.suppress(asyncpg.PostgresError, RuntimeError):
        async with run.transaction() as connection:
            await connection.execute("INSERT INTO chaos.effects VALUES ($1, $2)", run.run_id, run.lease_token)
            await connection.execute("COMMIT")


@worker.handler("hold")
async def hold(run: Run, payload: dict[str, Any]) -> dict[str, int]:
    """Ends when a file appears; `only`: only the lease with this token waits for it."""
    with noted(run) as result:
        if payload.get("only") in {None, run.lease_token}:
            await until(payload["until"])
        return result


@worker.handler("tick")
async def tick(run: Run, payload: dict[str, Any]) -> dict[str, int]:
    """As hold, and gives a sign of life every few milliseconds."""
    with noted(run) as result:
        while run.lease_token == 1 and not Path(payload["until"]).exists():
            ledger.note("tick", run=str(run.run_id), token=run.lease_token)
            await asyncio.sleep(0.002)
        return result


@worker.handler("compute", executor="process")
def compute(run: Run, payload: dict[str, Any]) -> dict[str, int]:
    """As tick, in a process of its own."""
    with noted(run) as result:
        while run.lease_token == 1 and not Path(payload["until"]).exists():
            ledger.note("tick", run=str(run.run_id), token=run.lease_token, pid=ME)
            time.sleep(0.002)
        return result


@worker.handler("flaky", retry=Retry(max_attempts=100, base_s=0.05, cap_s=0.2))
async def flaky(run: Run, payload: dict[str, Any]) -> dict[str, int]:
    with noted(run) as result:
        if run.attempt <= payload.get("fails", 1):
            message = "as the payload says"
            raise RuntimeError(message)
        return result


@worker.handler("block")
async def block(run: Run, payload: dict[str, Any]) -> dict[str, int]:
    """Block the event loop."""
    with noted(run) as result:
        if run.lease_token == 1:
            time.sleep(payload["seconds"])
        return result


# Poison: what ends as failed, and takes nothing else with it.


@worker.handler("gil")
async def gil(run: Run, payload: dict[str, Any]) -> dict[str, int]:
    """One C call that holds the GIL."""
    with noted(run) as result:
        ctypes.PyDLL(None).usleep(int(payload["seconds"] * 1_000_000))
        return result


@worker.handler("regex")
async def regex(run: Run) -> dict[str, int]:
    """Catastrophic backtracking: a C call that ends in years."""
    with noted(run) as result:
        re.match(r"(a+)+$", "a" * 60 + "b")
        return result


@worker.handler("exit")
async def exits(run: Run) -> dict[str, int]:
    with noted(run):
        os._exit(3)


@worker.handler("memory")
async def memory(run: Run) -> dict[str, int]:
    """Take 10 MB after the other, up to 1 GB: the kernel kills a process that may have less."""
    with noted(run) as result:
        taken = [bytearray(b"x" * 10_000_000) for _ in range(100)]
        return {**result, "taken": len(taken)}


@worker.handler("endless", timeout=1, retry=Retry(max_attempts=2, base_s=0.05))
async def endless(run: Run) -> dict[str, int]:
    with noted(run) as result:
        await asyncio.Event().wait()
        return result


@worker.handler("stubborn", timeout=1, retry=Retry(max_attempts=2, base_s=0.05))
async def stubborn(run: Run, payload: dict[str, Any]) -> dict[str, int]:
    """Goes on through every cancellation."""
    ends_at = time.monotonic() + payload["seconds"]
    with noted(run) as result:
        while time.monotonic() < ends_at:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)
        return result
