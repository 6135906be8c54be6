"""
How fast a worker process takes away what is there: N runs whose handler does nothing.

From the start of the first handler until nothing is left to be settled. Whoever is not through after `window_s` is
measured by what was executed until then. The start of the process is in nobody's figure. Whose own tables can't tell
within ten seconds whether anything is left is through when its last handler has run.
"""

import time
from typing import TYPE_CHECKING

from benchmarks.contender import Contender
from benchmarks.lab import Lab, Turn, TurnError, Unanswered
from benchmarks.scenarios import Case, Column, Options

if TYPE_CHECKING:
    import subprocess

NAME = "drain"
TITLE = "Drain: no-op runs a second, one worker process unless told"
BASE = "floor"
COLUMNS = (
    Column("runs_per_s", "runs/s"),
    Column("executed", "executed"),
    Column("seconds", "s", 2, higher_is_better=False),
)
FIRST_RUN_S = 30.0
POLL_S = 0.005
STANDING_S = 0.2  # no run executed for so long: look whether all is settled, whatever the tallies say


def cases(contenders: list[Contender], _options: Options) -> list[Case]:
    return [Case(contender) for contender in contenders if NAME in contender.takes]


def run(lab: Lab, case: Case, options: Options) -> dict[str, float]:
    n = min(options.n, case.contender.at_most or options.n)
    with lab.turn(case.contender) as turn:
        turn.run("prepare", 60)
        turn.run("fill", 180, count=n)
        if case.contender.broker == "postgres":
            lab.execute("VACUUM (ANALYZE)", turn.database)
        lab.execute("CHECKPOINT")
        _left(turn)  # what it needs for its question is made before the clock starts
        workers = [turn.start("work", count=n) for _ in range(case.contender.processes)]
        figures = _watch(turn, workers, n, options.window_s)
        turn.stop(workers)
    return figures | {"trouble": turn.trouble}


def _watch(turn: Turn, workers: "list[subprocess.Popen[bytes]]", n: int, window_s: float) -> dict[str, float]:
    begin = first_run(turn, workers)
    last, changed = 0, time.monotonic()
    while True:
        count, now = turn.tallies.count(), time.monotonic()
        if count != last:
            last, changed = count, now
        if (count >= n or now - changed > STANDING_S) and (left := _left(turn)) is not True:
            end = changed if left is None or now - changed > STANDING_S else time.monotonic()
            if count < 0.99 * n:  # a tally kept by threads may miss a few
                message = f"settled, but {count} of {n} were executed"
                raise TurnError(message)
            return _figures(n, end - begin)
        if now - begin > window_s:
            return _figures(count, now - begin)
        turn.check(workers)
        time.sleep(POLL_S)


def _left(turn: Turn) -> bool | None:
    """Whether anything is left to be settled; None if the contender's own tables can't tell."""
    try:
        return turn.unsettled()
    except Unanswered:
        return None


def first_run(turn: Turn, workers: "list[subprocess.Popen[bytes]]") -> float:
    deadline = time.monotonic() + FIRST_RUN_S
    while not (first := turn.tallies.first_ns()):
        if time.monotonic() > deadline:
            message = f"no run was executed within {FIRST_RUN_S:g} s"
            raise TurnError(message)
        turn.check(workers)
        time.sleep(POLL_S)
    return first / 1e9


def _figures(executed: int, seconds: float) -> dict[str, float]:
    return {"runs_per_s": executed / seconds, "executed": executed, "seconds": seconds}
