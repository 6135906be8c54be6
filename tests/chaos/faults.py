"""Workers that are killed, frozen, or ruined by their own handlers."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from chaos.acts import Skip, act, lapsed, presumed_dead
from chaos.arena import Arena
from chaos.wire import At, Rule, statement


@act("SIGKILL of a worker", presumed_dead)
async def kill(a: Arena) -> float:
    await a.workers(2, **a.form.presence)
    ids = await a.insert("hold", 10, until=str(a.file()), only=1)
    await a.started(ids)
    victims = await a.holders(ids)
    lost = [run for run in ids if run in {e.facts["run"] for e in a.starts(ids) if e.pid == victims[0].pid}]
    victims[0].kill()
    killed_at = time.monotonic()
    a.injected += 1
    took_s = await a.started(lost, leases=2) - killed_at
    for member in victims[1:]:
        member.kill()  # what it holds waits for a file that never comes
    return took_s


@act("SIGKILL of the leader: the next pickup", 1)
async def kill_leader(a: Arena) -> float:
    await a.workers(2)
    await a.warm()
    worst = 0.0
    for _ in range(2):
        leader = await a.leader()
        leader.kill()
        a.injected += 1
        worst = max(worst, await a.pickup())
        leader.start()
        await a.up(leader)
        await a.warm()
    return worst


@act("SIGKILL in the middle of a settle", presumed_dead)
async def kill_in_settle(a: Arena) -> float:
    members = await a.workers(2, **a.form.presence)
    by_name = {member.name: member for member in members}
    a.fleet.keep_up()
    worst = 0.0
    moments: tuple[At, At] = ("request", "answer")
    for at in moments:
        rule = Rule(statement("settle"), at, "cut", deed=lambda name: by_name[name].kill())
        for member in members:
            await member.proxy.arm(rule)
        ids = await a.insert("good", 5)
        await a.soon(rule.fired.is_set, 10, "no settle was seen")
        killed_at = time.monotonic()
        a.injected += 1
        for member in members:
            await member.proxy.heal()
        await a.settled(ids)
        worst = max(worst, time.monotonic() - killed_at)
    return worst


@act("SIGSTOP past the lease, SIGCONT: signs of life after waking", 0.1, has_slack=False)
async def zombie(a: Arena) -> float:
    await a.workers(2)
    until = a.file()
    ids = await a.insert("tick", 4, until=str(until))
    await a.started(ids)
    victim = (await a.holders(ids))[0]
    its = {e.facts["run"] for e in a.starts(ids) if e.pid == victim.pid}
    victim.signal(signal.SIGSTOP)
    await a.started(sorted(its), leases=2, within_s=lapsed(a.form))
    pid = victim.pid
    victim.signal(signal.SIGCONT)
    woken_at = time.monotonic()
    a.injected += 1
    code = await victim.ended(10)
    if code not in {1, -signal.SIGSEGV}:  # the switch dumps threads that run meanwhile, and may fall over their frames
        a.wrong.append(f"the zombie ended with {code}")
    until.touch()
    await a.settled(ids)
    ticks = [e.at for e in a.reader.look() if e.pid == pid and e.what in {"tick", "effect"} and e.at > woken_at]
    return max(ticks, default=woken_at) - woken_at


@act("SIGKILL of a worker: signs of life of its handler's process", 0.5, has_slack=False)
async def orphan(a: Arena) -> float:
    await a.workers(2)
    until = a.file()
    ids = await a.insert("compute", 2, until=str(until))  # as many as one worker has processes
    await a.started(ids, within_s=60)
    victim = (await a.holders(ids))[0]
    its = sorted({e.facts["run"] for e in a.starts(ids) if e.pid == victim.pid})
    pid = victim.pid
    victim.kill()
    killed_at = time.monotonic()
    a.injected += 1
    await a.started(its, leases=2, within_s=lapsed(a.form))
    until.touch()
    await a.settled(ids)
    alive = [e.at for e in a.reader.look() if e.pid == pid and e.what in {"tick", "effect"} and e.at > killed_at]
    return max(alive, default=killed_at) - killed_at


@act("SIGSTOP past the lease, SIGCONT, may not end itself", lambda form: form.settings.get("heartbeat_interval_s", 15))
async def refused_zombie(a: Arena) -> float:
    await a.workers(2, on_lapse="log")
    until = a.file()
    ids = await a.insert("hold", 2, until=str(until), only=1)
    await a.started(ids)
    victim = (await a.holders(ids))[0]
    its = sorted({e.facts["run"] for e in a.starts(ids) if e.pid == victim.pid})
    victim.signal(signal.SIGSTOP)
    await a.settled(its, within_s=lapsed(a.form))
    until.touch()
    victim.signal(signal.SIGCONT)
    woken_at = time.monotonic()
    a.injected += 1
    await a.soon(lambda: victim.events("outcome_refused") or victim.events("lease_lost"), 40, "nothing was refused")
    return time.monotonic() - woken_at


async def _poisoned(a: Arena, kind: str, guilty: str) -> float:
    """A call that holds the GIL: each process that executes it ends by the switch, the run fails after two attempts."""
    members = await a.workers(3)
    ids = await a.insert(kind, max_attempts=2, seconds=10 * a.form.lease_s)
    worst = 0.0
    for attempt in (1, 2):
        began = await a.started(ids, leases=attempt, within_s=a.form.lease_s + 60)
        victim = next(m for m in members if m.pid == a.starts(ids)[-1].pid)
        a.injected += 1
        code = await victim.ended(2 * a.form.lease_s)
        worst = max(worst, time.monotonic() - began)
        if code not in {1, -signal.SIGSEGV}:
            a.wrong.append(f"the switch ended the process with {code}")
        if guilty not in victim.log_file.read_text(errors="replace"):
            a.wrong.append("the guilty line is not in the log")
    await a.settled(ids, within_s=a.form.lease_s + 60)
    return worst


@act("C call that holds the GIL past the lease: its process ends", lambda form: form.lease_s)
async def gil(a: Arena) -> float:
    return await _poisoned(a, "gil", "in gil")


@act("runaway regular expression: its process ends", lambda form: form.lease_s)
async def regex(a: Arena) -> float:
    return await _poisoned(a, "regex", "in regex")


@act("handler that blocks the loop: pickup by others", 1)
async def block(a: Arena) -> float:
    await a.workers(2)
    await a.warm()
    ids = await a.insert("block", seconds=1.5 * a.form.lease_s if a.form.lease_s < 30 else 20)
    await a.started(ids)
    a.injected += 1
    worst = max([await a.pickup() for _ in range(5)])
    await a.settled(ids, within_s=2 * a.form.lease_s + 20)
    if len(a.starts(ids)) != 1:
        a.wrong.append("the run of a live worker was taken from it")
    return worst


@act("handler that never ends: others, meanwhile", 1)
async def endless(a: Arena) -> float:
    return await _beside(a, "endless")


@act("handler that ignores cancellation: others, meanwhile", 1)
async def stubborn(a: Arena) -> float:
    return await _beside(a, "stubborn")


async def _beside(a: Arena, kind: str) -> float:
    await a.workers(2)
    await a.warm()
    ids = await a.insert(kind, 3, max_attempts=2, seconds=4)
    await a.started(ids)
    a.injected += len(ids)
    worst = 0.0
    while len(a.starts(ids)) < 2 * len(ids):
        worst = max(worst, await a.pickup())
    await a.settled(ids)
    return worst


@act("handler that kills its process: failed after two", lambda form: 2 * presumed_dead(form))
async def exits(a: Arena) -> float:
    await a.workers(2, **a.form.presence)
    a.fleet.keep_up()
    ids = await a.insert("exit", max_attempts=2)
    began = await a.started(ids)
    await a.settled(ids, within_s=2 * presumed_dead(a.form) + 20)
    a.injected += len(a.starts(ids))
    return time.monotonic() - began


@act("handler that takes all memory: failed after two", lambda form: 2 * presumed_dead(form))
async def memory(a: Arena) -> float:
    members = await a.workers(3, **a.form.presence)
    with _little_memory([member.pid for member in members]):
        ids = await a.insert("memory", max_attempts=2)
        began = await a.started(ids)
        await a.settled(ids, within_s=2 * presumed_dead(a.form) + 20)
        a.injected += len(a.starts(ids))
    ended = [await member.ended(1) for member in members if not member.is_running]
    if ended != [-signal.SIGKILL] * 2:
        a.wrong.append(f"the workers ended with {ended}")
    return time.monotonic() - began


@contextlib.contextmanager
def _little_memory(pids: Sequence[int]) -> Iterator[None]:
    """Give these processes 200 MB together, beyond which the kernel kills."""
    top, limit = Path("/sys/fs/cgroup"), "memory.max"
    if not (top / "cgroup.controllers").exists():
        top, limit = top / "memory", "memory.limit_in_bytes"
    group = top / f"chaos-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text("200M")
        for pid in pids:
            (group / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        message = f"a memory cgroup can't be made here, which takes root ({error.strerror})"
        raise Skip(message) from error
    try:
        yield
    finally:
        for left in (group / "cgroup.procs").read_text().split():
            (top / "cgroup.procs").write_text(left)
        group.rmdir()
