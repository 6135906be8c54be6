"""
What lies about must not slow a worker down: the drain of N runs, with a crowd of other rows beside them.

In brackets: the figure divided by that of the N runs alone. `pending`: the crowd and the N are of one kind, and the first
N of them are what is drained, so a claim has a million rows before it. `scheduled`: due in a day, of the same kind.
`finished`: twice the crowd, in the partition of history that settles go to. `of another kind` has no handler here;
`of another project` is not among the project_ids of this worker, which are `default`. After the filling VACUUM ANALYZE
and a checkpoint, for all alike. From the start of the first handler until N have been executed.
"""

import dataclasses
import time

from benchmarks.contender import Contender
from benchmarks.lab import Lab, Turn, TurnError
from benchmarks.scenarios import Case, Column, Options, ours
from benchmarks.scenarios.drain import first_run

NAME = "backlog"
TITLE = "Drain beside a crowd of other rows"
BASE = "us"
AGAINST = "alone"
PICTURE = False
COLUMNS = (
    Column("runs_per_s", "runs/s"),
    Column("executed", "executed", divided=False),
    Column("seconds", "s", 2, higher_is_better=False, divided=False),
)
POLL_S = 0.002
FILL_S = 300.0

_RUNS = "INSERT INTO notifyworker.runs (kind, project_id, run_at, payload) SELECT {values}, '{{\"t\": 0}}' FROM generate_series(1, {count})"
_FINISHED = """
INSERT INTO notifyworker.run_history (run_id, run_at, created_at, started_at, finished_at, lease_token, priority,
    max_attempts, attempt, is_shadow, state, kind, project_id, settled_by, payload, headers, errors)
SELECT uuidv7(), now(), now(), now(), now(), 1, 0, 5, 1, false, 'completed', 'bench', 'default', 'bench',
       '{{"t": 0}}', '{{}}', '[]'
  FROM generate_series(1, {count})"""
CROWDS = {
    "alone": None,
    "finished": _FINISHED,
    "pending": _RUNS.replace("{values}", "'bench', 'default', now()"),
    "scheduled": _RUNS.replace("{values}", "'bench', 'default', now() + interval '1 day'"),
    "of another kind": _RUNS.replace("{values}", "'bench-other', 'default', now()"),
    "of another project": _RUNS.replace("{values}", "'bench', 'other', now()"),
}
STEP = 100_000  # rows a statement: each has its own deadline


def cases(contenders: list[Contender], options: Options) -> list[Case]:
    found = []
    for contender in ours(contenders):
        for crowd in CROWDS:
            served = {"NOTIFYWORKER_PROJECT_IDS": "default"} if crowd == "of another project" else {}
            count = 0 if crowd == AGAINST else options.crowd * (2 if crowd == "finished" else 1)
            variant = f"{count:,} {crowd}" if count else crowd
            one = dataclasses.replace(contender, environment=contender.environment | served)
            found.append(Case(one, variant, {"crowd": count}))
    return found


def run(lab: Lab, case: Case, options: Options) -> dict[str, float]:
    crowd = CROWDS[case.variant.partition(" ")[2] or case.variant]
    with lab.turn(case.contender) as turn:
        turn.run("prepare", 60)
        crowded(lab, turn.database, crowd, case.parameters["crowd"])
        turn.run("fill", 180, count=options.n)
        return drained(lab, turn, options)


def drained(lab: Lab, turn: Turn, options: Options) -> dict[str, float]:
    """Let one worker execute N of what is there, after VACUUM ANALYZE and a checkpoint; return the figures."""
    lab.execute("VACUUM (ANALYZE)", turn.database)
    lab.execute("CHECKPOINT")
    worker = turn.start("work")
    begin = first_run(turn, [worker])
    while (count := turn.tallies.count()) < options.n and time.monotonic() - begin < options.window_s:
        turn.check([worker])
        time.sleep(POLL_S)
    seconds = time.monotonic() - begin
    turn.stop([worker], timeout_s=3)
    return {"runs_per_s": count / seconds, "executed": count, "seconds": seconds, "trouble": turn.trouble}


def crowded(lab: Lab, database: str, crowd: str | None, count: int) -> None:
    """Put that many rows there, in so many statements that none is cut by its deadline."""
    begin = time.monotonic()
    for done in range(0, count if crowd else 0, STEP):
        lab.execute(str(crowd).format(count=min(STEP, count - done)), database)
        if time.monotonic() - begin > FILL_S:
            message = f"the crowd was not there within {FILL_S:g} s"
            raise TurnError(message)
