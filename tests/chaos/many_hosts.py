"""Hosts that are cut off, paused, gone, or have another time; and a new version that is rolled out over them under load."""

import asyncio
import signal
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from copies import next_version

from chaos import hosts
from chaos.acts import act, lapsed
from chaos.arena import Arena
from chaos.forms import Form
from chaos.hosts import HOUR_OFF, Host, Resident
from chaos.load import Load

#: What a later version may do to tables in use.
_MIGRATION = """
ALTER TABLE {schema}.runs ADD COLUMN next text;
ALTER TABLE {schema}.workers ADD COLUMN next text;
CREATE FUNCTION {schema}.next() RETURNS integer LANGUAGE plpgsql AS $$ BEGIN RETURN 1; END $$;
"""


def _resident(
    a: Arena, host: Host, *, package: Path | None = None, more: Mapping[str, str] = MappingProxyType({}), **settings: Any
) -> Resident:
    """Start one more worker, on this host."""
    resident = Resident(
        host, f"worker{len(a.fleet.members)}", database=a.database, port=a.cluster.port, ledger=a.ledger,
        settings={**a.form.settings, **settings},
        package=package, more=more,
    )  # fmt: skip
    a.fleet.members.append(resident)
    resident.start()
    return resident


async def _moved_in(a: Arena, count: int, **settings: Any) -> list[Resident]:
    """So many hosts, with a worker on each."""
    hosts.wanted()
    await hosts.reachable(a.cluster)
    residents = [_resident(a, Host(), **settings) for _ in range(count)]
    for resident in residents:
        await a.up(resident)
    return residents


def _paused_s(form: Form) -> float:
    return form.lease_s + 2 * form.reaper_interval_s if form.settings else 150


@act("hosts: one cut off, one paused, one an hour off; they work again", 12, needs_server=True)
async def apart(a: Arena) -> float:
    """Each holds runs when it happens, and inserts go on; recovery is until those that were away work again."""
    cut, paused, _ = residents = await _moved_in(a, 3, concurrency=50, **a.form.presence)
    if HOUR_OFF:
        residents.append(_resident(a, Host(), more=HOUR_OFF, concurrency=50, **a.form.presence))
        await a.up(residents[-1])
        if abs(hosts.logged_at(residents[-1].events("worker_started")[0]) - time.time()) < 3000:
            a.wrong.append("the clock of the host that should be an hour off is right")
    else:
        a.notes.append("no clock was an hour off: libfaketime is not installed")
    a.fleet.keep_up()
    until = a.file()
    ids = await a.insert("hold", 10, until=str(until))
    while not {cut, paused} <= set(await a.holders(ids)):
        ids += await a.insert("hold", 10, until=str(until))
        await a.started(ids)
    async with Load(a, per_s=a.form.load_per_s / 10) as load:
        cut.host.unplug()
        paused.signal(signal.SIGSTOP)
        a.injected += 2 + bool(HOUR_OFF)
        await asyncio.sleep(_paused_s(a.form))  # the fault is that it lasts
        cut.host.plug()
        paused.signal(signal.SIGCONT)
        back_at = time.monotonic()

        def work_again() -> bool:
            started = {entry.pid for entry in a.reader.look() if entry.what == "start" and entry.at > back_at}
            return {cut.pid, paused.pid} <= started

        await a.soon(work_again, 60, "a host that was away did not work again")
        took_s = time.monotonic() - back_at
    a.notes.append(load.told())
    until.touch()
    await a.settled(ids, within_s=lapsed(a.form))
    return took_s


async def _another_leads(a: Arena, leader: Resident, since: float) -> float:
    """How long after `since`, in seconds since 1970, another worker was elected."""

    def elected() -> float | None:
        times = [
            hosts.logged_at(event) for other in a.fleet.members if other is not leader
            for event in other.events("wake_mode") if event["mode"] == "arming"
        ]  # fmt: skip
        return next((at for at in sorted(times) if at >= since), None)

    at: float = await a.soon(elected, 60, "no other worker led")
    return at - since


async def _led_by(a: Arena) -> Resident:
    leader = await a.leader()
    assert isinstance(leader, Resident)
    return leader


