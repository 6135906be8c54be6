"""
The life of one run: claim, heartbeat, settle, give back, reap, cancel and retry, as sql/ and settle.py have them.

Each statement may be executed and its answer lost; lost before it is executed; or executed long after its worker has
given it up. A worker that was paused is one that takes no step for a while, so it needs no step of its own. A stranger
may hold the row's lock. What must never be is written down when it happens (`wrong`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

OUTCOMES = ("completed", "failed", "retry", "release")
ENDS = frozenset({"completed", "failed", "cancelled"})


class Row(NamedTuple):
    """The run, by the database's word."""

    state: str = "pending"
    attempt: int = 0
    token: int = 0
    owner: int | None = None
    is_expired: bool = False
    settled_by: tuple[int, int] | None = None  # worker and token that wrote the history's row


class Attempt(NamedTuple):
    """What a worker believes to hold."""

    worker: int
    token: int
    number: int
    does: str  # "answer", "runs", an outcome to be written, or "unsure " + one that was sent


class World(NamedTuple):
    """All of it."""

    row: Row = Row()
    attempts: frozenset[Attempt] = frozenset()
    floating: frozenset[Attempt] = frozenset()  # statements that their worker has given up, on their way all the same
    alive: frozenset[int] = frozenset({0, 1})
    is_locked: bool = False
    reaper_saw: int | None = None  # the token of an expired lease that the reaper has just read
    used: int = 0  # attempts that were started in this life and not given back
    settled: int = 0  # times that this life was settled
    left: tuple[int, int, int, int] = (0, 0, 0, 0)  # losses, retries, releases, cancels
    wrong: str | None = None


LOSSES, RETRIES, RELEASES, CANCELS = range(4)


