"""The faults of the storm. Each hits somebody or everybody, and returns how often it did."""

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Awaitable, Callable

import asyncpg

from chaos.emitter import EMIT, KEYS
from chaos.kinds import AT_ONCE, CANCELLED, DOOMED, FAMILY, LIMITED
from chaos.outages import END_ALL, END_ONE
from chaos.proxy import Proxy, Way
from chaos.storm import Fault, Storm, fault, seconds
from chaos.wire import At, Rule, statement


@fault("SIGKILL of a worker")
async def _kill(s: Storm, r: random.Random) -> int:
    victim = s.victim(r)
    alive = victim.is_running
    victim.kill()
    return int(alive)


@fault("SIGKILL of the leader")
async def _kill_leader(s: Storm, _r: random.Random) -> int:
    try:
        leader = await s.a.leader()
    except TimeoutError:
        return 0
    leader.kill()
    return 1


async def _armed(s: Storm, rule: Rule, proxies: list[Proxy]) -> int:
    for proxy in proxies:
        await proxy.arm(rule)
    await _until(rule.fired.is_set, 10)
    for proxy in proxies:
        await proxy.disarm(rule)
    return int(rule.fired.is_set())


async def _until(fact: Callable[[], bool], within_s: float) -> None:
    ends_at = time.monotonic() + within_s
    while not fact() and time.monotonic() < ends_at:
        await asyncio.sleep(0.02)


@fault("SIGSTOP past the lease", lasts=True)
async def _freeze(s: Storm, r: random.Random) -> int:
    victim = s.victim(r)
    if victim.is_frozen or not victim.is_running:
        return 0
    pid = victim.pid
    victim.signal(signal.SIGSTOP)
    await _until(lambda: not victim.is_running or victim.pid != pid, 1.2 * s.a.form.lease_s)
    if victim.is_running and victim.pid == pid:
        victim.signal(signal.SIGCONT)
        return 1
    return 0


def _poison(kind: str, seconds: float = 4.0) -> Fault:
    async def inject(s: Storm, _r: random.Random) -> int:
        ids = await s.a.insert(kind, max_attempts=100 if kind == "block" else 2, seconds=seconds)
        try:
            await s.a.started(ids, within_s=60)
        except TimeoutError:
            return 0
        return 1

    return inject


fault("C call that holds the GIL", lasts=True)(_poison("gil", 1000))
fault("runaway regular expression", lasts=True)(_poison("regex"))
fault("handler that blocks the loop", lasts=True)(_poison("block"))
fault("handler that never ends", lasts=True)(_poison("endless"))
fault("handler that ignores cancellation", lasts=True)(_poison("stubborn"))
fault("handler that kills its process", lasts=True)(_poison("exit"))


@fault("server: fast restart")
async def _fast(s: Storm, _r: random.Random) -> int:
    await s.a.cluster.restart("fast")
    return 1


@fault("server: immediate restart")
async def _immediate(s: Storm, _r: random.Random) -> int:
    await s.a.cluster.restart("immediate")
    return 1


@fault("server: crash loop")
async def _crash_loop(s: Storm, r: random.Random) -> int:
    times = r.randint(2, 4)
    for _ in range(times):
        await s.a.cluster.restart("immediate")
    return times


@fault("a session terminated every 200 ms")
async def _end_one(s: Storm, r: random.Random) -> int:
    return await _end(s, r, END_ONE)


@fault("all sessions terminated every 200 ms")
async def _end_all(s: Storm, r: random.Random) -> int:
    return await _end(s, r, END_ALL)


async def _end(s: Storm, r: random.Random, query: str) -> int:
    ended = 0
    for _ in range(r.randint(2, 5)):
        ended += len(await s.a.fetch(query))
        await asyncio.sleep(0.2)
    return ended


@fault("connections reset")
async def _reset(s: Storm, r: random.Random) -> int:
    proxy = s.victim(r).proxy
    there = len(proxy.pairs)
    await proxy.cut()
    return there


def _silence(way: Way | None) -> Fault:
    async def inject(s: Storm, r: random.Random) -> int:
        proxy = s.victim(r).proxy
        await proxy.hold(way)
        await asyncio.sleep(3 * seconds(r))
        await proxy.heal()
        return 1

    return inject


fault("silence in both directions", lasts=True)(_silence(None))
fault("silence to the server", lasts=True)(_silence("to server"))
fault("silence from the server", lasts=True)(_silence("to client"))


@fault("300 ms of latency", lasts=True)
async def _latency(s: Storm, r: random.Random) -> int:
    proxy = s.victim(r).proxy
    await proxy.slow(delay_s=0.3)
    await asyncio.sleep(3 * seconds(r))
    await proxy.heal()
    return 1


@fault("one byte a second", lasts=True)
async def _trickle(s: Storm, r: random.Random) -> int:
    proxy = s.victim(r).proxy
    await proxy.slow(trickle=True)
    await asyncio.sleep(3 * seconds(r))
    await proxy.heal()
    return 1


