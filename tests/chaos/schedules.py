"""
Directed schedules: every step of a run's life, cut before and after its statement, and frozen there.

Random faults find the unknown. They seldom hit the one moment at which a fence is needed, so each known step has its
schedule: its request is swallowed; its answer is swallowed; and the worker is frozen in it until another has taken
over, when it goes on, with its statement arriving late.
"""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from chaos.acts import ACTS, Act, act, lapsed, presumed_dead
from chaos.arena import Arena
from chaos.fleet import Member
from chaos.forms import Form
from chaos.wire import At, Rule, statement


@dataclass(frozen=True, slots=True)
class Step:
    """
    One step: what its statement contains, and how to make the fleet take it.

    `provoke` arms its shot, and returns the runs that it is about. `nth`: the how manieth such statement is meant.
    """

    name: str
    text: str
    provoke: "Callable[[Arena, Shot], Awaitable[list[str]]]"
    settings: Mapping[str, float] = field(default_factory=dict)
    nth: int = 1
    #: Whether a worker's runs are taken over for its absence, and not for the end of a lease.
    is_of_presence: bool = False
    #: The full form's alone.
    is_long: bool = False


class Shot:
    """One hit of one step: whoever of the fleet takes it first."""

    def __init__(self, a: Arena, step: Step, at: At, then: Literal["cut", "hold"]) -> None:
        self.a = a
        self.rule = Rule(step.text, at, then, nth=step.nth, deed=self._hit)
        self.by: Member | None = None
        self.at = 0.0
        #: What the handlers wait for.
        self.until = a.file()

    def _hit(self, name: str) -> None:
        """In the proxy's thread."""
        self.by = next(member for member in self.a.fleet.members if member.name == name)
        if self.rule.then == "hold":
            self.by.signal(signal.SIGSTOP)
        self.at = time.monotonic()

    async def arm(self, members: list[Member] | None = None, argument: bytes = b"") -> None:
        """From now on the next such statement of these members (None: of all) is hit."""
        self.rule.argument = argument
        for member in members or self.a.fleet.members:
            if member.is_running and not member.is_frozen:
                await member.proxy.arm(self.rule)

    async def held(self, count: int = 6) -> list[str]:
        """Runs whose first handlers wait, started."""
        ids = await self.a.insert("hold", count, until=str(self.until), only=1)
        await self.a.started(ids)
        return ids


async def _good(a: Arena, shot: Shot) -> list[str]:
    await shot.arm()
    return await a.insert("good", 3)


async def _exact(a: Arena, shot: Shot) -> list[str]:
    await shot.arm()
    return await a.insert("exact", 3)


async def _stepped(a: Arena, shot: Shot) -> list[str]:
    await shot.arm()
    return await a.insert("stepped", 3)


async def _flaky(a: Arena, shot: Shot) -> list[str]:
    await shot.arm()
    return await a.insert("flaky", 3, fails=1)


async def _holding(a: Arena, shot: Shot) -> list[str]:
    ids = await shot.held()
    await shot.arm(await a.holders(ids))
    return ids


async def _expired(a: Arena, shot: Shot) -> list[str]:
    """A frozen worker's leases run out, and are reaped."""
    ids = await shot.held()
    leader = await a.leader()
    holders = await a.holders(ids)
    frozen = next((member for member in holders if member is not leader), holders[0])
    frozen.signal(signal.SIGSTOP)
    query = "SELECT bool_and(lease_expires_at <= now()) FROM notifyworker.runs WHERE split_part(lease_owner, ':', 2) = $1"

    async def expired() -> bool:
        return (await a.value(query, str(frozen.pid))) is not False

    await a.soon(expired, a.form.lease_s + 20, "no lease expired")
    await shot.arm()
    return ids


async def _absent(a: Arena, shot: Shot) -> list[str]:
    """A worker is killed, and the leader takes its runs over."""
    leader = await a.leader()
    ids = await shot.held()
    while not (others := [member for member in await a.holders(ids) if member is not leader]):
        ids += await shot.held()
    victim = others[0]
    await shot.arm([m for m in a.fleet.members if m is not victim], f":{victim.pid}:".encode())
    victim.kill()
    return ids


async def _stopped(a: Arena, shot: Shot) -> list[str]:
    """The leader is asked to stop: it gives back what it runs, and the leadership."""
    leader = await a.leader()
    ids = await shot.held()
    while leader not in await a.holders(ids):
        ids += await shot.held()
    await shot.arm([leader])
    leader.signal(signal.SIGTERM)
    return ids


async def _rushed(a: Arena, shot: Shot) -> list[str]:
    """Inserts come so fast that the leader coalesces, and then no more."""
    await a.leader()
    await shot.arm()
    ids: list[str] = []
    ends_at = time.monotonic() + 20
    while time.monotonic() < ends_at and not shot.rule.fired.is_set():
        for _ in range(20):
            ids += await a.insert("good")
        await asyncio.sleep(0.3)  # the rush's own rhythm
    return ids


