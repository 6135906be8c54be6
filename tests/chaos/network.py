"""Networks that cut, swallow, delay and come back."""

import asyncio
import contextlib
import time

from chaos.acts import act, lapsed
from chaos.arena import Arena
from chaos.producer import Producer
from chaos.proxy import Way
from chaos.wire import At, Rule


@act("connections reset, ten times in a row", 2)
async def cut(a: Arena) -> float:
    members = await a.workers(2)
    until = a.file()
    ids = await a.insert("hold", 6, until=str(until))
    await a.started(ids)
    worst = 0.0
    for _ in range(10):
        for member in members:
            await member.proxy.cut()
        cut_at = time.monotonic()
        a.injected += 1
        worst = max(worst, await a.started(await a.insert("good")) - cut_at)
    until.touch()
    await a.settled(ids)
    if len(a.starts(ids)) != len(ids):
        a.wrong.append("a run of a live worker was started twice")
    return worst


async def _silence(a: Arena, way: Way | None) -> float:
    """The LISTEN connections of the fleet go silent: that is noticed, and what was inserted meanwhile is found."""
    members = await a.workers(2)
    await a.pickup()
    for member in members:
        await member.proxy.hold(way, ["listener"])
    began = time.monotonic()
    a.injected += 1
    ids = await a.insert("good", 3)
    await a.soon(lambda: all(m.events("listener_lost") for m in members), 40, "a dead listener was not noticed")
    noticed_s = time.monotonic() - began
    for member in members:
        await member.proxy.heal()
    await a.settled(ids)
    return noticed_s


@act("silence in both directions: a dead listener is noticed", 15)
async def silence(a: Arena) -> float:
    return await _silence(a, None)


@act("silence from the server: a dead listener is noticed", 15)
async def silence_back(a: Arena) -> float:
    return await _silence(a, "to client")


@act("silence to the server: a dead listener is noticed", 15)
async def silence_out(a: Arena) -> float:
    return await _silence(a, "to server")


@act("LISTEN cut off, and back: what came meanwhile is found", 2)
async def deaf(a: Arena) -> float:
    """Nobody hears what is committed between the loss of LISTEN and the next one: the look after the reconnect finds it."""
    members = await a.workers(2, poll_interval_s=60)
    worst = 0.0
    for _ in range(2):
        await a.pickup()
        asked_again = []
        for member in members:
            # They look once at each loss, too. Before the fifth attempt they pause for long enough that such a look is over.
            for then in ("cut", "cut", "cut", "cut", "hold"):
                rule = await member.proxy.arm(Rule('LISTEN "notifyworker"', "request", then, purpose="listener"))
            asked_again.append(rule.fired)
            await member.proxy.cut("listener")
        await a.soon(lambda facts=asked_again: all(f.is_set() for f in facts), 30, "nobody asked for LISTEN again")
        a.injected += 1
        ids = await a.insert("good", 3)
        for member in members:
            await member.proxy.heal()
        healed_at = time.monotonic()
        worst = max(worst, await a.started(ids, within_s=90) - healed_at)
    return worst


@act("notifications swallowed: pickup by polling", lambda form: 4 if form.settings else 6)
async def swallowed(a: Arena) -> float:
    members = await a.workers(2, **({"poll_interval_s": 3} if a.form.settings else {}))
    for member in members:
        member.proxy.drops_notifications = True
        await member.proxy.cut("listener")
    await a.soon(lambda: all(m.events("listener_lost") for m in members), 20, "no listener was cut")
    a.injected += 1
    return max([await a.pickup(within_s=90) for _ in range(2)])


@act("300 ms of latency each way: pickup", 5)
async def latency(a: Arena) -> float:
    """At default settings: the short form's deadlines are shorter than two such round trips."""
    members = await a.workers(2, lease_s=60, heartbeat_interval_s=15, presumed_dead_s=10, presence_ping_s=3)
    until = a.file()
    ids = await a.insert("hold", 12, until=str(until))
    await a.started(ids)
    for member in members:
        await member.proxy.slow(delay_s=0.3)
    a.injected += 1
    worst = max([await a.pickup() for _ in range(5)])
    until.touch()
    await a.settled(ids)
    if len(a.starts(ids)) != len(ids):
        a.wrong.append("a run of a live worker was started twice")
    return worst