@act("hosts: the leader ends on SIGTERM, five times; another leads", 0.25, needs_server=True)
async def handed_over(a: Arena) -> float:
    """The middle one of five. On a machine that does nothing else it is below 50 ms."""
    await _moved_in(a, 2)
    took_s = []
    for _ in range(5):
        await a.pickup()
        leader = await _led_by(a)
        since = time.time()
        leader.signal(signal.SIGTERM)
        a.injected += 1
        took_s.append(await _another_leads(a, leader, since))
        if (code := await leader.ended(20)) != 0:
            a.wrong.append(f"a worker that was told to end did so with {code}")
        leader.start()
        await a.up(leader)
    a.notes.append(f"another led after {', '.join(f'{1000 * s:.0f}' for s in sorted(took_s))} ms")
    return statistics.median(took_s)


@act("hosts: the leader's vanishes; another leads", 15, needs_server=True, has_slack=False)
async def vanished(a: Arena) -> float:
    """Its sessions stay on the server, which nobody tells of their end. Its runs are taken over, too."""
    residents = await _moved_in(a, 2, **a.form.presence)
    leader = await _led_by(a)
    ids: list[str] = []
    until = a.file()
    while leader not in await a.holders(ids):
        ids += await a.insert("hold", 10, until=str(until), only=1)
        await a.started(ids)
    held = set(ids) & {entry.facts["run"] for entry in a.reader.look() if entry.what == "start" and entry.pid == leader.pid}
    since, began = time.time(), time.monotonic()
    leader.host.vanish()
    a.injected += 1
    took_s = await _another_leads(a, leader, since)
    until.touch()
    taken_over_s = await a.started(sorted(held), leases=2, within_s=lapsed(a.form) + 20) - began
    a.notes.append(f"another led after {took_s:.1f} s, and its runs had begun elsewhere after {taken_over_s:.1f} s")
    await a.settled(ids)
    assert len(residents) == 2
    return took_s


@act("hosts: a new version and its migration under load; pickup p99", 1, needs_server=True)
async def rolled_out(a: Arena) -> float:
    """
    Workers of the next version take the place of the present one's, host after host, after its migration.

    From then on runs come that only the next version has a handler for. Whoever is replaced leads at times. On a machine
    that does nothing else 99 of 100 runs have begun within 100 ms of their insert.
    """
    old = await _moved_in(a, 2 if a.form.settings else 3, concurrency=50)
    await a.warm()
    package = next_version(a.directory / "next", _MIGRATION)
    a.packages.add(str(package / "notifyworker" / "__init__.py"))
    async with Load(a, per_s=a.form.load_per_s) as load:
        await load.reached(a.form.load_per_s)
        await _migrated(a, package, old[0])
        load.kinds.append("newer")
        await load.reached(a.form.load_per_s)
        for resident in old:
            await a.up(_resident(a, resident.host, package=package, more={"CHAOS_VERSION": "next"}, concurrency=50))
            await a.settled(load.unhandled())  # what came before is a backlog
            load.handled.add("newer")
            await load.reached(a.form.load_per_s)
            resident.signal(signal.SIGTERM)
            a.injected += 1
            if (code := await resident.ended(60)) != 0:
                a.wrong.append(f"a worker that was told to end did so with {code}")
            a.fleet.members.remove(resident)
        await load.reached(2 * a.form.load_per_s)
    a.notes.append(load.told())
    await a.settled(load.acknowledged())
    await _only_by_the_next(a)
    return load.pickup_s(0.99)


async def _migrated(a: Arena, package: Path, resident: Resident) -> None:
    began = time.monotonic()
    environment = resident.environment(resident.dsn) | {"PYTHONPATH": str(package)}
    command = [*resident.host.inside, sys.executable, "-m", "notifyworker", "migrate"]
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, cwd=package, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    if process.returncode:
        message = f"migrate: {said.decode(errors='replace')}"
        raise RuntimeError(message)
    a.injected += 1
    a.notes.append(f"the migration took {time.monotonic() - began:.1f} s")


async def _only_by_the_next(a: Arena) -> None:
    """No lease of the new kind was ever given to a worker that has no handler for it."""
    query = (
        "SELECT l.run_id, split_part(l.lease_owner, ':', 2)::int FROM chaos.leased AS l JOIN chaos.settled AS s USING (run_id)"
        " WHERE s.kind = 'newer'"
    )
    rows = await a.fetch(query)
    pids = {member.pid for member in a.fleet.members}
    a.wrong += [f"{run}: claimed by {pid}, which has no handler for it" for run, pid in rows if pid not in pids]
    if not rows:
        a.wrong.append("no run of the new kind was claimed")
