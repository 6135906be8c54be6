"""
The wake protocol as it is built: schema/0005_wake.sql, leader.py, wake.py, claim.py and lanes.py.

Looks from the beginning are taken to be too dear to be made, but for a leader's first: whatever they would find as well
must be found without them. So a row is *near* (readers see it from their marks), or *far* (they see it only if told how
far back it lies). A row is far if two looks for silent transactions have passed since it was inserted, or if it was
inserted long after BEGIN. Sets of rows are bits of an integer.

The promise: whatever has happened, with nothing but our own steps each committed row is claimed, without the poll.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

SEEN_TWICE = 2


class Producer(NamedTuple):
    """One transaction that inserts one row."""

    at: str = "begun"  # try_c, open, visible (committed, its locks not yet released), ended
    holds_m: bool = False
    holds_c: bool = False
    notifies: bool = False
    age: int = 0  # looks for silent transactions since it inserted: 2 and more are far


GONE = Producer("gone")
#: It says itself where it lies: taken to be far from the beginning, which is the worse.
TELLS = Producer("open", notifies=True, age=SEEN_TWICE)


class Reader(NamedTuple):
    """The claims of a worker that listens."""

    is_listening: bool = True
    sent: int = 0  # rows told of by notifications that are on their way
    wake: bool = False
    told: int = 0  # far rows that are within reach, since somebody said how far back they lie
    claiming: int | None = None  # the rows that the claim under way has seen
    told_meanwhile: int = 0


class Gate(NamedTuple):
    """The leader's session, and what the leader knows."""

    at: str = "none"
    holds_c: bool = False
    holds_m: bool = False
    is_first_look: bool = True
    has_looked: bool = False  # for silent transactions
    silent: tuple[tuple[int, bool, bool], ...] = ()  # producer, seen again, inserted since the look before
    told: int = 0
    head: int | None = None


class World(NamedTuple):
    """All of it."""

    producers: tuple[Producer, ...]
    gate: Gate = Gate()
    reader: Reader = Reader()
    claimed: int = 0
    deaths: int = 0
    cuts: int = 0


TICKING = frozenset({"arming", "arming look", "coalesced", "coalesced look", "last", "last look", "got m"})
NOBODY = frozenset({"none", "dead"})