async def _cut_off(a: Arena, seconds: float, *, is_noticed: bool = True) -> float:
    """
    A worker's host loses its network, and after `seconds` all is back. `is_noticed`: the server ends its sessions.

    The worker must give its runs up before others start them: `check` compares the handlers' times. Recovery: until it
    works again after that.
    """
    await a.workers(2, **(a.form.presence if is_noticed else {}))
    a.fleet.keep_up()
    until = a.file()
    ids = await a.insert("tick", 8, until=str(until))
    await a.started(ids)
    victim = a.random.choice(await a.holders(ids))
    await (victim.proxy.strand() if is_noticed else victim.proxy.hold())
    a.injected += 1
    await asyncio.sleep(seconds)  # the fault is that it lasts
    await victim.proxy.heal()
    back_at = time.monotonic()

    async def works() -> bool:
        await a.insert("good", 4, ms=50)
        return any(e.what == "start" and e.at > back_at and e.pid == victim.pid for e in a.reader.look())

    await a.soon(works, 40, "the worker that was cut off did not work again")
    took_s = time.monotonic() - back_at
    until.touch()
    await a.settled(ids, within_s=lapsed(a.form))
    return took_s


@act("a worker cut off briefly, and back: it works again", 5)
async def cut_off_short(a: Arena) -> float:
    return await _cut_off(a, a.form.cut_off_s[0])


@act("a worker cut off past presence, and back", 5)
async def cut_off_longer(a: Arena) -> float:
    return await _cut_off(a, a.form.cut_off_s[1])


@act("a worker cut off past the lease, and back", 5)
async def cut_off_longest(a: Arena) -> float:
    return await _cut_off(a, a.form.cut_off_s[2])


@act("a worker in silence past the lease, and back", 5)
async def silent_worker(a: Arena) -> float:
    """The server does not notice: its sessions stay, presence too, and the lease alone tells."""
    return await _cut_off(a, a.form.lease_s + 2 * a.form.reaper_interval_s, is_noticed=False)


@act("one byte a second, then all is well again", 2)
async def trickle(a: Arena) -> float:
    members = await a.workers(2)
    ids = await a.insert("good", 20, ms=50)
    for member in members:
        await member.proxy.slow(trickle=True)
    a.injected += 1
    ids += await a.insert("good", 5)
    await asyncio.sleep(a.form.lock_s)  # the fault is that it lasts
    for member in members:
        await member.proxy.heal()
    healed_at = time.monotonic()
    took_s = await a.started(await a.insert("good")) - healed_at
    await a.settled(ids)
    return took_s


async def _lost_commit(a: Arena, at: At) -> float:
    """A producer whose connection is cut between COMMIT and its answer, or just before: it can't tell the two."""
    await a.workers(2)
    producer = Producer(
        name="producer", database=a.database, count=200, per_s=400, ledger=a.ledger, seed=a.random.getrandbits(32)
    )
    await producer.open(a.thread, a.cluster.port)
    task = asyncio.create_task(producer.run())
    try:
        while not task.done():
            rule = await producer.proxy.arm(Rule("COMMIT", at, "cut", nth=2))

            def fired_or_over(rule: Rule = rule) -> bool:
                return rule.fired.is_set() or task.done()

            await a.soon(fired_or_over, 20, "no COMMIT was seen")
            a.injected += rule.fired.is_set()
        await task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await producer.close()
    unheard = [run for entry in a.reader.look() if entry.what == "unknown" for run in entry.facts["runs"]]
    there = await a.value("SELECT count(*) FROM chaos.inserted WHERE run_id = ANY ($1::uuid[])", unheard)
    if there != (len(unheard) if at == "answer" else 0):
        a.wrong.append(f"{there} of {len(unheard)} runs are there whose COMMIT was cut at its {at}")
    return await a.pickup()


@act("a producer's COMMIT executed, its answer lost", 1)
async def lost_answer(a: Arena) -> float:
    return await _lost_commit(a, "answer")


@act("a producer's COMMIT lost on its way", 1)
async def lost_commit(a: Arena) -> float:
    return await _lost_commit(a, "request")