_FAST = {"wake_coalesce_per_s": 20, "poll_interval_s": 3}
STEPS = [
    Step("the look", statement("lanes"), _good),
    Step("claim", statement("claim"), _good),
    Step("settle", statement("settle"), _good),
    Step("own transaction: settle", statement("settle"), _exact),
    Step("own transaction: COMMIT", "COMMIT;", _exact),
    Step("step: record", statement("steps_put"), _stepped),
    Step("step in a transaction: COMMIT", "COMMIT;", _stepped),
    Step("give-back", statement("give_back"), _flaky),
    Step("heartbeat", statement("heartbeat"), _holding),
    Step("presence", statement("worker_present"), _holding),
    Step("reap", statement("reap"), _expired),
    Step("take-over", statement("reap"), _absent, is_of_presence=True),
    Step("release at a stop", statement("give_back"), _stopped, {"drain_timeout_s": 0.2}),
    Step("leader's farewell", "pg_advisory_unlock_all", _stopped, {"drain_timeout_s": 0.2}),
    Step("leader coalesces", "set_config('lock_timeout'", _rushed, _FAST),
    Step("leader lets M go", "pg_advisory_unlock($1, $2)", _rushed, _FAST),
    Step("coalesced leader looks", statement("ready_since"), _rushed, _FAST, nth=2),
    Step("leader lets C go", "pg_advisory_unlock($1, $2)", _rushed, _FAST, nth=2),
]


async def _fired(a: Arena, shot: Shot) -> Member:
    """Wait until it was hit; let what waits for it end."""
    await a.soon(lambda: shot.by, 2 * lapsed(a.form), "the step was not seen")
    shot.until.touch()
    a.injected += 1
    assert shot.by is not None
    return shot.by


def _thawed_s(form: Form, step: Step) -> float:
    """Until what a frozen worker held is taken over: at the latest when its leases have ended."""
    return 2 * lapsed(form) + (form.presence.get("lease_s", form.lease_s) - form.lease_s if step.is_of_presence else 0)


def _settings(a: Arena, step: Step) -> dict[str, float]:
    return {**step.settings, **(a.form.presence if step.is_of_presence else {})}


async def _cuts(a: Arena, step: Step) -> float:
    """The connection is cut before the statement reaches the server, and before its answer comes back."""
    await a.workers(3, **_settings(a, step))
    a.fleet.keep_up()
    worst = 0.0
    moments: tuple[At, At] = ("request", "answer")
    for at in moments:
        shot = Shot(a, step, at, "cut")
        ids = await step.provoke(a, shot)
        await _fired(a, shot)
        await a.settled(ids, within_s=lapsed(a.form))
        worst = max(worst, time.monotonic() - shot.at)
        await a.fleet.heal()
    return worst


async def _freeze(a: Arena, step: Step) -> float:
    """The worker is frozen, its statement on the way, until another has taken over; then both go on."""
    await a.workers(3, **_settings(a, step))
    shot = Shot(a, step, "request", "hold")
    ids = await step.provoke(a, shot)
    frozen = await _fired(a, shot)
    await a.settled(ids, within_s=_thawed_s(a.form, step))
    took_s = time.monotonic() - shot.at
    ids = await a.insert("good", 2)  # a claim that arrives late may get these
    await frozen.proxy.heal()
    frozen.signal(signal.SIGCONT)
    await a.settled(ids, within_s=2 * lapsed(a.form))
    return took_s


def register(steps: Sequence[Step]) -> None:
    """Make two acts of each: its cuts, and its freeze."""

    def script(how: Callable[[Arena, Step], Awaitable[float]], step: Step) -> Callable[[Arena], Awaitable[float]]:
        return lambda a: how(a, step)

    for step in steps:
        cut, frozen = f"{step.name}: cut before and after", f"{step.name}: frozen, taken over, thawed"
        ACTS.append(Act(cut, script(_cuts, step), presumed_dead, is_long=step.is_long))
        ACTS.append(Act(frozen, script(_freeze, step), partial(_thawed_s, step=step), is_long=step.is_long))


register(STEPS)


@act("settle: late, when the same worker has the run again", lapsed)
async def own_settle(a: Arena) -> float:
    """
    Lease and heartbeat are silent until the run was reaped, and this very worker has claimed it again.

    Its first settle arrives then: of the same owner, in the same state. Only the token tells it from a good one.
    """
    (member,) = await a.workers(1)
    until = a.file()
    await a.pickup()
    await member.proxy.hold("to server", ["settle", "heartbeat"])
    (run,) = await a.insert("hold", until=str(until), only=2)
    began = await a.started([run])
    a.injected += 1
    took_s = await a.started([run], leases=2, within_s=lapsed(a.form) + 20) - began
    await member.proxy.heal()
    settled = "SELECT EXISTS (SELECT FROM chaos.settled WHERE run_id = $1)"

    async def answered() -> bool:
        return bool(member.events("outcome_refused") or await a.value(settled, run))

    await a.soon(answered, 40, "the late settle was not answered")
    until.touch()
    await a.settled([run])
    return took_s