@dataclass(frozen=True)
class Wake:
    """`without` names the guards that are taken out."""

    producers: int = 2
    deaths: int = 1
    cuts: int = 1
    #: Without a leader every insert notifies: then the claims alone are looked at.
    has_leader: bool = True
    #: What is told of is claimed in the same moment: then the leader alone is looked at.
    claims_at_once: bool = False
    #: The head of the lane is an old row that a stranger keeps locked.
    has_stranger: bool = False
    without: frozenset[str] = frozenset()

    def start(self) -> World:
        return World((Producer(),) * self.producers, deaths=self.deaths, cuts=self.cuts)

    def fault(self, _world: World) -> str | None:
        return None

    def is_done(self, world: World) -> bool:
        return not self._visible(world)

    def steps(self, world: World) -> Iterator[tuple[str, bool, World]]:
        for name, is_service, after in self._steps(world):
            yield name, is_service, self._plainly(after)

    def _plainly(self, world: World) -> World:
        """
        Forget what makes no difference any more, so that there are fewer states.

        Of wake-ups those are dropped after which nobody would find anything: with fewer of them it can only be worse.
        """
        over = self._bits(world, "ended") & world.claimed
        producers = tuple(GONE if over & 1 << n else p for n, p in enumerate(world.producers))
        claimed = world.claimed & ~over
        gone = self._bits(world, "gone") | over
        unclaimed = self._all() & ~gone & ~claimed
        far = sum(1 << n for n, p in enumerate(producers) if p.at in {"try_c", "open"} or p.age >= SEEN_TWICE) & unclaimed
        reader, gate = world.reader, world.gate
        left = self._visible(world) & ~(reader.claiming or 0)
        reader = reader._replace(
            sent=reader.sent & left,
            wake=reader.wake and left > 0,
            told=reader.told & far,
            told_meanwhile=reader.told_meanwhile & far,
        )
        silent = tuple(
            (n, again, was_after)
            for n, again, was_after in gate.silent
            if unclaimed & 1 << n and (again or not was_after or producers[n].holds_m)
        )
        gate = gate._replace(
            told=gate.told & far, silent=silent, head=gate.head if self.has_stranger or (gate.head or 0) & unclaimed else None
        )
        return World(producers, gate, reader, claimed, world.deaths, world.cuts)

    def _steps(self, world: World) -> Iterator[tuple[str, bool, World]]:
        for number in range(self.producers):
            yield from self._produce(world, number)
        yield from self._read(world)
        if not self.has_leader:
            return
        yield from self._lead(world)
        if world.gate.at in NOBODY:
            older = _older(world.producers)
            yield "time passes", False, world._replace(producers=older)
        elif world.deaths:
            # The server may hold the session of a leader that is gone for a while.
            dead = Gate("dead", world.gate.holds_c, world.gate.holds_m)
            yield "the leader dies", False, world._replace(gate=dead, deaths=world.deaths - 1)

    # Rows.

    def _visible(self, world: World) -> int:
        return self._bits(world, "visible", "ended") & ~world.claimed

    def _within_reach(self, world: World, told: int) -> int:
        """What one sees who reads from the marks."""
        near = sum(1 << n for n, p in enumerate(world.producers) if p.age < SEEN_TWICE)
        return self._visible(world) & (near | told)

    @staticmethod
    def _bits(world: World, *at: str) -> int:
        return sum(1 << n for n, p in enumerate(world.producers) if p.at in at)

    def _all(self) -> int:
        return (1 << self.producers) - 1

    # Producers: the trigger, then the commit.

    def _produce(self, world: World, number: int) -> Iterator[tuple[str, bool, World]]:
        p, gate = world.producers[number], world.gate

        def become(producer: Producer) -> World:
            return world._replace(producers=(*world.producers[:number], producer, *world.producers[number + 1 :]))

        if p.at == "begun":
            # Long after BEGIN, it is far already, and notifies whatever the gate says.
            is_quiet = "late inserts notify" in self.without and not gate.holds_m
            yield f"p{number} inserts late", False, become(Producer("try_c", holds_m=True, age=SEEN_TWICE) if is_quiet else TELLS)
            yield f"p{number} inserts", False, become(TELLS if gate.holds_m else Producer("try_c", holds_m=True))
        elif p.at == "try_c":
            refused = gate.holds_c or gate.at.startswith("wants c")
            silent = p._replace(at="open", holds_m="m is held until the transaction ends" not in self.without)
            yield f"p{number} tries c", False, become(silent if refused else TELLS._replace(holds_m=True, holds_c=True))
        elif p.at == "open":
            yield f"p{number} rolls back", False, become(GONE)
            after = become(p._replace(at="visible"))
            yield f"p{number} commits", False, self._notified(after, 1 << number) if p.notifies else after
        elif p.at == "visible":
            yield f"p{number} releases its locks", True, become(p._replace(at="ended", holds_m=False, holds_c=False))

    # The listener and the claims.

    def _notified(self, world: World, rows: int) -> World:
        reader = world.reader
        if self.claims_at_once:
            return world._replace(claimed=world.claimed | rows)
        return world._replace(reader=reader._replace(sent=reader.sent | rows)) if reader.is_listening else world

    def _read(self, world: World) -> Iterator[tuple[str, bool, World]]:
        reader = world.reader
        if reader.sent:
            yield "a notification comes", True, self._woken(world, reader._replace(sent=0), reader.sent)
        if world.cuts and reader.is_listening:
            cut = reader._replace(is_listening=False, sent=0)
            yield "the listener is cut", False, world._replace(reader=cut, cuts=world.cuts - 1)
        if not reader.is_listening:
            connected = reader._replace(is_listening=True)
            if "a look after a reconnect" in self.without:
                yield "the listener connects", True, world._replace(reader=connected)
            else:
                rows = 0 if "a reconnect lowers the marks" in self.without else self._all()
                yield "the listener connects", True, self._woken(world, connected, rows)
        if reader.claiming is None and reader.wake:
            seen = self._within_reach(world, reader.told)
            if "a notification tells how far back" in self.without:
                seen = self._within_reach(world, 0)
            if not seen and not self.without:
                seen = None  # finds nothing, moves no mark
            begun = reader._replace(claiming=seen, told_meanwhile=0, wake="the wake is cleared before the look" in self.without)
            yield "a claim begins", True, world._replace(reader=begun)
        elif reader.claiming is not None:
            told = 0 if "told during a claim" in self.without else reader.told_meanwhile
            ended = reader._replace(claiming=None, told=told, told_meanwhile=0)
            if "the wake is cleared before the look" in self.without:
                ended = ended._replace(wake=False)
            yield "the claim ends", True, world._replace(reader=ended, claimed=world.claimed | reader.claiming)

    @staticmethod
    def _woken(world: World, reader: Reader, rows: int) -> World:
        meanwhile = reader.told_meanwhile | rows if reader.claiming is not None else 0
        return world._replace(reader=reader._replace(wake=True, told=reader.told | rows, told_meanwhile=meanwhile))

    # The leader.

    def _lead(self, world: World) -> Iterator[tuple[str, bool, World]]:
        gate = world.gate
        m_is_free = not any(p.holds_m for p in world.producers)
        c_is_free = not any(p.holds_c for p in world.producers)

        def at(where: str, **more: object) -> World:
            return world._replace(gate=gate._replace(at=where, **more))  # type: ignore[arg-type]

        match gate.at:
            case "none":
                yield "somebody is elected", True, world._replace(gate=Gate("tries m"))
            case "dead" if "the locks go with the session" not in self.without:
                yield "its session ends", True, world._replace(gate=Gate())
            case "tries m":
                if gate.holds_m or m_is_free:
                    yield "gets m", True, at("got m", holds_m=True)
                elif "ticks while arming" in self.without:
                    return
                else:
                    yield "does not get m", True, at("arming")
                    if not gate.holds_c:
                        yield "wants c in a rush", False, at("wants c, arming")
            case "arming" | "coalesced" | "last":
                look = f"{gate.at} look"
                if gate.at == "last" and "a last look" in self.without:
                    yield "is armed", True, at("armed")
                    return
                yield "looks for silent ones", True, self._looked_for_silent(world, look)
                if gate.at != "last" and gate.has_looked:  # it is not time yet
                    yield "looks for no silent ones", True, at(look)
            case "arming look":
                yield "looks", True, self._looked(world, "tries m")
                yield "looks, and forgets the heads", True, self._looked(world, "tries m", head=None)
            case "coalesced look":
                yield "looks", True, self._looked(world, "coalesced")
                yield "looks, and forgets the heads", True, self._looked(world, "coalesced", head=None)
                yield "looks, and it is quiet", True, self._looked(world, "tries m")
            case "got m":
                yield "lets c go", True, at("last", holds_c=False)
            case "last look":
                yield "looks last", True, self._looked(world, "armed", is_last=True)
            case "armed":
                yield "wants c", False, at("wants c, armed")
            case "wants c, armed" | "wants c, arming":
                back = "got m" if gate.holds_m else "arming"
                yield "gives up on c", True, at(back)
                if c_is_free:
                    yield "gets c", True, at("has c", holds_c=True)
            case "has c":
                yield "lets m go", True, at("coalesced", holds_m=False)

    def _looked_for_silent(self, world: World, then: str) -> World:
        gate = world.gate
        now = {n for n, p in enumerate(world.producers) if p.holds_m}
        known = {n: (again, was_after) for n, again, was_after in gate.silent}
        is_late = {
            n: was_after
            for n, (again, was_after) in known.items()
            if n not in now and (again or (not was_after and "a silent one that was inherited" not in self.without))
        }
        if "the late-commit look" in self.without:
            is_late = {}
        # Of one that was there at the first look nobody knows how old it is: then all is told.
        rows = sum(1 << n for n, was_after in is_late.items() if was_after)
        if not all(is_late.values()) and "a silent one that was inherited" not in self.without:
            rows = self._all()
        silent = tuple((n, n in known, known[n][1] if n in known else gate.has_looked) for n in sorted(now))
        gate = gate._replace(at=then, has_looked=True, silent=silent, told=gate.told | rows)
        return self._told(world._replace(gate=gate, producers=_older(world.producers)), rows)

    def _looked(self, world: World, then: str, *, is_last: bool = False, **more: int | None) -> World:
        """Tell the fleet of the head, if it is a new one, and of all that lies behind it."""
        gate = world.gate
        seen = self._visible(world) if gate.is_first_look else self._within_reach(world, gate.told)
        if self.has_stranger:
            seen = self._visible(world)  # the mark stays at the stranger's row, which is the head
            head: int | None = -1
        else:
            head = (seen & -seen) or None
        knows_anew = is_last and "the last look takes each head for new" not in self.without
        is_new = head is not None and (knows_anew or head != gate.head)
        gate = gate._replace(at=then, is_first_look=False, told=0, head=more.get("head", head))
        if then == "armed":
            gate = Gate("armed", holds_m=True, is_first_look=False, has_looked=True, head=gate.head)
        world = world._replace(gate=gate)
        return self._told(world, seen) if is_new else world

    def _told(self, world: World, rows: int) -> World:
        return self._notified(world, rows) if rows else world


def _older(producers: tuple[Producer, ...]) -> tuple[Producer, ...]:
    return tuple(p._replace(age=min(SEEN_TWICE, p.age + 1)) if p.at == "open" else p for p in producers)
