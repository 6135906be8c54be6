"""All of it at once: a fleet and producers under a random mixture of faults, in an order that the seed decides."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

from chaos.arena import Arena
from chaos.emitter import Emitter
from chaos.fleet import Member
from chaos.kinds import AT_ONCE, LIMITED, MIRRORED, SCHEDULED, TRIED
from chaos.producer import Producer

_WORKERS = 5
_PRODUCERS = 2
#: So many faults that last go on at once.
_AT_ONCE = 3


class Storm:
    """The mixture. `fired` counts each fault when it really hit."""

    def __init__(self, a: Arena) -> None:
        self.a = a
        self.fired: Counter[str] = Counter()
        self.members: list[Member] = []
        self.producers: list[Producer] = []
        self.emitter = Emitter(a)
        self._background: set[asyncio.Task[None]] = set()
        self._lasting = asyncio.Semaphore(_AT_ONCE)

    async def blow(self) -> None:
        """Start everything, and hurt it until all is inserted and every fault has been injected."""
        a = self.a
        self.members = await a.workers(_WORKERS, concurrency=20, **(_MIXED if a.form.settings else {}))
        a.fleet.keep_up()
        await a.fetch("SELECT notifyworker.set_limit($1, max_running => $2)", LIMITED, AT_ONCE)
        await a.fetch(
            "INSERT INTO notifyworker.schedules (name, cron, kind, missed) VALUES ('each second', '* * * * * *', $1, 'all')"
            " ON CONFLICT DO NOTHING", SCHEDULED,
        )  # fmt: skip
        await a.fetch("SELECT notifyworker.set_mirror($1, $2, 100)", MIRRORED, TRIED)
        count = a.form.mixture_runs // _PRODUCERS
        for i in range(_PRODUCERS):
            producer = Producer(
                name=f"producer{i}", database=a.database, count=count, per_s=count / a.form.mixture_s, ledger=a.ledger,
                seed=a.random.getrandbits(32), families=True,
            )  # fmt: skip
            self.producers.append(await producer.open(a.thread, a.cluster.port))
        work = [asyncio.create_task(producer.run()) for producer in self.producers]
        await self.emitter.open()
        emits = asyncio.create_task(self.emitter.run())
        try:
            await self._hurt(work)
            await asyncio.gather(*work, *self._background)
            self.emitter.finish()
            await emits
            await a.fetch("UPDATE notifyworker.schedules SET paused = true")
        finally:
            for task in (*work, *self._background, emits):
                task.cancel()
            await asyncio.gather(*work, *self._background, emits, return_exceptions=True)
            for producer in (*self.producers, self.emitter):
                await producer.close()

    async def _hurt(self, work: "list[asyncio.Task[None]]") -> None:
        # What is drawn from this one is the same for the same seed, whatever the faults take.
        order = random.Random(self.a.seed)
        deck: list[str] = []
        dealt = 0
        while True:
            if not deck:  # each once before any comes again, in another order
                names = sorted(FAULTS)
                if dealt and all(task.done() for task in work):
                    await asyncio.gather(*self._background)
                    names = [name for name in names if not self.fired[name]]  # such as a freeze of one who was killed then
                    if not names or dealt > 5 * len(FAULTS):
                        return
                deck = order.sample(names, len(names))
            name = deck.pop()
            dealt += 1
            r = random.Random(order.getrandbits(32))
            self.a.ledger.note("fault", name=name)
            if name in _LASTING:
                await self._lasting.acquire()
                task = asyncio.create_task(self._lasts(name, r))
                self._background.add(task)
                task.add_done_callback(self._background.discard)
            else:
                await self._inject(name, r)
            await asyncio.sleep(order.uniform(0.05, 0.3))  # the storm's own rhythm

    async def _lasts(self, name: str, r: random.Random) -> None:
        try:
            await self._inject(name, r)
        finally:
            self._lasting.release()

    async def _inject(self, name: str, r: random.Random) -> None:
        hits = await FAULTS[name](self, r)
        self.fired[name] += hits
        self.a.injected += hits

    def victim(self, r: random.Random) -> Member:
        """One of the fleet; a place whose worker has just ended counts."""
        return r.choice(self.members)


def seconds(r: random.Random) -> float:
    """How long something short lasts."""
    return r.uniform(0.3, 1.5)


#: Leases end about as early as absence tells, so that both take runs over.
_MIXED = {"poll_interval_s": 5, "lease_s": 9}
#: Hits, with the random numbers of this one injection, and returns how often it hit.
Fault = Callable[[Storm, random.Random], Awaitable[int]]
FAULTS: dict[str, Fault] = {}
_LASTING: set[str] = set()


def fault(name: str, *, lasts: bool = False) -> Callable[[Fault], Fault]:
    """Register a fault of the mixture, which returns how often it hit. `lasts`: others are injected meanwhile."""

    def register(inject: Fault) -> Fault:
        FAULTS[name] = inject
        if lasts:
            _LASTING.add(name)
        return inject

    return register
