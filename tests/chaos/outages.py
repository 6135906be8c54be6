"""Servers that restart, crash and end sessions; rows and tables that somebody locks."""

import asyncio
import time
from urllib.request import urlopen

import asyncpg

from chaos.acts import act
from chaos.arena import Arena

#: Ends the sessions of workers and producers, and not the harness's own.
END_ALL = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    " AND pid <> pg_backend_pid() AND application_name <> 'chaos'"
)
END_ONE = END_ALL + " ORDER BY random() LIMIT 1"


async def _held(a: Arena, count: int = 8) -> tuple[list[str], object]:
    """Runs that go on until a file appears, all started."""
    until = a.file()
    ids = await a.insert("hold", count, until=str(until))
    await a.started(ids)
    return ids, until


async def _kept(a: Arena, ids: list[str], until: object) -> None:
    """Let them end; none of them may have been started twice."""
    until.touch()  # type: ignore[attr-defined]
    await a.settled(ids)
    if again := len(a.starts(ids)) - len(ids):
        a.wrong.append(f"{again} runs of live workers were started twice")
    if reaped := await a.value("SELECT count(*) FROM notifyworker.reaps"):
        a.wrong.append(f"{reaped} runs were taken from live workers")


async def _restarts(a: Arena, mode: str, times: int) -> float:
    await a.workers(2, **a.form.outlasting)
    ids, until = await _held(a)
    worst = 0.0
    for _ in range(times):
        await a.cluster.stop(mode)
        await a.cluster.start()
        back_at = time.monotonic()
        a.injected += 1
        worst = max(worst, await a.started(await a.insert("good")) - back_at)
    await _kept(a, ids, until)
    return worst


@act("server: fast restart, five times in a row", 2, needs_server=True)
async def fast_restarts(a: Arena) -> float:
    return await _restarts(a, "fast", 5)


@act("server: immediate restart, five times in a row", 2, needs_server=True)
async def crashes(a: Arena) -> float:
    return await _restarts(a, "immediate", 5)


@act("server: crash loop", 2, needs_server=True)
async def crash_loop(a: Arena) -> float:
    """Crashes as often as it can be started."""
    await a.workers(2)
    ids = await a.insert("good", 200, ms=20)
    ends_at = time.monotonic() + a.form.loop_s
    while time.monotonic() < ends_at:
        await a.cluster.restart("immediate")
        a.injected += 1
    back_at = time.monotonic()
    took_s = await a.started(await a.insert("good")) - back_at
    await a.settled(ids)
    return took_s


@act("server: stopped for 3 s; /healthz tells, then clears", 2, needs_server=True)
async def stopped(a: Arena) -> float:
    (member,) = await a.workers(1, sidecar="true", port=0, poll_interval_s=1)
    url = member.events("sidecar_listening")[0]["url"].rstrip("/") + "/healthz"

    async def healthy() -> bool:
        return await asyncio.to_thread(_is_ok, url)

    async def failing() -> bool:
        return not await healthy()

    await a.pickup()
    await a.soon(healthy, 20, "/healthz was not ok")
    began = time.monotonic()
    await a.cluster.stop("fast")
    a.injected += 1
    await a.soon(failing, 10, "/healthz told nothing of a stopped server")
    await asyncio.sleep(max(0.0, began + 3 - time.monotonic()))  # the fault is that it lasts
    await a.cluster.start()
    back_at = time.monotonic()
    took_s = await a.started(await a.insert("good")) - back_at
    await a.soon(healthy, 40, "/healthz did not clear")
    return took_s


def _is_ok(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@act("all sessions terminated, ten times in a row", 2)
async def end_all(a: Arena) -> float:
    await a.workers(2)
    ids, until = await _held(a)
    worst = 0.0
    for _ in range(10):
        if not await a.fetch(END_ALL):
            a.wrong.append("there were no sessions")
        ended_at = time.monotonic()
        a.injected += 1
        worst = max(worst, await a.started(await a.insert("good")) - ended_at)
    await _kept(a, ids, until)
    return worst


async def _every_200_ms(a: Arena, query: str) -> float:
    await a.workers(2)
    ids = await a.insert("good", 100, ms=30)
    ends_at = time.monotonic() + a.form.loop_s
    while time.monotonic() < ends_at:
        a.injected += len(await a.fetch(query))
        ids += await a.insert("good", 5)
        await asyncio.sleep(0.2)  # the fault's own rhythm
    healed_at = time.monotonic()
    took_s = await a.started(await a.insert("good")) - healed_at
    await a.settled(ids)
    return took_s


@act("a session at random terminated every 200 ms", 2)
async def end_one(a: Arena) -> float:
    return await _every_200_ms(a, END_ONE)


@act("all sessions terminated every 200 ms", 2)
async def end_all_often(a: Arena) -> float:
    return await _every_200_ms(a, END_ALL)


@act("a stranger's locks on runs: pickup of the others", 1)
async def strangers_locks(a: Arena) -> float:
    """On a run that is executed, on the first that is ready, and while it lasts longer than any lock_timeout."""
    await a.workers(2, concurrency=2, poll_interval_s=5)  # nothing tells of the lock's end: that is found by polling
    ids, until = await _held(a, 4)  # all slots are taken: what comes now waits
    waiting = await a.insert("good", 3)
    stranger = await asyncpg.connect(a.dsn)
    worst = 0.0
    try:
        async with stranger.transaction():
            locked = [ids[0], waiting[0]]
            await stranger.execute("SELECT FROM notifyworker.runs WHERE run_id = ANY ($1::uuid[]) FOR UPDATE", locked)
            a.injected += len(locked)
            until.touch()  # type: ignore[attr-defined]
            began = time.monotonic()
            worst = await a.started(waiting[1:], within_s=20) - began
            ends_at = time.monotonic() + 10
            while time.monotonic() < ends_at:
                worst = max(worst, await a.pickup())
            if await a.value("SELECT count(*) FROM chaos.settled WHERE run_id = ANY ($1::uuid[])", locked):
                a.wrong.append("a locked run was settled")
    finally:
        await stranger.close()
    await a.settled(ids + waiting)
    return worst


@act("a waiting ALTER TABLE behind an open reader", 3)
async def waiting_alter(a: Arena) -> float:
    """Every claim waits behind it; the heartbeats of running runs must not be lost with them."""
    await a.workers(2)
    ids, until = await _held(a)
    reader, alterer = await asyncpg.connect(a.dsn), await asyncpg.connect(a.dsn)
    try:
        transaction = reader.transaction()
        await transaction.start()
        await reader.fetch("SELECT FROM notifyworker.runs LIMIT 1")
        alter = asyncio.create_task(alterer.execute("ALTER TABLE notifyworker.runs ADD COLUMN chaos int"))
        waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock')"

        async def waiting() -> bool:
            return bool(await a.value(waits))

        await a.soon(waiting, 10, "the ALTER TABLE did not wait")
        a.injected += 1
        await asyncio.sleep(a.form.lock_s)  # the fault is that it lasts
        await transaction.rollback()
        await alter
        over_at = time.monotonic()
        took_s = await a.started(await a.insert("good")) - over_at
        await alterer.execute("ALTER TABLE notifyworker.runs DROP COLUMN chaos")
    finally:
        reader.terminate()
        alterer.terminate()
    await _kept(a, ids, until)
    return took_s
