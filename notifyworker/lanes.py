"""
Where to look for work: the lanes that a worker knows, and from which place on each is read.

A lane is what the claim's index leads with: kind, project and rank, which is the priority and whether its runs have a
concurrency key; within it runs are in the order of `run_at`.
While any session of the server holds an old snapshot (a report, a dump, a transaction that was forgotten), nothing
that was claimed can be vacuumed, and a claim that reads a lane from its beginning walks over all of it again: this is
how queues on Postgres collapse. So a claim reads each lane from its *mark*, the place where the last one found
something. What lies below a mark all the same, since it was committed late or carries an old `run_at`, is found in
one of three ways: somebody tells how far back it lies (`lower`: a notification says it, and so does a leader that has
seen a transaction stay open); a claim now and then reads from farther back (`slack`); or a look from the beginning
finds it. Such a look costs a fraction of a millisecond as a rule and much more over many dead rows, so it is made
whenever it takes less than a twentieth of the time.

Lanes that limits or keys concern are claimed by another statement (schema/0012_limits.sql), so that nobody else pays for
it: a claim of lanes of both sorts is made in several batches, each of one sort. Lanes of runs with keys have no mark: a run
that has waited for its key comes back to its old place.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby

#: Transactions commit in another order than they begin in: a lane is read from so far before its mark; and from so
#: much farther now and then, while looks from the beginning are rare.
SLACK, WIDE_SLACK = timedelta(milliseconds=50), timedelta(seconds=2)
_RARE_S = 0.2
#: The part of the time that looks from the beginning may take.
LOOK_SHARE = 0.05
#: How many lanes one claim reads, and how many without a run are remembered.
LANES_A_CLAIM = 256
#: Below every row.
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Key = tuple[str, str, int]


@dataclass(slots=True)
class Lane:
    """
    One lane: its key, and the place from which it is read.

    `rank`, lower first, is minus twice the priority, and one more for runs with a concurrency key (migrate.RANK).
    """

    kind: str
    project_id: str
    rank: int
    mark: datetime
    is_ready: bool = True
    is_limited: bool = False
    order: tuple[int, datetime] = field(init=False)

    def __post_init__(self) -> None:
        """Fix its place among the others until the next look."""
        self.order = self.rank, self.mark

    def read_from(self, slack: timedelta) -> datetime:
        """The place from which it is read."""
        return EPOCH if self.rank & 1 else max(EPOCH, self.mark - slack)


class Lanes:
    """The lanes of one reader. `now` is time.monotonic()."""

    def __init__(self) -> None:
        self._lanes: dict[Key, Lane] = {}
        self._in_order: list[Lane] = []
        #: Whether limits or keys concern any of them.
        self.any_limited = False
        self._look_again_at = 0.0
        self._wide_again_at = 0.0
        # How far back was told of since the claim or look that is under way began: that one has not seen it.
        self._told: datetime | None = None
        self._last_look_took_s = 0.0
        #: Seconds that a look from the beginning takes: the lesser of the last two. A single one that was slow has waited
        #: for a connection, a lock or a processor, and tells nothing of the next.
        self.look_takes_s = 0.0

    def __len__(self) -> int:
        return len(self._lanes)

    def to_read(self) -> Sequence[Lane]:
        """Lanes in the order in which a claim reads them: higher priority first, then by the age of their heads."""
        if len(self._in_order) <= LANES_A_CLAIM:
            return self._in_order
        return [lane for lane in self._in_order if lane.is_ready][:LANES_A_CLAIM]

    def batches(self) -> list[Sequence[Lane]]:
        """
        Return the same in the pieces in which a claim reads them, each with limits throughout or without.

        Lanes in which nothing is known to be ready come last, so that as a rule they are not read at all.
        """
        lanes = self.to_read()
        if not self.any_limited:
            return [lanes]
        ready = [lane for lane in lanes if lane.is_ready]
        rest = sorted((lane for lane in lanes if not lane.is_ready), key=lambda lane: lane.is_limited)
        return [list(some) for part in (ready, rest) for _, some in groupby(part, key=lambda lane: lane.is_limited)]

    def look_is_due_in_s(self, now: float) -> float:
        """Seconds until the next look from the beginning may be made; 0: now."""
        return max(0.0, self._look_again_at - now)

    def begin(self) -> None:
        """A claim or a look begins: it will see all that was told of before."""
        self._told = None

    def is_dear(self) -> bool:
        """Whether a look from the beginning takes so long that it can be made only now and then."""
        return self.look_takes_s / LOOK_SHARE > _RARE_S

    def slack(self, now: float) -> timedelta:
        """From how far before the marks to read now."""
        return WIDE_SLACK if self.is_dear() and now >= self._wide_again_at else SLACK

    def read(self, slack: timedelta, began: float, now: float) -> None:
        """Take note of how long it took to read."""
        if slack is WIDE_SLACK:
            self._wide_again_at = _again_at(now - began, now)

    def looked(self, seen: Iterable[tuple[str, str, int, datetime, bool, bool]], began: float, now: float) -> bool:
        """Take note of a look from the beginning: kind, project, rank, mark, whether a run is ready, limited. Tell if any is."""
        self.look_takes_s = min(now - began, self._last_look_took_s)
        self._last_look_took_s = now - began
        self._look_again_at = _again_at(self.look_takes_s, now)
        for lane in self._lanes.values():
            lane.is_ready = False
        any_ready = False
        for kind, project_id, rank, head, is_ready, is_limited in seen:
            mark = head if self._told is None else min(head, self._told)
            known = self._lanes.get((kind, project_id, rank))
            if known is None:
                self._lanes[kind, project_id, rank] = Lane(kind, project_id, rank, mark, is_ready, is_limited)
            elif is_ready:
                known.mark, known.is_ready, known.is_limited, known.order = mark, True, is_limited, (rank, mark)
            any_ready = any_ready or is_ready
        if len(self._lanes) > LANES_A_CLAIM:
            self._forget()
        self._in_order = sorted(self._lanes.values(), key=lambda lane: lane.order)
        self.any_limited = any(lane.is_limited for lane in self._in_order)
        return any_ready

    def found(self, key: Key, run_at: datetime) -> None:
        """Take note of what was found in a lane: the furthest `run_at`."""
        lane = self._lanes.get(key)
        if lane is not None:
            lane.mark = max(lane.mark, run_at if self._told is None else min(run_at, self._told))

    def exhausted(self, lanes: Iterable[Lane]) -> None:
        """Take note that a claim found no more in any of these."""
        for lane in lanes:
            lane.is_ready = self._told is not None and lane.mark <= self._told

    def lower(self, to: datetime) -> None:
        """Something that lies as far back as this has only now become visible."""
        self._told = to if self._told is None else min(to, self._told)
        for lane in self._lanes.values():
            if lane.mark > to:
                lane.mark = to
                lane.is_ready = True

    def _forget(self) -> None:
        """Drop the lanes without a run that were used the longest ago, beyond the number that one claim reads."""
        idle = sorted((lane.mark, key) for key, lane in self._lanes.items() if not lane.is_ready)
        for _, key in idle[: max(0, len(self._lanes) - LANES_A_CLAIM)]:
            del self._lanes[key]


def _again_at(takes_s: float, now: float) -> float:
    """When that which takes so long, and is over now, may be done again, to take LOOK_SHARE of the time."""
    return now + takes_s * (1 / LOOK_SHARE - 1)
