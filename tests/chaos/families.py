"""Directed schedules of families: what starts children, parks their parent, lets it go on, and emits; cut and frozen there."""

import asyncio
import time

import asyncpg

from chaos.acts import act, presumed_dead
from chaos.arena import Arena
from chaos.emitter import EMIT, KEYS, Emitter
from chaos.kinds import CHILD, FAMILY, OPENED, PAID
from chaos.schedules import Shot, Step, register
from chaos.wire import At, Rule, statement


async def _family(a: Arena, shot: Shot) -> list[str]:
    await shot.arm()
    return await a.insert(FAMILY, 2)


async def _awaiting(a: Arena, shot: Shot) -> list[str]:
    """One whose events are there, and one whose events come while it waits, or shortly before."""
    there, waits = await a.insert(FAMILY, 2, key=KEYS[0], children=1)
    await _emit_all(a, [there])
    await shot.arm()
    await _emit_all(a, [waits])
    return [there, waits]


async def _emit_all(a: Arena, runs: list[str]) -> None:
    for run in runs:
        a.ledger.note("emit", name=PAID, key=run, value=run)
        a.ledger.note("emit", name=OPENED, key=KEYS[0], value="open")
        await a.fetch("SELECT notifyworker.emit($1, to_jsonb($2::text), run_id => $2::uuid)", PAID, run)
        await a.fetch("SELECT notifyworker.emit($1, to_jsonb('open'::text), key => $2)", OPENED, KEYS[0])


async def _locked(a: Arena, shot: Shot) -> list[str]:
    """The last child of a parent is settled while a stranger has the parent locked: a note is left for the leader."""
    await a.leader()
    ids = await a.insert(FAMILY, children=1)
    (run,) = ids
    parked = "SELECT EXISTS (SELECT FROM notifyworker.runs WHERE run_id = $1 AND waits_for = 'children' FOR UPDATE)"
    stranger = await asyncpg.connect(a.dsn, timeout=5)
    try:
        async with stranger.transaction():
            await a.soon(lambda: stranger.fetchval(parked, run), 20, "no parent was parked")
            done = "SELECT EXISTS (SELECT FROM notifyworker.children WHERE parent_id = $1 AND state IS NOT NULL AND position = 1)"
            await a.soon(lambda: a.value(done, run), 20, "no child was settled")
            await shot.arm()
    finally:
        await stranger.close()
    return ids


register(
    [
        Step("children: recorded", statement("children_put"), _family, is_long=True),
        Step("children: inserted", statement("children_insert"), _family),
        Step("parent: group", statement("child_group_put"), _family, is_long=True),
        Step("parent: parked", statement("park"), _family),
        Step("parent: parked, COMMIT", "COMMIT;", _family, is_long=True),
        Step("child: settled", statement("settle"), _family, is_long=True),
        Step("parent: asks for outcomes", statement("child_group_close"), _family, is_long=True),
        Step("parent: settled with a child", "COMMIT;", _family, nth=3, is_long=True),
        Step("event: taken", statement("event_take"), _awaiting),
        Step("leader looks at a parent", statement("parent_check"), _locked, is_long=True),
    ]
)


@act("emit: cut before and after", presumed_dead)
async def emit_cut(a: Arena) -> float:
    """The event is there or it is not, nobody knows; emitted again it is the first, or is not."""
    await a.workers(2)
    emitter, worst = await Emitter(a).open(), 0.0
    moments: tuple[At, At] = ("request", "answer")
    try:
        await emitter.emit(OPENED, KEYS[0])
        for at in moments:
            (run,) = await a.insert(FAMILY, key=KEYS[0])
            waits = "SELECT EXISTS (SELECT FROM notifyworker.event_waits WHERE run_id = $1)"
            await a.soon(lambda: a.value(waits, run), 40, "the parent did not come to wait")  # noqa: B023 - awaited at once
            rule = await emitter.proxy.arm(Rule(EMIT, at, "cut"))
            began = time.monotonic()
            await emitter.emit(PAID, run)
            if not rule.fired.is_set():
                a.wrong.append("emit was not seen")
            a.injected += 1
            while not emitter.knows(PAID, run):
                await emitter.emit(PAID, run)
            await a.settled([run])
            worst = max(worst, time.monotonic() - began)
        firsts = [e.facts["first"] for e in a.reader.look() if e.what == "emitted" and e.facts["name"] == PAID]
        # Of the second nobody was told that it was the first: emitted again it is not, or its run is settled by then.
        if firsts not in ([True], [True, False]):
            a.wrong.append(f"after the cuts emit has answered {firsts}")
    finally:
        await emitter.close()
    return worst


@act("two last children are settled at the same moment", presumed_dead, is_long=True)
async def last_two(a: Arena) -> float:
    """Neither of their settles sees the other: a note is left, and the leader that is killed then must not matter."""
    await a.workers(3)
    a.fleet.keep_up()
    ids = await a.insert(FAMILY, 20, children=2)
    asleep = f"SELECT count(*) FROM notifyworker.children WHERE kind = '{CHILD}' AND state IS NOT NULL"
    await a.soon(lambda: a.value(asleep), 40, "no child was settled")
    (await a.leader()).kill()
    a.injected += 1
    began = time.monotonic()
    await asyncio.gather(*(a.settled([run]) for run in ids))
    return time.monotonic() - began