@fault("a worker cut off, and back", lasts=True)
async def _cut_off(s: Storm, r: random.Random) -> int:
    proxy = s.victim(r).proxy
    await proxy.strand()
    await asyncio.sleep(r.choice(s.a.form.cut_off_s))
    await proxy.heal()
    return 1


def _commit(moment: At) -> Fault:
    async def inject(s: Storm, _r: random.Random) -> int:
        producers = [producer.proxy for producer in s.producers if producer.left > 0]
        return await _armed(s, Rule("COMMIT", moment, "cut"), producers)

    return inject


fault("COMMIT executed, its answer lost")(_commit("answer"))
fault("COMMIT lost on its way")(_commit("request"))


@fault("emit cut before or after", lasts=True)
async def _emit(s: Storm, r: random.Random) -> int:
    return await _in_family(s, Rule(EMIT, r.choice(("request", "answer")), "cut"), [s.emitter.proxy])


async def _in_family(s: Storm, rule: Rule, proxies: list[Proxy]) -> int:
    armed = asyncio.create_task(_armed(s, rule, proxies))
    await s.a.insert(FAMILY, key=KEYS[0])  # also when no others come any more
    return await armed


@fault("SIGKILL in a family's life", lasts=True)
async def _kill_in_family(s: Storm, r: random.Random) -> int:
    by_name = {member.name: member for member in s.members}
    text = statement(r.choice(("children_insert", "park", "child_group_close", "event_take")))
    rule = Rule(text, r.choice(("request", "answer")), "cut", deed=lambda name: by_name[name].kill())
    return await _in_family(s, rule, [member.proxy for member in s.members])


@fault("SIGKILL in a settle", lasts=True)
async def _kill_in_settle(s: Storm, r: random.Random) -> int:
    by_name = {member.name: member for member in s.members}
    moment: At = r.choice(("request", "answer"))
    rule = Rule(statement("settle"), moment, "cut", deed=lambda name: by_name[name].kill())
    return await _armed(s, rule, [member.proxy for member in s.members])


@fault("a stranger's locks on runs")
async def _locks(s: Storm, r: random.Random) -> int:
    async def lock(connection: "asyncpg.Connection[asyncpg.Record]") -> int:
        rows = await connection.fetch("SELECT run_id FROM notifyworker.runs ORDER BY random() LIMIT 50 FOR UPDATE SKIP LOCKED")
        await asyncio.sleep(seconds(r))
        return len(rows) or 1

    return await _as_stranger(s, lock)


@fault("ALTER TABLE waiting behind a reader")
async def _alter(s: Storm, r: random.Random) -> int:
    async def read(reader: "asyncpg.Connection[asyncpg.Record]") -> int:
        await reader.fetch("SELECT FROM notifyworker.runs LIMIT 1")
        alter = asyncio.create_task(s.a.fetch("ALTER TABLE notifyworker.runs ALTER COLUMN priority SET STATISTICS 100"))
        await asyncio.sleep(seconds(r))
        await reader.execute("ROLLBACK")
        await alter
        return 1

    return await _as_stranger(s, read)


# What operators do meanwhile.


@fault("cancelled in bulk")
async def _cancel_many(s: Storm, r: random.Random) -> int:
    ids = await s.a.insert(CANCELLED, 40, ms=200)
    if r.random() < 0.5:
        await _until(lambda: bool(s.a.starts(ids)), 2)
    done = 0
    while more := await s.a.value("SELECT done FROM notifyworker.cancel_runs($1, max_runs => 15)", CANCELLED):
        done += more
    return done


@fault("a family is cancelled", lasts=True)
async def _cancel_family(s: Storm, r: random.Random) -> int:
    ids = await s.a.insert(DOOMED, 2)
    await asyncio.sleep(seconds(r))  # before, or while its children are started, or executed
    await s.a.fetch("SELECT notifyworker.cancel(run_id) FROM notifyworker.runs WHERE run_id = ANY ($1::uuid[])", ids)
    return len(ids)


@fault("everything is paused for half a second")
async def _pause(s: Storm, _r: random.Random) -> int:
    await s.a.fetch("SELECT notifyworker.pause(until => clock_timestamp() + interval '500 ms')")
    return 1


@fault("a limit is changed")
async def _set_limit(s: Storm, r: random.Random) -> int:
    await s.a.fetch("SELECT notifyworker.set_limit($1, max_running => $2)", LIMITED, r.randint(1, AT_ONCE))
    return 1


async def _as_stranger(s: Storm, work: "Callable[[asyncpg.Connection[asyncpg.Record]], Awaitable[int]]") -> int:
    connection = await asyncpg.connect(s.a.dsn, timeout=5)
    try:
        await connection.execute("BEGIN")
        return await work(connection)
    finally:
        with contextlib.suppress(Exception):
            connection.terminate()
