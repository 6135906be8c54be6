"""A primary and a standby that follows it: the one is lost and the other promoted, or the other lost while COMMITs wait for it."""

import asyncio
import time
from typing import Any

from servers import Cluster

from chaos.acts import act, lapsed
from chaos.arena import CONF, Arena
from chaos.fleet import Member
from chaos.load import Load

_SYNCHRONOUS = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"


class Pair:
    """The two servers; `a.cluster` is the one that takes writes."""

    def __init__(self, a: Arena, standby: Cluster) -> None:
        self.a = a
        self.primary = a.cluster
        self.standby = standby

    @classmethod
    async def of(cls, a: Arena) -> "Pair":
        """Make the arena's server the primary of a pair, where each COMMIT waits for the standby."""
        standby = await a.servers.enter_async_context(Cluster(standby_of=a.cluster, conf=CONF))
        await a.cluster.conf(f"synchronous_standby_names = 's{standby.port}'")
        await a.cluster.reload()

        async def follows() -> bool:
            return bool(await a.value(_SYNCHRONOUS))

        await a.soon(follows, 20, "the standby did not follow")
        return cls(a, standby)

    async def workers(self, count: int, **settings: Any) -> list[Member]:
        """Start workers that know both."""
        members = []
        for _ in range(count):
            member = _OfPair(
                f"worker{len(self.a.fleet.members)}", self.a.database, self.a.ledger, {**self.a.form.settings, **settings}
            )
            member.ports = self.primary.port, self.standby.port
            self.a.fleet.members.append(await member.open(self.a.thread, self.primary.port))
            members.append(member)
        for member in members:
            await self.a.up(member)
        return members

    async def fail_over(self) -> None:
        """The primary crashes, and the standby takes its place."""
        await self.primary.stop("immediate")
        await self.standby.promote()
        self.a.cluster = self.standby
        self.a.injected += 1


class _OfPair(Member):
    """A worker past all proxies: whichever of the two takes writes."""

    ports = 0, 0

    @property
    def dsn(self) -> str:
        one, other = self.ports
        return f"postgresql://postgres@127.0.0.1:{one},127.0.0.1:{other}/{self._database}?target_session_attrs=read-write"


@act("fail-over: the primary crashes under load, the standby is promoted", 5, needs_server=True)
async def promoted(a: Arena) -> float:
    pair = await Pair.of(a)
    await pair.workers(3)
    until = a.file()
    held = await a.insert("hold", 6, until=str(until))
    await a.started(held)
    async with Load(a, per_s=a.form.load_per_s / 2) as load:
        await load.reached(a.form.load_per_s)
        await pair.fail_over()
        back_at = time.monotonic()
        took_s = await a.started(await a.insert("good")) - back_at
        await load.reached(a.form.load_per_s)
    until.touch()
    await a.settled([*load.acknowledged(), *held])
    if len(a.starts(held)) != len(held):
        a.wrong.append("a run of a live worker was started twice")
    a.notes.append(load.told())
    return took_s


@act("fail-over: the synchronous standby dies, and COMMITs wait for it", 5, needs_server=True)
async def uncommitted(a: Arena) -> float:
    """
    Whoever gives up waiting has committed all the same, and can't know; then nobody is waited for any more. No heartbeat is
    answered meanwhile: a worker that can't show that it is there gives its runs up, and they are begun again afterwards.

    Recovery is until a run is executed after that.
    """
    pair = await Pair.of(a)
    await pair.workers(2, **a.form.presence)  # leases that outlast it, or the workers would end
    until = a.file()
    held = await a.insert("hold", 6, until=str(until))
    await a.started(held)
    async with Load(a, per_s=a.form.load_per_s / 2, deadline_s=3) as load:
        await load.reached(a.form.load_per_s)
        await pair.standby.stop("immediate")
        dead_at = time.monotonic()
        a.injected += 1
        await asyncio.sleep(a.form.sync_s)  # the fault is that it lasts
        # What was claimed before may still be begun, and no claim is answered any more.
        if begun := sum(entry.what == "start" and entry.at > dead_at + 1 for entry in a.reader.look()):
            a.wrong.append(f"{begun} handlers were begun under claims that nobody had answered")
        if not (unheard := sum(entry.what == "unknown" for entry in a.reader.look())):
            a.wrong.append("no COMMIT waited for the standby")
        await pair.primary.conf("synchronous_standby_names = ''")
        await pair.primary.reload()
        back_at = time.monotonic()
        took_s = await a.started(await a.insert("good")) - back_at
        await load.reached(a.form.load_per_s)
    until.touch()
    await a.settled([*load.acknowledged(), *held], within_s=40 + lapsed(a.form))
    a.notes.append(f"{unheard} inserts gave up waiting for their COMMIT")
    return took_s