@dataclass(frozen=True)
class Life:
    """`without` names the guards that are taken out."""

    max_attempts: int = 2
    losses: int = 1
    retries: int = 1
    releases: int = 1
    cancels: int = 1
    without: frozenset[str] = frozenset()

    def start(self) -> World:
        return World(left=(self.losses, self.retries, self.releases, self.cancels))

    def fault(self, world: World) -> str | None:
        if world.wrong:
            return world.wrong
        if world.row.attempt > self.max_attempts:
            return "more attempts than max_attempts"
        if world.used > self.max_attempts:
            return "started more often than max_attempts"
        if world.settled > 1:
            return "settled twice"
        leases = [a.token for a in world.attempts]
        return "two hold one token" if len(set(leases)) < len(leases) else None

    def is_done(self, world: World) -> bool:
        return world.row.state in ENDS and not world.attempts

    def steps(self, world: World) -> Iterator[tuple[str, bool, World]]:
        yield from self._claims(world)
        for attempt in world.attempts:
            yield from self._works(world, attempt)
        for late in world.floating:
            after = world._replace(floating=world.floating - {late})
            yield f"{late} is executed late", False, self._executed(after, late)[0]
        yield from self._reaps(world)
        yield from self._others(world)

    # Workers.

    def _claims(self, world: World) -> Iterator[tuple[str, bool, World]]:
        row = world.row
        may = row.state == "pending" or (row.state == "running" and "the state in the claim" in self.without)
        if not may or world.is_locked:
            return
        for worker in sorted(world.alive):
            counts = "an attempt counts at the claim" not in self.without
            row = world.row._replace(state="running", attempt=world.row.attempt + counts, token=world.row.token + 1)
            row = row._replace(owner=worker, is_expired=False)
            attempt = Attempt(worker, row.token, row.attempt, "answer")
            if any((a.worker, a.does) == (worker, "answer") for a in world.attempts):
                continue  # one claim at a time
            after = world._replace(row=row, attempts=world.attempts | {attempt}, used=world.used + 1)
            if world.row.state == "running" and not world.row.is_expired:
                after = after._replace(wrong="taken from a worker that holds it")
            yield f"{worker} claims", True, after

    def _works(self, world: World, attempt: Attempt) -> Iterator[tuple[str, bool, World]]:
        row = world.row
        others = world.attempts - {attempt}

        def become(does: str) -> World:
            return world._replace(attempts=others | {attempt._replace(does=does)})

        holds = (row.state, row.owner, row.token) == ("running", attempt.worker, attempt.token)
        if attempt.does == "answer":
            yield f"{attempt} is told", True, become("runs")
            if world.left[LOSSES]:
                # Its worker knows of nothing, but that it does not know: the look for orphans finds it.
                yield f"{attempt} is not told", False, self._less(become("release" if holds else "gone"), LOSSES)
        elif attempt.does == "runs":
            for outcome in OUTCOMES:
                if outcome == "release" and not world.left[RELEASES]:
                    continue
                last = outcome == "retry" and attempt.number >= self.max_attempts
                after = become("failed" if last else outcome)
                yield f"{attempt} ends in {outcome}", True, self._less(after, RELEASES) if outcome == "release" else after
            yield from self._beats(world, attempt, holds=holds)
        elif attempt.does == "gone":
            yield "it is forgotten", True, world._replace(attempts=others)
        else:
            yield from self._settles(world, attempt, holds=holds)

    def _beats(self, world: World, attempt: Attempt, *, holds: bool) -> Iterator[tuple[str, bool, World]]:
        if holds and not world.is_locked:
            if world.row.is_expired:
                yield f"{attempt} beats", True, world._replace(row=world.row._replace(is_expired=False))
        elif not holds or "a locked row is not lost" in self.without:
            gone = world._replace(attempts=world.attempts - {attempt})
            yield f"{attempt} finds that it is lost", True, gone._replace(wrong="given up while held") if holds else gone

    def _settles(self, world: World, attempt: Attempt, *, holds: bool) -> Iterator[tuple[str, bool, World]]:
        """Write an outcome, and look after it if it was not written."""
        others = world.attempts - {attempt}
        outcome = attempt.does.removeprefix("unsure ")
        sent = attempt._replace(does=outcome)
        after, was_written = self._executed(world, sent)
        told = after._replace(attempts=others)
        if was_written:
            yield f"{attempt} is written", True, told
        elif world.is_locked and holds:
            pass  # skipped: it goes again
        elif attempt.does == sent.does or outcome in {"retry", "release"} or "a lost answer is looked for" in self.without:
            is_lie = outcome in ENDS and world.row.settled_by == (attempt.worker, attempt.token)
            yield f"{attempt} is refused", True, told._replace(wrong="told refused, and was written") if is_lie else told
        else:
            yield f"{attempt} is looked for in the history", True, told
        if world.left[LOSSES]:
            unsure = attempt._replace(does=f"unsure {outcome}")
            yield f"{attempt}, the answer is lost", False, self._less(after._replace(attempts=others | {unsure}), LOSSES)
            floats = world._replace(attempts=others | {unsure}, floating=world.floating | {sent})
            yield f"{attempt}, no answer yet", False, self._less(floats, LOSSES)

    # The statements, as the server executes them.

    def _executed(self, world: World, sent: Attempt) -> tuple[World, bool]:
        """Settle or give back; what is locked is skipped."""
        row = world.row
        is_back = sent.does in {"retry", "release"}
        token_counts = ("the token in the give-back" if is_back else "the token in the settle") not in self.without
        is_running = row.state == "running" or (not is_back and "the settle takes the row" in self.without and row.state in ENDS)
        is_mine = (row.owner == sent.worker or row.settled_by == (sent.worker, sent.token)) and (
            row.token == sent.token or not token_counts
        )
        if not (is_running and is_mine) or world.is_locked:
            return world, False
        if sent.token != row.token:
            world = world._replace(wrong="written by a worker without the lease")
        if is_back:
            back = row._replace(state="pending", owner=None, is_expired=False, attempt=row.attempt - (sent.does == "release"))
            return world._replace(row=back, used=world.used - (sent.does == "release")), True
        done = row._replace(state=sent.does, owner=None, is_expired=False, settled_by=(sent.worker, sent.token))
        return world._replace(row=done, settled=world.settled + 1), True

    def _reaps(self, world: World) -> Iterator[tuple[str, bool, World]]:
        row = world.row
        if "the reaper" in self.without:
            return
        is_due = row.state == "running" and (row.is_expired or row.owner not in world.alive)
        if world.reaper_saw is None:
            if is_due:
                yield "the reaper looks", True, world._replace(reaper_saw=row.token)
            return
        after = world._replace(reaper_saw=None)
        same = row.state == "running" and row.token == world.reaper_saw
        if not same or world.is_locked or not (is_due or "the reaper looks again under the lock" in self.without):
            yield "the reaper finds nothing", True, after
            return
        if not is_due:
            after = after._replace(wrong="reaped from a worker that holds it")
        is_last = row.attempt >= self.max_attempts and "the last attempt fails" not in self.without
        taken = row._replace(state="failed" if is_last else "pending", owner=None, is_expired=False)
        yield "the reaper takes", True, after._replace(row=taken, settled=after.settled + is_last)

    def _others(self, world: World) -> Iterator[tuple[str, bool, World]]:
        row = world.row
        if row.state == "running" and not row.is_expired:
            yield "the lease expires", True, world._replace(row=row._replace(is_expired=True))
        if len(world.alive) > 1:
            attempts = frozenset(a for a in world.attempts if a.worker != 0)
            yield "0 dies", False, world._replace(alive=frozenset({1}), attempts=attempts)
        yield "a stranger locks or unlocks it", world.is_locked, world._replace(is_locked=not world.is_locked)
        if world.is_locked:
            return
        if row.state not in ENDS and world.left[CANCELS]:
            done = row._replace(state="cancelled", owner=None, is_expired=False)
            yield "it is cancelled", False, self._less(world._replace(row=done, settled=world.settled + 1), CANCELS)
        if row.state in ENDS and world.left[RETRIES]:
            token = 0 if "a retry keeps the token" in self.without else row.token
            again = self._less(world._replace(row=Row(token=token), used=0, settled=0), RETRIES)
            yield "it is retried", False, again

    @staticmethod
    def _less(world: World, what: int) -> World:
        return world._replace(left=tuple(n - (i == what) for i, n in enumerate(world.left)))  # type: ignore[arg-type]
