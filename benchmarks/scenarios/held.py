"""
A stranger holds a snapshot (idle in a transaction, REPEATABLE READ) while many runs go through, so that no dead row can go.

The producer is that of the hot table. Beside it, 50 inserts a second are probes: of a higher priority, so that they wait
for a claim and not for what is ahead of them; insert call to handler. In brackets: the figure divided by that without
the snapshot. Quarters are quarters of what was executed.
"""

from benchmarks.contender import Contender
from benchmarks.lab import Asking, Lab, TurnError
from benchmarks.scenarios import Case, Column, Options, ours
from benchmarks.scenarios.hot import LONGEST_S, started, through
from benchmarks.scenarios.load import READY_S, until
from benchmarks.scenarios.pickup import spread

NAME = "held"
TITLE = "A snapshot held open while runs go through"
BASE = "us"
AGAINST = "no snapshot"
COLUMNS = (
    Column("runs_per_s", "runs/s"),
    Column("last_to_first", "last quarter / first", 2),
    Column("p50_ms", "probe p50", 2, higher_is_better=False),
    Column("p99_ms", "probe p99", 2, higher_is_better=False),
    Column("p99_last_ms", "p99 of the last quarter", 2, higher_is_better=False),
    Column("total_mib", "with indexes MiB", 1, higher_is_better=False),
    Column("executed", "executed", divided=False),
)
PROBES_PER_S = 50


def cases(contenders: list[Contender], _options: Options) -> list[Case]:
    return [Case(contender, variant) for contender in ours(contenders) for variant in (AGAINST, "snapshot held")]


def run(lab: Lab, case: Case, options: Options) -> dict[str, float]:
    with lab.turn(case.contender) as turn:
        turn.run("prepare", 60)
        worker = started(turn)
        with Asking(lab.dsn(turn.database)) as stranger:
            if case.variant != AGAINST:
                hold_snapshot(stranger)
            probes = turn.start("produce", rate=PROBES_PER_S, seconds=2 * LONGEST_S)
            until(turn, 2, READY_S)  # the first of them is there
            growth = through(turn, worker, options.through)
            turn.stop([probes])
            latencies = turn.tallies.latencies_ms()
        turn.stop([worker])
    if not latencies:
        message = "no probe was picked up"
        raise TurnError(message)
    rates = growth.rates(4)
    last = spread(latencies[-max(1, len(latencies) // 4) :])
    told = {"last_to_first": rates[-1] / rates[0], "p99_last_ms": last["p99_ms"], "trouble": turn.trouble}
    return growth.figures() | spread(latencies) | told


def hold_snapshot(stranger: Asking) -> None:
    """From now on until the connection's end."""
    stranger.value("BEGIN ISOLATION LEVEL REPEATABLE READ")
    stranger.value("SELECT count(*) FROM notifyworker.runs")
