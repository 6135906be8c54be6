"""
What keys, limits and shares cost: the drain of N runs, in other company each time.

In brackets: the figure divided by that of N plain runs of one lane. `in 100 projects`, `in 10,000 projects`: they share
the slots; `crowd` times that many lie there and the first N executed are counted. `with 10,000 keys`: each run has one of
so many concurrency keys. `under a limit`: of 100,000 at once, so that it is counted and holds nothing up. `beside pauses`:
a thousand pauses of other kinds. From the start of the first handler until N have been executed.
"""

from benchmarks.contender import Contender
from benchmarks.lab import Lab
from benchmarks.scenarios import Case, Column, Options, ours
from benchmarks.scenarios.backlog import crowded, drained

NAME = "turns"
TITLE = "Drain with keys, limits and shares"
BASE = "us"
AGAINST = "plain"
PICTURE = False
COLUMNS = (
    Column("runs_per_s", "runs/s"),
    Column("executed", "executed", divided=False),
    Column("seconds", "s", 2, higher_is_better=False, divided=False),
)

_RUNS = """INSERT INTO notifyworker.runs (kind, project_id, concurrency_key, payload)
           SELECT 'bench', {project}, {key}, '{{{{"t": 0}}}}' FROM generate_series(1, {{count}}) AS i"""
PLAIN = _RUNS.format(project="'default'", key="NULL")
SHAPES: dict[str, tuple[str, str]] = {
    "plain": ("", PLAIN),
    "in 100 projects": ("", _RUNS.format(project="'p' || i % 100", key="NULL")),
    "in 10,000 projects": ("", _RUNS.format(project="'p' || i % 10000", key="NULL")),
    "with 10,000 keys": ("", _RUNS.format(project="'default'", key="'k' || i % 10000")),
    "under a limit": ("SELECT notifyworker.set_limit(kind => 'bench', max_running => 100000)", PLAIN),
    "beside pauses": ("SELECT notifyworker.pause(kind => 'other ' || i) FROM generate_series(1, 1000) AS i", PLAIN),
}


def cases(contenders: list[Contender], options: Options) -> list[Case]:
    found = []
    for contender in ours(contenders):
        for shape in SHAPES:
            count = options.crowd if shape == "in 10,000 projects" else options.n
            found.append(Case(contender, shape, {"rows": count}))
    return found


def run(lab: Lab, case: Case, options: Options) -> dict[str, float]:
    before, rows = SHAPES[case.variant]
    with lab.turn(case.contender) as turn:
        turn.run("prepare", 60)
        if before:
            lab.execute(before, turn.database)
        crowded(lab, turn.database, rows, case.parameters["rows"])
        return drained(lab, turn, options)
