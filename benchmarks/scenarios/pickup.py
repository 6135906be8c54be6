"""
How long a lone insert waits: from the call that inserts, so including its commit, until the handler starts.

One after the other, with gaps of 10 to 30 ms, and a worker that has nothing else to do.
"""

from benchmarks.contender import Contender
from benchmarks.figures import percentile
from benchmarks.lab import Lab
from benchmarks.scenarios import Case, Column, Options

NAME = "pickup"
TITLE = "Pickup of a lone insert, idle worker: insert call to handler, ms"
BASE = "floor"
COLUMNS = (
    Column("p50_ms", "p50", 2, higher_is_better=False),
    Column("p99_ms", "p99", 2, higher_is_better=False),
    Column("max_ms", "max", 1, higher_is_better=False),
)


def cases(contenders: list[Contender], _options: Options) -> list[Case]:
    return [Case(contender) for contender in contenders if NAME in contender.takes]


def run(lab: Lab, case: Case, options: Options) -> dict[str, float]:
    with lab.turn(case.contender) as turn:
        turn.run("prepare", 60)
        lab.execute("CHECKPOINT")
        said = turn.run("pickup", 60 + options.inserts * 0.3, count=options.inserts)
    return spread(said["latencies_ms"])


def spread(latencies: list[float]) -> dict[str, float]:
    return {
        "p50_ms": percentile(latencies, 50),
        "p90_ms": percentile(latencies, 90),
        "p99_ms": percentile(latencies, 99),
        "max_ms": max(latencies),
        "picked": len(latencies),
    }
